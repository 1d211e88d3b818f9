"""The gated delta rule, chunk by chunk, in matrix products (arXiv 2412.06464, section 3.3: the WY form with decay).

Inside a chunk, with G_i the decay from its start to token i, the values really written are `u_i = beta_i (v_i - what
the memory holds for k_i)`. They solve a unit lower triangular system and are linear in the memory S that the chunk
begins with, `u = U - W S`, where

    (I + A) U = beta v,    (I + A) W = beta G k,    A_ij = beta_i (k_i . k_j) G_i / G_j  for j < i.

So a chunk maps S to `M S + C`, and only that product is left to a loop over the chunks.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from . import reference


def gated_delta_rule(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    log_decay: Tensor,
    beta: Tensor,
    scale: float,
    chunk_size: int,
    state: Tensor | None,
    return_state: bool,
) -> tuple[Tensor, Tensor | None]:
    batch, time, heads, d_k = keys.shape
    if time == 1:
        return reference.gated_delta_rule(
            queries, keys, values, log_decay, beta, scale, chunk_size, state, return_state
        )
    dtype = torch.promote_types(values.dtype, torch.float32)
    chunk = min(chunk_size, time)
    # the zeros behind the last token are beta 0 and decay 1: they write nothing
    q, k, v, g, b = (_chunks(x.to(dtype), chunk) for x in (queries, keys, values, log_decay, beta))

    total = g.cumsum(-1)
    from_start = total.exp().unsqueeze(-1)
    upper = torch.ones(chunk, chunk, dtype=torch.bool, device=k.device).triu(1)
    between = (total.unsqueeze(-1) - total.unsqueeze(-2)).masked_fill(upper, -torch.inf).exp()
    k_beta = k * b.unsqueeze(-1)
    system = (k_beta @ k.mT) * between
    targets = torch.cat([v * b.unsqueeze(-1), k_beta * from_start], dim=-1)
    u, w = torch.linalg.solve_triangular(system, targets, upper=False, unitriangular=True).split([v.shape[-1], d_k], -1)

    k_to_end = (k * (total[..., -1:] - total).exp().unsqueeze(-1)).mT
    keep = torch.diag_embed(from_start[..., -1, :].expand(-1, -1, d_k)) - k_to_end @ w
    memories = _scan(keep, k_to_end @ u, None if state is None else state.to(dtype).flatten(0, 1))

    starts = torch.stack(memories[:-1])
    output = (q * from_start) @ starts + ((q @ k.mT) * between) @ (u - w @ starts)
    output = output * scale
    output = output.unflatten(1, (batch, heads)).permute(1, 0, 3, 2, 4).flatten(1, 2)[:, :time]
    final = memories[-1].unflatten(0, (batch, heads)) if return_state else None
    return output.to(values.dtype), final


def _chunks(x: Tensor, chunk: int) -> Tensor:
    """`[batch, time, heads, ...]` -> `[chunks, batch * heads, chunk, ...]`, zeros behind the last token."""
    batch, time, heads = x.shape[:3]
    count = -(-time // chunk)
    x = F.pad(x, (0, 0) * (x.ndim - 2) + (0, count * chunk - time))
    x = x.unflatten(1, (count, chunk)).movedim(1, 0).transpose(2, 3)
    return x.reshape(count, batch * heads, chunk, *x.shape[4:])


def _scan(keep: Tensor, write: Tensor, memory: Tensor | None) -> list[Tensor]:
    """The memory before each chunk and after the last; `memory_{n+1} = keep_n memory_n + write_n`."""
    memories = [torch.zeros_like(write[0]) if memory is None else memory]
    for n in range(len(keep)):
        memories.append(torch.baddbmm(write[n], keep[n], memories[-1]))
    return memories
