"""One thread per process: tests run beside each other, and threads that wait for one another cost more than they give.

`pytest --oracles FILE` runs only the tests that use the fixture `oracle`, and writes what they compared to what error.
"""

import csv
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported, and for the processes that tests start
# what was proven on this machine must not decide what is tested
os.environ["MIXERZOO_CACHE"] = tempfile.mkdtemp(prefix="mixerzoo-tests-")
# tests that run beside each other must not wait for the machine
os.environ["MIXERZOO_LOCKS"] = tempfile.mkdtemp(prefix="mixerzoo-locks-")

# A package that brings a measure in one file; the other things that it announces do not load.
PLUGIN = """
from typing import Literal

from mixerzoo.benchmarks.measures import Measure
from mixerzoo.models import count_parameters


class WeightCount(Measure):
    measure: Literal["weight_count"] = "weight_count"
    times: int = 1

    def run(self, config, *, seed, device, folder, progress):
        progress(0.5, "counting")
        return {"weights": self.times * count_parameters(config)["total"], "counted": True, "how": "one by one"}
"""
TAKEN = """
from typing import Literal

from mixerzoo.benchmarks.measures import Measure


class Impostor(Measure):
    measure: Literal["speed"] = "speed"
"""
ENTRY_POINTS = """[mixerzoo.measures]
weight_count = weight_count_plugin:WeightCount
broken_import = no_such_module:Anything
taken_name = taken_name_plugin:Impostor
no_measure = weight_count_plugin:count_parameters
"""
_compared: list[dict[str, object]] = []


def pytest_addoption(parser):
    parser.addoption(
        "--oracles", metavar="FILE", help="run only the comparisons with other code, and write them to this CSV file"
    )


def pytest_collection_modifyitems(config, items):
    if config.getoption("--oracles") is None:
        return
    others = [item for item in items if "oracle" not in item.fixturenames]
    config.hook.pytest_deselected(items=others)
    items[:] = [item for item in items if "oracle" in item.fixturenames]


def pytest_runtest_logreport(report):
    """Runs where results are gathered, so that parallel workers need not share a file."""
    if report.passed and report.when == "call":
        _compared.extend(value for name, value in report.user_properties if name == "oracle")


def pytest_sessionfinish(session):
    path = session.config.getoption("--oracles")
    if path is None or hasattr(session.config, "workerinput"):
        return
    worst: dict[tuple[str, str], dict[str, object]] = {}
    for row in _compared:
        key = (str(row["mixer"]), str(row["source"]))
        if key not in worst or float(row["error"]) > float(worst[key]["error"]):
            worst[key] = row
    with open(path, "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["mixer", "source", "error", "limit"])
        writer.writerows(
            [mixer, source, f"{row['error']:.0e}", f"{row['limit']:.0e}"]
            for (mixer, source), row in sorted(worst.items())
        )


@pytest.fixture
def measure_plugin(tmp_path: Path) -> dict[str, str]:
    """The environment of a process that has a plug-in installed, whose measure `weight_count` is `times` (a whole
    number, by default 1) the number of parameters as `weights`, without taking any time."""
    site = tmp_path / "site"
    info = site / "weight_count-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "weight_count_plugin.py").write_text(PLUGIN)
    (site / "taken_name_plugin.py").write_text(TAKEN)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: weight-count\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(ENTRY_POINTS)
    return {**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Debian's Chromium without a window, by selenium; what it logged and fetched is kept."""
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
    driven.set_script_timeout(120)
    yield driven
    driven.quit()
