"""The pieces of a decoder: sublayers, and what is recorded of some of them in a row."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..mixers import Mixer, MixerState
from ..mixers.ops.attention.sdpa import without_cudnn
from ..mixers.stepping import CannotStep, Stepper
from .backbone import Block
from .cuda_graph import Graphs, Replay
from .program import CannotRecordError, WritesToConstantError, record

if TYPE_CHECKING:
    from .language_model import LanguageModel


class Refused(Exception):
    """A sublayer that cannot be recorded, and why."""

    def __init__(self, sublayer: Sublayer, reason: str) -> None:
        super().__init__(reason)
        self.sublayer, self.reason = sublayer, reason


@dataclass(eq=False)
class Sublayer:
    """One of a block's memory, mixer and feed-forward, with its norm.

    where: layer, and place in the block's state. stepper: None if the module has no state or must be called.
    reason: why it must be. held: its state then; weights: those that autocast would cast at every call, cast once.
    """

    where: tuple[int, int]
    norm: nn.Module
    module: nn.Module
    stepper: Stepper | None = None
    reason: str | None = None
    held: MixerState | None = None
    weights: dict[str, Tensor] = field(default_factory=dict)

    def begin(self, state: MixerState | None, max_length: int, static: bool) -> None:
        """Take over a state."""
        if not isinstance(self.module, Mixer):
            return
        try:
            if self.reason is None:
                _check_hooks(self.module)
                self.stepper = self.stepper or self.module.stepper(max_length, static)
                self._take(self.stepper.begin, state, static)
        except CannotStep as why:
            self.refuse(str(why))
        if self.reason is not None:
            self.held = state

    def _take(self, begin: Callable[[Any], None], state: MixerState | None, static: bool) -> None:
        assert self.stepper is not None
        old = self.stepper.carried
        begin(state)
        if static and len(old) == len(self.stepper.carried):
            self.stepper.carried = [_kept(a, b) for a, b in zip(old, self.stepper.carried)]

    def refuse(self, reason: str, position: int | None = None) -> None:
        """Call the module from now on."""
        if position is not None and self.stepper is not None:
            self.held = self.stepper.state(position)
        self.stepper, self.reason = None, reason

    def state(self, position: int) -> MixerState | None:
        """The state after `position` tokens; shared with nothing here."""
        if self.stepper is not None:
            return self.stepper.state(position)
        return None if self.held is None else self.held.clone()

    def advance(self, x: Tensor, where: Tensor, position: int, static: bool) -> Tensor:
        """One token of the residual stream, `x [batch, 1, d_model]`, without a recording; the state moves on."""
        y = self.norm(x)
        if not isinstance(self.module, Mixer):
            y = self.module(y)
        elif self.stepper is None:
            y, self.held = self._call(self.module, y)
        elif self.stepper.is_edge(position):
            y, after = self.module(y, self.stepper.state(position), return_state=True)
            self._take(self.stepper.resume, after, static)
        else:
            y, after = self.stepper.step(y, where, self.stepper.carried, self.stepper.views(position))
            if static:
                assign(self.stepper.carried, after)
            else:
                self.stepper.carried = after
        return x + y.to(x.dtype)

    def cast_weights(self, x: Tensor, dtype: torch.dtype) -> None:
        """Cast once the weights that the module, where it is called, lets autocast cast at every call, and uses for
        nothing else; none if that makes any difference. x: the residual stream of one token. Under that autocast."""
        if self.reason is None or not isinstance(self.module, Mixer) or self.module.keeps_memory:
            return
        layers = [(name, layer) for name, layer in self.module.named_modules() if type(layer) is nn.Linear]
        parameters = {f"{name}.{own}": t for name, layer in layers for own, t in layer.named_parameters()}
        x = self.norm(torch.arange(x.numel(), device=x.device).sin().view_as(x).to(x.dtype))  # draws no random numbers
        with _SeesCasts(parameters.values(), dtype) as seen:
            expected = self.module(x, self.held, return_state=True)
        self.weights = {n: t.to(dtype) for n, t in parameters.items() if id(t) in seen.cast - seen.used}
        found = self._call(self.module, x)
        if not all(map(torch.equal, _values(*found), _values(*expected))):
            self.weights = {}

    def _call(self, module: Mixer, y: Tensor) -> tuple[Tensor, MixerState | None]:
        if not self.weights:
            return module(y, self.held, return_state=True)
        found: tuple[Tensor, MixerState | None] = functional_call(module, self.weights, (y, self.held, True))
        return found

    @property
    def how(self) -> str:
        """See `Decoder.how`."""
        if self.reason is not None:
            return f"called: {self.reason}"
        return "recorded, called at edges" if self.has_edges else "recorded"

    @property
    def has_edges(self) -> bool:
        return self.stepper is not None and self.stepper.has_edges


def _values(y: Tensor, state: MixerState | None) -> list[Tensor]:
    """An output and what a state says, without the spare room of its buffers."""
    found = [y]
    if state is not None:
        state.map_tensors(lambda t: found.append(t) or t)  # type: ignore[func-returns-value]
    return found


class _SeesCasts(TorchDispatchMode):
    """Which parameters are cast to a dtype, and which are used in any other way; by their ids."""

    def __init__(self, parameters: Iterable[Tensor], dtype: torch.dtype) -> None:
        super().__init__()
        self.parameters, self.dtype = {id(t) for t in parameters}, dtype
        self.cast: set[int] = set()
        self.used: set[int] = set()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # see `program`

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {id(t) for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)} & self.parameters
        result = func(*args, **(kwargs or {}))
        casts = func.overloadpacket in (torch.ops.aten.to, torch.ops.aten._to_copy) and result.dtype == self.dtype
        found = self.cast if casts else self.used
        found |= given
        return result


def _check_hooks(module: nn.Module) -> None:
    if any(m._forward_hooks or m._forward_pre_hooks for m in module.modules()):
        raise CannotStep("it has hooks, which want to be called")


def assign(held: list[Tensor], new: list[Tensor]) -> None:
    """Give tensors new contents, which may be those of one another."""
    storages = {t.untyped_storage().data_ptr() for t in held}
    shares = [t is not own and t.untyped_storage().data_ptr() in storages for own, t in zip(held, new)]
    new = [t.clone() if shared else t for t, shared in zip(new, shares)]
    for own, t in zip(held, new, strict=True):
        if t is not own:
            own.copy_(t)


def _kept(old: Tensor, new: Tensor) -> Tensor:
    """`new` at the address of `old`, if it has room for it."""
    if (old.shape, old.dtype) != (new.shape, new.dtype):
        return new
    return old.copy_(new)


def sublayers_of(model: LanguageModel) -> Iterator[Sublayer]:
    """In the order in which they run."""
    for i, block in enumerate(model.layers):
        assert isinstance(block, Block)
        if block.memory is not None and block.memory_norm is not None:
            yield Sublayer((i, 0), block.memory_norm, block.memory)
        yield Sublayer((i, 1), block.mixer_norm, block.mixer)
        yield Sublayer((i, 2), block.feed_forward_norm, block.feed_forward)


class Segment:
    """Sublayers in a row, none of which must be called, as one recording; the first one embeds the token, the last one
    makes logits of what comes out.

    Called with token `[batch, 1]` or `x [batch, 1, d_model]`, it moves the sublayers' states on by a token and returns
    `x`, or logits `[batch, vocab_size]`. In inference mode only.
    """

    def __init__(
        self, model: LanguageModel, sublayers: list[Sublayer], graphs: Graphs | None, first: bool, last: bool
    ) -> None:
        self.model, self.sublayers, self.graphs, self.first, self.last = model, sublayers, graphs, first, last
        self.why_no_graph: str | None = None
        self._on_cuda = model.embedding.weight.device.type == "cuda"
        self._steppers = [s.stepper for s in sublayers if s.stepper is not None]
        self._program: Callable[..., list[Tensor]] | None = None
        self._replays: dict[Any, Replay] = {}
        self._x: Tensor | None = None

    def record(self, token: Tensor, where: Tensor, position: int) -> None:
        """Get ready; no state moves on. Raises `Refused` where a sublayer must be called."""
        x = token if self.first else self.model.embed(token)
        self._program = record(self._compute, self._inputs(x, where, position))

    def __call__(self, x: Tensor, where: Tensor, position: int) -> Tensor:
        """where: the same position as a tensor."""
        assert self._program is not None
        if self.graphs is not None:
            return self._replay(x, where, position)
        with self._kernels():
            y, *carried = self._program(*self._inputs(x, where, position))
        for stepper in self._steppers:
            count = len(stepper.carried)
            stepper.carried, carried = carried[:count], carried[count:]
        return y

    def _inputs(self, x: Tensor, where: Tensor, position: int) -> list[Tensor]:
        inputs = [x, where]
        for stepper in self._steppers:
            inputs += stepper.carried
            inputs += stepper.views(position)
        return inputs

    def _compute(self, inputs: list[Tensor]) -> list[Tensor]:
        x, where, *rest = inputs
        carried: list[Tensor] = []
        if self.first:
            x = self.model.embed(x)
        for sublayer in self.sublayers:
            y = sublayer.norm(x)
            if sublayer.stepper is None:
                y = sublayer.module(y)
            else:
                y, after, rest = _stepped(sublayer, sublayer.stepper, y, where, rest)
                carried += after
            x = x + y.to(x.dtype)
        return [self.model.head(self.model.norm(x))[:, -1] if self.last else x, *carried]

    def _replay(self, x: Tensor, where: Tensor, position: int) -> Tensor:
        key = tuple(stepper.layout(position) for stepper in self._steppers)
        if key not in self._replays:
            try:
                self._replays[key] = self._capture(x, where, position)
            except RuntimeError as error:
                self.graphs, self.why_no_graph = None, _first_line(error)
                return self(x, where, position)
        assert self._x is not None
        self._x.copy_(x)
        replay = self._replays[key]
        replay.replay()
        return replay.outputs[0]

    def _capture(self, x: Tensor, where: Tensor, position: int) -> Replay:
        assert self.graphs is not None and self._program is not None
        program = self._program
        if self._x is None:
            self._x = x.clone()
        inputs = self._inputs(self._x, where, position)
        held = [t for stepper in self._steppers for t in stepper.carried]

        with self._kernels():
            return self.graphs.capture(lambda: program(*inputs), lambda outputs: assign(held, outputs[1:]))

    def _kernels(self) -> contextlib.AbstractContextManager[Any]:
        """What attention switches off around its calls; such switches are no operations, which would be recorded."""
        return without_cudnn() if self._on_cuda else contextlib.nullcontext()


def _stepped(
    sublayer: Sublayer, stepper: Stepper, y: Tensor, where: Tensor, rest: list[Tensor]
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """A step on the next of the inputs `rest`; also returns those after them. Raises `Refused` if it does not work."""
    count = len(stepper.carried)
    n_views = stepper.n_views
    carried, views, rest = rest[:count], rest[count : count + n_views], rest[count + n_views :]
    try:
        y, after = stepper.step(y, where, carried, views)
    except WritesToConstantError:
        raise
    except (CannotStep, CannotRecordError) as why:
        raise Refused(sublayer, str(why)) from why
    except Exception as error:  # whatever a mixer does with a position that is a tensor
        raise Refused(sublayer, f"a recorded step fails: {type(error).__name__}: {_first_line(error)}") from error
    if [(t.shape, t.dtype) for t in after] != [(t.shape, t.dtype) for t in carried]:
        raise Refused(sublayer, "its state changes its sizes from token to token")
    return y, after, rest


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
