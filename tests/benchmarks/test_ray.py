"""The Ray executor on two machines, as far as Ray can tell: whatever is killed, no case is lost or doubled."""

import contextlib
import dataclasses
import importlib
import importlib.util
import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest
from mixerzoo.benchmarks.case import Case, Plan
from mixerzoo.benchmarks.executors import ray_cluster
from mixerzoo.benchmarks.executors.local import LocalExecutor
from mixerzoo.benchmarks.executors.ray import RayExecutor
from mixerzoo.benchmarks.limits import Limits
from mixerzoo.benchmarks.live import Reporter
from mixerzoo.benchmarks.runner import execute
from mixerzoo.benchmarks.runs import Run, RunError

from .fake_run import wait_for
from .ray_nodes import Node

pytestmark = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed")

# Does what its parameters say, on whatever machine it is, without torch.
FAKE_CASE = """
import ctypes, os, signal, subprocess, sys, time
from pathlib import Path
from mixerzoo.benchmarks.errors import NotFiniteError

def run_case(job, channel):
    parameters = job["parameters"]
    act, raylet = parameters.get("act"), os.environ.get("RAY_RAYLET_PID")
    with open(parameters["log"], "a") as log:
        log.write(f"{job['seed']} {os.getpid()} {raylet} {job['threads']}\\n")
    channel.progress(0.5, "half way")
    if act == "value": raise ValueError("d_model must be even")
    if act == "error": raise TypeError("a bug")
    if act == "nan": raise NotFiniteError("loss is nan at step 3")
    if act == "segfault": ctypes.string_at(0)
    if act == "exit": sys.stderr.write("last words"); sys.stderr.flush(); os._exit(3)
    if act == "sigkill": os.kill(os.getpid(), signal.SIGKILL)
    if act == "hold": held = bytearray(400_000_000)
    if act == "daemon": subprocess.Popen(["sleep", "600"], start_new_session=True)
    if act == "kill node": os.kill(int(raylet), signal.SIGKILL)
    while act == "wait" and not Path(parameters["until"]).exists(): time.sleep(0.02)
    time.sleep(parameters.get("sleep", 0))
    with open(parameters["log"] + ".over", "a") as log:
        log.write(f"{os.getpid()}\\n")
    channel.backends = {"fake_op": {"torch"}}
    return {"answer": 42 + job["seed"]}
"""
PRELOADED = ["fake_ray_case", "mixerzoo.benchmarks.worker"]


class Cluster:
    """A head without CPUs, and two machines with two each."""

    def __init__(self, folder: Path):
        self.folder = folder
        (folder / "fake_ray_case.py").write_text(FAKE_CASE)
        self.head = Node(folder, folder)
        self.nodes: list[Node] = []

    def fill(self) -> None:
        """Start what was killed."""
        self.nodes = [node for node in self.nodes if any(p.name() == "raylet" for p in node.family())]
        while len(self.nodes) < 2:  # one by one: on one host, two that start together take each other's sockets
            self.nodes.append(Node(self.folder, self.folder, 2, self.head))
            self.nodes[-1].ready()

    def stop(self) -> None:
        for node in [*self.nodes, self.head]:
            node.kill()


@pytest.fixture(scope="module")
def cluster():
    folder = Path(tempfile.mkdtemp(prefix="ray", dir="/tmp"))  # sockets have short names
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("MODE", "token"), ("TOKEN", secrets.token_hex(32))):  # nobody else may use it
            patch.setenv(f"RAY_AUTH_{name}", value)
        patch.delenv("RAY_ADDRESS", raising=False)
        patch.syspath_prepend(folder)
        cluster = Cluster(folder)
        try:
            cluster.head.ready()
            cluster.fill()
            yield cluster
        finally:
            cluster.stop()
            shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def bench(cluster, tmp_path):
    return Bench(cluster, tmp_path)


class Bench:
    def __init__(self, cluster, folder):
        self.cluster, self.folder, self.run = cluster, folder, Run(folder / "run")
        self.log = folder / "log.txt"
        self.log.touch()

    def case(self, seed=0, exclusive=False, **parameters) -> Case:
        return Case("label", "line", {}, "fake", {"log": str(self.log), **parameters}, seed, "cpu", exclusive)

    def executor(self, limits=None, run_case=None) -> RayExecutor:
        return RayExecutor(self.cluster.head.address, limits or Limits(), "cpu", run_case or self.fake(), PRELOADED)

    def fake(self):
        return importlib.import_module("fake_ray_case").run_case

    def execute(self, cases, executor=None, reporter=None, run=None, **limits):
        limited = Limits(**limits)
        suite, executor = {"name": "fake"}, executor or self.executor(limited)
        plan, reporter = Plan(tuple(cases)), reporter or Reporter()
        return execute(lambda _: plan, run or self.run, suite, limited, reporter, executor, device="cpu")

    def started(self) -> list[list[str]]:
        """Seed, pid, pid of its raylet and threads of every case that started."""
        return [line.split() for line in self.log.read_text().splitlines()]

    def assert_nothing_left(self):
        wait_for(lambda: not [pid for _, pid, *_ in self.started() if is_alive(int(pid))], seconds=20)


def is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_every_end_of_a_case_is_what_it_is_locally_and_news_are_not_needed(bench):
    acts = ["fine", "value", "error", "nan", "segfault", "exit", "sigkill", "hold", "sleep"]
    cases = [bench.case(seed, act=act, sleep=60 * (act in ("sleep", "hold"))) for seed, act in enumerate(acts)]
    limits = {"time_limit_seconds": 3.0, "memory_limit_bytes": 300_000_000}
    executor = bench.executor(Limits(**limits))

    class Deaf(Reporter):
        def finished(self, case, result):
            if case.seed == 1:
                executor._ray.kill(executor._mailbox)

    there = bench.execute(cases, executor, Deaf(), **limits)
    local = LocalExecutor(Limits(**limits), "cpu", bench.fake(), PRELOADED)
    here = bench.execute(cases, local, run=Run(bench.folder / "local"), **limits)
    expected = ["ok", "invalid", "crashed", "not_finite", "crashed", "crashed", *["out_of_memory"] * 2, "timeout"]
    assert [r.status for r in there] == expected == [r.status for r in here]
    without_numbers = [
        [re.sub(r"[\d.]+ GB|\(early\)|\(last.*\)", "", str(r.error)).split("\n")[0] for r in run]
        for run in (there, here)
    ]
    assert without_numbers[0] == without_numbers[1]
    assert there[0].metrics == {"answer": 42} and there[0].backends == {"fake_op": ["torch"]}
    assert all(r.machine == here[0].machine and r.attempts == [] for r in there) and there[7].peak_bytes > 3e8
    bench.assert_nothing_left()


def test_exclusive_cases_have_a_machine_each_to_themselves(bench, monkeypatch):
    monkeypatch.setattr(ray_cluster, "_KEEP_SECONDS", 0.5)
    until = bench.folder / "go on"
    cases = [bench.case(0), *(bench.case(seed, exclusive=True, act="wait", until=str(until)) for seed in (1, 2))]
    executor = bench.executor()

    class Intruder(Reporter):
        """Asks for one CPU of each machine as soon as both cases are at work."""

        asked = None

        def begin(self, live):
            self.live = live

        def look(self):
            ray = executor._ray
            if self.asked is None and [work.fraction for work in self.live.status().at_work] == [0.5, 0.5]:
                near = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
                task = ray.remote(shutil.which)
                self.asked = [
                    task.options(scheduling_strategy=near(i, False)).remote("sh") for i in executor._cluster.nodes
                ]
                assert ray.wait(self.asked, timeout=1.0)[0] == []
                until.touch()

        def finished(self, case, result):
            if len(bench.run.results()) == 3:  # once they are over, others may have the machines
                deadline = time.monotonic() + 30
                while executor._ray.wait(self.asked, num_returns=2, timeout=0)[1] and time.monotonic() < deadline:
                    executor.wait(0.2)
                self.served = executor._ray.get(self.asked, timeout=1)

    intruder = Intruder()
    results = bench.execute(cases, executor, intruder)
    assert [r.status for r in results] == ["ok"] * 3 and len(intruder.served) == 2
    raylets = {seed: raylet for seed, _, raylet, _ in bench.started()}
    assert raylets["1"] != raylets["2"]
    assert [r.parameters["threads"] for r in results[1:]] == [min(2, ray_cluster.usable_cores())] * 2


def test_an_interrupted_run_leaves_nothing_at_work(bench):
    class Impatient(Reporter):
        def look(self):
            if len(bench.started()) == 4:
                raise KeyboardInterrupt

    children = {p.pid for p in psutil.process_iter() if p.name() == "sleep"}
    with pytest.raises(KeyboardInterrupt):
        bench.execute([bench.case(seed, act="daemon", sleep=600) for seed in range(40)], reporter=Impatient())
    bench.assert_nothing_left()
    new = [p for p in psutil.process_iter(["name", "cmdline"]) if p.info["name"] == "sleep" and p.pid not in children]
    assert not [p for p in new if p.info["cmdline"] == ["sleep", "600"] and is_alive(p.pid)]
    assert [r.status for r in bench.execute([bench.case(50)])] == ["ok"]  # the cluster is as it was


def test_models_need_a_folder_that_the_machines_share_and_the_rest_does_not(bench, monkeypatch):
    write = Path.write_text
    monkeypatch.setattr(Path, "write_text", lambda p, *a, **k: None if p.name == ".seen-by-ray" else write(p, *a, **k))
    with pytest.raises(RunError, match="no machine of the Ray cluster sees; give an --out on a file system"):
        bench.execute([bench.case(0), dataclasses.replace(bench.case(1, exclusive=True), reusable=True)])
    assert [(r.seed, r.status) for r in bench.run.results()] == [(0, "ok")]


def test_our_own_errors_are_those_of_the_case_with_a_traceback(bench):
    (result,) = bench.execute([bench.case(0)], bench.executor(run_case=lambda job, channel: {}))
    assert result.status == "crashed" and "Can't pickle" in result.error and "Traceback" in result.error


def test_machines_with_other_code_are_refused_by_name(bench, monkeypatch):
    monkeypatch.setattr(ray_cluster, "code_digest", lambda: "0" * 16)
    monkeypatch.setitem(ray_cluster.this_machine("cpu").details["packages"], "torch", "1.0")
    expected = r"install the same on all machines.*\n  \S+ \(.*\): torch \S+ there, 1.0 here; other code of mixerzoo\n"
    with pytest.raises(ValueError, match=expected):
        bench.execute([bench.case(0)])
    assert not bench.run.results() and not bench.started()


DRIVER = """
import sys
from mixerzoo.benchmarks.case import Case, Plan
from mixerzoo.benchmarks.executors.ray import RayExecutor
from mixerzoo.benchmarks.limits import Limits
from mixerzoo.benchmarks.live import Reporter
from mixerzoo.benchmarks.runner import execute
from mixerzoo.benchmarks.runs import Run
folder, path, log, address = sys.argv[1:]
sys.path.insert(0, path)
from fake_ray_case import run_case
slow = {seed: {"sleep": 0.5} for seed in range(0, 500, 20)}
cases = [Case("l", "line", {}, "fake", {"log": log, **slow.get(seed, {})}, seed, "cpu", False) for seed in range(500)]
plan, run, limits = Plan(tuple(cases)), Run(folder), Limits()
executor = RayExecutor(address, limits, "cpu", run_case, ["fake_ray_case", "mixerzoo.benchmarks.worker"])
execute(lambda _: plan, run, {"name": "fake"}, limits, Reporter(), executor, device="cpu")
"""


def test_500_cases_outlive_a_killed_machine_and_a_killed_driver(bench):
    cluster = bench.cluster
    cluster.fill()
    arguments = [str(bench.run.folder), str(cluster.folder), str(bench.log), cluster.head.address]
    command, printed = [sys.executable, "-c", DRIVER, *arguments], bench.folder / "printed.txt"

    def start():
        return subprocess.Popen(command, stdout=printed.open("ab"), stderr=subprocess.STDOUT)

    def finished():
        return bench.run.results_path.read_bytes().count(b"\n") if bench.run.results_path.is_file() else 0

    driver, dying = start(), cluster.nodes[0]

    def frozen():  # a case that takes a while, on the machine that is to die: it stays at work until then
        there = {p.pid for p in dying.family()}
        slow = [int(pid) for seed, pid, *_ in bench.started() if int(seed) % 20 == 0 and int(pid) in there]
        for pid in slow:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
        over = Path(f"{bench.log}.over").read_text().split()
        return [pid for pid in slow if str(pid) not in over and is_alive(pid)]

    wait_for(lambda: finished() > 100 and frozen(), driver, seconds=120)
    dying.kill()
    before = finished()
    # lost attempts are known to the driver alone, until their cases are over
    wait_for(lambda: finished() > before + 50 and b'"why"' in bench.run.results_path.read_bytes(), driver, seconds=120)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    kept = bench.run.results_path.read_bytes()
    bench.assert_nothing_left()
    again = start()
    assert again.wait(timeout=240) == 0, printed.read_text()
    lines = [json.loads(line) for line in bench.run.results_path.read_bytes().splitlines()]
    assert Counter(line["seed"] for line in lines) == Counter(range(500)) and len(bench.run.results()) == 500
    assert {line["status"] for line in lines} == {"ok"} and bench.run.results_path.read_bytes().startswith(kept)
    lost = [attempt for line in lines for attempt in line["attempts"]]
    assert lost and {attempt["machine"] for attempt in lost} == {lines[0]["machine"]["name"]}
    assert all("its machine died" in a["why"] or "was killed" in a["why"] for a in lost), lost
    assert printed.read_text() == ""  # Ray says nothing into the display
    bench.assert_nothing_left()


def test_a_case_that_kills_its_machine_is_given_up(bench):
    bench.cluster.fill()
    killer, fine = bench.execute([bench.case(0, act="kill node", sleep=60), bench.case(1)], attempts=2)
    assert killer.status == "crashed" and killer.machine is None
    assert killer.error.startswith("given up after 2 attempts that were lost; the last one: its machine died")
    assert len(killer.attempts) == 2 and {a["machine"] for a in killer.attempts} == {fine.machine["name"]}
    assert len({raylet for seed, _, raylet, _ in bench.started() if seed == "0"}) == 2
    assert fine.status == "ok"
    bench.assert_nothing_left()


def test_without_a_cluster_it_says_what_to_do(tmp_path, monkeypatch):
    for address in ("ray://head:10001", "head", ":6379", "head:port"):
        with pytest.raises(ValueError, match="is neither auto nor HOST:PORT; run on a machine of the cluster"):
            RayExecutor(address, Limits(), "cpu")
    with pytest.raises(ValueError, match=r"cuda:1 is one GPU of one machine.*give --device cuda"):
        RayExecutor(None, Limits(), "cuda:1")
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ValueError, match=r"pip install 'mixerzoo\[ray\]'"):
        RayExecutor("auto", Limits(), "cpu")


def test_an_address_where_nobody_answers_is_refused_soon(tmp_path):
    executor = RayExecutor("127.0.0.1:1", Limits(), "cpu")
    with pytest.raises(ValueError, match=r"no Ray cluster answers at 127.0.0.1:1: .*`ray start --head`"):
        executor.begin(Run(tmp_path), None, 1)
    executor.stop()
