"""Attention through PyTorch's FlexAttention: one kernel compiled for the mask, the sinks and the forgetting.

On CUDA it is compiled, for all lengths at once; on a CPU, where it has no gradients, it writes all scores down. What is
known of it here was found out on a CPU: no GPU has run it yet.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.nn.attention import flex_attention as flex
from torch.nn.attention.flex_attention import BlockMask
from torch.nn.functional import pad

FEWEST_FEATURES = 16  # of a head, for its Triton kernels
BLOCK = 128  # tokens of a block of the mask
# PyTorch 2.9 renamed what asks for the normaliser
WITH_NORMALISER: dict[str, Any] = (
    {"return_aux": flex.AuxRequest(lse=True)} if hasattr(flex, "AuxRequest") else {"return_lse": True}
)


class Case(NamedTuple):
    """What FlexAttention is compiled for, beside the lengths."""

    dtype: torch.dtype
    heads: int
    kv_heads: int
    d_head: int
    d_value: int
    one_sequence: bool
    cached: bool
    masked: bool
    window: bool
    sinks: bool
    forgetting: bool
    gradient: bool


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
    device = queries.device
    if device.type == "cuda" and values.dtype == torch.float64:
        raise RuntimeError("backend 'flex' of attention cannot run: its kernels take float32 at most, got float64")
    if device.type == "cpu":  # it refuses what could need a gradient, even where none is recorded
        queries, keys, values = queries.detach(), keys.detach(), values.detach()
    queries, keys, values = (_widened(x.transpose(1, 2), device) for x in (queries, keys, values))
    # one query sees all keys that are given; a compiled graph makes its masks, and would warn of a cache
    make = causal_mask.__wrapped__ if torch.compiler.is_compiling() else causal_mask
    mask = None if time == 1 else make(time, key_time, window, device)
    case = Case(
        dtype=values.dtype,
        heads=queries.shape[1],
        kv_heads=keys.shape[1],
        d_head=queries.shape[3],
        d_value=values.shape[3],
        one_sequence=len(queries) == 1,
        cached=key_time > time,
        masked=mask is not None,
        window=window is not None,
        sinks=sinks is not None,
        forgetting=log_forget is not None,
        gradient=torch.is_grad_enabled(),
    )
    y = _kernel(device, case)(
        queries,
        keys,
        values,
        score_mod=None if log_forget is None else _forgetting(log_forget, key_time - time),
        block_mask=mask,
        scale=scale,
        enable_gqa=queries.shape[1] != keys.shape[1],
        **({} if sinks is None else WITH_NORMALISER),
    )
    if sinks is not None:  # the share of a softmax that does not go to the sink
        y, log_sum = y[0], getattr(y[1], "lse", y[1])
        y = (y * (log_sum - sinks[:, None]).sigmoid().unsqueeze(-1)).to(y.dtype)
    return y[..., :d_value].transpose(1, 2)


@functools.lru_cache(maxsize=16)
def causal_mask(time: int, key_time: int, window: int | None, device: torch.device) -> BlockMask:
    """Which of `key_time` keys the last `time` positions see, made of blocks: never all pairs at once.

    Kept, since all layers of a model share it.
    """
    with torch.inference_mode(False), torch.no_grad():
        past = torch.full((), key_time - time, device=device)  # tensors: a number would be compiled in
        width = None if window is None else torch.full((), window, device=device)

        def visible(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            seen = key <= query + past
            return seen if width is None else seen & (key > query + past - width)

        first_query = torch.arange(0, time, BLOCK, device=device)[:, None] + (key_time - time)
        last_query = (first_query + BLOCK - 1).clamp(max=key_time - 1)
        first_key = torch.arange(0, key_time, BLOCK, device=device)
        last_key = first_key + BLOCK - 1
        # a last block of fewer queries is never whole, nor is one of fewer keys
        some, whole = first_key <= last_query, (last_key <= first_query) & (first_query + BLOCK <= key_time)
        if window is not None:
            some, whole = some & (last_key > first_query - window), whole & (first_key > last_query - window)
        partly, fully = _ordered(some & ~whole), _ordered(whole)
        return BlockMask.from_kv_blocks(
            *partly, *fully, BLOCK_SIZE=BLOCK, mask_mod=visible, seq_lengths=(time, key_time)
        )


def _ordered(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """How many blocks of keys each block of queries has `[1, 1, n]`, and which, these first `[1, 1, n, m]`."""
    indices = blocks.int().argsort(dim=-1, descending=True, stable=True)
    return blocks.sum(-1, dtype=torch.int32)[None, None], indices.int()[None, None]


def _forgetting(log_forget: Tensor, past: int) -> Callable[..., Tensor]:
    """What forgetting adds to a logit: a difference of sums, each of them a rounded number and the rest, since the sums
    grow with the text."""
    total = log_forget.double().cumsum(1).transpose(1, 2)
    total = total - total[:, :, past : past + 1].detach()
    rounded = total.detach().to(log_forget.dtype)
    rest = (total - rounded).to(log_forget.dtype)
    start = torch.full((), past, device=total.device)

    def score_mod(score: Tensor, batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        query = query + start
        sums = (
            rounded[batch, head, query] - rounded[batch, head, key],
            rest[batch, head, query] - rest[batch, head, key],
        )
        return score + (sums[0] + sums[1])

    return score_mod


def _widened(x: Tensor, device: torch.device) -> Tensor:
    missing = FEWEST_FEATURES - x.shape[-1] if device.type == "cuda" else 0
    return pad(x, (0, missing)) if missing > 0 else x


def _kernel(device: torch.device, case: Case) -> Callable[..., Any]:
    """Without the compiler FlexAttention computes all scores, which is all that a CPU without one can do."""
    if device.type == "cpu" or torch.compiler.is_compiling():
        return cast(Any, flex.flex_attention)
    return compiled(case)


@functools.cache
def compiled(case: Case, backend: str = "inductor") -> Callable[..., Any]:
    """FlexAttention for any length. The compiler keeps a few graphs for each code object, and then none: one for each
    case is enough for one token, some and many."""
    code = flex.flex_attention.__code__.replace(co_name=f"flex_attention_{abs(hash(case)):x}")
    function = types.FunctionType(code, vars(flex), code.co_name, flex.flex_attention.__defaults__)
    function.__kwdefaults__ = flex.flex_attention.__kwdefaults__
    return torch.compile(function, dynamic=True, backend=backend)
