"""Choosing the implementation of an op, and recording which one ran."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch

_recorders: ContextVar[tuple[dict[str, set[str]], ...]] = ContextVar("recorders", default=())


def _anywhere(device: torch.device) -> str | None:
    return None


def needs_cuda_package(package: str) -> Callable[[torch.device], str | None]:
    """For `Backend.why_not`: the backend runs on CUDA tensors only, and needs `package` to be installed."""

    def why_not(device: torch.device) -> str | None:
        if device.type != "cuda":
            return f"it runs on a CUDA device, and the tensors are on {device}"
        if importlib.util.find_spec(package) is None:
            return f"the package {package!r} is not installed"
        return None

    return why_not


def needs_triton(device: torch.device) -> str | None:
    """For `Backend.why_not`: kernels of ours. They run on CUDA tensors, and on a CPU in Triton's interpreter."""
    interpreted = device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"
    return needs_cuda_package("triton")(torch.device("cuda") if interpreted else device)


@dataclass(frozen=True)
class Call:
    """What a backend is chosen by, beside the device."""

    dtype: torch.dtype
    width: int
    tokens: int
    gradient: bool
    variant: str = ""

    @classmethod
    def of(cls, values: torch.Tensor, *others: torch.Tensor | None, width: int, tokens: int, variant: str = "") -> Call:
        gradient = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in (values, *others))
        return cls(values.dtype, width, tokens, gradient, variant)


def _never(call: Call) -> str | None:
    return None


@dataclass(frozen=True)
class Backend:
    """One implementation of an op.

    name: `reference`, what the implementation is (`chunked`, `triton`, ...), or the library that it calls (`sdpa`,
        `fla`, ...).
    target: `module:function`, relative to the op's package; imported on first use, so that
        nothing is chosen by import alone.
    why_not: None if it can run on a device, else the reason, for the error message.
    automatic: whether `backend="auto"` may pick it: not a definition, nor what nobody has run on its device yet.
    """

    name: str
    target: str
    why_not: Callable[[torch.device], str | None] = _anywhere
    automatic: bool = True
    trust: str = "always"
    refuses: Callable[[Call], str | None] = _never
    libraries: tuple[str, ...] = ()


class Op:
    """The backends of one op, fastest first. `package` is the `__name__` of the op's package."""

    def __init__(self, package: str, *backends: Backend, problems: str | None = None) -> None:
        self.package = package
        self.name = package.rpartition(".")[2]
        self.backends = {b.name: b for b in backends}
        self._functions: dict[str, Callable[..., Any]] = {}

    def available(self, device: torch.device | str = "cpu") -> list[str]:
        """Names of the backends that can run on `device`."""
        return [b.name for b in self.backends.values() if b.why_not(torch.device(device)) is None]

    def select(self, backend: str, device: torch.device, call: Call | None = None) -> Callable[..., Any]:
        """The function behind `backend` (`auto`: the fastest that can run on `device`); the choice is recorded, except
        by code that torch.compile has compiled.

        Raises `ValueError` for an unknown name, `RuntimeError` for one that cannot run here, each with what to do.
        """
        if backend == "auto":
            chosen = next(
                b for b in self.backends.values() if b.automatic and b.trust == "always" and b.why_not(device) is None
            )
        elif backend in self.backends:
            chosen = self.backends[backend]
        else:
            raise ValueError(f"{self.name} has no backend {backend!r}; it has auto, {', '.join(self.backends)}")
        reason = chosen.why_not(device) or (None if call is None else chosen.refuses(call))
        if reason is not None:
            usable = ", ".join(self.available(device))
            raise RuntimeError(f"backend {backend!r} of {self.name} cannot run: {reason}; here run auto, {usable}")
        if not torch.compiler.is_compiling():  # a context variable would break the compiled graph in two
            for record in _recorders.get():
                record.setdefault(self.name, set()).add(chosen.name)
        if chosen.name not in self._functions:
            module, _, function = chosen.target.partition(":")
            self._functions[chosen.name] = getattr(importlib.import_module(f".{module}", self.package), function)
        return self._functions[chosen.name]


@contextlib.contextmanager
def record_backends() -> Iterator[dict[str, set[str]]]:
    """Within this context, collect op name -> names of the backends that ran."""
    record: dict[str, set[str]] = {}
    token = _recorders.set((*_recorders.get(), record))
    try:
        yield record
    finally:
        _recorders.reset(token)
