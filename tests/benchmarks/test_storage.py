"""What the file system does to a run: full disks, folders that are closed, no locks, killed writers, and its clock."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from mixerzoo.benchmarks import lock as locks
from mixerzoo.benchmarks import runner
from mixerzoo.benchmarks.case import Case, Plan
from mixerzoo.benchmarks.errors import StorageError
from mixerzoo.benchmarks.executors.local import LocalExecutor
from mixerzoo.benchmarks.files import write_atomically
from mixerzoo.benchmarks.limits import Limits
from mixerzoo.benchmarks.live import Several
from mixerzoo.benchmarks.overview import Onlooker
from mixerzoo.benchmarks.progress import StatusFile
from mixerzoo.benchmarks.runs import ResultLine, Run, RunError
from mixerzoo.benchmarks.status import is_at_work


def line(case: str, **changes: Any) -> ResultLine:
    values = {"case": case, "layout": "a", "measure": "speed", "parameters": {}, "seed": 0, "status": "ok"}
    return ResultLine(**{**values, "seconds": 1.5, **changes})


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = Run(tmp_path / "run")
    run.write_suite({"name": "s"})
    return run


def cases(run: Run) -> list[str]:
    return [result.case for result in run.results()]


def python(program: str, *arguments: object, **options: Any) -> subprocess.Popen[str]:
    words = [sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


# --- Full disks ---

SMALL_FILES = """
import resource, sys
from mixerzoo.benchmarks.runs import ResultLine, Run
run = Run(sys.argv[1])
line = dict(case="b", layout="a", measure="speed", parameters={}, seed=0, status="ok", seconds=1.0)
with run.locked() as store:
    store.append(ResultLine(**{**line, "case": "a"}))
    size = run.results_path.stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 100, resource.RLIM_INFINITY))
    try:
        store.append(ResultLine(**line, error="x" * 10_000))
    except OSError as error:
        print(error, end="")
        raise SystemExit(run.results_path.stat().st_size != size)
"""


def test_a_line_of_which_the_disk_took_a_part_is_taken_back(run: Run) -> None:
    process = python(SMALL_FILES, run.folder)
    said, err = process.communicate()
    assert process.returncode == 0, err
    assert said == f"{run.results_path} cannot be written: {os.strerror(errno.EFBIG)}; " + said.rpartition("; ")[2]
    assert "free some space, then start again" in said
    with run.locked() as store:
        store.append(line("b"))
    assert cases(run) == ["a", "b"]


def test_a_result_that_is_not_synced_to_a_full_disk_is_taken_back(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    with run.locked() as store:
        store.append(line("a"))
        store._reserve.unlink()

        def full(descriptor: int) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            with pytest.raises(StorageError, match="No space left on device; free some space"):
                store.append(line("b"))
            with pytest.raises(StorageError, match=r"plan\.json cannot be written: No space left"):
                run.write_plan({"final": True, "cases": []})
        assert cases(run) == ["a"] and run.plan() is None
        store.append(line("c"))
    assert cases(run) == ["a", "c"]
    assert sorted(path.name for path in run.folder.iterdir()) == [".lock", "results.jsonl", "suite.yaml"]


FULL_DISK = """
import subprocess, sys
from pathlib import Path
from mixerzoo.benchmarks.errors import StorageError
from mixerzoo.benchmarks.runs import ResultLine, Run

folder = Path(sys.argv[1])
mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "none", str(folder)]
if subprocess.run(mount, capture_output=True).returncode:
    sys.exit(77)
run, said = Run(folder / "run"), []
run.write_suite({"name": "s"})
(folder / "ballast").write_bytes(bytes(1_200_000))

def fill(store, prefix):
    number = 0
    while True:
        number += 1
        line = dict(case=f"{prefix}{number}", layout="a", measure="speed", parameters={}, seed=0, status="ok")
        try:
            store.append(ResultLine(**line, seconds=1.0, error="x" * 30_000))
        except StorageError as error:
            print(error)
            return number

with run.locked() as store:
    measured = fill(store, "a")
assert len(run.results()) == measured, "the last one is there, too"
with (folder / "more").open("wb", buffering=0) as file:
    try:
        while file.write(bytes(4096)):
            pass
    except OSError:
        pass
with run.locked() as store:
    assert fill(store, "b") == 1
try:
    run.write_plan({"final": True, "cases": []})
except StorageError as error:
    print(error)
assert len(run.results()) == measured
(folder / "ballast").unlink()
with run.locked() as store:
    assert fill(store, "c") > 1
subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
try:
    with run.locked():
        pass
except StorageError as error:
    print(error)
run.results()
"""


def test_on_a_disk_that_is_full_nothing_measured_is_lost(tmp_path: Path) -> None:
    unshare = ["unshare", "--map-root-user", "--mount"]
    if not shutil.which("unshare") or subprocess.run([*unshare, "true"], capture_output=True).returncode:
        pytest.skip("this system allows no mounts, so there is no small disk to fill; see the two tests before")
    words = [*unshare, sys.executable, "-c", FULL_DISK, tmp_path]
    found = subprocess.run([str(word) for word in words], capture_output=True, text=True)
    if found.returncode == 77:
        pytest.skip("this system mounts no tmpfs, so there is no small disk to fill; see the two tests before")
    assert found.returncode == 0, found.stderr
    first, second, plan, third, closed = found.stdout.splitlines()
    assert "the result that was just measured was still stored" in first and "still stored" in third
    assert "results.jsonl cannot be written: No space left on device; free some space" in second
    assert "plan.json cannot be written: No space left" in plan
    assert "cannot be written: Read-only file system; whoever adds to a run must be allowed to write there" in closed


@pytest.mark.parametrize("closed", [".lock", "results.jsonl"])
@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS])
def test_a_closed_folder_is_read_and_not_written(
    run: Run, monkeypatch: pytest.MonkeyPatch, closed: str, code: int
) -> None:
    with run.locked() as store:
        store.append(line("a"))
    real = os.open

    def refuse(path: Any, flags: int, *more: Any, **options: Any) -> int:  # permissions do not bind root
        if str(path).endswith(closed) and flags & (os.O_RDWR | os.O_WRONLY):
            raise OSError(code, os.strerror(code), str(path))
        return real(path, flags, *more, **options)

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(StorageError, match=rf"{closed} cannot be written: .*choose another folder"), run.locked():
        pass
    assert cases(run) == ["a"] and not is_at_work(run)
    assert Onlooker(run)().totals["done"] == 1


# --- Killed writers ---

KILLED = """
import os, signal, sys
from pathlib import Path
from mixerzoo.benchmarks.files import write_atomically
Path.replace = lambda self, target: os.kill(os.getpid(), signal.SIGKILL)
write_atomically(Path(sys.argv[1]), "new")
"""


def test_a_killed_writer_leaves_the_old_file_and_the_next_one_removes_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text("old")
    process = python(KILLED, path)
    assert process.wait() == -signal.SIGKILL
    (left,) = (p for p in tmp_path.iterdir() if p != path)
    assert path.read_text() == "old" and left.name.endswith(f"-{process.pid}.partial")
    host = left.name.split(".")[-2].split("-")[0]
    kept = [".plan.json.ffffffff-1.partial", f".status.json.{host}-{os.getppid()}.partial", ".mine.partial"]
    for name in kept:  # of another host, of a process that lives, of somebody else
        (tmp_path / name).write_text("half")
    write_atomically(path, "newer")
    assert path.read_text() == "newer" and not left.exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*kept, path.name])


# --- No locks ---

# what a network file system without locks does to a program
NO_LOCKS = """
import errno, fcntl, os, sys, time
from pathlib import Path
from mixerzoo.benchmarks import lock
real, code = fcntl.flock, getattr(errno, os.environ.get("CODE", "ENOLCK"))
def flock(descriptor, how):
    if os.readlink(f"/proc/self/fd/{descriptor}").endswith("/.lock"):
        raise OSError(code, os.strerror(code))
    real(descriptor, how)
fcntl.flock = flock
lock.FolderLock.patience_seconds, lock.FolderLock.renew_seconds = 0.4, 0.1
"""
HOLDER = NO_LOCKS + "with lock.FolderLock(Path(sys.argv[1])):\n    print('held', flush=True)\n    time.sleep(60)\n"


@pytest.fixture
def without_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    real = fcntl.flock

    def flock(descriptor: int, how: int) -> None:
        if os.readlink(f"/proc/self/fd/{descriptor}").endswith("/.lock"):
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))
        real(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    monkeypatch.setattr(locks.FolderLock, "patience_seconds", 0.4)
    monkeypatch.setattr(locks.FolderLock, "renew_seconds", 0.1)


@pytest.fixture
def holder(run: Run) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts a process that holds the run, and waits until it does."""
    started: list[subprocess.Popen[str]] = []

    def start(program: str = HOLDER, **environment: str) -> subprocess.Popen[str]:
        started.append(python(program, run.folder, env={**os.environ, **environment}))
        assert started[-1].stdout is not None and started[-1].stdout.readline() == "held\n"
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def refused(run: Run, said: str) -> None:
    with pytest.raises(RunError, match=said), run.locked():
        pass


@pytest.mark.parametrize("code", ["ENOLCK", "EOPNOTSUPP", "EINVAL"])
def test_without_locks_a_lease_keeps_others_out_and_goes_with_its_process(
    run: Run, without_locks: None, holder: Callable[..., subprocess.Popen[str]], code: str
) -> None:
    process = holder(CODE=code)
    assert is_at_work(run)
    refused(run, "another run is at work in")
    process.kill()
    process.wait()
    assert (run.folder / ".lease").exists() and not is_at_work(run)
    with run.locked() as store:
        store.append(line("a"))
        assert is_at_work(run)
    assert cases(run) == ["a"] and not (run.folder / ".lease").exists() and not is_at_work(run)


def test_children_of_a_killed_owner_keep_the_lease(
    run: Run, without_locks: None, holder: Callable[..., subprocess.Popen[str]]
) -> None:
    child = "    import subprocess; subprocess.Popen(['sleep', '60'], pass_fds=[held.fileno])\n"
    program = HOLDER.replace("])):\n", "])) as held:\n" + child)
    process = holder(program)
    process.kill()
    process.wait()
    refused(run, "another run is at work in")
    subprocess.run(["fuser", "-k", str(locks.local_lock(run.folder))], capture_output=True)


def owned_elsewhere(run: Run, **changes: Any) -> Path:
    lease = run.folder / ".lease"
    owner = {"host": "node-7", "pid": 4711, "since": "2026-01-01T00:00:00+00:00", "machine": ["?", 1, 2], "token": "x"}
    lease.write_text(json.dumps({**owner, **changes}))
    return lease


def test_a_lease_of_another_machine_is_only_removed_by_hand(run: Run, without_locks: None) -> None:
    lease = owned_elsewhere(run)
    assert is_at_work(run)
    refused(run, r"process 4711 on 'node-7', since .* it gave no sign for 0\.4 s.* remove .*/\.lease and start again")
    lease.write_text("")
    refused(run, r"\.lease is damaged; if nobody is at work .* remove it")
    lease.unlink()
    with run.locked():
        assert json.loads(lease.read_text())["pid"] == os.getpid()


def test_a_lease_that_is_renewed_is_said_to_be_alive(
    run: Run, without_locks: None, holder: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    elsewhere = tmp_path / "another machine"  # whose own files are others
    elsewhere.mkdir()
    holder(TMPDIR=str(elsewhere))
    refused(run, "another run is at work in .*: process .*; wait for it")


def test_a_lease_is_respected_where_this_machine_has_locks(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks.FolderLock, "patience_seconds", 0.1)
    lease = owned_elsewhere(run)
    refused(run, "process 4711 on 'node-7'")
    assert is_at_work(run)
    lease.unlink()
    with run.locked() as store:
        store.append(line("a"))
        assert not lease.exists()


def test_who_lost_its_lease_writes_no_more(run: Run, without_locks: None) -> None:
    with run.locked() as store:
        store.append(line("a"))
        lease = owned_elsewhere(run)
        with pytest.raises(RunError, match=r"\.lease was taken away"):
            store.append(line("b"))
    assert cases(run) == ["a"] and lease.exists(), "that of the new owner stays"


def test_without_locks_anywhere_nothing_is_written(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(descriptor: int, how: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    refused(run, "set TMPDIR to a folder of this machine's own disk")
    assert not (run.folder / ".lease").exists()


CONTENDER = (
    NO_LOCKS
    + """
from mixerzoo.benchmarks.errors import RunError
folder, number = Path(sys.argv[1]), sys.argv[2]
lock.FolderLock.patience_seconds = 20.0
for turn in range(8):
    held = lock.FolderLock(folder)
    held.acquire()
    os.close(os.open(folder / "alone", os.O_CREAT | os.O_EXCL))  # fails if there are two
    (folder / "alone").unlink()
    if turn == 5 and number != "0":
        os.kill(os.getpid(), 9)
    held.release()
"""
)


def test_of_many_writers_without_locks_there_is_one_at_a_time(run: Run, without_locks: None) -> None:
    contenders = [python(CONTENDER, run.folder, number) for number in range(4)]
    ends = [(process.communicate()[1], process.returncode) for process in contenders]
    assert [code for _, code in ends] == [0, -9, -9, -9], ends
    with run.locked() as store:
        store.append(line("a"))


# --- The clock ---


def _answer(job: dict[str, Any], channel: Any) -> dict[str, Any]:
    if job["seed"] == 1:
        raise ValueError("no")
    return {}


def test_a_clock_that_goes_backwards_changes_nothing(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, asked = datetime(2026, 1, 1, tzinfo=timezone.utc), iter(range(10_000))

    def backwards() -> str:
        return (begun - timedelta(days=next(asked))).isoformat(timespec="seconds")

    for module in ("runner", "live", "progress", "environment"):
        monkeypatch.setattr(f"mixerzoo.benchmarks.{module}.utc_time", backwards)
    monkeypatch.setattr(time, "time", lambda: 1e9 - next(asked))
    plan = Plan(tuple(Case("a", "x", {}, "fake", {}, seed, "cpu", False) for seed in range(3)))
    limits = Limits(jobs=1)
    run.suite_path.unlink()

    def execute(retry_failed: bool) -> list[ResultLine]:
        executor, reporter = LocalExecutor(limits, "cpu", _answer, preloaded=[]), Several(StatusFile(run, []))
        suite = {"name": "s"}
        return list(
            runner.execute(
                lambda _: plan, run, suite, limits, reporter, executor, device="cpu", retry_failed=retry_failed
            )
        )

    first = execute(False)
    assert [result.status for result in first] == ["ok", "invalid", "ok"]
    assert sorted(first, key=lambda result: str(result.ended)) == first[::-1], "by the clock they ended the other way"
    again = execute(True)
    assert again[0] == first[0] and again[2] == first[2] and again[1].ended != first[1].ended
    assert run.results() == again, "of a case that ran again the later line counts, whatever its time"
    found = Onlooker(run)()
    assert found.state == "finished" and found.totals == {"done": 2, "failed": 1}
    assert found.last_failure == again[1] and found.status is not None and found.status.ended < found.status.started
