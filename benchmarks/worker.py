"""What the process of a case runs. It tells the runner of its progress, then of the outcome, and dies with it.

Nothing here imports torch before a case needs it, so that the runner can be tested without it.
"""

from __future__ import annotations

import contextlib
import faulthandler
import math
import os
import resource
import sys
import threading
import time
import traceback
from collections.abc import Callable
from multiprocessing import reduction
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import guardian
from .doing import Doing
from .errors import NotFiniteError, RankError
from .family import Family

if TYPE_CHECKING:
    import torch

_MESSAGE_INTERVAL = 0.25  # seconds between two progress lines
_TRACEBACK_CHARACTERS = 4000


class Channel:
    """The way back to the runner; a case puts the backends that ran into `backends`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._last = -math.inf
        self.backends: dict[str, set[str]] = {}

    def progress(self, fraction: float, said: str | Doing) -> None:
        """Tell how far the case is, `fraction` in 0..1, and what it is doing; too frequent calls are dropped."""
        now = time.monotonic()
        if now - self._last >= _MESSAGE_INTERVAL:
            self._last = now
            doing = Doing.of(said)
            # plain numbers: a plug-in's may be tensors, which a runner without torch could not read
            values = {str(name): float(value) for name, value in doing.values.items()}
            share = min(1.0, max(0.0, float(fraction)))
            self._connection.send(
                {"fraction": share, "doing": Doing(str(doing.stage), values), "cuda_bytes": _cuda_bytes()}
            )

    def pass_on(self, message: dict[str, Any]) -> None:
        """Tell what the channel of another process told."""
        self._connection.send(message)


def _cuda_bytes() -> int | None:
    """What this process's tensors hold on its GPU; None if it uses none."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return None
    return torch.cuda.memory_allocated()


class Inherited:
    """An open file descriptor that a child is to hold as well, as an argument of its process."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def __reduce__(self) -> tuple[Any, ...]:
        return _inherit, (reduction.DupFd(self.descriptor),)


def _inherit(duplicate: Any) -> Inherited:
    return Inherited(duplicate.detach())


RunCase = Callable[[dict[str, Any], Channel], dict[str, Any]]


def serve(
    run_case: RunCase, job: dict[str, Any], connection: Connection, stderr: Inherited, held: list[Inherited]
) -> None:
    """Run one job with `run_case(job, channel)` in a child, which sends back metrics or what went wrong.

    This process runs nothing that is measured. It is the ancestor of all that the case starts, so that nothing of it
    stays: when the runner dies, it kills them and itself; when the case is over, it waits until it is killed.
    stderr: where everything that is printed goes. held: locks, of the run and of the machine, which are thereby held
    until the runner and all its cases are gone.
    """
    os.setsid()  # a group of its own: Ctrl-C goes to the runner alone, a kill to all of the case
    for stream in (1, 2):
        os.dup2(stderr.descriptor, stream)
    guardian.adopt_orphans()
    child = os.fork()  # before there is any thread
    if child == 0:
        ask_kernel_to_die_with_parent()
        _serve(run_case, job, connection)
        os._exit(0)
    watch = threading.Thread(target=_die_with_runner, args=(connection,), daemon=True)
    watch.start()
    _, status = os.waitpid(child, 0)
    with contextlib.suppress(OSError):  # the runner is gone: `watch` is at work
        connection.send({"exit_code": os.waitstatus_to_exitcode(status)})
    watch.join()


def _serve(run_case: RunCase, job: dict[str, Any], connection: Connection) -> None:
    faulthandler.enable()
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(job["threads"])
    channel = Channel(connection)
    outcome = _outcome(run_case, job, channel)
    outcome["backends"] = {op: sorted(names) for op, names in channel.backends.items()}
    sys.stdout.flush()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    connection.send({"outcome": outcome, "peak_bytes": peak})


def _outcome(run_case: RunCase, job: dict[str, Any], channel: Channel) -> dict[str, Any]:
    try:
        metrics = run_case(job, channel)
        where = _not_finite(metrics)
        if where is not None:
            return {"status": "not_finite", "error": f"the metric {where} is not a finite number"}
        return {"status": "ok", "metrics": metrics}
    except Exception as error:
        return failure_of(error)


def failure_of(error: Exception) -> dict[str, Any]:
    """Status and error of a case that `error`, which is being handled, ends."""
    if isinstance(error, RankError):
        return {"status": error.status, "error": str(error)}
    status = classify(error)
    text = f"{type(error).__name__}: {error}"
    if status == "crashed":
        text += "\n" + traceback.format_exc()[-_TRACEBACK_CHARACTERS:]
    return {"status": status, "error": text}


# What says that memory ran out where the error has no type of its own: torch's CPU allocator, the CUDA runtime and
# driver, Triton's launcher, the libraries on the GPU, and an allocator's error that a compiler took up into its own.
_NO_MEMORY = (
    "DefaultCPUAllocator: can't allocate memory",
    "CUDA error: out of memory",
    "CUDA driver error: out of memory",
    "Triton Error [CUDA]: out of memory",
    "CUDA out of memory. Tried to allocate",
    "ALLOC_FAILED",  # cuBLAS, cuFFT, cuSOLVER, cuSPARSE
    "ALLOCATION_FAILED",  # cuDNN
)


def classify(error: BaseException) -> str:
    """The status of a case that ended in `error`.

    A kernel that wants more of a multiprocessor's own memory than the device has (Triton's `OutOfResources`) has
    crashed: no smaller batch or length helps, its tiles were chosen badly, and the traceback says whose.
    """
    torch = sys.modules.get("torch")
    if isinstance(error, MemoryError) or (torch is not None and isinstance(error, torch.OutOfMemoryError)):
        return "out_of_memory"
    if isinstance(error, RuntimeError) and any(text in str(error) for text in _NO_MEMORY):
        return "out_of_memory"
    if isinstance(error, NotFiniteError | FloatingPointError):  # the latter: a mixer that looks at its input
        return "not_finite"
    return "invalid" if isinstance(error, ValueError) else "crashed"


def run_case(job: dict[str, Any], channel: Channel) -> dict[str, Any]:
    """Run a measure on a model, by as many processes as it takes; returns its metrics."""
    import torch

    from .device import make_current
    from .plugins import load_quietly
    from .suite import parse_measure

    load_quietly()
    measure = parse_measure({"measure": job["measure"], **job["parameters"]})
    if measure.processes > 1:
        from .ranks import run_ranks

        return run_ranks(job, channel, measure.processes)
    device = torch.device(job["device"])
    make_current(device)
    return measure_on(job, channel, device)


def measure_on(job: dict[str, Any], channel: Channel, device: torch.device) -> dict[str, Any]:
    """Run the measure of a job in this process."""
    import torch

    from ..mixers.ops.dispatch import record_backends
    from ..mixers.tf32 import tf32
    from ..models import ModelConfig
    from .plugins import load_quietly
    from .suite import parse_measure

    load_quietly()
    torch.set_num_threads(job["threads"])
    config = ModelConfig.from_dict(job["model"])
    measure = parse_measure({"measure": job["measure"], **job["parameters"]})
    with tf32(job["tf32"]), record_backends() as channel.backends:
        return measure.run(
            config,
            seed=job["seed"],
            device=device,
            folder=Path(job["folder"]),
            progress=channel.progress,
        )


def _not_finite(value: Any, path: str = "") -> str | None:
    """The path of the first number in nested dicts and lists that is not finite."""
    if isinstance(value, float) and not math.isfinite(value):
        return path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else ()
    found = (_not_finite(item, f"{path}.{key}" if path else str(key)) for key, item in items)
    return next((where for where in found if where is not None), None)


def ask_kernel_to_die_with_parent() -> None:
    """Die even while native code runs; and where memory runs out, go before the runner does."""
    guardian.die_with_parent()
    if sys.platform == "linux":
        with contextlib.suppress(OSError):  # some containers forbid it
            Path("/proc/self/oom_score_adj").write_text("1000")


def _die_with_runner(connection: Connection) -> None:
    """The runner never sends anything: there is something to read when its end is closed."""
    wait([connection])
    Family(os.getpid()).kill()
