"""What a state of PaTH attention holds, taken apart and put together."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ...state import GrowableBuffer
from . import PathCache


class Tokens(NamedTuple):
    """All tokens that a call concerns, `length` of them, and `edge`, where the open chunk started before it.

    anchored `[batch, edge, kv_heads, d_head]`: keys as the tokens before the edge left them. keys, directions, beta: as
    given, from the edge on. values and log_forget: of all tokens; `past` were there before the call.
    """

    anchored: Tensor
    keys: Tensor
    directions: Tensor
    beta: Tensor
    values: GrowableBuffer
    log_forget: GrowableBuffer | None
    past: int

    @property
    def edge(self) -> int:
        return self.anchored.shape[1]

    @property
    def length(self) -> int:
        return self.edge + self.keys.shape[1]


def gather(
    state: PathCache | None, keys: Tensor, values: Tensor, directions: Tensor, beta: Tensor, log_forget: Tensor | None
) -> Tokens:
    """The tokens of a call after those of the state; keys, directions and beta in float32 at least."""
    precision = torch.promote_types(keys.dtype, torch.float32)
    keys, directions, beta = (x.to(precision) for x in (keys, directions, beta))
    if state is None:
        forget = None if log_forget is None else GrowableBuffer.of(log_forget)
        return Tokens(keys[:, :0], keys, directions, beta, GrowableBuffer.of(values), forget, 0)
    past = state.keys.length
    n_open = past % state.directions.shape[1]
    old = state.keys.values.to(precision)
    keys = torch.cat([old[:, past - n_open :], keys], dim=1)
    directions = torch.cat([state.directions[:, :n_open].to(precision), directions], dim=1)
    beta = torch.cat([state.beta[:, :n_open].to(precision), beta], dim=1)
    forget = None if state.log_forget is None or log_forget is None else state.log_forget.append(log_forget)
    return Tokens(old[:, : past - n_open], keys, directions, beta, state.values.append(values), forget, past)


def keep(state: PathCache | None, tokens: Tokens, anchored: Tensor, chunk_size: int) -> PathCache:
    """The state after a call that left the keys of complete chunks as `anchored [batch, edge, kv_heads, d_head]`."""
    n_open = tokens.length - anchored.shape[1]
    done = tokens.keys.shape[1] - n_open
    room = (0, 0, 0, 0, 0, chunk_size - n_open)
    if state is not None and anchored.shape[1] == tokens.edge:
        keys = state.keys.append(tokens.keys[:, tokens.past - tokens.edge :].to(state.keys.storage.dtype))
    else:
        keys = GrowableBuffer.of(torch.cat([anchored, tokens.keys[:, done:]], dim=1))
    return PathCache(
        keys=keys,
        values=_own(tokens.values, fresh=state is None),
        log_forget=None if tokens.log_forget is None else _own(tokens.log_forget, fresh=state is None),
        directions=F.pad(tokens.directions[:, done:], room).clone(),
        beta=F.pad(tokens.beta[:, done:], room[2:]).clone(),
    )


def _own(buffer: GrowableBuffer, fresh: bool) -> GrowableBuffer:
    # a fresh buffer may be a view of all projections, which a state must not keep alive
    return GrowableBuffer.of(buffer.values.clone(memory_format=torch.contiguous_format)) if fresh else buffer
