"""The command line: what it prints, what it exits with, and that a user's mistake is never a traceback."""

import importlib
import importlib.metadata
import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
from mixerzoo.benchmarks import cli, cli_run
from mixerzoo.benchmarks.case import Case
from mixerzoo.benchmarks.runs import ResultLine, Run
from mixerzoo.benchmarks.status import read_status
from mixerzoo.benchmarks.summary import failure_table, summary_tables
from mixerzoo.mixers import list_mixers, mixer_card, mixer_options, registry
from mixerzoo.models import LAYOUTS


@pytest.fixture
def mixerzoo(capsys, monkeypatch):
    """Runs a command line in this process; returns exit code, stdout, stderr."""
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as end:
            cli.main(arguments)
        captured = capsys.readouterr()
        return end.value.code or 0, captured.out, captured.err

    return run


@pytest.fixture
def suite(tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(
        "name: tiny\n"
        "model: {d_model: 16, mixer_defaults: {linear_attention: {heads: 2}}}\n"
        "layouts: {lin: linear_attention, tay: 'linear_attention(feature_map=\"taylor\")'}\n"
        "measures:\n"
        "  - {measure: speed, modes: [forward], lengths: [16], rounds: 3, budget_seconds: 0, layouts: [lin]}\n"
        "  - measure: perplexity\n"
        "    training: {steps: 1, batch: 1, length: 16}\n"
        "    length: 32\n"
        "    examples: 1\n"
    )
    return path


def test_help_and_version_do_not_import_torch():
    for option in ("--help", "--version"):
        program = f"import sys; from mixerzoo.benchmarks.cli import main\ntry: main(['{option}'])\n"
        program += "except SystemExit as end: sys.exit(end.code or 3 * ('torch' in sys.modules))"
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "run" in done.stdout or importlib.metadata.version("mixerzoo") in done.stdout


def test_list_shows_every_mixer_with_its_whole_name(mixerzoo):
    code, out, _ = mixerzoo("list")
    assert code == 0 and all(re.search(rf"\b{name}\b", out) for name in list_mixers())
    code, out, _ = mixerzoo("list", "*delta*", "--family", "delta")
    assert code == 0 and "gated_deltanet" in out and "ttt_linear" not in out
    assert mixerzoo("list", "nothing*")[0] == 2


def test_layouts_shows_names_lines_sources_and_notes(mixerzoo):
    code, out, _ = mixerzoo("layouts")
    assert code == 0 and all(re.search(rf"│ {re.escape(name)} +│", out) for name in LAYOUTS)
    code, out, _ = mixerzoo("layouts", "s*")
    assert code == 0 and "samba" in out and "swa_interleave" in out and "jamba" not in out
    for shown in ("mamba, sliding_window_attention", "2406.07522", "window 2048"):
        assert shown in out
    assert mixerzoo("layouts", "nothing*")[0] == 2


def test_list_shows_broken_plugins(mixerzoo, monkeypatch):
    broken = {"bad (bad_package:Mixer)": "ImportError: no such thing"}
    monkeypatch.setattr("mixerzoo.mixers.plugin_errors", lambda: broken)
    code, out, _ = mixerzoo("list")
    assert code == 0 and "bad (bad_package:Mixer)" in out and "no such thing" in out


def test_show_has_options_parameters_states_and_backends(mixerzoo):
    code, out, _ = mixerzoo("show", "sliding_window_attention", "--d-model", "32")
    assert code == 0 and "d_model=32" in out
    option = mixer_options("sliding_window_attention")["window"]
    row = next(line for line in out.splitlines() if line.startswith("│ window "))
    assert [cell.strip() for cell in row.strip("│").split("│")][1:3] == [option.expects, repr(option.default)]
    assert option.help in row
    assert re.search(r"reference\W+never\W+yes, in float32", out)
    states = [int(n.replace(",", "")) for n in re.findall(r"│ [\d,]+ +│ +([\d,]+) +│", out)]
    assert len(states) == 3 and 0 < states[0] <= states[1] <= states[2]
    card = mixer_card("sliding_window_attention")
    for said in (card.summary, card.paper, card.recurrence, card.complexity, card.arxiv):
        assert said and said in out
    assert ("limits: " in out) == bool(card.limits)
    code, _, err = mixerzoo("show", "softmax_atention")
    assert code == 2 and "did you mean softmax_attention" in err


def test_check_prints_every_result_and_fails_with_code_1(mixerzoo, monkeypatch):
    code, out, _ = mixerzoo("check", "linear_attention", "--only", "1,5")
    assert code == 0 and out.count("passed") == 2

    class Leaky(registry.mixer_class("linear_attention")):
        def mix(self, x, state, return_state):
            y, state = super().mix(x, state, return_state)
            return y + x.flip(1), state

    monkeypatch.setitem(registry._mixers, "linear_attention", Leaky)
    code, out, _ = mixerzoo("check", "linear_attention", "--only", "2")
    assert code == 1 and "failed" in out


def test_show_survives_whatever_a_library_raises(mixerzoo, tmp_path, monkeypatch):
    """The real flash-attn raises ValueError or its own for float32; it then is tried in bfloat16."""
    (tmp_path / "flash_attn").mkdir()
    (tmp_path / "flash_attn" / "__init__.py").write_text(
        "import torch\n"
        "def flash_attn_func(q, k, v, *_, **__):\n"
        "    if q.dtype not in (torch.float16, torch.bfloat16):\n"
        "        raise ValueError('FlashAttention only supports fp16 and bf16 data type')\n"
        "    return torch.nn.functional.scaled_dot_product_attention(*(t.transpose(1, 2) for t in (q, k, v)), "
        "is_causal=True).transpose(1, 2)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))

    class Flash(registry.mixer_class("softmax_attention")):
        def read(self, queries, keys, values):
            if self.backend == "flex":
                raise KeyError("by design")
            if self.backend != "flash_attn":
                return super().read(queries, keys, values)
            return importlib.import_module("flash_attn").flash_attn_func(queries, keys, values)

    monkeypatch.setitem(registry._mixers, "softmax_attention", Flash)
    code, out, err = mixerzoo("show", "softmax_attention")
    assert code == 0, err
    assert re.search(r"flash_attn[^\n]*yes, in bfloat16", out) and re.search(r"sdpa[^\n]*yes, in float32", out)
    assert re.search(r"flex[^\n]*no: 'by design'", out)
    assert re.search(r"reference[^\n]*never", out) and re.search(r"flash_attn[^\n]*where doctor has proven it", out)


def test_check_all_is_one_table_and_files_and_survives_a_broken_mixer(mixerzoo, tmp_path, monkeypatch):
    class Leaky(registry.mixer_class("linear_attention")):
        def mix(self, x, state, return_state):
            y, state = super().mix(x, state, return_state)
            return y + x.flip(1), state

    class Unbuildable(registry.mixer_class("gla")):
        def build(self):
            raise MemoryError("by design")

    few = {"gla": Unbuildable, "identity": registry.mixer_class("identity"), "linear_attention": Leaky}
    monkeypatch.setattr(registry, "_mixers", few)
    code, out, _ = mixerzoo("check", "--all", "--only", "2,4,5", "--out", str(tmp_path / "found"))
    assert code == 1
    assert re.search(r"identity\s*│\s*\+\s*│\s*\+\s*│\s*\+\s*│", out) and "1 of 3 keep the contract" in out
    assert "gla: MemoryError: by design" in out
    assert "outputs before" in out  # what failed, and nothing about what passed
    assert out.count("batch-independent") == 1  # in the legend alone
    found = json.loads((tmp_path / "found" / "check.json").read_text())
    assert [(m["mixer"], m["passed"]) for m in found["mixers"]] == list(zip(sorted(few), [False, True, False]))
    assert all(m["seconds"] >= 0 for m in found["mixers"]) and found["environment"]["packages"]["torch"]
    assert found["mixers"][0]["error"] == "MemoryError: by design"
    page = (tmp_path / "found" / "check.md").read_text()
    assert "| identity | + | + | + |" in page and "| linear_attention | X | + | + |" in page
    assert "**gla**: MemoryError" in page and "**linear_attention**, 2 causal:" in page


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["check"], "name one mixer, or give --all"),
        (["check", "fwpkm", "--all"], "name one mixer, or give --all"),
        (["check", "linear_attention", "--only", "one"], "--only takes numbers of checks"),
        (["run", "quik"], "did you mean quick"),
        (["run", "smoke", "--device", "gpu"], "unknown device 'gpu'; give auto, cpu, cuda, or cuda:N"),
        (["run", "smoke", "--only", "nothing*"], "--only 'nothing*' matches nothing; layouts are"),
        (["run", "{folder}/broken.yaml"], "broken.yaml:1: layouts: is missing"),
        (["run", "{suite}", "--out", "{folder}"], "is not empty and holds no run"),
        (["nonsense"], "No such command"),
    ],
)
def test_mistakes_exit_with_2_and_no_traceback(mixerzoo, suite, tmp_path, arguments, message):
    (tmp_path / "broken.yaml").write_text("name: broken\nmeasures: [{measure: speed}]\n")
    code, out, err = mixerzoo(*(a.format(folder=tmp_path, suite=suite) for a in arguments))
    assert code == 2 and message in err.replace("\n", " ") and "Traceback" not in out + err
    assert not (tmp_path / "results.jsonl").exists()


def test_suites_lists_the_bundled_ones(mixerzoo):
    code, out, _ = mixerzoo("suites")
    assert code == 0 and re.search(r"smoke +│ 2 +│ 10 ", out) and "quick" in out


def test_run_dry_run_resume_and_select(mixerzoo, suite, tmp_path):
    out_folder = tmp_path / "run"
    command = ["run", str(suite), "--out", str(out_folder), "--device", "cpu"]
    code, out, _ = mixerzoo(*command, "--dry-run")
    assert code == 0 and out.count("to run") == 3 and "more follow" in out and not out_folder.exists()

    code, out, _ = mixerzoo(*command, "--only", "speed", "--only", "lin")
    assert code == 0 and "3 cases; the run is in" in out and "tokens/s" in out
    assert mixerzoo(*command, "--dry-run")[1].count("to run") == 1

    code, out, _ = mixerzoo(*command)
    assert code == 0 and "4 cases, 3 done already" in out and "5 cases; the run is in" in out
    results = {(r.layout, r.measure): r for r in Run(out_folder).results()}
    assert {r.status for r in results.values()} == {"ok"} and len(results) == 5
    speed, text = results["lin", "speed"], results["tay", "perplexity"]
    assert speed.backends == {"recurrence": ["chunked"]} and speed.metrics["tokens_per_second"]["median"] > 0
    assert (
        text.parameters["layout_line"] == text.parameters["model"]["layout"] == "linear_attention(feature_map='taylor')"
    )
    assert text.parameters["device"] == "cpu" and text.metrics["rows"]
    environment = json.loads((out_folder / "environment.json").read_text())
    assert environment["device"] == "cpu" and len(environment["resumed"]) == 1
    assert mixerzoo("run", str(out_folder / "suite.yaml"), "--out", str(out_folder), "--device", "cpu")[0] == 0
    assert len(Run(out_folder).results_path.read_text().splitlines()) == 5


def test_failing_cases_exit_with_1_and_are_listed(mixerzoo, suite, tmp_path):
    suite.write_text(suite.read_text() + "time_limit_seconds: 0.01\n")
    code, out, _ = mixerzoo("run", str(suite), "--out", str(tmp_path / "run"), "--only", "speed", "--device", "cpu")
    assert code == 1 and "1 cases, 1 not ok" in out and "timeout" in out


def test_interrupt_exits_with_130_and_says_how_to_resume(suite, tmp_path):
    suite.write_text(suite.read_text().replace("steps: 1,", "steps: 1000000,"))
    arguments = ["run", str(suite), "--out", str(tmp_path / "run"), "--only", "perplexity"]
    command = [sys.executable, "-m", "mixerzoo.benchmarks.cli", *arguments]
    runner = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while (status := read_status(Run(tmp_path / "run"))) is None or not status.at_work:
        assert runner.poll() is None
        time.sleep(0.05)
    runner.send_signal(signal.SIGINT)
    _, err = runner.communicate(timeout=60)
    assert runner.returncode == 130 and f"--out {tmp_path / 'run'}" in err and "Traceback" not in err


class FakeEntryPoint:
    value = "package.module:command"

    def __init__(self, name, target):
        self.name, self.target = name, target

    def load(self):
        if isinstance(self.target, Exception):
            raise self.target
        return self.target


def test_commands_of_other_packages_are_added_and_broken_ones_are_reported(mixerzoo, monkeypatch):
    def hello(name: str) -> None:
        """Say hello."""
        print(f"hello {name}")

    entries = [FakeEntryPoint("hello", hello), FakeEntryPoint("bad", ImportError("no such module"))]
    monkeypatch.setattr(cli, "entry_points", lambda group: entries if group == "mixerzoo.commands" else [])
    code, out, err = mixerzoo("hello", "zoo")
    assert (code, out) == (0, "hello zoo\n")
    assert "the command 'bad' (package.module:command) could not be loaded: no such module" in err


def result(measure, metrics, layout="lin", seed=0, status="ok", **parameters) -> ResultLine:
    case = Case(layout, "line", {}, measure, parameters, seed, "cpu", False)
    return ResultLine(
        case=case.id, layout=layout, measure=measure, parameters=parameters, seed=seed, status=status, seconds=1,
        metrics=metrics, error=None if status == "ok" else "ValueError: [bold]no[/]\nmore",
    )  # fmt: skip


def test_summary_tables_put_layouts_by_sizes():
    def row(length, correct, recent, passes=1):
        cell = {"length": length, "load": 8, "passes": passes, "memory": "fresh"}
        return {**cell, "depth": 0.0, "correct": correct, "total": 4, "recent": recent}

    bar = {"accuracy": 0.95, "length": 64, "load": 8, "reached": 1.0}
    passed, failed = {"bar": {**bar, "passed": True}, "tokens_to_solve": 10**6}, {"bar": {**bar, "passed": False}}

    results = [
        result("speed", {"tokens_per_second": {"median": 1234.5}}, modes=["train"], lengths=[64]),
        result("tuning", {"choice": {"learning_rate": 0.002}, "rung": 0, "score": 1.5}),
        result("training", {"training": passed}),
        result("training", {"training": {**failed, "tokens_to_solve": None}}, seed=1),
        result("recall", {"rows": [row(64, 4, False), row(64, 0, True), row(64, 3, False, 2)]}, recent=16, seed=0),
        result("recall", {"rows": [row(64, 2, False)]}, recent=16, seed=1),
        result("perplexity", {"rows": [{"start": 0, "end": 64, "tokens": 64, "nats": 0.0}]}),
        result("speed", None, layout="soft", status="invalid", modes=["train"], lengths=[64]),
    ]
    tables = summary_tables(results)
    titles = ["speed,", "tuning,", "training:", "recall:", "recall,", "perplexity"]
    assert [title.split()[0] for title in tables] == titles
    assert list(tables)[4].startswith("recall, context read 2 times: % right at load 8")
    cells = [[list(column.cells) for column in table.columns] for table in tables.values()]
    taught = [[["lin"], ["1.5"]], [["lin"], ["1 of 2 (1.00 M)"]]]
    assert cells == [[["lin"], ["1,234"]], *taught, [["lin"], ["75.0"]], [["lin"], ["75.0"]], [["lin"], ["1.00"]]]
    failures = failure_table(results)
    assert failures is not None and list(failures.columns[5].cells) == [r"ValueError: \[bold]no\[/]"]
    assert failure_table(results[:1]) is None


def test_a_run_that_is_terminated_ends_like_one_that_is_interrupted():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), cli_run.terminated_like_interrupted():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--address", "auto"], "give --executor ray"),
        (["--slurm", "partition=gpu"], "give --executor slurm"),
    ],
)
def test_options_of_another_executor_are_refused(mixerzoo, tmp_path, options, said):
    code, _, err = mixerzoo("run", "smoke", "--out", tmp_path / "run", "--no-estimate", *options)
    assert code == 2 and said in err and not (tmp_path / "run").exists()
