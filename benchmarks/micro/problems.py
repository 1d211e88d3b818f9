"""What the ops are timed on: the problems that the doctor proves their backends on, and for ops that have no such
problems those that stand here, of the same sizes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from mixerzoo.mixers.ops.compressed_attention import Blocks, compressed_attention
from mixerzoo.mixers.ops.delta_attention import new_values
from mixerzoo.mixers.ops.diagonal_ssm import diagonal_ssm
from mixerzoo.mixers.ops.dispatch import Op
from mixerzoo.mixers.ops.fwmlp import fwmlp
from mixerzoo.mixers.ops.lact import lact
from mixerzoo.mixers.ops.long_convolution import long_convolution
from mixerzoo.mixers.ops.mlstm import mlstm
from mixerzoo.mixers.ops.pkm import pkm
from mixerzoo.mixers.ops.problems import Inputs, Problem
from mixerzoo.mixers.ops.slstm import slstm
from mixerzoo.mixers.ops.titans import titans
from torch import Generator, Tensor
from torch.nn import functional as F

HEADS, WIDTH, CHANNELS = 4, 64, 256
D_STATE = 16
# The variants that are timed of ops with many; else the first of each op.
VARIANTS = {
    "attention": ("", "window"),
    "recurrence": ("", "decay", "beta+decay", "channel_decay+erase"),
    "short_convolution": ("bias+silu",),
}
WIDTHS = {"selective_scan": D_STATE}  # its width is the numbers per channel


def problems_of(op: Op) -> list[Problem]:
    """What an op is timed on. Raises `LookupError` for an op that nothing is known of."""
    if op.problems is None:
        if op.name not in OWN:
            raise LookupError(f"the op {op.name} has no micro benchmark: give it problems, or add it to {__file__}")
        return [OWN[op.name]()]
    known = {problem.variant: problem for problem in op.load_problems()(WIDTHS.get(op.name, WIDTH))}
    return [known[variant] for variant in VARIANTS.get(op.name, list(known)[:1])]


def _normal(generator: Generator) -> Callable[..., Tensor]:
    return lambda *shape: torch.randn(shape, generator=generator, dtype=torch.float64)


def _compressed_attention() -> Problem:
    blocks = Blocks(size=32, stride=16, block_size=64, count=4)

    def inputs(batch: int, time: int, generator: Generator) -> Inputs:
        normal, n = _normal(generator), blocks.complete(time)
        kv = {name: normal(batch, n, HEADS // 2, WIDTH) for name in ("keys", "values")}
        return {"queries": normal(batch, time, HEADS, WIDTH), **kv}

    def run(x: dict[str, Any], state: Any, backend: str) -> tuple[Tensor, Any]:
        return compressed_attention(**x, blocks=blocks, position=0, backend=backend)[0], None

    return Problem("", inputs, run, carries_state=False)


def _delta_attention() -> Problem:
    def inputs(batch: int, time: int, generator: Generator) -> Inputs:
        normal = _normal(generator)
        heads = {name: normal(batch, time, HEADS, WIDTH) for name in ("probes", "keys", "values")}
        return {**heads, "beta": normal(batch, time, HEADS).sigmoid()}

    def run(x: dict[str, Any], state: Any, backend: str) -> tuple[Tensor, Any]:
        return new_values(**x, backend=backend), None

    return Problem("", inputs, run, carries_state=False)


def _diagonal_ssm() -> Problem:
    def inputs(batch: int, time: int, generator: Generator) -> Inputs:
        normal = _normal(generator)
        drawn = {"values": normal(batch, time, CHANNELS), "rate": -0.01 * normal(CHANNELS, D_STATE).exp()}
        return drawn | {name: normal(CHANNELS, D_STATE) for name in ("frequency", "real", "imaginary")}

    def run(x: dict[str, Any], state: Any, backend: str) -> tuple[Tensor, Any]:
        transition = torch.complex(x["rate"], x["frequency"]).exp()
        readout = torch.complex(x["real"], x["imaginary"])
        return diagonal_ssm(x["values"], transition, readout, state=state, return_state=True, backend=backend)

    fixed = ("rate", "frequency", "real", "imaginary")
    return Problem("", inputs, run, fixed=fixed, exact=fixed)


def _fwmlp() -> Problem:
    hidden = 2 * WIDTH
    shapes = {"up": (hidden, WIDTH), "gate": (hidden, WIDTH), "down": (WIDTH, hidden)}

    def inputs(batch: int, time: int, generator: Generator) -> Inputs:
        normal = _normal(generator)
        drawn = {"queries": normal(batch, time, WIDTH), "targets": normal(batch, time, WIDTH)}
        drawn["gates"] = normal(batch, time).sigmoid()
        for name, shape in shapes.items():
            drawn |= {name: normal(*shape) / shape[1] ** 0.5, f"{name}_bias": 0.1 * normal(shape[0])}
        return drawn

    def run(x: dict[str, Any], state: Any, backend: str) -> tuple[Tensor, Any]:
        weights = [x[f"{name}{part}"] for name in shapes for part in ("", "_bias")]
        tokens = (x["queries"], x["targets"], x["gates"])
        output = fwmlp(*tokens, weights, chunk_size=64, state=state, return_state=True, backend=backend)
        return output.retrieved, output.state

    fixed = tuple(f"{name}{part}" for name in shapes for part in ("", "_bias"))
    return Problem("", inputs, run, fixed=fixed, exact=fixed)


def _lact() -> Problem:
    hidden = 2 * WIDTH
    shapes = {"gate": (hidden, WIDTH), "down": (WIDTH, hidden), "up": (hidden, WIDTH)}

    def inputs(batch: int, time: int, generator: Generator) -> Inputs:
        normal = _normal(generator)
        drawn = {name: F.normalize(normal(batch, time, HEADS, WIDTH), dim=-1) for name in ("queries", "keys", "values")}
        drawn["step_sizes"] = 0.01 * normal(batch, time, HEADS, 3).sigmoid()
        return drawn | {name: normal(HEADS, *shape) / shape[1] ** 0.5 for name, shape in shapes.items()}

    def run(x: dict[str, Any], state: Any, backend: str) -> tuple[Tensor, Any]:
        tokens = (x["queries"], x["keys"], x["values"], x["step_sizes"])
        weights = [x[name] for name in shapes]
        return lact(*tokens, weights=weights, chunk_size=128, state=state, return_state=True, backend=backend)

    return Problem("", inputs, run, fixed=tuple(shapes), exact=("step_sizes", *shapes))


def _long_convolution() -> Problem:
    def inputs(batch: int, time: int, generator: Generator) -> Inputs:
        normal = _normal(generator)
        return {"inputs": normal(batch, time, CHANNELS), "filters": normal(time, CHANNELS) / time**0.5}

    def run(x: dict[str, Any], state: Any, backend: str) -> tuple[Tensor, Any]:
        return long_convolution(**x, backend=backend), None

    return Problem("", inputs, run, fixed=("filters",), carries_state=False)


def _mlstm() -> Problem:
    def inputs(batch: int, time: int, generator: Generator) -> Inputs:
        normal = _normal(generator)
        heads = {name: normal(batch, time, HEADS, WIDTH) for name in ("queries", "keys", "values")}
        gates = {"log_input": normal(batch, time, HEADS), "log_forget": F.logsigmoid(normal(batch, time, HEADS) + 3)}
        return heads | gates

    def run(x: dict[str, Any], state: Any, backend: str) -> tuple[Tensor, Any]:
        return mlstm(**x, state=state, return_state=True, backend=backend)

    return Problem("", inputs, run, exact=("log_input", "log_forget"))


def _pkm() -> Problem:
    subkeys, top_k = 64, 8

    def inputs(batch: int, time: int, generator: Generator) -> Inputs:
        normal = _normal(generator)
        queries, keys = normal(batch, time, HEADS, WIDTH), normal(HEADS, 2, subkeys, WIDTH // 2)
        return {"queries": queries, "keys": keys, "values": normal(subkeys**2, WIDTH)}

    def run(x: dict[str, Any], state: Any, backend: str) -> tuple[Tensor, Any]:
        return pkm(**x, top_k=top_k, backend=backend).retrieved, None

    return Problem("", inputs, run, fixed=("keys", "values"), carries_state=False)


def _slstm() -> Problem:
    def inputs(batch: int, time: int, generator: Generator) -> Inputs:
        normal = _normal(generator)
        gates, recurrent = normal(batch, time, HEADS, 4, WIDTH), normal(HEADS, WIDTH, 4, WIDTH) / WIDTH**0.5
        return {"gates": gates, "recurrent": recurrent}

    def run(x: dict[str, Any], state: Any, backend: str) -> tuple[Tensor, Any]:
        return slstm(**x, state=state, return_state=True, backend=backend)

    return Problem("", inputs, run, fixed=("recurrent",))


def _titans() -> Problem:
    layers = ("first", "second")

    def inputs(batch: int, time: int, generator: Generator) -> Inputs:
        normal = _normal(generator)
        drawn = {name: F.normalize(normal(batch, time, HEADS, WIDTH), dim=-1) for name in ("queries", "keys", "values")}
        drawn["step_sizes"] = 0.1 * normal(batch, time, HEADS).sigmoid()
        drawn |= {name: F.logsigmoid(normal(batch, time, HEADS) + 3) for name in ("log_decay", "log_momentum")}
        return drawn | {name: normal(HEADS, WIDTH, WIDTH) / WIDTH**0.5 for name in layers}

    def run(x: dict[str, Any], state: Any, backend: str) -> tuple[Tensor, Any]:
        tokens = {name: tensor for name, tensor in x.items() if name not in layers}
        weights = tuple((x[name],) for name in layers)
        return titans(**tokens, weights=weights, state=state, return_state=True, backend=backend)

    exact = ("step_sizes", "log_decay", "log_momentum", *layers)
    return Problem("", inputs, run, fixed=layers, exact=exact)


OWN: dict[str, Callable[[], Problem]] = {
    "compressed_attention": _compressed_attention,
    "delta_attention": _delta_attention,
    "diagonal_ssm": _diagonal_ssm,
    "fwmlp": _fwmlp,
    "lact": _lact,
    "long_convolution": _long_convolution,
    "mlstm": _mlstm,
    "pkm": _pkm,
    "slstm": _slstm,
    "titans": _titans,
}
