"""The contract of a causal sequence mixer: what it is called with, what it returns, how it describes itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from .state import MixerState

Growth = Literal["constant", "bounded", "linear"]


class NotFiniteInputError(ValueError, FloatingPointError):
    """A mixer was given NaN or infinity; whoever trains a model that diverges sees the arithmetic error in it."""


@dataclass(frozen=True)
class MixerCard:
    """What a table, a report or a search needs to know of a mixer.

    name: how `create_mixer` finds it. family: softmax, linear, delta, ttt, fast-weight memory, ...
    summary: one line. paper, arxiv, year: where it comes from.
    state_growth: `constant` (same bytes at any position), `bounded` (grows up to `Mixer.max_state_nbytes`) or
        `linear` (the same number of bytes for every token).
    backends: implementations of its op, by the names that the option `backend` takes, `reference` included.
    parallel: True if training runs over the whole sequence at once, False if it walks chunk after chunk.
    role: `mixer`, or `feed_forward` if a layout puts it in the place of the SwiGLU.
    compile_note: None if `torch.compile` gives the same result, else why it does not.
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
    backends: tuple[str, ...] = ("torch",)
    parallel: bool = True
    role: Literal["mixer", "feed_forward"] = "mixer"
    compile_note: str | None = None
    low_precision_tolerance: float = 5e-2
    keeps_memory: bool = False


class Mixer(nn.Module):
    """A causal sequence mixer: `y, state = mixer(x, state=None, return_state=False)`.

    Subclasses set `card`, hand every option to `super().__init__(d_model, **options)`, and write `mix`, which may
    rely on checked input. One call serves training, prefill, chunked prefill and decoding.
    """

    card: ClassVar[MixerCard]
    place: str = ""
    """Where a model put the mixer, as `layers.1.memory`; for messages."""

    def __init__(self, d_model: int, **options: Any) -> None:
        super().__init__()
        if d_model < 1:
            raise ValueError(f"d_model must be at least 1, got {d_model}")
        self.d_model = d_model
        self.options = options

    def forward(
        self, x: Tensor, state: MixerState | None = None, return_state: bool = False
    ) -> tuple[Tensor, MixerState | None]:
        """Mix `x [batch, time, d_model]` causally into `y` of the same shape, dtype and device.

        state: what an earlier call returned; None starts fresh. It is not changed, and may be continued many times.
        return_state: also return the state after `x`, else None.
        Raises `ValueError` if `x` has the wrong shape, or `state` comes from another mixer, batch size or device.
        """
        self.check_input(x, state)
        y, state = self.mix(x, state, return_state)
        return y, state if return_state else None

    def mix(self, x: Tensor, state: Any, return_state: bool) -> tuple[Tensor, MixerState | None]:
        """The mixer itself, on checked input."""
        raise NotImplementedError

    @property
    def signature(self) -> str:
        """Name and options; a state carries it, so that no other mixer continues from it."""
        # backend changes the speed, never the state
        options = {"d_model": self.d_model, **self.options}
        return f"{self.card.name}({', '.join(f'{k}={v!r}' for k, v in sorted(options.items()) if k != 'backend')})"

    def restart(self, state: Any) -> MixerState | None:
        """The state to read a text again with: what was memorised stays, what belongs to places in the text goes.

        None, as here: nothing outlives the text, start fresh. A mixer whose memory does returns a state at position 0.
        Raises `ValueError` for a state of another mixer.
        """
        self.check_state(state)
        return None

    @property
    def keeps_memory(self) -> bool:
        """Whether calls change the mixer on purpose: what the card says, unless an option of the mixer decides it."""
        return self.card.keeps_memory

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

    def extra_repr(self) -> str:
        return ", ".join(f"{k}={v!r}" for k, v in {"d_model": self.d_model, **self.options}.items())
