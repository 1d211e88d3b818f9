"""Decay within a chunk: none, one number per head and token, or one per key channel.

All logarithms of decays are sums over the tokens between two points, of terms <= 0. Never is one sum subtracted from
another: so nothing overflows, a decay of 0 (log -inf) is exact, and what follows it keeps all its digits.

Tensors are `[chunks, memories, group, chunk, d]`. "Inclusive" reads a memory after the token's own decay and write,
"exclusive" before them.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F


class Decay(Protocol):
    """Decays between the tokens of a chunk, and from and to its ends."""

    def scores(self, rows: Tensor, columns: Tensor, inclusive: bool) -> Tensor:
        """`sum_c rows[i, c] columns[j, c] decay[j -> i, c]` where j <= i, exclusive j < i; else 0."""

    def from_start(self, rows: Tensor, inclusive: bool) -> Tensor:
        """Rows, times the decay from the chunk's start to each."""

    def to_end(self, columns: Tensor) -> Tensor:
        """Columns, times the decay from each to the chunk's end."""

    def whole(self) -> Tensor | None:
        """The decay over each chunk, `[chunks, memories, 1, 1 or d_k, 1]`; None: none."""


class NoDecay:
    """Nothing is forgotten."""

    def scores(self, rows: Tensor, columns: Tensor, inclusive: bool) -> Tensor:
        return (rows @ columns.mT).tril(0 if inclusive else -1)

    def from_start(self, rows: Tensor, inclusive: bool) -> Tensor:
        return rows

    def to_end(self, columns: Tensor) -> Tensor:
        return columns

    def whole(self) -> None:
        return None


class HeadDecay:
    """`log_decay [chunks, memories, 1, chunk]`."""

    def __init__(self, log_decay: Tensor) -> None:
        chunk = log_decay.shape[-1]
        lower = torch.ones(chunk, chunk, dtype=torch.bool, device=log_decay.device).tril()
        # entry [i, j] sums over j < t <= i
        sums = log_decay[..., None].expand(*log_decay.shape, chunk).masked_fill(~lower.tril(-1), 0).cumsum(-2)
        self.between = sums.masked_fill(~lower, -torch.inf).exp()
        self.start = log_decay.cumsum(-1).exp()[..., None]

    def scores(self, rows: Tensor, columns: Tensor, inclusive: bool) -> Tensor:
        between = self.between if inclusive else F.pad(self.between[..., :-1, :], (0, 0, 1, 0))
        return (rows @ columns.mT) * between

    def from_start(self, rows: Tensor, inclusive: bool) -> Tensor:
        return rows * (self.start if inclusive else F.pad(self.start[..., :-1, :], (0, 0, 1, 0), value=1.0))

    def to_end(self, columns: Tensor) -> Tensor:
        return columns * self.between[..., -1, :, None]

    def whole(self) -> Tensor:
        return self.start[..., -1:, :]


class ChannelDecay:
    """`log_decay [chunks, memories, 1, chunk, d_k]`, the chunk a power of two.

    A product with one decay per channel is a matrix product only if the decay splits into a factor of the row and one
    of the column. So blocks are halved down to single tokens (secondary chunking, Yang et al. 2023, arXiv 2312.06635,
    section 4.3, in every size): rows in the right half of a block meet columns in its left half, and their decay splits
    at the middle into two factors <= 1.
    """

    def __init__(self, log_decay: Tensor) -> None:
        chunk = log_decay.shape[-2]
        self.levels: list[tuple[Tensor, Tensor, Tensor]] = []
        # of blocks, at first of one token: sums from the start to each token, from each to the end, and over all
        upto, total = log_decay.unsqueeze(-2), log_decay.unsqueeze(-2)
        after = torch.zeros_like(upto)
        while upto.shape[-2] < chunk:
            (left, right), (left_after, right_after), (left_total, right_total) = map(_halves, (upto, after, total))
            before = F.pad(right[..., :-1, :], (0, 0, 1, 0))
            self.levels.append((right.exp(), before.exp(), left_after.exp()))
            upto = torch.cat([left, right + left_total], -2)
            after = torch.cat([left_after + right_total, right_after], -2)
            total = left_total + right_total
        self.start, self.end, self.total = (x.squeeze(-3).exp() for x in (upto, after, total))

    def scores(self, rows: Tensor, columns: Tensor, inclusive: bool) -> Tensor:
        block = (rows * columns).sum(-1)[..., None, None]
        if not inclusive:
            block = torch.zeros_like(block)
        rows, columns = rows.unsqueeze(-2), columns.unsqueeze(-2)
        for upto, before, after in self.levels:
            size = upto.shape[-2]
            right = _halves(rows.reshape(*rows.shape[:-3], -1, size, rows.shape[-1]))[1] * (
                upto if inclusive else before
            )
            left = _halves(columns.reshape(*columns.shape[:-3], -1, size, columns.shape[-1]))[0] * after
            corner = right @ left.mT
            first, second = block.unflatten(-3, (-1, 2)).unbind(-3)
            block = torch.cat([F.pad(first, (0, size)), torch.cat([corner, second], -1)], -2)
        return block.squeeze(-3)

    def from_start(self, rows: Tensor, inclusive: bool) -> Tensor:
        return rows * (self.start if inclusive else F.pad(self.start[..., :-1, :], (0, 0, 1, 0), value=1.0))

    def to_end(self, columns: Tensor) -> Tensor:
        return columns * self.end

    def whole(self) -> Tensor:
        return self.total.mT


def _halves(x: Tensor) -> tuple[Tensor, Tensor]:
    """`[..., blocks, size, d]` as the left and the right blocks of pairs, each `[..., blocks / 2, size, d]`."""
    left, right = x.unflatten(-3, (-1, 2)).unbind(-3)
    return left, right
