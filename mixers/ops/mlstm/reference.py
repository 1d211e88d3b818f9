"""The recurrence, token by token."""

from __future__ import annotations

import torch
from torch import Tensor

from . import EPSILON, State


def mlstm(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    log_input: Tensor,
    log_forget: Tensor,
    scale: float,
    chunk_size: int,
    state: State | None,
) -> tuple[Tensor, State]:
    dtype = torch.promote_types(values.dtype, torch.float32)
    q, k, v, i, f = (x.to(dtype) for x in (queries, keys, values, log_input, log_forget))
    v = torch.cat([v, torch.ones_like(v[..., :1])], dim=-1)  # n accumulates like a value that is always 1
    if state is None:
        memory, maximum = k.new_zeros(k.shape[0], *k.shape[2:], v.shape[3]), torch.full_like(i[:, 0], -torch.inf)
    else:
        memory, maximum = state[0].to(dtype), state[1].to(dtype)
    outputs = []
    for t in range(k.shape[1]):
        kept = f[:, t] + maximum
        maximum = torch.maximum(kept, i[:, t])
        write = torch.einsum("bhk,bhv->bhkv", k[:, t], v[:, t])
        memory = _per_head(kept - maximum) * memory + _per_head(i[:, t] - maximum) * write
        read = torch.einsum("bhkv,bhk->bhv", memory, q[:, t] * scale)
        outputs.append(normalised(read, maximum))
    return torch.stack(outputs, dim=1), (memory, maximum)


def _per_head(logarithm: Tensor) -> Tensor:
    return logarithm.exp()[..., None, None]


def normalised(read: Tensor, maximum: Tensor) -> Tensor:
    """`read [..., d_v + 1]` of C and n divided by exp(m) -> `C^T q / max(|n . q|, 1)`; `maximum [...]` is m.

    That is `read / (max(|n . q|, exp(-m)) + EPSILON)`, multiplied above and below by exp(m) where this is less than 1.
    """
    below, above = maximum.clamp(max=0).exp()[..., None], (-maximum).clamp(max=0).exp()[..., None]
    values, n = (below * read).split([read.shape[-1] - 1, 1], dim=-1)
    return values / (torch.maximum(n.abs(), above) + EPSILON * below)
