"""The charts: what is drawn of which numbers, failures where they happened, names as they are, nothing empty."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import vl_convert
from mixerzoo.benchmarks.runs import ResultLine
from mixerzoo.reports.charts import VEGALITE, Figure
from mixerzoo.reports.page import parts
from mixerzoo.reports.recall import asked
from mixerzoo.reports.table import Table
from mixerzoo.reports.tables import RunData, read_run

from .conftest import HOSTILE, LENGTHS, LOADS, UNTAUGHT, UNTAUGHT_ACCURACY, made_up_lines, write_run

MakeRun = Callable[..., Path]
TAUGHT = ["swa + fwpkm", "softmax", "gated_deltanet", "ttt_linear", HOSTILE]


def data_of(figure: Figure) -> list[dict[str, Any]]:
    return [row for rows in figure.spec["datasets"].values() for row in rows]


def downloaded(figure: Figure) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(figure.csv())))


class Drawn(dict[str, Figure]):
    """The figures of a run by name, and its tables."""

    def __init__(self, run: RunData) -> None:
        shown = parts(run)
        super().__init__({figure.name: figure for part in shown for figure in part.figures})
        self.tables: dict[str, Table] = {table.name: table for part in shown for table in part.tables}


@pytest.fixture(scope="module")
def run(made_up_run: Path) -> RunData:
    return read_run(made_up_run)


@pytest.fixture(scope="module")
def drawn(run: RunData) -> Drawn:
    return Drawn(run)


# --- All charts ---


def test_every_chart_compiles_without_a_warning(drawn: Drawn, capfd: pytest.CaptureFixture[str]) -> None:
    for figure in drawn.values():
        vl_convert.vegalite_to_vega(figure.spec, vl_version=VEGALITE, show_warnings=True)
    said = capfd.readouterr()
    assert (said.out, said.err) == ("", "")


def test_every_chart_is_drawn_and_described(drawn: Drawn) -> None:
    for figure in drawn.values():
        assert figure.svg.startswith("<svg") and "NaN" not in figure.svg and "Infinity" not in figure.svg, figure.name
        assert "undefined" not in figure.svg and "null" not in figure.svg, figure.name
        assert figure.caption.endswith(".") and figure.alt.endswith("."), figure.name


def test_every_chart_has_its_data_as_csv_in_words(drawn: Drawn) -> None:
    internal = {"panel", "shown", "kind", "low_", "rank", "beside", "label", "label_y", "place", "case", "variant"}
    for figure in drawn.values():
        assert figure.data is not None and len(downloaded(figure)) > 1, figure.name
        columns = list(downloaded(figure)[0])
        assert "layout" in columns and not internal & set(columns), figure.name
        assert not [name for name in columns if "_" in name], figure.name


def test_layouts_stand_in_the_order_of_the_run(run: RunData, drawn: Drawn) -> None:
    for name in ("recall-map", "recall-depth", "training", "learning", "sweep"):
        order = drawn[name].spec["facet"]["sort"]
        assert order == [layout for layout in run.layouts if layout in order], name


# --- Heat maps ---


def test_the_heat_map_has_a_cell_for_every_length_and_load_of_every_taught_layout(run: RunData, drawn: Drawn) -> None:
    cells = [row for row in data_of(drawn["recall-map"]) if "status" in row]
    places = [(row["layout"], row["length"], row["load"]) for row in cells]
    assert sorted(places) == sorted((name, n, load) for name in TAUGHT for n in LENGTHS for load in LOADS)
    (recall,) = asked(run)
    known = {(r.layout, r.length, r.load): r for r in recall.where(passes=1, memory="fresh").itertuples()}
    for row in cells:
        found = known.get((row["layout"], row["length"], row["load"]))
        if found is None:
            assert (row["layout"], row["length"]) == ("softmax", 8192)
            assert row["status"] == "failed" and row["text"] == "✕" and row["shown"] == "out of memory"
            assert row["accuracy"] is None
        else:
            assert row["accuracy"] == found.accuracy and row["text"] == f"{100 * found.accuracy:.0f}"


def test_the_colours_of_the_heat_map_are_fixed_and_perceptually_uniform(drawn: Drawn) -> None:
    for name in ("recall-map", "recall-depth"):
        (colour,) = [c for c in _channels(drawn[name].spec, "color") if c.get("field") == "accuracy"]
        assert colour["scale"] == {"clamp": True, "domain": [0, 1], "scheme": "viridis"}


def _channels(spec: Any, name: str) -> list[dict[str, Any]]:
    if isinstance(spec, dict):
        own = [spec["encoding"][name]] if name in spec.get("encoding", {}) else []
        return own + [found for value in spec.values() for found in _channels(value, name)]
    return [found for value in spec for found in _channels(value, name)] if isinstance(spec, list) else []


def test_what_was_trained_is_outlined(drawn: Drawn) -> None:
    (outline,) = [row for row in data_of(drawn["recall-map"]) if "x2" in row]
    assert outline == {"x": "256", "x2": "256", "y": "16", "y2": "4"}
    assert "trained: 64 to 256 tokens, 4 to 16 needles" in drawn["recall-map"].caption


def test_cells_that_nobody_asked_for_say_so(tmp_path: Path) -> None:
    def sparse(line: ResultLine) -> ResultLine:
        if line.measure != "recall" or line.parameters["lengths"] == [256]:
            return line
        kept = {key: [entry for entry in line.metrics[key] if entry["load"] == 4] for key in ("rows", "answers")}  # type: ignore[index]
        return line.model_copy(update={"metrics": {**(line.metrics or {}), **kept}})

    lines = [sparse(li) for li in made_up_lines() if li.layout == "ttt_linear" and li.measure in ("training", "recall")]
    figure = Drawn(read_run(write_run(tmp_path / "run", lines)))["recall-map"]
    cells = {(row["length"], row["load"]): row for row in data_of(figure) if "status" in row}
    assert cells[256, 64]["status"] == "answered"
    assert cells[512, 64]["status"] == "not asked" and cells[512, 64]["text"] == "·"
    written = {(row["length"], row["load"]): row for row in downloaded(figure)}
    assert written["512", "64"]["status"] == "not asked" and written["512", "64"]["accuracy"] == ""


def test_depths_are_a_heat_map_of_the_greatest_load(drawn: Drawn) -> None:
    cells = [row for row in data_of(drawn["recall-depth"]) if "status" in row]
    assert {row["where"] for row in cells} == {"0 to 25 %", "25 to 50 %", "50 to 75 %", "75 to 100 %"}
    assert {row["status"] for row in cells if row["layout"] == "softmax" and row["length"] == 8192} == {"failed"}
    for row in cells:
        if row["status"] == "answered":
            assert row["accuracy"] == row["correct"] / row["total"]


def test_one_length_or_one_load_has_no_map(tmp_path: Path) -> None:
    lines = [li for li in made_up_lines() if li.layout == "ttt_linear" and li.measure in ("training", "recall")]
    kept = [li for li in lines if li.parameters.get("lengths", [256]) == [256]]
    names = set(Drawn(read_run(write_run(tmp_path / "run", kept))))
    assert "recall-map" not in names and "gates" not in names and "recall-depth" in names


# --- Learning ---


def test_losses_of_all_and_accuracies_of_the_taught_alone(drawn: Drawn) -> None:
    losses = {(row["layout"], int(row["seed"])) for row in downloaded(drawn["training"])}
    assert losses == {(layout, seed) for layout in [*UNTAUGHT, *TAUGHT] for seed in (0, 1, 2)}
    learning = downloaded(drawn["learning"])
    taught = {(layout, seed) for layout in TAUGHT for seed in (0, 1, 2) if (layout, seed) != ("gated_deltanet", 2)}
    assert {(row["layout"], int(row["seed"])) for row in learning} == taught
    assert all(float(row["held-out accuracy"]) != UNTAUGHT_ACCURACY for row in learning)
    assert "not taught with every seed: swa (0 of 3 seeds), linear (0 of 3 seeds)" in str(drawn["learning"].spec)


def test_the_point_of_solving_is_marked_and_the_untaught_end_open(drawn: Drawn) -> None:
    marks = [row for row in data_of(drawn["training"]) if row.get("kind") == "mark"]
    outcome = {(row["layout"], int(row["seed"])): (row["outcome"], row["tokens"]) for row in marks}
    assert len(marks) == 21
    solved = 2_000_000 + 1_000_000 + 100_000 * len("ttt_linear"[:9])
    assert outcome["ttt_linear", 1] == ("bar reached", solved)
    assert outcome["gated_deltanet", 2] == ("ended without the bar", 1600 * 32 * 256)
    assert {outcome["swa", seed][0] for seed in (0, 1, 2)} == {"ended without the bar"}
    points = [row for row in data_of(drawn["learning"]) if row.get("kind") == "mark"]
    assert {row["outcome"] for row in points} == {"bar reached"} and len(points) == 14
    bars = [row for row in data_of(drawn["learning"]) if set(row) == {"accuracy"}]
    assert bars == [{"accuracy": 0.95}]


def test_a_training_without_a_bar_has_no_mark(drawn: Drawn) -> None:
    text = drawn["training-2"]
    assert "perplexity" in text.title and not [row for row in data_of(text) if row.get("kind") in ("mark", "note")]


def test_the_sweep_rings_what_was_chosen(drawn: Drawn) -> None:
    tried = data_of(drawn["sweep"])
    assert len(tried) == 7 * 5
    ringed = [row for row in tried if row["ring"]]
    assert {row["layout"] for row in ringed} == {*UNTAUGHT, *TAUGHT} and len(ringed) == 7
    assert all(row["rate"] == 2e-3 and row["rung"] == 1 for row in ringed)
    (x, *_) = _channels(drawn["sweep"].spec, "x")
    assert x["field"] == "rate" and x["scale"]["type"] == "log"


def test_options_that_are_no_rates_are_categories(make_run: MakeRun) -> None:
    def other(line: ResultLine) -> bool:
        if line.measure == "tuning" and line.metrics is not None:
            rate = line.metrics["choice"].pop("learning_rate")
            line.metrics["choice"]["fwpkm.top_k"] = int(4000 * rate)
        return line.measure == "tuning"

    figure = Drawn(read_run(make_run(other)))["sweep"]
    (x, *_) = _channels(figure.spec, "x")
    assert x["field"] == "choice" and x["type"] == "nominal"
    assert {row["choice"] for row in data_of(figure)} == {f"fwpkm.top_k = {k}" for k in (4, 8, 16)}


# --- Sparse memories ---


def test_gates_and_slots_of_the_layouts_that_have_them(drawn: Drawn) -> None:
    gates = data_of(drawn["gates"])
    assert {(row["layout"], row["series"]) for row in gates} == {
        ("swa + fwpkm", "all tokens"),
        (HOSTILE, "all tokens"),
        (HOSTILE, "tokens that answer"),
    }
    assert {row["load"] for row in gates} == {64} and {row["length"] for row in gates} == set(LENGTHS)
    means = {(row["series"], round(row["mean"], 6), row["low"], row["high"]) for row in gates}
    assert means == {("all tokens", 0.6, 0.001, 0.999), ("tokens that answer", 0.95, 0.001, 0.999)}
    slots = [row for row in data_of(drawn["slots"]) if row["length"] == 8192 and row["layout"] == HOSTILE]
    used = 40 + 2 * 64 + 8192 // 256 + 1  # the mean of three seeds
    shares = {row["series"]: row["share"] for row in slots}
    assert shares == pytest.approx(
        {
            "slots written": used / 1024,
            "accesses that found a written slot": 0.9,
            "effective slots, by entropy": used / 2 / 1024,
        }
    )
    table = drawn.tables["sparse-memories"]
    assert len(table.rows) == 2 * len(LENGTHS) * len(LOADS)
    assert table.rows[0][:6] == ["swa + fwpkm", "layers.1.memory", "256", "4", "0.600 (0.00 to 1.00)", "–"]


def test_runs_from_before_memories_were_noted_have_no_such_chart(tmp_path: Path) -> None:
    lines = [li for li in made_up_lines() if li.layout == HOSTILE and li.measure in ("training", "recall")]
    for line in lines:
        (line.metrics or {}).pop("memories", None)
    found = Drawn(read_run(write_run(tmp_path / "run", lines)))
    assert not {"gates", "slots"} & set(found) and "sparse-memories" not in found.tables


# --- Speed and memory ---


def test_failures_stand_at_the_edge_where_they_happened(drawn: Drawn) -> None:
    for name in ("speed", "latency"):
        crosses = [row for row in data_of(drawn[name]) if row.get("cause")]
        assert [(row["layout"], row["panel"], row["length"], row["cause"], row["rank"]) for row in crosses] == [
            ("softmax", "Training step", 8192, "out of memory", 0)
        ]
        assert "softmax, training step, 8,192 tokens: out of memory" in drawn[name].caption
        assert drawn[name].svg.count("✕") == 1


def test_failures_at_one_place_do_not_cover_each_other(make_run: MakeRun) -> None:
    failure: dict[str, Any] = {"metrics": None, "status": "timeout", "error": "late"}

    lines = [
        li.model_copy(update=failure) if li.measure == "speed" and li.parameters["lengths"] == [8192] else li
        for li in made_up_lines()
        if li.measure in ("speed", "memory")
    ]
    run = read_run(write_run(make_run(lambda line: False).parent / "other", lines))
    crosses = [row for row in data_of(Drawn(run)["speed"]) if row.get("cause")]
    assert len(crosses) == 7 * 4
    assert sorted(row["rank"] for row in crosses if row["panel"] == "Decoding") == list(range(7))


def test_exponents_stand_beside_the_curves_and_in_a_table(drawn: Drawn) -> None:
    said = {(row["panel"], row["layout"]): row["exponent"] for row in data_of(drawn["latency"]) if row.get("exponent")}
    assert said["Forward pass", "linear"] in ("n^0.99", "n^1.00", "n^1.01") and len(said) == 7 * 4
    tables = drawn.tables
    cells = {row[0]: row[1:] for row in tables["speed-growth"].rows}
    assert cells["linear"][0].startswith(f"length^{said['Forward pass', 'linear'][2:]} [")
    assert cells["softmax"][1].endswith(", 1,024 to 4,096") and cells["linear"][1].endswith(", 2,048 to 8,192")
    assert {t for t in tables if t.endswith("-growth")} == {"speed-growth", "memory-growth", "state-growth"}
    states = {row[0]: row[1] for row in tables["state-growth"].rows}
    assert states["softmax"] == "length^1.00, 2,048 to 8,192" and states["linear"] == "length^0.00, 2,048 to 8,192"


def test_two_lengths_have_no_exponent(make_run: MakeRun) -> None:
    keep: Callable[[ResultLine], bool] = lambda li: (  # noqa: E731
        li.measure in ("speed", "memory") and li.parameters["lengths"][0] in (256, 512)
    )
    found = Drawn(read_run(make_run(keep)))
    assert not [name for name in found.tables if name.endswith("-growth")]
    assert not [row for row in data_of(found["latency"]) if row.get("exponent")]


def test_one_length_is_drawn_without_curves_to_nowhere(make_run: MakeRun) -> None:
    keep: Callable[[ResultLine], bool] = lambda li: (  # noqa: E731
        li.measure in ("speed", "memory") and li.parameters["lengths"] == [256]
    )
    found = Drawn(read_run(make_run(keep)))
    assert {"speed", "memory", "state"} <= set(found)
    for figure in found.values():
        lengths = {row["length"] for row in data_of(figure) if "length" in row}
        assert lengths == {256} and "NaN" not in figure.svg


def test_fourteen_layouts_are_all_drawn(tmp_path: Path) -> None:
    names = [f"layout {i} of fourteen" for i in range(14)]
    lines = [
        line.model_copy(update={"layout": name, "case": f"{i:02d}{line.case[2:]}"})
        for i, name in enumerate(names)
        for line in made_up_lines()
        if line.layout == "ttt_linear"
        and line.measure in ("training", "recall", "speed", "memory")
        and line.seed == 0
        and line.parameters.get("lengths", [256]) in ([256], [512], [8192])
    ]
    run = read_run(write_run(tmp_path / "run", lines, layouts=dict.fromkeys(names, "ttt_linear")))
    for figure in Drawn(run).values():
        assert {row["layout"] for row in downloaded(figure)} == set(names), figure.name


# --- What ran in turn ---

PUBLISHED = Path(__file__).parents[2] / "reports" / "published"


def test_what_a_token_costs_has_a_row_for_every_layout() -> None:
    run = read_run(PUBLISHED / "zoo-speed")
    found = Drawn(run)
    assert set(found) == {"mixer_speed-cost", "mixer_speed-cost-2"}  # fifty curves cannot be told apart
    for figure in found.values():
        assert {row["layout"] for row in downloaded(figure)} == set(run.layouts)
    row = next(row for row in downloaded(found["mixer_speed-cost"]) if row["layout"] == "fwpkm")
    times = run["mixer_speed"]
    own = times[(times["layout"] == "fwpkm") & (times["mode"] == "forward")].iloc[0]
    assert float(row["seconds a token"]) == pytest.approx(own["seconds"] / own["units"])


def test_the_time_of_an_op_has_an_exponent_where_three_lengths_were_timed() -> None:
    table = Drawn(read_run(PUBLISHED / "fwpkm-speed")).tables["op_speed-growth"]
    assert table.columns == ["Layout", "Forward pass", "Training step", "Decoding"]
    assert table.rows[0][0] == "FwPKM 512, compact" and table.rows[0][1].endswith(", 16,384 to 131,072")
