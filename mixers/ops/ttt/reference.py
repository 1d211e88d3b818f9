"""Test-time training as its equations state it: one token after the other, gradients by automatic differentiation."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ..inner_model import GELU_TANH, Layers, apply, converted, repeated, zeros
from . import TTTState

EPSILON = 1e-6


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
    scale = position_scale.to(dtype)
    norm = norm_weight.to(dtype)[:, None], norm_bias.to(dtype)[:, None]  # [heads, 1, d_head]
    # [time, batch, heads, 1, features]
    sequences = (queries, keys, values, step_sizes[..., None])
    tokens = zip(*(x.to(dtype).transpose(0, 1).unsqueeze(3) for x in sequences))
    state = start(weights, len(values), dtype) if state is None else state
    fast, gathered, position = converted(state.weights, dtype), converted(state.gathered, dtype), state.position
    outputs = []
    for q, k, v, step in tokens:
        gradients = torch.func.grad(_loss)(fast, k, v, norm)
        gathered = _moved(gathered, gradients, step)
        now = _moved(fast, gathered, -scale[position % len(scale)])
        outputs.append((q + _normalised(apply(now, q, GELU_TANH), norm)).squeeze(2))
        position += 1
        if position % len(scale) == 0:
            fast, gathered = now, zeros(now)
    return torch.stack(outputs, dim=1), TTTState(fast, gathered, position)


def start(weights: Layers, batch: int, dtype: torch.dtype) -> TTTState:
    """The state before the first token."""
    fast = repeated(weights, batch, dtype)
    return TTTState(fast, zeros(fast), 0)


def _loss(weights: Layers, k: Tensor, v: Tensor, norm: tuple[Tensor, Tensor]) -> Tensor:
    """Each sequence and head has weights of its own, so the gradient of the sum is that of each."""
    return (_normalised(apply(weights, k, GELU_TANH), norm) - (v - k)).square().sum() / 2


def _normalised(z: Tensor, norm: tuple[Tensor, Tensor]) -> Tensor:
    return F.layer_norm(z, z.shape[-1:], eps=EPSILON) * norm[0] + norm[1]


def _moved(layers: Layers, by: Layers, factor: Tensor) -> Layers:
    return tuple(tuple(w + factor * g for w, g in zip(*pair)) for pair in zip(layers, by))
