"""Attention through PyTorch's FlexAttention: one kernel compiled for the mask, the sinks and the forgetting."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.nn.functional import pad

FEWEST_FEATURES = 16  # of a head, for its Triton kernels


def attention(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    window: int | None,
    sinks: Tensor | None,
    log_forget: Tensor | None,
    scale: float,
) -> Tensor:
    time, key_time, d_value = queries.shape[1], keys.shape[1], values.shape[3]
    past = key_time - time

    def visible(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        seen = key <= query + past
        return seen if window is None else seen & (key > query + past - window)

    score_mod = None if log_forget is None else _forgetting(log_forget, past)
    if queries.device.type == "cpu":  # it refuses what could need a gradient, even where none is recorded
        queries, keys, values = queries.detach(), keys.detach(), values.detach()
    queries, keys, values = (_widened(x.transpose(1, 2), queries.device) for x in (queries, keys, values))
    y, log_sum = _kernel(queries.device)(
        queries,
        keys,
        values,
        score_mod=score_mod,
        block_mask=create_block_mask(visible, None, None, time, key_time, device=str(queries.device)),
        scale=scale,
        enable_gqa=queries.shape[1] != keys.shape[1],
        return_lse=True,
    )
    if sinks is not None:  # the share of a softmax that does not go to the sink
        y = y * (log_sum - sinks[:, None]).sigmoid().unsqueeze(-1).to(y.dtype)
    return y[..., :d_value].transpose(1, 2)


def _forgetting(log_forget: Tensor, past: int) -> Callable[..., Tensor]:
    total = log_forget.double().cumsum(1).transpose(1, 2)
    # counted from where the queries start: float32 is exact where weights are not negligible
    total = (total - total[:, :, past : past + 1]).to(log_forget.dtype)

    def score_mod(score: Tensor, batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return score + total[batch, head, query + past] - total[batch, head, key]

    return score_mod


def _widened(x: Tensor, device: torch.device) -> Tensor:
    missing = FEWEST_FEATURES - x.shape[-1] if device.type == "cuda" else 0
    return pad(x, (0, missing)) if missing > 0 else x


@functools.cache
def _compiled() -> Callable[..., Any]:
    return torch.compile(flex_attention, dynamic=True)


def _kernel(device: torch.device) -> Callable[..., Any]:
    """Without the compiler FlexAttention computes all scores, which is all that a CPU without one can do."""
    return cast(Any, flex_attention) if device.type == "cpu" or torch.compiler.is_compiling() else _compiled()
