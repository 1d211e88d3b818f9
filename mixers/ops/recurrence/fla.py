"""Adapter to flash-linear-attention (the packages fla-core and flash-linear-attention), version 0.6 and later.

Written from its source, and compared with its naive functions; which of its kernels are right and fast on a GPU is for
`mixerzoo doctor` to say. They keep sums and states in float32, whatever the dtype of what they read.
"""

from __future__ import annotations

import importlib
from collections.abc import Collection
from typing import NamedTuple

import torch
from torch import Tensor

from ..dispatch import Call, wants_gradient
from ..libraries import call_library, filled, gated_backward_fails
from .inputs import Inputs, repeat_heads

SHORT = 64  # tokens up to which the token-by-token kernels run, if no gradient is wanted: fla's layers do the same
LARGEST_KEY = 256  # of kernels that hold a whole key in one tile


class Kernel(NamedTuple):
    """The library's module, its function over chunks, and the one token by token."""

    module: str
    chunk: str
    recurrent: str


def kernel(given: Collection[str]) -> Kernel:
    """The kernels for the optional things given, named as in `Inputs.variant`."""
    if "erase" in given:
        # iplr, its version without decay, has no backward pass
        return Kernel("generalized_delta_rule", "chunk_dplr_delta_rule", "fused_recurrent_dplr_delta_rule")
    if "beta" in given and "channel_decay" in given:
        return Kernel("kda", "chunk_kda", "fused_recurrent_kda")
    if "beta" in given and "decay" in given:
        return Kernel("gated_delta_rule", "chunk_gated_delta_rule", "fused_recurrent_gated_delta_rule")
    if "beta" in given:
        return Kernel("delta_rule", "chunk_delta_rule", "fused_recurrent_delta_rule")
    if "bonus" in given:
        return Kernel("rwkv6", "chunk_rwkv6", "fused_recurrent_rwkv6")
    if "channel_decay" in given:
        return Kernel("gla", "chunk_gla", "fused_recurrent_gla")
    if "decay" in given:
        return Kernel("simple_gla", "chunk_simple_gla", "fused_recurrent_simple_gla")
    return Kernel("linear_attn", "chunk_linear_attn", "fused_recurrent_linear_attn")


def refuses(call: Call) -> str | None:
    """Why the library cannot serve a call, or None; for `Backend.refuses`."""
    given = set(call.variant.split("+"))
    module = kernel(given).module
    if call.dtype == torch.float64:
        return "its kernels compute in float32 at most, and the values are of float64"
    if "grouped" in given:
        return "it has no kernel for several queries per memory"
    if given & {"beta", "erase"} and call.width > LARGEST_KEY:
        return f"its kernels that erase take keys of {LARGEST_KEY} features at most, got {call.width}"
    if call.tokens <= SHORT and not call.gradient:
        return None
    low = call.dtype != torch.float32
    if module == "delta_rule" and not low:
        return "its delta rule without decay takes bfloat16 and float16 only, got float32"
    if call.gradient and module in ("gated_delta_rule", "simple_gla"):
        return gated_backward_fails(low, keeps_states_in_float32=module == "simple_gla")
    return None


def linear_recurrence(
    inputs: Inputs, scale: float, chunk_size: int, state: Tensor | None, return_state: bool
) -> tuple[Tensor, Tensor | None]:
    """Runs the library's kernel for these arguments, see `kernel`; its chunks have the size that it is tuned for.

    Heads are filled up with zeros to a multiple of 8 features, which changes nothing, and cut again.
    """
    d_k, d_v = inputs.keys.shape[3], inputs.values.shape[3]
    chosen = kernel(inputs.variant().split("+"))
    recurrent = inputs.values.shape[1] <= SHORT and not wants_gradient(*inputs.tensors, state)
    module = importlib.import_module(f"fla.ops.{chosen.module}")
    function = getattr(module, chosen.recurrent if recurrent else chosen.chunk)
    if state is not None:
        state = filled(filled(state.float()).mT).mT.contiguous()
    output, state = call_library(
        function,
        **_arguments(inputs, chosen.module, recurrent),
        scale=scale,
        initial_state=state,
        output_final_state=return_state,
    )
    output = output[..., :d_v]
    return output, state[..., :d_k, :d_v].contiguous() if return_state else None


def _arguments(inputs: Inputs, module: str, recurrent: bool) -> dict[str, Tensor | float]:
    """The arguments that differ from kernel to kernel, by the library's names; what decays and beta are is float32."""
    dtype, heads = inputs.values.dtype, inputs.heads
    q, k, v = (filled(repeat_heads(x.to(dtype), heads)).contiguous() for x in inputs[:3])
    given: dict[str, Tensor | float] = {"q": q, "k": k, "v": v}
    decay = inputs.log_decay
    if decay is not None:
        decay = (decay if decay.ndim == 3 else filled(decay)).float().contiguous()
    if inputs.beta is not None:
        given["beta"] = inputs.beta.float().contiguous()
    if module == "generalized_delta_rule":
        assert inputs.erase is not None
        a, b = (None if x is None else filled(x.to(dtype)).contiguous() for x in inputs.erase)
        assert a is not None
        given |= {"a": a, "b": -k if b is None else b, "gk": _per_channel(decay, k)}
        if inputs.decay_floor is not None and not recurrent:  # it then takes chunks of 64 in tensor cores
            return {**given, "lower_bound": inputs.decay_floor}
        return given
    if module == "rwkv6":
        assert inputs.bonus is not None
        u = filled(inputs.bonus.to(dtype)).contiguous()
        return {"r": q, "k": k, "v": v, "w": _per_channel(decay, k), "u": u}
    if module == "linear_attn":
        return {**given, "normalize": False}
    if decay is not None:
        given["gk" if module == "gla" and recurrent else "g"] = decay
    return given


def _per_channel(log_decay: Tensor | None, keys: Tensor) -> Tensor:
    """A decay, or none, per head or per channel, as one per key channel in float32."""
    if log_decay is None:
        return torch.zeros_like(keys, dtype=torch.float32)
    return log_decay if log_decay.ndim == 4 else log_decay[..., None].expand(keys.shape).contiguous()
