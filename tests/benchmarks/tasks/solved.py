"""Compares batches with what a reader finds out from the tokens alone."""

from __future__ import annotations

from collections.abc import Callable

import torch
from mixerzoo.benchmarks.tasks import IGNORE, Batch

Solution = dict[int, tuple[int, int, float]]  # by scored position: the answer, its place, its depth


def check_solved(batch: Batch, solve: Callable[[list[int]], Solution]) -> None:
    """Exactly the positions that `solve` finds are scored, with its answers, and nothing else."""
    for row, tokens in enumerate(batch.tokens.tolist()):
        solved = solve(tokens)
        at = torch.tensor(sorted(solved))
        answers, places, depths = (torch.tensor(x) for x in zip(*(solved[i] for i in sorted(solved)), strict=True))
        targets = torch.full((len(tokens),), IGNORE)
        targets[at] = answers
        assert torch.equal(batch.targets[row], targets)
        assert torch.equal(batch.distances[row, at], at - places)
        torch.testing.assert_close(batch.depths[row, at], depths.float())
