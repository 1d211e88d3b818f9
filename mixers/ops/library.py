"""Calls of other libraries' kernels go through here, so that one can be repeated without what an op puts around it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class LibraryCall:
    """A function of a library, and what an op gave it."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


_listeners: ContextVar[tuple[list[LibraryCall], ...]] = ContextVar("listeners", default=())


def call(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """`function(*args, **kwargs)`, noted by those who listen."""
    if not torch.compiler.is_compiling():  # a context variable would break the compiled graph in two
        for noted in _listeners.get():
            noted.append(LibraryCall(function, args, kwargs))
    return function(*args, **kwargs)


@contextlib.contextmanager
def listen() -> Iterator[list[LibraryCall]]:
    """Within this context, collect the calls."""
    noted: list[LibraryCall] = []
    token = _listeners.set((*_listeners.get(), noted))
    try:
        yield noted
    finally:
        _listeners.reset(token)
