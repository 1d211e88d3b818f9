"""Speed: tokens per second of forward passes, training steps, prefill and decoding, by length."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from .. import formats
from ..change import Change, Refused, backends_note, matched, of_rounds
from ..charts import Figure
from ..finding import Finding, Score, by_mode, common_length, failed, figure_of, of, without_number
from ..formats import mode_name
from ..inference import LEAST_ROUNDS, Comparison, Ranking, fastest
from ..lines import COMPILED, FAILED, KEYS, Lines, Row, failed_rows, measured, size, tidy
from ..machines import ELSEWHERE, elsewhere, not_compared, with_machine
from ..scaling_figures import speed_figures, speed_growth_tables
from ..section import Section
from ..statistics import Interval, pool_speed, rounds_of, rows_of
from ..summary import ran
from ..table import Table, compiled_note, each, in_brackets, wide
from ..tables import RunData

COLUMNS = [*KEYS, "mode", "length", "tokens_per_second", "low", "high", "seconds", "seconds_low", "seconds_high"]
COLUMNS += ["rounds", "samples", "first_call_seconds", *COMPILED, "backends", "case"]


class Speed(Section):
    measure = "speed"
    title = "Speed"
    order = 30
    alike = frozenset({"rounds", "budget_seconds"})
    holds_for = "one machine"

    def frames(self, lines: Lines) -> dict[str, pd.DataFrame]:
        rows = sorted(_rows(lines), key=lambda row: row["length"])
        return {"speed": tidy(rows, COLUMNS), "speed_failures": tidy(failed_rows(lines, "speed"), FAILED)}

    def findings(self, run: RunData) -> Iterator[Finding]:
        for (variant, mode), rows in by_mode(run, run["speed"]):
            yield _fastest(run, variant, mode, rows)

    def figures(self, run: RunData) -> Iterator[Figure]:
        yield from speed_figures(run)

    def tables(self, run: RunData) -> Iterator[Table]:
        for suffix, (variant, mode), rows in each(run["speed"], "variant", "mode"):
            pooled = pool_speed(rows, ["layout", "length"])
            columns, cells = wide(pooled, "length", _decoding if mode == "decode" else _rate)
            what = "tokens per second" + (", and seconds of a token" if mode == "decode" else "")
            title = f"Speed, {mode_name(mode)}: {what}{in_brackets(variant)}"
            note = f"Median [first, third quartile] of at least {pooled['rounds'].min()} rounds."
            table = Table(f"speed{suffix}", title, columns, cells, note + compiled_note(rows))
            yield with_machine(table, variant, run.places)
        yield from speed_growth_tables(run)

    def numbers(self, run: RunData) -> Iterator[dict[str, Any]]:
        backends = ran(run["speed"])
        for r in rows_of(pool_speed(run["speed"], ["layout", "variant", "mode", "length"])):
            where = {"layout": r.layout, "variant": r.variant, "mode": r.mode, "length": r.length}
            how = {"interval": "quartiles", "count": r.rounds, "seeds": r.seeds, "backends": backends(r)}
            rate = {"value": r.tokens_per_second, "low": r.low, "high": r.high, "unit": "tokens/s"}
            seconds = {"value": r.seconds, "low": r.seconds_low, "high": r.seconds_high, "unit": "s"}
            yield {**where, **how, **rate, "quantity": "tokens_per_second"}
            yield {**where, **how, **seconds, "quantity": "seconds"}

    def compare(self, before: RunData, after: RunData) -> Iterator[Change | Refused]:
        for key, own, other in matched(before["speed"], after["speed"], ["layout", "variant", "mode", "length"]):
            yield _changed(key, own, other)


SECTION = Speed()


def _rows(lines: Lines) -> Iterator[Row]:
    for line, metrics, known in measured(lines, "speed"):
        rates, seconds = metrics["tokens_per_second"], metrics["seconds"]
        yield {
            **known,
            "mode": size(line, "mode"),
            "length": size(line, "length"),
            "tokens_per_second": rates["median"],
            "low": min(rates["q1"], rates["q3"]),
            "high": max(rates["q1"], rates["q3"]),
            "seconds": seconds["median"],
            "seconds_low": min(seconds["q1"], seconds["q3"]),
            "seconds_high": max(seconds["q1"], seconds["q3"]),
            "rounds": metrics["rounds"],
            "samples": metrics["samples"],
            **{key: metrics.get(key) for key in ("first_call_seconds", *COMPILED)},
        }


def _fastest(run: RunData, variant: str, mode: str, rows: pd.DataFrame) -> Finding:
    length = common_length(rows)
    own = rows[rows["length"] == length]
    rates = {r.layout: Interval(r.tokens_per_second, r.low, r.high) for r in rows_of(pool_speed(own, ["layout"]))}
    shown = {name: formats.rate_interval(rate) for name, rate in rates.items()}
    rounds = {str(layout): rounds_of(timed) for layout, timed in own.groupby("layout", sort=False)}
    ranking = fastest(rounds, paired=False)  # each layout was timed in a process of its own
    best = (ranking.leader, *ranking.tied) if ranking.comparisons else ()
    others = elsewhere(run["speed"][run["speed"]["mode"] == mode], variant, run.places, set(rows["layout"]))
    scores = [Score(name, shown[name], r.value, r.low, r.high, name in best) for name, r in rates.items()]
    return Finding(
        topic=f"Fastest {mode_name(mode)} at {formats.whole(length)} tokens{of(variant)}",
        winner=ranking.best,
        value=formats.rate(rates[ranking.leader].value),
        sentence=f"{_faster(ranking, shown)}{not_compared(others)}{failed(run, 'speed', mode)}",
        open="cannot tell" if ranking.comparisons else "nothing to compare with",
        evidence=figure_of("speed", run["speed"], variant),
        column=f"{mode_name(mode).capitalize()}, {formats.whole(length)} tokens{of(variant)}",
        scores=(
            *scores,
            *(Score(name, ELSEWHERE) for name in others),
            *without_number(run, "speed", mode, length, [*rates, *others]),
        ),
    )


def _faster(ranking: Ranking, shown: dict[str, str]) -> str:
    leader = ranking.leader
    if not ranking.comparisons:
        return f"{leader} runs at {shown[leader]}."
    if ranking.best:
        following = max(ranking.comparisons, key=lambda n: ranking.comparisons[n].difference)
        factor = _times(ranking.comparisons[following])
        return f"{leader} runs at {shown[leader]}, {factor} as fast as {following}, the next."
    tied = formats.listing([f"{name} ({shown[name]})" for name in [leader, *ranking.tied]])
    few = min(c.seeds for c in ranking.comparisons.values()) < LEAST_ROUNDS
    why = f"fewer than {LEAST_ROUNDS} rounds tell nothing" if few else "the ratios of their medians leave it open"
    return f"Cannot tell which is fastest: {tied}; {why}."


def _times(seconds: Comparison) -> str:
    """How many times as fast, from a ratio of seconds."""
    return formats.times(Interval(1 / seconds.difference, 1 / seconds.high, 1 / seconds.low))


def _rate(r: Any) -> str:
    return f"{formats.si(r.tokens_per_second)} [{formats.si(r.low)}, {formats.si(r.high)}]"


def _decoding(r: Any) -> str:
    return f"{_rate(r)}, {formats.seconds(r.seconds)}"


def _changed(key: tuple, own: pd.DataFrame, other: pd.DataFrame) -> Change:
    layout, variant, mode, length = key
    rounds: list[Any] = [rounds_of(rows) for rows in (own, other)]
    shown = [formats.seconds(float(np.median(seconds))) for seconds in rounds]
    return Change(
        measure="speed",
        layout=layout,
        what=f"{mode_name(mode)} of {formats.whole(length)} tokens{in_brackets(variant)}",
        unit="seconds",
        before=shown[0],
        after=shown[1],
        note=backends_note(own, other),
        **of_rounds(*rounds),
    )
