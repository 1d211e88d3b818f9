"""Sending tokens to a few of several places, each of which sees the ones it was sent as a sequence."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Routes(NamedTuple):
    """Who goes where.

    tokens `[batch, places, length]`: the numbers of the tokens sent to each place in their order, 0 where there is none
    any more. counts `[batch, places]`: how many there are. chosen, rank `[batch, time, k]`: the places of a token, and
    where in their sequences it stands. weights `[batch, time, k]`: of the places of a token, sum 1.
    """

    tokens: Tensor
    counts: Tensor
    chosen: Tensor
    rank: Tensor
    weights: Tensor

    def send(self, x: Tensor) -> Tensor:
        """`[batch, places, length, d]` of `x [batch, time, d]`."""
        index = self.tokens.flatten(1).unsqueeze(-1).expand(-1, -1, x.shape[2])
        return x.gather(1, index).unflatten(1, self.tokens.shape[1:])

    def send_own(self, x: Tensor) -> Tensor:
        """`[batch, places, length, d]` of `x [batch, time, places * d]`, which has something else for each place."""
        x = x.unflatten(2, (self.tokens.shape[1], -1)).transpose(1, 2)
        return x.gather(2, self.tokens.unsqueeze(-1).expand(-1, -1, -1, x.shape[3]))

    def collect(self, y: Tensor) -> Tensor:
        """What came of each token, summed by its weights, `[batch, time, d]` of `y [batch, places, length, d]`."""
        index = (self.chosen * y.shape[2] + self.rank).flatten(1).unsqueeze(-1).expand(-1, -1, y.shape[3])
        found = y.flatten(1, 2).gather(1, index).unflatten(1, self.rank.shape[1:])
        return (found * self.weights.unsqueeze(-1).to(found.dtype)).sum(dim=2)


def route(scores: Tensor, top_k: int) -> Routes:
    """To the `top_k` places with the best `scores [batch, time, places]`, weighted by a softmax over those."""
    probabilities = scores.to(torch.promote_types(scores.dtype, torch.float32)).softmax(dim=-1)
    weights, chosen = probabilities.topk(top_k, dim=-1)
    batch, time, places = scores.shape
    here = torch.zeros_like(scores, dtype=torch.long).scatter_(2, chosen, 1)
    counts, order = here.sum(dim=1), here.cumsum(dim=1) - 1
    length = int(counts.max())
    tokens = torch.zeros(batch, places, length + 1, dtype=torch.long, device=scores.device)
    slots = order.masked_fill(here == 0, length).transpose(1, 2)  # tokens that go elsewhere share a slot, cut off below
    tokens.scatter_(2, slots, torch.arange(time, device=scores.device).expand(batch, places, -1))
    weights = weights / weights.sum(dim=-1, keepdim=True)
    return Routes(tokens[..., :length], counts, chosen, order.gather(2, chosen), weights)
