"""FwPKM in two passes over a compact table: first the addresses of all chunks, then the values.

Keys evolve without looking at the values, so the first pass walks the chunks and finds out which rows the call touches.
The second pass gathers those rows once and updates them in place.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..chunks import Segment
from .addressing import Addresses, address, entropy_gradient, key_gradient, recall_gradient
from .primitives import TORCH, Kernels
from .problem import Memory, Problem, Solution
from .values import ValuePass, plan_values


def run(problem: Problem, kernels: Kernels = TORCH) -> Solution:
    memories, options = len(problem.memory.keys), problem.options
    rows_per_memory = len(problem.queries) // memories
    queries, targets, gates = (t.values.unflatten(0, (memories, rows_per_memory)) for t in problem.tokens)
    windows, keys = _address_all(problem, queries, kernels)
    if not windows:
        nothing = problem.queries.new_empty((len(problem.queries), 0, queries.shape[3], options.top_k))
        return Solution(problem.targets[:, :0], nothing.long(), nothing, problem.memory)

    weights = torch.cat([w.weights for w in windows], dim=2)
    touched, ids = torch.unique(torch.cat([w.rows for w in windows], dim=2), return_inverse=True)
    plans = plan_values(problem, [w.segment for w in windows], ids, kernels)
    retrieved, table = ValuePass.apply(problem.memory.read(touched), weights, targets, gates, plans, options)

    memory = problem.memory
    if problem.wants_memory:
        memory = replace(memory, keys=keys)
        written = torch.cat([p.written for p in plans])
        if len(written):
            written = torch.unique(written)
            memory = memory.write(touched.index_select(0, written), table.index_select(0, written))
    new = [slice(w.segment.read - w.segment.start, None) for w in windows]
    shape = (len(problem.queries), -1, queries.shape[3], options.top_k)
    slots = torch.cat([w.rows[:, :, s] for w, s in zip(windows, new)], dim=2) % memory.n_slots
    read_weights = torch.cat([w.weights[:, :, s] for w, s in zip(windows, new)], dim=2)
    return Solution(retrieved.flatten(0, 1), slots.reshape(shape), read_weights.reshape(shape), memory)


@dataclass(frozen=True)
class _Window:
    """What a segment reads: rows (`memory * n_slots + slot`) and weights `[memories, batch, time, heads * top_k]`."""

    segment: Segment
    rows: Tensor
    weights: Tensor


def _address_all(problem: Problem, queries: Tensor, kernels: Kernels) -> tuple[list[_Window], Tensor]:
    """Every segment's addresses, and the keys after the last one; `queries [memories, batch, time, heads, d_k]`."""
    memory, options, segments = problem.memory, problem.options, problem.segments
    if segments and not problem.wants_memory:  # nothing reads what the last chunk would write
        segments[-1] = Segment.reading(segments[-1].read, segments[-1].end)
    keys, windows = memory.keys, []
    base = torch.arange(len(keys), device=keys.device)[:, None, None, None] * memory.n_slots
    origin = problem.origin
    all_halves = _Halves.apply(queries, [slice(s.start - origin, s.end - origin) for s in segments])
    for segment, halves in zip(segments, all_halves):
        found = address(halves, keys, options, kernels)
        shape = (queries.shape[1], segment.end - segment.start)
        windows.append(_Window(segment, found.slots.unflatten(1, shape) + base, found.weights.unflatten(1, shape)))
        if segment.complete and options.key_objective != "none":
            with torch.set_grad_enabled(torch.is_grad_enabled() and options.key_gradient == "exact"):
                gradient, memory = _key_step(problem, memory, keys, windows[-1], found, kernels)
            keys = keys - options.learning_rate * gradient
    return windows, keys


class _Halves(torch.autograd.Function):
    """The halves `[memories, heads, 2, batch * time, d_k/2]` of each window; windows may overlap.

    Slices of one tensor would each bring back a gradient of its whole length.
    """

    @staticmethod
    def forward(ctx: Any, queries: Tensor, windows: list[slice]) -> tuple[Tensor, ...]:
        ctx.windows, ctx.like = windows, (queries.shape, queries.dtype, queries.device)
        ctx.set_materialize_grads(False)
        found = []
        for window in windows:
            mine = queries[:, :, window].unflatten(-1, (2, -1)).flatten(1, 2)
            found.append(mine.permute(0, 2, 3, 1, 4).contiguous())
        return tuple(found)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *d_halves: Tensor | None) -> tuple[Tensor, None]:
        shape, dtype, device = ctx.like
        d_queries = torch.zeros(shape, dtype=dtype, device=device)
        for window, mine in zip(ctx.windows, d_halves):
            if mine is not None:
                mine = mine.permute(0, 3, 1, 2, 4).flatten(-2)
                d_queries[:, :, window] += mine.unflatten(1, (shape[1], -1))
        return d_queries, None


def _key_step(
    problem: Problem, memory: Memory, keys: Tensor, window: _Window, found: Addresses, kernels: Kernels
) -> tuple[Tensor, Memory]:
    """The gradient of the chunk's key objective; the memory after the chunk, if the objective looks at values."""
    options, (_, batch, time, _) = problem.options, window.rows.shape
    grad_scores = torch.zeros_like(found.scores)
    if options.keys_follow_address_loss:
        accesses = window.segment.access_end - window.segment.start
        counted = (torch.arange(time, device=keys.device) < accesses).repeat(batch)
        grad_scores = grad_scores + options.address_weight * entropy_gradient(found, counted, accesses * batch, kernels)
    if options.keys_follow_memory_loss:
        slope, memory = _rehearse(problem, memory, window, kernels)
        grad_scores = grad_scores + recall_gradient(found, slope, options)
    return key_gradient(grad_scores, found, keys, options.score, kernels), memory


@torch.no_grad()
def _rehearse(problem: Problem, memory: Memory, window: _Window, kernels: Kernels) -> tuple[Tensor, Memory]:
    """Run one chunk's values ahead of the second pass, for keys that follow the memory loss.

    Returns the gradient of that loss, the mean over tokens and features, with respect to the weights, `[memories, n,
    heads * top_k]`, and the memory after the chunk.
    """
    touched, ids = torch.unique(window.rows, return_inverse=True)
    plan = plan_values(problem, [window.segment], ids, kernels)[0]
    table = memory.read(touched)
    targets, gates = (t.values.unflatten(0, ids.shape[:2]) for t in problem.tokens[1:])
    error, gate = plan.error(plan.read(table, window.weights), targets), plan.gate(gates)
    residual = error * gate[..., None] / max(1, plan.pairs * error.shape[1] * error.shape[3])
    slope = plan.gather_dot(table, residual)
    plan.rewrite(table, error, plan.coefficients(window.weights, gate, problem.options), problem.options)
    memory = memory.write(touched[plan.written], table[plan.written])
    return slope.unflatten(0, (len(ids), -1)), memory
