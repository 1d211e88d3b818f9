"""One case by several processes of this machine: torch's launcher starts them, and the first thing that goes wrong with
any of them is what went wrong with the case.

All of them are in the process group of the case, and die with the process that started them.
"""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import shutil
import signal
import stat
import sys
import threading
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from .errors import RankError
from .training.distributed import process_group
from .worker import Channel, ask_kernel_to_die_with_parent, failure_of, measure_on

# A rank that is gone takes the connections of the others with it. Their errors must not be taken for the first one: it
# is given time to be seen, and those who only report a lost connection wait for it much longer.
_LINGER_SECONDS, _LINGER_FOR_OTHERS_SECONDS = 0.5, 10.0
_STDERR_BYTES = 4000
_LOST_CONNECTION = ("gloo", "NCCL", "Connection closed by peer", "Connection reset by peer", "Broken pipe")
_SPAWN = "spawn"  # a fork would copy the threads of this process as they are, in the middle of their work


Work = Callable[[dict[str, Any], Channel, torch.device], dict[str, Any]]


def run_ranks(job: dict[str, Any], channel: Channel, processes: int, work: Work = measure_on) -> dict[str, Any]:
    """Run a job by `processes` ranks; returns the metrics of rank 0, whose progress and backends `channel` is told.

    work: what each rank does, within a group of processes. On a CUDA device each rank has a GPU of its own, on a CPU
    its share of the job's threads. Raises `ValueError` where there are too few GPUs, `RankError` with the first cause
    if a rank fails.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    if job["device"].startswith("cuda") and torch.cuda.device_count() < processes:
        raise ValueError(f"processes: {processes} needs a GPU for each, and there are {torch.cuda.device_count()}")
    threads = max(1, job["threads"] // processes)
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(threads)
    # children of ours may have children: they are in this process's group, and go with it
    multiprocessing.current_process().daemon = False
    logs = Path(job["folder"]) / "ranks"
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=f"case-{os.getpid()}",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",  # a port that is free, by the system's choice; the ranks use the same one
        local_addr="localhost",
        max_restarts=0,
        start_method=_SPAWN,
        logs_specs=DefaultLogsSpecs(log_dir=str(logs)),
    )
    with _Listening(channel, processes) as ranks:
        try:
            returned = elastic_launch(config, _run_rank)({**job, "threads": threads}, ranks.theirs, work)
        except ChildFailedError as error:
            codes = {rank: failure.exitcode for rank, failure in error.failures.items()}
            returned = None
        finally:
            shutil.rmtree(logs, ignore_errors=True)
    if returned is None:
        raise _first_cause(codes, ranks.failures, processes)
    metrics, channel.backends = returned[0]
    return metrics


class _Listening:
    """Hears what ranks say, in a thread, until all of them are gone: progress is passed on, failures are kept."""

    def __init__(self, channel: Channel, processes: int) -> None:
        pairs = [multiprocessing.Pipe(duplex=False) for _ in range(processes)]
        self.ours, self.theirs = [ours for ours, _ in pairs], [theirs for _, theirs in pairs]
        self.channel = channel
        self.failures: list[dict[str, Any]] = []
        self._thread = threading.Thread(target=self._hear, daemon=True)

    def __enter__(self) -> _Listening:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        for connection in self.theirs:
            connection.close()
        self._thread.join()

    def _hear(self) -> None:
        open_ones: list[Any] = list(self.ours)
        while open_ones:
            for connection in wait(open_ones):
                assert isinstance(connection, Connection)
                try:
                    message = connection.recv()
                except (EOFError, OSError):  # a rank that was killed may have been in the middle of a message
                    open_ones.remove(connection)
                    continue
                if "failure" in message:
                    self.failures.append(message["failure"])
                else:
                    self.channel.pass_on(message)


def _first_cause(codes: dict[int, int], failures: Sequence[dict[str, Any]], processes: int) -> RankError:
    """The error of the rank that failed first. codes: exit codes of ranks that the launcher found gone. failures: what
    ranks said before they went; one that says nothing died without a word, which nobody else's end makes it do."""
    told = {failure["rank"] for failure in failures}
    for rank, code in sorted(codes.items()):
        if rank not in told:
            return RankError(*_silent_end(code, f"rank {rank} of {processes}: "))
    first = min(failures, key=lambda failure: (failure["lost_connection"], failure["time"]))
    return RankError(first["status"], f"rank {first['rank']} of {processes}: {first['error']}")


def _silent_end(code: int, who: str) -> tuple[str, str]:
    if code == -signal.SIGKILL:
        return "out_of_memory", f"{who}killed by SIGKILL, which the runner did not send: the system ran out of memory"
    how = f"killed by signal {-code} ({signal.strsignal(-code)})" if code < 0 else f"exited with code {code}"
    return "crashed", f"{who}{how}\n{_stderr_tail()}".strip()


def _stderr_tail() -> str:
    """The end of what all ranks have printed, where that goes to a file, as it does in a run."""
    status = os.fstat(2)
    if not stat.S_ISREG(status.st_mode):
        return ""
    sys.stderr.flush()
    try:
        tail = os.pread(2, _STDERR_BYTES, max(0, status.st_size - _STDERR_BYTES))
    except OSError:  # it can be written only
        return ""
    return tail.decode(errors="replace").strip()


def _run_rank(
    job: dict[str, Any], connections: Sequence[Connection], work: Work
) -> tuple[dict[str, Any], dict[str, set[str]]]:
    """What a rank runs: the case, as if it were alone, but for its part of every batch."""
    faulthandler.enable()
    ask_kernel_to_die_with_parent()
    threading.Thread(target=_die_with_parent, daemon=True).start()
    rank = int(os.environ["RANK"])
    channel = Channel(connections[rank])
    if rank > 0:
        channel.progress = lambda fraction, said: None  # type: ignore[method-assign]
    try:
        with process_group(job["device"]) as device:
            try:
                return work(job, channel, device), channel.backends
            except Exception as error:
                _fail(error, rank, connections[rank])
    except Exception as error:
        _fail(error, rank, connections[rank])
    raise AssertionError("a rank that fails has gone")


def _die_with_parent() -> None:
    """Where the kernel does not do it, and where the parent was gone before it was asked."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os.kill(os.getpid(), signal.SIGKILL)


def _fail(error: Exception, rank: int, connection: Connection) -> None:
    """Say what went wrong, and go: what is left of the group of processes must not be taken down in good order."""
    lost = isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and any(text in str(error) for text in _LOST_CONNECTION)
    )
    failure = {**failure_of(error), "rank": rank, "lost_connection": lost, "time": time.monotonic()}
    connection.send({"failure": failure})
    time.sleep(_LINGER_FOR_OTHERS_SECONDS if lost else _LINGER_SECONDS)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)
