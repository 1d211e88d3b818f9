"""The contract of a mixer as runnable checks: for ours, and for whoever writes another one.

    from mixerzoo.mixers import check_mixer
    print(check_mixer("fwpkm"))                              # a registered name
    print(check_mixer(MyMixer, options={"heads": 2}))        # or any factory(d_model, **options) -> Mixer

Exact comparisons run on the CPU in float64. An accelerator, where there is one, repeats the checks twice: in float32,
held to the CPU's float64 and with TF32 off, and in bfloat16.
"""

from __future__ import annotations

import functools
import itertools
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch

from ..interface import Mixer, MixerCard, own_options
from ..registry import create_mixer, mixer_class
from .checks import CHECKS
from .trial import Measurement, SkipCheck, Trial, ieee_float32

Status = Literal["passed", "failed", "skipped"]


class ContractError(AssertionError):
    """A mixer breaks the contract; the message lists every failed check. `report` is the whole `CheckReport`."""

    def __init__(self, report: CheckReport) -> None:
        failures = "\n".join(str(result) for result in report.failures)
        super().__init__(f"{report.mixer} breaks the mixer contract in {len(report.failures)} checks\n{failures}")
        self.report = report


@dataclass(frozen=True)
class CheckResult:
    """What one check found.

    reason: why it was skipped, or everything that is wrong; empty if it passed.
    measurements: measured values with the limits they were held to. notes: what else a reader should know.
    """

    number: int
    title: str
    status: Status
    reason: str
    measurements: tuple[Measurement, ...]
    notes: tuple[str, ...]
    seconds: float

    @property
    def detail(self) -> str:
        """The measurement closest to its limit, and the notes."""
        worst = max(self.measurements, key=lambda m: m.value / m.limit if m.limit else m.value, default=None)
        count = f"{len(self.measurements)} comparisons, closest to its limit: " if len(self.measurements) > 1 else ""
        return "; ".join([f"{count}{worst}"] * (worst is not None) + list(self.notes))

    def __str__(self) -> str:
        text = f"{self.number:>2} {self.status:<7} {self.title} ({self.seconds:.2f} s)"
        return "\n             ".join([text, *filter(None, (self.reason, self.detail))])


@dataclass(frozen=True)
class CheckReport:
    """The results of `check_mixer`, by number; iterate over it for the single `CheckResult`s."""

    mixer: str
    results: tuple[CheckResult, ...]

    @property
    def passed(self) -> bool:
        return not self.failures

    @property
    def failures(self) -> list[CheckResult]:
        return [r for r in self.results if r.status == "failed"]

    def __iter__(self) -> Iterator[CheckResult]:
        return iter(self.results)

    def __len__(self) -> int:
        return len(self.results)

    def to_dict(self) -> dict[str, Any]:
        """Plain values only, ready for JSON."""
        results = [{**asdict(r), "detail": r.detail} for r in self.results]
        return {"mixer": self.mixer, "passed": self.passed, "results": results}

    def __str__(self) -> str:
        statuses = [r.status for r in self.results]
        counts = ", ".join(f"{statuses.count(s)} {s}" for s in ("passed", "failed", "skipped") if s in statuses)
        return "\n".join([f"{self.mixer}: {counts}", *map(str, self.results)])


def check_mixer(
    mixer: str | Callable[..., Mixer],
    *,
    d_model: int = 32,
    options: dict[str, Any] | None = None,
    device: torch.device | str | None = None,
    only: Iterable[int] | None = None,
    compile_backend: str = "inductor",
    raise_on_failure: bool = True,
    seed: int = 0,
) -> CheckReport:
    """Run the mixer contract.

    mixer: a registered name, or a callable `factory(d_model, **options) -> Mixer`; a `Mixer` subclass is one.
    options: for the mixer; the others are made small by `small_options`.
    device: where the checks run once more in float32 and in bfloat16; None takes the accelerator of this machine, if it
        has one. Kernels that `mixerzoo doctor` has to prove are left to it: there check 10 runs what `auto` may take.
    only: numbers of the checks to run, 1 to 12; None runs all.
    compile_backend: backend of `torch.compile` in check 11; `aot_eager` is quick and needs no compiler.
    raise_on_failure: raise `ContractError`, with all failures listed, after the last check.

    A check that crashes has failed. A mixer that cannot be built at all is an error at once: whatever its constructor
    raises, `UnknownMixerError` for an unknown name, `TypeError` if the factory returns no `Mixer` with a card,
    `ValueError` for unknown numbers in `only`.
    """
    numbers = sorted(CHECKS if only is None else set(only))
    unknown = [n for n in numbers if n not in CHECKS]
    if unknown or not numbers:
        raise ValueError(f"only must name checks from 1 to {len(CHECKS)}, got {list(only or ())}")
    factory = functools.partial(create_mixer, mixer) if isinstance(mixer, str) else mixer
    options = {**small_options(mixer, options), **(options or {})}
    accelerators = _accelerators(device)
    places = [(torch.device("cpu"), torch.float64), *itertools.product(accelerators, (torch.float32, torch.bfloat16))]
    forked = torch.random.fork_rng([d.index for d in accelerators if d.type == "cuda"])
    with forked, torch.enable_grad(), ieee_float32():
        name = _describe(factory, d_model, options)
        settings: dict[str, Any] = {"seed": seed, "compile_backend": compile_backend, "repeated": bool(accelerators)}
        trial = functools.partial(Trial, factory, d_model, options, **settings)
        report = CheckReport(name, tuple(_run_check(number, trial, places) for number in numbers))
    if raise_on_failure and not report.passed:
        raise ContractError(report)
    return report


def small_options(mixer: str | Callable[..., Mixer], given: dict[str, Any] | None = None) -> dict[str, Any]:
    """The small values that a mixer declares: for quick checks that still cross the edges of its chunks.

    An option is set if its default is larger than its small value (or it has none, or None, which may mean large), and
    `given` does not name it. A factory that is no `Mixer` subclass declares nothing: its mixer is checked as it is.
    """
    if isinstance(mixer, str):
        mixer = mixer_class(mixer)
    if not (isinstance(mixer, type) and issubclass(mixer, Mixer)):
        return {}
    return {
        name: option.small
        for name, option in own_options(mixer).items()
        if name not in (given or {}) and option.small is not None and _is_larger(option.default, option.small)
    }


def _is_larger(default: Any, small: Any) -> bool:
    numbers = isinstance(default, (int, float)) and isinstance(small, (int, float))
    return default > small if numbers else default != small


def _accelerators(device: torch.device | str | None) -> list[torch.device]:
    if device is not None:
        return [torch.empty(0, device=device).device]  # with its index, as the tensors on it will say
    if not torch.accelerator.is_available():
        return []
    return [torch.empty(0, device=torch.accelerator.current_accelerator()).device]


def _describe(factory: Callable[..., Mixer], d_model: int, options: dict[str, Any]) -> str:
    mixer = factory(d_model, **options)
    if not isinstance(mixer, Mixer) or not isinstance(getattr(mixer, "card", None), MixerCard):
        raise TypeError(f"the factory must return a Mixer whose card is a MixerCard, got {type(mixer).__name__}")
    return f"{mixer.card.name}({mixer.extra_repr()})"


def _run_check(number: int, trial: Callable[..., Trial], places: list[tuple[torch.device, torch.dtype]]) -> CheckResult:
    """Run one check in every place; it passes if it passes somewhere and fails nowhere."""
    title, check = CHECKS[number]
    measurements: list[Measurement] = []
    notes: list[str] = []
    skips: list[str] = []
    failures: list[str] = []
    start = time.perf_counter()
    for device, dtype in places:
        where = f"on {device} in {str(dtype).removeprefix('torch.')}: " if len(places) > 1 else ""
        measured: Trial | None = None
        try:
            measured = trial(device, dtype)
            check(measured)
        except SkipCheck as skip:
            skips.append(where + str(skip))
        except Exception as error:
            failures.append(where + _crash(error))
        if measured is not None:
            failures += [where + failure for failure in measured.failures()]
            notes += [where + note for note in measured.notes]
            measurements += [Measurement(where + m.what, m.value, m.limit) for m in measured.measurements]
    status: Status = "failed" if failures else "skipped" if len(skips) == len(places) else "passed"
    reason = "; ".join(failures) if failures else "; ".join(skips) if status == "skipped" else ""
    notes += skips if status != "skipped" else []
    return CheckResult(number, title, status, reason, tuple(measurements), tuple(notes), time.perf_counter() - start)


def _crash(error: Exception) -> str:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"crashed with {type(error).__name__}: {error} ({frame.filename}:{frame.lineno})"
