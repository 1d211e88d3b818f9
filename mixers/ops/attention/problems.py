"""What the backends of attention are proven on: every case twice, with as many key heads as query heads and with fewer.

Before the tokens of a cached case stand `PAST` others, the same ones in all rows, as in decoding. What it has read is
its state. Nothing continues the other cases: it would be a cached one, which not every backend takes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..problems import Inputs, Problem
from . import attention, variant

HEADS, KV_HEADS, WINDOW, PAST = 4, 2, 64, 1000
CASES: list[tuple[str, ...]] = [(), ("window",), ("sinks",), ("sinks", "window"), ("forget",)]
SEEN = ("keys", "values", "log_forget")


def problems(width: int) -> list[Problem]:
    """All cases, fresh and with a cache, of heads of `width` features."""
    return [_problem(width, case, cached) for cached in (False, True) for case in CASES]


def _problem(width: int, case: tuple[str, ...], cached: bool) -> Problem:
    def inputs(batch: int, time: int, generator: torch.Generator) -> Inputs:
        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64)

        def tokens(rows: int, count: int, prefix: str = "") -> Inputs:
            found = {prefix + name: normal(rows, count, HEADS, width) for name in ("keys", "values")}
            forget = {prefix + "log_forget": F.logsigmoid(normal(rows, count, HEADS) + 2)}
            return found | (forget if "forget" in case else {})

        drawn = {"queries": normal(batch, time, HEADS, width)} | tokens(batch, time)
        drawn |= {"sinks": normal(HEADS)} if "sinks" in case else {}
        return drawn | (tokens(1, PAST, "past_") if cached else {})

    def run(inputs: Inputs, state: Any, backend: str) -> tuple[Tensor, Any]:
        seen = {name: inputs[name] for name in SEEN if name in inputs}
        if state is None and cached:
            state = {name: inputs[f"past_{name}"].expand(len(new), PAST, *new.shape[2:]) for name, new in seen.items()}
        if state is not None:
            seen = {name: torch.cat([state[name], new], dim=1) for name, new in seen.items()}
        how: dict[str, Any] = {"window": WINDOW if "window" in case else None, "backend": backend}
        outputs = [
            attention(
                inputs["queries"],
                seen["keys"][:, :, :heads],
                seen["values"][:, :, :heads],
                sinks=inputs.get("sinks"),
                log_forget=seen.get("log_forget"),
                **how,
            )
            for heads in (HEADS, KV_HEADS)
        ]
        return torch.cat(outputs, dim=-1), seen

    name = variant(cached, **dict.fromkeys(case, True))
    fixed, exact = ("sinks", *(f"past_{n}" for n in SEEN)), ("sinks", "log_forget", "past_log_forget")
    given = inputs(1, 1, torch.Generator())
    return Problem(
        name,
        inputs,
        run,
        fixed=tuple(n for n in fixed if n in given),
        carries_state=cached,
        exact=tuple(n for n in exact if n in given),
    )
