"""Test-time training layers: the hidden state is a small model that learns from the sequence by gradient steps."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, autocast

from ...state import StateValue
from ..dispatch import Backend, Op

OP = Op(
    __name__,
    Backend("chunked", "chunked:ttt_linear"),
    Backend("reference", "reference:ttt_linear", automatic=False),
)

__all__ = ["OP", "TTTLinearResult", "TTTLinearState", "ttt_linear"]


@dataclass(frozen=True, eq=False)
class TTTLinearState(StateValue):
    """Fast weights as they were when the current mini-batch began, and what it has gathered so far.

    W1 `[batch, heads, d_head, d_head]`, b1 `[batch, heads, 1, d_head]`, float32 at least. grad_W1, grad_b1, same
    shapes: sum of `step_size * gradient` over the tokens of the unfinished mini-batch; zero at its edge.
    position: tokens read so far; mini-batches end at multiples of their size.
    """

    W1: Tensor
    b1: Tensor
    grad_W1: Tensor
    grad_b1: Tensor
    position: int


@dataclass(frozen=True)
class TTTLinearResult:
    """output `[batch, time, heads, d_head]`; state: None unless it was asked for."""

    output: Tensor
    state: TTTLinearState | None


def ttt_linear(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    step_sizes: Tensor,
    *,
    position_scale: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    W1: Tensor,
    b1: Tensor,
    mini_batch_size: int = 16,
    state: TTTLinearState | None = None,
    return_state: bool = False,
    backend: str = "auto",
) -> TTTLinearResult:
    """TTT-Linear (Sun et al. 2024, arXiv 2407.04620): per head, `f(x) = x + LayerNorm(x W + b)` learns k -> v.

    Within a mini-batch all gradients are taken at the weights W it began with. Token i of it reads with

        W_i = W - position_scale[i] * sum_{j <= i} step_sizes[j] * k_j^T grad_j        (b_i likewise, without k_j)
        output_i = q_i + LayerNorm(q_i W_i + b_i) * norm_weight + norm_bias

    where grad_j is the gradient at `z_j = k_j W + b` of the inner loss, eps 1e-6,

        1/2 ||LayerNorm(z_j) * norm_weight + norm_bias - (v_j - k_j)||^2

    The next mini-batch begins with the W_i of this one's last token. Gradients flow through all of it.

    queries, keys, values `[batch, time, heads, d_head]`; step_sizes `[batch, time, heads]`, the inner learning rate of
    each token; position_scale `[mini_batch_size]`; norm_weight, norm_bias `[heads, d_head]`.
    W1 `[heads, d_head, d_head]` and b1 `[heads, 1, d_head]`: the weights a sequence starts with. A `state`, from an
    earlier call, brings its own.
    The output has the dtype of `values`; the fast weights are float32 at least.
    Raises `ValueError` if sizes do not fit together.
    """
    inputs = {"queries": queries, "keys": keys, "values": values, "step_sizes": step_sizes}
    parameters = {"norm_weight": norm_weight, "norm_bias": norm_bias, "W1": W1, "b1": b1}
    _check(inputs, parameters, position_scale, mini_batch_size, state)
    run = OP.select(backend, values.device)
    # autocast would turn the products that build the fast weights into low precision
    with autocast(values.device.type, enabled=False):
        return run(**inputs, **parameters, position_scale=position_scale, state=state, return_state=return_state)


def _check(
    inputs: dict[str, Tensor],
    parameters: dict[str, Tensor],
    position_scale: Tensor,
    mini_batch_size: int,
    state: TTTLinearState | None,
) -> None:
    if mini_batch_size < 1:
        raise ValueError(f"mini_batch_size must be at least 1, got {mini_batch_size}")
    values = inputs["values"]
    if values.ndim != 4 or 0 in values.shape:
        raise ValueError(f"values must be [batch, time, heads, d_head], none of them 0, got {list(values.shape)}")
    batch, time, heads, d_head = values.shape
    expected: dict[str, tuple[Tensor, tuple[int, ...]]] = {
        "queries": (inputs["queries"], (batch, time, heads, d_head)),
        "keys": (inputs["keys"], (batch, time, heads, d_head)),
        "step_sizes": (inputs["step_sizes"], (batch, time, heads)),
        "position_scale": (position_scale, (mini_batch_size,)),
        "norm_weight": (parameters["norm_weight"], (heads, d_head)),
        "norm_bias": (parameters["norm_bias"], (heads, d_head)),
        "W1": (parameters["W1"], (heads, d_head, d_head)),
        "b1": (parameters["b1"], (heads, 1, d_head)),
    }
    if state is not None:
        expected["state.W1"] = (state.W1, (batch, heads, d_head, d_head))
        expected["state.b1"] = (state.b1, (batch, heads, 1, d_head))
    for name, (tensor, shape) in expected.items():
        if tensor.shape != shape:
            raise ValueError(
                f"{name} must be {list(shape)} to fit values {list(values.shape)}, got {list(tensor.shape)}"
            )
