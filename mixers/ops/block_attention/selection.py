"""Which blocks a token reads: those whose summaries fit its query best."""

from __future__ import annotations

import torch
from torch import Tensor

SCORES = 2**24  # computed at once at most


@torch.no_grad()
def nearest_blocks(queries: Tensor, summaries: Tensor, *, position: int, block_size: int, top_k: int) -> Tensor:
    """The token's own block, and of those that ended before it the `top_k - 1` with the largest `q . summary`
    (MoBA, Lu et al. 2025, arXiv 2502.13189: summaries are means of keys).

    queries `[batch, time, heads, d_k]` from absolute `position` on; summaries `[batch, n_blocks, kv_heads, d_k]` of
    complete blocks; what a token is not past is left out. Returns integers `[batch, time, heads, top_k]`, or fewer if
    no token has as many blocks; -1 stands where there is none to select. Scores are float32 at least.
    """
    precision = torch.promote_types(queries.dtype, torch.float32)
    queries, summaries = queries.to(precision), summaries.to(precision)
    batch, time, heads, _ = queries.shape
    positions = torch.arange(position, position + time, device=queries.device)
    own = (positions // block_size)[None, :, None, None].expand(batch, time, heads, 1)
    n_blocks = min(summaries.shape[1], (position + time - 1) // block_size)
    count = min(top_k - 1, n_blocks)
    if count < 1:
        return own
    summaries = summaries[:, :n_blocks].repeat_interleave(heads // summaries.shape[2], dim=2).permute(0, 2, 3, 1)
    rows = max(1, SCORES // (batch * heads * n_blocks))
    best = []
    for block_queries, block_own in zip(queries.split(rows, dim=1), own.split(rows, dim=1)):
        scores = (block_queries.transpose(1, 2) @ summaries).transpose(1, 2)
        past = torch.arange(n_blocks, device=scores.device) < block_own
        values, found = scores.masked_fill(~past, float("-inf")).topk(count, dim=-1)
        best.append(found.masked_fill(values == float("-inf"), -1))
    return torch.cat([own, torch.cat(best, dim=1)], dim=-1)
