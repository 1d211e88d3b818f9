"""The values of FwPKM on a compact table, updated in place.

The backward is written by hand: it walks the chunks in reverse and undoes each update, so that no copy of the table is
kept for a chunk.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..chunks import Segment
from .primitives import Accesses, Kernels
from .problem import FwpkmOptions, Problem


@dataclass(frozen=True)
class Plan:
    """The integers of one segment's value pass, over `N = memories * batch * time` tokens of `J = heads * top_k` slots.

    window, output: the segment's place in the concatenated windows and among the new tokens; new: where in the window
    the new tokens begin. pairs: how many tokens of the window are written, against targets from `first_target` on.
    accesses: to rows of the compact table. share `[N, J]`: heads * top_k over the row's accesses.
    counts: how many of those count, for each of the rows; None, like share, if nothing is written.
    """

    window: slice
    output: slice
    new: int
    pairs: int
    first_gate: int
    first_target: int
    accesses: Accesses
    share: Tensor | None
    counts: Tensor | None
    kernels: Kernels

    @functools.cached_property
    def written(self) -> Tensor:
        """The rows that the update touches."""
        return self.accesses.ids.new_empty(0) if self.counts is None else self.accesses.rows[self.counts > 0]

    def read(self, table: Tensor, weights: Tensor) -> Tensor:
        """The weighted sums of rows, `[memories, batch, time, d_v]`."""
        ids = self.accesses.ids
        read = self.kernels.read(table, ids, weights.reshape(ids.shape))
        return read.reshape(*weights.shape[:3], -1)

    def error(self, read: Tensor, targets: Tensor) -> Tensor:
        """What was read minus its target, zero where no pair is written."""
        target = targets[:, :, self.first_target : self.first_target + self.pairs]
        return F.pad(read[:, :, : self.pairs] - target, (0, 0, 0, read.shape[2] - self.pairs))

    def gate(self, gates: Tensor) -> Tensor:
        """The gates of the window `[memories, batch, time]`, zero where no pair is written."""
        time = self.window.stop - self.window.start
        return F.pad(gates[:, :, self.first_gate : self.first_gate + self.pairs], (0, time - self.pairs))

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
            table.index_add_(0, self.accesses.rows, step * (sign * _shortening(step, options.longest_step)))

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


def plan_values(problem: Problem, segments: list[Segment], ids: Tensor, kernels: Kernels) -> list[Plan]:
    """Plan every segment; `ids [memories, batch, all windows' time, J]` number the compact table's rows."""
    plans, place, output = [], 0, 0
    memories, batch, _, slots = ids.shape
    for segment in segments:
        time, new = segment.end - segment.start, segment.read - segment.start
        accesses = Accesses(ids[:, :, place : place + time].reshape(-1, slots))
        share = counts = None
        if segment.complete:
            counted = torch.arange(time, device=ids.device) < segment.access_end - segment.start
            counts, by_access = accesses.count(counted.repeat(memories * batch))
            share = segment.scale * slots / by_access.clamp(min=1).to(problem.targets.dtype)
        first = segment.start - problem.origin
        plans.append(
            Plan(
                window=slice(place, place + time),
                output=slice(output, output + time - new),
                new=new,
                pairs=segment.pair_end - segment.start,
                first_gate=first,
                first_target=first + problem.options.lookahead,
                accesses=accesses,
                share=share,
                counts=counts,
                kernels=kernels,
            )
        )
        place, output = place + time, output + time - new
    return plans


class ValuePass(torch.autograd.Function):
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
        plans: list[Plan],
        options: FwpkmOptions,
    ) -> tuple[Tensor, Tensor]:
        new_tokens = plans[-1].output.stop
        retrieved = weights.new_empty((*weights.shape[:2], new_tokens, table.shape[1]))
        carried: list[Tensor] = []
        befores: list[Tensor | None] = []
        for plan in plans:
            weight = weights[:, :, plan.window]
            read = plan.read(table, weight)
            carried.append(read[:, :, : plan.new].clone())
            retrieved[:, :, plan.output] = read[:, :, plan.new :]
            before = None
            if plan.share is not None:
                coefficients = plan.coefficients(weight, plan.gate(gates), options)
                before = plan.rewrite(table, plan.error(read, targets), coefficients, options)
            befores.append(before if any(ctx.needs_input_grad) else None)  # not kept longer than the chunk otherwise
        ctx.mark_dirty(table)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(table, weights, targets, gates, retrieved, *carried, *befores)
        ctx.plans, ctx.options = plans, options
        return retrieved, table

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_retrieved: Tensor | None, d_table: Tensor | None) -> tuple[Tensor | None, ...]:
        table, weights, targets, gates, retrieved, *rest = ctx.saved_tensors
        plans, options = ctx.plans, ctx.options
        carried, befores = rest[: len(plans)], rest[len(plans) :]
        table = table.clone()  # to be taken back to where it began; a retained graph needs it once more
        d_table = torch.zeros_like(table) if d_table is None else d_table.clone()
        d_weights, d_targets, d_gates = torch.empty_like(weights), torch.zeros_like(targets), torch.zeros_like(gates)
        scratch = torch.zeros_like(table) if options.longest_step is not None else None
        for plan, early, before in zip(reversed(plans), reversed(carried), reversed(befores)):
            weight = weights[:, :, plan.window]
            if d_retrieved is None:
                d_read = weights.new_zeros((*weight.shape[:3], table.shape[1]))
            else:
                d_read = F.pad(d_retrieved[:, :, plan.output], (0, 0, plan.new, 0))
            d_weight: Tensor | float = 0.0
            if plan.share is not None:
                gate = plan.gate(gates)
                error = plan.error(torch.cat([early, retrieved[:, :, plan.output]], dim=2), targets)
                coefficients = plan.coefficients(weight, gate, options)
                d_step = plan.step_backward(d_table, error, coefficients, options, scratch)
                d_error = plan.read(d_step, coefficients.reshape(weight.shape))[:, :, : plan.pairs]  # negative
                d_read[:, :, : plan.pairs] -= d_error
                d_targets[:, :, plan.first_target : plan.first_target + plan.pairs] += d_error
                d_coefficients = -options.learning_rate * plan.share * plan.gather_dot(d_step, error)
                d_coefficients = d_coefficients.reshape(weight.shape)
                d_gate = (d_coefficients * weight).sum(-1)[:, :, : plan.pairs]
                d_gates[:, :, plan.first_gate : plan.first_gate + plan.pairs] += d_gate
                d_weight = d_coefficients * gate[..., None]
                plan.undo(table, error, coefficients, options, before)  # back to the table that this chunk read
                if options.kept_share != 1:
                    d_table.index_copy_(0, plan.written, d_table.index_select(0, plan.written) * options.kept_share)
            d_weights[:, :, plan.window] = d_weight + plan.gather_dot(table, d_read).reshape(weight.shape)
            plan.update(d_table, d_read, weight, sign=1.0)
        return d_table, d_weights, d_targets, d_gates, None, None
