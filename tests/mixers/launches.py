"""Counts what a GPU would be given to do, and where the host would wait for it, while torch runs on the CPU."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

NO_WORK = {"detach", "lift_fresh", "empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided"}
WAITING = {
    *("nonzero", "_unique", "_unique2", "unique_dim", "unique_consecutive", "unique_dim_consecutive"),
    *("_local_scalar_dense", "item", "masked_select", "isin", "bincount", "histc", "equal"),
}


class Launches(TorchDispatchMode):
    """launches: calls of aten functions that compute or copy; views and allocations are none. waits: of functions for
    which the host waits for a GPU: it must know how many elements come out, or what they are."""

    def __init__(self) -> None:
        super().__init__()
        self.launches: Counter[str] = Counter()
        self.waits: Counter[str] = Counter()
        self.values = _Values(self.waits)

    def __enter__(self) -> Launches:
        self.values.__enter__()
        return super().__enter__()

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        self.values.__exit__(*error)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs, name = kwargs or {}, function.__name__.partition(".")[0]
        if name not in NO_WORK and not is_view(function):
            self.launches[name] += 1
        masks = name in ("index", "index_put", "index_put_") and any(
            i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1]
        )
        lengths = name == "repeat_interleave" and kwargs.get("output_size") is None
        if name in WAITING or masks or lengths:
            self.waits[name] += 1
        return function(*args, **kwargs)


class _Values(TorchFunctionMode):
    """Of methods that read values without a call of an aten function on the CPU."""

    def __init__(self, waits: Counter[str]) -> None:
        super().__init__()
        self.waits = waits

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function in (torch.Tensor.tolist, torch.Tensor.cpu, torch.Tensor.numpy):
            self.waits[function.__name__] += 1
        return function(*args, **(kwargs or {}))


def is_view(function: torch._ops.OpOverload) -> bool:
    aliases = [r.alias_info for r in function._schema.returns]
    return bool(aliases) and all(a is not None and not a.is_write for a in aliases)


def per_chunk(run: Callable[[int], Launches], chunks: int = 4) -> tuple[float, float]:
    """Launches and waits of one chunk more: between calls of `chunks` and twice as many, whatever a call costs."""
    run(1)  # some tensors are made once and kept
    few, many = run(chunks), run(2 * chunks)
    return tuple((getattr(many, w).total() - getattr(few, w).total()) / chunks for w in ("launches", "waits"))
