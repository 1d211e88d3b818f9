"""The delta rule under a softmax kernel: each value leaves out what the tokens before it already answer for it."""

from __future__ import annotations

import torch
from torch import Tensor, autocast

from ..dispatch import Backend, Op

OP = Op(
    __name__,
    Backend("blockwise", "blockwise:new_values"),
    Backend("reference", "reference:new_values", trust="never"),
)

__all__ = ["OP", "new_values"]


def new_values(
    probes: Tensor,
    keys: Tensor,
    values: Tensor,
    beta: Tensor,
    *,
    past: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """What each token adds to the memory that softmax attention reads (DeltaFormer, Zhong et al., arXiv 2505.19488):

        u_t = v_t - beta_t sum_{j < t} softmax_j(p_t . k_j / sqrt(d_k)) u_j

    probes `[batch, time, heads, d_k]`, values `[batch, time, heads, d_v]`, beta `[batch, time, heads]`: of the new
    tokens. keys `[batch, key_time, heads, d_k]` from the first token on, the new ones last.
    past `[batch, key_time - time, heads, d_v]`: u of the tokens before; None if there are none.
    Returns u of the new tokens, `[batch, time, heads, d_v]`, float32 at least, for rounding adds up in a recurrence.
    Raises `ValueError` if sizes do not fit together.
    """
    _check(probes, keys, values, beta, past)
    run = OP.select(backend, values.device)
    precision = torch.promote_types(values.dtype, torch.float32)
    if past is None:
        past = values[:, :0]
    with autocast(values.device.type, enabled=False):
        return run(*(x.to(precision) for x in (probes, keys, values, beta, past)))


def _check(probes: Tensor, keys: Tensor, values: Tensor, beta: Tensor, past: Tensor | None) -> None:
    if probes.ndim != 4 or 0 in probes.shape:
        raise ValueError(f"probes must be [batch, time, heads, d_k], none of them 0, got {list(probes.shape)}")
    batch, time, heads, d_k = probes.shape
    if keys.ndim != 4 or (keys.shape[0], *keys.shape[2:]) != (batch, heads, d_k) or keys.shape[1] < time:
        expected = f"[batch = {batch}, key_time >= {time}, heads = {heads}, d_k = {d_k}]"
        raise ValueError(f"keys must be {expected}, got {list(keys.shape)}")
    if values.ndim != 4 or values.shape[:3] != probes.shape[:3] or values.shape[3] == 0:
        raise ValueError(f"values must be {[batch, time, heads]} + [d_v], got {list(values.shape)}")
    if beta.shape != probes.shape[:3]:
        raise ValueError(f"beta must be [batch, time, heads] = {[batch, time, heads]}, got {list(beta.shape)}")
    expected_past = [batch, keys.shape[1] - time, heads, values.shape[3]]
    if list(values[:, :0].shape if past is None else past.shape) != expected_past:
        got = None if past is None else list(past.shape)
        raise ValueError(f"past must be [batch, key_time - time, heads, d_v] = {expected_past}, got {got}")
