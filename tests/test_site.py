"""The documentation as a site: it builds from the tree, shows every public name, and works offline."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mixerzoo.benchmarks.measures
import pytest
from mixerzoo.benchmarks.measures import measures

pytest.importorskip("mkdocs", reason="the site needs its extra: pip install -e '.[site]', as `make site` does")
pytest.importorskip("mkdocstrings", reason="the site needs its extra: pip install -e '.[site]', as `make site` does")

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "docs"))

import check_site  # noqa: E402
import site_docstrings  # noqa: E402
import site_hooks  # noqa: E402

sys.path.remove(str(ROOT / "docs"))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return folder


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


# --- The site ---


def test_every_page_is_there_and_every_link_leads_somewhere(site: Path) -> None:
    pages = {path.relative_to(site).as_posix() for path in site.rglob("*.html")}
    docs = {path.relative_to(ROOT / "docs").with_suffix(".html").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    assert {*docs, "index.html", "contributing.html", "changelog.html"} - {"zoo/README.html"} <= pages
    assert {"zoo/index.html", *(f"api/{name}.html" for name in ("index", *site_hooks.API))} <= pages
    assert check_site.faults(site) == []


def test_published_runs_have_a_place_where_links_lead(site: Path) -> None:
    runs = {path.parent.name for path in (ROOT / "reports" / "published").glob("*/results.jsonl")}
    assert runs == {path.parent.name for path in site.glob("reports/runs/*/report.html")}
    assert 'href="reports/runs/quick/report.html"' in text_of(site / "index.html")
    assert 'href="../reports/runs/zoo-speed/report.html"' in text_of(site / "zoo" / "memory.html")
    assert 'href="reports/index.html"' in text_of(site / "index.html")


def test_pages_show_numbers_without_their_markers(site: Path) -> None:
    findings = text_of(site / "findings.html")
    assert "recall_table(" not in findings and "&lt;!--" not in findings and "<!-- = " not in findings
    assert re.search(r"<td[^>]*>softmax without positions</td>", findings)


def public_names() -> Iterator[str]:
    """Those that the modules of the API list, read without importing them."""
    for module in [name for names in site_hooks.API.values() for name in names]:
        tree = ast.parse(text_of(ROOT / module.replace(".", "/") / "__init__.py"))
        values = [n.value for n in tree.body if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == "__all__"]
        assert len(values) == 1, f"{module} has no __all__"
        yield from (f"mixerzoo.{module}.{name}" for name in ast.literal_eval(values[0]))
    for measure in [cls for cls in measures().values() if cls.__module__.startswith("mixerzoo.")]:
        listed = measure.__name__ in mixerzoo.benchmarks.measures.__all__
        yield (
            f"mixerzoo.benchmarks.measures.{measure.__name__}" if listed else f"{measure.__module__}.{measure.__name__}"
        )


def test_the_reference_has_every_public_name(site: Path) -> None:
    entries = zlib.decompress((site / "objects.inv").read_bytes().split(b"\n", 4)[4]).decode()
    known = {entry.split()[0] for entry in entries.splitlines()}
    names = list(public_names())
    assert len(names) > 120
    assert [name for name in names if name not in known] == [], "what has no docstring is not shown"


def test_the_search_knows_the_pages_without_a_server(site: Path) -> None:
    index = text_of(site / "search" / "search_index.js")
    assert index.startswith("var __index = ") and "What must hold before it can learn" in index
    assert 'src="site/iframe-worker.js"' in text_of(site / "index.html")


# --- In a real browser, from its files ---


def opened(browser: Any, page: Path, width: int) -> None:
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    browser.get(page.as_uri())


@pytest.mark.chromium
@pytest.mark.parametrize("width", [1300, 400])
@pytest.mark.parametrize("name", ["index.html", "zoo/memory.html", "findings.html", "api/mixers.html"])
def test_pages_fit_and_fetch_nothing_from_elsewhere(site: Path, browser: Any, name: str, width: int) -> None:
    opened(browser, site / name, width)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    fetched = browser.execute_script("return performance.getEntriesByType('resource').map(e => e.name)")
    assert [address for address in fetched if not address.startswith("file:")] == []
    assert browser.get_log("browser") == []


@pytest.mark.chromium
def test_the_search_finds_a_mixer(site: Path, browser: Any) -> None:
    from selenium.webdriver.support.wait import WebDriverWait

    opened(browser, site / "findings.html", 1300)
    browser.find_element("css selector", "input.md-search__input").send_keys("gated kalmanet")
    found = "return [...document.querySelectorAll('a.md-search-result__link')].map(e => e.href).join(' ')"
    WebDriverWait(browser, 30).until(lambda b: "zoo/memory.html" in b.execute_script(found))


# --- What it is made with ---


@pytest.mark.parametrize(
    ("link", "source", "page", "shown"),
    [
        ("[run](reports/published/quick/report.md)", "README.md", "index.md", "[run](reports/runs/quick/report.html)"),
        ("[zoo](docs/zoo/README.md#x)", "README.md", "index.md", "[zoo](zoo/README.md#x)"),
        ("[home](../../README.md)", "docs/zoo/README.md", "zoo/README.md", "[home](../index.md)"),
        ("![f](reports/published/a/figures/b.svg)", "README.md", "index.md", None),
        (
            "[quick.yaml](benchmarks/suites/quick.yaml)",
            "README.md",
            "index.md",
            "quick.yaml (`benchmarks/suites/quick.yaml`)",
        ),
        ("[LICENSE](LICENSE)", "README.md", "index.md", "LICENSE"),
        ("[there](https://example.org/a.md)", "README.md", "index.md", "[there](https://example.org/a.md)"),
        ("[out](../../../etc/passwd)", "docs/gpu.md", "gpu.md", None),
        ("[gone](docs/gone.md)", "README.md", "index.md", None),
    ],
)
def test_links_lead_to_where_their_targets_stand(link: str, source: str, page: str, shown: str | None) -> None:
    match = site_hooks._LINK.fullmatch(link)
    assert match is not None
    if shown is None:
        with pytest.raises(site_hooks.PluginError, match="does not exist"):
            site_hooks.link(match, source, page)
    else:
        assert site_hooks.link(match, source, page) == shown


def test_docstrings_of_the_house_become_lists() -> None:
    text = "Does *it*.\n\nx `[a, b]`: one,\ntwo. other: `f(*a)` and <b>.\nlast: three.\nRaises `E`.\n\n    code: [x]"
    shown = site_docstrings.markdown(text)
    assert shown.splitlines() == [
        r"Does \*it\*.",
        "",
        "- **x `[a, b]`**: one, two.",
        r"- **other**: `f(*a)` and \<b>.",
        "- **last**: three.",
        "",
        "Raises `E`.",
        "",
        "    code: [x]",
    ]


def test_the_check_of_a_site_names_what_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "b.html").write_text('<h1 id="here">B</h1><a href="../a.html?q=1#top">a</a>')
    fine = (
        '<a id=top href="sub/b.html#here">b</a> <a href="https://example.org">e</a> <img src="data:image/png;base64,">'
    )
    (tmp_path / "a.html").write_text(fine)
    assert check_site.faults(tmp_path) == []
    wrong = '<a href="c.html"><a href="sub/b.html#there"><a href="/sub/b.html"><a href="../x.html">'
    styled = '<script src="//cdn/x.js"></script><style>@import "https://x/y.css";</style><p style="background: url(http://x/z.png)">'
    (tmp_path / "a.html").write_text(fine + wrong + styled)
    (tmp_path / "c.css").write_text("p { src: url('https://fonts/f.woff') }")
    said = "\n".join(check_site.faults(tmp_path))
    for fault in (
        "c.html does not exist",
        "sub/b.html#there names no place",
        "/sub/b.html is not relative",
        "../x.html leaves",
    ):
        assert f"a.html: {fault}" in said
    for address in ("//cdn/x.js", "https://x/y.css", "http://x/z.png"):
        assert f"a.html: {address} is fetched from elsewhere" in said
    assert "c.css: https://fonts/f.woff is fetched from elsewhere" in said
    assert len(said.splitlines()) == 8
