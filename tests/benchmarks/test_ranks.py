"""One case by several processes: how it ends when they do well, and when one of them does not."""

import importlib
import os
import signal
import sys
import time

import psutil
import pytest
import torch
from mixerzoo.benchmarks.case import Case
from mixerzoo.benchmarks.case_process import run_to_end
from mixerzoo.benchmarks.executors.base import Job
from mixerzoo.benchmarks.plan import Planner
from mixerzoo.benchmarks.ranks import _first_cause
from mixerzoo.benchmarks.suite import SuiteError, parse_suite
from mixerzoo.benchmarks.tasks import NeedleTask
from mixerzoo.benchmarks.train_file import load_train_file
from mixerzoo.benchmarks.training import TrainingSettings, train_or_load
from mixerzoo.models import LanguageModel, ModelConfig

# A case of two ranks that meet first, and then do what the case says, without a model.
FAKE_RANKS = """
import ctypes, os, signal
import torch.distributed as dist
from mixerzoo.benchmarks.doing import Doing
from mixerzoo.benchmarks.ranks import run_ranks

def run_case(job, channel):
    return run_ranks(job, channel, 2, act)

def act(job, channel, device):
    dist.barrier()
    channel.progress(0.5, Doing("all are here", {"group": os.getpgid(0), "pid": os.getpid()}))
    if dist.get_rank() == 1:
        if job["parameters"]["act"] == "value": raise ValueError("this rank has had enough")
        if job["parameters"]["act"] == "segfault": ctypes.string_at(0)
    dist.barrier()
    return {}
"""
SUITE = """
name: two
model: {preset: nano, d_model: 16, n_layers: 1, d_ff: 16, vocab_size: 449}
layouts: {delta: "gated_deltanet(heads=2)"}
measures:
  - measure: recall
    task: {task: needle, n_needles: 2, n_keys: 128}
    training: {steps: 8, batch: 4, length: 32, parallel: ddp, processes: 2}
    lengths: [32]
    examples: 2
"""


def run(case, folder, run_case=None):
    """How a case ended, and what was heard of it."""
    heard = []
    more = {} if run_case is None else {"run_case": run_case}
    ended = run_to_end(Job(case, 1, str(folder), 2, 300.0, None), heard.append, **more)
    return ended, heard


def test_a_training_by_two_processes_gives_what_one_gives(tmp_path):
    suite = parse_suite(SUITE, "two.yaml")
    (case,) = Planner(suite, "cpu")({}).cases
    assert case.measure == "training" and case.processes == 2
    ended, heard = run(case, tmp_path / "case")
    assert ended.outcome["status"] == "ok", ended.outcome
    assert ended.outcome["backends"]["recurrence"] == ["chunked"]
    assert [news.doing.stage for news in heard][-1].startswith("training: step")
    metrics = ended.outcome["metrics"]
    alone = TrainingSettings.model_validate(case.parameters["training"]).alone
    config = ModelConfig.from_dict(case.model)
    where = {"seed": case.seed, "device": torch.device("cpu"), "folder": tmp_path / "alone"}
    model, record = train_or_load(config, NeedleTask(n_needles=2, n_keys=128), alone, **where, progress=lambda *_: None)
    assert [loss for _, loss in metrics["training"]["curve"]] == pytest.approx(
        [loss for _, loss in record["curve"]], abs=2e-5
    )
    assert metrics["data"] == record["data"] and metrics["training"]["steps"] == 8
    # whole, for one process to load
    loaded = LanguageModel.load(tmp_path / "case" / "checkpoint")
    for (name, one), other in zip(model.state_dict().items(), loaded.state_dict().values(), strict=True):
        torch.testing.assert_close(other, one, rtol=1e-3, atol=2e-4, msg=lambda text, name=name: f"{name}: {text}")
    assert [p.name for p in (tmp_path / "case").iterdir()] == ["checkpoint"]


@pytest.mark.parametrize(
    ("act", "status", "error"),
    [
        ("value", "invalid", "rank 1 of 2: ValueError: this rank has had enough"),
        ("segfault", "crashed", "rank 1 of 2: killed by signal 11 (Segmentation fault)\n"),
    ],
)
def test_the_rank_that_failed_first_is_what_ended_the_case(act, status, error, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "fake_ranks.py").write_text(FAKE_RANKS)
    monkeypatch.delitem(sys.modules, "fake_ranks", raising=False)
    case = Case("label", "line", {"layout": "line"}, "fake", {"act": act}, 0, "cpu", False, processes=2)
    started = time.monotonic()
    ended, heard = run(case, tmp_path / "case", importlib.import_module("fake_ranks").run_case)
    assert ended.outcome["status"] == status and ended.outcome["error"].startswith(error)
    assert "Connection" not in ended.outcome["error"].splitlines()[0]
    if act == "segfault":
        assert "Fatal Python error: Segmentation fault" in ended.outcome["error"]
    assert time.monotonic() - started < 200  # not when a collective call gives up, which is after half an hour
    # rank 0 waited for the other one: it was in the group of the case, and is gone with it
    group = next(int(news.doing.values["group"]) for news in heard if news.doing.stage == "all are here")
    assert group != os.getpgid(0)
    while group in {_group(p.pid) for p in psutil.process_iter(["status"]) if p.info["status"] != psutil.STATUS_ZOMBIE}:
        assert time.monotonic() - started < 200, "a rank of a finished case is still there"
        time.sleep(0.05)
    assert not (tmp_path / "case" / "ranks").exists()


def _group(pid):
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return None


def failure(rank, error, time, status="crashed", lost_connection=False):
    return {"rank": rank, "error": error, "time": time, "status": status, "lost_connection": lost_connection}


@pytest.mark.parametrize(
    ("codes", "failures", "status", "error"),
    [
        # who loses its connection first is not who failed first
        (
            {0: 1},
            [failure(0, "gloo", 1.0, lost_connection=True), failure(1, "NaN", 2.0, "not_finite")],
            "not_finite",
            "rank 1 of 3: NaN",
        ),
        ({0: 1}, [failure(0, "late", 3.0), failure(2, "early", 2.0)], "crashed", "rank 2 of 3: early"),
        # who dies without a word comes first: nothing of others does that
        (
            {1: -signal.SIGKILL},
            [failure(0, "some error", 1.0)],
            "out_of_memory",
            "rank 1 of 3: killed by SIGKILL, which the runner did not send",
        ),
        ({2: 7}, [failure(0, "gloo", 1.0, lost_connection=True)], "crashed", "rank 2 of 3: exited with code 7"),
        ({0: 1}, [failure(0, "gloo", 1.0, lost_connection=True)], "crashed", "rank 0 of 3: gloo"),
    ],
)
def test_the_first_cause(codes, failures, status, error):
    found = _first_cause(codes, failures, 3)
    assert found.status == status and str(found).startswith(error)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("parallel: ddp, ", "", r"two.yaml:8: measures\[0\].training.processes: .*need parallel: ddp or"),
        (", processes: 2", "", r"two.yaml:8: measures\[0\].training.parallel: ddp needs processes: 2 or more"),
        ("batch: 4", "batch: 1", r"two.yaml:8: .*processes: they cannot share a step of 1 sequences of 32 tokens"),
        ("processes: 2", "processes: 0", r"two.yaml:8: measures\[0\].training.processes"),
    ],
)
def test_processes_that_cannot_be_are_refused_with_their_line(old, new, message):
    assert old in SUITE
    with pytest.raises(SuiteError, match=message):
        parse_suite(SUITE.replace(old, new), "two.yaml")


def test_a_training_file_leaves_processes_to_torchrun(tmp_path):
    (tmp_path / "one.yaml").write_text(
        "model: {layout: gated_deltanet}\ntask: {task: needle}\ntraining:\n  parallel: ddp\n  processes: 2\n"
    )
    with pytest.raises(SuiteError, match=r"one\.yaml:5: training\.processes: is for suites"):
        load_train_file(tmp_path / "one.yaml")


def test_cases_of_one_process_keep_their_ids():
    settings = TrainingSettings()
    assert "processes" not in settings.model_dump() and "processes" not in settings.model_dump(mode="json")
    several = TrainingSettings(parallel="ddp", processes=2)
    assert several.model_dump()["processes"] == 2
    assert TrainingSettings.model_validate(several.model_dump()) == several
    assert TrainingSettings.model_validate(several.alone.model_dump()) == settings


def test_what_asks_the_model_needs_one_process():
    suite = parse_suite(SUITE, "two.yaml")
    measure = suite.entries[0].measure
    (asking,) = measure.asking_cases(measure.training, "0" * 12)
    assert (measure.processes, asking.processes, measure.training_case({}, measure.training).processes) == (1, 1, 2)
