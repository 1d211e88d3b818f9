"""The engine of every mixer whose memory is a matrix per head: it decays, erases and is written by outer products."""

from __future__ import annotations

from torch import Tensor, autocast
from torch.nn import functional as F

from ..dispatch import Backend, Call, Op
from ..libraries import needs_fla
from .fla import refuses
from .inputs import Inputs, check

OP = Op(
    __name__,
    Backend("chunked", "chunked:linear_recurrence"),
    Backend(
        "fla",
        "fla:linear_recurrence",
        needs_fla,
        trust="proven",
        refuses=refuses,
        libraries=("fla-core", "flash-linear-attention", "triton"),
    ),
    Backend("reference", "reference:linear_recurrence", trust="never"),
    problems="problems:problems",
)

__all__ = ["OP", "linear_recurrence"]

EPSILON = 1e-10  # makes 0 / 0 a 0 where all features underflow


def linear_recurrence(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    *,
    log_decay: Tensor | None = None,
    beta: Tensor | None = None,
    erase: tuple[Tensor, Tensor | None] | None = None,
    bonus: Tensor | None = None,
    decay_floor: float | None = None,
    normaliser: bool = False,
    scale: float | None = None,
    chunk_size: int = 64,
    state: Tensor | None = None,
    return_state: bool = False,
    backend: str = "auto",
) -> tuple[Tensor, Tensor | None]:
    """Write every token into a memory `S [d_k, d_v]` per head, and read it with the token's query.

    With `D_t = exp(log_decay_t)`, which multiplies the whole memory or each of its rows, one of

        plain         S_t = D_t S_{t-1} + k_t v_t^T
        beta          S_t = D_t S_{t-1} + beta_t k_t (v_t - (D_t S_{t-1})^T k_t)^T      (delta rule)
        erase (a, b)  S_t = D_t S_{t-1} + b_t (a_t^T S_{t-1}) + k_t v_t^T               (any rank-one change)

    and then `o_t = scale * S_t^T q_t`. Note that `a` reads the memory before it decays.

    queries `[batch, time, q_heads, d_k]`, keys `[batch, time, k_heads, d_k]`, taken as they are; values
    `[batch, time, heads, d_v]`. k_heads divides heads, and consecutive heads share a key. q_heads divides heads
    likewise, or is a multiple of it: then consecutive queries read the same memory.
    log_decay: `[batch, time, heads]`, or per key channel `[batch, time, heads, d_k]`; at most 0. -inf forgets all.
    beta `[batch, time, heads]`. erase: `(a, b)`, each `[batch, time, heads, d_k]`; b None stands for -keys, which
    saves half the work. beta and erase exclude each other.
    bonus u `[heads, d_k]` (RWKV-6): `o_t = scale * (S_{t-1} + diag(u) k_t v_t^T)^T q_t`; plain writes only.
    decay_floor: a number that no log_decay is below, by the way it is made: some kernels are faster if they know one.
    normaliser: divide the output by `z_t . q_t`, where z is the same recurrence with value 1, so that `scale` cancels.
    For queries and keys with positive products and plain writes.
    scale: of the queries; None means `d_k ** -0.5`. chunk_size: tokens computed at once; changes the speed only.
    state `[batch, heads, d_k, d_v]`, with the normaliser one more column for z: what an earlier call returned; None
    is an empty memory.
    backend: `chunked` (matrix products over chunks), `fla` (flash-linear-attention's kernels, CUDA), `reference`, or
    `auto`.
    Returns the output `[batch, time, max(heads, q_heads), d_v]` in the dtype of `values`, and the state (float32 at
    least) or None. Raises `ValueError` if sizes or options do not fit together.
    """
    inputs = Inputs(queries, keys, values, log_decay, beta, erase, bonus, decay_floor)
    check(inputs, normaliser, chunk_size, state)
    # the kernels that erase hold whole keys, and cut values into blocks
    width = keys.shape[3] if beta is not None or erase is not None else max(keys.shape[3], values.shape[3])
    others = (*inputs.tensors, state)
    call = Call.of(values, *others, width=width, tokens=values.shape[1], variant=inputs.variant(normaliser))
    run = OP.select(backend, values.device, call)
    if normaliser:  # z accumulates like a value that is always 1
        inputs, scale = inputs._replace(values=F.pad(values, (0, 1), value=1.0)), 1.0
    if scale is None:
        scale = keys.shape[3] ** -0.5
    # autocast would turn the products that build the state into low precision
    with autocast(values.device.type, enabled=False):
        output, state = run(inputs, scale, chunk_size, state, return_state)
        if normaliser:
            output = output[..., :-1] / (output[..., -1:] + EPSILON)
    return output.to(values.dtype), state
