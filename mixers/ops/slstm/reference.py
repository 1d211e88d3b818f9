"""The recurrence, token by token, as the paper states it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from . import State


def slstm(gates: Tensor, recurrent: Tensor, state: State | None) -> tuple[Tensor, State]:
    dtype = torch.promote_types(gates.dtype, torch.float32)
    gates, recurrent = gates.to(dtype), recurrent.to(dtype)
    if state is None:
        h = c = n = torch.zeros_like(gates[:, 0, :, 0])
        m = torch.full_like(h, -torch.inf)
    else:
        h, c, n, m = (tensor.to(dtype) for tensor in state)
    outputs = []
    for gate in gates.unbind(1):
        i, f, z, o = (gate + torch.einsum("bhd,hdge->bhge", h, recurrent)).unbind(2)
        kept = F.logsigmoid(f) + m
        m = torch.maximum(kept, i).detach()  # no output depends on it: its gradients cancel
        c = (kept - m).exp() * c + (i - m).exp() * z.tanh()
        n = (kept - m).exp() * n + (i - m).exp()
        h = o.sigmoid() * c / n
        outputs.append(h)
    return torch.stack(outputs, dim=1), (h, c, n, m)
