"""Adapter to flash-linear-attention's attention to selected blocks (NSA)."""

from __future__ import annotations

from torch import Tensor

from ..attention import fla
from ..dispatch import Call
from ..libraries import call_library

LEAST = 16  # query heads of a key head, and tokens of a block


def is_tiled(queries: Tensor, keys: Tensor, blocks: Tensor, block_size: int) -> bool:
    """Whether sizes are what its kernels are made of: a list of blocks for each key head, and for it and for a block
    16 or another higher power of two of query heads, and of tokens."""
    each = queries.shape[2] // keys.shape[2]
    return blocks.shape[2] == keys.shape[2] and all(n >= LEAST and n & (n - 1) == 0 for n in (each, block_size))


def refuses(call: Call) -> str | None:
    """For `Backend.refuses`."""
    if "tiled" not in call.variant:
        return f"it wants blocks for each key head, and powers of two from {LEAST} on of query heads and of tokens"
    return fla.refuses(call)


def block_attention(queries: Tensor, keys: Tensor, values: Tensor, blocks: Tensor, block_size: int) -> Tensor:
    from fla.ops.nsa import parallel_nsa

    queries, keys, blocks = queries.to(values.dtype), keys.to(values.dtype), blocks.contiguous()
    y: Tensor = call_library(
        parallel_nsa, queries, keys, values, block_indices=blocks, block_counts=blocks.shape[3], block_size=block_size
    )
    return y
