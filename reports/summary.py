"""The numbers of a run for machines: one table, one pooled number a row, with interval, unit and backends."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pandas as pd

from . import formats
from .inference import solved
from .recall import asked
from .statistics import pool_perplexity, pool_speed, rows_of
from .tables import RunData
from .taught import tokens_to_solve

SUMMARY = ["layout", "measure", "variant", "quantity", "mode", "length", "load", "passes", "memory", "value", "low"]
SUMMARY += ["high", "interval", "unit", "count", "seeds", "backends"]


def summary(run: RunData) -> pd.DataFrame:
    """Every pooled number of the run, one a row, with its interval, unit and the backends that ran."""
    taught = (_tuning_numbers, _solve_numbers, _recall_numbers)
    makers = (*taught, _speed_numbers, _memory_numbers, _perplexity_numbers, _op_speed_numbers)
    rows = [number for make in makers for number in make(run)]
    return pd.DataFrame(rows, columns=SUMMARY)


def _ran(frame: pd.DataFrame) -> Callable[[Any], str]:
    """The backends of the rows of `frame` that agree with a pooled row in its layout, variant, mode and length."""
    keys = [k for k in ("layout", "variant", "mode", "length") if k in frame]
    seen = frame.groupby(keys, sort=False, dropna=False)["backends"].agg(lambda texts: " | ".join(dict.fromkeys(texts)))
    return lambda row: seen.get(tuple(getattr(row, k) for k in keys), "")


def _tuning_numbers(run: RunData) -> Iterator[dict[str, Any]]:
    for r in rows_of(run.tuning):
        where = {"layout": r.layout, "measure": "tuning", "variant": f"{r.choice}, rung {int(r.rung) + 1}"}
        number = {"quantity": "validation_loss", "value": r.score, "unit": "nats", "count": 1, "seeds": 1}
        yield {**where, **number, "backends": ""}


def _solve_numbers(run: RunData) -> Iterator[dict[str, Any]]:
    """Tokens to solve by layout: their median over seeds, nan while fewer than half solved, and how many did."""
    for status, own in tokens_to_solve(run):
        times = [None if formats.missing(t) else int(t) for t in own["tokens_to_solve"].astype(float)]
        result = solved(times, int(status.tokens or 0))
        where = {"layout": status.layout, "measure": "training", "variant": status.variant, "seeds": result.seeds}
        yield {**where, "quantity": "tokens_to_solve", "value": result.median, "unit": "tokens", "count": result.solved}
        yield {**where, "quantity": "seeds_taught", "value": status.passed, "unit": "seeds", "count": status.seeds}


def _recall_numbers(run: RunData) -> Iterator[dict[str, Any]]:
    for recall in asked(run):
        for r in rows_of(recall.cells):
            where = {"layout": r.layout, "measure": "recall", "variant": recall.variant}
            where |= {key: getattr(r, key) for key in ("length", "load", "passes", "memory")}
            how = {"count": r.total, "seeds": r.seeds, "backends": r.backends}
            share = {"value": r.accuracy, "low": r.low, "high": r.high, "interval": f"95 %, {r.kind}", "unit": "share"}
            yield {**where, **how, **share, "quantity": "accuracy"}
            if not formats.missing(r.state_bytes):
                yield {**where, **how, "quantity": "state_bytes", "value": r.state_bytes, "unit": "B", "count": 1}


def _speed_numbers(run: RunData) -> Iterator[dict[str, Any]]:
    ran = _ran(run.speed)
    for r in rows_of(pool_speed(run.speed, ["layout", "variant", "mode", "length"])):
        where = {"layout": r.layout, "measure": "speed", "variant": r.variant, "mode": r.mode, "length": r.length}
        how = {"interval": "quartiles", "count": r.rounds, "seeds": r.seeds, "backends": ran(r)}
        rate = {"value": r.tokens_per_second, "low": r.low, "high": r.high, "unit": "tokens/s"}
        seconds = {"value": r.seconds, "low": r.seconds_low, "high": r.seconds_high, "unit": "s"}
        yield {**where, **how, **rate, "quantity": "tokens_per_second"}
        yield {**where, **how, **seconds, "quantity": "seconds"}


def _memory_numbers(run: RunData) -> Iterator[dict[str, Any]]:
    for r in rows_of(run.memory):
        where = {"layout": r.layout, "measure": "memory", "variant": r.variant, "mode": r.mode, "length": r.length}
        for quantity in ("peak_bytes", "model_bytes", "optimizer_bytes", "state_bytes", "activation_bytes_per_token"):
            unit = "B/token" if quantity.endswith("per_token") else "B"
            number = {"quantity": quantity, "value": getattr(r, quantity), "unit": unit}
            yield {**where, **number, "count": 1, "seeds": 1, "backends": r.backends}


def _perplexity_numbers(run: RunData) -> Iterator[dict[str, Any]]:
    ran = _ran(run.perplexity)
    for r in rows_of(pool_perplexity(run.perplexity, ["layout", "variant"])):
        number = {"value": r.bits_per_byte, "low": r.seed_low, "high": r.seed_high, "interval": "range of the seeds"}
        where = {"layout": r.layout, "measure": "perplexity", "variant": r.variant, "unit": "bits/byte"}
        yield {**where, **number, "quantity": "bits_per_byte", "count": r.tokens, "seeds": r.seeds, "backends": ran(r)}


def _op_speed_numbers(run: RunData) -> Iterator[dict[str, Any]]:
    for r in rows_of(run.op_speed):
        where = {"layout": r.layout, "measure": r.measure, "variant": r.variant, "mode": r.mode, "length": r.tokens}
        how = {"seeds": 1, "backends": f"{r.op}: {r.backend}"}
        seconds = {"value": r.seconds, "low": r.seconds_low, "high": r.seconds_high, "interval": "quartiles"}
        yield {**where, **how, **seconds, "quantity": "seconds", "unit": "s", "count": r.rounds}
        for quantity in ("peak_bytes", "floor_bytes"):
            if not formats.missing(getattr(r, quantity)):
                yield {**where, **how, "quantity": quantity, "value": getattr(r, quantity), "unit": "B", "count": 1}
    for r in rows_of(run.op_ratios):
        where = {"layout": r.layout, "measure": r.measure, "variant": r.variant, "mode": r.mode, "length": r.tokens}
        number = {"quantity": r.kind, "value": r.value, "low": r.low, "high": r.high, "interval": "quartiles"}
        which = " over ".join(name for name in (r.backend, r.over) if isinstance(name, str))
        yield {**where, **number, "unit": "ratio", "count": 1, "seeds": 1, "backends": which}
