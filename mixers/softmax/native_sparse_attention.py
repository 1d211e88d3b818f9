"""Native sparse attention: a coarse look at everything, a close look at a few blocks of it, and a window."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from ..interface import Mixer, MixerCard
from ..layers import apply_rotary, head_size, rotary_angles, split_heads
from ..ops.attention import attention
from ..ops.block_attention import OP as BLOCK_ATTENTION
from ..ops.block_attention import block_attention
from ..ops.compressed_attention import OP as COMPRESSED_ATTENTION
from ..ops.compressed_attention import Blocks, compressed_attention
from ..options import option
from ..registry import register_mixer
from ..state import GrowableBuffer, MixerState
from .base import key_value_heads, own_buffer, rotary_size

BRANCHES = 3  # compression, selection, window


@dataclass(frozen=True, eq=False)
class NativeSparseState(MixerState):
    """Keys and values, each a pair `[batch, length, kv_heads, d_head]`.

    open_tokens `[batch, compression_size - 1, 2 * kv_heads, d_head]`: the last keys and values to be compressed, after
    zeros where fewer were read.
    """

    compressed: tuple[GrowableBuffer, GrowableBuffer]
    selectable: tuple[GrowableBuffer, GrowableBuffer]
    window: tuple[GrowableBuffer, GrowableBuffer]
    open_tokens: Tensor


class Compression(nn.Module):
    """The `size` keys (or values) of a block as one: an MLP over them, with a vector added for the place of each."""

    def __init__(self, size: int, d_head: int) -> None:
        super().__init__()
        self.place = nn.Parameter(torch.zeros(size, d_head))
        self.mlp = nn.Sequential(nn.Linear(size * d_head, d_head), nn.SiLU(), nn.Linear(d_head, d_head))

    def forward(self, blocks: Tensor) -> Tensor:
        """`[..., d_head]` of `blocks [..., size, d_head]`."""
        return self.mlp((blocks + self.place.to(blocks.dtype)).flatten(-2))


@register_mixer
class NativeSparseAttention(Mixer):
    """NSA (Yuan et al. 2025, arXiv 2502.11089): three attentions with keys and values of their own, summed by gates.

    Compression: attention over blocks of `compression_size` tokens, one every `compression_stride` tokens, each of them
    made one key and one value. Selection: attention over `n_blocks` blocks of `block_size` tokens, the same for all
    heads of a group: the first, the token's own and the one before it, and those to which the compression attends most.
    Window: the last `window` tokens. Defaults are the paper's.

    Left open by the paper, and chosen here: the MLP that compresses has one hidden layer of d_head and is shared by the
    heads; gates are sigmoids of one projection per head and branch, as in flash-linear-attention; keys are rotated by
    position in all branches, compressed ones as what they are made of is not, by the position of their first token.
    """

    card = MixerCard(
        name="native_sparse_attention",
        family="softmax",
        summary="Attention to compressed blocks, to the blocks it finds important, and to a window, summed by gates",
        paper="Yuan et al., Native Sparse Attention: Hardware-Aligned and Natively Trainable Sparse Attention",
        arxiv="2502.11089",
        year=2025,
        state_growth="linear",
        recurrence="o_t = sum_c g_t^c attention(q_t, K_t^c, V_t^c),  c: compressed, selected, window",
        complexity="O(T^2 / compression_stride + T n_blocks block_size)",
        limits="which blocks are read is a hard choice: rounding may turn it where two fit about equally well",
        ops=(BLOCK_ATTENTION, COMPRESSED_ATTENTION),
        low_precision_tolerance=0.1,  # rounded queries now and then choose another block
    )

    heads: int = option("query heads", default=4, least=1, small=2)
    kv_heads: int = option("key and value heads, a divisor of heads; None: heads", default=None, least=1)
    d_head: int = option("size of a head; None: d_model / heads", default=None, least=1, small=16)
    rope_theta: float = option("base of the rotary frequencies", default=10_000.0, above=0)
    compression: Literal["mlp", "mean"] = option("how a block becomes one key and value", default="mlp")
    compression_size: int = option("tokens that are compressed into one", default=32, least=1, small=10)
    compression_stride: int = option("tokens between two of them", default=16, least=1, small=5)
    block_size: int = option("tokens of a block to select", default=64, least=1, small=10, piece=True)
    n_blocks: int = option("blocks that a query reads", default=16, least=3, small=4)
    window: int = option("tokens of the window, a token itself included", default=512, least=1, small=9)

    def build(self) -> None:
        self.kv_heads = kv_heads = key_value_heads(self.heads, self.kv_heads)
        self.d_head = d_head = head_size(self.d_model, self.heads, self.d_head)
        rotary_size(d_head, "rope")  # raises for an odd one
        self.blocks = Blocks(self.compression_size, self.compression_stride, self.block_size, self.n_blocks)
        self.q_proj = nn.Linear(self.d_model, self.heads * d_head, bias=False)
        self.kv_proj = nn.Linear(self.d_model, 2 * BRANCHES * kv_heads * d_head, bias=False)
        self.gate_proj = nn.Linear(self.d_model, BRANCHES * self.heads, bias=False)
        self.o_proj = nn.Linear(self.heads * d_head, self.d_model, bias=False)
        learned = self.compression == "mlp"
        self.k_compression = Compression(self.compression_size, d_head) if learned else None
        self.v_compression = Compression(self.compression_size, d_head) if learned else None

    def mix(
        self, x: Tensor, state: NativeSparseState | None, return_state: bool
    ) -> tuple[Tensor, NativeSparseState | None]:
        position = 0 if state is None else state.position
        angles = rotary_angles(position, x.shape[1], self.d_head, self.rope_theta, x.device)
        q = apply_rotary(split_heads(self.q_proj(x), self.heads), angles)
        kv = split_heads(self.kv_proj(x), 2 * BRANCHES * self.kv_heads)
        to_compress, k_selection, v_selection, k_window, v_window = kv.split(
            [2 * self.kv_heads, *[self.kv_heads] * 4], 2
        )

        *compressed, open_tokens = self._compress(to_compress, position, None if state is None else state.open_tokens)
        keys = apply_rotary(torch.cat([k_selection, k_window], dim=2), angles).split(self.kv_heads, dim=2)
        new = (tuple(compressed), (keys[0], v_selection), (keys[1], v_window))
        old = (None,) * BRANCHES if state is None else (state.compressed, state.selectable, state.window)
        caches = [_appended(buffers, tensors) for buffers, tensors in zip(old, new)]

        y = self.o_proj(self._attend(q, caches, position, x).flatten(2))
        if not return_state:
            return y, None
        caches[2] = caches[2][0].keep_last(self.window - 1), caches[2][1].keep_last(self.window - 1)
        if state is None:
            caches = [(own_buffer(keys), own_buffer(values)) for keys, values in caches]
        parts = dict(zip(("compressed", "selectable", "window"), caches))
        return y, self.next_state(NativeSparseState, x, state, **parts, open_tokens=open_tokens)

    def _compress(self, new: Tensor, position: int, open_tokens: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Compressed keys and values that `new [batch, time, 2 * kv_heads, d_head]` completes, and what stays open."""
        size, stride = self.compression_size, self.compression_stride
        if open_tokens is None:
            open_tokens = new.new_zeros(new.shape[0], size - 1, *new.shape[2:])
        tokens = torch.cat([open_tokens.to(new.dtype), new], dim=1)
        first, last = (self.blocks.complete(length) for length in (position, position + new.shape[1]))
        start = first * stride - (position - (size - 1))
        if last > first:
            blocks = tokens[:, start : start + (last - first - 1) * stride + size].unfold(1, size, stride)
        else:
            blocks = tokens[:, :0].unsqueeze(-1).expand(*(-1,) * 4, size)
        keys, values = blocks.mT.chunk(2, dim=2)  # [batch, blocks, kv_heads, size, d_head]
        keys = keys.mean(dim=3) if self.k_compression is None else self.k_compression(keys)
        values = values.mean(dim=3) if self.v_compression is None else self.v_compression(values)
        angles = rotary_angles(first * stride, (last - first) * stride, self.d_head, self.rope_theta, new.device)
        return apply_rotary(keys, angles[::stride]), values, tokens[:, new.shape[1] :].clone()

    def _attend(
        self, q: Tensor, caches: list[tuple[GrowableBuffer, GrowableBuffer]], position: int, x: Tensor
    ) -> Tensor:
        """The three attentions, summed by their gates: `[batch, time, heads, d_head]`."""
        compressed, (keys, values), window = ([buffer.values.to(q.dtype) for buffer in pair] for pair in caches)
        coarse, chosen = compressed_attention(
            q, *compressed, blocks=self.blocks, position=position, backend=self.backend
        )
        close = block_attention(q, keys, values, chosen, block_size=self.block_size, backend=self.backend)
        backend = "reference" if self.backend == "reference" else "auto"
        local = attention(q, *window, window=self.window, backend=backend)
        gates = split_heads(self.gate_proj(x), self.heads).sigmoid()
        branches = torch.stack([coarse, close, local], dim=-1)
        return (branches * gates.to(branches.dtype).unsqueeze(-2)).sum(dim=-1)


def _appended(
    buffers: tuple[GrowableBuffer, GrowableBuffer] | None, tensors: tuple[Tensor, Tensor]
) -> tuple[GrowableBuffer, GrowableBuffer]:
    keys, values = (
        (GrowableBuffer.of(t) for t in tensors) if buffers is None else (b.append(t) for b, t in zip(buffers, tensors))
    )
    return keys, values
