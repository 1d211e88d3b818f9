"""TTT-Linear as its equations state it: one token after the other."""

from __future__ import annotations

import torch
from torch import Tensor

from . import TTTLinearResult, TTTLinearState

EPSILON = 1e-6


def ttt_linear(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    step_sizes: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    W1: Tensor,
    b1: Tensor,
    position_scale: Tensor,
    state: TTTLinearState | None,
    return_state: bool,
) -> TTTLinearResult:
    dtype = torch.promote_types(values.dtype, torch.float32)
    batch, mini_batch_size = len(values), len(position_scale)
    weight, bias, scale = norm_weight.to(dtype), norm_bias.to(dtype), position_scale.to(dtype)
    q, k, v, steps = (x.to(dtype) for x in (queries, keys, values, step_sizes))
    state = start(W1, b1, batch, dtype) if state is None else state.map_tensors(lambda x: x.to(dtype))
    W, b, grad_W, grad_b, position = (
        state.W1,
        state.b1.squeeze(2),
        state.grad_W1,
        state.grad_b1.squeeze(2),
        state.position,
    )
    outputs = []
    for t in range(values.shape[1]):
        i = position % mini_batch_size
        z = torch.einsum("bhk,bhkv->bhv", k[:, t], W) + b
        grad = steps[:, t, :, None] * reconstruction_gradient(z, v[:, t] - k[:, t], weight, bias)
        grad_W, grad_b = grad_W + torch.einsum("bhk,bhv->bhkv", k[:, t], grad), grad_b + grad
        W_i, b_i = W - scale[i] * grad_W, b - scale[i] * grad_b
        z = torch.einsum("bhk,bhkv->bhv", q[:, t], W_i) + b_i
        outputs.append(q[:, t] + normalise(z)[0] * weight + bias)
        position += 1
        if position % mini_batch_size == 0:
            W, b, grad_W, grad_b = W_i, b_i, torch.zeros_like(grad_W), torch.zeros_like(grad_b)
    final = TTTLinearState(W, b.unsqueeze(2), grad_W, grad_b.unsqueeze(2), position) if return_state else None
    return TTTLinearResult(torch.stack(outputs, dim=1).to(values.dtype), final)


def start(W1: Tensor, b1: Tensor, batch: int, dtype: torch.dtype) -> TTTLinearState:
    """The state before the first token: memory of its own, so that training W1 later does not change it."""
    W, b = W1.to(dtype).repeat(batch, 1, 1, 1), b1.to(dtype).repeat(batch, 1, 1, 1)
    return TTTLinearState(W, b, torch.zeros_like(W), torch.zeros_like(b), 0)


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
