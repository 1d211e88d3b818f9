"""States as values: what a mixer remembers of a sequence, and what anybody may do with it.

A state is never changed by the call it is given to, so one prefilled context can be continued many times. A growing
cache stays cheap all the same: `GrowableBuffer` appends in place where nobody else can see it, and copies otherwise.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import safetensors.torch
import torch
from torch import Tensor

from .stored import CorruptFileError, TensorFile, parse_json

_METADATA_KEY = "mixerzoo_state"


SHARED = {"shared": True}
"""Metadata of a dataclass field whose tensors belong to the whole batch, so that `select` leaves them alone."""


@dataclasses.dataclass(frozen=True, eq=False)
class StateValue:
    """A frozen dataclass of tensors, plain values, tuples and other `StateValue`s; tensors are batch-first."""

    _types: ClassVar[dict[str, type[StateValue]]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        StateValue._types[cls.type_name()] = cls

    @classmethod
    def type_name(cls) -> str:
        """What files call the type: with its module, so that two packages may use one name."""
        return f"{cls.__module__}:{cls.__qualname__}"

    def map_tensors(self, fn: Callable[[Tensor], Tensor]) -> Any:
        """A copy with `fn(tensor)` in place of every tensor."""
        return self._rebuild(lambda value, _: _map(value, fn))

    def pick(self, index: Tensor) -> Any:
        """A copy that holds the sequences `index [rows]` only; subclasses that are not batch-first override it."""
        return self._rebuild(lambda value, shared: value if shared else _pick(value, index))

    def _rebuild(self, change: Callable[[Any, bool], Any]) -> Any:
        fields = dataclasses.fields(self)
        return dataclasses.replace(
            self, **{f.name: change(getattr(self, f.name), f.metadata.get("shared", False)) for f in fields}
        )


def _map(value: Any, fn: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return fn(value)
    if isinstance(value, StateValue):
        return value.map_tensors(fn)
    return tuple(_map(v, fn) for v in value) if isinstance(value, tuple) else value


def _pick(value: Any, index: Tensor) -> Any:
    if isinstance(value, Tensor):
        return value.index_select(0, index.to(value.device))
    if isinstance(value, StateValue):
        return value.pick(index)
    return tuple(_pick(v, index) for v in value) if isinstance(value, tuple) else value


@dataclasses.dataclass(frozen=True, eq=False)
class GrowableBuffer(StateValue):
    """An append-only tensor `[batch, length, ...]` with room to grow, shared by the states that continue one another.

    `storage [batch, capacity, ...]` holds the valid entries `start:end`. `written` is the high-water mark that every
    value over the same storage sees: only the one that ends at the mark may append in place, so older ones stay intact.
    """

    storage: Tensor
    start: int
    end: int
    written: list[int]

    @classmethod
    def of(cls, values: Tensor) -> GrowableBuffer:
        """Start from `values [batch, length, ...]`, with no spare room."""
        return cls(values, 0, values.shape[1], [values.shape[1]])

    @property
    def length(self) -> int:
        return self.end - self.start

    @property
    def values(self) -> Tensor:
        """The valid entries, `[batch, length, ...]`, a view."""
        return self.storage[:, self.start : self.end]

    def append(self, new: Tensor) -> GrowableBuffer:
        """This buffer followed by `new [batch, time, ...]`; differentiable, without gradients in amortised O(time)."""
        # A graph may hold the storage, which must then stay as it is; the compiler cannot ask about inference mode.
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            return GrowableBuffer.of(torch.cat([self.values, new], dim=1))
        end = self.end + new.shape[1]
        writable = torch.is_inference_mode_enabled() or not self.storage.is_inference()
        if writable and self.written[0] == self.end and end <= self.storage.shape[1]:
            self.storage[:, self.end : end] = new
            self.written[0] = end
            return GrowableBuffer(self.storage, self.start, end, self.written)
        length = self.length + new.shape[1]
        storage = new.new_empty((new.shape[0], max(length, self.length * 3 // 2, 16), *new.shape[2:]))
        storage[:, : self.length] = self.values
        storage[:, self.length : length] = new
        return GrowableBuffer(storage, 0, length, [length])

    def keep_last(self, count: int) -> GrowableBuffer:
        """The last `count` entries; at most `2 * count + 16` stay allocated, so the copy is amortised as well."""
        start = max(self.start, self.end - count)
        if self.storage.shape[1] > 2 * count + 16:
            return GrowableBuffer.of(self.storage[:, start : self.end].clone())
        return GrowableBuffer(self.storage, start, self.end, self.written)

    def map_tensors(self, fn: Callable[[Tensor], Tensor]) -> GrowableBuffer:
        return GrowableBuffer.of(fn(self.values))

    def pick(self, index: Tensor) -> GrowableBuffer:
        return GrowableBuffer.of(_pick(self.values, index))


@dataclasses.dataclass(frozen=True, eq=False)
class SequenceState(StateValue):
    """What is remembered of `batch` sequences of which `position` tokens were read; tensors batch first."""

    batch: int
    position: int

    @property
    def nbytes(self) -> int:
        """Bytes of memory held by the state, spare room of its buffers included."""
        storages = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in held_tensors(self)}
        return sum(storages.values())

    @property
    def device(self) -> torch.device | None:
        """Where its tensors are; None if it holds none."""
        return next((t.device for t in held_tensors(self)), None)

    def clone(self) -> Any:
        """A deep copy that shares no memory with this one."""
        return self.map_tensors(lambda t: t.clone(memory_format=torch.contiguous_format))

    def detach(self) -> Any:
        """The same values, cut off from the autograd graph (truncated backpropagation)."""
        return self.map_tensors(lambda t: t.detach())

    def to(self, device: torch.device | str) -> Any:
        """The same values on `device`; dtypes stay, since fast weights must keep theirs."""
        return self.map_tensors(lambda t: t.to(device))

    def select(self, rows: Sequence[int] | Tensor) -> Any:
        """The state of the sequences `rows` (indices into the batch; repeats make copies, as for beam search)."""
        index = torch.as_tensor(rows, dtype=torch.long)
        if index.ndim != 1 or (index.numel() and not (index.min() >= 0 and index.max() < self.batch)):
            raise ValueError(f"rows must be a list of indices in 0..{self.batch - 1}, got {rows!r}")
        return self.pick(index)

    def pick(self, index: Tensor) -> Any:
        return dataclasses.replace(super().pick(index), batch=len(index))

    def save(self, path: str | Path) -> None:
        """Write to a safetensors file: tensors, and in the metadata how they hang together; no pickle."""
        tensors: dict[str, Tensor] = {}
        skeleton = _flatten(self, "state", tensors)
        safetensors.torch.save_file(tensors, str(path), {_METADATA_KEY: json.dumps(skeleton)})

    @staticmethod
    def load(path: str | Path, device: torch.device | str = "cpu") -> Any:
        """Read what `save` wrote. Raises `ValueError` for a file that holds no state of a mixer known here."""
        path = Path(path)
        file = TensorFile.open(path)
        if _METADATA_KEY not in file.metadata:
            raise ValueError(f"{path} holds no mixer state (its metadata has no {_METADATA_KEY!r})")
        skeleton = parse_json(file.metadata[_METADATA_KEY], path)
        try:
            _check_skeleton(skeleton, set(file.shapes), path)
        except RecursionError:
            raise CorruptFileError(path, "its state is nested too deeply") from None
        state = _unflatten(skeleton, file.load(device))
        if not isinstance(state, SequenceState):
            raise CorruptFileError(path, "what it holds is no state")
        return state


@dataclasses.dataclass(frozen=True, eq=False)
class _Signed(StateValue):
    signature: str


@dataclasses.dataclass(frozen=True, eq=False)
class MixerState(SequenceState, _Signed):
    """What a mixer carries from one call to the next; subclasses add their tensors as fields, batch first.

    signature: which mixer made it, with the options that change what it means; another mixer refuses it.
    batch: number of sequences. position: tokens read so far. `Mixer.next_state` fills in the three, in this order.
    """


@dataclasses.dataclass(frozen=True, eq=False)
class RecurrentState(MixerState):
    """Of a linear recurrence: memory `[batch, heads, d_k, d_v]`; conv: last inputs of the short convolution, if any."""

    memory: Tensor
    conv: Tensor | None


def held_tensors(value: Any) -> Iterator[Tensor]:
    """Every tensor that a state keeps alive, spare room of growable buffers included."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple):
        for v in value:
            yield from held_tensors(v)
    elif isinstance(value, StateValue):
        for f in dataclasses.fields(value):
            yield from held_tensors(getattr(value, f.name))


def _flatten(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        tensors[path] = value.detach().clone(memory_format=torch.contiguous_format)
        return {"tensor": path}
    if isinstance(value, GrowableBuffer):
        return {"buffer": _flatten(value.values, path, tensors)}
    if isinstance(value, StateValue):
        fields = {
            f.name: _flatten(getattr(value, f.name), f"{path}.{f.name}", tensors) for f in dataclasses.fields(value)
        }
        return {"type": value.type_name(), "fields": fields}
    if isinstance(value, tuple):
        return {"tuple": [_flatten(v, f"{path}.{i}", tensors) for i, v in enumerate(value)]}
    return {"value": value}


def _unflatten(skeleton: Any, tensors: dict[str, Tensor]) -> Any:
    if "tensor" in skeleton:
        return tensors[skeleton["tensor"]]
    if "buffer" in skeleton:
        return GrowableBuffer.of(_unflatten(skeleton["buffer"], tensors))
    if "tuple" in skeleton:
        return tuple(_unflatten(s, tensors) for s in skeleton["tuple"])
    if "value" in skeleton:
        return skeleton["value"]
    fields = skeleton["fields"].items()
    return StateValue._types[skeleton["type"]](**{name: _unflatten(s, tensors) for name, s in fields})


def _check_skeleton(skeleton: Any, names: set[str], path: Path) -> None:
    """Raise `ValueError` unless `_unflatten` can build it of tensors of these names."""
    match skeleton:
        case {"tensor": str(name)} if name in names and len(skeleton) == 1:
            return
        case {"buffer": {"tensor": _}} if len(skeleton) == 1:
            _check_skeleton(skeleton["buffer"], names, path)
        case {"tuple": list(items)} if len(skeleton) == 1:
            for item in items:
                _check_skeleton(item, names, path)
        case {"value": value} if len(skeleton) == 1 and not isinstance(value, dict | list):
            return
        case {"type": str(kind), "fields": dict(fields)} if len(skeleton) == 2 and kind != _IN_OTHER_WORDS:
            _check_fields(kind, fields, path)
            for field in fields.values():
                _check_skeleton(field, names, path)
        case _:
            raise CorruptFileError(path, f"it does not say how its tensors hang together: {str(skeleton)[:80]!r}")


def _check_fields(kind: str, fields: dict[str, Any], path: Path) -> None:
    cls = StateValue._types.get(kind)
    if cls is None:
        raise ValueError(f"{path}: state type {kind!r} is unknown here: import the package of its mixer first")
    if set(fields) != {f.name for f in dataclasses.fields(cls)}:
        raise CorruptFileError(path, f"a {kind} does not have the fields {', '.join(sorted(fields))}")
    for name in ("batch", "position") if issubclass(cls, SequenceState) else ():
        match fields[name]:
            case {"value": int(number)} if not isinstance(number, bool) and 0 <= number < 2**63:
                pass
            case _:
                raise CorruptFileError(path, f"the {name} of a {kind} is no whole number of at least 0")


_IN_OTHER_WORDS = GrowableBuffer.type_name()  # written as `buffer`: its mark must be its own
