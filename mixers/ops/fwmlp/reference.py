"""The definition of the fast-weight MLP: one sequence after the other, the step by autograd. Correct, never fast."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ..dispatch import wants_gradient
from . import Problem, Solution, Weights


def run(problem: Problem) -> Solution:
    tensors = (problem.queries, problem.targets, problem.gates, *problem.weights)
    wanted = wants_gradient(*tensors)
    batch = len(problem.queries)
    shared = len(problem.weights[0]) == 1
    results = []
    with torch.enable_grad():
        for b in range(batch):
            results.append(_run_sequence(problem, b, tuple(w[0 if shared else b] for w in problem.weights), wanted))
    retrieved = torch.stack([read for read, _ in results])
    weights = tuple(torch.stack(parts) for parts in zip(*(fast for _, fast in results)))
    if not wanted:
        retrieved, weights = retrieved.detach(), tuple(w.detach() for w in weights)
    return Solution(retrieved, weights)


def _run_sequence(problem: Problem, b: int, weights: Weights, wanted: bool) -> tuple[Tensor, Weights]:
    retrieved = [problem.targets[b, :0]]
    for segment in problem.segments:
        if not wanted:
            weights = tuple(w.detach() for w in weights)
        weights = tuple(w if w.requires_grad else w.clone().requires_grad_() for w in weights)
        first = segment.start - problem.origin
        read = mlp(problem.queries[b, first : segment.end - problem.origin], weights)
        retrieved.append(read[segment.read - segment.start :])
        pairs = segment.pair_end - segment.start
        if pairs == 0:
            continue
        target = first + problem.lookahead
        error = read[:pairs] - problem.targets[b, target : target + pairs]
        loss = (problem.gates[b, first : first + pairs, None] * error.square()).mean()
        gradients = torch.autograd.grad(loss, weights, create_graph=wanted)
        weights = tuple(w - problem.learning_rate * g for w, g in zip(weights, gradients))
    return torch.cat(retrieved), weights


def mlp(queries: Tensor, weights: Weights) -> Tensor:
    """The memory itself: `queries [n, d_k]` -> `[n, d_v]`."""
    up, up_bias, gate, gate_bias, down, down_bias = weights
    return F.linear(F.linear(queries, up, up_bias) * F.silu(F.linear(queries, gate, gate_bias)), down, down_bias)
