"""The definition of the ridge-regression memory: one token after the other, H_t and U_t in full."""

from __future__ import annotations

import torch
from torch import Tensor

from . import RidgeState, Solver
from .solvers import NORM_FLOOR, chebyshev, chebyshev_rates


def ridge_regression(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    log_decay: Tensor,
    beta: Tensor,
    ridge: Tensor | float,
    mix: Tensor | None,
    solver: Solver,
    steps: int,
    chunk_size: int,
    state: RidgeState | None,
) -> tuple[Tensor, RidgeState]:
    dtype = torch.promote_types(values.dtype, torch.float32)
    q, k, v, g, beta = (x.to(dtype) for x in (queries, keys, values, log_decay, beta))
    mix = torch.ones_like(beta) if mix is None else mix.to(dtype)
    state = start(k, v) if state is None else state.map_tensors(lambda x: x.to(dtype))
    gram, memory = state.gram, state.memory
    outputs = []
    for t in range(k.shape[1]):
        decay, written = g[:, t, :, None, None].exp(), (beta[:, t, :, None] * k[:, t])[..., None]
        gram = decay * gram + written * k[:, t, :, None, :]
        memory = decay * memory + written * v[:, t, :, None, :]
        norm = (gram.square().sum((-2, -1)) + NORM_FLOOR).sqrt()[..., None]
        diagonal = (ridge.to(dtype) if isinstance(ridge, Tensor) else ridge * norm).expand(q[:, t].shape)
        regular = gram + torch.diag_embed(diagonal)
        if solver == "conjugate_gradient":
            x = torch.linalg.solve(regular, q[:, t])
        else:
            x = _chebyshev(regular, q[:, t], diagonal, norm, steps)
        x = q[:, t] + mix[:, t, :, None] * (x - q[:, t])
        outputs.append((x[..., None, :] @ memory)[..., 0, :])
    return torch.stack(outputs, dim=1), RidgeState(gram, memory)


def _chebyshev(regular: Tensor, q: Tensor, diagonal: Tensor, norm: Tensor, steps: int) -> Tensor:
    step, rate = chebyshev_rates(diagonal.amin(-1, keepdim=True), diagonal.amax(-1, keepdim=True) + norm)
    return chebyshev(lambda x: x + step * (q - (regular @ x[..., None])[..., 0]), step * q, rate, steps)


def start(keys: Tensor, values: Tensor) -> RidgeState:
    """The state before the first token."""
    batch, _, heads, d_k = keys.shape
    return RidgeState(keys.new_zeros(batch, heads, d_k, d_k), keys.new_zeros(batch, heads, d_k, values.shape[3]))
