"""The site of runs: extended, never broken; what it says is what the runs say."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit
from xml.etree import ElementTree

import pytest
from mixerzoo.benchmarks.runs import Run, RunError, results_digest
from mixerzoo.reports import publish as publish_module
from mixerzoo.reports.finding import Finding, Score
from mixerzoo.reports.publish import publish
from mixerzoo.reports.scoreboard import scoreboard
from mixerzoo.reports.site import place
from mixerzoo.reports.site.boards import boards, sort_value
from mixerzoo.reports.site.feed import ATOM
from mixerzoo.reports.site.history import history_table, pasts
from mixerzoo.reports.site.names import page_name, safe_name
from mixerzoo.reports.site.run import RAW, read_site_run

from .conftest import HOSTILE, made_up_lines, planned, write_run

PUBLISHED = Path(__file__).parents[2] / "reports" / "published"
HOSTILE_FOLDER = "<b>..%2F&amp; \u202egpj.run"


def variant(to: Path, number: int = 0, **environment: Any) -> Path:
    """A run like the published decode-speed, with results and a date of its own."""
    to.mkdir(parents=True)
    for name in RAW:
        shutil.copy(PUBLISHED / "decode-speed" / name, to / name)
    lines = [json.loads(line) for line in (to / "results.jsonl").read_text(encoding="utf-8").splitlines()]
    lines[0]["seconds"] += number
    (to / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    said = json.loads((to / "environment.json").read_text(encoding="utf-8"))
    said |= {"schema_version": 2, "cards": {}, "layout_mixers": {}}  # which version 1 would look up with torch
    said |= {"started": f"2026-02-{number + 1:02}T12:00:00+00:00", **environment}
    (to / "environment.json").write_text(json.dumps(said), encoding="utf-8")
    return to


def tree(folder: Path) -> dict[str, str]:
    """Every file and folder with a digest of its content."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        for path in sorted(folder.rglob("*"))
    }


class Links(HTMLParser):
    """The links, the ids, the tags and the text of a page."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.ids: set[str] = set()
        self.tags: set[str] = set()
        self.text, self._inside = "", ""
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self._inside = tag
        for name, value in attrs:
            if name in ("href", "src") and value:
                self.links.append(value)
            if name == "id" and value:
                self.ids.add(value)
            assert not name.startswith("on"), (tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside not in ("script", "style"):
            self.text += data


def broken_links(site: Path) -> list[str]:
    """Links of all pages that can be reached from the front page and that lead nowhere."""
    pages: dict[Path, Links] = {}
    docs = site.resolve().parent / "docs.html"
    broken, waiting = [], [site / "index.html"] if (site / "index.html").is_file() else []
    while waiting:
        page = waiting.pop()
        if page in pages:
            continue
        pages[page] = Links(page)
        for link in pages[page].links:
            parts = urlsplit(link)
            if parts.scheme in ("data", "http", "https"):
                continue
            target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            if not target.is_file() or not (target == docs or target.is_relative_to(site.resolve())):
                broken.append(f"{page.name}: {link}")
            elif target.suffix == ".html":
                waiting.append(target)
    for page, found in pages.items():
        for link in found.links:
            parts = urlsplit(link)
            if parts.fragment and not parts.scheme:
                target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
                if target in pages and unquote(parts.fragment) not in pages[target].ids:
                    broken.append(f"{page.name}: {link}")
    return broken


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A published run with charts, two of one suite and machine, a hostile one, one that is not complete, a foreign."""
    folder = tmp_path_factory.mktemp("runs")
    lines = list(made_up_lines())
    kept = [line for line in lines if line.measure == "memory" and line.parameters["modes"] == ["forward"]]
    hostile = {"name": HOSTILE, "description": f"{HOSTILE} A sentence. Another one."}
    foreign = variant(folder / "other-tool", 8, foreign={"tool": HOSTILE, "file": "<i>x.json", "sha256": "0" * 64})
    incomplete = variant(folder / "incomplete", 9, machine={"cpu": "Other", "usable_cores": 1, "memory_bytes": 2**30})
    path = incomplete / "results.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-2]))
    return {
        "charts": PUBLISHED / "fwpkm-speed",
        "first": variant(folder / "first", 1),
        "second": variant(folder / "second", 2, source={"commit": "feed" * 10, "dirty": True}),
        "hostile": write_run(folder / HOSTILE_FOLDER, kept, planned(kept), **hostile),
        "incomplete": incomplete,
        "foreign": foreign,
    }


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, runs: dict[str, Path]) -> Path:
    """The site of `runs`; tests do not change it."""
    folder = tmp_path_factory.mktemp("site") / "public" / "runs"
    (folder.parent / "docs.html").parent.mkdir()
    (folder.parent / "docs.html").write_text("what all of it means")
    publish([*runs.values()], folder, home="https://example.org/zoo", docs="../docs.html")
    return folder


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("one")
    run = variant(folder / "one", 1)
    publish([run], folder / "site")
    return folder / "site", run


@pytest.fixture
def small(one: tuple[Path, Path], tmp_path: Path) -> tuple[Path, Path]:
    """A site of one small run, and that run."""
    shutil.copytree(one[0], tmp_path / "site")
    return tmp_path / "site", one[1]


# --- What it says ---


def test_every_link_of_the_site_resolves(site: Path) -> None:
    assert broken_links(site) == []
    assert {"index.html", "feed.atom", "manifest.json", "assets/charts.js"} <= set(tree(site))


def test_a_run_is_there_with_its_report_and_the_very_bytes_of_its_data(site: Path, runs: dict[str, Path]) -> None:
    for name, run in (("fwpkm-speed", runs["charts"]), ("second", runs["second"])):
        there = site / "runs" / name
        for raw in RAW:
            assert (there / raw).read_bytes() == (run / raw).read_bytes()
        assert {"report.html", "report.md", "summary.csv", "tables"} <= {path.name for path in there.iterdir()}
        assert results_digest(run) in Links(site / "index.html").text
    page = (site / "runs" / "second" / "report.html").read_text(encoding="utf-8")
    assert "mixerzoo run runs/second/suite.yaml" in page and str(site) not in page and ".publish-" not in page


def test_the_manifest_says_what_is_there(site: Path, runs: dict[str, Path]) -> None:
    manifest = json.loads((site / "manifest.json").read_text(encoding="utf-8"))
    entries = {entry["name"]: entry for entry in manifest["runs"]}
    assert manifest["schema_version"] == 1 and manifest["home"] == "https://example.org/zoo/"
    assert set(entries) == {path.name for path in (site / "runs").iterdir()} and len(entries) == len(runs)
    assert entries["second"]["results_sha256"] == results_digest(runs["second"])
    assert entries["second"]["dirty"] and entries["second"]["commit"] == "feed" * 10
    assert entries["second"]["machine"] == "AMD EPYC, 2 cores, 24 GiB" and entries["second"]["suite"] == "decode-speed"
    assert [name for name, entry in entries.items() if entry["foreign"]] == ["other-tool"]
    assert [name for name, entry in entries.items() if not entry["complete"]] == ["incomplete"]


def test_the_index_says_of_each_run_what_it_is_and_what_it_found(site: Path) -> None:
    page = Links(site / "index.html")
    assert "The op of FwPKM at the released sizes" in page.text and "commit c4a89c502a6c" in page.text
    assert "12 of 14 met" in page.text and "2026-11-25 17:31 UTC" in page.text
    assert "not complete: 2 of 14 planned cases have no result" in page.text and "uncommitted changes" in page.text
    assert any(re.fullmatch(r"runs/fwpkm-speed/figures/[\w-]+\.svg", link) for link in page.links)
    assert page.text.index("Runs, newest first") < page.text.index("Measured by other tools\nTaken over")


def test_hostile_names_stay_text(site: Path) -> None:
    (folder,) = [path for path in (site / "runs").iterdir() if path.name.startswith("b")]
    assert re.fullmatch(r"[\w.-]+", folder.name) and ".." not in folder.name.replace("..-", "")
    suite = page_name(HOSTILE)
    for page in (site / "index.html", site / "suites" / f"{suite}.html", site / "history" / f"{suite}.html"):
        found = Links(page)
        assert HOSTILE in found.text and not {"b", "i", "img"} & (found.tags - {"img"}), page
        assert "<script>alert" not in page.read_text(encoding="utf-8")
    assert HOSTILE in (site / "history" / f"{suite}.csv").read_text(encoding="utf-8").replace('""', '"')


def test_a_leaderboard_shows_the_scores_of_the_newest_complete_run(site: Path, runs: dict[str, Path]) -> None:
    page = Links(site / "suites" / "decode-speed.html")
    first, second = page.text.index("commit c4a89c502a6c"), page.text.index("commit feedfeedfeed")
    assert second < first and page.text.index("Other runs on this machine") < first  # newest first, older listed
    run = read_site_run(runs["second"], "second", "second")
    board = scoreboard(run.data, run.findings)
    assert len(board.rows) == 14 and board.questions[0].topic
    for row in board.rows:
        assert row.layout in page.text and all(cell.text in page.text for cell in row.scores if cell)
    assert "Other, 1 core, 1 GiB" in page.text  # the other machine, with its incomplete run
    assert "Not ranked with ours" in page.text and page.text.count("other-tool") == 1


def findings_of(*values: float | None) -> list[Finding]:
    scores = tuple(Score(f"layout {i}", "x" if v is not None else "not taught", v) for i, v in enumerate(values))
    told = Finding("Recall", "layout 0", "1", "It.", column="Recall", scores=scores)
    return [told, Finding("Nothing to rank", None, "", "Open.")]


def test_a_score_without_a_number_is_sorted_last() -> None:
    told, _ = findings_of(0.5, None, float("nan"))
    assert [sort_value(score) for score in (*told.scores, None)] == ["0.5", "", "", ""]


def test_an_incomplete_run_does_not_displace_a_complete_one(tmp_path: Path) -> None:
    old, new = variant(tmp_path / "old", 1), variant(tmp_path / "new", 2)
    read = [read_site_run(folder, folder.name, folder) for folder in (old, new)]
    assert [board.run.name for board in boards(read)] == ["new"]
    results = new / "results.jsonl"
    results.write_bytes(b"".join(results.read_bytes().splitlines(keepends=True)[:3]))
    torn = read_site_run(new, "new", new)
    (board,) = boards([read[0], torn])
    assert board.run.name == "old" and [run.name for run in board.earlier] == ["new"]
    assert boards([torn])[0].run.name == "new"


def test_the_history_has_a_point_for_each_run_of_a_machine(site: Path, runs: dict[str, Path]) -> None:
    read = [read_site_run(runs[name], name, name) for name in ("second", "first", "incomplete")]
    table = history_table(read)
    assert list(dict.fromkeys(table["run"])) == ["first", "second", "incomplete"]
    other, both = pasts(read)[::-1] if pasts(read)[0].machine.startswith("AMD") else pasts(read)
    assert [run.name for run in both.runs] == ["first", "second"] and len(other.runs) == 1
    for figure in both.figures:
        (data,) = figure.spec["datasets"].values()
        own = table[table["run"].isin(["first", "second"])]
        own = own[own["quantity"].str.replace("_", " ") == figure.title.partition(": ")[2]]
        assert sorted(row["value"] for row in data) == sorted(own["value"].dropna())
        assert {row["when"].split("\n")[1] for row in data} == {"c4a89c502", "feedfeedf+"}
    text = Links(site / "history" / "decode-speed.html").text
    assert "There is one run so far" in text and "2 runs, " in text
    assert "other-tool" not in (site / "history" / "decode-speed.csv").read_text(encoding="utf-8")


def test_the_history_says_when_the_suite_itself_changed(tmp_path: Path) -> None:
    old, new = variant(tmp_path / "old", 1), variant(tmp_path / "new", 2)
    suite = Run(new).suite()
    Run(new).write_suite({**suite, "seeds": [7], "description": "Said in other words."})
    (past,) = pasts([read_site_run(folder, folder.name, folder) for folder in (old, new)])
    assert past.changed == ["Between old and new the suite itself changed: seeds."]


def test_the_feed_is_atom(site: Path) -> None:
    root = ElementTree.parse(site / "feed.atom").getroot()
    names = {"a": ATOM}
    assert root.tag == f"{{{ATOM}}}feed"
    entries = root.findall("a:entry", names)
    assert len(entries) == 6
    for element in (root, *entries):
        assert all(element.findtext(f"a:{tag}", "", names) for tag in ("id", "title", "updated"))
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", element.findtext("a:updated", "", names))
    assert root.findtext("a:author/a:name", "", names) and root.find("a:link[@rel='self']", names) is not None
    ids = [element.findtext("a:id", "", names) for element in (root, *entries)]
    assert len(set(ids)) == len(ids) and all(one.startswith("urn:uuid:") for one in ids)
    dates = [entry.findtext("a:updated", "", names) for entry in entries]
    assert dates == sorted(dates, reverse=True) and root.findtext("a:updated", "", names) == dates[0]
    for entry in entries:
        href = entry.find("a:link", names).get("href")
        assert href.startswith("https://example.org/zoo/runs/")
        assert (site / href.removeprefix("https://example.org/zoo/")).is_file()
    assert HOSTILE in [entry.find("a:category", names).get("term") for entry in entries]


def test_control_characters_do_not_break_the_feed(tmp_path: Path) -> None:
    machine = {"cpu": "C\x00P\x1bU\x0b ]]> \ufffe", "usable_cores": 1}
    publish([variant(tmp_path / "run", 1, machine=machine, started="yesterday")], tmp_path / "site")
    root = ElementTree.parse(tmp_path / "site" / "feed.atom").getroot()
    assert root.findtext(f"{{{ATOM}}}entry/{{{ATOM}}}title") == "run on C\ufffdP\ufffdU\ufffd ]]> \ufffd, 1 core"
    assert "date not known" in Links(tmp_path / "site" / "index.html").text


def test_micro_benchmarks_have_a_page_that_stays(tmp_path: Path) -> None:
    from .test_micro_history import record

    history, site = tmp_path / "history.jsonl", tmp_path / "site"
    lines = [record("a", 1, 0.02), record("b", 2, 0.03)]
    history.write_text("".join(f"{json.dumps(line.model_dump())}\n" for line in lines), encoding="utf-8")
    publish([variant(tmp_path / "run", 1)], site, micro=history)
    assert "slower" in Links(site / "micro.html").text and "micro.html" in Links(site / "index.html").links
    before = tree(site)
    publish([variant(tmp_path / "other", 2)], site)
    assert tree(site)["micro.html"] == before["micro.html"] and broken_links(site) == []
    history.write_text("nonsense\n", encoding="utf-8")
    before = tree(site)
    with pytest.raises(ValueError, match="not JSON"):
        publish([], site, micro=history)
    assert tree(site) == before


# --- How it grows ---


def test_publishing_twice_changes_nothing(site: Path, runs: dict[str, Path]) -> None:
    before = tree(site), {path: path.stat().st_mtime_ns for path in site.rglob("*") if path.is_file()}
    done = publish([*runs.values()], site)
    assert not done.added and len(done.unchanged) == len(runs)
    assert (tree(site), {path: path.stat().st_mtime_ns for path in site.rglob("*") if path.is_file()}) == before


def test_one_by_one_or_all_at_once_is_the_same_site(tmp_path: Path) -> None:
    folders = [variant(tmp_path / name, i) for i, name in enumerate(("a", "b"))]
    publish(folders, tmp_path / "all")
    for folder in reversed(folders):
        publish([folder], tmp_path / "each")
    ours, theirs = tree(tmp_path / "all"), tree(tmp_path / "each")
    assert {name for name in ours if ours[name] != theirs[name]} == {"manifest.json", "feed.atom"}  # the feed's id
    assert set(ours) == set(theirs)


def test_the_same_name_with_other_results_gets_a_suffix(small: tuple[Path, Path], tmp_path: Path) -> None:
    site, run = small
    other = variant(tmp_path / "elsewhere" / "ONE", 5)
    done = publish([other, run], site)
    assert done.added == [f"ONE-{results_digest(other)[:8]}"] and done.unchanged == ["one"]
    renamed = tmp_path / "renamed"
    shutil.copytree(run, renamed)
    assert publish([renamed, renamed], site).unchanged == ["one"]


@pytest.mark.parametrize("name", ["../up", "a/b", "..", ".hidden", "-rf", "", "\u0000", "\u202ex", "ü" * 300, "CON<>"])
def test_names_are_made_safe(name: str) -> None:
    for safe in (safe_name(name), page_name(name)):
        assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", safe)
    assert page_name(name) != page_name(f"{name} ") and page_name("Quick") != page_name("quick") == "quick"


def test_what_else_lies_in_the_folder_is_left_alone(small: tuple[Path, Path], tmp_path: Path) -> None:
    site, _ = small
    for name in ("docs/index.html", "suites/mine.html", "runs/notes/x.txt"):
        (site / name).parent.mkdir(parents=True, exist_ok=True)
        (site / name).write_text(name, encoding="utf-8")
    publish([variant(tmp_path / "notes", 3)], site)
    for name in ("docs/index.html", "suites/mine.html", "runs/notes/x.txt"):
        assert (site / name).read_text(encoding="utf-8") == name
    elsewhere = tmp_path / "docs"
    elsewhere.mkdir()
    (elsewhere / "index.html").write_text("The documentation", encoding="utf-8")
    with pytest.raises(RunError, match=r"did not make \(index.html\)"):
        publish([variant(tmp_path / "four", 4)], elsewhere)
    assert tree(elsewhere).keys() == {"index.html"}


def test_reports_are_made_anew_by_a_newer_mixerzoo(small: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    site, _ = small
    complete = tree(site)
    (site / "runs" / "one" / "report.html").write_text("an older page", encoding="utf-8")
    (site / "runs" / "one" / "tables" / "gone.csv").write_text("an older table", encoding="utf-8")
    publish([], site)
    assert tree(site) != complete  # the same mixerzoo does not look into reports that it made
    monkeypatch.setattr(publish_module, "maker", lambda: "newer")
    publish([], site)
    monkeypatch.undo()
    publish([], site)
    assert tree(site) == complete


# --- What goes wrong ---


def _replace(name: str, old: str, new: str) -> Callable[[Path], None]:
    def damage(run: Path) -> None:
        text = (run / name).read_text(encoding="utf-8")
        assert old in text
        (run / name).write_text(text.replace(old, new, 1), encoding="utf-8")

    return damage


DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "torn in the middle": (_replace("results.jsonl", '"layout":', '"lay\n'), "results.jsonl:1 is not JSON"),
    "no suite": (lambda run: (run / "suite.yaml").unlink(), "has no suite.yaml"),
    "no environment": (lambda run: (run / "environment.json").unlink(), "no environment.json"),
    "an environment that is no JSON": (_replace("environment.json", "{", "{{"), "environment.json is not a JSON"),
    "a suite that is no YAML": (_replace("suite.yaml", "name:", "name: ["), "is not a suite"),
    "no results": (lambda run: (run / "results.jsonl").unlink(), "no result yet"),
    "a newer version": (_replace("results.jsonl", '"schema_version": 1', '"schema_version": 99'), "version 99"),
    "a plan that is none": (_replace("plan.json", '"final"', '"finale"'), "plan.json is not a plan"),
    "metrics of another form": (_replace("results.jsonl", '"metrics": {', '"metrics": {"rows": 5, "x": {'), "1"),
    "no such folder": (shutil.rmtree, "has no suite.yaml"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_run_changes_nothing_and_is_named(small: tuple[Path, Path], tmp_path: Path, damage: str) -> None:
    site, _ = small
    before = tree(site)
    good, bad = variant(tmp_path / "good", 2), variant(tmp_path / "bad", 3)
    how, said = DAMAGES[damage]
    how(bad)
    with pytest.raises(RunError, match=said) as caught:
        publish([good, bad], site)
    assert str(bad) in str(caught.value) and str(good) not in str(caught.value)
    assert tree(site) == before
    with pytest.raises(RunError):
        publish([bad], tmp_path / "new" / "site")
    assert not (tmp_path / "new").exists()


def test_a_last_line_that_was_torn_is_passed_over(small: tuple[Path, Path], tmp_path: Path) -> None:
    site, _ = small
    run = variant(tmp_path / "killed", 2)
    with (run / "results.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"schema_version": 1, "case"')
    assert publish([run], site).added == ["killed"]
    assert (site / "runs" / "killed" / "results.jsonl").read_bytes() == (run / "results.jsonl").read_bytes()


def test_what_was_published_has_to_stay_as_it_was(small: tuple[Path, Path], tmp_path: Path) -> None:
    site, _ = small
    results = site / "runs" / "one" / "results.jsonl"
    text = results.read_text(encoding="utf-8")
    results.write_text(text.replace('"seconds": ', '"seconds": 1', 1), encoding="utf-8")
    with pytest.raises(RunError, match=r"runs/one: results.jsonl is not the one that was published"):
        publish([variant(tmp_path / "two", 2)], site)
    results.unlink()
    with pytest.raises(RunError, match=r"runs/one"):
        publish([variant(tmp_path / "three", 3)], site)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"schema_version": 99}, "version 99"),
        ({"pages": ["../../etc/passwd"]}, "lies outside"),
        ({"pages": 5}, "pages"),
        ({"runs": [{"name": "../x"}]}, "runs.0.name"),
    ],
)
def test_a_manifest_that_cannot_be_trusted_is_refused(
    small: tuple[Path, Path], change: dict[str, Any], said: str
) -> None:
    site, _ = small
    path = site / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **change}), encoding="utf-8")
    before = tree(site)
    with pytest.raises(RunError, match=said):
        publish([], site)
    assert tree(site) == before


def test_every_page_leads_to_the_documentation(site: Path) -> None:
    for name in ("index.html", "suites/fwpkm-speed.html", "history/fwpkm-speed.html"):
        (link,) = [link for link in Links(site / name).links if link.endswith("docs.html")]
        assert (site / name).parent.joinpath(link).resolve() == site.parent / "docs.html"


def test_an_address_has_to_be_one(tmp_path: Path) -> None:
    for home in ("example.org", "javascript:alert(1)", "https://", "https://example.org/?q=1"):
        with pytest.raises(ValueError, match="no address of a site"):
            publish([], tmp_path / "site", home=home)
    with pytest.raises(ValueError, match="leads to no documentation"):
        publish([], tmp_path / "site", docs="javascript:alert(1)")
    assert not (tmp_path / "site").exists()


def test_a_run_without_a_report_is_named_and_changes_nothing(
    small: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site, before = small[0], tree(small[0])

    def fail(folder: Path, named: Path) -> None:
        raise ZeroDivisionError("no rounds")

    monkeypatch.setattr(publish_module, "write_report", fail)
    with pytest.raises(RunError, match=r"other: no report can be made of it: ZeroDivisionError: no rounds"):
        publish([variant(tmp_path / "other", 2)], site)
    assert tree(site) == before


def test_killed_while_it_draws_it_changes_nothing(
    small: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site, before = small[0], tree(small[0])

    def killed(*_: object) -> None:
        raise BrokenProcessPool

    monkeypatch.setattr(ProcessPoolExecutor, "map", killed)
    with pytest.raises(RunError, match="was killed: did memory run out"):
        publish([variant(tmp_path / "one more", 2), variant(tmp_path / "another", 3)], site)
    assert tree(site) == before


class Stopped(BaseException):
    """As if the process ended here."""


def moves_of(patch: pytest.MonkeyPatch, stop_at: int | None = None) -> list[str]:
    """What is moved into a site meanwhile; before the move `stop_at` the publisher is as good as killed."""
    moved: list[str] = []
    move = os.replace

    def replace(source: Path, target: Path) -> None:
        if ".publish-" in str(target):  # a file of a report that is only prepared
            return move(source, target)
        if len(moved) == stop_at:
            patch.setattr(place.shutil, "rmtree", lambda folder: None)  # nobody tidies up after a kill
            raise Stopped
        moved.append(target.name)
        return move(source, target)

    patch.setattr(place.os, "replace", replace)
    return moved


def test_killed_at_any_moment_a_site_is_whole(small: tuple[Path, Path], tmp_path: Path) -> None:
    before, run = small[0], variant(tmp_path / "new", 2)
    Run(run).write_suite({**Run(run).suite(), "name": "another suite"})
    after = tmp_path / "after"
    shutil.copytree(before, after)
    with pytest.MonkeyPatch.context() as patch:
        moved = moves_of(patch)
        publish([run], after)
    old, new = tree(before), tree(after)
    assert moved[:2] == ["new", "manifest.json"] and moved[-1] == "index.html" and len(moved) > 6
    for stop in (1, 2, len(moved) // 2, len(moved) - 1):
        site = tmp_path / f"killed-{stop}"
        shutil.copytree(before, site)
        with pytest.MonkeyPatch.context() as patch, pytest.raises(Stopped):
            moves_of(patch, stop)
            publish([run], site)
        now = {name: digest for name, digest in tree(site).items() if not name.startswith(".publish-")}
        assert list(site.glob(".publish-*")) and all(now[name] in (old.get(name), new.get(name)) for name in now), stop
        assert now["index.html"] == old["index.html"] and broken_links(site) == [], stop
        publish([run] if stop == 1 else [], site)  # from the manifest on, it is known what to complete
        assert tree(site) == new, stop


def test_two_publishers_do_not_meet(small: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    site, run = small
    monkeypatch.setattr(place, "PATIENCE_SECONDS", 0.1)
    before = tree(site)
    with place.locked(site), pytest.raises(RunError, match="another `mixerzoo publish` is at work"):
        publish([run], site)
    assert tree(site) == before
    publish([run], site)


# --- The command ---


def test_the_command_publishes_and_names_what_is_damaged(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from importlib.metadata import EntryPoint

    from mixerzoo.benchmarks import cli

    announced = EntryPoint("publish", "mixerzoo.reports.command:publish", cli.COMMAND_GROUP)
    monkeypatch.setattr(cli, "entry_points", lambda group: [announced] if group == cli.COMMAND_GROUP else [])
    good, bad, site = variant(tmp_path / "good", 1), variant(tmp_path / "bad", 2), tmp_path / "site"
    (bad / "suite.yaml").unlink()

    def run(*arguments: str) -> tuple[int, str]:
        with pytest.raises(SystemExit) as ended:
            cli.main(["publish", *arguments, "--to", str(site)])
        captured = capsys.readouterr()
        return int(ended.value.code or 0), re.sub(r"\s+", "", captured.out + captured.err)

    code, said = run(str(good), str(bad))
    assert code == 2 and "/bad:" in said and "hasnosuite.yaml" in said and not site.exists()
    code, said = run(str(good))
    assert code == 0 and "addedgood" in said and (site / "index.html").is_file()
    assert run(str(good))[1].startswith("goodistherealready")


# --- In a browser ---


@pytest.mark.chromium
@pytest.mark.parametrize("width", [400, 1300])
@pytest.mark.parametrize("page", ["index.html", "suites/decode-speed.html", "history/fwpkm-speed.html"])
def test_pages_are_drawn_without_an_error_and_fit(browser: Any, site: Path, page: str, width: int) -> None:
    from selenium.webdriver.support.wait import WebDriverWait

    browser.get_log("browser"), browser.get_log("performance")
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    browser.get((site / page).as_uri())
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    if page.startswith("history"):
        drawn = "return document.querySelectorAll('.chart svg.marks').length"
        WebDriverWait(browser, 60).until(lambda b: b.execute_script(drawn) > 0)
        assert browser.execute_script("return document.querySelector('.chart select') !== null")
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    assert browser.get_log("browser") == []
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    requests = [m["params"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    urls = [r["request"]["url"] for r in requests if r["documentURL"].startswith("file:")]
    assert urls and all(re.match(r"(file|data|blob):", url) for url in urls)


@pytest.mark.chromium
def test_a_leaderboard_is_sorted_by_a_click(browser: Any, site: Path, runs: dict[str, Path]) -> None:
    browser.get((site / "suites" / "decode-speed.html").as_uri())
    table = "document.querySelector('table.board')"
    names = f"return [...{table}.tBodies[0].rows].map(row => row.cells[0].textContent)"
    click = f"{table}.tHead.rows[0].cells[1].querySelector('button').click();"
    run = read_site_run(runs["second"], "second", "second")
    board = scoreboard(run.data, run.findings)
    values = {row.layout: row.scores[0].value for row in board.rows if row.scores[0]}
    order = sorted(values, key=lambda layout: values[layout], reverse=board.questions[0].better == "more")
    assert browser.execute_script(names) == [row.layout for row in board.rows]
    assert browser.execute_script(click + names) == order
    assert browser.execute_script(click + names) == order[::-1]
