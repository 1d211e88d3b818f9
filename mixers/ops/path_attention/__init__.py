"""PaTH attention: between a key and a query, every token reflects the key along a direction of its own."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ...state import GrowableBuffer, StateValue
from ..attention import check_sizes, variant
from ..attention.fla import LIBRARIES
from ..dispatch import Backend, Call, Op, needs_cuda_package
from . import fla

OP = Op(
    __name__,
    Backend("chunked", "chunked:path_attention"),
    Backend("fla", "fla:path_attention", needs_cuda_package("fla"), "proven", refuses=fla.refuses, libraries=LIBRARIES),
    Backend("reference", "reference:path_attention", trust="never"),
    problems="problems:problems",
)

__all__ = ["OP", "PathCache", "path_attention"]


@dataclass(frozen=True, eq=False)
class PathCache(StateValue):
    """What later tokens need of `length` tokens.

    keys `[batch, length, kv_heads, d_head]`: those of complete chunks as the tokens up to the end of the last complete
    chunk have left them, those of the open chunk as they were given. values `[batch, length, kv_heads, d_value]`.
    log_forget `[batch, length, heads]`, if there is forgetting. directions `[batch, chunk_size, kv_heads, d_head]` and
    beta `[batch, chunk_size, kv_heads]` of the open chunk, zeros where its tokens have not come yet.
    """

    keys: GrowableBuffer
    values: GrowableBuffer
    log_forget: GrowableBuffer | None
    directions: Tensor
    beta: Tensor


def path_attention(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    directions: Tensor,
    beta: Tensor,
    *,
    log_forget: Tensor | None = None,
    scale: float | None = None,
    chunk_size: int = 64,
    state: PathCache | None = None,
    return_state: bool = False,
    backend: str = "auto",
) -> tuple[Tensor, PathCache | None]:
    """PaTH attention (Yang et al. 2025, arXiv 2505.16381, eq. 2 and section 3), causal.

    The logit of query i and key j is `k_j^T H_{j+1} ... H_i q_i` times scale, `H_t = I - beta_t w_t w_t^T`.
    queries `[batch, time, heads, d_head]`; keys and directions w `[batch, time, kv_heads, d_head]`, values `[batch,
    time, kv_heads, d_value]`, beta `[batch, time, kv_heads]`; query head h reads key head `h // (heads / kv_heads)`.
    log_forget `[batch, time, heads]`: added to the logits as in `attention` (PaTH-FoX), without the scale.
    chunk_size: tokens whose reflections are multiplied at once; keys are rewritten where chunks end, at multiples of
    it, and states of another chunk_size cannot be continued.
    state: of the tokens before; it is not changed. scale: None: `d_head ** -0.5`.
    backend: `chunked` (products only, memory linear in time without gradients), `fla` (flash-linear-attention; CUDA, in
    calls without a state) or `reference`.
    Returns `[batch, time, heads, d_value]` and the state. Raises `ValueError` if sizes do not fit together.
    """
    check_sizes(queries, keys, values)
    if keys.shape[1] != queries.shape[1]:
        raise ValueError(f"keys must be of the {queries.shape[1]} tokens of the queries, got {keys.shape[1]}")
    if directions.shape != keys.shape:
        raise ValueError(f"directions must have the shape of keys, {list(keys.shape)}, got {list(directions.shape)}")
    if beta.shape != keys.shape[:3]:
        raise ValueError(f"beta must be [batch, time, kv_heads] = {list(keys.shape[:3])}, got {list(beta.shape)}")
    if log_forget is not None and log_forget.shape != queries.shape[:3]:
        expected = f"[batch, time, heads] = {list(queries.shape[:3])}"
        raise ValueError(f"log_forget must be {expected}, got {list(log_forget.shape)}")
    if chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, got {chunk_size}")
    if state is not None and state.directions.shape[1] != chunk_size:
        raise ValueError(f"the state is of chunk_size {state.directions.shape[1]}, not {chunk_size}")
    if state is not None and (state.log_forget is None) != (log_forget is None):
        raise ValueError("log_forget must be given for all tokens or for none, and the state says otherwise")
    carried = state is not None or return_state
    call = Call.of(
        values,
        *(queries, keys, directions, beta, log_forget),
        width=max(keys.shape[3], values.shape[3]),
        tokens=queries.shape[1],
        variant=variant(cached=False, forget=log_forget, state=carried or None),
    )
    run = OP.select(backend, queries.device, call)
    scale = queries.shape[3] ** -0.5 if scale is None else scale
    return run(queries, keys, values, directions, beta, log_forget, scale, chunk_size, state, return_state)
