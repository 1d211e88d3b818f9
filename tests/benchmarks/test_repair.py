"""Damaged runs: reading says which line is damaged, repairing keeps every line that is not, and what was there."""

from __future__ import annotations

import shutil
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mixerzoo.benchmarks import cli
from mixerzoo.benchmarks.case import Case, Plan
from mixerzoo.benchmarks.executors.local import LocalExecutor
from mixerzoo.benchmarks.limits import Limits
from mixerzoo.benchmarks.live import Reporter
from mixerzoo.benchmarks.lock import FolderLock
from mixerzoo.benchmarks.repair import repair
from mixerzoo.benchmarks.result_lines import encode_line
from mixerzoo.benchmarks.runner import execute
from mixerzoo.benchmarks.runs import ResultLine, Run, RunError
from mixerzoo.benchmarks.schema import SCHEMA_VERSION
from mixerzoo.models.checksums import write_sums

CASES = [f"{number:012x}" for number in range(6)]
METRICS = {"text": 'ä\n "quoted", {"schema_version": 3, "case": "no"}', "rows": [{"case": "inner", "hits": "0110"}]}
ENVIRONMENT = {"schema_version": SCHEMA_VERSION, "device": "cpu", "machines": {}, "cards": {}, "layout_mixers": {}}


def line(case: str, **changes) -> ResultLine:
    values = {"case": case, "layout": "soft max", "measure": "speed", "parameters": {"device": "cpu"}, "seed": 0}
    return ResultLine(**{**values, "status": "ok", "seconds": 1.5, "metrics": METRICS, **changes})


def make(folder: Path) -> Run:
    run = Run(folder)
    run.write_suite({"name": "s", "layouts": {"soft max": "gla"}})
    run.write_environment({**ENVIRONMENT, "resumed": []})
    cases = [{"case": c, "layout": "soft max", "measure": "speed", "seed": 0, "what": "forward 64"} for c in CASES]
    run.write_plan({"final": True, "cases": cases})
    run.results_path.write_bytes(b"".join(encode_line(line(case).model_dump()) for case in CASES))
    return run


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return make(tmp_path / "run")


def files(run: Run) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in run.folder.iterdir() if path.is_file() and path.name != ".lock"}


def flip(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


def _answer(job: dict[str, Any], channel: Any) -> dict[str, Any]:
    return {}


def mixerzoo(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as caught:
        cli.main([str(word) for word in words])
    out, err = capsys.readouterr()
    return int(caught.value.code or 0), out, err


# --- Results ---


def test_a_whole_run_is_left_as_it_is(run: Run) -> None:
    before = files(run)
    assert repair(run).found == [] and files(run) == before
    run.results_path.write_bytes(run.results_path.read_bytes() + b'{"schema_version": 3, "cas')  # a kill does that
    before = files(run)
    assert repair(run).found == [] and files(run) == before
    shutil.copytree(Path(__file__).parents[2] / "reports" / "published" / "quick", run.folder, dirs_exist_ok=True)
    before = files(run)
    assert repair(run).found == [] and files(run) == before


WHOLE = b"".join(encode_line(line(case).model_dump()) for case in CASES)
LINES = WHOLE.splitlines(keepends=True)
FIRST, SIZE = LINES[0], len(LINES[0])
OTHER = encode_line(line("f" * 12, layout="another").model_dump())
NEWER = encode_line({**line("e" * 12).model_dump(), "schema_version": 99})
DAMAGES: dict[str, tuple[bytes, str, list[str], bool]] = {
    # the file, what is said of it, the cases that can be kept, and whether the rest is lost
    "a flipped bit": (flip(WHOLE, SIZE + 200), r":2 does not match its checksum", [CASES[0], *CASES[2:]], True),
    "a flipped bit in a checksum": (flip(WHOLE, 2 * SIZE - 5), ":2 does not match", [CASES[0], *CASES[2:]], True),
    "a lost checksum": (WHOLE.replace(b'"sha256"', b'"sha265"', 1), ":1 has lost its checksum", CASES[1:], True),
    "truncated in the middle": (LINES[0] + LINES[1][:300] + b"\n" + LINES[2], ":2 is not JSON", CASES[0:3:2], True),
    "a lost newline": (FIRST[:-1] + b"".join(LINES[1:]), ":1 does not match|:1 is not JSON", CASES, False),
    "binary after the end": (WHOLE + bytes(range(256)) * 3, ":7 is not JSON", CASES, False),
    "zeros after the end": (WHOLE + bytes(4096), ":7 is not JSON", CASES, False),
    "zeros before": (bytes(100) + WHOLE, ":1 ", CASES, False),
    "half JSON": (WHOLE + b'{"a": [1, 2\n', ":7 is not JSON", CASES, False),
    "other JSON": (WHOLE + b"[1]\n", ":7 is not a result line", CASES, False),
    "deep JSON": (WHOLE + b"[" * 100_000 + b"\n", ":7 is not JSON", CASES, False),
    "an empty line": (FIRST + b"\n" + b"".join(LINES[1:]), ":2 is not JSON", CASES, False),
    "a line and garbage": (FIRST[:-1] + b"\xff\x00}\n" + b"".join(LINES[1:]), ":1 is not JSON", CASES, False),
    "a line that begins anew": (FIRST[:99] + WHOLE, ":1 does not match", CASES, False),
    "a tail that holds a line": (WHOLE + FIRST[:9] + LINES[1][:-1], ":7 does not match", CASES, False),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_results_are_named_and_mended(
    run: Run, damage: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    content, said, kept, lost = DAMAGES[damage]
    run.results_path.write_bytes(content)
    for words in (("status", run.folder), ("report", run.folder)):
        code, _, err = mixerzoo(capsys, *words)
        assert code == 2 and f"`mixerzoo repair {run.folder}`" in err
    with pytest.raises(RunError, match=said):
        run.results()
    before = files(run)
    code, out, _ = mixerzoo(capsys, "repair", run.folder, "--dry-run")
    assert code == int(lost) and "results.jsonl:" in out and files(run) == before
    code, out, _ = mixerzoo(capsys, "repair", run.folder)
    assert code == int(lost), out
    assert [result.case for result in run.results()] == kept
    assert all(result == line(result.case) for result in run.results())
    assert (run.folder / "results.jsonl.damaged-1").read_bytes() == content
    for case in set(CASES) - set(kept) if lost else ():
        assert damage == "truncated in the middle" or f"lost: case {case}, soft max speed forward 64, seed 0" in out
    code, out, _ = mixerzoo(capsys, "repair", run.folder)
    assert code == 0 and "nothing is damaged" in out
    with run.locked() as store:
        store.append(line("a"))
    assert [result.case for result in run.results()] == [*kept, "a"]


def test_doubled_lines_and_those_of_another_run_are_taken_out(run: Run) -> None:
    again = encode_line(line(CASES[1], seconds=2.0).model_dump())  # it ran again: both lines stay
    run.results_path.write_bytes(WHOLE + FIRST + OTHER + again)
    found = repair(run)
    assert found.whole and run.results_path.read_bytes() == WHOLE + again
    assert [what.what for what in found.found[:2]] == [
        f"is there twice, case {CASES[0]}",
        "is of another run: the suite has no layout 'another'",
    ]
    assert [what.where for what in found.found] == ["results.jsonl:7", "results.jsonl:8", "results.jsonl"]


def test_a_damaged_line_of_a_case_that_has_another_loses_nothing(run: Run) -> None:
    run.results_path.write_bytes(flip(FIRST, 200) + WHOLE)
    assert repair(run).whole and run.results_path.read_bytes() == WHOLE


def test_lines_of_a_newer_version_are_left_alone(run: Run) -> None:
    content = WHOLE + NEWER + b"garbage\n"
    run.results_path.write_bytes(content)
    found = repair(run)
    assert not found.whole and "update it" in found.found[0].what and run.results_path.read_bytes() == content


def test_originals_are_never_overwritten(run: Run) -> None:
    for number in (1, 2, 3):
        run.results_path.write_bytes(WHOLE + b"%d\n" % number)
        repair(run)
        assert (run.folder / f"results.jsonl.damaged-{number}").read_bytes() == WHOLE + b"%d\n" % number
    assert run.results_path.read_bytes() == WHOLE


def test_a_run_at_work_is_not_repaired(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FolderLock, "patience_seconds", 0.0)
    with run.locked(), pytest.raises(RunError, match="another run is at work"):
        repair(run)
    with pytest.raises(RunError, match="holds no run"):
        repair(Run(run.folder / "elsewhere"))


# --- Other files ---


@pytest.mark.parametrize("content", [b"", b"\x00" * 40, b'{"schema', b"[1]", None], ids=repr)
def test_a_lost_environment_is_made_of_the_results_and_says_so(run: Run, content: bytes | None) -> None:
    where = {"name": "node", "kind": "a CPU"}
    run.results_path.write_bytes(WHOLE + encode_line(line("a", machine=where).model_dump()))
    run.write_suite({"name": "s"})
    run.environment_path.unlink()
    if content is not None:
        run.environment_path.write_bytes(content)
        with pytest.raises(RunError, match=r"environment\.json is not a JSON object.*mixerzoo repair"):
            run.environment()
    found = repair(run)
    assert not found.whole and "commit, versions and command are lost" in found.found[0].done
    environment = run.environment()
    assert environment["device"] == "cpu" and environment["machines"] == {"node": {"kind": "a CPU"}}
    assert date.fromisoformat(environment["rebuilt"])
    assert content is None or (run.folder / "environment.json.damaged-1").read_bytes() == content
    assert repair(run).found == []
    case, limits = Case("soft max", "gla", {}, "fake", {}, 0, "cpu", False), Limits(jobs=1)
    executor = LocalExecutor(limits, "cpu", _answer, preloaded=[])
    (result,) = execute(lambda _: Plan((case,)), run, {"name": "s"}, limits, Reporter(), executor, device="cpu")
    assert result.status == "ok" and "rebuilt" in run.environment() and len(run.results()) == 8


def test_an_environment_with_something_after_its_end_is_cut(run: Run) -> None:
    environment = run.environment()
    run.environment_path.write_bytes(run.environment_path.read_bytes() + b"\x00\xff{")
    assert repair(run).whole and run.environment() == environment


@pytest.mark.parametrize("content", [b"", b"name: [", b"\x00", b"- 1", b"\xff\xfe", None], ids=repr)
def test_a_lost_suite_cannot_be_made_anew_and_the_rest_is_mended(run: Run, content: bytes | None) -> None:
    run.suite_path.unlink()
    if content is not None:
        run.suite_path.write_bytes(content)
        with pytest.raises(RunError, match=r"suite\.yaml is damaged.*mixerzoo repair"):
            run.suite()
    run.results_path.write_bytes(WHOLE + b"garbage\n")
    found = repair(run)
    assert not found.whole and "copy the suite.yaml" in found.found[0].done
    assert run.results_path.read_bytes() == WHOLE
    assert not run.suite_path.exists() or run.suite_path.read_bytes() == content


@pytest.mark.parametrize("content", [b"", b"[1, 2]", b'{"final": true, "cases": [{"case": 1}]}'], ids=repr)
def test_a_damaged_plan_and_status_are_set_aside(run: Run, content: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    run.plan_path.write_bytes(content)
    (run.folder / "status.json").write_bytes(content)
    assert mixerzoo(capsys, "status", run.folder)[0] == 2
    found = repair(run)
    assert found.whole and [what.where for what in found.found] == ["plan.json", "status.json"]
    assert run.plan() is None and not (run.folder / "status.json").exists()
    assert (run.folder / "plan.json.damaged-1").read_bytes() == content
    assert mixerzoo(capsys, "status", run.folder)[0] == 0


def test_the_plan_of_a_suite_that_is_there_is_made_anew(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    shutil.copytree(Path(__file__).parents[2] / "reports" / "published" / "decode-speed", run.folder)
    before = run.plan()
    run.plan_path.write_text("{")
    found = repair(run)
    assert found.whole and "made anew of the suite" in found.found[0].done
    assert run.plan() == before


def test_what_killed_writers_left_is_removed(run: Run) -> None:
    left = [".plan.json.0123abcd-99.partial", ".environment.json.4711"]
    for name in left:
        (run.folder / name).write_text("half")
    (run.folder / ".mine.4711").write_text("somebody's")
    assert [what.where for what in repair(run).found] == sorted(left)
    assert not any((run.folder / name).exists() for name in left) and (run.folder / ".mine.4711").exists()


@pytest.mark.parametrize("name", ["suite.yaml", "environment.json", "results.jsonl"])
@pytest.mark.parametrize("content", [None, b"\x00"], ids=repr)
def test_a_damaged_run_does_not_go_on(run: Run, name: str, content: bytes | None) -> None:
    path = run.folder / name
    path.unlink() if content is None else path.write_bytes(content)
    if name == "results.jsonl":
        path.write_bytes(flip(WHOLE, 200))
    case, limits = Case("soft max", "gla", {}, "fake", {}, 0, "cpu", False), Limits(jobs=1)
    before = files(run)
    with pytest.raises(RunError, match=f"{name}.*`mixerzoo repair "):
        suite = {"name": "s", "layouts": {"soft max": "gla"}}
        execute(lambda _: Plan((case,)), run, suite, limits, Reporter(), LocalExecutor(limits, "cpu"), device="cpu")
    assert files(run) == before


def test_damaged_checkpoints_are_listed_and_left(run: Run) -> None:
    found: dict[str, Path] = {}
    for case, file in (("whole", "SHA256SUMS"), ("flipped", "SHA256SUMS"), ("resumed", "resume.sha256")):
        found[case] = run.checkpoint_folder(case) / "model"
        found[case].mkdir(parents=True)
        (found[case] / "weights.bin").write_bytes(bytes(1000))
        write_sums(found[case], ["weights.bin"], file)
    assert repair(run).found == []
    (found["flipped"] / "weights.bin").write_bytes(bytes(999) + b"x")
    (found["resumed"] / "resume.sha256").write_text("../../suite.yaml")
    before = sorted(path.read_bytes() for path in run.folder.rglob("*") if path.is_file())
    damaged = repair(run)
    assert [what.where for what in damaged.found] == ["checkpoints/flipped/model", "checkpoints/resumed/model"]
    assert not damaged.whole and "its SHA-256 is" in damaged.found[0].what
    assert sorted(path.read_bytes() for path in run.folder.rglob("*") if path.is_file()) == before


# --- Any damage ---


@st.composite
def damaged(draw: st.DrawFn) -> tuple[bytes, set[str]]:
    """Bytes of a results file, and the cases whose lines stand in it untouched."""
    lines = [*LINES]
    data = bytearray(WHOLE)
    kind = draw(st.sampled_from(["truncate", "flip", "insert", "duplicate", "reorder"]))
    if kind == "reorder":
        lines = draw(st.permutations(lines))
    if kind == "duplicate":
        lines += draw(st.lists(st.sampled_from(lines), min_size=1))
    data = bytearray(b"".join(lines))
    place = draw(st.integers(0, len(data) - 1))
    if kind == "truncate":
        del data[place:]
    if kind == "flip":
        data[place] ^= 1 << draw(st.integers(0, 7))
    if kind == "insert":
        data[place:place] = draw(st.binary(min_size=1, max_size=80) | st.sampled_from([bytes(40), b"{", b"\n", FIRST]))
    rest = bytes(data)
    return rest, {case for case, whole in zip(CASES, LINES) if whole.removesuffix(b"\n") in rest}


@settings(max_examples=60, deadline=None, derandomize=True)
@given(damaged())
def test_any_damage_is_named_or_harmless_and_repair_keeps_every_whole_line(
    tmp_path_factory: pytest.TempPathFactory, damage: tuple[bytes, set[str]]
) -> None:
    content, whole = damage
    run = make(tmp_path_factory.mktemp("damaged"))
    run.results_path.write_bytes(content)
    try:
        found = {result.case: result for result in run.results()}
        assert found.keys() == whole and all(found[case] == line(case) for case in whole)
    except RunError as error:
        assert str(error).startswith(f"{run.results_path}:") and f"`mixerzoo repair {run.folder}`" in str(error)
    changed = bool(repair(run).found)
    assert {result.case for result in run.results()} == whole
    assert all(result == line(result.case) for result in run.results())
    kept = run.folder / "results.jsonl.damaged-1"
    assert kept.read_bytes() == content if changed else run.results_path.read_bytes() == content
    assert repair(run).found == []
    shutil.rmtree(run.folder)
