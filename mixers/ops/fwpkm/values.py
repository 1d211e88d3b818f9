"""The values of FwPKM on a compact table, updated in place.

The backward is written by hand: it walks the chunks in reverse and undoes each update, so that no copy of the table is
kept for a chunk. What does not depend on the table is worked out before, for all chunks at once.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .plan import Plan
from .primitives import Accesses, Kernels, Rows, recalled_errors
from .problem import FwpkmOptions


def coefficients_of(plan: Plan, weights: Tensor, gates: Tensor, options: FwpkmOptions) -> Tensor:
    """What every access adds to its row per unit of error, `[T, J]`, zero where no pair is written; differentiable.

    weights `[T, J]`; gates `[rows, n]`.
    """
    return weights * plan.layout.gates(gates)[:, None] * (-options.learning_rate * plan.share)


class ValuePass(torch.autograd.Function):
    """Retrieved `[rows, new tokens, d_v]` and the table after all chunks.

    table `[U, d_v]`, updated in place, weights and coefficients `[T, J]`, targets `[rows, n, d_v]`.
    """

    @staticmethod
    def forward(
        ctx: Any,
        table: Tensor,
        weights: Tensor,
        coefficients: Tensor,
        targets: Tensor,
        plan: Plan,
        options: FwpkmOptions,
        kernels: Kernels,
    ) -> tuple[Tensor, Tensor]:
        wanted, windows, d_v = any(ctx.needs_input_grad), plan.layout.windows, table.shape[1]
        n_rows, n_new, n_early = windows[-1].rows, windows[-1].output.stop, windows[-1].early.stop
        early = table.new_empty((n_rows, n_early, d_v)) if wanted else None
        rows, befores = Rows(table.new_empty((n_rows, n_new, d_v)), early, targets), []
        steps = zip(windows, plan.accesses, plan.counts, plan.split(weights), plan.sort(coefficients))
        for window, accesses, counts, weight, step in steps:
            error = kernels.recall(table, accesses, weight, window, rows)
            if window.rewrites and options.plain_step:
                kernels.add(table, accesses, error, step)
            elif window.rewrites:
                before = rewrite(table, accesses, counts, kernels.spread(accesses, error, step), options)
                befores.append(before if wanted else None)  # not kept longer than the chunk otherwise
        ctx.mark_dirty(table)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(table, weights, coefficients, targets, rows.retrieved, early, *befores)
        ctx.plan, ctx.options, ctx.kernels = plan, options, kernels
        return rows.retrieved, table

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_retrieved: Tensor | None, d_table: Tensor | None) -> tuple[Tensor | None, ...]:
        table, weights, coefficients, targets, retrieved, early, *befores = ctx.saved_tensors
        plan, options, kernels = ctx.plan, ctx.options, ctx.kernels
        rows = Rows(retrieved, early, targets)
        table = table.clone()  # to be taken back to where it began; a retained graph needs it once more
        d_table = torch.zeros_like(table) if d_table is None else d_table.clone()
        d_retrieved = torch.zeros_like(retrieved) if d_retrieved is None else d_retrieved.contiguous()
        d_targets = torch.zeros_like(targets)
        scratch = None if options.longest_step is None else torch.zeros_like(table)
        # written piece by piece: many small tensors that stay would keep the heap of a CPU from giving anything back
        d_weights, d_coefficients = torch.empty_like(weights), torch.zeros_like(coefficients)
        steps = zip(
            plan.layout.windows,
            plan.accesses,
            plan.counts,
            plan.split(coefficients),
            plan.sort(coefficients if not options.plain_step else -coefficients),
            plan.sort(weights),
            plan.split(d_weights),
            plan.split(d_coefficients),
        )
        for window, accesses, counts, coefficient, step, weight, d_weight, d_coefficient in reversed([*steps]):
            if not window.rewrites:
                d_read = d_retrieved[:, window.output].reshape(len(accesses.ids), -1)
                kernels.add(d_table, accesses, d_read, weight)
            elif options.plain_step:
                error, d_read, found = kernels.recall_backward(
                    d_table, accesses, coefficient, window, rows, d_retrieved, d_targets
                )
                d_coefficient.copy_(found)
                kernels.add_both(table, d_table, accesses, (error, step), (d_read, weight))
            else:
                step = kernels.spread(accesses, recalled_errors(window, rows), step)
                d_step = _step_backward(d_table, accesses, step, options, scratch)
                _, d_read, found = kernels.recall_backward(
                    d_step, accesses, coefficient, window, rows, d_retrieved, d_targets
                )
                d_coefficient.copy_(found)
                _undo(table, accesses, step, options, befores.pop())
                _decay(d_table, accesses, counts, options)
                kernels.add(d_table, accesses, d_read, weight)
            d_weight.copy_(kernels.gather_dot(table, accesses, d_read))
        return d_table, d_weights, d_coefficients, d_targets, None, None, None


# ---------------------------------------------------------------------------------------------------------------------
# Steps of rows that are clipped, or decay first


def _shortening(step: Tensor, longest: float) -> Tensor:
    """The factors `[R, 1]` that make no row of `step [R, d_v]` longer than `longest`; 1 for short ones."""
    return (longest / step.norm(dim=-1, keepdim=True)).clamp(max=1)  # exactly 1, or the backward takes them for clipped


def _kept(counts: Tensor, options: FwpkmOptions, like: Tensor) -> Tensor:
    """What decay leaves of each row, `[R, 1]`: of those whose accesses count."""
    return torch.ones_like(like[:, :1]).masked_fill(counts[:, None] > 0, options.kept_share)


def rewrite(table: Tensor, accesses: Accesses, counts: Tensor, step: Tensor, options: FwpkmOptions) -> Tensor | None:
    """Add a window's `step [R, d_v]` to the table. Returns the rows before it if they decayed: `_undo` needs them."""
    if options.longest_step is not None:
        step = step * _shortening(step, options.longest_step)
    if options.kept_share == 1:
        table.index_add_(0, accesses.rows, step)
        return None
    before = table.index_select(0, accesses.rows)
    table.index_copy_(0, accesses.rows, before * _kept(counts, options, step) + step)
    return before


def _undo(table: Tensor, accesses: Accesses, step: Tensor, options: FwpkmOptions, before: Tensor | None) -> None:
    """Bring the table back to what it was before `rewrite`."""
    if before is not None:  # dividing by the decay, chunk after chunk, would magnify rounding
        table.index_copy_(0, accesses.rows, before)
        return
    if options.longest_step is not None:
        step = step * _shortening(step, options.longest_step)
    table.index_add_(0, accesses.rows, -step)


def _step_backward(
    d_table: Tensor, accesses: Accesses, step: Tensor, options: FwpkmOptions, scratch: Tensor | None
) -> Tensor:
    """The gradient with respect to the rows' `step [R, d_v]` before it was clipped, in a table (`scratch`)."""
    if options.longest_step is None or scratch is None:
        return d_table
    factor = _shortening(step, options.longest_step)
    direction = step * (factor / options.longest_step)  # of length 1 where the step was clipped
    d_step = d_table.index_select(0, accesses.rows)
    radial = direction * (d_step * direction).sum(-1, keepdim=True)
    return scratch.index_copy_(0, accesses.rows, factor * (d_step - radial * (factor < 1)))


def _decay(d_table: Tensor, accesses: Accesses, counts: Tensor, options: FwpkmOptions) -> None:
    if options.kept_share != 1:
        d_rows = d_table.index_select(0, accesses.rows)
        d_table.index_copy_(0, accesses.rows, d_rows * _kept(counts, options, d_rows))
