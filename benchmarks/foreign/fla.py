"""flash-linear-attention: the JSON of its benchmarks/ops/run.py, and the tables of `triton.testing.Benchmark`, which
its scripts for modules print and save as CSV."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from typing import Any

from pydantic import ConfigDict, Field

from .reading import ForeignError, Format, Model, Reading, Value, finite, has, known

_TITLE = re.compile(r"^(?P<title>\S.*):\s*$", re.MULTILINE)
_COLUMN = re.compile(
    r"^(?P<line>.+?) \((?P<quantity>[^()]+)(?: \((?P<unit>[^()]+)\))?\)$"
)  # fused (Execution Time (ms))


class _FlaMachine(Model):
    hostname: str | None = None
    platform: str | None = None
    pytorch_version: str | None = None
    triton_version: str | None = None
    cuda_version: str | None = None
    gpu_name: str | None = None
    git_label: str | None = None


class _FlaRow(Model):
    model_config = ConfigDict(extra="allow")  # shapes: B, T, H, D, for some ops others

    op: str = Field(min_length=1)
    mode: str
    T: int
    median_ms: float
    p20_ms: float | None = None
    p80_ms: float | None = None


class _FlaRun(Model):
    machine_info: _FlaMachine
    results: list[_FlaRow]


def _read_fla(data: Any) -> Reading:
    return _read_fla_tables(data) if isinstance(data, str) else _read_fla_run(data)


def _read_fla_run(data: Any) -> Reading:
    said = _FlaRun.model_validate(data)
    machine = said.machine_info
    values = [
        Value(
            row.op,
            quantity="median time",
            value=row.median_ms,
            unit="ms",
            low=finite(row.p20_ms),
            high=finite(row.p80_ms),
            interval="20th to 80th percentile of the rounds" if row.p20_ms is not None else None,
            mode=row.mode,
            length=row.T,
            better="less",
            settings=dict(row.model_extra or {}),
        )
        for row in said.results
    ]
    packages = {"torch": machine.pytorch_version, "triton": machine.triton_version, "cuda": machine.cuda_version}
    there = {name: None if text == "N/A" else text for name, text in {**packages, "gpu": machine.gpu_name}.items()}
    environment = known(
        machine=known(host=machine.hostname, os=machine.platform),
        gpu=there["gpu"] and {"name": there["gpu"]},
        packages=known(torch=there["torch"], triton=there["triton"]),
        cuda=there["cuda"] and {"version": there["cuda"]},
    )
    return Reading("flash-linear-attention", machine.git_label, environment, values)


def _read_fla_tables(text: str) -> Reading:
    values = [value for title, table in _tables(text) for value in _table_values(title, table)]
    return Reading("triton.testing.Benchmark, as flash-linear-attention uses it", None, {}, values)


def _tables(text: str) -> Iterator[tuple[str | None, str]]:
    """The tables and their titles: of a CSV file the whole text, of what was printed the lines below each title."""
    parts = _TITLE.split(text)
    if len(parts) == 1:
        yield None, text
    yield from zip(parts[1::2], parts[2::2])


def _table_values(title: str | None, table: str) -> Iterator[Value]:
    import pandas as pd

    lines = [line.strip() for line in table.strip().splitlines()]
    separator = "," if title is None else r"\s{2,}"  # printed rows have their number in front, which pandas expects
    try:
        frame = pd.read_csv(io.StringIO("\n".join(lines)), sep=separator, engine="python")
    except (ValueError, pd.errors.ParserError) as error:
        raise ForeignError(f"its table cannot be read: {error}") from None
    columns = {name: match for name in frame.columns if (match := _COLUMN.match(str(name)))}
    sizes = [name for name in frame.columns if name not in columns]
    for name in frame.columns:
        if not pd.api.types.is_numeric_dtype(frame[name]) or (name in sizes and frame[name].isna().any()):
            raise ForeignError(f"its column {name!r} holds something other than numbers; give the table alone")
    for row in frame.to_dict("records"):
        at = {str(name): _whole(row[name]) for name in sizes}
        length = at.pop("T") if isinstance(at.get("T"), int) else None
        for name, match in columns.items():
            yield Value(
                match["line"],
                quantity=match["quantity"],
                value=float(row[name]),
                unit=match["unit"] or "",
                task=title,
                length=length,
                settings=at,
            )


def _whole(value: Any) -> Any:
    """A size as the file means it: beside other numbers whole ones are written with a point and zeros."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _is_table(data: Any) -> bool:
    if not isinstance(data, str):
        return False
    tables = list(_tables(data))
    heads = [table.strip().partition("\n")[0] for _, table in tables]
    names = [re.split(r"," if title is None else r"\s{2,}", head.strip()) for (title, _), head in zip(tables, heads)]
    return bool(names) and all(any(_COLUMN.match(name.strip('"')) for name in own) for own in names)


FORMAT = Format(
    "what fla's `benchmarks/ops/run.py --json FILE` writes, with `machine_info` and a list `results`, or a table of "
    "triton.testing.Benchmark, printed or saved as CSV, with columns such as `fused (Execution Time (ms))`",
    lambda data: has(data, machine_info=dict, results=list) or _is_table(data),
    _read_fla,
)
