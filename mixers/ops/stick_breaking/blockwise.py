"""Blocks of queries against all keys before them, newest first, so that what later keys took is a running sum."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.amp import autocast
from torch.nn import functional as F

ROWS, TILE = 64, 256  # queries of a block, and keys that it reads at once: their logits stay in the cache of a CPU


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
        y = queries.new_empty(*queries.shape[:3], values.shape[2])
        rest = queries.new_empty(queries.shape[:3])
        ctx.current, ctx.read = current, []
        for start, end, key_start in _blocks(queries):
            block = queries[:, :, start:end]
            read = _read(block, keys[:, key_start:], values[:, key_start:], current)
            y[:, :, start:end], rest[:, :, start:end] = read[:2]
            ctx.read.append(key_start + read[2])
        ctx.save_for_backward(queries, keys, values)
        return y, rest

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor, grad_rest: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:  # type: ignore[override]
        queries, keys, values = ctx.saved_tensors
        grad_queries, grad_keys, grad_values = (torch.zeros_like(x) for x in (queries, keys, values))
        for (start, end, key_start), key_end in zip(_blocks(queries), ctx.read):
            block, upstream = queries[:, :, start:end], grad_y[:, :, start:end].flatten(1, 2)
            near = slice(key_start, key_end)
            hidden = _hidden(end - start, ctx.current, keys.device)
            logits = _logits(block, keys[:, near])
            taken = logits.sigmoid()
            taken[..., : end - start].masked_fill_(hidden, 0)
            weights, spent = _weights(logits, hidden)
            # of the logarithms of the weights; a key lowers those of all older keys, and what is left
            grad_log = weights * (upstream @ values[:, near].transpose(1, 2)).view_as(weights)
            older = grad_log.flip(-1).cumsum(-1).flip(-1)
            older += spent.neg().exp() * grad_rest[:, :, start:end].unsqueeze(-1)
            grad_logits = (grad_log - taken * older).flatten(1, 2)
            grad_queries[:, :, start:end] = (grad_logits @ keys[:, near]).view_as(block)
            grad_keys[:, near] += grad_logits.transpose(1, 2) @ block.flatten(1, 2)
            grad_values[:, near] += weights.flatten(1, 2).transpose(1, 2) @ upstream
        return grad_queries, grad_keys, grad_values, None


def _blocks(queries: Tensor) -> list[tuple[int, int, int]]:
    """Of each block of queries: where it starts, where it ends, and where its keys start, newest first."""
    time = queries.shape[2]
    ends = [min(start + ROWS, time) for start in range(0, time, ROWS)]
    return [(start, end, time - end) for start, end in zip(range(0, time, ROWS), ends)]


def _read(queries: Tensor, keys: Tensor, values: Tensor, current: bool) -> tuple[Tensor, Tensor, int]:
    """What a block of queries `[n, groups, rows, d_head]` reads, what is left `[n, groups, rows]`, and how many keys it
    took: where nothing is left of any stick, the weights of older keys are all 0."""
    y = queries.new_zeros(*queries.shape[:3], values.shape[2])
    spent, hidden = queries.new_zeros(*queries.shape[:3], 1), _hidden(queries.shape[2], current, keys.device)
    read = 0
    for key, value in zip(keys.split(TILE, 1), values.split(TILE, 1)):
        weights, spent = _weights(_logits(queries, key), hidden if read == 0 else None, spent)
        y += (weights.flatten(1, 2) @ value).view_as(y)
        read += key.shape[1]
        if _is_exhausted(spent):
            break
    return y, spent.squeeze(-1).neg().exp(), read


def _is_exhausted(spent: Tensor) -> bool:
    if spent.device.type != "cpu" or torch.compiler.is_compiling():  # there, looking costs more than it saves
        return False
    return spent.min().item() > -math.log(torch.finfo(spent.dtype).tiny)


def _logits(queries: Tensor, keys: Tensor) -> Tensor:
    """Of a block of queries `[n, groups, rows, d_head]`: `[n, groups, rows, keys]`."""
    return (queries.flatten(1, 2) @ keys.transpose(1, 2)).unflatten(1, queries.shape[1:3])


def _hidden(rows: int, current: bool, device: torch.device) -> Tensor:
    """Which of the first `rows` keys, newest first, a block of as many queries does not see, bool `[rows, rows]`."""
    return torch.ones(rows, rows, dtype=torch.bool, device=device).triu(1 if current else 0).flip(1)


def _weights(logits: Tensor, hidden: Tensor | None, spent: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Weights `[..., rows, keys]` in the place of the logits, keys newest first.

    spent: what newer keys took, as -log of what they left, `[..., rows, 1]`; it is also returned with these keys'.
    """
    # -log(1 - sigmoid(logits)); beyond the threshold softplus is the identity to rounding
    taken = F.softplus(logits, threshold=40)
    if hidden is not None:
        taken[..., : len(hidden)].masked_fill_(hidden, 0)
    taken = taken.cumsum_(-1)
    if spent is not None:
        taken += spent
    smallest = math.log(torch.finfo(logits.dtype).tiny) + 8  # a CPU is slow with numbers that nearly vanish
    weights = logits.sub_(taken).clamp_(min=smallest).exp_()
    if hidden is not None:
        weights[..., : len(hidden)].masked_fill_(hidden, 0)
    return weights, taken[..., -1:].clone()


def _decoded(queries: Tensor, keys: Tensor, values: Tensor, current: bool) -> tuple[Tensor, Tensor]:
    """One query `[batch, kv_heads, groups, d_head]`, keys and values as a cache has them, which are not copied.

    Returns `[batch * kv_heads, groups, 1, d_value]` and what is left of each stick, `[batch * kv_heads, groups, 1]`.
    """
    hidden = _hidden(1, current, keys.device)
    ys, rests = [], []
    for query, key, value in zip(queries, keys, values):
        logits = torch.bmm(query, key.permute(1, 2, 0)).flip(-1)
        weights, spent = _weights(logits.unsqueeze(-2), hidden)
        ys.append(torch.bmm(weights.squeeze(-2).flip(-1), value.transpose(0, 1)))
        rests.append(spent.squeeze(-1).neg().exp())
    return torch.cat(ys).unsqueeze(2), torch.cat(rests)
