"""How long a backend takes, by the length of the call."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.utils.benchmark import Timer

from ..ops.problems import Inputs, Problem
from ..ops.verdicts import LENGTHS
from .cases import cast

_ROUNDS_SECONDS = 0.05  # of calls behind one median
_SLOWEST = {"cuda": 2.0, "cpu": 0.25}  # seconds; a length that would take longer is left out
_TOKENS = {"cuda": 16384, "cpu": 0}  # of all rows together, which fill a GPU as training does
_MOST_ROWS = 8

Seconds = dict[str, dict[str, float]]


class Stopwatch:
    """Times one backend on one problem, from short to long."""

    def __init__(self, problem: Problem, backend: str, device: torch.device, dtype: torch.dtype) -> None:
        self.problem, self.backend, self.device, self.dtype = problem, backend, device, dtype
        self.slowest = _SLOWEST.get(device.type, _SLOWEST["cuda"])

    def seconds(self, lengths: Sequence[str], gradients: bool) -> Iterator[tuple[str, str, Callable[[], float | None]]]:
        """Lengths of `LENGTHS` and kinds (`forward`, `train`), each with what times it, in seconds of a call.

        None where memory does not suffice. What is too long after what was measured is not offered.
        """
        lasts = dict.fromkeys(("forward", "train") if gradients else ("forward",), 0.0)
        before = 1
        for length in lengths:
            tokens = LENGTHS[length]
            for kind in lasts:
                if kind == "train" and length == "one":  # nobody trains token by token
                    continue
                if lasts[kind] * tokens / before > self.slowest and before > 1:
                    continue
                yield length, kind, lambda kind=kind, tokens=tokens: self._note(lasts, kind, tokens)  # type: ignore[misc]
            before = tokens

    def _note(self, lasts: dict[str, float], kind: str, tokens: int) -> float | None:
        try:
            lasts[kind] = self._time(self._call(kind, tokens))
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            lasts[kind] = float("inf")
            return None
        return lasts[kind]

    def _time(self, call: Callable[[], Any]) -> float:
        call()  # compiles, tunes
        self._wait()
        start = time.perf_counter()
        call()
        self._wait()
        once = time.perf_counter() - start
        if once > self.slowest:
            return once
        # synchronises around each block of calls; by itself it would take one thread
        timer = Timer("call()", globals={"call": call}, num_threads=torch.get_num_threads())
        return float(timer.blocked_autorange(min_run_time=_ROUNDS_SECONDS).median)

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _call(self, kind: str, tokens: int) -> Callable[[], Any]:
        if kind == "train":
            x = {n: t.requires_grad_() if t.is_floating_point() else t for n, t in self._inputs(tokens).items()}
            return lambda: self._train(x)
        state = None
        if tokens == 1 and self.problem.carries_state:
            with torch.no_grad():
                _, state = self.problem.run(self._inputs(LENGTHS["short"]), None, self.backend)
        x = self._inputs(tokens)
        return lambda: self._forward(x, state)

    def _forward(self, x: Inputs, state: Any) -> None:
        with torch.no_grad():
            self.problem.run(x, state, self.backend)

    def _train(self, x: Inputs) -> None:
        output, _ = self.problem.run(x, None, self.backend)
        wanted = [t for t in x.values() if t.requires_grad]
        torch.autograd.grad(output, wanted, torch.ones_like(output), allow_unused=True)

    def _inputs(self, tokens: int) -> Inputs:
        rows = max(1, min(_MOST_ROWS, _TOKENS.get(self.device.type, 0) // tokens))
        drawn = self.problem.inputs(rows, tokens, torch.Generator().manual_seed(0))
        return cast(self.problem, drawn, self.dtype, self.device)


def out_of_memory(error: BaseException) -> bool:
    """Whether it says that memory ran out; Triton and libraries have no exception type for it."""
    words = ("out of memory", "can't allocate memory", "ALLOC_FAILED")
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(word in str(error) for word in words)
