"""Choosing the implementation of an op, and recording which one ran."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
import importlib.util
import logging
import os
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from . import verdicts

logger = logging.getLogger(__name__)

_recorders: ContextVar[tuple[dict[str, set[str]], ...]] = ContextVar("recorders", default=())

Trust = Literal["always", "proven", "never"]


class CannotRunError(RuntimeError):
    """A backend that was asked for by name cannot run here, or not this call. reason: of the backend, in its words."""

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


def wants_gradient(*tensors: Tensor | None) -> bool:
    """Whether a backward pass may follow."""
    return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)


class Call(NamedTuple):
    """What a backend is chosen by, beside the device.

    dtype: of the values. width: the largest head size that the kernels see. tokens: of this call, per sequence; 1 is
    decoding. gradient: whether a backward pass may follow. variant: which of the op's cases this is: the names of what
    is given, joined by `+`.
    """

    dtype: torch.dtype
    width: int
    tokens: int
    gradient: bool
    variant: str = ""

    @staticmethod
    def of(values: Tensor, *others: Tensor | None, width: int, tokens: int, variant: str = "") -> Call:
        """Of `values` and whatever `others` a gradient may be wanted of."""
        return Call(values.dtype, width, tokens, wants_gradient(values, *others), variant)

    @property
    def key(self) -> verdicts.Key:
        return verdicts.Key(self.variant, str(self.dtype).removeprefix("torch."), verdicts.width_class(self.width))


def _anywhere(device: torch.device) -> str | None:
    return None


def _anything(call: Call) -> str | None:
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
class Backend:
    """One implementation of an op.

    name: `reference`, what the implementation is (`chunked`, `triton`, ...), or the library that it calls (`sdpa`,
        `fla`, ...).
    target: `module:function`, relative to the op's package; imported on first use, so that
        nothing is chosen by import alone.
    why_not: None if it can run on a device, else the reason, for the error message.
    trust: whether `backend="auto"` may pick it: `always`; `proven`, where `mixerzoo doctor` has found it right and
        fastest on this very machine; `never`, as a definition.
    refuses: None if it can take a call, else the reason.
    libraries: distributions that it calls; a verdict holds for one version of them.
    """

    name: str
    target: str
    why_not: Callable[[torch.device], str | None] = _anywhere
    trust: Trust = "always"
    refuses: Callable[[Call], str | None] = _anything
    libraries: tuple[str, ...] = ()

    @property
    def versions(self) -> dict[str, str]:
        """Of its libraries; those that are not installed are missing."""
        found = {}
        for library in self.libraries:
            with contextlib.suppress(PackageNotFoundError):
                found[library] = version(library)
        return found

    def reason(self, device: torch.device, call: Call | None) -> str | None:
        """Why it cannot run this call on this device; None if it can."""
        return _why_not(self, device) or (None if call is None else self.refuses(call))


@dataclass
class _Imported:
    """What a target names, once it is loaded."""

    package: str
    target: str
    function: Any = None


def _load(imported: _Imported) -> None:
    if imported.function is None:
        imported.function = _import(imported.package, imported.target)


class Op:
    """The backends of one op; of those that are always trusted, the first that can run is what `auto` falls back to.

    package: the `__name__` of the op's package. problems: `module:function` in it, which gives what `mixerzoo doctor`
    proves backends on, see `Problem`; an op with a `proven` backend has them. widths: the classes that it proves. The
    package calls the op `OP`.
    """

    def __init__(
        self,
        package: str,
        *backends: Backend,
        problems: str | None = None,
        widths: tuple[int, ...] = (32, 64, 128, 256),
    ) -> None:
        if problems is None and any(b.trust == "proven" for b in backends):
            raise ValueError(f"the op {package} has a backend that must be proven, but no problems to prove it on")
        self.package, self.problems, self.widths = package, problems, widths
        self.name = package.rpartition(".")[2]
        self.backends = {b.name: b for b in backends}
        self._imported = {b.name: _Imported(package, b.target) for b in backends}

    def available(self, device: torch.device | str = "cpu") -> list[str]:
        """Names of the backends that can run on `device`."""
        return [b.name for b in self.backends.values() if b.why_not(torch.device(device)) is None]

    def select(self, backend: str, device: torch.device, call: Call | None = None) -> Callable[..., Any]:
        """The function behind `backend`; the choice is recorded, except by code that torch.compile has compiled.

        `auto` is the fastest backend that is proven for such a call on this device; without a call, or a verdict, the
        first that is always trusted.
        Raises `ValueError` for an unknown name, `CannotRunError` (a `RuntimeError`) for one that cannot run here, each
        with what to do.
        """
        if backend == "auto":
            chosen = self.backends[_automatic(self, device, call)]
        elif backend in self.backends:
            chosen = self.backends[backend]
            reason = chosen.reason(device, call)
            if reason is not None:
                usable = ", ".join(b.name for b in self.backends.values() if b.reason(device, call) is None)
                message = f"backend {backend!r} of {self.name} cannot run: {reason}; here run auto, {usable}"
                raise CannotRunError(message, reason)
        else:
            raise ValueError(f"{self.name} has no backend {backend!r}; it has auto, {', '.join(self.backends)}")
        if not torch.compiler.is_compiling():  # a context variable would break the compiled graph in two
            for record in _recorders.get():
                record.setdefault(self.name, set()).add(chosen.name)
        return self.function(chosen.name)

    def function(self, backend: str) -> Callable[..., Any]:
        """What `backend` calls, imported now if it was not before."""
        imported = self._imported[backend]
        _load(imported)
        return imported.function

    def load_problems(self) -> Callable[[int], Any]:
        """`problems(width)`, see `Problem`."""
        if self.problems is None:
            raise ValueError(f"the op {self.name} has no problems to prove a backend on")
        return _import(self.package, self.problems)

    @functools.cached_property
    def source(self) -> str:
        """A hash of the package's Python files, and of those beside it, which ops share: what was proven of other code
        says nothing of this one."""
        spec = importlib.util.find_spec(self.package)
        folders = () if spec is None else spec.submodule_search_locations or ()
        own = [path for folder in folders for path in Path(folder).rglob("*.py")]
        shared = [path for folder in folders for path in Path(folder).parent.glob("*.py")]
        digest = hashlib.sha256()
        for path in sorted([*own, *shared]):
            digest.update(path.name.encode() + path.read_bytes())
        return digest.hexdigest()[:16]


def _import(package: str, target: str) -> Callable[..., Any]:
    module, _, function = target.partition(":")
    return getattr(importlib.import_module(f".{module}", package), function)


def _automatic(op: Op, device: torch.device, call: Call | None) -> str:
    """The name of what `auto` stands for."""
    usable = [b for b in op.backends.values() if b.trust == "always" and b.reason(device, call) is None]
    if call is not None and any(b.trust == "proven" for b in op.backends.values()):
        # the class of the length, not the length: a graph compiled for any length then serves a whole class
        proven = _fastest(op, device, *call._replace(tokens=verdicts.LENGTHS[verdicts.length_class(call.tokens)]))
        return proven or usable[0].name
    return usable[0].name


def _fastest(op: Op, device: torch.device, *call: Any) -> str | None:
    """See `_look_up`; the parts of a call one by one, as constants of a compiled graph must be."""
    return _look_up(op, device, Call(*call), verdicts.generation())


def _why_not(backend: Backend, device: torch.device) -> str | None:
    return backend.why_not(device)


# They look into files; a compiled graph may keep what they found. `torch.compiler.assume_constant_result` says just
# this, but imports the whole compiler.
_looks: Any
for _looks in (_fastest, _why_not, _load):
    _looks._dynamo_marked_constant = True


@functools.lru_cache(maxsize=4096)
def _look_up(op: Op, device: torch.device, call: Call, generation: int) -> str | None:
    """The fastest backend for `call` among those that can run it and are trusted; None where nothing is known.

    generation: of the verdicts, since what was looked up is kept.
    """
    usable = {b.name: b for b in op.backends.values() if b.trust != "never" and b.reason(device, call) is None}
    if all(b.trust == "always" for b in usable.values()):
        return None
    known = verdicts.of(device).find(op.name, call.key)
    mine = {
        name: known[name] for name, b in usable.items() if name in known and known[name].holds(op.source, b.versions)
    }
    if device.type != "cpu" and any(b.trust == "proven" and name not in mine for name, b in usable.items()):
        _hint(device)
    right = [v for v in mine.values() if usable[v.backend].trust == "always" or v.trusted(call.gradient)]
    return verdicts.fastest(right, call.tokens, call.gradient)


@functools.cache
def _hint(device: torch.device) -> None:
    logger.warning("faster kernels may run on %s once `mixerzoo doctor` has proven them; using portable code", device)


@contextlib.contextmanager
def record_backends() -> Iterator[dict[str, set[str]]]:
    """Within this context, collect op name -> names of the backends that ran."""
    record: dict[str, set[str]] = {}
    token = _recorders.set((*_recorders.get(), record))
    try:
        yield record
    finally:
        _recorders.reset(token)


def recording() -> bool:
    """Whether somebody collects which backends run; never in code that torch.compile compiles."""
    return not torch.compiler.is_compiling() and bool(_recorders.get())


def record_kernel(op: str, backend: str, kernel: str) -> None:
    """Say which kernel of its library a backend takes: `backend:kernel` stands in the record instead of `backend`."""
    for record in _recorders.get():
        names = record.setdefault(op, set())
        names.discard(backend)
        names.add(f"{backend}:{kernel}")
