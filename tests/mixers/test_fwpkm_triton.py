"""The Triton backend of FwPKM: where it may run, that it compiles, and its cases in the interpreter and on a GPU."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from mixerzoo.mixers.ops.fwpkm import OP, fwpkm

HERE = Path(__file__).parent
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
needs_package = pytest.mark.skipif(find_spec("triton") is None, reason="the package 'triton' is not installed")
compiled = pytest.mark.skipif(INTERPRETED, reason="TRITON_INTERPRET=1 is set, and kernels are not compiled")


@needs_package
@pytest.mark.parametrize("device", ["interpreter", "cuda"])
def test_the_cases_and_the_released_numbers(device: str) -> None:
    """In a process of its own, because triton decides when it is imported whether to interpret."""
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("there is no CUDA device")
    environment = {**os.environ, "TRITON_INTERPRET": str(int(device == "interpreter"))}
    tests = [str(HERE / "fwpkm_triton_cases.py")]
    if device == "interpreter":
        tests.append(f"{HERE / 'test_fwpkm.py'}::test_backends_match_released_numbers")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "triton", *tests]
    done = subprocess.run(command, capture_output=True, text=True, cwd=HERE.parents[1], env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " skipped" not in done.stdout, done.stdout


@pytest.mark.parametrize(
    ("interpret", "device", "runs"),
    [("0", "cpu", False), ("1", "cpu", True), ("0", "cuda", True), ("1", "meta", False)],
)
@needs_package
def test_where_it_may_run(interpret: str, device: str, runs: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", interpret)
    backend = OP.backends["triton"]
    assert (backend.why_not(torch.device(device)) is None) == runs
    assert backend.trust != "always"  # until it has been run on a GPU


def test_it_is_refused_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    tensors = torch.zeros(1, 2, 1, 4), torch.zeros(1, 2, 3), None, torch.zeros(1, 2, 2, 2), torch.zeros(4, 3)
    with pytest.raises(RuntimeError, match="backend 'triton' of fwpkm cannot run: it runs on a CUDA device"):
        fwpkm(*tensors, top_k=1, chunk_size=2, backend="triton")


INTEGERS = ("ids", "token", "rows", "offsets", "index", "pairs")
SIZES = re.compile("n|n_.*|heads|slots|d|time|carried|paired|.*_(memory|head|half|subkey|row|token|feature)")


def types(kernel, constants: dict[str, object], dtype: str) -> dict[str, str]:
    """What the kernel is called with: pointers to int64 or float, int32 sizes and strides, and constants."""
    known = {**dict.fromkeys(INTEGERS, "*i64"), **dict.fromkeys(constants, "constexpr")}
    sizes = dict.fromkeys(filter(SIZES.fullmatch, kernel.arg_names), "i32")
    return {name: (sizes | known).get(name, f"*{dtype}") for name in kernel.arg_names}


@needs_package
@compiled
@pytest.mark.parametrize("dtype", ["fp32", "fp64"])
@pytest.mark.parametrize(("n_subkeys", "top_k", "d_v"), [(32, 1, 64), (512, 8, 512), (1024, 32, 1000), (32, 4, 1)])
def test_kernels_compile_for_hopper_and_fit(n_subkeys, top_k, d_v, dtype, tmp_path, monkeypatch):
    """Down to machine code, without a GPU; the wheels of triton bring the assembler."""
    import triton

    if not list(Path(triton.__file__).parent.glob("backends/nvidia/bin/ptxas*")) and shutil.which("ptxas") is None:
        pytest.skip("there is no ptxas, neither in triton nor on the path")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("TRITON_DEFAULT_FP_FUSION", "1")  # what it is anyway, without a warning
    from mixerzoo.mixers.ops.fwpkm import triton as backend
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    rows, steps = backend.row_constants(d_v, top_k), backend.step_constants(d_v)
    address = backend.address_constants(n_subkeys, top_k, 4 if dtype == "fp32" else 8)
    launch = {name: address.pop(name) for name in ("num_warps", "num_stages")}
    for kernel, constants, options in (
        (backend._address_kernel, {"TOP_K": top_k, "IDW": True, **address}, launch),
        (backend._read_kernel, rows, {}),
        (backend._dot_kernel, rows, {}),
        (backend._spread_kernel, steps, {}),
        (backend._add_kernel, {"BOTH": True, **steps}, {}),
        (backend._recall_kernel, {"KEEP_EARLY": True, **rows}, {}),
        (backend._recall_backward_kernel, backend.backward_constants(d_v, top_k), {}),
    ):
        source = ASTSource(kernel, types(kernel, constants, dtype), constants)
        built = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
        assert built.asm["cubin"]
        assert built.metadata.shared <= 227 * 1024  # what a program may take of an SM's shared memory
