"""What is read of GPUs, from a stand-in for `nvidia-smi` that answers as drivers of several ages do."""

import json
import sys
from types import SimpleNamespace

import pytest
import torch
from mixerzoo.benchmarks.environment import collect_environment, differences, end_of_start
from mixerzoo.benchmarks.gpus import gpus, held_down, used_gpu

# As nvidia-smi does it: a field that it does not know, and nothing else is said.
NVIDIA_SMI = """#!{python}
import json, sys
(query,) = (a.partition("=")[2] for a in sys.argv[1:] if a.startswith("--query-gpu="))
assert "--format=csv,noheader,nounits" in sys.argv
cards = json.load(open({state!r}))
for field in query.split(","):
    if field not in cards[0]:
        print(f'Field "{{field}}" is not a valid field to query.\\n')
        sys.exit(2)
for card in cards:
    print(", ".join(card[field] for field in query.split(",")))
"""
UUIDS = ["GPU-aaaaaaaa-0000-0000-0000-000000000000", "GPU-bbbbbbbb-0000-0000-0000-000000000000"]
NEW, OLD = "clocks_event_reasons", "clocks_throttle_reasons"
COUNTERS = ["sw_power_cap", "sw_thermal_slowdown", "hw_thermal_slowdown", "hw_power_brake_slowdown"]


def card(index, reasons="0x0000000000000001", field=f"{NEW}.active", counted=None, **more):
    """What a driver says of one GPU; field: what it calls the reasons; counted: whether it counts them, in all so many
    microseconds of each."""
    known = {
        "index": str(index),
        "uuid": UUIDS[index],
        "name": "NVIDIA H200",
        "driver_version": "570.86.15",
        "persistence_mode": "Enabled",
        "memory.total": "143771",
        "temperature.gpu": "35",
        "power.draw": "76.43",
        "power.limit": "700.00",
        "clocks.sm": "345",
        "clocks.max.sm": "1980",
        "clocks.mem": "3201",
    }
    known |= {field: reasons} if field else {}
    known |= {} if counted is None else {f"{NEW}_counters.{name}": str(counted) for name in COUNTERS}
    return {**known, **more}


@pytest.fixture
def nvidia_smi(tmp_path, monkeypatch):
    """`nvidia_smi(cards)`: the program is there, and lists these cards."""
    state, program = tmp_path / "cards.json", tmp_path / "bin" / "nvidia-smi"
    program.parent.mkdir()
    program.write_text(NVIDIA_SMI.format(python=sys.executable, state=str(state)))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=":")
    return lambda *cards: state.write_text(json.dumps(cards))


def test_everything_that_a_new_driver_says(nvidia_smi):
    nvidia_smi(card(0, counted=5), card(1, reasons="0x0000000000000024", counted=0))
    first, second = gpus()
    assert first == {
        "uuid": UUIDS[0],
        "name": "NVIDIA H200",
        "driver": "570.86.15",
        "persistence_mode": "Enabled",
        "index": 0,
        "memory_mib": 143771,
        "temperature_celsius": 35,
        "power_watts": 76.43,
        "power_limit_watts": 700,
        "sm_clock_mhz": 345,
        "max_sm_clock_mhz": 1980,
        "memory_clock_mhz": 3201,
        "clock_reasons": ["gpu_idle"],
        "held_down_us": dict.fromkeys(COUNTERS, 5),
    }
    assert second["index"] == 1 and second["clock_reasons"] == ["sw_power_cap", "sw_thermal_slowdown"]
    json.dumps([first, second], allow_nan=False)


@pytest.mark.parametrize("field", [f"{NEW}.active", f"{OLD}.active", None])
def test_fields_that_an_older_driver_does_not_know_are_done_without(nvidia_smi, field):
    nvidia_smi(card(0, reasons="0x0000000000000048", field=field))
    (found,) = gpus()
    assert found["name"] == "NVIDIA H200" and "held_down_us" not in found
    assert found["clock_reasons"] == (None if field is None else ["hw_slowdown", "hw_thermal_slowdown"])


def test_what_a_card_does_not_tell_is_none(nvidia_smi):
    missing = {"power.draw": "[N/A]", "power.limit": "[Not Supported]", "clocks.sm": "N/A", "persistence_mode": "[N/A]"}
    nvidia_smi(card(0, reasons="[N/A]", **missing))
    (found,) = gpus()
    assert [found[k] for k in ("power_watts", "power_limit_watts", "sm_clock_mhz", "persistence_mode")] == [None] * 4
    assert found["clock_reasons"] is None and found["temperature_celsius"] == 35


def test_without_the_program_or_with_one_that_fails_there_is_none(nvidia_smi, monkeypatch, tmp_path):
    (tmp_path / "bin" / "nvidia-smi").write_text("#!/bin/sh\necho 'NVIDIA-SMI has failed'\nexit 9\n")
    assert gpus() == []
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpus() == []


def reading(index, reasons=(), **counted):
    return {"uuid": UUIDS[index], "clock_reasons": list(reasons), "held_down_us": counted}


def test_what_held_a_clock_down_is_seen_at_either_moment_or_between():
    before, quiet = [reading(0), reading(1, ["gpu_idle"])], [reading(0), reading(1, ["gpu_idle"])]
    assert held_down(before, quiet, UUIDS[1]) == []
    assert held_down(before, [reading(0), reading(1, ["hw_slowdown"])], UUIDS[1]) == ["hw_slowdown"]
    assert held_down([reading(0), reading(1, ["sw_power_cap"])], quiet, UUIDS[1]) == ["sw_power_cap"]
    # clocks that somebody set are not held down
    assert held_down(before, [reading(0), reading(1, ["applications_clocks_setting"])], UUIDS[1]) == []
    between = [reading(1, sw_power_cap=7, hw_thermal_slowdown=2)], [reading(1, sw_power_cap=9, hw_thermal_slowdown=2)]
    assert held_down(*between, UUIDS[1]) == ["sw_power_cap"]
    # another's card, and a part of a card whose uuid is its own
    other = [reading(0, ["hw_slowdown"]), reading(1)]
    assert held_down(before, other, UUIDS[1]) == [] and held_down(before, other, "MIG-1") == ["hw_slowdown"]
    assert held_down([], [{"uuid": UUIDS[0], "clock_reasons": None}], UUIDS[0]) == []


@pytest.fixture
def on_cuda(monkeypatch):
    """torch as it is on a machine with two GPUs, of which only the properties are asked."""
    cards = [
        SimpleNamespace(name=f"card {i}", major=9, minor=i, total_memory=2**37, uuid=uuid.removeprefix("GPU-"))
        for i, uuid in enumerate(UUIDS)
    ]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: cards[index])
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91002)


def test_the_environment_of_a_cuda_run_names_the_gpu_and_what_computes_on_it(nvidia_smi, on_cuda):
    nvidia_smi(card(0, counted=1), card(1, counted=1))
    now = collect_environment(device="cuda:1", jobs=1, threads=2, tf32="auto")
    assert now["gpu"] == {
        "index": 1,
        "uuid": UUIDS[1],
        "name": "card 1",
        "compute_capability": "9.1",
        "memory_bytes": 2**37,
    }
    assert now["cuda"] == {"version": "12.8", "cudnn": 91002}
    assert now["tf32"] == {"switch": "auto", "in_float32": False, "in_bfloat16": True}
    assert used_gpu("cuda")["index"] == 0 and used_gpu("cpu") is None
    json.dumps(now, allow_nan=False)

    warm = {"temperature.gpu": "71", "clocks.sm": "1200"}
    nvidia_smi(card(0, counted=1), card(1, counted=9, reasons="0x4", **warm))
    ended = end_of_start(now)
    assert ended["held_down"] == ["sw_power_cap", *COUNTERS[1:]] and ended["started"] == now["started"]
    assert [gpu["sm_clock_mhz"] for gpu in ended["before"]] == [345, 345]
    assert [gpu["sm_clock_mhz"] for gpu in ended["after"]] == [345, 1200] and ended["after"][1]["index"] == 1
    assert ended["ended"] >= now["started"]
    # clocks and temperatures are of a moment, the card is not
    again = collect_environment(device="cuda:1", jobs=1, threads=2, tf32="auto")
    assert differences(now, again) == {}
    other = collect_environment(device="cuda:0", jobs=1, threads=2, tf32=False)
    assert set(differences(now, other)) == {"gpu", "tf32"}


def test_a_run_on_a_cpu_notes_its_end_and_no_gpu():
    now = collect_environment(device="cpu", jobs=1, threads=2)
    assert not {"gpu", "cuda", "tf32"} & set(now)
    assert set(end_of_start(now)) == {"started", "ended"}
