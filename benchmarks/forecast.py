"""What a run was expected to take, kept in its folder as `forecast.json`, and how that compares with what it took.

Nothing here imports torch: reports read it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from .rates import Rates
from .runs import Run, RunError, write_atomically

FORECAST_FILE = "forecast.json"

Source = Literal["measured", "scaled", "counted", "not known"]
"""Where a forecast is from: the same case, but for its seed or rate, in an earlier run on such a machine; one of the
same model and measure at other sizes, scaled by what is counted; FLOPs, bytes and operations counted; or nowhere."""
SOURCES: tuple[Source, ...] = ("measured", "scaled", "counted", "not known")

# what a result line's parameters say beside those of its measure
_BESIDE = ("model", "layout_line", "device", "tf32", "threads")
# what a sweep chooses, or follows from what it chose
_CHOSEN = ("trained", "chosen", "choice")


class Finished(Protocol):
    """What is asked of a finished case, see `ResultLine`."""

    @property
    def case(self) -> str: ...
    @property
    def layout(self) -> str: ...
    @property
    def measure(self) -> str: ...
    @property
    def parameters(self) -> dict[str, Any]: ...
    @property
    def seed(self) -> int: ...


AnyFinished = TypeVar("AnyFinished", bound=Finished)


class CaseForecast(BaseModel):
    """What one case was expected to take. key: the same for cases that differ in what a sweep chose only.

    seconds: of wall time, about 8 in 10 cases lying between low and high; None if that is not known. bytes: held by its
    process at the peak. certain: whether the case is run whatever the results are.
    """

    model_config = ConfigDict(frozen=True)

    case: str
    key: str
    layout: str
    measure: str
    seconds: float | None
    low: float | None
    high: float | None
    bytes: float | None
    source: Source
    certain: bool


class Forecast(BaseModel):
    """What a whole run was expected to take, when it was first started.

    made: when, UTC. kind: of machine. seconds, low, high: of wall time on `machines` machines, `jobs` cases at a time
    on each, if every layout is taught. rates: of such a machine, by threads and precision. cases: all there can be.
    """

    model_config = ConfigDict(frozen=True)

    schema_version: int = 1
    made: str
    kind: str
    machines: int
    jobs: int
    seconds: float
    low: float
    high: float
    rates: dict[str, Rates] = Field(default_factory=dict)
    cases: tuple[CaseForecast, ...]

    def of(self, results: Sequence[AnyFinished]) -> list[tuple[AnyFinished, CaseForecast | None]]:
        """Each result and what was expected of it; None if nothing was."""
        by_case = {case.case: case for case in self.cases}
        by_key = {case.key: case for case in reversed(self.cases)}
        return [(r, by_case.get(r.case) or by_key.get(key_of_result(r))) for r in results]


def read_forecast(run: Run) -> Forecast | None:
    """What was expected of `run`; None if nothing was kept. Raises `RunError` if it cannot be read."""
    path = run.folder / FORECAST_FILE
    try:
        return Forecast.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError:
        raise RunError(f"{path} is damaged; remove it, the run itself needs it nowhere") from None


def keep_forecast(run: Run, forecast: Forecast) -> None:
    """Write it into the run's folder, unless there is one: what was said first is what counts."""
    path = run.folder / FORECAST_FILE
    if not path.exists():
        write_atomically(path, forecast.model_dump_json() + "\n")


def key_of(layout: str, measure: str, parameters: Mapping[str, Any], seed: int) -> str:
    """12 hex digits that cases of one suite share if they differ in what a sweep chose only."""
    return _hash([layout, measure, unchosen(parameters), seed])


def key_of_result(result: Finished) -> str:
    """`key_of` the case of a result."""
    return key_of(result.layout, result.measure, result.parameters, result.seed)


def unchosen(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of a measure without what a sweep chooses: the rate, and whatever else it tried."""
    choice = {**(parameters.get("choice") or {}), **(parameters.get("chosen") or {})}
    kept = {name: value for name, value in parameters.items() if name not in (*_BESIDE, *_CHOSEN)}
    if isinstance(training := kept.get("training"), Mapping):
        swept = {"learning_rate", *choice}
        kept["training"] = {name: value for name, value in training.items() if name not in swept}
    return kept


def _hash(meaning: Any) -> str:
    canonical = json.dumps(meaning, sort_keys=True, separators=(",", ":"), default=list)
    return hashlib.sha256(canonical.encode()).hexdigest()[:12]
