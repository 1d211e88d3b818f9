"""Segments in parallel, twice: from zero for what each adds, then from where the one before it ends.

A step advances all segments at once, so that 4,096 tokens take two times 64 steps. The ends of the segments are a
recurrence of their own, with the products of the decays, and solved the same way. Nothing is ever divided by a product
of decays, which may vanish.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

SEGMENT = 64  # tokens; of 16 to 128 the fastest or next to it, for 4,096 and 32,768 tokens of 1,024 channels on a CPU


def linear_scan(decay: Tensor, writes: Tensor, start: Tensor) -> Tensor:
    if writes.shape[1] == 1:
        return torch.addcmul(writes, decay, start[:, None])
    return torch.ops.mixerzoo.linear_scan(decay, writes, start)


# An operator of torch's own kind: torch.compile calls it instead of unrolling its steps.
@torch.library.custom_op(
    "mixerzoo::linear_scan", mutates_args=(), schema="(Tensor decay, Tensor writes, Tensor start) -> Tensor"
)
def _scan(decay: Tensor, writes: Tensor, start: Tensor) -> Tensor:
    states = torch.empty_like(writes, memory_format=torch.contiguous_format)
    _solve(decay, writes, start, states, reverse=False)
    return states


@torch.library.custom_op(
    "mixerzoo::linear_scan_reversed", mutates_args=(), schema="(Tensor decay, Tensor writes) -> Tensor"
)
def _scan_reversed(decay: Tensor, writes: Tensor) -> Tensor:
    """`h_t = decay_{t+1} * h_{t+1} + writes_t`, from zero: what gradients go through."""
    states = torch.empty_like(writes, memory_format=torch.contiguous_format)
    states[:, -1] = writes[:, -1]
    if writes.shape[1] > 1:
        _solve(decay[:, 1:], writes[:, :-1], writes[:, -1], states[:, :-1], reverse=True)
    return states


def _solve(decay: Tensor, writes: Tensor, start: Tensor, states: Tensor, reverse: bool) -> None:
    """Fill `states [batch, time, ...]`, walking whole segments together and what is left over after them."""
    time = writes.shape[1]
    whole = time // SEGMENT * SEGMENT
    parts = [(0, whole, SEGMENT), (whole, time, time - whole)]
    for begin, end, length in reversed(parts) if reverse else parts:
        if begin == end:
            continue
        a, b, h = (x[:, begin:end].unflatten(1, (-1, length)) for x in (decay, writes, states))
        _walk(a, b, _starts(a, b, start, reverse), h, reverse)
        start = states[:, begin] if reverse else states[:, end - 1]


def _starts(decay: Tensor, writes: Tensor, start: Tensor, reverse: bool) -> Tensor:
    """Where each segment of `[batch, segments, length, ...]` starts from, `[batch, segments, ...]`."""
    segments, length = writes.shape[1:3]
    if segments == 1:
        return start[:, None]
    first, *rest = _order(length, reverse)
    total, product = writes[:, :, first], decay[:, :, first]
    for j in rest:
        total = torch.addcmul(writes[:, :, j], decay[:, :, j], total)
        product = product * decay[:, :, j]
    starts = torch.empty_like(total)
    if reverse:
        starts[:, -1] = start
        _solve(product[:, 1:], total[:, 1:], start, starts[:, :-1], reverse)
    else:
        starts[:, 0] = start
        _solve(product[:, :-1], total[:, :-1], start, starts[:, 1:], reverse)
    return starts


def _walk(decay: Tensor, writes: Tensor, state: Tensor, states: Tensor, reverse: bool) -> None:
    for j in _order(writes.shape[2], reverse):
        state = torch.addcmul(writes[:, :, j], decay[:, :, j], state, out=states[:, :, j])


def _order(length: int, reverse: bool) -> Iterable[int]:
    return range(length - 1, -1, -1) if reverse else range(length)


@_scan.register_fake
def _(decay: Tensor, writes: Tensor, start: Tensor) -> Tensor:
    return torch.empty_like(writes, memory_format=torch.contiguous_format)


@_scan_reversed.register_fake
def _(decay: Tensor, writes: Tensor) -> Tensor:
    return torch.empty_like(writes, memory_format=torch.contiguous_format)


def _save(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    decay, _, *start = inputs
    ctx.save_for_backward(decay, output, *start)


def _scan_backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    decay, states, start = ctx.saved_tensors
    decay = decay.conj().resolve_conj()
    to_writes = torch.ops.mixerzoo.linear_scan_reversed(decay, gradient)
    to_decay = to_writes * torch.cat([start[:, None], states[:, :-1]], dim=1).conj()
    return to_decay, to_writes, decay[:, 0] * to_writes[:, 0]


def _scan_reversed_backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
    decay, states = ctx.saved_tensors
    decay = decay.conj().resolve_conj()
    to_writes = torch.ops.mixerzoo.linear_scan(decay, gradient, torch.zeros_like(gradient[:, 0]))
    before = torch.cat([torch.zeros_like(to_writes[:, :1]), to_writes[:, :-1]], dim=1)
    return before * states.conj(), to_writes


_scan.register_autograd(_scan_backward, setup_context=_save)
_scan_reversed.register_autograd(_scan_reversed_backward, setup_context=_save)
