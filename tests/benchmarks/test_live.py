"""What is told of a run while it goes on: the table, the lines, `status.json`, `mixerzoo status`, the watched page."""

import fcntl
import io
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time

import pytest
from mixerzoo.benchmarks import cli, live, overview
from mixerzoo.benchmarks.case import Case, Plan
from mixerzoo.benchmarks.doing import Doing
from mixerzoo.benchmarks.executors.base import News
from mixerzoo.benchmarks.live import LiveRun, TimeLeft
from mixerzoo.benchmarks.progress import LineReporter, StatusFile, TableReporter, reporter_for, work_table
from mixerzoo.benchmarks.runs import ResultLine, Run
from mixerzoo.benchmarks.status import CaseAtWork, RunStatus, is_at_work, read_status
from mixerzoo.benchmarks.watch import PageWatch
from mixerzoo.benchmarks.worker import Channel
from rich.console import Console

from .fake_run import start_run, wait_for

HOSTILE = "lin\x1b[2J[red]x[/]"


def case(seed=0, label="lin", measure="recall", exclusive=False) -> Case:
    return Case(label, "line", {}, measure, {"lengths": [64]}, seed, "cpu", exclusive)


def result(of: Case, status="ok", seconds=1.0, error=None) -> ResultLine:
    return ResultLine(
        case=of.id, layout=of.label, measure=of.measure, parameters={}, seed=of.seed, status=status, seconds=seconds,
        error=error,
    )  # fmt: skip


def live_run(*cases: Case, done=()) -> LiveRun:
    run = LiveRun()
    run.update(Plan(tuple(cases)), {r.case: r for r in done})
    return run


def console(terminal: bool, width=80) -> Console:
    return Console(file=io.StringIO(), force_terminal=terminal, color_system=None, width=width, height=30)


@pytest.fixture
def mixerzoo(capsys, monkeypatch):
    """Runs a command line in this process; returns exit code, stdout, stderr."""
    monkeypatch.setenv("COLUMNS", "120")

    def run(*arguments) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as end:
            cli.main([str(a) for a in arguments])
        captured = capsys.readouterr()
        return end.value.code or 0, captured.out, captured.err

    return run


class Wire:
    def __init__(self):
        self.sent = []

    def send(self, message):
        self.sent.append(message)


@pytest.mark.parametrize(
    ("said", "fraction", "stage", "values"),
    [
        ("half way", 0.5, "half way", {}),
        (Doing("round 3", {"ms": 12}), 7, "round 3", {"ms": 12.0}),
        (Doing("round 3"), float("nan"), "round 3", {}),
    ],
)
def test_a_case_may_say_a_text_or_numbers_with_their_names(said, fraction, stage, values):
    channel = Channel(wire := Wire())
    channel.progress(fraction, said)
    channel.progress(1.0, "at once after it: dropped")
    (message,) = wire.sent
    assert 0 <= message["fraction"] <= 1 and message["doing"] == Doing(stage, values)
    assert message["cuda_bytes"] is None


def test_numbers_are_written_with_their_names_or_units():
    values = {"loss": 1.23456, "accuracy": 0.971, "tokens/s": 3412.0, "ms": 0.0123, "slots": 2.5e6}
    assert str(Doing("round 1", values)) == (
        "round 1, loss 1.235, accuracy 97.1%, 3.41 k tokens/s, 0.0123 ms, slots 2.5 M"
    )
    assert [Doing("x", {"ms": ms}).numbers for ms in (999.4, 1234.0)] == ["999 ms", "1.23 s"]


def test_the_table_fits_a_narrow_terminal_and_shows_all():
    at_work = CaseAtWork(
        case="a", title="gated_deltanet recall 8192 seed 0", layout="gated_deltanet", measure="recall", seed=0,
        exclusive=False, stage="asking 8,192 tokens", values={"accuracy": 0.971, "loss": None}, fraction=0.42,
        seconds=3725, seconds_left=65, resident_bytes=1_240_000_000, cuda_bytes=3_000_000_000,
    )  # fmt: skip
    hostile = at_work.model_copy(update={"title": HOSTILE, "stage": HOSTILE, "cuda_bytes": None})
    status = RunStatus(pid=1, host="h", started="", updated="", done={"ok": 12, "crashed": 1}, to_do=7,
                       seconds_left=240, at_least=True, at_work=[at_work, hostile])  # fmt: skip
    for width in (80, 160):
        screen = console(True, width)
        screen.print(work_table(status))
        text = screen.file.getvalue()
        assert max(map(len, text.splitlines())) <= width
        words = set(text.split())
        assert {"gated_deltanet", "8,192", "42%", "97.1%", "1:02:05", "1:05", "1.2", "3.0", "CUDA"} <= words
        assert "12 done, 1 failed, 7 to do, at least 4 min left" in text
        assert "\x1b[2J" not in text and "[red]x[/]" in text.replace("\n", "")
    screen = console(True)
    screen.print(work_table(status, rows=1))
    assert "and 1 more at work" in screen.file.getvalue() and "[red]" not in screen.file.getvalue()


def test_a_terminal_gets_a_table_and_a_file_one_line_a_case(monkeypatch):
    first, second = case(label=HOSTILE), case(1)
    for terminal in (True, False):
        screen = console(terminal, 150)
        reporter = reporter_for(screen)
        assert isinstance(reporter, TableReporter if terminal else LineReporter)
        run = live_run(first, second)
        reporter.begin(run)
        run.start(first)
        run.hear(News(first.id, 0.5, Doing("half way", {"loss": 1.0})))
        reporter.look()
        run.leave(first)
        failed = result(first, "invalid", error="ValueError: [bold]no[/]\nmore")
        run.finished(first, failed)
        reporter.finished(first, failed)
        reporter.end()
        text = screen.file.getvalue()
        assert (
            "2 cases" in text and "invalid lin�[2J[red]x[/] recall 64 seed 0 (1.0 s): ValueError: [bold]no[/]" in text
        )
        assert ("half way" in text and "loss 1.000" in text) == terminal
        assert ("[1/2] invalid" in text) != terminal
        if not terminal:
            assert len(text.splitlines()) == 2


def test_a_long_case_gets_a_line_a_minute_where_there_is_no_terminal():
    screen, slow = console(False), case()
    reporter, run = LineReporter(screen), live_run(slow)
    reporter.begin(run)
    run.start(slow)
    run.hear(News(slow.id, 0.25, Doing("round 1")))
    for seconds in (59, 61, 62, 121, 122):
        run._work[slow.id].started = time.monotonic() - seconds
        reporter._pace._last = -1e9
        reporter.look()
    assert screen.file.getvalue().splitlines()[1:] == ["   25% lin recall 64 seed 0: round 1"] * 2


def test_drawing_and_writing_keep_their_distance_most_beside_a_timed_case(monkeypatch):
    clock = [1000.0]
    monkeypatch.setattr(live.time, "monotonic", lambda: clock[0])
    for exclusive, expected in ((False, 20), (True, 5)):
        work = case(exclusive=exclusive)
        run = live_run(work)
        run.start(work)
        pace = live.Pace(run)
        due = 0
        for _ in range(100):
            due += pace.due()
            clock[0] += 0.1
        assert due == pytest.approx(expected, abs=1)
        run.leave(work)
        assert pace.due() and not pace.due()  # another case, or none: at once


def test_time_left_counts_each_measure_by_its_own():
    left, quick = TimeLeft(), {("speed", True): 100}
    assert left.of({("recall", False): 3}) == (None, True)
    left._begun -= 200.0
    left.finished(case(), 200.0)
    assert left.of({("recall", False): 2, **quick}) == (pytest.approx(400.0), True)  # nothing is known of speed
    left.finished(case(measure="speed", exclusive=True), 1.0)
    seconds, at_least = left.of({("recall", False): 2, **quick, ("another", False): 0})
    assert seconds == pytest.approx(500.0, rel=0.01) and not at_least


def test_time_left_of_a_case_is_guessed_from_its_own_rise(monkeypatch):
    clock = [1000.0]
    monkeypatch.setattr(live.time, "monotonic", lambda: clock[0])
    work = case()
    run = live_run(work)
    run.start(work)

    def left():
        return run.status().at_work[0].seconds_left

    assert left() is None
    clock[0] += 30.0  # until it begins
    run.hear(News(work.id, 0.5, Doing("resumed")))
    assert left() is None
    clock[0] += 10.0
    run.hear(News(work.id, 0.6, Doing("on")))
    assert left() == pytest.approx(40.0)
    clock[0] += 15.0
    assert left() == pytest.approx(25.0) and run.status().at_work[0].seconds == pytest.approx(55.0)
    clock[0] += 30.0
    assert left() is None  # overdue


def test_status_of_a_run_at_work_killed_and_ended(tmp_path, mixerzoo):
    folder = tmp_path / "run"
    cases = [{"error": "no [b]room[/]\x1b[2J", "label": HOSTILE}, {"until": str(tmp_path / "go"), "measure": "other"}]
    runner = start_run(tmp_path, cases, stdout=subprocess.PIPE)
    status = wait_for(lambda: (s := read_status(Run(folder))) and s.at_work and s.at_work[0].fraction and s, runner)
    assert status.pid == runner.pid and status.ended is None and (status.done, status.to_do) == ({"invalid": 1}, 1)
    (work,) = status.at_work
    assert (work.measure, work.stage, work.fraction) == ("other", "asking [b]8,192[/] tokens", 0.25)
    assert work.values == {"accuracy": 0.5, "loss": None}
    wait_for(lambda: read_status(Run(folder)).at_work[0].resident_bytes > 1e6, runner)

    code, out, _ = mixerzoo("status", folder)
    assert code == 1 and f"at work: process {runner.pid} on" in out and "\x1b[2J" not in out
    assert "failed last: invalid lin�[2J[red]x[/] fake seed 0" in out and "no [b]room[/]�[2J" in out
    assert "1 failed" in out and "1 to do" in out and "asking [b]8,192[/] tokens" in out
    code, out, _ = mixerzoo("status", folder, "--json")
    found = json.loads(out)
    assert (found["state"], found["done"], found["failed"], found["to_do"]) == ("at work", 0, 1, 1)
    assert found["runner"]["at_work"][0]["stage"] == work.stage and found["last_failure"]["layout"] == HOSTILE

    runner.kill()
    runner.communicate()
    wait_for(lambda: not is_at_work(Run(folder)))  # the case dies with it
    code, out, _ = mixerzoo("status", folder)
    assert code == 1 and "not running, killed after 20" in out and "at work" not in out
    assert f"go on with: mixerzoo run 'a suite' --out {folder}" in "".join(out.split("\n"))

    (tmp_path / "go").touch()
    start_run(tmp_path, cases, stdout=subprocess.DEVNULL).wait(60)
    code, out, _ = mixerzoo("status", folder)
    assert code == 1 and "finished, 1 failed" in out
    assert read_status(Run(folder)).ended is not None and read_status(Run(folder)).at_work == []


def test_status_follows_a_run_to_its_end(tmp_path, monkeypatch):
    runner = start_run(tmp_path, [{}, {"until": str(tmp_path / "go")}], stdout=subprocess.DEVNULL)
    wait_for(lambda: (s := read_status(Run(tmp_path / "run"))) and s.done and s.at_work, runner)
    command = [sys.executable, "-m", "mixerzoo.benchmarks.cli", "status", str(tmp_path / "run"), "--follow"]
    follower = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert follower.stdout.readline() == "1 done, 0 failed, 1 to do\n"
    (tmp_path / "go").touch()
    out, _ = follower.communicate(timeout=60)
    assert runner.wait(60) == 0 and follower.returncode == 0 and "finished" in out and "2 done" in out


def test_looking_does_not_hold_a_runner_up(tmp_path, monkeypatch):
    run = Run(tmp_path / "run")
    assert not is_at_work(run)
    with run.locked():
        assert is_at_work(run)
    monkeypatch.setattr("mixerzoo.benchmarks.lock.FolderLock.patience_seconds", 0.0)
    assert not is_at_work(run)
    with run.locked():  # at once: nobody holds the lock by having looked
        assert is_at_work(run) and is_at_work(run)


def test_status_of_what_is_no_run_or_damaged_is_a_mistake_with_a_message(tmp_path, mixerzoo):
    code, _, err = mixerzoo("status", tmp_path)
    assert code == 2 and "holds no run; make one with" in err
    run = Run(tmp_path / "run")
    run.write_suite({"name": "x"})
    code, out, _ = mixerzoo("status", run.folder)
    assert code == 0 and "it kept no plan" in out
    run.write_plan(Plan((case(),)).to_json())
    code, out, _ = mixerzoo("status", run.folder)
    assert code == overview.UNFINISHED and f"go on with: mixerzoo run SUITE --out {run.folder}" in out
    for name in ("plan.json", "status.json"):
        (run.folder / name).write_text('{"cases": 3')
        code, _, err = mixerzoo("status", run.folder)
        assert code == 2 and f"{name} is damaged" in err and f"`mixerzoo repair {run.folder}`" in err
        (run.folder / name).unlink()


def test_a_command_from_a_status_file_stays_words(tmp_path, mixerzoo):
    run, reporter = Run(tmp_path / "run"), None
    run.write_suite({"name": "x"})
    run.write_plan(Plan((case(),)).to_json())
    for again, said in (
        (["mixerzoo", "run", "x; rm -rf ~"], "mixerzoo run 'x; rm -rf ~'"),
        (["rm"], "run SUITE --out"),
    ):
        reporter = StatusFile(run, again)
        reporter.begin(live_run(case()))
        reporter.end()
        assert (
            f"not running; go on with: mixerzoo {said.removeprefix('mixerzoo ')}" in mixerzoo("status", run.folder)[1]
        )


def test_the_table_is_drawn_on_a_terminal_and_gone_at_the_end(tmp_path):
    ours, theirs = pty.openpty()
    fcntl.ioctl(ours, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 80, 0, 0))
    runner = start_run(tmp_path, [{"until": str(tmp_path / "go")}], stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    text = ""
    while chunk := _read(ours):
        text += chunk
        if "accuracy" in text:
            (tmp_path / "go").touch()
    assert runner.wait(60) == 0
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
    assert "0 done, 1 to do" in plain and "tokens" in plain and "accuracy 50.0%" in plain
    assert text.rindex("\x1b[2K") > text.rindex("to do")  # the last table is wiped out
    assert re.search(r"ok\S* lin fake seed 0", text)


def _read(terminal: int) -> str:
    assert select.select([terminal], [], [], 60)[0], "nothing is drawn"
    try:
        return os.read(terminal, 65536).decode()
    except OSError:  # the other end is closed
        return ""


# It writes the page, and when it was at work.
REPORT = """
import sys, time
page, log = sys.argv[1:]
begun = time.time()
time.sleep(0.3)
open(page, "a").write("built\\n")
open(log, "a").write(f"page {begun} {time.time()}\\n")
"""


def test_a_watched_page_is_rebuilt_as_cases_finish_and_never_beside_a_timed_one(tmp_path):
    page, log = tmp_path / "page", tmp_path / "log"
    waiting = {"until": str(tmp_path / "go")}
    timed = [{"exclusive": True, "sleep": 0.2, "log": str(log)} for _ in range(3)]
    watch = [sys.executable, "-c", REPORT, str(page), str(log)]
    runner = start_run(tmp_path, [{}, waiting, *timed], watch=watch, stdout=subprocess.PIPE)
    wait_for(page.exists, runner)  # while a case that is not timed is at work
    (tmp_path / "go").touch()
    assert runner.wait(60) == 0
    spans = [line.split() for line in log.read_text().splitlines()]
    pages = [(float(a), float(b)) for kind, a, b in spans if kind == "page"]
    cases = [(float(a), float(b)) for kind, a, b in spans if kind == "case"]
    assert len(cases) == 3 and len(pages) >= 2
    for begun, ended in cases:
        assert all(b < begun or a > ended for a, b in pages), "a page was rebuilt beside a timed case"


class FakeClock:
    def __init__(self):
        self.now = 0.0

    def monotonic(self):
        return self.now


def test_rebuilds_keep_their_distance_and_a_failing_one_is_said_once(tmp_path, monkeypatch):
    screen, count = console(False, 200), tmp_path / "count"
    failing = f"open({str(count)!r}, 'a').write('x'); raise SystemExit('no [b]report')"
    watch = PageWatch(Run(tmp_path), screen, [sys.executable, "-c", failing])
    clock = FakeClock()
    monkeypatch.setattr("mixerzoo.benchmarks.watch.time", clock)
    work = case(exclusive=True)
    watch.begin(run := live_run(work))

    def rebuilds(now) -> int:
        clock.now = now
        watch.look()
        watch._wait()
        return len(count.read_text()) if count.exists() else 0

    assert rebuilds(0.0) == 0  # nothing is new
    watch.finished(work, result(work))
    assert rebuilds(1.0) == 1 and rebuilds(2.0) == 1
    watch.finished(work, result(work))
    assert rebuilds(10.0) == 1  # too early
    run.start(work)
    assert rebuilds(12.0) == 1  # beside a timed case
    run.leave(work)
    assert rebuilds(13.0) == 2
    watch.rebuild()
    assert rebuilds(14.0) == 3
    assert screen.file.getvalue().count("the page could not be rebuilt: no [b]report\n") == 1


def test_a_rebuild_that_hangs_is_stopped(tmp_path):
    screen = console(False, 200)
    watch = PageWatch(Run(tmp_path), screen, [sys.executable, "-c", "import time; time.sleep(600)"])
    watch.patience_seconds = 0.2
    watch.rebuild()
    assert "could not be rebuilt: exit code -9" in screen.file.getvalue()
    watch.patience_seconds = 600.0
    watch._start()
    process = watch._process
    watch.end()
    assert process.returncode == -signal.SIGKILL
