"""What TTT-Linear and TTT-MLP share: all but the inner model that is trained while it reads."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..interface import Mixer
from ..layers import ShortConvolution, apply_rotary, rotary_angles, split_heads
from ..ops.inner_model import Layers
from ..ops.ttt import TTTState, ttt
from ..options import option
from ..state import MixerState
from ..stepping import CannotStep, ChunkedStepper, Stepper

ROPE_THETA = 10_000.0


@dataclass(frozen=True, eq=False)
class TTTMixerState(MixerState):
    """fast: weights and gathered gradients of the inner model; conv: last inputs of the short convolution, if any."""

    fast: TTTState
    conv: Tensor | None


class TestTimeTraining(Mixer):
    """The layer of Sun et al. 2024 (arXiv 2407.04620) around an inner model per head.

    A token's inner learning rate is `inner_learning_rate / d_head` times a learned gate in 0..1.
    Raises `ValueError` for options that do not fit together.
    """

    __test__ = False  # pytest takes a class of this name for tests

    heads: int = option("number of inner models", default=4, least=1, small=2)
    mini_batch_size: int = option(
        "tokens whose inner gradients are taken at the same weights", default=16, least=1, small=8, piece=True
    )
    inner_learning_rate: float = option("of the inner model's steps", default=1.0, above=0)
    conv_size: int = option("tokens that the convolution over q, k and v sees; 0: none", default=4, least=0)
    rope: bool = option("turn queries and keys by their position in the mini-batch", default=True)
    gate: bool = option("gate the output by GELU(W x)", default=True)

    def build(self) -> None:
        d_model, heads = self.d_model, self.heads
        if d_model % heads:
            raise ValueError(f"heads must divide d_model {d_model}, got {heads}")
        self.d_head = d_head = d_model // heads
        if self.rope and d_head % 2:
            raise ValueError(
                f"rope rotates pairs of features: d_model / heads must be even, got {d_head}; or rope=False"
            )
        self.qkv_proj = nn.Linear(d_model, 3 * d_model, bias=False)
        self.conv = ShortConvolution(3 * d_model, self.conv_size) if self.conv_size else None
        self.step_proj = nn.Linear(d_model, heads)
        self.position_offset = nn.Parameter(torch.zeros(self.mini_batch_size))
        self.inner_norm_weight = nn.Parameter(torch.ones(heads, d_head))
        self.inner_norm_bias = nn.Parameter(torch.zeros(heads, d_head))
        self.build_inner_model()
        self.o_norm = nn.LayerNorm(d_model, eps=1e-6)
        self.g_proj = nn.Linear(d_model, d_model, bias=False) if self.gate else None
        self.o_proj = nn.Linear(d_model, d_model, bias=False)
        nn.init.normal_(self.step_proj.weight, std=0.02)
        nn.init.zeros_(self.step_proj.bias)

    @abstractmethod
    def build_inner_model(self) -> None:
        """Make the parameters of `inner_layers`."""

    @abstractmethod
    def inner_layers(self) -> Layers:
        """The weights with which every sequence begins, see `mixers.ops.ttt`."""

    def inner_layer(self, d_in: int, d_out: int) -> tuple[nn.Parameter, nn.Parameter]:
        """Weight and bias of one layer, as the released code starts them."""
        weight = torch.empty(self.heads, d_in, d_out).normal_(0, 0.02)
        return nn.Parameter(weight), nn.Parameter(torch.zeros(self.heads, 1, d_out))

    def position_scale(self) -> Tensor:
        """`[mini_batch_size]`: at first 1 / (i + 1), so token i reads after the mean step of tokens 0..i."""
        dtype = torch.promote_types(self.position_offset.dtype, torch.float32)
        counts = torch.arange(1, self.mini_batch_size + 1, dtype=dtype, device=self.position_offset.device)
        return (1 / counts + self.position_offset).clamp_min(0)

    def mix(self, x: Tensor, state: TTTMixerState | None, return_state: bool) -> tuple[Tensor, TTTMixerState | None]:
        position = 0 if state is None else state.position
        qkv, conv = self.qkv_proj(x), None
        if self.conv is not None:
            qkv, conv = self.conv(qkv, None if state is None else state.conv)
        q, k, v = (split_heads(part, self.heads) for part in qkv.chunk(3, dim=-1))
        if self.rope:
            angles = self._angles(position, x.shape[1])
            q, k = apply_rotary(q, angles), apply_rotary(k, angles)

        precision = torch.promote_types(x.dtype, torch.float32)
        read, fast = ttt(
            q,
            k,
            v,
            self.step_proj(x).to(precision).sigmoid() * (self.inner_learning_rate / self.d_head),
            position_scale=self.position_scale(),
            norm_weight=self.inner_norm_weight,
            norm_bias=self.inner_norm_bias,
            weights=self.inner_layers(),
            state=None if state is None else state.fast,
            return_state=return_state,
            backend=self.backend,
        )
        y = self.o_norm(read.flatten(2).to(self.o_norm.weight.dtype))
        if self.g_proj is not None:
            y = y * F.gelu(self.g_proj(x), approximate="tanh")
        y = self.o_proj(y).to(x.dtype)
        return y, self.next_state(TTTMixerState, x, state, fast=fast, conv=conv) if return_state else None

    def stepper(self, max_length: int, static: bool) -> Stepper:
        if self.backend == "reference":
            raise CannotStep("its backend 'reference' walks token by token in Python")
        return ChunkedStepper(self, self.mini_batch_size)

    def _angles(self, position: int | Tensor, time: int) -> Tensor:
        """`[time, d_head / 2]`: rotations start anew with every mini-batch, so they stay small at any length."""
        device = self.position_offset.device
        table = rotary_angles(0, self.mini_batch_size, self.d_head, ROPE_THETA, device)
        return table[(position + torch.arange(time, device=device)) % self.mini_batch_size]
