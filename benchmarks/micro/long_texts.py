"""Reading long texts in pieces: seconds for 16,384 and 65,536 tokens, four times as many where the state is bounded.

Whole models, and many minutes: no part of `make micro`. Run it with `pytest benchmarks/micro/long_texts.py`.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from mixerzoo.mixers import list_mixers, mixer_card
from mixerzoo.models import LanguageModel, preset_config

from .conftest import DEVICE, finished

LENGTHS = (16_384, 65_536)
WINDOW = "sliding_window_attention"


def layout(name: str) -> str:
    """By itself, or beside a window where it is no token mixer or sees the last chunk only when it is complete."""
    card = mixer_card(name)
    return name if card.role == "mixer" and name not in ("fwpkm", "fwmlp") else f"{WINDOW} | {name}@1"


@pytest.mark.parametrize("name", list_mixers())
@pytest.mark.parametrize("length", LENGTHS)
def test_read(name: str, length: int, benchmark: Any) -> None:
    if DEVICE.type == "cpu" and length > LENGTHS[0] and mixer_card(name).state_growth == "linear":
        pytest.skip("attention over everything takes minutes here")
    model = LanguageModel(preset_config("nano", layout(name))).eval().to(DEVICE)
    tokens = torch.randint(model.config.vocab_size, (1, length), generator=torch.Generator().manual_seed(0))
    benchmark.group = f"{length:,} tokens"
    benchmark.pedantic(finished, (lambda: model.read(tokens),), warmup_rounds=1, rounds=3)
