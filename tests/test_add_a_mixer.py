"""docs/add-a-mixer.md is true: its files are written and its commands run, in a package that knows mixerzoo only."""

from __future__ import annotations

import ast
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from mixerzoo.benchmarks import cli
from mixerzoo.mixers import mixer_card, registry

PAGE = (Path(__file__).parents[1] / "docs" / "add-a-mixer.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"```\w+ file=(\S+)\n(.*?)```", PAGE, flags=re.DOTALL))
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", PAGE, flags=re.DOTALL) for line in block.splitlines()]
NOT_RUN = ("pip install -e .", "git add published")  # the test installs by hand; where it runs is no repository
QUICK = {"mixerzoo check gated_retention": " --only 1,2,3"}  # what test_contract.py does for every mixer of ours


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The package of the page, installed, and everything that its commands leave behind."""
    folder = tmp_path_factory.mktemp("my-mixers")
    write_package(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        patch.setenv("PYTHONPATH", str(folder))
        patch.setenv("COLUMNS", "200")
        patch.chdir(folder)
        patch.setattr(registry, "_mixers", dict(registry._mixers))
        registry.plugin_errors.cache_clear()
        yield folder
    registry.plugin_errors.cache_clear()
    for name in [name for name in sys.modules if name.split(".")[0] == "my_mixers"]:
        del sys.modules[name]


def write_package(folder: Path) -> None:
    for name, text in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(small(text) if name.endswith(".yaml") else text, encoding="utf-8")
    info = folder / "my_mixers-0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-mixers\nVersion: 0.1\n")
    section = re.search(r'\[project\.entry-points\."([^"]+)"\]\n(.*?)\n\n', FILES["pyproject.toml"], flags=re.DOTALL)
    assert section is not None
    (info / "entry_points.txt").write_text(f"[{section[1]}]\n{section[2]}\n".replace('"', ""))


def small(text: str) -> str:
    """The suite of the page with sizes that take seconds."""
    suite: dict[str, Any] = yaml.safe_load(text)
    suite["layouts"] = {name: suite["layouts"][name] for name in ("gated retention", "retention")}
    suite["seeds"] = [0]
    recall, speed = suite["measures"]
    del recall["sweep"]
    recall["training"] |= {"steps": 2, "batch": 2}
    recall |= {"lengths": [128], "loads": [8], "examples": 2}
    speed |= {"modes": ["forward"], "lengths": [32], "rounds": 3, "budget_seconds": 0}
    return yaml.safe_dump(suite, sort_keys=False)


def run(command: str, out: Callable[[], str]) -> str:
    """What the command printed; those of mixerzoo run in this process."""
    words = shlex.split(command + QUICK.get(command, ""))
    if words[0] != "mixerzoo":
        words = [sys.executable if words[0] == "python" else words[0], *words[1:]]
        done = subprocess.run(words, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout
    with pytest.raises(SystemExit) as end:
        cli.main(words[1:])
    printed = out()
    assert not end.value.code, printed
    return printed


def test_the_commands_of_the_page_run(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert set(NOT_RUN) <= set(COMMANDS)
    printed = {c: run(c, lambda: "".join(capsys.readouterr())) for c in COMMANDS if c not in NOT_RUN}
    assert mixer_card("gated_retention").arxiv == "2405.05254"
    assert "gate_temperature" in printed["mixerzoo show gated_retention"]
    assert printed["mixerzoo check gated_retention"].count("passed") == 3
    assert "1 passed" in printed["python -m pytest -q tests"]
    results = (folder / "published" / "gated-retention" / "results.jsonl").read_text()
    assert results.count('"status": "ok"') == len(results.splitlines()) > 0
    for run_folder in ("runs", "published"):
        page = (folder / run_folder / "gated-retention" / "report.html").read_text(encoding="utf-8")
        assert "gated retention" in page
    assert not (folder / "published" / "gated-retention" / "checkpoints").exists()


def test_a_mixer_of_the_recurrence_kind_is_one_short_file() -> None:
    lines = FILES["my_mixers/gated_retention.py"].splitlines()
    assert len(lines) <= 80 and max(map(len, lines)) <= 120
    classes = [node for node in ast.parse("\n".join(lines)).body if isinstance(node, ast.ClassDef)]
    assert [node.name for node in classes] == ["GatedRetention"]


def test_the_suite_of_the_page_is_one(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The whole of it, not the small one."""
    (folder / "whole.yaml").write_text(FILES["gated-retention.yaml"])
    printed = run("mixerzoo run whole.yaml --dry-run", lambda: "".join(capsys.readouterr()))
    assert "gated retention" in printed and "softmax" in printed
