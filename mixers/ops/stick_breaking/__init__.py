"""Stick-breaking attention: from the newest key to the oldest, each takes a share of what is left of the stick."""

from __future__ import annotations

from torch import Tensor

from ..attention import check_sizes, variant
from ..attention.fla import LIBRARIES, refuses
from ..dispatch import Backend, Call, Op, needs_cuda_package

OP = Op(
    __name__,
    Backend("blockwise", "blockwise:stick_breaking"),
    Backend("fla", "fla:stick_breaking", needs_cuda_package("fla"), "proven", refuses=refuses, libraries=LIBRARIES),
    Backend("reference", "reference:stick_breaking", trust="never"),
    problems="problems:problems",
)

__all__ = ["OP", "stick_breaking"]


def stick_breaking(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    *,
    attend_current: bool = False,
    remainder: bool = False,
    scale: float | None = None,
    backend: str = "auto",
) -> Tensor:
    """Stick-breaking attention (Tan et al. 2024, arXiv 2410.17980, eq. 1 and 2), causal and without a softmax.

    With logits z of query i, key j gets `sigmoid(z_ij)` of what the keys between j and i left over: its weight is the
    product of that with `1 - sigmoid(z_il)` over j < l < i. Weights add up to at most 1, and recent keys come first.
    queries `[batch, time, heads, d_head]`; keys `[batch, key_time, kv_heads, d_head]`, values `[batch, key_time,
    kv_heads, d_value]`; the queries stand at the last `time` positions, heads are grouped as in `attention`.
    attend_current: the query's own token takes its share first; False: the first key is the token before it.
    remainder: what is left at the end goes to the value of the query's own token.
    scale: None: `d_head ** -0.5`. backend: `blockwise` (exact, in blocks of queries, memory linear in key_time), `fla`
    (flash-linear-attention; CUDA, without a cache) or `reference`.
    Returns `[batch, time, heads, d_value]`. Raises `ValueError` if sizes do not fit together.
    """
    check_sizes(queries, keys, values)
    time = queries.shape[1]
    call = Call.of(
        values,
        *(queries, keys),
        width=max(keys.shape[3], values.shape[3]),
        tokens=time,
        variant=variant(keys.shape[1] > time, current=attend_current or None),
    )
    run = OP.select(backend, queries.device, call)
    return run(queries, keys, values, attend_current, remainder, queries.shape[3] ** -0.5 if scale is None else scale)
