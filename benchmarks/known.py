"""What a planner has to know of the results so far: little, so that there may be many of them."""

from __future__ import annotations

from typing import Any

from .result_lines import LineHead, ResultLine
from .runs import SCHEMA_VERSION, Run

DECIDING = frozenset({"tuning", "training"})
"""Measures whose results decide what else is run: what they measured is kept."""
# shared by all results
_NOTHING: dict[str, Any] = {"parameters": {}, "backends": {}, "attempts": [], "metrics": None}
_UNSAID: dict[str, Any] = {"ended": None, "machine": None, "peak_bytes": None, "error": None}
_FIELDS = set(ResultLine.model_fields)


def known_results(run: Run) -> dict[str, ResultLine]:
    """The results of a run by case, see `known`; none of a folder that holds no run."""
    if not run.exists:
        return {}
    index = run.index()
    found = {case: _of_head(head) for case, head in index.items()}
    deciding = [head for head in index.values() if head.measure in DECIDING]
    return found | {line.case: known(line) for line in run.lines(deciding)}


def known(result: ResultLine) -> ResultLine:
    """A result without its parameters, and of what was measured only that which decides what else is run."""
    update = dict(_NOTHING)
    if result.measure in DECIDING and result.metrics is not None:
        kept = {name: result.metrics[name] for name in ("score", "training") if name in result.metrics}
        if isinstance(kept.get("training"), dict):
            kept["training"] = {"bar": kept["training"].get("bar")}
        update["metrics"] = kept
    return result.model_copy(update=update)


def _of_head(head: LineHead) -> ResultLine:
    # all fields are given, and their names shared: that is quicker, and takes less memory
    return ResultLine.model_construct(
        _FIELDS,
        schema_version=SCHEMA_VERSION,
        case=head.case,
        layout=head.layout,
        measure=head.measure,
        seed=head.seed,
        status=head.status,
        seconds=head.seconds,
        **_NOTHING,
        **_UNSAID,
    )
