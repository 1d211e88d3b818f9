"""Causal softmax attention, over everything before a token or over a sliding window."""

from __future__ import annotations

from torch import Tensor

from ..dispatch import Backend, Op, needs_cuda_package

OP = Op(
    __name__,
    Backend("sdpa", "sdpa:attention"),
    Backend("flash_attn", "flash_attn:attention", needs_cuda_package("flash_attn"), automatic=False),
    Backend("reference", "reference:attention", automatic=False),
)

__all__ = ["OP", "attention"]


def attention(
    queries: Tensor, keys: Tensor, values: Tensor, *, window: int | None = None, backend: str = "auto"
) -> Tensor:
    """Scaled dot-product attention (Vaswani et al. 2017, arXiv 1706.03762, eq. 1), causal.

    queries `[batch, time, heads, d_head]`; keys, values `[batch, key_time, kv_heads, d_head]` with key_time >= time:
    the queries stand at the last `time` positions, and the keys before them are those of a cache. Query head h reads
    key head `h // (heads / kv_heads)` (grouped queries, Ainslie et al. 2023, arXiv 2305.13245).
    window: a token sees itself and the `window - 1` tokens before it; None: everything before it.
    backend: `sdpa` (PyTorch's; with a window its cost is linear in time), `flash_attn` (CUDA, float16 or bfloat16),
    `reference`, or `auto`, which is `sdpa`: `flash_attn` is used where it is asked for.
    Returns `[batch, time, heads, d_head]`. Raises `ValueError` if sizes do not fit together.
    """
    if queries.ndim != 4 or 0 in queries.shape:
        raise ValueError(f"queries must be [batch, time, heads, d_head], none of them 0, got {list(queries.shape)}")
    batch, time, heads, d_head = queries.shape
    if keys.ndim != 4 or (keys.shape[0], keys.shape[3]) != (batch, d_head) or keys.shape[1] < time:
        expected = f"[batch = {batch}, key_time >= {time}, kv_heads, d_head = {d_head}]"
        raise ValueError(f"keys must be {expected}, got {list(keys.shape)}")
    if keys.shape[2] == 0 or heads % keys.shape[2]:
        raise ValueError(f"the {heads} query heads must be a multiple of the {keys.shape[2]} key heads")
    if values.shape != keys.shape:
        raise ValueError(f"values must have the shape of keys, {list(keys.shape)}, got {list(values.shape)}")
    if window is not None and window < 1:
        raise ValueError(f"window must be at least 1 (the token itself) or None, got {window}")
    run = OP.select(backend, queries.device)
    if window is not None:  # the first query sees window - 1 tokens before it; older keys are out of everybody's sight
        reach = min(time + window - 1, keys.shape[1])
        keys, values = keys[:, -reach:], values[:, -reach:]
        window = None if window >= reach else window
    return run(queries, keys, values, window)
