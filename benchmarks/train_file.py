"""The file that `mixerzoo train` reads: one model, its task and its training."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from ..mixers.limits import Seed
from ..models import ModelConfig, count_parameters
from .suite import ModelSettings
from .tasks import AnyTask
from .training import TrainingSettings
from .yamlfile import SuiteError, YamlFile


class TrainedModel(ModelSettings):
    """The model: a layout line on the backbone that a suite would give it."""

    layout: str


class TrainFile(BaseModel):
    """What a file of `mixerzoo train` says. seed: of the parameters and of the data."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: TrainedModel
    task: AnyTask
    training: TrainingSettings = TrainingSettings()
    seed: Seed = 0

    @property
    def config(self) -> ModelConfig:
        """The model's configuration. Raises `ValueError` for a layout, preset or option that there is not."""
        settings = ModelSettings(**self.model.model_dump(exclude={"layout"}))
        return settings.config(self.model.layout, self.seed)


def load_train_file(path: Path) -> TrainFile:
    """Read and check the file before any work is done.

    Raises `SuiteError`, which lists every mistake with its line; `FileNotFoundError` if there is no such file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no file {str(path)!r}; give a YAML file with model, task and training")
    file = YamlFile.read(path)
    try:
        loaded = TrainFile.model_validate(file.data)
    except ValidationError as error:
        file.complain_all(error, known=TrainFile.model_fields)
        raise SuiteError(file.source, file.problems) from None
    try:
        config = loaded.config
        count_parameters(config)  # builds the model, without memory
    except ValueError as error:
        file.complain(["model", "layout"], str(error))
        raise SuiteError(file.source, file.problems) from None
    tasks = (loaded.task, *(mixed.task for mixed in loaded.training.mixture))
    if (needed := max(task.vocab_size for task in tasks)) > config.vocab_size:
        file.complain(["task"], f"the tasks use {needed} token ids, the model has vocab_size {config.vocab_size}")
    try:
        loaded.training.check(loaded.task)
    except ValueError as error:
        file.complain(["training"], str(error))
    if loaded.training.processes > 1:
        file.complain(
            ["training", "processes"], "is for suites; leave it out, and start with torchrun --nproc-per-node"
        )
    file.raise_problems()
    return loaded
