"""The recurrence, token by token."""

from __future__ import annotations

import torch
from torch import Tensor


def selective_scan(
    values: Tensor, step: Tensor, A: Tensor, B: Tensor, C: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    outputs = []
    for x, dt, b, c in zip(values.unbind(1), step.unbind(1), B.unbind(1), C.unbind(1)):
        state = torch.exp(dt[:, None] * A.T) * state + (dt * x)[:, None] * b[:, :, None]
        outputs.append((c[:, :, None] * state).sum(1))
    return torch.stack(outputs, dim=1), state
