"""TTT-Linear in its dual form (arXiv 2407.04620, section 2.5): matrix products over a mini-batch of tokens.

Only the fast weights go from one mini-batch to the next, so a loop over the mini-batches finds them and the inner
gradients; what the tokens read is computed for all mini-batches at once afterwards. A call may begin and end inside a
mini-batch: it is cut into the rest of the one begun, the complete ones, and the beginning of the last.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import TTTLinearResult, TTTLinearState
from .reference import normalise, reconstruction_gradient, start


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
    time, size = values.shape[1], len(position_scale)
    # [batch, heads, time, d_head]; weight and bias [heads, 1, d_head]
    q, k, v = (x.to(dtype).transpose(1, 2) for x in (queries, keys, values))
    inputs = (q, k, v - k, step_sizes.to(dtype).transpose(1, 2).unsqueeze(-1))
    weight, bias = norm_weight.to(dtype).unsqueeze(1), norm_bias.to(dtype).unsqueeze(1)
    scale = position_scale.to(dtype).unsqueeze(-1)
    state = start(W1, b1, len(values), dtype) if state is None else state.map_tensors(lambda x: x.to(dtype))

    begun = min(-state.position % size, time)
    complete = begun + (time - begun) // size * size
    pieces = ((0, begun, _part), (begun, complete, _complete), (complete, time, _part))
    read = []
    for first, last, run in pieces:
        if first < last:
            z, state = run(tuple(x[:, :, first:last] for x in inputs), weight, bias, scale, state)
            read.append(z)
    output = q + normalise(torch.cat(read, dim=2))[0] * weight + bias
    return TTTLinearResult(output.transpose(1, 2).to(values.dtype), state if return_state else None)


def _part(
    inputs: tuple[Tensor, ...], weight: Tensor, bias: Tensor, scale: Tensor, state: TTTLinearState
) -> tuple[Tensor, TTTLinearState]:
    """Tokens of one mini-batch, from anywhere in it up to its end at most: `q_i W_i + b_i` and the state after them."""
    q, k, target, step = inputs
    first = state.position % len(scale)
    last = first + q.shape[2]
    gradient = step * reconstruction_gradient(k @ state.W1 + state.b1, target, weight, bias)
    earlier = q @ state.grad_W1 + state.grad_b1
    z = q @ state.W1 + state.b1 - scale[first:last] * (earlier + (q @ k.mT + 1).tril() @ gradient)

    W, b = state.W1, state.b1
    grad_W, grad_b = state.grad_W1 + _outer(k, gradient), state.grad_b1 + gradient.sum(2, keepdim=True)
    if last == len(scale):
        W, b = W - scale[-1] * grad_W, b - scale[-1] * grad_b
        grad_W, grad_b = torch.zeros_like(grad_W), torch.zeros_like(grad_b)
    return z, TTTLinearState(W, b, grad_W, grad_b, state.position + q.shape[2])


def _outer(k: Tensor, gradient: Tensor) -> Tensor:
    """Sum over the tokens of `k_j^T grad_j`, `[batch, heads, d_head, d_head]`."""
    # Inductor (torch 2.13, CPU) leaves the product unwritten where a dynamic length happens to be 1.
    return k.mT * gradient if k.shape[2] == 1 else k.mT @ gradient


def _complete(
    inputs: tuple[Tensor, ...], weight: Tensor, bias: Tensor, scale: Tensor, state: TTTLinearState
) -> tuple[Tensor, TTTLinearState]:
    """Complete mini-batches, from the edge of one: `q_i W_i + b_i` and the state after them."""
    # [mini-batches, batch, heads, tokens, d_head]
    q, k, targets, steps = (x.unflatten(2, (-1, len(scale))).movedim(2, 0).contiguous() for x in inputs)
    k_to_end, scale_to_end = (k * scale[-1]).mT, scale[-1]
    W, b = state.W1, state.b1
    starts_W, starts_b, gradients = [], [], []
    for k_n, target, step, k_end in zip(k.unbind(), targets.unbind(), steps.unbind(), k_to_end.unbind()):
        gradient = step * reconstruction_gradient(k_n @ W + b, target, weight, bias)
        starts_W.append(W)
        starts_b.append(b)
        gradients.append(gradient)
        W = W - k_end @ gradient
        b = b - scale_to_end * gradient.sum(2, keepdim=True)
    learnt = (q @ k.mT + 1).tril() @ torch.stack(gradients)
    z = q @ torch.stack(starts_W) + torch.stack(starts_b) - scale * learnt
    position = state.position + len(k) * len(scale)
    return z.movedim(0, 2).flatten(2, 3), TTTLinearState(W, b, state.grad_W1, state.grad_b1, position)
