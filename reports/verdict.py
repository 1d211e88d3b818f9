"""Who wins what, computed from the tables and said in plain sentences, with what the numbers leave open."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pandas as pd

from . import formats, op_speed
from .finding import Finding, common_length, failed, of, seeds_statement
from .formats import mode_name
from .inference import ALPHA, LEAST_ROUNDS, LEAST_SEEDS, Comparison, Ranking, compare_seeds, fastest, holm
from .rows import IN_TURN
from .statistics import Interval, pool_perplexity, pool_speed, rows_of
from .tables import RunData
from .taught import bars
from .verdict_recall import recall_findings, taught_findings

_NEAR = 0.01  # peak memory within 1 % counts as equal: allocators round
STEEP = 0.02  # a loss that still falls by more, from the last tenth but one of the steps to the last, is unfinished


def findings(run: RunData) -> list[Finding]:
    """The verdict, most important first; what was not measured is left out."""
    questions = (taught_findings, recall_findings, _speed, _peak_memory, _state, _perplexity, _bars)
    return [finding for question in questions for finding in question(run)]


def training_statement(run: RunData) -> list[str]:
    """What was trained, on what, how long and with how many seeds; a sentence for every kind of training."""
    sentences = []
    for (measure, variant), group in run.training.groupby(["measure", "variant"], sort=False):
        lengths = sorted({n for own in group["lengths"] for n in own})
        loads = sorted({n for own in group["loads"] for n in own})
        drawn = f" on sequences of {_span(lengths)} tokens" if lengths else ""
        drawn += f" with a load of {_span(loads)}" if loads else ""
        steps, tokens = group["steps"].dropna(), group["tokens"].dropna()
        long = (
            f" for at most {formats.whole(steps.max())} steps ({formats.si(tokens.max())} tokens)" if len(steps) else ""
        )
        own = run.answers[run.answers["variant"] == variant] if measure == "recall" else run.answers[:0]
        then = f", then asked at {_span(sorted(own['length'].unique()))} tokens" if len(own) else ""
        sentence = f"For {measure}{of(variant)} every model was trained{drawn}{long}{then}."
        if not bars(run, str(measure)) and measure == "recall":
            sentence += " The suite sets no bar, so whether a layout had learnt the task is not known."
        sentences.append(f"{sentence} {seeds_statement(group['seed'])}")
    answered = {line.case for line in run.lines if line.measure == "recall" and line.status == "ok"}
    left_out = len(answered - set(run.answers["case"]))
    if left_out:
        sentences.append(
            f"{left_out} cases of recall are left out: no training that passed its bar stands behind them."
        )
    return sentences


def _span(values: list[int]) -> str:
    low, high = formats.whole(values[0]), formats.whole(values[-1])
    return low if low == high else f"{low} to {high}"


def _speed(run: RunData) -> Iterator[Finding]:
    for (variant, mode), rows in _by_mode(run.speed):
        length = common_length(rows)
        own = rows[rows["length"] == length]
        shown = {
            r.layout: formats.rate_interval(Interval(r.tokens_per_second, r.low, r.high))
            for r in rows_of(pool_speed(own, ["layout"]))
        }
        rounds: dict[str, list[float]] = {}
        for r in rows_of(own):
            rounds.setdefault(r.layout, []).extend(r.samples or [r.seconds])
        ranking = fastest(rounds, paired=False)  # each layout was timed in a process of its own
        sentence = f"{_faster(ranking, shown)}{failed(run, 'speed', str(mode))}"
        topic = f"Fastest {mode_name(mode)} at {formats.whole(length)} tokens{of(variant)}"
        rate = own[own["layout"] == ranking.leader]["tokens_per_second"].median()
        why = "cannot tell" if ranking.comparisons else "nothing to compare with"
        yield Finding(topic, ranking.best, formats.rate(rate), sentence, why)


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


def _peak_memory(run: RunData) -> Iterator[Finding]:
    for (variant, mode), rows in _by_mode(run.memory.dropna(subset=["peak_bytes"])):
        length = common_length(rows)
        values = rows[rows["length"] == length].groupby("layout", sort=False)["peak_bytes"].median()
        topic = f"Least peak memory, {mode_name(mode)} of {formats.whole(length)} tokens{of(variant)}"
        yield _least(topic, values, _NEAR, failed(run, "memory", str(mode)))


def _state(run: RunData) -> Iterator[Finding]:
    if len(run.states):
        length = common_length(run.states)
        values = run.states[run.states["length"] == length].set_index("layout")["state_bytes"]
        yield _least(f"Smallest state after {formats.whole(length)} tokens", values, 0.0, "")


def _perplexity(run: RunData) -> Iterator[Finding]:
    for variant, rows in run.perplexity.groupby("variant", sort=False):
        pooled = {r.layout: r for r in rows_of(pool_perplexity(rows, ["layout"]))}
        order = sorted(pooled, key=lambda name: pooled[name].bits_per_byte)
        shown = {n: f"{pooled[n].bits_per_byte:.3f} bits per byte" for n in order}
        values = {str(n): _by_seed(own) for n, own in rows.groupby("layout", sort=False)}
        leader, others = order[0], order[1:]
        against = {other: compare_seeds(values[leader], values[other]) for other in others}
        least, steep = min(len(v) for v in values.values()), unfinished(run)
        sentence = formats.listing([f"{n} has {shown[n]}{_seed_range(pooled[n])}" for n in order]) + "."
        best, why = None, "cannot tell"
        if not others:
            why = "nothing to compare with"
        elif least < LEAST_SEEDS:
            why = "cannot tell: too few seeds"
            sentence += f" No layout is called best from fewer than {LEAST_SEEDS} seeds."
        elif any(name in steep for name in order):
            why = "cannot tell: training unfinished"
            named = formats.listing([name for name in order if name in steep])
            sentence += f" No layout is called best: the loss of {named} was still falling by more than {STEEP:.0%}."
        elif all(c.verdict == "better" for c in against.values()):
            best = leader
            sentence += f" {leader} is better than every other, seed by seed."
        else:
            adjusted = holm({name: c.p_value for name, c in against.items()})
            tied = [name for name in others if adjusted[name] > ALPHA or against[name].verdict != "better"]
            sentence += f" Cannot tell {formats.listing([leader, *tied])} apart, seed by seed."
        topic = f"Bits per byte of text{of(variant)}"
        yield Finding(topic, best, shown[leader], f"{sentence}{failed(run, 'perplexity')}", why)


def unfinished(run: RunData) -> list[str]:
    """The layouts whose training on text was still falling steeply (see `STEEP`) when it ended, with any seed."""
    found = []
    own = run.curves[run.curves["measure"] == "perplexity"].dropna(subset=["loss"])
    for (layout, _, _), curve in own.groupby(["layout", "variant", "seed"], sort=False):
        share = curve["step"] / curve["step"].max()
        last, before = curve["loss"][share > 0.9].mean(), curve["loss"][(share > 0.8) & (share <= 0.9)].mean()
        if last < (1 - STEEP) * before:
            found.append(str(layout))
    return list(dict.fromkeys(found))


def _by_seed(rows: pd.DataFrame) -> dict[int, float]:
    return {int(r.seed): r.bits_per_byte for r in rows_of(pool_perplexity(rows, ["seed"]))}


def _seed_range(row: Any) -> str:
    return " (one seed)" if row.seeds == 1 else f" ({row.seeds} seeds, {row.seed_low:.3f} to {row.seed_high:.3f})"


def _bars(run: RunData) -> Iterator[Finding]:
    for row in rows_of(run.op_ratios[run.op_ratios["bar"].notna()]):
        value = op_speed.number(row)
        sentence = f"{row.layout}: {value}; the bar is {op_speed.bar(row)}."
        yield Finding(f"Bar, {op_speed.topic(row)}{of(row.variant)}", op_speed.outcome(row), value, sentence)
    for line in run.lines:
        bars = line.parameters.get("bars") if line.measure in IN_TURN and line.status != "ok" else None
        if bars:
            modes = formats.listing([mode_name(m) for m in line.parameters["modes"]])
            status = line.status.replace("_", " ")
            sentence = f"{line.layout}: {status}, so {len(bars)} of the suite's bars have no number."
            yield Finding(f"Bars, {modes}", "not measured", status, sentence)


def _least(topic: str, values: pd.Series, near: float, failures: str) -> Finding:
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
    return Finding(topic, formats.listing(best), shown.iloc[0], f"{sentence}.{failures}")


def _by_mode(frame: pd.DataFrame) -> list[tuple[Any, pd.DataFrame]]:
    """Groups by variant and mode; training step first, then decoding, then the others."""
    groups: list[tuple[Any, pd.DataFrame]] = list(frame.groupby(["variant", "mode"], sort=False, dropna=False))
    first = ["training step", "decoding"]
    groups.sort(key=lambda item: next((i for i, name in enumerate(first) if name == mode_name(item[0][1])), len(first)))
    return groups
