"""How a training went, line by line in its folder, and wherever else somebody wants to watch it."""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

Tracker = Literal["tensorboard", "trackio", "wandb"]

LOG_FILE = "log.jsonl"
_MODULES = {"tensorboard": "torch.utils.tensorboard", "trackio": "trackio", "wandb": "wandb"}


class Log:
    """`log.jsonl` in `folder`, and the trackers of `log_to`. A line is a JSON object with `step`.

    Every point of the curve gives `loss` (nats, mean since the point before), `learning_rate`, `gradient_norm` (of its
    step, before clipping), `tokens` and `tokens_per_second` (since the point before); every evaluation `tokens` and
    `accuracy`. recipe: what is trained, for trackers to show.
    """

    def __init__(self, folder: Path, log_to: Iterable[Tracker] = (), recipe: dict[str, Any] | None = None) -> None:
        self.folder, self.log_to, self.recipe = folder, tuple(log_to), recipe or {}
        self.path = folder / LOG_FILE
        self._trackers: list[Any] = []

    def open(self, step: int) -> None:
        """Begin after `step` steps: lines of later ones, which a killed training may have left, are dropped."""
        self.folder.mkdir(parents=True, exist_ok=True)
        lines = self.path.read_text(errors="replace").splitlines() if self.path.is_file() else []
        kept = [line for line in lines if (of := _step_of(line)) is not None and of <= step]
        partial = self.path.with_name(f"{LOG_FILE}.tmp")
        partial.write_text("".join(f"{line}\n" for line in kept))
        os.replace(partial, self.path)
        self._trackers = [_open_tracker(name, self.folder, self.recipe) for name in self.log_to]

    def write(self, step: int, **values: float) -> None:
        """Append a line."""
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        for tracker in self._trackers:
            tracker.log(values, step=step)

    def close(self) -> None:
        """Let the trackers finish."""
        for tracker in self._trackers:
            tracker.finish()
        self._trackers = []


def _step_of(line: str) -> int | None:
    """The step that a line of the log is of; None for one that a kill or a full disk has torn."""
    try:
        step = json.loads(line)["step"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return step if isinstance(step, int) else None


def check_trackers(log_to: Iterable[Tracker]) -> None:
    """Raise `ValueError` for a tracker that is not installed."""
    for name in log_to:
        try:
            importlib.import_module(_MODULES[name])
        except ImportError:
            raise ValueError(
                f"log_to names {name}, which is not installed; `pip install {name}`, or leave it out: "
                f"{LOG_FILE} is written in any case"
            ) from None


class _TensorBoard:
    """TensorBoard's writer with the two calls that trackio and Weights & Biases share."""

    def __init__(self, folder: Path) -> None:
        module = importlib.import_module(_MODULES["tensorboard"])
        self._writer = module.SummaryWriter(log_dir=str(folder))

    def log(self, values: dict[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def finish(self) -> None:
        self._writer.close()


def _open_tracker(name: Tracker, folder: Path, recipe: dict[str, Any]) -> Any:
    if name == "tensorboard":
        return _TensorBoard(folder)
    module = importlib.import_module(_MODULES[name])
    where = {"dir": str(folder)} if name == "wandb" else {}
    module.init(project="mixerzoo", name=f"{folder.parent.name}-{folder.name}", config=recipe, **where)
    return module
