"""The history of a suite: every pooled number of its runs on one machine, from commit to commit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import altair as alt
import pandas as pd

from .. import formats
from ..charts import BYTES, COUNT, PERCENT, Figure, Style, alongside, finish, tooltips
from ..summary import SUMMARY
from .run import SiteRun

_WHERE = ["when", "started", "run", "commit", "dirty", "machine"]
_SETTINGS = ["variant", "mode", "length", "load", "passes", "memory"]
_LABELS = {"share": PERCENT, "B": BYTES, "B/token": BYTES}
_WIDE = 20.0  # values that differ by this factor are drawn on a logarithmic axis
_SPREAD = 12  # layouts up to which those of one run stand side by side


@dataclass(frozen=True)
class Past:
    """What one machine measured of a suite over time. runs: oldest first; figures: one a measure and quantity."""

    id: str
    machine: str
    runs: list[SiteRun]
    figures: list[Figure]
    changed: list[str]


def pasts(runs: list[SiteRun]) -> list[Past]:
    """The histories of one suite, by the machine's name; runs of other tools are no part of them."""
    machines: dict[str, list[SiteRun]] = {}
    for run in sorted(runs, key=lambda run: run.order):
        if run.foreign is None:
            machines.setdefault(run.machine, []).append(run)
    return [_past(machines[machine]) for machine in sorted(machines)]


def history_table(runs: list[SiteRun]) -> pd.DataFrame:
    """The pooled numbers of all runs, oldest run first, each with its run, commit and machine."""
    ordered = sorted(runs, key=lambda run: run.order)
    labels = _labels(ordered)
    frames = [
        run.numbers.assign(
            when=label,
            started=run.started.isoformat() if run.started else "",
            run=run.name,
            commit=run.commit or "",
            dirty=run.dirty,
            machine=_machines(run),
        )
        for run, label in zip(ordered, labels)
    ]
    frames = [frame.astype(object) for frame in frames if len(frame)]
    return pd.concat(frames, ignore_index=True)[[*_WHERE, *SUMMARY]] if frames else pd.DataFrame(columns=[*_WHERE])


def _machines(run: SiteRun) -> Any:
    """Of every number of a run: the kind of machine that it was timed on, or what the whole run had."""
    if "machine" not in run.numbers:
        return run.machine
    return run.numbers["machine"].fillna(run.machine)


def _past(runs: list[SiteRun]) -> Past:
    layouts = list(dict.fromkeys(layout for run in runs for layout in run.data.layouts))
    figures = list(_figures(history_table(runs), layouts, runs[0].machine_id))
    return Past(runs[0].machine_id, runs[0].machine, runs, figures, _changes(runs))


def _labels(runs: list[SiteRun]) -> list[str]:
    """Two lines for each run, told apart by the name where date and commit are the same."""
    labels = [f"{run.date.removesuffix(' UTC')}\n{(run.commit or 'no commit')[:9]}{'+' * run.dirty}" for run in runs]
    return [f"{label}\n{run.name}" if labels.count(label) > 1 else label for label, run in zip(labels, runs)]


def _changes(runs: list[SiteRun]) -> list[str]:
    """Where the suite itself was changed between two runs, so that their numbers may not be of the same thing."""
    said = []
    for old, new in pairwise(runs):
        ours, theirs = ({k: v for k, v in run.data.suite.items() if k != "description"} for run in (new, old))
        keys = [key for key in {**theirs, **ours} if ours.get(key) != theirs.get(key)]
        if keys:
            listed = formats.listing([str(key).replace("_", " ") for key in keys])
            said.append(f"Between {old.name} and {new.name} the suite itself changed: {listed}.")
    return said


# --- Charts ---


def _figures(table: pd.DataFrame, layouts: list[str], prefix: str) -> Iterator[Figure]:
    table = table[table["value"].notna()] if len(table) else table
    keys = ["measure", "quantity", "unit"]
    for number, ((measure, quantity, unit), rows) in enumerate(table.groupby(keys, sort=False) if len(table) else ()):
        shown = _drawn(rows)
        title = f"{str(measure).replace('_', ' ').capitalize()}: {str(quantity).replace('_', ' ')}"
        settings = shown["setting"].value_counts(sort=False)
        intervals = [text for text in rows["interval"].unique() if isinstance(text, str) and text]
        caption = f"In brackets and as bars: {'; '.join(intervals)}." if intervals else "Single numbers."
        points = shown["when"].nunique()
        said = f"{points} run{'' if points == 1 else 's'}, {shown['layout'].nunique()} layouts, "
        said += f"{len(settings)} setting{'' if len(settings) == 1 else 's'}; all numbers are in the CSV file."
        chart = _chart(shown, layouts, str(unit))
        yield Figure(f"{prefix}-{number + 1}", title, caption, said, chart)


def _drawn(rows: pd.DataFrame) -> pd.DataFrame:
    """What a chart needs of its numbers; one without an interval has it at the number itself."""
    records = [{str(key): value for key, value in row.items()} for row in rows.to_dict("records")]
    value, low, high = (rows[key].astype(float) for key in ("value", "low", "high"))
    drawn = rows[["when", "layout"]].assign(value=value, low=low.fillna(value), high=high.fillna(value))
    return drawn.assign(
        setting=[_setting(row) for row in records],
        shown=[_number(row) for row in records],
        seeds=[formats.whole(row["seeds"]) for row in records],
    )


def _chart(rows: pd.DataFrame, layouts: list[str], unit: str) -> Any:
    present = [name for name in layouts if name in set(rows["layout"])]
    style = Style(layouts, shown=present)
    if style.legend is not None:
        style.legend.symbolLimit = 0  # name them all
    whens = list(dict.fromkeys(rows["when"]))
    axis = alt.Axis(labelExpr="split(datum.label, '\\n')", labelAngle=0, labelLimit=160, grid=True)
    x = alt.X("when:N", sort=whens, axis=axis, title=None)
    y = _vertical(rows, unit)
    tips = tooltips(("shown", "value [interval]"), ("setting", "of"), ("when", "run"), ("seeds", "seeds"))
    base = alt.Chart(rows).encode(x=x, color=style.colour(), opacity=style.emphasis)
    if len(present) <= _SPREAD:
        base = base.encode(xOffset=alt.XOffset("layout:N", scale=alt.Scale(domain=present)))
    line = base.mark_line(strokeWidth=2).encode(y=y, strokeDash=style.dash())
    bar = base.mark_rule(strokeWidth=1.5).encode(y=alongside(y, "low"), y2="high:Q")
    point = base.mark_point(filled=True, size=60).encode(y=y, shape=style.shape(), tooltip=tips)
    chart = alt.layer(line, bar, point).properties(width=max(760, 90 * len(whens)), height=300)
    settings = list(dict.fromkeys(rows["setting"]))
    if len(settings) > 1:
        counts = rows["setting"].value_counts(sort=False)
        most = [name for name in settings if counts[name] == counts.max()]
        shown = alt.param("shown", bind=alt.binding_select(options=settings, name="Show "), value=most[-1])
        chart = chart.add_params(shown).transform_filter(alt.datum.setting == shown)
    return finish(chart, "", "")


def _vertical(rows: pd.DataFrame, unit: str) -> alt.Y:
    labels = _LABELS.get(unit, COUNT)
    axis = alt.Axis(labelExpr=labels, tickCount=6, tickMinStep=1 if unit == "seeds" else 0)
    title = {"share": "share", "B": "bytes", "B/token": "bytes a token"}.get(unit, unit)
    if unit == "share":
        return alt.Y("value:Q", scale=alt.Scale(domain=[0, 1], clamp=True), axis=axis, title=title)
    least, most = rows[["value", "low"]].min().min(), rows["value"].max()
    wide = least > 0 and most / least > _WIDE
    scale = alt.Scale(type="log", nice=False, padding=12) if wide else alt.Scale(zero=True)
    return alt.Y("value:Q", scale=scale, axis=axis, title=title)


def _setting(row: dict[str, Any]) -> str:
    """What of its measure a number is: `decoding, 8,192 tokens`."""
    variant, mode, length, load, passes, memory = (row[key] for key in _SETTINGS)
    words = [
        str(variant) if _known(variant) else "",
        formats.mode_name(mode) if _known(mode) else "",
        f"{formats.whole(length)} tokens" if _known(length) else "",
        f"load {formats.whole(load)}" if _known(load) else "",
        f"{formats.whole(passes)} passes" if _known(passes) and passes != 1 else "",
        f"{memory} memory" if _known(memory) else "",
    ]
    return ", ".join(word for word in words if word) or "the whole run"


def _number(row: dict[str, Any]) -> str:
    def written(value: Any) -> str:
        return formats.percent(value) if row["unit"] == "share" else formats.si(value, str(row["unit"]))

    bounds = f" [{written(row['low'])}, {written(row['high'])}]" if _known(row["low"]) else ""
    return f"{written(row['value'])}{bounds}"


def _known(value: Any) -> bool:
    return value is not None and value == value and value != ""
