"""Two processes train as one does with the same batches."""

import json
import os
import subprocess
import sys

import pytest
import torch
from mixerzoo.benchmarks.tasks import NeedleTask
from mixerzoo.benchmarks.training import TrainingSettings, train_or_load
from mixerzoo.benchmarks.training.distributed import Ranks
from mixerzoo.models import LanguageModel, ModelConfig

CPU = torch.device("cpu")
LAYOUT = "softmax_attention(heads=2), gated_deltanet(heads=2) | fwpkm(n_subkeys=8, d_k=8, d_v=8, chunk_size=8)@1"
CONFIG = ModelConfig(LAYOUT, d_model=16, n_layers=2)
TASK = NeedleTask(n_needles=2)
MIX = [{"share": 1, "mix": [{"length": 24}, {"length": 50, "load": 4}, {"length": 32}]}]  # 8, 4 and 6 rows
SETTINGS = {
    "steps": 12,
    "batch": 5,
    "length": 40,
    "curriculum": MIX,
    "accumulate": 2,
    "learning_rate": 3e-3,
    "bar": {"examples": 4, "every": 6, "stop": False},
    "save_every": 5,
}
SCRIPT = """
import sys
from pathlib import Path
import torch
sys.path.insert(0, {tests!r})
from mixerzoo.benchmarks.training import TrainingSettings, train_or_load
from mixerzoo.benchmarks.training.distributed import process_group
from test_training_parallel import CONFIG, SETTINGS, TASK

class Stop(Exception):
    pass

def stop(fraction, text):
    if fraction > 0.6:
        raise Stop

with process_group("cpu") as device:
    for parallel in ("ddp", "fsdp"):
        settings, out = TrainingSettings(**SETTINGS, parallel=parallel), Path(sys.argv[1])
        def run(progress, folder=out / parallel):
            return train_or_load(CONFIG, TASK, settings, seed=1, device=device, folder=folder, progress=progress)
        try:
            run(stop)
        except Stop:
            assert (out / parallel / "resume-5.safetensors").is_file()
        model, record = run(lambda *_: None)
        whole, _ = run(lambda *_: None, out / (parallel + "-whole"))
        assert all(torch.equal(p, q) for p, q in zip(model.state_dict().values(), whole.state_dict().values()))
        assert {{type(p).__name__ for p in model.parameters()}} == {{"Parameter"}}
        assert not model.training
"""


def torchrun(*arguments, processes=2):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*command, *map(str, arguments)], capture_output=True, text=True, env=environment, timeout=240
    )


def test_two_processes_follow_the_curve_of_one_even_when_resumed(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT.format(tests=os.path.dirname(__file__)))
    done = torchrun(tmp_path / "script.py", tmp_path)
    assert done.returncode == 0, done.stderr
    settings = TrainingSettings(**SETTINGS)
    one, record = train_or_load(
        CONFIG, TASK, settings, seed=1, device=CPU, folder=tmp_path / "one", progress=lambda *_: None
    )
    losses = [loss for _, loss in record["curve"]]
    assert max(losses) - min(losses) > 0.5
    for parallel in ("ddp", "fsdp"):
        two = json.loads((tmp_path / parallel / "training.json").read_text())["training"]
        assert [step for step, _ in two["curve"]] == [step for step, _ in record["curve"]]
        assert [loss for _, loss in two["curve"]] == pytest.approx(losses, abs=2e-5)
        assert two["tokens"] == record["tokens"] and two["data"] == record["data"]
        assert [e[:2] for e in two["evaluations"]] == [e[:2] for e in record["evaluations"]]
        model = LanguageModel.load(tmp_path / parallel)
        for (name, p), q in zip(one.named_parameters(), model.parameters(), strict=True):
            torch.testing.assert_close(q, p, rtol=1e-3, atol=2e-4, msg=lambda text, name=name: f"{name}: {text}")
        assert two["resumed_at"] == [5] and not list((tmp_path / parallel).glob("resume*"))


def test_ranks_share_the_rows_of_a_batch():
    batch = torch.arange(5)[:, None].expand(5, 3)
    assert [Ranks(rank, 2).rows(batch)[:, 0].tolist() for rank in (0, 1)] == [[0, 1, 2], [3, 4]]
    assert Ranks().rows(batch) is not None and len(Ranks().rows(batch)) == 5


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_one_process_alone_is_told_how_to_start_two(parallel, tmp_path):
    settings = TrainingSettings(**SETTINGS, parallel=parallel)
    with pytest.raises(ValueError, match=f"parallel: {parallel} needs several processes: start it with `torchrun"):
        train_or_load(CONFIG, TASK, settings, seed=1, device=CPU, folder=tmp_path, progress=lambda *_: None)


@pytest.mark.parametrize("fields", [{"optimizer": "muon"}, {"compile": True}])
def test_what_does_not_go_with_shards_is_refused(fields):
    with pytest.raises(ValueError, match="parallel: fsdp goes with"):
        TrainingSettings(parallel="fsdp", **fields)
