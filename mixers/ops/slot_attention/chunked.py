"""Matrix products over chunks of tokens; a chunk's state comes from the one before.

The second pass, which reads the slots' values, is a linear recurrence whose keys are the writes: the engine does it.
In the first pass the decays stand on the other side, at what is read: the score of a slot sums q . k over tokens, each
decayed as the slot decays. Within a chunk that is done by halves: the right half of 2n tokens sees the left one through
their common edge, so that every exponent is at most 0, and only products are needed.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ..recurrence import linear_recurrence
from .reference import in_precision, start

ELEMENTS = 2**21  # of the writes that are worked on at once: what is made of them stays in the cache


def slot_attention(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    writes: Tensor,
    log_decay: Tensor,
    scale: float,
    chunk_size: int,
    state: tuple[Tensor, Tensor] | None,
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    queries, keys, values, writes, log_decay = in_precision(queries * scale, keys, values, writes, log_decay)
    state = start(keys, values, writes) if state is None else state
    slot_keys, slot_values = state
    outputs, tokens = [], _segment(writes, chunk_size)
    for q, k, v, w, decay in zip(*(x.split(tokens, dim=1) for x in (queries, keys, values, writes, log_decay))):
        scores, slot_keys = slot_scores(q, k, w, decay, chunk_size, slot_keys)
        y, after = linear_recurrence(
            scores.softmax(dim=-1),
            w,
            v,
            log_decay=decay,
            scale=1.0,
            chunk_size=chunk_size,
            state=slot_values,
            return_state=True,
            backend="chunked",
        )
        assert after is not None  # it was asked for
        slot_values = after
        outputs.append(y)
    return torch.cat(outputs, dim=1), (slot_keys, slot_values)


def _segment(writes: Tensor, chunk_size: int) -> int:
    """How many tokens, in whole chunks, are worked on at once."""
    batch, _, heads, slots = writes.shape
    return max(1, ELEMENTS // (batch * heads * slots * chunk_size)) * chunk_size


def slot_scores(
    queries: Tensor, keys: Tensor, writes: Tensor, log_decay: Tensor, chunk_size: int, state: Tensor
) -> tuple[Tensor, Tensor]:
    """Scores `K_t q_t [batch, time, q_heads, slots]`, and K after the last token."""
    time, heads = keys.shape[1:3]
    size = 1
    while size < min(time, chunk_size):  # halving needs a power of 2
        size *= 2
    queries = _in_chunks(queries.unflatten(2, (heads, -1)), size).transpose(3, 4)  # [b, h, chunks, group, size, d_k]
    keys, writes, log_decay = (_in_chunks(x, size) for x in (keys, writes, log_decay))  # [b, h, chunks, size, .]
    decay = log_decay.cumsum(dim=3)
    starts, state = _states(keys, writes, decay, state)
    scores = _within(queries @ keys.mT.unsqueeze(3), writes, log_decay)
    scores = scores + queries @ starts.mT.unsqueeze(3) * decay.exp().unsqueeze(3)
    scores = scores.permute(0, 2, 4, 1, 3, 5).flatten(1, 2).flatten(2, 3)
    return scores[:, :time], state


def _in_chunks(x: Tensor, size: int) -> Tensor:
    """`[batch, heads, chunks, size, ...]` of `x [batch, time, heads, ...]`, filled up with tokens that do nothing."""
    padding = (0, 0) * (x.ndim - 2) + (0, -x.shape[1] % size)
    return F.pad(x, padding).unflatten(1, (-1, size)).movedim(3, 1)


def _states(keys: Tensor, writes: Tensor, decay: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """The slots' keys before each chunk, `[batch, heads, chunks, slots, d_k]`, and after the last."""
    end = decay[:, :, :, -1:]
    added = (writes * (end - decay).exp()).mT @ keys
    kept = end.exp().mT
    starts = []
    for chunk in range(keys.shape[2]):
        starts.append(state)
        state = kept[:, :, chunk] * state + added[:, :, chunk]
    return torch.stack(starts, dim=2), state


def _within(products: Tensor, writes: Tensor, log_decay: Tensor) -> Tensor:
    """Scores from a chunk's own tokens, by halves.

    products `[b, h, chunks, group, size, size]` of queries and keys; writes, log_decay `[b, h, chunks, size, slots]`.
    """
    scores = products.diagonal(dim1=-2, dim2=-1).unsqueeze(-1) * writes.unsqueeze(3)
    half, size = 1, products.shape[-1]
    while half < size:
        pairs = size // (2 * half)
        decay = log_decay.unflatten(3, (pairs, 2, half))
        left, right = decay.cumsum(dim=5).unbind(4)  # from the beginning of the halves
        weighted = writes.unflatten(3, (pairs, 2, half))[:, :, :, :, 0] * (left[:, :, :, :, -1:] - left).exp()
        cross = products.unflatten(5, (pairs, 2, half)).unflatten(4, (pairs, 2, half))[..., 1, :, :, 0, :]
        cross = cross.diagonal(dim1=4, dim2=6).movedim(-1, 4)  # [b, h, chunks, group, pairs, half, half]
        found = cross @ weighted.unsqueeze(3) * right.exp().unsqueeze(3)
        scores = scores + torch.stack([torch.zeros_like(found), found], dim=5).flatten(4, 6)
        half *= 2
    return scores
