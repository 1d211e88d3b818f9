"""Ridge regression for all tokens of a chunk at once: no token's own H_t is ever built.

H_t times a vector is what the memory before the chunk makes of it, decayed, and a masked product with the chunk's keys.
So each step of a solver costs three matrix products, over all chunks together; a loop over the chunks only decays and
adds what they wrote.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from . import RidgeState, Solver
from .reference import start
from .solvers import NORM_FLOOR, ExactGradient, chebyshev, chebyshev_rates, conjugate_gradient

BLOCK = 2**17  # features of the tokens that are solved for together on a CPU


class _Chunks(NamedTuple):
    """What makes the H_t of the tokens of all chunks, `batch * heads * chunks` in front.

    keys `[..., tokens, d_k]`, their transpose; gram `[..., d_k, d_k]` before the chunk; decay `[..., tokens, 1]` since
    then; weights `[..., t, j]`: how much of what token j wrote is left at token t, 0 for j > t.
    """

    keys: Tensor
    transposed: Tensor
    gram: Tensor
    decay: Tensor
    weights: Tensor

    def product(self, x: Tensor, added: Tensor, sign: float = 1.0) -> Tensor:
        """`added + sign * H_t x_t`, in the memory of `added`."""
        added.baddbmm_(self.decay * x, self.gram, alpha=sign)
        return added.baddbmm_(torch.bmm(x, self.transposed) * self.weights, self.keys, alpha=sign)

    def norm(self) -> Tensor:
        """`[..., tokens, 1]`: the Frobenius norm of every H_t."""
        keys, decay, weights = self.keys, self.decay, self.weights
        old = self.gram.square().sum((-2, -1))[:, None, None]
        mixed = weights @ (keys * (keys @ self.gram)).sum(-1, keepdim=True)
        new = ((weights @ (keys @ self.transposed).square()) * weights).sum(-1, keepdim=True)
        return (decay * (decay * old + 2 * mixed) + new + NORM_FLOOR).clamp_min(NORM_FLOOR).sqrt()


def ridge_regression(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    log_decay: Tensor,
    beta: Tensor,
    ridge: Tensor | float,
    mix: Tensor | None,
    solver: Solver,
    steps: int,
    chunk_size: int,
    state: RidgeState | None,
) -> tuple[Tensor, RidgeState]:
    dtype = torch.promote_types(values.dtype, torch.float32)
    (batch, time, heads, d_k), size = keys.shape, min(chunk_size, keys.shape[1])
    padding = -time % size

    def chunks(x: Tensor) -> Tensor:
        """`[batch * heads * chunks, tokens, features]`, padded with tokens that neither write nor decay."""
        x = F.pad(x.to(dtype), (0, 0, 0, 0, 0, padding))
        return x.unflatten(1, (-1, size)).permute(0, 3, 1, 2, 4).flatten(0, 2).contiguous()

    q, k, v, beta = chunks(queries), chunks(keys), chunks(values), chunks(beta[..., None])
    # sums of very large exponents would cost the small ones beside them their digits; this much is nothing either way
    g = chunks(log_decay[..., None]).clamp_min(2 * math.log(torch.finfo(dtype).eps)).cumsum(1)
    before, after = _memories(k, v, g, beta, start(keys.to(dtype), values) if state is None else state)
    gram, memory = before.split([d_k, v.shape[-1]], dim=-1)
    weights = _weights(g, beta)
    held = _Chunks(k, k.mT.contiguous(), gram.contiguous(), g.exp(), weights)
    x = _solve_in_blocks(q, held, _diagonal(ridge, held, batch), solver, steps)
    if mix is not None:
        x = torch.lerp(q, x, chunks(mix[..., None]))
    read = torch.baddbmm(torch.bmm(held.decay * x, memory), torch.bmm(x, held.transposed) * weights, v)
    return read.unflatten(0, (batch, heads, -1)).permute(0, 2, 3, 1, 4).flatten(1, 2)[:, :time], after


def _weights(g: Tensor, beta: Tensor) -> Tensor:
    difference = g - g.mT
    later = torch.ones_like(difference, dtype=torch.bool).triu(1)
    return difference.masked_fill(later, -torch.inf).exp() * beta.mT


def _memories(k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: RidgeState) -> tuple[Tensor, RidgeState]:
    """H and U side by side, `[batch * heads * chunks, d_k, d_k + d_v]`, before each chunk; and the state after all."""
    front = state.gram.shape[:2]
    left = (g[:, -1:] - g).exp() * beta
    writes = ((k * left).mT @ torch.cat([k, v], dim=-1)).unflatten(0, (*front, -1))
    decay = g[:, -1:].exp().unflatten(0, (*front, -1))
    memory = torch.cat([state.gram, state.memory], dim=-1).to(k.dtype)
    before = []
    for write, chunk_decay in zip(writes.unbind(2), decay.unbind(2)):
        before.append(memory)
        memory = chunk_decay * memory + write
    gram, values = memory.split([k.shape[-1], v.shape[-1]], dim=-1)
    return torch.stack(before, dim=2).flatten(0, 2), RidgeState(gram.contiguous(), values.contiguous())


def _diagonal(ridge: Tensor | float, held: _Chunks, batch: int) -> Tensor:
    """R of every token, `[..., tokens or 1, d_k or 1]`."""
    if not isinstance(ridge, Tensor):
        return ridge * held.norm()
    n_chunks = len(held.keys) // (batch * len(ridge))
    return ridge.to(held.keys.dtype)[None, :, None, None].expand(batch, -1, n_chunks, 1, -1).flatten(0, 2)


def _solve_in_blocks(q: Tensor, held: _Chunks, diagonal: Tensor, solver: Solver, steps: int) -> Tensor:
    """All steps for some chunks, then for others: on a CPU, as many as stay in its cache."""
    whole = q.device.type != "cpu" or torch.compiler.is_compiling()
    size = len(q) if whole else max(1, BLOCK // q[0].numel())
    parts = zip(*(x.split(size) for x in (q, diagonal, *held)))
    return torch.cat([_solve(q, _Chunks(*part), diagonal, solver, steps) for q, diagonal, *part in parts])


def _solve(q: Tensor, held: _Chunks, diagonal: Tensor, solver: Solver, steps: int) -> Tensor:
    if solver == "chebyshev":
        return _chebyshev(q, held, diagonal, steps)
    fixed, detached = _Chunks(*(x.detach() for x in held)), diagonal.detach()

    def product(x: Tensor) -> Tensor:
        return fixed.product(x, detached * x)

    x = conjugate_gradient(product, q.detach(), steps)
    if not torch.is_grad_enabled() or not any(t.requires_grad for t in (q, diagonal, *held)):
        return x
    return x + ExactGradient.apply(held.product(x, diagonal * x - q), steps, product)


def _chebyshev(q: Tensor, held: _Chunks, diagonal: Tensor, steps: int) -> Tensor:
    lower, upper = diagonal.amin(-1, keepdim=True), diagonal.amax(-1, keepdim=True) + held.norm()
    step, rate = chebyshev_rates(lower, upper)
    first, keep = step * q, 1 - step * diagonal
    # the step is folded into what is constant, so that all of one step is three products and three passes
    scaled = held._replace(decay=step * held.decay, weights=step * held.weights)
    return chebyshev(lambda x: scaled.product(x, torch.addcmul(first, keep, x), -1.0), first, rate, steps)
