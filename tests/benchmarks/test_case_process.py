"""A case in its process: limits hold for all that it starts, and nothing of it stays."""

import ctypes
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from mixerzoo.benchmarks.case import Case
from mixerzoo.benchmarks.case_process import WAITS_ALONE, run_to_end
from mixerzoo.benchmarks.executors.base import Ended, Job, Lost
from mixerzoo.benchmarks.machine import FOLDER_VARIABLE, MachineLock, this_machine

HOLD = "held = bytearray({0}); import time; time.sleep(60)"


def run_case(job, channel):
    parameters = job["parameters"]
    if "child" in parameters:
        held = HOLD.format(parameters["bytes"])
        child = subprocess.Popen([sys.executable, "-c", held], start_new_session=parameters["child"] == "daemon")
        Path(parameters["pid"]).write_text(str(child.pid))
    if parameters.get("orphan"):
        daemon = "import os, time; os.fork() and os._exit(0); os.setsid(); open({0!r}, 'w').write(str(os.getpid()))"
        held = daemon.format(parameters["pid"]) + "; time.sleep(60)"
        subprocess.run([sys.executable, "-c", held])
        while not (os.path.exists(parameters["pid"]) and Path(parameters["pid"]).read_text()):
            time.sleep(0.01)
    if parameters.get("kill_server"):
        os.kill(psutil.Process().parent().ppid(), signal.SIGKILL)
        time.sleep(60)
    if parameters.get("segfault"):
        ctypes.string_at(0)
    held = bytearray(parameters.get("own", 0))
    time.sleep(parameters.get("sleep", 0))
    return {"held": len(held)}


def job(exclusive=False, limits=(60.0, None), **parameters) -> Job:
    seconds, memory = limits
    return Job(Case("label", "line", {}, "fake", parameters, 0, "cpu", exclusive), 1, "", 1, seconds, memory)


def run(job: Job, heard=lambda news: None) -> Ended | Lost:
    return run_to_end(job, heard, run_case, preloaded=[])


def gone(pid: int) -> bool:
    deadline = time.monotonic() + 10
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def test_its_peak_and_its_machine_are_told():
    ended = run(job(own=80_000_000))
    assert isinstance(ended, Ended) and ended.outcome == {
        "status": "ok",
        "metrics": {"held": 80_000_000},
        "backends": {},
    }
    assert 80e6 < ended.peak_bytes < 400e6 and ended.machine == this_machine("cpu") and ended.seconds > 0


@pytest.mark.parametrize("child", ["child", "daemon"])
def test_the_memory_limit_is_that_of_all_its_processes(tmp_path, child):
    pid = tmp_path / "pid"
    limited = job(limits=(60.0, 300_000_000), child=child, bytes=300_000_000, pid=str(pid), sleep=60)
    ended = run(limited)
    assert ended.outcome["status"] == "out_of_memory" and " in 2 processes, the suite's limit" in ended.outcome["error"]
    assert ended.peak_bytes > 300e6 and gone(int(pid.read_text()))


def test_no_process_that_it_started_outlives_it_even_where_its_parent_is_gone(tmp_path):
    pid, seen = tmp_path / "pid", []
    ended = run(job(orphan=True, pid=str(pid)), heard=seen.append)
    assert ended.outcome["status"] == "ok" and gone(int(pid.read_text()))


def test_a_dead_fork_server_is_a_lost_attempt_and_the_next_case_has_a_new_one():
    lost = run(job(kill_server=True))
    assert isinstance(lost, Lost) and lost.machine == os.uname().nodename and "starts the cases died" in lost.why
    assert run(job()).outcome["status"] == "ok"


def test_it_waits_for_the_machine_and_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    other, heard = MachineLock("cpu", False), []
    assert other.take()

    def hear(news):
        heard.append(news.doing)
        other.release()

    assert run(job(exclusive=True), hear).outcome["status"] == "ok"
    assert heard[0] == WAITS_ALONE


def test_who_does_not_want_to_hear_more_ends_it(tmp_path):
    pid = tmp_path / "pid"

    def stop(news):
        if pid.exists() and pid.read_text():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(job(child="daemon", bytes=1, pid=str(pid), sleep=60), stop)
    assert gone(int(pid.read_text()))
