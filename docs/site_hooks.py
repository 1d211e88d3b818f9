"""Hooks of mkdocs: pages from outside docs/, links that leave it, and the pages of the API.

README.md is the home page. A link to a published run leads to its page in the part of the site that
`mixerzoo publish` makes, reports/; one to a file of the source becomes its path.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
PUBLISHED = ROOT / "reports" / "published"
OUTSIDE = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
"""Pages that do not lie in docs/, and where they stand on the site."""
OPS = [f"mixers.ops.{path.parent.name}" for path in sorted((ROOT / "mixers" / "ops").glob("*/__init__.py"))]
MEASURE = re.compile(r"^class (\w+)\(.*\):\n(?:(?!class ).*\n)*?    measure: Literal\[", re.MULTILINE)
"""A class that is a measure: it has a name."""
API = {
    "mixers": ["mixers"],
    "ops": OPS,
    "models": ["models"],
    "benchmarks": ["benchmarks"],
    "tasks": ["benchmarks.tasks"],
    "measures": ["benchmarks.measures"],
    "reports": ["reports"],
}
"""Pages of the API, and the modules that they show: what these list in `__all__`."""
PLACEHOLDER = "<!doctype html><title>Not published</title><p><code>make site</code> publishes the runs here.</p>\n"
_LINK = re.compile(r"(?P<image>!?)\[(?P<text>(?:[^\[\]]|\[[^\]]*\])*)\]\((?P<target>[^)\s]+)\)")
_FENCED = re.compile(r"(^```.*?^```$)", re.DOTALL | re.MULTILINE)
_MARKER = re.compile(r"(?P<block>^)?<!-- (= [^\n]*?|/) -->", re.MULTILINE)


def on_startup(**_: object) -> None:
    """Lays the packages out under the name that they are imported by, for the API to be read without importing it."""
    package = ROOT / "build" / "api" / "mixerzoo"
    package.mkdir(parents=True, exist_ok=True)
    for name in ("mixers", "models", "benchmarks", "reports"):
        if not (package / name).is_symlink():
            (package / name).symlink_to(Path("..", "..", "..", name), target_is_directory=True)


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Adds the pages from outside, the figures of published runs, and a place for each of their pages."""
    for source, uri in OUTSIDE.items():
        files.append(File.generated(config, uri, abs_src_path=str(ROOT / source)))
    for path in sorted(shown_figures()):
        files.append(File.generated(config, str(site_uri(path)), abs_src_path=str(ROOT / path)))
    for uri in ("index.html", *(f"runs/{path.name}/report.html" for path in PUBLISHED.iterdir())):
        files.append(File.generated(config, f"reports/{uri}", content=PLACEHOLDER))
    for name, modules in API.items():
        files.append(File.generated(config, f"api/{name}.md", content=api_page(modules)))
    files.append(File.generated(config, "api/index.md", content=api_index()))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Leads the links of a page to where their targets stand on the site; takes away the markers of numbers."""
    markdown = _MARKER.sub(lambda match: "" if match["block"] is None else "\n", markdown)
    if page.file.src_uri == "index.md":
        page.meta["hide"] = ["navigation"]  # it is the only page of its part
    sources = {uri: source for source, uri in OUTSIDE.items()}
    source = sources.get(page.file.src_uri, f"docs/{page.file.src_uri}")
    parts = _FENCED.split(markdown)
    return "".join(
        p if i % 2 else _LINK.sub(lambda m: link(m, source, page.file.src_uri), p) for i, p in enumerate(parts)
    )


def link(match: re.Match[str], source: str, page: str) -> str:
    """A link of the file `source` as it must be on the page `page`. Raises `PluginError` if it leads nowhere."""
    target, _, fragment = match["target"].partition("#")
    if not target or "://" in target or source.startswith("docs/api/"):
        return match[0]
    path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
    if path.startswith("..") or not (ROOT / path).exists():
        raise PluginError(f"{source} has a link to {match['target']}, which does not exist")
    uri = site_uri(path)
    if uri is None:
        return match["text"] if path in match["text"] else f"{match['text']} (`{path}`)"
    place = posixpath.relpath(uri, posixpath.dirname(page) or ".")
    return f"{match['image']}[{match['text']}]({place}{'#' if fragment else ''}{fragment})"


def site_uri(path: str) -> str | None:
    """Where a file of the repository stands on the site; None if it does not."""
    if path in OUTSIDE:
        return OUTSIDE[path]
    if figure := re.fullmatch(r"reports/published/([^/]+)/figures/([^/]+)", path):
        return f"figures/{figure[1]}/{figure[2]}"
    if run := re.fullmatch(r"reports/published/([^/]+)(/report\.(md|html))?", path):
        return f"reports/runs/{run[1]}/report.html"
    return path.removeprefix("docs/") if re.fullmatch(r"docs/.*\.(md|csv|svg|png)", path) else None


def shown_figures() -> set[str]:
    """The figures of published runs that pages show."""
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    shown = [re.findall(r"\breports/published/[^/]+/figures/[\w.-]+", path.read_text("utf-8")) for path in pages]
    return {figure for found in shown for figure in found if (ROOT / figure).is_file()}


# --- The pages of the API ---


def api_page(modules: list[str]) -> str:
    """One module is the page; of several each has a heading. Measures are found by their files, not by a list."""
    if len(modules) > 1:
        return f"# mixerzoo.{modules[0].rpartition('.')[0]}\n\n{shown(modules)}"
    more = measures() if modules == ["benchmarks.measures"] else []
    page = f"# mixerzoo.{modules[0]}\n\n::: mixerzoo.{modules[0]}\n    options: {{show_root_heading: false}}\n"
    return f"{page}\n{shown(more)}"


def shown(names: list[str]) -> str:
    return "\n".join(f"::: mixerzoo.{name}\n    options: {{show_root_heading: true}}\n" for name in names)


def measures() -> list[str]:
    """The measures that `benchmarks.measures` does not list."""
    folder = ROOT / "benchmarks" / "measures"
    listed = (folder / "__init__.py").read_text(encoding="utf-8")
    found = [(path.stem, MEASURE.findall(path.read_text(encoding="utf-8"))) for path in sorted(folder.glob("*.py"))]
    classes = [(module, name) for module, names in found for name in names]
    return [f"benchmarks.measures.{module}.{name}" for module, name in classes if f'"{name}"' not in listed]


def api_index() -> str:
    lines = [
        f"- [mixerzoo.{modules[0] if len(modules) == 1 else 'mixers.ops'}]({name}.md)" for name, modules in API.items()
    ]
    return "# API\n\nWhat the packages list in `__all__`; imports go down this list only.\n\n" + "\n".join(lines) + "\n"
