"""What a run will take: schedules, counts, earlier cases, what is kept of it, and what the commands say."""

import json
import re
import subprocess
import sys

import pytest
from mixerzoo.benchmarks import cli, estimator
from mixerzoo.benchmarks.cli_plan import duration, span
from mixerzoo.benchmarks.cost import cost_of
from mixerzoo.benchmarks.environment import usable_cores
from mixerzoo.benchmarks.estimate import estimate_run
from mixerzoo.benchmarks.estimator import ACCURACY, Estimator
from mixerzoo.benchmarks.forecast import keep_forecast, key_of, key_of_result, read_forecast
from mixerzoo.benchmarks.history import History, Past, read_history
from mixerzoo.benchmarks.limits import Limits
from mixerzoo.benchmarks.live import LiveRun
from mixerzoo.benchmarks.machine import this_machine
from mixerzoo.benchmarks.plan import Planner, everything
from mixerzoo.benchmarks.rates import Rates, measure_rates
from mixerzoo.benchmarks.runner import TimeIsUp
from mixerzoo.benchmarks.runs import ResultLine, Run, RunError
from mixerzoo.benchmarks.schedule import Piece, makespan
from mixerzoo.benchmarks.suite import parse_measure, parse_suite
from mixerzoo.models import ModelConfig, count_flops

TEXT = """\
name: mine
model: {d_model: 16, n_layers: 1, mixer_defaults: {linear_attention: {heads: 2}, softmax_attention: {heads: 2}}}
layouts: {lin: linear_attention, soft: softmax_attention}
seeds: [0, 1]
measures:
  - measure: recall
    task: {task: needle, n_needles: 2, n_keys: 8, n_values: 8}
    training: {steps: 20, batch: 2, length: 64, bar: {examples: 4}}
    sweep: {learning_rate: [1e-3, 2e-3, 4e-3], rungs: [0.2, 0.5]}
    lengths: [64, 128]
    loads: [2, 4]
    examples: 2
  - {measure: speed, modes: [forward], lengths: [64], layouts: [lin], seeds: [0]}
"""
RATES = Rates(flops=1e9, bytes=1e9, op_seconds=1e-5)
KIND = "Example CPU, 2 cores"


@pytest.fixture(autouse=True)
def rates(monkeypatch):
    """The rates of this machine, not measured; returns for which threads and precisions they were asked."""
    asked = []

    def measure(device, threads, precision):
        asked.append((device, threads, precision))
        return RATES

    monkeypatch.setattr(estimator, "measure_rates", measure)
    monkeypatch.setattr(estimator, "PUBLISHED_RATES", {})
    return asked


def cases(text=TEXT):
    return everything(Planner(parse_suite(text, "s"), "cpu"), {})


def first(measure, label="lin", text=TEXT, **parameters):
    """The first case of a measure with these parameters."""
    return next(
        case
        for case in cases(text)
        if (case.measure, case.label) == (measure, label)
        and all(case.parameters[name] == value for name, value in parameters.items())
    )


def past(case, seconds, kind=KIND, threads=1, **more):
    """An earlier result of a case."""
    own = {
        "case": f"{case.id} {seconds}",
        "layout": case.label,
        "measure": case.measure,
        "model": case.model,
        "device": "cpu",
    }
    sizes = {"parameters": case.parameters, "peak_bytes": None, "line_bytes": 100}
    return Past(**{**own, **sizes, "seconds": seconds, "threads": threads, "kind": kind, **more})


def by_history(*lines, **more):
    return Estimator(History(lines, **more), "cpu", KIND)


# --- schedules


@pytest.mark.parametrize(
    "pieces, machines, slots, seconds",
    [
        ([("a", 3), ("b", 2), ("c", 2)], 1, 2, 4),  # a | b c
        ([("a", 3), ("b", 2), ("c", 2)], 1, 1, 7),
        ([("a", 3), ("b", 2), ("c", 2)], 3, 1, 3),
        ([("a", 3), ("b", 1), ("c", 2, False, "b"), ("d", 4, False, "ac")], 1, 2, 7),  # d waits for both
        ([("late", 2, False, "a"), ("a", 3), ("b", 4)], 1, 2, 5),  # what waits holds nothing up
        ([("x", 2, True), ("a", 3), ("y", 2, True)], 1, 2, 7),  # exclusive ones come last, one at a time
        ([("x", 2, True), ("a", 3), ("y", 2, True)], 2, 2, 5),  # or one to a machine
        ([("x", 2, True, "gone")], 1, 1, 2),  # what is no piece is over
        ([], 2, 2, 0),
    ],
)
def test_a_schedule_takes_what_it_takes_by_hand(pieces, machines, slots, seconds):
    made = [Piece(*piece[:3], frozenset(piece[3] if len(piece) > 3 else ())) for piece in pieces]
    assert makespan(made, machines, slots) == seconds


def test_everything_is_every_case_that_there_can_be():
    found = [case.measure for case in cases()]
    # two layouts: 3 rates and then the better 2; two seeds, each asked at two lengths
    assert {m: found.count(m) for m in found} == {"tuning": 10, "training": 4, "recall": 8, "speed": 1}


# --- counting


@pytest.mark.parametrize("layout", ["linear_attention(heads=2)", "softmax_attention(heads=2) | fwpkm@1"])
def test_a_model_costs_the_flops_that_are_counted_of_it_at_any_length(layout):
    options = {"fwpkm": {"n_subkeys": 16, "d_k": 16, "d_v": 16, "chunk_size": 16}}
    config = ModelConfig(layout, d_model=32, mixer_defaults=options)
    cost = cost_of(config)
    assert cost.reading(1024, logits=1.0).flops == pytest.approx(count_flops(config, 1024), rel=0.01)
    for length in (128, 1536):
        assert cost.reading(length, logits=1.0).flops == pytest.approx(count_flops(config, length), rel=0.1)
    assert 0 < cost.decoding(512).ops < cost.reading(512).ops
    assert cost.model_bytes >= 4 * 32 * config.vocab_size


def test_the_state_of_a_recurrence_has_a_bound_and_that_of_attention_grows():
    lin, soft = (cost_of(ModelConfig(f"{name}(heads=2)")) for name in ("linear_attention", "softmax_attention"))
    assert lin.reading(8192).state == lin.reading(256).state > 0
    assert soft.reading(8192).state == pytest.approx(32 * soft.reading(256).state)


def seconds_of(data, **costs):
    """What a measure takes if a call takes what `costs` says of its mode."""
    return parse_measure(data).seconds(lambda mode, rows, length, **how: costs.get(mode, lambda *_: 0)(rows, length))


def test_measures_say_what_they_read():
    def tokens(rows, length):
        return rows * length

    training = {"steps": 20, "batch": 2, "length": 64}
    task = {"task": "needle", "n_needles": 2, "n_keys": 8, "n_values": 8}
    plain = {"measure": "training", "task": task, "training": training}
    assert seconds_of(plain, train=tokens) == 20 * 128
    mixed = {"curriculum": [{"share": 0.5, "mix": [{"length": 64}, {"length": 32, "weight": 3}]}]}
    mixed["curriculum"] += [{"share": 0.5, "mix": [{"length": 128}]}]
    drawn = {"measure": "training", "task": task, "training": training | mixed}
    assert seconds_of(drawn, train=lambda rows, length: length) == 10 * (64 / 4 + 32 * 3 / 4) + 10 * 128
    # a twentieth of the steps apart, and at the end: 21 evaluations of 4 sequences
    barred = {**plain, "training": training | {"bar": {"examples": 4}}}
    assert seconds_of(barred, forward=tokens) == 21 * 4 * 64
    tuned = {**plain, "measure": "tuning", "examples": 6}
    assert seconds_of(tuned, train=tokens, forward=tokens) == 20 * 128 + 6 * 64
    asked = {"measure": "recall", "task": task, "lengths": [64, 128], "loads": [2, 4], "examples": 6, "eval_batch": 4}
    assert seconds_of(asked, forward=lambda rows, length: length) == 2 * 2 * (64 + 128)
    again = {**asked, "passes": [1, 3], "memory": ["fresh", "persistent"]}
    assert seconds_of(again, forward=lambda rows, length: rows) == 2 * 4 * 2 * (2 * 4 + 6 * 1)
    text = {"measure": "perplexity", "length": 128, "examples": 5, "eval_batch": 2}
    assert seconds_of(text, forward=lambda rows, length: length) == 3 * 128
    timed = {"measure": "speed", "modes": ["decode"], "lengths": [64], "new_tokens": 4, "budget_seconds": 5}
    assert seconds_of(timed, forward=lambda *_: 7, decode=lambda *_: 2) == 7 + (1 + 2 + 7) * 8
    assert seconds_of({**timed, "budget_seconds": 99}, decode=lambda *_: 2) == 3 * 8 + 99
    assert seconds_of({"measure": "memory", "modes": ["train"], "lengths": [64]}, train=lambda *_: 1) == 2
    assert seconds_of({"measure": "mixer_speed", "modes": ["forward"], "rounds": 7}, forward=lambda *_: 1) == 2 * 11
    assert seconds_of({"measure": "decode_speed", "rounds": 9}, decode=lambda *_: 1 / 128) == pytest.approx(2 * 13)
    assert seconds_of({"measure": "op_speed"}) is None


def test_the_rates_of_a_machine_are_rates(monkeypatch):
    monkeypatch.setattr("mixerzoo.benchmarks.rates._SECONDS", 0.001)
    found = measure_rates("cpu", 1, "float32")
    assert 1e8 < found.flops < 1e15 and 1e7 < found.bytes < 1e14 and 1e-8 < found.op_seconds < 1e-2


# --- one case


def test_a_case_that_was_measured_takes_what_it_took(rates):
    case, other = first("training"), first("training", "soft")
    again = {**case.parameters, "chosen": {"learning_rate": 4e-3}}
    again["training"] = {**case.parameters["training"], "learning_rate": 4e-3}
    known = by_history(
        past(case, 10.0),
        past(case, 14.0, parameters=again, peak_bytes=5_000_000),  # of another seed, at another rate
        past(case, 12.0, model={**case.model, "seed": 7}),
        past(case, 99.0, kind="another machine"),
        past(other, 50.0),
    )
    guess = known.guess(case, threads=1)
    assert (guess.seconds, guess.source, guess.bytes) == (12.0, "measured", 5_000_000)
    low, high = ACCURACY["measured"]
    assert (guess.low, guess.high) == (12.0 * low, 12.0 * high)
    assert known.guess(case, threads=2).source != "measured"  # with other threads it is another thing


def test_other_sizes_of_a_measured_model_are_scaled_by_what_is_counted():
    short, long = first("recall", lengths=[64]), first("recall", lengths=[128])
    nothing, known = by_history(), by_history(past(short, 10.0))
    counted = [nothing.guess(case, 1) for case in (short, long)]
    assert [guess.source for guess in counted] == ["counted", "counted"]
    guess = known.guess(long, 1)
    assert guess.source == "scaled"
    assert guess.seconds == pytest.approx(10.0 * counted[1].seconds / counted[0].seconds)
    assert guess.seconds > 10.0
    # a tuning is a short training
    tuning, training = first("tuning"), first("training")
    assert by_history(past(tuning, 10.0)).guess(training, 1).source == "scaled"


def test_other_layouts_are_counted_at_the_efficiency_of_the_closest_that_were_measured():
    case = first("training", "soft")
    plain = by_history().guess(case, 1).seconds
    linear, bare = first("training"), by_history().guess(first("training"), 1).seconds
    family = first(
        "training", "soft", TEXT.replace("soft: softmax_attention", "soft: stick_breaking_attention(heads=2)")
    )
    near = by_history().guess(family, 1).seconds
    guess = by_history(past(linear, 3 * bare), past(family, 5 * near)).guess(case, 1)
    assert guess.source == "counted" and guess.seconds == pytest.approx(5 * plain)
    far = by_history(past(linear, 3 * bare)).guess(case, 1)
    assert far.seconds == pytest.approx(3 * plain) and far.high - far.low > guess.high - guess.low - 5 * plain
    strange = first("speed")  # a measure that nobody ran
    shared = by_history(past(linear, 3 * bare)).guess(strange, 1)
    assert shared.seconds == pytest.approx(3 * by_history().guess(strange, 1).seconds)


def test_efficiencies_of_another_kind_of_machine_hold_with_its_own_rates(rates):
    case = first("training")
    plain = by_history().guess(case, 1).seconds
    half = Rates(flops=RATES.flops / 2, bytes=RATES.bytes / 2, op_seconds=2 * RATES.op_seconds)
    lines = past(case, 40.0, kind="slow machine")
    unknown = by_history(lines).guess(case, 1)
    assert unknown.seconds == plain  # whose rates nobody knows
    guess = by_history(lines, rates={"slow machine": {"1 float32": half}}).guess(case, 1)
    start = estimator.START_SECONDS
    assert guess.source == "scaled"
    assert guess.seconds == pytest.approx(plain * 40.0 / (start + 2 * (plain - start)))
    assert set(rates) == {("cpu", 1, "float32")}


def test_what_cannot_be_counted_is_not_known(monkeypatch):
    case = first("training")

    def fails(config):
        raise RuntimeError("a mixer of somebody else's")

    monkeypatch.setattr(estimator, "cost_of", fails)
    assert by_history().guess(case, 1) == estimator.Guess(None, None, None, None, "not known")
    assert by_history(past(case, 3.0)).guess(case, 1).seconds == 3.0  # but measured


# --- a whole run


def estimate(text=TEXT, done=None, machines=1, history=None, **options):
    planner = Planner(parse_suite(text, "s"), "cpu")
    return estimate_run(planner, done or {}, "cpu", 2, history or History(), machines=machines, **options)


def result(case, seconds=1.0):
    known = {"case": case.id, "layout": case.label, "measure": case.measure, "seed": case.seed, "seconds": seconds}
    metrics = {"score": 0.0, "training": {"bar": None}}
    parameters = {**case.parameters, "model": case.model, "device": "cpu", "threads": 1}
    return ResultLine(**known, status="ok", parameters=parameters, metrics=metrics)


def test_an_estimate_is_of_what_is_left_and_says_what_hangs_on_teaching():
    whole = estimate()
    assert len(whole.guesses) == 23 and len(whole.certain) == 15  # all but asking
    assert whole.low < whole.least < whole.high and whole.least < whole.seconds < whole.work
    assert whole.seconds >= whole.work / 2 and estimate(machines=4).seconds < whole.seconds
    assert whole.bytes > 1e8 and whole.disk.models > 14 * 4 * 512 * 16 and not whole.unknown
    tuned = {case.id: result(case) for case in cases() if case.measure == "tuning"}
    left = estimate(done=tuned)
    assert {case.measure for case, _ in left.guesses} == {"training", "recall", "speed"}
    assert left.seconds < whole.seconds
    nothing = estimate(done={case.id: result(case) for case in cases()})
    assert nothing.guesses == () and nothing.seconds == 0


def test_without_a_bar_everything_is_certain():
    found = estimate(TEXT.replace(", bar: {examples: 4}", ""))
    assert len(found.certain) == len(found.guesses) and found.least == found.seconds


def test_taken_over_results_cost_nothing(tmp_path):
    other = Run(tmp_path / "other")
    tuned = [case for case in cases() if case.measure in ("tuning", "speed")]
    with other.locked() as store:
        other.write_suite({"name": "other"})
        for case in tuned:
            store.append(result(case))
    left = estimate(reuse=[other])
    # what is timed is timed again
    assert {case.measure for case, _ in left.guesses} == {"training", "recall", "speed"}


# --- what is kept


def test_a_forecast_is_kept_once_and_found_again_for_what_a_sweep_chose(tmp_path):
    run, said = Run(tmp_path), estimate().forecast()
    assert read_forecast(run) is None
    keep_forecast(run, said)
    keep_forecast(run, said.model_copy(update={"seconds": 0.0}))
    assert read_forecast(run) == said and list(said.rates.values()) == [RATES] * len(said.rates)
    assert not [path for path in tmp_path.iterdir() if path.name != "forecast.json"]
    case = first("training")
    chosen = {**case.parameters["training"], "learning_rate": 9e-3}
    parameters = {**case.parameters, "training": chosen, "chosen": {"learning_rate": 9e-3}, "model": {}, "threads": 1}
    known = {"layout": "lin", "measure": "training", "seed": case.seed, "status": "ok", "seconds": 5.0}
    line = ResultLine(case="of another rate", parameters=parameters, **known)
    assert key_of_result(line) == key_of("lin", "training", case.parameters, case.seed)
    strange = line.model_copy(update={"layout": "another"})
    (_, found), (_, none) = said.of([line, strange])
    assert found is not None and found.case == case.id and none is None
    (tmp_path / "forecast.json").write_text('{"made": 3}')
    with pytest.raises(RunError, match="damaged"):
        read_forecast(run)


def test_earlier_runs_are_read_and_what_cannot_be_is_named(tmp_path):
    folders = [tmp_path / name for name in ("one", "two", "broken", "foreign")]
    machine = {"cpu": "Example CPU", "usable_cores": 2}
    case = first("training")
    for folder in folders:
        run = Run(folder)
        with run.locked() as store:
            run.write_suite({"name": "s"})
            run.write_environment({"schema_version": 3, "machine": machine, "machines": {}})
            store.append(result(case, 4.0))
            elsewhere = result(case, 6.0).model_copy(update={"case": "e", "machine": {"name": "n", "kind": "GPU"}})
            store.append(elsewhere)
            store.append(elsewhere.model_copy(update={"case": "failed", "status": "crashed", "metrics": None}))
    (folders[2] / "results.jsonl").write_text('{"schema_version": 1}\n')
    foreign = json.loads((folders[3] / "environment.json").read_text())
    (folders[3] / "environment.json").write_text(json.dumps({**foreign, "foreign": {"tool": "t"}}))
    keep_forecast(Run(folders[0]), estimate().forecast().model_copy(update={"kind": "GPU"}))
    found = read_history(folders)
    assert {(p.case, p.seconds, p.kind) for p in found.cases} == {(case.id, 4.0, KIND), ("e", 6.0, "GPU")}
    assert found.runs == tuple(folders[:2]) and set(found.rates) == {"GPU"}
    assert [str(folder) in why for folder, why in zip(folders[2:], found.unread)] == [True, True]


def test_forecasts_and_earlier_runs_are_read_without_torch():
    program = "import sys, mixerzoo.benchmarks.history, mixerzoo.benchmarks.forecast; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


# --- the commands


@pytest.fixture
def mixerzoo(capsys, monkeypatch, tmp_path):
    """Runs a command line in this process, where there are no earlier runs; returns exit code, stdout, stderr."""
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("mixerzoo.benchmarks.history.usual_folders", list)

    def run(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as end:
            cli.main(arguments)
        captured = capsys.readouterr()
        return end.value.code or 0, captured.out, captured.err

    return run


HOSTILE = """\
name: mine
model: {d_model: 16, n_layers: 1}
layouts: {"[red]lin[/] \\e[2J": linear_attention(heads=2), mem: "fwpkm(n_subkeys=16, d_k=16, d_v=16, chunk_size=16)"}
measures:
  - {measure: speed, modes: [forward], lengths: [16], rounds: 3, budget_seconds: 0}
  - {measure: op_speed, layouts: [mem], lengths: [64], rounds: 3}
"""


def test_plan_says_what_a_suite_takes_and_what_is_not_known(mixerzoo, tmp_path):
    path = tmp_path / "suite.yaml"
    path.write_text(HOSTILE)
    code, out, _ = mixerzoo("plan", str(path), "--machines", "3", "--price", "2.5")
    assert code == 0 and "[red]lin[/]" in out and "\x1b[2J" not in out
    assert "3 cases" in out and "3 machines" in out and "machine-hours" in out and "at 2.5 an hour" in out
    assert re.search(r"not known: 1 of op_speed", out) and "counted: 2 cases, 100% of the work" in out
    assert re.search(r"wall time\W+.* s \(.* s to .* s\)", out)
    path.write_text(TEXT)
    code, out, _ = mixerzoo("plan", str(path))
    assert code == 0 and "15 cases, and 8 more where a layout is taught" in out and "4 if taught" in out
    assert "cost" not in out and "if none is" in out
    code, _, err = mixerzoo("plan", str(path), "--from", str(tmp_path / "nowhere"))
    assert code == 2 and "nowhere holds no results to go by" in err
    assert mixerzoo("plan", str(path), "--machines", "0")[0] == 2


def test_run_says_the_same_in_a_line_and_keeps_it(mixerzoo, tmp_path, monkeypatch):
    path, run = tmp_path / "suite.yaml", Run(tmp_path / "run")
    path.write_text(HOSTILE.split("  - {measure: op_speed")[0])
    arguments = ("run", str(path), "--out", str(run.folder), "--device", "cpu")

    def execute(planner, run, suite, limits, reporter, executor, **options):
        machine = {"cpu": "Example CPU", "usable_cores": 2}
        with run.locked() as store:
            run.write_suite(suite)
            run.write_environment({"schema_version": 3, "device": "cpu", "machine": machine, "machines": {}})
            reporter.begin(LiveRun())
            kind = this_machine("cpu").kind
            for case in planner({}).cases:
                line = result(case, 3.0).model_copy(update={"machine": {"name": "n", "kind": kind}})
                line.parameters["threads"] = usable_cores()
                store.append(line)
        raise TimeIsUp("enough")

    monkeypatch.setattr("mixerzoo.benchmarks.runner.execute", execute)
    code, out, _ = mixerzoo(*arguments, "--dry-run")
    assert code == 0 and "wall time" in out and "to run" in out and not run.folder.exists()
    _, out, _ = mixerzoo(*arguments)
    assert re.search(r"estimate: .* s \(.* s to .* s\); .* on disk; 2 cases, 1 at a time: 2 counted", out)
    said = read_forecast(run)
    assert all(forecast is not None for _, forecast in said.of(run.results())) and len(said.cases) == 2
    # what was measured is what the next one goes by
    code, out, _ = mixerzoo("plan", str(path), "--from", str(run.folder))
    assert code == 0 and "measured: 2 cases, 100% of the work" in out
    code, out, _ = mixerzoo("plan", str(path), "--out", str(run.folder))
    assert code == 0 and "nothing is left to run" in out
    _, out, _ = mixerzoo(*arguments)
    assert "nothing is left to run" in out and read_forecast(run) == said
    (run.folder / "forecast.json").unlink()
    _, out, _ = mixerzoo(*arguments, "--no-estimate")
    assert "estimate" not in out and read_forecast(run) is None


def test_durations_are_said_to_about_two_digits():
    said = {0.2: "under 1 s", 45: "45 s", 95: "2 min", 3500: "58 min", 7800: "2 h 10 min", 7200: "2 h"}
    said |= {50_000: "14 h", 300_000: "3.5 days"}
    assert {seconds: duration(seconds) for seconds in said} == said
    assert span(7800, 6000, 10800) == "2 h 10 min (1 h 40 min to 3 h)"
    assert Limits().choose_jobs("cuda", 9) == 1
