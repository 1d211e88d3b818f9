"""What a call of a model costs, counted and not timed: FLOPs, bytes moved, operations started, bytes held.

Each mixer is counted once, on one short sequence on the CPU, at two lengths; by the complexity on its card this tells
of any other. A model is the sum of its layers.
"""

from __future__ import annotations

import contextvars
import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ..mixers import create_mixer, mixer_card
from ..models import MixerSpec, ModelConfig, count_parameters, flop_counter, parse_layout, resolve_d_ff

SHORT, LONG = 256, 1024  # tokens of the sequences that are counted
_NEAR, _FAR = 64, 256  # tokens of context that are decoded after
LINEAR = ("O(T)", "O(T log T)")
BACKWARD = 2.0  # times the forward pass: a gradient for the inputs and one for the weights of every product
_READS_FEW = ("embedding", "index", "index_select", "gather", "take")
_WRITES_FEW = ("index_put", "index_add", "index_copy", "scatter", "scatter_add", "scatter_reduce")


@dataclass(frozen=True)
class Cost:
    """flops: of matrix products, a multiply-add being two. bytes: read and written by all operations. weights: those of
    them that are parameters, and do not grow with the batch. ops: operations started. held: bytes of all results, which
    a backward pass needs most of. state: bytes of the state afterwards."""

    flops: float = 0.0
    bytes: float = 0.0
    weights: float = 0.0
    ops: float = 0.0
    held: float = 0.0
    state: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return _each(lambda one, two: one + two, self, other)

    def times(self, factor: float) -> Cost:
        return _each(lambda one: factor * one, self)


def _each(function: Callable[..., float], *costs: Cost) -> Cost:
    return Cost(*(function(*values) for values in zip(*(vars(cost).values() for cost in costs))))


@dataclass(frozen=True)
class ModelCost:
    """Costs of a call over one sequence, in float32, by how many tokens it has.

    model_bytes: of its parameters and buffers.
    """

    parts: tuple[tuple[MixerCost, int], ...]
    d_model: int
    d_ff: int
    swiglus: int
    vocab_size: int
    model_bytes: float

    def reading(self, length: int, logits: float = 0.0) -> Cost:
        """A forward call over `length` tokens; logits: the share of positions that get some."""
        total = sum((part.reading(length).times(count) for part, count in self.parts), Cost())
        return total + self._around(length, logits)

    def decoding(self, context: int) -> Cost:
        """The next token after `context` of them."""
        total = sum((part.decoding(context).times(count) for part, count in self.parts), Cost())
        return total + self._around(1, 1.0)

    def _around(self, length: int, logits: float) -> Cost:
        """Norms, residual sums, feed-forwards and the output layer."""
        width, weights = self.d_ff * self.swiglus, 3 * self.d_model * self.d_ff * self.swiglus
        blocks = sum(count for _, count in self.parts)
        stream = 4.0 * length * self.d_model
        head = logits * length * self.vocab_size
        held = 4.0 * length * 4 * width + 4 * blocks * stream + 4 * head
        return Cost(
            flops=2.0 * length * weights + 2.0 * head * self.d_model,
            bytes=2 * held + 4.0 * weights,
            weights=4.0 * weights + (4.0 * self.d_model * self.vocab_size if logits else 0),
            ops=5.0 * self.swiglus + 3.0 * blocks + 3,
            held=held,
        )


@dataclass(frozen=True)
class MixerCost:
    """One mixer of a width, as it was counted at two lengths, and decoding after two contexts; bytes of its buffers."""

    linear: bool
    buffers: float
    short: Cost
    long: Cost
    near: Cost
    far: Cost

    def reading(self, length: int) -> Cost:
        if self.linear and length > LONG:
            # per token as at the longer one: what a chunk or a window costs is reached there, and what a state holds
            return dataclasses.replace(self.long.times(length / LONG), state=self.long.state)
        through = _line if self.linear else _parabola
        return _each(lambda short, long: through(length, SHORT, short, LONG, long), self.short, self.long)

    def decoding(self, context: int) -> Cost:
        context = min(context, LONG) if self.linear else context
        return _each(lambda near, far: _line(context, _NEAR, near, _FAR, far), self.near, self.far)


def _line(x: float, x1: float, y1: float, x2: float, y2: float) -> float:
    slope = max(0.0, (y2 - y1) / (x2 - x1))
    return max(y1 + slope * (x - x1), min(y1, y2) * min(1.0, x / x1))


def _parabola(x: float, x1: float, y1: float, x2: float, y2: float) -> float:
    """`b x + c x^2` through both points; a line where what is between them is no square."""
    c = (y2 / x2 - y1 / x1) / (x2 - x1)
    return _line(x, x1, y1, x2, y2) if c <= 0 else x * (y2 / x2 + c * (x - x2))


def cost_of(config: ModelConfig) -> ModelCost:
    """The cost of a model; each mixer is counted once in a process. The seed plays no part."""
    layout = parse_layout(config.layout)
    counted: dict[MixerCost, int] = {}
    swiglus = 0
    for place in layout.place(config.n_layers):
        swiglus += place.feed_forward is None
        for spec in (place.mixer, place.memory, place.feed_forward):
            if spec is not None:
                cost = mixer_cost(spec, config)
                counted[cost] = counted.get(cost, 0) + 1
    sizes = {"d_model": config.d_model, "vocab_size": config.vocab_size, "swiglus": swiglus}
    held = 4.0 * count_parameters(config)["total"] + sum(cost.buffers * count for cost, count in counted.items())
    return ModelCost(tuple(counted.items()), **sizes, d_ff=resolve_d_ff(config), model_bytes=held)


def mixer_cost(spec: MixerSpec, config: ModelConfig) -> MixerCost:
    """The cost of one mixer of a model. Raises whatever the mixer does with a sequence of that length."""
    options = {**config.mixer_defaults.get(spec.name, {}), **spec.options}
    return _mixer_cost(spec.name, config.d_model, json.dumps(options, sort_keys=True))


@cache
def _mixer_cost(name: str, d_model: int, options: str) -> MixerCost:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # small work, on a machine that may be busy
    try:
        # in an empty context, what runs here is not recorded as the backend of a case
        return contextvars.Context().run(_count_mixer, name, d_model, json.loads(options))
    finally:
        torch.set_num_threads(threads)


@torch.no_grad()
def _count_mixer(name: str, d_model: int, options: dict[str, Any]) -> MixerCost:
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.manual_seed(0)
        mixer = create_mixer(name, d_model, **options).eval()
        x = torch.randn(1, LONG, d_model)
        readings = [_count(mixer, x[:, :length]) for length in (SHORT, LONG)]
        steps = []
        for context in (_NEAR, _FAR):
            _, state = mixer(x[:, :context], None, return_state=True)
            _, state = mixer(x[:, :1], state, return_state=True)  # the first may copy a buffer
            steps.append(_count(mixer, x[:, :1], state))
    buffers = float(sum(buffer.nbytes for buffer in mixer.buffers()))
    return MixerCost(mixer_card(name).complexity in LINEAR, buffers, *readings, *steps)


def _count(mixer: nn.Module, x: Tensor, state: Any = None) -> Cost:
    counter = _Counter(mixer)
    flops = flop_counter()
    with counter, flops:
        _, after = mixer(x, state, return_state=True)
    held = 0.0 if after is None else float(after.nbytes)
    return Cost(flops.get_total_flops(), counter.bytes, counter.weights, counter.ops, counter.held, held)


class _Counter(TorchDispatchMode):
    """Counts what operations read, write and keep; views cost nothing."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._parameters = {p.data_ptr() for p in module.parameters()}
        self.bytes = self.weights = self.held = self.ops = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if not func.is_view:
            self._add(func.overloadpacket.__name__.rstrip("_"), _tensors(args), _tensors((out,)))
        return out

    def _add(self, name: str, given: list[Tensor], made: list[Tensor]) -> None:
        self.ops += 1
        weights = sum(t.nbytes for t in given if t.data_ptr() in self._parameters)
        read, written = sum(t.nbytes for t in given), sum(t.nbytes for t in made)
        if name in _READS_FEW:  # of a table, the rows that are asked for
            weights, read = 0, written
        elif name in _WRITES_FEW:
            read = written = given[-1].nbytes if given else 0
        self.weights += weights
        self.bytes += read + written
        self.held += 0 if made and any(made[0] is t for t in given) else written


def _tensors(values: Sequence[Any]) -> list[Tensor]:
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, list | tuple):
            found += _tensors(value)
    return found


def attention_cost(d_model: int, length: int) -> Cost:
    """Causal softmax attention by a fused kernel, without projections: scores and weighted sums of one half."""
    stream = 4.0 * length * d_model
    return Cost(flops=2.0 * length**2 * d_model, bytes=4 * stream, ops=3.0, held=stream)
