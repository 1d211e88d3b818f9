"""Cases as jobs: in processes by submitit's local executor, by a Slurm of a few lines, and by jobs that are only said
to be."""

import contextlib
import dataclasses
import importlib
import itertools
import json
import os
import random
import re
import shlex
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import psutil
import pytest
from mixerzoo.benchmarks.case import Case, Plan
from mixerzoo.benchmarks.cli_run import make_executor
from mixerzoo.benchmarks.executors import slurm as slurm_module
from mixerzoo.benchmarks.executors import slurm_jobs, slurm_task
from mixerzoo.benchmarks.executors.base import Ended, Job, Lost, News
from mixerzoo.benchmarks.executors.slurm import SlurmExecutor
from mixerzoo.benchmarks.executors.slurm_jobs import Jobs, Needs, SlurmJobs, State, SubmissionError, parameters
from mixerzoo.benchmarks.executors.slurm_notes import Batch, Notes
from mixerzoo.benchmarks.executors.slurm_options import SlurmOptions, parse_slurm_options
from mixerzoo.benchmarks.executors.slurm_task import CaseTask
from mixerzoo.benchmarks.limits import Limits
from mixerzoo.benchmarks.live import Reporter
from mixerzoo.benchmarks.machine import Machine
from mixerzoo.benchmarks.runner import execute
from mixerzoo.benchmarks.runs import Run, RunError

from . import mini_slurm
from .fake_run import wait_for

# A case that does what its parameters say, and notes that it was here.
FAKE_CASE = """
import os, signal, time
from pathlib import Path
import psutil

def run_case(job, channel):
    parameters = job["parameters"]
    with open(parameters["log"], "a") as log:
        log.write(f"{job['seed']} {os.getpid()}\\n")
    tries = sum(line.split()[0] == str(job["seed"]) for line in open(parameters["log"]))
    channel.progress(0.5, "half way")
    act = parameters.get("act")
    watcher = next(p for p in psutil.Process().parents() if "submitit.core._submit" in p.cmdline())
    if act == "value": raise ValueError("d_model must be even")
    if act == "lose": os.kill(watcher.pid, signal.SIGKILL)
    if act == "preempt" and tries == 1: os.kill(watcher.pid, signal.SIGUSR2)
    if act == "node" and tries == 1:
        job_id = "_".join(os.environ[f"SLURM_ARRAY_{what}_ID"] for what in ("JOB", "TASK"))
        Path(parameters["slurm"], job_id + ".state").write_text("NODE_FAIL")
        os.killpg(os.getpgid(watcher.pid), signal.SIGKILL)
    if act in ("lose", "preempt", "node") and (act == "lose" or tries == 1): time.sleep(60)
    until = parameters.get("until")
    while until and not Path(until).exists():
        time.sleep(0.02)
    time.sleep(parameters.get("sleep", 0))
    with open(parameters["log"], "a") as log:
        log.write(f"{job['seed']} end\\n")
    return {"answer": 42 + job["seed"]}
"""
HERE = Machine("here", "a CPU, 2 cores")


@pytest.fixture
def bench(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))  # for jobs
    monkeypatch.setenv("MIXERZOO_LOCKS", str(tmp_path / "locks"))  # others may work on this machine
    monkeypatch.delitem(sys.modules, "fake_slurm_case", raising=False)
    return Bench(tmp_path)


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """The folder of a small Slurm whose commands are found."""
    folder = tmp_path / "slurm"
    monkeypatch.setenv("PATH", f"{mini_slurm.install(folder)}:{os.environ['PATH']}")
    monkeypatch.setattr(SlurmJobs, "pause_seconds", 0.1)
    monkeypatch.setattr(SlurmJobs, "patience_seconds", 0.3)
    yield folder
    for path in folder.glob("*.pid"):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(int(path.read_text()), signal.SIGKILL)


class Bench:
    def __init__(self, folder: Path):
        self.folder, self.log = folder, folder / "log.txt"
        (folder / "fake_slurm_case.py").write_text(FAKE_CASE)
        self.run, self.said = Run(folder / "run"), []
        self.notes = Notes(self.run.folder.resolve() / "slurm")

    def case(self, seed=0, exclusive=False, device="cpu", processes=1, **parameters) -> Case:
        parameters = {"log": str(self.log), **parameters}
        return Case("label", "line", {}, "fake", parameters, seed, device, exclusive, processes=processes)

    def executor(self, *options, **limits) -> SlurmExecutor:
        run_case = importlib.import_module("fake_slurm_case").run_case
        parsed = parse_slurm_options(options)
        return SlurmExecutor(Limits(**limits), "cpu", parsed, run_case, preloaded=[], say=self.said.append)

    def execute(self, cases, *options, retry_failed=False, **limits):
        executor, plan = self.executor(*options, **limits), Plan(tuple(cases))
        suite, more = {"name": "fake"}, {"device": "cpu", "retry_failed": retry_failed}
        return execute(lambda _: plan, self.run, suite, Limits(**limits), Reporter(), executor, **more)

    def ran(self) -> Counter:
        """Seed -> how often it came to its end."""
        return Counter(line.split()[0] for line in self.log.read_text().splitlines() if line.endswith("end"))


# --- jobs as processes of this machine


def test_statuses_are_those_of_the_local_executor(bench):
    cases = [bench.case(0), bench.case(1, act="value"), bench.case(2, exclusive=True)]
    results = bench.execute(cases, "cluster=local")
    assert [r.status for r in results] == ["ok", "invalid", "ok"]
    assert results[0].metrics == {"answer": 42} and results[1].error == "ValueError: d_model must be even"
    assert all(r.peak_bytes >= 0 and r.parameters["threads"] == 4 and r.attempts == [] for r in results)
    (machine,) = bench.run.environment()["machines"]
    assert {r.machine["name"] for r in results} == {machine}
    # nothing is expected any more
    assert bench.notes.batches() == [] and not list(bench.notes.submitit.glob("*_submitted.pkl"))
    assert bench.said == []


def test_a_preempted_job_goes_on_and_one_whose_watcher_dies_goes_again_so_often(bench):
    preempted, lost = bench.case(0, act="preempt"), bench.case(1, act="lose")
    results = bench.execute([preempted, lost], "cluster=local", attempts=2)
    assert [r.status for r in results] == ["ok", "crashed"]
    (told,) = results[0].attempts
    assert told["why"].startswith("Slurm told the job to stop") and told["machine"] == results[0].machine["name"]
    assert results[1].error.startswith("given up after 2 attempts that were lost")
    assert [attempt["machine"] for attempt in results[1].attempts] == [results[0].machine["name"]] * 2
    assert bench.ran() == {"0": 1}


DRIVER = """
import sys
from fake_slurm_case import run_case
from mixerzoo.benchmarks.case import Case, Plan
from mixerzoo.benchmarks.executors.slurm import SlurmExecutor
from mixerzoo.benchmarks.executors.slurm_options import parse_slurm_options
from mixerzoo.benchmarks.limits import Limits
from mixerzoo.benchmarks.live import Reporter
from mixerzoo.benchmarks.runner import execute
from mixerzoo.benchmarks.runs import Run
folder, log, until = sys.argv[1:]
cases = [Case("label", "line", {}, "fake", {"log": log, **({"until": until} if n else {})}, n, "cpu", False)
         for n in range(4)]
limits = Limits()
executor = SlurmExecutor(limits, "cpu", parse_slurm_options(["cluster=local"]), run_case, preloaded=[])
execute(lambda _: Plan(tuple(cases)), Run(folder), {"name": "fake"}, limits, Reporter(), executor, device="cpu")
"""


def test_the_runner_is_killed_and_started_again_while_jobs_go_on(bench):
    until = bench.folder / "until"
    program = bench.folder / "driver.py"
    program.write_text(DRIVER)
    command = [sys.executable, program, bench.run.folder, bench.log, until]
    runner = subprocess.Popen(command)
    try:
        wait_for(lambda: bench.run.results_path.is_file() and bench.run.results(), runner)
        wait_for(lambda: len(bench.log.read_text().splitlines()) == 5, runner)  # one ended, three at work
    finally:
        runner.kill()
        runner.wait()
    until.touch()
    subprocess.run(command, check=True)
    assert [r.status for r in bench.run.results()] == ["ok"] * 4
    assert len(bench.run.results_path.read_text().splitlines()) == 4  # none is doubled in the store either
    assert bench.ran() == {str(n): 1 for n in range(4)}
    assert len(bench.log.read_text().splitlines()) == 8  # and none has begun twice


def test_ctrl_c_leaves_no_process(bench):
    executor = bench.executor("cluster=local")
    with bench.run.locked() as store:
        bench.run.write_suite({"name": "fake"})
        executor.begin(bench.run, store, 1)
        executor.submit(bench.case(sleep=60), 1)
        try:
            wait_for(lambda: [executor.wait(0.05), bench.log.exists() and bench.log.read_text()][1])
        finally:
            executor.stop()
    (pid,) = [int(line.split()[1]) for line in bench.log.read_text().splitlines()]
    wait_for(lambda: not psutil.pid_exists(pid))
    assert bench.said == ["cancelled 1 job"] and bench.notes.batches() == []


# --- jobs of a small Slurm


@pytest.mark.xfail(
    reason="a preempted job is reported as one whose watcher ended, since something watches between them"
)
def test_a_run_through_sbatch(bench, slurm):
    """In arrays; one is preempted, the machine of one fails; squeue and sacct answer, or do not."""
    (slurm / "squeue.fails").write_text("slurm_load_jobs error: Unable to contact slurm controller")
    acts = [{}, {"act": "preempt"}, {"act": "node", "slurm": str(slurm)}]
    cases = [bench.case(n, **act) for n, act in enumerate(acts)] + [bench.case(3, exclusive=True)]
    results = bench.execute(cases, "partition=long", "array-parallelism=8")
    assert [r.status for r in results] == ["ok"] * 4
    assert bench.ran() == {str(n): 1 for n in range(4)}
    (told,), (failed,) = results[1].attempts, results[2].attempts
    assert told["why"].startswith("Slurm told the job to stop")
    assert failed["why"].startswith("job 100_2: its machine failed")
    scripts = [mini_slurm.flags(path.read_text()) for path in sorted((slurm / "scripts").iterdir())]
    assert [script.get("array") for script in scripts] == ["0-2%3", None, None]
    assert [script.get("exclusive") for script in scripts] == [None, None, "yes"]
    assert all(script["partition"] == "long" for script in scripts)


def test_ctrl_c_cancels_the_jobs_and_the_next_start_counts_no_attempt(bench, slurm):
    (slurm / "holds").touch()
    executor = bench.executor()
    with bench.run.locked() as store:
        bench.run.write_suite({"name": "fake"})
        executor.begin(bench.run, store, 2)
        for n in range(2):
            executor.submit(bench.case(n), 1)
        assert executor.room(False) == 998
        first = executor.wait(0.0)
        for n in range(2):
            (slurm / f"100_{n}.pid").write_text("999999")  # as if they were at work
        executor.stop()
    assert {news.doing.stage for news in first} == {
        "waits in Slurm's queue, job 100_0",
        "waits in Slurm's queue, job 100_1",
    }
    assert "scancel 100_0 100_1" in (slurm / "calls").read_text() and bench.said == ["cancelled 2 jobs"]
    # a job that starts nevertheless does nothing
    assert all(bench.notes.begin(name, "100_0", HERE) is None for name in _names(bench))
    (slurm / "holds").unlink()
    (result,) = bench.execute([bench.case(0)])
    assert result.status == "ok" and result.attempts == []


def test_what_cannot_be_cancelled_is_named(bench, slurm):
    (slurm / "holds").touch()
    (slurm / "scancel.fails").write_text("scancel: error: slurm_kill_job2: Socket timed out")
    executor = bench.executor()
    with bench.run.locked() as store:
        bench.run.write_suite({"name": "fake"})
        executor.begin(bench.run, store, 2)
        for n in range(2):
            executor.submit(bench.case(n), 1)
        executor.wait(0.0)
        executor.stop()
        (said,) = bench.said
        assert said.startswith("2 jobs could not be cancelled (scancel: error") and said.endswith("scancel 100")
        again = bench.executor()  # the jobs are still there, and found
        again.begin(bench.run, store, 2)
        again.submit(bench.case(0), 1)
        assert again.room(False) == 999 and len(list((slurm / "scripts").iterdir())) == 1
    assert bench.said[1] == "2 cases of an earlier start are in Slurm, or came to their end there meanwhile"


def test_sbatch_that_refuses_is_quoted_and_later_tried_again(bench, slurm):
    (slurm / "sbatch.fails").write_text("sbatch: error: invalid partition specified: lnog")
    with pytest.raises(RunError, match="sbatch says: sbatch: error: invalid partition specified: lnog"):
        bench.execute([bench.case()], "partition=lnog")
    assert bench.notes.batches() == []
    (slurm / "sbatch.fails").unlink()
    (result,) = bench.execute([bench.case(sleep=60)], time_limit_seconds=0.5)
    assert result.status == "timeout" and result.error == "stopped after the suite's time limit of 0.5 s"


def test_a_submission_that_was_heard_though_sbatch_failed_is_found(bench, slurm, monkeypatch):
    """The pickles of its jobs were not put in place: they cannot begin, and are not to when they could."""
    monkeypatch.setattr(slurm_module, "_FIRST_PAUSE", 0.0)
    (slurm / "holds").touch()
    executor = bench.executor()
    with bench.run.locked() as store:
        bench.run.write_suite({"name": "fake"})
        executor.begin(bench.run, store, 2)
        executor.submit(bench.case(0), 1)
        executor.wait(0.0)
        (slurm / "sbatch.late").write_text("")
        executor.submit(bench.case(1), 1)
        assert [news.doing.stage for news in executor.wait(0.0)] == ["is to be submitted to Slurm again"]
        forgotten = next(name for name in _names(bench) if name.startswith(bench.case(1).id))
        assert bench.notes.begin(forgotten, "101", HERE) is None
        (slurm / "sbatch.late").unlink()
        assert [news.doing.stage for news in executor.wait(0.0)] == ["waits in Slurm's queue, job 102"]
        executor.stop()
    assert f"--name=mixerzoo-{forgotten[-8:]}" in (slurm / "calls").read_text()


def test_what_a_job_asks_for(bench, slurm):
    (slurm / "holds").touch()
    options = parse_slurm_options(
        ["account=1234", "qos=high", "constraint=a100|h100", "setup=module load cuda/12", "setup=export A='b c'",
         "cpus-per-task=8", "gpu_type=h100", "array_parallelism=5", "signal_delay_s=120", "mail-user=a@b.org",
         "additional_parameters={licenses: matlab}", "srun_args=--mpi=none"]
    )  # fmt: skip
    notes = bench.notes
    notes.make()
    jobs = slurm_jobs.open_jobs(options, notes.submitit)
    tasks = [_task(notes, bench.case(n)) for n in range(7)]
    needs = Needs(exclusive=True, gpus=2, time_limit_seconds=3661.0, memory_limit_bytes=8_000_000_000)
    assert jobs.send(tasks, needs, "01234567") == [f"100_{n}" for n in range(7)]
    script = (slurm / "scripts" / "100.sh").read_text()
    logs = notes.submitit / "%A_%a_0_log"
    assert mini_slurm.flags(script) == {
        "account": "1234", "array": "0-6%5", "constraint": "a100|h100", "cpus-per-task": "8", "error": f"{logs}.err",
        "exclusive": "yes", "gpus-per-node": "h100:2", "job-name": "mixerzoo-01234567", "licenses": "matlab",
        "mail-user": "a@b.org", "mem": "9060M", "nodes": "1", "open-mode": "append", "output": f"{logs}.out",
        "qos": "high", "requeue": "yes", "signal": "USR2@120", "time": "72",
    }  # fmt: skip
    assert "\nmodule load cuda/12\nexport A='b c'\n" in script
    command = next(line for line in script.splitlines() if line.startswith("srun"))
    assert "--cpus-per-task=8 --mpi=none" in command and f"{sys.executable} -u -m submitit.core._submit" in command
    assert subprocess.run(["bash", "-n"], input=script, text=True).returncode == 0
    # one case alone is no array; without a suite's memory limit, and on a CPU, nothing is said of either
    plain = parameters(SlurmOptions(), Needs(False, 0, 60.0, None), "01234567")
    assert not {"mem", "gpus_per_node", "exclusive"} & plain.keys() and plain["time"] == 11
    assert parameters(SlurmOptions(mem="64G", time=5), needs, "01234567").items() >= {"mem": "64G", "time": 5}.items()


def test_the_script_in_the_documentation_is_what_is_submitted(bench, slurm):
    text = (Path(__file__).parents[2] / "docs" / "many-machines.md").read_text()
    blocks = re.findall(r"^```sh\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    (command,) = [block for block in blocks if "--executor slurm" in block]
    (script,) = [block for block in blocks if block.startswith("#!/bin/bash")]
    words = shlex.split(command.replace("\\\n", ""))
    options = parse_slurm_options([after for word, after in itertools.pairwise(words) if word == "--slurm"])
    (slurm / "holds").touch()
    bench.notes.make()
    tasks = [_task(bench.notes, bench.case(n)) for n in range(7)]
    needs = Needs(exclusive=False, gpus=1, time_limit_seconds=3600.0, memory_limit_bytes=16_000_000_000)
    slurm_jobs.open_jobs(options, bench.notes.submitit).send(tasks, needs, "0f3a91c2")
    sent = (slurm / "scripts" / "100.sh").read_text()
    for here, there in {str(bench.run.folder): "/home/me/runs/capacity", sys.executable: "/home/me/bin/python"}.items():
        sent = sent.replace(here, there)
    assert script.strip() == sent.strip()


def test_every_option_is_one_of_submitit():
    from submitit.slurm.slurm import _get_default_parameters

    everything = {name: field.default for name, field in SlurmOptions.model_fields.items()}
    given = {name: "x" for name, default in everything.items() if default is None} | {"mem": "1G", "time": 1}
    options = SlurmOptions(**given, setup=["a"], teardown=["b"])
    assert parameters(options, Needs(True, 1, 60.0, 10**9), "01234567").keys() <= _get_default_parameters().keys()


@pytest.mark.parametrize(
    ("said", "phase", "reason"),
    [
        ("PENDING", "waits", ""),
        ("REQUEUED", "waits", ""),
        ("RUNNING", "runs", ""),
        ("COMPLETING", "runs", ""),
        ("UNKNOWN", "unknown", ""),
        ("COMPLETED", "over", "left no result"),
        ("CANCELLED by 0", "over", "cancelled, though not by this run"),
        ("NODE_FAIL", "over", "its machine failed"),
        ("BOOT_FAIL", "over", "did not start"),
        ("PREEMPTED", "over", "give way"),
        ("TIMEOUT", "over", "--slurm time=MINUTES"),
        ("LAUNCH_FAILED", "over", "Slurm says LAUNCH_FAILED"),
    ],
)
def test_states_of_slurm(said, phase, reason):
    state = State.of({"State": said, "NodeList": "None assigned"})
    assert state.phase == phase and state.node == "" and (phase != "over" or reason in state.reason)


def test_no_answer_loses_no_job_and_squeue_stands_in_for_sacct(bench, slurm, monkeypatch):
    bench.notes.make()
    jobs = slurm_jobs.open_jobs(SlurmOptions(), bench.notes.submitit)
    monkeypatch.setattr(slurm_jobs, "LONGEST_SECONDS", 0.0)
    jobs._pause = 0.0
    (slurm / "sacct.fails").write_text("Slurm accounting storage is disabled")
    (slurm / "5_1.state").write_text("RUNNING")
    assert jobs.states(["5_0", "5_1"]) == {"5_0": State("unknown", "UNKNOWN"), "5_1": State("runs", "RUNNING", "node7")}
    (slurm / "squeue.fails").write_text("nobody is there")
    assert [state.phase for state in jobs.states(["5_0", "5_1", "6"]).values()] == ["unknown", "runs", "unknown"]
    (slurm / "sacct.fails").unlink()
    (slurm / "5_1.state").write_text("OUT_OF_MEMORY")
    assert jobs.states(["5_1"])["5_1"] == State("over", "OUT_OF_MEMORY", "node7")
    (slurm / "5_1.state").write_text("PENDING")  # it was put back into the queue
    assert jobs.states(["5_1"])["5_1"].phase == "waits"
    calls = (slurm / "calls").read_text()
    jobs._pause = 60.0
    jobs.states(["5_1"])
    assert (
        slurm / "calls"
    ).read_text() == calls and "sacct --format=JobID,State,NodeList --parsable2 --jobs=5,6" in calls


# --- jobs that are only said to be: what is kept of them


def _names(bench) -> list[str]:
    """Of all attempts that were ever written down and not cleared away."""
    batches = [Batch.model_validate_json(p.read_bytes()) for p in (bench.notes.folder / "batches").glob("*.json")]
    return [name for batch in batches for name in batch.names]


def _task(notes: Notes, case: Case) -> CaseTask:
    return CaseTask(str(notes.folder), f"{case.id}-01234567", Job(case, 1, "folder", 1), preloaded=())


class SaidJobs(Jobs):
    """Jobs that a test moves on, and that outlive the runner."""

    pause_seconds = patience_seconds = 0.0
    room = 5

    def __init__(self, chance: random.Random):
        self.chance, self.tasks, self.named = chance, {}, {}
        self.waiting, self.running, self.over = set(), set(), {}
        self.completed = Counter()
        self.die = False

    def send(self, tasks, needs, token):
        if self.die and self.chance.random() < 0.3:
            raise Killed
        if self.die and self.chance.random() < 0.2:
            raise SubmissionError("too many")
        ids = [f"{len(self.named)}_{n}" for n in range(len(tasks))]
        self.named[token] = ids
        self.tasks |= dict(zip(ids, tasks))
        self.waiting |= set(ids)
        while self.die and self.chance.random() < 0.4:
            self.step()  # some begin, and end, before sbatch has answered
        if self.die and self.chance.random() < 0.2:
            raise self.chance.choice([Killed, SubmissionError])("socket timed out")
        return ids

    def step(self):
        """Something happens to some job."""
        chance, waiting, running = self.chance, sorted(self.waiting), sorted(self.running)
        failed = [job for job, state in self.over.items() if state == "BOOT_FAIL"]
        if waiting and chance.random() < 0.1:
            job = chance.choice(waiting)
            self.waiting.remove(job)
            self.over[job] = "BOOT_FAIL"
        elif failed and chance.random() < 0.2:  # Slurm tries again, though the runner may have given it up
            job = chance.choice(failed)
            del self.over[job]
            self.waiting.add(job)
        elif waiting and chance.random() < 0.6:
            job = chance.choice(waiting)
            self.waiting.remove(job)
            self.begin(job)
        elif running:
            self.go_on(chance.choice(running))

    def begin(self, job):
        task = self.tasks[job]
        notes = Notes(Path(task.notes))
        before = notes.begin(task.name, job, HERE)
        if before is None:
            self.over[job] = "COMPLETED"
        elif before and before[-1].stopped is None:
            notes.write_outcome(task.name, task._lost(notes, before[-1]))
            self.over[job] = "COMPLETED"
        else:
            self.running.add(job)

    def go_on(self, job):
        task, act = self.tasks[job], self.chance.random()
        notes, case = Notes(Path(task.notes)), task.job.case
        self.running.remove(job)
        if act < 0.6:
            notes.write_news(task.name, News(case.id, 0.5))
            self.completed[case.id] += 1
            seconds = self.chance.random() * 9
            notes.write_outcome(task.name, Ended(case.id, {"status": "ok", "metrics": {}}, seconds, 1, 0, HERE))
            self.over[job] = "COMPLETED"
        elif act < 0.7:
            notes.note_stop(task.name, "preempted")
            self.waiting.add(job)
        elif act < 0.8:
            self.waiting.add(job)  # its machine failed
        else:
            self.over[job] = self.chance.choice(["NODE_FAIL", "CANCELLED by 0", "FAILED"])

    def states(self, ids):
        if self.chance.random() < 0.2:
            return {job: State("unknown") for job in ids}
        return {job: self.state(job) for job in ids}

    def state(self, job):
        if job in self.over:
            return State.of({"State": self.over[job]})
        return State("waits" if job in self.waiting else "runs")

    def cancel(self, ids):
        for job in ids:
            self.waiting.discard(job)
            self.running.discard(job)
            self.over.setdefault(job, "CANCELLED")

    def cancel_named(self, token):
        self.cancel(self.named.get(token, []))

    def clear(self, job):
        pass

    def log(self, job):
        return Path("nowhere")


class Killed(BaseException):
    """The runner is no more, without a word to its executor."""


@pytest.mark.parametrize("seed", range(12))
def test_no_case_is_lost_or_doubled_wherever_the_runner_is_killed(bench, monkeypatch, seed):
    chance = random.Random(seed)
    jobs = SaidJobs(chance)
    monkeypatch.setattr(slurm_module, "open_jobs", lambda options, folder: jobs)
    monkeypatch.setattr(slurm_module, "_FIRST_PAUSE", 0.0)
    monkeypatch.setattr(slurm_module, "_TRIES", 1000)
    monkeypatch.setattr("os.fsync", lambda descriptor: None)
    cases = [bench.case(n, exclusive=n % 3 == 0) for n in range(12)]
    stored = Counter()

    for start in range(100):
        jobs.die = start < 30
        with bench.run.locked() as store:
            if start == 0:
                bench.run.write_suite({"name": "fake"})
            done = {result.case for result in bench.run.results()}
            waiting = [case for case in cases if case.id not in done]
            if not waiting:
                break
            executor = bench.executor()
            executor._sent = True
            executor.begin(bench.run, store, len(waiting))
            work = set()
            try:
                while waiting or work:
                    while waiting and executor.room(waiting[0].exclusive) > 0:
                        work.add(waiting[0].id)
                        executor.submit(waiting.pop(0), 1)
                    for event in executor.wait(0.0):
                        if jobs.die and chance.random() < 0.1:
                            raise Killed
                        if isinstance(event, News):
                            continue
                        work.remove(event.case)  # KeyError if it comes twice
                        if isinstance(event, Lost):
                            waiting.append(next(case for case in cases if case.id == event.case))
                        else:
                            store.append(_line(event))
                            stored[event.case] += 1
                    if jobs.die and chance.random() < 0.03:
                        executor.stop()
                        break
                    jobs.step()
            except Killed:
                continue
            if not jobs.die:
                executor.stop()
    assert stored == {case.id: 1 for case in cases}
    assert jobs.completed == stored  # no work was done twice, and all that was done was used
    executor = bench.executor()
    executor.begin(bench.run, store, 1)  # the last runner may have been killed before it could clear up
    executor.stop()
    assert bench.notes.batches() == [] and not list((bench.notes.folder / "ended").iterdir())


def _line(ended: Ended):
    from mixerzoo.benchmarks.runs import ResultLine

    outcome = {"parameters": {}, "seed": 0, "seconds": round(ended.seconds, 3), **ended.outcome}
    return ResultLine(case=ended.case, layout="label", measure="fake", **outcome)


def test_results_that_are_damaged_or_another_s_are_no_results(bench, monkeypatch):
    jobs = SaidJobs(random.Random(0))
    monkeypatch.setattr(slurm_module, "open_jobs", lambda options, folder: jobs)
    jobs.states = lambda ids: {job: jobs.state(job) for job in ids}
    texts = [b"{", b"[]", b'{"ended": {"case": "x"}}', b"\xff\xfe", b'{"lost": 5}', b"null"]
    good = Ended("other", {"status": "ok", "metrics": {}}, 1.0, 1, 0, HERE)
    texts.append(json.dumps({"ended": dataclasses.asdict(good)}).encode())
    jobs.room = len(texts)
    executor = bench.executor()
    with bench.run.locked() as store:
        bench.run.write_suite({"name": "fake"})
        executor.begin(bench.run, store, len(texts))
        for n in range(len(texts)):
            executor.submit(bench.case(n), 1)
        executor.wait(0.0)
        for name, text in zip(_names(bench), texts):
            (bench.notes.folder / "ended" / f"{name}.json").write_bytes(text)
        jobs.over = dict.fromkeys(jobs.tasks, "COMPLETED")
        events = executor.wait(0.0)
        executor.wait(0.0)
        executor.stop()
    assert len(events) == len(texts) and all(isinstance(event, Lost) for event in events)
    assert all("cannot be read" in event.why for event in events[:-1]) and "left no result" in events[-1].why
    assert bench.notes.batches() == []


def test_a_job_that_saw_no_folder_says_which(bench, monkeypatch):
    jobs = SaidJobs(random.Random(0))
    monkeypatch.setattr(slurm_module, "open_jobs", lambda options, folder: jobs)
    jobs.states = lambda ids: dict.fromkeys(ids, State("over", "FAILED", "node7"))
    executor = bench.executor()
    with bench.run.locked() as store:
        executor.begin(bench.run, store, 1)
        executor.submit(bench.case(), 1)
        _, lost = executor.wait(0.0)
        executor.stop()
    assert f"does node7 see {bench.notes.folder}? A run must lie on a file system that all share" in lost.why
    with pytest.raises(FileNotFoundError, match="does not see"):
        Notes(bench.folder / "nowhere").begin("name", "1", HERE)


@pytest.mark.parametrize("told", [True, False])
def test_a_case_that_dies_of_a_signal_to_its_job_is_not_to_blame(bench, monkeypatch, told):
    """Slurm signals all processes of a job, and the case may be gone before its watcher has heard anything."""

    def run_to_end(job, heard, run_case, preloaded):
        heard(News(job.case.id, 0.5))
        if told:
            os.kill(os.getpid(), signal.SIGTERM)
        return Ended(job.case.id, {"status": "crashed", "error": "killed by signal 15"}, 3.0, 1, 0, HERE)

    monkeypatch.setattr(slurm_task, "run_to_end", run_to_end)
    monkeypatch.setattr(slurm_task, "_SIGNAL_SECONDS", 0.0)
    monkeypatch.setattr(slurm_task, "_GRACE_SECONDS", 0.0)
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "local")
    monkeypatch.setenv("SUBMITIT_LOCAL_JOB_ID", "5")
    bench.notes.make()
    task, before = _task(bench.notes, bench.case()), signal.getsignal(signal.SIGTERM)
    try:
        task()
    finally:
        signal.signal(signal.SIGTERM, before)
    outcome = bench.notes.outcome(task.name)
    assert isinstance(outcome, Lost if told else Ended)
    assert bench.notes.news({}) == [(task.name, News(task.job.case.id, 0.5))]


def test_out_of_memory_of_a_job_is_an_outcome(bench, monkeypatch):
    jobs = SaidJobs(random.Random(0))
    monkeypatch.setattr(slurm_module, "open_jobs", lambda options, folder: jobs)
    jobs.states = lambda ids: dict.fromkeys(ids, State("over", "OUT_OF_MEMORY"))
    executor = bench.executor()
    with bench.run.locked() as store:
        bench.run.write_suite({"name": "fake"})
        executor.begin(bench.run, store, 1)
        executor.submit(bench.case(), 1)
        executor._send()
        bench.notes.begin(_names(bench)[0], "0_0", HERE)
        _, ended = executor.wait(0.0)
        executor.stop()
    assert ended.outcome["status"] == "out_of_memory" and ended.machine == HERE and "job 0_0" in ended.outcome["error"]


def test_lines_of_a_start_that_were_torn_are_passed_over(bench):
    bench.notes.make()
    path = bench.notes.folder / "starts" / "name.jsonl"
    assert bench.notes.begin("name", "1", HERE) == []
    with path.open("a") as file:
        file.write('{"why": "told", "time": 5.0}\n{"why"\n[]\n5\n{"machine": 3}\n{"why": "again", "time": 6}\n')
    (start,), allowed = bench.notes.starts("name")
    assert start.stopped == (5.0, "told") and start.machine == HERE and start.pid == os.getpid() and allowed
    assert bench.notes.begin("name", "2", HERE) is None  # another job's
    assert len(bench.notes.begin("name", "1", HERE)) == 1
    bench.notes.forbid("name")
    assert bench.notes.begin("name", "1", HERE) is None and not bench.notes.forbid_unbegun("name")


# --- what is asked for


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["partiton=long"], "--slurm partiton=long: unknown option; did you mean partition?"),
        (["exclusive=yes"], "--slurm exclusive=yes: unknown option; it follows from each case, and cannot be given"),
        (["time=1:00:00"], "--slurm time=1:00:00: input should be a valid integer"),
        (["time=0"], "--slurm time=0: input should be greater than or equal to 1"),
        (["mem=lots"], "--slurm mem=lots: string should match pattern"),
        (["partition=a\n#SBATCH --uid=0"], "line breaks and control characters cannot stand here"),
        (["setup=a\nb"], "line breaks and control characters cannot stand here"),
        (["cluster=debug"], "--slurm cluster=debug: input should be 'slurm' or 'local'"),
        (["additional_parameters=[1"], "write a mapping"),
        (["additional_parameters={'a b': 1}"], "'a b' is no name of an option"),
        (["long"], "--slurm long: give KEY=VALUE, or a file that ends in .yaml"),
    ],
)
def test_a_mistake_in_an_option_is_named(words, message):
    with pytest.raises(ValueError) as error:
        parse_slurm_options(words)
    assert message in str(error.value)


def test_options_of_a_file_and_of_words(tmp_path):
    file = tmp_path / "slurm.yaml"
    file.write_text(
        "partition: long\nsetup: [module load cuda]\ncpus_per_task: 2\nadditional_parameters: {hint: compute}\n"
    )
    options = parse_slurm_options([str(file), "partition=short", "setup=ulimit -c 0"])
    assert options.partition == "short" and options.setup == ["module load cuda", "ulimit -c 0"]
    assert options.cpus_per_task == 2 and options.additional_parameters == {"hint": "compute"}
    file.write_text("partition: long\nacount: me\ntime: never\n")
    with pytest.raises(ValueError) as error:
        parse_slurm_options([str(file)])
    assert str(error.value).splitlines() == [
        f"{file}:2: acount: unknown option; did you mean account?",
        f"{file}:3: time: input should be a valid integer, unable to parse string as an integer, got 'never'",
    ]


def test_the_command_line_passes_them_on(bench):
    executor = make_executor("slurm", Limits(), "cpu", None, ["cluster=local", "cpus-per-task=2"])
    assert isinstance(executor, SlurmExecutor) and executor._options.cpus_per_task == 2
    with pytest.raises(ValueError, match="--slurm is for Slurm's jobs"):
        make_executor("local", Limits(), "cpu", None, ["cluster=local"])


def test_what_is_missing_here_is_said(bench, monkeypatch):
    monkeypatch.setenv("PATH", str(bench.folder))
    with pytest.raises(ValueError, match=r"no sbatch and no srun and no scancel here: .* --slurm cluster=local"):
        bench.execute([bench.case()])
    with pytest.raises(ValueError, match="reads a % in '/runs/50%/slurm' as a placeholder; choose another"):
        slurm_jobs.open_jobs(SlurmOptions(), Path("/runs/50%/slurm"))
    monkeypatch.setitem(sys.modules, "submitit", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install 'mixerzoo"):
        bench.execute([bench.case()])
    with pytest.raises(ValueError, match="give --device cuda, not cuda:1"):
        SlurmExecutor(Limits(), "cuda:1", SlurmOptions())


def test_jobs_of_another_cluster_are_not_mixed_in(bench):
    bench.run.write_suite({"name": "fake"})
    bench.notes.make()
    bench.notes.write_batch(Batch(token="01234567", cluster="slurm", cases=["abc"], jobs=["5"]))
    with pytest.raises(RunError, match="--slurm cluster=slurm; go on with it"):
        bench.execute([bench.case()], "cluster=local")
    (bench.notes.folder / "batches" / "01234567.json").write_text("{")
    with pytest.raises(RunError, match=r"is damaged.*squeue --name mixerzoo-01234567"):
        bench.execute([bench.case()], "cluster=local")
