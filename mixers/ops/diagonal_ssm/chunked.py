"""Chunks in parallel: per channel, a product with the filter's first taps within each, and with the state before it.

The states before the chunks are a linear recurrence of their own. Cheaper than a Fourier transform over the whole time:
its filter would take as many powers of every transition as there are tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ..scan import linear_scan


def diagonal_ssm(
    values: Tensor, transition: Tensor, readout: Tensor, chunk_size: int, state: Tensor
) -> tuple[Tensor, Tensor]:
    batch, time, _ = values.shape
    if time == 1:
        state = transition * state + values[:, 0, :, None]
        return _real(readout * state).sum(-1)[:, None], state
    size = min(chunk_size, time)
    n_chunks = -(-time // size)
    last = time - (n_chunks - 1) * size  # tokens in the last chunk
    powers = _powers(transition, size)
    x = F.pad(values, (0, 0, 0, n_chunks * size - time)).unflatten(1, (n_chunks, size))
    x = x.permute(3, 2, 0, 1).flatten(2)  # [channels, size, batch * n_chunks]

    starts = state[:, None]
    if n_chunks > 1:
        writes = _split(powers[:, :-1].flip(1)).mT @ x  # what each chunk adds to the state at its end
        writes = _join(writes.unflatten(2, (batch, n_chunks)).permute(2, 3, 0, 1)[:, :-1], transition)
        ends, _ = linear_scan(powers[:, -1].expand_as(writes), writes, state=state)
        starts = torch.cat([starts, ends], dim=1)

    reading = readout[:, None] * powers
    taps = _real(reading[:, :-1]).sum(2)
    h = _split(starts).permute(2, 3, 0, 1).flatten(2)  # [channels, d_state or twice it, batch * n_chunks]
    y = torch.baddbmm(_split(reading[:, 1:].conj()) @ h, _toeplitz(taps), x)
    y = y.unflatten(2, (batch, n_chunks)).permute(2, 3, 1, 0).flatten(1, 2)[:, :time]

    written = torch.einsum("btd,dtn->bdn", values[:, time - last :], _split(powers[:, :last].flip(1)))
    return y, powers[:, last] * starts[:, -1] + _join(written, transition)


def _powers(transition: Tensor, count: int) -> Tensor:
    """`transition [channels, d_state]` to the powers 0..count, `[channels, count + 1, d_state]`, by doubling."""
    powers, factor = torch.ones_like(transition)[:, None], transition[:, None]
    while powers.shape[1] <= count:
        powers = torch.cat([powers, powers * factor], dim=1)
        factor = factor * factor
    return powers[:, : count + 1]


def _toeplitz(taps: Tensor) -> Tensor:
    """`taps [channels, size]` as matrices `[channels, size, size]` that convolve causally."""
    size = taps.shape[1]
    return F.pad(taps, (size - 1, 0)).unfold(1, size, 1).flip(2)


def _real(x: Tensor) -> Tensor:
    return x.real if x.is_complex() else x


def _split(x: Tensor) -> Tensor:
    """`[..., n]` as real numbers: real parts before imaginary ones, if there are any."""
    return torch.cat([x.real, x.imag], dim=-1) if x.is_complex() else x


def _join(x: Tensor, like: Tensor) -> Tensor:
    """What `_split` took apart, complex if `like` is."""
    return torch.complex(*x.chunk(2, dim=-1)) if like.is_complex() else x
