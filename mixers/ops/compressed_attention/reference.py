"""The definition: one softmax over all compressed tokens in sight; a loop over blocks and what overlaps them."""

from __future__ import annotations

import torch
from torch import Tensor

from .importance import Blocks, select, visible


def compressed_attention(
    queries: Tensor, keys: Tensor, values: Tensor, blocks: Blocks, position: int
) -> tuple[Tensor, Tensor]:
    (time, heads), (n, kv_heads) = queries.shape[1:3], keys.shape[1:3]
    positions = torch.arange(position, position + time, device=queries.device)
    hidden = ~visible(blocks, positions, n)
    keys, values = (x.repeat_interleave(heads // kv_heads, dim=2) for x in (keys, values))
    scores = torch.einsum("bthd,bshd->bhts", queries, keys) / queries.shape[3] ** 0.5
    weights = scores.masked_fill(hidden, torch.finfo(scores.dtype).min).softmax(dim=-1).masked_fill(hidden, 0)
    with torch.no_grad():
        shared = weights.unflatten(1, (kv_heads, -1)).sum(dim=2)  # the heads of a group select together
        found = torch.zeros(*shared.shape[:-1], (position + time - 1) // blocks.block_size + 1).to(shared)
        for block in range(found.shape[-1]):
            for i in range(n):
                start = max(i * blocks.stride, block * blocks.block_size)
                end = min(i * blocks.stride + blocks.size, (block + 1) * blocks.block_size)
                found[..., block] += max(0, end - start) // blocks.stride * shared[..., i]
        selected = select(found, blocks, positions, position + time).transpose(1, 2)
    return torch.einsum("bhts,bshd->bthd", weights, values), selected
