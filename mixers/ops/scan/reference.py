"""The recurrence, token by token."""

from __future__ import annotations

import torch
from torch import Tensor


def linear_scan(decay: Tensor, writes: Tensor, start: Tensor) -> Tensor:
    states = []
    for a, b in zip(decay.unbind(1), writes.unbind(1)):
        start = a * start + b
        states.append(start)
    return torch.stack(states, dim=1)
