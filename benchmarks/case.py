"""A case: one layout, one measure at one size, one seed, on one kind of device."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from typing import Any

from .device import kind_of

ID_VERSION = 1  # of what an id is hashed from; a new one would part every run of before from its cases


@dataclasses.dataclass(frozen=True)
class Case:
    """What one process runs, and one line of the results.

    label: the layout's name in the suite. layout_line: the layout itself. model: the model's configuration as a dict.
    measure: name of the measure. parameters: those of the measure, `measure` itself left out.
    device: `cpu`, `cuda` or `cuda:N`. exclusive: nothing else may run beside it. tf32: whether it may use TF32.
    reusable: another run's result of the same case serves as well. processes: that share the work, each with a GPU of
    its own on CUDA.
    """

    label: str
    layout_line: str
    model: dict[str, Any]
    measure: str
    parameters: dict[str, Any]
    seed: int
    device: str
    exclusive: bool
    tf32: bool = False
    reusable: bool = False
    processes: int = 1

    @functools.cached_property
    def id(self) -> str:
        """12 hex digits that depend on what the case means, not on its label, its suite, which of several GPUs runs it,
        or what runs beside it."""
        meaning = {
            "schema_version": ID_VERSION,
            "model": self.model,
            "measure": self.measure,
            "parameters": self.parameters,
            "seed": self.seed,
            "device": kind_of(self.device),
        } | ({"tf32": True} if self.tf32 else {})
        canonical = json.dumps(meaning, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        return hashlib.sha256(canonical.encode()).hexdigest()[:12]

    @property
    def checkpoint_id(self) -> str:
        """The case in whose folder its models are: that which trains the one that this case asks, or itself."""
        return self.parameters.get("trained") or self.id

    @property
    def sizes(self) -> str:
        """The modes and lengths, for people."""
        values = [self.parameters.get(name) for name in ("modes", "lengths", "length")]
        lists = [value if isinstance(value, list) else [value] for value in values if value is not None]
        return " ".join(",".join(map(str, items)) for items in lists)

    @property
    def title(self) -> str:
        """One short line for people."""
        return " ".join(part for part in (self.label, self.measure, self.sizes, f"seed {self.seed}") if part)


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a run consists of, as far as its results say. waits_for: ids of cases whose results may add others."""

    cases: tuple[Case, ...]
    waits_for: frozenset[str] = frozenset()

    @property
    def final(self) -> bool:
        """No result can add a case."""
        return not self.waits_for

    def to_json(self) -> dict[str, Any]:
        """For `plan.json`."""
        cases = [
            {"case": c.id, "layout": c.label, "measure": c.measure, "seed": c.seed, "what": c.sizes} for c in self.cases
        ]
        return {"final": self.final, "cases": cases}
