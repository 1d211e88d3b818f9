"""Causal softmax attention of each token over the key blocks that were selected for it."""

from __future__ import annotations

from torch import Tensor, autocast

from ..attention import variant
from ..attention.fla import LIBRARIES
from ..dispatch import Backend, Call, Op, needs_cuda_package
from . import fla
from .selection import nearest_blocks

OP = Op(
    __name__,
    Backend("blockwise", "blockwise:block_attention"),
    Backend(
        "fla", "fla:block_attention", needs_cuda_package("fla"), "proven", refuses=fla.refuses, libraries=LIBRARIES
    ),
    Backend("reference", "reference:block_attention", trust="never"),
    problems="problems:problems",
)

__all__ = ["OP", "block_attention", "nearest_blocks"]


def block_attention(
    queries: Tensor, keys: Tensor, values: Tensor, blocks: Tensor, *, block_size: int, backend: str = "auto"
) -> Tensor:
    """One softmax over all tokens of the selected blocks up to the query's own position (as in MoBA, arXiv 2502.13189,
    and in the selection branch of NSA, arXiv 2502.11089).

    queries `[batch, time, heads, d_k]`, at the last `time` positions; keys `[batch, key_time, kv_heads, d_k]`, values
    `[batch, key_time, kv_heads, d_v]`, from the first token on. Block i holds the tokens from `i * block_size` on.
    blocks, integers `[batch, time, groups, n]`: which blocks the heads of a group read, each at most once, -1 for none.
    The heads are shared out evenly among the groups, and the groups among the key heads. Every token needs a block that
    holds a token up to its own position; its own block always does.
    backend: `blockwise` (float32 at least), `fla` (flash-linear-attention; CUDA, without a cache, for sizes that fit
    its tiles) or `reference`.
    Returns `[batch, time, heads, d_v]` in the dtype of `values`. Raises `ValueError` if sizes do not fit together.
    """
    _check(queries, keys, values, blocks, block_size)
    time = queries.shape[1]
    tiled = fla.is_tiled(queries, keys, blocks, block_size)
    call = Call.of(
        values,
        *(queries, keys),
        width=max(keys.shape[3], values.shape[3]),
        tokens=time,
        variant=variant(keys.shape[1] > time, tiled=tiled or None),
    )
    run = OP.select(backend, values.device, call)
    with autocast(values.device.type, enabled=False):
        return run(queries, keys, values, blocks, block_size).to(values.dtype)


def _check(queries: Tensor, keys: Tensor, values: Tensor, blocks: Tensor, block_size: int) -> None:
    if queries.ndim != 4 or 0 in queries.shape:
        raise ValueError(f"queries must be [batch, time, heads, d_k], none of them 0, got {list(queries.shape)}")
    batch, time, heads, d_k = queries.shape
    if keys.ndim != 4 or (keys.shape[0], keys.shape[3]) != (batch, d_k) or keys.shape[1] < time:
        expected = f"[batch = {batch}, key_time >= {time}, kv_heads, d_k = {d_k}]"
        raise ValueError(f"keys must be {expected}, got {list(keys.shape)}")
    if values.ndim != 4 or values.shape[:3] != keys.shape[:3] or values.shape[3] == 0:
        raise ValueError(f"values must be {list(keys.shape[:3])} + [d_v], got {list(values.shape)}")
    if blocks.ndim != 4 or blocks.shape[:2] != queries.shape[:2] or blocks.shape[3] == 0 or blocks.is_floating_point():
        expected = f"integers [batch = {batch}, time = {time}, groups, n >= 1]"
        raise ValueError(f"blocks must be {expected}, got {blocks.dtype} {list(blocks.shape)}")
    groups, kv_heads = blocks.shape[2], keys.shape[2]
    if not kv_heads or not groups or heads % groups or groups % kv_heads:
        raise ValueError(
            f"heads must be a multiple of groups, and groups of kv_heads, got {heads}, {groups}, {kv_heads}"
        )
    if block_size < 1:
        raise ValueError(f"block_size must be at least 1, got {block_size}")
