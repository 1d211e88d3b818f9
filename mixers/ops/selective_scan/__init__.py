"""The selective scan of Mamba: a diagonal state space model whose step size, input and output depend on the token."""

from __future__ import annotations

from torch import Tensor, autocast

from ..dispatch import Backend, Call, Op
from . import mamba_ssm

OP = Op(
    __name__,
    Backend("chunked", "chunked:selective_scan"),
    Backend(
        "mamba_ssm",
        "mamba_ssm:selective_scan",
        mamba_ssm.why_not,
        trust="proven",
        refuses=mamba_ssm.refuses,
        libraries=("mamba-ssm", "triton"),
    ),
    Backend("reference", "reference:selective_scan", trust="never"),
    problems="problems:problems",
    widths=(16, 32, 64, 128, 256),
)

__all__ = ["OP", "selective_scan"]


def selective_scan(
    values: Tensor,
    step: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    *,
    state: Tensor | None = None,
    return_state: bool = False,
    backend: str = "auto",
) -> tuple[Tensor, Tensor | None]:
    """S6 (Gu & Dao 2023, arXiv 2312.00752, section 3.2), per channel d, with a state of `d_state` numbers:

        h_t = exp(step_t A) * h_{t-1} + step_t B_t x_t,  y_t = C_t . h_t

    A is discretised by zero-order hold, B by its first-order approximation, as in the paper's implementation. The skip
    `D x`, the gate and the softplus of the step size are left to the caller.
    values, step `[batch, time, channels]`, step >= 0; A `[channels, d_state]`, < 0; B, C `[batch, time, d_state]`.
    state `[batch, d_state, channels]`: what an earlier call returned; None starts from zeros.
    backend: `chunked` (a few tokens of all channels at a time, in parallel; first derivatives only), `mamba_ssm`
    (Mamba's own kernels, CUDA), `reference`, or `auto`.
    Returns y `[batch, time, channels]` in the dtype of `values`, and the state (float32 at least) or None.
    Raises `ValueError` if sizes do not fit together.
    """
    if values.ndim != 3 or 0 in values.shape:
        raise ValueError(f"values must be [batch, time, channels], none of them 0, got {list(values.shape)}")
    batch, time, channels = values.shape
    if A.ndim != 2 or len(A) != channels or 0 in A.shape:
        raise ValueError(f"A must be [channels = {channels}, d_state >= 1], got {list(A.shape)}")
    expected = {
        "step": (step, [batch, time, channels]),
        "B": (B, [batch, time, A.shape[1]]),
        "C": (C, [batch, time, A.shape[1]]),
        "state": (state, [batch, A.shape[1], channels]),
    }
    for name, (tensor, shape) in expected.items():
        if tensor is not None and list(tensor.shape) != shape:
            raise ValueError(f"{name} must be {shape} for these values and A, got {list(tensor.shape)}")
    call = Call.of(values, step, A, B, C, state, width=A.shape[1], tokens=time)
    if state is not None or (return_state and call.gradient):
        call = call._replace(variant=mamba_ssm.CARRIED)
    run = OP.select(backend, values.device, call)
    with autocast(values.device.type, enabled=False):
        y, end = run(values, step, A, B, C, state, return_state)
    return y.to(values.dtype), end
