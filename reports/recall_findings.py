"""What may be said of recall: who finds more than whom."""

from __future__ import annotations

import math
from collections.abc import Iterator

from . import formats
from .claims import rank
from .finding import Finding, Score, of, seeds_statement
from .inference import LEAST_SEEDS, Answers, Comparison, Ranking, Tally, above_chance
from .recall import Cell, Recall, asked
from .statistics import Interval, rows_of
from .table import numbered
from .tables import RunData


def recall_findings(run: RunData) -> Iterator[Finding]:
    for number, recall in enumerate(asked(run)):
        for name, cell in recall.claimed:
            figure = "recall-load" if name == "Load alone" else "recall"
            yield _finding(recall, name, cell, f"figure-{numbered(figure, number)}")


def _finding(recall: Recall, name: str, cell: Cell, evidence: str) -> Finding:
    estimates = {r.layout: r for r in rows_of(recall.at(cell))}
    shown = {n: formats.percent_interval(Interval(r.accuracy, r.low, r.high)) for n, r in estimates.items()}
    answers = recall.answers_at(cell)
    ranking, apart = rank(answers)
    topic = f"{name}: {cell.text(recall.task)}{_beyond(recall, cell)}{of(recall.variant)}"
    if ranking is None:
        return Finding(topic, None, "", "No answers to compare.", evidence=evidence)
    sentences = [*told(ranking, shown)]
    sentences += [f"{n} ({shown[n]}) shares no taught seed with the others and is not compared." for n in apart]
    broken = [f"{n} ({cause})" for (n, length), cause in recall.failed.items() if length == cell.length]
    sentences += [f"No answers at this length: {formats.listing(broken)}."] if broken else []
    sentences += _at_chance(answers, float(recall.at(cell)["chance"].mean()))
    sentences += _seeds(recall) if cell == recall.headline else []
    few = [c.seeds < LEAST_SEEDS for c in ranking.comparisons.values()]
    why = "cannot tell: too few seeds" if any(few) and len(ranking.tied) <= sum(few) else "cannot tell"
    return Finding(
        topic=topic,
        winner=ranking.best,
        value=shown[ranking.leader] if ranking.comparisons else "",
        sentence=" ".join(sentences),
        open=why if ranking.comparisons else "nothing to compare with",
        evidence=evidence,
        column=f"{recall.noun}: {cell.text(recall.task)}{of(recall.variant)}",
        scores=tuple(_scores(recall, cell, shown, ranking)),
    )


def _scores(recall: Recall, cell: Cell, shown: dict[str, str], ranking: Ranking) -> Iterator[Score]:
    compared = [name for name, c in ranking.comparisons.items() if c.seeds >= LEAST_SEEDS]
    best = (ranking.leader, *(name for name in ranking.tied if name in compared)) if compared else ()
    estimates = {r.layout: r for r in rows_of(recall.at(cell))}
    for layout in recall.taught:
        if layout in estimates:
            r = estimates[layout]
            yield Score(layout, shown[layout], r.accuracy, r.low, r.high, layout in best)
        else:
            yield Score(layout, recall.missing_text(layout, cell.length))


def told(ranking: Ranking, shown: dict[str, str]) -> list[str]:
    """Whom the leader is better than, from whom it cannot be told, and of whom too few seeds were taught to say."""
    leader, found = ranking.leader, ranking.comparisons
    if not found:
        return [f"{leader} recalls {shown[leader]}."]
    others = sorted(found, key=lambda name: found[name].difference)
    lead = {name: f"{name} ({shown[name]}) by {_points(found[name])}" for name in others}
    few = [name for name in others if found[name].seeds < LEAST_SEEDS]
    tied = [name for name in others if name in ranking.tied and name not in few]
    left_open = [name for name in tied if found[name].verdict == "cannot tell"]
    uncorrected = [lead[name] for name in tied if name not in left_open]
    below = [lead[name] for name in others if name not in ranking.tied]
    if not left_open:
        sentences = [f"{leader} recalls {shown[leader]}{', better than ' if below else ''}{formats.listing(below)}."]
    else:
        named = formats.listing([f"{name} ({shown[name]})" for name in [leader, *left_open]])
        sentences = [f"Cannot tell which recalls most: {named}; their paired differences leave it open."]
        sentences += [f"{leader} is better than {formats.listing(below)}."] if below else []
    if uncorrected:
        pairs = math.comb(len(found) + 1, 2)
        lost = f"too little for a claim once corrected for all {pairs} pairs"
        sentences.append(f"{leader} lies above {formats.listing(uncorrected)}: {lost}.")
    return [*sentences, *_too_few(leader, few, found, lead)]


def _too_few(leader: str, few: list[str], found: dict[str, Comparison], lead: dict[str, str]) -> list[str]:
    sentences = []
    for seeds in sorted({found[name].seeds for name in few}):
        own = [name for name in few if found[name].seeds == seeds]
        count = "one seed" if seeds == 1 else f"{seeds} seeds"
        listed = formats.listing([lead[name] for name in own])
        apart = [name for name in own if found[name].separable]
        holds = "on new examples too" if apart == own else f"on new examples too only above {formats.listing(apart)}"
        holds = holds if apart else "which new examples may turn round"
        sentences.append(
            f"With {count} in common, too few for a claim about layouts, {leader} lies above {listed}: "
            f"for these trained models, {holds}."
        )
    return sentences


def _points(c: Comparison) -> str:
    """`12.3 points [10.1, 14.5]`."""
    return f"{100 * c.difference:.1f} points [{100 * c.low:.1f}, {100 * c.high:.1f}]"


def _at_chance(answers: dict[str, dict[int, Tally]], chance: float) -> list[str]:
    """Names the layouts, of those with enough seeds, that cannot be told from a guess."""
    known = {layout: Answers(tallies) for layout, tallies in answers.items()}
    known = {layout: found for layout, found in known.items() if len(found.seeds) >= LEAST_SEEDS}
    if formats.missing(chance) or not known:
        return []
    low = [layout for layout, above in above_chance(known, chance).items() if not above]
    if not low:
        return []
    guess = formats.percent(chance)
    return [f"Not shown to be above chance ({guess}) once corrected for all layouts: {formats.listing(low)}."]


def _seeds(recall: Recall) -> list[str]:
    """With how many seeds each layout stands in the claims, and of which layouts nothing is claimed."""
    part = [f"{name} ({status.short})" for name, status in recall.taught.items() if status.in_part]
    sentences = [f"Over the taught seeds only: {formats.listing(part)}."] if part else []
    sentences += [f"Not taught, so nothing is claimed: {formats.listing(recall.untaught)}."] if recall.untaught else []
    return [*sentences, seeds_statement(recall.answers["seed"])]


def _beyond(recall: Recall, cell: Cell) -> str:
    """`, 32 times the trained length and 4 times the trained load`."""
    factors = []
    for name, value, trained in (
        ("length", cell.length, recall.trained_lengths),
        ("load", cell.load, recall.trained_loads),
    ):
        if trained and value > trained[-1]:
            factors.append(f"{value / trained[-1]:.3g} times the greatest trained {name}")
    return f", {' and '.join(factors)}" if factors else ""
