"""The page in a real browser: what it shows, that a choice reaches every chart and table, and what it asks for."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from mixerzoo.reports import write_report

from .conftest import HOSTILE

pytestmark = pytest.mark.chromium

ROOT = Path(__file__).parents[2]
WIDE, NARROW = 1300, 400
PUBLISHED = ["decode-speed", "zoo-speed"]
Browser = Any  # selenium's driver; selenium need not be installed


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Published runs with a report of now."""
    folders = {name: tmp_path_factory.mktemp("published") / name for name in PUBLISHED}
    for name, folder in folders.items():
        shutil.copytree(ROOT / "reports" / "published" / name, folder)
    return {name: write_report(folder) for name, folder in folders.items()}


@pytest.fixture(scope="module")
def loaded(browser: Browser, made_up_report: Path) -> Browser:
    """The page of the made-up run with all of its charts drawn."""
    return load(browser, made_up_report)


@pytest.fixture
def opened(loaded: Browser) -> Browser:
    """The page of the made-up run, nothing chosen, wide and light."""
    look(loaded)
    loaded.execute_script("document.querySelector('#bar button[type=reset]').click()")
    return loaded


def load(browser: Browser, page: Path, address: str = "") -> Browser:
    look(browser)
    browser.get("about:blank")  # or an address that differs in its fragment alone would not load anything
    browser.get(f"{page.as_uri()}{address}")
    browser.execute_async_script(
        "const done = arguments[0], charts = all('.chart').filter(chart => !views.has(chart));"
        "for (const chart of charts) near.unobserve(chart);"
        "Promise.all(charts.map(chart => chart.matches(':has(.vega-embed)') ? 0 : embed(chart))).then(() => done())"
    )
    return browser


def look(browser: Browser, width: int = WIDE, scheme: str = "light") -> None:
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    wanted = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": wanted})


def texts(browser: Browser, selector: str) -> list[str]:
    return browser.execute_script("return all(arguments[0]).map(e => e.textContent)", selector)


def seen(browser: Browser, selector: str) -> list[str]:
    """The texts of what is not hidden."""
    return browser.execute_script("return all(arguments[0]).filter(e => e.checkVisibility()).map(e => e.id)", selector)


def drawn(browser: Browser) -> None:
    """Wait until every chart shows the state of the page."""
    browser.execute_async_script(
        "const done = arguments[0]; Promise.all([...views.values()].map(view => view.runAsync())).then(() => done())"
    )


def opacities(browser: Browser, layout: str) -> dict[str, list[set[float]]]:
    """Of each figure the opacities of the marks of one layout, and those of the others."""
    drawn(browser)
    found = browser.execute_script(
        """
        return Object.fromEntries(all(".chart").map((chart) => {
          const sets = [new Set(), new Set()];
          for (const mark of chart.querySelectorAll(".mark-line path, .mark-symbol path, .mark-rule line")) {
            const datum = mark.__data__?.datum, name = datum?.full ?? datum?.layout;
            if (layouts.has(name) && mark.closest(".role-mark")) {
              sets[name === arguments[0] ? 0 : 1].add(Number(mark.getAttribute("opacity") ?? 1));
            }
          }
          return [chart.closest("figure").id, sets.map((s) => [...s])];
        }));
        """,
        layout,
    )
    return {figure: [set(own) for own in sets] for figure, sets in found.items()}


def click(browser: Browser, script: str) -> None:
    browser.execute_script(f"({script}).dispatchEvent(new MouseEvent('click', {{bubbles: true, view: window}}))")


ROW = "all('#table-recall-by-length tbody th').find(head => head.textContent === 'softmax')"
MARK = "all('#figure-recall svg text').find(text => text.textContent.startsWith('softmax'))"
ENTRY = "all('#figure-speed .role-legend-label text').find(text => text.textContent === 'softmax')"
CHIP = "document.querySelector('.chip[data-layout=softmax]')"
SCORE = "all('#table-scoreboard tbody th').find(head => head.textContent === 'softmax')"


# --- What it says ---


def test_numbers_on_the_page_are_those_of_the_run(opened: Browser, made_up_run: Path) -> None:
    shares = []
    for line in map(json.loads, (made_up_run / "results.jsonl").read_text(encoding="utf-8").splitlines()):
        if (line["layout"], line["measure"], line["parameters"].get("lengths")) == ("swa + fwpkm", "recall", [8192]):
            plain = {"load": 64, "passes": 1, "memory": "fresh"}
            (hits,) = [a["hits"] for a in line["metrics"]["answers"] if plain.items() <= a.items()]
            text = "".join(hits)
            shares.append(text.count("1") / (text.count("1") + text.count("0")))
    shown = f"{100 * sum(shares) / len(shares):.1f} %"
    assert len(shares) == 3 and texts(opened, ".verdict > div:nth-child(2) dd")[0].count(shown) == 1
    cells = texts(opened, "#table-recall-by-length tbody tr:nth-child(2) > *")
    assert cells[0] == "swa + fwpkm" and cells[-1].startswith(shown)
    heads = texts(opened, "#table-scoreboard thead th")
    column = next(i for i, head in enumerate(heads) if "64 needles at 8,192 tokens" in head)
    assert shown in texts(opened, "#table-scoreboard tbody tr:nth-child(2) > *")[column]
    labels = texts(opened, "#figure-recall svg text")
    assert f"swa + fwpkm\u2002{shown}" in labels and "8,192" in labels and "Needles recalled" in labels


def test_the_untaught_come_first_and_have_no_curve(opened: Browser) -> None:
    notes = texts(opened, "#verdict ~ .note p")
    assert notes[0].startswith("swa was not taught: 0 of 3 seeds reached 95 %") and len(notes) == 3
    assert texts(opened, "#table-recall-by-length tbody tr:first-child td")[1:] == ["not taught"] * 6
    labels = texts(opened, "#figure-recall svg text")
    assert not [t for t in labels if t.startswith("swa\u2002")] and "softmax\u2002out of memory at 8,192" in labels


def test_every_answer_leads_to_what_shows_it(opened: Browser) -> None:
    links = opened.execute_script("return all('.verdict a').map(a => a.getAttribute('href'))")
    assert len([link for link in links if link.startswith(("#figure-", "#table-"))]) >= 8
    assert opened.execute_script("return arguments[0].every(link => document.querySelector(link))", links)


def test_hostile_names_stay_text(opened: Browser) -> None:
    assert any(t.startswith('</script><script>alert("label")') for t in texts(opened, "#figure-recall svg text"))
    scripts = opened.execute_script("return [document.scripts.length, all('script[type=\"application/json\"]').length]")
    assert scripts[0] - scripts[1] == 2
    click(opened, f"all('.chip').find(chip => chip.dataset.layout === {json.dumps(HOSTILE)})")
    assert texts(opened, "#said") == [f"Highlighted: {HOSTILE}"]
    assert all(not own or min(own) > 0.12 for own, _ in opacities(opened, HOSTILE).values())
    assert len(opened.execute_script("return all('script')")) == scripts[0]


# --- One selection for all ---


@pytest.mark.parametrize("place", [ROW, MARK, ENTRY, CHIP, SCORE], ids=["row", "mark", "legend", "chip", "score"])
def test_a_click_on_a_layout_anywhere_highlights_it_everywhere(opened: Browser, place: str) -> None:
    click(opened, place)
    found = opacities(opened, "softmax")
    assert len(found) > 15
    for figure, (own, others) in found.items():
        assert not own or max(own) > 0.5, figure
        assert not others or max(others) <= 0.12, figure
    assert sum(bool(own) and bool(others) for own, others in found.values()) >= 8
    rows = opened.execute_script("return all('tr.chosen').map(row => rows.get(row))")
    assert len(rows) > 10 and set(rows) == {"softmax"}
    pressed = opened.execute_script("return all('.chip[aria-pressed=true]').map(chip => chip.dataset.layout)")
    assert pressed == ["softmax"] and opened.execute_script("return location.hash").endswith("?layout=softmax")
    click(opened, place)
    assert not any(0.12 in own | others for own, others in opacities(opened, "softmax").values())
    assert "?" not in opened.execute_script("return location.hash")


def test_filters_leave_a_family_a_measure_or_lengths_and_reset_brings_all_back(opened: Browser) -> None:
    def pick(name: str, value: object) -> None:
        opened.execute_script(
            "const s = document.getElementById(`filter-${arguments[0]}`); s.value = arguments[1];"
            "s.dispatchEvent(new Event('change'))",
            name,
            str(value),
        )

    def rows() -> list[str]:
        script = "return all('#table-scoreboard tbody tr').filter(row => !row.hidden).map(row => rows.get(row))"
        return opened.execute_script(script)

    everything = rows()
    pick("family", "softmax")
    assert "softmax" in rows() and "linear" not in rows() and len(rows()) < len(everything)
    found = opacities(opened, "linear")
    assert {0.0} in [own for own, _ in found.values()] and all(own <= {0.0} for own, _ in found.values())
    pick("section", "speed")
    kept = ["verdict", "scoreboard", "fairness", "speed", "failures", "repeat", "method"]
    assert seen(opened, "main section > h2") == kept
    pick("longest", 1024)
    drawn(opened)
    lengths = "all('#figure-speed .mark-symbol path').map(mark => mark.__data__?.datum?.length).filter(n => n)"
    assert max(opened.execute_script(f"return {lengths}")) == 1024
    heads = "return all('#table-speed thead th').filter(head => !head.hidden).map(head => head.textContent)"
    assert opened.execute_script(heads) == ["Layout, tokens", "256", "512", "1,024"]
    opened.execute_script("document.querySelector('#bar button[type=reset]').click()")
    assert rows() == everything and len(seen(opened, "main section > h2")) > 8
    drawn(opened)
    assert max(opened.execute_script(f"return {lengths}")) == 8192


def test_an_address_brings_its_view(browser: Browser, loaded: Browser, made_up_report: Path) -> None:
    browser.execute_script("change({chosen: ['softmax', 'swa'], section: 'speed', longest: 2048})")
    address = browser.execute_script("return location.hash")
    browser.execute_script("change({chosen: [], section: '', longest: 0}); location.hash = arguments[0]", address)
    from selenium.webdriver.support.wait import WebDriverWait

    shown = "return [state.chosen, state.section, state.longest, document.getElementById('filter-section').value]"
    wanted = [["softmax", "swa"], "speed", 2048, "speed"]
    WebDriverWait(browser, 20).until(lambda b: b.execute_script(shown) == wanted)
    browser.execute_script("location.hash = '#?layout=nobody&section=nothing&longest=7&family=%3Cb%3E'")
    WebDriverWait(browser, 20).until(lambda b: b.execute_script(shown) == [[], "", 0, ""])


def test_the_scoreboard_is_sorted_from_the_keyboard(opened: Browser) -> None:
    from selenium.webdriver.common.keys import Keys

    heads = texts(opened, "#table-scoreboard thead th")
    column = next(i for i, head in enumerate(heads) if "64 needles at 8,192 tokens" in head)
    button = opened.execute_script("return all('#table-scoreboard thead button')[arguments[0]]", column)

    def state() -> tuple[str, list[str]]:
        sort = opened.execute_script("return arguments[0].parentElement.ariaSort", button)
        cells = texts(opened, f"#table-scoreboard tbody td:nth-child({column + 1})")
        return sort, cells

    def numbers(cells: list[str]) -> list[float]:
        return [float(found[1]) for cell in cells if (found := re.search(r"([\d.]+) %", cell))]

    button.send_keys(Keys.ENTER)
    sort, cells = state()
    assert sort == "descending" and numbers(cells) == sorted(numbers(cells), reverse=True)
    assert len(numbers(cells)) >= 3 and not numbers(cells[-2:])  # those without a number come last
    button.send_keys(Keys.SPACE)
    sort, cells = state()
    assert sort == "ascending" and numbers(cells) == sorted(numbers(cells)) and not numbers(cells[-2:])


def test_charts_follow_the_colours_of_the_page(opened: Browser) -> None:
    background = "return getComputedStyle(document.querySelector('#figure-recall svg.marks')).backgroundColor"
    drawn(opened)
    assert opened.execute_script(background) == "rgb(255, 255, 255)"
    look(opened, scheme="dark")
    opened.execute_async_script("const done = arguments[0]; requestAnimationFrame(() => requestAnimationFrame(done))")
    drawn(opened)
    assert opened.execute_script(background) == "rgb(29, 33, 38)"


# --- How it behaves ---


def faults(browser: Browser) -> list[str]:
    """What axe-core calls serious or critical."""
    script = next(iter(sorted(ROOT.glob("build/axe-*/package/axe.min.js"))), None)
    if script is None:
        pytest.skip("axe-core is not there; `make browser` fetches it with npm")
    browser.execute_script(script.read_text(encoding="utf-8"))
    # the later rows of long tables are like the first
    return browser.execute_async_script(
        "const done = arguments[0];"
        "const serious = ({violations}) => violations.filter(v => /serious|critical/.test(v.impact));"
        "axe.run({exclude: ['.tall tr:nth-child(n+9)']}, {resultTypes: ['violations']})"
        ".then(found => done(serious(found).map(v => `${v.id}: ${v.nodes[0].html.slice(0, 200)}`)))"
    )


@pytest.mark.parametrize(("width", "scheme"), [(WIDE, "dark"), (NARROW, "light")])
def test_axe_finds_no_serious_fault(opened: Browser, width: int, scheme: str) -> None:
    look(opened, width, scheme)
    click(opened, CHIP)
    assert faults(opened) == []


@pytest.mark.parametrize("width", [NARROW, WIDE])
def test_the_body_never_scrolls_sideways(opened: Browser, width: int) -> None:
    look(opened, width)
    inner, scroll = opened.execute_script("return [innerWidth, document.documentElement.scrollWidth]")
    assert inner == width and scroll <= width


def test_the_console_is_silent_and_nothing_is_fetched(opened: Browser) -> None:
    assert_quiet(opened)


def assert_quiet(browser: Browser) -> None:
    assert browser.get_log("browser") == []
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    requests = [m["params"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    # the browser's own start page asks for things too
    urls = [r["request"]["url"] for r in requests if r["documentURL"].startswith("file:")]
    assert urls and all(re.match(r"(file|data|blob):", url) for url in urls)


@pytest.mark.parametrize("name", PUBLISHED)
def test_pages_of_published_runs_hold_what_is_asked_of_every_page(
    browser: Browser, published: dict[str, Path], name: str
) -> None:
    assert published[name].stat().st_size < 6e6
    load(browser, published[name])
    assert_quiet(browser)
    for width, scheme in ((WIDE, "dark"), (NARROW, "light")):
        look(browser, width, scheme)
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width
        assert faults(browser) == []
    chip = "document.querySelector('.chip')"
    click(browser, chip)
    layout = browser.execute_script(f"return {chip}.dataset.layout")
    for own, others in opacities(browser, layout).values():
        assert all(opacity > 0.12 for opacity in own) and all(opacity <= 0.12 for opacity in others)
