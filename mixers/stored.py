"""Reading files that may come from anybody: safetensors and JSON, looked at before they are believed.

Nothing here runs what a file says, follows it out of its folder, or allocates more than the file itself holds. Whatever
is wrong with one is a `ValueError` that names it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

MOST_JSON_BYTES = 64 * 2**20
MOST_HEADER_BYTES = 32 * 2**20
"""Of a safetensors file: names, shapes and metadata. Its library would parse up to 100 MB before it looks at any."""


class CorruptFileError(ValueError):
    """A file that does not hold what it should; the message names it."""

    def __init__(self, path: Path, why: str) -> None:
        self.path = path
        super().__init__(f"{path} is corrupt: {why}")


def file_in(folder: Path, name: str) -> Path:
    """The path of the regular file `name` of `folder`.

    Raises `FileNotFoundError` if there is none, `ValueError` if it would lead out of the folder, as `../x`, an
    absolute path or a link may.
    """
    path = folder / name
    if Path(name).name != name or path.resolve().parent != folder.resolve():
        raise ValueError(f"{name!r} leads out of {folder}; copy the file itself there")
    if not path.is_file():  # a pipe or a device would be waited for without an end
        raise FileNotFoundError(f"{folder}: {name} is missing")
    return path


def parse_json(text: str | bytes, path: Path) -> Any:
    """What JSON `text` of the file `path` says. Raises `CorruptFileError`, for NaN and infinities too."""
    try:
        return json.loads(text, parse_constant=_no_number, parse_float=_finite)
    except RecursionError:
        raise CorruptFileError(path, "its JSON is nested too deeply") from None
    except ValueError as error:  # includes whole numbers of thousands of digits
        raise CorruptFileError(path, str(error)) from None


def read_json(path: Path) -> Any:
    """What the JSON file `path` says. Raises `CorruptFileError`."""
    if (size := path.stat().st_size) > MOST_JSON_BYTES:
        raise CorruptFileError(path, f"it has {size:,} bytes, and at most {MOST_JSON_BYTES:,} are read")
    return parse_json(path.read_bytes(), path)


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is no JSON number")


def _finite(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise ValueError(f"{text} is too large a number")
    return number


@dataclass(frozen=True)
class TensorFile:
    """A safetensors file whose header has been read: `metadata`, and the shapes of its tensors by name."""

    path: Path
    metadata: Mapping[str, str]
    shapes: Mapping[str, tuple[int, ...]]

    @classmethod
    def open(cls, path: Path) -> TensorFile:
        """Read the header alone. Raises `CorruptFileError` if shapes, dtypes and the file's size do not agree."""
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
        if size > MOST_HEADER_BYTES:
            raise CorruptFileError(path, f"its header has {size:,} bytes, and at most {MOST_HEADER_BYTES:,} are read")
        try:
            with safe_open(str(path), "pt") as file:
                names = list(file.keys())
                shapes = {name: tuple(file.get_slice(name).get_shape()) for name in names}
                return cls(path, file.metadata() or {}, shapes)
        except (SafetensorError, OSError, ValueError) as error:
            raise CorruptFileError(path, str(error)) from None

    def load(self, device: torch.device | str = "cpu") -> dict[str, Tensor]:
        """The tensors by name. Raises `CorruptFileError`."""
        try:
            with safe_open(str(self.path), "pt", device=str(device)) as file:
                return {name: file.get_tensor(name) for name in self.shapes}
        except (SafetensorError, OSError) as error:
            raise CorruptFileError(self.path, str(error)) from None


def difference(found: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]]) -> str | None:
    """What names and shapes a file lacks, or has too many, in a few words; None if they are as expected."""
    problems = [f"{name} is missing" for name in expected if name not in found]
    problems += [f"{name} is unknown" for name in found if name not in expected]
    problems += [
        f"{name} has shape {list(found[name])} instead of {list(shape)}"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    if not problems:
        return None
    return "; ".join(problems[:5]) + (f"; and {len(problems) - 5} more" if len(problems) > 5 else "")
