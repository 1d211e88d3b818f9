"""Writes docs/zoo/ from the cards and the declared options of the mixers; `make zoo` runs it.

    python docs/build_zoo.py            # measures the states of all mixers first, about a minute
    python docs/build_zoo.py --keep     # takes the states from docs/zoo/state_bytes.csv

oracles.csv is as `pytest --oracles` wrote it. Speeds are those of the published run of zoo-speed, if there is one.
"""

from __future__ import annotations

import inspect
import math
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import altair as alt
import pandas as pd
import torch
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from mixerzoo.benchmarks.runs import ResultLine, Run
from mixerzoo.mixers import REQUIRED, MixerCard, create_mixer, list_mixers, mixer_card, mixer_class, mixer_options
from mixerzoo.reports import formats
from mixerzoo.reports.charts import BYTES, Figure, Style, finish, lengths_axis, logarithmic_axis
from mixerzoo.reports.statistics import Interval

DOCS = Path(__file__).parent
ZOO = DOCS / "zoo"
STATES, ORACLES = ZOO / "state_bytes.csv", ZOO / "oracles.csv"
SPEED = DOCS.parent / "reports" / "published" / "zoo-speed"
D_MODEL = 768
MEASURED = (256, 1024, 2048, 4096)  # tokens; from 1,024 in powers of two, so that blocks of every mixer are full
SHOWN = (1024, 32 * 1024, 128 * 1024)
NOT_COMPARED = {"identity": "It is one linear map of PyTorch's."}
"""Mixers of ours that nobody else's code is compared with, and why."""


@dataclass(frozen=True)
class Bytes:
    """Of the state of one sequence; measured, or what the growth law makes of it, at_most if that is a bound."""

    value: int
    measured: bool = False
    at_most: bool = False

    def __str__(self) -> str:
        shown = formats.bytes_(self.value) if self.value else "none"
        return f"≤ {shown}" if self.at_most else shown


@dataclass(frozen=True)
class Entry:
    """What a page says of one mixer."""

    card: MixerCard
    about: str
    options: list[dict[str, str]]
    parameters: int
    states: dict[int, Bytes]
    oracles: list[dict[str, str]]
    speeds: list[dict[str, str]]

    @property
    def shown(self) -> list[Bytes]:
        return [self.states[tokens] for tokens in SHOWN]

    @property
    def largest_error(self) -> str:
        return max((row["error"] for row in self.oracles), key=float, default="–")


# --- States ---


def our_mixers() -> list[str]:
    """Those that the package itself brings."""
    return [name for name in list_mixers() if mixer_class(name).__module__.startswith("mixerzoo.")]


def measure_states(name: str, lengths: tuple[int, ...] = MEASURED) -> dict[str, Any]:
    """A row of state_bytes.csv: default options, float32, one sequence of random input."""
    torch.manual_seed(0)
    mixer = create_mixer(name, D_MODEL).eval()
    row: dict[str, Any] = {"mixer": name, "parameters": sum(p.numel() for p in mixer.parameters())}
    row["most"] = mixer.max_state_nbytes(1)
    with torch.no_grad():
        for tokens in lengths:
            _, state = mixer(torch.randn(1, tokens, D_MODEL), return_state=True)
            assert state is not None
            row[str(tokens)] = state.nbytes
    return row


def write_states() -> None:
    rows = pd.DataFrame([measure_states(name) for name in our_mixers()])
    rows["most"] = rows["most"].astype("Int64")
    rows.to_csv(STATES, index=False, lineterminator="\n")


def state_bytes(card: MixerCard, row: dict[str, Any]) -> dict[int, Bytes]:
    """Bytes by tokens: measured, and at `SHOWN` as the growth law of the card continues them.

    Raises `ValueError` if what was measured does not follow that law.
    """
    measured = {tokens: int(row[str(tokens)]) for tokens in MEASURED}
    states = {tokens: Bytes(value, measured=True) for tokens, value in measured.items()}
    for tokens in SHOWN:
        if tokens not in states:
            states[tokens] = continued(card, measured, row["most"], tokens)
    return states


def continued(card: MixerCard, measured: dict[int, int], most: Any, tokens: int) -> Bytes:
    """What the law makes of the last lengths, each twice the one before."""
    early, middle, late = (measured[n] for n in MEASURED[-3:])
    length = MEASURED[-1]
    if card.state_growth == "constant" and len({*measured.values()}) == 1:
        return Bytes(late)
    if card.state_growth == "linear" and late - middle == 2 * (middle - early):
        return Bytes(late + (late - middle) * 2 * (tokens - length) // length)
    if card.state_growth == "logarithmic":
        return Bytes(late + (late - middle) * math.ceil(math.log2(tokens / length)), at_most=True)
    if card.state_growth == "bounded" and late <= most:
        return Bytes(int(most), at_most=True)
    raise ValueError(f"the card of {card.name} says {card.state_growth}, but its state holds {measured} bytes")


# --- What each mixer says of itself, and what was found out ---


def entries() -> list[Entry]:
    """Every mixer of ours; reads the three files of measurements."""
    states = pd.read_csv(STATES, dtype={"most": "Int64"}).set_index("mixer")
    oracles = pd.read_csv(ORACLES, dtype=str, keep_default_na=False)
    speeds = speed_rows(SPEED)
    return [entry(name, states.loc[name].to_dict(), oracles, speeds.get(name, [])) for name in our_mixers()]


def entry(name: str, states: dict[str, Any], oracles: pd.DataFrame, speeds: list[dict[str, str]]) -> Entry:
    card = mixer_card(name)
    return Entry(
        card=card,
        about=prose(inspect.getdoc(mixer_class(name)) or ""),
        options=[
            {
                "name": o.name,
                "takes": o.expects,
                "default": "" if o.default is REQUIRED else repr(o.default),
                "meaning": o.help,
            }
            for o in mixer_options(name).values()
            if o.name != "backend"
        ],
        parameters=int(states["parameters"]),
        states=state_bytes(card, states),
        oracles=oracle_rows(card, oracles),
        speeds=speeds,
    )


def prose(text: str) -> str:
    """A docstring as Markdown: what stands between backticks is code, the rest is to be read as it is."""
    parts = re.split(r"(`[^`\n]*`)", text)
    marks = r"[*<|$~\[\]]|(?<!\w)_|_(?!\w)"
    return "".join(p if i % 2 else re.sub(marks, r"\\\g<0>", p) for i, p in enumerate(parts))


def oracle_rows(card: MixerCard, oracles: pd.DataFrame) -> list[dict[str, str]]:
    """The comparisons of the mixer, and then those of its ops that have rows of their own."""
    ops = [op.name for op in card.ops if op.name != card.name]
    return [
        {"what": "the mixer" if name == card.name else f"its op `{name}`", **row}
        for name in (card.name, *ops)
        for row in oracles[oracles["mixer"] == name].replace("0e+00", "0").drop(columns="mixer").to_dict("records")
    ]


# --- The published run of zoo-speed ---


def speed_rows(folder: Path) -> dict[str, list[dict[str, str]]]:
    """Rows of the tables of speed by mixer; empty if nothing was published."""
    if not (folder / "results.jsonl").exists():
        return {}
    found: dict[str, list[dict[str, str]]] = {}
    for line in Run(folder).results():
        if line.measure == "mixer_speed":
            found.setdefault(mixer_of(line), []).extend(rows_of_line(line))
    return found


def mixer_of(line: ResultLine) -> str:
    return line.layout if line.metrics is None else line.metrics["mixer"]


def rows_of_line(line: ResultLine) -> list[dict[str, str]]:
    if line.metrics is None:
        reason = f"{line.status}: {line.error or ''}".strip(": ")
        return [{"mode": "–", "tokens": "–", "time": formats.markdown(reason), "ratio": "–", "peak": "–", "bar": "–"}]
    ratios = {(r["mode"], r["tokens"]): r for r in line.metrics["ratios"] if r["kind"] == "attention"}
    mixers = [row for row in line.metrics["rows"] if row["backend"] == "mixer"]
    return [speed_row(row, ratios.get((row["mode"], row["tokens"]))) for row in mixers]


def speed_row(row: dict[str, Any], ratio: dict[str, Any] | None) -> dict[str, str]:
    times = "–" if ratio is None else formats.times(Interval(ratio["value"], ratio["low"], ratio["high"]))
    bar = "–" if ratio is None or ratio["bar"] is None else f"{ratio['bar']:g}: {'met' if ratio['met'] else 'missed'}"
    seconds = [formats.seconds(row[name]) for name in ("median", "q1", "q3")]
    return {
        "mode": "a token decoded" if row["mode"] == "decode" else row["mode"],
        "tokens": formats.whole(row["tokens"]),
        "time": f"{seconds[0]} [{seconds[1]}, {seconds[2]}]",
        "ratio": times,
        "peak": formats.bytes_(row["peak_bytes"]),
        "bar": bar,
    }


def speed_source(folder: Path) -> str:
    """Where the speeds were measured, in one sentence; empty if nothing was published."""
    if not (folder / "results.jsonl").exists():
        return ""
    run = Run(folder).environment()
    machine, commit = run["machine"], (run.get("source") or {}).get("commit") or "unknown"
    place = (
        f"{machine['cpu']}, {run['threads']} threads" if run["device"] == "cpu" else ", ".join(map(str, run["gpus"]))
    )
    return f"{place}, torch {run['packages']['torch']}, commit {commit[:12]}"


# --- Pages ---


def stem(family: str) -> str:
    return family.replace(" ", "_")


def by_family() -> dict[str, list[Entry]]:
    families: dict[str, list[Entry]] = {}
    for one in entries():
        families.setdefault(one.card.family, []).append(one)
    return dict(sorted(families.items()))


def pages() -> dict[str, str]:
    """File name -> text of every page in docs/zoo."""
    environment = Environment(
        loader=FileSystemLoader(DOCS), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["md"] = formats.markdown
    families = by_family()
    common = {
        "stem": stem,
        "not_compared": NOT_COMPARED,
        "d_model": D_MODEL,
        "measured": MEASURED,
        "shown": SHOWN,
        "source": speed_source(SPEED),
        "figure_note": figure_note,
    }
    page, index = environment.get_template("zoo_page.md.j2"), environment.get_template("zoo_index.md.j2")
    found = {f"{stem(f)}.md": page.render(family=f, entries=own, **common) for f, own in families.items()}
    return {**found, "README.md": index.render(families=families, **common)}


def figure_data(own: list[Entry]) -> pd.DataFrame:
    """A row for each mixer and length that holds anything."""
    rows = [
        {"layout": e.card.name, "length": n, "bytes": s.value, "measured": s.measured, "at_most": s.at_most}
        for e in own
        for n, s in e.states.items()
        if s.value
    ]
    return pd.DataFrame(rows)


def figure_note(own: list[Entry]) -> str:
    """Whose lines coincide in the figure, and who has none."""
    groups: dict[tuple[int, ...], list[str]] = {}
    for one in own:
        groups.setdefault(tuple(s.value for s in one.states.values()), []).append(f"`{one.card.name}`")
    same = [f"{formats.listing(names)} coincide" for sizes, names in groups.items() if any(sizes) and len(names) > 1]
    none = [f"{name} holds nothing" for sizes, names in groups.items() if not any(sizes) for name in names]
    return "; ".join((*same, *none))


def memory_figure(family: str, own: list[Entry]) -> Figure:
    """State bytes against position; mixers without a state have no place on a logarithmic axis."""
    frame = figure_data(own)
    style = Style(list(dict.fromkeys(frame["layout"])))
    base = alt.Chart(frame).encode(
        x=lengths_axis(frame["length"].tolist(), "Tokens read"),
        y=logarithmic_axis("bytes", BYTES, "State of one sequence"),
        color=style.colour(),
    )
    shaped = base.encode(shape=style.shape())
    layers = [
        base.transform_filter("!datum.at_most").mark_line(strokeWidth=1.5),
        base.transform_filter("datum.at_most").mark_line(strokeWidth=1.5, strokeDash=[2, 3]),
        shaped.transform_filter("datum.measured").mark_point(filled=True, size=70),
        shaped.transform_filter("!datum.measured").mark_point(fill="white", size=70),
    ]
    chart = alt.layer(*layers).properties(width=640, height=340)
    title = f"State against position: {family}"
    said = f"float32, d_model {D_MODEL}, default options; filled: measured, hollow: growth law, dotted: at most"
    text = f"Lines of {formats.listing([*dict.fromkeys(frame['layout'])])}; the numbers are in the table of the page."
    return Figure(stem(family), "memory", title, said, text, finish(chart, title, said))


def main() -> None:
    if "--keep" not in sys.argv[1:]:
        write_states()
    for name, text in pages().items():
        (ZOO / name).write_text(text, encoding="utf-8")
    for family, own in by_family().items():
        (ZOO / f"{stem(family)}.svg").write_text(memory_figure(family, own).svg, encoding="utf-8")


if __name__ == "__main__":
    main()
