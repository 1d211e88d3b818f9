"""The dual form of test-time training: many tokens read weights that each token before them moved by a gradient step.

The inner model is a stack of linear layers with an activation between them, one per head. Within a chunk all gradients
are taken at the same weights, so that what token j writes to a layer is the outer product of the layer's input and of
the gradient at its output. Token i then reads, layer by layer, without its own weights ever being built,

    z_i = sum_m a_mi (x_i W_m + b_m) + sum_{j <= i} c_ij (x_i . input_j + 1) gradient_j

with a few sets of weights (W_m, b_m), such as those of the chunk's first token and a momentum, that its coefficients
a_mi weigh; the 1 belongs to the bias, and the c_ij are negative for descent. TTT and Titans differ in the coefficients
alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

Layer = tuple[Tensor, ...]
"""Weight `[..., d_in, d_out]`, and bias `[..., 1, d_out]` unless the model has none."""

Layers = tuple[Layer, ...]


class Activation(NamedTuple):
    """A function, and its derivative in closed form so that both are differentiable once more."""

    function: Callable[[Tensor], Tensor]
    derivative: Callable[[Tensor], Tensor]


class Write(NamedTuple):
    """What tokens write to a layer: inputs `[..., tokens, d_in]`, gradients at its outputs `[..., tokens, d_out]`."""

    inputs: Tensor
    gradients: Tensor


class Source(NamedTuple):
    """A set of weights, and what each token multiplies it with, `[..., tokens, 1]`; None: 1."""

    layers: Layers
    coefficient: Tensor | None = None


def _gelu_tanh(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


def _gelu_tanh_derivative(x: Tensor) -> Tensor:
    square = x.square()
    tanh = (math.sqrt(2 / math.pi) * x * (1 + 0.044715 * square)).tanh()
    slope = math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * square)
    return 0.5 * (1 + tanh) + 0.5 * x * (1 - tanh.square()) * slope


def gelu_tanh_curvature(x: Tensor) -> Tensor:
    """The second derivative of GELU in its tanh approximation."""
    factor, cubic = math.sqrt(2 / math.pi), 0.044715
    square = x.square()
    tanh = (factor * x * (1 + cubic * square)).tanh()
    slope = factor * (1 + 3 * cubic * square)
    return (1 - tanh.square()) * (factor * (1 + 6 * cubic * square) - x * tanh * slope.square())


def _gelu_derivative(x: Tensor) -> Tensor:
    density = (-0.5 * x.square()).exp() / math.sqrt(2 * math.pi)
    return 0.5 * (1 + (x / math.sqrt(2)).erf()) + x * density


GELU_TANH = Activation(_gelu_tanh, _gelu_tanh_derivative)
GELU = Activation(F.gelu, _gelu_derivative)


def apply(layers: Layers, x: Tensor, activation: Activation) -> Tensor:
    """The inner model itself."""
    for i, layer in enumerate(layers):
        x = linear(layer, x if i == 0 else activation.function(x))
    return x


def linear(layer: Layer, x: Tensor) -> Tensor:
    return x @ layer[0] + layer[1] if len(layer) > 1 else x @ layer[0]


def writes(
    layers: Layers, keys: Tensor, activation: Activation, output_gradient: Callable[[Tensor], Tensor]
) -> list[Write]:
    """Backpropagation of every token by itself; output_gradient: of its loss at what the model makes of its key."""
    inputs, outputs = [keys], [linear(layers[0], keys)]
    for layer in layers[1:]:
        inputs.append(activation.function(outputs[-1]))
        outputs.append(linear(layer, inputs[-1]))
    gradients = [output_gradient(outputs[-1])]
    for layer, output in zip(layers[:0:-1], outputs[-2::-1]):
        gradients.append(gradients[-1] @ layer[0].mT * activation.derivative(output))
    return [Write(*write) for write in zip(inputs, gradients[::-1])]


def read(
    x: Tensor, sources: Sequence[Source], steps: Tensor, written: Sequence[Write], activation: Activation
) -> Tensor:
    """What tokens read for `x [..., tokens, d_in]`; steps `[..., i, j]`, zero for j > i."""
    for i, write in enumerate(written):
        x = x if i == 0 else activation.function(x)
        bias = len(sources[0].layers[i]) > 1
        similarity = x @ write.inputs.mT
        z = (torch.addcmul(steps, steps, similarity) if bias else steps * similarity) @ write.gradients
        for layers, coefficient in sources:
            seen = linear(layers[i], x)
            z = z + seen if coefficient is None else torch.addcmul(z, coefficient, seen)
        x = z
    return x


def moved(sources: Sequence[Source], steps: Tensor, written: Sequence[Write]) -> Layers:
    """Weights after a token: coefficients `[..., 1, 1]` of the sources, steps `[..., tokens, 1]` of all writes."""
    after = []
    for i, (inputs, gradients) in enumerate(written):
        stepped = steps * gradients
        layer = [outer(inputs, stepped)]
        if len(sources[0].layers[i]) > 1:
            layer.append(stepped.sum(-2, keepdim=True))
        for layers, coefficient in sources:
            layer = [
                c + w if coefficient is None else torch.addcmul(c, coefficient, w) for c, w in zip(layer, layers[i])
            ]
        after.append(tuple(layer))
    return tuple(after)


def outer(inputs: Tensor, gradients: Tensor) -> Tensor:
    """Sum over the tokens of `inputs_j^T gradients_j`, `[..., d_in, d_out]`."""
    # Inductor (torch 2.13, CPU) leaves the product unwritten where a dynamic length happens to be 1.
    return inputs.mT * gradients if inputs.shape[-2] == 1 else inputs.mT @ gradients


def repeated(layers: Layers, batch: int, dtype: torch.dtype) -> Layers:
    """Shared weights `[heads, ...]` for every sequence, in memory of its own: training them later changes no state."""
    return tuple(tuple(w.to(dtype).repeat(batch, 1, 1, 1) for w in layer) for layer in layers)


def zeros(layers: Layers) -> Layers:
    return tuple(tuple(torch.zeros_like(w) for w in layer) for layer in layers)


def converted(layers: Layers, dtype: torch.dtype) -> Layers:
    return tuple(tuple(w.to(dtype) for w in layer) for layer in layers)


def shapes(layers: Layers) -> list[list[int]]:
    return [list(w.shape) for layer in layers for w in layer]
