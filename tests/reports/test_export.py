"""What `mixerzoo export` writes: tables for programs and papers, the whole run as JSON, BibTeX of its mixers."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import sys
from pathlib import Path

import pandas as pd
import pytest
from mixerzoo.benchmarks.cli import build_app
from mixerzoo.benchmarks.runs import RunError, results_digest
from mixerzoo.mixers import list_mixers, mixer_card
from mixerzoo.reports.bibtex import bibtex
from mixerzoo.reports.export import export
from mixerzoo.reports.formats import latex
from mixerzoo.reports.summary import summary
from mixerzoo.reports.tables import RunData, read_run
from pybtex.database import parse_string
from typer.testing import CliRunner

from .conftest import HOSTILE, LAYOUTS, made_up_lines, planned, write_run

PUBLISHED = Path(__file__).parents[2] / "reports" / "published"
COMMANDS = {"textbackslash", "textasciitilde", "textasciicircum", "textless", "textgreater", "textbar", "dots"}
COMMANDS |= {"textbraceleft", "textbraceright", "textasciigrave", "textquotedbl", "textbf", "footnotesize"}


@pytest.fixture(scope="module")
def made_up(made_up_run: Path) -> RunData:
    return read_run(made_up_run)


def latex_rows(text: str) -> list[list[str]]:
    """The cells of a table's rows; fails unless every special character is escaped."""
    body = text[text.index("\\toprule") : text.index("\\bottomrule")]
    lines = [line for line in body.splitlines() if line.endswith("\\\\")]
    rows = [re.split(r"(?<!\\)&", line.removesuffix("\\\\")) for line in lines]
    for cell in (cell for row in rows for cell in row):
        assert set(re.findall(r"\\([a-zA-Z]+)", cell)) <= COMMANDS, cell
        bare = re.sub(r"\\[a-zA-Z]+|\\[&%$#_{}]", "", cell)
        assert not set(bare) & set('\\&%$#_~^<>|"`'), cell
        assert bare.count("{") == bare.count("}"), cell
        assert not cell.strip().startswith(("[", "*")), cell
    return [[cell.strip() for cell in row] for row in rows]


def command(*arguments: object) -> tuple[int, bytes]:
    result = CliRunner().invoke(build_app(), ["export", *map(str, arguments)])
    if isinstance(result.exception, ValueError):
        return 2, str(result.exception).encode()
    return result.exit_code, result.stdout_bytes


@pytest.mark.parametrize("run", ["quick", "zoo-speed"])
def test_csv_is_the_summary(run: str) -> None:
    data = read_run(PUBLISHED / run)
    frame = pd.read_csv(io.BytesIO(export(data, "csv")))
    pd.testing.assert_frame_equal(frame, pd.read_csv(io.StringIO(summary(data).to_csv(index=False))))
    assert len(frame) > 100


@pytest.mark.parametrize("run", ["quick", "decode-speed"])
def test_json_holds_the_run(run: str) -> None:
    data = read_run(PUBLISHED / run)
    document = json.loads(export(data, "json"), parse_constant=lambda name: pytest.fail(name))
    assert document["schema_version"] == 1
    assert document["results_sha256"] == results_digest(PUBLISHED / run)
    assert len(document["numbers"]) == len(summary(data))
    assert document["run"]["environment"]["source"] == data.environment["source"]
    assert {score["layout"] for finding in document["findings"] for score in finding["scores"]} == set(data.layouts)


def test_the_scoreboard_in_latex_marks_the_best(made_up: RunData) -> None:
    text = export(made_up, "latex").decode()
    header, *rows = latex_rows(text)
    assert [row[0] for row in rows] == [latex(label) for label in LAYOUTS]
    assert {len(row) for row in rows} == {len(header)}
    columns = list(zip(*rows))
    assert any("\\textbf" in cell for column in columns[1:] for cell in column)
    speed = next(column for name, column in zip(header, columns) if name.startswith("Forward pass"))
    assert [cell.startswith("\\textbf") for cell in speed] == [label == "swa" for label in LAYOUTS]
    assert re.fullmatch(r"\\textbf\{[\d.]+ k tokens/s\} \{\\footnotesize \{\[\}.* k\{\]\}\}", speed[0])
    assert "not taught" in rows[0][2] and "\\textbf" not in rows[0][2]
    assert text.count("\\begin{tabular}") == text.count("\\end{tabular}") == 1


@pytest.mark.parametrize("table", ["models", "solve", "summary"])
def test_any_table_in_latex_and_markdown_is_escaped(made_up: RunData, table: str) -> None:
    rows = latex_rows(export(made_up, "latex", table).decode())
    assert len({len(row) for row in rows}) == 1 and len(rows) > 1
    text = export(made_up, "markdown", table).decode()
    assert "<script" not in text
    assert len({line.replace("\\|", "").count("|") for line in text.splitlines()}) == 1


@pytest.mark.parametrize("label", ["[3pt] a", "*b", "50% & $x_1^2$ #{~}", "\\input{/etc/passwd}", "a\nb\x00", HOSTILE])
def test_hostile_labels_are_text_in_latex(label: str) -> None:
    latex_rows(f"\\toprule\n{latex(label)} & 1 \\\\\n\\bottomrule")
    assert "\n" not in latex(label) and "\x00" not in latex(label)


def test_tables_of_the_page_are_found_by_name(made_up: RunData) -> None:
    rows = list(csv.reader(io.StringIO(export(made_up, "csv", "scoreboard").decode())))
    assert [row[0] for row in rows[1:]] == list(LAYOUTS)
    with pytest.raises(ValueError, match=r"it has summary, scoreboard, .*models"):
        export(made_up, "csv", "../etc/passwd")
    with pytest.raises(ValueError, match="of the whole run"):
        export(made_up, "json", "summary")


def test_parquet_without_pyarrow_says_what_to_install(made_up: RunData, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(RunError, match=r"mixerzoo\[parquet\]"):
        export(made_up, "parquet")


def test_parquet_holds_the_summary(made_up: RunData) -> None:
    pytest.importorskip("pyarrow", reason="pyarrow is 50 MB and no part of the test extra")
    frame = pd.read_parquet(io.BytesIO(export(made_up, "parquet")))
    assert list(frame["value"].dropna()) == list(summary(made_up)["value"].dropna())


# --- BibTeX ---


def test_bibtex_of_all_mixers_is_read_by_pybtex() -> None:
    cards = {name: vars(mixer_card(name)) for name in list_mixers()}
    entries = parse_string(bibtex(cards), "bibtex").entries
    papers = {card["paper"] for card in cards.values()} - {"-"}
    assert len(entries) == len(papers) > 40
    assert all(entry.persons["author"] and entry.fields["year"] for entry in entries.values())
    mamba = entries["gu2023mamba"]
    assert [str(person) for person in mamba.persons["author"]] == ["{Gu}", "{Dao}"]
    assert mamba.fields["eprint"] == "2312.00752" and mamba.fields["archivePrefix"] == "arXiv"
    assert [str(p) for p in entries["kimiteam2025kimi"].persons["author"]] == ["{Kimi Team}", "others"]
    assert sum(entry.fields.get("eprint") == "2405.04517" for entry in entries.values()) == 1  # of mlstm and slstm


def test_a_mixer_without_a_paper_has_a_comment_and_no_entry() -> None:
    text = bibtex({"identity": {"paper": "-", "arxiv": None, "year": 2026}, "mine": {"paper": None}})
    assert text == "% identity: no paper\n\n% mine: no paper\n"


def test_bibtex_of_hostile_cards_holds_one_entry_each() -> None:
    cards = {
        "a@misc{evil,": {"paper": "Title, with a comma} @misc{x, title={y", "arxiv": "1}", "year": "20%"},
        "b": {"paper": "Ünal et al., 50 % of $x$", "arxiv": None, "year": 2026},
        "c": {"paper": "Ünal et al., 50 % again", "arxiv": None, "year": 2026},
        "d": {"paper": "Ünal et al., 50 % more: again", "arxiv": None, "year": 2026},
    }
    text = bibtex(cards)
    entries = parse_string(text, "bibtex").entries
    assert len(entries) == 4
    assert "unal2026again" in entries and "unal2026more" in entries
    titled = next(entry for entry in entries.values() if entry.fields["year"].startswith("20\\"))
    assert "author" not in titled.persons


def test_bibtex_of_a_run_names_its_mixers(made_up: RunData) -> None:
    text = export(made_up, "bibtex").decode()
    assert {"fwpkm", "gated_deltanet", "ttt_linear"} <= {w.strip("%, ") for w in re.split(r"[\n,]", text)}
    parse_string(text, "bibtex")


# --- The command ---


def test_the_command_writes_a_file_or_standard_output(made_up_run: Path, tmp_path: Path) -> None:
    code, content = command(PUBLISHED / "decode-speed", "--format", "markdown")
    assert code == 0 and content.startswith(b"| Layout |")
    out = tmp_path / "new" / "table.tex"
    assert command(made_up_run, "--format", "latex", "--out", out)[0] == 0
    assert "\\bottomrule" in out.read_text(encoding="utf-8")
    assert [path.name for path in out.parent.iterdir()] == ["table.tex"]


def test_runs_that_cannot_be_read_are_errors(made_up_run: Path, tmp_path: Path) -> None:
    code, said = command(tmp_path, "--format", "csv")
    assert code == 2 and b"holds no run" in said
    damaged = tmp_path / "damaged"
    shutil.copytree(made_up_run, damaged)
    with (damaged / "results.jsonl").open("a") as file:
        file.write("not JSON\n")
    code, said = command(damaged, "--format", "json")
    assert code == 2 and b"is not JSON" in said
    empty = write_run(tmp_path / "empty", [])
    code, said = command(empty, "--format", "latex")
    assert code == 2 and b"no scoreboard" in said
    assert json.loads(command(empty, "--format", "json")[1])["numbers"] == []


def test_an_interrupted_run_with_one_seed_is_exported(tmp_path: Path) -> None:
    lines = [line for line in made_up_lines() if line.seed == 0 and line.measure != "perplexity"]
    cut = write_run(tmp_path / "cut", lines[: len(lines) // 4], planned(lines, final=False))
    latex_rows(export(read_run(cut), "latex").decode())
    assert len(pd.read_csv(io.BytesIO(export(read_run(cut), "csv")))) > 10
