"""`manifest.json` of a site: which runs it holds, and which files beside them are its own."""

from __future__ import annotations

import hashlib
import json
from importlib.metadata import version
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ...benchmarks.runs import RunError, results_digest
from .names import SAFE, safe_name
from .run import SiteRun

MANIFEST = "manifest.json"
SCHEMA_VERSION = 1


class Entry(BaseModel):
    """A run of the site. results_sha256: of `runs/NAME/results.jsonl`. maker: of its report, see `maker`."""

    model_config = ConfigDict(frozen=True)

    name: str = Field(pattern=f"^{SAFE}$")
    suite: str
    results_sha256: str = Field(pattern="^[0-9a-f]{64}$")
    commit: str | None
    dirty: bool
    machine: str
    started: str | None
    foreign: bool
    complete: bool
    maker: str


class Manifest(BaseModel):
    """home: the address that the site is published at, docs: that of the documentation, or its path from the site's
    index; None if it was never given. feed: id of its Atom feed.
    pages: the files of the site outside `runs/`, by their paths in it. maker: of the pages.
    """

    model_config = ConfigDict(frozen=True)

    schema_version: int = SCHEMA_VERSION
    home: str | None = None
    docs: str | None = None
    feed: str = ""
    pages: list[str] = []
    runs: list[Entry] = []

    @property
    def text(self) -> str:
        return json.dumps(self.model_dump(), indent=1, ensure_ascii=False) + "\n"


def read_manifest(site: Path) -> Manifest:
    """The manifest of a site, an empty one where there is none. Raises `RunError` for one that cannot be read."""
    path = site / MANIFEST
    if not path.is_file():
        return Manifest()
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        version = data.get("schema_version") if isinstance(data, dict) else None
        if isinstance(version, int) and version > SCHEMA_VERSION:
            raise RunError(f"{path} has schema version {version}, this mixerzoo reads {SCHEMA_VERSION}: update it")
        manifest = Manifest.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise RunError(f"{path} is not a manifest: {where}: {first['msg']}; restore it, or publish elsewhere") from None
    except json.JSONDecodeError:
        raise RunError(f"{path} is not JSON; restore it, or publish elsewhere") from None
    for page in manifest.pages:
        if Path(page).is_absolute() or ".." in Path(page).parts:
            raise RunError(f"{path} names {page!r} as a page of the site, which lies outside; restore it")
    return manifest


def entry_of(run: SiteRun, made_by: str) -> Entry:
    return Entry(
        name=run.name,
        suite=run.suite,
        results_sha256=run.digest,
        commit=run.commit,
        dirty=run.dirty,
        machine=run.machine,
        started=run.started.isoformat() if run.started else None,
        foreign=run.foreign is not None,
        complete=not run.incomplete,
        maker=made_by,
    )


def place_for(called: str, digest: str, site: Path, known: dict[str, str]) -> str:
    """The name in the site for a run with the results `digest`: one that has them already, or one that is free.

    called: the name of the run's own folder; where another run has it, the start of the digest tells them apart.
    known: the runs of the site, their digests by name.
    """
    same = [name for name, other in known.items() if other == digest]
    if same:
        return same[0]
    name = safe_name(called)
    others = [path.name for path in (site / "runs").glob("*") if not _is(path, digest)]
    return f"{name}-{digest[:8]}" if name.lower() in {other.lower() for other in (*others, *known)} else name


def _is(folder: Path, digest: str) -> bool:
    """Whether a folder holds that run, left behind by a publisher that was killed."""
    return (folder / "suite.yaml").is_file() and results_digest(folder) == digest


def maker() -> str:
    """A digest of all that decides how a report looks: this package, and what draws its charts."""
    package = Path(__file__).parents[1]
    sources = [*package.rglob("*.py"), *(p for p in (package / "templates").rglob("*") if p.is_file())]
    digest = hashlib.sha256()
    for name in ("mixerzoo", "altair", "vl-convert-python", "pandas"):
        digest.update(f"{name} {version(name)}\n".encode())
    for source in sorted(sources):
        digest.update(source.read_bytes())
    return digest.hexdigest()[:16]
