"""Runs fla_kernel_cases.py: the kernels of flash-linear-attention in Triton's interpreter."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.mark.skipif(not find_spec("fla"), reason="flash-linear-attention, which is for Linux, is not installed")
def test_the_kernels_agree_with_plain_torch():
    """In a process of its own, because triton decides when it is imported whether to interpret."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(HERE / "fla_kernel_cases.py")]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=HERE.parents[2], env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " skipped" not in done.stdout, done.stdout
