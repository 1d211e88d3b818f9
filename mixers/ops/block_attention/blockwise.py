"""Work in proportion to what was selected: queries that read the same block are brought together.

The pairs of a token and a block are sorted by block and cut into tiles of `WIDTH` pairs that share one. A tile is one
dense product of its queries with the block's keys. The softmaxes of a token over each of its blocks then make one over
all, weighted by their normalisers. Nothing is of the size of queries times keys.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ..dispatch import wants_gradient

WIDTH = 256  # pairs in a tile at most
PAIRS = 2**19  # of a token and a block, sorted at once at most
SCORES = 2**21  # computed at once at most: they stay in the cache


def block_attention(queries: Tensor, keys: Tensor, values: Tensor, blocks: Tensor, block_size: int) -> Tensor:
    queries, keys, values = (x.to(torch.promote_types(values.dtype, torch.float32)) for x in (queries, keys, values))
    key_blocks, value_blocks = (_in_blocks(x, block_size) for x in (keys, values))
    time = queries.shape[1]
    rows = max(1, PAIRS * time // (blocks.numel() * queries.shape[2] // blocks.shape[2]))
    start, outputs = keys.shape[1] - time, []
    for some, chosen in zip(queries.split(rows, dim=1), blocks.split(rows, dim=1)):
        outputs.append(_piece(some, key_blocks, value_blocks, chosen, start))
        start += some.shape[1]
    return torch.cat(outputs, dim=1)


def _in_blocks(x: Tensor, block_size: int) -> Tensor:
    """`[batch, kv_heads, n_blocks, block_size, d]`, the last block filled up with zeros."""
    x = F.pad(x, (0, 0, 0, 0, 0, -x.shape[1] % block_size))
    return x.unflatten(1, (-1, block_size)).permute(0, 3, 1, 2, 4).contiguous()


def _piece(queries: Tensor, key_blocks: Tensor, value_blocks: Tensor, blocks: Tensor, start: int) -> Tensor:
    batch, time, groups, n = blocks.shape
    heads, (n_blocks, block_size) = queries.shape[2], key_blocks.shape[2:4]
    rows = queries.unflatten(2, (groups, -1)).transpose(1, 2).flatten(0, 2)  # [batch * groups * time, heads each, d_k]
    blocks = blocks.transpose(1, 2)  # [batch, groups, time, n]
    lists = torch.arange(batch * groups, device=blocks.device).view(batch, groups, 1, 1) * n_blocks
    wanted = (blocks.clamp(min=0) + lists).flatten()
    slot, pair, tile_list = _tiles(wanted, batch * groups * n_blocks)

    # how far into its block a pair's token sees; an empty pair sees nothing
    positions = torch.arange(start, start + time, device=blocks.device)[:, None]
    reach = torch.where(blocks < 0, -1, positions - blocks * block_size).flatten()[pair]
    sharing = groups // key_blocks.shape[1]  # lists that read the same key head
    tile_blocks = tile_list // n_blocks // sharing * n_blocks + tile_list % n_blocks
    each = max(1, SCORES // (pair.shape[1] * rows.shape[1] * block_size))
    found = [
        _tile(rows[p // n], key_blocks.flatten(0, 2)[b], value_blocks.flatten(0, 2)[b], r)
        for p, b, r in zip(pair.split(each), tile_blocks.split(each), reach.split(each))
    ]
    outputs, logs = (torch.cat([f[i] for f in found]).flatten(0, 1)[slot].unflatten(0, (-1, n)) for i in range(2))
    y = torch.einsum("pnh,pnhd->phd", logs.softmax(dim=1), outputs)  # [batch * groups * time, heads each, d_v]
    return y.unflatten(0, (batch, groups, time)).transpose(1, 2).reshape(batch, time, heads, -1)


def _tiles(wanted: Tensor, n_lists: int) -> tuple[Tensor, Tensor, Tensor]:
    """Pairs by what they want, in tiles: each pair's slot, the pair in each slot `[tiles, width]`, each tile's list.

    The number of tiles is the most there could be, so that no size depends on the data; slots left over hold pair 0.
    """
    n_pairs = len(wanted)
    most = min(n_lists, n_pairs)  # lists in use
    width = 1
    while width < WIDTH and width * 8 * most <= n_pairs:  # at most an eighth more work for what tiles do not fill
        width *= 2
    counts = torch.zeros(n_lists, dtype=torch.long, device=wanted.device).scatter_add_(
        0, wanted, torch.ones_like(wanted)
    )
    tiles = (counts + width - 1) // width
    tiles_end = tiles.cumsum(0)
    order = wanted.argsort(stable=True)
    lists = wanted[order]
    rank = torch.arange(n_pairs, device=wanted.device) - (counts.cumsum(0) - counts)[lists]
    n_tiles = (n_pairs + (width - 1) * most) // width
    slots = (tiles_end - tiles)[lists] * width + rank
    slot = torch.empty_like(wanted).scatter_(0, order, slots)
    pair = wanted.new_zeros(n_tiles * width).scatter_(0, slots, order).view(n_tiles, width)
    tile = torch.arange(n_tiles, device=wanted.device)
    return slot, pair, torch.searchsorted(tiles_end, tile, right=True).clamp(max=n_lists - 1)


def _tile(queries: Tensor, keys: Tensor, values: Tensor, reach: Tensor) -> tuple[Tensor, Tensor]:
    """Attention within tiles: outputs `[tiles, width, heads each, d_v]` and the logarithms of the normalisers.

    queries `[tiles, width, heads each, d_k]`, keys and values `[tiles, block_size, d]`, reach `[tiles, width]`.
    """
    width, each, d_k = queries.shape[1:]
    hidden = (torch.arange(keys.shape[1], device=keys.device) > reach[:, :, None]).repeat_interleave(each, dim=1)
    # a number, not -inf: a pair that sees nothing must have gradients, which its weight of 0 then removes
    lowest = torch.finfo(keys.dtype).min / 2
    queries = queries.flatten(1, 2)
    if wants_gradient(queries, keys, values) or queries.device.type != "cpu" or keys.shape[2] != values.shape[2]:
        scores = (queries @ keys.mT * d_k**-0.5).masked_fill(hidden, lowest)
        logs = scores.logsumexp(dim=-1)
        y = (scores - logs.unsqueeze(-1)).exp() @ values
    else:  # PyTorch's kernel for the CPU returns the logarithms as well, without gradients
        mask = torch.zeros(hidden.shape, dtype=keys.dtype).masked_fill_(hidden, lowest)
        attend = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        y, logs = (
            t.squeeze(1) for t in attend(*(t.unsqueeze(1) for t in (queries, keys, values)), attn_mask=mask[:, None])
        )
    return y.unflatten(1, (width, each)), logs.unflatten(1, (width, each))
