"""Under autocast, what is read and written reaches the ops in 16 bit, and what sums over time in float32."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import pytest
import torch
from mixerzoo.mixers import create_mixer, list_mixers
from mixerzoo.mixers.ops.dispatch import Op
from mixerzoo.mixers.ops.recurrence.inputs import Inputs
from mixerzoo.mixers.registry import mixer_options

# Of each op that has kernels which read 16 bit and sum in float32: the positions of what they read.
READ = {
    "log_linear": (0, 1, 2),
    "mlstm": (0, 1, 2),
    "ridge_regression": (0, 1, 2),
    "selective_scan": (0, 3, 4),
    "short_convolution": (0,),
    "slot_attention": (0, 1, 2),
    "titans": (0, 1, 2),
}
# And of what makes decays and shares of what is written, whose errors would add up over a text.
EXACT = {
    "log_linear": (3, 4),
    "mlstm": (3, 4),
    "selective_scan": (1, 2),
    "slot_attention": (3, 4),
}
# Where float32 is right: what the convolution of sLSTM reads is the input of the layer itself, which was float32.
ALLOWED = {("slstm", "short_convolution")}
FAMILIES = ("delta", "linear", "memory", "state space")


def dtypes_reaching_ops(name: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, set[torch.dtype]]]:
    """Op -> `read` and `exact` -> dtypes, of a call of the mixer under autocast to bfloat16."""
    found: dict[str, dict[str, set[torch.dtype]]] = defaultdict(lambda: {"read": set(), "exact": set()})
    select, inside = Op.select, []

    def spying(op: Op, *arguments: Any) -> Any:
        run = select(op, *arguments)

        def spied(*inputs: Any, **named: Any) -> Any:
            if op.name == "recurrence":
                given: Inputs = inputs[0]
                read = [*given[:3], *(x for x in given.erase or () if x is not None)]
                exact = [x for x in (given.log_decay, given.beta) if x is not None]
            else:
                read = [inputs[i] for i in READ.get(op.name, ())]
                exact = [inputs[i] for i in EXACT.get(op.name, ())]
            if not inside:  # what an op makes of another one is its own business
                found[op.name]["read"] |= {x.dtype for x in read}
                found[op.name]["exact"] |= {x.dtype for x in exact}
            inside.append(op)
            try:
                return run(*inputs, **named)
            finally:
                inside.pop()

        return spied

    monkeypatch.setattr(Op, "select", spying)
    small = {n: o.small for n, o in mixer_options(name).items() if o.small is not None}
    mixer = create_mixer(name, d_model=32, **small)
    with torch.autocast("cpu", torch.bfloat16):
        _, state = mixer(torch.randn(1, 5, 32), return_state=True)
        mixer(torch.randn(1, 1, 32), state)
    return found


@pytest.mark.parametrize("name", [n for family in FAMILIES for n in list_mixers(family=family)])
def test_ops_are_given_the_dtype_of_the_layer(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = dtypes_reaching_ops(name, monkeypatch)
    assert found, f"{name} called no op"
    for op, dtypes in found.items():
        assert dtypes["read"] <= {torch.bfloat16} or (name, op) in ALLOWED, f"{name} upcasts what it gives {op}"
        assert dtypes["exact"] <= {torch.float32}, f"{name} rounds decays or gates of {op}"
