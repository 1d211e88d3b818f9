"""Attention through PyTorch's `scaled_dot_product_attention`, which picks the kernel for the device."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

MASK_ELEMENTS = 2**24  # queries that continue a cache go in blocks whose mask has at most this many elements
MOST_ROWS, FEWEST_ROWS = 512, 16  # and this many queries
SMALLEST_BLOCK = 32  # for windows: smaller blocks would waste more on overhead than they save


def attention(queries: Tensor, keys: Tensor, values: Tensor, window: int | None) -> Tensor:
    time, key_time = queries.shape[1], keys.shape[1]
    if time == 1:
        return _masked(queries, keys, values, None)
    if window is None and time == key_time:
        return _causal(queries, keys, values)
    if window is None and queries.device.type == "cpu" and not _needs_gradient(queries, keys, values):
        return _joined(queries, keys, values)
    if window is None or time <= _block_size(window):
        return _continued(queries, keys, values, window)
    return _banded(queries, keys, values, window)


def _causal(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    y = F.scaled_dot_product_attention(
        queries.transpose(1, 2),
        keys.transpose(1, 2),
        values.transpose(1, 2),
        is_causal=True,
        enable_gqa=queries.shape[2] != keys.shape[2],
    )
    return y.transpose(1, 2)


def _masked(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
    """The query heads of a group go in as rows: the keys are neither repeated nor copied, and any kernel takes them."""
    kv_heads = keys.shape[2]
    groups = queries.shape[2] // kv_heads
    rows = queries.unflatten(2, (kv_heads, groups)).permute(0, 2, 3, 1, 4).flatten(2, 3)
    mask = None if mask is None else mask.repeat(groups, 1)
    y = F.scaled_dot_product_attention(rows, keys.transpose(1, 2), values.transpose(1, 2), attn_mask=mask)
    return y.unflatten(2, (groups, -1)).permute(0, 3, 1, 2, 4).flatten(2, 3)


def _continued(queries: Tensor, keys: Tensor, values: Tensor, window: int | None) -> Tensor:
    """Queries after a cache, all keys in sight of a block of them at once."""
    blocks, start = [], keys.shape[1] - queries.shape[1]
    rows = min(MOST_ROWS, max(FEWEST_ROWS, MASK_ELEMENTS // keys.shape[1]))
    for block in queries.split(rows, dim=1):
        end = start + block.shape[1]
        mask = _visible(block.shape[1], end, window, keys.device)
        blocks.append(_masked(block, keys[:, :end], values[:, :end], mask))
        start = end
    return torch.cat(blocks, dim=1)


def _joined(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Queries after a cache without any mask: over the cache, causally over their own keys, and then both together.

    Two softmaxes over parts of the keys make one over all: weighted by their normalisers, whose logarithms PyTorch's
    kernel for the CPU returns. It has no gradient with respect to those.
    """
    past, (kv_heads, groups) = keys.shape[1] - queries.shape[1], (keys.shape[2], queries.shape[2] // keys.shape[2])
    attend = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    rows = queries.unflatten(2, (kv_heads, groups)).permute(0, 2, 3, 1, 4)
    cached, cached_log = attend(rows.flatten(2, 3), keys[:, :past].transpose(1, 2), values[:, :past].transpose(1, 2))
    own_keys, own_values = (x[:, past:].repeat_interleave(groups, dim=2).transpose(1, 2) for x in (keys, values))
    own, own_log = attend(queries.transpose(1, 2), own_keys, own_values, is_causal=True)
    cached, cached_log = (x.unflatten(2, (groups, -1)).flatten(1, 2) for x in (cached, cached_log))
    share = (cached_log - own_log).sigmoid().unsqueeze(-1)
    return torch.lerp(own.to(share.dtype), cached.to(share.dtype), share).to(queries.dtype).transpose(1, 2)


def _needs_gradient(*tensors: Tensor) -> bool:
    return torch.is_grad_enabled() and any(t.requires_grad for t in tensors)


def _banded(queries: Tensor, keys: Tensor, values: Tensor, window: int) -> Tensor:
    """Linear in time: each block of `size >= window` queries sees its own block of keys and the one before."""
    size, (batch, time) = _block_size(window), queries.shape[:2]
    past = keys.shape[1] - time  # at most window - 1, so that the first block has less before it than the others
    first = _continued(queries[:, :size], keys[:, : past + size], values[:, : past + size], window)

    n_blocks = -(-(time - size) // size)
    padding = (0, 0, 0, 0, 0, n_blocks * size - (time - size))
    blocks = F.pad(queries[:, size:], padding).unflatten(1, (n_blocks, size)).flatten(0, 1)
    key_blocks, value_blocks = (F.pad(x[:, past:], padding).unflatten(1, (n_blocks + 1, size)) for x in (keys, values))
    key_pairs, value_pairs = (torch.cat([x[:, :-1], x[:, 1:]], dim=2).flatten(0, 1) for x in (key_blocks, value_blocks))
    rest = _masked(blocks, key_pairs, value_pairs, _visible(size, 2 * size, window, keys.device))
    return torch.cat([first, rest.unflatten(0, (batch, n_blocks)).flatten(1, 2)[:, : time - size]], dim=1)


def _block_size(window: int) -> int:
    return max(window, SMALLEST_BLOCK)


def _visible(time: int, key_time: int, window: int | None, device: torch.device) -> Tensor:
    """Which keys the last `time` of `key_time` positions see, bool `[time, key_time]`."""
    visible = torch.ones(time, key_time, dtype=torch.bool, device=device).tril(key_time - time)
    return visible if window is None else visible.triu(key_time - time - window + 1)
