"""Titans' memory as a mixer; its mathematics is compared in `ops/test_titans.py`."""

from typing import Any

import pytest
import torch
from mixerzoo.mixers import create_mixer


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_state_size_is_constant(depth: int) -> None:
    mixer = create_mixer("titans", 32, heads=2, chunk_size=8, depth=depth, expand=2)
    x = torch.randn(2, 33, 32)
    weights = sum(w.numel() for w in mixer.memory)
    assert weights == 2 * (16 * 16 if depth == 1 else 2 * 16 * 32 + (depth - 2) * 32 * 32)
    sizes = [mixer(x[:, :t], None, True)[1].nbytes for t in (1, 7, 8, 9, 33)]
    assert sizes == [2 * 4 * (3 * weights + 3 * 96)] * 5


@torch.no_grad()
def test_it_learns_what_it_reads() -> None:
    """A pair of key and value that comes again and again ends up in the memory."""
    torch.manual_seed(0)
    mixer = create_mixer("titans", 32, heads=2, chunk_size=4, conv_size=0, learning_rate=4.0)
    torch.nn.init.constant_(mixer.decay_proj.bias, -20.0)
    x = torch.randn(1, 1, 32)
    _, state = mixer(x.expand(1, 64, 32), None, True)
    _, k, v = torch.nn.functional.silu(mixer.qkv_proj(x[0, 0])).view(3, 2, 1, 16)
    k = k / k.norm(dim=-1, keepdim=True)

    def error(up: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
        return (torch.nn.functional.gelu(k @ up) @ down - v).norm()

    assert error(*(w[0] for (w,) in state.fast.memory)) < 0.1 * error(*mixer.memory)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"heads": 5}, "no multiple of heads = 5"), ({"depth": 0}, "depth must be a whole number of at least 1")],
)
def test_options_that_do_not_fit(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create_mixer("titans", 32, **options)
