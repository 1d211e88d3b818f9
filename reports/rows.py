"""Result lines as the rows of tidy tables, one function for each table."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from ..benchmarks.runs import ResultLine
from .statistics import bits_per_byte
from .variants import purpose

IN_TURN = (
    "op_speed",
    "overhead",
    "mixer_speed",
    "library_overhead",
    "decode_speed",
)  # measures of several things in one process, held to bars
_CURVE_POINTS = 120
_LOADS = ("n_needles", "n_pairs", "n_tokens", "n_distinct", "n_entries")  # what tasks call their load
_COMPILED = ("compile_seconds", "graph_breaks")  # where torch.compile was asked for
_NO_CASE = ("layout", "measure", "seed", "status", "seconds", "case")

Lines = list[tuple[ResultLine, str]]  # each with its variant
Row = dict[str, Any]


def size(line: ResultLine, name: str) -> Any:
    """The mode or the length of a case of one of them; None if it has several or none."""
    values = line.parameters.get(f"{name}s")
    if isinstance(values, list):
        return values[0] if len(values) == 1 else None
    return line.parameters.get(name)


def case_text(line: ResultLine) -> str:
    """What of its measure a case was: mode and length where it has one, else nothing."""
    mode, length = size(line, "mode"), size(line, "length")
    return ", ".join([*([str(mode)] if mode else []), *([f"{length:,} tokens"] if isinstance(length, int) else [])])


def choice_text(choice: dict[str, Any] | None) -> str:
    """`learning_rate = 0.002, heads = 4`."""
    return ", ".join(f"{k} = {v:g}" if isinstance(v, float) else f"{k} = {v}" for k, v in (choice or {}).items())


def layout_line(line: ResultLine) -> str:
    return str(line.parameters.get("layout_line") or line.parameters.get("model", {}).get("layout", ""))


def _identity(line: ResultLine, variant: str) -> Row:
    return {
        "layout": line.layout,
        "variant": variant,
        "seed": line.seed,
        "measure": purpose(line),
        "case": line.case,
        "backends": "; ".join(f"{op}: {', '.join(names)}" for op, names in sorted(line.backends.items())),
        "status": line.status,
    }


def _metrics(lines: Lines, measure: str) -> Iterator[tuple[ResultLine, dict[str, Any], Row]]:
    for line, variant in lines:
        if line.measure == measure:
            yield line, line.metrics or {}, _identity(line, variant)


# --- Tuning and training ---


def tuning_rows(lines: Lines) -> Iterator[Row]:
    """One row for every option set that was tried, a seed and a rung at a time; `chosen`: trained with afterwards."""
    chosen = {(line.layout, purpose(line), choice_text((line.metrics or {}).get("chosen"))) for line, _ in lines}
    for line, metrics, identity in _metrics(lines, "tuning"):
        choice = choice_text(metrics["choice"])
        known = {key: metrics.get(key) for key in ("rung", "tokens", "score", "accuracy")}
        picked = (line.layout, purpose(line), choice) in chosen
        yield {**identity, **known, "choice": choice, "chosen": picked, "seconds": line.seconds}


def training_rows(lines: Lines) -> Iterator[Row]:
    """One row for every training; one that failed has its status.

    What it reached, and when, stands only where the bar was passed in the end.
    """
    for line, metrics, identity in _metrics(lines, "training"):
        record, settings = metrics.get("training") or {}, line.parameters.get("training") or {}
        curve, bar = record.get("curve") or [], record.get("bar") or {}
        lengths, loads = trained_sizes(line.parameters, bar.get("load"))
        passed = bar.get("passed")
        declared = settings.get("bar") or {}
        yield {
            **identity,
            "task": (line.parameters.get("task") or {}).get("task"),
            "lengths": lengths,
            "loads": loads,
            "chosen": choice_text(metrics.get("chosen")),
            **{key: record.get(key) for key in ("steps", "tokens", "seconds", *_COMPILED)},
            "tokens_to_solve": record.get("tokens_to_solve") if passed else None,
            "first_loss": curve[0][1] if curve else None,
            "last_loss": curve[-1][1] if curve else None,
            "bar": bar.get("accuracy", declared.get("accuracy")),
            "bar_length": bar.get("length", declared.get("length")),
            "bar_load": bar.get("load", declared.get("load")),
            "reached": bar.get("reached") if passed else None,
            "passed": passed,
        }


def trained_sizes(parameters: dict[str, Any], bar_load: int | None = None) -> tuple[list[int], list[int]]:
    """The lengths and the loads that a model was trained on, rising: of its curriculum, or its one length.

    bar_load: of the bar, which is that of the task where neither the curriculum nor the task names one.
    """
    settings, task = parameters.get("training") or {}, parameters.get("task") or {}
    drawn = list(_drawn(settings.get("curriculum")))
    own_load = next((task[key] for key in _LOADS if isinstance(task.get(key), int)), bar_load)
    lengths = {d["length"] for d in drawn} or {settings.get("length")}
    loads = {d.get("load") or own_load for d in drawn} or {own_load}
    return sorted(n for n in lengths if n), sorted(n for n in loads if n)


def _drawn(value: Any) -> Iterator[dict[str, Any]]:
    """The `{length, load, weight}` of a curriculum, at whatever depth they stand."""
    if isinstance(value, dict) and isinstance(value.get("length"), int):
        yield value
    else:
        for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
            yield from _drawn(inner)


def curve_rows(lines: Lines) -> Iterator[Row]:
    """Training curves, long ones as means over equal stretches of steps."""
    for _, metrics, identity in _metrics(lines, "training"):
        curve = (metrics.get("training") or {}).get("curve") or []
        stretch = math.ceil(len(curve) / _CURVE_POINTS)
        for start in range(0, len(curve), stretch or 1):
            points = curve[start : start + stretch]
            loss = sum(loss for _, loss in points) / len(points)
            yield {**identity, "step": points[-1][0], "loss": loss}


# --- Recall and perplexity ---


def recall_rows(lines: Lines) -> Iterator[Row]:
    for _, metrics, identity in _metrics(lines, "recall"):
        for row in metrics["rows"]:
            yield {**identity, "recent": False, "chance": math.nan, **row}


def answer_rows(lines: Lines) -> Iterator[Row]:
    """One row for every length, load, number of passes and memory of a model; `hits` has a string for each sequence."""
    for _, metrics, identity in _metrics(lines, "recall"):
        keys = ("length", "load", "passes", "memory")
        chances = {tuple(row.get(k) for k in keys): row.get("chance", math.nan) for row in metrics["rows"]}
        for answer in metrics["answers"]:
            yield {**identity, **answer, "chance": chances.get(tuple(answer.get(k) for k in keys), math.nan)}


def failed_length_rows(lines: Lines) -> Iterator[Row]:
    """Lengths at which a taught model gave no answers, with the status that says why."""
    for line, _, identity in _metrics(lines, "recall"):
        if line.status != "ok" and size(line, "length"):
            yield {**identity, "length": size(line, "length")}


def perplexity_rows(lines: Lines) -> Iterator[Row]:
    for _, metrics, identity in _metrics(lines, "perplexity"):
        # nats of a byte, whatever the tokens are, so that tokenizers compare
        bytes_per_token = (metrics.get("text") or {}).get("bytes_per_token", 1.0)
        for row in metrics["rows"]:
            nats = row["nats"] / bytes_per_token
            yield {**identity, **row, "nats": nats, "bits_per_byte": bits_per_byte(nats)}


# --- Speed, memory, ops ---


def speed_rows(lines: Lines) -> Iterator[Row]:
    for line, metrics, identity in _metrics(lines, "speed"):
        rates, seconds = metrics["tokens_per_second"], metrics["seconds"]
        yield {
            **identity,
            "mode": size(line, "mode"),
            "length": size(line, "length"),
            "tokens_per_second": rates["median"],
            "low": min(rates["q1"], rates["q3"]),
            "high": max(rates["q1"], rates["q3"]),
            "seconds": seconds["median"],
            "seconds_low": min(seconds["q1"], seconds["q3"]),
            "seconds_high": max(seconds["q1"], seconds["q3"]),
            "rounds": metrics.get("rounds", 0),
            "samples": metrics.get("samples") or [],
            **{key: metrics.get(key) for key in ("first_call_seconds", *_COMPILED)},
        }


def memory_rows(lines: Lines) -> Iterator[Row]:
    for line, metrics, identity in _metrics(lines, "memory"):
        yield {**identity, "mode": size(line, "mode"), "length": size(line, "length"), **metrics}


def state_rows(lines: Lines) -> Iterator[Row]:
    """State bytes of one sequence at each length, from recall, or else from the memory measure."""
    found: dict[tuple[str, int], float] = {}
    for line, metrics, _ in _metrics(lines, "recall"):
        for length, held in (metrics.get("state_bytes") or {}).items():
            found.setdefault((line.layout, int(length)), held)
    for line, metrics, _ in _metrics(lines, "memory"):
        if metrics.get("state_bytes") is not None:
            batch = line.parameters.get("batch", 1)
            found.setdefault((line.layout, int(size(line, "length"))), metrics["state_bytes"] / batch)
    for (layout, length), held in sorted(found.items(), key=lambda item: item[0][1]):
        yield {"layout": layout, "length": length, "state_bytes": held}


def op_speed_rows(lines: Lines) -> Iterator[Row]:
    for measure in IN_TURN:
        for line, metrics, identity in _metrics(lines, measure):
            shared = {"op": line.parameters.get("op", metrics.get("mixer", "model"))}
            shared["copy_bandwidth"] = (metrics.get("copy_bandwidth") or {}).get("median")
            shared |= {key: metrics.get(key) for key in _COMPILED}  # of the whole case
            for row in metrics["rows"]:
                seconds = {"seconds": row["median"], "seconds_low": row["q1"], "seconds_high": row["q3"]}
                yield {
                    **identity,
                    "floor_bytes": math.nan,
                    "floor_seconds": math.nan,
                    **row,
                    **seconds,
                    **shared,
                    "ran": ran_text(row),
                }


def ran_text(row: Row) -> str:
    """Which backends a contender took, `fwpkm: triton`; nothing where it was not recorded."""
    return "; ".join(f"{op}: {', '.join(names)}" for op, names in (row.get("ran") or {}).items())


def op_ratio_rows(lines: Lines) -> Iterator[Row]:
    for measure in IN_TURN:
        for line, metrics, identity in _metrics(lines, measure):
            shared = {"batch": line.parameters.get("batch", 1), "lengths": line.parameters.get("lengths")}
            for ratio in metrics["ratios"]:
                yield {**identity, **shared, **ratio}


# --- Models, backends, failures ---


def model_rows(lines: list[ResultLine], layouts: list[str]) -> Iterator[Row]:
    """Sizes of every layout's model; FLOPs of a forward pass at the greatest length where all were counted."""
    flops: dict[int, dict[str, float]] = {}
    for line in lines:
        metrics, trained = line.metrics or {}, (line.parameters.get("training") or {}).get("length")
        if "flops" in metrics and (length := size(line, "length")):
            flops.setdefault(length, {})[line.layout] = metrics["flops"] / length
        elif "flops_per_token" in metrics and trained:
            flops.setdefault(trained, {})[line.layout] = metrics["flops_per_token"]
    length = max(flops, key=lambda n: (len(flops[n]), n), default=None)
    for layout in layouts:
        own = [line for line in lines if line.layout == layout]
        if not own:
            continue
        model = dict(own[0].parameters.get("model", {}))
        if model.get("match"):
            model["d_ff"] = None  # the width before matching
        counted = {k: v for line in own for k, v in (line.metrics or {}).items() if k in ("parameters", "d_ff")}
        each = {"flops_per_token": flops[length].get(layout), "flops_length": length} if length else {}
        yield {**model, **counted, **each, "layout": layout, "layout_line": layout_line(own[0])}


def backend_rows(lines: list[ResultLine]) -> Iterator[Row]:
    seen: dict[tuple[str, str, str, str], set[str]] = {}
    for line in lines:
        for op, names in sorted(line.backends.items()):
            key = (line.layout, line.measure, op, str(line.parameters.get("device", "")))
            seen.setdefault(key, set()).update(names)
    for (layout, measure, op, device), found in seen.items():
        yield {"layout": layout, "measure": measure, "op": op, "backends": ", ".join(sorted(found)), "device": device}


def failure_rows(lines: list[ResultLine], planned: dict[str, str]) -> Iterator[Row]:
    """planned: what the plan says of a case, by its id; for cases without a mode or a length."""
    for line in lines:
        if line.status != "ok":
            known = {key: getattr(line, key) for key in _NO_CASE}
            yield {**known, "what": case_text(line) or planned.get(line.case, ""), "error": line.error or "no message"}
