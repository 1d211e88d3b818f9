"""The recurrence, token by token."""

from __future__ import annotations

import torch
from torch import Tensor


def diagonal_ssm(
    values: Tensor, transition: Tensor, readout: Tensor, chunk_size: int, state: Tensor
) -> tuple[Tensor, Tensor]:
    outputs = []
    for x in values.unbind(1):
        state = transition * state + x[..., None]
        products = (readout * state).sum(-1)
        outputs.append(products.real if products.is_complex() else products)
    return torch.stack(outputs, dim=1), state
