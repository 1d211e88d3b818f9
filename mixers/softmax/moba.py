"""MoBA: full attention, but only to the few blocks of tokens whose mean key fits a query best."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..interface import MixerCard
from ..ops.block_attention import OP, block_attention, nearest_blocks
from ..options import option
from ..registry import register_mixer
from ..state import GrowableBuffer
from .base import AttentionState, KeyValueAttention


@dataclass(frozen=True, eq=False)
class BlockAttentionState(AttentionState):
    """Besides keys and values, means: of the keys of each complete block, `[batch, blocks, kv_heads, d_head]`."""

    means: GrowableBuffer


@register_mixer
class MoBA(KeyValueAttention):
    """Mixture of Block Attention (Lu et al. 2025, arXiv 2502.13189): no parameters beyond those of attention.

    A query head reads its own block up to its own token, and the `top_k - 1` earlier blocks with the largest product of
    its query and the mean of their rotated keys, all in one softmax. Defaults are those of the paper's scaling
    experiments; for texts of at most `block_size * top_k` tokens it is full attention. The other options: see
    `KeyValueAttention`.
    """

    card = MixerCard(
        name="moba",
        family="softmax",
        summary="Softmax attention over the token's own block and the blocks whose mean key fits the query best",
        paper="Lu et al., MoBA: Mixture of Block Attention for Long-Context LLMs",
        arxiv="2502.13189",
        year=2025,
        state_growth="linear",
        recurrence="o_t = sum_{s <= t, s in I_t} softmax_s(q_t . k_s / sqrt(d)) v_s,  I_t: top blocks of q_t . mean(k)",
        complexity="O(T^2 / block_size + T top_k block_size)",
        limits="which blocks are read is a hard choice: rounding may turn it where two fit about equally well",
        ops=(OP,),
        low_precision_tolerance=0.1,  # rounded queries now and then choose another block
    )

    block_size: int = option("tokens of a block", default=512, least=1, small=16, piece=True)
    top_k: int = option("blocks that a query reads, its own included", default=3, least=1, small=2)

    def mix(  # type: ignore[override]  # a state of its own
        self, x: Tensor, state: BlockAttentionState | None, return_state: bool
    ) -> tuple[Tensor, BlockAttentionState | None]:
        position = 0 if state is None else state.position
        q, k, v, conv = self._project(x, None if state is None else state.conv)
        q, k = self.positioned(q, k, position)
        if state is None:
            keys, values = GrowableBuffer.of(k), GrowableBuffer.of(v)
            means = GrowableBuffer.of(self._means(keys.values, 0))
        else:
            keys, values = state.keys.append(k), state.values.append(v)
            means = state.means.append(self._means(keys.values, state.means.length))
        blocks = nearest_blocks(q, means.values, position=position, block_size=self.block_size, top_k=self.top_k)
        seen_keys, seen_values = (buffer.values.to(q.dtype) for buffer in (keys, values))
        y = block_attention(q, seen_keys, seen_values, blocks, block_size=self.block_size, backend=self.backend)
        y = self.output(y, x)
        if not return_state:
            return y, None
        keys, values = (self.remember(buffer, fresh=state is None) for buffer in (keys, values))
        return y, self.next_state(BlockAttentionState, x, state, keys=keys, values=values, conv=conv, means=means)

    @torch.no_grad()
    def _means(self, keys: Tensor, known: int) -> Tensor:
        """Of the complete blocks from number `known` on, float32 at least: they only serve the choice."""
        new = keys[:, known * self.block_size : keys.shape[1] // self.block_size * self.block_size]
        precision = torch.promote_types(keys.dtype, torch.float32)
        return new.unflatten(1, (-1, self.block_size)).mean(dim=2, dtype=precision)
