"""Every number of README.md and docs/ that a published run gives is that run's; others are listed with a reason."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import yaml

ROOT = Path(__file__).parents[1]
BY_HAND = ROOT / "docs" / "numbers_by_hand.yaml"
SCANNED = yaml.safe_load(BY_HAND.read_text(encoding="utf-8"))
# What looks like a measurement: a decimal number, or one with the sign of per cent, a time, bytes or "times" behind it.
UNIT = r"\s?(%|(per cent|points?|times|[kM] tokens|tokens/s|[nµm]?s|seconds?|minutes?|min|hours?|[kMGT]?B|bytes)\b)"
MEASUREMENT = re.compile(rf"(?<![\w.,])(\d[\d,]*\.\d+|\d[\d,]*(?=(,? (and|to|or) \d[\d,]*|, \d[\d,]*)*{UNIT}))")


def load_builder() -> ModuleType:
    spec = importlib.util.spec_from_file_location("build_numbers", ROOT / "docs" / "build_numbers.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


builder = load_builder()
RECALL = 'recall("recall-capacity", "softmax", 64, 512)'


def marked(text: str, call: str = RECALL) -> str:
    return f"It finds <!-- = {call} -->{text}<!-- / --> %."


# --- The pages ---


@pytest.mark.parametrize("path", builder.pages(), ids=lambda path: path.name)
def test_pages_say_what_the_runs_say(path: Path) -> None:
    assert builder.parted(path.read_text(encoding="utf-8"), path.name) == []


def test_the_pages_have_numbers() -> None:
    counts = {path.name: path.read_text(encoding="utf-8").count("<!-- = ") for path in builder.pages()}
    assert counts["README.md"] >= 5 and counts["findings.md"] >= 30 and counts["fwpkm.md"] >= 30


def prose(page: str) -> str:
    """A page without what is made from runs, code, and where links lead."""
    page = re.sub(r"```.*?```", "", builder.MARKED.sub("", page), flags=re.DOTALL)
    return re.sub(r"`[^`]*`|\]\([^)]*\)|<!--.*?-->", "", page, flags=re.DOTALL)


def without_listed(page: str, listed: list[dict[str, str]]) -> tuple[str, list[str]]:
    """What is left of a page, in one line, without the sections and texts that are listed; those it does not have."""
    gone = []
    for heading in [entry["section"] for entry in listed if "section" in entry]:
        parts = re.split(rf"^## {re.escape(heading)}\n.*?(?=^## |\Z)", page, maxsplit=1, flags=re.DOTALL | re.MULTILINE)
        gone += [heading] if len(parts) == 1 else []
        page = "\n".join(parts)
    page = " ".join(page.split())
    for text in [entry["text"] for entry in listed if "text" in entry]:
        gone += [] if text in page else [text]
        page = page.replace(text, " ")
    return " ".join(page.split()), gone


@pytest.mark.parametrize("name", SCANNED)
def test_other_measurements_are_listed_with_a_reason(name: str) -> None:
    listed = SCANNED[name]
    assert all(entry.keys() in ({"section", "why"}, {"text", "why"}) for entry in listed)
    left, gone = without_listed(prose((ROOT / name).read_text(encoding="utf-8")), listed)
    assert gone == [], f"{BY_HAND.name} lists what {name} no longer says"
    around = [left[max(0, m.start() - 40) : m.end() + 20] for m in MEASUREMENT.finditer(left)]
    assert around == [], f"take these numbers of {name} from a run, or list them in {BY_HAND.name}"


def test_the_scan_sees_measurements() -> None:
    seen = MEASUREMENT.findall(
        "12 % of 3, 4 and 5 %; 0.38 of it, 20 to 30 ms, 1.5 GB, 2.86 M tokens, 16 times, 8,192 tokens, 3 seeds"
    )
    assert [match[0] for match in seen] == ["12", "3", "4", "5", "0.38", "20", "30", "1.5", "2.86", "16"]
    left = prose("`0.5` and [half](5.5.md) " + marked("99.9") + "\n```\n1.5\n```\n<!-- 2.5 --> and 3.5")
    assert [match[0] for match in MEASUREMENT.finditer(left)] == ["3.5"]


def test_the_scan_takes_away_what_is_listed_and_no_more() -> None:
    listed = [{"text": "a bar of 95 %"}, {"section": "Pilots"}, {"text": "9.9 of it"}, {"section": "Other"}]
    page = "To a bar\nof 95 % and 0.1\n## Pilots\nwith 0.2\n### More\nwith 0.3\n## Rest\nwith 0.4\n"
    assert without_listed(page, listed) == ("To and 0.1 ## Rest with 0.4", ["Other", "9.9 of it"])


# --- The markers ---


def test_a_number_that_has_parted_is_named_with_its_line() -> None:
    page = f"Softmax.\n\n{marked('100.0')}\n{marked('98.7')}\n"
    (found,) = builder.parted(page, "findings.md")
    assert found.startswith("findings.md:4: the page says '98.7', the run '100.0' by recall(")


def test_writing_changes_the_numbers_alone_and_only_once() -> None:
    page = f'A | {marked("")}\n<!-- = recall_table("quick", "taught") --><!-- / -->\nB\n'
    page = builder.written(page, "page.md")
    assert marked("100.0") in page and page.endswith("| TTT-Linear | 3 of 3 |\n<!-- / -->\nB\n")
    assert builder.written(page, "page.md") == page and builder.parted(page, "page.md") == []


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ('__import__("os")', "give one of recall,"),
        ("recall.__globals__", "give one of recall,"),
        ('recall("recall-capacity", print(), 64, 512)', "ValueError"),
        ('recall("../quick", "softmax", 64, 512)', "no published run"),
        ('recall("recall-capacity", "softmax", 64, 513)', "no such number"),
        ('recall("recall-capacity", "nobody", 64, 512)', "no such number"),
        ('recall("recall-capacity")', "TypeError"),
        ('number("recall-capacity", "softmax", "accuracy", colour=3)', "'colour'"),
        ('number("recall-capacity", "softmax", "accuracy")', "such numbers; narrow"),
        ('untaught("recall-memory")', "nothing to say"),
        ("recall(", "SyntaxError"),
    ],
)
def test_a_marker_that_says_nothing_is_named_with_its_line(call: str, message: str) -> None:
    with pytest.raises(builder.NumberError, match=rf"^page\.md:2: .*{re.escape(message)}"):
        builder.written(f"One\n{marked('', call)}", "page.md")


@pytest.mark.parametrize("page", ['1 <!-- = budget("quick") --> 2', "1 <!-- / --> 2", marked(marked("1"))])
def test_markers_must_pair(page: str) -> None:
    with pytest.raises(builder.NumberError, match="do not pair"):
        builder.written(page, "page.md")


@pytest.mark.parametrize("start", ["", "- ", "  "])
def test_a_marker_must_not_begin_a_line(start: str) -> None:
    with pytest.raises(builder.NumberError, match="begins a line"):
        builder.written(f"It finds\n{start}{marked('').removeprefix('It finds ')}", "page.md")


# --- What pages may ask for ---


@pytest.mark.parametrize(
    ("call", "text"),
    [
        ('recall("recall-capacity", "softmax", 64, [512, 8192], digits=0)', "100 and 12"),
        ('recall("recall-capacity", "*FwPKM", 512, 8192, to=True)', "97.1 to 98.7"),
        ('recall_seeds("recall-capacity", "sliding window + FwPKM", 256, 8192)', "99.6, 99.7 and 99.9"),
        ('taught("recall-capacity", "gated DeltaNet")', "2 of 3"),
        ('solve("recall-capacity", "linear attention")', "> 2.86 M"),
        ('number("extrapolation-mini", "softmax", "accuracy", part="count", length=131072)', "192"),
        ('outcome("decode-speed", "Titans", kind="decoder")', "not met"),
        ('bar("decode-speed", "Titans", kind="decoder")', "0.5"),
        ('bars_without("zoo-speed", "attention", 4096, 32768)', "23"),
    ],
)
def test_functions_of_pages(call: str, text: str) -> None:
    assert builder.evaluate(call) == text
