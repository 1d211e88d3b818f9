"""A language model of any layout: forward, states, streaming generation, saving and loading."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from .backbone import Backbone, ModelState
from .config import ModelConfig
from .counting import resolve_d_ff
from .decoder import Decoder

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"
RECORDING_PAYS = 32
"""From so many new tokens on: recording a step takes as long as recorded steps save in about 25 of them (one core)."""
FORMAT = 2  # 1: token embeddings were not scaled, so that its models would answer differently


class LanguageModel(Backbone):
    """A causal language model as `config` says; `d_ff` is the width of its feed-forwards after matching.

    The initial parameters follow from `config.seed` alone. Works under `with torch.device("meta")`.
    Raises `LayoutError` if the layout cannot be built, `ValueError` if `config.match` cannot be met.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config, resolve_d_ff(config))

    @torch.no_grad()
    def read(
        self,
        tokens: Tensor,
        state: ModelState | None = None,
        *,
        chunk_size: int = 8192,
        scored: Tensor | None = None,
    ) -> tuple[Tensor, ModelState]:
        """Read `tokens [batch, time]` of any length in pieces of `chunk_size` that carry the state; no gradients.

        The result is that of one call on all tokens, but only one piece is worked on at a time, so that memory is
        bounded where the state is. tokens may be anywhere: pieces are moved to the model. chunk_size changes speed and
        memory only. scored: bool `[batch, time]`, whose features are wanted; None: those of the last token.
        Returns features `[batch, d_model]` of the last token, or `[n, d_model]` of the n scored tokens in the order of
        `tokens[scored]`, for `head` to turn into logits; and the state after all tokens.
        Raises `ValueError` as `forward` does, and for a chunk_size below 1 or a mask that does not fit.
        """
        self._check_reading(tokens, state, chunk_size, scored)
        if scored is None:
            scored = torch.zeros_like(tokens, dtype=torch.bool)
            scored[:, -1] = True
        device, start = self.embedding.weight.device, 0
        found, places = [], []
        for piece, mask in zip(tokens.split(chunk_size, dim=1), scored.split(chunk_size, dim=1)):
            features, state = self.features(piece.to(device), state, return_state=True)
            rows, times = mask.nonzero(as_tuple=True)
            # a copy, so that all others are freed before the next piece
            found.append(features[rows.to(device), times.to(device)])
            places.append(rows * tokens.shape[1] + start + times)
            start += piece.shape[1]
            del features
        assert state is not None
        return torch.cat(found)[torch.cat(places).argsort().to(device)], state

    def _check_reading(self, tokens: Tensor, state: ModelState | None, chunk_size: int, scored: Tensor | None) -> None:
        self._check_tokens(tokens)
        if state is not None:
            self._check_continued(state, tokens)
        if chunk_size < 1:
            raise ValueError(f"chunk_size must be at least 1, got {chunk_size}")
        if scored is not None and (scored.shape != tokens.shape or scored.dtype != torch.bool):
            given = f"{scored.dtype} {list(scored.shape)}"
            raise ValueError(f"scored must be bool and of the shape of tokens, {list(tokens.shape)}, got {given}")

    def decoder(self, batch: int, max_length: int, *, dtype: torch.dtype | None = None) -> Decoder:
        """What decodes up to `max_length` tokens, those of the prompt included, of `batch` sequences one at a time.

        It gives what calling the model token by token gives, faster: a step is recorded once, without the Python around
        its operations, and repeated; on a CUDA device as a CUDA graph, with buffers for max_length tokens.

            decoder = model.decoder(batch=1, max_length=2048)
            logits = decoder.prefill(prompt)  # or decoder.state = state
            logits = decoder.step(logits.argmax(-1))
            state = decoder.state  # what the model would have returned

        dtype: of autocast, under which everything runs; weights are cast once, those of a mixer that has to be called
        for every token as far as its linear layers go. None: no autocast, whatever the caller's is.
        Weights that are changed later, or another mode (`train`, `eval`), count from the next prefill or state on.
        After an error within a step, set `decoder.state` anew. Raises `ValueError` for a batch or max_length below 1.
        """
        return Decoder(self, batch, max_length, dtype=dtype)

    def generate(
        self,
        prompt: Tensor,
        max_new_tokens: int,
        *,
        lengths: Tensor | Sequence[int] | None = None,
        temperature: float = 0.0,
        top_k: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Iterator[Tensor]:
        """Continue `prompt [batch, time]`; yields `max_new_tokens` tensors `[batch]`, each as soon as it is known.

        lengths: `[batch]`, for prompts of different lengths, padded on the left: the last `lengths[i]` tokens of row i
        are its prompt, what stands before them is never looked at. Every row is continued as if it were alone, whatever
        the mixers. Rows of one length are read together, so few different lengths are faster than many.
        temperature: 0 takes the likeliest token; above, tokens are drawn from softmax(logits / temperature), from the
        `top_k` likeliest if given, with `generator` (on the model's device) or torch's own.
        Raises `ValueError` for bad arguments, at the call and not at the first token.
        """
        rows = self._group_rows(prompt, lengths)
        for own, length in rows:
            self.check_input(prompt[own, prompt.shape[1] - length :], None)
        if max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be at least 1, got {max_new_tokens}")
        if not (temperature >= 0 and math.isfinite(temperature)):
            raise ValueError(f"temperature must be 0 (greedy) or a positive number, got {temperature}")
        if top_k is not None and not 1 <= top_k <= self.config.vocab_size:
            raise ValueError(f"top_k must be in 1..{self.config.vocab_size}, got {top_k}")
        groups = [own for own, _ in rows]
        prompts = [prompt[own, prompt.shape[1] - length :] for own, length in rows]
        return self._generate(groups, prompts, max_new_tokens, temperature, top_k, generator)

    def _group_rows(self, prompt: Tensor, lengths: Tensor | Sequence[int] | None) -> list[tuple[Tensor, int]]:
        """The rows of `prompt` by the length of what is to be read of them."""
        if prompt.ndim != 2 or 0 in prompt.shape:
            raise ValueError(f"a model expects tokens of shape [batch >= 1, time >= 1], got {list(prompt.shape)}")
        batch, time = prompt.shape
        given = torch.full((batch,), time) if lengths is None else torch.as_tensor(lengths).cpu()
        if given.shape != (batch,) or given.is_floating_point() or given.min() < 1 or given.max() > time:
            shown = f"{given.dtype} {given.tolist()}"
            raise ValueError(f"lengths must be [batch = {batch}] whole numbers from 1 to time = {time}, got {shown}")
        values = given.unique().tolist()
        shared = [mixer.place for mixer in self.mixers() if not mixer.rows_are_independent]
        if len(values) > 1 and shared:
            raise ValueError(f"prompts of different lengths cannot share the memory of {', '.join(shared)}")
        return [((given == length).nonzero().squeeze(1), length) for length in values]

    @torch.no_grad()
    def _generate(
        self,
        groups: list[Tensor],
        tokens: list[Tensor],
        count: int,
        temperature: float,
        top_k: int | None,
        generator: torch.Generator | None,
    ) -> Iterator[Tensor]:
        """Continue groups of rows, each of one length and with a state of its own: a state has one position."""
        order = torch.cat(groups).argsort()
        readers = [self._reader(len(own), own.shape[1] + count, count) for own in tokens]
        for _ in range(count):
            logits = torch.cat([read(own) for read, own in zip(readers, tokens)])[order]
            token = sample(logits, temperature, top_k, generator)
            yield token
            tokens = [token[rows, None] for rows in groups]

    def _reader(self, batch: int, max_length: int, count: int) -> Callable[[Tensor], Tensor]:
        """What reads `[batch, time]` on and on and returns logits `[batch, vocab_size]` of the last token."""
        if count < RECORDING_PAYS:
            state: ModelState | None = None

            def read(tokens: Tensor) -> Tensor:
                nonlocal state
                features, state = self.read(tokens, state)
                return self.head(features)

            return read
        kind = self.embedding.weight.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        decoder = self.decoder(batch, max_length, dtype=dtype)
        return lambda tokens: decoder.step(tokens[:, 0]) if decoder.position else decoder.prefill(tokens)

    def save(self, folder: str | Path) -> None:
        """Write `config.json` and `model.safetensors` into `folder`, which is made if need be."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        content = {"format": FORMAT, "config": self.config.to_dict(), "d_ff": self.d_ff}
        text = json.dumps(content, indent=2) + "\n"
        # clones, since safetensors refuses tensors that share memory
        tensors = {name: t.detach().cpu().contiguous().clone() for name, t in self.state_dict().items()}
        # replaced whole, so that an interrupted save leaves the earlier file
        safetensors.torch.save_file(tensors, folder / f"{WEIGHTS_FILE}.tmp")
        (folder / f"{CONFIG_FILE}.tmp").write_text(text)
        for name in (WEIGHTS_FILE, CONFIG_FILE):
            os.replace(folder / f"{name}.tmp", folder / name)

    @classmethod
    def load(cls, folder: str | Path, device: torch.device | str = "cpu") -> LanguageModel:
        """Read what `save` wrote, dtypes included.

        Raises `FileNotFoundError` for a missing file, `ValueError` for one that is corrupt or does not fit the other.
        """
        folder = Path(folder)
        for name in (CONFIG_FILE, WEIGHTS_FILE):
            if not (folder / name).is_file():
                raise FileNotFoundError(f"{folder} holds no saved model: {name} is missing")
        config, d_ff = _read_config(folder / CONFIG_FILE)
        try:
            tensors = safetensors.torch.load_file(folder / WEIGHTS_FILE)
        except SafetensorError as error:
            raise ValueError(f"{folder / WEIGHTS_FILE} is corrupt: {error}") from error
        with torch.device("cpu"):
            # the width was solved when the model was made; it must not change with the counting
            model = cls(dataclasses.replace(config, d_ff=d_ff, match=None, match_layout=None))
        model.config = config
        model._load_tensors(tensors, folder)
        return model.to(device)

    def _load_tensors(self, tensors: dict[str, Tensor], folder: Path) -> None:
        own = self.state_dict()
        problems = [f"{name} is missing" for name in own if name not in tensors]
        problems += [f"{name} is unknown" for name in tensors if name not in own]
        problems += [
            f"{name} has shape {list(tensors[name].shape)} instead of {list(t.shape)}"
            for name, t in own.items()
            if name in tensors and tensors[name].shape != t.shape
        ]
        if problems:
            shown = "; ".join(problems[:5]) + (f"; and {len(problems) - 5} more" if len(problems) > 5 else "")
            raise ValueError(f"{folder / WEIGHTS_FILE} does not fit {folder / CONFIG_FILE}: {shown}")
        for name, tensor in [*self.named_parameters(), *self.named_buffers()]:
            if name in tensors:
                tensor.data = tensor.data.to(tensors[name].dtype)
        self.load_state_dict(tensors)


def sample(logits: Tensor, temperature: float, top_k: int | None, generator: torch.Generator | None) -> Tensor:
    """Draw `[batch]` tokens from `logits [batch, vocab_size]`; see `LanguageModel.generate`."""
    if temperature == 0:
        return logits.argmax(-1)
    logits = logits.float() / temperature
    if top_k is not None:
        logits, ids = logits.topk(top_k)
        return ids.gather(1, torch.multinomial(logits.softmax(-1), 1, generator=generator)).squeeze(1)
    return torch.multinomial(logits.softmax(-1), 1, generator=generator).squeeze(1)


def _read_config(path: Path) -> tuple[ModelConfig, int]:
    try:
        content: Any = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is corrupt: {error}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        found = content.get("format") if isinstance(content, dict) else None
        raise ValueError(f"{path} is not a model of format {FORMAT} (its format is {found!r})")
    if not (isinstance(content.get("config"), dict) and isinstance(content.get("d_ff"), int)):
        raise ValueError(f"{path} lacks the model's config or d_ff")
    return ModelConfig.from_dict(content["config"]), content["d_ff"]
