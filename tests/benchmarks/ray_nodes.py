"""Nodes of a Ray cluster on this machine, each a group of processes that can be killed at once."""

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil

# the least memory for objects that Ray allows, about; and machines that die are missed soon
STORE_BYTES = "80000000"
HEALTH = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_failure_threshold": 3}


class Node:
    """One machine of a cluster, as far as Ray can tell; `ready` waits until it is there."""

    def __init__(self, folder: Path, path: Path, cpus: int = 0, head: "Node | None" = None):
        """folder: a short one, sockets lie in it. path: where cases import their code from. head: None to be it."""
        if head is None:
            with socket.socket() as free:
                free.bind(("", 0))
                self.port = free.getsockname()[1]
            where = ["--head", f"--port={self.port}", f"--temp-dir={folder}", "--include-dashboard=false"]
            where += ["--system-config", json.dumps(HEALTH)]
        else:
            where = [f"--address={head.address}"]
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", *where, f"--num-cpus={cpus}"]
        command += ["--num-gpus=0", f"--object-store-memory={STORE_BYTES}", "--disable-usage-stats"]
        name = str(time.monotonic_ns())
        (folder / f"locks{name}").mkdir()  # of its own, as on a machine of its own
        added = {"PYTHONPATH": str(path), "MIXERZOO_LOCKS": str(folder / f"locks{name}")}
        self.output = folder / f"node{name}.txt"
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                command, stdout=output, stderr=subprocess.STDOUT, env={**os.environ, **added}, start_new_session=True
            )

    def ready(self) -> "Node":
        self._said(r"(Ray runtime started)")
        return self

    @property
    def address(self) -> str:
        """Of a head."""
        return f"{self._said(r'Local node IP: ([0-9.]+)')}:{self.port}"

    def _said(self, pattern: str) -> str:
        deadline = time.monotonic() + 120
        while not (found := re.search(pattern, self.output.read_text(errors="replace"))):
            running = self.process.poll() is None
            assert running and time.monotonic() < deadline, self.output.read_text(errors="replace")
            time.sleep(0.05)
        return found.group(1)

    def family(self) -> list[psutil.Process]:
        """All its processes, those of cases included."""
        try:
            first = psutil.Process(self.process.pid)
            return [first, *first.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def kill(self) -> None:
        """As if the power went: none lives to see another die."""
        family = self.family()
        for stop in (psutil.Process.suspend, psutil.Process.kill):
            for process in family:
                with contextlib.suppress(psutil.NoSuchProcess):
                    stop(process)
        self.process.wait()
