"""What an op is given when its speed is measured, and how many bytes it has to move at the least."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...mixers import create_mixer
from ...mixers.ops.dispatch import Op
from ...mixers.ops.fwpkm import OP as fwpkm_op
from ...mixers.ops.fwpkm import FwpkmState, fwpkm


class FwpkmWork:
    """The op `fwpkm` on random tokens: normal queries, standardised targets, gates of 0 to 1.

    options: of the mixer, which gives the memory and the settings. length: the most tokens of one call.
    decode_chunks: how many chunks are decoded after a context.
    """

    op: Op = fwpkm_op

    def __init__(
        self,
        options: dict[str, Any],
        *,
        d_model: int,
        batch: int,
        length: int,
        decode_chunks: int,
        seed: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            mixer: Any = create_mixer("fwpkm", d_model, **options).to(device)
        self.settings: dict[str, Any] = dict(mixer.settings)
        self.keys, self.values, self.batch, self.length = mixer.keys, mixer.values, batch, length
        heads, _, _, half = self.keys.shape
        generator = torch.Generator().manual_seed(seed)
        if decode_chunks:  # and one token to begin with
            length += decode_chunks * self.chunk_size + 1

        def normal(*shape: int) -> Tensor:
            return torch.randn(batch, length, *shape, generator=generator)

        targets = normal(self.values.shape[1])
        targets = (targets - targets.mean(-1, keepdim=True)) / targets.std(-1, keepdim=True)
        tokens = (normal(heads, 2 * half), targets, normal().sigmoid())
        self.tokens = tuple(t.to(device, dtype) for t in tokens)
        self.d_retrieved = normal(self.values.shape[1]).to(device)

    @property
    def chunk_size(self) -> int:
        return self.settings["chunk_size"]

    @property
    def table_bytes(self) -> int:
        """Of the initial memory, which is there before any call."""
        return self.values.nbytes + self.keys.nbytes

    @torch.no_grad()
    def forward(self, backend: str, tokens: int) -> Tensor:
        """What the first `tokens` retrieve."""
        return self._call(backend, *self._first(tokens)).retrieved

    def train(self, backend: str, tokens: int) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Forward and backward: what is retrieved, and the gradients of all that is differentiable, of the table only
        if it is learned."""
        inputs = [t.detach().requires_grad_() for t in self._first(tokens)]
        weights = [w for w in (self.keys, self.values) if w.requires_grad]
        retrieved = self._call(backend, *inputs).retrieved
        d_retrieved = self.d_retrieved[:, :tokens].to(retrieved.dtype)
        # in a text of one chunk nothing reads what was written
        return retrieved, torch.autograd.grad(retrieved, [*inputs, *weights], d_retrieved, materialize_grads=True)

    @torch.no_grad()
    def context(self, backend: str, tokens: int) -> FwpkmState:
        """The state after `tokens`."""
        state = self._call(backend, *self._first(tokens), return_state=True).state
        assert state is not None
        return state

    @torch.no_grad()
    def decode(self, backend: str, state: FwpkmState, count: int) -> tuple[Tensor, FwpkmState]:
        """`count` tokens one at a time, on from `state`: what the last one retrieves, and the state after it."""
        retrieved = self.d_retrieved[:, :0]
        for i in range(state.position, state.position + count):
            token = (t[:, i : i + 1] for t in self.tokens)
            output = self._call(backend, *token, state=state, return_state=True)
            assert output.state is not None
            retrieved, state = output.retrieved, output.state
        return retrieved, state

    def counted_bytes(self, backend: str, cases: list[tuple[str, int]], decoded: int) -> list[int]:
        """The bytes that each mode at each length has to move at the least, with no cache but within a chunk.

        forward: queries, gates and targets are read, what was retrieved is written; a chunk reads the keys and each
        row that it touches once, and writes both once unless it is the last. train: the same, and backwards each chunk
        reads its rows, its keys, what its tokens were and the gradient of what they retrieved, reads and writes the
        gradients of its rows and keys, and writes those of its tokens. decode, a token of `decoded` after the context:
        as forward, but every token reads the keys and its own rows, writes itself to the state, and the rewrite of
        the chunk reads it again with every row it touches. Rows are counted in the addresses of this very data.
        """
        longest = max(tokens + (decoded if mode == "decode" else 0) for mode, tokens in cases)
        touched = self._touched(backend, longest)
        formulas = {"forward": self._forward_bytes, "train": self._train_bytes}
        return [
            self._decode_bytes(touched, tokens, decoded) if mode == "decode" else formulas[mode](touched, tokens)
            for mode, tokens in cases
        ]

    def _forward_bytes(self, touched: list[int], tokens: int) -> int:
        chunks = -(-tokens // self.chunk_size)
        rows = sum(touched[:chunks]) + sum(touched[: chunks - 1])
        written_keys = chunks - 1 if self._keys_move else 0
        keys = self._key_bytes * (chunks + written_keys)
        return rows * self._row_bytes + keys + tokens * self.batch * (self._input_bytes + self._row_bytes)

    def _train_bytes(self, touched: list[int], tokens: int) -> int:
        chunks = -(-tokens // self.chunk_size)
        rows, keys = 3 * sum(touched[:chunks]) * self._row_bytes, 3 * chunks * self._key_bytes
        back = tokens * self.batch * (2 * self._input_bytes + self._row_bytes)
        return self._forward_bytes(touched, tokens) + rows + keys + back

    def _decode_bytes(self, touched: list[int], context: int, count: int) -> int:
        first, last = context // self.chunk_size, (context + count) // self.chunk_size
        rewritten = 2 * sum(touched[first:last]) * self._row_bytes
        keys = self._key_bytes * (count + (last - first) * (2 if self._keys_move else 1))
        accesses = self.keys.shape[0] * self.settings["top_k"]
        token = self.batch * ((accesses + 1) * self._row_bytes + 3 * self._input_bytes)
        return (rewritten + keys + count * token) // count

    @property
    def _row_bytes(self) -> int:
        return self.values.shape[1] * torch.promote_types(self.values.dtype, torch.float32).itemsize

    @property
    def _key_bytes(self) -> int:
        memories = 1 if self.settings["scope"] == "batch" else self.batch
        return memories * self.keys.numel() * torch.promote_types(self.keys.dtype, torch.float32).itemsize

    @property
    def _input_bytes(self) -> int:
        """Of one token's query, target and gate."""
        return sum(t[0, 0].numel() * t.element_size() for t in self.tokens)

    @property
    def _keys_move(self) -> bool:
        return self.settings["key_objective"] != "none"

    @torch.no_grad()
    def _touched(self, backend: str, tokens: int) -> list[int]:
        """How many different rows each chunk touches, all memories together; an unfinished chunk too."""
        slots = self._call(backend, *self._first(tokens)).slots
        counts = []
        for start in range(0, tokens, self.chunk_size):
            chunk = slots[:, start : start + self.chunk_size].flatten(1)
            shared = self.settings["scope"] == "batch"
            counts.append(sum(len(rows.unique()) for rows in (chunk.flatten()[None] if shared else chunk)))
        return counts

    def _first(self, tokens: int) -> tuple[Tensor, ...]:
        return tuple(t[:, :tokens].contiguous() for t in self.tokens)

    def _call(self, backend: str, queries: Tensor, targets: Tensor, gates: Tensor, **more: Any) -> Any:
        return fwpkm(queries, targets, gates, self.keys, self.values, **self.settings, **more, backend=backend)
