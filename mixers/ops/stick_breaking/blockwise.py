"""Blocks of queries against all keys before them, newest first, so that what later keys took is a running sum."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.amp import autocast
from torch.nn import functional as F

ROWS = 64  # queries of a block: its logits stay in the cache of a CPU


def stick_breaking(
    queries: Tensor, keys: Tensor, values: Tensor, attend_current: bool, remainder: bool, scale: float
) -> Tensor:
    dtype, (batch, time), kv_heads = values.dtype, queries.shape[:2], keys.shape[2]
    precision = torch.promote_types(dtype, torch.float32)
    with autocast(queries.device.type, enabled=False):
        rows = (queries.to(precision) * scale).unflatten(2, (kv_heads, -1)).permute(0, 2, 3, 1, 4)
        if time == 1 and not torch.is_grad_enabled():
            y, rest = _decoded(rows[:, :, :, 0], keys.to(precision), values.to(precision), attend_current)
        else:
            newest_first = (x.to(precision).transpose(1, 2).flip(2).flatten(0, 1) for x in (keys, values))
            y, rest = _Blocks.apply(rows.flatten(0, 1), *newest_first, attend_current)
        y, rest = (x.unflatten(0, (batch, kv_heads)).flatten(1, 2).transpose(1, 2) for x in (y, rest))
        if remainder:
            own = values[:, -time:].to(precision).repeat_interleave(queries.shape[2] // kv_heads, dim=2)
            y = y + rest.unsqueeze(-1) * own
        return y.to(dtype)


class _Blocks(torch.autograd.Function):
    """`queries [n, groups, time, d_head]`, scaled; keys and values `[n, key_time, d]`, newest first.

    Returns `[n, groups, time, d_value]` and what is left of each stick, `[n, groups, time]`. Weights are computed again
    in the backward pass, so that memory stays linear in time.
    """

    @staticmethod
    def forward(ctx: Any, queries: Tensor, keys: Tensor, values: Tensor, current: bool) -> tuple[Tensor, Tensor]:
        ctx.current = current
        ctx.save_for_backward(queries, keys, values)
        y = queries.new_empty(*queries.shape[:3], values.shape[2])
        rest = queries.new_empty(queries.shape[:3])
        for start, end, key_start in _blocks(queries, keys):
            block = queries[:, :, start:end]
            hidden = _hidden(end - start, current, keys.device)
            weights, left = _weights(_block_logits(block, keys[:, key_start:]), hidden)
            y[:, :, start:end] = (weights.flatten(1, 2) @ values[:, key_start:]).view_as(y[:, :, start:end])
            rest[:, :, start:end] = left
        return y, rest

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor, grad_rest: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:  # type: ignore[override]
        queries, keys, values = ctx.saved_tensors
        grad_queries, grad_keys, grad_values = (torch.zeros_like(x) for x in (queries, keys, values))
        for start, end, key_start in _blocks(queries, keys):
            block, upstream = queries[:, :, start:end], grad_y[:, :, start:end].flatten(1, 2)
            hidden = _hidden(end - start, ctx.current, keys.device)
            logits = _block_logits(block, keys[:, key_start:])
            taken = logits.sigmoid()
            taken[..., : end - start].masked_fill_(hidden, 0)
            weights, left = _weights(logits, hidden)
            # of the logarithms of the weights; a key lowers those of all older keys, and what is left
            grad_log = weights * (upstream @ values[:, key_start:].transpose(1, 2)).view_as(weights)
            older = grad_log.flip(-1).cumsum(-1).flip(-1)
            older += (left * grad_rest[:, :, start:end]).unsqueeze(-1)
            grad_logits = (grad_log - taken * older).flatten(1, 2)
            grad_queries[:, :, start:end] = (grad_logits @ keys[:, key_start:]).view_as(block)
            grad_keys[:, key_start:] += grad_logits.transpose(1, 2) @ block.flatten(1, 2)
            grad_values[:, key_start:] += weights.flatten(1, 2).transpose(1, 2) @ upstream
        return grad_queries, grad_keys, grad_values, None


def _blocks(queries: Tensor, keys: Tensor) -> list[tuple[int, int, int]]:
    """Of each block of queries: where it starts, where it ends, and where its keys start, newest first."""
    time = queries.shape[2]
    ends = [min(start + ROWS, time) for start in range(0, time, ROWS)]
    return [(start, end, time - end) for start, end in zip(range(0, time, ROWS), ends)]


def _block_logits(queries: Tensor, keys: Tensor) -> Tensor:
    """Of a block of queries `[n, groups, rows, d_head]`: `[n, groups, rows, keys]`."""
    return (queries.flatten(1, 2) @ keys.transpose(1, 2)).unflatten(1, queries.shape[1:3])


def _hidden(rows: int, current: bool, device: torch.device) -> Tensor:
    """Which of the first `rows` keys, newest first, a block of as many queries does not see, bool `[rows, rows]`."""
    return torch.ones(rows, rows, dtype=torch.bool, device=device).triu(1 if current else 0).flip(1)


def _weights(logits: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """Weights `[..., rows, keys]` in the place of the logits, keys newest first, and what is left, `[..., rows]`."""
    rows = len(hidden)
    # -log(1 - sigmoid(logits)); beyond the threshold softplus is the identity to rounding
    spent = F.softplus(logits, threshold=40)
    spent[..., :rows].masked_fill_(hidden, 0)
    spent = spent.cumsum_(-1)
    left = spent[..., -1].neg().exp()
    smallest = math.log(torch.finfo(logits.dtype).tiny) + 8  # a CPU is slow with numbers that nearly vanish
    weights = logits.sub_(spent).clamp_(min=smallest).exp_()
    weights[..., :rows].masked_fill_(hidden, 0)
    return weights, left


def _decoded(queries: Tensor, keys: Tensor, values: Tensor, current: bool) -> tuple[Tensor, Tensor]:
    """One query `[batch, kv_heads, groups, d_head]`, keys and values as a cache has them, which are not copied.

    Returns `[batch * kv_heads, groups, 1, d_value]` and what is left of each stick, `[batch * kv_heads, groups, 1]`.
    """
    hidden = _hidden(1, current, keys.device)
    ys, rests = [], []
    for query, key, value in zip(queries, keys, values):
        logits = torch.bmm(query, key.permute(1, 2, 0)).flip(-1)
        weights, rest = _weights(logits.unsqueeze(-2), hidden)
        ys.append(torch.bmm(weights.squeeze(-2).flip(-1), value.transpose(0, 1)))
        rests.append(rest)
    return torch.cat(ys).unsqueeze(2), torch.cat(rests)
