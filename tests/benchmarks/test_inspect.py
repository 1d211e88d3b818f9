"""`mixerzoo inspect`: a small saved model, what is printed, written and drawn, and mistakes."""

import json
import re

import pytest
from mixerzoo.benchmarks import cli
from mixerzoo.benchmarks.cli_inspect import excerpt, usage_table
from mixerzoo.benchmarks.inspect_model import resolve_token
from mixerzoo.benchmarks.inspect_plots import gate_points, save_charts, slot_bars
from mixerzoo.models import LanguageModel, ModelConfig

TEXT = "the keeper of the zoo counts the mixers of the zoo\n" * 4
FWPKM = {"fwpkm": {"n_subkeys": 8, "d_k": 8, "d_v": 8, "top_k": 2, "chunk_size": 32, "heads": 2}}
WINDOW = "sliding_window_attention(heads=2, window=8)"


def save(folder, layout=f"{WINDOW} | fwpkm@0,1", vocab_size=300):
    config = ModelConfig(layout, d_model=16, n_layers=2, vocab_size=vocab_size, mixer_defaults=FWPKM)
    LanguageModel(config).save(folder)
    return folder


@pytest.fixture
def mixerzoo(capsys, monkeypatch, tmp_path):
    """Runs a command line in this process, in a folder of its own; returns exit code, stdout, stderr."""
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        with pytest.raises(SystemExit) as end:
            cli.main([str(a) for a in arguments])
        captured = capsys.readouterr()
        return end.value.code or 0, captured.out, captured.err

    return run


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return path


def test_inspect_prints_writes_and_draws(mixerzoo, file, tmp_path):
    model, out = save(tmp_path / "model"), tmp_path / "out" / "deep"
    code, printed, _ = mixerzoo("inspect", model, "--text", file, "--token", 150, "--out", out, "--device", "cpu")
    assert code == 0 and "204 tokens" in printed
    for name in ("layers.0.memory", "layers.1.memory"):
        assert printed.count(name) == 2 and f"{name}: what token 150 read" in printed
    found = json.loads((out / "inspect.json").read_text())
    assert found["checkpoint"] == str(model) and found["text"] == str(file) and found["tokens"] == 204
    for layer in found["layers"]:
        assert len(layer["gates"]) == 204 and layer["gate"]["mean"] == pytest.approx(
            sum(layer["gates"]) / 204, abs=1e-4
        )
        assert sum(slots for _, slots in layer["slots_by_accesses"]) == layer["n_slots"] == 64
        assert sum(a * n for a, n in layer["slots_by_accesses"]) == layer["usage"]["accesses"] == 204 * 4
        assert [u["end"] for u in layer["updates"]] == [32, 64, 96, 128, 160, 192]
        assert all(u["change"] > 0 for u in layer["updates"])
    for layer in found["token"]["layers"]:
        assert len(layer["reads"]) == 4 and sum(r["weight"] for r in layer["reads"]) == pytest.approx(1, abs=1e-5)
        assert all(w["position"] < 128 for r in layer["reads"] for w in r["writers"])
        for read in layer["reads"]:
            assert len(read["writers"]) == min(3, read["writes"])
            for writer in read["writers"]:
                assert re.search(rf"{writer['position']:,} +{writer['weight']:.2f} ", printed)
    assert TEXT[130:150].replace("\n", "␤") in printed.replace("⏎", "␤")
    for name in ("gates.svg", "slots.svg"):
        drawn = (out / name).read_text()
        assert name in printed and drawn.startswith("<svg") and drawn.count("layers.1.memory") >= 1


def test_the_last_token_is_the_default_and_the_folder_is_named(mixerzoo, file, tmp_path):
    code, printed, _ = mixerzoo("inspect", save(tmp_path / "model"), "--text", file)
    assert code == 0 and "what token 203 read" in printed
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name.startswith("inspect-") and f"runs/{folder.name}/" in printed
    assert json.loads((folder / "inspect.json").read_text())["token"]["position"] == 203


def test_a_text_shorter_than_a_chunk_is_never_written(mixerzoo, tmp_path):
    (tmp_path / "short").write_bytes(b"\x00\xffz")
    code, printed, _ = mixerzoo("inspect", save(tmp_path / "model"), "--text", tmp_path / "short", "--token", -2)
    assert code == 0 and printed.count("never written") == 8 and "what token 1 read" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere", "--text", "text.txt"], "nowhere holds no saved model: config.json is missing"),
        (["model", "--text", "nothing.txt"], "nothing.txt"),
        (["model", "--text", "empty"], "empty is empty: there is nothing to read"),
        (["model", "--text", "text.txt", "--token", "204"], "--token must be in -204..203"),
        (["window", "--text", "text.txt"], "has no fwpkm layer to look into: it is 'sliding_window_attention"),
        (["narrow", "--text", "text.txt"], "has vocab_size=255"),
        (["model", "--text", "text.txt", "--device", "gpu"], "unknown device 'gpu'"),
        (["model"], "Missing option '--text'"),
    ],
)
def test_mistakes_exit_with_2(mixerzoo, file, tmp_path, arguments, message):
    save(tmp_path / "model")
    save(tmp_path / "window", WINDOW)
    save(tmp_path / "narrow", vocab_size=255)
    (tmp_path / "empty").write_bytes(b"")
    code, out, err = mixerzoo("inspect", *arguments)
    assert code == 2 and message in err.replace("\n", " ") and "Traceback" not in out + err
    assert not (tmp_path / "runs").exists()


def test_excerpts_are_printable_and_end_with_the_text():
    text = "a\tb\n[bold]é".encode()
    assert excerpt(text, 0).plain == "[a]·b⏎[bold]é"
    assert excerpt(text, 3).plain == "a·b[⏎][bold]é"
    assert excerpt(text, len(text) - 1).plain.endswith("[bold]\ufffd[\ufffd]")
    assert excerpt(b"x" * 99, 50).plain == "x" * 20 + "[x]" + "x" * 20


def test_tokens_are_counted_from_either_end():
    assert [resolve_token(t, 5) for t in (0, 4, -1, -5)] == [0, 4, 4, 0]


def test_layers_without_gates_have_no_chart_of_them(tmp_path):
    usage = {"accesses": 4, "used": 1, "coverage": 0.25, "collisions": 4.0, "divergence": 1.4}
    layer = {"n_slots": 4, "usage": usage, "slots_by_accesses": [[0, 3], [4, 1]], "updates": []}
    off = {**layer, "name": "off", "gate": None, "gates": None}
    gate = {"mean": 0.5, "quantiles": {"0.05": 0.25, "0.95": 0.75}}
    on = {**layer, "name": "on", "gate": gate, "gates": [0.25, 0.75]}
    found = {"tokens": 2, "layers": [off]}
    assert [path.name for path in save_charts(found, tmp_path)] == ["slots.svg"]
    assert list(usage_table(found).columns[1].cells) == ["off"]
    both = {"tokens": 2, "layers": [off, on]}
    assert [path.name for path in save_charts(both, tmp_path)] == ["gates.svg", "slots.svg"]
    assert ">on<" in (tmp_path / "gates.svg").read_text() and ">off<" not in (tmp_path / "gates.svg").read_text()
    assert ">off<" in (tmp_path / "slots.svg").read_text()
    cells = [list(column.cells) for column in usage_table(both).columns]
    assert cells[1:4] == [["off", "0.500"], ["", "0.250 .. 0.750"], ["1 of 4", "1 of 4"]]


def test_points_of_the_charts():
    assert slot_bars([[0, 5], [1, 2], [3, 1], [9, 4]]) == [
        {"accesses": "0", "first": 0, "slots": 5},
        {"accesses": "1", "first": 1, "slots": 2},
        {"accesses": "2–3", "first": 2, "slots": 1},
        {"accesses": "4–7", "first": 4, "slots": 0},
        {"accesses": "8–15", "first": 8, "slots": 4},
    ]
    assert gate_points([0.5]) == [{"token": 0.0, "mean": 0.5, "low": 0.5, "high": 0.5}]
    points = gate_points([0.25, 0.75] * 640)  # four tokens to a point
    assert len(points) == 320 and points[1] == {"token": 5.5, "mean": 0.5, "low": 0.25, "high": 0.75}
