"""The fast-weight MLP for a whole batch at once, its gradient step written out in matrix products.

The step needs only what the reading of the chunk has computed anyway, and autograd goes through it once for training.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from . import Problem, Solution, Weights


def run(problem: Problem) -> Solution:
    weights = problem.weights
    retrieved = [problem.targets[:, :0]]
    for segment in problem.segments:
        up, up_bias, gate, gate_bias, down, down_bias = weights
        first = segment.start - problem.origin
        queries = problem.queries[:, first : segment.end - problem.origin]
        linear = queries @ up.mT + up_bias[:, None]
        switch = queries @ gate.mT + gate_bias[:, None]
        hidden = linear * F.silu(switch)
        read = hidden @ down.mT + down_bias[:, None]
        retrieved.append(read[:, segment.read - segment.start :])
        pairs = segment.pair_end - segment.start
        if pairs == 0:
            continue
        target = first + problem.lookahead
        error = read[:, :pairs] - problem.targets[:, target : target + pairs]
        d_read = problem.gates[:, first : first + pairs, None] * error * (2 / (pairs * error.shape[2]))
        gradients = _gradients(
            d_read, queries[:, :pairs], linear[:, :pairs], switch[:, :pairs], hidden[:, :pairs], down
        )
        weights = tuple(w - problem.learning_rate * g for w, g in zip(weights, gradients))
    return Solution(torch.cat(retrieved, dim=1), weights)


def _gradients(
    d_read: Tensor, queries: Tensor, linear: Tensor, switch: Tensor, hidden: Tensor, down: Tensor
) -> Weights:
    """The gradients of all weights, given that of what was read, `[batch, n, d_v]`; differentiable."""
    d_hidden = d_read @ down
    sigmoid = switch.sigmoid()
    d_linear = d_hidden * switch * sigmoid
    d_switch = d_hidden * linear * sigmoid * (1 + switch * (1 - sigmoid))
    return (
        d_linear.mT @ queries,
        d_linear.sum(1),
        d_switch.mT @ queries,
        d_switch.sum(1),
        d_read.mT @ hidden,
        d_read.sum(1),
    )
