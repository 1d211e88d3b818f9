"""FwPKM in two passes over a compact table: first the addresses of all chunks, then the values.

Keys evolve without looking at the values, so the first pass walks the chunks with autograd and finds out which rows the
call touches. The second pass gathers those rows once and updates them in place; its backward is written by hand: it
walks the chunks in reverse and undoes each update, so that no copy of the table is ever kept.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from .primitives import TORCH, Accesses, Kernels
from .problem import FwpkmOptions, Memory, Problem, Segment, Solution


def run(problem: Problem, kernels: Kernels = TORCH) -> Solution:
    memories, options = len(problem.memory.keys), problem.options
    rows_per_memory = len(problem.queries) // memories
    queries = problem.queries.unflatten(0, (memories, rows_per_memory))
    windows, keys = _address_all(problem, queries, kernels)
    if not windows:
        heads = queries.shape[3]
        nothing = problem.queries.new_empty((len(problem.queries), 0, heads, options.top_k))
        return Solution(problem.targets[:, :0], nothing.long(), nothing, problem.memory)

    weights = torch.cat([w.weights for w in windows], dim=2)
    touched, ids = torch.unique(torch.cat([w.rows for w in windows], dim=2), return_inverse=True)
    plans = _plan(problem, windows, ids, len(touched), kernels)
    table = problem.memory.read(touched)
    targets = problem.targets.unflatten(0, (memories, rows_per_memory))
    gates = problem.gates.unflatten(0, (memories, rows_per_memory))
    retrieved, table = _ValuePass.apply(table, weights, targets, gates, plans, options)

    memory = replace(problem.memory, keys=keys)
    written = torch.cat([p.written for p in plans])
    if len(written):
        written = torch.unique(written)
        memory = memory.write(touched.index_select(0, written), table.index_select(0, written))
    new = [slice(w.segment.read - w.segment.start, None) for w in windows]
    shape = (len(problem.queries), -1, queries.shape[3], options.top_k)
    slots = torch.cat([w.rows[:, :, s] for w, s in zip(windows, new)], dim=2) % memory.n_slots
    read_weights = torch.cat([w.weights[:, :, s] for w, s in zip(windows, new)], dim=2)
    return Solution(retrieved.flatten(0, 1), slots.reshape(shape), read_weights.reshape(shape), memory)


# ---------------------------------------------------------------------------------------------------------------------
# First pass: addresses, chunk after chunk, with plain autograd


@dataclass(frozen=True)
class _Window:
    """What a segment reads: rows (`memory * n_slots + slot`) and weights `[memories, batch, time, heads * top_k]`."""

    segment: Segment
    rows: Tensor
    weights: Tensor


@dataclass(frozen=True)
class _Addresses:
    """Of `n` tokens: the best `top_k` sub-scores of each half, and the best of their sums.

    scores, index `[memories, heads, 2, n, top_k]`; pairs `[memories, heads, n, top_k]`, a sum's place among the
    `top_k * top_k` (first half major); slots and weights `[memories, n, heads * top_k]`.
    """

    scores: Tensor
    index: Tensor
    pairs: Tensor
    slots: Tensor
    weights: Tensor


def _address_all(problem: Problem, queries: Tensor, kernels: Kernels) -> tuple[list[_Window], Tensor]:
    memory, options = problem.memory, problem.options
    keys, windows = memory.keys, []
    base = torch.arange(len(keys), device=keys.device)[:, None, None, None] * memory.n_slots
    for segment in problem.segments:
        window = queries[:, :, segment.start - problem.origin : segment.end - problem.origin]
        memories, batch, time, heads, d_k = window.shape
        halves = window.reshape(memories, batch * time, heads, 2, d_k // 2).permute(0, 2, 3, 1, 4)
        found = _address(halves, keys, options, kernels)
        rows = found.slots.unflatten(1, (batch, time)) + base
        windows.append(_Window(segment, rows, found.weights.unflatten(1, (batch, time))))
        if not segment.complete:
            continue
        if options.key_objective != "none":
            with torch.set_grad_enabled(torch.is_grad_enabled() and options.key_gradient == "exact"):
                gradient, memory = _key_step(problem, memory, keys, windows[-1], found, halves, kernels)
            keys = keys - options.learning_rate * gradient
    return windows, keys


def _key_step(
    problem: Problem,
    memory: Memory,
    keys: Tensor,
    window: _Window,
    found: _Addresses,
    halves: Tensor,
    kernels: Kernels,
) -> tuple[Tensor, Memory]:
    """The gradient of the chunk's key objective; the memory after the chunk, if the objective looks at values."""
    options, (_, batch, time, _) = problem.options, window.rows.shape
    push = torch.zeros_like(found.scores)
    if options.keys_follow_address_loss:
        accesses = window.segment.access_end - window.segment.start
        mask = _first(accesses, batch, time, keys.device)
        push = push + options.address_weight * _entropy_gradient(found, mask, accesses * batch, keys.shape[3])
    if options.keys_follow_memory_loss:
        error, values, memory = _rehearse(problem, memory, window, kernels)
        push = push + _recall_gradient(found, error, values, options)
    return _key_gradient(push, found, halves, keys, options), memory


def _address(halves: Tensor, keys: Tensor, options: FwpkmOptions, kernels: Kernels) -> _Addresses:
    """Address `halves [memories, heads, 2, n, d_k/2]` with `keys [memories, heads, 2, n_subkeys, d_k/2]`."""
    k, n_subkeys = options.top_k, keys.shape[3]
    best, index, total, pairs = kernels.address(halves, keys, k, options.score)
    slots = index[:, :, 0].gather(-1, pairs // k) * n_subkeys + index[:, :, 1].gather(-1, pairs % k)
    weights = _weigh((total / options.temperature).transpose(1, 2).flatten(2), options)
    return _Addresses(best, index, pairs, slots.transpose(1, 2).flatten(2), weights)


def _weigh(total: Tensor, options: FwpkmOptions) -> Tensor:
    """The weights of the slots by their scores over the temperature, `[memories, n, heads * top_k]`."""
    if options.nonlinearity == "softmax":
        return total.softmax(-1)
    return F.silu(total) if options.nonlinearity == "silu" else total.relu()


def _weigh_backward(slope: Tensor, found: _Addresses, options: FwpkmOptions) -> Tensor:
    """Carry a gradient with respect to the weights on to the scores over the temperature; differentiable."""
    if options.nonlinearity == "softmax":
        return found.weights * (slope - (found.weights * slope).sum(-1, keepdim=True))
    if options.nonlinearity == "relu":
        return slope * (found.weights > 0)
    first, second = found.scores.unbind(2)
    total = first.gather(-1, found.pairs // options.top_k) + second.gather(-1, found.pairs % options.top_k)
    total = total.transpose(1, 2).flatten(2) / options.temperature
    sigmoid = total.sigmoid()
    return slope * sigmoid * (1 + total * (1 - sigmoid))


def _first(count: int, batch: int, time: int, device: torch.device) -> Tensor:
    """Mask `[batch * time]` of the first `count` tokens of every row."""
    return (torch.arange(time, device=device) < count).repeat(batch)


def _entropy_gradient(found: _Addresses, accesses: Tensor, tokens: int, n_subkeys: int) -> Tensor:
    """The gradient of `-(H(P1) + H(P2))` over the masked `tokens` with respect to the sub-scores; differentiable."""
    memories, heads, _, _, k = found.scores.shape
    share = found.scores.softmax(-1) * accesses[:, None]
    count = max(1, tokens) * heads
    flat = (memories, 2, -1)
    use = share.new_zeros((memories, 2, n_subkeys))
    index = found.index.transpose(1, 2).reshape(flat)
    use = use.scatter_add(-1, index, share.transpose(1, 2).reshape(flat)) / count
    slope = torch.log(use + 1e-8) + use / (use + 1e-8)
    slope = slope.gather(-1, index).reshape(memories, 2, heads, -1, k).transpose(1, 2)
    return share * (slope - (share * slope).sum(-1, keepdim=True)) / count


def _recall_gradient(found: _Addresses, error: Tensor, values: Tensor, options: FwpkmOptions) -> Tensor:
    """The gradient of the mean memory loss with respect to the sub-scores; error and rows are constants.

    error `[memories, n, d_v]`: gated residuals, zero where no pair is written, over their number of entries;
    values `[memories, n, heads * top_k, d_v]`.
    """
    k = options.top_k
    slope = torch.einsum("mnjd,mnd->mnj", values, error)
    slope = _weigh_backward(slope, found, options) / options.temperature
    slope = slope.unflatten(-1, (-1, k)).transpose(1, 2)
    zero = torch.zeros_like(found.scores[:, :, 0])
    first, second = (zero.scatter_add(-1, place, slope) for place in (found.pairs // k, found.pairs % k))
    return torch.stack([first, second], dim=2)


def _key_gradient(push: Tensor, found: _Addresses, halves: Tensor, keys: Tensor, options: FwpkmOptions) -> Tensor:
    """Carry a gradient with respect to the sub-scores on to the keys."""
    if (
        options.score == "idw"
    ):  # d score / d key = 2 (q - key) / (1e-3 + ||q - key||^2), and the score has that distance
        push = 2 * push * found.scores.exp()
    n_subkeys = keys.shape[3]
    spread = push.new_zeros((*push.shape[:-1], n_subkeys)).scatter(-1, found.index, push)
    gradient = spread.transpose(-1, -2) @ halves
    if options.score == "idw":
        gradient = gradient - spread.sum(-2)[..., None] * keys
    return gradient


@torch.no_grad()
def _rehearse(problem: Problem, memory: Memory, window: _Window, kernels: Kernels) -> tuple[Tensor, Tensor, Memory]:
    """Run one chunk's values ahead of the second pass, for keys that follow the memory loss."""
    touched, ids = torch.unique(window.rows, return_inverse=True)
    plan = _plan(problem, [window], ids, len(touched), kernels)[0]
    table = memory.read(touched)
    values = table[ids]
    targets, gates = (t.values.unflatten(0, ids.shape[:2]) for t in problem.tokens[1:])
    read = plan.read(table, window.weights)
    error, gate = plan.error(read, targets), plan.gate(gates)
    plan.rewrite(table, error, plan.coefficients(window.weights, gate, problem.options), problem.options)
    residual = error * gate[..., None] / max(1, plan.pairs * error.shape[1] * error.shape[3])
    memory = memory.write(touched[plan.written], table[plan.written])
    return residual.flatten(1, 2), values.flatten(1, 2), memory


# ---------------------------------------------------------------------------------------------------------------------
# Second pass: values on the compact table


@dataclass(frozen=True)
class _Plan:
    """The integers of one segment's value pass, over `N = memories * batch * time` tokens of `J = heads * top_k` slots.

    window, output: the segment's place in the concatenated windows and among the new tokens; new: where in the window
    the new tokens begin. pairs: how many tokens of the window are written, against targets from `first_target` on.
    accesses: to rows of the compact table. share `[N, J]`: heads * top_k over the row's accesses.
    written: rows that the update touches.
    """

    window: slice
    output: slice
    new: int
    pairs: int
    first_gate: int
    first_target: int
    accesses: Accesses
    share: Tensor | None
    written: Tensor
    kernels: Kernels

    def read(self, table: Tensor, weights: Tensor) -> Tensor:
        """The weighted sums of rows, `[memories, batch, time, d_v]`."""
        ids = self.accesses.ids
        read = self.kernels.read(table, ids, weights.reshape(ids.shape))
        return read.reshape(*weights.shape[:3], -1)

    def error(self, read: Tensor, targets: Tensor) -> Tensor:
        """What was read minus its target, zero where no pair is written."""
        error = torch.zeros_like(read)
        target = targets[:, :, self.first_target : self.first_target + self.pairs]
        error[:, :, : self.pairs] = read[:, :, : self.pairs] - target
        return error

    def gate(self, gates: Tensor) -> Tensor:
        """The gates of the window `[memories, batch, time]`, zero where no pair is written."""
        gate = gates.new_zeros((*gates.shape[:2], self.window.stop - self.window.start))
        gate[:, :, : self.pairs] = gates[:, :, self.first_gate : self.first_gate + self.pairs]
        return gate

    def coefficients(self, weights: Tensor, gate: Tensor, options: FwpkmOptions) -> Tensor:
        """What every access subtracts from its row, per unit of error, `[N, J]`."""
        assert self.share is not None
        return options.learning_rate * self.share * (weights * gate[..., None]).reshape(self.accesses.ids.shape)

    def spread(self, x: Tensor, coefficients: Tensor) -> Tensor:
        """`sum over accesses of coefficients * x[token]` for each of `rows`, `[rows, d_v]`; no atomics."""
        ids = self.accesses.ids
        return self.kernels.spread(self.accesses, x.reshape(len(ids), -1), coefficients.reshape(ids.shape))

    def gather_dot(self, table: Tensor, x: Tensor) -> Tensor:
        """The inner product of each access's row with its token's `x`, `[N, J]`."""
        return self.kernels.gather_dot(table, self.accesses.ids, x.reshape(-1, x.shape[-1]))

    def update(self, table: Tensor, error: Tensor, coefficients: Tensor, sign: float = -1.0) -> None:
        """Apply the chunk's unclipped step to the table in place; `sign=1` undoes it."""
        ids = self.accesses.ids
        self.kernels.add(table, self.accesses, error.reshape(len(ids), -1), coefficients.reshape(ids.shape), sign)

    def step(self, table: Tensor, error: Tensor, coefficients: Tensor, options: FwpkmOptions, sign: float) -> None:
        """Apply the chunk's step, each row's no longer than the options allow, to the table in place."""
        if options.longest_step is None:
            self.update(table, error, coefficients, sign)
        else:
            step = self.spread(error, coefficients)
            table.index_add_(0, self.accesses.rows, step * _shortening(step, options.longest_step), alpha=sign)

    def step_backward(
        self, d_table: Tensor, error: Tensor, coefficients: Tensor, options: FwpkmOptions, scratch: Tensor | None
    ) -> Tensor:
        """The gradient with respect to the rows of minus the step before it was clipped, in a table (`scratch`)."""
        if options.longest_step is None or scratch is None:
            return d_table
        step = self.spread(error, coefficients)
        factor = _shortening(step, options.longest_step)
        direction = step * (factor / options.longest_step)  # of length 1 where the step was clipped
        d_step = d_table.index_select(0, self.accesses.rows)
        radial = direction * (d_step * direction).sum(-1, keepdim=True)
        d_step = factor * (d_step - radial * (factor < 1))
        return scratch.index_copy_(0, self.accesses.rows, d_step)

    def rewrite(self, table: Tensor, error: Tensor, coefficients: Tensor, options: FwpkmOptions) -> Tensor | None:
        """The whole rewrite in place. Returns the written rows before it if they decayed: `undo` needs them."""
        before = None
        if options.kept_share != 1:
            before = table.index_select(0, self.written)
            table.index_copy_(0, self.written, before * options.kept_share)
        self.step(table, error, coefficients, options, sign=-1.0)
        return before

    def undo(
        self, table: Tensor, error: Tensor, coefficients: Tensor, options: FwpkmOptions, before: Tensor | None
    ) -> None:
        """Bring the table in place back to what it was before `rewrite`."""
        if before is None:
            self.step(table, error, coefficients, options, sign=1.0)
        else:  # dividing by the decay, chunk after chunk, would magnify rounding
            table.index_copy_(0, self.written, before)


def _shortening(step: Tensor, longest: float) -> Tensor:
    """The factors `[rows, 1]` that make no row of `step [rows, d_v]` longer than `longest`; 1 for short ones."""
    return (longest / step.norm(dim=-1, keepdim=True)).clamp(max=1)  # exactly 1, or the backward takes them for clipped


def _plan(problem: Problem, windows: list[_Window], ids: Tensor, n_rows: int, kernels: Kernels) -> list[_Plan]:
    """Sort the accesses of every window; `ids [memories, batch, all windows' time, J]` number the compact rows."""
    plans, place, output = [], 0, 0
    for window in windows:
        segment, (memories, batch, time, slots) = window.segment, window.rows.shape
        mine = ids[:, :, place : place + time].reshape(-1, slots)
        touched = Accesses.of(mine)
        share, written = None, touched.rows[:0]
        if segment.complete:
            accesses = _first(segment.access_end - segment.start, memories * batch, time, ids.device)
            counted = torch.zeros(n_rows, dtype=problem.targets.dtype, device=ids.device)
            counted.index_add_(0, mine.flatten(), accesses.to(counted.dtype).repeat_interleave(slots))
            share = segment.scale * slots / counted.clamp(min=1)[mine]
            written = touched.rows[counted[touched.rows] > 0]
        new = segment.read - segment.start
        first = segment.start - problem.origin
        plans.append(
            _Plan(
                window=slice(place, place + time),
                output=slice(output, output + time - new),
                new=new,
                pairs=segment.pair_end - segment.start,
                first_gate=first,
                first_target=first + problem.options.lookahead,
                accesses=touched,
                share=share,
                written=written,
                kernels=kernels,
            )
        )
        place, output = place + time, output + time - new
    return plans


class _ValuePass(torch.autograd.Function):
    """Retrieved `[memories, batch, new tokens, d_v]` and the table after all chunks.

    table `[rows, d_v]`, updated in place, weights `[memories, batch, windows' time, J]`, targets and gates.
    """

    @staticmethod
    def forward(
        ctx: Any,
        table: Tensor,
        weights: Tensor,
        targets: Tensor,
        gates: Tensor,
        plans: list[_Plan],
        options: FwpkmOptions,
    ) -> tuple[Tensor, Tensor]:
        reads = weights.new_empty((*weights.shape[:3], table.shape[1]))
        befores: list[Tensor | None] = []
        for plan in plans:
            weight = weights[:, :, plan.window]
            read = reads[:, :, plan.window] = plan.read(table, weight)
            before = None
            if plan.share is not None:
                coefficients = plan.coefficients(weight, plan.gate(gates), options)
                before = plan.rewrite(table, plan.error(read, targets), coefficients, options)
            befores.append(before if any(ctx.needs_input_grad) else None)  # not kept longer than the chunk otherwise
        ctx.mark_dirty(table)
        ctx.save_for_backward(table, weights, targets, gates, reads, *befores)
        ctx.plans, ctx.options = plans, options
        retrieved = torch.cat([reads[:, :, p.window][:, :, p.new :] for p in plans], dim=2)
        return retrieved, table

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_retrieved: Tensor, d_table: Tensor) -> tuple[Tensor | None, ...]:
        table, weights, targets, gates, reads, *befores = ctx.saved_tensors
        table, d_table, options = table.clone(), d_table.clone(), ctx.options
        d_weights, d_targets, d_gates = torch.zeros_like(weights), torch.zeros_like(targets), torch.zeros_like(gates)
        scratch = torch.zeros_like(table) if options.longest_step is not None else None
        for plan, before in zip(reversed(ctx.plans), reversed(befores)):
            weight, read = weights[:, :, plan.window], reads[:, :, plan.window]
            d_weight = torch.zeros_like(weight)
            d_read = torch.zeros_like(read)
            d_read[:, :, plan.new :] = d_retrieved[:, :, plan.output]
            if plan.share is not None:
                gate, error = plan.gate(gates), plan.error(read, targets)
                coefficients = plan.coefficients(weight, gate, options)
                d_step = plan.step_backward(d_table, error, coefficients, options, scratch)
                d_error = -plan.read(d_step, coefficients.reshape(weight.shape))
                d_coefficients = -options.learning_rate * plan.share * plan.gather_dot(d_step, error)
                d_coefficients = d_coefficients.reshape(weight.shape)
                d_weight += d_coefficients * gate[..., None]
                d_gates[:, :, plan.first_gate : plan.first_gate + plan.pairs] += (d_coefficients * weight).sum(-1)[
                    :, :, : plan.pairs
                ]
                d_error = d_error[:, :, : plan.pairs]
                d_read[:, :, : plan.pairs] += d_error
                d_targets[:, :, plan.first_target : plan.first_target + plan.pairs] -= d_error
                plan.undo(table, error, coefficients, options, before)  # back to the table that this chunk read
                if options.kept_share != 1:
                    d_table.index_copy_(0, plan.written, d_table.index_select(0, plan.written) * options.kept_share)
            d_weight += plan.gather_dot(table, d_read).reshape(weight.shape)
            d_weights[:, :, plan.window] = d_weight
            plan.update(d_table, d_read, weight, sign=1.0)
        return d_table, d_weights, d_targets, d_gates, None, None
