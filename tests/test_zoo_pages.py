"""The pages of the zoo are those that the cards give, and nobody is missing from them."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd
import pytest
from mixerzoo.mixers import mixer_card

ROOT = Path(__file__).parents[1]
ZOO = ROOT / "docs" / "zoo"


def load_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("build_zoo", ROOT / "docs" / "build_zoo.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module


build_zoo = load_script()
NAMES = build_zoo.our_mixers()
ORACLES = pd.read_csv(ZOO / "oracles.csv")
STATES = pd.read_csv(ZOO / "state_bytes.csv", dtype={"most": "Int64"}).set_index("mixer")


def test_pages_are_those_that_the_cards_give() -> None:
    expected = build_zoo.pages()
    assert {path.name for path in ZOO.glob("*.md")} == set(expected), "run `make zoo`"
    different = [name for name, text in expected.items() if (ZOO / name).read_text(encoding="utf-8") != text]
    assert different == [], "run `make zoo`"


def test_every_mixer_stands_on_one_page() -> None:
    texts = [path.read_text(encoding="utf-8") for path in ZOO.glob("*.md") if path.name != "README.md"]
    headings = [heading for text in texts for heading in re.findall(r"^## (\S+)$", text, flags=re.MULTILINE)]
    assert sorted(headings) == NAMES


def test_every_figure_shows_every_mixer_that_holds_anything() -> None:
    for family, own in build_zoo.by_family().items():
        svg = (ZOO / f"{build_zoo.stem(family)}.svg").read_text(encoding="utf-8")
        holding = [one.card.name for one in own if any(size.value for size in one.states.values())]
        assert [name for name in holding if f">{name}<" not in svg] == [], "run `make zoo`"


def test_every_mixer_is_compared_with_other_code_or_says_why_not() -> None:
    compared = set(ORACLES["mixer"])
    assert sorted({*NAMES} - compared) == sorted(build_zoo.NOT_COMPARED)
    assert (ORACLES["error"] <= ORACLES["limit"]).all()


@pytest.mark.parametrize("name", NAMES)
def test_stored_states_are_what_is_measured(name: str) -> None:
    """At the least length; the others are measured by `make zoo`, and the growth law ties them together."""
    measured = build_zoo.measure_states(name, build_zoo.MEASURED[:1])
    stored = STATES.loc[name]
    found = [stored[column] if pd.notna(stored[column]) else None for column in ("parameters", "most", "256")]
    assert found == [measured["parameters"], measured["most"], measured["256"]], "run `make zoo`"


def states(growth: str, most: int | None, *sizes: int) -> Any:
    card = dataclasses.replace(mixer_card("identity"), state_growth=growth)
    row = {"most": most, **dict(zip(map(str, build_zoo.MEASURED), sizes))}
    found = build_zoo.state_bytes(card, row)
    return [str(found[tokens]) for tokens in build_zoo.SHOWN]


def test_growth_laws_go_on() -> None:
    assert states("constant", None, 8, 8, 8, 8) == ["8 B", "8 B", "8 B"]
    assert states("linear", None, 30, 110, 210, 410) == ["110 B", "3.21 kB", "12.8 kB"]
    assert states("logarithmic", None, 3, 5, 6, 7) == ["5 B", "≤ 10 B", "≤ 12 B"]
    assert states("bounded", 90, 30, 40, 50, 60) == ["40 B", "≤ 90 B", "≤ 90 B"]
    for growth, most in (("constant", None), ("linear", None), ("bounded", 5)):
        with pytest.raises(ValueError, match=f"identity says {growth}, but its state holds"):
            states(growth, most, 1, 2, 3, 9)


def test_links_lead_somewhere() -> None:
    broken = []
    for page in [*(ROOT / "docs").rglob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]:
        for target, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)(#[^)\s]+)?\)", page.read_text(encoding="utf-8")):
            path = page.parent / target if target else page
            if not path.exists() or (anchor and anchor[1:] not in anchors(path)):
                broken.append(f"{page.relative_to(ROOT)}: {target}{anchor}")
    assert broken == []


def anchors(path: Path) -> set[str]:
    """What GitHub calls the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def speed_line(**changes: Any) -> str:
    row = {"median": 0.2, "q1": 0.1, "q3": 0.3, "tokens": 4096, "peak_bytes": 5_000_000, "backend": "mixer"}
    ratio = {"kind": "attention", "mode": "forward", "tokens": 4096, "value": 1.25, "low": 1.0, "high": 1.5}
    metrics = {
        "mixer": "gla",
        "rows": [
            {**row, "mode": "forward"},
            {**row, "mode": "forward", "backend": "attention"},
            {**row, "mode": "decode", "median": 0.001},
        ],
        "ratios": [{**ratio, "bar": 1.5, "met": True}, {"kind": "flat", "mode": "decode", "tokens": None}],
    }
    line = {"case": "1", "layout": "gla", "measure": "mixer_speed", "parameters": {}, "seed": 0, "status": "ok"}
    return json.dumps({**line, "seconds": 1.0, "metrics": metrics, **changes}) + "\n"


def test_speeds_of_a_published_run_are_read(tmp_path: Path) -> None:
    assert build_zoo.speed_rows(tmp_path) == {} and build_zoo.speed_source(tmp_path) == ""
    failed = speed_line(case="2", layout="slstm", status="timeout", metrics=None, error="after 600 s")
    (tmp_path / "results.jsonl").write_text(speed_line() + failed)
    found = build_zoo.speed_rows(tmp_path)
    assert [row["mode"] for row in found["gla"]] == ["forward", "a token decoded"]
    assert found["gla"][0] == {
        "mode": "forward",
        "tokens": "4,096",
        "time": "200 ms [100 ms, 300 ms]",
        "ratio": "1.25 times [1, 1.5]",
        "bar": "1.5: met",
        "peak": "5.00 MB",
    }
    assert (found["gla"][1]["ratio"], found["gla"][1]["bar"]) == ("–", "–")
    assert found["slstm"][0]["time"] == "timeout: after 600 s"


def test_the_machine_of_a_published_run_is_named(tmp_path: Path) -> None:
    (tmp_path / "results.jsonl").write_text(speed_line())
    environment: dict[str, Any] = {"machine": {"cpu": "A Processor"}, "threads": 2, "device": "cpu", "gpus": []}
    environment |= {"packages": {"torch": "2.13.0"}, "source": {"commit": "0123456789abcdef"}}
    (tmp_path / "environment.json").write_text(json.dumps(environment))
    assert build_zoo.speed_source(tmp_path) == "A Processor, 2 threads, torch 2.13.0, commit 0123456789ab"
