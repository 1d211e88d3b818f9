"""The token before each token."""

from __future__ import annotations

import torch
from torch import Tensor


def token_shift(x: Tensor, last: Tensor | None) -> tuple[Tensor, Tensor]:
    """`x [batch, time, channels]` one token later, and its last token `[batch, 1, channels]`, which continues it.

    last: what an earlier call returned; None: zeros stand before the first token.
    """
    before = torch.zeros_like(x[:, :1]) if last is None else last.to(x.dtype)
    return torch.cat([before, x[:, :-1]], dim=1), x[:, -1:].clone()
