"""Blocks of time, small enough for the cache; in each, all segments advance at once and then get what came before.

Only the states before the blocks are kept: the backward pass computes those within once more, from the last block to
the first. Nothing is divided by a product of decays, which may vanish.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from .reference import in_precision

# Numbers of state held at once: 4 MB of them stay in a CPU's cache; a GPU wants more to do at a time.
CPU_BUDGET, GPU_BUDGET = 2**20, 2**25


def selective_scan(
    values: Tensor, step: Tensor, A: Tensor, B: Tensor, C: Tensor, state: Tensor | None, return_state: bool
) -> tuple[Tensor, Tensor | None]:
    values, step, A, B, C, state = in_precision(values, step, A, B, C, state)
    if values.shape[1] == 1:
        x, dt, b, c = values[:, 0], step[:, 0], B[:, 0], C[:, 0]
        state = torch.exp(dt[:, None] * A.T) * state + (dt * x)[:, None] * b[:, :, None]
        return c[:, None] @ state, state if return_state else None
    y, starts = torch.ops.mixerzoo.selective_scan(values, step, A, B, C, state)
    return y, starts[:, -1].clone() if return_state else None


# Operators of torch's own kind: torch.compile calls them instead of unrolling their steps.
@torch.library.custom_op(
    "mixerzoo::selective_scan",
    mutates_args=(),
    schema="(Tensor values, Tensor step, Tensor A, Tensor B, Tensor C, Tensor state) -> (Tensor, Tensor)",
)
def _scan(values: Tensor, step: Tensor, A: Tensor, B: Tensor, C: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """Returns y, and the states `[batch, blocks + 1, d_state, channels]` before each block and after the last."""
    A = A.T.contiguous()
    y = torch.empty_like(values, memory_format=torch.contiguous_format)
    starts, rooms = [state], _rooms(values, A)
    for now in _blocks(values, A):
        decays, states = _terms(values, step, A, B, now, rooms)
        states = _run(decays, states, starts[-1], reverse=False)
        torch.matmul(C[:, now, None], states, out=y[:, now, None])
        starts.append(states[:, -1].clone())
    return y, torch.stack(starts, dim=1)


@torch.library.custom_op(
    "mixerzoo::selective_scan_backward",
    mutates_args=(),
    schema="(Tensor to_y, Tensor to_starts, Tensor values, Tensor step, Tensor A, Tensor B, Tensor C, Tensor starts)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def _scan_backward(
    to_y: Tensor,
    to_starts: Tensor,
    values: Tensor,
    step: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    starts: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of values, step, A, B, C and state."""
    A = A.T.contiguous()
    to_values, to_step, to_B, to_C = (
        torch.empty_like(x, memory_format=torch.contiguous_format) for x in (values, step, B, C)
    )
    to_A = torch.zeros_like(A)
    to_state, rooms = to_starts[:, -1], _rooms(values, A)
    for i, now in reversed(list(enumerate(_blocks(values, A)))):
        x, dt, g = values[:, now], step[:, now], to_y[:, now]
        decays, writes = _terms(values, step, A, B, now, rooms)
        first = decays[:, 0].clone()
        # the gradient of a state: of its output, and of the next one through that one's decay
        later = torch.cat([decays[:, 1:], torch.ones_like(first)[:, None]], dim=1)
        states = _run(decays, writes.clone(), starts[:, i], reverse=False)
        to_states = _run(later, C[:, now, :, None] * g[:, :, None], to_state, reverse=True)
        to_state = first * to_states[:, 0] + to_starts[:, i]

        to_C[:, now] = (states @ g[..., None])[..., 0]
        to_B[:, now] = (to_states @ (dt * x)[..., None])[..., 0]
        to_dt_x = (B[:, now, None] @ to_states)[:, :, 0]
        # a state less what was written into it is what it kept of the one before
        to_exponents = to_states.mul_(states.sub_(writes))
        to_values[:, now] = to_dt_x * dt
        to_step[:, now] = to_dt_x * x + (to_exponents * A).sum(2)
        to_A += (to_exponents.mul_(dt[:, :, None])).sum((0, 1))
    return to_values, to_step, to_A.T.contiguous(), to_B, to_C, to_state.clone()


def _blocks(values: Tensor, A: Tensor) -> Iterator[slice]:
    """The tokens of each block: as many as the budget allows, two or more."""
    time, size = values.shape[1], _block_size(values, A)
    for begin in range(0, time, size):
        yield slice(begin, min(begin + size, time))


def _block_size(values: Tensor, A: Tensor) -> int:
    batch, time, channels = values.shape
    budget = CPU_BUDGET if values.device.type == "cpu" else GPU_BUDGET
    return min(time, max(2, budget // (batch * channels * len(A))))


def _rooms(values: Tensor, A: Tensor) -> tuple[Tensor, Tensor]:
    """Memory for the terms of a block, which all blocks share: new memory each time would leave the cache."""
    shape = (len(values), _block_size(values, A), *A.shape)
    return values.new_empty(shape), values.new_empty(shape)


def _terms(
    values: Tensor, step: Tensor, A: Tensor, B: Tensor, now: slice, rooms: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """What the states of a block are multiplied by, and what is added to them: `[batch, time, d_state, channels]`."""
    dt = step[:, now]
    decays, writes = (room[:, : dt.shape[1]] for room in rooms)
    torch.mul(dt[:, :, None], A, out=decays).exp_()
    torch.mul((dt * values[:, now])[:, :, None], B[:, now, :, None], out=writes)
    return decays, writes


def _run(decays: Tensor, writes: Tensor, state: Tensor, reverse: bool) -> Tensor:
    """Turn `writes` into states and `decays` into their products within segments; both are overwritten."""
    time = writes.shape[1]
    length = max(2, int(time**0.5))
    whole = time // length * length
    parts = [(0, whole, length), (whole, time, time - whole)]
    for begin, end, size in reversed(parts) if reverse else parts:
        if begin == end:
            continue
        a, h = (x[:, begin:end].unflatten(1, (-1, size)) for x in (decays, writes))
        steps = range(size - 2, -1, -1) if reverse else range(1, size)
        back = 1 if reverse else -1
        for j in steps:
            torch.addcmul(h[:, :, j], a[:, :, j], h[:, :, j + back], out=h[:, :, j])
            torch.mul(a[:, :, j], a[:, :, j + back], out=a[:, :, j])
        segments = range(h.shape[1])
        for s in reversed(segments) if reverse else segments:
            torch.addcmul(h[:, s], a[:, s], state[:, None], out=h[:, s])
            state = h[:, s, 0 if reverse else -1]
    return writes


@_scan.register_fake
def _(values: Tensor, step: Tensor, A: Tensor, B: Tensor, C: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    blocks = len(list(_blocks(values, A.T)))
    return torch.empty_like(values, memory_format=torch.contiguous_format), state.new_empty(
        state.shape[0], blocks + 1, *state.shape[1:]
    )


@_scan_backward.register_fake
def _(
    to_y: Tensor,
    to_starts: Tensor,
    values: Tensor,
    step: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    starts: Tensor,
) -> tuple[Tensor, ...]:
    like = (values, step, A, B, C, starts[:, 0])
    return tuple(torch.empty_like(x, memory_format=torch.contiguous_format) for x in like)


def _save(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:-1], output[1])


def _backward(ctx: Any, to_y: Tensor, to_starts: Tensor) -> tuple[Tensor, ...]:
    return torch.ops.mixerzoo.selective_scan_backward(to_y, to_starts, *ctx.saved_tensors)


def _no_second_derivative(ctx: Any, *gradients: Tensor) -> None:
    raise RuntimeError("the chunked selective scan has first derivatives only; backend='reference' has all")


_scan.register_autograd(_backward, setup_context=_save)
_scan_backward.register_autograd(_no_second_derivative)
