"""Causal softmax attention over compressed blocks of tokens, which also tells which blocks deserve a closer look."""

from __future__ import annotations

import torch
from torch import Tensor, autocast

from ..dispatch import Backend, Op
from .importance import Blocks

OP = Op(
    __name__,
    Backend("blockwise", "blockwise:compressed_attention"),
    Backend("reference", "reference:compressed_attention", trust="never"),
)

__all__ = ["OP", "Blocks", "compressed_attention"]


def compressed_attention(
    queries: Tensor, keys: Tensor, values: Tensor, *, blocks: Blocks, position: int, backend: str = "auto"
) -> tuple[Tensor, Tensor]:
    """Attention over compressed keys, and the blocks it finds important (NSA, Yuan et al. 2025, arXiv 2502.11089).

    queries `[batch, time, heads, d_k]` from absolute `position` on; keys `[batch, n, kv_heads, d_k]`, values
    `[batch, n, kv_heads, d_v]`: number i stands for the tokens `i * stride` to `i * stride + size - 1`, and is seen by
    tokens at or after the last of them. n may be 0. blocks: sizes, and how many of them to select.
    Returns the output `[batch, time, heads, d_v]` in the dtype of `values`, 0 where nothing is seen yet, and the
    selected blocks, integers `[batch, time, kv_heads, at most blocks.count]`, -1 for none: the query heads that share a
    key head select together. The selection has no gradient. Raises `ValueError` if sizes do not fit together.
    """
    _check(queries, keys, values, position)
    run = OP.select(backend, queries.device)
    precision = torch.promote_types(values.dtype, torch.float32)
    with autocast(values.device.type, enabled=False):
        y, selected = run(queries.to(precision), keys.to(precision), values.to(precision), blocks, position)
    return y.to(values.dtype), selected


def _check(queries: Tensor, keys: Tensor, values: Tensor, position: int) -> None:
    if queries.ndim != 4 or 0 in queries.shape:
        raise ValueError(f"queries must be [batch, time, heads, d_k], none of them 0, got {list(queries.shape)}")
    batch, _, heads, d_k = queries.shape
    if keys.ndim != 4 or (keys.shape[0], keys.shape[3]) != (batch, d_k) or not keys.shape[2] or heads % keys.shape[2]:
        expected = f"[batch = {batch}, n, kv_heads that divide {heads}, d_k = {d_k}]"
        raise ValueError(f"keys must be {expected}, got {list(keys.shape)}")
    if values.ndim != 4 or values.shape[:3] != keys.shape[:3] or values.shape[3] == 0:
        raise ValueError(f"values must be {list(keys.shape[:3])} + [d_v], got {list(values.shape)}")
    if position < 0:
        raise ValueError(f"position must be at least 0, got {position}")
