"""What a whole run will take: time on so many machines, memory, disk; every case that there can be, scheduled."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from .case import Case
from .environment import usable_cores, utc_time
from .estimator import Estimator, Guess, resident_bytes
from .forecast import CaseForecast, Forecast, key_of
from .history import History
from .known import known_results
from .limits import Limits
from .machine import this_machine
from .plan import Planner, everything
from .rates import Rates
from .runs import ResultLine, Run
from .schedule import Piece, makespan

# Of the error of a case, what all cases of a run have in common (as a power, errors being factors); the rest evens out.
COMMON = 0.6
LINE_BYTES = 6000.0  # of a result, where no earlier run tells
TRAINS = ("training", "tuning")  # the measures that keep a model


@dataclass(frozen=True)
class Disk:
    """Bytes that a run leaves: of its results and its models; resume: the most that trainings at work hold beside."""

    results: float
    models: float
    resume: float

    @property
    def total(self) -> float:
        return self.results + self.models + self.resume


@dataclass(frozen=True)
class Estimate:
    """What is left of a run, on `machines` machines of one kind, `jobs` cases at a time on each.

    guesses: each case that there can be, and what it takes. certain: the ids of those that are run whatever the results
    are; the others follow where a layout is taught. seconds, low, high: of wall time if all are. least: if none is.
    work: the sum over the cases. bytes: of memory on a machine at the worst. rates: of the machine; measured_rates:
    those of them that were measured for this. took: seconds that the estimate took.
    """

    guesses: tuple[tuple[Case, Guess], ...]
    certain: frozenset[str]
    kind: str
    machines: int
    jobs: int
    seconds: float
    low: float
    high: float
    least: float
    work: float
    bytes: float
    disk: Disk
    history: History
    rates: Mapping[str, Rates]
    measured_rates: tuple[str, ...]
    took: float

    @property
    def unknown(self) -> list[Case]:
        """The cases whose time is not known; they are in no sum."""
        return [case for case, guess in self.guesses if guess.seconds is None]

    def forecast(self) -> Forecast:
        """For the run's folder."""
        cases = (
            CaseForecast(
                case=case.id,
                key=key_of(case.label, case.measure, case.parameters, case.seed),
                layout=case.label,
                measure=case.measure,
                certain=case.id in self.certain,
                **vars(guess),
            )
            for case, guess in self.guesses
        )
        sizes: dict[str, Any] = {"kind": self.kind, "machines": self.machines, "jobs": self.jobs}
        times: dict[str, Any] = {"seconds": self.seconds, "low": self.low, "high": self.high}
        return Forecast(made=utc_time(), **sizes, **times, rates=dict(self.rates), cases=tuple(cases))


def estimate_run(
    planner: Planner,
    done: Mapping[str, ResultLine],
    device: str,
    jobs: int | None,
    history: History,
    *,
    machines: int = 1,
    reuse: Sequence[Run] = (),
) -> Estimate:
    """Estimate what is still to be done of a run on machines like this one. done: its results by case.

    reuse: other runs whose results are taken over.
    """
    begun = time.perf_counter()
    elsewhere = {case: r for other in reuse for case, r in known_results(other).items() if r.status == "ok"}
    known = {**elsewhere, **done}
    pending = [
        case
        for case in everything(planner, known)
        if case.id not in done and not (case.reusable and case.id in elsewhere)
    ]
    jobs = Limits(jobs).choose_jobs(device, sum(not case.exclusive for case in pending))
    kind = this_machine(device).kind
    estimator = Estimator(history, device, kind)
    threads = {True: usable_cores(), False: max(1, usable_cores() // jobs)}
    guesses = tuple((case, estimator.guess(case, threads[case.exclusive])) for case in pending)
    planned = {case.id for case in planner(known).cases}
    certain = frozenset(case.id for case in pending if case.id in planned or not _hangs_on_teaching(case))
    after = _what_comes_before(pending)

    def wall(bound: float, only: frozenset[str] | None = None) -> float:
        pieces = [
            Piece(case.id, _between(guess, bound), case.exclusive, after.get(case.id, frozenset()))
            for case, guess in guesses
            if only is None or case.id in only
        ]
        return makespan(pieces, machines, jobs)

    return Estimate(
        guesses=guesses,
        certain=certain,
        kind=kind,
        machines=machines,
        jobs=jobs,
        seconds=wall(0.0),
        low=wall(-COMMON),
        high=wall(COMMON),
        least=wall(0.0, certain),
        work=sum(guess.seconds or 0.0 for _, guess in guesses),
        bytes=_machine_bytes(guesses, jobs),
        disk=_disk(pending, estimator, history, machines * jobs),
        history=history,
        rates=estimator.used_rates(),
        measured_rates=tuple(estimator.measured_rates),
        took=time.perf_counter() - begun,
    )


def _between(guess: Guess, bound: float) -> float:
    """The seconds of a guess, moved towards its low (bound < 0) or high end; 0 if they are not known."""
    if guess.seconds is None or guess.low is None or guess.high is None:
        return 0.0
    end = guess.high if bound > 0 else guess.low
    return guess.seconds * (end / guess.seconds) ** abs(bound)


def _hangs_on_teaching(case: Case) -> bool:
    """Whether it asks a model that has to pass a bar first."""
    return bool(case.parameters.get("trained")) and case.parameters["training"].get("bar") is not None


def _what_comes_before(cases: Sequence[Case]) -> dict[str, frozenset[str]]:
    """By case, those that have to be over before it: of a layout, rung by rung, then training, then asking."""
    tunings: dict[str, dict[int, set[str]]] = {}
    for case in cases:
        if case.measure == "tuning":
            tunings.setdefault(case.label, {}).setdefault(case.parameters["rung"], set()).add(case.id)
    all_of = {label: frozenset().union(*rungs.values()) for label, rungs in tunings.items()}
    before: dict[str, frozenset[str]] = {}
    for case in cases:
        if trained := case.parameters.get("trained"):
            before[case.id] = frozenset({trained})
        elif case.measure == "tuning":
            before[case.id] = frozenset(tunings[case.label].get(case.parameters["rung"] - 1, ()))
        elif case.measure == "training":
            before[case.id] = all_of.get(case.label, frozenset())
    return before


def _machine_bytes(guesses: Sequence[tuple[Case, Guess]], jobs: int) -> float:
    """The runner, and the largest cases that may meet on one machine."""
    shared = sorted((guess.bytes or 0.0 for case, guess in guesses if not case.exclusive), reverse=True)
    alone = max((guess.bytes or 0.0 for case, guess in guesses if case.exclusive), default=0.0)
    return resident_bytes() + max(sum(shared[:jobs]), alone)


def _disk(cases: Sequence[Case], estimator: Estimator, history: History, at_once: int) -> Disk:
    lines: dict[str, list[int]] = {}
    for past in history.cases:
        lines.setdefault(past.measure, []).append(past.line_bytes)
    means = {measure: fmean(found) for measure, found in lines.items()}
    models = sorted((estimator.model_bytes(case.model) for case in cases if case.measure in TRAINS), reverse=True)
    return Disk(
        results=sum(means.get(case.measure, LINE_BYTES) for case in cases),
        models=sum(models),
        resume=3 * sum(models[:at_once]),  # parameters, and both moments of AdamW
    )
