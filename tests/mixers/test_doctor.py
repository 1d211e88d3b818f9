"""What the doctor finds out about backends that are wrong, slow, hang or crash; and that it leaves nothing behind."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import psutil
import pytest
import torch
from mixerzoo.mixers import list_mixers
from mixerzoo.mixers.doctor import Case, Diagnosis, Examination, children, summarise
from mixerzoo.mixers.doctor.cases import DTYPES, cases, key_of, ops_of, problem_of
from mixerzoo.mixers.doctor.child import _Session
from mixerzoo.mixers.doctor.children import Job, run_jobs
from mixerzoo.mixers.doctor.proof import FULL, Proof, Trial, relative_error
from mixerzoo.mixers.ops import verdicts
from mixerzoo.mixers.ops.dispatch import Op, record_backends
from mixerzoo.mixers.ops.verdicts import Error, Verdict
from torch import Tensor

from .planted_op import VARIANTS

CPU = torch.device("cpu")
NAME = "planted"


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    """The planted op as a package of its own, and an empty cache."""
    folder = tmp_path_factory.mktemp("doctor")
    (folder / NAME).mkdir()
    shutil.copy(Path(__file__).with_name("planted_op.py"), folder / NAME / "kernels.py")
    (folder / NAME / "__init__.py").write_text("from .kernels import OP, problems, running_sum, sums\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(verdicts.CACHE_VARIABLE, str(folder / "cache"))
        patch.setenv("PLANTED", ",".join(VARIANTS))
        patch.setenv("PLANTED_PID", str(folder / "pid"))
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.syspath_prepend(str(folder))
        verdicts.reload()
        yield importlib.import_module(NAME)
    for module in (NAME, f"{NAME}.kernels"):
        sys.modules.pop(module)
    verdicts.reload()


def examination(planted: ModuleType, **options: object) -> Examination:
    return Examination([planted.OP], CPU, **{"dtypes": ["float32"], "time_limit": 4.0, "at_once": 2, **options})


@pytest.fixture(scope="module")
def diagnosis(planted: ModuleType) -> Diagnosis:
    return examination(planted).run()


def found(diagnosis: Diagnosis, variant: str, backend: str = "kernel") -> Verdict:
    return next(v for v in diagnosis.verdicts if (v.variant, v.backend) == (variant, backend))


@pytest.mark.parametrize(
    ("variant", "outcome", "backward", "said"),
    [
        ("right", "right", "right", ""),
        ("slow", "right", "right", ""),
        ("chatters", "right", "right", ""),
        ("wrong", "wrong", None, "forward 1.0e-02, at most 2.0e-05; state 1.0e-02"),
        ("rounds", "wrong", None, "forward "),
        ("wrong if odd", "wrong", None, "forward "),
        ("wrong state", "wrong", None, "state "),
        ("leaks", "wrong", None, "documents "),
        ("nan", "wrong", None, "forward inf"),
        ("wrong gradient", "right", "wrong", "backward "),
        ("leaks gradient", "right", "wrong", "backward "),
        ("refuses", "refused", None, "it does not like this one"),
        ("raises", "crashed", None, "ValueError: a kernel's own complaint"),
        ("raises in backward", "right", "crashed", "RuntimeError: no backward pass on this GPU"),
        ("segfault", "crashed", None, "forward: killed by SIGSEGV\nabout to fall"),
        ("runs out", "right", "right", ""),
        ("takes what it gets", "right", "right", ""),
        ("dies if long", "crashed", "right", "forward of length long: killed by SIGABRT"),
        ("sleeps", "timed out", None, "forward: no answer within 4 s"),
        ("aborts in backward", "right", "crashed", "backward: killed by SIGABRT"),
        ("spins in backward", "right", "timed out", "backward: no answer within 4 s"),
    ],
)
def test_what_is_wrong_with_a_backend_is_found(
    diagnosis: Diagnosis, variant: str, outcome: str, backward: str | None, said: str
) -> None:
    verdict = found(diagnosis, variant)
    assert (verdict.outcome, verdict.backward) == (outcome, backward), verdict.detail
    assert verdict.detail.startswith(said)
    if said in ("state ", "documents "):
        assert verdict.errors["forward"].passed  # nothing else gives it away


def chosen(planted: ModuleType, variant: str, gradient: bool, tokens: int = 300) -> str:
    x = torch.ones(1, tokens, 32, requires_grad=gradient)
    with record_backends() as record:
        planted.running_sum(x, torch.ones(32), variant, None, backend="auto")
    return record[NAME].pop()


def test_only_what_is_right_and_fastest_is_chosen(planted: ModuleType, diagnosis: Diagnosis) -> None:
    for variant in VARIANTS:
        right = (
            variant in ("right", "chatters", "runs out", "takes what it gets")
            or "gradient" in variant
            or "in backward" in variant
        )
        trains = variant in ("right", "chatters", "runs out", "takes what it gets")
        if variant != "chatters":  # it would, here as well
            assert chosen(planted, variant, gradient=False) == ("kernel" if right else "portable"), variant
            assert chosen(planted, variant, gradient=True) == ("kernel" if trains else "portable"), variant


def test_times_are_those_of_what_is_right(diagnosis: Diagnosis) -> None:
    right, portable = found(diagnosis, "right").seconds, found(diagnosis, "right", "portable").seconds
    assert set(right) == {"one", "short", "middle", "long"}
    assert set(right["one"]) == {"forward"}
    assert set(right["short"]) == {"forward", "train"}
    slow = found(diagnosis, "slow").seconds
    # they sleep for 0, 15 and 40 ms
    assert right["short"]["forward"] < portable["short"]["forward"] < slow["short"]["forward"]
    assert found(diagnosis, "wrong").seconds == {}
    assert set(found(diagnosis, "runs out").seconds) == {"one", "short", "middle"}
    assert set(found(diagnosis, "wrong gradient").seconds["short"]) == {"forward"}
    assert not any(v.variant == "wrong" for v in diagnosis.verdicts if v.backend == "portable")


def test_what_hung_is_gone(planted: ModuleType, diagnosis: Diagnosis) -> None:
    assert found(diagnosis, "sleeps").outcome == "timed out"
    assert not psutil.pid_exists(int(Path(os.environ["PLANTED_PID"]).read_text()))


def test_what_is_known_is_not_proven_again(
    planted: ModuleType, diagnosis: Diagnosis, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(*args: object, **kwargs: object) -> None:
        assert list(args[0]) == []

    monkeypatch.setattr("mixerzoo.mixers.doctor.examination.run_jobs", forbidden)
    again = examination(planted)
    assert again.open == []
    assert again.run() == diagnosis
    assert len(examination(planted, again=True).open) == len(VARIANTS)
    assert len(examination(planted, dtypes=["float32", "float16"]).open) == len(VARIANTS)


def test_few_rows_say_it_all(diagnosis: Diagnosis) -> None:
    findings = summarise(diagnosis)
    assert findings.unavailable == [(NAME, "elsewhere", "it runs elsewhere")]
    assert [row.variant for row in findings.rows] == list(VARIANTS)
    assert next(row for row in findings.rows if row.variant == "nan").errors["forward"].error == float("inf")
    json.loads(findings.model_dump_json(), parse_constant=pytest.fail)  # no Infinity, which JSON does not know
    right = ("right", "slow", "chatters", "refuses", "runs out", "takes what it gets")
    assert sorted(v.variant for v in diagnosis.failed) == sorted(set(VARIANTS) - set(right))


def timed(backend: str, width: int, short: float, middle: float, **changes: object) -> Verdict:
    seconds = {"short": {"forward": short, "train": 3 * short}, "middle": {"forward": middle, "train": 3 * middle}}
    verdict = Verdict(
        op=NAME, backend=backend, variant="", dtype="float32", width=width, source="", outcome="right",
        backward="right" if backend == "kernel" else None, seconds=seconds,
    )  # fmt: skip
    return verdict.model_copy(update=changes)


def test_rows_of_all_head_sizes_are_joined() -> None:
    both = [
        timed("kernel", 32, 2, 2),
        timed("portable", 32, 1, 4),
        timed("kernel", 64, 4, 2),
        timed("portable", 64, 1, 6),
    ]
    diagnosis = Diagnosis("cpu", {}, both, proving={(NAME, "kernel")})
    (row,) = summarise(diagnosis).rows
    assert (row.widths, row.chosen) == ([32, 64], (4, 8))
    assert row.speedups["short"] == {"forward": (0.25, 0.5), "train": (0.25, 0.5)}
    assert row.speedups["middle"]["train"] == (2, 3)
    assert [r.widths for r in summarise(diagnosis, every_width=True).rows] == [[32], [64]]
    assert summarise(diagnosis).fastest == {NAME: {"kernel": 4, "portable": 4}}


def test_a_backend_with_wrong_gradients_is_chosen_without_them_only() -> None:
    verdicts = [timed("kernel", 32, 1, 1, backward="wrong"), timed("portable", 32, 2, 2)]
    (row,) = summarise(Diagnosis("cpu", {}, verdicts, proving={(NAME, "kernel")})).rows
    assert (row.outcome, row.backward, row.chosen) == ("right", "wrong", (2, 4))


# ---------------------------------------------------------------------------------------------------------------------
# Low precision, without children


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_rounding_passes_and_an_error_of_two_percent_does_not(dtype: str, planted: ModuleType) -> None:
    right = Proof(planted.OP, Case(NAME, "kernel", "right", dtype, 32, 32), CPU, FULL)
    assert all(e.passed and e.error > 1e-5 for e in [*right.forward().values(), *right.backward().values()])
    wrong = Proof(planted.OP, Case(NAME, "kernel", "wrong", dtype, 32, 32), CPU, FULL)
    assert not any(e.passed for e in wrong.forward().values())


def test_an_error_is_relative_and_what_is_not_finite_is_infinitely_wrong() -> None:
    true = torch.tensor([3.0, 4.0], dtype=torch.float64)
    assert relative_error(true * 1.1, true) == pytest.approx(0.1)
    assert relative_error(torch.tensor([3.0, torch.nan]), true) == float("inf")
    assert relative_error(true[:1], true) == float("inf")
    assert relative_error(torch.zeros(2), torch.zeros(2)) == 0


def test_the_portable_code_widens_the_limit_up_to_a_ceiling(
    planted: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = planted.OP.function("kernel")

    def limit(off: float) -> Error:
        def wrong(x: Tensor, scale: Tensor, variant: str, state: object) -> tuple[Tensor, None]:
            return planted.sums(x, scale, None)[0] * (1 + off * (x.dtype != torch.float64)), None

        monkeypatch.setattr(planted.OP, "function", {"portable": wrong, "kernel": kernel}.__getitem__)
        monkeypatch.setattr(Trial, "_in_pieces", lambda self, x, backend: planted.sums(**x, state=None)[0])
        return Proof(planted.OP, Case(NAME, "kernel", "right", "float32", 32, 32), CPU, FULL).forward()["forward"]

    assert limit(0).limit == 2e-5
    assert limit(1e-4).limit == pytest.approx(3e-4, rel=0.01)
    assert limit(1e-1).limit == 1e-3


# ---------------------------------------------------------------------------------------------------------------------
# Children that are not the real one, and start at once

ANSWERING = """
import json, os, subprocess, sys, time
job = json.loads(sys.stdin.readline())
def tell(**message): print(json.dumps(message), flush=True)
for i in range(job["first"], len(job["cases"])):
    what = job["cases"][i][2]
    if what == "exits unasked": sys.exit(0)
    tell(begin=i, stage="forward", blame="outcome")
    if what == "dies": os.kill(os.getpid(), 9)
    if what == "leaves a child":
        child = subprocess.Popen(["sleep", "1000"], pass_fds=[1])
        open(os.environ["PLANTED_PID"], "w").write(str(child.pid))
        os.kill(os.getpid(), 9)
    tell(found=i, fields={"outcome": "right"}); tell(done=i)
"""


def run_fakes(monkeypatch: pytest.MonkeyPatch, *variants: str) -> list[tuple[str, str]]:
    monkeypatch.setattr(children, "COMMAND", (sys.executable, "-c", ANSWERING))
    job = Job("fake", "prove", [Case("fake", "kernel", v, "float32", 32, 32) for v in variants], {})
    told: list[int] = []
    run_jobs([job], at_once=1, time_limit=5, environment={}, finished=lambda job, i: told.append(i))
    assert told == list(range(len(variants)))
    return [(f["outcome"], f.get("detail", "")) for f in job.fields]


def test_after_a_death_another_child_goes_on_and_three_in_a_row_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    dead = ("crashed", "forward: killed by SIGKILL")
    assert run_fakes(monkeypatch, "dies", "dies", "well", "dies", "well") == [
        dead,
        dead,
        ("right", ""),
        dead,
        ("right", ""),
    ]
    given_up = ("crashed", "not tried after 3 that crashed")
    assert run_fakes(monkeypatch, "well", "dies", "dies", "dies", "well", "well")[3:] == [dead, given_up, given_up]


def test_a_child_that_ends_before_it_begins_is_no_endless_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run_fakes(monkeypatch, "well", "exits unasked", "well")[1:] == [
        ("crashed", "start: exited with code 0"), ("right", "")
    ]  # fmt: skip


def test_what_a_dead_child_started_is_ended_with_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PLANTED_PID", str(tmp_path / "pid"))
    assert run_fakes(monkeypatch, "leaves a child", "well")[0][0] == "crashed"
    orphan = int((tmp_path / "pid").read_text())
    assert not psutil.pid_exists(orphan) or psutil.Process(orphan).status() == psutil.STATUS_ZOMBIE


@pytest.mark.parametrize(("device", "made_current"), [("cuda", []), ("cuda:1", [torch.device("cuda:1")])])
def test_a_child_works_on_its_gpu_and_ends_when_that_is_spoiled(
    planted: ModuleType, monkeypatch: pytest.MonkeyPatch, device: str, made_current: list[torch.device]
) -> None:
    told: list[dict[str, object]] = []
    current: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    monkeypatch.setattr(_Session, "_prove", lambda self, i: [("forward", "outcome", lambda: {"outcome": "right"})])
    works = iter([True, False])
    monkeypatch.setattr(_Session, "_device_works", lambda self: next(works))
    job = Job(NAME, "prove", [Case(NAME, "kernel", "right", "float32", 32, 32)] * 3, {})
    settings = {"device": device, "threads": 1, "sizes": FULL, "lengths": []}
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: None)
    _Session({**json.loads(job.to_json()), **settings}, lambda **message: told.append(message)).work()
    assert current == made_current
    assert [m["done"] for m in told if "done" in m] == [0, 1]  # the third is for another child


def test_a_child_ends_with_its_parent(planted: ModuleType) -> None:
    case = Case(NAME, "kernel", "sleeps", "float32", 32, 32)
    job = Job(NAME, "prove", [case], {"device": "cpu", "threads": 1, "sizes": FULL, "lengths": []})
    child = subprocess.Popen(children.COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
    assert child.stdin is not None and child.stdout is not None
    child.stdin.write(job.to_json().encode() + b"\n")
    child.stdin.flush()
    while "begin" not in json.loads(child.stdout.readline()):
        pass
    child.stdin.close()  # as the end of the parent does
    assert child.wait(timeout=60) == -signal.SIGKILL
    child.stdout.close()


OPS = [op for op in ops_of(list_mixers()) if op.problems is not None]


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_the_cases_of_an_op_are_those_of_its_calls(op: Op) -> None:
    """The verdict on a case must be found again by the calls that it is about."""
    found = cases(op, DTYPES, op.widths[:1])
    assert found
    for case in found:
        problem = problem_of(op, case.variant, case.size)
        assert problem is not None and key_of(op, problem, case.dtype) == case.key


def test_an_op_that_computes_in_float32_has_no_cases_in_sixteen_bits() -> None:
    found = {op.name: cases(op, ["bfloat16"], op.widths[:2]) for op in OPS}
    assert {(case.dtype, case.width) for case in found["fwpkm"]} == {("float32", 32), ("float32", 64)}
    assert {(case.dtype, case.width) for case in found["scan"]} == {("float32", 16)}  # which knows no heads
    assert {(case.dtype, case.width) for case in found["recurrence"]} == {("bfloat16", 32), ("bfloat16", 64)}
    assert {case.variant for case in found["selective_scan"]} == {"", "carried"}  # the second call's


def test_a_problem_must_be_about_calls_of_its_variant(planted: ModuleType) -> None:
    (problem, *_) = planted.problems(32)
    with pytest.raises(ValueError, match="the problem 'another' of planted makes no such call, but 'segfault'"):
        key_of(planted.OP, replace(problem, variant="another"), "float32")


def test_unknown_dtypes_are_told(planted: ModuleType) -> None:
    with pytest.raises(ValueError, match="unknown dtype float8; give some of bfloat16, float32, float16"):
        examination(planted, dtypes=["float8"])
