"""A function of tensors, recorded once and repeated without the Python around it.

`record` runs the function under a dispatch mode, which sees every operation that torch is asked for, and makes of them
a straight line of calls. Layers, checks, dataclasses and the choice of backends are then behind us; what depends on
parameters alone, such as a weight cast for autocast, is worked out once and for all.

A recording is right for other tensors of the same kind only if nothing looked inside of a tensor: whoever asks for a
number, a truth value, or a result whose size depends on the contents is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Function = Callable[..., Any]
_OF_LITERALS = (torch.ops.aten.lift_fresh.default, torch.ops.aten.detach_.default)
"""What `torch.tensor(numbers)` does to a tensor that it has just made."""
_OF_SIZES = (torch.ops.aten._fused_sdp_choice.default,)
"""What returns a number that follows from sizes alone."""
_PLACES = (torch.int64, torch.int32)


class CannotRecordError(RuntimeError):
    """Why a function cannot be recorded."""


class WritesToConstantError(Exception):
    """What was taken for a constant is written to later on: `record` tries once more, nobody else should catch it."""


@dataclass
class _Call:
    function: Function
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    result: Any
    writes: bool


def record(function: Callable[[list[Tensor]], list[Tensor]], inputs: Sequence[Tensor]) -> Callable[..., list[Tensor]]:
    """`function(inputs)` as a function of as many positional arguments; the function is run once or twice for it.

    To be called, and its result too, in inference mode. Parameters are read anew at every call, but what was computed
    from them alone is not computed again: record anew where they have changed.
    Raises `CannotRecordError` where the function looks inside of a tensor or draws random numbers.
    """
    with torch.inference_mode():
        try:
            return _recorded(function, list(inputs), fold=True)
        except WritesToConstantError:
            return _recorded(function, list(inputs), fold=False)


def _recorded(function: Callable[[list[Tensor]], list[Tensor]], inputs: list[Tensor], fold: bool) -> Callable[..., Any]:
    recorder = _Recorder(inputs, fold)
    with recorder:
        outputs = function(inputs)
    return _Source(recorder).compiled(inputs, outputs)


class _Recorder(TorchDispatchMode):
    """Collects the calls that depend on the inputs. fold: all others are constants; else only what torch is not asked
    for, such as parameters."""

    def __init__(self, inputs: list[Tensor], fold: bool) -> None:
        super().__init__()
        self.fold = fold
        self.calls: list[_Call] = []
        self.known = {id(t): t for t in inputs}  # they are kept, so that no other tensor gets the id of one
        self.constants: dict[int, Tensor] = {}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # to skip it, torch imports the whole compiler, for seconds, and nothing compiles us

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        depends = any(id(t) in self.known for t in given)
        _refuse(func, args, kwargs, depends)
        result = func(*args, **kwargs)
        if func in _OF_LITERALS:
            self.constants |= {id(result): result}
            return result
        found = [t for t in tree_leaves(result) if isinstance(t, Tensor)]
        writes = func._schema.is_mutable
        if writes:
            self._check_written(func, args, kwargs)
        elif all(any(t is own for own in given) for t in found):  # such as a cast to what it is already
            return result
        if not (depends or writes or not self.fold):
            self.constants |= {id(t): t for t in found}
            return result
        self.known |= {id(t): t for t in found}
        function = func if writes else _faster(func, args, kwargs, result)
        self.calls.append(_Call(function, tuple(args), kwargs, result, writes))
        return result

    def _check_written(self, func: Any, args: Any, kwargs: Any) -> None:
        """Refuse to write to what the recording does not make anew each time: a constant, a parameter."""
        for i, argument in enumerate(func._schema.arguments):
            if argument.alias_info is None or not argument.alias_info.is_write:
                continue
            written = args[i] if i < len(args) else kwargs.get(argument.name)
            for t in tree_leaves(written):
                if not isinstance(t, Tensor) or id(t) in self.known:
                    continue
                if id(t) in self.constants:
                    raise WritesToConstantError
                raise CannotRecordError(f"{func} writes to a tensor that outlives the call")


def _refuse(func: Any, args: Any, kwargs: Any, depends: bool) -> None:
    if func in _OF_SIZES:
        return
    tags = func.tags
    if torch.Tag.nondeterministic_seeded in tags and not _is_sure(func, args, kwargs):
        raise CannotRecordError(f"{func} draws random numbers")
    if not depends:
        return
    if torch.Tag.data_dependent_output in tags or not all(_holds_tensors(r.type) for r in func._schema.returns):
        raise CannotRecordError(f"{func} looks at what a tensor holds")
    if func is torch.ops.aten.index.Tensor and all(i is None or i.dtype in _PLACES for i in args[1]):
        return  # at places, not where a mask is true
    if torch.Tag.dynamic_output_shape in tags:
        raise CannotRecordError(f"the size of what {func} returns depends on what a tensor holds")


def _is_sure(func: Any, args: Any, kwargs: Any) -> bool:
    """Whether it draws nothing although it might: attention without dropout, its fifth argument."""
    dropout = args[4] if len(args) > 4 else kwargs.get("dropout_p", 0.0)
    return func is torch.ops.aten.scaled_dot_product_attention.default and dropout == 0


def _holds_tensors(kind: Any) -> bool:
    return "Tensor" in str(kind)


def _faster(func: Any, args: Any, kwargs: Any, result: Any) -> Function:
    """Torch's own binding of an operation on the CPU, a quarter of the time of `torch.ops`, if it does the same."""
    name = func._schema.name.removeprefix("aten::")
    if any(t.device.type != "cpu" for t in tree_leaves(result) if isinstance(t, Tensor)):
        return func  # there a graph repeats the kernels
    for module in (torch._C._VariableFunctions, torch._C._nn, torch.Tensor):
        binding = getattr(module, name, None)
        if binding is None:
            continue
        try:
            again = binding(*args, **kwargs)
        except (TypeError, RuntimeError):
            continue
        if _same(result, again):
            return binding
    return func


def _same(a: Any, b: Any) -> bool:
    ours, theirs = tree_leaves(a), tree_leaves(b)
    return len(ours) == len(theirs) and all(
        isinstance(x, Tensor) and isinstance(y, Tensor) and x.dtype == y.dtype and x.stride() == y.stride()
        and torch.equal(x, y)
        for x, y in zip(ours, theirs)
    )  # fmt: skip


class _Source:
    """The calls of a recorder as the text of a Python function: a loop over them would take longer than they do."""

    def __init__(self, recorder: _Recorder) -> None:
        self.recorder = recorder
        self.names: dict[int, str] = {}
        self.scope: dict[str, Any] = {}
        self.constants: dict[int, str] = {}

    def compiled(self, inputs: list[Tensor], outputs: list[Tensor]) -> Callable[..., list[Tensor]]:
        calls = self._needed(outputs)
        self.names = {id(t): f"x{i}" for i, t in enumerate(inputs)}
        lines = [self._line(i, call) for i, call in enumerate(calls)]
        dead = self._last_uses(calls, inputs, outputs)
        for i, names in dead.items():
            lines[i] += f"; del {', '.join(names)}"
        arguments = ", ".join(f"x{i}" for i in range(len(inputs)))
        returned = ", ".join(self._text(t) for t in outputs)
        body = "".join(f"    {line}\n" for line in [*lines, f"return [{returned}]"])
        exec(compile(f"def program({arguments}):\n{body}", "<recorded step>", "exec"), self.scope)  # our own text
        program: Callable[..., list[Tensor]] = self.scope["program"]
        return program

    def _needed(self, outputs: list[Tensor]) -> list[_Call]:
        """Without the calls whose results nobody uses."""
        used, kept = {id(t) for t in outputs}, []
        for call in reversed(self.recorder.calls):
            if call.writes or any(id(t) in used for t in tree_leaves(call.result)):
                kept.append(call)
                used |= {id(t) for t in tree_leaves((call.args, call.kwargs)) if isinstance(t, Tensor)}
        return kept[::-1]

    def _last_uses(self, calls: list[_Call], inputs: list[Tensor], outputs: list[Tensor]) -> dict[int, list[str]]:
        """The names that nobody uses after a call: the sooner they are gone, the sooner their memory serves again."""
        last: dict[str, int] = {}
        for i, call in enumerate(calls):
            for t in tree_leaves((call.args, call.kwargs, call.result)):
                if isinstance(t, Tensor) and id(t) in self.names:
                    last[self.names[id(t)]] = i
        for t in [*inputs, *outputs]:
            last.pop(self.names.get(id(t), ""), None)
        found: dict[int, list[str]] = {}
        for name, i in last.items():
            found.setdefault(i, []).append(name)
        return found

    def _line(self, i: int, call: _Call) -> str:
        arguments = [self._text(a) for a in call.args]
        arguments += [f"{name}={self._text(value)}" for name, value in call.kwargs.items()]
        text = f"{self._bound('f', call.function)}({', '.join(arguments)})"
        if isinstance(call.result, Tensor):
            if id(call.result) in self.names:  # written in place
                return text
            self.names[id(call.result)] = f"t{i}"
            return f"t{i} = {text}"
        results = list(call.result)
        for j, t in enumerate(results):
            self.names.setdefault(id(t), f"t{i}_{j}")
        return f"{', '.join(f't{i}_{j}' for j in range(len(results)))}, = {text}"

    def _text(self, value: Any) -> str:
        if isinstance(value, Tensor) and id(value) in self.names:
            return self.names[id(value)]
        if isinstance(value, (list, tuple)):
            inside = "".join(f"{self._text(v)}, " for v in value)
            return f"[{inside}]" if isinstance(value, list) else f"({inside})"
        if value is None or type(value) in (bool, int, str):
            return repr(value)
        return self._bound("c", value)

    def _bound(self, kind: str, value: Any) -> str:
        if id(value) not in self.constants:
            self.constants[id(value)] = f"{kind}{len(self.constants)}"
            self.scope[self.constants[id(value)]] = value
        return self.constants[id(value)]
