"""An accelerator for machines that have none: tensors that say they are on `pretend:0`, compute on the CPU, and refuse
to meet tensors of the CPU as those of a GPU would.

    python pretend_device.py MIXER...     # runs each on that device; prints what is wrong, by name, as JSON

It finds tensors made on the default device or left behind by `Module.to`, and host tensors or generators in the
device's work. It knows nothing of kernels: what a GPU computes only a GPU can show. torch takes such a device for the
accelerator of the machine from then on, so a process that has one does nothing else.
"""

from __future__ import annotations

import functools
import json
import sys
import traceback
import warnings
from typing import Any

import torch
from mixerzoo.mixers import Mixer, create_mixer, mixer_class, small_options
from mixerzoo.mixers.contract.checks import follows_input
from mixerzoo.mixers.contract.trial import Trial, gradients, in_calls
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

NAME = "pretend"
# What may read a tensor of the CPU beside those of a device: copies, and what takes an index.
_MIXES = ("copy_", "_to_copy", "index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index")


class OnDevice(Tensor):
    """A tensor that says it is on the device; its values are `held`, on the CPU."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> OnDevice:
        held = held.resolve_conj().resolve_neg()  # bits that the tensor around it would not have
        tensor = Tensor._make_wrapper_subclass(
            cls, held.shape, held.stride(), held.storage_offset(), dtype=held.dtype, device=torch.device(NAME, 0)
        )
        tensor.held = held
        return tensor

    def untyped_storage(self) -> torch.UntypedStorage:
        return self.held.untyped_storage()

    def tolist(self) -> Any:
        return self.held.tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _dispatch(func, args, kwargs or {})


OnDevice.__name__ = "Tensor"  # as those of a GPU are called


class _Factories(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _dispatch(func, args, kwargs or {})


def _dispatch(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    name = func.overloadpacket.__name__
    tensors = [value for value in tree_iter((args, kwargs)) if isinstance(value, Tensor)]
    there = any(isinstance(t, OnDevice) for t in tensors)
    if there and name not in _MIXES and any(not isinstance(t, OnDevice) and t.ndim for t in tensors):
        raise RuntimeError(f"{func}: expected all tensors on one device, found {NAME}:0 and cpu")
    device = kwargs.get("device")
    goes = there if device is None else torch.device(device).type == NAME
    if name == "copy_":
        goes = isinstance(args[0], OnDevice)
    if goes and kwargs.get("generator") is not None:
        raise RuntimeError(f"{func}: expected a generator of {NAME}, found one of cpu")
    if device is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    results = func(*tree_map(_held, args), **tree_map(_held, kwargs))
    given = {id(t.held): t for t in tensors if isinstance(t, OnDevice)}
    if any(t.shape != t.held.shape for t in given.values()):
        raise NotImplementedError(f"{func} changes the shape of what it is given")

    def wrap(value: Any) -> Any:
        if not isinstance(value, Tensor) or not goes:
            return value
        return given[id(value)] if id(value) in given else OnDevice(value)

    return tree_map(wrap, results)


def _held(value: Any) -> Any:
    return value.held if isinstance(value, OnDevice) else value


class _Module(_DummyBackendModule):
    """What torch asks of `torch.pretend`."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]


_fallback = torch.library.Library("_", "IMPL", "PrivateUse1")
_autocast = torch.library.Library("_", "IMPL", "AutocastPrivateUse1")


def start() -> torch.device:
    """Make the device, once in a process and for good."""
    _setup_privateuseone_for_python_backend(NAME, _Module())
    _Factories().__enter__()
    _fallback.fallback(lambda func, *args, **kwargs: _dispatch(func, args, kwargs))  # what torch does by itself
    _autocast.fallback(torch.library.fallthrough_kernel)  # autocast casts nothing here
    # `Module.to` must put the tensor itself in place, not its values into one that is on the CPU.
    torch.__future__.set_swap_module_params_on_conversion(True)
    torch._C._set_only_lift_cpu_tensors(True)  # `torch.tensor(..., device=)` and indices that are lists go through `to`
    return torch.device(NAME, 0)


class CountsOnTheCpu(mixer_class("gla")):  # type: ignore[misc]
    def mix(self, x: Tensor, state: Any, return_state: bool) -> Any:
        y, after = super().mix(x, state, return_state)
        return y + torch.arange(x.shape[1])[:, None], after


class LeavesATableBehind(mixer_class("gla")):  # type: ignore[misc]
    def build(self) -> None:
        super().build()
        self.table = [torch.ones(self.d_model)]

    def mix(self, x: Tensor, state: Any, return_state: bool) -> Any:
        return super().mix(x * self.table[0], state, return_state)


class DrawsFromTheCpu(mixer_class("gla")):  # type: ignore[misc]
    def mix(self, x: Tensor, state: Any, return_state: bool) -> Any:
        y, after = super().mix(x, state, return_state)
        return y + 0 * torch.randn(x.shape, device=x.device, generator=torch.Generator()), after


class RemembersOnTheCpu(mixer_class("gla")):  # type: ignore[misc]
    def mix(self, x: Tensor, state: Any, return_state: bool) -> Any:
        y, after = super().mix(x, None if state is None else state.to(x.device), return_state)
        return y, after.to("cpu") if return_state else after


PLANTED: dict[str, type[Mixer]] = {
    cls.__name__: cls for cls in (CountsOnTheCpu, LeavesATableBehind, DrawsFromTheCpu, RemembersOnTheCpu)
}


def problems(name: str, device: torch.device) -> list[str]:
    """What is wrong with a mixer there: every kind of call, the refusals, and gradients across packed documents."""
    factory = PLANTED[name] if name in PLANTED else functools.partial(create_mixer, name)
    options = {} if name in PLANTED else small_options(name)
    trial = Trial(factory, 16, options, device, torch.float32)
    trial.time = trial.edge + 1
    try:
        follows_input(trial)
        mixer = trial.build()
        with torch.no_grad():
            in_calls(mixer, trial.input(2, 2 * trial.edge + 2), [trial.edge + 1, trial.edge - 1, 1, 1])
        lengths = torch.tensor([0, trial.edge + 1, 1, 3], device=device).cumsum(0)
        x = trial.input(1, trial.edge + 5)
        gradients(functools.partial(mixer, documents=lengths), mixer.named_parameters(), x, torch.ones_like(x))
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)
        calls = [f for f in place if "mixers" in f.filename and f.filename != __file__]
        trial.problems.append(f"{error} ({calls[-1].filename}:{calls[-1].lineno})")
    return trial.failures()


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    device = start()
    print(json.dumps({name: problems(name, device) for name in sys.argv[1:]}))
