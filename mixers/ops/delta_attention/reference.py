"""The definition, token by token."""

from __future__ import annotations

import torch
from torch import Tensor


def new_values(probes: Tensor, keys: Tensor, values: Tensor, beta: Tensor, past: Tensor) -> Tensor:
    start, d_k = past.shape[1], keys.shape[3]
    memory = list(past.unbind(1))
    for t in range(values.shape[1]):
        new = values[:, t]
        if memory:
            scores = torch.einsum("bhd,bshd->bhs", probes[:, t], keys[:, : start + t]) / d_k**0.5
            answered = torch.einsum("bhs,bshd->bhd", scores.softmax(dim=-1), torch.stack(memory, dim=1))
            new = new - beta[:, t, :, None] * answered
        memory.append(new)
    return torch.stack(memory[start:], dim=1)
