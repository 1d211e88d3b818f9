"""The Triton backend of TTT-Linear: what it refuses, that it compiles, its cases interpreted and on a GPU."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from mixerzoo.mixers.ops.ttt import OP

from .test_ttt import arguments, given, ttt

HERE = Path(__file__).parent
needs_package = pytest.mark.skipif(find_spec("triton") is None, reason="the package 'triton' is not installed")
compiled = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") == "1", reason="TRITON_INTERPRET=1 is set, and kernels are not compiled"
)


@needs_package
@pytest.mark.parametrize("device", ["interpreter", "cuda"])
def test_the_cases(device: str) -> None:
    """In a process of its own, because triton decides when it is imported whether to interpret."""
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("there is no CUDA device")
    environment = {**os.environ, "TRITON_INTERPRET": str(int(device == "interpreter"))}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(HERE / "ttt_triton_cases.py")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=HERE.parents[2], env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " skipped" not in done.stdout, done.stdout


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"model": "mlp"}, "one linear layer .* not mlp\\+short"),
        ({"mini_batch_size": 17}, "mini-batches of at most 16 tokens, not linear\\+long"),
        ({"d_head": 65}, "heads of at most 64 features, not 65"),
    ],
)
@needs_package
def test_what_it_cannot_take_is_refused(options, reason, monkeypatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(RuntimeError, match=f"backend 'triton' of ttt cannot run: .*{reason}"):
        ttt(**given(arguments(**options)), backend="triton")


def test_it_must_be_proven(monkeypatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    assert OP.backends["triton"].trust == "proven"
    with pytest.raises(RuntimeError, match="backend 'triton' of ttt cannot run: it runs on a CUDA device"):
        ttt(**given(arguments()), backend="triton")


def types(kernel, constants: dict[str, object], dtype: str) -> dict[str, str]:
    """What the kernel is called with: pointers to tokens or float32, int32 sizes and strides, and constants."""
    sequences = {f"{d}{name}": f"*{dtype}" for d in ("", "d_") for name in ("queries", "keys", "values", "outputs")}
    sizes = ("mini_batches", "size", "heads", "d")
    strides = [n for n in kernel.arg_names if n[:2] in ("q_", "k_", "v_", "s_")]
    known = {**sequences, **dict.fromkeys((*sizes, *strides), "i32"), **dict.fromkeys(constants, "constexpr")}
    return {name: known.get(name, "*fp32") for name in kernel.arg_names}


@needs_package
@compiled
@pytest.mark.parametrize(("d_head", "dtype"), [(24, "bf16"), (64, "fp32")])
def test_kernels_compile_for_hopper_and_fit(d_head, dtype, tmp_path, monkeypatch):
    """Down to machine code, without a GPU; the wheels of triton bring the assembler."""
    import triton

    if not list(Path(triton.__file__).parent.glob("backends/nvidia/bin/ptxas*")) and shutil.which("ptxas") is None:
        pytest.skip("there is no ptxas, neither in triton nor on the path")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("TRITON_DEFAULT_FP_FUSION", "1")  # what it is anyway, without a warning
    from mixerzoo.mixers.ops.ttt import triton as backend
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    precision = backend.precision(torch.bfloat16 if dtype == "bf16" else torch.float32, torch.float32)
    tiles = backend.constants(d_head)
    launch = {"num_warps": tiles.pop("num_warps")}
    for kernel, flags in ((backend._forward_kernel, {"KEEP": True}), (backend._backward_kernel, {})):
        constants = {"PRECISION": precision, **flags, **tiles}
        source = ASTSource(kernel, types(kernel, constants, dtype), constants)
        built = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=launch)
        assert built.asm["cubin"]
        assert built.metadata.shared <= 99 * 1024  # what a program may take on the smaller cards
