"""How often a training was started, and how long each start took: a killed one can no longer say so itself."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import os
import time
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter

from ...mixers.stored import file_in, read_json

ATTEMPTS_FILE = "attempts.json"
BEAT_SECONDS = 5.0
SAVE_SECONDS, SAVE_SHARE = 10.0, 0.01


@dataclasses.dataclass
class Attempt:
    """One start. began_at: after how many steps. seconds: that it took, as far as it is known. warnings: what a reader
    of the result should know of it."""

    began_at: Annotated[int, Field(ge=0)]
    seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    warnings: list[str] = dataclasses.field(default_factory=list)


class Attempts:
    """The starts of a training of `recipe`, the present one last, in `attempts.json` of `folder` until it is over.

    None for `folder` keeps nothing: the present start is the only one.
    """

    def __init__(self, folder: Path | None, recipe: dict[str, Any] | None = None) -> None:
        self.folder = folder
        self.recipe = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()
        self.all: list[Attempt] = []
        self._began = self._written = time.perf_counter()

    def begin(self, step: int, seconds: float, warning: str | None) -> None:
        """Start after `step` steps, which took `seconds` themselves."""
        self.all = self._earlier()
        if step and not self.all:  # somebody has removed the file, and not the resume point
            self.all = [Attempt(0, seconds)]
        self.all.append(Attempt(step, warnings=[] if warning is None else [warning]))
        self._began = time.perf_counter()
        self._write()

    @property
    def seconds(self) -> float:
        """That all starts took together until now; by a clock that never jumps."""
        return math.fsum(a.seconds for a in self.all[:-1]) + time.perf_counter() - self._began

    @property
    def resumed_at(self) -> list[int]:
        """After how many steps each start but the first began."""
        return [attempt.began_at for attempt in self.all[1:]]

    @property
    def warnings(self) -> list[str]:
        return [warning for attempt in self.all for warning in attempt.warnings]

    def beat(self, warning: str | None = None) -> None:
        """Note now and then that the training is alive, and `warning` in any case."""
        if warning is not None:
            self.all[-1].warnings.append(warning)
        if warning is not None or time.perf_counter() - self._written >= BEAT_SECONDS:
            self._write()

    def remove(self) -> None:
        """Forget them: the training is over, and its record holds them."""
        if self.folder is not None:
            (self.folder / ATTEMPTS_FILE).unlink(missing_ok=True)

    def _earlier(self) -> list[Attempt]:
        if self.folder is None:
            return []
        try:
            kept = read_json(file_in(self.folder, ATTEMPTS_FILE))
            if not isinstance(kept, dict) or kept.get("recipe") != self.recipe:
                return []
            return TypeAdapter(list[Attempt]).validate_python(kept.get("attempts"))
        except (OSError, ValueError):  # none, or torn by a machine that went down: it says how long, nothing more
            return []

    def _write(self) -> None:
        self._written = time.perf_counter()
        if self.folder is None:
            return
        self.all[-1].seconds = self._written - self._began
        content = {"recipe": self.recipe, "attempts": [dataclasses.asdict(attempt) for attempt in self.all]}
        partial = self.folder / f"{ATTEMPTS_FILE}.tmp"
        with contextlib.suppress(OSError):  # a full disk, say: no reason to end a training
            self.folder.mkdir(parents=True, exist_ok=True)
            partial.write_text(json.dumps(content))
            os.replace(partial, self.folder / ATTEMPTS_FILE)


class Pace:
    """When it is time to save: so seldom that saving takes at most `SAVE_SHARE` of the training, and at most every
    `SAVE_SECONDS`."""

    def __init__(self) -> None:
        self._over, self._took = time.perf_counter(), 0.0

    @property
    def due(self) -> bool:
        return time.perf_counter() - self._over >= max(SAVE_SECONDS, self._took / SAVE_SHARE)

    def saved(self, began: float) -> None:
        """Note a save that began when `time.perf_counter` gave `began`, and is over now."""
        self._over = time.perf_counter()
        self._took = self._over - began
