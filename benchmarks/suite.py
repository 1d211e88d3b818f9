"""Suites: a YAML file that says what to compare: layouts x measures x sizes x seeds; `plan` makes cases of it.

Every mistake in the file is found before any case runs, and named with its line.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import importlib.resources
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from ..mixers import UnknownMixerError, check_option, mixer_options
from ..mixers.limits import MOST_CASES, Bytes, Jobs, Layers, MatchTime, Seconds, Seed, Vocabulary, Width
from ..models import PRESETS, Layout, LayoutError, ModelConfig, count_parameters, parse_layout, preset_config
from . import measures
from .precision import Precision
from .training import Compile, TrainingSettings
from .yamlfile import SuiteError, YamlFile, suggestion


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelSettings(_Settings):
    """The backbone that hosts every layout: a preset, and what differs from it; see `ModelConfig`.

    match_layout: a label of the suite or a layout line.
    """

    preset: str = "nano"
    d_model: Width | None = None
    n_layers: Layers | None = None
    d_ff: Width | None = None
    vocab_size: Vocabulary | None = None
    mixer_defaults: dict[str, dict[str, Any]] = Field(default_factory=dict)
    match: Literal["params", "flops"] | None = None
    match_layout: str | None = None
    match_time: MatchTime | None = None

    def config(self, layout: str, seed: int) -> ModelConfig:
        """The model for a layout line, with the mixer defaults that the layout uses and no others."""
        changes = {k: v for k, v in self.model_dump(exclude={"preset"}).items() if v is not None}
        config = preset_config(self.preset, layout, seed=seed, **changes).to_dict()
        used = mixer_names(parse_layout(layout))
        if self.match_layout is not None:
            used |= mixer_names(parse_layout(self.match_layout))
        config["mixer_defaults"] = {name: o for name, o in config["mixer_defaults"].items() if name in used}
        return ModelConfig.from_dict(config)


class MeasureSettings(BaseModel):
    """One entry under `measures`; all other settings are the measure's own.

    layouts: labels, default all. seeds: default those of the suite.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    measure: str
    layouts: tuple[str, ...] | None = Field(default=None, min_length=1)
    seeds: tuple[Seed, ...] | None = Field(default=None, min_length=1)


class SuiteSettings(_Settings):
    """What a suite's file says.

    device: the only kind that it makes sense on, default any. precision: of every measure and training that has none of
    its own; `auto`: bfloat16 on a CUDA device, float32 on a CPU. tf32: whether CUDA may compute float32 in TF32;
    `auto`: in the cases of precision bfloat16, and in no others. compile: of every measure and training that can be
    compiled and does not say it: `off`, or the mode of `torch.compile`.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][\w.-]*$")
    description: str = ""
    model: ModelSettings = ModelSettings()
    layouts: dict[str, str] = Field(min_length=1)
    seeds: tuple[Seed, ...] = Field(default=(0,), min_length=1)
    measures: tuple[MeasureSettings, ...] = Field(min_length=1)
    time_limit_seconds: Seconds = 3600.0
    memory_limit_bytes: Bytes | None = None
    jobs: Jobs | None = None
    device: Literal["cpu", "cuda"] | None = None
    precision: Precision = "auto"
    tf32: bool | Literal["auto"] = "auto"
    compile: Compile = False

    @field_validator("seeds")
    @classmethod
    def _seeds_differ(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) < len(seeds):
            raise ValueError("the seeds must differ")
        return seeds


@dataclass(frozen=True)
class Entry:
    """A checked entry under `measures`: what to measure, on which layouts, with which seeds."""

    measure: measures.Measure
    labels: tuple[str, ...]
    seeds: tuple[int, ...]

    @property
    def name(self) -> str:
        """Of the measure."""
        return self.measure.model_dump()["measure"]


@dataclass(frozen=True)
class Suite:
    """A checked suite; layouts are canonical lines by label."""

    settings: SuiteSettings
    layouts: Mapping[str, str]
    entries: tuple[Entry, ...]

    def select(self, patterns: Sequence[str] | None) -> Suite:
        """The suite with those layouts and measures only whose name matches one of the shell `patterns`, if any.

        Raises `ValueError` for a pattern that matches nothing.
        """
        if not patterns:
            return self
        labels = sorted({label for entry in self.entries for label in entry.labels})
        names = sorted({entry.name for entry in self.entries})
        for pattern in patterns:
            if not fnmatch.filter([*labels, *names], pattern):
                known = f"layouts are {', '.join(labels)}; measures are {', '.join(names)}"
                raise ValueError(f"--only {pattern!r} matches nothing; {known}")
        kept = []
        for entry in self.entries:
            own = tuple(
                label
                for label in entry.labels
                if any(fnmatch.fnmatchcase(n, p) for p in patterns for n in (label, entry.name))
            )
            if own:
                kept.append(dataclasses.replace(entry, labels=own))
        return dataclasses.replace(self, entries=tuple(kept))

    def on(self, device: str) -> Suite:
        """The suite with every precision decided, as it is run on a device."""
        entries = (dataclasses.replace(entry, measure=entry.measure.on(device)) for entry in self.entries)
        return dataclasses.replace(self, entries=tuple(entries))

    def resolved(self) -> dict[str, Any]:
        """The suite with every default written out, as YAML can hold it; loading it gives the same cases."""
        first = next(iter(self.layouts.values()))
        model = self.settings.model.config(first, 0).to_dict()
        model["mixer_defaults"] = {
            name: options
            for line in self.layouts.values()
            for name, options in self.settings.model.config(line, 0).to_dict()["mixer_defaults"].items()
        }
        # what every measure says for itself is left out, and what decides nothing: suites of before had neither
        settings = self.settings.model_dump(mode="json", exclude={"precision", "compile"})
        if settings["tf32"] == "auto":
            del settings["tf32"]
        kept = {k: v for k, v in model.items() if k not in ("layout", "seed")}
        return {
            **settings,
            "model": {"preset": self.settings.model.preset, **kept},
            "layouts": dict(self.layouts),
            "measures": [
                {
                    **entry.measure.model_dump(mode="json"),
                    "layouts": list(entry.labels),
                    "seeds": list(entry.seeds),
                }
                for entry in self.entries
            ],
        }


def bundled_suites() -> dict[str, str]:
    """The suites that come with mixerzoo: name -> YAML text."""
    folder = importlib.resources.files(f"{__package__}.suites")
    files = sorted((f for f in folder.iterdir() if f.name.endswith(".yaml")), key=lambda f: f.name)
    return {file.name.removesuffix(".yaml"): file.read_text(encoding="utf-8") for file in files}


def load_suite(source: str | Path) -> Suite:
    """Load a bundled suite by name, or a YAML file by path.

    Raises `SuiteError`, which lists every mistake in the file with its line; `FileNotFoundError` if there is none.
    """
    bundled = bundled_suites()
    if str(source) in bundled:
        return parse_suite(bundled[str(source)], f"{source}.yaml")
    path = Path(source)
    if not path.is_file():
        hint = suggestion(str(source), bundled)
        raise FileNotFoundError(f"no suite {str(source)!r}: it is neither a bundled suite nor a file{hint}")
    return _check(YamlFile.read(path))


def parse_suite(text: str, source: str) -> Suite:
    """Load a suite from YAML `text`; `source` is its name in messages. Raises `SuiteError`."""
    return _check(YamlFile.parse(text, source))


def _check(file: YamlFile) -> Suite:
    try:
        settings = SuiteSettings.model_validate(file.data)
    except ValidationError as error:
        file.complain_all(error, known=SuiteSettings.model_fields)
        raise SuiteError(file.source, file.problems) from None
    layouts = _check_layouts(file, settings)
    settings = _resolve_match_layout(settings, layouts)
    entries = [_check_measure(file, i, entry, settings) for i, entry in enumerate(settings.measures)]
    _check_models(file, settings, layouts)
    _check_number_of_cases(file, entries)
    file.raise_problems()
    suite = Suite(settings, layouts, tuple(entry for entry in entries if entry is not None))
    _check_sweeps(file, suite)
    _check_vocabulary(file, suite)
    file.raise_problems()
    return suite


def parse_measure(data: Mapping[str, Any]) -> measures.Measure:
    """The measure that `data["measure"]` names, with the rest of `data` as parameters.

    Raises `ValueError` for an unknown name or parameter (pydantic's `ValidationError` is one).
    """
    return measures.measure_class(data.get("measure")).model_validate(data)


def mixer_names(layout: Layout) -> set[str]:
    """The mixers of a layout."""
    return {part.mixer.name for part in layout.pattern} | {part.mixer.name for part in layout.insertions}


def _check_layouts(file: YamlFile, settings: SuiteSettings) -> dict[str, str]:
    """Canonical layout lines by label, of those that can be read; complains of the others and of equal ones."""
    lines: dict[str, str] = {}
    for label, line in settings.layouts.items():
        try:
            canonical = str(parse_layout(line))
        except LayoutError as error:
            file.complain(["layouts", label], str(error))
            continue
        twin = next((other for other, known in lines.items() if known == canonical), None)
        if twin is not None:
            file.complain(["layouts", label], f"is the same layout as {twin!r}; remove one")
        lines[label] = canonical
    return lines


def _resolve_match_layout(settings: SuiteSettings, layouts: Mapping[str, str]) -> SuiteSettings:
    line = settings.model.match_layout
    if line is None or line not in layouts:
        return settings
    return settings.model_copy(update={"model": settings.model.model_copy(update={"match_layout": layouts[line]})})


def _check_measure(file: YamlFile, index: int, entry: MeasureSettings, settings: SuiteSettings) -> Entry | None:
    where: list[str | int] = ["measures", index]
    labels = entry.layouts or tuple(settings.layouts)
    for i, label in enumerate(labels):
        if label not in settings.layouts:
            file.complain([*where, "layouts", i], f"unknown layout {label!r}{suggestion(label, settings.layouts)}")
    try:
        measure = parse_measure({"measure": entry.measure, **_with_defaults(entry, settings)})
    except ValidationError as error:
        known = [*measures.measure_class(entry.measure).model_fields, "layouts", "seeds"]
        file.complain_all(error, where, known)
        return None
    except ValueError as error:
        file.complain([*where, "measure"], str(error))
        return None
    _check_processes(file, where, measure)
    seeds = entry.seeds or settings.seeds
    sweep = measure.sweep if isinstance(measure, measures.Trained) else None
    if sweep is not None and (shared := sorted(set(sweep.seeds) & set(seeds))):
        file.complain([*where, "sweep"], f"seeds of the sweep are those of the results: {shared}; choose others")
    return Entry(measure, labels, seeds)


def _check_processes(file: YamlFile, where: Sequence[str | int], measure: measures.Measure) -> None:
    """Complain of a training for several processes that does not say how many: no case is started by `torchrun`."""
    training = getattr(measure, "training", None)
    if isinstance(training, TrainingSettings) and training.parallel != "none" and training.processes == 1:
        file.complain([*where, "training", "parallel"], f"{training.parallel} needs processes: 2 or more beside it")


def _with_defaults(entry: MeasureSettings, settings: SuiteSettings) -> dict[str, Any]:
    """What an entry says of its measure, or of the training that it has, and else what the suite says for all."""
    given = dict(entry.model_extra or {})
    kind = measures.measures().get(entry.measure)
    known = kind.model_fields if kind is not None else ()
    said = {"precision": settings.precision, "compile": settings.compile}
    if "training" in known and isinstance(training := given.get("training", {}), dict):
        given["training"] = {**said, **training}
    return {**{name: value for name, value in said.items() if name in known}, **given}


def _check_models(file: YamlFile, settings: SuiteSettings, layouts: Mapping[str, str]) -> None:
    """Complain of mixer defaults that no mixer has or takes, and of layouts that no model can be built of."""
    for name, options in settings.model.mixer_defaults.items():
        where = ["model", "mixer_defaults", name]
        try:
            known = mixer_options(name)
        except UnknownMixerError as error:
            file.complain(where, str(error), key=True)
            continue
        for option, value in options.items():
            if option not in known:
                file.complain([*where, option], f"{name} has no such option{suggestion(option, known)}", key=True)
                continue
            try:
                check_option(name, option, value)
            except ValueError as error:
                file.complain([*where, option], str(error))
    if settings.model.preset not in PRESETS:
        file.complain(["model", "preset"], f"unknown preset{suggestion(settings.model.preset, PRESETS)}")
        return
    try:
        n_layers = settings.model.config("softmax_attention", 0).n_layers
    except ValueError as error:
        file.complain(["model"], str(error))
        return
    for label, line in layouts.items():
        try:
            parse_layout(line).place(n_layers)
            if not file.problems:  # else this would complain of the same again
                count_parameters(settings.model.config(line, 0))  # builds the model, without memory
        except ValueError as error:
            file.complain(["layouts", label], str(error))


def _check_number_of_cases(file: YamlFile, entries: Sequence[Entry | None]) -> None:
    """Complain of the entry at which a suite comes to have more cases than any run gets through."""
    total = 0
    for i, entry in enumerate(entries):
        if entry is None:
            continue
        sweep = entry.measure.sweep if isinstance(entry.measure, measures.Trained) else None
        tried = math.prod(map(len, sweep.options.values())) * len(sweep.rungs) * len(sweep.seeds) if sweep else 0
        total += len(entry.labels) * (len(entry.measure.cases()) * len(entry.seeds) + tried)
        if total > MOST_CASES:
            file.complain(["measures", i], f"makes {total:,} cases of the suite; there may be {MOST_CASES:,} at most")
            return


def _check_sweeps(file: YamlFile, suite: Suite) -> None:
    """Complain of swept options that no model can be built with."""
    for i, entry in enumerate(suite.entries):
        if not isinstance(entry.measure, measures.Trained) or entry.measure.sweep is None:
            continue
        for label in entry.labels:
            model = suite.settings.model.config(suite.layouts[label], 0).to_dict()
            for choice in entry.measure.sweep.choices(mixer_names(parse_layout(suite.layouts[label]))):
                tried, _ = measures.apply_choice(choice, model, entry.measure.training)
                if tried == model:  # only the training differs
                    continue
                try:
                    count_parameters(ModelConfig.from_dict(tried))
                except ValueError as error:
                    file.complain(["measures", i, "sweep"], f"{label} with {choice}: {error}")


def _check_vocabulary(file: YamlFile, suite: Suite) -> None:
    """Complain of tasks with more token ids than the model has."""
    model = suite.settings.model.config(next(iter(suite.layouts.values())), 0)
    for i, entry in enumerate(suite.entries):
        task = getattr(entry.measure, "task", None)
        if task is not None and task.vocab_size > model.vocab_size:
            needed = f"the task uses {task.vocab_size} token ids, the model has vocab_size {model.vocab_size}"
            file.complain(["measures", i, "task"], needed)
