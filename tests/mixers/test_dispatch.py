"""Ops choose a backend, import it only then, record it, and say clearly why one cannot run."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from mixerzoo.mixers.ops.dispatch import Backend, Op, needs_cuda_package, record_backends

CPU = torch.device("cpu")


def never(device: torch.device) -> str:
    return f"it never runs on {device}"


@pytest.fixture
def op(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Op]:
    """An op `fake_op` of four backends, in a package of its own."""
    package = tmp_path / "fake_op"
    package.mkdir()
    (package / "__init__.py").write_text("")
    for name in ("slow", "fast", "reference"):
        (package / f"{name}.py").write_text(f"def fn(x):\n    return x, {name!r}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield Op(
        "fake_op",
        Backend("reference", "reference:fn", automatic=False),
        Backend("impossible", "nowhere:fn", never),
        Backend("fast", "fast:fn"),
        Backend("slow", "slow:fn"),
    )
    for module in [m for m in sys.modules if m.partition(".")[0] == "fake_op"]:
        del sys.modules[module]


def test_auto_takes_the_first_that_can_run(op: Op) -> None:
    assert op.select("auto", CPU)(1) == (1, "fast")
    assert op.available() == ["reference", "fast", "slow"]


def test_a_named_backend_is_taken(op: Op) -> None:
    assert op.select("slow", CPU)(2) == (2, "slow")
    assert op.select("reference", CPU)(3) == (3, "reference")


def test_only_what_is_chosen_is_imported(op: Op) -> None:
    assert "fake_op.slow" not in sys.modules
    op.select("slow", CPU)
    assert "fake_op.slow" in sys.modules
    assert "fake_op.fast" not in sys.modules


def test_an_unknown_backend_lists_the_known(op: Op) -> None:
    with pytest.raises(ValueError, match="no backend 'fats'; it has auto, reference, impossible, fast, slow"):
        op.select("fats", CPU)


def test_a_backend_that_cannot_run_says_why_and_what_can(op: Op) -> None:
    with pytest.raises(RuntimeError, match="cannot run: it never runs on cpu; here run auto, reference, fast, slow"):
        op.select("impossible", CPU)


def test_choices_are_recorded_within_the_context_only(op: Op) -> None:
    op.select("slow", CPU)
    with record_backends() as outer:
        op.select("auto", CPU)
        with record_backends() as inner:
            op.select("reference", CPU)
        with pytest.raises(RuntimeError):
            op.select("impossible", CPU)
    op.select("slow", CPU)
    assert outer == {"fake_op": {"fast", "reference"}}
    assert inner == {"fake_op": {"reference"}}


def test_a_cuda_package_is_refused_on_the_cpu_even_if_installed() -> None:
    why_not = needs_cuda_package("torch")
    assert why_not(CPU) == "it runs on a CUDA device, and the tensors are on cpu"
    assert why_not(torch.device("cuda")) is None
    assert needs_cuda_package("nonesuch")(torch.device("cuda")) == "the package 'nonesuch' is not installed"


def test_selecting_does_not_break_a_compiled_graph(op: Op) -> None:
    def double(x: torch.Tensor) -> torch.Tensor:
        y, _ = op.select("auto", x.device)(x)
        return 2 * y

    op.select("auto", CPU)
    compiled = torch.compile(double, backend="eager", fullgraph=True)
    assert compiled(torch.ones(2)).tolist() == [2, 2]
