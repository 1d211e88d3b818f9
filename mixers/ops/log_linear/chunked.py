"""Products over chunks, then over pairs of chunks, of pairs, and so on: log(time) steps, none of them token by token.

Chunks start at multiples of a power of 2, so that every level is either within a chunk or made of whole ones. The left
half of every pair is one memory, which the right half reads. What the state holds is read by all new tokens.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .reference import in_precision


class Chunks(NamedTuple):
    """Tokens in chunks `[batch, heads, n, size, ...]`, filled up on both sides with tokens that do nothing.

    decay: of a chunk's tokens up to and with each. before `[batch, heads, n + 1]`: of all chunks before, in float64.
    first: the number of the first chunk, counted from position 0.
    """

    queries: Tensor
    keys: Tensor
    values: Tensor
    decay: Tensor
    scales: Tensor
    before: Tensor
    first: int

    @property
    def size(self) -> int:
        return self.queries.shape[3]

    def between(self, first: int | Tensor, last: int | Tensor) -> Tensor:
        """The product of all decays of the chunks `first` to `last - 1`, counted from the first one."""
        return (self.before[:, :, last] - self.before[:, :, first]).exp().to(self.queries.dtype)


class Node(NamedTuple):
    """Memories of neighbouring blocks of `2 ** height` chunks, `[batch, heads, blocks, d_k, d_v]`, as each ends.

    first: the number of the first block, counted from position 0.
    """

    memories: Tensor
    first: int


def log_linear_attention(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    log_decay: Tensor,
    level_scales: Tensor,
    position: int,
    scale: float,
    chunk_size: int,
    state: Tensor,
) -> tuple[Tensor, Tensor]:
    queries, keys, values, log_decay, level_scales = in_precision(
        queries * scale, keys, values, log_decay, level_scales
    )
    time, start = values.shape[1], position % chunk_size
    queries, keys, values, decay, scales = (
        _in_chunks(x, start, chunk_size) for x in (queries, keys, values, log_decay, level_scales)
    )
    decay = decay.cumsum(dim=3)
    before = F.pad(decay[..., -1].double().cumsum(dim=2), (1, 0))
    chunks = Chunks(queries, keys, values, decay, scales, before, position // chunk_size)
    tree = _tree(chunks)
    y = _within(chunks)
    for height, node in enumerate(tree):
        y = _read_left_halves(y, chunks, height, node)
    if state.shape[1]:
        y = y + _read_state(chunks, position, state)
    y = y.flatten(2, 3)[:, :, start : start + time].transpose(1, 2)
    return y, _new_state(chunks, tree, position, position + time, state)


def _in_chunks(x: Tensor, start: int, size: int) -> Tensor:
    # There and back, for contiguous gradients: the compiler mistakes the strides of what softplus makes of others.
    x = x.flatten(0, 1).unflatten(0, x.shape[:2])
    padding = (0, 0) * (x.ndim - 2) + (start, -(start + x.shape[1]) % size)
    return F.pad(x, padding).unflatten(1, (-1, size)).movedim(3, 1)


def _within(c: Chunks) -> Tensor:
    """What the tokens of a chunk read of one another."""
    token = torch.arange(c.size, device=c.keys.device)
    later = token[:, None] >= token
    level = _highest_digit(token[:, None] ^ token, c.scales.shape[-1] - 1).expand(*c.scales.shape[:-1], -1)
    decay = (c.decay[..., :, None] - c.decay[..., None, :]).masked_fill(~later, float("-inf")).exp()
    return (c.queries @ c.keys.mT * decay * c.scales.gather(-1, level)) @ c.values


def _tree(c: Chunks) -> list[Node]:
    """Memories of chunks, of pairs of them, of pairs of pairs, as long as there is a right half."""
    weights = (c.decay[..., -1:] - c.decay).exp().unsqueeze(-1)
    nodes = [Node((c.keys * weights).mT @ c.values, c.first)]
    while nodes[-1].memories.shape[2] > 1 or nodes[-1].first % 2:
        memories, first = nodes[-1]
        height, n = len(nodes) - 1, c.queries.shape[2]
        if first % 2:  # its left neighbour has no new tokens
            memories, first = F.pad(memories, (0, 0, 0, 0, 1, 0)), first - 1
        pairs = memories.shape[2] // 2  # a block without a right neighbour is not complete: nobody reads more of it
        left, right = memories[:, :, : 2 * pairs].unflatten(2, (pairs, 2)).unbind(3)
        ends = (torch.arange(pairs, device=left.device) * 2 + first + 2 << height) - c.first
        starts = (ends - (1 << height)).clamp(min=0)
        decay = c.between(starts, ends.clamp(max=n))
        nodes.append(Node(decay[..., None, None] * left + right, first // 2))
    return nodes


def _read_left_halves(y: Tensor, c: Chunks, height: int, node: Node) -> Tensor:
    """`y` and what the chunks in the right halves of pairs read of the left ones."""
    chunks = range(c.first, c.first + c.queries.shape[2])
    right = [i for i in chunks if (i >> height) % 2 == 1 and (i >> height) - 1 >= node.first]
    if not right:
        return y
    chunk = torch.tensor(right, device=y.device)
    here, block = chunk - c.first, chunk >> height
    memories = node.memories.index_select(2, block - 1 - node.first)
    level = min(height + c.size.bit_length(), c.scales.shape[-1] - 1)
    decay = c.decay.index_select(2, here).exp() * c.between((block << height) - c.first, here).unsqueeze(-1)
    scales = c.scales[..., level].index_select(2, here)
    found = c.queries.index_select(2, here) @ memories * (decay * scales).unsqueeze(-1)
    return y.index_add(2, here, found)


def _read_state(c: Chunks, position: int, state: Tensor) -> Tensor:
    """What all new tokens read of the tokens before them."""
    batch, heads, n = c.queries.shape[:3]
    last = c.scales.shape[-1] - 1
    tokens = torch.arange(c.first * c.size, (c.first + n) * c.size, device=state.device)
    decay = c.decay.exp() * c.before[:, :, :-1, None].exp().to(c.decay.dtype)
    y = torch.zeros_like(c.values)
    for digit, memory in enumerate(state.unbind(1)):
        level = torch.full_like(tokens, last)
        if digit < last - 1:
            if not position >> digit & 1:
                continue  # nothing is in it
            level = _highest_digit(tokens ^ _start(position, digit), last)
        scales = c.scales.gather(-1, level.view(n, c.size, 1).expand(batch, heads, -1, -1, -1)).squeeze(-1)
        y = y + c.queries @ memory.unsqueeze(2) * (scales * decay).unsqueeze(-1)
    return y


def _highest_digit(number: Tensor, most: int) -> Tensor:
    """How many binary digits the integers have, counted to `most`."""
    return torch.stack([number >= 1 << digit for digit in range(most)]).sum(dim=0)


def _start(position: int, digit: int) -> int:
    """Where the tokens begin that the memory of a digit holds at `position`."""
    return position >> (digit + 1) << (digit + 1)


def _new_state(c: Chunks, tree: list[Node], position: int, end: int, state: Tensor) -> Tensor:
    """Memories by the digits of `end`: what is new in them, and the old ones that have become part of them."""
    top = c.scales.shape[-1] - 2
    kept = state * c.between(0, c.queries.shape[2])[:, None, :, None, None]
    memories = [torch.zeros_like(c.keys[:, :, 0].mT @ c.values[:, :, 0])] * min(end.bit_length(), top + 1)
    if state.shape[1] > top:
        memories[top] = kept[:, top]
    for digit in range(end.bit_length()):
        if not end >> digit & 1:
            continue
        first, last = _start(end, digit), _start(end, digit) + (1 << digit)
        slot = min(digit, top)
        if last > position:
            memories[slot] = memories[slot] + _new_tokens(c, tree, first, last, digit)
        for old in range(min(state.shape[1], top)):
            if position >> old & 1 and first <= _start(position, old) < last:
                memories[slot] = memories[slot] + kept[:, old]
    return torch.stack(memories, dim=1)


def _new_tokens(c: Chunks, tree: list[Node], first: int, last: int, digit: int) -> Tensor:
    """The memory of the new ones among the tokens `first:last`, `2 ** digit` in number, at the end of all chunks."""
    height = digit - c.size.bit_length() + 1
    if height < 0:  # some tokens of the last chunk
        some = slice(first % c.size, first % c.size + last - first)
        weights = (c.decay[:, :, -1, -1:] - c.decay[:, :, -1, some]).exp().unsqueeze(-1)
        return (c.keys[:, :, -1, some] * weights).mT @ c.values[:, :, -1, some]
    memory = tree[height].memories[:, :, (first // c.size >> height) - tree[height].first]
    return memory * c.between(last // c.size - c.first, c.queries.shape[2])[..., None, None]
