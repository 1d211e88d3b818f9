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
from torch import Tensor

from ..mixers.stored import CorruptFileError, TensorFile, difference, file_in, read_json
from .backbone import Backbone, ModelState
from .checksums import check_sums, write_sums
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
        """Write `config.json`, `model.safetensors` and their `SHA256SUMS` into `folder`, which is made if need be."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        content = {"format": FORMAT, "config": self.config.to_dict(), "d_ff": self.d_ff}
        text = json.dumps(content, indent=2) + "\n"
        # clones, since safetensors refuses tensors that share memory
        tensors = {name: t.detach().cpu().contiguous().clone() for name, t in self.state_dict().items()}
        # each is replaced whole, and the sums come last: they tell an interrupted save from a finished one
        safetensors.torch.save_file(tensors, folder / f"{WEIGHTS_FILE}.tmp")
        (folder / f"{CONFIG_FILE}.tmp").write_text(text)
        for name in (WEIGHTS_FILE, CONFIG_FILE):
            os.replace(folder / f"{name}.tmp", folder / name)
        write_sums(folder, [CONFIG_FILE, WEIGHTS_FILE])

    @classmethod
    def load(cls, folder: str | Path, device: torch.device | str = "cpu") -> LanguageModel:
        """Read what `save` wrote, dtypes included; one of before there were `SHA256SUMS` is loaded without them.

        Raises `FileNotFoundError` for a missing file, `ValueError` for one that is corrupt, does not fit the other, or
        leads out of the folder. Nothing is allocated before it is known to be in the file.
        """
        folder = Path(folder)
        paths = {}
        for name in (CONFIG_FILE, WEIGHTS_FILE):
            try:
                paths[name] = file_in(folder, name)
            except FileNotFoundError:
                raise FileNotFoundError(f"{folder} holds no saved model: {name} is missing") from None
        config, d_ff = _read_config(paths[CONFIG_FILE])
        # the width was solved when the model was made; it must not change with the counting
        plain = dataclasses.replace(config, d_ff=d_ff, match=None, match_layout=None)
        file = TensorFile.open(paths[WEIGHTS_FILE])
        problem = difference(file.shapes, _shapes(cls, plain, paths[CONFIG_FILE], most_layers=len(file.shapes)))
        if problem is not None:
            raise ValueError(f"{paths[WEIGHTS_FILE]} does not fit {paths[CONFIG_FILE]}: {problem}")
        check_sums(folder, [CONFIG_FILE, WEIGHTS_FILE])
        tensors = file.load()
        with torch.device("cpu"):
            model = cls(plain)
        model.config = config
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if name in tensors:
                if tensors[name].is_floating_point() != tensor.is_floating_point():
                    raise CorruptFileError(paths[WEIGHTS_FILE], f"{name} has dtype {tensors[name].dtype}")
                tensor.data = tensor.data.to(tensors[name].dtype)
        model.load_state_dict(tensors)
        return model.to(device)


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
    content: Any = read_json(path)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        found = content.get("format") if isinstance(content, dict) else None
        raise ValueError(f"{path} is not a model of format {FORMAT} (its format is {str(found)[:40]!r})")
    if not (isinstance(content.get("config"), dict) and type(content.get("d_ff")) is int):
        raise ValueError(f"{path} lacks the model's config or d_ff")
    try:
        return ModelConfig.from_dict(content["config"]), content["d_ff"]
    except (TypeError, AttributeError) as error:  # a value of another kind, where no message is ready for it
        raise CorruptFileError(path, f"its config is none of a model: {error}") from None


def _shapes(
    kind: type[LanguageModel], config: ModelConfig, path: Path, *, most_layers: int
) -> dict[str, tuple[int, ...]]:
    """Of the tensors that the model of `config`, which stands in the file `path`, has; no memory is used for them."""
    if config.n_layers > most_layers:  # building them all takes long, even on the meta device
        raise ValueError(f"{path} asks for {config.n_layers:,} layers, and the model has {most_layers:,} tensors")
    try:
        with torch.device("meta"):
            return {name: tuple(tensor.shape) for name, tensor in kind(config).state_dict().items()}
    except (RuntimeError, OverflowError, MemoryError, TypeError) as error:  # sizes whose product no tensor has
        raise CorruptFileError(path, f"it asks for a model that cannot be built: {str(error)[:200]}") from None
