"""The scalar memory of xLSTM: a recurrent network whose gates see what the head put out at the token before."""

from __future__ import annotations

from torch import Tensor, autocast

from ..dispatch import Backend, Op

# The one backend: fused gates and a backward written by hand still took three quarters of its time on a CPU.
OP = Op(__name__, Backend("reference", "reference:slstm"))

__all__ = ["OP", "slstm"]

State = tuple[Tensor, Tensor, Tensor, Tensor]


def slstm(
    gates: Tensor,
    recurrent: Tensor,
    *,
    state: State | None = None,
    return_state: bool = False,
    backend: str = "auto",
) -> tuple[Tensor, State | None]:
    """Beck et al. 2024 (arXiv 2405.04517, section 2.2), with the sigmoid as forget gate. Per head:

        (i, f, z, o)_t = gates_t + recurrent^T h_{t-1}
        c_t = sigma(f) c_{t-1} + exp(i) tanh(z),  n_t = sigma(f) n_{t-1} + exp(i),  h_t = sigma(o) c_t / n_t

    c and n are held divided by exp(m_t), where m_t = max(log sigma(f) + m_{t-1}, i); this does not change the output.
    The gates depend on the output of the token before, so tokens are computed one after the other.
    gates `[batch, time, heads, 4, d]`: of input, forget, cell input and output gate, what comes from the token and the
    bias. recurrent `[heads, d, 4, d]`: from the features of h to those of each gate.
    state: h, c, n and m, each `[batch, heads, d]`, from an earlier call; None: h, c and n are 0.
    Returns the output h `[batch, time, heads, d]` in the dtype of `gates`, and the state (float32 at least) or None.
    Raises `ValueError` if sizes do not fit together.
    """
    if gates.ndim != 5 or gates.shape[3] != 4 or 0 in gates.shape:
        raise ValueError(f"gates must be [batch, time, heads, 4, d], none of them 0, got {list(gates.shape)}")
    batch, _, heads, _, d = gates.shape
    if recurrent.shape != (heads, d, 4, d):
        raise ValueError(f"recurrent must be [heads, d, 4, d] = {[heads, d, 4, d]}, got {list(recurrent.shape)}")
    if state is not None and any(tensor.shape != (batch, heads, d) for tensor in state):
        given = [list(tensor.shape) for tensor in state]
        raise ValueError(f"state must be four tensors [batch, heads, d] = {[batch, heads, d]}, got {given}")
    run = OP.select(backend, gates.device)
    # autocast would turn what the state is made of into low precision
    with autocast(gates.device.type, enabled=False):
        output, state = run(gates, recurrent, state)
    return output.to(gates.dtype), state if return_state else None
