"""Lets the Triton kernels of flash-linear-attention run in Triton's interpreter, on a CPU; import it before them.

TRITON_INTERPRET=1 must be set. Three things of theirs the interpreter cannot do: choose by timing (the first
configuration is taken), make a tensor of a loop's counter (`i.to(tl.int64)`), and `tl.gather` in their spelling, for
which they have another way. bfloat16 is none of NumPy's types: float16 stands for 16 bit.
"""

import builtins
import importlib
import sys

from triton.runtime import autotuner


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


def run_first_configuration(self, *args, **kwargs):
    self.nargs = dict(zip(self.arg_names, args))
    configuration = self.prune_configs(kwargs)[0]
    return self.fn.run(*args, **kwargs, **configuration.all_kwargs())


autotuner.Autotuner.run = run_first_configuration
for package in ("delta_rule", "gated_delta_rule", "generalized_delta_rule", "gla", "gsa", "hgrn", "kda", "linear_attn"):
    importlib.import_module(f"fla.ops.{package}")
for package in ("mesa_net", "rwkv6", "simple_gla"):
    importlib.import_module(f"fla.ops.{package}")
for name, module in list(sys.modules.items()):
    if name.startswith("fla.ops.") and hasattr(module, "tl"):
        module.range = counted
        if hasattr(module, "IS_GATHER_SUPPORTED"):
            module.IS_GATHER_SUPPORTED = False
