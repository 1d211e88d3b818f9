"""The page in a real browser: the charts draw, the numbers are on it, and nothing is fetched."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.chromium


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator:
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("Debian's chromium and chromium-driver are not installed")
    selenium = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    options = selenium.ChromeOptions()
    options.binary_location = chromium
    for argument in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--no-first-run",
        f"--user-data-dir={tmp_path_factory.mktemp('chromium')}",
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driven = selenium.Chrome(options=options, service=selenium.ChromeService(driver))
    yield driven
    driven.quit()


@pytest.fixture(scope="module")
def opened(browser, made_up_report: Path):
    from selenium.webdriver.support.wait import WebDriverWait

    browser.get(made_up_report.as_uri())
    drawn = "return document.querySelectorAll('.chart svg.marks').length"
    WebDriverWait(browser, 120).until(lambda b: b.execute_script(drawn) == 13)
    WebDriverWait(browser, 30).until(lambda b: not b.execute_script("return document.querySelector('.chart > img')"))
    return browser


def texts(browser, selector: str) -> list[str]:
    return browser.execute_script(
        "return [...document.querySelectorAll(arguments[0])].map(e => e.textContent)", selector
    )


def test_figures_on_the_page_are_those_of_the_run(opened, made_up_run: Path) -> None:
    shares = []
    for line in map(json.loads, (made_up_run / "results.jsonl").read_text(encoding="utf-8").splitlines()):
        if (line["layout"], line["measure"], line["parameters"].get("lengths")) == ("swa + fwpkm", "recall", [8192]):
            plain = {"load": 64, "passes": 1, "memory": "fresh"}
            (hits,) = [a["hits"] for a in line["metrics"]["answers"] if plain.items() <= a.items()]
            text = "".join(hits)
            shares.append(text.count("1") / (text.count("1") + text.count("0")))
    shown = f"{100 * sum(shares) / len(shares):.1f} %"
    assert len(shares) == 3 and texts(opened, ".verdict > div:nth-child(2) dd")[0].strip().count(shown) == 1
    cells = texts(opened, "#table-recall-by-length tbody tr:nth-child(2) > *")
    assert cells[0] == "swa + fwpkm" and cells[-1].startswith(shown)
    labels = texts(opened, "#figure-recall svg text")
    assert f"swa + fwpkm\u2002{shown}" in labels and "8,192" in labels and "Needles recalled" in labels


def test_the_untaught_come_first_and_have_no_curve(opened) -> None:
    notes = texts(opened, "#verdict ~ .note p")
    assert notes[0].startswith("swa was not taught: 0 of 3 seeds reached 95 %") and len(notes) == 3
    assert texts(opened, "#table-recall-by-length tbody tr:first-child td")[1:] == ["not taught"] * 6
    labels = texts(opened, "#figure-recall svg text")
    assert not [t for t in labels if t.startswith("swa\u2002")] and "softmax\u2002out of memory at 8,192" in labels


def test_charts_name_hostile_layouts_without_running_them(opened) -> None:
    assert any(t.startswith('</script><script>alert("label")') for t in texts(opened, "#figure-recall svg text"))
    assert len(texts(opened, "script")) == 16


def test_the_console_is_silent_and_nothing_is_fetched(opened) -> None:
    assert opened.get_log("browser") == []
    messages = [json.loads(entry["message"])["message"] for entry in opened.get_log("performance")]
    requests = [m["params"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    # the browser's own start page asks for things too
    urls = [r["request"]["url"] for r in requests if r["documentURL"].startswith("file:")]
    assert urls and all(re.match(r"(file|data|blob):", url) for url in urls)


@pytest.mark.parametrize("width", [400, 1200])
def test_the_body_never_scrolls_sideways(opened, width: int) -> None:
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    opened.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    inner, scroll = opened.execute_script("return [innerWidth, document.documentElement.scrollWidth]")
    assert inner == width and scroll <= width


def lines_of(browser, figure: str) -> list[str]:
    """The opacities of the layouts' lines in a chart, once it has taken over the selection, least first."""
    browser.execute_async_script(
        "const done = arguments[0]; Promise.all([...views.values()].map(v => v.runAsync())).then(() => done())"
    )
    lines = f"[...document.querySelectorAll('#figure-{figure} svg .mark-line path[opacity]')]"
    return sorted(browser.execute_script(f"return {lines}.map(line => line.getAttribute('opacity'))"))


def test_a_click_on_a_name_singles_out_its_curve_in_every_chart(opened) -> None:
    names = "[...document.querySelectorAll('#figure-recall svg text')]"
    label = f"{names}.find(e => e.textContent.startsWith('softmax'))"
    click = f"{label}.dispatchEvent(new MouseEvent('click', {{bubbles: true, view: window}}))"
    assert set(lines_of(opened, "recall")) == {"1"}
    opened.execute_script(click)
    assert lines_of(opened, "recall") == ["0.12"] * 4 + ["1"]
    assert lines_of(opened, "speed") == ["0.12"] * 24 + ["1"] * 4
    opened.execute_script(click)
    assert set(lines_of(opened, "recall")) == set(lines_of(opened, "speed")) == {"1"}
