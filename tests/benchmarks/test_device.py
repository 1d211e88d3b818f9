"""Which device a run is made on, where there is none, one or several; no GPU is needed to say so."""

import contextlib
import dataclasses

import pytest
import torch
from mixerzoo.benchmarks.case import Case
from mixerzoo.benchmarks.cli import main
from mixerzoo.benchmarks.contract_report import ContractRun
from mixerzoo.benchmarks.device import choose_device, kind_of, make_current, usable_here
from mixerzoo.benchmarks.training.distributed import process_group


@pytest.fixture
def two_gpus(monkeypatch):
    """torch as it is with two GPUs; returns the devices that were made current."""
    current = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    return current


def test_one_of_several_gpus_can_be_named(two_gpus):
    assert choose_device("auto") == choose_device("cuda") == "cuda"
    assert choose_device("cuda:1") == choose_device("cuda:1", only="cuda") == "cuda:1"
    assert kind_of("cuda:1") == "cuda" and kind_of("cpu") == "cpu"
    with pytest.raises(ValueError, match="no device 'cuda:2' here, only cuda:0 to cuda:1"):
        choose_device("cuda:2")
    with pytest.raises(ValueError, match="measures on cpu, and says nothing about cuda"):
        choose_device("cuda:1", only="cpu")
    with pytest.raises(ValueError, match="unknown device 'cuda:x'; give auto, cpu, cuda, or cuda:N"):
        choose_device("cuda:x")


@pytest.mark.parametrize("name", ["cuda", "cuda:0"])
def test_a_machine_without_one_says_so(monkeypatch, name):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="no CUDA device can be used here; give --device cpu"):
        choose_device(name)
    with pytest.raises(ValueError, match="measures a CUDA device, and none can be used here"):
        choose_device(name, only="cuda")


def test_a_machine_without_one_may_submit_jobs_for_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("cuda", elsewhere=True) == choose_device("auto", only="cuda", elsewhere=True) == "cuda"
    assert choose_device("auto", elsewhere=True) == "cpu"
    assert usable_here("cpu") and not usable_here("cuda")


def test_kernels_are_launched_where_the_tensors_are(two_gpus):
    for name in ("cpu", "cuda", "cuda:1"):
        make_current(torch.device(name))
    assert two_gpus == [torch.device("cuda:1")]
    with process_group("cuda:1") as own:
        assert own == torch.device("cuda:1")
    assert len(two_gpus) == 2


def test_a_mixer_is_checked_on_the_gpu_that_was_named(two_gpus, monkeypatch):
    checked = []

    def of(place, backend):
        checked.append((place, *two_gpus))
        return ContractRun(place, backend, {})

    monkeypatch.setattr(ContractRun, "of", of)
    monkeypatch.setattr(ContractRun, "check", lambda run, name, numbers, survive: None)
    with contextlib.suppress(SystemExit):
        main(["check", "identity", "--device", "cuda:1"])
    assert checked == [("cuda:1", torch.device("cuda:1"))]


def test_processes_take_a_gpu_each(two_gpus, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(ValueError, match="each process takes a GPU of its own"), process_group("cuda:1"):
        pass


def test_which_of_several_gpus_it_was_does_not_change_a_case():
    case = Case("label", "line", {}, "speed", {}, 0, "cuda", True)
    assert dataclasses.replace(case, device="cuda:1").id == case.id
    assert dataclasses.replace(case, device="cpu").id != case.id
    assert dataclasses.replace(case, tf32=True).id != case.id
