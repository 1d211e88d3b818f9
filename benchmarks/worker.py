"""What the process of a case runs: `python -m mixerzoo.benchmarks.worker`, started by the runner.

One JSON line on stdin says what to run; stdin then stays open, and its end means that the runner is gone. JSON lines
on what was stdout tell of progress, then of the outcome. Everything else that is printed goes to stderr.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import json
import math
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .errors import NotFiniteError

_PR_SET_PDEATHSIG = 1
_MESSAGE_INTERVAL = 0.25  # seconds between two progress lines
_TRACEBACK_CHARACTERS = 4000


class Channel:
    """The way back to the runner."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._last = -math.inf
        self.backends: dict[str, set[str]] = {}

    def progress(self, fraction: float, message: str) -> None:
        """Tell how far the case is, `fraction` in 0..1, and what it is doing; too frequent calls are dropped."""
        now = time.monotonic()
        if now - self._last >= _MESSAGE_INTERVAL:
            self._last = now
            self.send({"progress": fraction, "message": message})

    def send(self, message: dict[str, Any]) -> None:
        data = json.dumps(message, allow_nan=False).encode() + b"\n"
        while data:
            data = data[os.write(self._descriptor, data) :]


RunCase = Callable[[dict[str, Any], Channel], dict[str, Any]]


def serve(run_case: RunCase) -> None:
    """Take one job from the runner, run it with `run_case(job, channel)`, and send back metrics or what went wrong."""
    faulthandler.enable()
    channel = Channel(_take_stdout())
    _ask_kernel_to_die_with_runner()
    line = sys.stdin.buffer.readline()
    if not line.endswith(b"\n"):
        return  # the runner died before it could say what to do
    threading.Thread(target=_die_when_stdin_ends, daemon=True).start()
    outcome = _outcome(run_case, json.loads(line), channel)
    outcome["backends"] = {op: sorted(names) for op, names in channel.backends.items()}
    channel.send({"outcome": outcome})


def _outcome(run_case: RunCase, job: dict[str, Any], channel: Channel) -> dict[str, Any]:
    try:
        metrics = run_case(job, channel)
        where = _not_finite(metrics)
        if where is not None:
            return {"status": "not_finite", "error": f"the metric {where} is not a finite number"}
        return {"status": "ok", "metrics": metrics}
    except Exception as error:
        status = classify(error)
        text = f"{type(error).__name__}: {error}"
        if status == "crashed":
            text += "\n" + traceback.format_exc()[-_TRACEBACK_CHARACTERS:]
        return {"status": status, "error": text}


def classify(error: BaseException) -> str:
    """The status of a case that ended in `error`."""
    torch = sys.modules.get("torch")
    if isinstance(error, MemoryError) or (torch is not None and isinstance(error, torch.OutOfMemoryError)):
        return "out_of_memory"
    if isinstance(error, RuntimeError) and any(
        text in str(error)
        # torch has no exception type of its own for the CPU allocator, nor for libraries on the GPU
        for text in ("DefaultCPUAllocator: can't allocate memory", "CUDA error: out of memory", "ALLOC_FAILED")
    ):
        return "out_of_memory"
    if isinstance(error, NotFiniteError):
        return "not_finite"
    return "invalid" if isinstance(error, ValueError) else "crashed"


def run_case(job: dict[str, Any], channel: Channel) -> dict[str, Any]:
    """Run a measure on a model; returns its metrics."""
    import torch

    from ..mixers.ops.dispatch import record_backends
    from ..models import ModelConfig
    from .suite import parse_measure

    torch.set_num_threads(job["threads"])
    config = ModelConfig.from_dict(job["model"])
    measure = parse_measure({"measure": job["measure"], **job["parameters"]})
    with record_backends() as channel.backends:
        return measure.run(
            config,
            seed=job["seed"],
            device=torch.device(job["device"]),
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


def _take_stdout() -> int:
    """A private copy of stdout; from now on, what anybody prints goes to stderr."""
    private = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return private


def _ask_kernel_to_die_with_runner() -> None:
    """Die with the runner even while native code runs; and where memory runs out, go before the runner does."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        with contextlib.suppress(OSError):  # some containers forbid it
            Path("/proc/self/oom_score_adj").write_text("1000")


def _die_when_stdin_ends() -> None:
    """Covers what the kernel does not: other systems, the children of this process, a runner that was gone before."""
    while os.read(0, 4096):
        pass
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    serve(run_case)
