"""A static site of runs: an index, leaderboards, histories and a feed, extended run by run.

It is made from its `manifest.json` and the raw data under `runs/` alone, and holds no time but the runs' own, so
publishing twice changes nothing.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from ..benchmarks.runs import RunError
from .page import write_report
from .site.feed import feed_id
from .site.manifest import MANIFEST, Manifest, entry_of, maker, place_for, read_manifest
from .site.pages import pages
from .site.place import files, install, locked
from .site.run import RAW, SiteRun, read_site_run


@dataclass(frozen=True)
class Published:
    """index: the site's front page. added, unchanged: names in the site of the runs that were given."""

    index: Path
    added: list[str]
    unchanged: list[str]


def publish(
    folders: Sequence[str | Path],
    to: str | Path,
    home: str | None = None,
    docs: str | None = None,
    micro: str | Path | None = None,
) -> Published:
    """Add runs to the site in the folder `to`, made if need be, and make its pages anew; without runs, only that.

    home: the address the site is published at, for its feed; docs: the documentation, an address or a path from the
    site's index, for a link on every page; micro: the history that `make micro` keeps, for a page of its own. They stay
    as they are until others are given. What else lies in the folder is left alone. Raises `RunError` that names every
    run that cannot be read; then nothing is changed.
    """
    site, address, documentation = Path(to), _address(home), _documentation(docs)
    with locked(site) as staging:
        old, made_by = read_manifest(site), maker()
        there = {entry.name: entry.results_sha256 for entry in old.runs}
        given = _take(folders, site, staging, old)
        _remake(site, staging, [entry.name for entry in old.runs if entry.maker != made_by])
        runs = [_read(name, there.get(name), site, staging) for name in sorted({*there, *given})]
        new = Manifest(
            home=address or old.home,
            docs=documentation or old.docs,
            feed=old.feed or feed_id(runs),
            runs=[entry_of(run, made_by) for run in runs],
        )
        made = pages(runs, new, _micro(site, old, micro))
        made[MANIFEST] = new.model_copy(update={"pages": sorted(made)}).text
        _refuse_strangers(site, old, made)
        for name, text in made.items():
            (staging / name).parent.mkdir(parents=True, exist_ok=True)
            (staging / name).write_bytes(text.encode("utf-8", "replace"))
        install(staging, site, _stale(site, staging, old, made))
    added, unchanged = ([name for name in given if (name in there) == known] for known in (False, True))
    return Published(site.resolve() / "index.html", added, unchanged)


def _take(folders: Sequence[str | Path], site: Path, staging: Path, old: Manifest) -> list[str]:
    """Bring the runs that are new to `staging`, with their reports. Returns the names of all that were given.

    They are copied first and then read: a run may be at work meanwhile.
    """
    names: list[str] = []
    wrong: list[str] = []
    taken: list[tuple[Path, Path]] = []
    known = {entry.name: entry.results_sha256 for entry in old.runs}
    for folder in map(Path, folders):
        incoming = staging / "incoming"
        try:
            _copy(folder, incoming)
            digest = read_site_run(incoming, "", folder).digest
            name = place_for(folder.resolve().name, digest, site, known)
            names.append(name)
            if name not in known:
                known[name] = digest
                (staging / "runs").mkdir(exist_ok=True)
                incoming.rename(staging / "runs" / name)
                taken.append((staging / "runs" / name, folder))
        except RunError as error:
            wrong.append(str(error))
        shutil.rmtree(incoming, ignore_errors=True)
    _complain(wrong)
    _complain(_write_reports(taken))
    return list(dict.fromkeys(names))


def _complain(wrong: list[str]) -> None:
    if wrong:
        raise RunError("\n".join(["nothing was published:", *wrong]))


def _remake(site: Path, staging: Path, names: list[str]) -> None:
    """Write the reports of runs that the site holds anew, in `staging`."""
    for name in names:
        _copy(site / "runs" / name, staging / "runs" / name)
    _complain(_write_reports([(staging / "runs" / name, site / "runs" / name) for name in names]))


def _copy(run: Path, to: Path) -> None:
    """Copy what a run is made of."""
    to.mkdir(parents=True)
    for name in RAW:
        if (run / name).is_file():
            shutil.copyfile(run / name, to / name)


def _write_reports(runs: list[tuple[Path, Path]]) -> list[str]:
    """Write the reports of runs, each with the name it has in messages; returns of which none can be made, and why.

    Several are written side by side: to draw charts takes seconds, and one processor.
    """
    if len(runs) < 2:
        return [said for folder, named in runs if (said := _report(folder, named))]
    context = multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")
    with ProcessPoolExecutor(min(len(runs), os.cpu_count() or 1), context) as pool:
        try:
            return [said for said in pool.map(_report, *zip(*runs)) if said]
        except BrokenProcessPool:
            return ["a process that wrote reports was killed: did memory run out?"]


def _report(folder: Path, named: Path) -> str:
    """Write a report; returns why that could not be done, or nothing."""
    try:
        write_report(folder, named=Path("runs") / folder.name)
    except Exception as error:  # whatever a damaged run stumbles over, the run has to be named
        return f"{named}: no report can be made of it: {type(error).__name__}: {error}"
    return ""


def _read(name: str, digest: str | None, site: Path, staging: Path) -> SiteRun:
    """A run of the site as it will be. digest: what the manifest says of its results, None if it is new."""
    fresh, there = staging / "runs" / name, site / "runs" / name
    run = read_site_run(fresh if fresh.is_dir() else there, name, there)
    if digest not in (None, run.digest):
        raise RunError(f"{there}: results.jsonl is not the one that was published; put that one back")
    return run


def _micro(site: Path, old: Manifest, given: str | Path | None) -> Path | None:
    """The history of the micro benchmarks that the site shows, if any."""
    if given is not None:
        return Path(given)
    return site / "micro.jsonl" if "micro.jsonl" in old.pages else None


def _refuse_strangers(site: Path, old: Manifest, made: dict[str, str]) -> None:
    strangers = [name for name in made if (site / name).exists() and name not in (MANIFEST, *old.pages)]
    if strangers:
        listed = ", ".join(sorted(strangers))
        raise RunError(f"{site} holds files that `mixerzoo publish` did not make ({listed}): choose another folder")


def _stale(site: Path, staging: Path, old: Manifest, made: dict[str, str]) -> list[str]:
    """What the site holds of its own that it no longer needs."""
    stale = [name for name in old.pages if name not in made]
    for folder in sorted((staging / "runs").glob("*")):
        fresh, there = files(folder), files(site / "runs" / folder.name)
        stale += [f"runs/{folder.name}/{name}" for name in there if name not in fresh]
    return stale


def _address(home: str | None) -> str | None:
    """The address of a site, ending in `/`."""
    if home is None:
        return None
    parts = urlsplit(home)
    if parts.scheme not in ("http", "https") or not parts.netloc or parts.query or parts.fragment:
        raise ValueError(f"{home!r} is no address of a site; give one like https://example.org/runs/")
    return f"{home.rstrip('/')}/"


def _documentation(link: str | None) -> str | None:
    """An address, or a path beside the site: nothing that a browser would run."""
    if link is not None and urlsplit(link).scheme not in ("", "http", "https"):
        raise ValueError(f"{link!r} leads to no documentation; give an address, or a path from the site's index")
    return link
