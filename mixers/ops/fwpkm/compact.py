"""FwPKM in two passes over a compact table: first the addresses of all chunks, then the values.

Keys evolve without looking at the values, so the first pass finds out which rows the call touches; where keys stay as
they are, it addresses all tokens at once. The second pass gathers those rows once and updates them in place. Chunk by
chunk is done only what depends on the chunk before: on a GPU, every launch counts.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..chunks import Segment
from .addressing import Addresses, address, entropy_gradient, key_gradient, recall_gradient
from .plan import Layout, lay_out, make_plan
from .primitives import TORCH, Kernels, Rows
from .problem import Memory, Problem, Solution
from .values import ValuePass, coefficients_of, rewrite

_SCORES_IN_CACHE, _SCORES_IN_MEMORY = 2**20, 2**25
"""How many scores of tokens against sub-keys may lie in memory at once: on a CPU, and on a device."""


@dataclass(frozen=True)
class _Call:
    """The tokens from absolute position `begin` on, which the `segments` need.

    queries `[memories, batch of each, n, heads, d_k]`, targets `[batch, n, d_v]`, gates `[batch, n]`.
    """

    problem: Problem
    kernels: Kernels
    segments: list[Segment]
    begin: int
    queries: Tensor
    targets: Tensor
    gates: Tensor

    @classmethod
    def of(cls, problem: Problem, kernels: Kernels) -> _Call:
        segments = problem.segments
        if not problem.wants_memory:  # nothing reads what the last chunk would write
            segments[-1] = Segment.reading(segments[-1].read, segments[-1].end)
        begin = segments[0].start
        queries, targets, gates = (t.values[:, begin - problem.origin :] for t in problem.tokens)
        return cls(
            problem, kernels, segments, begin, queries.unflatten(0, (len(problem.memory.keys), -1)), targets, gates
        )

    def lay_out(self, segments: list[Segment]) -> Layout:
        batch, n = self.gates.shape
        return lay_out(segments, self.begin, n, self.problem.options.lookahead, batch, self.gates.device)

    def rows(self, slots: Tensor, token: Tensor | None = None) -> Tensor:
        """`memory * n_slots + slot` of `slots [T, J]` of the tokens `[T]` among `batch * n`, or of all of those."""
        memories, each, n = self.queries.shape[:3]
        if memories == 1:
            return slots
        token = torch.arange(len(slots), device=slots.device) if token is None else token
        return slots + (token // (each * n) * self.problem.memory.n_slots)[:, None]


@dataclass(frozen=True)
class _Found:
    """rows (see `_Call.rows`) and weights `[T, J]` of all windows; slots and weights `[batch, new tokens, J]`; the keys
    after the call."""

    rows: Tensor
    weights: Tensor
    new_slots: Tensor
    new_weights: Tensor
    keys: Tensor


def run(problem: Problem, kernels: Kernels = TORCH) -> Solution:
    options, memory, (batch, _, heads, _) = problem.options, problem.memory, problem.queries.shape
    if not problem.segments:
        nothing = problem.queries.new_empty((batch, 0, heads, options.top_k))
        return Solution(problem.targets[:, :0], nothing.long(), nothing, memory)
    call = _Call.of(problem, kernels)
    rewrites = any(s.complete for s in call.segments)
    if not rewrites and call.gates.shape[1] == 1:
        return _read_one_token(call)
    layout = call.lay_out(call.segments)
    in_turn = rewrites and options.key_objective != "none"
    found = _address_in_turn(call, layout) if in_turn else _address_at_once(call, layout)
    plan = make_plan(layout, found.rows, found.weights.dtype)
    coefficients = coefficients_of(plan, found.weights, call.gates, options)
    table = memory.read(plan.touched)
    retrieved, table = ValuePass.apply(table, found.weights, coefficients, call.targets, plan, options, kernels)
    if rewrites and problem.wants_memory:
        memory = replace(memory, keys=found.keys).write(plan.touched, table, plan.written())
    slots, weights = (t.unflatten(-1, (heads, -1)) for t in (found.new_slots, found.new_weights))
    return Solution(retrieved, slots, weights, memory)


def _read_one_token(call: _Call) -> Solution:
    """A token of each row that completes no chunk, as in decoding: nothing to sort, and the host waits for nothing."""
    memory, heads = call.problem.memory, call.queries.shape[3]
    found = _address(call, call.queries, memory.keys)
    rows = memory.read(call.rows(found.slots.flatten(0, 1)).flatten()).unflatten(0, (len(call.gates), 1, -1))
    weights = found.weights.view(*rows.shape[:3])
    slots, shape = found.slots.view(weights.shape), (heads, -1)
    return Solution(
        (weights[..., None] * rows).sum(2), slots.unflatten(-1, shape), weights.unflatten(-1, shape), memory
    )


def _address(call: _Call, queries: Tensor, keys: Tensor) -> Addresses:
    """Address `queries [memories, batch of each, time, heads, d_k]`."""
    halves = queries.unflatten(-1, (2, -1)).permute(0, 3, 4, 1, 2, 5).flatten(3, 4)
    return address(halves, keys, call.problem.options, call.kernels)


def _address_at_once(call: _Call, layout: Layout) -> _Found:
    """With keys that stay as they are; of long texts as many tokens at once as may have scores in memory."""
    keys = call.problem.memory.keys
    memories, each, _, heads, _ = call.queries.shape
    scores = _SCORES_IN_CACHE if keys.device.type == "cpu" else _SCORES_IN_MEMORY
    at_once = max(1, scores // (memories * each * heads * 2 * keys.shape[3]))
    parts = []
    for queries in call.queries.split(at_once, dim=2):
        found = _address(call, queries, keys)
        parts.append((found.slots.unflatten(1, (each, -1)), found.weights.unflatten(1, (each, -1))))
    slots, weights = (torch.cat(p, dim=2) for p in zip(*parts))
    new = call.problem.position - call.begin
    return _Found(
        call.rows(slots.flatten(0, 2).index_select(0, layout.token), layout.token),
        weights.flatten(0, 2).index_select(0, layout.token),
        slots.flatten(0, 1)[:, new:],
        weights.flatten(0, 1)[:, new:],
        keys,
    )


def _address_in_turn(call: _Call, layout: Layout) -> _Found:
    """With keys that every rewriting window moves."""
    options, memory, keys = call.problem.options, call.problem.memory, call.problem.memory.keys
    all_halves = _Halves.apply(call.queries, [slice(s.start - call.begin, s.end - call.begin) for s in call.segments])
    all_counted = layout.counted.split(layout.lengths)
    found, parts = None, []
    for segment, halves, counted in zip(call.segments, all_halves, all_counted):
        found = address(halves, keys, options, call.kernels, found)
        parts.append((found.slots.flatten(0, 1), found.weights.flatten(0, 1)))
        if segment.complete:
            with torch.set_grad_enabled(torch.is_grad_enabled() and options.key_gradient == "exact"):
                gradient, memory = _key_gradient(call, memory, keys, segment, found, counted)
            keys = torch.sub(keys, gradient, alpha=options.learning_rate)
    slots, weights = (torch.cat(p) for p in zip(*parts))
    new_slots, new_weights = (
        torch.cat([t.view(w.rows, w.time, -1)[:, w.carried :] for t, w in zip(p, layout.windows)], dim=1)
        for p in zip(*parts)
    )
    return _Found(call.rows(slots, layout.token), weights, new_slots, new_weights, keys)


def _key_gradient(
    call: _Call, memory: Memory, keys: Tensor, segment: Segment, found: Addresses, counted: Tensor
) -> tuple[Tensor, Memory]:
    """The gradient of the chunk's key objective; the memory after the chunk, if the objective looks at values."""
    options, kernels, grad_scores = call.problem.options, call.kernels, []
    if options.keys_follow_address_loss:
        tokens = (segment.access_end - segment.start) * call.queries.shape[1]
        counted = counted[: found.halves.shape[3]]  # alike in all memories
        grad_scores.append(entropy_gradient(found, counted, tokens, options.address_weight, kernels))
    if options.keys_follow_memory_loss:
        slope, memory = _rehearse(call, memory, segment, found)
        grad_scores.append(recall_gradient(found, slope.view_as(found.weights), options))
    total = functools.reduce(torch.add, grad_scores)
    return key_gradient(total, found, keys, options.score, kernels), memory


class _Halves(torch.autograd.Function):
    """The halves `[memories, heads, 2, batch * time, d_k/2]` of each window; windows may overlap.

    Slices of one tensor would each bring back a gradient of its whole length.
    """

    @staticmethod
    def forward(ctx: Any, queries: Tensor, windows: list[slice]) -> tuple[Tensor, ...]:
        ctx.windows, ctx.like = windows, (queries.shape, queries.dtype, queries.device)
        ctx.set_materialize_grads(False)
        sizes = [queries[:, :, window].numel() for window in windows]
        blocks = queries.new_empty(sum(sizes)).split(sizes)  # one piece of memory, which is given back as one
        found = []
        for window, block in zip(windows, blocks):
            mine = queries[:, :, window].unflatten(-1, (2, -1)).flatten(1, 2).permute(0, 2, 3, 1, 4)
            found.append(block.view(mine.shape).copy_(mine))
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


@torch.no_grad()
def _rehearse(call: _Call, memory: Memory, segment: Segment, found: Addresses) -> tuple[Tensor, Memory]:
    """Run one chunk's values ahead of the second pass, for keys that follow the memory loss.

    Returns the gradient of that loss, the mean over tokens and features, with respect to the weights `[T, J]`, and the
    memory after the chunk. Here the host waits for the device: which rows come next depends on this step.
    """
    options, kernels = call.problem.options, call.kernels
    layout, weights = call.lay_out([segment]), found.weights.flatten(0, 1)
    plan = make_plan(layout, call.rows(found.slots.flatten(0, 1), layout.token), weights.dtype)
    (window,), (accesses,) = layout.windows, plan.accesses
    table = memory.read(plan.touched)
    retrieved = table.new_empty((window.rows, window.time - window.carried, table.shape[1]))
    error = kernels.recall(table, accesses, weights, window, Rows(retrieved, None, call.targets))
    gate = layout.gates(call.gates)[:, None]
    residual = error * (gate / max(1, window.rows // len(memory.keys) * window.pairs * error.shape[1]))
    slope = kernels.gather_dot(table, accesses, residual)
    coefficients = coefficients_of(plan, weights, call.gates, options)
    rewrite(table, accesses, plan.counts[0], kernels.spread(accesses, error, accesses.sort(coefficients)), options)
    return slope, memory.write(plan.touched, table, plan.written())
