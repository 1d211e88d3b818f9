"""Raven against the layer of flash-linear-attention, with copied weights, and what its routing promises."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from mixerzoo.mixers import create_mixer
from torch.nn import functional as F


def on_the_cpu(monkeypatch: pytest.MonkeyPatch, **options: Any) -> Any:
    """Their layer, with their own naive function, and torch's norm and SiLU, for their kernels."""
    from fla.layers import raven as theirs
    from fla.ops.gsa.naive import naive_recurrent_gsa

    def recurrent(*, q: Any, k: Any, v: Any, s: Any, g: Any, scale: float, **_: Any) -> Any:
        return naive_recurrent_gsa(q, k, v, s, g, scale)

    monkeypatch.setattr(theirs, "fused_recurrent_gsa", recurrent)
    layer: Any = theirs.Raven(hidden_size=32, num_heads=4, layer_idx=0, fuse_norm=False, **options)
    layer.gate_fn, layer.feature_map = F.silu, torch.nn.SiLU()
    with torch.no_grad():  # away from where they start, at which norms do nothing
        for name, p in layer.named_parameters():
            if "norm" in name:
                p.uniform_(0.5, 1.5)
    return layer


def copied(mixer: Any, layer: Any) -> None:
    names = {"r_proj": "router_proj", "a_proj": "decay_proj", "f_proj": "decay_proj", "g_norm": "o_norm"}
    if mixer.output_gate:
        names |= {"o_gate_proj": "output.g_proj", "o_norm": "output.o_norm", "o_proj": "output.o_proj"}
    theirs = {key.partition("."): p for key, p in layer.state_dict().items()}
    mixer.load_state_dict({names.get(name, name) + dot + rest: p for (name, dot, rest), p in theirs.items()})


@pytest.mark.parametrize("noise", [False, True])
@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ({"use_output_gate": True}, {}),
        ({"num_kv_heads": 2, "decay_type": "GLA"}, {"kv_heads": 2, "decay": "gla", "output_gate": False}),
        (
            {"router_score": "softmax", "router_type": "mlp"},
            {"score": "softmax", "router": "mlp", "output_gate": False},
        ),
    ],
)
def test_the_layer_of_fla(
    oracle: Any, monkeypatch: pytest.MonkeyPatch, theirs: dict[str, Any], ours: dict[str, Any], noise: bool
) -> None:
    torch.manual_seed(0)
    layer = on_the_cpu(monkeypatch, num_slots=12, topk=4, **theirs).train(noise)
    mixer: Any = create_mixer("raven", 32, heads=4, slots=12, top_k=4, chunk_size=16, **ours).train(noise)
    copied(mixer, layer)
    x = torch.randn(2, 50, 32)
    found = []
    for run in (mixer, layer):
        torch.manual_seed(1)  # the same noise for both
        y = run(x)[0]
        found.append((y, *torch.autograd.grad(y.square().sum(), [run.k_proj.weight, run.q_proj.weight])))
    for actual, expected in zip(*found):
        oracle("raven", "fla-core Raven on naive_recurrent_gsa", actual, expected, limit=2e-5)


def test_slots_that_are_not_chosen_keep_their_bits() -> None:
    torch.manual_seed(0)
    mixer: Any = create_mixer("raven", 32, heads=2, slots=12, top_k=3).eval()
    _, before = mixer(torch.randn(1, 40, 32), return_state=True)
    x = torch.randn(1, 1, 32)
    _, after = mixer(x, before, return_state=True)
    written = mixer._route(x)[0, 0] > 0
    assert written.sum(dim=-1).tolist() == [3, 3]
    for old, new in ((before.keys, after.keys), (before.values, after.values)):
        changed = (old != new).any(dim=-1)[0]
        assert torch.equal(changed, written)


def test_noise_in_training_only() -> None:
    mixer = create_mixer("raven", 32, heads=2, slots=12, top_k=3)
    x = torch.randn(1, 20, 32)
    assert not torch.equal(mixer(x)[0], mixer(x)[0])
    mixer.eval()
    assert torch.equal(mixer(x)[0], mixer(x)[0])


def test_alpha_slows_both_forgetting_and_writing() -> None:
    torch.manual_seed(0)
    mixer: Any = create_mixer("raven", 32, heads=2, slots=12, top_k=3, alpha=4.0).eval()
    assert torch.allclose(mixer._route(torch.randn(1, 5, 32)).sum(-1), torch.tensor(0.25))


def test_more_slots_to_write_than_there_are() -> None:
    with pytest.raises(ValueError, match="top_k must be at most slots = 8, got 9"):
        create_mixer("raven", 32, slots=8, top_k=9)
