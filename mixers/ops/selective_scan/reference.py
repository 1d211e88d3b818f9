"""The recurrence, token by token."""

from __future__ import annotations

import torch
from torch import Tensor


def selective_scan(
    values: Tensor, step: Tensor, A: Tensor, B: Tensor, C: Tensor, state: Tensor | None, return_state: bool
) -> tuple[Tensor, Tensor | None]:
    values, step, A, B, C, state = in_precision(values, step, A, B, C, state)
    outputs = []
    for x, dt, b, c in zip(values.unbind(1), step.unbind(1), B.unbind(1), C.unbind(1)):
        state = torch.exp(dt[:, None] * A.T) * state + (dt * x)[:, None] * b[:, :, None]
        outputs.append((c[:, :, None] * state).sum(1))
    return torch.stack(outputs, dim=1), state if return_state else None


def in_precision(
    values: Tensor, step: Tensor, A: Tensor, B: Tensor, C: Tensor, state: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """All of them in float32 at least, the state zeros if there is none."""
    if state is None:
        state = values.new_zeros(len(values), A.shape[1], A.shape[0])
    precision = torch.promote_types(values.dtype, torch.float32)
    values, step, A, B, C, state = (x.to(precision) for x in (values, step, A, B, C, state))
    return values, step, A, B, C, state
