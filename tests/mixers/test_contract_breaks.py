"""Each check of the contract can fail: mixers broken on purpose, and the exact set of checks that notice."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from mixerzoo.mixers import ContractError, GrowableBuffer, Mixer, MixerCard, MixerState, check_mixer
from torch import Tensor, nn

CARD = MixerCard(
    name="moving_average",
    family="test",
    summary="An exponential moving average per channel, gated by the input.",
    paper="none",
    arxiv=None,
    year=2026,
    state_growth="constant",
    backends=("torch", "reference"),
)


@dataclass(frozen=True, eq=False)
class AverageState(MixerState):
    average: Tensor


class Average(Mixer):
    """h_t = a h_{t-1} + (1 - a) W x_t, y_t = U h_t * sigmoid(G x_t); a learned per channel."""

    card = CARD

    def build(self) -> None:
        self.inward, self.gate, self.outward = (nn.Linear(self.d_model, self.d_model) for _ in range(3))
        self.decay = nn.Parameter(torch.linspace(-1, 3, self.d_model))

    def mix(self, x: Tensor, state: Any, return_state: bool) -> tuple[Tensor, MixerState | None]:
        average = x.new_zeros(x.shape[0], 1, self.d_model) if state is None else state.average
        averages = self.averages(self.inward(x), average.to(x.dtype))
        y = self.outward(averages) * self.gate(x).sigmoid()
        position = x.shape[1] + (0 if state is None else state.position)
        return y, AverageState(self.signature, x.shape[0], position, averages[:, -1:].clone())

    def averages(self, v: Tensor, average: Tensor) -> Tensor:
        keep = self.decay.sigmoid()
        if self.options["backend"] == "reference":
            found = []
            for v_t in v.unbind(1):
                average = keep * average + (1 - keep) * v_t[:, None]
                found.append(average)
            return torch.cat(found, dim=1)
        steps = torch.arange(1, v.shape[1] + 1, device=v.device)
        age = steps[:, None] - steps
        weights = keep ** age.clamp(min=0)[..., None] * (1 - keep) * (age >= 0)[..., None]
        return torch.einsum("tsd,bsd->btd", weights.to(v.dtype), v) + (keep ** steps[:, None]).to(v.dtype) * average


BROKEN: list[Any] = []


def broken(*numbers: int) -> Callable[[type[Mixer]], type[Mixer]]:
    """Mark a mixer that exactly these checks must catch."""

    def mark(cls: type[Mixer]) -> type[Mixer]:
        BROKEN.append(pytest.param(cls, set(numbers), id=cls.__name__))
        return cls

    return mark


class Changed(Average):
    """An `Average` whose result `change` spoils."""

    def mix(self, x: Tensor, state: Any, return_state: bool) -> tuple[Tensor, MixerState | None]:
        y, after = super().mix(x, state, return_state)
        return self.change(x, state, return_state, y, after)

    def change(self, x: Tensor, before: Any, return_state: bool, y: Tensor, after: Any) -> Any:
        raise NotImplementedError


# 1: shape, dtype, device, refusals


@broken(1)
class AcceptsAnything(Average):
    def check_input(self, x: Tensor, state: MixerState | None) -> None:
        pass


@broken(1)
class DoesNotNameTheSizes(Average):
    def check_input(self, x: Tensor, state: MixerState | None) -> None:
        try:
            super().check_input(x, state)
        except ValueError:
            raise ValueError("wrong size") from None


@broken(1)
class ReturnsFloat64(Changed):
    def change(self, x: Tensor, before: Any, return_state: bool, y: Tensor, after: Any) -> Any:
        return y.double() if x.dtype == torch.float32 else y, after


@broken(1)
class MiscountsTokens(Changed):
    def change(self, x: Tensor, before: Any, return_state: bool, y: Tensor, after: Any) -> Any:
        return y, replace(after, position=after.position + 1)


@broken(1)
class ReturnsAStateUnasked(Average):
    def forward(self, x: Tensor, state: Any = None, return_state: bool = False, **more: Any) -> Any:
        return super().forward(x, state, True, **more)


# 2: causal


@broken(2, 3)
class PeeksAhead(Changed):
    def change(self, x: Tensor, before: Any, return_state: bool, y: Tensor, after: Any) -> Any:
        return y + 0.01 * torch.cat([x[:, 1:], torch.zeros_like(x[:, :1])], dim=1), after


@broken(2, 3)
class PeeksWithinItsChunk(Changed):
    def change(self, x: Tensor, before: Any, return_state: bool, y: Tensor, after: Any) -> Any:
        peek = torch.zeros_like(x)
        if x.shape[1] > 16:
            peek[:, 15] = x[:, 16]
        return y + 0.01 * peek, after


@broken(2, 6)
class LeaksOnlyGradients(Changed):
    def change(self, x: Tensor, before: Any, return_state: bool, y: Tensor, after: Any) -> Any:
        later = x.flip(1).cumsum(1).flip(1)
        return y + 0.01 * (later - later.detach()), after


# 3: split-invariant


@broken(3)
class ForgetsItsState(Average):
    def mix(self, x: Tensor, state: Any, return_state: bool) -> tuple[Tensor, MixerState | None]:
        y, after = super().mix(x, None, return_state)
        return y, replace(after, position=x.shape[1] + (0 if state is None else state.position))


@broken(3)
class CountsFromTheCall(Changed):
    def change(self, x: Tensor, before: Any, return_state: bool, y: Tensor, after: Any) -> Any:
        steps = torch.arange(x.shape[1], dtype=x.dtype, device=x.device)
        return y + 0.01 * x * (steps / 16).floor()[:, None], after


@broken(3)
class AnswersOtherwiseWithState(Changed):
    def change(self, x: Tensor, before: Any, return_state: bool, y: Tensor, after: Any) -> Any:
        return y * (1.001 if return_state else 1), after


# 4: batch-independent


@broken(4, 7)
class LeaksBetweenRows(Changed):
    def change(self, x: Tensor, before: Any, return_state: bool, y: Tensor, after: Any) -> Any:
        return y + 0.01 * x.mean(dim=0), after


@broken(4, 7)
class RemembersItsFirstCall(Changed):
    """Depends on what was run before."""

    first: int = 0

    def change(self, x: Tensor, before: Any, return_state: bool, y: Tensor, after: Any) -> Any:
        self.first = self.first or x.shape[0]
        return y * (1 if x.shape[0] == self.first else 1.01), after


# 5: pure


@broken(5)
class CountsCalls(Average):
    def build(self) -> None:
        super().build()
        self.register_buffer("calls", torch.zeros((), dtype=torch.long), persistent=False)

    def mix(self, x: Tensor, state: Any, return_state: bool) -> tuple[Tensor, MixerState | None]:
        self.calls += 1
        return super().mix(x, state, return_state)


@broken(5)
class ScribblesOnItsInput(Changed):
    def change(self, x: Tensor, before: Any, return_state: bool, y: Tensor, after: Any) -> Any:
        if not self.training:
            x.detach().zero_()
        return y, after


@broken(5, 7)
class RewritesTheGivenState(Changed):
    def change(self, x: Tensor, before: Any, return_state: bool, y: Tensor, after: Any) -> Any:
        if before is not None:
            before.average.copy_(after.average.detach())
        return y, after


# 6: gradients


@broken(6)
class HasADeadParameter(Average):
    def build(self) -> None:
        super().build()
        self.unused = nn.Parameter(torch.ones(3))


class ForgetfulGate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.sigmoid()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


@broken(6)
class HasAWrongGradient(Changed):
    def change(self, x: Tensor, before: Any, return_state: bool, y: Tensor, after: Any) -> Any:
        return y + ForgetfulGate.apply(x), after


@broken(6, 9, 10)
class HasAnInfiniteGradient(Changed):
    def build(self) -> None:
        super().build()
        self.bias = nn.Parameter(torch.ones(self.d_model))

    def change(self, x: Tensor, before: Any, return_state: bool, y: Tensor, after: Any) -> Any:
        return y + (self.bias - self.bias.detach()).abs().sqrt().to(y.dtype), after


# 7: state


@dataclass(frozen=True, eq=False)
class MisreportingState(AverageState):
    @property
    def nbytes(self) -> int:
        return 4


@broken(7)
class MisreportsItsSize(Changed):
    def change(self, x: Tensor, before: Any, return_state: bool, y: Tensor, after: Any) -> Any:
        return y, MisreportingState(after.signature, after.batch, after.position, after.average)


@broken(7)
class HidesATensor(Changed):
    def change(self, x: Tensor, before: Any, return_state: bool, y: Tensor, after: Any) -> Any:
        object.__setattr__(after, "_cache", {"inputs": [x.detach().clone()]})
        return y, after


@broken(7)
class KeepsAViewOfTheWhole(Changed):
    def change(self, x: Tensor, before: Any, return_state: bool, y: Tensor, after: Any) -> Any:
        return y, replace(after, average=after.average.repeat(1, x.shape[1], 1)[:, -1:])


@dataclass(frozen=True, eq=False)
class HistoryState(AverageState):
    history: GrowableBuffer


class KeepsHistory(Changed):
    """Keeps its whole input, which it does not need."""

    card = replace(CARD, state_growth="linear")

    def change(self, x: Tensor, before: Any, return_state: bool, y: Tensor, after: Any) -> Any:
        history = GrowableBuffer.of(x.clone()) if before is None else self.append(before.history, x)
        return y, HistoryState(after.signature, after.batch, after.position, after.average, history)

    def append(self, history: GrowableBuffer, x: Tensor) -> GrowableBuffer:
        return history.append(x)


@broken(7)
class SaysConstantButGrows(KeepsHistory):
    card = CARD


@broken(7)
class SaysLinearButIsConstant(Average):
    card = replace(CARD, state_growth="linear")


@broken(7)
class KeepsTooMuchSpareRoom(KeepsHistory):
    def append(self, history: GrowableBuffer, x: Tensor) -> GrowableBuffer:
        room = torch.cat([history.values, x, x.repeat(1, 3 * history.length, 1)], dim=1)
        return GrowableBuffer(room, 0, history.length + x.shape[1], [history.length + x.shape[1]])


@broken(7)
class SaysBoundedWithoutABound(Average):
    card = replace(CARD, state_growth="bounded")


@broken(7)
class OutgrowsItsBound(KeepsHistory):
    card = replace(CARD, state_growth="bounded")

    def max_state_nbytes(self, batch: int, dtype: torch.dtype = torch.float32) -> int:
        return batch * 33 * self.d_model * dtype.itemsize


@broken(7)
class AliasesItsBranches(KeepsHistory):
    """Appends in place although another continuation wrote there, and reads what it finds."""

    def change(self, x: Tensor, before: Any, return_state: bool, y: Tensor, after: Any) -> Any:
        y, after = super().change(x, before, return_state, y, after)
        return y + 0.01 * after.history.values.cumsum(1)[:, -x.shape[1] :], after

    def append(self, history: GrowableBuffer, x: Tensor) -> GrowableBuffer:
        history.written[0] = history.end
        return history.append(x)


@dataclass(frozen=True, eq=False)
class UnselectableState(AverageState):
    def select(self, rows: Any) -> Any:
        return replace(super().select(rows), average=self.average[: len(rows)].clone().expand(len(rows), -1, -1))


@broken(7)
class SelectsTheFirstRows(Changed):
    def change(self, x: Tensor, before: Any, return_state: bool, y: Tensor, after: Any) -> Any:
        return y, UnselectableState(after.signature, after.batch, after.position, after.average)


@broken(7)
class RestartsInTheMiddle(Average):
    def restart(self, state: Any) -> Any:
        self.check_state(state)
        return state


@broken(7)
class RestartsFromWhatItWasGiven(Average):
    def restart(self, state: Any) -> Any:
        self.check_state(state)
        return replace(state, position=0, average=state.average.zero_())


@broken(7)
class RestartsAllAsOne(Average):
    def restart(self, state: Any) -> Any:
        self.check_state(state)
        return replace(state, position=0, average=state.average.mean(0, keepdim=True).expand_as(state.average))


@broken(1)
class RestartsFromAnything(Average):
    def restart(self, state: Any) -> None:
        return None


# 12: packed documents


@broken(12)
class IgnoresDocuments(Average):
    def forward(self, x: Tensor, state: Any = None, return_state: bool = False, **more: Any) -> Any:
        return super().forward(x, state, return_state)


@broken(12)
class ForgetsItsGradient(Average):
    def _mix_documents(self, *arguments: Any) -> Tensor:
        return super()._mix_documents(*arguments).detach() + 0 * self.decay.sum()


# 8: repeatable

_counter = itertools.count()


@broken(8)
class StartsUnseeded(Average):
    def build(self) -> None:
        super().build()
        generator = torch.Generator().manual_seed(next(_counter))
        with torch.no_grad():
            self.decay += 0.1 * torch.randn(self.d_model, generator=generator)


@broken(8)
class KeepsASecretFromItsStateDict(Changed):
    def build(self) -> None:
        super().build()
        self.register_buffer("secret", torch.randn(self.d_model), persistent=False)

    def change(self, x: Tensor, before: Any, return_state: bool, y: Tensor, after: Any) -> Any:
        return y + self.secret.to(y.dtype), after


@broken(2, 3, 4, 6, 7, 8, 11)
class RollsDice(Changed):
    def change(self, x: Tensor, before: Any, return_state: bool, y: Tensor, after: Any) -> Any:
        return y + 0.01 * torch.rand_like(y), after


# 9: low precision


@broken(9)
class OverflowsInHalfPrecision(Changed):
    def change(self, x: Tensor, before: Any, return_state: bool, y: Tensor, after: Any) -> Any:
        return (y * 1e6) / 1e6, after


@broken(9)
class RoundsAwayItsBits(Changed):
    """Adds and subtracts something large: nothing is left of it in bfloat16."""

    def change(self, x: Tensor, before: Any, return_state: bool, y: Tensor, after: Any) -> Any:
        return (y + 1000) - 1000 if y.dtype in (torch.bfloat16, torch.float16) else y, after


@broken(9)
class TurnsBfloat16IntoFloat32(Average):
    def forward(self, x: Tensor, state: Any = None, return_state: bool = False) -> tuple[Tensor, MixerState | None]:
        y, state = super().forward(x, state, return_state)
        return y.float() if y.dtype == torch.bfloat16 else y, state


# 10: backends agree


@broken(10)
class HasADisagreeingBackend(Changed):
    def change(self, x: Tensor, before: Any, return_state: bool, y: Tensor, after: Any) -> Any:
        return y * (1 + 1e-6 * (self.options["backend"] == "reference")), after


@broken(10)
class HasACrashingBackend(Average):
    card = replace(CARD, backends=("torch", "fast", "reference"))

    def averages(self, v: Tensor, average: Tensor) -> Tensor:
        if self.options["backend"] == "fast":
            raise RuntimeError("unspecified launch failure")
        return super().averages(v, average)


# 11: torch.compile


@broken(11)
class NoticesTheCompiler(Changed):
    def change(self, x: Tensor, before: Any, return_state: bool, y: Tensor, after: Any) -> Any:
        return y * (1.01 if torch.compiler.is_compiling() else 1), after


@broken(*range(1, 12))
class Crashes(Average):
    def mix(self, x: Tensor, state: Any, return_state: bool) -> tuple[Tensor, MixerState | None]:
        raise ZeroDivisionError("by design")


@pytest.mark.parametrize(("mixer", "expected"), BROKEN)
def test_exactly_these_checks_catch(mixer: type[Mixer], expected: set[int]) -> None:
    # torch.compile is slow and sees what check 1 to 10 see; it takes part where it is what breaks.
    numbers = {*range(1, 11)} | (expected & {11, 12})
    report = check_mixer(mixer, d_model=8, only=numbers, compile_backend="eager", raise_on_failure=False)
    assert {r.number for r in report.failures} == expected, str(report)


def test_every_check_is_caught_failing() -> None:
    assert set().union(*(param.values[1] for param in BROKEN)) == set(range(1, 13))


@pytest.mark.parametrize("mixer", [Average, KeepsHistory])
def test_what_they_are_made_of_is_healthy(mixer: type[Mixer]) -> None:
    report = check_mixer(mixer, d_model=8, compile_backend="aot_eager")
    assert [r.status for r in report] == ["passed"] * 12, str(report)


def test_all_failures_are_listed() -> None:
    with pytest.raises(ContractError) as caught:
        check_mixer(PeeksAhead, d_model=8, only=[1, 2, 3, 4])
    message = str(caught.value)
    assert " 2 failed" in message and " 3 failed" in message and "passed" not in message
    assert [r.number for r in caught.value.report.failures] == [2, 3]
    assert "outputs before 16" in message


def test_a_crash_names_its_exception_and_its_place() -> None:
    report = check_mixer(Crashes, d_model=8, only=[4], raise_on_failure=False)
    assert "ZeroDivisionError: by design" in report.failures[0].reason
    assert "test_contract_breaks.py" in report.failures[0].reason
