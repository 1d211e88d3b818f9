"""Lets the Triton kernels of flash-linear-attention run in Triton's interpreter, on a CPU; import it before them.

TRITON_INTERPRET=1 must be set. What they do and the interpreter cannot: choose by timing (the first configuration is
taken), make a tensor of a loop's counter (`i.to(tl.int64)`), take a mask made of a scalar, and `tl.gather` in their
spelling, for which they have another way. bfloat16 is none of NumPy's types: float16 stands for 16 bit.
"""

import builtins
import importlib
import sys
from types import ModuleType

import numpy as np
import torch
from triton import language as tl
from triton.runtime import autotuner, interpreter


class Counter(int):
    """A loop's counter: what is computed of it can be converted too."""

    def to(self, dtype, **options):
        return self


def keep_type(name):
    operation = getattr(int, name)

    def method(self, other):
        result = operation(self, other)
        return result if result is NotImplemented else Counter(result)

    return method


for name in ("__add__", "__radd__", "__sub__", "__rsub__", "__mul__", "__rmul__", "__floordiv__", "__mod__"):
    setattr(Counter, name, keep_type(name))


def counted(*bounds):
    numbers = (int(b.handle.data.item()) if hasattr(b, "handle") else int(b) for b in bounds)
    return map(Counter, builtins.range(*numbers))


def counted_in_tensors(*bounds):
    for number in counted(*bounds):
        yield tl.tensor(interpreter.TensorHandle(np.array([number], dtype=np.int32), tl.int32), tl.int32)


class WideTorch(ModuleType):
    """torch for functions that round to bfloat16: they take float32 instead."""

    bfloat16 = torch.float32

    def __getattr__(self, name):
        return getattr(torch, name)


def run_first_configuration(self, *args, **kwargs):
    self.nargs = dict(zip(self.arg_names, args))
    configuration = self.prune_configs(kwargs)[0]
    return self.fn.run(*args, **kwargs, **configuration.all_kwargs())


def with_boolean_mask(access, position):
    def run(self, *args):
        mask = interpreter.TensorHandle(args[position].data.astype(bool), tl.int1)
        return access(self, *args[:position], mask, *args[position + 1 :])

    return run


autotuner.Autotuner.run = run_first_configuration
Builder = interpreter.InterpreterBuilder
Builder.create_masked_load = with_boolean_mask(Builder.create_masked_load, 1)
Builder.create_masked_store = with_boolean_mask(Builder.create_masked_store, 2)
for package in ("delta_rule", "gated_delta_rule", "generalized_delta_rule", "gla", "gsa", "hgrn", "kda", "linear_attn"):
    importlib.import_module(f"fla.ops.{package}")
for package in ("log_linear_attn", "mesa_net", "rwkv6", "simple_gla"):
    importlib.import_module(f"fla.ops.{package}")
for name, module in list(sys.modules.items()):
    if name.startswith("fla.ops.") and hasattr(module, "tl"):
        module.range = counted
        if hasattr(module, "IS_GATHER_SUPPORTED"):
            module.IS_GATHER_SUPPORTED = False
sys.modules["fla.ops.hgrn.chunk"].range = counted_in_tensors  # whose comparisons are masks
sys.modules["fla.ops.mesa_net.chunk_h_fwd"].torch = WideTorch("torch")
