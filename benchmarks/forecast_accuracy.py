"""How right forecasts are: each published run is forecast from the others, and compared with what it took.

`python -m mixerzoo.benchmarks.forecast_accuracy` prints, for each run, by measure and source, how many times the
forecast its cases took: the median and what 8 in 10 lie within; how many lay within what was said; and both sums. No
case of the run itself is forecast from, wherever it stands; with `--again`, those that other runs measured again are.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from .case import Case
from .estimator import Estimator, Guess
from .history import History, Past, read_history, usual_folders


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", type=Path, help="default: all published")
    parser.add_argument(
        "--again", action="store_true", help="forecast from cases of the run that others measured again"
    )
    parser.add_argument("--alone", action="store_true", help="forecast from nothing but counts and rates")
    given = parser.parse_args(arguments)
    folders = usual_folders()
    for folder in given.runs or folders:
        table = Table(
            "measure",
            "source",
            "cases",
            "10 %",
            "median",
            "90 %",
            "within",
            "forecast s",
            "took s",
            title=str(folder.name),
        )
        for cells in _rows(held_out(folder, folders, again=given.again, alone=given.alone)):
            table.add_row(*cells)
        Console().print(table)


def held_out(folder: Path, folders: Sequence[Path], *, again: bool, alone: bool) -> list[tuple[Past, Guess]]:
    """The cases of a run, and what the other runs make one expect of them."""
    own = read_history([folder])
    others = read_history([other for other in folders if other.resolve() != folder.resolve()])
    ids, lines = {past.case for past in own.cases}, {(past.case, past.seconds) for past in own.cases}
    kept = (p for p in others.cases if (p.case, p.seconds) not in lines and (again or p.case not in ids))
    history = History() if alone else dataclasses.replace(others, cases=tuple(kept))
    estimators: dict[str, Estimator] = {}
    found = []
    for past in own.cases:
        if past.kind not in estimators:
            estimators[past.kind] = Estimator(history, past.device, past.kind)
        found.append((past, estimators[past.kind].guess(case_of(past), past.threads)))
    return found


def case_of(past: Past) -> Case:
    """The case that an earlier result is of."""
    beside = ("model", "layout_line", "device", "tf32", "threads")
    parameters = {name: value for name, value in past.parameters.items() if name not in beside}
    seed = past.model["seed"]
    return Case(past.layout, past.model["layout"], past.model, past.measure, parameters, seed, past.device, False)


def _rows(found: Sequence[tuple[Past, Guess]]) -> Iterator[list[str]]:
    groups: dict[tuple[str, str], list[tuple[Past, Guess]]] = {}
    for past, guess in found:
        groups.setdefault((past.measure, guess.source), []).append((past, guess))
        groups.setdefault(("all", ""), []).append((past, guess))
    for (measure, source), group in sorted(groups.items()):
        known = [(past.seconds, guess.seconds) for past, guess in group if guess.seconds is not None]
        if not known:
            yield [measure, source, str(len(group)), *[""] * 6]
            continue
        ratios = [took / said for took, said in known]
        quantiles = [f"{value:.2f}" for value in np.percentile(ratios, [10, 50, 90])]
        sums = [f"{sum(said for _, said in known):.0f}", f"{sum(took for took, _ in known):.0f}"]
        within = sum((guess.low or 0) <= past.seconds <= (guess.high or 0) for past, guess in group)
        yield [measure, source, str(len(group)), *quantiles, f"{100 * within / len(known):.0f} %", *sums]


if __name__ == "__main__":
    main()
