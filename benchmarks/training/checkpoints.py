"""Saving where a training stands, so that one that was killed goes on as if nothing had been.

A resume point is one safetensors file, `resume-STEP.safetensors`: parameters, optimizer states and random states as
tensors, all else as JSON in its metadata. `resume.sha256` names the one that counts and is replaced last, so that a
kill at whatever moment leaves the old one or the new one.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import safetensors.torch
import torch
from pydantic import Field, TypeAdapter
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.optim import Optimizer

from ...mixers.stored import CorruptFileError, TensorFile, difference, parse_json
from ...models.checksums import check_sum, read_sums, write_sums
from .data_hash import DataHash
from .distributed import Ranks, load_whole, load_whole_optimizer, whole

SUMS_FILE = "resume.sha256"
OLD_FILE = "resume.pt"
UNUSABLE = "unusable-"
"""Begins the name of a file that was passed over, and is kept for whoever wants to know why."""
_FILE = "resume-{step}.safetensors"
_OF_STATE = re.compile(r"optimizer\.(\d{1,6})\.(\d{1,9})\.(\w+)")
_METADATA_KEY = "mixerzoo_resume"

Count = Annotated[int, Field(ge=0)]
Point = Annotated[list[float], Field(min_length=2, max_length=3)]


@dataclasses.dataclass
class Standing:
    """Where a training stands after `step` steps.

    seconds: spent so far. curve: `[step, loss]`. evaluations: `[step, tokens, accuracy]`. losses: of the steps since
    the curve's last point.
    """

    step: Count = 0
    tokens: Count = 0
    seconds: float = 0.0
    curve: list[Point] = dataclasses.field(default_factory=list)
    evaluations: list[Point] = dataclasses.field(default_factory=list)
    tokens_to_solve: int | None = None
    losses: list[float] = dataclasses.field(default_factory=list)
    data: DataHash = dataclasses.field(default_factory=DataHash)

    @classmethod
    def of(cls, saved: Any) -> Standing:
        """The one that `dataclasses.asdict` made `saved` of. Raises `ValueError` (pydantic's) for anything else."""
        checked = _standings().validate_python(saved)
        bytes.fromhex(checked.data.sha256)
        # as it was saved: pydantic makes floats of the whole numbers in the curve
        lists = {name: saved.get(name, []) for name in ("curve", "evaluations")}
        return dataclasses.replace(checked, **lists)


@functools.cache
def _standings() -> TypeAdapter[Standing]:
    return TypeAdapter(Standing)


@dataclasses.dataclass(frozen=True)
class ResumePoint:
    """What in `folder` a training of `recipe` (JSON-able) resumes from."""

    folder: Path
    recipe: dict[str, Any]

    def save(self, model: nn.Module, optimizers: Sequence[Optimizer], standing: Standing, ranks: Ranks) -> str | None:
        """Write parameters, optimizers, random states and `standing`; returns what went wrong with writing, or None:
        the resume point of before is still there then, and a training need not end for it.

        All ranks must call it, the first one writes.
        """
        tensors = {f"model.{name}": tensor for name, tensor in whole(model.state_dict()).items()}
        for number, optimizer in enumerate(optimizers):
            tensors |= _named(whole(optimizer.state_dict())["state"], number)
        if ranks.rank > 0:
            return None
        tensors |= _random_states()
        content = {"recipe": self.recipe, "standing": dataclasses.asdict(standing)}
        name = _FILE.format(step=standing.step)
        partial = self.folder / f"{name}.tmp"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            # clones, since safetensors refuses tensors that share memory
            apart = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
            safetensors.torch.save_file(apart, partial, {_METADATA_KEY: json.dumps(content, allow_nan=False)})
            os.replace(partial, self.folder / name)
            write_sums(self.folder, [name], SUMS_FILE)
            self.remove(but=(name, SUMS_FILE))
        except (OSError, SafetensorError) as error:  # a full disk, say
            partial.unlink(missing_ok=True)
            return f"the resume point of step {standing.step} could not be written: {error}"
        return None

    def restore(self, model: nn.Module, optimizers: Sequence[Optimizer], ranks: Ranks) -> tuple[Standing, str | None]:
        """Put back what `save` wrote, and return it; the start if there is nothing of this recipe.

        Also returns None, or why what there is could not be used; it is kept under another name then. All ranks must
        call it.
        """
        standing, warning = Standing(), None
        try:
            standing = self._restore(model, optimizers) or standing
        except (ValueError, OSError) as error:
            warning = f"resume point unusable, began at step 0: {error}"
        ranks.wait()  # until all have looked
        if warning is not None and ranks.rank == 0:
            set_aside(self._files())
        return standing, warning

    def remove(self, but: Iterable[str] = ()) -> None:
        """Forget it, and what interrupted saves have left."""
        for path in self._files():
            if path.name not in but:
                path.unlink(missing_ok=True)

    def _files(self) -> list[Path]:
        return sorted(path for path in self.folder.glob("resume[-.]*") if path.is_file() or path.is_symlink())

    def _restore(self, model: nn.Module, optimizers: Sequence[Optimizer]) -> Standing | None:
        """Raises `ValueError` or `OSError` before anything of the model is changed."""
        sums = read_sums(self.folder, SUMS_FILE)
        if sums is None:
            if (self.folder / OLD_FILE).exists():
                raise ValueError(f"{self.folder / OLD_FILE} is of an older version, whose format is not read any more")
            return None
        if len(sums) != 1:
            raise CorruptFileError(self.folder / SUMS_FILE, "it must name one file")
        (name, sha256), *_ = sums.items()
        check_sum(self.folder, name, sha256)
        file = TensorFile.open(self.folder / name)
        content = parse_json(file.metadata.get(_METADATA_KEY, "null"), file.path)
        if not isinstance(content, dict) or content.keys() != {"recipe", "standing"}:
            raise CorruptFileError(file.path, "it is no resume point")
        if content["recipe"] != self.recipe:
            return None
        try:
            standing = Standing.of(content["standing"])
        except ValueError as error:
            raise CorruptFileError(file.path, f"it does not say where a training stands: {error}") from None
        tensors, states = _Saved(file, model, optimizers).load()
        load_whole(model, tensors)
        for optimizer, state in zip(optimizers, states, strict=True):
            load_whole_optimizer(optimizer, state)
        return standing


States = dict[int, dict[str, Any]]


class _Saved:
    """The tensors of a resume point, held against the model and the optimizers that they are for."""

    def __init__(self, file: TensorFile, model: nn.Module, optimizers: Sequence[Optimizer]) -> None:
        self.file = file
        self.model = {f"model.{name}": tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        self.parameters = [[p for group in o.param_groups for p in group["params"]] for o in optimizers]

    def load(self) -> tuple[dict[str, Tensor], list[States]]:
        """The model's tensors by name, and the states of each optimizer. Sets the random states.

        Raises `CorruptFileError` if they are not of this model and these optimizers.
        """
        shapes = self.file.shapes
        problem = difference({n: s for n, s in shapes.items() if n.startswith("model.")}, self.model)
        if problem is not None:
            raise CorruptFileError(self.file.path, problem)
        places = {name: self._place(name) for name in shapes if not name.startswith(("model.", "random."))}
        tensors = self.file.load()
        states: list[States] = [{} for _ in self.parameters]
        for name, (number, index, key) in places.items():
            states[number].setdefault(index, {})[key] = tensors[name]
        _set_random_states(tensors, self.file.path)
        return {name.removeprefix("model."): tensors[name] for name in self.model}, states

    def _place(self, name: str) -> tuple[int, int, str]:
        """Optimizer, parameter and key of a piece of an optimizer's state, which is a number or as its parameter."""
        match = _OF_STATE.fullmatch(name)
        number, index = (int(match[1]), int(match[2])) if match is not None else (-1, -1)
        if match is None or number >= len(self.parameters) or index >= len(self.parameters[number]):
            raise CorruptFileError(self.file.path, f"{name!r} is unknown")
        shape, expected = self.file.shapes[name], tuple(self.parameters[number][index].shape)
        if shape not in ((), expected):
            raise CorruptFileError(self.file.path, f"{name} has shape {list(shape)} instead of {list(expected)}")
        return number, index, match[3]


def set_aside(paths: Iterable[Path]) -> None:
    """Give files that cannot be used other names in their folder, so that nothing of them is lost."""
    for path in paths:
        target, number = path.with_name(f"{UNUSABLE}{path.name}"), 1
        while target.exists():
            number += 1
            target = path.with_name(f"{UNUSABLE}{number}-{path.name}")
        path.rename(target)


def _named(states: Mapping[int, Mapping[str, Any]], number: int) -> dict[str, Tensor]:
    """The tensors of the states of an optimizer by flat names; a number becomes one, as those of torch keep theirs."""
    return {
        f"optimizer.{number}.{index}.{key}": torch.as_tensor(value)
        for index, values in states.items()
        for key, value in values.items()
    }


def _random_states() -> dict[str, Tensor]:
    """Those of torch. NumPy's need no saving: tasks draw from streams that are functions of the seed and the step."""
    used = torch.cuda.is_available() and torch.cuda.is_initialized()
    cuda = torch.cuda.get_rng_state_all() if used else []
    return {"random.cpu": torch.get_rng_state(), **{f"random.cuda.{i}": state for i, state in enumerate(cuda)}}


def _set_random_states(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Raises `CorruptFileError` for a state that is none."""
    try:
        torch.set_rng_state(tensors["random.cpu"])
        for i in range(torch.cuda.device_count()):
            if f"random.cuda.{i}" in tensors:
                torch.cuda.set_rng_state(tensors[f"random.cuda.{i}"], i)
    except (KeyError, RuntimeError, TypeError) as error:
        raise CorruptFileError(path, f"its random states are none: {error}") from None
