"""What was expected of a run before its start, against what it took."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime

import numpy as np

from ..benchmarks.forecast import SOURCES, CaseForecast, Forecast, read_forecast
from ..benchmarks.runs import Run
from . import formats
from .lines import case_text
from .result import Result
from .table import Table
from .tables import RunData

_COLUMNS = [
    "Cases",
    "Number",
    "Estimate",
    "Took",
    "Took / estimate",
    "Median case",
    "8 in 10 cases",
    "Within what was said",
]
_WORST = 3

Pair = tuple[Result, CaseForecast]


def forecast_tables(run: RunData) -> Iterator[Table]:
    """One table: all cases, by measure, and by where their estimates are from; nothing for a run without estimates.

    Raises `RunError` if what was kept of them is damaged.
    """
    forecast = read_forecast(Run(run.folder))
    if forecast is None:
        return
    matched = forecast.of([line for line in run.lines if line.status == "ok"])
    pairs = [(line, said) for line, said in matched if said is not None and said.seconds is not None]
    if not pairs:
        return
    rows = [_row("all", pairs)]
    rows += [_row(m, [p for p in pairs if p[0].measure == m]) for m in dict.fromkeys(p[0].measure for p in pairs)]
    rows += [_row(s, [p for p in pairs if p[1].source == s]) for s in SOURCES if any(p[1].source == s for p in pairs)]
    note = " ".join(_notes(run, forecast, pairs, len(matched)))
    yield Table("forecast", "Estimate against what it took", _COLUMNS, rows, note)


def _row(name: str, pairs: Sequence[Pair]) -> list[str]:
    said, took = sum(case.seconds or 0.0 for _, case in pairs), sum(line.seconds for line, _ in pairs)
    low, middle, high = np.percentile([_ratio(pair) for pair in pairs], [10, 50, 90])
    within = np.mean([(case.low or 0.0) <= line.seconds <= (case.high or 0.0) for line, case in pairs])
    spread = f"{low:.2f} to {high:.2f}"
    times = [f"{took / said:.2f}", f"{middle:.2f}", spread]
    return [name, formats.whole(len(pairs)), formats.seconds(said), formats.seconds(took), *times, f"{within:.0%}"]


def _ratio(pair: Pair) -> float:
    line, case = pair
    return line.seconds / max(1e-9, case.seconds or 0.0)


def _notes(run: RunData, forecast: Forecast, pairs: Sequence[Pair], ended: int) -> Iterable[str]:
    yield (
        "Seconds of the cases that ended well, added up, by measure and source. Measured: the same case in an earlier "
        "run. Scaled: the same model and measure at other sizes. Counted: FLOPs, bytes and operations."
    )
    if (wall := _wall_seconds(run)) is not None:
        said = f"{formats.seconds(forecast.low)} to {formats.seconds(forecast.high)}"
        place = f"{forecast.machines} machine{'s' * (forecast.machines != 1)}"
        at = f"{said} on {place} of kind {forecast.kind}, {forecast.jobs} cases at a time, if every layout is taught"
        yield f"Wall time: {formats.seconds(forecast.seconds)} was said ({at}); it took {formats.seconds(wall)}."
    missing = ended - len(pairs)
    if missing:
        yield f"{missing:,} more cases ended well of which no time was said."
    found = {case.case for _, case in pairs}
    idle = sum(case.case not in found and case.seconds is not None for case in forecast.cases)
    if idle:
        yield f"{idle:,} cases that an estimate was made for did not come up, or not end well."
    peaks = [line.peak_bytes / case.bytes for line, case in pairs if line.peak_bytes and case.bytes]
    if peaks:
        low, middle, high = np.percentile(peaks, [10, 50, 90])
        yield f"Peak memory was {middle:.2f} times what was said (median; 8 in 10 from {low:.2f} to {high:.2f})."
    worst = sorted(pairs, key=lambda pair: -abs(np.log(max(1e-9, _ratio(pair)))))[:_WORST]
    yield f"Furthest off: {'; '.join(map(_sentence, worst))}."


def _sentence(pair: Pair) -> str:
    line, case = pair
    what = " ".join(filter(None, [line.layout, line.measure, case_text(line), f"seed {line.seed}"]))
    return f"{what}: {formats.seconds(case.seconds)} said, {formats.seconds(line.seconds)} taken ({case.source})"


def _wall_seconds(run: RunData) -> float | None:
    """From start to end, of a run that was made in one go; else None."""
    starts = run.environment.get("finished") or []
    if len(starts) != 1 or run.environment.get("resumed") or len(run["missing"]):
        return None
    begun, ended = (datetime.fromisoformat(starts[0][name]) for name in ("started", "ended"))
    return (ended - begun).total_seconds()
