"""The backbone that hosts any mixer: pre-norm residual blocks, RMSNorm, SwiGLU, tied embeddings of unit scale.

Fairness by construction: every module draws its initial parameters from a random stream of its own, seeded by the
model's seed and the module's name. What a mixer draws changes nothing elsewhere.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ..mixers import Mixer, MixerState, create_mixer
from ..mixers.documents import Documents, document_lengths
from ..mixers.softmax import SoftmaxAttention
from .config import ModelConfig
from .layout import LayerSpec, Layout, MixerSpec, parse_layout

NORM_EPS = 1e-5

BlockState = tuple[MixerState | None, MixerState | None, MixerState | None]


@dataclass(frozen=True, eq=False)
class ModelState(MixerState):
    """What a model carries from one call to the next: for every layer the states of its memory, mixer and feed-forward,
    None where there is none."""

    layers: tuple[BlockState, ...]


class SwiGLU(nn.Module):
    """Feed-forward `down(silu(gate(x)) * up(x))` of width d_ff, without biases (Shazeer 2020, arXiv 2002.05202)."""

    def __init__(self, d_model: int, d_ff: int, n_layers: int) -> None:
        super().__init__()
        self.gate = nn.Linear(d_model, d_ff, bias=False)
        self.up = nn.Linear(d_model, d_ff, bias=False)
        self.down = nn.Linear(d_ff, d_model, bias=False)
        nn.init.normal_(self.gate.weight, std=d_model**-0.5)
        nn.init.normal_(self.up.weight, std=d_model**-0.5)
        # two residual branches a layer: the sum of all of them keeps its scale at any depth (GPT-2)
        nn.init.normal_(self.down.weight, std=(2 * n_layers * d_ff) ** -0.5)

    def forward(self, x: Tensor) -> Tensor:
        """`x [batch, time, d_model]` -> the same shape."""
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Block(nn.Module):
    """One layer: [memory sublayer] -> mixer -> feed-forward, each on the normalised residual stream and added to it."""

    def __init__(self, d_model: int, mixer: Mixer, feed_forward: SwiGLU | Mixer, memory: Mixer | None) -> None:
        super().__init__()
        self.memory_norm = nn.RMSNorm(d_model, eps=NORM_EPS) if memory is not None else None
        self.memory = memory
        self.mixer_norm = nn.RMSNorm(d_model, eps=NORM_EPS)
        self.mixer = mixer
        self.feed_forward_norm = nn.RMSNorm(d_model, eps=NORM_EPS)
        self.feed_forward = feed_forward

    def forward(
        self, x: Tensor, state: BlockState | None, return_state: bool, documents: Documents | None = None
    ) -> tuple[Tensor, BlockState]:
        """`x [batch, time, d_model]` -> the same shape, and the states after it (None where there is none)."""
        memory_state, mixer_state, feed_forward_state = state or (None, None, None)
        if self.memory is not None and self.memory_norm is not None:
            y, memory_state = self.memory(self.memory_norm(x), memory_state, return_state, documents=documents)
            x = x + y.to(x.dtype)
        y, mixer_state = self.mixer(self.mixer_norm(x), mixer_state, return_state, documents=documents)
        x = x + y.to(x.dtype)
        y = self.feed_forward_norm(x)
        if isinstance(self.feed_forward, Mixer):
            y, feed_forward_state = self.feed_forward(y, feed_forward_state, return_state, documents=documents)
        else:
            y = self.feed_forward(y)
        return x + y.to(x.dtype), (memory_state, mixer_state, feed_forward_state)

    def restart(self, state: BlockState) -> BlockState:
        """The states to read a text again with, see `Mixer.restart`; None where nothing stays."""
        modules = (self.memory, self.mixer, self.feed_forward)
        memory, mixer, feed_forward = (
            module.restart(part) if isinstance(module, Mixer) and part is not None else None
            for module, part in zip(modules, state, strict=True)
        )
        return memory, mixer, feed_forward

    @property
    def keeps_memory(self) -> bool:
        """Whether a call changes one of the mixers, so that calling twice is not calling once."""
        modules = (self.memory, self.mixer, self.feed_forward)
        return any(module.keeps_memory for module in modules if isinstance(module, Mixer))


class Backbone(nn.Module):
    """Embedding, blocks, final norm, and the embedding again as the output layer.

    d_ff: width of the feed-forwards; `config.d_ff` and `config.match` are for `LanguageModel` to resolve.
    Raises `LayoutError` if the layout names what cannot be built.
    """

    checkpoint_activations: bool = False
    """Keep of every layer its input only while gradients are recorded in training mode, and compute the layer again in
    the backward pass: about a third more work, and memory for one layer instead of all. Not where a state is returned,
    nor in a layer whose mixer keeps memory across calls, which would be told everything twice."""

    def __init__(self, config: ModelConfig, d_ff: int) -> None:
        super().__init__()
        self.config = config
        self.d_ff = d_ff
        layout = parse_layout(config.layout)
        device = torch.get_default_device()
        # initial values are drawn on the CPU, so that they do not depend on the device
        with torch.device("meta" if device.type == "meta" else "cpu"):
            with _random_stream(config.seed, "embedding"):
                self.embedding = nn.Embedding(config.vocab_size, config.d_model)
                # as the output layer: logits of about unit scale
                nn.init.normal_(self.embedding.weight, std=config.d_model**-0.5)
            places = layout.place(config.n_layers)
            self.layers = nn.ModuleList(self._build_block(layout, i, place) for i, place in enumerate(places))
            self.norm = nn.RMSNorm(config.d_model, eps=NORM_EPS)
        self.to(device)
        self.signature = self._describe()

    def _describe(self) -> str:
        sizes = f"d_model={self.config.d_model}, d_ff={self.d_ff}, vocab_size={self.config.vocab_size}"
        mixers = ", ".join(mixer.signature for mixer in self.mixers())
        return f"LanguageModel({sizes}, mixers=[{mixers}])"

    def _build_block(self, layout: Layout, i: int, place: LayerSpec) -> Block:
        feed_forward: SwiGLU | Mixer
        if place.feed_forward is not None:
            feed_forward = self._build_mixer(layout, i, "feed_forward", place.feed_forward)
        else:
            with _random_stream(self.config.seed, f"layers.{i}.feed_forward"):
                feed_forward = SwiGLU(self.config.d_model, self.d_ff, self.config.n_layers)
        mixer = self._build_mixer(layout, i, "mixer", place.mixer)
        memory = self._build_mixer(layout, i, "memory", place.memory) if place.memory else None
        return Block(self.config.d_model, mixer, feed_forward, memory)

    def _build_mixer(self, layout: Layout, i: int, part: str, mixer: MixerSpec) -> Mixer:
        name, n_layers = f"layers.{i}.{part}", self.config.n_layers
        options = {**self.config.mixer_defaults.get(mixer.name, {}), **mixer.options}
        try:
            with _random_stream(self.config.seed, name):
                built = create_mixer(mixer.name, self.config.d_model, layer=i, n_layers=n_layers, **options)
        except (ValueError, TypeError) as error:
            spec = MixerSpec(mixer.name, options)
            raise layout.error(f"{spec} cannot be built: {error}", mixer.column) from error
        built.place = name
        return built

    def mixers(self) -> Iterator[Mixer]:
        """Every mixer, layer by layer, in the order in which they run."""
        for block in self.layers:
            for module in (block.memory, block.mixer, block.feed_forward):
                if isinstance(module, Mixer):
                    yield module

    def embed(self, tokens: Tensor) -> Tensor:
        """What the first layer is given, `[..., d_model]`."""
        # unit scale (Vaswani et al. 2017, 3.4): else what the first layers add drowns the token, the more the wider the
        # model is, and a memory above them cannot find by a token what was written at another place with the same one
        return self.embedding(tokens) * self.config.d_model**0.5

    def features(
        self,
        tokens: Tensor,
        state: ModelState | None = None,
        return_state: bool = False,
        *,
        documents: Documents | None = None,
    ) -> tuple[Tensor, ModelState | None]:
        """Everything but the output layer: `tokens [batch, time]` -> `[batch, time, d_model]` and the state."""
        self.check_input(tokens, state)
        shape = tokens.shape
        if documents is not None:
            if state is not None or return_state:
                raise ValueError("documents start fresh and leave no state: give documents or a state, not both")
            documents, tokens = _document_edges(documents, *shape), tokens.reshape(1, -1)
        x = self.embed(tokens)
        layers: list[Any] = []
        recompute = self.checkpoint_activations and self.training and torch.is_grad_enabled() and not return_state
        for i, block in enumerate(self.layers):
            before = state.layers[i] if state is not None else None
            if recompute and not block.keeps_memory:
                x, block_state = checkpoint(block, x, before, return_state, documents, use_reentrant=False)
            else:
                x, block_state = block(x, before, return_state, documents)
            layers.append(block_state)
        x = self.norm(x).reshape(*shape, -1)
        if not return_state:
            return x, None
        position = (state.position if state is not None else 0) + tokens.shape[1]
        return x, ModelState(self.signature, tokens.shape[0], position, tuple(layers))

    def head(self, features: Tensor) -> Tensor:
        """Logits `[..., vocab_size]` of features `[..., d_model]`; the weight is the embedding's."""
        return F.linear(features, self.embedding.weight)

    def forward(
        self,
        tokens: Tensor,
        state: ModelState | None = None,
        return_state: bool = False,
        *,
        documents: Documents | None = None,
    ) -> tuple[Tensor, ModelState | None]:
        """Logits `[batch, time, vocab_size]` of the tokens that follow `tokens [batch, time]` (int64).

        state: what an earlier call returned; None starts fresh. return_state: also return the state after `tokens`.
        documents: cumulative lengths `[n + 1]` from 0 to batch * time of packed documents, over the rows laid end to
        end; each is read as if it were alone, without a state before or after it. A row always starts a document.
        Raises `ValueError` for a wrong shape or dtype, ids outside the vocabulary (found on the CPU only, where looking
        costs nothing), a state of another model or batch size, or documents that do not fit.
        """
        x, state = self.features(tokens, state, return_state, documents=documents)
        return self.head(x), state

    def extend_context(self, factor: float, trained_length: int) -> None:
        """Let attention read texts `factor` times longer than the `trained_length` tokens of its training, from now on.

        YaRN in every `softmax_attention` with rotary embedding, see `SoftmaxAttention.extend_context`; factor 1 goes
        back. The keys of another factor are turned by other angles: states that were made before are refused.
        A setting, no part of `config`: it is not saved.
        Raises `ValueError` if no mixer has angles to extend, for a factor below 1, or a length below 1.
        """
        found = [m for m in self.mixers() if isinstance(m, SoftmaxAttention) and m.positions != "nope"]
        if not found:
            raise ValueError(
                f"no mixer of {self.config.layout!r} has angles that grow with the text: extend_context is for "
                "softmax_attention with positions='rope' or 'yarn'"
            )
        for mixer in found:
            mixer.extend_context(factor, trained_length)
        self.signature = self._describe()

    def restart(self, state: ModelState) -> ModelState:
        """The state to read a text again with (iterative reading): memories stay, the rest starts at position 0 again.

        Attention and recurrent states are dropped; a memory that outlives its text keeps what it was told, its
        unfinished chunk included, and every sequence keeps its own. See `Mixer.restart`.
        Raises `ValueError` for a state of another model.
        """
        self.check_state(state)
        blocks = (cast(Block, block) for block in self.layers)
        layers = tuple(block.restart(part) for block, part in zip(blocks, state.layers, strict=True))
        return dataclasses.replace(state, position=0, layers=layers)

    def check_input(self, tokens: Tensor, state: ModelState | None) -> None:
        """Raise `ValueError`, naming what was given and what was expected, before any work is done."""
        self._check_tokens(tokens)
        if state is None:
            return
        self._check_continued(state, tokens)
        if state.device is not None and state.device != tokens.device:
            raise ValueError(f"the state is on {state.device} but tokens on {tokens.device}; move it: state.to(device)")

    def _check_tokens(self, tokens: Tensor) -> None:
        if tokens.ndim != 2 or 0 in tokens.shape:
            raise ValueError(f"a model expects tokens of shape [batch >= 1, time >= 1], got {list(tokens.shape)}")
        if tokens.dtype != torch.int64:
            raise ValueError(f"a model expects int64 tokens, got {tokens.dtype}")
        if tokens.device.type == "cpu" and not torch.compiler.is_compiling():
            low, high = (int(v) for v in torch.aminmax(tokens))
            if low < 0 or high >= self.config.vocab_size:
                raise ValueError(f"token ids must be in 0..{self.config.vocab_size - 1}, got {low}..{high}")

    def _check_continued(self, state: ModelState, tokens: Tensor) -> None:
        self.check_state(state)
        if state.batch != tokens.shape[0]:
            raise ValueError(
                f"the state holds {state.batch} sequences but tokens has {tokens.shape[0]}; "
                "state.select(rows) picks rows"
            )

    def check_state(self, state: ModelState) -> None:
        """Raise `ValueError` unless a model of this signature made the state."""
        if not isinstance(state, ModelState):
            raise ValueError(f"a model expects a ModelState or None as state, got {type(state).__name__}")
        if state.signature != self.signature:
            raise ValueError(f"the state was made by {state.signature}; it cannot be continued by {self.signature}")


def _document_edges(documents: Documents, batch: int, time: int) -> list[int]:
    """Cumulative lengths of the documents, cut where a row ends."""
    ends = itertools.accumulate(document_lengths(documents, batch * time))
    return sorted({0, *ends, *range(0, batch * time, time)})


@contextlib.contextmanager
def _random_stream(seed: int, name: str) -> Iterator[None]:
    """Seed the CPU's generator from `seed` and `name`; afterwards it is as it was."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int.from_bytes(digest[:8], "big") >> 1)
        yield
