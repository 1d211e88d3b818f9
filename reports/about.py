"""What stands behind the numbers of a run, as rows: its models, the backends that ran, failures, missing cases."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from .lines import Row, case_text, layout_line, size
from .machines import machine_of
from .result import Result

MODELS = ["layout", "layout_line", "parameters", "flops_per_token", "flops_length", "d_model", "n_layers", "d_ff"]
MODELS += ["match"]
BACKENDS = ["layout", "measure", "op", "backends", "device"]
FAILURES = ["layout", "measure", "seed", "what", "status", "error", "seconds", "case"]
ATTEMPTS = ["layout", "measure", "seed", "what", "machine", "why", "seconds", "ended", "case"]
MISSING = ["layout", "measure", "seed", "expected", "found"]


def model_rows(lines: list[Result], layouts: list[str]) -> Iterator[Row]:
    """Sizes of every layout's model; FLOPs of a forward pass at the greatest length where all were counted."""
    flops: dict[int, dict[str, float]] = {}
    for line in lines:
        metrics, trained = line.metrics or {}, (line.parameters.get("training") or {}).get("length")
        if "flops" in metrics and (length := size(line, "length")):
            flops.setdefault(length, {})[line.layout] = metrics["flops"] / length
        elif "flops_per_token" in metrics and trained:
            flops.setdefault(trained, {})[line.layout] = metrics["flops_per_token"]
    length = max(flops, key=lambda n: (len(flops[n]), n), default=None)
    by_layout: dict[str, list[Result]] = {}
    for line in lines:
        by_layout.setdefault(line.layout, []).append(line)
    for layout in [layout for layout in layouts if layout in by_layout]:
        own = by_layout[layout]
        model = dict(own[0].parameters.get("model", {}))
        if model.get("match"):
            model["d_ff"] = None  # the width before matching
        counted = {k: v for line in own for k, v in (line.metrics or {}).items() if k in ("parameters", "d_ff")}
        each = {"flops_per_token": flops[length].get(layout), "flops_length": length} if length else {}
        yield {**model, **counted, **each, "layout": layout, "layout_line": layout_line(own[0])}


def backend_rows(lines: list[Result]) -> Iterator[Row]:
    seen: dict[tuple[str, str, str, str], set[str]] = {}
    for line in lines:
        for op, names in sorted(line.backends.items()):
            key = (line.layout, line.measure, op, str(line.parameters.get("device", "")))
            seen.setdefault(key, set()).update(names)
    for (layout, measure, op, device), found in seen.items():
        yield {"layout": layout, "measure": measure, "op": op, "backends": ", ".join(sorted(found)), "device": device}


def failure_rows(lines: list[Result], planned: dict[str, str]) -> Iterator[Row]:
    """planned: what the plan says of a case, by its id; for cases without a mode or a length."""
    for line in lines:
        if line.status != "ok":
            known = {key: getattr(line, key) for key in ("layout", "measure", "seed", "status", "seconds", "case")}
            known |= {"peak_bytes": line.peak_bytes, "machine": machine_of(line).get("name")}
            yield {**known, "what": case_text(line) or planned.get(line.case, ""), "error": line.error or "no message"}


def attempt_rows(lines: list[Result], planned: dict[str, str]) -> Iterator[Row]:
    """The attempts at cases that came to nothing since a machine was lost."""
    for line in lines:
        for lost in line.attempts:
            known = {key: getattr(line, key) for key in ("layout", "measure", "seed", "case")}
            known["what"] = case_text(line) or planned.get(line.case, "")
            yield {**known, **{key: lost.get(key) for key in ("machine", "why", "seconds", "ended")}}


def recorded(name: str, lines: list[Result]) -> list[str]:
    """The column `name` of failures, if any line has it."""
    return [name] if any(line.status != "ok" and getattr(line, name) is not None for line in lines) else []


def missing_rows(plan: dict[str, Any] | None, lines: list[Result]) -> Iterator[Row]:
    """The planned cases that have no result, counted; a case that failed has one."""
    found = {line.case for line in lines}
    cases = (plan or {}).get("cases", [])
    asked = Counter((str(c["layout"]), str(c["measure"]), int(c["seed"])) for c in cases)
    there = Counter((str(c["layout"]), str(c["measure"]), int(c["seed"])) for c in cases if c["case"] in found)
    for key, count in asked.items():
        if there[key] < count:
            yield {**dict(zip(("layout", "measure", "seed"), key)), "expected": count, "found": there[key]}
