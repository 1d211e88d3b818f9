"""flash-linear-attention's kernels for softmax and its kin: in the interpreter, and what their adapters refuse."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from mixerzoo.mixers.ops import attention, block_attention, path_attention, stick_breaking
from mixerzoo.mixers.ops.dispatch import Call

HERE = Path(__file__).parent


@pytest.mark.skipif(find_spec("fla") is None, reason="the package 'fla' is not installed")
def test_the_kernels_agree_with_the_definitions() -> None:
    """In a process of its own, because triton decides when it is imported whether to interpret."""
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(HERE / "fla_cases.py")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=HERE.parents[2], env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " skipped" not in done.stdout, done.stdout


@pytest.mark.parametrize("op", [attention, block_attention, path_attention, stick_breaking])
def test_what_the_adapters_refuse(op) -> None:
    backend, fits = op.OP.backends["fla"], "tiled" if op is block_attention else ""
    half = torch.bfloat16
    assert backend.refuses(Call(half, 64, 100, True, fits)) is None
    assert "float32 at most" in backend.refuses(Call(torch.float64, 64, 100, True, fits))
    assert "at most" in backend.refuses(Call(half, 300, 100, True, fits))
    continued = "state" if op is path_attention else "+".join(["cached", fits])
    assert "no cache" in backend.refuses(Call(half, 64, 1, False, continued)) or op is path_attention
    assert backend.trust == "proven" and "fla-core" in backend.libraries


def test_blocks_that_fit_no_tile_are_refused() -> None:
    q, k = torch.zeros(1, 8, 32, 4), torch.zeros(1, 8, 2, 4)
    blocks = torch.zeros(1, 8, 2, 1, dtype=torch.long)
    is_tiled = block_attention.fla.is_tiled
    assert is_tiled(q, k, blocks, 16)
    assert not is_tiled(q, k, blocks, 24) and not is_tiled(q[:, :, :16], k, blocks, 16)
    assert not is_tiled(q, k, blocks.repeat(1, 1, 2, 1), 16)
    assert "powers of two" in block_attention.OP.backends["fla"].refuses(Call(torch.float32, 4, 8, False))
