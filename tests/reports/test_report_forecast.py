"""The report says how wrong the estimate of its run was."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from mixerzoo.benchmarks.forecast import CaseForecast, Forecast, keep_forecast, key_of_result
from mixerzoo.benchmarks.runs import ResultLine, Run, RunError
from mixerzoo.reports import write_report
from mixerzoo.reports.forecast import forecast_tables
from mixerzoo.reports.tables import read_run

from .conftest import HOSTILE, made_up_lines, write_run

LAYOUT = {"linear", HOSTILE}


def kept(line: ResultLine) -> bool:
    return line.layout in LAYOUT and line.measure in ("memory", "perplexity", "probe")


def said(line: ResultLine, seconds: float | None, source: str, **more: object) -> CaseForecast:
    own = {"case": line.case, "key": key_of_result(line), "layout": line.layout, "measure": line.measure}
    bounds = {"low": seconds and seconds / 2, "high": seconds and seconds * 2, "bytes": None, "certain": True}
    return CaseForecast.model_validate({**own, "seconds": seconds, "source": source, **bounds, **more})


def forecast(*cases: CaseForecast) -> Forecast:
    known = {"made": "2026-01-02T03:04:00+00:00", "kind": "CPU <b>", "machines": 1, "jobs": 2}
    return Forecast.model_validate({**known, "seconds": 600.0, "low": 300.0, "high": 900.0, "cases": cases})


def test_estimates_are_held_against_what_cases_took(make_run: Callable[..., Path]) -> None:
    folder = make_run(kept)
    lines = [line for line in made_up_lines() if kept(line)]
    memory = [line for line in lines if line.measure == "memory"]
    text = next(line for line in lines if line.measure == "perplexity" and line.status == "ok")
    failed = next(line for line in lines if line.status == "crashed")
    cases = [said(line, line.seconds / 1.25, "measured") for line in memory[:-1]]
    cases += [said(memory[-1], memory[-1].seconds / 4, "counted")]
    # of another rate than the one that was chosen, and a case that never came up
    cases += [said(text, None, "not known", case="another rate"), said(failed, 5.0, "counted")]
    assert not list(forecast_tables(read_run(folder)))
    keep_forecast(Run(folder), forecast(cases[-1]))
    assert not list(forecast_tables(read_run(folder)))  # nothing that it is of has ended well
    (folder / "forecast.json").unlink()
    keep_forecast(Run(folder), forecast(*cases))
    (table,) = forecast_tables(read_run(folder))
    rows = {row[0]: row[1:] for row in table.rows}
    assert list(rows) == ["all", "memory", "measured", "counted"]
    assert rows["measured"][0] == f"{len(memory) - 1}" and rows["measured"][3:5] == ["1.25", "1.25"]
    assert rows["counted"][0] == "1" and rows["counted"][3:] == ["4.00", "4.00", "4.00 to 4.00", "0%"]
    assert rows["all"][0] == f"{len(memory)}" and rows["all"][4] == "1.25"
    assert float(rows["all"][3]) == pytest.approx(
        sum(li.seconds for li in memory) / sum(c.seconds or 0 for c in cases[: len(memory)]), abs=0.01
    )
    ended = sum(line.status == "ok" for line in lines)
    assert f"{ended - len(memory)} more cases ended well of which no time was said" in table.note
    assert "1 cases that an estimate was made for did not come up" in table.note
    assert table.note.index("Furthest off") < table.note.index("(counted)")


def test_wall_time_and_memory_are_held_against_what_was_said(make_run: Callable[..., Path]) -> None:
    folder = make_run(lambda line: line.measure == "memory" and line.layout == "linear")
    run = Run(folder)
    lines = run.results()
    run.write_plan({"final": True, "cases": []})
    keep_forecast(run, forecast(*(said(line, line.seconds, "scaled", bytes=1e6) for line in lines)))
    moment = {"started": "2026-01-02T03:04:05+00:00", "ended": "2026-01-02T03:11:05+00:00"}
    run.write_environment({**run.environment(), "finished": [moment], "resumed": []})
    with run.locked() as store:
        for line in lines:
            store.append(line.model_copy(update={"peak_bytes": 3_000_000}))
    (table,) = forecast_tables(read_run(folder))
    assert "10 min 0 s was said (5 min 0 s to 15 min 0 s on 1 machine of kind CPU <b>" in table.note
    assert "it took 7 min 0 s" in table.note and "Peak memory was 3.00 times what was said" in table.note
    run.write_environment({**run.environment(), "finished": [moment, moment]})
    (table,) = forecast_tables(read_run(folder))
    assert "Wall time" not in table.note  # made in two goes


def test_it_stands_on_the_page_with_whatever_a_layout_is_called(tmp_path: Path) -> None:
    probe = next(line for line in made_up_lines() if line.measure == "probe")
    plain = {"layout": HOSTILE, "status": "ok", "metrics": {"found": 1.5}, "error": None}  # without a chart
    folder = write_run(tmp_path / "run", [probe.model_copy(update=plain)])
    keep_forecast(Run(folder), forecast(*(said(line, 1.0, "counted") for line in Run(folder).results())))
    page = write_report(folder).read_text(encoding="utf-8")
    assert "Estimate against what it took" in page and "CPU <b>" not in page
    assert '<script>alert("label")' not in page
    assert "Estimate against what it took" in (folder / "report.md").read_text(encoding="utf-8")
    (folder / "forecast.json").write_text("{}")
    with pytest.raises(RunError, match="damaged"):
        read = read_run(folder)
        list(forecast_tables(read))
