"""The definition of LaCT: one token after the other, the inner gradient by automatic differentiation."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from . import LactState, Weights

EPSILON = 1e-5  # added to the lengths of rows, as in the released code

# five steps that bring singular values from 0.01..1 to about 1, as in the released code
NEWTON_SCHULZ = (
    (4.0848, -6.8946, 2.9270),
    (3.9505, -6.3029, 2.6377),
    (3.7418, -5.5913, 2.3037),
    (2.8769, -3.1427, 1.2046),
    (2.8366, -3.0525, 1.2012),
)


def lact(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    step_sizes: Tensor,
    weights: Weights,
    momentum: Tensor | None,
    muon: bool,
    chunk_size: int,
    state: LactState | None,
) -> tuple[Tensor, LactState]:
    dtype = torch.promote_types(values.dtype, torch.float32)
    q, k, v, steps = (x.to(dtype) for x in (queries, keys, values, step_sizes))
    lengths = row_lengths(weights, dtype)
    state = start(weights, len(k), dtype, momentum is not None) if state is None else converted(state, dtype)
    outputs = []
    for t in range(k.shape[1]):
        outputs.append(apply(state.weights, q[:, t, :, None])[:, :, 0])
        gradients = torch.func.grad(_match)(state.weights, k[:, t, :, None], v[:, t, :, None])
        gathered = tuple(
            g + steps[:, t, :, i, None, None] * new for i, (g, new) in enumerate(zip(state.gathered, gradients))
        )
        persistence = state.persistence
        if momentum is not None and persistence is not None:
            persistence = persistence + momentum[:, t].to(dtype)
        state = LactState(state.weights, gathered, state.velocity, persistence, state.position + 1)
        if state.position % chunk_size == 0:
            state = updated(state, lengths, muon, chunk_size)
    return torch.stack(outputs, dim=1), state


def _match(weights: Weights, k: Tensor, v: Tensor) -> Tensor:
    """Each sequence and head has weights of its own, so the gradient of the sum is that of each."""
    return (apply(weights, k) * v).sum()


def apply(weights: Weights, x: Tensor) -> Tensor:
    """`[..., tokens, d_in]` -> `[..., tokens, d_out]`."""
    gate, down, up = weights
    return (F.silu(x @ gate.mT) * (x @ up.mT)) @ down.mT


def start(weights: Weights, batch: int, dtype: torch.dtype, with_momentum: bool) -> LactState:
    """The state before the first token: memory of its own, so that training the weights does not change it."""
    fast = tuple(w.to(dtype).repeat(batch, 1, 1, 1) for w in weights)
    nothing = tuple(torch.zeros_like(w) for w in fast)
    if not with_momentum:
        return LactState(fast, nothing, None, None, 0)
    return LactState(fast, nothing, tuple(w.clone() for w in nothing), fast[0].new_zeros(fast[0].shape[:2]), 0)


def converted(state: LactState, dtype: torch.dtype) -> LactState:
    result: LactState = state.map_tensors(lambda x: x.to(dtype))
    return result


def row_lengths(weights: Weights, dtype: torch.dtype) -> Weights:
    return tuple(w.to(dtype).norm(dim=-1, keepdim=True) for w in weights)


def updated(state: LactState, lengths: Weights, muon: bool, chunk_size: int) -> LactState:
    """The state after a complete chunk's update."""
    change, velocity, persistence = state.gathered, state.velocity, state.persistence
    if velocity is not None and persistence is not None:
        share = (persistence / chunk_size)[..., None, None]
        change = velocity = tuple(g + share * last for g, last in zip(change, velocity))
        persistence = torch.zeros_like(persistence)
    if muon:
        change = tuple(orthogonalised(c) for c in change)
    moved = [w + c for w, c in zip(state.weights, change)]
    weights = tuple(w / (w.norm(dim=-1, keepdim=True) + EPSILON) * length for w, length in zip(moved, lengths))
    return LactState(weights, tuple(torch.zeros_like(w) for w in weights), velocity, persistence, state.position)


def orthogonalised(matrix: Tensor) -> Tensor:
    """`[..., m, n]` with its singular values brought near 1 by Newton-Schulz steps."""
    if matrix.shape[-2] > matrix.shape[-1]:
        return orthogonalised(matrix.mT).mT
    x = matrix / (matrix.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for a, b, c in NEWTON_SCHULZ:
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x
