"""Installed packages announce mixers under an entry point; a broken one is named and takes nothing down."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

GOOD = """
from dataclasses import dataclass

import torch
from mixerzoo.mixers import Mixer, MixerCard, MixerState, option
from torch import Tensor, nn


@dataclass(frozen=True, eq=False)
class RunningSumState(MixerState):
    total: Tensor


class RunningSum(Mixer):
    card = MixerCard(
        name="running_sum", family="sum", summary="A gated running sum.", paper="none", arxiv=None, year=2026,
        state_growth="constant",
    )

    scale: float = option("of the sum", default=0.1)

    def build(self) -> None:
        self.gate, self.out = nn.Linear(self.d_model, self.d_model), nn.Linear(self.d_model, self.d_model)

    def mix(self, x, state, return_state):
        before = 0 if state is None else state.total[:, None]
        total = before + torch.cumsum(self.scale * x * self.gate(x).sigmoid(), dim=1)
        after = self.next_state(RunningSumState, x, state, total=total[:, -1].clone())
        return self.out(total.to(x.dtype)), after
"""
ENTRY_POINTS = """[mixerzoo.mixers]
running_sum = good_plugin:RunningSum
broken_import = broken_plugin:Anything
missing_class = good_plugin:NoSuchMixer
no_mixer = good_plugin:nn
taken_name = taken_plugin:Impostor
"""
SCRIPT = """
import json, warnings
from mixerzoo.mixers import check_mixer, create_mixer, list_mixers, mixer_card, plugin_errors
import torch

with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    names = list_mixers()
    list_mixers()
report = check_mixer("running_sum", only=range(1, 11))
y, _ = create_mixer("softmax_attention", 32, heads=2)(torch.ones(1, 3, 32))
print(json.dumps({
    "names": names,
    "errors": plugin_errors(),
    "warnings": [str(w.message) for w in caught if "plug-in" in str(w.message)],
    "passed": [r.number for r in report if r.status == "passed"],
    "year": mixer_card("running_sum").year,
    "softmax_module": type(create_mixer("softmax_attention", 32, heads=2)).__module__,
    "shape": list(y.shape),
}))
"""


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What another process sees that has the plug-ins installed."""
    site = tmp_path_factory.mktemp("site")
    (site / "good_plugin.py").write_text(GOOD)
    (site / "broken_plugin.py").write_text("raise OSError('the disk with the weights is gone')\n")
    (site / "taken_plugin.py").write_text(
        "from dataclasses import replace\nfrom good_plugin import RunningSum\n"
        "class Impostor(RunningSum):\n    card = replace(RunningSum.card, name='softmax_attention')\n"
    )
    info = site / "zoo_plugins-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: zoo-plugins\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(ENTRY_POINTS)
    environment = {**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, cwd=site)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_good_plugin_is_listed_created_and_passes_the_contract(zoo: dict[str, Any]) -> None:
    assert "running_sum" in zoo["names"]
    assert zoo["year"] == 2026
    assert set(zoo["passed"]) == set(range(1, 10))  # it has one backend, so check 10 is skipped


def test_broken_plugins_are_reported_by_name(zoo: dict[str, Any]) -> None:
    errors = zoo["errors"]
    assert set(errors) == {
        "broken_import (broken_plugin:Anything)",
        "missing_class (good_plugin:NoSuchMixer)",
        "no_mixer (good_plugin:nn)",
        "taken_name (taken_plugin:Impostor)",
    }
    assert errors["broken_import (broken_plugin:Anything)"] == "OSError: the disk with the weights is gone"
    assert "NoSuchMixer" in errors["missing_class (good_plugin:NoSuchMixer)"]
    assert "register_mixer needs a Mixer subclass" in errors["no_mixer (good_plugin:nn)"]
    assert "is taken by mixerzoo.mixers.softmax" in errors["taken_name (taken_plugin:Impostor)"]


def test_each_broken_plugin_is_warned_of_once(zoo: dict[str, Any]) -> None:
    assert len(zoo["warnings"]) == 4
    assert any("broken_import" in w and "OSError" in w for w in zoo["warnings"])


def test_the_zoo_works_on(zoo: dict[str, Any]) -> None:
    assert {"fwpkm", "gated_deltanet", "linear_attention", "ttt_linear"} <= set(zoo["names"])
    assert zoo["softmax_module"] == "mixerzoo.mixers.softmax.softmax_attention"
    assert zoo["shape"] == [1, 3, 32]
