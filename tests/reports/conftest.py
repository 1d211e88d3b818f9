"""A made-up run with everything that a report has to cope with; its numbers follow simple laws, not measurements."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from mixerzoo.benchmarks.runs import SCHEMA_VERSION, ResultLine, Run
from mixerzoo.reports import write_report

LENGTHS = [256, 512, 1024, 2048, 4096, 8192]
LOADS = [4, 16, 64]
SEEDS = [0, 1, 2]
MODES = ["forward", "train", "prefill", "decode"]
HOSTILE = '</script><script>alert("label")</script> *bold* | `code` µ→∞'
SEQUENCES = 6


class Layout(NamedTuple):
    """line: its layout line. capacity: needles it holds. kept: share of them kept at each doubling of the length.
    taught: how many of the seeds pass the bar. each: seconds a token. grows: whether its state does.
    """

    line: str
    op: str
    capacity: float
    kept: float
    taught: int
    each: float
    grows: bool = False


LAYOUTS: dict[str, Layout] = {
    "swa": Layout("sliding_window_attention(window=32)", "attention", 2, 0.75, 0, 4e-6),
    "swa + fwpkm": Layout("sliding_window_attention(window=32) | fwpkm@1", "fwpkm", 75, 0.97, 3, 1.6e-5),
    "softmax": Layout("softmax_attention", "attention", 90, 0.60, 3, 5e-6, True),
    "linear": Layout("linear_attention", "linear", 3, 0.62, 0, 5e-6),
    "gated_deltanet": Layout("gated_deltanet", "delta", 30, 0.86, 2, 7e-6),
    "ttt_linear": Layout("ttt_linear", "ttt", 40, 0.90, 3, 2.4e-5),
    HOSTILE: Layout("fwpkm", "fwpkm", 60, 0.955, 3, 2e-5),
}
CARDS: dict[str, dict[str, Any]] = {
    name: {"family": family, "summary": f"What {name} does.", "paper": paper, "arxiv": arxiv, "year": year}
    for name, family, paper, arxiv, year in (
        ("sliding_window_attention", "softmax", "Longformer: The Long-Document Transformer", "2004.05150", 2020),
        ("fwpkm", "memory", "Fast-weight Product Key Memory", "2601.00671", 2026),
        ("softmax_attention", "softmax", "Attention Is All You Need", "1706.03762", 2017),
        ("linear_attention", "linear", "Transformers are RNNs", "2006.16236", 2020),
        ("gated_deltanet", "delta", "Gates & <b>deltas</b>, 100 % of {them}", "2412.06464", 2024),
        ("ttt_linear", "memory", "Learning to (Learn at Test Time)", None, 2024),
    )
}
UNTAUGHT = [label for label, layout in LAYOUTS.items() if layout.taught == 0]
ENVIRONMENT: dict[str, Any] = {
    "schema_version": 3,
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
    "cards": CARDS,
    "layout_mixers": {label: [name for name in CARDS if name in layout.line] for label, layout in LAYOUTS.items()},
}
BAR = {"accuracy": 0.95, "length": 256, "load": 16, "examples": 64, "every": 100, "stop": True}
CURRICULUM = [
    {"share": 0.6, "mix": [{"length": 64, "load": 4, "weight": 2.0}, {"length": 128, "load": 8, "weight": 1.0}]},
    {"share": 0.4, "mix": [{"length": 256, "load": 16, "weight": 1.0}]},
]
TRAIN = {"training": {"length": 256, "steps": 1600, "batch": 32, "learning_rate": 4e-3, "curriculum": CURRICULUM}}
TRAIN["training"]["bar"] = BAR
TRAIN_TEXT = {"training": {"length": 256, "steps": 800, "batch": 8, "learning_rate": 4e-3, "bar": None}}
BUDGET = 1600 * 32 * 256
UNTAUGHT_ACCURACY = 0.0777  # must stand nowhere in a report
TEXT = {
    "source": "Python 3.11 standard library",
    "train_bytes": 9_000_000,
    "eval_bytes": 1_000_000,
    "sha256": "ab" * 32,
}
NEEDLE: dict[str, Any] = {"task": {"task": "needle", "n_needles": 8}}
PROSE: dict[str, Any] = {"task": {"task": "text"}}
RATES = [1e-3, 2e-3, 4e-3]


def _line(label: str, measure: str, seed: int, parameters: dict[str, Any], **fields: Any) -> ResultLine:
    layout_line, op = LAYOUTS[label][:2]
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


def _training(label: str, seed: int) -> ResultLine:
    passed = seed < LAYOUTS[label].taught
    solved = 2_000_000 + 1_000_000 * seed + 100_000 * len(label[:9]) if passed else None
    record = {
        "steps": 1600,
        "tokens": BUDGET,
        "seconds": 480.0,
        "curve": _curve(seed, 0.4 if passed else 3.5),
        "evaluations": [[100, 819_200, 0.03125], *([[400, solved, 0.953125]] if passed else [])],
        "bar": {**{k: BAR[k] for k in ("accuracy", "length", "load")}, "passed": passed},
        "tokens_to_solve": solved,
        "learning_rate": 2e-3,
    }
    record["evaluations"].append([1600, BUDGET, 0.97265625 if passed else UNTAUGHT_ACCURACY])
    record["bar"]["reached"] = 0.97265625 if passed else UNTAUGHT_ACCURACY
    metrics = {
        "training": record,
        "chosen": {"learning_rate": 2e-3},
        "parameters": 150_000 + 1000 * len(label),
        "d_ff": 192,
        "flops_per_token": 400_000,
        "text": TEXT,
    }
    return _line(label, "training", seed, {**TRAIN, **NEEDLE}, metrics=metrics)


def _tuning(label: str, rate: float, rung: int) -> ResultLine:
    tokens = BUDGET // 16 * (4 * rung or 1)
    untaught = LAYOUTS[label].taught == 0
    metrics = {
        "choice": {"learning_rate": rate},
        "rung": rung,
        "tokens": tokens,
        "score": (4.2 if untaught else 2.5) + 400 * abs(rate - 2e-3) - 0.5 * rung,
        "accuracy": UNTAUGHT_ACCURACY if untaught else 0.25 + 0.25 * rung,
        "training": {"steps": 100, "tokens": tokens, "seconds": 30.0, "curve": _curve(0, 3.0), "bar": None},
    }
    rung_training = {**TRAIN["training"], "steps": 100 * (rung + 1), "learning_rate": rate, "bar": None}
    return _line(label, "tuning", 100, {**NEEDLE, "training": rung_training}, metrics=metrics)


def _state_bytes(label: str, length: int) -> int:
    if LAYOUTS[label].grows:
        return length * 1024
    return {"swa": 32_768, "linear": 33_280, "gated_deltanet": 33_280, "ttt_linear": 41_472}.get(
        label, 60_000 + 40 * min(length, 4096)
    )


def _share(label: str, seed: int, length: int, load: int) -> float:
    """What a layout recalls: what it holds, less at each doubling of the length, shared by all needles."""
    layout = LAYOUTS[label]
    held = layout.capacity * layout.kept ** math.log2(length / 256)
    return min(0.995, max(1 / 64, held / load * (1 - 0.02 * seed)))


def _answers(label: str, seed: int, length: int, load: int, passes: int, memory: str) -> dict[str, Any]:
    """Needle after needle of each sequence; one of the first comes too late for a memory that works in chunks."""
    p = min(0.995, _share(label, seed, length, load) * (1 + 0.1 * (passes - 1)))
    p *= 0.9 if memory == "persistent" else 1.0
    dice = random.Random(f"{label}{seed}{length}{load}{passes}{memory}")
    rights = [[dice.random() < p for _ in range(load)] for _ in range(SEQUENCES)]
    texts = [
        "".join(("rw" if i == 0 and n == 0 else "10")[not right] for i, right in enumerate(row))
        for n, row in enumerate(rights)
    ]
    return {"length": length, "load": load, "passes": passes, "memory": memory, "hits": texts}


def _rows(answers: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The answers counted, by quarters of the depth: a needle's place is its number."""
    keys = {key: answers[key] for key in ("length", "load", "passes", "memory")}
    for recent, right, wrong in ((False, "1", "0"), (True, "r", "w")):
        for quarter in range(4):
            places = [i for i in range(answers["load"]) if i * 4 // answers["load"] == quarter]
            own = [text[i] for text in answers["hits"] for i in places if text[i] in right + wrong]
            if own:
                counts = {"correct": own.count(right), "total": len(own), "chance": 1 / 64}
                yield {**keys, "depth": quarter / 4, "recent": recent, **counts}


def _memories(label: str, seed: int, length: int) -> list[dict[str, Any]]:
    """What the sparse memory of a layout that holds one did: fuller with the load, its gate the wider open."""
    found = []
    for load in LOADS if LAYOUTS[label].op == "fwpkm" else []:
        used = 40 + 2 * load + length // 256 + seed
        gate = {"mean": 0.6, "quantiles": {"0.05": 0.001, "0.25": 0.2, "0.5": 0.7, "0.75": 0.9, "0.95": 0.999}}
        gates = {"gate": gate, "gate_asked": {**gate, "mean": 0.95} if label == HOSTILE else None}
        slots = {"written": used / 1024, "hits": 0.9, "used": float(used), "perplexity": used / 2, "accesses": 3.5}
        place = {"length": length, "load": load, "layer": "layers.1.memory", "n_slots": 1024}
        found.append({**place, "tokens": length, "sequences": SEQUENCES, **gates, **slots})
    return found


def _recall(label: str, seed: int, length: int) -> ResultLine:
    asked = [(load, passes, "fresh") for load in LOADS for passes in (1, 2)] + [(16, 1, "persistent")]
    answers = [_answers(label, seed, length, *each) for each in asked]
    rows = [row for each in answers for row in _rows(each)]
    metrics = {
        "rows": rows,
        "answers": answers,
        "state_bytes": {str(length): _state_bytes(label, length)},
        "memories": _memories(label, seed, length),
        "text": TEXT,
    }
    parameters = {**TRAIN, **NEEDLE, "lengths": [length], "loads": LOADS, "passes": [1, 2], "recent": 64}
    line = _line(label, "recall", seed, parameters, metrics=metrics)
    if label == "softmax" and length == 8192:
        failure: dict[str, Any] = {"metrics": None, "backends": {}, "status": "out_of_memory", "error": "needs 12 GB"}
        return line.model_copy(update=failure)
    return line


def _speed(label: str, length: int, mode: str) -> ResultLine:
    grows, each = LAYOUTS[label].grows, LAYOUTS[label].each * {"train": 3.2, "decode": 40.0}.get(mode, 1.0)
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
        "peak_bytes": per_token * length + (length * length * 4 if LAYOUTS[label].grows else 0),
        "model_bytes": 640_000,
        "optimizer_bytes": 1_280_000 if mode == "train" else 0,
        "state_bytes": _state_bytes(label, length),
        "activation_bytes_per_token": per_token,
        "method": "allocator <hooks>",
        "parameters": 150_000 + 1000 * len(label),
        "flops": 400_000 * length,
    }
    return _line(label, "memory", 0, {"lengths": [length], "modes": [mode], "batch": 1}, metrics=metrics)


def _text_training(label: str, seed: int) -> ResultLine:
    record = {"steps": 800, "tokens": 800 * 8 * 256, "seconds": 60.0, "curve": _curve(seed, 1.5), "bar": None}
    metrics = {"training": record, "chosen": {}, "parameters": 150_000, "d_ff": 192, "text": TEXT}
    return _line(label, "training", seed, {**TRAIN_TEXT, **PROSE}, metrics=metrics)


def _perplexity(label: str, seed: int) -> ResultLine:
    best = 2.3 - 0.15 * LAYOUTS[label].kept
    edges = [0, 64, 128, 256, 512, 1024, 2048, 4096]
    rows = []
    for start, end in pairwise(edges):
        bits = best + 0.9 / math.log2(end) + 0.01 * seed
        rows.append({"start": start, "end": end, "tokens": (end - start) * 16, "nats": bits * math.log(2)})
    return _line(
        label, "perplexity", seed, {**TRAIN_TEXT, **PROSE, "length": 4096}, metrics={"rows": rows, "text": TEXT}
    )


def made_up_lines() -> Iterator[ResultLine]:
    """Seven layouts: tuned, trained with three seeds (some not taught), asked, timed; and a failure of each kind."""
    failure: dict[str, Any] = {"metrics": None, "backends": {}}
    for label, layout in LAYOUTS.items():
        yield from (_tuning(label, rate, rung) for rung in (0, 1) for rate in (RATES if rung == 0 else [2e-3, 4e-3]))
        for seed in SEEDS:
            yield _training(label, seed)
            if seed < layout.taught:
                yield from (_recall(label, seed, length) for length in LENGTHS)
        for length in LENGTHS:
            for mode in MODES:
                line = _speed(label, length, mode)
                if label == "softmax" and length == 8192 and mode == "train":
                    line = line.model_copy(update={**failure, "status": "out_of_memory", "error": "needs 9 GB"})
                yield line
            for mode in ("forward", "train"):
                yield _memory(label, length, mode)
        yield _text_training(label, 0)
        if label == "ttt_linear":
            error = "loss is nan at step 12\n<img src=x onerror=alert(1)> | **stars** 100 %"
            yield _perplexity(label, 0).model_copy(update={**failure, "status": "not_finite", "error": error})
        else:
            yield _perplexity(label, 0)
    for status in ("timeout", "crashed", "invalid"):
        yield _line("linear", "probe", 0, {"kind": status}, status=status, error=f"<script>{status}</script>")


def planned(lines: Iterable[ResultLine], final: bool = True) -> dict[str, Any]:
    """The plan of a run whose cases are `lines`."""
    cases = [
        {**{key: getattr(line, key) for key in ("case", "layout", "measure", "seed")}, "what": ""} for line in lines
    ]
    return {"final": final, "cases": cases}


def write_run(folder: Path, lines: list[ResultLine], plan: dict[str, Any] | None = None, **suite: Any) -> Path:
    """A run folder that holds `lines`; keywords change the suite."""
    asked = {"lengths": LENGTHS, "loads": LOADS, "passes": [1, 2]}
    grid = {
        "name": "quick",
        "description": "Six mixers <i>side by side</i>",
        "model": {"preset": "nano"},
        "layouts": {label: layout.line for label, layout in LAYOUTS.items()},
        "seeds": SEEDS,
        "measures": [
            {"measure": "recall", **asked, **TRAIN, **NEEDLE, "sweep": {"learning_rate": RATES}},
            {"measure": "speed", "lengths": LENGTHS, "modes": MODES, "batch": 1, "seeds": [0]},
            {"measure": "memory", "lengths": LENGTHS, "modes": ["forward", "train"], "batch": 1, "seeds": [0]},
            {"measure": "perplexity", "length": 4096, "seeds": [0], **TRAIN_TEXT, **PROSE},
        ],
    }
    run = Run(folder)
    run.write_suite({**grid, **suite})
    run.write_environment(ENVIRONMENT)
    if plan is not None:
        (folder / "plan.json").write_text(json.dumps(plan), encoding="utf-8")
    with run.locked() as results:
        for line in lines:
            results.append(line)
    assert SCHEMA_VERSION == 3, "the made-up lines follow version 3 of the schema"
    return folder


@pytest.fixture(scope="session")
def made_up_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The whole made-up run; tests do not change it."""
    lines = list(made_up_lines())
    return write_run(tmp_path_factory.mktemp("reports") / "run", lines, planned(lines))


@pytest.fixture(scope="session")
def made_up_report(made_up_run: Path) -> Path:
    """The page of the made-up run."""
    return write_report(made_up_run)


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """`make_run(keep=lambda line: ..., **suite)`: a run folder with some of the made-up lines, all of them planned."""

    def make(keep: Callable[[ResultLine], bool] = lambda line: True, **suite: Any) -> Path:
        lines = list(made_up_lines())
        return write_run(tmp_path / "run", [line for line in lines if keep(line)], planned(lines), **suite)

    return make


if __name__ == "__main__":  # to look at: python tests/reports/conftest.py FOLDER
    import sys

    everything = list(made_up_lines())
    print(write_run(Path(sys.argv[1]), everything, planned(everything)))
