"""The contract of a causal sequence mixer: what it is called with, what it returns, how it describes itself."""

from __future__ import annotations

import difflib
import inspect
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeVar

import torch
from torch import Tensor, nn
from typing_extensions import dataclass_transform

from .documents import Documents, document_lengths, run_packed
from .ops.dispatch import Op
from .options import Option, option
from .state import MixerState
from .stepping import StateStepper, Stepper

Growth = Literal["constant", "bounded", "logarithmic", "linear"]
StateType = TypeVar("StateType", bound=MixerState)


class NotFiniteInputError(ValueError, FloatingPointError):
    """A mixer was given NaN or infinity; whoever trains a model that diverges sees the arithmetic error in it."""


@dataclass(frozen=True)
class MixerCard:
    """What a table, a report or a search needs to know of a mixer.

    name: how `create_mixer` finds it. family: softmax, linear, delta, state space, memory, controls, or your own.
    summary: one line. paper, arxiv, year: where it comes from, `First et al., Title` or `First & Second, Title`.
    state_growth: `constant` (same bytes at any position), `bounded` (grows up to `Mixer.max_state_nbytes`),
        `logarithmic` (a state for every power of two, at most as many as the position has binary digits) or `linear`
        (the same number of bytes per token).
    recurrence: the mixer in one line of mathematics. complexity: of its time in the length T of a sequence.
    limits: what a user should know before choosing it, one line; empty if nothing.
    ops: the operations it consists of. backends: implementations, by the names that the option `backend` takes,
        `reference` included; those that all `ops` have, or listed where a mixer has no op.
    parallel: True if training runs over the whole sequence at once, False if it walks chunk after chunk.
    role: `mixer`, or `feed_forward` if a layout puts it in the place of the SwiGLU.
    compile_note: None if `torch.compile` makes one graph of a call, else why it makes several.
    low_precision_tolerance: largest relative error, in the 2-norm, of bf16 autocast against float32.
    keeps_memory: True if calls change the module on purpose (off by default in every mixer of ours).
    """

    name: str
    family: str
    summary: str
    paper: str
    arxiv: str | None
    year: int
    state_growth: Growth
    recurrence: str = ""
    complexity: str = "O(T)"
    limits: str = ""
    ops: tuple[Op, ...] = ()
    backends: tuple[str, ...] = ()
    parallel: bool = True
    role: Literal["mixer", "feed_forward"] = "mixer"
    compile_note: str | None = None
    low_precision_tolerance: float = 5e-2
    keeps_memory: bool = False

    def __post_init__(self) -> None:
        if not self.ops:
            return
        common = tuple(b for b in self.ops[0].backends if all(b in op.backends for op in self.ops))
        if self.backends not in ((), common):
            raise ValueError(f"the backends of {self.name} follow from its ops: {', '.join(common)}; do not list them")
        object.__setattr__(self, "backends", common)


_ORDER = {"d_model": -1, "layer": 1, "n_layers": 2, "backend": 3}  # the options of every mixer around its own
_PLACE = ("layer", "n_layers")


@dataclass_transform(kw_only_default=True, field_specifiers=(option,))
class _Declared(nn.Module):
    """Collects the options that the bodies of its subclasses declare."""

    declared: ClassVar[dict[str, Option]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        found: dict[str, Option] = {}
        for base in reversed(cls.__mro__[1:]):
            found |= vars(base).get("declared", {})
        for name, value in list(vars(cls).items()):
            if isinstance(value, Option):
                found[name] = value
                delattr(cls, name)
        cls.declared = dict(sorted(found.items(), key=lambda item: _ORDER.get(item[0], 0)))
        cls.__signature__ = inspect.Signature([o.parameter for o in cls.declared.values()])  # type: ignore[attr-defined]


class Mixer(_Declared):
    """A causal sequence mixer: `y, state = mixer(x, state=None, return_state=False)`.

    Subclasses set `card`, declare their options (see `mixers.options`), make their modules in `build`, and write `mix`,
    which may rely on checked input. One call serves training, prefill, chunked prefill and decoding.
    """

    card: ClassVar[MixerCard]
    place = ""
    """Where a model put the mixer, as `layers.1.memory`; for messages."""
    signature = ""
    """Name and options, as far as they change what a state means; a state carries it, so that no other mixer continues
    from it. Kept by the instance, since every call compares it."""

    d_model: int = option("width of what goes in and comes out", least=1, kw_only=False)
    layer: int = option("index of the layer where it stands, from 0", default=0, least=0)
    n_layers: int = option("number of layers of the model", default=1, least=1)
    backend: str = option("implementation of its ops, see the card; auto: the fastest", default="auto", speed_only=True)

    def __init__(self, *args: Any, **options: Any) -> None:
        """Take the declared options, each checked by itself, and build.

        Raises `ValueError` for an option that is unknown, or not of its type or within its limits, `TypeError` where
        one without default is missing.
        """
        super().__init__()
        for name in options:
            if name not in self.declared:
                raise unknown_option(type(self), name)
        given = inspect.signature(type(self)).bind(*args, **options)
        given.apply_defaults()
        for key, value in given.arguments.items():
            setattr(self, key, self.declared[key].check(value))
        if self.backend != "auto" and self.backend not in self.card.backends:
            known = ", ".join(("auto", *self.card.backends))
            raise ValueError(f"{self.card.name} has no backend {self.backend!r}; it has {known}")
        self.build()
        self.__dict__["signature"] = self._sign()

    def build(self) -> None:
        """Make the modules. The options are attributes, each of them checked; what they must be together is checked
        here. An option whose None means something derived is set to that."""

    def forward(
        self,
        x: Tensor,
        state: MixerState | None = None,
        return_state: bool = False,
        *,
        documents: Documents | None = None,
    ) -> tuple[Tensor, MixerState | None]:
        """Mix `x [batch, time, d_model]` causally into `y` of the same shape, dtype and device.

        state: what an earlier call returned; None starts fresh. It is not changed, and may be continued many times.
        return_state: also return the state after `x`, else None.
        documents: cumulative lengths `[n + 1]` from 0 to time, where `x [1, time, d_model]` holds n documents end to
        end: each is read as if it were alone. They start fresh and leave no state.
        Raises `ValueError` if `x` has the wrong shape, `state` comes from another mixer, batch size or device, or
        documents do not fit.
        """
        if documents is not None:
            return self._mix_documents(x, documents, state, return_state), None
        self.check_input(x, state)
        y, state = self.mix(x, state, return_state)
        return y, state if return_state else None

    def mix(self, x: Tensor, state: Any, return_state: bool) -> tuple[Tensor, MixerState | None]:
        """The mixer itself, on checked input."""
        raise NotImplementedError

    def next_state(self, kind: type[StateType], x: Tensor, state: MixerState | None, **parts: Any) -> StateType:
        """The state after `x`, of the dataclass `kind` with its own fields as `parts`."""
        position = x.shape[1] + (0 if state is None else state.position)
        return kind(signature=self.signature, batch=x.shape[0], position=position, **parts)

    def stepper(self, max_length: int, static: bool) -> Stepper:
        """How this mixer decodes up to `max_length` tokens without being called for each, see `mixers.stepping`.

        static: the addresses of all tensors must stay, and their sizes as far as that goes, as a CUDA graph needs it.
        Here: for a state of constant size. Raises `CannotStep`, also at the first state, where that does not do.
        """
        return StateStepper(self)

    def restart(self, state: Any) -> MixerState | None:
        """The state to read a text again with: what was memorised stays, what belongs to places in the text goes.

        None, as here: nothing outlives the text, start fresh. A mixer whose memory does returns a state at position 0.
        Raises `ValueError` for a state of another mixer.
        """
        self.check_state(state)
        return None

    @property
    def options(self) -> dict[str, Any]:
        """The options by name, as they are now: None is resolved where `build` did."""
        return {name: getattr(self, name) for name in own_options(type(self))}

    @property
    def keeps_memory(self) -> bool:
        """Whether calls change the mixer on purpose: what the card says, unless an option of the mixer decides it."""
        return self.card.keeps_memory

    @property
    def rows_are_independent(self) -> bool:
        """Whether the rows of a batch do not see each other, as nearly always; not where they share a memory."""
        return not self.keeps_memory

    def max_state_nbytes(self, batch: int, dtype: torch.dtype = torch.float32) -> int | None:
        """The most bytes a state of `batch` sequences can hold, for mixers whose card says `bounded`; else None."""
        return None

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Parameters that an optimizer should treat apart; none here.

        Groups as `torch.optim` takes them: `params`, and where it differs from the rest of the model `weight_decay`;
        `learning_rate_scale`, by which the learning rate is multiplied; `sparse_gradient=True` if gradients are sparse
        tensors, which few optimizers take.
        """
        return []

    def check_input(self, x: Tensor, state: MixerState | None) -> None:
        """Raise `ValueError`, naming what was given and what was expected, before any work is done."""
        name = self.card.name
        if x.ndim != 3 or x.shape[2] != self.d_model or 0 in x.shape:
            expected = f"[batch >= 1, time >= 1, d_model = {self.d_model}]"
            raise ValueError(f"{name} expects x of shape {expected}, got {list(x.shape)}")
        if not x.is_floating_point():
            raise ValueError(f"{name} expects floating-point x, got {x.dtype}")
        if state is None:
            return
        self.check_state(state)
        if state.batch != x.shape[0]:
            raise ValueError(
                f"the state holds {state.batch} sequences but x has {x.shape[0]}; state.select(rows) picks rows"
            )
        if state.device is not None and state.device != x.device:
            raise ValueError(f"the state is on {state.device} but x is on {x.device}; move it with state.to(device)")

    def check_state(self, state: MixerState) -> None:
        """Raise `ValueError` unless a mixer of this name and these options made the state."""
        if not isinstance(state, MixerState):
            raise ValueError(f"{self.card.name} expects a MixerState or None as state, got {type(state).__name__}")
        if state.signature != self.signature:
            raise ValueError(f"the state was made by {state.signature}; it cannot be continued by {self.signature}")

    def _mix_documents(self, x: Tensor, documents: Documents, state: MixerState | None, return_state: bool) -> Tensor:
        self.check_input(x, None)
        if state is not None or return_state:
            raise ValueError("documents start fresh and leave no state: give documents or a state, not both")
        if x.shape[0] != 1:
            raise ValueError(f"documents lie end to end in one row: x must be [1, time, d_model], got {list(x.shape)}")
        lengths = document_lengths(documents, x.shape[1])
        return run_packed(lambda rows: self(rows)[0], x, lengths, together=self.rows_are_independent)

    @property
    def signed_options(self) -> dict[str, Any]:
        """The options that change what a state means."""
        return {name: value for name, value in self.options.items() if not self.declared[name].speed_only}

    def _sign(self) -> str:
        meant = sorted({"d_model": self.d_model, **self.signed_options}.items())
        return f"{self.card.name}({', '.join(f'{name}={value!r}' for name, value in meant)})"

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self.declared:
            if isinstance(value, (nn.Module, Tensor)):
                raise TypeError(f"{type(self).__name__}.{name} is an option; give the module another name")
            super().__setattr__(name, value)
            if "signature" in self.__dict__:  # a resolved option was changed after it was built
                self.__dict__["signature"] = self._sign()
        else:
            super().__setattr__(name, value)

    def extra_repr(self) -> str:
        return ", ".join(f"{k}={v!r}" for k, v in {"d_model": self.d_model, **self.options}.items())


def own_options(mixer: type[Mixer]) -> dict[str, Option]:
    """The options of a mixer class by name: what a layout may set, not the width nor the place, which a model sets."""
    return {name: o for name, o in mixer.declared.items() if name != "d_model" and name not in _PLACE}


def unknown_option(mixer: type[Mixer], option: str) -> ValueError:
    """What to raise for an option that a mixer class does not have; says which one may have been meant."""
    known = own_options(mixer)
    close = difflib.get_close_matches(option, known, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]}? " if close else ""
    return ValueError(f"{mixer.card.name} has no option {option!r}; {hint}its options are {', '.join(known)}")
