"""The folder of a site: one publisher at a time, and changes that are safe to be stopped at any moment."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from ...benchmarks.runs import RunError
from .manifest import MANIFEST

PATIENCE_SECONDS = 2.0
_STAGING = ".publish-"
# Nothing is put in place before what it links to: runs first, then what lists them, the front page last.
_ORDER = ("assets/", "micro", "history/", "suites/", "feed.atom", "index.html")


@contextlib.contextmanager
def locked(site: Path) -> Iterator[Path]:
    """The right to change a site, and an empty folder in it to prepare the change in, gone afterwards.

    The folder of the site is made if need be, and if nothing came of it removed again. The lock is on the folder
    itself, so that it leaves no file behind; the kernel takes it back when this process dies.
    """
    made = _make(site)
    handle = os.open(site, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _acquire(handle, site)
        for left in site.glob(f"{_STAGING}*"):  # by a publisher that was killed
            shutil.rmtree(left)
        staging = Path(tempfile.mkdtemp(prefix=_STAGING, dir=site))
        try:
            yield staging
        finally:
            shutil.rmtree(staging)
    finally:
        for folder in made:
            with contextlib.suppress(OSError):  # not empty: the site is there
                folder.rmdir()
        os.close(handle)


def install(staging: Path, site: Path, stale: list[str]) -> None:
    """Move the files prepared in `staging` to their places in `site`, and then remove the `stale` ones.

    Files that are the same already are left alone. Stopped in between, every page that can be reached has either its
    old text or its new one, and all that it links to is there; publishing again completes the rest.
    """
    for source, target in _moves(staging, site):
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(source, target)
    for name in stale:
        (site / name).unlink(missing_ok=True)


def _moves(staging: Path, site: Path) -> Iterator[tuple[Path, Path]]:
    """What has to be moved where, in a safe order."""
    folders = sorted((staging / "runs").glob("*"))
    for folder in folders:
        target = site / "runs" / folder.name
        if target.exists():
            yield from _changed(folder, target, sorted(files(folder), key=lambda name: (name.endswith("html"), name)))
        else:
            yield folder, target
    pages = [name for name in files(staging) if not name.startswith("runs/") and name != MANIFEST]
    pages.sort(key=lambda name: ([name.startswith(start) for start in reversed(_ORDER)], name))
    # the manifest decides what the next publisher builds: behind the data, before the pages that are made from it
    yield from _changed(staging, site, [MANIFEST, *pages])


def _changed(source: Path, target: Path, names: list[str]) -> Iterator[tuple[Path, Path]]:
    for name in names:
        old, new = target / name, source / name
        if not old.is_file() or old.read_bytes() != new.read_bytes():
            yield new, old


def files(folder: Path) -> list[str]:
    """The files below a folder, by their paths in it."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def _make(folder: Path) -> list[Path]:
    """Make a folder and those above it; returns the ones that were not there, the lowest first."""
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    return made


def _acquire(handle: int, site: Path) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise RunError(f"another `mixerzoo publish` is at work in {site}; wait for it to end") from None
            time.sleep(0.05)
    if not site.is_dir() or os.fstat(handle).st_ino != site.stat().st_ino:
        raise RunError(f"{site} was removed by another `mixerzoo publish`, which failed; publish again")
