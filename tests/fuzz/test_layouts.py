"""Layout lines, valid ones changed and others grown from a grammar that knows a little too much."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st
from mixerzoo.mixers import list_mixers, mixer_options
from mixerzoo.models import LAYOUTS, ModelConfig, count_parameters, parse_layout

from .fuzzing import NUMBERS, TEXTS, ends_well, fuzz, mutated_text

PIECES = [
    *TEXTS, *map(str, NUMBERS[:-7]), "|", ",", "+", "@", "*", "(", ")", "=", "'", '"', "\\", "  ", "@0", "*2",
    "*999999999",
    "fwpkm@0", "None", "True", "(" * 500, "softmax_attention, " * 200, "１", "é",
]  # fmt: skip
LINES = [layout.line for layout in LAYOUTS.values()]


def grown(rng: random.Random) -> str:
    def mixer() -> str:
        name = rng.choice(list_mixers())
        known = list(mixer_options(name))
        options = rng.sample(known, min(len(known), rng.choice([0, 0, 1, 2])))
        values = ["1", "-1", "0", "2.5", "1e9", "999999999999", "None", "True", "'chunked'", "reference", "64", "1e-3"]
        return f"{name}({', '.join(f'{o}={rng.choice(values)}' for o in options)})" if options else name

    pattern = ", ".join(mixer() + rng.choice(["", "", "*2", "*0"]) for _ in range(rng.choice([1, 1, 2])))
    inserted = f" | {mixer()}@{rng.choice(['0', '1', '0,1', '7'])}" if rng.random() < 0.4 else ""
    return pattern + inserted


@fuzz(500)
@given(st.randoms(use_true_random=False))
def test_a_changed_line_is_read_or_refused(rng: random.Random) -> None:
    line = mutated_text(rng.choice(LINES), rng, PIECES)
    layout = ends_well(lambda: parse_layout(line))
    if layout is not None:
        assert parse_layout(str(layout)) == layout
        ends_well(lambda: layout.place(2))


@fuzz(60)
@given(st.randoms(use_true_random=False))
def test_a_model_is_built_of_a_line_or_refused(rng: random.Random) -> None:
    line = grown(rng)
    ends_well(lambda: count_parameters(ModelConfig(line, d_model=rng.choice([1, 7, 64]))))
