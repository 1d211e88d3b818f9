"""The cases of the recurrence that the library's kernels are proven on: those that the mixers make of it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..problems import Inputs, Problem
from . import linear_recurrence

HEADS = 4

VARIANTS = [
    "",
    "normaliser",
    "decay",
    "channel_decay",
    "bonus+channel_decay",
    "beta",
    "beta+decay",
    "beta+channel_decay",
    "decay+erase",
    "channel_decay+erase",
    "bounded+channel_decay+erase",
]

FLOOR = -0.61  # of bounded decays, as RWKV-7 has them


def problems(width: int) -> list[Problem]:
    """One for each variant, with keys and values of `width` features."""
    return [_problem(variant, width) for variant in VARIANTS]


def _problem(variant: str, width: int) -> Problem:
    given = set(variant.split("+"))

    def inputs(batch: int, time: int, generator: torch.Generator) -> Inputs:
        return _inputs(given, width, batch, time, generator)

    def run(x: dict[str, Any], state: Any, backend: str) -> tuple[Tensor, Any]:
        x = dict(x)
        erase = (x.pop("read_to_erase"), x.pop("written_to_erase", None)) if "erase" in given else None
        return linear_recurrence(
            **x,
            erase=erase,
            decay_floor=FLOOR if "bounded" in given else None,
            normaliser="normaliser" in given,
            state=state,
            return_state=True,
            backend=backend,
        )

    fixed = ("bonus",) if "bonus" in given else ()
    exact = ("beta",) * ("beta" in given) + ("log_decay",) * _decays(given)
    return Problem(variant, inputs, run, fixed=fixed, exact=exact)


def _decays(given: set[str]) -> bool:
    return bool(given & {"decay", "channel_decay"})


def _inputs(given: set[str], width: int, batch: int, time: int, generator: torch.Generator) -> Inputs:
    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    sizes = (batch, time, HEADS)
    x = {"queries": normal(*sizes, width), "keys": F.normalize(normal(*sizes, width), dim=-1)}
    x["values"] = normal(*sizes, width)
    if "normaliser" in given:
        x |= {"queries": F.elu(x["queries"]) + 1, "keys": F.elu(x["keys"]) + 1}
    if _decays(given):  # half of the memory is gone after 1 to some 100 tokens
        x["log_decay"] = -(normal(*sizes) if "decay" in given else normal(*sizes, width)).sub(3).exp()
    if "bounded" in given:
        x["log_decay"] = FLOOR * normal(*sizes, width).sigmoid()
    if "bonus" in given:
        x["bonus"] = normal(HEADS, width)
    if "beta" in given:
        x["beta"] = normal(*sizes).sigmoid()
    if "erase" in given:
        rate = normal(*sizes, 1 if "decay" in given else width).sigmoid()
        if "decay" in given:  # as the delta rule: at the key itself
            x["read_to_erase"] = rate * x["keys"]
        else:
            x["read_to_erase"] = F.normalize(normal(*sizes, width), dim=-1)
            x["written_to_erase"] = -rate * x["read_to_erase"]
    return x
