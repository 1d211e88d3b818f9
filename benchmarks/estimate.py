"""What a run will cost on this machine: every layout is tried for a moment, and the rest is arithmetic.

Only trained measures are estimated; those of speed and memory have budgets of their own and take seconds a case.
"""

from __future__ import annotations

import contextvars
import dataclasses
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import psutil
import torch

from ..mixers.tf32 import tf32
from ..models import LanguageModel, ModelConfig
from .case import Case
from .device import make_current
from .environment import usable_cores
from .known import known_results
from .limits import Limits
from .measures import Perplexity, Recall, Training, Tuning
from .measures.meter import measure_memory
from .measures.trained import Trained
from .plan import Planner, everything
from .precision import autocast
from .runs import Run
from .suite import parse_measure
from .training import train

PROBE_STEPS = 6
PROBE_LENGTHS = (1024, 4096)
UNTRAINED_SECONDS = 2.0  # of a case that needs no trained model, roughly


@dataclass(frozen=True)
class Estimate:
    """seconds: of the whole run; bytes: held by all its processes at the worst; cases: at most, if all are taught."""

    seconds: float
    bytes: float
    cases: int
    jobs: int
    probe_seconds: float

    def text(self) -> str:
        """For people."""
        if not self.cases:
            return "nothing is left to run"
        minutes = math.ceil(self.seconds / 60)
        work = f"at most {self.cases} cases, {self.jobs} at a time"
        return f"estimate: {minutes} min, {self.bytes / 1e9:.1f} GB ({work}; tried out in {self.probe_seconds:.0f} s)"


@dataclass(frozen=True)
class Probe:
    """What one layout takes, on the threads that a case will have.

    train: seconds a token of training. read, read_slope: reading L tokens takes `L * (read + read_slope * L)` seconds.
    train_bytes: the peak of a training step, model included. state, state_slope: bytes of a state after L tokens.
    """

    train: float
    read: float
    read_slope: float
    train_bytes: float
    state: float
    state_slope: float

    def read_seconds(self, length: int) -> float:
        return length * (self.read + self.read_slope * length)

    def case_seconds(self, case: Case) -> float:
        measure = parse_measure({"measure": case.measure, **case.parameters})
        if isinstance(measure, Training | Tuning):
            return measure.training.tokens * self.train + self._evaluations(measure)
        if isinstance(measure, Recall):
            readings = (len(measure.passes) + measure.passes[-1] - 1) * len(measure.memory) * len(measure.loads or (0,))
            return sum(measure.examples * readings * self.read_seconds(length) for length in measure.lengths)
        if isinstance(measure, Perplexity):
            return measure.examples * self.read_seconds(measure.length)
        return UNTRAINED_SECONDS

    def _evaluations(self, measure: Training | Tuning) -> float:
        training = measure.training
        if training.bar is None:
            return 0.0
        length, _ = training.bar_at(measure.task)
        times = training.steps / training.evaluate_every + 1
        return times * training.bar.examples * self.read_seconds(length)

    def case_bytes(self, case: Case) -> float:
        measure = parse_measure({"measure": case.measure, **case.parameters})
        if isinstance(measure, Recall):
            return self.train_bytes + measure.eval_batch * (self.state + self.state_slope * max(measure.lengths))
        return self.train_bytes


def estimate_run(planner: Planner, run: Run, device: str, jobs: int | None) -> Estimate:
    """Estimate what is still to be done of a run, as if every layout were taught."""
    begun = time.perf_counter()
    done = known_results(run)
    pending = [case for case in everything(planner, done) if case.id not in done]
    jobs = Limits(jobs).choose_jobs(device, sum(not case.exclusive for case in pending))
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, usable_cores() // jobs))
    try:
        make_current(torch.device(device))
        probes = {label: probe(case, torch.device(device)) for label, case in _to_probe(pending).items()}
    finally:
        torch.set_num_threads(threads)
    return _add_up(pending, probes, jobs, time.perf_counter() - begun)


def _to_probe(pending: Sequence[Case]) -> dict[str, Case]:
    """One case of training for each layout, or else one that asks a trained model."""
    found: dict[str, Case] = {}
    for case in pending:
        if "training" in case.parameters:
            found.setdefault(case.label, case)
    return found


def probe(case: Case, device: torch.device) -> Probe:
    """Train the model of a case for a few steps, and let it read texts of two lengths."""
    # in an empty context, what runs here is not recorded as the backend of a case
    with tf32(case.tf32):
        return contextvars.Context().run(_probe, case, device)


def _probe(case: Case, device: torch.device) -> Probe:
    measure = parse_measure({"measure": case.measure, **case.parameters})
    assert isinstance(measure, Trained | Training | Tuning)
    config = dataclasses.replace(ModelConfig.from_dict(case.model), seed=case.seed)
    model = LanguageModel(config).to(device)
    # as it is: compiling would take longer than all the steps, and so would starting processes
    alone = measure.training.alone.model_copy(update={"compile": False})
    short = alone.shortened(PROBE_STEPS / measure.training.steps)
    records = []
    reading = measure_memory(
        lambda: records.append(train(model, measure.task, short, seed=case.seed, device=device)), device
    )
    seconds, states = [], []
    model.eval()
    for length in PROBE_LENGTHS:
        tokens = torch.randint(config.vocab_size, (1, length), generator=torch.Generator().manual_seed(0))
        start = time.perf_counter()
        with autocast(device, measure.training.precision):
            _, state = model.read(tokens)
        seconds.append((time.perf_counter() - start) / length)
        states.append(state.nbytes)
    (short_read, long_read), (near, far) = seconds, states
    span = PROBE_LENGTHS[1] - PROBE_LENGTHS[0]
    slope, state_slope = max(0.0, (long_read - short_read) / span), max(0.0, (far - near) / span)
    if state_slope * PROBE_LENGTHS[1] < 0.5 * far:  # a state that has a bound: it is not extrapolated
        slope = state_slope = 0.0
    return Probe(
        train=records[0]["seconds"] / records[0]["tokens"],
        read=long_read - slope * PROBE_LENGTHS[1],
        read_slope=slope,
        train_bytes=reading.peak_bytes + sum(p.nbytes for p in model.parameters()),
        state=far - state_slope * PROBE_LENGTHS[1],
        state_slope=state_slope,
    )


def _add_up(pending: Sequence[Case], probes: dict[str, Probe], jobs: int, probe_seconds: float) -> Estimate:
    seconds = {
        case.id: probes[case.label].case_seconds(case) if case.label in probes else UNTRAINED_SECONDS
        for case in pending
    }
    beside = sum(seconds[case.id] for case in pending if not case.exclusive)
    alone = sum(seconds[case.id] for case in pending if case.exclusive)
    resident = psutil.Process().memory_info().rss
    largest = sorted((probes[c.label].case_bytes(c) for c in pending if c.label in probes), reverse=True)
    held = sum(largest[:jobs]) + (1 + jobs) * resident
    return Estimate(beside / jobs + alone, held, len(pending), jobs, probe_seconds)
