"""The runner with fake cases: every end of a process is a status; a kill at any moment loses and doubles nothing."""

import dataclasses
import importlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from datetime import datetime, timedelta, timezone
from pathlib import Path

import psutil
import pytest
from mixerzoo.benchmarks.case import Case, Plan
from mixerzoo.benchmarks.case_process import WAITS_ALONE
from mixerzoo.benchmarks.environment import collect_environment, differences
from mixerzoo.benchmarks.executors.base import Ended, Executor, Lost
from mixerzoo.benchmarks.executors.local import LocalExecutor
from mixerzoo.benchmarks.limits import Limits
from mixerzoo.benchmarks.live import Reporter
from mixerzoo.benchmarks.machine import FOLDER_VARIABLE, Machine, MachineLock, this_machine
from mixerzoo.benchmarks.plan import Planner
from mixerzoo.benchmarks.runner import TimeIsUp, execute, suite_differences
from mixerzoo.benchmarks.runs import SCHEMA_VERSION, ResultLine, Run, RunError
from mixerzoo.benchmarks.suite import load_suite

# A case that does what its parameters say, without torch.
FAKE_CASE = '''
import ctypes, os, signal, subprocess, sys, time
from mixerzoo.benchmarks.errors import NotFiniteError

DAEMON = """
import os, sys, time
if os.fork(): os._exit(0)
os.setsid()
open(sys.argv[1], "a").write(f"0 daemon 0 {os.getpid()} 1\\\\n")
time.sleep(60)
"""

def run_case(job, channel):
    parameters = job["parameters"]
    with open(parameters["log"], "a") as log:
        log.write(f"{job['seed']} start {time.monotonic()} {os.getpid()} {os.environ['OMP_NUM_THREADS']}\\n")
    channel.progress(0.5, "half way")
    print("noise on stdout")
    act = parameters.get("act")
    if act == "memory": raise MemoryError("no room")
    if act == "nan": raise NotFiniteError("loss is nan at step 3")
    if act == "nan metric": return {"rows": [{"x": float("inf")}]}
    if act == "value": raise ValueError("d_model must be even")
    if act == "error": raise TypeError("a bug")
    if act == "segfault": ctypes.string_at(0)
    if act == "exit": sys.stderr.write("last words"); sys.stderr.flush(); os._exit(3)
    if act == "sigkill": os.kill(os.getpid(), signal.SIGKILL)
    if act == "hold": held = bytearray(300_000_000)
    while act == "meet" and open(parameters["log"]).read().count("start") < 2: time.sleep(0.01)
    if act == "child": subprocess.Popen(["sleep", "60"])
    if act == "daemon": subprocess.run([sys.executable, "-c", DAEMON, parameters["log"]])
    time.sleep(parameters.get("sleep", 0))
    with open(parameters["log"], "a") as log:
        log.write(f"{job['seed']} end {time.monotonic()} {os.getpid()} {job['threads']}\\n")
    channel.backends = {"fake_op": {"torch"}}
    return {"answer": 42 + job["seed"]}
'''


class Silent(Reporter):
    """A reporter that counts what it is told."""

    def __init__(self):
        self.told = Counter()
        self.heard = set()

    def begin(self, live):
        self.live = live
        self.told.update(cases=live.cases, done=sum(live.done.values()))

    def before(self, case):
        assert case.id not in self.live.at_work
        self.told["before"] += 1

    def look(self):
        self.heard |= {(work.fraction, work.stage) for work in self.live.status().at_work if work.fraction}

    def finished(self, case, result):
        self.told[result.status] += 1

    def end(self):
        self.told["end"] += 1


SUITE = {"name": "fake", "layouts": {"a": "x"}, "measures": [{"measure": "fake", "sizes": [1, 2]}]}


@pytest.fixture
def bench(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)  # children get the path as well, and find the fake case there
    monkeypatch.delitem(sys.modules, "fake_case", raising=False)
    return Bench(tmp_path)


class Bench:
    def __init__(self, folder: Path):
        self.folder = folder
        self.log = folder / "log.txt"
        self.fake = folder / "fake_case.py"
        self.fake.write_text(FAKE_CASE)
        self.run = Run(folder / "run")
        self.reporter = Silent()

    def case(self, seed=0, exclusive=False, **parameters) -> Case:
        parameters = {"log": str(self.log), **parameters}
        return Case("label", "line", {"layout": "line"}, "fake", parameters, seed, "cpu", exclusive)

    def execute(
        self, cases, suite=SUITE, device="cpu", retry_failed=False, reuse=(), executor=None, **limits
    ) -> list[ResultLine]:
        run_case = importlib.import_module("fake_case").run_case
        limited = Limits(**limits)
        results = execute(
            cases if callable(cases) else lambda results: Plan(tuple(cases)),
            self.run,
            suite,
            limited,
            self.reporter,
            executor or LocalExecutor(limited, device, run_case),
            device=device,
            retry_failed=retry_failed,
            reuse=reuse,
        )
        return list(results)

    def spans(self) -> dict[str, tuple[float, float]]:
        """Seed -> start and end of every case that ended by itself."""
        events = [line.split() for line in self.log.read_text().splitlines()]
        starts = {e[0]: float(e[2]) for e in events if e[1] == "start"}
        return {e[0]: (starts[e[0]], float(e[2])) for e in events if e[1] == "end"}


def test_ok_case_has_everything_in_its_line(bench):
    case = bench.case(seed=5)
    (result,) = bench.execute([case])
    assert result.status == "ok" and result.metrics == {"answer": 47} and result.error is None
    assert result.case == case.id and result.layout == "label" and result.measure == "fake" and result.seed == 5
    assert result.parameters["model"] == {"layout": "line"} and result.parameters["layout_line"] == "line"
    assert result.parameters["device"] == "cpu" and result.parameters["log"] == str(bench.log)
    assert result.backends == {"fake_op": ["torch"]} and result.seconds >= 0  # to the millisecond
    assert abs(datetime.now(timezone.utc) - datetime.fromisoformat(str(result.ended))) < timedelta(minutes=1)
    machine = this_machine("cpu")
    assert result.machine == {"name": machine.name, "kind": machine.kind} and result.attempts == []
    assert result.peak_bytes and bench.run.environment()["machines"] == {
        machine.name: {"kind": machine.kind, **machine.details}
    }
    assert bench.reporter.told == Counter(cases=1, before=1, ok=1, end=1)
    assert Run(bench.run.folder).results() == [result] and bench.run.suite() == SUITE
    environment = bench.run.environment()
    assert environment["schema_version"] == SCHEMA_VERSION
    assert environment["cards"] == {} and environment["layout_mixers"] == {"a": ["x"]}  # there is no mixer x
    (ended,) = environment["finished"]
    assert ended["started"] == environment["started"] <= ended["ended"]


@pytest.mark.parametrize(
    ("act", "status", "error"),
    [
        ("memory", "out_of_memory", "MemoryError: no room"),
        ("sigkill", "out_of_memory", "killed by SIGKILL, which the runner did not send"),
        ("nan", "not_finite", "NotFiniteError: loss is nan at step 3"),
        ("nan metric", "not_finite", "the metric rows.0.x is not a finite number"),
        ("value", "invalid", "ValueError: d_model must be even"),
        ("error", "crashed", "TypeError: a bug\nTraceback"),
        ("segfault", "crashed", "killed by signal 11"),
        ("exit", "crashed", "exited with code 3\nnoise on stdout\nlast words"),
    ],
)
def test_every_end_of_a_case_is_a_status_and_the_run_goes_on(bench, act, status, error):
    failed, fine = bench.execute([bench.case(0, act=act), bench.case(1)], jobs=1)
    assert failed.status == status and failed.metrics is None
    assert failed.error is not None and failed.error.startswith(error)
    assert fine.status == "ok"


def test_time_limit_and_memory_limit_stop_a_case(bench):
    slow = bench.case(0, sleep=60)
    (result,) = bench.execute([slow], time_limit_seconds=1.0)
    assert result.status == "timeout" and "time limit of 1 s" in str(result.error)
    big = bench.case(1, act="hold", sleep=60)
    (result,) = bench.execute([big], memory_limit_bytes=200_000_000)
    assert result.status == "out_of_memory" and "the suite's limit is 0.20 GB" in str(result.error)


def test_children_of_a_case_go_with_it(bench):
    bench.execute([bench.case(act="child")])
    ((pid, _),) = {(e.split()[3], 0) for e in bench.log.read_text().splitlines()}
    deadline = time.monotonic() + 10
    while any(p.info["name"] == "sleep" and os.getpgid(p.pid) == int(pid) for p in alive(["name"])):
        assert time.monotonic() < deadline, "the child of a finished case is still there"
        time.sleep(0.05)


def alive(attributes):
    return [p for p in psutil.process_iter([*attributes, "status"]) if p.info["status"] != psutil.STATUS_ZOMBIE]


def test_exclusive_cases_run_alone_after_the_others(bench):
    cases = [bench.case(0, exclusive=True, sleep=0.2), bench.case(1, act="meet"), bench.case(2, act="meet")]
    cases.append(bench.case(3, exclusive=True, sleep=0.2))
    # two cases that wait for one another end only if they run side by side
    assert {r.status for r in bench.execute(cases, jobs=2, time_limit_seconds=60)} == {"ok"}
    spans = bench.spans()
    assert spans["0"][0] > max(spans["1"][1], spans["2"][1]) and spans["3"][0] > spans["0"][1]


def test_running_again_runs_what_is_missing_and_failed_ones_on_request(bench):
    good, bad, new = bench.case(0), bench.case(1, act="error"), bench.case(2)
    bench.execute([good, bad])
    assert [r.status for r in bench.execute([good, bad, new])] == ["ok", "crashed", "ok"]
    bench.fake.write_text(FAKE_CASE.replace('raise TypeError("a bug")', "pass"))
    assert [r.status for r in bench.execute([good, bad, new], retry_failed=True)] == ["ok", "ok", "ok"]
    starts = Counter(line.split()[0] for line in bench.log.read_text().splitlines() if " start " in line)
    assert starts == {"0": 1, "1": 2, "2": 1}
    assert len(bench.run.environment()["resumed"]) == 2


def test_results_add_cases_to_the_plan(bench):
    first, second, third = bench.case(0), bench.case(1), bench.case(2)

    def planner(results):
        more = (second,) if first.id in results and results[first.id].status == "ok" else ()
        more += (third,) if second.id in results else ()
        return Plan((first, *more), frozenset({first.id, second.id} - results.keys()))

    assert [r.seed for r in bench.execute(planner, jobs=2)] == [0, 1, 2]
    spans = bench.spans()
    assert spans["0"][1] < spans["1"][0] and spans["1"][1] < spans["2"][0]
    plan = bench.run.plan()
    assert plan["final"] and [c["case"] for c in plan["cases"]] == [first.id, second.id, third.id]
    assert [r.seed for r in bench.execute(planner)] == [0, 1, 2]  # nothing is run twice
    assert len(bench.run.results_path.read_text().splitlines()) == 3


def test_a_run_whose_time_is_up_goes_on_at_the_next_start(bench):
    cases = [bench.case(seed, sleep=0.5) for seed in range(4)]
    with pytest.raises(TimeIsUp, match="seconds are over"):
        bench.execute(cases, jobs=1, run_seconds=0.8)
    finished = len(bench.run.results())
    assert finished < 4
    assert [r.status for r in bench.execute(cases)] == ["ok"] * 4


def test_trained_models_of_another_run_are_taken_over(bench):
    trained = Case("old name", "line", {}, "training", {"log": str(bench.log)}, 1, "cpu", False, reusable=True)
    bench.execute([trained, bench.case(2)])
    (bench.run.checkpoint_folder(trained.id)).mkdir(parents=True)
    (bench.run.checkpoint_folder(trained.id) / "model").write_text("weights")
    other, bench.run = bench.run, Run(bench.folder / "new")
    renamed = dataclasses.replace(trained, label="new name")

    def planner(results):
        more = [bench.case(3)] if trained.id in results else []
        return Plan((renamed, *more, bench.case(2)), frozenset({trained.id} - results.keys()))

    results = bench.execute(planner, reuse=[other])
    assert [(r.layout, r.seed) for r in results] == [("new name", 1), ("label", 3), ("label", 2)]
    starts = Counter(line.split()[0] for line in bench.log.read_text().splitlines() if " start " in line)
    assert starts == {"1": 1, "3": 1, "2": 2}  # only trainings are taken over
    assert (bench.run.checkpoint_folder(trained.id) / "model").read_text() == "weights"
    assert bench.run.environment()["reused"]["run"]["started"] == other.environment()["started"]


PUBLISHED = Path(__file__).parents[2] / "reports" / "published"


def test_a_published_run_of_the_first_schema_goes_on(bench):
    """The ids of the plan are those of before, nothing is run twice, and the new line is of the present schema."""
    shutil.copytree(PUBLISHED / "quick-e24c0d2", bench.run.folder, ignore=shutil.ignore_patterns("figures", "tables"))
    *kept, dropped = bench.run.results_path.read_bytes().splitlines(keepends=True)
    assert json.loads(dropped)["schema_version"] == 1
    bench.run.results_path.write_bytes(b"".join(kept))
    bench.fake.write_text("def run_case(job, channel): return {'answer': job['parameters']}")
    suite = load_suite(bench.run.suite_path)
    before = [result.case for result in bench.run.results()]
    results = bench.execute(Planner(suite, "cpu"), suite=suite.on("cpu").resolved())
    old, (new,) = bench.run.results()[:-1], bench.run.results()[-1:]
    assert [result.case for result in old] == before and len(results) == len(before) + 1
    assert new.case == json.loads(dropped)["case"] and new.schema_version == SCHEMA_VERSION and new.ended is not None
    assert bench.run.results_path.read_bytes().startswith(b"".join(kept))
    written = json.loads(bench.run.environment_path.read_text())
    assert written["schema_version"] == SCHEMA_VERSION and len(written["resumed"]) == 1
    assert "fwpkm" in written["cards"] and set(written["layout_mixers"]) == set(suite.layouts)


def test_the_plan_on_disk_names_what_is_still_to_run(bench):
    stopped = bench.case(1, act="error")
    bench.execute(lambda results: Plan((stopped,), frozenset({"another"})))
    assert bench.run.plan() == {
        "final": False,
        "cases": [{"case": stopped.id, "layout": "label", "measure": "fake", "seed": 1, "what": ""}],
    }


def test_a_folder_of_another_suite_device_or_purpose_is_refused(bench):
    bench.execute([bench.case()])
    other = {**SUITE, "measures": [{"measure": "fake", "sizes": [1, 3]}]}
    with pytest.raises(RunError, match=r"another suite.*--out\n  measures\[0\].sizes: \[1, 2\] there, \[1, 3\] here"):
        bench.execute([bench.case()], suite=other)
    with pytest.raises(RunError, match="was made on cpu, not cuda"):
        bench.execute([bench.case()], device="cuda")
    assert bench.execute([bench.case()], suite={**SUITE, "jobs": 2, "description": "new"})[0].status == "ok"
    bench.run = Run(bench.folder)
    with pytest.raises(RunError, match="is not empty and holds no run"):
        bench.execute([bench.case()])


def test_a_run_goes_on_upon_another_gpu_of_the_same_machine(bench):
    (first,) = bench.execute([dataclasses.replace(bench.case(), device="cuda")], device="cuda")
    again, other = (dataclasses.replace(bench.case(seed), device="cuda:1", tf32=bool(seed)) for seed in (0, 1))
    kept, new = bench.execute([again, other], device="cuda:1")
    environment = bench.run.environment()
    assert environment["device"] == "cuda" and len(environment["finished"]) == 2
    assert kept == first and kept.parameters["device"] == "cuda" and kept.parameters["tf32"] is False
    assert new.parameters["device"] == "cuda:1" and new.parameters["tf32"] is True


def test_suite_differences_name_each_setting():
    assert suite_differences(SUITE, SUITE) == []
    changed = suite_differences(SUITE, {**SUITE, "layouts": {"a": "x", "b": "y"}, "time_limit_seconds": 5})
    assert changed == ['layouts.b: null there, "y" here']


def test_case_ids_depend_on_meaning_alone(bench):
    case = bench.case()
    assert len(case.id) == 12 and int(case.id, 16) >= 0
    case, parameters = bench.case(size=1), {"size": 1, "log": str(bench.log)}
    assert Case("other", "other", case.model, "fake", parameters, 0, "cpu", True).id == case.id
    others = [bench.case(seed=1), bench.case(size=2), bench.case(log="elsewhere")]
    others.append(Case("label", "line", {"layout": "z"}, "fake", case.parameters, 0, "cpu", False))
    others.append(Case("label", "line", case.model, "fake", case.parameters, 0, "cuda", False))
    assert len({c.id for c in [case, *others]}) == 6


RUNNER = """
import sys
from mixerzoo.benchmarks.case import Case, Plan
from mixerzoo.benchmarks.live import Reporter
from mixerzoo.benchmarks.executors.local import LocalExecutor
from mixerzoo.benchmarks.limits import Limits
from mixerzoo.benchmarks.runner import execute
from mixerzoo.benchmarks.runs import Run
folder, path, log, count = sys.argv[1:]
sys.path.insert(0, path)
from fake_case import run_case
parameters = {"log": log, "sleep": 0.05}
cases = [Case("label", "line", {}, "fake", parameters, seed, "cpu", seed % 3 == 0) for seed in range(int(count))]
plan, run, limits = Plan(tuple(cases)), Run(folder), Limits(jobs=2)
executor = LocalExecutor(limits, "cpu", run_case, preloaded=[])
execute(lambda _: plan, run, {"name": "fake"}, limits, Reporter(), executor, device="cpu")
"""


def start_runner(bench, count) -> subprocess.Popen:
    arguments = [str(bench.run.folder), str(bench.folder), str(bench.log), str(count)]
    return subprocess.Popen([sys.executable, "-c", RUNNER, *arguments], stderr=subprocess.PIPE)


def test_killed_at_random_moments_no_case_is_lost_or_doubled(bench):
    count, generator, progress = 12, random.Random(0), []
    for _ in range(6):
        runner = start_runner(bench, count)
        time.sleep(generator.uniform(0.3, 1.0))
        runner.send_signal(signal.SIGKILL)
        runner.communicate()
        progress.append(len(bench.run.results()) if bench.run.exists else 0)
    runner = start_runner(bench, count)
    _, errors = runner.communicate(timeout=120)
    assert runner.returncode == 0, errors.decode()
    assert progress == sorted(progress), "a finished case was lost"
    lines = [json.loads(line) for line in bench.run.results_path.read_text().splitlines()]
    assert sorted(line["seed"] for line in lines) == list(range(count))
    assert {line["status"] for line in lines} == {"ok"}
    assert len(bench.run.results()) == count


def test_nothing_outlives_a_killed_runner_not_even_a_daemon_of_a_case(bench):
    bench.fake.write_text(
        FAKE_CASE.replace('parameters.get("act")', '"daemon"').replace('get("sleep", 0)', 'get("", 60)')
    )
    runner = start_runner(bench, 2)
    deadline = time.monotonic() + 30
    while not (bench.log.exists() and len(bench.log.read_text().splitlines()) == 2):
        assert time.monotonic() < deadline, "the worker and its daemon never started"
        time.sleep(0.02)
    pids = [int(line.split()[3]) for line in bench.log.read_text().splitlines()]
    runner.kill()
    runner.communicate()
    deadline = time.monotonic() + 30
    while any(psutil.pid_exists(p) and psutil.Process(p).status() != psutil.STATUS_ZOMBIE for p in pids):
        assert time.monotonic() < deadline, "a process outlived its runner"
        time.sleep(0.02)


def test_an_exclusive_case_waits_for_the_cases_of_another_run_and_they_for_it(bench, monkeypatch, tmp_path):
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "locks"))
    other = MachineLock("cpu", False)
    assert other.take()

    class Patient(Silent):
        def look(self):
            super().look()
            self.stages = getattr(self, "stages", set()) | {work.stage for work in self.live.status().at_work}
            if WAITS_ALONE.stage in self.stages and other.filenos:
                assert not bench.log.exists(), "it did not wait"
                other.release()

    bench.reporter = Patient()
    assert bench.execute([bench.case(exclusive=True, sleep=0.1)])[0].status == "ok"
    assert WAITS_ALONE.stage in bench.reporter.stages


class Elsewhere(Executor):
    """Loses what its `ends` say, by case and attempt; else each case is run at once by a machine of two."""

    jobs = 2

    def __init__(self, lost):
        self.lost, self.waiting, self.stopped = lost, [], False

    def begin(self, run, store, cases):
        self.began = cases

    def room(self, exclusive):
        return 2 - len(self.waiting)

    def submit(self, case, attempt):
        self.waiting.append((case, attempt))

    def wait(self, seconds):
        case, attempt = self.waiting.pop()
        if (case.seed, attempt) in self.lost:
            return [Lost(case.id, "the node left", 1.5, f"node {attempt}")]
        machine = Machine(f"node {case.seed % 2}", f"kind {case.seed % 2}", {"cpu": "a"})
        outcome = {"status": "ok", "metrics": {"attempt": attempt}, "backends": {}}
        return [Ended(case.id, outcome, 2.0, threads=3, peak_bytes=10, machine=machine)]

    def stop(self):
        self.stopped = True


def test_a_lost_case_goes_again_until_its_attempts_are_over_and_all_of_them_are_recorded(bench):
    cases = [bench.case(seed, exclusive=seed == 2) for seed in range(3)]
    elsewhere = Elsewhere({(1, 1), (1, 2), (2, 1), (2, 2), (2, 3)})
    never, twice, given_up = bench.execute(cases, executor=elsewhere, attempts=3)
    assert elsewhere.began == 3 and elsewhere.stopped
    assert (never.attempts, never.metrics, never.machine) == ([], {"attempt": 1}, {"name": "node 0", "kind": "kind 0"})
    assert twice.status == "ok" and twice.metrics == {"attempt": 3} and twice.peak_bytes == 10
    assert [(a["machine"], a["seconds"], a["why"]) for a in twice.attempts] == [
        ("node 1", 1.5, "the node left"),
        ("node 2", 1.5, "the node left"),
    ]
    assert all(datetime.fromisoformat(attempt["ended"]) for attempt in twice.attempts)
    assert given_up.status == "crashed" and given_up.machine is None and len(given_up.attempts) == 3
    assert given_up.error == "given up after 3 attempts that were lost; the last one: the node left"
    assert bench.execute(cases, executor=elsewhere) == [never, twice, given_up], "nothing was left to run"
    assert bench.run.environment()["machines"] == {
        "node 0": {"kind": "kind 0", "cpu": "a"},
        "node 1": {"kind": "kind 1", "cpu": "a"},
    }


def test_interrupt_stops_cleanly_and_can_be_resumed(bench):
    class Impatient(Silent):
        def look(self):
            if any(work.seed == 1 for work in self.live.status().at_work):
                raise KeyboardInterrupt

    bench.reporter = Impatient()
    with pytest.raises(KeyboardInterrupt):
        bench.execute([bench.case(0), bench.case(1, sleep=60)], jobs=1)
    assert [r.seed for r in bench.run.results()] == [0] and bench.reporter.told["end"] == 1
    bench.reporter = Silent()
    assert [r.seed for r in bench.execute([bench.case(0), bench.case(2)])] == [0, 2]


def test_environment_names_machine_software_and_source():
    environment = collect_environment(device="cpu", jobs=1, threads=2, command=["mixerzoo", "run", "a b"])
    assert environment["command"] == "mixerzoo run 'a b'" and environment["packages"]["torch"]
    assert environment["machine"]["usable_cores"] >= 1 and environment["machine"]["memory_bytes"] > 1e8
    json.dumps(environment, allow_nan=False)
    assert differences(environment, {**environment, "started": "later"}) == {}
    faster = {**environment["machine"], "cpu": "another"}
    assert list(differences(environment, {**environment, "machine": faster})) == ["machine"]
