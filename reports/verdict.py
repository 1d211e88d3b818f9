"""Who wins what, computed from the tables and said in plain sentences, with what the numbers leave open."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pandas as pd

from . import formats, op_speed
from .formats import mode_name
from .statistics import Interval, pool_perplexity, pool_recall, pool_speed, ratio, rows_of
from .tables import IN_TURN, RunData

_NEAR = 0.01  # peak memory within 1 % counts as equal: allocators round


@dataclass(frozen=True)
class Finding:
    """One question of the comparison. winner: None if the measurement does not separate the best."""

    topic: str
    winner: str | None
    value: str
    sentence: str


def findings(run: RunData) -> list[Finding]:
    """The verdict, most important first; what was not measured is left out."""
    questions = (_recall, _speed, _peak_memory, _state, _perplexity, _bars)
    return [finding for question in questions for finding in question(run)]


def training_statement(run: RunData) -> list[str]:
    """What was trained, at which length, how long and with how many seeds; a sentence for every kind of training."""
    sentences = []
    for (measure, variant), group in run.training.groupby(["measure", "variant"], sort=False):
        rows = {"recall": run.recall, "perplexity": run.perplexity}.get(str(measure), pd.DataFrame())
        where = f" ({variant})" if variant else ""
        on = sorted({int(n) for n in group["trained_on"].dropna()})
        length = f" on sequences of {formats.listing([formats.whole(n) for n in on])} tokens" if on else ""
        steps = formats.listing([formats.whole(s) for s in sorted(group["steps"].dropna().unique())])
        tokens = formats.listing([formats.si(t) for t in sorted(group["tokens"].dropna().unique())])
        sentence = f"For {measure}{where} every model was trained{length} for {steps} steps ({tokens} tokens)"
        if measure == "recall" and len(rows):
            own = rows[rows["variant"] == variant]
            lengths = sorted(own["length"].unique())
            sentence += f" and evaluated on {formats.whole(lengths[0])} to {formats.whole(lengths[-1])} tokens"
        sentences.append(f"{sentence}. {seeds_statement(group['seed'])}")
    return sentences


def seeds_statement(seeds: pd.Series) -> str:
    """How many seeds there are, and that one seed says nothing of the spread between seeds."""
    numbers = sorted(set(seeds))
    if len(numbers) == 1:
        return f"One seed ({numbers[0]}): no interval here says how the result changes from seed to seed."
    return f"{len(numbers)} seeds ({formats.listing([str(n) for n in numbers])}), pooled; the tables show each seed."


def common_length(frame: pd.DataFrame) -> int:
    """The greatest length at which the most layouts of `frame` have a result. `frame` has rows."""
    counts = frame.groupby("length")["layout"].nunique()
    return int(counts[counts == counts.max()].index.max() if counts.max() > 1 else frame["length"].max())


def headline_recall(recall: pd.DataFrame) -> pd.DataFrame:
    """The rows that accuracy is claimed for: needles that are not recent, read with the fewest passes."""
    kept = recall[~recall["recent"].astype(bool)]
    return kept[kept["passes"] == kept["passes"].min()] if len(kept) else kept


def _recall(run: RunData) -> Iterator[Finding]:
    for variant, rows in headline_recall(run.recall).groupby("variant", sort=False):
        length = common_length(rows)
        pooled = pool_recall(rows[rows["length"] == length], ["layout"])
        values = {r.layout: Interval(r.accuracy, r.low, r.high) for r in rows_of(pooled) if r.total}
        if not values:
            continue
        trained = sorted({int(n) for n in rows["trained_on"].dropna()})
        factor = f", {length / trained[0]:.3g} times the training length" if len(trained) == 1 else ""
        best, rivals, others = _rank(values)
        shown = {name: formats.percent_interval(v) for name, v in values.items()}
        if rivals:
            tied = formats.listing([f"{name} ({shown[name]})" for name in [best, *rivals]])
            sentence = f"No winner: {tied} are not separable; their intervals overlap."
        else:
            sentence = f"{best} recalls {shown[best]} of the needles"
            sentence += (
                f", clear of {others[0]} ({shown[others[0]]}), the next." if others else "; nothing to compare with."
            )
        low = _at_chance(rows[rows["length"] == length])
        if low:
            chance = formats.percent(float(pooled["chance"].mean()))
            sentence += f" Not above chance ({chance}): {formats.listing(low)}."
        untaught = _at_chance(rows[rows["length"].isin(trained)]) if len(trained) == 1 else []
        if untaught:
            sentence += (
                f" At the training length already not above chance: {formats.listing(untaught)}; this training did not "
                "teach them the task, so their curves say nothing about length."
            )
        sentence += f" {seeds_statement(rows['seed'])}{_failed(run, 'recall')}"
        topic = f"Recall at {formats.whole(length)} tokens{factor}{_of(variant)}"
        yield Finding(topic, None if rivals else best, shown[best], sentence)


def _at_chance(rows: pd.DataFrame) -> list[str]:
    """The layouts whose recall over `rows`, all seeds together, is not above chance."""
    return [r.layout for r in rows_of(pool_recall(rows, ["layout"])) if r.total and r.low <= r.chance]


def _speed(run: RunData) -> Iterator[Finding]:
    for (variant, mode), rows in _by_mode(run.speed):
        length = common_length(rows)
        pooled = pool_speed(rows[rows["length"] == length], ["layout"])
        values = {r.layout: Interval(r.tokens_per_second, r.low, r.high) for r in rows_of(pooled)}
        best, rivals, others = _rank(values)
        shown = {name: formats.rate_interval(v) for name, v in values.items()}
        if rivals:
            tied = formats.listing([f"{name} ({shown[name]})" for name in [best, *rivals]])
            sentence = f"No winner: {tied} are not separable; their quartiles overlap."
        elif others:
            factor = formats.times(ratio(values[best], values[others[0]]))
            sentence = f"{best} runs at {shown[best]}, {factor} as fast as {others[0]}, the next."
        else:
            sentence = f"{best} runs at {shown[best]}; nothing to compare with."
        topic = f"Fastest {mode_name(mode)} at {formats.whole(length)} tokens{_of(variant)}"
        sentence += f"{_failed(run, 'speed', str(mode))}"
        yield Finding(topic, None if rivals else best, formats.rate(values[best].value), sentence)


def _peak_memory(run: RunData) -> Iterator[Finding]:
    for (variant, mode), rows in _by_mode(run.memory.dropna(subset=["peak_bytes"])):
        length = common_length(rows)
        values = rows[rows["length"] == length].groupby("layout", sort=False)["peak_bytes"].median()
        topic = f"Least peak memory, {mode_name(mode)} of {formats.whole(length)} tokens{_of(variant)}"
        yield _least(topic, values, _NEAR, _failed(run, "memory", str(mode)))


def _state(run: RunData) -> Iterator[Finding]:
    if len(run.states):
        length = common_length(run.states)
        values = run.states[run.states["length"] == length].set_index("layout")["state_bytes"]
        yield _least(f"Smallest state after {formats.whole(length)} tokens", values, 0.0, "")


def _perplexity(run: RunData) -> Iterator[Finding]:
    for variant, rows in run.perplexity.groupby("variant", sort=False):
        pooled = pool_perplexity(rows, ["layout"])
        values = {r.layout: Interval(-r.bits_per_byte, -r.seed_high, -r.seed_low) for r in rows_of(pooled)}
        best, rivals, others = _rank(values)
        shown = {name: f"{-v.value:.3f} bits per byte" for name, v in values.items()}
        tied = formats.listing([f"{name} ({shown[name]})" for name in [best, *rivals]])
        following = f"{others[0]} ({shown[others[0]]}), the next" if others else ""
        one_seed = pooled["seeds"].min() < 2
        if rivals:
            why = "are equal" if one_seed else "are not separable; the ranges of their seeds overlap"
            sentence = f"No winner: {tied} {why}."
        else:
            sentence = f"{best} has {shown[best]}" + (
                f", below {following}." if following else "; nothing to compare with."
            )
        if one_seed:
            sentence += " One seed: no interval says how the difference changes from seed to seed."
        yield Finding(
            f"Best bits per byte{_of(variant)}",
            None if rivals else best,
            shown[best],
            f"{sentence}{_failed(run, 'perplexity')}",
        )


def _bars(run: RunData) -> Iterator[Finding]:
    for row in rows_of(run.op_ratios[run.op_ratios["bar"].notna()]):
        value = op_speed.number(row)
        sentence = f"{row.layout}: {value}; the bar is {op_speed.bar(row)}."
        yield Finding(f"Bar, {op_speed.topic(row)}{_of(row.variant)}", op_speed.outcome(row), value, sentence)
    for line in run.lines:
        bars = line.parameters.get("bars") if line.measure in IN_TURN and line.status != "ok" else None
        if bars:
            modes = formats.listing([mode_name(m) for m in line.parameters["modes"]])
            status = line.status.replace("_", " ")
            sentence = f"{line.layout}: {status}, so {len(bars)} of the suite's bars have no number."
            yield Finding(f"Bars, {modes}", "not measured", status, sentence)


def _rank(values: dict[str, Interval]) -> tuple[str, list[str], list[str]]:
    """The best (greatest), those whose interval overlaps with its, and the rest in order."""
    best, *rest = sorted(values, key=lambda name: -values[name].value)
    rivals = [name for name in rest if values[name].overlaps(values[best])]
    return best, rivals, [name for name in rest if name not in rivals]


def _least(topic: str, values: pd.Series, near: float, failed: str) -> Finding:
    values = values.sort_values(kind="stable")
    least, shown = values.iloc[0], values.map(formats.bytes_)
    best = [str(name) for name in values.index[values <= least * (1 + near)]]
    equal = f"within {near:.0%} of each other" if near else "equal"
    sentence = f"{formats.listing(best)} {'needs' if len(best) == 1 else 'need'} {shown.iloc[0]}"
    sentence += f" ({equal})" if len(best) > 1 else ""
    if len(best) < len(values):
        following = values.index[len(best)]
        sentence += f"; next is {following} with {shown[following]}"
        sentence += f" and last {values.index[-1]} with {shown.iloc[-1]}" if len(best) + 1 < len(values) else ""
    return Finding(topic, formats.listing(best), shown.iloc[0], f"{sentence}.{failed}")


def _by_mode(frame: pd.DataFrame) -> list[tuple[Any, pd.DataFrame]]:
    """Groups by variant and mode; training step first, then decoding, then the others."""
    groups: list[tuple[Any, pd.DataFrame]] = list(frame.groupby(["variant", "mode"], sort=False, dropna=False))
    first = ["training step", "decoding"]
    groups.sort(key=lambda item: next((i for i, name in enumerate(first) if name == mode_name(item[0][1])), len(first)))
    return groups


def _failed(run: RunData, measure: str, mode: str = "") -> str:
    """Names what failed of a measure, so that nobody wins unopposed in silence."""
    failed = run.failures[run.failures["measure"] == measure]
    if mode:
        failed = failed[failed["what"].str.startswith(mode)]
    causes: dict[str, list[str]] = {}
    for row in rows_of(failed):
        what = row.what.removeprefix(mode).lstrip(", ")
        causes.setdefault(row.layout, []).append(f"{what}: {row.status}" if what else row.status)
    named = [f"{layout} ({', '.join(dict.fromkeys(c)).replace('_', ' ')})" for layout, c in causes.items()]
    return f" Failed: {formats.listing(named)}." if named else ""


def _of(variant: object) -> str:
    return f" ({variant})" if variant else ""
