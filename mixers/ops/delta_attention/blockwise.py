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
    batch, _, heads, d_k = probes.shape
    size = max(SHORTEST, min(BLOCK, SCORES // (batch * heads * keys.shape[1])))
    probes, keys, values, past = (x.transpose(1, 2) for x in (probes * d_k**-0.5, keys, values, past))
    beta, start = beta.transpose(1, 2).unsqueeze(-1), past.shape[2]
    u = past
    for p, v, b in zip(*(x.split(size, dim=2) for x in (probes, values, beta))):
        seen = keys[:, :, : u.shape[2] + p.shape[2]]
        u = torch.cat([u, _block(p, v, b, seen, u)], dim=2)
    return u[:, :, start:].transpose(1, 2)


def _block(probes: Tensor, values: Tensor, beta: Tensor, keys: Tensor, before: Tensor) -> Tensor:
    time, past = probes.shape[2], before.shape[2]
    hidden = torch.ones(time, time, dtype=torch.bool, device=keys.device).triu()
    scores = probes @ keys.mT
    own = scores[..., past:].masked_fill(hidden, float("-inf"))
    scores = torch.cat([scores[..., :past], own], dim=-1)
    if not past:  # the very first token has nothing before it
        scores = torch.cat([torch.zeros_like(scores[..., :1, :]), scores[..., 1:, :]], dim=-2)
    weights = beta * scores.softmax(dim=-1)
    right = values - weights[..., :past] @ before
    if time == 1:
        return right
    system = weights[..., past:].masked_fill(hidden, 0)
    return torch.linalg.solve_triangular(system, right, upper=False, unitriangular=True)
