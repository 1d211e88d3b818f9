import html
import json
import os
import re
import subprocess
import sys
import webbrowser
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from mixerzoo.benchmarks.runs import Run, RunError
from mixerzoo.reports import write_report
from mixerzoo.reports.command import report
from mixerzoo.reports.formats import bytes_, markdown, percent_interval, seconds, si
from mixerzoo.reports.page import _content, parts
from mixerzoo.reports.statistics import Interval
from mixerzoo.reports.tables import read_run

from .conftest import HOSTILE

MakeRun = Callable[..., Path]


class Page(HTMLParser):
    """What a browser would make of a page: tags with attributes, scripts, and the text of the rest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.text = ""
        self._inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts[-1] += data
        elif self._inside != "style":
            self.text += data


@pytest.fixture(scope="module")
def page(made_up_report: Path) -> Page:
    return Page(made_up_report.read_text(encoding="utf-8"))


def test_a_report_is_a_page_markdown_csv_and_charts(made_up_report: Path) -> None:
    folder = made_up_report.parent
    assert made_up_report.is_absolute() and (folder / "report.md").is_file()
    drawn = {f.stem for f in (folder / "figures").glob("*.svg")}
    recall = {"recall", "recall-state", "recall-length", "recall-load", "recall-passes", "recall-depth", "recall-map"}
    taught = {"solve", "training", "training-2", "learning", "sweep", "gates", "slots"}
    assert drawn == recall | taught | {"speed", "latency", "memory", "state", "trade-off", "perplexity"}
    assert {f.stem for f in (folder / "figures").glob("*.png")} == drawn
    assert (folder / "figures" / "recall.png").read_bytes().startswith(b"\x89PNG")
    tables = {file.stem for file in (folder / "tables").iterdir()}
    assert tables >= {"failures", "missing", "tuning", "training", "recall"}
    assert not tables & {"op_speed", "op_ratios", "answers"}  # not measured in this run; too long
    assert not re.search(r"[01rw]{16}", (folder / "tables" / "recall.csv").read_text(encoding="utf-8"))


def test_scripts_on_the_page_are_ours_alone(page: Page) -> None:
    data = [attrs for tag, attrs in page.tags if tag == "script" and attrs.get("type") == "application/json"]
    assert len(page.scripts) == len(data) + 2 and len(data) == 21
    assert not [attrs for tag, attrs in page.tags if tag == "script" and "src" in attrs]
    assert not [tag for tag, attrs in page.tags if "onerror" in attrs or tag in ("b", "i")]
    assert '</script><script>alert("label")</script> *bold*' in page.text
    assert "<img src=x onerror=alert(1)>" in page.text


def test_chart_data_in_the_page_is_whole(page: Page) -> None:
    for script, count in zip(page.scripts, (7, 7, 7, 5, 5)):  # tokens to solve, losses, then what the taught reached
        rows = [row for rows in json.loads(script)["datasets"].values() for row in rows if "layout" in row]
        layouts = {row["layout"] for row in rows}
        assert len(layouts) == count and any(name.startswith("</script>") for name in layouts)
        assert "<" not in script


def test_nothing_on_the_page_is_fetched(page: Page) -> None:
    addresses = [attrs.get(name) or "" for _, attrs in page.tags for name in ("src", "href") if name in attrs]
    assert addresses and all(a.startswith(("#", "data:")) for a in addresses)


def test_the_page_is_accessible(page: Page) -> None:
    images = [attrs for tag, attrs in page.tags if tag == "img"]
    assert len(images) == 20 and all(len(attrs["alt"] or "") > 20 for attrs in images)
    tables = [attrs for tag, attrs in page.tags if tag == "table"]
    assert len(tables) == len([tag for tag, _ in page.tags if tag == "caption"])
    assert all("scope" in attrs for tag, attrs in page.tags if tag == "th")
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    anchors = {(attrs.get("href") or "")[1:] for tag, attrs in page.tags if tag == "a"}
    assert {"verdict", "training", "recall", "failures", "repeat", "method"} <= anchors & set(ids)


def test_the_page_says_where_the_numbers_come_from(page: Page) -> None:
    for text in (
        "swa was not taught: 0 of 3 seeds reached 95 % at 256 tokens, 16 needles, within 13.1 M tokens.",
        "0123456789abcdef0123456789abcdef01234567",
        "with uncommitted changes",
        "Example CPU <b>9000</b>",
        "suite.yaml --out",
        "8 of 409 cases failed",
        "out of memory",
        "Python 3.11 standard library (9.00 MB to train on, 1.00 MB held out",
        "triton",
    ):
        assert text in page.text or text in html.unescape(page.text), text


def test_markdown_cannot_be_broken_by_names(made_up_report: Path) -> None:
    text = (made_up_report.parent / "report.md").read_text(encoding="utf-8")
    assert "<script>" not in text and "&lt;script&gt;" in text
    widths: dict[str, int] = {}
    for block in re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE):
        cells = {len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}
        assert len(cells) == 1, block
        widths[block] = cells.pop()
    assert len(widths) > 20
    assert "![How far back each layout recalls 64 needles](figures/recall.svg)" in text


def test_an_empty_run_says_that_there_is_nothing(make_run: MakeRun) -> None:
    page = Page(write_report(make_run(lambda line: False)).read_text(encoding="utf-8"))
    assert "No case has a result yet" in page.text and "No case failed." in page.text
    assert "The suite asks for this, but no case of it has a result." in page.text
    assert "Planned cases that have no result yet" in page.text
    assert page.scripts == []


def test_a_partial_run_shows_what_it_has(make_run: MakeRun) -> None:
    kept = lambda line: line.measure == "memory" and line.layout in ("swa", "softmax")  # noqa: E731
    folder = make_run(kept, measures=[{"measure": "memory", "lengths": [256], "modes": ["forward"], "batch": 1}])
    (folder / "environment.json").unlink()
    (folder / "figures").mkdir()
    (folder / "figures" / "recall.svg").write_text("left by an earlier report")
    page = Page(write_report(folder).read_text(encoding="utf-8"))
    assert "No case failed." in page.text
    assert "Smallest state" in page.text and "commit not known" in page.text
    assert {f.name for f in (folder / "figures").glob("*.svg")} == {"memory.svg", "state.svg"}


def test_a_gpu_is_named_and_clocks_that_were_held_down_are_a_warning(make_run: MakeRun) -> None:
    folder = make_run(lambda line: False)
    page = Page(write_report(folder).read_text(encoding="utf-8"))
    assert "device cpu" in page.text and "held down" not in page.text  # a run of before it was noted
    run = Run(folder)
    moment = {"index": 1, "sm_clock_mhz": 1200, "clock_reasons": ["sw_power_cap"]}
    start = {"started": "2026-01-02", "ended": "2026-01-03", "before": [], "after": [moment]}
    finished = [{**start, "held_down": ["sw_power_cap", "hw_slowdown"]}, {**start, "held_down": []}, {"ended": "now"}]
    gpu = {"index": 1, "name": "Example GPU", "uuid": "GPU-1"}
    environment = {**run.environment(), "device": "cuda:1", "gpu": gpu, "finished": finished}
    run.write_environment(environment)
    page = Page(write_report(folder).read_text(encoding="utf-8"))
    warning = "The clock of the GPU was held down (sw power cap and hw slowdown) in what was run from 2026-01-02"
    for text in (page.text, (folder / "report.md").read_text(encoding="utf-8")):
        assert text.count(warning) == 1 and "device cuda:1 (Example GPU)" in text
    assert "finished[0].after[0].sm clock mhz" in page.text


def test_backends_that_were_proven_where_the_run_was_made_are_a_table(make_run: MakeRun) -> None:
    folder = make_run(lambda line: False)
    run = Run(folder)
    right: dict[str, Any] = {"op": "recurrence", "backend": "fla", "variant": "beta", "dtype": "bfloat16"}
    right |= {"widths": [64, 128], "outcome": "right", "backward": "right", "detail": "", "chosen": [13, 14]}
    wrong = {**right, "dtype": "float32", "outcome": "wrong", "backward": None, "chosen": [0, 0], "detail": HOSTILE}
    found = {"rows": [right, wrong], "unavailable": [["attention", "flex", "it is not installed"]], "fastest": {}}
    run.write_environment({**run.environment(), "doctor": found})
    table = next(t for part in parts(read_run(folder)) for t in part.tables if t.name == "doctor")
    assert [row[4:] for row in table.rows] == [
        ["64, 128", "right", "right", "13 of 14", ""],
        ["64, 128", "wrong", "–", "–", HOSTILE],
        ["", "cannot run", "–", "–", "it is not installed"],
    ]
    page = Page(write_report(folder).read_text(encoding="utf-8"))
    assert "Backends proven on this machine" in page.text and HOSTILE in page.text
    assert "doctor.rows" not in page.text  # told once
    run.write_environment({**run.environment(), "doctor": {"skipped": "--no-doctor"}})
    page = Page(write_report(folder).read_text(encoding="utf-8"))
    assert "Backends proven" not in page.text and "doctor.skipped" in page.text


def test_the_page_says_in_which_precision_it_was_measured(make_run: MakeRun) -> None:
    folder = make_run(lambda line: line.measure == "memory" and line.layout == "swa")
    run = Run(folder)
    with run.locked() as results:
        for line in run.results():
            known = {"precision": "bfloat16", "tf32": line.parameters["modes"] == ["train"]}
            results.append(line.model_copy(update={"parameters": {**line.parameters, **known}}))
    said = dict(_content(read_run(folder), [])["machine"])["precision"]
    assert said == "bfloat16 (memory); bfloat16 with TF32 (memory)"


def test_the_command_prints_the_path_and_opens_the_page(
    make_run: MakeRun, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    monkeypatch.setattr(webbrowser, "open", opened.append)
    folder = make_run(lambda line: False)
    report(folder)
    assert str(folder.resolve() / "report.html") in capsys.readouterr().out and not opened
    report(folder, open_page=True)
    assert opened == [(folder.resolve() / "report.html").as_uri()]


def test_the_command_refuses_a_folder_without_a_run(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="holds no run"):
        report(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_reports_never_import_torch(make_run: MakeRun) -> None:
    code = (
        "import sys; from pathlib import Path; from mixerzoo.reports import read_run; import mixerzoo.reports.page; "
        f"read_run(Path({str(make_run(lambda line: line.measure == 'memory'))!r})); "
        "loaded = [m for m in sys.modules if m == 'torch' or m.startswith(('mixerzoo.mixers', 'mixerzoo.models'))]; "
        "sys.exit(f'imported {loaded}' if loaded else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=dict(os.environ))
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (si(12_345), "12.3 k"),
        (si(999.6), "1.00 k"),
        (si(0), "0"),
        (si(512, "B"), "512 B"),
        (bytes_(1_234_567_890), "1.23 GB"),
        (seconds(0.00123), "1.23 ms"),
        (seconds(200), "3 min 20 s"),
        (seconds(7500), "2 h 5 min"),
        (si(None), "–"),
        (si(float("nan")), "–"),
        (percent_interval(Interval(float("nan"), 0, 1)), "–"),
        (markdown("a_b _c_ [x](y)\n1. <b> | `d`"), "a_b \\_c\\_ [x\\](y) 1. &lt;b&gt; \\| \\`d\\`"),
        (markdown("1. first"), "1\\. first"),
        (markdown("3.3 %"), "3.3 %"),
    ],
)
def test_numbers_and_names_are_written_well(written: str, expected: str) -> None:
    assert written == expected
