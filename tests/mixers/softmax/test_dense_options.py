"""Options of the softmax family's dense mixers: what they mean, what they refuse, and what decoding costs."""

from __future__ import annotations

import pytest
import torch
from mixerzoo.mixers import create_mixer
from torch.nn import functional as F

from ..ops.largest_result import LargestResult

DENSE = [
    "softmax_attention",
    "gated_attention",
    "differential_attention",
    "multi_head_latent_attention",
    "forgetting_attention",
    "path_attention",
    "stick_breaking_attention",
]


def double_mixer(name, **options):
    torch.manual_seed(0)
    return create_mixer(name, 16, heads=2, **options).double(), torch.randn(2, 12, 16, dtype=torch.float64)


@torch.no_grad()
@pytest.mark.parametrize("name", DENSE)
@pytest.mark.parametrize("batch", [1, 2])
def test_decoding_copies_no_cache(name, batch):
    mixer = create_mixer(name, 64, heads=4)
    length = 1000
    _, state = mixer(torch.randn(batch, length, 64), return_state=True)
    _, state = mixer(torch.randn(batch, 1, 64), state, return_state=True)  # now its buffers have room
    with LargestResult() as largest:
        _, state = mixer(torch.randn(batch, 1, 64), state, return_state=True)
    # the logits of a few heads, not the features of all keys
    assert largest.elements <= max(batch * 4 * 1.6 * length, 64 * 4 * 64 * 3)


@torch.no_grad()
@pytest.mark.parametrize("name", DENSE)
def test_reading_takes_no_matrix_of_all_pairs(name):
    sizes = []
    mixer = create_mixer(name, 16, heads=2)
    for time in (512, 2048):
        with LargestResult() as largest:
            mixer(torch.randn(1, time, 16))
        sizes.append(largest.elements)
    assert sizes[1] <= 4.5 * sizes[0]  # all pairs would grow by 16


def test_only_a_fraction_of_the_features_turns():
    mixer, _ = double_mixer("softmax_attention", rotary_fraction=0.5)
    q, k = torch.randn(2, 1, 5, 2, 8, dtype=torch.float64)
    turned, _ = mixer.positioned(q, k, position=3)
    assert torch.equal(turned[..., 4:], q[..., 4:]) and not torch.allclose(turned[..., :4], q[..., :4])
    small, _ = double_mixer("softmax_attention", d_head=4)
    torch.testing.assert_close(turned[..., :4], small.positioned(q[..., :4], k[..., :4], 3)[0], rtol=0, atol=1e-12)


def test_a_sink_takes_what_attention_leaves():
    mixer, x = double_mixer("softmax_attention", sinks=True)
    without, _ = double_mixer("softmax_attention")
    without.load_state_dict({n: p for n, p in mixer.state_dict().items() if n != "sink_logits"})
    with torch.no_grad():
        mixer.sink_logits.fill_(-100.0)
        torch.testing.assert_close(mixer(x)[0], without(x)[0], rtol=0, atol=1e-12)
        mixer.sink_logits.fill_(100.0)
        assert mixer(x)[0].abs().max() < 1e-12


def test_forgetting_is_in_the_logits():
    mixer, x = double_mixer(
        "forgetting_attention", qk_norm=False, token_shift=False, output_norm=False, output_gate=False
    )
    q, k, v = (part.unflatten(-1, (2, 8)) for part in mixer.qkv_proj(x).chunk(3, dim=-1))
    total = F.logsigmoid(mixer.decay_proj(x)).cumsum(1)
    y = torch.zeros_like(v)
    for t in range(12):
        scores = torch.einsum("bhd,bshd->bsh", q[:, t], k[:, : t + 1]) / 8**0.5
        weights = (scores + total[:, t : t + 1] - total[:, : t + 1]).softmax(1)
        y[:, t] = torch.einsum("bsh,bshd->bhd", weights, v[:, : t + 1])
    torch.testing.assert_close(mixer(x)[0], mixer.out.o_proj(y.flatten(2)), rtol=0, atol=1e-12)


def test_keys_and_values_are_shifted_by_a_share_of_the_token_before():
    mixer, x = double_mixer("forgetting_attention", qk_norm=False)
    _, k, v, last = mixer._project(x, None)
    kv = mixer.qkv_proj(x)[..., 16:].unflatten(-1, (4, 8))
    share = mixer.shift_proj(x).sigmoid().unsqueeze(-1)
    before = F.pad(kv, (0, 0, 0, 0, 1, 0))[:, :-1]
    torch.testing.assert_close(torch.cat([k, v], 2), share * before + (1 - share) * kv, rtol=0, atol=1e-12)
    assert torch.equal(last, kv[:, -1:])


def test_lambda_grows_with_the_layer():
    inits = [create_mixer("differential_attention", 16, layer=i, n_layers=12).lambda_init for i in range(12)]
    assert inits[0] == pytest.approx(0.2) and inits == sorted(inits) and inits[-1] < 0.8


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("softmax_attention", {"rotary_fraction": 0.3}, r"rotary_fraction = 0\.3 of d_head must be even"),
        ("softmax_attention", {"rotary_fraction": 1.5}, "rotary_fraction must be"),
        ("gated_attention", {"d_head": 4}, r"rotary_fraction = 0\.25 of d_head must be even"),
        ("differential_attention", {"heads": 3}, "no multiple of heads = 6"),
        ("differential_attention", {"kv_heads": 3}, "multiple of kv_heads"),
        ("forgetting_attention", {"kv_heads": 3}, "multiple of kv_heads"),
        ("path_attention", {"chunk_size": 0}, "chunk_size must be"),
        ("stick_breaking_attention", {"remainder": False}, "the first token would read nothing"),
    ],
)
def test_options_that_do_not_fit_are_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        create_mixer(name, 16, **options)
