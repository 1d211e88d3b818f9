"""Chunk by chunk: the reflections of a chunk as one product, which its queries take, and at its end all keys before it.

Within a chunk of directions W, the products `H_l ... H_i` follow from the inverse of a triangular matrix (section 3.2;
the UT transform). A query goes from its place to the start of its chunk, where the keys of all earlier chunks stand.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.amp import autocast
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from . import PathCache
from .cache import Tokens, gather, keep

PIECE = 1024  # keys that are rewritten, or forgotten, at once


def path_attention(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    directions: Tensor,
    beta: Tensor,
    log_forget: Tensor | None,
    scale: float,
    chunk_size: int,
    state: PathCache | None,
    return_state: bool,
) -> tuple[Tensor, PathCache | None]:
    with autocast(queries.device.type, enabled=False):
        tokens = gather(state, keys, values, directions, beta, log_forget)
        rows = (queries.to(tokens.keys.dtype) * scale).unflatten(2, (keys.shape[2], -1)).permute(0, 2, 3, 1, 4)
        y, anchored = _chunks(rows, tokens, chunk_size)
        y = y.permute(0, 3, 1, 2, 4).flatten(2, 3).to(values.dtype)
        return y, keep(state, tokens, anchored.transpose(1, 2), chunk_size) if return_state else None


def _chunks(queries: Tensor, tokens: Tokens, chunk_size: int) -> tuple[Tensor, Tensor]:
    """`queries [batch, kv_heads, groups, time, d_head]`, scaled. Also returns the keys of complete chunks."""
    edge, length, past = tokens.edge, tokens.length, tokens.past
    keys, directions, beta = (
        _in_chunks(x, chunk_size) for x in (tokens.keys, tokens.directions, tokens.beta.unsqueeze(-1))
    )
    inverse = _inverse(directions, beta)
    overlap = directions @ keys.transpose(-1, -2)  # of direction l and key j
    values = tokens.values.values.to(queries.dtype).transpose(1, 2)
    total = None if tokens.log_forget is None else _total(tokens.log_forget.values, queries)
    seen = _Seen(tokens.anchored.transpose(1, 2), length - length % chunk_size)
    ys = []
    for c, start in enumerate(range(edge, length, chunk_size)):
        first, end = max(start, past), min(start + chunk_size, length)
        w, b, inv = directions[:, :, c], beta[:, :, c], inverse[:, :, c]
        block = queries[:, :, :, first - past : end - past]
        crossed = _reflected(block, w, b, inv, first - start)
        local = _within(block, crossed, keys[:, :, c], overlap[:, :, c], first - start)[..., : end - start]
        block = block - _shared(crossed, w)
        bias = None if total is None else (total[..., first:end], total[..., :end])
        ys.append(_attend(block, seen.keys, local, values[:, :, :end], bias))
        if end == start + chunk_size:
            through = (overlap[:, :, c].tril(-1).transpose(-1, -2) @ inv.transpose(-1, -2) * b.transpose(-1, -2)) @ w
            whole = _identity(w) - w.transpose(-1, -2) @ (inv.transpose(-1, -2) @ (b * w))
            seen.rewrite(whole, keys[:, :, c] - through)
    return torch.cat(ys, dim=3), seen.keys


class _Seen:
    """Keys of complete chunks, `[batch, kv_heads, length, d_head]`, with room for `most` of them.

    Without gradients they are rewritten in place, piece by piece: ever longer copies would leave holes in memory.
    """

    def __init__(self, keys: Tensor, most: int) -> None:
        self.keys, self.most = keys, most
        self.storage: Tensor | None = None

    def rewrite(self, whole: Tensor, new: Tensor) -> None:
        """Take all keys through the product of a chunk `[batch, kv_heads, d_head, d_head]`, and add that chunk's."""
        if torch.is_grad_enabled():
            self.keys = torch.cat([self.keys @ whole, new], dim=2)
            return
        length = self.keys.shape[2]
        if self.storage is None:
            self.storage = self.keys.new_empty(*self.keys.shape[:2], self.most, self.keys.shape[3])
        for start in range(0, length, PIECE):
            piece = slice(start, min(start + PIECE, length))
            self.storage[:, :, piece] = self.keys[:, :, piece] @ whole
        self.storage[:, :, length : length + new.shape[2]] = new
        self.keys = self.storage[:, :, : length + new.shape[2]]


def _in_chunks(x: Tensor, size: int) -> Tensor:
    """`[batch, time, kv_heads, d]` as `[batch, kv_heads, n, size, d]`, zeros at the end: they reflect nothing."""
    n = -(-x.shape[1] // size)
    return F.pad(x, (0, 0, 0, 0, 0, n * size - x.shape[1])).unflatten(1, (n, size)).permute(0, 3, 1, 2, 4)


def _inverse(w: Tensor, b: Tensor) -> Tensor:
    """`(I + L)^-1` with L the strictly lower triangle of `W W^T diag(b)`, `[..., size, size]`."""
    lower = (w @ (b * w).transpose(-1, -2)).tril(-1)
    one = _identity(lower)
    return torch.linalg.solve_triangular(lower + one, one.expand_as(lower), upper=False, unitriangular=True)


def _identity(x: Tensor) -> Tensor:
    return torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)


def _total(log_forget: Tensor, queries: Tensor) -> Tensor:
    """Sums up to each token, `[batch, kv_heads, groups, length]`, in float64: differences decide."""
    return log_forget.double().cumsum(1).transpose(1, 2).unflatten(1, queries.shape[1:3])


def _reflected(queries: Tensor, w: Tensor, b: Tensor, inverse: Tensor, first: int) -> Tensor:
    """How much of each direction a query loses on its way to the start of the chunk, `[..., groups, rows, size]`;
    the first of the queries stands at `first`."""
    overlap = _shared(queries, w.transpose(-1, -2)).tril(first)
    return _shared(overlap * b.transpose(-1, -2).unsqueeze(2), inverse)


def _within(queries: Tensor, crossed: Tensor, keys: Tensor, overlap: Tensor, first: int) -> Tensor:
    """Logits of a chunk's keys; later ones are hidden. Only directions after a key stand between it and a query."""
    logits = _shared(queries, keys.transpose(-1, -2)) - _shared(crossed, overlap.tril(-1))
    hidden = torch.ones(logits.shape[-2:], dtype=torch.bool, device=logits.device).triu(first + 1)
    return logits.masked_fill(hidden, float("-inf"))


def _attend(queries: Tensor, seen: Tensor, local: Tensor, values: Tensor, bias: tuple[Tensor, Tensor] | None) -> Tensor:
    """bias: sums of log_forget up to each query and up to each key, `[batch, kv_heads, groups, rows or keys]`."""
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():  # compute weights again in the backward pass
        y: Tensor = checkpoint(
            _softmax, queries, seen, local, values, bias, use_reentrant=False, preserve_rng_state=False
        )
        return y
    fused = queries.device.type == "cpu" and queries.shape[-1] == values.shape[-1] and seen.shape[2] > 0
    if fused and not torch.is_grad_enabled():
        return _joined(queries, seen, local, values, bias)
    return _softmax(queries, seen, local, values, bias)


def _softmax(
    queries: Tensor, seen: Tensor, local: Tensor, values: Tensor, bias: tuple[Tensor, Tensor] | None
) -> Tensor:
    logits = torch.cat([_shared(queries, seen.transpose(-1, -2)), local], dim=-1)
    if bias is not None:
        logits = logits + _difference(*bias, logits)
    return _shared(logits.softmax(-1), values)


def _joined(queries: Tensor, seen: Tensor, local: Tensor, values: Tensor, bias: tuple[Tensor, Tensor] | None) -> Tensor:
    """The same by PyTorch's kernel for the CPU over the keys of earlier chunks, which writes no logits down and returns
    the logarithm of the normaliser, by which parts of a softmax are joined."""
    rows, length = queries.flatten(2, 3), seen.shape[2]
    own = slice(length, values.shape[2])
    if bias is not None:
        local = local + _difference(bias[0], bias[1][..., own], local)
    logits = local.flatten(2, 3)
    y, log_sum = logits.softmax(-1) @ values[:, :, own], logits.logsumexp(-1)
    size = length if bias is None else PIECE
    for start in range(0, length, size):
        part = slice(start, min(start + size, length))
        mask = None if bias is None else _difference(bias[0], bias[1][..., part], logits).flatten(2, 3)
        more, more_log = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            rows, seen[:, :, part], values[:, :, part], attn_mask=mask, scale=1.0
        )
        y = torch.lerp(y, more, (more_log - log_sum).sigmoid().unsqueeze(-1).to(y.dtype))
        log_sum = torch.logaddexp(log_sum, more_log)
    return y.unflatten(2, queries.shape[2:4])


def _difference(to_queries: Tensor, to_keys: Tensor, like: Tensor) -> Tensor:
    return (to_queries.unsqueeze(-1) - to_keys.unsqueeze(-2)).to(like.dtype)


def _shared(rows: Tensor, matrix: Tensor) -> Tensor:
    """The product of `rows [batch, kv_heads, groups, time, x]` and a matrix `[batch, kv_heads, x, y]` of all groups."""
    return (rows.flatten(2, 3) @ matrix).unflatten(2, rows.shape[2:4])
