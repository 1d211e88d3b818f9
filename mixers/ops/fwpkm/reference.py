"""The definition of FwPKM: dense tables, and autograd over all of them once a chunk. Correct in float64, never fast."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ..dispatch import wants_gradient
from .problem import FwpkmOptions, Memory, Problem, Solution


def run(problem: Problem) -> Solution:
    """Solve each memory on its own: the rows of the batch that share it, and its part of the written rows."""
    inputs = (problem.queries, problem.targets, problem.gates, problem.memory.keys, problem.memory.initial)
    tensors = (*inputs, *(rows for _, rows in problem.memory.log))
    wanted = wants_gradient(*tensors)
    memories, n_slots = len(problem.memory.keys), problem.memory.n_slots
    rows_per_memory = len(problem.queries) // memories
    parts, keys, slots, rows = [], [], [], []
    with torch.enable_grad():
        for m in range(memories):
            table, written = _dense_table(problem.memory, m)
            batch_rows = slice(m * rows_per_memory, (m + 1) * rows_per_memory)
            outputs, k, table, written = _run_memory(
                problem, batch_rows, problem.memory.keys[m], table, written, wanted
            )
            parts.append(outputs)
            keys.append(k)
            slots.append(written.nonzero()[:, 0] + m * n_slots)
            rows.append(table[written])
    retrieved, read_slots, weights = (torch.cat(p) for p in zip(*parts))
    new_keys, new_rows, new_slots = torch.stack(keys), torch.cat(rows), torch.cat(slots)
    if not wanted:
        retrieved, weights, new_keys, new_rows = (t.detach() for t in (retrieved, weights, new_keys, new_rows))
    memory = problem.memory
    if any(s.complete for s in problem.segments):
        memory = replace(memory, keys=new_keys, log=((new_slots, new_rows),) if len(new_slots) else ())
    return Solution(retrieved, read_slots, weights, memory)


def _dense_table(memory: Memory, m: int) -> tuple[Tensor, Tensor]:
    """Memory `m` as a whole table `[n_slots, d_v]`, and which of its rows were written."""
    slots, rows = memory.merged()
    mine = slots // memory.n_slots == m
    slots = slots[mine] % memory.n_slots
    table = memory.initial.to(memory.keys.dtype).index_put((slots,), rows[mine])
    written = torch.zeros(memory.n_slots, dtype=torch.bool, device=slots.device)
    return table, written.index_fill(0, slots, True)


def _run_memory(
    problem: Problem, batch_rows: slice, keys: Tensor, table: Tensor, written: Tensor, wanted: bool
) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor, Tensor, Tensor]:
    options, lookahead = problem.options, problem.options.lookahead
    queries, targets, gates = (t.values[batch_rows] for t in problem.tokens)
    heads = queries.shape[2]
    batch = queries.shape[0]
    retrieved, slots, weights = [], [], []
    for segment in problem.segments:
        if not wanted:
            keys, table = keys.detach(), table.detach()
        keys, table = (t if t.requires_grad else t.detach().requires_grad_() for t in (keys, table))
        window = slice(segment.start - problem.origin, segment.end - problem.origin)
        scores, slot, weight = address(queries[:, window], keys, options)
        read = (weight[..., None] * table[slot]).sum((2, 3))
        new = segment.read - segment.start
        outputs = read[:, new:], weight[:, new:]
        retrieved.append(outputs[0] if wanted else outputs[0].detach())  # or it would keep the chunk's tables alive
        slots.append(slot[:, new:])
        weights.append(outputs[1] if wanted else outputs[1].detach())
        if not segment.complete:
            continue
        pairs, accesses = segment.pair_end - segment.start, segment.access_end - segment.start
        first = window.start
        error = read[:, :pairs] - targets[:, first + lookahead : first + lookahead + pairs]
        loss = 0.5 * (gates[:, first : first + pairs, None] * error**2).sum()
        gradient = torch.autograd.grad(loss, table, create_graph=True)[0]
        counts = torch.bincount(slot[:, :accesses].flatten(), minlength=len(table))
        touched = (counts > 0)[:, None]
        scale = segment.scale * heads * options.top_k / counts.clamp(min=1).to(table.dtype)
        new_table = _step_values(table, scale[:, None] * gradient, touched, options)
        # the released code lets no gradient through the residual and the rows of this loss, only through the addresses
        recall = (weight[:, :pairs, ..., None] * table.detach()[slot[:, :pairs]]).sum((2, 3))
        recall_loss = (gates[:, first : first + pairs, None] * error).detach() * recall
        keys = _step_keys(keys, scores[:, :accesses], recall_loss, options)
        table, written = new_table, written | touched[:, 0]
    if not retrieved:
        empty = queries.new_empty((batch, 0, heads, options.top_k))
        return (queries.new_empty((batch, 0, table.shape[1])), empty.long(), empty), keys, table, written
    return (torch.cat(retrieved, 1), torch.cat(slots, 1), torch.cat(weights, 1)), keys, table, written


def address(queries: Tensor, keys: Tensor, options: FwpkmOptions) -> tuple[Tensor, Tensor, Tensor]:
    """Scores `[batch, n, heads, 2, n_subkeys]`, and slots and weights `[batch, n, heads, top_k]` of the best sums."""
    batch, n, heads, d_k = queries.shape
    n_subkeys, k = keys.shape[2], options.top_k
    halves = queries.reshape(batch, n, heads, 2, d_k // 2)
    scores = torch.einsum("bnhcd,hcsd->bnhcs", halves, keys)
    if options.score == "idw":
        distance = (halves**2).sum(-1, keepdim=True) + (keys**2).sum(-1) - 2 * scores
        scores = -torch.log(1e-3 + distance.clamp(min=0))
    best, index = scores.topk(k, dim=-1)
    sums = best[..., 0, :, None] + best[..., 1, None, :]
    total, flat = sums.flatten(-2).topk(k, dim=-1)
    slots = index[..., 0, :].gather(-1, flat // k) * n_subkeys + index[..., 1, :].gather(-1, flat % k)
    total = (total / options.temperature).flatten(-2)
    if options.nonlinearity == "softmax":
        weights = total.softmax(-1)
    else:
        weights = F.silu(total) if options.nonlinearity == "silu" else total.relu()
    return scores, slots, weights.unflatten(-1, (heads, k))


def codebook_use(scores: Tensor, top_k: int) -> Tensor:
    """How much each codebook's sub-keys are used on average, `[2, n_subkeys]`: a softmax over the best `top_k` each."""
    best, index = scores.topk(top_k, dim=-1)
    return torch.zeros_like(scores).scatter(-1, index, best.softmax(-1)).mean((0, 1, 2))


def _step_values(table: Tensor, gradient: Tensor, touched: Tensor, options: FwpkmOptions) -> Tensor:
    """One step against `gradient [n_slots, d_v]`, its rows clipped, after decay of the rows `touched [n_slots, 1]`."""
    if options.clip is not None:  # the largest factor is 1; a clamped norm is never zero, nor is its gradient NaN
        gradient = gradient * (options.clip / gradient.norm(dim=-1, keepdim=True).clamp(min=options.clip))
    decay = options.learning_rate * options.weight_decay * touched.to(table.dtype)
    return table * (1 - decay) - options.learning_rate * gradient


def _step_keys(keys: Tensor, scores: Tensor, recall_loss: Tensor, options: FwpkmOptions) -> Tensor:
    """One gradient step: `recall_loss` has the gradient of the memory loss, codebook use that of the entropies."""
    loss = keys.new_zeros(())
    if options.keys_follow_address_loss and scores.numel():
        use = codebook_use(scores, options.top_k)
        loss = loss + options.address_weight * (use * torch.log(use + 1e-8)).sum()
    if options.keys_follow_memory_loss and recall_loss.numel():
        loss = loss + recall_loss.mean()
    if not loss.requires_grad:
        return keys
    exact = options.key_gradient == "exact"
    (gradient,) = torch.autograd.grad(loss, keys, create_graph=exact, retain_graph=True)
    return keys - options.learning_rate * gradient
