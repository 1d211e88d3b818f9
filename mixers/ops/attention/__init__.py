"""Causal softmax attention over everything before a token or a sliding window, with sinks and with forgetting."""

from __future__ import annotations

import torch
from torch import Tensor

from ..dispatch import Backend, Call, Op, needs_cuda_package
from . import fla, flash_attn


def _needs_no_gradient_on_cpu(device: torch.device) -> str | None:
    if device.type == "cpu" and torch.is_grad_enabled():
        return "FlexAttention has no gradients on a CPU; call it under torch.no_grad()"
    return None


def _needs_hopper(device: torch.device) -> str | None:
    reason = needs_cuda_package("flash_attn_interface")(device)
    if reason is None and torch.cuda.get_device_capability(device)[0] != 9:
        return "FlashAttention 3 runs on GPUs of compute capability 9.x (Hopper)"
    return reason


OP = Op(
    __name__,
    Backend("sdpa", "sdpa:attention"),
    Backend("flex", "flex:attention", _needs_no_gradient_on_cpu, "proven", libraries=("triton",)),
    Backend(
        "flash_attn_3",
        "flash_attn:attention_3",
        _needs_hopper,
        "proven",
        refuses=flash_attn.refuses,
        libraries=("flash_attn_3",),
    ),
    Backend(
        "flash_attn",
        "flash_attn:attention",
        needs_cuda_package("flash_attn"),
        "proven",
        refuses=flash_attn.refuses,
        libraries=("flash-attn",),
    ),
    Backend("fla", "fla:attention", needs_cuda_package("fla"), "proven", refuses=fla.refuses, libraries=fla.LIBRARIES),
    Backend("reference", "reference:attention", trust="never"),
    problems="problems:problems",
)

__all__ = ["OP", "attention"]


def attention(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    *,
    window: int | None = None,
    sinks: Tensor | None = None,
    log_forget: Tensor | None = None,
    scale: float | None = None,
    backend: str = "auto",
) -> Tensor:
    """Scaled dot-product attention (Vaswani et al. 2017, arXiv 1706.03762, eq. 1), causal.

    queries `[batch, time, heads, d_head]`; keys `[batch, key_time, kv_heads, d_head]`, values `[batch, key_time,
    kv_heads, d_value]` with key_time >= time: the queries stand at the last `time` positions, and the keys before them
    are those of a cache. Query head h reads key head `h // (heads / kv_heads)` (grouped queries, Ainslie et al. 2023,
    arXiv 2305.13245).
    window: a token sees itself and the `window - 1` tokens before it; None: everything before it.
    sinks `[heads]`: a logit per head that joins each softmax without a value, so that a head may look at nothing
    (gpt-oss; the observation is that of Xiao et al. 2023, arXiv 2309.17453).
    log_forget `[batch, key_time, heads]`, at most 0: the logit of a pair of tokens is raised by the sum of log_forget
    over the tokens after the key, up to the query (Lin et al. 2025, arXiv 2503.02130, eq. 4).
    scale: what products of queries and keys are multiplied by; None: `d_head ** -0.5`.
    backend: `sdpa` (PyTorch's; with a window its cost is linear in time), `flex` (FlexAttention; on a CPU without
    gradients), `flash_attn` and `flash_attn_3` (FlashAttention 2 and 3; CUDA, float16 or bfloat16, without sinks and
    log_forget), `fla` (flash-linear-attention; CUDA, without a cache), `reference`, or `auto`: `sdpa`, or another one
    where `mixerzoo doctor` has proven it to be right and faster.
    Returns `[batch, time, heads, d_value]`. Raises `ValueError` if sizes do not fit together.
    """
    check_sizes(queries, keys, values)
    batch, time, heads, d_head = queries.shape
    key_time = keys.shape[1]
    if window is not None and window < 1:
        raise ValueError(f"window must be at least 1 (the token itself) or None, got {window}")
    if sinks is not None and sinks.shape != (heads,):
        raise ValueError(f"sinks must be [heads = {heads}], got {list(sinks.shape)}")
    if log_forget is not None and log_forget.shape != (batch, key_time, heads):
        expected = f"[batch = {batch}, key_time = {key_time}, heads = {heads}]"
        raise ValueError(f"log_forget must be {expected}, got {list(log_forget.shape)}")
    if window is not None:  # the first query sees window - 1 tokens before it; older keys are out of everybody's sight
        reach = min(time + window - 1, key_time)
        keys, values = keys[:, -reach:], values[:, -reach:]
        log_forget = None if log_forget is None else log_forget[:, -reach:]
        window = None if window >= reach else window
    call = Call.of(
        values,
        *(queries, keys, sinks, log_forget),
        width=max(d_head, values.shape[3]),
        tokens=time,
        variant=variant(cached=keys.shape[1] > time, window=window, sinks=sinks, forget=log_forget),
    )
    run = OP.select(backend, queries.device, call)
    return run(queries, keys, values, window, sinks, log_forget, d_head**-0.5 if scale is None else scale)


def variant(cached: bool, **given: object) -> str:
    """Which case of attention a call is, for backends are proven by case: `cached` where there are keys before the
    queries (the only case with a window left in it is then a cut prefill), and the names of what is not None."""
    return "+".join(sorted([name for name, value in given.items() if value is not None] + ["cached"] * cached))


def check_sizes(queries: Tensor, keys: Tensor, values: Tensor) -> None:
    """Raise `ValueError` unless they are `[batch, time, heads, d_head]`, `[batch, key_time, kv_heads, d_head]` and
    `[batch, key_time, kv_heads, d_value]`, key_time at least time, heads a multiple of kv_heads."""
    if queries.ndim != 4 or 0 in queries.shape:
        raise ValueError(f"queries must be [batch, time, heads, d_head], none of them 0, got {list(queries.shape)}")
    batch, time, heads, d_head = queries.shape
    if keys.ndim != 4 or (keys.shape[0], keys.shape[3]) != (batch, d_head) or keys.shape[1] < time:
        expected = f"[batch = {batch}, key_time >= {time}, kv_heads, d_head = {d_head}]"
        raise ValueError(f"keys must be {expected}, got {list(keys.shape)}")
    if keys.shape[2] == 0 or heads % keys.shape[2]:
        raise ValueError(f"the {heads} query heads must be a multiple of the {keys.shape[2]} key heads")
    if values.ndim != 4 or values.shape[:3] != keys.shape[:3] or not values.shape[3]:
        expected = f"[{', '.join(map(str, keys.shape[:3]))}, d_value]"
        raise ValueError(f"values must be {expected}, as many as keys, got {list(values.shape)}")
