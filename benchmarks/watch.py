"""`mixerzoo run --watch`: the run's page is made anew as cases finish, by a process of its own."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import IO

from rich.console import Console

from .case import Case
from .live import LiveRun, Reporter
from .progress import shown
from .runs import ResultLine, Run


class PageWatch(Reporter):
    """Rebuilds the page of `run` by `command` while nothing that is timed is at work.

    Between two rebuilds lie at least `pause_seconds`, and `pause_times` what the last one took: a run of short timed
    cases, which wait for a rebuild to end, spends at most a fifth of its time on them. A rebuild that takes longer
    than `patience_seconds` is stopped. Failures are said once, on `console`, and stop nothing.
    """

    pause_seconds, pause_times = 10.0, 4.0
    patience_seconds = 300.0

    def __init__(self, run: Run, console: Console, command: Sequence[str] | None = None) -> None:
        report = [sys.executable, "-m", "mixerzoo.benchmarks.cli", "report", str(run.folder)]
        self._command, self._console, self._page = command or report, console, run.folder / "report.html"
        self._live: LiveRun | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._errors: IO[bytes] | None = None
        self._news = self._complained = False
        self._begun, self._next = 0.0, 0.0

    def begin(self, live: LiveRun) -> None:
        self._live = live
        self._console.print(f"page: {shown(str(self._page))}; load it again to see what is new", soft_wrap=True)

    def before(self, case: Case) -> None:
        if case.exclusive:
            self._wait()

    def look(self) -> None:
        assert self._live is not None, "begin comes first"
        if self._process is not None and self._process.poll() is not None:
            self._wait()
        if self._process is None and self._news and not self._live.exclusive and time.monotonic() >= self._next:
            self._start()

    def finished(self, case: Case, result: ResultLine) -> None:
        self._news = True

    def end(self) -> None:
        """Stop a rebuild that is under way: the last one follows, of all results."""
        if self._process is not None and self._errors is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
            self._errors.close()

    def rebuild(self) -> None:
        """Rebuild the page now; returns when it is there."""
        self._start()
        self._wait()

    def _start(self) -> None:
        self._news = False
        self._begun = time.monotonic()
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed when its process has ended
        silent = subprocess.DEVNULL
        self._process = subprocess.Popen(self._command, stdin=silent, stdout=silent, stderr=self._errors)

    def _wait(self) -> None:
        """Wait until the rebuild under way, if any, has ended."""
        if self._process is None or self._errors is None:
            return
        try:
            code = self._process.wait(max(0.0, self._begun + self.patience_seconds - time.monotonic()))
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        self._process = None
        ended = time.monotonic()
        self._next = ended + max(self.pause_seconds, self.pause_times * (ended - self._begun))
        with self._errors as file:
            file.seek(0)
            words = file.read().decode(errors="replace").strip()
        if code != 0 and not self._complained:
            self._complained = True
            why = words.splitlines()[-1] if words else f"exit code {code}"
            self._console.print(f"[yellow]the page could not be rebuilt: {shown(why)}[/]", soft_wrap=True)
