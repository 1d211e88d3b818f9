"""What a piece of work returned has to be finite: the time of a mixer that returns NaN says nothing.

Every meter looks at the result of its first call, once that is timed, and at that of its last one, so that looking is
never within what is timed nor between two rounds.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from ..errors import NotFiniteError


def require_finite(result: Any, work: str) -> None:
    """Raise `NotFiniteError` if a tensor in `result`, or a gradient of a module in it, is not finite.

    result: of a piece of `work`, which names it in the message: tensors and modules, in tuples and lists. All else is
    passed over, such as a state, which may hold infinities for good reasons.
    """
    for name, tensor in _tensors(result):
        if tensor.is_floating_point() and not bool(tensor.detach().isfinite().all()):
            kind = "NaN" if bool(tensor.detach().isnan().any()) else "infinities"
            raise NotFiniteError(f"{name} of {work} holds {kind}, so that its speed or memory would say nothing")


def _tensors(result: Any) -> Iterator[tuple[str, Tensor]]:
    if isinstance(result, Tensor):
        yield "the output", result
    elif isinstance(result, nn.Module):
        for name, parameter in result.named_parameters():
            if parameter.grad is not None:
                yield f"the gradient of {name}", parameter.grad
    elif type(result) in (tuple, list):
        for part in result:
            yield from _tensors(part)
