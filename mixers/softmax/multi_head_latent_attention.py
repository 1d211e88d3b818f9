"""Attention whose state is one short vector per token, from which all heads make their keys and values."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from ..interface import Mixer, MixerCard
from ..layers import RMSNorm, apply_rotary, head_size, rotary_angles, split_heads
from ..ops.attention import OP, attention
from ..options import option
from ..registry import register_mixer
from ..state import GrowableBuffer, MixerState
from ..stepping import Stepper, check_own
from .base import own_buffer
from .stepping import Cache, CacheStepper


@dataclass(frozen=True, eq=False)
class LatentState(MixerState):
    """latents `[batch, length, d_latent + d_rope]`: normalised latents, and the rotated key that the heads share."""

    latents: GrowableBuffer


@register_mixer
class MultiHeadLatentAttention(Mixer):
    """Multi-head latent attention (DeepSeek-AI 2024, arXiv 2405.04434, section 2.1).

    A token leaves a latent of d_latent numbers and one rotary key of d_rope; head h makes of the latent its key and its
    value. Long inputs make keys and values of all latents; where few queries meet many tokens, as in decoding, the
    products are taken in another order ("absorbed"): queries go to the latents, and what was read of them becomes
    values. Sizes None are DeepSeek-V2's in multiples of d_head: 4 for the latent, 1/2 for the rotary key. Rotated are
    features i and i + d_rope / 2, where DeepSeek's weights have neighbours. positions "nope" leaves that key as
    it is (Kimi Linear, arXiv 2510.26692, whose other layers tell positions).
    """

    card = MixerCard(
        name="multi_head_latent_attention",
        family="softmax",
        summary="Softmax attention that keeps one compressed latent and one rotary key per token for all heads",
        paper="DeepSeek-AI et al., DeepSeek-V2: A Strong, Economical, and Efficient Mixture-of-Experts Language Model",
        arxiv="2405.04434",
        year=2024,
        state_growth="linear",
        recurrence="o_t = sum_{s <= t} softmax_s((q_t . W_k c_s + q'_t . k'_s) / sqrt(d + d')) W_v c_s,  c = norm(W x)",
        complexity="O(T^2)",
        ops=(OP,),
    )

    heads: int = option("heads", default=4, least=1, small=2)
    d_head: int = option("size of a key without position; None: d_model / heads", default=None, least=1, small=8)
    d_value: int = option("size of a value; None: d_head", default=None, least=1, small=8)
    d_latent: int = option("size of the latent; None: 4 d_head", default=None, least=1, small=16)
    d_rope: int = option("size of the rotary key; None: d_head / 2", default=None, least=2, small=4)
    d_query_latent: int | None = option("size of a latent for queries; None: none", default=None, least=1)
    positions: Literal["rope", "nope"] = option(
        "how positions enter; nope: the rotary key is not turned", default="rope"
    )
    rope_theta: float = option("base of the rotary frequencies", default=10_000.0, above=0)

    def build(self) -> None:
        self.d_head = d_head = head_size(self.d_model, self.heads, self.d_head)
        self.d_value = d_head if self.d_value is None else self.d_value
        self.d_latent = 4 * d_head if self.d_latent is None else self.d_latent
        self.d_rope = d_head // 2 if self.d_rope is None else self.d_rope
        if self.d_rope % 2:
            raise ValueError(f"d_rope must be even, it is rotated in pairs, got {self.d_rope}")
        width = self.heads * (d_head + self.d_rope)
        self.q_proj = nn.Linear(self.d_query_latent or self.d_model, width, bias=False)
        if self.d_query_latent is not None:
            self.q_latent_proj = nn.Linear(self.d_model, self.d_query_latent, bias=False)
            self.q_norm = RMSNorm(self.d_query_latent)
        self.latent_proj = nn.Linear(self.d_model, self.d_latent + self.d_rope, bias=False)
        self.latent_norm = RMSNorm(self.d_latent)
        self.kv_proj = nn.Linear(self.d_latent, self.heads * (d_head + self.d_value), bias=False)
        self.o_proj = nn.Linear(self.heads * self.d_value, self.d_model, bias=False)

    def mix(self, x: Tensor, state: LatentState | None, return_state: bool) -> tuple[Tensor, LatentState | None]:
        angles = self._angles(0 if state is None else state.position, x)
        q, new = self._queries(x, angles), self._latents(x, angles)
        latents = GrowableBuffer.of(new) if state is None else state.latents.append(new)
        seen = latents.values.to(q.dtype)
        y = (self._absorbed if self._absorbs(x.shape[1], latents.length) else self._expanded)(q, seen)
        y = self.o_proj(y.flatten(2))
        if not return_state:
            return y, None
        return y, self.next_state(LatentState, x, state, latents=own_buffer(latents) if state is None else latents)

    def stepper(self, max_length: int, static: bool) -> Stepper:
        check_own(self, MultiHeadLatentAttention, "forward", "mix", "decode")
        return CacheStepper(self, max_length, static, ("latents",))

    def decode(
        self, x: Tensor, position: Tensor, cache: Cache, carried: dict[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """See `CachingMixer`."""
        angles = self._angles(position, x)
        (latents,) = cache.append(self._latents(x, angles))
        read = self._absorbed(self._queries(x, angles), latents, cache.attend)
        return self.o_proj(read.flatten(2)), {}

    def _angles(self, position: int | Tensor, x: Tensor) -> Tensor:
        angles = rotary_angles(position, x.shape[1], self.d_rope, self.rope_theta, x.device)
        return torch.zeros_like(angles) if self.positions == "nope" else angles

    def _queries(self, x: Tensor, angles: Tensor) -> Tensor:
        """`[batch, time, heads, d_head + d_rope]`, the last d_rope rotated."""
        if self.d_query_latent is not None:
            x = self.q_norm(self.q_latent_proj(x))
        plain, rotary = split_heads(self.q_proj(x), self.heads).split([self.d_head, self.d_rope], dim=-1)
        return torch.cat([plain, apply_rotary(rotary, angles)], dim=-1)

    def _latents(self, x: Tensor, angles: Tensor) -> Tensor:
        """`[batch, time, d_latent + d_rope]`: normalised latents and rotated keys."""
        latent, key = self.latent_proj(x).split([self.d_latent, self.d_rope], dim=-1)
        return torch.cat([self.latent_norm(latent), apply_rotary(key.unsqueeze(2), angles).squeeze(2)], dim=-1)

    def _absorbs(self, time: int, length: int) -> bool:
        """Whether fewer multiplications do for `time` queries over `length` latents without making keys and values."""
        made = length * self.d_latent * (self.d_head + self.d_value)
        expanded = made + time * length * (self.d_head + self.d_rope + self.d_value)
        absorbed = time * (length * 2 * (self.d_latent + self.d_rope) + self.d_latent * (self.d_head + self.d_value))
        return absorbed < expanded

    def _expanded(self, q: Tensor, seen: Tensor) -> Tensor:
        latents, rotary = seen.split([self.d_latent, self.d_rope], dim=-1)
        keys, values = split_heads(self.kv_proj(latents), self.heads).split([self.d_head, self.d_value], dim=-1)
        keys = torch.cat([keys, rotary.unsqueeze(2).expand(-1, -1, self.heads, -1)], dim=-1)
        return attention(q, keys, values, backend=self.backend)

    def _absorbed(self, q: Tensor, seen: Tensor, attend: Callable[..., Tensor] | None = None) -> Tensor:
        """attend: in place of `attention`."""
        to_keys, to_values = self.kv_proj.weight.unflatten(0, (self.heads, -1)).split(
            [self.d_head, self.d_value], dim=1
        )
        plain, rotary = q.split([self.d_head, self.d_rope], dim=-1)
        q = torch.cat([torch.einsum("bthd,hdc->bthc", plain, to_keys).to(rotary.dtype), rotary], dim=-1)
        # the latents with their rotary keys stand for the values, too, so that nothing of the state is copied
        seen = seen.unsqueeze(2)
        attend = attend or functools.partial(attention, backend=self.backend)
        read = attend(q, seen, seen, scale=(self.d_head + self.d_rope) ** -0.5)
        return torch.einsum("bthc,hdc->bthd", read[..., : self.d_latent], to_values)
