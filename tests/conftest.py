"""One thread per process: tests run beside each other, and threads that wait for one another cost more than they give.

`pytest --oracles FILE` runs only the tests that use the fixture `oracle`, and writes what they compared to what error.
"""

import csv
import os
import tempfile

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported, and for the processes that tests start
# what was proven on this machine must not decide what is tested
os.environ["MIXERZOO_CACHE"] = tempfile.mkdtemp(prefix="mixerzoo-tests-")

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
