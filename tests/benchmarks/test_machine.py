"""The lock of a machine: what is timed is alone, and does not wait for ever."""

import os
import subprocess
import sys
import time

import pytest
from mixerzoo.benchmarks import machine
from mixerzoo.benchmarks.machine import FOLDER_VARIABLE, MachineLock, this_machine


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "locks"))


def test_cases_work_beside_each_other_and_a_timed_one_alone():
    one, two, alone, later = (MachineLock("cpu", exclusive) for exclusive in (False, False, True, False))
    assert one.take() and two.take() and one.take()
    assert not alone.take()
    assert not later.take(), "who came later overtook the one that waits to be alone"
    one.release()
    assert not alone.take()
    two.release()
    assert alone.take() and not later.take()
    alone.release()
    assert later.take()
    later.release()


def test_two_that_would_be_alone_take_turns():
    one, two = MachineLock("cpu", True), MachineLock("cpu", True)
    assert one.take() and not two.take()
    one.release()
    assert two.take() and not one.take()
    two.release()


def test_who_gives_up_waiting_is_in_nobodys_way():
    one, alone, later = MachineLock("cpu", False), MachineLock("cpu", True), MachineLock("cpu", False)
    assert one.take() and not alone.take() and not later.take()
    alone.release()
    assert later.take()


def test_the_lock_of_a_killed_process_is_free_when_its_children_are_gone():
    program = """
import subprocess, sys, time
from mixerzoo.benchmarks.machine import MachineLock
lock = MachineLock("cpu", True)
assert lock.take()
child = subprocess.Popen(["sleep", "60"], pass_fds=lock.filenos, stdout=subprocess.DEVNULL)
print(child.pid, flush=True)
time.sleep(60)
"""
    holder = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    child = int(holder.stdout.readline())
    lock = MachineLock("cpu", True)
    assert not lock.take()
    holder.kill()
    holder.communicate()
    assert not lock.take()
    os.kill(child, 9)
    deadline = time.monotonic() + 30
    while not lock.take():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_gpu_has_a_lock_of_its_own_beside_that_of_the_machine(monkeypatch, tmp_path):
    monkeypatch.setattr(machine, "used_gpu", lambda device: {"uuid": f"GPU-{device[-1]}"})
    lock = MachineLock("cuda:1", True)
    assert lock.take() and len(lock.filenos) == 2
    assert {path.name for path in (tmp_path / "locks").iterdir()} == {"gate.lock", "machine.lock", "GPU-1.lock"}
    lock.release()


def test_the_folder_serves_all_users_and_a_link_in_it_is_not_followed(tmp_path):
    assert MachineLock("cpu", True).take()
    assert (tmp_path / "locks").stat().st_mode & 0o7777 == 0o1777
    (tmp_path / "locks" / "machine.lock").unlink()
    (tmp_path / "locks" / "machine.lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError):
        MachineLock("cpu", True).take()
    assert not (tmp_path / "elsewhere").exists()


def test_a_machine_has_a_kind_and_details():
    found = this_machine("cpu")
    assert found.name == os.uname().nodename and "core" in found.kind
    assert found.details["memory_bytes"] > 1e8 and found.details["packages"]["torch"] and "python" in found.details
