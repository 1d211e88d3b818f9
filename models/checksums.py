"""`SHA256SUMS`: the SHA-256 of every file of a checkpoint, beside it, as `sha256sum` writes and checks them."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable
from pathlib import Path

from ..mixers.stored import CorruptFileError, file_in

SUMS_FILE = "SHA256SUMS"
_LINE = re.compile(r"([0-9a-f]{64}) [ *]([\w.-]+)")
_MOST_BYTES = 2**20
_PIECE = 2**20


def write_sums(folder: Path, names: Iterable[str], file: str = SUMS_FILE) -> None:
    """Write those of the files `names` into `file`, which is replaced whole once they are on the disk."""
    lines = [f"{_sha256(folder / name, sync=True)}  {name}\n" for name in names]
    partial = folder / f"{file}.tmp"
    with partial.open("w") as sums:
        sums.writelines(lines)
        sums.flush()
        os.fsync(sums.fileno())
    os.replace(partial, folder / file)


def read_sums(folder: Path, file: str = SUMS_FILE) -> dict[str, str] | None:
    """SHA-256 by file name; None if there is no such `file`.

    Raises `CorruptFileError` for one that says anything else, such as the name of a file in another folder.
    """
    try:
        path = file_in(folder, file)
    except FileNotFoundError:
        return None
    if path.stat().st_size > _MOST_BYTES:
        raise CorruptFileError(path, f"it is longer than {_MOST_BYTES:,} bytes")
    matches = [_LINE.fullmatch(line) for line in path.read_text(errors="replace").splitlines()]
    if not matches or None in matches:
        raise CorruptFileError(path, "a line is not `SHA-256, two spaces, the name of a file of this folder`")
    return {match[2]: match[1] for match in matches if match is not None}


def check_sums(folder: Path, names: Iterable[str]) -> None:
    """Raise `CorruptFileError` unless the files `names` of `folder` are as its `SHA256SUMS` says; those of before there
    was one pass."""
    sums = read_sums(folder)
    if sums is None:
        return
    for name in names:
        if name not in sums:
            raise CorruptFileError(folder / SUMS_FILE, f"it does not list {name}")
        check_sum(folder, name, sums[name])


def check_sum(folder: Path, name: str, sha256: str) -> None:
    """Raise `CorruptFileError` unless the file `name` of `folder` has that SHA-256, `ValueError` or
    `FileNotFoundError` unless it is a file of the folder at all."""
    path = file_in(folder, name)
    if (found := _sha256(path)) != sha256:
        raise CorruptFileError(path, f"its SHA-256 is {found}, and was {sha256} when it was written")


def _sha256(path: Path, *, sync: bool = False) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        if sync:
            os.fsync(file.fileno())
        while piece := file.read(_PIECE):
            digest.update(piece)
    return digest.hexdigest()
