"""What is still to be run: the cases of a suite that are known, given the results so far.

Static measures are a grid. Of trained ones, a tuning decides what is trained, and a training whether anything is asked
of its model; so the plan grows while a run goes on. It is a function of suite and results alone, which is what makes a
run resumable.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..models import parse_layout
from .case import Case, Plan
from .measures import Measure, Training, Tuning
from .measures.trained import Choice, Trained, apply_choice
from .precision import allows_tf32
from .runs import ResultLine
from .suite import Entry, Suite, mixer_names


class Planner:
    """The plan of a suite on a device (`cpu`, `cuda`, `cuda:1`), as results come in."""

    def __init__(self, suite: Suite, device: str) -> None:
        self.suite, self.device = suite.on(device), device
        self._models: dict[tuple[str, int], dict[str, Any]] = {}

    def __call__(self, results: Mapping[str, ResultLine]) -> Plan:
        """The plan, given results by case. Entries whose sizes overlap share the cases that they have in common."""
        self._results, self._waits_for = results, set[str]()
        cases = {case.id: case for entry in self.suite.entries for case in self._entry(entry)}
        return Plan(tuple(cases.values()), frozenset(self._waits_for))

    def _entry(self, entry: Entry) -> Iterator[Case]:
        for label in entry.labels:
            if isinstance(entry.measure, Trained):
                yield from self._taught_then_asked(entry.measure, label, entry.seeds)
            else:
                for measure in entry.measure.cases():
                    for seed in entry.seeds:
                        yield self._case(label, measure, seed)

    def _taught_then_asked(self, measure: Trained, label: str, seeds: tuple[int, ...]) -> Iterator[Case]:
        tuning = _Halving(self, measure, label)
        yield from tuning.cases()
        if tuning.chosen is None:
            return
        for seed in seeds:
            _, training = apply_choice(tuning.chosen, self._model(label, seed), measure.training)
            taught = self._case(label, measure.training_case(tuning.chosen, training), seed, tuning.chosen)
            yield taught
            result = self._result(taught)
            if result is not None and was_taught(result):
                for asking in measure.asking_cases(training, taught.id):
                    yield self._case(label, asking, seed, tuning.chosen)

    def _case(self, label: str, measure: Measure, seed: int, choice: Choice | None = None) -> Case:
        model = self._model(label, seed)
        if choice:
            model, _ = apply_choice(choice, model, Training().training)
        parameters = measure.model_dump(mode="json")
        name = parameters.pop("measure")
        line = self.suite.layouts[label]
        tf32 = allows_tf32(self.suite.settings.tf32, measure.computes_in, self.device)
        how: dict[str, Any] = {
            "exclusive": measure.exclusive,
            "reusable": measure.reusable,
            "processes": measure.processes,
        }
        return Case(label, line, model, name, parameters, seed, self.device, tf32=tf32, **how)

    def _model(self, label: str, seed: int) -> dict[str, Any]:
        """The model's configuration; kept, since a plan is made anew after every case."""
        if (label, seed) not in self._models:
            config = self.suite.settings.model.config(self.suite.layouts[label], seed)
            self._models[label, seed] = config.to_dict()
        return self._models[label, seed]

    def _result(self, case: Case) -> ResultLine | None:
        """The result of `case`; without one, the plan may still grow."""
        result = self._results.get(case.id)
        if result is None:
            self._waits_for.add(case.id)
        return result


class _Halving:
    """The sweep of one layout: its cases so far, and what it chose."""

    def __init__(self, planner: Planner, measure: Trained, label: str) -> None:
        self.planner, self.measure, self.label = planner, measure, label
        self.chosen: Choice | None = {} if measure.sweep is None else None

    def cases(self) -> Iterator[Case]:
        """The cases of every rung that is known; afterwards `chosen` is set if the last one is decided."""
        sweep = self.measure.sweep
        if sweep is None:
            return
        choices = sweep.choices(mixer_names(parse_layout(self.planner.suite.layouts[self.label])))
        alive = list(range(len(choices)))
        for rung, share in enumerate(sweep.rungs):
            scores: dict[int, float] = {}
            for number in alive:
                found = []
                for seed in sweep.seeds:
                    case = self._case(choices[number], rung, share, seed)
                    yield case
                    found.append(self.planner._result(case))
                if all(result is not None for result in found):
                    scores[number] = sum(score_of(result) for result in found if result is not None) / len(found)
            if len(scores) < len(alive):
                return
            alive = sweep.survivors(scores)
            if not alive:  # every training failed: there is nothing to go on with
                return
        self.chosen = choices[alive[0]]

    def _case(self, choice: Choice, rung: int, share: float, seed: int) -> Case:
        measure, sweep = self.measure, self.measure.sweep
        assert sweep is not None
        _, training = apply_choice(choice, self.planner._model(self.label, seed), measure.training)
        short = training.shortened(share)
        tuning = Tuning(task=measure.task, training=short, choice=choice, rung=rung, examples=sweep.examples)
        return self.planner._case(self.label, tuning, seed, choice)


def was_taught(result: ResultLine) -> bool:
    """Whether a training case ended well, and its model passed the bar if there is one."""
    if result.status != "ok" or result.metrics is None:
        return False
    bar = result.metrics["training"].get("bar")
    return bar is None or bool(bar["passed"])


def score_of(result: ResultLine) -> float:
    """The score of a tuning case; infinite if it failed."""
    return float(result.metrics["score"]) if result.status == "ok" and result.metrics is not None else math.inf


def everything(planner: Planner, done: Mapping[str, ResultLine]) -> Sequence[Case]:
    """All cases that there can be: those of a plan in which each tuning is as good as any, and each model taught."""
    results = dict(done)
    while not (plan := planner(results)).final or any(case.id not in results for case in plan.cases):
        new = [case for case in plan.cases if case.id not in results]
        results |= {case.id: _as_if(case) for case in new}
    return plan.cases


def _as_if(case: Case) -> ResultLine:
    metrics = {"score": 0.0, "training": {"bar": None}}
    return ResultLine(
        case=case.id,
        layout=case.label,
        measure=case.measure,
        parameters={},
        seed=case.seed,
        status="ok",
        seconds=0.0,
        metrics=metrics,
    )
