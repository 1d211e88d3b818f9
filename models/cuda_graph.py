"""A recorded step as a CUDA graph: one launch instead of hundreds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

WARM_UPS = 3
"""Runs ahead of the capture: libraries get their workspaces and choose their kernels, which a capture must not see."""


class Graphs(Protocol):
    """Makes graphs; of CUDA, or what a test puts in its place."""

    def capture(self, step: Callable[[], list[Tensor]], commit: Callable[[list[Tensor]], None]) -> Replay:
        """`step` and `commit(its results)` as one graph. `step` may run any number of times, `commit` must not take
        effect before the first replay."""


class Replay(Protocol):
    """What was captured. outputs: the results of the step, which every replay overwrites."""

    outputs: list[Tensor]

    def replay(self) -> None: ...


class CudaGraphs:
    """Graphs of one device. They share a pool of memory, so they must be replayed one after the other."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.pool = torch.cuda.graph_pool_handle()

    def capture(self, step: Callable[[], list[Tensor]], commit: Callable[[list[Tensor]], None]) -> Replay:
        """See `Graphs`. Raises `RuntimeError` if something cannot be captured, such as a wait for the device."""
        with torch.cuda.device(self.device):
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(WARM_UPS):
                    step()
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self.pool):
                outputs = step()
                commit(outputs)
        return _CudaReplay(graph, outputs)


class _CudaReplay:
    def __init__(self, graph: torch.cuda.CUDAGraph, outputs: list[Tensor]) -> None:
        self.graph, self.outputs = graph, outputs

    def replay(self) -> None:
        self.graph.replay()
