"""Test-time training in its dual form (arXiv 2407.04620, section 2.5): matrix products over a mini-batch of tokens.

Only the fast weights go from one mini-batch to the next. All whole mini-batches of a call are therefore worked on at
once, but for the steps of the fast weights themselves (`steps`): they leave every mini-batch's starting weights, with
which all tokens then read together. A call may begin and end inside a mini-batch; those tokens are read apart.

Everything is computed in float32 at least, also for inputs of 16 bits: the weights of a mini-batch are sums over all
tokens before it. On CUDA, `torch.backends.cuda.matmul.allow_tf32` decides about the precision of the products.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ..chunks import ends_chunk
from ..inner_model import GELU_TANH, Layers, Source, converted, moved, read, writes, zeros
from . import TTTState
from .reference import EPSILON, start
from .steps import steps

GROUP_BYTES = {"cpu": 2**23}
"""What the starting weights of mini-batches that are worked on together may take on a device, elsewhere 2^28: on a CPU
they had better fit its caches."""

Norm = tuple[Tensor, Tensor]
Inputs = tuple[Tensor, ...]
"""Queries, keys, values `[batch, time, heads, d_head]` and step sizes `[batch, time, heads]`."""

Whole = Callable[[Inputs, Norm, Tensor, Layers], tuple[Tensor, Layers]]


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
    whole: Whole | None = None,
) -> tuple[Tensor, TTTState]:
    """whole: what runs the whole mini-batches, in place of the function of this file: of inputs, LayerNorm's weight and
    bias `[heads, d_head]`, position scale and starting weights, all in any precision, to outputs and weights."""
    dtype = torch.promote_types(values.dtype, torch.float32)
    norm = norm_weight.to(dtype), norm_bias.to(dtype)
    scale = position_scale.to(dtype)
    if state is None:
        state = start(weights, len(values), dtype)
    state = TTTState(converted(state.weights, dtype), converted(state.gathered, dtype), state.position)
    if isinstance(state.position, Tensor):  # one token, which does not end its mini-batch: see `ends_chunk`
        return _open((queries, keys, values, step_sizes), norm, scale, state)
    size, time = len(scale), values.shape[1]
    opened = min(time, -state.position % size)
    closed = opened + (time - opened) // size * size
    outputs = []
    for first, last in ((0, opened), (opened, closed), (closed, time)):
        if first == last:
            continue
        inputs = tuple(x[:, first:last] for x in (queries, keys, values, step_sizes))
        if first == opened < closed:
            output, after = (whole or _mini_batches)(inputs, norm, scale, state.weights)
            state = TTTState(after, state.gathered, state.position + last - first)
        else:
            output, state = _open(inputs, norm, scale, state)
        outputs.append(output)
    return torch.cat(outputs, dim=1) if len(outputs) > 1 else outputs[0], state


# ---------------------------------------------------------------------------------------------------------------------
# Tokens of one mini-batch that is not whole


def _open(inputs: Inputs, norm: Norm, scale: Tensor, state: TTTState) -> tuple[Tensor, TTTState]:
    """Tokens of one mini-batch, from anywhere in it up to its end at most, and the state after them."""
    # [batch, heads, tokens, d_head]; LayerNorm's [heads, 1, d_head]
    q, k, v, step = (x.to(scale.dtype).transpose(1, 2) for x in inputs)
    weight, bias = (x.unsqueeze(1) for x in norm)
    factors = reading_factors(scale)
    any_gathered, of_gathered, of_own = _coefficients(factors, state.position, q.shape[2])

    def gradient(z: Tensor) -> Tensor:
        return step.unsqueeze(-1) * reconstruction_gradient(z, v - k, weight, bias)

    written = writes(state.weights, k, GELU_TANH, gradient)
    sources = [Source(state.weights)] + [Source(state.gathered, of_gathered)] * any_gathered
    z = read(q, sources, of_own, written, GELU_TANH)
    output = (q + normalised(z) * weight + bias).transpose(1, 2)
    position = state.position + q.shape[2]
    if not ends_chunk(position, len(scale)):
        gathered = moved((Source(state.gathered),), torch.ones_like(factors[:1, :1]), written)
        return output, TTTState(state.weights, gathered, position)
    sources = [Source(state.weights)] + [Source(state.gathered, factors[-1, :1])] * any_gathered
    fast = moved(sources, factors[-1, :1], written)
    return output, TTTState(fast, zeros(fast) if any_gathered else state.gathered, position)


def _coefficients(factors: Tensor, position: int | Tensor, time: int) -> tuple[bool, Tensor, Tensor]:
    """Whether anything may be gathered already, and what the tokens multiply that and their own gradients with."""
    if isinstance(position, Tensor):  # one token anywhere in the mini-batch; its row repeats one number
        own = factors.index_select(0, (position % len(factors)).unsqueeze(0))[:, :1]
        return True, own, own
    first = position % len(factors)
    last = first + time
    return first > 0, factors[first:last, :1], factors[first:last, first:last]


def reading_factors(scale: Tensor) -> Tensor:
    """`[i, j]`: what token i of a mini-batch multiplies the gradient of token j with."""
    return -scale.unsqueeze(-1).expand(-1, len(scale)).tril()


def normalised(z: Tensor) -> Tensor:
    """LayerNorm without weight and bias over the last dimension."""
    return F.layer_norm(z, z.shape[-1:], eps=EPSILON)


def reconstruction_gradient(z: Tensor, target: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Gradient at z of `1/2 ||LayerNorm(z) * weight + bias - target||^2`, in closed form and differentiable."""
    centred = z - z.mean(-1, keepdim=True)
    inverse = (centred.square().mean(-1, keepdim=True) + EPSILON).rsqrt()
    normal = centred * inverse
    outer = (normal * weight + bias - target) * weight
    centred = outer - outer.mean(-1, keepdim=True)
    return (centred - normal * (outer * normal).mean(-1, keepdim=True)) * inverse


# ---------------------------------------------------------------------------------------------------------------------
# Whole mini-batches


def _mini_batches(inputs: Inputs, norm: Norm, scale: Tensor, weights: Layers) -> tuple[Tensor, Layers]:
    """In groups of mini-batches. In training, a call of several groups keeps the weights at each group's start alone,
    and computes the group again in the backward pass."""
    batch, time, heads, _ = inputs[0].shape
    layers = [torch.cat(layer, dim=2).flatten(0, 1) for layer in weights]
    allowed = GROUP_BYTES.get(scale.device.type, 2**28)
    together = max(16, allowed // sum(w.numel() * w.element_size() for w in layers)) * len(scale)
    outputs = []
    for first in range(0, time, together):
        group = tuple(x[:, first : first + together] for x in inputs)
        if time > together and torch.is_grad_enabled():
            output, *layers = checkpoint(
                _group, *group, *norm, scale, *layers, use_reentrant=False, preserve_rng_state=False
            )
        else:
            output, *layers = _group(*group, *norm, scale, *layers)
        outputs.append(output)
    unfolded = (w.unflatten(0, (batch, heads)).split([w.shape[1] - 1, 1], dim=2) for w in layers)
    after = tuple(tuple(w.clone() for w in layer) for layer in unfolded)
    return torch.cat(outputs, dim=1) if len(outputs) > 1 else outputs[0], after


def _group(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    step_sizes: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    scale: Tensor,
    *layers: Tensor,
) -> tuple[Tensor, ...]:
    """Output `[batch, time, heads, d_head]`, and each layer's folded weights `[models, d_in + 1, d_out]` after it."""
    batch, heads, size = len(queries), queries.shape[2], len(scale)

    def split(x: Tensor) -> Tensor:
        """`[batch, time, heads, features]` to `[mini-batches, models, tokens, features]`."""
        return x.to(scale.dtype).unflatten(1, (-1, size)).permute(1, 0, 3, 2, 4).flatten(1, 2)

    q, k, v, step = (split(x) for x in (queries, keys, values, step_sizes.unsqueeze(-1)))
    weight, bias = (x.repeat(batch, 1).unsqueeze(1) for x in (norm_weight, norm_bias))
    stepped = step * weight
    offset = stepped * (bias - (v - k))
    done = steps(layers, _folded(k), stepped * weight, offset, -scale[-1])
    z, factors = q, reading_factors(scale)
    for i, (begun, learned, gradients) in enumerate(zip(done.starts, done.inputs, done.gradients)):
        x = _folded(GELU_TANH.function(z) if i else z)
        z = x @ begun + (factors * (x @ learned.mT)) @ gradients
    output = q + normalised(z) * weight + bias
    output = output.unflatten(1, (batch, heads)).permute(1, 0, 3, 2, 4).flatten(1, 2)
    return output, *done.last


def _folded(x: Tensor) -> Tensor:
    return F.pad(x, (0, 1), value=1.0)
