"""A made-up run with everything that a report has to cope with; its numbers follow simple laws, not measurements."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from mixerzoo.benchmarks.runs import SCHEMA_VERSION, ResultLine, Run
from mixerzoo.reports import write_report

LENGTHS = [256, 512, 1024, 2048, 4096, 8192]
MODES = ["forward", "train", "prefill", "decode"]
HOSTILE = '</script><script>alert("label")</script> *bold* | `code` µ→∞'
# label -> layout line, op, recall at 256 tokens and share of it kept at each doubling, seconds a token, state grows
LAYOUTS: dict[str, tuple[str, str, float, float, float, bool]] = {
    "swa": ("sliding_window_attention(window=32)", "attention", 0.10, 0.75, 4e-6, False),
    "swa + fwpkm": ("sliding_window_attention(window=32) | fwpkm@1", "fwpkm", 0.99, 0.985, 1.6e-5, False),
    "softmax": ("softmax_attention", "attention", 0.99, 0.80, 5e-6, True),
    "linear": ("linear_attention", "linear", 0.60, 0.62, 5e-6, False),
    "gated_deltanet": ("gated_deltanet", "delta", 0.95, 0.86, 7e-6, False),
    "ttt_linear": ("ttt_linear", "ttt", 0.70, 0.70, 2.4e-5, False),
    HOSTILE: ("fwpkm", "fwpkm", 0.90, 0.955, 2e-5, False),
}
ENVIRONMENT: dict[str, Any] = {
    "started": "2026-01-02T03:04:05+00:00",
    "command": "mixerzoo run quick --out runs/quick",
    "device": "cpu",
    "jobs": 2,
    "threads": 2,
    "machine": {
        "host": "bench",
        "cpu": "Example CPU <b>9000</b>",
        "physical_cores": 2,
        "usable_cores": 2,
        "cpu_mhz": 2600,
        "max_cpu_mhz": None,
        "memory_bytes": 25_769_803_776,
        "os": "Linux-6.1",
    },
    "gpus": [],
    "python": "3.11.9",
    "packages": {"mixerzoo": "0.1.0", "torch": "2.13.0", "triton": None},
    "source": {"commit": "0123456789abcdef0123456789abcdef01234567", "dirty": True},
}
TRAIN = {"training": {"length": 256, "steps": 1600, "batch": 32, "learning_rate": 4e-3}}
TEXT = {
    "source": "Python 3.11 standard library",
    "train_bytes": 9_000_000,
    "eval_bytes": 1_000_000,
    "sha256": "ab" * 32,
}
NEEDLE = {"task": {"task": "needle", "n_needles": 8}, "recent": 64}


def _line(label: str, measure: str, seed: int, parameters: dict[str, Any], **fields: Any) -> ResultLine:
    layout_line, op, *_ = LAYOUTS[label]
    model = {"layout": layout_line, "d_model": 64, "n_layers": 2, "d_ff": 192, "vocab_size": 320, "match": None}
    ops = {"attention": ["sdpa"], op: ["torch" if op != "attention" else "sdpa"]}
    case = f"{random.Random(f'{label}{measure}{seed}{parameters}').getrandbits(48):012x}"
    settings = {**parameters, "model": model, "layout_line": layout_line, "device": "cpu", "threads": 1}
    known = {"status": "ok", "backends": ops, "seconds": 12.5, **fields}
    return ResultLine(case=case, layout=label, measure=measure, parameters=settings, seed=seed, **known)


def _curve(seed: int, last: float) -> list[list[float]]:
    dice = random.Random(seed)
    falls = {step: last + (5.5 - last) / (1 + math.exp((step - 500) / 90)) for step in range(10, 1601, 10)}
    return [[step, round(loss + dice.gauss(0, 0.05), 4)] for step, loss in falls.items()]


def _training(seed: int, last: float) -> dict[str, Any]:
    return {"steps": 1600, "tokens": 1600 * 32 * 256, "seconds": 480.0, "curve": _curve(seed, last)}


def _state_bytes(label: str, length: int) -> int:
    if LAYOUTS[label][5]:
        return length * 1024
    return {"swa": 32_768, "linear": 33_280, "gated_deltanet": 33_280, "ttt_linear": 41_472}.get(
        label, 60_000 + 40 * min(length, 4096)
    )


def _recall(label: str, seed: int, lengths: list[int]) -> ResultLine:
    _, _, start, kept, _, _ = LAYOUTS[label]
    rows = []
    for length in lengths:
        for depth in (0.0, 0.25, 0.5, 0.75):
            p = max(0.02, start * kept ** math.log2(length / 256) * (0.94 + 0.08 * depth)) - 0.01 * seed
            row = {"length": length, "depth": depth, "passes": 1, "chance": 1 / 64, "total": 160}
            rows.append({**row, "correct": round(160 * min(1.0, p)), "recent": False})
        rows.append({**row, "total": 32, "correct": 4, "recent": True})
    metrics = {
        "rows": rows,
        "training": _training(seed, 0.4 if start > 0.8 else 3.5),
        "parameters": 150_000 + 1000 * len(label),
        "flops_per_token": 400_000,
        "state_bytes": {str(n): _state_bytes(label, n) for n in lengths},
        "text": TEXT,
    }
    return _line(label, "recall", seed, {**TRAIN, **NEEDLE, "lengths": lengths}, metrics=metrics)


def _speed(label: str, length: int, mode: str) -> ResultLine:
    grows, each = LAYOUTS[label][5], LAYOUTS[label][4] * {"train": 3.2, "decode": 40.0}.get(mode, 1.0)
    dice = random.Random(f"{label}{length}{mode}")
    tokens = length if mode != "decode" else 32
    expected = tokens * each * (1 + (length / 2048 if grows else 0))
    samples = sorted(expected * (1 + abs(dice.gauss(0, 0.04))) for _ in range(15))
    q1, median, q3 = samples[3], samples[7], samples[11]
    metrics = {
        "seconds": {"median": median, "q1": q1, "q3": q3},
        "tokens_per_second": {"median": tokens / median, "q1": tokens / q3, "q3": tokens / q1},
        "rounds": 15,
        "samples": samples,
    }
    return _line(label, "speed", 0, {"lengths": [length], "modes": [mode], "batch": 1}, metrics=metrics)


def _memory(label: str, length: int, mode: str) -> ResultLine:
    per_token = {"softmax": 9000, "linear": 7000}.get(label, 6000 + 500 * len(label[:12]))
    per_token *= 2 if mode == "train" else 1
    metrics = {
        "peak_bytes": per_token * length + (length * length * 4 if LAYOUTS[label][5] else 0),
        "model_bytes": 640_000,
        "optimizer_bytes": 1_280_000 if mode == "train" else 0,
        "state_bytes": _state_bytes(label, length),
        "activation_bytes_per_token": per_token,
        "method": "allocator <hooks>",
        "parameters": 150_000 + 1000 * len(label),
        "flops": 400_000 * length,
    }
    return _line(label, "memory", 0, {"lengths": [length], "modes": [mode], "batch": 1}, metrics=metrics)


def _perplexity(label: str, seed: int) -> ResultLine:
    best = 2.3 - 0.15 * LAYOUTS[label][2]
    edges = [0, 64, 128, 256, 512, 1024, 2048, 4096]
    rows = []
    for start, end in pairwise(edges):
        tokens = (end - start) * 16
        bits = best + 0.9 / math.log2(end) + 0.01 * seed
        rows.append({"start": start, "end": end, "tokens": tokens, "nats": bits * math.log(2)})
    metrics = {"rows": rows, "training": _training(seed, best * 0.7), "parameters": 150_000, "text": TEXT}
    return _line(label, "perplexity", seed, {**TRAIN, "length": 4096}, metrics=metrics)


def made_up_lines() -> Iterator[ResultLine]:
    """Seven layouts, recall with two seeds, speed and memory at six lengths, and a failure of each kind."""
    failure: dict[str, Any] = {"metrics": None, "backends": {}}
    for label in LAYOUTS:
        for seed in (0, 1):
            yield _recall(label, seed, LENGTHS)
        for length in LENGTHS:
            for mode in MODES:
                line = _speed(label, length, mode)
                if label == "softmax" and length == 8192 and mode == "train":
                    line = line.model_copy(update={**failure, "status": "out_of_memory", "error": "needs 9 GB"})
                yield line
            for mode in ("forward", "train"):
                yield _memory(label, length, mode)
        if label == "ttt_linear":
            error = "loss is nan at step 12\n<img src=x onerror=alert(1)> | **stars** 100 %"
            yield _perplexity(label, 0).model_copy(update={**failure, "status": "not_finite", "error": error})
        else:
            yield _perplexity(label, 0)
    for status in ("timeout", "crashed", "invalid"):
        yield _line("linear", "probe", 0, {"kind": status}, status=status, error=f"<script>{status}</script>")


def write_run(folder: Path, lines: list[ResultLine], **suite: Any) -> Path:
    """A run folder that holds `lines`; keywords change the suite."""
    grid = {
        "name": "quick",
        "description": "Six mixers <i>side by side</i>",
        "model": {"preset": "nano"},
        "layouts": {label: layout[0] for label, layout in LAYOUTS.items()},
        "seeds": [0, 1],
        "measures": [
            {"measure": "recall", "lengths": LENGTHS, **TRAIN, **NEEDLE},
            {"measure": "speed", "lengths": LENGTHS, "modes": MODES, "batch": 1, "seeds": [0]},
            {"measure": "memory", "lengths": LENGTHS, "modes": ["forward", "train"], "batch": 1, "seeds": [0]},
            {"measure": "perplexity", "length": 4096, "seeds": [0], **TRAIN},
        ],
    }
    run = Run(folder)
    run.write_suite({**grid, **suite})
    run.write_environment(ENVIRONMENT)
    with run.locked() as results:
        for line in lines:
            results.append(line)
    assert SCHEMA_VERSION == 1, "the made-up lines follow version 1 of the schema"
    return folder


@pytest.fixture(scope="session")
def made_up_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The whole made-up run; tests do not change it."""
    return write_run(tmp_path_factory.mktemp("reports") / "run", list(made_up_lines()))


@pytest.fixture(scope="session")
def made_up_report(made_up_run: Path) -> Path:
    """The page of the made-up run."""
    return write_report(made_up_run)


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """`make_run(keep=lambda line: ..., **suite)`: a run folder with some of the made-up lines."""

    def make(keep: Callable[[ResultLine], bool] = lambda line: True, **suite: Any) -> Path:
        return write_run(tmp_path / "run", [line for line in made_up_lines() if keep(line)], **suite)

    return make


if __name__ == "__main__":  # to look at: python tests/reports/conftest.py FOLDER
    import sys

    print(json.dumps(str(write_run(Path(sys.argv[1]), list(made_up_lines())))))
