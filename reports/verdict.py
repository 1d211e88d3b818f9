"""Who wins what, computed from the tables and said in plain sentences, with what the numbers leave open."""

from __future__ import annotations

from dataclasses import replace

from . import formats
from .finding import Finding, of, seeds_statement
from .tables import RunData
from .taught import bars


def findings(run: RunData) -> list[Finding]:
    """The verdict, in the order of the sections; what was not measured is left out, and all that another tool did."""
    if run.foreign_tool:
        return []
    return [replace(finding, measure=section.measure) for section in run.sections for finding in section.findings(run)]


def training_statement(run: RunData) -> list[str]:
    """What was trained, on what, how long and with how many seeds; a sentence for every kind of training."""
    sentences = []
    for (measure, variant), group in run["training"].groupby(["measure", "variant"], sort=False):
        lengths = sorted({n for own in group["lengths"] for n in own})
        loads = sorted({n for own in group["loads"] for n in own})
        drawn = f" on sequences of {_span(lengths)} tokens" if lengths else ""
        drawn += f" with a load of {_span(loads)}" if loads else ""
        steps, tokens = group["steps"].dropna(), group["tokens"].dropna()
        long = (
            f" for at most {formats.whole(steps.max())} steps ({formats.si(tokens.max())} tokens)" if len(steps) else ""
        )
        own = run["answers"][run["answers"]["variant"] == variant] if measure == "recall" else run["answers"][:0]
        then = f", then asked at {_span(sorted(own['length'].unique()))} tokens" if len(own) else ""
        sentence = f"For {measure}{of(variant)} every model was trained{drawn}{long}{then}."
        if not bars(run, str(measure)) and measure == "recall":
            sentence += " The suite sets no bar, so whether a layout had learnt the task is not known."
        sentences.append(f"{sentence} {seeds_statement(group['seed'])}")
    answered = {line.case for line in run.lines if line.measure == "recall" and line.status == "ok"}
    left_out = len(answered - set(run["answers"]["case"]))
    if left_out:
        sentences.append(
            f"{left_out} cases of recall are left out: no training that passed its bar stands behind them."
        )
    return sentences


def _span(values: list[int]) -> str:
    low, high = formats.whole(values[0]), formats.whole(values[-1])
    return low if low == high else f"{low} to {high}"
