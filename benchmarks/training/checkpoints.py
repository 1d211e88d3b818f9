"""Saving where a training stands, so that one that was killed goes on as if nothing had been."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from .data_hash import DataHash
from .distributed import Ranks, load_whole, load_whole_optimizer, whole

RESUME_FILE = "resume.pt"


@dataclasses.dataclass
class Standing:
    """Where a training stands after `step` steps.

    seconds: spent so far. curve: `[step, loss]`. evaluations: `[step, tokens, accuracy]`. losses: of the steps since
    the curve's last point. data: None if the training began before it was noted.
    """

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    curve: list[list[float]] = dataclasses.field(default_factory=list)
    evaluations: list[list[float]] = dataclasses.field(default_factory=list)
    tokens_to_solve: int | None = None
    losses: list[float] = dataclasses.field(default_factory=list)
    data: DataHash | None = dataclasses.field(default_factory=DataHash)

    @classmethod
    def of(cls, saved: dict[str, Any]) -> Standing:
        """The one that `dataclasses.asdict` made `saved` of."""
        data = saved.get("data")
        return cls(**{**saved, "data": None if data is None else DataHash(**data)})


@dataclasses.dataclass(frozen=True)
class ResumePoint:
    """The file in `folder` that a training of `recipe` (JSON-able) resumes from."""

    folder: Path
    recipe: dict[str, Any]

    @property
    def path(self) -> Path:
        return self.folder / RESUME_FILE

    def save(self, model: nn.Module, optimizers: Sequence[Optimizer], standing: Standing, ranks: Ranks) -> None:
        """Write parameters, optimizers, random states and `standing`; the file is replaced whole.

        All ranks must call it, the first one writes.
        """
        content = {
            "recipe": self.recipe,
            "model": whole(model.state_dict()),
            "optimizers": [whole(optimizer.state_dict()) for optimizer in optimizers],
            "random": _random_states(),
            "standing": dataclasses.asdict(standing),
        }
        if ranks.rank > 0:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_name(f"{RESUME_FILE}.tmp")
        torch.save(content, partial)
        os.replace(partial, self.path)

    def restore(self, model: nn.Module, optimizers: Sequence[Optimizer]) -> Standing:
        """Put back what `save` wrote; the start if there is no such file, or it is of another recipe."""
        if not self.path.is_file():
            return Standing()
        content = torch.load(self.path, map_location="cpu", weights_only=True)
        if content["recipe"] != self.recipe:
            return Standing()
        load_whole(model, content["model"])
        for optimizer, state in zip(optimizers, content["optimizers"], strict=True):
            load_whole_optimizer(optimizer, state)
        torch.set_rng_state(content["random"]["cpu"])
        if content["random"]["cuda"]:
            torch.cuda.set_rng_state_all(content["random"]["cuda"])
        return Standing.of(content["standing"])

    def remove(self) -> None:
        """Forget it: the training is finished."""
        self.path.unlink(missing_ok=True)


def _random_states() -> dict[str, Any]:
    """Those of torch. NumPy's need no saving: tasks draw from streams that are functions of the seed and the step."""
    used = torch.cuda.is_available() and torch.cuda.is_initialized()
    return {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all() if used else []}
