"""Adapter to flash-linear-attention's Mesa layer (the package fla-core, 0.6 and later).

Its conjugate gradients take all their steps for every token, start from the diagonal's solution in decoding, and add
1e-5 to what they divide by: close to the exact solution, not equal to it. From chunk to chunk it hands bfloat16,
whatever the inputs; the states that it returns are float32.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from ..dispatch import Call, wants_gradient
from ..libraries import call_library, filled

if TYPE_CHECKING:
    from . import RidgeState, Solver

LARGEST_KEY = 128


def refuses(call: Call) -> str | None:
    """For `Backend.refuses`."""
    if call.dtype == torch.float64:
        return "its kernels compute in float32 at most, and the values are of float64"
    if call.variant:
        return (
            "its kernels solve by conjugate gradients, with a ridge per head and feature, without a mix, for values as "
            f"long as keys; this call has {call.variant}"
        )
    if call.dtype == torch.float32 and call.tokens > 1:
        return "from chunk to chunk its sums are rounded to bfloat16, and the values are of float32"
    if call.width > LARGEST_KEY:
        return f"its kernels take {LARGEST_KEY} features per head at most, got {call.width}"
    return None


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
    from fla.ops import mesa_net

    from . import RidgeState

    assert isinstance(ridge, Tensor)
    d = keys.shape[3]
    q, k, v = (filled(x.to(values.dtype)).contiguous() for x in (queries, keys, values))
    # the ridge of what is filled up divides zeros
    lamb = F.pad(ridge.float(), (0, q.shape[3] - d), value=1.0).contiguous()
    g, beta = log_decay.float().contiguous(), beta.float().contiguous()
    gram, memory = (None, None) if state is None else (_filled_both(x.float()) for x in (state.gram, state.memory))
    if values.shape[1] == 1 and not wants_gradient(q, k, v, g, beta, lamb, gram, memory):
        if gram is None or memory is None:
            gram = memory = q.new_zeros(len(q), q.shape[2], q.shape[3], q.shape[3], dtype=torch.float32)
        one = (x[:, 0] for x in (q, k, v, g))
        y, gram, memory = mesa_net.mesa_net_decoding_one_step(*one, lamb, beta[:, 0], gram, memory, steps)
        y = y[:, None]
    else:
        y, gram, memory = call_library(
            mesa_net.chunk_mesa_net,
            q=q,
            k=k,
            v=v,
            g=g,
            beta=beta,
            lamb=lamb,
            h_kk_init=gram,
            h_kv_init=memory,
            output_final_state=True,
            max_CG_iteration=steps,
        )
    assert gram is not None and memory is not None
    return y[..., :d], RidgeState(*(x[..., :d, :d].contiguous() for x in (gram, memory)))


def _filled_both(x: Tensor) -> Tensor:
    return filled(filled(x).mT).mT.contiguous()
