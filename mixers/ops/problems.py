"""What the backends of an op are proven on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Inputs = dict[str, Tensor]


@dataclass(frozen=True)
class Problem:
    """One case of an op, such as a backend may meet it.

    variant: as in the `Call` that the op makes of it. inputs: `inputs(batch, time, generator)` draws them in float64 on
    the CPU, `[batch, time, ...]` each, but for those named in `fixed`, which have no time. run: `run(inputs, state,
    backend)` calls the op, and returns its output `[batch, time, ...]` and the state after it.
    carries_state: whether a call can be continued; else `run` is given None and its state is not looked at.
    exact: names of inputs that keep their dtype (float32) where all others are cast to a lower one.
    """

    variant: str
    inputs: Callable[[int, int, torch.Generator], Inputs]
    run: Callable[[Inputs, Any, str], tuple[Tensor, Any]]
    fixed: tuple[str, ...] = ()
    carries_state: bool = True
    exact: tuple[str, ...] = ()
