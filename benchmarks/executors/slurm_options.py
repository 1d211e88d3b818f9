"""What can be said of Slurm's jobs: `--slurm KEY=VALUE`, or `--slurm FILE.yaml` with the same keys."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from ..yamlfile import YamlFile, suggestion

# What follows from the case itself.
_OURS = ("nodes", "ntasks_per_node", "exclusive", "gpus_per_node", "gpus_per_task", "num_gpus", "job_name", "requeue")


class SlurmOptions(BaseModel):
    """Options of the jobs. Those that are not explained here are sbatch's of the same name.

    cpus_per_task: also the threads of a case. mem: such as `32GB`; by default the suite's memory limit and a little
    more. time: minutes; by default the suite's time limit and ten minutes more. gpu_type: such as `a100`; how many GPUs
    a case gets follows from its processes. array_parallelism: how many jobs of one array run at once. queued: how many
    jobs of a run are in Slurm at once, those that wait included; no more than its `MaxArraySize` allows.
    signal_delay_s: how long before the end of its time a job is told. setup, teardown: lines of shell before and after
    a case. srun_args: for `srun`. additional_parameters: any other option of sbatch. python: the command that starts
    Python there. cluster: `local` runs the same jobs as processes of this machine, to try things out.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, coerce_numbers_to_str=True)

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    nodelist: str | None = None
    exclude: str | None = None
    gres: str | None = None
    gpu_type: str | None = None
    dependency: str | None = None
    wckey: str | None = None
    comment: str | None = None
    mail_type: str | None = None
    mail_user: str | None = None
    cpus_per_task: int = Field(4, ge=1, le=4096)
    mem: str | None = Field(None, pattern=r"^\d+([KMGT]B?)?$")
    time: int | None = Field(None, ge=1, le=525600)
    array_parallelism: int = Field(256, ge=1, le=100_000)
    queued: int = Field(1000, ge=1, le=100_000)
    signal_delay_s: int = Field(90, ge=1, le=65535)
    setup: list[str] = []
    teardown: list[str] = []
    srun_args: list[str] = []
    additional_parameters: dict[str, str | int | bool] = {}
    python: str | None = None
    cluster: Literal["slurm", "local"] = "slurm"

    @field_validator("*")
    @classmethod
    def _fits_a_line(cls, value: Any) -> Any:
        """A line break would end the line of the job's script that the value stands in."""
        texts = [value] if isinstance(value, str) else value if isinstance(value, list) else []
        if isinstance(value, dict):
            texts = [*value, *(v for v in value.values() if isinstance(v, str))]
            if odd := [key for key in value if not re.fullmatch(r"[A-Za-z][A-Za-z_-]*", key)]:
                raise ValueError(f"{odd[0]!r} is no name of an option")
        if any(not text.isprintable() for text in texts):
            raise ValueError("line breaks and control characters cannot stand here")
        return value


def parse_slurm_options(given: Sequence[str]) -> SlurmOptions:
    """The options in `given`, each `KEY=VALUE` or the path of a YAML file; what comes later wins, of lists all is kept.

    Raises `ValueError` that names every mistake.
    """
    found: dict[str, Any] = {}
    for text in given:
        key, equals, value = text.partition("=")
        new = _of_word(key.strip().replace("-", "_"), value) if equals else _of_file(Path(text))
        for name, item in new.items():
            together = isinstance(item, list) and isinstance(found.get(name), list)
            found[name] = [*found[name], *item] if together else item
    return SlurmOptions.model_validate(found)


def _of_word(key: str, value: str) -> dict[str, Any]:
    """One `KEY=VALUE`, checked alone, so that a mistake names the words that hold it."""
    field = SlurmOptions.model_fields.get(key)
    if field is None:
        raise ValueError(f"--slurm {key}={value}: unknown option{_hint(key)}")
    kind = get_origin(field.annotation)
    item = [value] if kind is list else _flow_mapping(key, value) if kind is dict else value
    try:
        SlurmOptions.model_validate({key: item})
    except ValidationError as error:
        message = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise ValueError(f"--slurm {key}={value}: {message[:1].lower()}{message[1:]}") from None
    return {key: item}


def _flow_mapping(key: str, value: str) -> Any:
    try:
        return yaml.safe_load(value)
    except yaml.YAMLError:
        raise ValueError(f"--slurm {key}={value}: write a mapping, as in {key}='{{licenses: matlab}}'") from None


def _of_file(path: Path) -> dict[str, Any]:
    """The options in a YAML file; a mistake names its line."""
    if path.suffix not in (".yaml", ".yml"):
        raise ValueError(f"--slurm {path}: give KEY=VALUE, or a file that ends in .yaml")
    file = YamlFile.parse(path.read_text(encoding="utf-8"), str(path))
    for key in [key for key in file.data if key not in SlurmOptions.model_fields]:
        file.complain([key], f"unknown option{_hint(str(key))}", key=True)
        del file.data[key]
    try:
        SlurmOptions.model_validate(file.data)
    except ValidationError as error:
        file.complain_all(error)
    file.raise_problems()
    return file.data


def _hint(key: str) -> str:
    if key in _OURS:
        return "; it follows from each case, and cannot be given"
    return suggestion(key, SlurmOptions.model_fields)
