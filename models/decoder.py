"""Decoding without the Python of a forward pass: a step is recorded once and then repeated, token by token.

The sublayers of a model (memory, mixer, feed-forward, each with its norm) are recorded together where their mixers
allow it, see `mixers.stepping`; a mixer that does not is called as always, between two recordings. On a CUDA device a
recording becomes a CUDA graph. No GPU has confirmed that part yet: tests run it with graphs of their own on a CPU.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from ..mixers import Mixer
from .backbone import BlockState, ModelState
from .cuda_graph import CudaGraphs, Graphs
from .decoder_pieces import Refused, Segment, Sublayer, sublayers_of

if TYPE_CHECKING:
    from .language_model import LanguageModel


class Decoder:
    """Decodes up to `max_length` tokens of `batch` sequences with a model; see `LanguageModel.decoder`.

    graphs: what makes CUDA graphs; None: those of the device, on the CPU none.
    """

    def __init__(
        self,
        model: LanguageModel,
        batch: int,
        max_length: int,
        *,
        dtype: torch.dtype | None = None,
        graphs: Graphs | None = None,
    ) -> None:
        if batch < 1 or max_length < 1:
            raise ValueError(f"a decoder needs batch >= 1 and max_length >= 1, got {batch} and {max_length}")
        if dtype is not None and not dtype.is_floating_point:
            raise ValueError(f"dtype must be one for autocast, such as torch.bfloat16, or None, got {dtype}")
        self.model, self.batch, self.max_length, self.dtype = model, batch, max_length, dtype
        self.device = model.embedding.weight.device
        self.graphs = CudaGraphs(self.device) if graphs is None and self.device.type == "cuda" else graphs
        self._static = self.graphs is not None
        self.position = 0
        """Tokens read so far."""
        with torch.inference_mode():
            self._where = torch.zeros((), dtype=torch.int64, device=self.device)  # position, for what is recorded
        self._started = False
        self._sublayers = list(sublayers_of(model))
        self._pieces: list[Segment | Sublayer] = []
        self._recorded_for: object = None

    # What a user calls

    def prefill(self, tokens: Tensor) -> Tensor:
        """Read `tokens [batch, time]` on from where the decoder is; returns logits `[batch, vocab_size]` of the last.

        Raises `ValueError` as the model does, and beyond max_length.
        """
        if tokens.ndim == 2 and tokens.shape[0] != self.batch:
            raise ValueError(f"the decoder is for {self.batch} sequences, got tokens of shape {list(tokens.shape)}")
        if tokens.ndim == 2:
            self._check_room(tokens.shape[1])
        with torch.no_grad(), self._autocast():
            features, state = self.model.read(tokens, self.state)
            logits = self.model.head(features)
        self._begin(state)
        return logits

    def step(self, token: Tensor) -> Tensor:
        """Append `token [batch]` (int64); returns logits `[batch, vocab_size]` of the one after it.

        Raises `ValueError` for a wrong shape or dtype, an id that the vocabulary lacks (found on the CPU only), and
        beyond max_length.
        """
        if token.shape != (self.batch,) or token.dtype != torch.int64:
            raise ValueError(f"a step takes int64 tokens [{self.batch}], got {token.dtype} {list(token.shape)}")
        self._check_room(1)
        if not self._started:
            return self.prefill(token[:, None])
        try:
            with torch.inference_mode():
                logits = self._advance(token[:, None])
        except IndexError as error:
            raise ValueError(f"token ids must be in 0..{self.model.config.vocab_size - 1}: {error}") from error
        return logits.clone()  # an ordinary tensor, which no later step overwrites

    @property
    def state(self) -> ModelState | None:
        """The state after all tokens so far, as the model itself returns it; None before the first. Set it to go on
        from there, or to None to start afresh. Neither the decoder nor who has the state changes what the other has.

        Setting raises `ValueError` for a state of another model, batch size or device, or one beyond max_length.
        """
        if not self._started:
            return None
        with torch.no_grad():
            parts = {s.where: s.state(self.position) for s in self._sublayers}
        layers = [tuple(parts.get((i, part)) for part in range(3)) for i in range(len(self.model.layers))]
        return ModelState(self.model.signature, self.batch, self.position, tuple(cast(list[BlockState], layers)))

    @state.setter
    def state(self, state: ModelState | None) -> None:
        if state is None:
            self._started, self.position = False, 0
            return
        self.model.check_state(state)
        if state.batch != self.batch or state.device not in (None, self.device):
            own, given = f"{self.batch} sequences on {self.device}", f"{state.batch} on {state.device}"
            raise ValueError(f"the decoder is for {own}, the state holds {given}")
        if state.position > self.max_length:
            raise ValueError(f"the state is at position {state.position}, beyond max_length = {self.max_length}")
        self._begin(state)

    @property
    def how(self) -> dict[str, str]:
        """For every mixer, by its place: `recorded`, `recorded, called at edges` (such as FwPKM's rewrites), or
        `called: ` and why. Complete after the first step."""
        found = {}
        for sublayer in self._sublayers:
            if isinstance(sublayer.module, Mixer):
                found[sublayer.module.place] = sublayer.how
        for piece in self._pieces:
            if isinstance(piece, Segment) and piece.why_no_graph is not None:
                for sublayer in piece.sublayers:
                    if isinstance(sublayer.module, Mixer):
                        found[sublayer.module.place] += f", without a graph: {piece.why_no_graph}"
        return found

    # How it works

    def _check_room(self, count: int) -> None:
        if self.position + count > self.max_length:
            raise ValueError(
                f"the decoder has room for max_length = {self.max_length} tokens; {count} more do not fit after "
                f"{self.position}"
            )

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None)

    def _begin(self, state: ModelState) -> None:
        with torch.inference_mode():
            self._where.fill_(state.position)
            for sublayer in self._sublayers:
                layer, part = sublayer.where
                sublayer.begin(state.layers[layer][part], self.max_length, self._static)
        self.position, self._started = state.position, True
        depends_on = self._weights(), [s.stepper and s.stepper.structure for s in self._sublayers]
        if depends_on != self._recorded_for:
            self._recorded_for, self._pieces = depends_on, []

    def _weights(self) -> object:
        """What tells whether weights were changed: a recording keeps what follows from them alone."""
        tensors = [*self.model.parameters(), *self.model.buffers()]
        versions = [0 if t.is_inference() else t._version for t in tensors]
        return self.model.training, [t.data_ptr() for t in tensors], versions

    def _prepare(self, token: Tensor) -> None:
        """Record whatever can be, before any state moves on."""
        while not self._pieces:
            pieces = self._cut()
            try:
                with self._autocast():
                    for piece in pieces:
                        if isinstance(piece, Segment):
                            piece.record(token, self._where, self.position)
                self._pieces = pieces
            except Refused as refused:
                refused.sublayer.refuse(refused.reason, self.position)
        if self.dtype is not None:
            with self._autocast():
                for sublayer in self._sublayers:
                    sublayer.cast_weights(self.model.embed(token), self.dtype)
        self._with_edges = [s.stepper for s in self._sublayers if s.has_edges and s.stepper is not None]

    def _cut(self) -> list[Segment | Sublayer]:
        """Segments as long as they can be, and between them the sublayers that must be called."""
        rows: list[list[Sublayer]] = [[]]
        called: list[Sublayer] = []
        for sublayer in self._sublayers:
            if sublayer.reason is not None:
                called.append(sublayer)
                rows.append([])
            else:
                rows[-1].append(sublayer)
        pieces: list[Segment | Sublayer] = []
        for i, row in enumerate(rows):
            first, last = i == 0, i == len(rows) - 1
            if row or first or last:
                pieces.append(Segment(self.model, row, self.graphs, first, last))
            pieces += called[i : i + 1]
        return pieces

    def _advance(self, token: Tensor) -> Tensor:
        """Logits `[batch, vocab_size]` after `token [batch, 1]`; every state is then one token further."""
        if not self._pieces:
            self._prepare(token)
        if any(stepper.is_edge(self.position) for stepper in self._with_edges):
            with self._autocast():
                logits = self._walk(token)
        elif torch.is_autocast_enabled(self.device.type):  # the caller's; what is recorded has its own behind it
            with torch.autocast(self.device.type, enabled=False):
                logits = self._run(token)
        else:
            logits = self._run(token)
        self._where += 1
        self.position += 1
        return logits

    def _run(self, x: Tensor) -> Tensor:
        for piece in self._pieces:
            if isinstance(piece, Segment):
                x = piece(x, self._where, self.position)
            else:
                with self._autocast():
                    x = piece.advance(x, self._where, self.position, self._static)
        return x

    def _walk(self, token: Tensor) -> Tensor:
        """The same without recordings."""
        x = self.model.embed(token)
        for sublayer in self._sublayers:
            x = sublayer.advance(x, self._where, self.position, self._static)
        return self.model.head(self.model.norm(x))[:, -1]
