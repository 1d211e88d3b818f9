"""The kernels of other libraries: how they are called, what they need, and where they are known to go wrong."""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import importlib.util
import re
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .dispatch import needs_cuda_package

Version = tuple[int, ...]

LEAST_FLA = (0, 6)  # 0.4 computes wrong gradients of delta rules on some GPUs, without a word
HOPPER_BROKEN, HOPPER_MENDED = (3, 4), (3, 7, 1)  # Triton between them, see `gated_backward_fails`


@functools.cache
def installed_version(distribution: str) -> Version | None:
    """The numbers of a distribution's version, `(0, 6, 0)`; None if it is not installed."""
    try:
        return tuple(map(int, re.findall(r"\d+", importlib.metadata.version(distribution))[:3]))
    except importlib.metadata.PackageNotFoundError:
        return None


def needs_fla(device: torch.device) -> str | None:
    """For `Backend.why_not`: kernels of flash-linear-attention, on CUDA tensors."""
    reason = needs_cuda_package("fla")(device) or needs_cuda_package("triton")(device)
    if reason is not None:
        return reason
    found = installed_version("fla-core") or installed_version("flash-linear-attention")
    if found is None or found < LEAST_FLA:
        return f"fla-core {_text(LEAST_FLA)} or later is needed, and {_text(found)} is installed"
    return None


def gated_backward_fails(low_precision: bool, keeps_states_in_float32: bool = False) -> str | None:
    """Why the backward pass of fla's kernels with one decay per head cannot run on this machine's GPU, or None.

    On Hopper, Triton 3.4.0 to 3.7.0 compiles `chunk_bwd_dqkwg` wrongly, so fla-core 0.6 refuses to run it, unless
    tilelang, whose version of it is right, is installed and takes the call: states must be of the inputs' dtype.
    """
    if not torch.cuda.is_available() or torch.cuda.get_device_capability()[0] != 9:
        return None
    triton = installed_version("triton")
    if triton is None or not HOPPER_BROKEN <= triton < HOPPER_MENDED:
        return None
    tilelang = importlib.util.find_spec("tilelang") is not None
    if tilelang and not (low_precision and keeps_states_in_float32):
        return None
    otherwise = "" if low_precision and keeps_states_in_float32 else " or the package tilelang"
    return (
        f"on Hopper, fla's gated backward pass is wrong under Triton {_text(triton)}; "
        f"it needs Triton {_text(HOPPER_MENDED)} or later{otherwise}"
    )


def filled(x: Tensor, multiple: int = 8) -> Tensor:
    """`x` with zeros behind its last dimension, up to a multiple that kernels take: in 16 bit they refuse odd sizes."""
    missing = -x.shape[-1] % multiple
    return F.pad(x, (0, missing)) if missing else x


def _text(version: Version | None) -> str:
    return "none" if version is None else ".".join(map(str, version))


@dataclass(frozen=True)
class LibraryCall:
    """A function of a library, and what an op gave it."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


_listeners: ContextVar[tuple[list[LibraryCall], ...]] = ContextVar("listeners", default=())


def call_library(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """`function(*args, **kwargs)`. All adapters call their library through here: it is noted within `library_calls`."""
    if not torch.compiler.is_compiling():  # a context variable would break the compiled graph in two
        for noted in _listeners.get():
            noted.append(LibraryCall(function, args, kwargs))
    return function(*args, **kwargs)


@contextlib.contextmanager
def library_calls() -> Iterator[list[LibraryCall]]:
    """Within this context, collect the calls."""
    noted: list[LibraryCall] = []
    token = _listeners.set((*_listeners.get(), noted))
    try:
        yield noted
    finally:
        _listeners.reset(token)
