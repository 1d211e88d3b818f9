"""`torch.compile` for models and mixers, in one place: what is called compiled is, or an error says why it is not."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal, TypeVar, cast

import torch

CompileMode = Literal["default", "max-autotune"]
"""What `torch.compile` may spend on a model; `max-autotune` times many kernels first."""
BACKEND = "inductor"

_CALL = TypeVar("_CALL", bound=Callable[..., Any])
# Sequences of other lengths, and layers told to see less, are compiled apart; torch gives up at eight and goes on
# uncompiled without a word.
_MOST_VERSIONS = 64


def compiled(call: _CALL, mode: CompileMode, device: torch.device) -> _CALL:
    """`call`, a function or module of tensors on `device`, through `torch.compile`: compiled when it is first called,
    and again for what it was not compiled for.

    The first call with gradients, and the first without, runs as it is before, its result thrown away: that is how the
    backends that it takes are recorded, of which compiled code tells nothing. So a call must not change what is kept
    between calls.
    mode: `default`, or `max-autotune`, which times kernels against each other and on CUDA replays graphs of them; no
    GPU has confirmed that here yet. For the rest of the process, what would have to be compiled more than 64 times
    raises an error. Raises `ValueError` if nothing can be compiled on `device`, with the reason.
    """
    _try_out(mode, device, BACKEND)
    settings: Any = torch._dynamo.config  # by the names that torch 2.6 has too
    settings.cache_size_limit = max(settings.cache_size_limit, _MOST_VERSIONS)
    settings.fail_on_cache_limit_hit = True
    return cast(_CALL, _Compiled(call, torch.compile(call, mode=mode, backend=BACKEND)))


class _Compiled:
    """Calls `compiled`, and before it, once with gradients and once without, `plain`."""

    def __init__(self, plain: Callable[..., Any], compiled: Callable[..., Any]) -> None:
        self._plain, self._compiled = plain, compiled
        self._recorded: set[bool] = set()

    def __call__(self, *inputs: Any, **options: Any) -> Any:
        if torch.is_grad_enabled() not in self._recorded:
            self._recorded.add(torch.is_grad_enabled())
            self._plain(*inputs, **options)
        return self._compiled(*inputs, **options)


def compile_totals() -> dict[str, float]:
    """What this process has compiled so far: `compile_seconds` that it took, backward passes included, and
    `graph_breaks`, places at which compiled code goes back to Python."""
    from torch._dynamo import utils

    breaks = sum(utils.counters["graph_break"].values())
    return {"compile_seconds": utils.calculate_time_spent()["total_wall_time"], "graph_breaks": breaks}


def compiled_since(before: dict[str, float]) -> dict[str, float]:
    """What was compiled since `compile_totals` said `before`, in the same words."""
    return {name: total - before[name] for name, total in compile_totals().items()}


@functools.cache
def _try_out(mode: CompileMode, device: torch.device, backend: str) -> None:
    """Compile a sum on `device`: what is missing, or switched off, shows now. Only success is remembered."""
    try:
        found = torch.compile(_is_compiled, mode=mode, backend=backend)(torch.zeros(1, device=device)).item()
    except Exception as error:  # whatever compilers, their headers and drivers raise
        reason = str(error).strip().splitlines()[:1]
        raise ValueError(
            f"torch.compile cannot be used on {device}: {type(error).__name__}: {''.join(reason)}"
        ) from error
    if not found:
        raise ValueError("torch.compile is switched off here and would compile nothing; is TORCH_COMPILE_DISABLE set?")


def _is_compiled(x: torch.Tensor) -> torch.Tensor:
    return x + 1 if torch.compiler.is_compiling() else x
