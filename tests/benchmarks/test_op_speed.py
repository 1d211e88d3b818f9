"""Op speed: what is timed, the bytes that are counted, ratios and bars; nothing here asserts how fast anything is."""

import json
from types import SimpleNamespace

import pytest
import torch
from mixerzoo.benchmarks.device import choose_device
from mixerzoo.benchmarks.measures import meter
from mixerzoo.benchmarks.measures.bars import Bar, ratios
from mixerzoo.benchmarks.measures.contest import Contender, peaks_in_turn, time_in_turn
from mixerzoo.benchmarks.measures.op_speed import OpSpeed
from mixerzoo.benchmarks.measures.op_work import FwpkmWork
from mixerzoo.benchmarks.measures.overhead import Overhead
from mixerzoo.benchmarks.plan import Planner
from mixerzoo.benchmarks.suite import load_suite, parse_suite
from mixerzoo.models import LanguageModel, ModelConfig

CPU = torch.device("cpu")
OPTIONS = {"n_subkeys": 8, "d_k": 8, "d_v": 6, "top_k": 2, "chunk_size": 16}
CONFIG = ModelConfig("fwpkm", d_model=16, n_layers=1, vocab_size=16, mixer_defaults={"fwpkm": OPTIONS})


def silent(fraction, text):
    assert 0 <= fraction <= 1 and text


def make_work(*, batch=2, length=40, decode_chunks=0, **options):
    sizes = {"d_model": 16, "batch": batch, "length": length, "decode_chunks": decode_chunks}
    return FwpkmWork({**OPTIONS, **options}, **sizes, seed=0, device=CPU, dtype=torch.float32)


def measure(tmp_path, config=CONFIG, **fields):
    quick = {"lengths": (16, 40), "rounds": 3, "slow_rounds": 1, "copy_bytes": 4096, "batch": 2, "memory": "fresh"}
    return OpSpeed(**{**quick, **fields}).run(config, seed=0, device=CPU, folder=tmp_path, progress=silent)


def test_every_backend_mode_and_length_is_a_row(tmp_path):
    fields = {"modes": ("forward", "train", "decode"), "backends": ("compact", "reference")}
    metrics = measure(tmp_path, **fields)
    assert metrics == json.loads(json.dumps(metrics))
    rows = {(r["backend"], r["mode"], r["tokens"]): r for r in metrics["rows"]}
    assert len(rows) == len(metrics["rows"]) == 2 * 3 * 2
    for (backend, mode, tokens), row in rows.items():
        assert row["rounds"] == len(row["samples"]) == (1 if backend == "reference" else 3)
        assert 0 < row["q1"] <= row["median"] <= row["q3"] and row["peak_bytes"] > 0
        assert row["units"] == 2 * (1 if mode == "decode" else tokens) and row["batch"] == 2
        assert row["floor_bytes"] == rows["compact", mode, tokens]["floor_bytes"] > 0
        rate = metrics["copy_bandwidth"]["median"]
        assert row["floor_seconds"] == pytest.approx(row["floor_bytes"] / rate)
    kinds = [r["kind"] for r in metrics["ratios"]]
    counts = {"faster": 6, "smaller": 6, "growth": 6, "flat": 6, "linear": 4, "floor": 12}
    assert {kind: kinds.count(kind) for kind in set(kinds)} == counts
    assert all(r["bar"] is None and r["met"] is None for r in metrics["ratios"])
    assert metrics["table_bytes"] == 4 * (64 * 6 + 8 * 8)


def test_bars_are_held_by_the_ratios_they_name(tmp_path):
    bars = [
        {"kind": "faster", "mode": "forward", "backend": "compact", "over": "reference", "value": 1e-9},
        {"kind": "smaller", "mode": "forward", "backend": "compact", "over": "reference", "value": 1e9},
        {"kind": "flat", "mode": "forward", "backend": "compact", "value": 1e9},
        {"kind": "floor", "mode": "forward", "backend": "compact", "value": 1e-9},
    ]
    metrics = measure(tmp_path, modes=("forward",), backends=("compact", "reference"), bars=bars)
    held = {(r["kind"], r["met"]) for r in metrics["ratios"] if r["bar"] is not None}
    assert held == {("faster", True), ("smaller", False), ("flat", True), ("floor", False)}
    assert not [r for r in metrics["ratios"] if r["backend"] == "reference" and r["bar"] is not None]


def made_up(backend, tokens, seconds, peak, mode="train", **more):
    times = {"median": seconds, "q1": 0.9 * seconds, "q3": 1.2 * seconds}
    return {"backend": backend, "mode": mode, "tokens": tokens, "units": tokens, "peak_bytes": peak, **times, **more}


def test_ratios_equal_numbers_computed_by_hand():
    rows = [made_up("compact", 100, 1.0, 50, floor_seconds=0.25), made_up("reference", 100, 30.0, 400)]
    found = {r["kind"]: r for r in ratios(rows, [Bar(kind="floor", mode="train", backend="compact", value=4)])}
    assert set(found) == {"faster", "smaller", "floor"}
    faster = found["faster"]
    assert (faster["backend"], faster["over"], faster["tokens"]) == ("compact", "reference", 100)
    assert (faster["value"], faster["low"], faster["high"]) == pytest.approx((30.0, 27 / 1.2, 36 / 0.9))
    assert found["smaller"]["value"] == found["smaller"]["low"] == 8.0
    assert found["floor"]["value"] == 4.0 and found["floor"]["met"] is True


def test_flat_linear_and_fit_look_at_all_lengths():
    straight = [made_up("compact", n, 0.01 * n, 7 * n + 5) for n in (10, 20, 40)]
    values = {"flat": 1.15, "linear": 1.05, "fit": 0.05}
    bars = [Bar(kind=kind, mode="train", backend="compact", value=value) for kind, value in values.items()]
    found = {r["kind"]: r for r in ratios(straight, bars)}
    assert found["flat"]["value"] == pytest.approx(1.0) and found["fit"]["value"] == pytest.approx(0, abs=1e-12)
    assert found["linear"]["value"] == 1.0  # the constant part weighs most at the least length
    assert found["flat"]["tokens"] is None and all(found[kind]["met"] for kind in values)
    bent = [made_up("compact", n, 0.01 * n * (1 + n / 40), n * n) for n in (10, 20, 40)]
    found = {r["kind"]: r for r in ratios(bent, bars)}
    assert found["flat"]["value"] == pytest.approx(2 / 1.25) and found["linear"]["value"] == 4.0
    assert found["fit"]["value"] > 0.5 and not any(found[kind]["met"] for kind in values)


def test_tokens_that_become_cheaper_do_not_grow():
    rows = [made_up("compact", 20, 0.1, 20), made_up("compact", 10, 0.1, 10), made_up("compact", 40, 0.16, 40)]
    found = {r["kind"]: r for r in ratios(rows, [])}
    assert found["growth"]["value"] == pytest.approx(1.0) and found["flat"]["value"] == pytest.approx(2.5)
    dearer = [made_up("compact", 10, 0.1, 10), made_up("compact", 20, 0.1, 20), made_up("compact", 40, 0.6, 40)]
    found = {r["kind"]: r for r in ratios(dearer, [])}
    assert found["growth"]["value"] == pytest.approx(1.5) and found["flat"]["value"] == pytest.approx(3.0)


def test_decoding_has_no_line_of_bytes():
    rows = [made_up("compact", n, 1.0, n * n, mode="decode") for n in (10, 20, 40)]
    assert {r["kind"] for r in ratios(rows, [])} == {"growth", "flat"}


@pytest.mark.parametrize("batch, scope", [(1, "sequence"), (2, "sequence"), (2, "batch")])
def test_counted_bytes_equal_a_count_by_hand(batch, scope):
    """40 tokens in chunks of 16, two of them complete; float32, 6 values a row, keys of 8 * 8 numbers."""
    work = make_work(batch=batch, decode_chunks=1, scope=scope)
    slots = work._call("reference", *work._first(40)).slots
    memories = batch if scope == "sequence" else 1
    parts = slots.reshape(memories, -1, 40, 2) if scope == "sequence" else slots.reshape(1, batch, 40, 2)
    touched = [sum(len(set(part[:, s : s + 16].flatten().tolist())) for part in parts) for s in (0, 16, 32)]
    keys, token, result = memories * 8 * 8 * 4, batch * (8 + 6 + 1) * 4, batch * 6 * 4
    forward = (sum(touched) + sum(touched[:2])) * 24 + (3 + 2) * keys + 40 * (token + result)
    train = forward + 3 * sum(touched) * 24 + 3 * 3 * keys + 40 * (2 * token + result)
    assert work.counted_bytes("compact", [("forward", 40), ("train", 40)], 0) == [forward, train]
    # tokens 16 to 32: 16 read the keys and two rows each, and one rewrite reads and writes keys and touched rows
    decode = 2 * touched[1] * 24 + (16 + 2) * keys + 16 * (batch * 2 * 24 + result + 3 * token)
    assert work.counted_bytes("compact", [("decode", 16)], 16) == [decode // 16]


def test_keys_that_stay_are_not_counted_as_written():
    moving, still = make_work(), make_work(key_objective="none")
    counts = [w.counted_bytes("compact", [("forward", 15)], 0)[0] for w in (moving, still)]
    assert counts[0] == counts[1]  # no chunk is complete
    rows = [(2 * w._touched("compact", 32)[0] + w._touched("compact", 32)[1]) * 24 for w in (moving, still)]
    counts = [w.counted_bytes("compact", [("forward", 32)], 0)[0] for w in (moving, still)]
    assert counts[0] - counts[1] == 2 * 8 * 8 * 4 + rows[0] - rows[1]


def test_work_trains_everything_and_decodes_over_rewrites():
    work = make_work(decode_chunks=2, initial_memory="learned")
    _, gradients = work.train("compact", 40)
    assert len(gradients) == 5 and all(g.isfinite().all() and g.abs().sum() > 0 for g in gradients)
    assert len(make_work().train("compact", 40)[1]) == 4  # a random memory is not learned
    retrieved, state = work.decode("compact", work.context("compact", 40), 33)
    assert retrieved.shape[1] == 1 and retrieved.isfinite().all()
    assert state.position == 73
    whole = work.context("compact", 73)
    torch.testing.assert_close(state.keys, whole.keys, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("keep", [True, False])
def test_freed_memory_is_kept_where_that_is_asked_for(tmp_path, monkeypatch, keep):
    asked = []  # not really: it would last for the rest of the tests
    monkeypatch.setattr("mixerzoo.benchmarks.measures.op_speed.keep_freed_memory", asked.append)
    measure(tmp_path, modes=("forward",), memory="kept" if keep else "fresh")
    assert asked == [CPU] * keep


def test_backends_take_turns_and_slow_ones_fewer(monkeypatch):
    calls = []

    def contender(name, **fields):
        return Contender(name, "forward", 1, lambda _: calls.append(name), prepare=lambda: None, **fields)

    timings = time_in_turn(
        [contender("a"), contender("b", slow=True), contender("c", units=4)],
        CPU,
        rounds=3,
        slow_rounds=2,
        progress=silent,
    )
    assert calls == [*"aaaccc", *"abc", *"abc", *"ac"]
    assert [len(timing.samples) for timing in timings] == [3, 2, 3]


def test_a_call_of_many_seconds_warms_up_like_any_other(monkeypatch):
    """It may have been long because it compiled."""
    now, durations = [0.0], {"a": [2.5, 2.4, 0.5, 1.0, 1.1, 1.2], "b": [0.002, 0.001, 0.001] + [0.001] * 30}
    monkeypatch.setattr(meter, "time", SimpleNamespace(perf_counter=lambda: now[0]))

    def contender(name, **fields):
        def work(_):
            now[0] += durations[name].pop(0)

        return Contender(name, "forward", 1, work, **fields)

    a, b = time_in_turn([contender("a"), contender("b", units=2)], CPU, rounds=3, slow_rounds=1, progress=silent)
    assert a.first_seconds == pytest.approx(2.5) and a.samples == pytest.approx([1.0, 1.1, 1.2])
    assert b.first_seconds == pytest.approx(0.001) and b.samples == pytest.approx([0.0005] * 3)
    assert not any(durations.values())  # short work ran ten times in each of its turns


def test_peaks_are_of_the_call_alone():
    known = Contender("a", "forward", 1, lambda x: torch.zeros(x, dtype=torch.uint8), prepare=lambda: 5000)
    (peak,) = peaks_in_turn([known], CPU, silent)
    assert peak["peak_bytes"] == 5000 and "profiler" in peak["method"]


def test_a_layout_without_the_mixer_and_a_backend_that_cannot_run_are_refused(tmp_path):
    other = ModelConfig("softmax_attention", d_model=16, n_layers=1)
    with pytest.raises(ValueError, match="'softmax_attention' has no fwpkm; op speed takes the sizes"):
        measure(tmp_path, config=other)
    inserted = ModelConfig("softmax_attention | fwpkm@0", d_model=16, n_layers=1, mixer_defaults=CONFIG.mixer_defaults)
    assert measure(tmp_path, config=inserted, modes=("forward",))["table_bytes"] == 4 * (64 * 6 + 8 * 8)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"backends": ("cuda",)}, "fwpkm has no backend 'cuda'; it has"),
        ({"backends": ("compact", "compact")}, "the backends must differ"),
        ({"lengths": (8, 8)}, "the lengths must differ"),
        ({"rounds": 2}, "greater than or equal to 3"),
        ({"bars": [{"kind": "floor", "mode": "decode", "backend": "compact", "value": 4}]}, "not in modes"),
        ({"bars": [{"kind": "floor", "mode": "train", "backend": "reference", "value": 4}]}, "needs a backend, and"),
        (
            {"bars": [{"kind": "faster", "mode": "train", "backend": "compact", "value": 4}]},
            "in over, one that follows",
        ),
        ({"bars": [{"kind": "flat", "mode": "train", "backend": "compact", "value": 4}]}, "at least 2 lengths"),
        ({"bars": [{"kind": "fit", "mode": "train", "backend": "compact", "value": 4}]}, "at least 3 lengths"),
        ({"bars": [{"kind": "floor", "mode": "train", "backend": "compact", "value": 0}]}, "greater than 0"),
    ],
)
def test_what_cannot_be_measured_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        OpSpeed(**fields)


def test_overhead_is_against_the_same_model_without_what_is_inserted(tmp_path):
    bars = [{"kind": "overhead", "mode": "train", "backend": "with", "over": "without", "value": 1e9}]
    overhead = Overhead(modes=("forward", "train"), lengths=(16,), batch=2, rounds=3, bars=bars)
    layout = "linear_attention(heads=2) | fwpkm@0"
    config = ModelConfig(layout, d_model=16, n_layers=1, vocab_size=16, mixer_defaults=CONFIG.mixer_defaults)
    metrics = overhead.run(config, seed=0, device=CPU, folder=tmp_path, progress=silent)
    assert metrics == json.loads(json.dumps(metrics))
    rows = {(r["backend"], r["mode"]): r for r in metrics["rows"]}
    assert set(rows) == {(b, m) for b in ("with", "without") for m in ("forward", "train")}
    assert all(len(r["samples"]) == 3 and r["units"] == 32 for r in rows.values())
    assert rows["with", "train"]["peak_bytes"] > rows["without", "train"]["peak_bytes"] > 0
    assert all(rows["with", mode]["ran"]["fwpkm"] == ["compact"] for mode in ("forward", "train"))
    assert rows["without", "train"]["ran"] and "fwpkm" not in rows["without", "train"]["ran"]
    forward, train = metrics["ratios"]
    assert train["value"] == rows["with", "train"]["median"] / rows["without", "train"]["median"]
    assert (forward["kind"], forward["bar"], train["bar"], train["met"]) == ("overhead", None, 1e9, True)
    with pytest.raises(ValueError, match="inserts nothing"):
        overhead.run(ModelConfig("linear_attention"), seed=0, device=CPU, folder=tmp_path, progress=silent)
    with pytest.raises(ValueError, match="a bar of overhead has kind: overhead, backend: with"):
        Overhead(bars=[{"kind": "faster", "mode": "train", "backend": "with", "over": "without", "value": 2}])
    with pytest.raises(ValueError, match="belongs to the measure overhead"):
        OpSpeed(bars=bars)


def test_overhead_is_that_of_the_backend_that_the_model_names(tmp_path):
    options = {"fwpkm": {**OPTIONS, "backend": "reference"}}
    config = ModelConfig("identity | fwpkm@0", d_model=16, n_layers=1, vocab_size=16, mixer_defaults=options)
    overhead = Overhead(modes=("forward",), lengths=(16,), batch=2, rounds=3)
    metrics = overhead.run(config, seed=0, device=CPU, folder=tmp_path, progress=silent)
    assert [row["ran"] for row in metrics["rows"]] == [{"fwpkm": ["reference"]}, {}]


def test_the_suite_for_a_gpu_measures_the_kernels_that_it_is_about():
    cases = Planner(load_suite("fwpkm-speed-gpu"), "cuda")({}).cases
    assert {case.measure for case in cases} == {"op_speed", "overhead"}
    (case,) = (case for case in cases if case.measure == "overhead")
    with torch.device("meta"):
        model = LanguageModel(ModelConfig.from_dict(case.model))
    memories = [mixer for mixer in model.mixers() if mixer.card.name == "fwpkm"]
    assert [memory.backend for memory in memories] == ["triton"] * 3
    assert case.parameters["precision"] == "bfloat16" and case.tf32


def test_the_suites_state_the_bars_and_their_device():
    suite = load_suite("fwpkm-speed")
    bars = [bar for entry in suite.entries for bar in entry.measure.bars]
    assert {bar.kind for bar in bars} == {"faster", "smaller", "flat", "linear"} and len(bars) >= 7
    assert suite.settings.device == "cpu" and load_suite("fwpkm-speed-gpu").settings.device == "cuda"


def test_a_suite_for_one_device_refuses_the_other(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="measures a CUDA device, and none can be used here"):
        choose_device("auto", only="cuda")
    with pytest.raises(ValueError, match="measures on cuda, and says nothing about cpu"):
        choose_device("cpu", only="cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device("auto", only="cpu") == "cpu" and choose_device("auto", only="cuda") == "cuda"
    assert choose_device("auto") == "cuda"


def test_one_entry_is_one_case():
    text = (
        "name: mine\nmodel: {n_layers: 1}\nlayouts: {a: fwpkm}\n"
        "measures:\n"
        "  - {measure: op_speed, modes: [forward, train], lengths: [16, 32], backends: [compact, reference]}\n"
    )
    (case,) = Planner(parse_suite(text, "s"), "cpu")({}).cases
    assert case.exclusive and case.sizes == "forward,train 16,32"
