"""Suites at toy scale: every bundled one can be planned, and those made for a GPU run to their end here."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from mixerzoo.benchmarks.measures import mixer_speed
from mixerzoo.benchmarks.plan import Planner
from mixerzoo.benchmarks.runs import Run
from mixerzoo.benchmarks.scale import toy
from mixerzoo.benchmarks.suite import bundled_suites, load_suite
from mixerzoo.benchmarks.worker import run_case

GPU_SUITES = [name for name in bundled_suites() if load_suite(name).settings.device == "cuda"]


@pytest.mark.parametrize("name", bundled_suites())
def test_a_suite_keeps_what_it_is_about(name):
    full, small = load_suite(name), toy(load_suite(name))
    assert small.settings.device is None and small.settings.name == f"{name}-toy"
    assert list(small.layouts) == list(full.layouts)
    assert [entry.name for entry in small.entries] == [entry.name for entry in full.entries]
    for before, after in zip(full.entries, small.entries):
        lengths = [getattr(entry.measure, "lengths", ()) for entry in (before, after)]
        assert len(lengths[0]) == len(lengths[1]) and list(lengths[1]) == sorted(lengths[1])
        assert max(lengths[1], default=0) < 1024
    assert Planner(small, "cpu")({}).cases


@pytest.fixture
def one_core():
    """Cases take as many threads as there are cores; threads of tests beside each other wait for one another."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    yield
    os.sched_setaffinity(0, before)


def run(tmp_path, name, only):
    options = [part for pattern in only for part in ("--only", pattern)]
    command = [sys.executable, "-m", "mixerzoo.benchmarks.cli", "run", name, "--scale", "toy", "--device", "cpu"]
    command += ["--out", str(tmp_path / "run"), "--no-estimate", *options]
    done = subprocess.run(command, capture_output=True, text=True)  # its environment is set before anything is imported
    results = Run(tmp_path / "run").results()
    assert done.returncode == 0, [(r.layout, r.measure, r.error) for r in results if r.status != "ok"]
    return results


def test_fwpkm_speed_gpu_runs_here(tmp_path, one_core):
    (result,) = run(tmp_path, "fwpkm-speed-gpu", ["op_speed"])
    assert {row["backend"]: row["ran"] for row in result.metrics["rows"]} == {
        "triton": {"fwpkm": ["triton"]},
        "compact": {"fwpkm": ["compact"]},
    }


OVERHEAD = """
import json, sys
from mixerzoo.benchmarks.worker import run_case
metrics = run_case(json.loads(sys.argv[1]), type("Silent", (), {"progress": lambda *_: None})())
print(json.dumps([[row["backend"], row["ran"].get("fwpkm")] for row in metrics["rows"]]))
"""


def test_overhead_in_fwpkm_speed_gpu_is_that_of_its_kernels(tmp_path):
    """Of one layer: a whole step of twelve takes the interpreter seconds. A process of its own is told to interpret."""
    cases = Planner(toy(load_suite("fwpkm-speed-gpu")), "cpu")({}).cases
    (case,) = (case for case in cases if case.measure == "overhead")
    model = {**case.model, "layout": case.layout_line.replace("@2,6,10", "@0"), "n_layers": 1}
    job = {"model": model, "measure": case.measure, "parameters": case.parameters, "seed": 0, "device": "cpu"}
    job |= {"tf32": False, "threads": 1, "folder": str(tmp_path)}
    command = [sys.executable, "-c", OVERHEAD, json.dumps(job)]
    done = subprocess.run(command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [["with", ["triton"]], ["without", None]]


def test_extrapolation_runs_here_and_asks_what_it_trained(tmp_path, one_core):
    results = run(tmp_path, "extrapolation", ["linear attention"])
    assert {r.measure for r in results} == {"tuning", "training", "recall"}
    assert {len(r.parameters["passes"]) for r in results if r.measure == "recall"} == {1, 4}


def test_paper_main_runs_here(tmp_path, one_core):
    assert {r.measure for r in run(tmp_path, "paper-main", ["gdn"])} == {"training", "perplexity", "recall"}


def test_zoo_speed_gpu_runs_here(tmp_path, monkeypatch):
    """Every mixer, at its first length, in this process and without the profiler: else it would take minutes."""
    unread = {"peak_bytes": 0, "method": "not read"}
    monkeypatch.setattr(mixer_speed, "peaks_in_turn", lambda contenders, *_: [unread] * len(contenders))
    suite = toy(load_suite("zoo-speed-gpu"))
    cases = {(c.label, c.measure): c for c in reversed(Planner(suite, "cpu")({}).cases)}
    speed = [case for (_, measure), case in cases.items() if measure == "mixer_speed"]
    assert len(speed) == len(suite.layouts)
    for case in speed:
        job = {"model": case.model, "measure": case.measure, "parameters": case.parameters, "seed": 0}
        metrics = run_case({**job, "device": "cpu", "tf32": False, "threads": 1, "folder": str(tmp_path)}, Silent())
        modes = [row["mode"] for row in metrics["rows"] if row["backend"] == "mixer"]
        assert modes == ["forward", "train", "prefill", "decode"], case.label


class Silent:
    def __init__(self):
        self.backends = {}

    def progress(self, fraction, message):
        pass


def test_suites_for_a_gpu_are_all_tried():
    assert GPU_SUITES == ["extrapolation", "fwpkm-speed-gpu", "paper-main", "zoo-speed-gpu"]


SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu" / "run.sh"


def settings(tmp_path, **more):
    command = f"{sys.executable} -m mixerzoo.benchmarks.cli"
    return os.environ | {"OUT": str(tmp_path), "DEVICE": "cpu", "SCALE": "toy", "MIXERZOO": command, **more}


def test_the_script_for_a_gpu_runs_a_suite_here(tmp_path, one_core):
    subprocess.run(["bash", SCRIPT, "smoke"], env=settings(tmp_path), check=True, stdout=subprocess.DEVNULL)
    assert {r.status for r in Run(tmp_path / "smoke").results()} == {"ok"}
    assert (tmp_path / "smoke" / "report.html").is_file()


def test_the_script_stops_the_doctor_in_time(tmp_path):
    own = settings(tmp_path, MINUTES="0.05", MIXERZOO_CACHE=str(tmp_path / "cache"))
    done = subprocess.run(["bash", SCRIPT, "doctor"], env=own, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (3, "stopped after 0.05 minutes; call it again to go on\n")
