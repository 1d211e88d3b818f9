"""Test-time training layers: the hidden state is a small model that learns from the sequence by gradient steps."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from torch import Tensor, autocast

from ...state import StateValue
from ..dispatch import Backend, Call, Op, needs_triton
from ..inner_model import Layers, shapes

MOST_TOKENS = 16
"""Of a mini-batch that the Triton kernels take."""
MOST_FEATURES = 64
"""The largest mini-batch, and head, that the kernels take."""


def _kernels_refuse(call: Call) -> str | None:
    if call.variant not in ("linear", "linear+short"):
        return f"its kernels have one linear layer and mini-batches of at most {MOST_TOKENS} tokens, not {call.variant}"
    if call.width > MOST_FEATURES:
        return f"its kernels take heads of at most {MOST_FEATURES} features, not {call.width}"
    return None


OP = Op(
    __name__,
    Backend("triton", "triton:ttt", needs_triton, trust="proven", refuses=_kernels_refuse, libraries=("triton",)),
    Backend("chunked", "chunked:ttt"),
    Backend("reference", "reference:ttt", trust="never"),
    problems="problems:problems",
)

__all__ = ["MOST_TOKENS", "OP", "TTTState", "ttt"]


@dataclass(frozen=True, eq=False)
class TTTState(StateValue):
    """Fast weights as they were when the current mini-batch began, and what it has gathered so far.

    weights: as those of `ttt`, batch first, float32 at least. gathered, same shapes: the sum of `step_size * gradient`
    over the tokens of the unfinished mini-batch; zero at its edge. position: tokens read so far; mini-batches end at
    multiples of their size.
    """

    weights: Layers
    gathered: Layers
    position: int


def ttt(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    step_sizes: Tensor,
    *,
    position_scale: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    weights: Layers,
    state: TTTState | None = None,
    return_state: bool = False,
    backend: str = "auto",
) -> tuple[Tensor, TTTState | None]:
    """TTT-Linear and TTT-MLP (Sun et al. 2024, arXiv 2407.04620): per head, `f(x) = x + LayerNorm(z(x))` learns k -> v.

    z is a stack of linear layers with tanh-approximated GELU between them: one for TTT-Linear, `z = x W1 + b1`, two for
    TTT-MLP. The tokens of a mini-batch, as many as `position_scale` has entries, take their gradients at the weights W
    with which it began. Token i of it reads with

        W_i = W - position_scale[i] * sum_{j <= i} step_sizes[j] * grad_j
        output_i = q_i + LayerNorm(z(q_i; W_i)) * norm_weight + norm_bias

    for every weight and bias, where grad_j is the gradient of the inner loss, eps 1e-6,

        1/2 ||LayerNorm(z(k_j; W)) * norm_weight + norm_bias - (v_j - k_j)||^2

    The next mini-batch begins with the W_i of this one's last token. Gradients flow through all of it.

    queries, keys, values `[batch, time, heads, d_head]`; step_sizes `[batch, time, heads]`, the inner learning rate of
    each token; position_scale `[mini-batch size]`; norm_weight, norm_bias `[heads, d_head]`.
    weights: for each layer its matrix `[heads, d_in, d_out]` and its bias `[heads, 1, d_out]`, with which a sequence
    starts; a `state`, from an earlier call, brings its own.

    fla's kernels (0.6.0) are no backend: they read `z + LayerNorm(z)`, without the query, and weigh the gradients that
    a token reads by its own step size, not by theirs.
    Returns the output in the dtype of `values`, and the state (float32 at least) or None.
    Raises `ValueError` if sizes do not fit together.
    """
    inputs = {"queries": queries, "keys": keys, "values": values, "step_sizes": step_sizes}
    norm = {"norm_weight": norm_weight, "norm_bias": norm_bias}
    _check(inputs, norm, position_scale)
    _check_weights(weights, values, state)
    run = OP.select(backend, values.device, _call({**inputs, **norm}, position_scale, weights))
    # autocast would turn the products that build the fast weights into low precision
    with autocast(values.device.type, enabled=False):
        output, after = run(**inputs, **norm, weights=weights, position_scale=position_scale, state=state)
    return output.to(values.dtype), after if return_state else None


def _call(tensors: dict[str, Tensor], position_scale: Tensor, weights: Layers) -> Call:
    """Variants: `linear` for one layer, `mlp` for more; then `+short` or `+long` unless a mini-batch has 16 tokens."""
    values, size = tensors["values"], len(position_scale)
    variant = ("linear" if len(weights) == 1 else "mlp") + ("+short" * (size < 16) or "+long" * (size > 16))
    others = *tensors.values(), position_scale, *(w for layer in weights for w in layer)
    return Call.of(values, *others, width=values.shape[-1], tokens=values.shape[1], variant=variant)


def _check(inputs: dict[str, Tensor], norm: dict[str, Tensor], position_scale: Tensor) -> None:
    values = inputs["values"]
    if values.ndim != 4 or 0 in values.shape:
        raise ValueError(f"values must be [batch, time, heads, d_head], none of them 0, got {list(values.shape)}")
    if position_scale.ndim != 1 or len(position_scale) == 0:
        raise ValueError(f"position_scale must be [mini-batch size >= 1], got {list(position_scale.shape)}")
    for name, tensor in {**inputs, **norm}.items():
        shape = values.shape[2:] if name in norm else values.shape[:3] if name == "step_sizes" else values.shape
        if tensor.shape != shape:
            raise ValueError(
                f"{name} must be {list(shape)} to fit values {list(values.shape)}, got {list(tensor.shape)}"
            )


def _check_weights(weights: Layers, values: Tensor, state: TTTState | None) -> None:
    batch, _, heads, d_head = values.shape
    found = shapes(weights)
    widths = [d_head, *(len(layer) == 2 and layer[0].shape[-1] for layer in weights)]
    expected = [[heads, d, width] for d_in, width in itertools.pairwise(widths) for d in (d_in, 1)]
    if not weights or found != expected or widths[-1] != d_head:
        raise ValueError(
            f"weights must be layers of a matrix [{heads}, d_in, d_out] and a bias [{heads}, 1, d_out] each, from "
            f"d_head {d_head} to d_head, got {found}"
        )
    if state is not None and shapes(state.weights) != [[batch, *shape] for shape in found]:
        raise ValueError(f"state.weights must be {[[batch, *shape] for shape in found]}, got {shapes(state.weights)}")
