"""The run store: what is written is read back, whatever moment the writer was killed at."""

import hashlib
import json
import subprocess
import sys

import pytest
from mixerzoo.benchmarks.lock import FolderLock
from mixerzoo.benchmarks.result_lines import encode_line
from mixerzoo.benchmarks.runs import ResultLine, Run, RunError, results_digest


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
