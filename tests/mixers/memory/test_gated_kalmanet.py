"""The Gated KalmaNet layer against the released one."""

from pathlib import Path
from typing import Any

import torch
from mixerzoo.mixers import create_mixer
from safetensors.torch import load_file

GOLDEN = Path(__file__).parents[2] / "golden" / "gated_kalmanet.safetensors"

NAMES = {  # ours: theirs
    "decay_proj.weight": "a_proj.weight",
    "beta_proj.weight": "b_proj.weight",
    "beta_proj.bias": "b_proj.bias",
    "mix_proj.weight": "alpha_proj.weight",
    "mix_proj.bias": "alpha_proj.bias",
    "A_log": "A_log",
    "dt_bias": "dt_bias",
    "output.g_proj.weight": "g_proj.weight",
    "output.o_norm.weight": "o_norm.weight",
    "output.o_proj.weight": "o_proj.weight",
}


def test_the_released_layer(oracle: Any) -> None:
    golden = {name.removeprefix("layer."): x for name, x in load_file(GOLDEN).items() if name.startswith("layer.")}
    weights = {ours: golden[theirs] for ours, theirs in NAMES.items()}
    weights["qkv_proj.weight"] = torch.cat([golden[f"{n}_proj.weight"] for n in "qkv"])
    weights["conv.weight"] = torch.cat([golden[f"{n}_conv1d.weight"] for n in "qkv"]).squeeze(1)
    mixer = create_mixer("gated_kalmanet", 32, heads=2, d_head=16)
    mixer.load_state_dict(weights)
    mixer.output.o_norm.eps = 1e-6  # theirs
    oracle("gated_kalmanet", "golden file of the released layer", mixer(golden["x"])[0], golden["y"], limit=1e-4)


def test_decay_starts_as_released() -> None:
    torch.manual_seed(0)
    mixer = create_mixer("gated_kalmanet", 64, heads=64, d_head=2)
    rate = torch.nn.functional.softplus(mixer.dt_bias)
    assert rate.min() >= 0.001 - 1e-6 and rate.max() <= 0.1 + 1e-6 and rate.max() / rate.min() > 20
    assert mixer.A_log.exp().max() <= 16 and mixer.A_log.exp().std() > 3
