"""Test-time training in its dual form (arXiv 2407.04620, section 2.5): matrix products over a mini-batch of tokens.

Only the fast weights go from one mini-batch to the next. A call may begin and end inside a mini-batch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..chunks import ends_chunk, until_edge
from ..inner_model import GELU_TANH, Layers, Source, converted, moved, read, writes, zeros
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
    if state is None:
        state = start(weights, len(values), dtype)
    state = TTTState(converted(state.weights, dtype), converted(state.gathered, dtype), state.position)
    outputs, first, time = [], 0, q.shape[2]
    while first < time:
        last = min(time, first + until_edge(state.position, len(scale)))
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
    written = writes(state.weights, k, GELU_TANH, lambda z: step * reconstruction_gradient(z, target, *norm))
    first, of_gathered, of_own = _coefficients(steps, state.position, q.shape[2])
    sources = [Source(state.weights)] + [Source(state.gathered, of_gathered)] * first
    z = read(q, sources, of_own, written, GELU_TANH)
    position = state.position + q.shape[2]
    if not ends_chunk(position, len(steps)):
        gathered = moved((Source(state.gathered),), torch.ones_like(steps[:1, :1]), written)
        return z, TTTState(state.weights, gathered, position)
    sources = [Source(state.weights)] + [Source(state.gathered, steps[-1, :1])] * (first > 0)
    fast = moved(sources, steps[-1, :1], written)
    return z, TTTState(fast, zeros(fast) if first else state.gathered, position)


def _coefficients(steps: Tensor, position: int | Tensor, time: int) -> tuple[bool, Tensor, Tensor]:
    """Whether anything may be gathered already, and what the tokens multiply that and their own gradients with."""
    if isinstance(position, Tensor):  # one token anywhere in the mini-batch; its row repeats one number
        own = steps.index_select(0, (position % len(steps)).unsqueeze(0))[:, :1]
        return True, own, own
    first = position % len(steps)
    last = first + time
    return first > 0, steps[first:last, :1], steps[first:last, first:last]


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
