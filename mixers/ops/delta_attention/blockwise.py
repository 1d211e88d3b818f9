"""Blocks of tokens: softmax attention to the tokens before a block, and a triangular system within it."""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 128
SCORES = 2**25  # computed at once at most: with a long past, blocks get shorter
SHORTEST = 16


def new_values(probes: Tensor, keys: Tensor, values: Tensor, beta: Tensor, past: Tensor) -> Tensor:
    """With softmax weights A of a block's tokens to the past, L to one another (strictly lower triangular), both of one
    softmax: (I + beta L) U = V - beta A U_past.
    """
    batch, time, heads, d_k = probes.shape
    size = max(SHORTEST, min(BLOCK, SCORES // (batch * heads * keys.shape[1])))
    probes, keys, values, past = (x.transpose(1, 2) for x in (probes * d_k**-0.5, keys, values, past))
    beta, start, blocks = beta.transpose(1, 2).unsqueeze(-1), past.shape[2], [past]
    one_tensor = None if torch.is_grad_enabled() else past.new_empty(batch, heads, start + time, values.shape[3])
    if one_tensor is not None:
        one_tensor[:, :, :start] = past
    for first in range(0, time, size):
        last = min(first + size, time)
        before = torch.cat(blocks, dim=2) if one_tensor is None else one_tensor[:, :, : start + first]
        block = _block(
            probes[:, :, first:last],
            keys[:, :, : start + last],
            values[:, :, first:last],
            beta[:, :, first:last],
            before,
        )
        if one_tensor is None:
            blocks.append(block)
        else:
            one_tensor[:, :, start + first : start + last] = block
    u = torch.cat(blocks[1:], dim=2) if one_tensor is None else one_tensor[:, :, start:]
    return u.transpose(1, 2)


def _block(probes: Tensor, keys: Tensor, values: Tensor, beta: Tensor, before: Tensor) -> Tensor:
    time, past = probes.shape[2], before.shape[2]
    hidden = torch.ones(time, time, dtype=torch.bool, device=keys.device).triu()
    scores = probes @ keys.mT
    own = scores[..., past:].masked_fill(hidden, float("-inf"))
    scores = torch.cat([scores[..., :past], own], dim=-1)
    if not past:  # the very first token has nothing before it
        scores[..., 0, :] = 0
    weights = beta * scores.softmax(dim=-1)
    system = weights[..., past:].masked_fill(hidden, 0)
    right = values - weights[..., :past] @ before
    return torch.linalg.solve_triangular(system, right, upper=False, unitriangular=True)
