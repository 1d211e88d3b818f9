"""Nodes of a Ray cluster on this machine, each a group of processes that can be killed at once."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil

STORE_BYTES = "80000000"  # the least that Ray allows, about


class Node:
    """One machine of a cluster, as far as Ray can tell."""

    def __init__(self, folder: Path, path: Path, cpus: int = 2, address: str | None = None):
        """folder: short, sockets lie in it. path: where cases import their code from. address: of the head, None for
        the head itself."""
        if address is None:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                port = free.getsockname()[1]
            where = ["--head", f"--port={port}", f"--temp-dir={folder}", "--include-dashboard=false"]
        else:
            where = [f"--address={address}"]
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", *where, f"--num-cpus={cpus}"]
        command += ["--num-gpus=0", "--block", f"--object-store-memory={STORE_BYTES}", "--disable-usage-stats"]
        environment = {**os.environ, "PYTHONPATH": str(path), "RAY_USAGE_STATS_ENABLED": "0"}
        environment.pop("RAY_ADDRESS", None)
        self.output = (folder / f"{time.monotonic_ns()}.txt").open("w+b")
        self.process = subprocess.Popen(
            command, stdout=self.output, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
        self.address = address or f"{self._said(r'Local node IP: ([0-9.]+)')}:{port}"
        self._said(r"(Ray runtime started)")

    def _said(self, pattern: str) -> str:
        deadline = time.monotonic() + 60
        while not (found := re.search(pattern, self.text())):
            assert self.process.poll() is None and time.monotonic() < deadline, self.text()
            time.sleep(0.05)
        return found.group(1)

    def text(self) -> str:
        return Path(self.output.name).read_text(errors="replace")

    def family(self) -> list[psutil.Process]:
        """All processes of the node, those of cases included."""
        try:
            first = psutil.Process(self.process.pid)
            return [first, *first.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def kill(self) -> None:
        """As if the power went."""
        for process in self.family():
            try:
                process.send_signal(signal.SIGKILL)
            except psutil.NoSuchProcess:
                continue
        self.process.wait()
        self.output.close()
