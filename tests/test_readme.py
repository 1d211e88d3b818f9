"""The README is true: its table is made from the cards, its code runs, its links lead somewhere."""

import re
from pathlib import Path

import pytest
from mixerzoo.benchmarks.cli_mixers import families_markdown
from mixerzoo.mixers import list_mixers, mixer_class, registry

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def test_zoo_table_is_made_from_the_cards():
    ours = [name for name in list_mixers() if mixer_class(name).__module__.startswith("mixerzoo.")]
    assert families_markdown(ours) in README, "paste the output of `mixerzoo list --markdown` into README.md"


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_code_runs(block, capsys, monkeypatch):
    monkeypatch.setattr(registry, "_mixers", dict(registry._mixers))  # what a block registers is gone after it
    exec(compile(block, "README.md", "exec"), {"__name__": "readme"})
    assert capsys.readouterr().out.strip()


def test_there_is_code_to_run():
    assert len(BLOCKS) >= 3
    first = [line for line in BLOCKS[0].splitlines() if line.strip()]
    assert len(first) <= 12, "using one mixer takes about ten lines"


def test_local_links_exist():
    links = re.findall(r"\]\(([^)#]+)\)", README)
    local = [link for link in links if not link.startswith("http")]
    assert local
    assert [link for link in local if not (ROOT / link).exists()] == []
