"""Where in a model numbers first stop being finite."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn


def first_not_finite(model: nn.Module, forward: Callable[[], Any]) -> str:
    """Name the part of `model` that is to blame for a NaN or an infinity: a parameter, the first module whose output is
    not finite when `forward` runs once more, or the last parameter on the way forward whose gradient is not finite.

    Backward passes spread what is not finite towards the embedding, so that the last one is where it began. A tied
    embedding, which comes first, is blamed only if nothing else is.
    """
    for name, parameter in model.named_parameters():
        if not _finite(parameter):
            return f"the parameter {name}"
    seen: list[str] = []
    # a module that refuses such input raises by itself
    with _watch(model, seen), torch.no_grad(), contextlib.suppress(ArithmeticError):
        forward()
    if seen:
        return f"the output of {seen[0]}"
    bad = [name for name, p in model.named_parameters() if p.grad is not None and not _finite(p.grad)]
    return f"the gradient of {bad[-1]}" if bad else "the loss itself"


@contextlib.contextmanager
def _watch(model: nn.Module, seen: list[str]) -> Iterator[None]:
    """Append the names of modules whose output is not finite to `seen`, as they finish."""

    def look(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            first = output[0] if isinstance(output, tuple) else output
            if isinstance(first, Tensor) and not _finite(first):
                seen.append(name)

        return hook

    handles = [module.register_forward_hook(look(name)) for name, module in model.named_modules() if name]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _finite(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or bool(tensor.detach().isfinite().all())
