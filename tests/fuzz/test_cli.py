"""Command lines of every command, with options and arguments drawn from what a careless or a hostile hand types.

Nothing heavy runs: `run` is given --dry-run, `train`, `check` and `doctor` no place that there is; all paths lie in a
folder of the test.
"""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from mixerzoo.benchmarks.cli import build_app
from mixerzoo.models import LanguageModel, ModelConfig

from .fuzzing import TEXTS, fuzz
from .test_runs import PUBLISHED, mixerzoo

HEAVY = {"run": ["--dry-run", "--no-estimate"], "train": ["--device", "cuda:99"], "check": ["--device", "cuda:99"]}
HEAVY["doctor"] = HEAVY["inspect"] = HEAVY["train"]
COMMANDS: dict[str, Any] = dict(typer.main.get_command(build_app()).commands)  # type: ignore[attr-defined]
WORDS = [
    *TEXTS, "0", "1", "-5", "1e9", "9" * 20, "cpu", "quick", "smoke", "identity", "fwpkm", "*", "a,b", "5%", "markdown",
    "json", "csv", "latex", "bibtex", "parquet", "local", "ray", "slurm", "key=value", "full", "toy",
]  # fmt: skip
TRAIN = "model: {layout: identity}\ntask: {task: needle, n_needles: 2, n_keys: 8, n_values: 8}\n"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A folder with files of every kind, which is the working directory; its names."""
    folder = tmp_path_factory.mktemp("cli")
    shutil.copytree(
        PUBLISHED / "decode-speed", folder / "run", ignore=shutil.ignore_patterns("figures", "tables", "report*")
    )
    LanguageModel(ModelConfig("identity", d_model=8, n_layers=1, vocab_size=256)).save(folder / "model")
    (folder / "suite.yaml").write_text("name: a\nlayouts: {a: identity}\nmeasures: [{measure: speed, lengths: [8]}]\n")
    (folder / "train.yaml").write_text(TRAIN)
    (folder / "bad.yaml").write_text("a: [" * 1000)
    (folder / "text").write_text("hello")
    (folder / "bytes").write_bytes(bytes(range(256)))
    (folder / "empty").mkdir()
    before, cache = Path.cwd(), os.environ.get("XDG_CACHE_HOME")
    os.chdir(folder)
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    others = ["run/suite.yaml", "run/results.jsonl", "nowhere", "text/below"]
    yield [*sorted(p.name for p in folder.iterdir()), *["run"] * 6, *others]
    os.chdir(before)
    os.environ.pop("XDG_CACHE_HOME") if cache is None else os.environ.update(XDG_CACHE_HOME=cache)


def drawn(names: list[str], rng: random.Random) -> list[str]:
    """A command line. Of an option that opens a browser or follows a run until it ends nothing is drawn."""
    name = rng.choice(sorted(set(COMMANDS) - {"suites"}))  # which takes nothing, but seconds
    words = [name]
    options = [p for p in COMMANDS[name].params if p.param_type_name == "option" and "--help" not in p.opts]
    options = [p for p in options if not {"--open", "--follow", "--docs"} & set(p.opts)]
    for option in rng.sample(options, min(len(options), rng.choice([0, 0, 1, 2]))):
        words.append(rng.choice([o for o in option.opts if o.startswith("--")]))
        if not option.is_flag:
            words.append(value(names, rng))
    arguments = sum(p.param_type_name == "argument" for p in COMMANDS[name].params)
    arguments += rng.choice([0, 0, 0, 1, -1]) + (name == "compare")
    words += [value(names, rng) for _ in range(arguments)]
    return [*words, *HEAVY.get(name, [])]


def value(names: list[str], rng: random.Random) -> str:
    words = names if rng.random() < 0.6 else WORDS
    # paths out of the folder are what must not be written to
    return rng.choice([word for word in words if not word.startswith(("..", "/"))])


@fuzz(70)
@given(st.randoms(use_true_random=False))
def test_a_command_line_ends_as_documented(place: list[str], rng: random.Random) -> None:
    mixerzoo(*drawn(place, rng))
