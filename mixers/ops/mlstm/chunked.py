"""Chunks in parallel: a gated product within each, and before it what earlier chunks wrote.

With F_t the logarithm of all that is forgotten from the start of a chunk to token t, the maximum at t is that of
F_t + m (m: at the end of the chunk before) and of F_t - F_j + log i_j for j <= t. Every exponential is of such a
logarithm minus such a maximum, so none exceeds 1. A loop over the chunks is left to the maximum and the memory alone.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from . import State
from .reference import normalised


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
    time, chunk = keys.shape[1], min(chunk_size, keys.shape[1])
    q, k, v = (_chunks(x.to(dtype), chunk) for x in (queries * scale, keys, values))
    v = F.pad(v, (0, 1), value=1.0)  # n accumulates like a value that is always 1
    i = _chunks(log_input.to(dtype), chunk, padding=-torch.inf)  # what pads the last chunk writes nothing
    forgotten = _chunks(log_forget.to(dtype), chunk).cumsum(-1)

    inner = forgotten + (i - forgotten).cummax(-1).values
    total, largest = forgotten[..., -1:], inner[..., -1:]
    writes = (k * (total - forgotten + i - largest).exp()[..., None]).mT @ v
    memories, maxima = _scan(writes, total[..., 0], largest[..., 0], state)

    kept = forgotten + maxima[:, :, :-1, None]
    maximum = torch.maximum(inner, kept)
    logits = forgotten[..., :, None] - forgotten[..., None, :] + i[..., None, :] - maximum[..., None]
    future = torch.ones(chunk, chunk, dtype=torch.bool, device=k.device).triu(1)
    weights = (q @ k.mT) * logits.masked_fill(future, -torch.inf).exp()
    read = (q * (kept - maximum).exp()[..., None]) @ memories[:, :, :-1] + weights @ v
    output = normalised(read, maximum).permute(0, 2, 3, 1, 4).flatten(1, 2)[:, :time]
    return output, (memories[:, :, -1].clone(), maxima[:, :, -1].clone())


def _chunks(x: Tensor, chunk: int, padding: float = 0.0) -> Tensor:
    """`[batch, time, heads, ...]` as `[batch, heads, chunks, chunk, ...]`."""
    count = -(-x.shape[1] // chunk)
    x = F.pad(x, (0, 0) * (x.ndim - 2) + (0, count * chunk - x.shape[1]), value=padding)
    return x.unflatten(1, (count, chunk)).movedim(3, 1)


def _scan(writes: Tensor, total: Tensor, largest: Tensor, state: State | None) -> tuple[Tensor, Tensor]:
    """Memory and maximum before each chunk and after the last, `[batch, heads, chunks + 1, ...]`."""
    if state is None:
        memory, maximum = torch.zeros_like(writes[:, :, 0]), torch.full_like(total[..., 0], -torch.inf)
    else:
        memory, maximum = (tensor.to(writes.dtype) for tensor in state)
    memories, maxima = [memory], [maximum]
    for n in range(writes.shape[2]):
        kept = total[..., n] + maximum
        maximum = torch.maximum(kept, largest[..., n])
        keep, write = (kept - maximum).exp(), (largest[..., n] - maximum).exp()
        memory = keep[..., None, None] * memory + write[..., None, None] * writes[:, :, n]
        memories.append(memory)
        maxima.append(maximum)
    return torch.stack(memories, dim=2), torch.stack(maxima, dim=2)
