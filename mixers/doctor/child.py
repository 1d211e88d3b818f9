"""What a child process of the doctor runs: `python -m mixerzoo.mixers.doctor.child`.

It reads one line of JSON, the job, and writes to what was its standard output, a line of JSON each: `ready`; `begin`,
with the case and stage that it begins, and which field of the verdict is to blame if nothing more is heard; `found`,
with fields of the verdict; `done`. Whatever else is printed goes to standard error.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import importlib
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

DETAIL_CHARACTERS = 600
Fields = dict[str, Any]


def main() -> None:
    channel = os.dup(1)
    os.dup2(2, 1)
    faulthandler.enable()
    _die_with_parent()
    job = json.loads(sys.stdin.buffer.readline())
    threading.Thread(target=_watch_parent, daemon=True).start()
    sys.path[:] = job["path"]

    def tell(**message: Any) -> None:
        os.write(channel, json.dumps(message).encode() + b"\n")

    from ..tf32 import tf32  # torch, which must not be loaded before the parent's path is known

    with tf32(False):
        _Session(job, tell).work()
    sys.stdout.flush()
    os._exit(0)  # nothing that was loaded may hang or fail on the way out


class _Session:
    """The cases of one job, one after the other."""

    def __init__(self, job: dict[str, Any], tell: Callable[..., None]) -> None:
        import torch

        from .cases import Case
        from .proof import Sizes

        self.tell, self.first, self.work_of = tell, job["first"], job["work"]
        self.device = torch.device(job["device"])
        torch.set_num_threads(job["threads"])
        if self.device.index is not None and self.device.type == "cuda":
            torch.cuda.set_device(self.device)  # Triton launches on the current one, wherever the tensors are
        self.op = importlib.import_module(job["op"]).OP
        self.cases = [Case(*case) for case in job["cases"]]
        self.gradients: list[bool] = job["gradients"]
        self.lengths: list[str] = job["lengths"]
        self.sizes = Sizes(*job["sizes"])
        tell(ready=True)

    def work(self) -> None:
        stages = self._prove if self.work_of == "prove" else self._time
        for i in range(self.first, len(self.cases)):
            for name, blame, stage in stages(i):
                self.tell(begin=i, stage=name, blame=blame)
                fields = self._guarded(stage, blame)
                self.tell(found=i, fields=fields)
                if fields.get(blame, "right") != "right":
                    break
            self.tell(done=i)
            if not self._device_works():  # an illegal access spoils the context for all that follows
                return

    def _prove(self, i: int) -> Iterator[tuple[str, str, Callable[[], Fields]]]:
        from .proof import Proof

        proof = Proof(self.op, self.cases[i], self.device, self.sizes)
        errors: dict[str, Any] = {}

        def judged(blame: str, found: dict[str, Any]) -> Fields:
            errors.update({name: e.model_dump() for name, e in found.items()})
            wrong = [f"{name} {e.error:.1e}, at most {e.limit:.1e}" for name, e in found.items() if not e.passed]
            outcome = {blame: "wrong", "detail": "; ".join(wrong)} if wrong else {blame: "right"}
            return {**outcome, "errors": errors}

        yield "forward", "outcome", lambda: judged("outcome", proof.forward())
        yield "backward", "backward", lambda: judged("backward", proof.backward())

    def _time(self, i: int) -> Iterator[tuple[str, str, Callable[[], Fields]]]:
        from .cases import dtype_of, problem_of
        from .timing import Stopwatch

        case = self.cases[i]
        problem = problem_of(self.op, case.variant, case.size)
        assert problem is not None
        seconds: dict[str, dict[str, float]] = {}

        def timed(length: str, kind: str, measure: Callable[[], float | None]) -> Fields:
            found = measure()
            if found is not None:
                seconds.setdefault(length, {})[kind] = found
            return {"seconds": seconds}

        watch = Stopwatch(problem, case.backend, self.device, dtype_of(case.dtype))
        for length, kind, measure in watch.seconds(self.lengths, self.gradients[i]):
            blame = "backward" if kind == "train" else "outcome"
            yield f"{kind} of length {length}", blame, lambda a=(length, kind, measure): timed(*a)  # type: ignore[misc]

    def _guarded(self, stage: Callable[[], Fields], blame: str) -> Fields:
        from ..ops.dispatch import CannotRunError

        try:
            return stage()
        except CannotRunError as error:
            return {blame: "refused", "detail": error.reason}
        except Exception as error:
            return {blame: "crashed", "detail": f"{type(error).__name__}: {error}"[:DETAIL_CHARACTERS]}

    def _device_works(self) -> bool:
        import torch

        try:
            return float(torch.ones(8, device=self.device).sum()) == 8
        except RuntimeError:
            return False


def _die_with_parent() -> None:
    """Even while native code runs."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        with contextlib.suppress(OSError):  # where memory runs out, go before the user's process does
            Path("/proc/self/oom_score_adj").write_text("1000")


def _watch_parent() -> None:
    """Covers what the kernel does not: other systems, children of this process. The parent never writes again."""
    sys.stdin.buffer.read()
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main()
