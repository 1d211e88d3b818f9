"""Memory: bytes allocated at the peak, by activations, and by the state."""

from __future__ import annotations

import contextvars
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from typing_extensions import Self

from ...mixers.limits import Size
from ...models import (
    LanguageModel,
    ModelConfig,
    compile_totals,
    compiled_since,
    count_flops,
    count_parameters,
    resolve_d_ff,
)
from ..doing import Progress
from ..runs import ResultLine
from ..training import Compile, Precision
from .base import CallSeconds, Measure, single, split_grid
from .entry import Entry
from .meter import measure_memory
from .outputs import require_finite
from .workload import Workload


class Memory(Measure):
    """Bytes that a freshly initialised model allocates on random tokens, one case for each mode and length.

    modes: `forward` (logits of every position), `train` (forward, backward, AdamW step). batch: sequences at once.
    compile: `off`, or the mode of `torch.compile`.
    """

    exclusive: ClassVar[bool] = True
    measure: Literal["memory"] = "memory"
    modes: tuple[Literal["forward", "train"], ...] = Field(default=("forward", "train"), min_length=1)
    lengths: tuple[Size, ...] = Field(default=(256, 512, 1024, 2048, 4096, 8192), min_length=1)
    batch: Size = 1
    precision: Precision = "auto"
    compile: Compile = False

    def cases(self) -> list[Self]:
        return split_grid(self)

    def run(
        self, config: ModelConfig, *, seed: int, device: torch.device, folder: Path, progress: Progress
    ) -> dict[str, Any]:
        """See `Measure.run`; metrics, bytes unless said otherwise:

        peak_bytes: the most allocated above what is resident: the model, and in mode train AdamW's moments; gradients
        count. model_bytes: parameters and buffers. optimizer_bytes: AdamW's moments (0 in mode forward).
        state_bytes: of all `batch` sequences, after reading the context. activation_bytes_per_token: in mode train what
        the forward pass keeps for the backward pass, in mode forward the peak; divided by batch * length.
        method: how bytes were read. parameters: number. flops: of a forward call over one sequence. With `compile` also
        `compile_seconds` and `graph_breaks`.
        """
        mode, length = single(self.modes, "modes"), single(self.lengths, "lengths")
        sizes: dict[str, Any] = {"batch": self.batch, "length": length, "seed": seed, "device": device}
        work = Workload(config, **sizes, precision=self.precision, compile=self.compile)
        before = compile_totals() if self.compile else {}
        progress(0.0, "warm-up")  # allocates what stays: AdamW's moments, workspaces
        if mode == "train":
            require_finite(work.train_step(), "the training step")
            work.optimizer.zero_grad()
            progress(0.3, "forward pass")
            activation_bytes = measure_memory(work.loss, device).held_bytes
            progress(0.5, "training step")
            reading = measure_memory(work.train_step, device)
        else:
            require_finite(work.forward(), "the forward pass")
            progress(0.5, "forward pass")
            reading = measure_memory(work.forward, device)
            activation_bytes = reading.peak_bytes
        progress(0.8, "state")
        _, state, said = work.prefill()
        require_finite(said, "the prefill")
        # counting runs a model of its own on the CPU; in an empty context, its backends are not recorded as ours
        flops = contextvars.Context().run(count_flops, config, length)
        return {
            "peak_bytes": reading.peak_bytes,
            "model_bytes": model_bytes(work.model),
            "optimizer_bytes": _optimizer_bytes(work.optimizer),
            "state_bytes": state.nbytes,
            "activation_bytes_per_token": activation_bytes / (self.batch * length),
            "method": reading.method,
            "parameters": count_parameters(config)["total"],
            "d_ff": resolve_d_ff(config),
            "flops": flops,
            **(compiled_since(before) if self.compile else {}),
        }

    def seconds(self, call: CallSeconds) -> float:
        """See `Measure.seconds`: what is read under the meter, once before it, prefill, and counting FLOPs."""
        total = 0.0
        for mode in self.modes:
            for length in self.lengths:
                once = call("train" if mode == "train" else "forward", self.batch, length, logits=1.0)
                reading = call("forward", self.batch, length)
                total += 2 * once + (2 if mode == "train" else 1) * reading + call("forward", 1, length, logits=1.0)
        return total

    @classmethod
    def entries(cls, result: ResultLine) -> Iterator[Entry]:
        mode, length, metrics = result.parameters["modes"][0], result.parameters["lengths"][0], result.metrics or {}
        peak = f"memory, {mode}: peak MB above what is resident, by length"
        yield Entry(peak, length, metrics["peak_bytes"] / 1e6)
        yield Entry(f"memory, {mode}: state MB by length", length, metrics["state_bytes"] / 1e6)


def model_bytes(model: LanguageModel) -> int:
    """Bytes of the parameters and buffers."""
    return sum(tensor.nbytes for tensor in [*model.parameters(), *model.buffers()])


def _optimizer_bytes(optimizer: torch.optim.Optimizer) -> int:
    return sum(v.nbytes for state in optimizer.state.values() for v in state.values() if isinstance(v, torch.Tensor))
