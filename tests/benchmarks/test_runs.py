"""The run store: what is written is read back, whatever moment the writer was killed at."""

import hashlib
import json
import subprocess
import sys

import pytest
from mixerzoo.benchmarks import large_store, result_lines
from mixerzoo.benchmarks.known import known, known_results
from mixerzoo.benchmarks.lock import FolderLock
from mixerzoo.benchmarks.plan import score_of, was_taught
from mixerzoo.benchmarks.result_lines import encode_line
from mixerzoo.benchmarks.runs import Index, ResultLine, Results, Run, RunError, results_digest, write_atomically


def line(case: str, status: str = "ok", **changes) -> ResultLine:
    values = {"case": case, "layout": "softmax", "measure": "speed", "parameters": {"length": 256}, "seed": 0}
    return ResultLine(**{**values, "status": status, "seconds": 1.5, "metrics": {"text": "ä\nb"}, **changes})


@pytest.fixture
def run(tmp_path):
    run = Run(tmp_path / "run")
    run.write_suite({"name": "s"})
    return run


def test_results_are_read_back_in_order_and_later_lines_replace(run):
    with run.locked() as store:
        for result in (line("a", "crashed"), line("b"), line("a", "ok")):
            store.append(result)
    assert run.results() == [line("a"), line("b")]
    assert len(run.results_path.read_text().splitlines()) == 3


@pytest.mark.parametrize("kept", [1, 20, -2, -1])
def test_torn_last_line_is_passed_over_and_repaired(run, kept):
    with run.locked() as store:
        store.append(line("a"))
        store.append(line("b"))
    whole = run.results_path.read_bytes()
    start = whole.index(b"\n") + 1
    last = whole[start:]
    run.results_path.write_bytes(whole[:start] + last[:kept])
    expected = ["a", "b"] if kept == -1 else ["a"]  # only the newline missing: the result is whole
    assert [r.case for r in run.results()] == expected
    with run.locked() as store:
        store.append(line("c"))
    assert [r.case for r in run.results()] == [*expected, "c"]
    for text in run.results_path.read_text().splitlines():
        json.loads(text)


def test_broken_line_in_the_middle_is_an_error_that_names_it(run):
    with run.locked() as store:
        store.append(line("a"))
    run.results_path.write_bytes(b"{oops}\n" + run.results_path.read_bytes())
    with pytest.raises(RunError, match=r"results\.jsonl:1 is not JSON"):
        run.results()


def test_lines_of_a_newer_schema_or_with_missing_fields_are_refused(run):
    data = line("a").model_dump()
    run.results_path.write_bytes(encode_line({**data, "schema_version": 99, "new": 1}))
    with pytest.raises(RunError, match=r":1 has schema version 99"):
        run.results()
    run.results_path.write_bytes(encode_line({**data, "schema_version": "two"}))
    with pytest.raises(RunError, match=r":1 has no schema version but 'two'"):
        run.results()
    run.results_path.write_text("[1]\n")
    with pytest.raises(RunError, match=r":1 is not a result line: it is no JSON object"):
        run.results()
    del data["seed"]
    run.results_path.write_bytes(encode_line(data))
    with pytest.raises(RunError, match=r":1 is not a result line: seed"):
        run.results()


def test_fields_that_nobody_knows_survive_reading_and_writing(run):
    data = {**line("a").model_dump(), "colour": "red", "more": {"deep": [1, None]}, "metrics": {"x": {"y": 2}, "z": []}}
    run.results_path.write_bytes(encode_line(data))
    (read,) = run.results()
    with run.locked() as store:
        store.append(read.model_copy(update={"case": "b"}))
    assert run.results_path.read_bytes().splitlines(keepends=True)[1] == encode_line({**data, "case": "b"})


def test_the_digest_is_that_of_the_file(run):
    assert results_digest(run.folder) == hashlib.sha256(b"").hexdigest()
    with run.locked() as store:
        store.append(line("a"))
    said = subprocess.run(["sha256sum", str(run.results_path)], capture_output=True, text=True, check=True).stdout
    assert results_digest(run.folder) == said.split()[0]
    with pytest.raises(RunError, match="holds no run"):
        results_digest(run.folder / "elsewhere")


def test_nan_is_never_written(run):
    with run.locked() as store:
        with pytest.raises(ValueError):
            store.append(line("a", metrics={"x": float("nan")}))
        store.append(line("b"))
    assert [r.case for r in run.results()] == ["b"]


def test_a_folder_without_a_run_is_a_clear_error(tmp_path):
    for read in (Run(tmp_path).results, Run(tmp_path).suite, Run(tmp_path).environment):
        with pytest.raises(RunError, match="holds no run"):
            read()


@pytest.mark.parametrize("text", ["{", "[1]", "null"])
def test_a_damaged_environment_is_a_clear_error(run, text):
    run.environment_path.write_text(text)
    with pytest.raises(RunError, match=r"environment\.json is not a JSON object"):
        run.environment()


def test_lock_keeps_others_out_and_goes_with_its_process(run, monkeypatch):
    monkeypatch.setattr(FolderLock, "patience_seconds", 0.1)
    program = "import sys, time; from mixerzoo.benchmarks.runs import Run\nwith Run(sys.argv[1]).locked():\n"
    program += "    print('locked', flush=True); time.sleep(60)"
    holder = subprocess.Popen([sys.executable, "-c", program, str(run.folder)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None and holder.stdout.readline() == "locked\n"
    with pytest.raises(RunError, match="another run is at work"), run.locked():
        pass
    holder.kill()
    holder.wait()
    with run.locked() as store:
        store.append(line("a"))
    assert len(run.results()) == 1


def test_importing_the_store_does_not_import_torch():
    program = "import sys, mixerzoo.benchmarks.runs, mixerzoo.benchmarks; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


# --- Many results ---


def test_heads_are_read_without_what_was_measured(run, monkeypatch):
    odd = line("b", "crashed", layout='a "quoted"\\ layout\nof <ü>', seed=-3, seconds=1e-07, error="{}")
    with run.locked() as store:
        store.append(line("a"))
        store.append(odd)
    monkeypatch.setattr(result_lines, "decode_line", None)
    heads = run.index()
    assert list(heads) == ["a", "b"]
    for result in (line("a"), odd):
        head = heads[result.case]
        names = ("case", "layout", "measure", "seed", "status", "seconds")
        assert [getattr(head, name) for name in names] == [getattr(result, name) for name in names]


def test_lines_are_read_one_by_one_in_any_order(run):
    with run.locked() as store:
        for case in "abcd":
            store.append(line(case))
        store.append(line("b", "crashed"))
    heads = run.index()
    assert [r.case for r in run.lines()] == [*"abcd"] and next(run.lines([heads["c"]])) == line("c")
    results = Results(run, [heads[case] for case in "dba"])
    assert len(results) == 3 and [r.case for r in results] == [*"dba"] and results[1] == line("b", "crashed")
    assert results[1:] == [line("b", "crashed"), line("a")] and list(results.failed()) == [line("b", "crashed")]


def test_an_index_goes_on_from_where_it_was(run, monkeypatch):
    index, read = Index(run), []
    real = result_lines.HeadReader.__call__
    monkeypatch.setattr(result_lines.HeadReader, "__call__", lambda self, *a: read.append(a[1]) or real(self, *a))
    assert index.update() == {}
    with run.locked() as store:
        for case in "ab":
            store.append(line(case))
        assert list(index.update()) == ["a", "b"]
        store.append(line("c"))
        assert list(index.update()) == ["a", "b", "c"] and list(index.update()) == ["a", "b", "c"]
    assert read == [1, 2, 3], "no line was read twice"
    whole = run.results_path.read_bytes()
    run.results_path.write_bytes(whole + whole[:-1])  # its last newline is still to come
    assert [head.number for head in index.update().values()] == [4, 5, 6]
    run.results_path.write_bytes(whole + whole)
    assert [head.number for head in index.update().values()] == [4, 5, 6]
    write_atomically(run.results_path, whole[: len(whole) // 3])
    assert list(index.update()) == ["a"], "another file is read from its beginning"


def test_half_a_surrogate_pair_is_no_text_and_stops_no_run(run):
    with run.locked() as store:
        store.append(line("a", "crashed", error="file \ud800.txt"))
    assert run.results()[0].error == "file ?.txt"


def test_a_large_store_is_opened_resumed_and_looked_at(tmp_path):
    """By hand with 100,000 results, see docs/reliability.md."""
    run = large_store.make(tmp_path / "large", 700)
    assert len(run.index()) == 700 and all(isinstance(head.seed, int) for head in run.index().values())
    assert {len(run.plan()["cases"]), len({case.id for case, _ in large_store.copies(702)})} == {702}
    found = {step: large_store.measure(run.folder, step) for step in ("opening", "reading", "status", "resuming")}
    assert {step: (row["said"], row["exit_code"]) for step, row in found.items()} == {
        "opening": ("700 results, 700 ok", 0),
        "reading": ("700 results", 0),
        "status": ("702 cases", 0),
        "resuming": ("702 cases", 0),
    }
    assert len(run.index()) == 702


def test_what_a_planner_needs_is_kept_of_published_results():
    run = Run(large_store.PUBLISHED / "recall-capacity")
    kept, whole = known_results(run), {result.case: result for result in run.results()}
    assert list(kept) == list(whole)
    for case, result in whole.items():
        assert known(result).metrics == kept[case].metrics and not kept[case].parameters
        assert (kept[case].status, kept[case].measure) == (result.status, result.measure)
        if result.measure == "training":
            assert was_taught(kept[case]) == was_taught(result)
        if result.measure == "tuning":
            assert score_of(kept[case]) == score_of(result)
