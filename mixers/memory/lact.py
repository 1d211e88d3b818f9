"""LaCT: attention over a window, and beside it SwiGLU fast weights that a large chunk of tokens rewrites at once."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..interface import Mixer, MixerCard
from ..layers import RMSNorm, apply_rotary, rotary_angles, split_heads, unit_length
from ..ops.attention import attention
from ..ops.lact import OP, LactState, lact
from ..options import option
from ..registry import register_mixer
from ..state import GrowableBuffer, MixerState

BASE_STEP = 0.001  # softplus of this bias is the inner learning rate at first, as in the released code
GAIN = 0.5  # of the initial low-rank factors, and of the identity that is added to them


@dataclass(frozen=True, eq=False)
class LaCTMixerState(MixerState):
    """fast: the memory; keys (rotated) and values of the window, `[batch, length, heads, d_head]`."""

    fast: LactState
    keys: GrowableBuffer
    values: GrowableBuffer


class LowRank(nn.Module):
    """Matrices `[heads, d_out, d_in]` of the rank given, plus a part of the identity."""

    def __init__(self, heads: int, d_out: int, d_in: int, rank: int) -> None:
        super().__init__()
        self.left = nn.Parameter(torch.empty(heads, d_out, rank).normal_(0, GAIN * rank**-0.5))
        self.right = nn.Parameter(torch.empty(heads, rank, d_in).normal_(0, GAIN * d_in**-0.5))

    def forward(self) -> Tensor:
        identity = torch.eye(self.left.shape[1], self.right.shape[2], device=self.left.device, dtype=self.left.dtype)
        return self.left @ self.right + GAIN * identity


@register_mixer
class LaCT(Mixer):
    """Large-chunk test-time training for language (Zhang et al. 2025, arXiv 2505.23884): window attention and a memory.

    Both read the same projections; the memory's queries and keys are scaled and shifted channel by channel, pass SiLU
    like its values, have length 1 and are rotated as those of the attention. What the memory reads is normalised and
    scaled head by head and added to what the attention reads. The memory's tokens read the weights from before their
    chunk and rewrite them at its end, so only the attention sees within a chunk: the window must be no shorter than a
    chunk for nothing to be missed. Defaults: those of the released language models, but for the chunk of 512 tokens,
    which is the baseline of the FwPKM paper (2601.00671; theirs is 2,048).
    Raises `ValueError` for sizes that do not fit together.
    """

    card = MixerCard(
        name="lact",
        family="memory",
        summary="Window attention beside SwiGLU fast weights that large chunks of tokens rewrite at once",
        paper="Zhang et al., Test-Time Training Done Right",
        arxiv="2505.23884",
        year=2025,
        state_growth="bounded",
        recurrence="W_{c+1} = norm(W_c + sum_t eta_t grad f(k_t; W_c) . v_t over chunk c),  "
        "o_t = window attention + s_t norm(f(q_t; W_c))",
        limits="tokens of a chunk do not see each other in the memory, only in the window",
        ops=(OP,),
        parallel=False,
        low_precision_tolerance=0.1,  # Muon makes the smallest directions as large as the others, rounding included
    )

    heads: int = option("heads of the attention", default=4, least=1, small=2)
    memory_heads: int = option("number of memories", default=4, least=1, small=2)
    window: int = option("tokens that the attention sees", default=2048, least=1, small=16, piece=True)
    chunk_size: int = option("tokens between rewrites", default=512, least=1, small=16, piece=True)
    expand: float = option("width inside a memory, in multiples of d_model / memory_heads", default=1.0, above=0)
    rank: int | None = option("of the learned initial gate and up weights; None: full", default=32, least=1, small=4)
    momentum: bool = option("carry a part of a chunk's update over to the next", default=True)
    muon: bool = option("make updates orthogonal", default=False)
    rope_theta: float = option("base of the rotary frequencies", default=1_000_000.0, above=0)

    def build(self) -> None:
        d_model, heads, memories = self.d_model, self.heads, self.memory_heads
        if d_model % heads or d_model % memories or (d_model // heads) % 2:
            raise ValueError(
                f"heads and memory_heads must divide d_model {d_model}, and d_model / heads be even, "
                f"got {heads} and {memories}"
            )
        d_memory = d_model // memories
        hidden = round(self.expand * d_memory)
        if hidden < 1:
            raise ValueError(f"expand * d_model / memory_heads must be at least 1, got {self.expand * d_memory}")
        self.qkv_proj = nn.Linear(d_model, 3 * d_model, bias=False)
        self.qk_scale = nn.Parameter(torch.ones(2 * d_model))
        self.qk_shift = nn.Parameter(torch.zeros(2 * d_model))
        self.memory_gate, self.memory_up = self._initial(hidden, d_memory), self._initial(hidden, d_memory)
        self.memory_down = nn.Parameter(torch.empty(memories, d_memory, hidden).normal_(0, hidden**-0.5))
        self.step_proj, self.scale_proj = nn.Linear(d_model, 3 * memories), nn.Linear(d_model, memories)
        self.momentum_proj = nn.Linear(d_model, memories) if self.momentum else None
        self.memory_norm = RMSNorm(d_memory)
        self.o_proj = nn.Linear(d_model, d_model, bias=False)
        nn.init.zeros_(self.step_proj.bias)

    def _initial(self, hidden: int, d_memory: int) -> LowRank | nn.Parameter:
        if self.rank is not None:
            return LowRank(self.memory_heads, hidden, d_memory, self.rank)
        return nn.Parameter(torch.empty(self.memory_heads, hidden, d_memory).normal_(0, d_memory**-0.5))

    def initial_weights(self) -> tuple[Tensor, Tensor, Tensor]:
        """Gate, down and up, with which every sequence begins."""
        gate, up = (w() if isinstance(w, LowRank) else w for w in (self.memory_gate, self.memory_up))
        return gate, self.memory_down, up

    def mix(self, x: Tensor, state: LaCTMixerState | None, return_state: bool) -> tuple[Tensor, LaCTMixerState | None]:
        position = 0 if state is None else state.position
        angles = rotary_angles(position, x.shape[1], self.d_model // self.heads, self.rope_theta, x.device)
        qkv = self.qkv_proj(x)
        seen, keys, values = self._attend(qkv, angles, state)
        read, fast = self._remember(x, qkv, angles, state, return_state)
        y = self.o_proj(seen.flatten(2) + read.to(seen.dtype)).to(x.dtype)
        if not return_state:
            return y, None
        return y, self.next_state(LaCTMixerState, x, state, fast=fast, keys=keys, values=values)

    def _attend(
        self, qkv: Tensor, angles: Tensor, state: LaCTMixerState | None
    ) -> tuple[Tensor, GrowableBuffer, GrowableBuffer]:
        """What the window shows, `[batch, time, heads, d_head]`, and the keys and values that later tokens see."""
        q, k, v = split_heads(qkv, 3 * self.heads).chunk(3, dim=2)
        q, k = apply_rotary(q, angles), apply_rotary(k, angles)
        new = k, v
        buffers = [
            GrowableBuffer.of(x) if old is None else old.append(x)
            for x, old in zip(new, (None, None) if state is None else (state.keys, state.values))
        ]
        backend = "reference" if self.backend == "reference" else "auto"
        seen = attention(q, *(b.values.to(q.dtype) for b in buffers), window=self.window, backend=backend)
        kept = [b.keep_last(self.window - 1) for b in buffers]
        if state is None:  # views of all projections, which a state must not keep alive
            kept = [GrowableBuffer.of(b.values.clone(memory_format=torch.contiguous_format)) for b in kept]
        return seen, kept[0], kept[1]

    def _remember(
        self, x: Tensor, qkv: Tensor, angles: Tensor, state: LaCTMixerState | None, return_state: bool
    ) -> tuple[Tensor, LactState | None]:
        """What the memory reads, `[batch, time, d_model]`, and its state."""
        precision = torch.promote_types(x.dtype, torch.float32)
        qk, v = qkv.to(precision).split([2 * self.d_model, self.d_model], dim=-1)
        qk = F.silu(qk * self.qk_scale.to(precision) + self.qk_shift.to(precision))
        qk = unit_length(split_heads(qk, 2 * self.memory_heads)).flatten(2)
        q, k = apply_rotary(split_heads(qk, 2 * self.heads), angles).flatten(2).chunk(2, dim=-1)
        steps = F.softplus(self.step_proj(x).to(precision) + math.log(math.expm1(BASE_STEP)))
        if self.muon:  # which heeds their ratios only; in this unit, gradients fit float16
            steps = steps / BASE_STEP
        momentum = None if self.momentum_proj is None else self.momentum_proj(x).to(precision).sigmoid()
        read, fast = lact(
            split_heads(q, self.memory_heads),
            split_heads(k, self.memory_heads),
            split_heads(F.silu(v), self.memory_heads),
            steps.unflatten(-1, (self.memory_heads, 3)),
            weights=self.initial_weights(),
            momentum=momentum,
            muon=self.muon,
            chunk_size=self.chunk_size,
            state=None if state is None else state.fast,
            return_state=return_state,
            backend=self.backend,
        )
        scale = F.silu(self.scale_proj(x))[..., None]
        return (self.memory_norm(read.to(scale.dtype)) * scale).flatten(2), fast

    def max_state_nbytes(self, batch: int, dtype: torch.dtype = torch.float32) -> int:
        # a GrowableBuffer that keeps `count` entries allocates at most 2 * count + 16
        cache = 2 * (2 * self.window + 14) * self.d_model * dtype.itemsize
        weights = (3 if self.momentum else 2) * sum(w.numel() for w in self.initial_weights())
        fast = (weights + self.memory_heads) * torch.promote_types(dtype, torch.float32).itemsize
        return batch * (cache + fast)
