"""Ops choose a backend, import it only then, record it, and say clearly why one cannot run."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from mixerzoo.mixers.ops import verdicts
from mixerzoo.mixers.ops.dispatch import Backend, Call, Op, needs_cuda_package, record_backends
from mixerzoo.mixers.ops.verdicts import Verdict

CPU = torch.device("cpu")


def never(device: torch.device) -> str:
    return f"it never runs on {device}"


@pytest.fixture
def op(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Op]:
    """An op `fake_op` of four backends, in a package of its own."""
    package = tmp_path / "fake_op"
    package.mkdir()
    (package / "__init__.py").write_text("")
    for name in ("slow", "fast", "reference", "kernel", "other_kernel"):
        (package / f"{name}.py").write_text(f"def fn(x):\n    return x, {name!r}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield Op(
        "fake_op",
        Backend("reference", "reference:fn", trust="never"),
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


# ---------------------------------------------------------------------------------------------------------------------
# What must be proven first

CALL = Call(torch.float32, width=48, tokens=300, gradient=False, variant="beta")


@pytest.fixture
def proving(op: Op, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Op:
    """The op with two kernels that must be proven, and an empty cache of its own."""
    monkeypatch.setenv(verdicts.CACHE_VARIABLE, str(tmp_path / "cache"))
    verdicts.reload()
    kernels = (
        Backend("kernel", "kernel:fn", trust="proven"),
        Backend("other_kernel", "other_kernel:fn", trust="proven", refuses=no_half),
    )
    return Op("fake_op", *kernels, *op.backends.values(), problems="problems:problems")


def no_half(call: Call) -> str | None:
    return f"it takes no {call.key.dtype}" if call.dtype == torch.float16 else None


def keep(op: Op, backend: str, forward: float, **changes: object) -> None:
    key = CALL.key
    times = {"short": {"forward": forward, "train": 3 * forward}}
    verdict = Verdict(
        op=op.name, backend=backend, variant=key.variant, dtype=key.dtype, width=key.width, source=op.source,
        outcome="right", backward="right", seconds=times,
    )  # fmt: skip
    verdicts.of(CPU).keep([verdict.model_copy(update=changes)])


def chosen(op: Op, call: Call = CALL) -> str:
    with record_backends() as record:
        op.select("auto", CPU, call)
    return record[op.name].pop()


def test_what_is_not_proven_is_not_taken(proving: Op) -> None:
    assert chosen(proving) == "fast"
    assert proving.select("kernel", CPU, CALL)(1) == (1, "kernel")  # but if it is asked for
    with record_backends() as record:
        proving.select("auto", CPU)
    assert record == {"fake_op": {"fast"}}


def test_the_fastest_that_is_proven_is_taken(proving: Op) -> None:
    keep(proving, "kernel", 1.0)
    keep(proving, "fast", 2.0)
    assert chosen(proving) == "kernel"
    keep(proving, "other_kernel", 0.5)
    assert chosen(proving) == "other_kernel"
    keep(proving, "fast", 0.1)
    assert chosen(proving) == "fast"


@pytest.mark.parametrize("outcome", ["wrong", "crashed", "timed out", "refused"])
def test_what_failed_is_never_taken(proving: Op, outcome: str) -> None:
    keep(proving, "fast", 2.0)
    keep(proving, "kernel", 1.0, outcome=outcome)
    assert chosen(proving) == "fast"


def test_wrong_gradients_do_not_matter_without_any(proving: Op) -> None:
    keep(proving, "fast", 2.0)
    keep(proving, "kernel", 1.0, backward="wrong")
    assert chosen(proving) == "kernel"
    assert chosen(proving, CALL._replace(gradient=True)) == "fast"
    keep(proving, "kernel", 1.0, backward=None)
    assert chosen(proving, CALL._replace(gradient=True)) == "fast"


@pytest.mark.parametrize(
    "other", [{"variant": ""}, {"width": 80}, {"width": 32}, {"dtype": torch.bfloat16}, {"dtype": torch.float16}]
)
def test_a_verdict_is_about_one_kind_of_call(proving: Op, other: dict[str, object]) -> None:
    keep(proving, "fast", 2.0)
    keep(proving, "kernel", 1.0)
    assert chosen(proving, CALL._replace(width=33)) == "kernel"  # of the same class
    assert chosen(proving, CALL._replace(tokens=10**6)) == "kernel"  # what was timed is the best that is known
    assert chosen(proving, CALL._replace(**other)) == "fast"


def test_the_length_decides_where_lengths_differ(proving: Op) -> None:
    keep(proving, "fast", 0, seconds={"one": {"forward": 1.0}, "short": {"forward": 3.0}})
    keep(proving, "kernel", 0, seconds={"one": {"forward": 2.0}, "short": {"forward": 2.0}})
    assert chosen(proving, CALL._replace(tokens=1)) == "fast"
    assert chosen(proving) == "kernel"
    # the kernel failed where it was to be timed at another length
    keep(proving, "fast", 0, seconds={"short": {"forward": 3.0}, "long": {"forward": 9.0}})
    assert chosen(proving, CALL._replace(tokens=10**6)) == "fast"


def test_a_verdict_on_other_code_or_another_library_says_nothing(proving: Op) -> None:
    keep(proving, "fast", 2.0)
    keep(proving, "kernel", 1.0, source="of last week")
    assert chosen(proving) == "fast"
    keep(proving, "kernel", 1.0, libraries={"fla-core": "0.5"})
    assert chosen(proving) == "fast"


def test_a_call_that_a_backend_refuses_goes_to_another(proving: Op) -> None:
    half = CALL._replace(dtype=torch.float16)
    keep(proving, "other_kernel", 1.0, dtype="float16")
    assert chosen(proving, half) == "fast"
    with pytest.raises(RuntimeError, match="'other_kernel' of fake_op cannot run: it takes no float16"):
        proving.select("other_kernel", CPU, half)


def test_a_verdict_survives_the_process_and_a_broken_file_says_nothing(proving: Op, caplog: Any) -> None:
    keep(proving, "fast", 2.0)
    keep(proving, "kernel", 1.0)
    verdicts.reload()
    assert chosen(proving) == "kernel"
    assert verdicts.of(CPU).find("fake_op", CALL.key)["kernel"].seconds["short"]["train"] == 3.0
    verdicts.of(CPU).path.write_text("{")
    verdicts.reload()
    assert chosen(proving) == "fast"
    assert "cannot be read and is ignored" in caplog.text


def test_without_a_verdict_a_gpu_is_told_once_what_would_make_it_faster(
    proving: Op, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    gpu = torch.device("cuda", 7)
    monkeypatch.setattr(verdicts, "of", lambda device: verdicts.Verdicts(CPU))
    for tokens in (10, 11):
        proving.select("auto", gpu, CALL._replace(tokens=tokens))
    assert [r.getMessage() for r in caplog.records] == [
        "faster kernels may run on cuda:7 once `mixerzoo doctor` has proven them; using portable code"
    ]


def test_an_op_with_a_backend_to_prove_has_problems() -> None:
    with pytest.raises(ValueError, match="no problems to prove it on"):
        Op("fake_op", Backend("kernel", "kernel:fn", trust="proven"))


def test_looking_a_verdict_up_does_not_break_a_compiled_graph(proving: Op) -> None:
    keep(proving, "fast", 2.0)
    keep(proving, "kernel", 1.0)

    def double(x: torch.Tensor) -> torch.Tensor:
        y, name = proving.select("auto", x.device, Call.of(x, width=48, tokens=x.shape[0], variant="beta"))(x)
        return 2 * y if name == "kernel" else y

    for backend in ("kernel", "fast"):
        proving.select(backend, CPU)
    graphs = []
    compiled = torch.compile(
        double, backend=lambda graph, _: graphs.append(graph) or graph, fullgraph=True, dynamic=True
    )
    for length, value in ((300, 2), (310, 2), (1000, 2), (5000, 2), (1, 1)):
        assert compiled(torch.ones(length)).mean() == value
    assert len(graphs) == 3  # one for each class of lengths


def test_choosing_does_not_break_a_graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even the first time, when the module has to be imported, nor where a package has to be looked for."""
    package = tmp_path / "fake_op"
    package.mkdir()
    (package / "__init__.py").write_text("")
    for name, factor in (("one", 1), ("two", 2)):
        (package / f"{name}.py").write_text(f"def fn(x):\n    return {factor} * x\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    asked = []

    def why_not(device: torch.device) -> str | None:
        asked.append(importlib.util.find_spec("fake_op"))
        return None

    op = Op("fake_op", Backend("one", "one:fn", why_not), Backend("two", "two:fn", why_not))

    @torch.compile(backend="eager", fullgraph=True)
    def both(x: torch.Tensor) -> torch.Tensor:
        return op.select("auto", x.device)(x) + op.select("two", x.device)(x)

    assert both(torch.ones(1)).item() == 3 and asked
