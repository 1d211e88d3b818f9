"""What the backends of attention are proven on: every case twice, with as many key heads as query heads and with fewer.

Before the tokens of a cached case stand `PAST` others, as in decoding; before those of the rest nothing does. A call
that is continued keeps its keys and values as its state, and is then a cached one.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ..problems import Inputs, Problem
from . import attention, variant

HEADS, KV_HEADS, WINDOW, PAST = 4, 2, 64, 300
CASES = [(), ("window",), ("sinks",), ("sinks", "window"), ("forget",)]


class _Seen(NamedTuple):
    """What a call reads: keys and values of all tokens so far, and their gates, if they forget."""

    keys: Tensor
    values: Tensor
    log_forget: Tensor | None


def problems(width: int) -> list[Problem]:
    """All cases, fresh and with a cache, of heads of `width` features."""
    return [_problem(width, case, cached) for cached in (False, True) for case in CASES]


def _problem(width: int, case: tuple[str, ...], cached: bool) -> Problem:
    def inputs(batch: int, time: int, generator: torch.Generator) -> Inputs:
        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64)

        def tokens(count: int, prefix: str = "") -> Inputs:
            found = {prefix + name: normal(batch, count, HEADS, width) for name in ("keys", "values")}
            forget = {prefix + "log_forget": F.logsigmoid(normal(batch, count, HEADS) + 2)}
            return found | (forget if "forget" in case else {})

        drawn = {"queries": normal(batch, time, HEADS, width)} | tokens(time)
        drawn |= {"sinks": normal(HEADS)} if "sinks" in case else {}
        return drawn | (tokens(PAST, "past_") if cached else {})

    def run(inputs: Inputs, state: Any, backend: str) -> tuple[Tensor, Any]:
        seen = _seen(inputs, "")
        if state is None and cached:
            state = _seen(inputs, "past_")
        if state is not None:
            seen = _Seen(*(None if new is None else torch.cat([old, new], dim=1) for old, new in zip(state, seen)))
        how: dict[str, Any] = {"window": WINDOW if "window" in case else None, "sinks": inputs.get("sinks")}
        outputs = [
            attention(
                inputs["queries"],
                seen.keys[:, :, :heads],
                seen.values[:, :, :heads],
                log_forget=seen.log_forget,
                backend=backend,
                **how,
            )
            for heads in (HEADS, KV_HEADS)
        ]
        return torch.cat(outputs, dim=-1), seen

    fixed = ("sinks", "past_keys", "past_values", "past_log_forget")
    name = variant(cached, **dict.fromkeys(case, True))
    return Problem(name, inputs, run, fixed=fixed, exact=("sinks", "log_forget", "past_log_forget"))


def _seen(inputs: Inputs, prefix: str) -> _Seen:
    return _Seen(*(inputs.get(prefix + name) for name in _Seen._fields))  # type: ignore[arg-type]
