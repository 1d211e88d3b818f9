"""Every mixer keeps its work on the device of its input, tried without a GPU on one that is pretended."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from mixerzoo.mixers import list_mixers

PLANTED = ["CountsOnTheCpu", "LeavesATableBehind", "DrawsFromTheCpu", "RemembersOnTheCpu"]


def test_mixers_keep_their_work_on_one_device() -> None:
    script = Path(__file__).with_name("pretend_device.py")
    command = [sys.executable, str(script), *list_mixers(), *PLANTED]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert sorted(found) == sorted([*list_mixers(), *PLANTED])
    assert all("cpu" in "\n".join(found.pop(name)) for name in PLANTED)
    assert not {name: problems for name, problems in found.items() if problems}
