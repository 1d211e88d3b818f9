"""A Ray cluster as an executor sees it: joined or started, and its machines, each examined before cases go there."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import secrets
import signal
import socket
import threading
import time
import uuid
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..device import kind_of
from ..environment import usable_cores
from ..machine import Machine, this_machine
from ..runs import RunError

NODE_LABEL = "ray.io/node-id"
_ANSWER_SECONDS = 5.0  # within which a cluster takes a connection
_EXAMINE_SECONDS = 60.0  # a worker of Ray has to start, and to import mixerzoo
_LOOK_SECONDS = 2.0  # between two looks at who is there
_KEEP_SECONDS = 5.0  # that a machine stays reserved for the next case that wants one alone
_NOBODY_SECONDS = 60.0  # without any machine, until a run gives up
_STORE_BYTES = 100_000_000  # for results, of a cluster of our own


@dataclass(frozen=True)
class _Seen:
    """What a machine says of itself. machine: without its GPU. sees_folder: whether the run's folder is there."""

    machine: Machine
    cores: int
    code: str
    sees_folder: bool


@dataclass
class Node:
    """A machine of the cluster that cases may run on. cpus, gpus, memory_bytes: what Ray may give away there.

    cores: that a case alone on it may use. sees_folder: whether it has the run's folder. group: the placement group
    that holds all of it, None if there is none; alone: how many cases want that; used: when one had it last.
    """

    id: str
    address: str
    cpus: int
    gpus: int
    memory_bytes: float
    cores: int
    machine: Machine
    sees_folder: bool
    group: Any = None
    alone: int = 0
    used: float = 0.0


class Cluster:
    """The machines of a cluster, kept up to date by `look`; `close` gives everything back.

    address: None starts one on this machine, `auto` or `HOST:PORT` joins one. Raises `ValueError` where Ray is not
    installed, or cannot do that.
    """

    def __init__(self, address: str | None, device: str) -> None:
        self.ray = import_ray()
        self._address, self._device = checked_address(address), device
        self.nodes: dict[str, Node] = {}
        self._known: set[str] = set()
        self._asked: dict[Any, dict[str, Any]] = {}
        self._looked = self._last_there = 0.0
        self._connected = False

    def begin(self, folder: Path) -> None:
        """Connect, and look at every machine. Raises `ValueError` if one is not as it must be, and says which."""
        self._connect()
        self._token, self._token_path = str(uuid.uuid4()), folder.resolve() / ".seen-by-ray"
        self._token_path.write_text(self._token, encoding="utf-8")
        self._examine_all()
        if not self.nodes:
            raise ValueError(f"no machine of the Ray cluster has a {self._wanted[-1]} to give; see `ray status`")
        self._last_there = time.monotonic()

    def look(self) -> None:
        """Note which machines are gone, and ask those that came. Raises `RunError` if there is none for a while."""
        now = time.monotonic()
        for node in self.nodes.values():
            if node.group is not None and not node.alone and now - node.used > _KEEP_SECONDS:
                self.give_back(node)
        self._hear()
        if now - self._looked < _LOOK_SECONDS:
            return
        self._looked = now
        there = self._there()
        for gone in self.nodes.keys() - there.keys():
            self.give_back(self.nodes.pop(gone))
        for found in there.values():
            if found["NodeID"] not in self._known:
                self._ask(found)
        if self.nodes:
            self._last_there = now
        elif now - self._last_there > _NOBODY_SECONDS:
            raise RunError("no machine of the Ray cluster is left; start one, then the same command goes on")

    def reserve(self, node: Node) -> Any:
        """A placement group that holds all of `node`, so that nothing else of the cluster starts there."""
        node.alone += 1
        if node.group is None:
            bundle = {"CPU": node.cpus, **({"GPU": node.gpus} if node.gpus else {})}
            node.group = self.ray.util.placement_group([bundle], bundle_label_selector=[{NODE_LABEL: node.id}])
        return node.group

    def leave(self, node: Node) -> None:
        """The case that had `node` alone is over; it stays reserved for a moment, in case another wants it."""
        node.alone -= 1
        node.used = time.monotonic()

    def give_back(self, node: Node) -> None:
        """Let others have `node`."""
        if node.group is not None:
            with contextlib.suppress(Exception):  # it went with its machine
                self.ray.util.remove_placement_group(node.group)
            node.group = None

    def close(self) -> None:
        """Leave the cluster, which ends all of ours there; end it, if we started it."""
        if self._connected:
            for node in self.nodes.values():
                self.give_back(node)
            self.ray.shutdown()
            self._connected = False
            self._token_path.unlink(missing_ok=True)

    @property
    def _wanted(self) -> tuple[str, ...]:
        return ("CPU", "GPU") if kind_of(self._device) == "cuda" else ("CPU",)

    def _connect(self) -> None:
        if self.ray.is_initialized():
            raise ValueError("this process uses Ray already; call ray.shutdown() first")
        quiet = {"log_to_driver": False, "logging_level": "CRITICAL", "include_dashboard": False}
        own = {"num_cpus": usable_cores(), "object_store_memory": _STORE_BYTES, **quiet}
        try:
            with _signals_kept():
                if self._address is None:
                    # nobody else may use it; without one, Ray leaves a token in the home directory for all clusters
                    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
                    self.ray.init(address="local", **own)
                else:
                    _expect_answer(self._address)
                    self.ray.init(address=self._address, **{k: v for k, v in quiet.items() if k != "include_dashboard"})
        except ConnectionError as error:
            start = "start one with `ray start --head`, or leave out --address"
            raise ValueError(f"no Ray cluster answers at {self._address}: {error}; {start}") from None
        except RuntimeError as error:  # versions of Ray or Python that differ
            raise ValueError(f"this cluster cannot be joined: {error}") from None
        self._connected = True
        # Ray prints what befalls its machines into the display of the run
        self.ray._private.worker._worker_logs_enabled = False

    def _there(self) -> dict[str, dict[str, Any]]:
        """The machines that are alive and have what cases need, by id."""
        alive = (node for node in self.ray.nodes() if node["Alive"])
        fit = (node for node in alive if all(node["Resources"].get(name, 0) >= 1 for name in self._wanted))
        return {node["NodeID"]: node for node in fit}

    def _ask(self, found: dict[str, Any]) -> None:
        self._known.add(found["NodeID"])
        task = self.ray.remote(_examine).options(
            num_cpus=0, max_retries=0, label_selector={NODE_LABEL: found["NodeID"]}, name="mixerzoo: examine"
        )
        self._asked[task.remote(str(self._token_path), self._token)] = found

    def _examine_all(self) -> None:
        for found in self._there().values():
            self._ask(found)
        ready, late = self._answers(_EXAMINE_SECONDS)
        complaints = [f"{_name(self._asked[ref])}: no answer within {_EXAMINE_SECONDS:.0f} s" for ref in late]
        complaints += filter(None, (self._admit(ref) for ref in ready))
        if complaints:
            advice = "install the same on all machines of the cluster, or take these out of it"
            raise ValueError("\n  ".join([f"some machines cannot run these cases; {advice}", *complaints]))

    def _hear(self) -> None:
        """Take in the machines that came later and have answered."""
        for ref in self._answers(0)[0]:
            complaint = self._admit(ref)
            if complaint:
                warnings.warn(f"a machine that joined the Ray cluster gets no cases: {complaint}", stacklevel=2)

    def _answers(self, seconds: float) -> tuple[list[Any], list[Any]]:
        """Those that have answered and those that have not, waiting at most so long."""
        asked = [*self._asked]
        return self.ray.wait(asked, num_returns=len(asked), timeout=seconds) if asked else ([], [])

    def _admit(self, ref: Any) -> str | None:
        """Take a machine in that has answered; else why it cannot be."""
        found = self._asked.pop(ref)
        try:
            seen: _Seen = self.ray.get(ref, timeout=_ANSWER_SECONDS)
        except Exception as error:  # whatever is wrong there
            return f"{_name(found)}: mixerzoo could not be loaded there: {last_line(error)}"
        if differing := _differences(seen):
            return f"{_name(found)}: {differing}"
        has = found["Resources"]
        cpus, gpus = int(has.get("CPU", 0)), int(has.get("GPU", 0))
        cores, memory = min(seen.cores, cpus) or 1, has.get("memory", 0.0)
        address = found["NodeManagerAddress"]
        node = Node(found["NodeID"], address, cpus, gpus, memory, cores, seen.machine, seen.sees_folder)
        self.nodes[node.id] = node
        return None


def import_ray() -> Any:
    """The module `ray`, which reports to nobody. Raises `ValueError` if it is not installed."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else it warns of a change to come
    try:
        import ray
    except ImportError as error:
        raise ValueError(f"Ray cannot be imported ({error}); install it: pip install 'mixerzoo[ray]'") from None
    return ray


def checked_address(address: str | None) -> str | None:
    """The address, of a form that can be joined; `auto` is where RAY_ADDRESS points. Raises `ValueError`."""
    if address == "auto":
        address = os.environ.get("RAY_ADDRESS") or "auto"
    if address in (None, "auto"):
        return address
    host, _, port = str(address).rpartition(":")
    if "://" in str(address) or not host or not port.isdigit():
        where = "run on a machine of the cluster, which --address auto finds by itself"
        raise ValueError(f"--address {address} is neither auto nor HOST:PORT; {where}")
    return address


def _expect_answer(address: str) -> None:
    """Raise `ConnectionError` if nobody listens there: Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if address == "auto":
        return  # looks for processes on this machine
    try:
        socket.create_connection((host, int(port)), timeout=_ANSWER_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise ConnectionError(str(error)) from None


@contextlib.contextmanager
def _signals_kept() -> Iterator[None]:
    """Ray takes SIGTERM for itself; the runner wants to end its cases first."""
    main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGTERM)
    yield
    if main:
        signal.signal(signal.SIGTERM, before)


def _examine(path: str, token: str) -> _Seen:
    """Runs on each machine. path: of a file in the run's folder that holds `token`."""
    deadline = time.monotonic() + 3.0  # a network file system needs a moment
    while not (sees := _holds(Path(path), token)) and time.monotonic() < deadline:
        time.sleep(0.2)
    return _Seen(this_machine("cpu"), usable_cores(), code_digest(), sees)


def _holds(path: Path, token: str) -> bool:
    try:
        return path.read_text(encoding="utf-8") == token
    except OSError:
        return False


@functools.cache
def code_digest() -> str:
    """16 hex digits that tell the Python code of mixerzoo that cases run from any other."""
    root, digest = Path(__file__).resolve().parents[2], hashlib.sha256()
    for room in ("mixers", "models", "benchmarks"):
        for path in sorted((root / room).rglob("*.py")):
            digest.update(f"{path.relative_to(root).as_posix()}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def _differences(seen: _Seen) -> str:
    """How a machine's software differs from that of this one: the run's environment names one version of each."""
    here, there = this_machine("cpu").details["packages"], seen.machine.details["packages"]
    names = dict.fromkeys([*here, *there])
    found = [
        f"{name} {there.get(name) or 'missing'} there, {here.get(name) or 'missing'} here"
        for name in names
        if there.get(name) != here.get(name)
    ]
    if seen.code != code_digest():
        ours, theirs = ((m.details["source"] or {}).get("commit") for m in (this_machine("cpu"), seen.machine))
        commits = f" (commit {str(theirs)[:7]} there, {str(ours)[:7]} here)" if ours != theirs else ""
        found.append(f"other code of mixerzoo{commits}")
    return "; ".join(found)


def _name(found: dict[str, Any]) -> str:
    """Of a machine, for people."""
    return f"{found.get('NodeManagerHostname') or 'machine'} ({found['NodeManagerAddress']}, {found['NodeID'][:8]})"


def last_line(error: BaseException) -> str:
    """What a traceback from elsewhere comes down to."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
