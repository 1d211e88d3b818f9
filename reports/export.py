"""A run's numbers and tables in the formats of other programs."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from io import BytesIO
from typing import TYPE_CHECKING, Any

import pandas as pd

from ..benchmarks.runs import RunError, results_digest
from .about_tables import page_tables
from .bibtex import bibtex
from .formats import NOTHING, latex, markdown, plain
from .scoreboard import Scoreboard, scoreboard
from .summary import summary
from .tables import RunData
from .verdict import findings

if TYPE_CHECKING:
    from .command import Format

SCHEMA_VERSION = 1
_WHOLE = ("json", "bibtex")  # formats of a whole run, not of one table
_FOR_PEOPLE = ("latex", "markdown")


def export(run: RunData, form: Format, table: str | None = None) -> bytes:
    """The run as a file of this format.

    table: `summary` (every pooled number), `scoreboard` (layouts by questions) or the name of a table of the page;
    default the scoreboard in LaTeX and Markdown, the summary in CSV and Parquet. JSON holds the whole run: metadata,
    digest of the results, findings and numbers; BibTeX the papers of its mixers. Raises `ValueError` for a table that
    the run has not, `RunError` where pyarrow is missing.
    """
    if table is not None and form in _WHOLE:
        raise ValueError(f"{form} is of the whole run; --table goes with csv, parquet, latex and markdown")
    if form == "json":
        return _document(run).encode()
    if form == "bibtex":
        return bibtex(run.environment.get("cards") or {}).encode()
    name = table or ("scoreboard" if form in _FOR_PEOPLE else "summary")
    if form == "latex" and name == "scoreboard":
        return _scoreboard_latex(run).encode()
    frame = _frame(run, name)
    writers: dict[str, Callable[[pd.DataFrame], bytes]] = {
        "csv": lambda data: data.to_csv(index=False).encode(),
        "parquet": _parquet,
        "markdown": lambda data: _markdown(data).encode(),
        "latex": lambda data: _latex(
            [latex(c) for c in data], [[latex(v) for v in row] for row in _texts(data)]
        ).encode(),
    }
    return writers[form](frame)


def _frame(run: RunData, name: str) -> pd.DataFrame:
    if name == "summary":
        return summary(run)
    if name == "scoreboard":
        board = _scoreboard(run)
        texts = [[row.layout, *(score.text if score else NOTHING for score in row.scores)] for row in board.rows]
        return pd.DataFrame(texts, columns=["Layout", *(question.column for question in board.questions)])
    tables = {table.name: table for table in page_tables(run)}
    if name not in tables:
        raise ValueError(f"this run has no table {name!r}; it has {', '.join(['summary', 'scoreboard', *tables])}")
    return pd.DataFrame(tables[name].rows, columns=tables[name].columns)


# --- The scoreboard ---


def _scoreboard(run: RunData) -> Scoreboard:
    board = scoreboard(run, findings(run))
    if not board.rows:
        raise RunError(f"{run.folder} answers no question yet, so it has no scoreboard; see --table")
    return board


def _scoreboard_latex(run: RunData) -> str:
    """The best of a column, and who cannot be told apart from it, in bold; intervals small."""
    board = _scoreboard(run)
    cells = [[latex(row.layout), *map(_score_latex, row.scores)] for row in board.rows]
    return _latex(["Layout", *(latex(question.column) for question in board.questions)], cells)


def _score_latex(score: Any) -> str:
    if score is None:
        return latex(NOTHING)
    value, interval = re.fullmatch(r"(.*?)((?: [\[(].*)?)", score.text, re.DOTALL).groups()  # type: ignore[union-attr]
    shown = f"\\textbf{{{latex(value)}}}" if score.best else latex(value)
    return f"{shown} {{\\footnotesize {latex(interval)}}}" if interval else shown


def _latex(columns: list[str], rows: list[list[str]]) -> str:
    """A booktabs table of cells that are LaTeX already."""
    align = "l" + "r" * (len(columns) - 1)
    head = "% needs \\usepackage{booktabs} and \\usepackage[T1]{fontenc}; for letters beyond Latin, XeLaTeX or LuaLaTeX"
    # no heading is a key here: two columns may have one name
    headings: dict[Any, str] = dict(enumerate(columns))
    data = pd.DataFrame(rows, columns=list(headings))
    body = data.style.hide(axis="index").format_index(headings.__getitem__, axis="columns")
    return f"{head}\n{body.to_latex(hrules=True, column_format=align)}"


# --- Other formats ---


def _document(run: RunData) -> str:
    document = {
        "schema_version": SCHEMA_VERSION,
        "run": {
            "name": run.suite.get("name"),
            "description": run.suite.get("description"),
            "suite": run.suite,
            "environment": run.environment,
            "layouts": run.layouts,
            "cases": len(run.lines),
            "plan_is_final": (run.plan or {}).get("final"),
        },
        "results_sha256": results_digest(run.folder),
        "findings": [{**vars(f), "scores": [vars(score) for score in f.scores]} for f in findings(run)],
        "numbers": summary(run).to_dict("records"),
        "failures": run["failures"].to_dict("records"),
        "missing": run["missing"].to_dict("records"),
    }
    return json.dumps(plain(document), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _parquet(frame: pd.DataFrame) -> bytes:
    try:
        import pyarrow  # noqa: F401
    except ImportError:
        raise RunError("parquet needs pyarrow: pip install 'mixerzoo[parquet]'; or take --format csv") from None
    buffer = BytesIO()
    # a column that holds text and numbers is text: Parquet knows one type a column
    mixed = {str(name): frame[name].map(_text_or_none) for name in frame if _is_mixed(frame[name])}
    frame.assign(**mixed).to_parquet(buffer, index=False)
    return buffer.getvalue()


def _is_mixed(column: pd.Series) -> bool:
    return len({str if isinstance(v, str) else float for v in column.dropna()}) > 1


def _text_or_none(value: Any) -> str | None:
    return None if pd.isna(value) else str(value)


def _markdown(frame: pd.DataFrame) -> str:
    rows = [[str(name) for name in frame], *_texts(frame)]
    lines = [f"| {' | '.join(map(markdown, row))} |" for row in rows]
    return "\n".join([lines[0], f"|{' --- |' * len(frame.columns)}", *lines[1:]]) + "\n"


def _texts(frame: pd.DataFrame) -> list[list[str]]:
    return [
        [NOTHING if pd.isna(v) else f"{v:.6g}" if isinstance(v, float) else str(v) for v in row]
        for row in frame.itertuples(index=False)
    ]
