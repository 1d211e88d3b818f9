"""What one case will take, in time and memory.

One that an earlier run measured takes what it took. Any other takes what is counted of it (FLOPs, bytes, operations),
at the rates of the machine, times what cases like it have taken beyond that: of the same model at other sizes, else of
the same mixers, else of their families, else of the same measure.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import psutil

from ..mixers import mixer_card
from ..models import ModelConfig, count_parameters, parse_layout
from .case import Case
from .cost import BACKWARD, Cost, ModelCost, attention_cost, cost_of, mixer_cost
from .forecast import Source, unchosen
from .history import History, Past
from .precision import Precision
from .rates import Rates, measure_rates
from .suite import mixer_names, parse_measure

START_SECONDS = 0.6  # of a case: its process, its model, its text
HELD_TRAINING, HELD_READING = 0.65, 0.12  # of the bytes of all results, what is alive at the peak of a call
NEIGHBOURS = 3  # measured cases of the same model that are nearest in size
FEW = 20  # earlier cases of a measure, for those of a measure that has none
MODELS = 12  # and, where there are none, models that are alike in less: more would only take longer to count

# What a case takes lies between these times its forecast, in 8 of 10 cases: see `benchmarks.forecast_accuracy`.
ACCURACY = {
    "measured": (0.75, 1.4),
    "scaled": (0.65, 1.35),
    "mixers": (0.65, 1.6),
    "measure": (0.5, 2.0),
    "nothing": (0.4, 3.0),
}
# Of the machine that the published runs are of, which did not record them: by threads and precision.
PUBLISHED_RATES: dict[str, dict[str, Rates]] = {
    "AMD EPYC, 2 cores": {
        "1 float32": Rates(flops=1.15e11, bytes=4.3e10, op_seconds=1.01e-5),
        "2 float32": Rates(flops=2.25e11, bytes=4.95e10, op_seconds=1.01e-5),
    }
}


@dataclass(frozen=True)
class Guess:
    """What one case takes: seconds, 8 in 10 lying from low to high (None: not known), and bytes at the peak."""

    seconds: float | None
    low: float | None
    high: float | None
    bytes: float | None
    source: Source


@dataclass(frozen=True)
class Counted:
    """seconds and bytes of a case, by counting alone; bytes of its process at the peak."""

    seconds: float
    bytes: float


@dataclass(frozen=True)
class _Facts:
    """What decides how long a case takes, of one that is to come or of an earlier one."""

    model: str
    measure: str
    parameters: dict[str, Any]
    threads: int
    kind: str

    @classmethod
    def of(
        cls, model: Mapping[str, Any], measure: str, parameters: Mapping[str, Any], threads: int, kind: str
    ) -> _Facts:
        plain = {name: value for name, value in model.items() if name != "seed"}
        return cls(_json(plain), measure, unchosen(parameters), threads, kind)

    @cached_property
    def alike(self) -> Hashable:
        """The same for cases that differ in the seed and the chosen rate only."""
        return self.model, self.measure, _json(self.parameters), self.threads

    @property
    def work(self) -> tuple[str, str]:
        """The kind of work: tuning is a short training."""
        return _work(self.measure), ",".join(self.parameters.get("modes") or ())

    @cached_property
    def mixers(self) -> tuple[str, ...]:
        return _mixers(json.loads(self.model)["layout"])

    @property
    def families(self) -> tuple[str, ...]:
        return tuple(sorted({_family(name) for name in self.mixers}))

    @property
    def precision(self) -> Precision:
        training = self.parameters.get("training") or {}
        return self.parameters.get("precision") or training.get("precision") or "float32"

    def kinships(self) -> list[tuple[str, Hashable]]:
        """What it may have in common with others, the closest first; with the name of the accuracy that this gives."""
        return [
            ("scaled", (self.model, *self.work)),
            ("mixers", (self.mixers, *self.work)),
            ("mixers", (self.families, *self.work)),
            ("measure", self.work),
            ("measure", ()),
        ]


def _work(measure: str) -> str:
    return "training" if measure == "tuning" else measure


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), default=list)


@cache
def _mixers(layout: str) -> tuple[str, ...]:
    return tuple(sorted(mixer_names(parse_layout(layout))))


@cache
def _family(name: str) -> str:
    try:
        return mixer_card(name).family
    except ValueError:  # an earlier run had a plug-in that is not here
        return name


class Estimator:
    """Tells what cases take on one kind of machine, going by what earlier runs took."""

    def __init__(self, history: History, device: str, kind: str) -> None:
        self.device, self.kind = device, kind
        resident_bytes()  # before what is counted here adds to it
        self._rates = {**PUBLISHED_RATES, **(history.rates or {})}
        self.measured_rates: list[str] = []
        self._models: dict[str, ModelCost] = {}
        self._sizes: dict[str, float] = {}
        self._counted: dict[Hashable, Counted | None] = {}
        self._factors: dict[Hashable, float | None] = {}
        self._alike: dict[Hashable, list[Past]] = {}
        self._kin: dict[Hashable, list[tuple[_Facts, Past]]] = {}
        self._waiting: dict[str, list[Past]] = {}
        for past in history.cases:
            self._waiting.setdefault(_work(past.measure), []).append(past)
        for found in self._waiting.values():  # what all measures have in common, a few tell
            for past in found[:: max(1, len(found) // FEW)]:
                self._learn(past, only=())

    def _learn_of(self, measure: str) -> None:
        """Take over what earlier cases of such a measure took; of others, that would only take time."""
        for past in self._waiting.pop(_work(measure), ()):
            self._learn(past)

    def _learn(self, past: Past, only: Hashable | None = None) -> None:
        try:
            facts = _Facts.of(past.model, past.measure, past.parameters, past.threads, past.kind)
            kinships = facts.kinships()
        except (ValueError, KeyError, TypeError):  # of a version whose layouts are not those of today
            return
        if past.kind == self.kind and only is None:
            self._alike.setdefault(facts.alike, []).append(past)
        for kinship in [only] if only is not None else [kinship for _, kinship in kinships if kinship != ()]:
            self._kin.setdefault(kinship, []).append((facts, past))

    def guess(self, case: Case, threads: int) -> Guess:
        """What `case` takes on so many threads."""
        self._learn_of(case.measure)
        facts = _Facts.of(case.model, case.measure, case.parameters, threads, self.kind)
        counted = self.counted(facts)
        alike = self._alike.get(facts.alike, ())
        peaks = [past.peak_bytes for past in alike if past.peak_bytes]
        held: float | None = max(peaks) if peaks else None if counted is None else counted.bytes
        if alike:
            return _guess(statistics.median(past.seconds for past in alike), "measured", "measured", held)
        if counted is None:
            return Guess(None, None, None, held, "not known")
        for accuracy, kinship in facts.kinships():
            factor = self._factor(facts, counted, kinship, nearest=accuracy == "scaled")
            if factor is not None:
                return _guess(factor * counted.seconds, "scaled" if accuracy == "scaled" else "counted", accuracy, held)
        return _guess(counted.seconds, "counted", "nothing", held)

    def counted(self, facts: _Facts) -> Counted | None:
        """By counting, at the rates of its machine; None if nobody knows those, or what the measure reads."""
        rates = self.rates(facts)
        if rates is None:
            return None
        key = (facts.alike, rates)
        if key not in self._counted:
            self._counted[key] = self._count(facts, rates)
        return self._counted[key]

    def rates(self, facts: _Facts) -> Rates | None:
        """Those of the kind of machine: recorded by an earlier run, or else, if it is this one, measured now."""
        name = f"{facts.threads} {facts.precision}"
        known = self._rates.get(facts.kind, {})
        if name not in known and facts.kind == self.kind:
            self._rates[self.kind] = {**known, name: measure_rates(self.device, facts.threads, facts.precision)}
            self.measured_rates.append(name)
        return self._rates.get(facts.kind, {}).get(name)

    def used_rates(self) -> dict[str, Rates]:
        """The rates of this kind of machine, by threads and precision."""
        return dict(self._rates.get(self.kind, {}))

    def _count(self, facts: _Facts, rates: Rates) -> Counted | None:
        config = ModelConfig.from_dict(json.loads(facts.model))
        calls = _Calls(config, rates, lambda: self._cost(facts.model, config))
        try:
            seconds = parse_measure({"measure": facts.measure, **facts.parameters}).seconds(calls)
        except Exception:  # whatever a mixer of somebody else's raises where it is counted; its case will say it
            return None
        return None if seconds is None else Counted(START_SECONDS + seconds, resident_bytes() + calls.peak)

    def model_bytes(self, model: Mapping[str, Any]) -> float:
        """Bytes of a model's parameters, and of its buffers if it was counted."""
        key = _json({name: value for name, value in model.items() if name != "seed"})
        if key in self._models:
            return self._models[key].model_bytes
        if key not in self._sizes:
            self._sizes[key] = 4.0 * count_parameters(ModelConfig.from_dict(model))["total"]
        return self._sizes[key]

    def _cost(self, model: str, config: ModelConfig) -> ModelCost:
        if model not in self._models:
            self._models[model] = cost_of(config)
        return self._models[model]

    def _factor(self, facts: _Facts, counted: Counted, kinship: Hashable, *, nearest: bool) -> float | None:
        """What cases of a kinship took, as times what is counted of them: the median; None if there are none."""
        if not nearest and kinship in self._factors:
            return self._factors[kinship]
        found: list[tuple[float, float]] = []
        for own, past in _few(self._kin.get(kinship, ()), all_of_them=nearest):
            theirs = self.counted(own)
            if theirs is not None:
                found.append((abs(math.log(theirs.seconds / counted.seconds)), past.seconds / theirs.seconds))
        if nearest:
            found = sorted(found)[:NEIGHBOURS]
        factor = statistics.median(ratio for _, ratio in found) if found else None
        if not nearest:
            self._factors[kinship] = factor
        return factor


def _few(kin: Sequence[tuple[_Facts, Past]], *, all_of_them: bool) -> Iterable[tuple[_Facts, Past]]:
    """Those of the first models."""
    if all_of_them:
        return kin
    models = list(dict.fromkeys(facts.model for facts, _ in kin))[:MODELS]
    return [(facts, past) for facts, past in kin if facts.model in models]


def _guess(seconds: float, source: Source, accuracy: str, held: float | None) -> Guess:
    low, high = ACCURACY[accuracy]
    return Guess(seconds, low * seconds, high * seconds, held, source)


@cache
def resident_bytes() -> float:
    """What a process holds that has imported what a case needs: this one, for example."""
    return float(psutil.Process().memory_info().rss)


class _Calls:
    """Seconds of calls of one model, see `CallSeconds`; and the most bytes that any of them holds."""

    def __init__(self, config: ModelConfig, rates: Rates, cost: Callable[[], ModelCost]) -> None:
        self._config, self._rates, self._cost = config, rates, cost
        self.peak = 0.0

    def __call__(
        self,
        mode: str,
        rows: float,
        length: int,
        *,
        logits: float = 0.0,
        part: str = "model",
        at_once: int | None = None,
    ) -> float:
        cost = self._of(mode, length, logits, part)
        share = min(1.0, at_once / length) if at_once else 1.0
        weights = self._cost().model_bytes if part == "model" else cost.weights
        if mode == "train":
            # beside the weights their gradients and the moments of AdamW
            self.peak = max(self.peak, 4 * weights + rows * HELD_TRAINING * cost.held)
            cost = cost.times(1 + BACKWARD)
        else:
            self.peak = max(self.peak, weights + rows * (cost.state + HELD_READING * share * cost.held))
        return self._rates.seconds(cost, rows)

    def _of(self, mode: str, length: int, logits: float, part: str) -> Cost:
        if part == "attention":
            return attention_cost(self._config.d_model, length)
        if part == "mixer":
            mixer = mixer_cost(parse_layout(self._config.layout).pattern[0].mixer, self._config)
            return mixer.decoding(length) if mode == "decode" else mixer.reading(length)
        return self._cost().decoding(length) if mode == "decode" else self._cost().reading(length, logits)
