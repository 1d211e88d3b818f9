"""Test-time training in its dual form (arXiv 2407.04620, section 2.5): matrix products over a mini-batch of tokens.

Only the fast weights go from one mini-batch to the next. A call may begin and end inside a mini-batch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..inner_model import GELU_TANH, Layers, Source, moved, read, writes, zeros
from . import TTTState
from .reference import EPSILON, start


def ttt(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    step_sizes: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    weights: Layers,
    position_scale: Tensor,
    state: TTTState | None,
) -> tuple[Tensor, TTTState]:
    dtype = torch.promote_types(values.dtype, torch.float32)
    # [batch, heads, time, d_head]; weight and bias [heads, 1, d_head]
    q, k, v = (x.to(dtype).transpose(1, 2) for x in (queries, keys, values))
    inputs = (q, k, v - k, step_sizes.to(dtype).transpose(1, 2).unsqueeze(-1))
    norm = norm_weight.to(dtype).unsqueeze(1), norm_bias.to(dtype).unsqueeze(1)
    scale = -position_scale.to(dtype)
    steps = scale.unsqueeze(-1).expand(-1, len(scale)).tril()
    state = start(weights, len(values), dtype) if state is None else state.map_tensors(lambda x: x.to(dtype))
    outputs, first, time = [], 0, q.shape[2]
    while first < time:
        last = min(time, first + len(scale) - state.position % len(scale))
        z, state = _piece(tuple(x[:, :, first:last] for x in inputs), norm, steps, state)
        outputs.append(z)
        first = last
    output = q + normalise(torch.cat(outputs, dim=2))[0] * norm[0] + norm[1]
    return output.transpose(1, 2), state


def _piece(
    inputs: tuple[Tensor, ...], norm: tuple[Tensor, Tensor], steps: Tensor, state: TTTState
) -> tuple[Tensor, TTTState]:
    """Tokens of one mini-batch, from anywhere in it up to its end at most: z of their queries, and the state after.

    steps `[i, j]`, for the whole mini-batch: what token i multiplies the gradient of token j with.
    """
    q, k, target, step = inputs
    first = state.position % len(steps)
    last = first + q.shape[2]
    written = writes(state.weights, k, GELU_TANH, lambda z: step * reconstruction_gradient(z, target, *norm))
    sources = [Source(state.weights)] + [Source(state.gathered, steps[first:last, :1])] * (first > 0)
    z = read(q, sources, steps[first:last, first:last], written, GELU_TANH)
    position = state.position + q.shape[2]
    if last < len(steps):
        gathered = moved((Source(state.gathered),), torch.ones_like(steps[:1, :1]), written)
        return z, TTTState(state.weights, gathered, position)
    sources = [Source(state.weights)] + [Source(state.gathered, steps[-1, :1])] * (first > 0)
    fast = moved(sources, steps[-1, :1], written)
    return z, TTTState(fast, zeros(fast) if first else state.gathered, position)


def normalise(z: Tensor) -> tuple[Tensor, Tensor]:
    """LayerNorm without weight and bias over the last dimension; also returns 1 / standard deviation."""
    centred = z - z.mean(-1, keepdim=True)
    inverse = (centred.square().mean(-1, keepdim=True) + EPSILON).rsqrt()
    return centred * inverse, inverse


def reconstruction_gradient(z: Tensor, target: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Gradient at z of `1/2 ||LayerNorm(z) * weight + bias - target||^2`, in closed form and differentiable."""
    normal, inverse = normalise(z)
    outer = (normal * weight + bias - target) * weight
    centred = outer - outer.mean(-1, keepdim=True)
    return (centred - normal * (outer * normal).mean(-1, keepdim=True)) * inverse
