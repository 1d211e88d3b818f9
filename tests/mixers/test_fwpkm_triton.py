"""The Triton backend of FwPKM: where it may run, that it compiles, and its cases in the interpreter and on a GPU."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

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


def address_tiles(n_subkeys: int, top_k: int, dtype: str, kilobytes: int) -> tuple[dict[str, int], dict[str, int]]:
    """Constants and launch options of the kernel for addresses."""
    from mixerzoo.mixers.ops.fwpkm import triton as backend

    address = backend.address_constants(n_subkeys, top_k, 4 if dtype == "fp32" else 8, kilobytes * 1024)
    return address, {name: address.pop(name) for name in ("num_warps", "num_stages")}


@pytest.fixture
def build(tmp_path, monkeypatch):
    """Compile a kernel for a compute capability down to machine code, without a GPU; triton brings the assembler."""
    import triton

    if not list(Path(triton.__file__).parent.glob("backends/nvidia/bin/ptxas*")) and shutil.which("ptxas") is None:
        pytest.skip("there is no ptxas, neither in triton nor on the path")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("TRITON_DEFAULT_FP_FUSION", "1")  # what it is anyway, without a warning
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    def compiled_for(capability, kernel, constants, options, dtype):
        source = ASTSource(kernel, types(kernel, constants, dtype), constants)
        built = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
        assert built.asm["cubin"]
        return built.metadata.shared

    return compiled_for


@needs_package
@compiled
@pytest.mark.parametrize("dtype", ["fp32", "fp64"])
@pytest.mark.parametrize(("n_subkeys", "top_k", "d_v"), [(32, 1, 64), (512, 8, 512), (1024, 32, 1000), (32, 4, 1)])
def test_kernels_compile_for_hopper_and_fit(n_subkeys, top_k, d_v, dtype, build):
    from mixerzoo.mixers.ops.fwpkm import triton as backend

    rows, steps = backend.row_constants(d_v, top_k), backend.step_constants(d_v)
    address, launch = address_tiles(n_subkeys, top_k, dtype, 227)
    for kernel, constants, options in (
        (backend._address_kernel, {"TOP_K": top_k, "IDW": True, "PRECISION": "ieee", **address}, launch),
        (backend._read_kernel, rows, {}),
        (backend._dot_kernel, rows, {}),
        (backend._spread_kernel, steps, {}),
        (backend._add_kernel, {"BOTH": True, **steps}, {}),
        (backend._recall_kernel, {"KEEP_EARLY": True, **rows}, {}),
        (backend._recall_backward_kernel, backend.backward_constants(d_v, top_k), {}),
    ):
        shared = build(90, kernel, constants, options, dtype)
        assert shared <= (227 if kernel is backend._address_kernel else 48) * 1024  # every card has 48 without asking


@needs_package
@compiled
@pytest.mark.parametrize(
    ("capability", "kilobytes", "n_subkeys", "dtype", "precision"),
    [
        (86, 99, 1024, "fp32", "ieee"),
        (89, 99, 2048, "fp32", "tf32"),
        (120, 99, 1024, "fp64", "ieee"),
        (80, 163, 1024, "fp32", "tf32"),
        (90, 227, 1024, "fp32", "ieee"),
    ],
)
def test_tiles_fit_into_the_shared_memory_of_a_card(capability, kilobytes, n_subkeys, dtype, precision, build):
    from mixerzoo.mixers.ops.fwpkm import triton as backend

    tiles, launch = address_tiles(n_subkeys, 1, dtype, kilobytes)
    constants = {"TOP_K": 1, "IDW": True, "PRECISION": precision, **tiles}
    shared = build(capability, backend._address_kernel, constants, launch, dtype)
    sizes = (tiles[name] for name in ("BLOCK_T", "BLOCK_S", "BLOCK_D"))
    expected = backend.address_shared_bytes(*sizes, launch["num_stages"], 4 if dtype == "fp32" else 8)
    assert expected - 1024 <= shared <= expected <= kilobytes * 1024


@needs_package
def test_tiles_follow_the_limit():
    """1,024 sub-keys loaded ahead take 130 KB, which cards of 99 KB do not have."""
    found = {kilobytes: address_tiles(1024, 8, "fp32", kilobytes) for kilobytes in (99, 163, 227)}
    assert [launch["num_stages"] for _, launch in found.values()] == [1, 3, 3]
    assert {tiles["BLOCK_S"] for tiles, _ in found.values()} == {1024}
    with pytest.raises(RuntimeError, match=r"shared memory for 8192 sub-keys.*this device has 101376.*compact"):
        address_tiles(8192, 8, "fp32", 99)


@needs_package
def test_products_are_as_precise_as_those_of_torch(monkeypatch):
    from mixerzoo.mixers.ops.fwpkm.triton import product_precision

    assert product_precision(torch.float32) == product_precision(torch.float64) == "ieee"
    torch.set_float32_matmul_precision("high")
    try:
        assert product_precision(torch.float32) == "tf32" and product_precision(torch.float64) == "ieee"
    finally:
        torch.set_float32_matmul_precision("highest")
    for allowed, expected in ((True, "tf32"), (False, "ieee")):  # all there was before torch 2.9
        monkeypatch.setattr(torch.backends.cuda, "matmul", SimpleNamespace(allow_tf32=allowed))
        assert product_precision(torch.float32) == expected
