"""Tuning: what each option set reached that was tried before a layout was trained."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pandas as pd

from .. import formats
from ..charts import Figure
from ..lines import KEYS, Lines, Row, choice_text, measured, tidy
from ..section import Section
from ..statistics import rows_of
from ..sweep_figures import sweep_figures
from ..table import Table, in_brackets, numbered
from ..tables import RunData
from ..taught import NOT_TAUGHT
from ..trainings import taught_models
from ..variants import purpose

COLUMNS = [*KEYS, "measure", "rung", "choice", "tokens", "score", "accuracy", "chosen", "seconds", "case"]


class Tuning(Section):
    measure = "tuning"
    title = "Tuning"
    order = 70

    def frames(self, lines: Lines) -> dict[str, pd.DataFrame]:
        tuning = tidy(_rows(lines), COLUMNS)
        return {"tuning": tuning.astype({"accuracy": float})}

    def figures(self, run: RunData) -> Iterator[Figure]:
        yield from sweep_figures(run)

    def tables(self, run: RunData) -> Iterator[Table]:
        yield from _tuning_tables(run)

    def numbers(self, run: RunData) -> Iterator[dict[str, Any]]:
        for r in rows_of(run["tuning"]):
            number = {"quantity": "validation_loss", "value": r.score, "unit": "nats", "count": 1, "seeds": 1}
            yield {"layout": r.layout, "variant": f"{r.choice}, rung {int(r.rung) + 1}", **number, "backends": ""}


SECTION = Tuning()


def _rows(lines: Lines) -> Iterator[Row]:
    """One row for every option set that was tried, a seed and a rung at a time; `chosen`: trained with afterwards.

    Accuracies stand only for layouts of which a seed was taught.
    """
    chosen = {(line.layout, purpose(line), choice_text((line.metrics or {}).get("chosen"))) for line, _ in lines}
    taught = {(layout, measure) for measure, layout, _, _ in taught_models(lines)}
    for line, metrics, known in measured(lines, "tuning"):
        choice = choice_text(metrics["choice"])
        numbers = {key: metrics.get(key) for key in ("rung", "tokens", "score")}
        accuracy = metrics.get("accuracy") if (line.layout, purpose(line)) in taught else None
        picked = (line.layout, purpose(line), choice) in chosen
        yield {**known, **numbers, "accuracy": accuracy, "choice": choice, "chosen": picked, "seconds": line.seconds}


def _tuning_tables(run: RunData) -> Iterator[Table]:
    """A row for each layout and choice, a column for each rung that it was tried at."""
    for number, ((measure, variant), own) in enumerate(run["tuning"].groupby(["measure", "variant"], sort=False)):
        numbers = ["tokens", "score", "accuracy"]
        own = own.astype(dict.fromkeys(numbers, float))
        pooled = own.groupby(["layout", "choice", "rung"], sort=False, as_index=False)
        means = pooled.agg({**dict.fromkeys(numbers, "mean"), "chosen": "any"})
        taught, rungs = set(own[own["accuracy"].notna()]["layout"]), sorted(own["rung"].unique())
        rows = []
        for (layout, choice), tried in means.groupby(["layout", "choice"], sort=False):
            cells = {r.rung: _tried(r, layout in taught) for r in rows_of(tried)}
            texts = [cells.get(rung, formats.NOTHING) for rung in rungs]
            rows.append([str(layout), str(choice), *texts, "chosen" if tried["chosen"].any() else ""])
        spent = own.groupby("rung")["tokens"].median()
        names = [f"Rung {i}, {formats.si(spent[rung])} tokens" for i, rung in enumerate(rungs, start=1)]
        columns = ["Layout", "Tried", *names, "Chosen"]
        title = f"Tuning: what each choice reached{in_brackets(variant)}"
        title += "" if measure == "recall" else f", {measure}"
        note = (
            "The same budget for every layout; at each rung the better choices go on. Loss in nats (lower is "
            "better) and accuracy, on validation data that is neither trained on nor reported."
        )
        yield Table(numbered("tuning", number), title, columns, rows, note, text_columns=2)


def _tried(row: Any, taught: bool) -> str:
    """`2.500, 25.0 %`; no accuracy of a layout that was not taught."""
    loss = formats.NOTHING if formats.missing(row.score) else f"{row.score:.3f}"
    return f"{loss}, {formats.percent(row.accuracy)}" if taught else f"{loss}, {NOT_TAUGHT}"
