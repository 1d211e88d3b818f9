"""The LaCT layer against the released one, and its options."""

from pathlib import Path
from typing import Any

import pytest
import torch
from mixerzoo.mixers import create_mixer
from safetensors.torch import load_file

GOLDEN = Path(__file__).parents[2] / "golden" / "lact.safetensors"
SMALL = {"heads": 2, "memory_heads": 2, "window": 12, "chunk_size": 16, "rank": 4}

NAMES = {  # ours: theirs
    "qkv_proj.weight": "qkv.weight",
    "memory_gate.left": "w0.w_left",
    "memory_gate.right": "w0.w_right",
    "memory_up.left": "w2.w_left",
    "memory_up.right": "w2.w_right",
    "memory_down": "w1",
    "step_proj.weight": "lr_proj.weight",
    "step_proj.bias": "lr_proj.bias",
    "scale_proj.weight": "ttt_scale_proj.weight",
    "scale_proj.bias": "ttt_scale_proj.bias",
    "momentum_proj.weight": "momentum_proj.0.weight",
    "momentum_proj.bias": "momentum_proj.0.bias",
    "memory_norm.weight": "ttt_norm.weight",
    "o_proj.weight": "o_proj.weight",
}


def test_the_released_layer(oracle: Any) -> None:
    golden = {name.removeprefix("layer."): x for name, x in load_file(GOLDEN).items() if name.startswith("layer.")}
    weights = {ours: golden[theirs] for ours, theirs in NAMES.items()}
    weights |= {"qk_scale": golden["qk_scale"].T.flatten(), "qk_shift": golden["qk_offset"].T.flatten()}
    mixer = create_mixer("lact", 32, **SMALL).double()
    mixer.load_state_dict(weights)
    # theirs adds 1e-5 to the lengths of queries and keys, and ours 1e-6 to their squares
    oracle("lact", "golden file of the released layer", mixer(golden["x"])[0], golden["y"], limit=1e-4)


def test_the_memory_reaches_beyond_the_window() -> None:
    """A change of the first token is seen by the memory from the second chunk on, by the window before."""
    torch.manual_seed(0)
    mixer = create_mixer("lact", 32, **{**SMALL, "window": 4}).double()
    x = torch.randn(1, 40, 32, dtype=torch.float64)
    changed = x.clone()
    changed[:, 0] += 1
    difference = (mixer(x)[0] - mixer(changed)[0]).abs().amax(-1)[0]
    assert difference[:4].min() > 1e-6 and difference[4:16].max() == 0 and difference[16:].min() > 1e-9


@pytest.mark.parametrize("rank", [None, 4])
def test_the_state_is_bounded(rank: int | None) -> None:
    mixer = create_mixer("lact", 32, **{**SMALL, "rank": rank})
    x = torch.randn(2, 64, 32)
    with torch.no_grad():
        _, state = mixer(x, None, True)
        for t in range(40):
            _, state = mixer(x[:, t : t + 1], state, True)
            assert state.nbytes <= mixer.max_state_nbytes(2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": 3}, "heads and memory_heads must divide d_model 32"),
        ({"memory_heads": 5}, "heads and memory_heads must divide d_model 32"),
        ({"heads": 32}, "d_model / heads be even, got 32 and 4"),
        ({"expand": 0.01}, "expand \\* d_model / memory_heads must be at least 1"),
        ({"rank": 0}, "rank must be a whole number of at least 1, or None"),
    ],
)
def test_options_that_do_not_fit(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create_mixer("lact", 32, **options)
