"""The inner model's steps over many mini-batches: the one part of test-time training that must go one after the other.

Biases are folded into the weights: a layer is `[d_in + 1, d_out]`, and its inputs end with a 1. With a mini-batch's
starting weights W, its keys k and C tokens,

    z = k W,    w = step_size * gradient at z,    W' = W + scale * k^T w

and backwards, with D the gradient at W', H what a change of z does to w (a symmetric matrix for each token, since w is
itself a gradient), and what the outputs W and w are given from outside,

    dw = scale * k D + given,    dz = H dw,    gradient at W = D + k^T dz + given

H is diagonal plus four outer products, so that a loop forward costs five calls for each mini-batch of a linear model,
and a loop backward six; all else is done for all mini-batches at once. A model of more layers has them in between.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, autocast
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from ..inner_model import gelu_tanh_curvature
from .reference import EPSILON

aten = torch.ops.aten


class Steps(NamedTuple):
    """Of N mini-batches of C tokens, for M inner models, for each layer:

    starts `[N, M, d_in + 1, d_out]`, the weights each mini-batch begins with; last `[M, d_in + 1, d_out]`, those after
    all of them; inputs `[N, M, C, d_in + 1]` and gradients `[N, M, C, d_out]`, times the step sizes.
    """

    starts: tuple[Tensor, ...]
    last: tuple[Tensor, ...]
    inputs: tuple[Tensor, ...]
    gradients: tuple[Tensor, ...]


def steps(first: Sequence[Tensor], keys: Tensor, slope: Tensor, offset: Tensor, scale: Tensor) -> Steps:
    """Train the inner models `first`, a folded weight `[M, d_in + 1, d_out]` a layer, on one mini-batch after another.

    keys `[N, M, C, d_head + 1]`, folded. slope, offset `[N, M, C, d_head]`: the gradient, times the step size, at the
    LayerNorm's result x before its weight and bias is `slope * x + offset`. scale `[]`: what a step is multiplied by.
    """
    depth = len(first)
    found = _Steps.apply(scale, keys, slope, offset, *first)
    starts, last, gradients, hidden = (found[i * depth : (i + 1) * depth] for i in range(4))
    return Steps(starts, last, (keys, *hidden), gradients)


class _Steps(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, scale: Tensor, keys: Tensor, slope: Tensor, offset: Tensor, *first: Tensor
    ) -> tuple[Tensor, ...]:
        layers, kept = list(first), []
        one = torch.ones_like(keys[0, :, :, :1])
        for key, stepped, factor, term in zip(*(x.unbind() for x in (keys, scale * keys.mT, slope, offset))):
            begun = layers
            inputs, outputs = [key], [torch.bmm(key, layers[0])]
            for weight in layers[1:]:
                inputs.append(torch.cat([F.gelu(outputs[-1], approximate="tanh"), one], dim=-1))
                outputs.append(torch.bmm(inputs[-1], weight))
            gradients = _backpropagated(layers, outputs, factor, term)
            sources = [stepped, *(scale * x.mT for x in inputs[1:])]
            layers = [torch.baddbmm(*written) for written in zip(layers, sources, gradients)]
            kept.append((*begun, *gradients, *inputs[1:]))
        stacked = [torch.stack(x) for x in zip(*kept)]
        depth = len(first)
        starts, gradients, hidden = stacked[:depth], stacked[depth : 2 * depth], stacked[2 * depth :]
        ctx.save_for_backward(scale, keys, slope, offset, *stacked)
        return *starts, *layers, *gradients, *hidden

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *given: Tensor) -> tuple[Tensor, ...]:
        scale, keys, slope, offset, *stacked = ctx.saved_tensors
        with autocast(keys.device.type, enabled=False):
            return _reversed(scale, keys, slope, offset, stacked, given)


def _backpropagated(layers: list[Tensor], outputs: list[Tensor], factor: Tensor, term: Tensor) -> list[Tensor]:
    """The gradients at all layers' outputs."""
    shape = outputs[-1].shape[-1:]
    normal, mean, inverse = torch.native_layer_norm(outputs[-1], shape, None, None, EPSILON)
    outer = torch.addcmul(term, normal, factor)
    through = aten.native_layer_norm_backward(
        outer, outputs[-1], shape, mean, inverse, None, None, [True, False, False]
    )
    gradients = [through[0]]
    for weight, output in zip(layers[:0:-1], outputs[-2::-1]):
        before = torch.bmm(gradients[-1], weight[:, :-1].mT)
        gradients.append(aten.gelu_backward(before, output, approximate="tanh"))
    return gradients[::-1]


class _Layer(NamedTuple):
    """What the way back needs of a layer, for each mini-batch."""

    stepped: tuple[Tensor, ...]
    inputs: tuple[Tensor, ...]
    given_start: tuple[Tensor, ...]
    given_gradients: tuple[Tensor, ...]


class _Between(NamedTuple):
    """The same of an activation and of the layer after it: the activation's slope, what its curvature multiplies the
    gradient with; that layer's weight without bias, gradients, and what its inputs' gradients begin with."""

    slope: tuple[Tensor, ...]
    bend: tuple[Tensor, ...]
    weight: tuple[Tensor, ...]
    gradients: tuple[Tensor, ...]
    stepped: tuple[Tensor, ...]
    given_inputs: tuple[Tensor, ...]


def _reversed(
    scale: Tensor, keys: Tensor, slope: Tensor, offset: Tensor, stacked: Sequence[Tensor], given: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    depth = (len(given) + 1) // 4
    starts, gradients, inputs = stacked[:depth], stacked[depth : 2 * depth], [keys, *stacked[2 * depth :]]
    given_starts, given_last, given_gradients = (given[i * depth : (i + 1) * depth] for i in range(3))
    outputs = [x @ weight for x, weight in zip(inputs, starts)]
    layers = [
        _Layer(*(x.unbind() for x in (scale * data, data.mT, start, written)))
        for data, start, written in zip(inputs, given_starts, given_gradients)
    ]
    between = [
        _Between(*(x.unbind() for x in _activation_data(scale, output, weight[:, :, :-1], written, given_inputs)))
        for output, weight, written, given_inputs in zip(outputs, starts[1:], gradients[1:], given[3 * depth :])
    ]
    curvature = [x.unbind() for x in _curvature(outputs[-1], slope, offset, gradients[-1])]

    d_layers, kept = list(given_last), []
    for n in reversed(range(len(keys))):
        d_after = d_layers
        d_gradients, d_outputs, d_layers = _through_gradients(n, layers, between, d_after)
        d_output = _curved(d_gradients, *(x[n] for x in curvature))
        d_output, d_layers = _through_outputs(n, layers, between, d_after, d_layers, [*d_outputs, d_output])
        kept.append((*d_after, d_gradients, d_output))
    *d_afters, d_gradients, d_output = (torch.stack(x[::-1]) for x in zip(*kept))

    d_scale = torch.stack([(w * (x @ d)).sum() for w, x, d in zip(gradients, inputs, d_afters)]).sum()
    d_keys = torch.baddbmm(
        (d_output @ starts[0].mT).flatten(0, 1),
        (scale * gradients[0]).flatten(0, 1),
        d_afters[0].flatten(0, 1).mT,
    ).view_as(keys)
    shape = slope.shape[-1:]
    normal, mean, inverse = torch.native_layer_norm(outputs[-1], shape, None, None, EPSILON)
    d_offset = aten.native_layer_norm_backward(
        d_gradients, outputs[-1], shape, mean, inverse, None, None, [True, False, False]
    )[0]
    return d_scale, d_keys, d_offset * normal, d_offset, *d_layers


def _activation_data(scale: Tensor, output: Tensor, weight: Tensor, written: Tensor, given_inputs: Tensor) -> Any:
    slope = aten.gelu_backward(torch.ones_like(output), output, approximate="tanh")
    bend = gelu_tanh_curvature(output) * (written @ weight.mT)
    return slope, bend, weight, written, scale * written, given_inputs[..., :-1]


def _curvature(output: Tensor, slope: Tensor, offset: Tensor, gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """H of every token: its diagonal, and the vectors of its outer products as rows, left and right.

    With n the LayerNorm's result, r the inverse deviation, P = r (I - 1 1^T / d - n n^T / d), A the diagonal `slope`,
    o = slope * n + offset, m the mean of o n, so that the gradient is w = P o:
    H = P A P - r m P - r (w n^T + n w^T) / d.
    """
    width = output.shape[-1]
    normal, _, inverse = torch.native_layer_norm(output, output.shape[-1:], None, None, EPSILON)

    def mean(x: Tensor) -> Tensor:
        return x.mean(-1, keepdim=True)

    sloped = slope * normal
    along = mean((sloped + offset) * normal)
    mixed, square = mean(sloped) / 2, inverse.square()
    first = (square / width) * ((mean(slope) + along) / 2 + mixed * normal - slope)
    second = (square / width) * (mixed + (mean(sloped * normal) + along) / 2 * normal - sloped)
    second = second - (inverse / width) * gradients
    one = torch.ones_like(normal)
    left, right = (
        torch.stack(x, -2).flatten(1, 2) for x in ((one, normal, first, second), (first, second, one, normal))
    )
    return square * (slope - along), left.mT, right


def _curved(d_gradients: Tensor, diagonal: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """`H d_gradients`."""
    column = d_gradients.view(-1, d_gradients.shape[-1], 1)
    straight = (diagonal * d_gradients).view_as(column)
    return torch.baddbmm(straight, left, torch.bmm(right, column)).view_as(d_gradients)


def _through_gradients(
    n: int, layers: list[_Layer], between: list[_Between], d_after: list[Tensor]
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Back through the n-th step and its backpropagation: gradients at the last layer's gradients, at the outputs of
    the layers before it, and at the starting weights so far."""
    d_layers = [d + layer.given_start[n] for layer, d in zip(layers, d_after)]
    d_written = [torch.baddbmm(layer.given_gradients[n], layer.stepped[n], d) for layer, d in zip(layers, d_after)]
    d_outputs = []
    for i, data in enumerate(between):
        d_outputs.append(d_written[i] * data.bend[n])
        sloped = d_written[i] * data.slope[n]
        d_written[i + 1] = torch.baddbmm(d_written[i + 1], sloped, data.weight[n])
        d_layers[i + 1] = torch.baddbmm(d_layers[i + 1], F.pad(sloped, (0, 1)).mT, data.gradients[n])
    return d_written[-1], d_outputs, d_layers


def _through_outputs(
    n: int,
    layers: list[_Layer],
    between: list[_Between],
    d_after: list[Tensor],
    d_layers: list[Tensor],
    d_outputs: list[Tensor],
) -> tuple[Tensor, list[Tensor]]:
    """Back through the model itself: gradients at the first layer's output, and at the starting weights."""
    d_output, d_layers = d_outputs[-1], list(d_layers)
    for i in reversed(range(len(layers))):
        d_layers[i] = torch.baddbmm(d_layers[i], layers[i].inputs[n], d_output)
        if i > 0:
            data = between[i - 1]
            d_inputs = torch.baddbmm(data.given_inputs[n], data.stepped[n], d_after[i][:, :-1].mT)
            d_inputs = torch.baddbmm(d_inputs, d_output, data.weight[n].mT)
            d_output = torch.addcmul(d_outputs[i - 1], d_inputs, data.slope[n])
    return d_output, d_layers
