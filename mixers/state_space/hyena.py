"""Hyena: gates between convolutions as long as the sequence, whose filters a small network draws from the position."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor, autocast, nn
from torch.nn import functional as F

from ..interface import Mixer, MixerCard
from ..layers import ShortConvolution
from ..ops.long_convolution import OP, long_convolution
from ..options import option
from ..registry import register_mixer
from ..state import SHARED, GrowableBuffer, MixerState

# The window over a filter falls to 1/100 after this many filter lengths, in its fastest and in its slowest channel.
WINDOW_END, FASTEST, SLOWEST = 1e-2, 0.3, 1.5


class ImplicitFilter(nn.Module):
    """Filters that are a function of the position: a network with sines, times a window that decays exponentially.

    `filter(begin, end)` gives the lags from begin to end, `[end - begin, channels]`, in float32 at least. Time is
    counted in filter lengths, and goes on beyond the first. Three hidden layers of `width` share their frequencies, as
    in the released code; unlike there, the features of the position are fixed.
    """

    def __init__(self, channels: int, length: int, features: int, width: int, frequency: float) -> None:
        super().__init__()
        self.channels, self.length, self.bands = channels, length, (features - 1) // 2
        self.hidden = nn.ModuleList([nn.Linear(features, width), nn.Linear(width, width), nn.Linear(width, width)])
        self.out = nn.Linear(width, channels, bias=False)
        self.frequency = nn.Parameter(torch.full((width,), frequency))

    def forward(self, begin: int, end: int) -> Tensor:
        weight = self.out.weight
        dtype = torch.promote_types(weight.dtype, torch.float32)
        with autocast(weight.device.type, enabled=False):
            time = torch.arange(begin, end, device=weight.device, dtype=dtype)[:, None] / self.length
            bands = torch.linspace(1e-4, max(1e-4, self.bands - 1), self.bands, device=weight.device, dtype=dtype)
            angles = 2 * math.pi * time * bands
            h = torch.cat([time, angles.cos(), -angles.sin()], dim=-1)
            for layer in cast("list[nn.Linear]", list(self.hidden)):
                h = F.linear(h, layer.weight.to(dtype), layer.bias.to(dtype))
                h = torch.sin(self.frequency.to(dtype) * h)
            rates = torch.linspace(1 / SLOWEST, 1 / FASTEST, self.channels, device=weight.device, dtype=dtype)
            return F.linear(h, weight.to(dtype)) * WINDOW_END ** (time * rates)


@dataclasses.dataclass(frozen=True, eq=False)
class HyenaState(MixerState):
    """conv: last inputs of the short convolution. histories: all inputs of each long one. filters: as far as they were
    drawn, `[1, lags, channels]`, so that decoding need not draw them again."""

    conv: Tensor
    histories: tuple[GrowableBuffer, ...]
    filters: GrowableBuffer = dataclasses.field(metadata=SHARED)


@register_mixer
class Hyena(Mixer):
    """Hyena (Poli et al. 2023, arXiv 2302.10866, section 3).

    As the released code, where it differs from the paper's definition: order N has N - 1 long convolutions, each with a
    skip of its own, since the short convolution stands for the first; sizes and frequency are those of its language
    models. Filters are a function of the position, without a largest length: `filter_length` only scales their time.
    Continuation is exact, at the price of a state that holds all inputs of the long convolutions, and the filters as
    far as they were drawn; a token costs as much time as there are tokens before it.
    """

    card = MixerCard(
        name="hyena",
        family="state space",
        summary="Gates between causal convolutions as long as the sequence, with filters drawn by a small network",
        paper="Poli et al., Hyena Hierarchy: Towards Larger Convolutional Language Models",
        arxiv="2302.10866",
        year=2023,
        state_growth="linear",
        recurrence="y_t = x0_t * sum_s h_s (x1_{t-s} * v_{t-s}),  h_s = window(s) * network(s)",
        complexity="O(T log T)",
        limits="a token of a continuation costs time and state in proportion to the tokens before it",
        ops=(OP,),
    )

    order: int = option("gates and values together, less one: it has order - 1 long convolutions", default=2, least=2)
    conv_size: int = option("tokens that the short convolution sees", default=3, least=1)
    filter_length: int = option("tokens over which filters decay", default=2048, least=1, small=32)
    filter_width: int = option("width of the network that draws the filters", default=64, least=1, small=8)
    filter_features: int = option("of the position that it sees: time, sines, cosines", default=33, least=3, small=5)
    filter_frequency: float = option("by which its sines start to multiply", default=14.0, above=0)

    def build(self) -> None:
        if self.filter_features % 2 == 0:
            raise ValueError(f"filter_features must be odd, time and pairs of waves, got {self.filter_features}")
        channels = (self.order - 1) * self.d_model
        self.in_proj = nn.Linear(self.d_model, (self.order + 1) * self.d_model)
        self.conv = ShortConvolution((self.order + 1) * self.d_model, self.conv_size, bias=True)
        self.filter = ImplicitFilter(
            channels, self.filter_length, self.filter_features, self.filter_width, self.filter_frequency
        )
        self.skip = nn.Parameter(torch.randn(channels))
        self.o_proj = nn.Linear(self.d_model, self.d_model)

    def mix(self, x: Tensor, state: HyenaState | None, return_state: bool) -> tuple[Tensor, HyenaState | None]:
        position, time = 0 if state is None else state.position, x.shape[1]
        projected, conv = self.conv(self.in_proj(x), None if state is None else state.conv)
        last_gate, *gates, v = projected.chunk(self.order + 1, dim=-1)
        filters = self._filters(state, position + time)
        taps = filters.values[0].chunk(self.order - 1, dim=-1)
        histories = []
        for i, (gate, skip) in enumerate(zip(reversed(gates), self.skip.chunk(self.order - 1))):
            v = v * gate
            history = GrowableBuffer.of(v) if state is None else state.histories[i].append(v)
            histories.append(history)
            y = long_convolution(history.values, taps[i], outputs=time, backend=self.backend)
            v = y + skip.to(y.dtype) * v
        y = self.o_proj(v * last_gate).to(x.dtype)
        if not return_state:
            return y, None
        filters = filters.map_tensors(lambda t: t.detach()) if filters.storage.requires_grad else filters
        return y, self.next_state(HyenaState, x, state, conv=conv, histories=tuple(histories), filters=filters)

    def _filters(self, state: HyenaState | None, lags: int) -> GrowableBuffer:
        """The filters `[1, lags, channels]`: from the state as far as it has them, unless gradients are wanted."""
        if state is None or torch.is_grad_enabled():
            return GrowableBuffer.of(self.filter(0, lags)[None])
        return state.filters.append(self.filter(state.filters.length, lags)[None])

    def parameter_groups(self) -> list[dict[str, Any]]:
        return [{"params": list(self.filter.parameters()), "weight_decay": 0.0}]
