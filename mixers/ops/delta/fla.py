"""The gated delta rule by flash-linear-attention's Triton kernels."""

from __future__ import annotations

import torch
from torch import Tensor


def gated_delta_rule(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    log_decay: Tensor,
    beta: Tensor,
    scale: float,
    chunk_size: int,
    state: Tensor | None,
    return_state: bool,
) -> tuple[Tensor, Tensor | None]:
    """`fla.ops.gated_delta_rule`: the same layout and state as ours; it chooses its own chunk size."""
    from fla.ops.gated_delta_rule import chunk_gated_delta_rule

    output, state = chunk_gated_delta_rule(
        q=queries.to(values.dtype),
        k=keys.to(values.dtype),
        v=values,
        g=log_decay.to(torch.float32),
        beta=beta.to(values.dtype),
        scale=scale,
        initial_state=None if state is None else state.to(torch.float32),
        output_final_state=return_state,
    )
    return output.to(values.dtype), state
