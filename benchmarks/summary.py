"""The tables that end a run on the terminal; `reports` makes the full ones."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from statistics import median
from typing import Any

from rich.markup import escape
from rich.table import Table

from .progress import status_text
from .runs import ResultLine

# What a result adds to the tables: title, column (they are sorted), value.
Entry = tuple[str, Any, float]
Format = Callable[[list[float]], str]


def summary_tables(results: Iterable[ResultLine]) -> dict[str, Table]:
    """One table a quantity, by title: layouts by sizes, of the `ok` results; several seeds are put together."""
    values: dict[str, dict[str, dict[Any, list[float]]]] = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    formats: dict[str, Format] = {}
    for result in results:
        if result.status == "ok" and result.measure in _READERS:
            reader, formatter = _READERS[result.measure]
            for title, column, value in reader(result):
                values[title][result.layout][column].append(value)
                formats[title] = formatter
    return {title: _table(rows, formats[title]) for title, rows in values.items()}


def failure_table(results: Iterable[ResultLine]) -> Table | None:
    """The results that are not `ok`, with the first line of what went wrong; None if all are."""
    failures = [r for r in results if r.status != "ok"]
    if not failures:
        return None
    table = Table("case", "layout", "measure", "seed", "status", "error")
    for r in failures:
        error = escape((r.error or "").split("\n", 1)[0])
        table.add_row(r.case, escape(r.layout), r.measure, str(r.seed), status_text(r.status), error)
    return table


def _table(rows: dict[str, dict[Any, list[float]]], formatter: Format) -> Table:
    columns = sorted({column for cells in rows.values() for column in cells})
    table = Table("layout")
    for column in columns:
        table.add_column("–".join(map(str, column)) if isinstance(column, tuple) else str(column), justify="right")
    for label, cells in rows.items():
        table.add_row(escape(label), *(formatter(cells[c]) if c in cells else "" for c in columns))
    return table


def _speed(result: ResultLine) -> Iterator[Entry]:
    metrics, (mode, length) = result.metrics or {}, _mode_and_length(result)
    yield f"speed, {mode}: tokens/s (median) by length", length, metrics["tokens_per_second"]["median"]


def _memory(result: ResultLine) -> Iterator[Entry]:
    metrics, (mode, length) = result.metrics or {}, _mode_and_length(result)
    yield f"memory, {mode}: peak MB above what is resident, by length", length, metrics["peak_bytes"] / 1e6
    yield f"memory, {mode}: state MB by length", length, metrics["state_bytes"] / 1e6


def _training(result: ResultLine) -> Iterator[Entry]:
    record = (result.metrics or {})["training"]
    if record.get("bar") is None:
        return
    bar = record["bar"]
    title = f"training: seeds that reached {bar['accuracy']:.0%} at {bar['length']} tokens, load {bar['load']}"
    solved = record["tokens_to_solve"] if bar["passed"] else None
    yield title, "taught (median tokens to solve)", math.inf if solved is None else solved


def _tuning(result: ResultLine) -> Iterator[Entry]:
    metrics = result.metrics or {}
    choice = ", ".join(f"{name} {value}" for name, value in metrics["choice"].items())
    yield f"tuning, rung {metrics['rung'] + 1}: validation loss in nats", choice, metrics["score"]


def _recall(result: ResultLine) -> Iterator[Entry]:
    rows = [row for row in (result.metrics or {})["rows"] if not row["recent"]]
    cells = sorted({(row["load"] or 0, row["passes"], row["memory"], row["length"]) for row in rows})
    for load, passes, memory, length in cells:
        cell = load, passes, memory, length
        own = [row for row in rows if (row["load"] or 0, row["passes"], row["memory"], row["length"]) == cell]
        again = f", context read {passes} times" if passes > 1 else ""
        kept = ", memory kept between sequences" if memory == "persistent" else ""
        title = f"recall{again}{kept}: % right at load {load} by length, of the models taught"
        yield title, length, 100 * sum(row["correct"] for row in own) / sum(row["total"] for row in own)


def _perplexity(result: ResultLine) -> Iterator[Entry]:
    for row in (result.metrics or {})["rows"]:
        yield "perplexity per token by position", (row["start"], row["end"]), row["nats"]


def _op_speed(result: ResultLine) -> Iterator[Entry]:
    metrics = result.metrics or {}
    for row in metrics["rows"]:
        title = f"{result.measure.replace('_', ' ')}, {row['mode']}, {row['backend']}"
        yield f"{title}: ms (median) by length", row["tokens"], 1e3 * row["median"]
        yield f"{title}: peak MB above what was there, by length", row["tokens"], row["peak_bytes"] / 1e6
    for ratio in metrics["ratios"]:
        if ratio["bar"] is not None:
            length = f", {ratio['tokens']} tokens" if ratio["tokens"] else ""
            what = f"{ratio['kind']}, {ratio['mode']}{length}, {ratio['backend']}"
            yield f"bar {ratio['bar']:g} {'met' if ratio['met'] else 'NOT met'}: {what}", "value", ratio["value"]


def _mode_and_length(result: ResultLine) -> tuple[str, int]:
    return result.parameters["modes"][0], result.parameters["lengths"][0]


def _three_digits(values: list[float]) -> str:
    value = median(values)
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _taught(tokens_to_solve: list[float]) -> str:
    solved = [tokens for tokens in tokens_to_solve if math.isfinite(tokens)]
    count = f"{len(solved)} of {len(tokens_to_solve)}"
    return f"{count} ({median(solved) / 1e6:.2f} M)" if solved else count


def _percent(values: list[float]) -> str:
    return f"{sum(values) / len(values):.1f}"


def _exponential(values: list[float]) -> str:
    return f"{math.exp(sum(values) / len(values)):.2f}"


_READERS: dict[str, tuple[Callable[[ResultLine], Iterator[Entry]], Format]] = {
    "speed": (_speed, _three_digits),
    "memory": (_memory, _three_digits),
    "tuning": (_tuning, _three_digits),
    "training": (_training, _taught),
    "recall": (_recall, _percent),
    "perplexity": (_perplexity, _exponential),
    "op_speed": (_op_speed, _three_digits),
    "overhead": (_op_speed, _three_digits),
    "mixer_speed": (_op_speed, _three_digits),
    "library_overhead": (_op_speed, _three_digits),
    "decode_speed": (_op_speed, _three_digits),
}
