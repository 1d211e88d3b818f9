"""The causal depthwise convolution over a few tokens that stands before many mixers."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from ..dispatch import Backend, Call, Op
from ..verdicts import LEAST_CLASS
from . import causal_conv1d

OP = Op(
    __name__,
    Backend("shifted", "shifted:short_convolution"),
    Backend(
        "causal_conv1d",
        "causal_conv1d:short_convolution",
        causal_conv1d.why_not,
        trust="proven",
        refuses=causal_conv1d.refuses,
        libraries=("causal-conv1d",),
    ),
    Backend("reference", "reference:short_convolution", trust="never"),
    problems="problems:problems",
    widths=(LEAST_CLASS,),
)

__all__ = ["OP", "Activation", "short_convolution"]

Activation = Literal["silu"] | None
"""What the convolution is followed by."""


def short_convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    activation: Activation = None,
    state: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """`y_t = activation(bias + sum_i weight[:, i] * x_{t - size + 1 + i})`, channel by channel.

    x `[batch, time, channels]`; weight `[channels, size]`, the newest token last; bias `[channels]`. state
    `[batch, size - 1, channels]`: the last inputs of an earlier call; None: zeros stand before the first token.
    backend: `shifted` (a sum of shifted products), `causal_conv1d` (the package of that name, CUDA; sizes 2 to 4),
    `reference`, or `auto`.
    Returns y and the state after it, in the dtype of `x`. Raises `ValueError` if sizes do not fit together.
    """
    if x.ndim != 3 or weight.ndim != 2 or len(weight) != x.shape[2]:
        raise ValueError(
            f"x must be [batch, time, channels] and weight [channels, size], got {list(x.shape)} and "
            f"{list(weight.shape)}"
        )
    expected = [len(x), weight.shape[1] - 1, x.shape[2]]
    if state is not None and list(state.shape) != expected:
        raise ValueError(f"state must be [batch, size - 1, channels] = {expected}, got {list(state.shape)}")
    given = {"bias": bias is not None, "silu": activation == "silu"}
    variant = "+".join(name for name, is_given in given.items() if is_given)
    call = Call.of(x, weight, bias, state, width=weight.shape[1], tokens=x.shape[1], variant=variant)
    run = OP.select(backend, x.device, call)
    state = x.new_zeros(expected) if state is None else state.to(x.dtype)
    return run(x, weight, bias, activation, state)
