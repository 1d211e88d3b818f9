"""Perplexity: the bits that each byte of real text takes, by how far into the text it stands."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import altair as alt
import pandas as pd

from .. import change, formats
from ..change import Change, Refused, backends_note, matched
from ..charts import HEIGHT, WIDTH, Figure, Style, at_the_end, finish, in_words, lengths_axis, titled, tooltips
from ..finding import Finding, Score, failed, figure_of, of
from ..inference import ALPHA, LEAST_SEEDS, Comparison, compare_seeds, holm
from ..lines import KEYS, Lines, Row, measured, tidy
from ..section import Section
from ..statistics import bits_per_byte, pool_perplexity, rows_of
from ..summary import ran
from ..table import Table, each, in_brackets, numbered, wide
from ..tables import RunData

COLUMNS = [*KEYS, "start", "end", "tokens", "nats", "bits_per_byte", "backends", "case"]
STEEP = 0.02  # a loss that still falls by more, from the last tenth but one of the steps to the last, is unfinished


class Perplexity(Section):
    measure = "perplexity"
    title = "Perplexity"
    order = 50

    def frames(self, lines: Lines) -> dict[str, pd.DataFrame]:
        return {"perplexity": tidy(_rows(lines), COLUMNS)}

    def findings(self, run: RunData) -> Iterator[Finding]:
        for variant, rows in run["perplexity"].groupby("variant", sort=False):
            yield _fewest_bits(run, str(variant), rows)

    def figures(self, run: RunData) -> Iterator[Figure]:
        for number, (variant, rows) in enumerate(run["perplexity"].groupby("variant", sort=False)):
            yield _by_position(run, str(variant), rows, numbered("perplexity", number))

    def tables(self, run: RunData) -> Iterator[Table]:
        for suffix, (variant,), rows in each(run["perplexity"], "variant"):
            pooled = pool_perplexity(rows, ["layout", "end"])
            columns, cells = wide(
                pooled, "end", lambda r: f"{r.bits_per_byte:.3f}", lambda end: f"up to {end:,}", "Layout, position"
            )
            whole = {r.layout: r for r in rows_of(pool_perplexity(rows, ["layout"]))}
            cells = [[*row, f"{whole[row[0]].bits_per_byte:.3f}", _seeds(whole[row[0]])] for row in cells]
            title = f"Bits per byte, by position in the text{in_brackets(variant)}"
            note = "Mean of the seeds; lower is better."
            yield Table(f"perplexity{suffix}", title, [*columns, "all", "Seeds"], cells, note)

    def numbers(self, run: RunData) -> Iterator[dict[str, Any]]:
        backends = ran(run["perplexity"])
        for r in rows_of(pool_perplexity(run["perplexity"], ["layout", "variant"])):
            number = {
                "value": r.bits_per_byte,
                "low": r.seed_low,
                "high": r.seed_high,
                "interval": "range of the seeds",
            }
            how = {"unit": "bits/byte", "count": r.tokens, "seeds": r.seeds, "backends": backends(r)}
            yield {"layout": r.layout, "variant": r.variant, **number, **how, "quantity": "bits_per_byte"}

    def compare(self, before: RunData, after: RunData) -> Iterator[Change | Refused]:
        for key, own, other in matched(before["perplexity"], after["perplexity"], ["layout", "variant"]):
            yield _changed(key, own, other)


SECTION = Perplexity()


def _rows(lines: Lines) -> Iterator[Row]:
    for _, metrics, known in measured(lines, "perplexity"):
        # nats of a byte, whatever the tokens are, so that tokenizers compare
        bytes_per_token = (metrics.get("text") or {}).get("bytes_per_token", 1.0)
        for row in metrics["rows"]:
            nats = row["nats"] / bytes_per_token
            yield {**known, **row, "nats": nats, "bits_per_byte": bits_per_byte(nats)}


def _fewest_bits(run: RunData, variant: str, rows: pd.DataFrame) -> Finding:
    pooled = {r.layout: r for r in rows_of(pool_perplexity(rows, ["layout"]))}
    order = sorted(pooled, key=lambda name: pooled[name].bits_per_byte)
    shown = {n: f"{pooled[n].bits_per_byte:.3f} bits per byte" for n in order}
    values = {str(n): _by_seed(own) for n, own in rows.groupby("layout", sort=False)}
    leader, others = order[0], order[1:]
    against = {other: compare_seeds(values[leader], values[other]) for other in others}
    tied, why, because = _tied(run, leader, values, against)
    sentence = formats.listing([f"{n} has {shown[n]}{_seed_range(pooled[n])}" for n in order]) + "."
    best = (leader, *tied) if others and not why else ()
    scores = [
        Score(n, f"{shown[n]}{_seed_range(r)}", r.bits_per_byte, r.seed_low, r.seed_high, n in best)
        for n, r in pooled.items()
    ]
    return Finding(
        topic=f"Bits per byte of text{of(variant)}",
        winner=leader if best == (leader,) else None,
        value=shown[leader],
        sentence=f"{sentence}{because}{failed(run, 'perplexity')}",
        open=why or "cannot tell",
        evidence=figure_of("perplexity", run["perplexity"], variant),
        column=f"Bits per byte{of(variant)}",
        better="less",
        scores=tuple(scores),
    )


def _tied(
    run: RunData, leader: str, values: dict[str, dict[int, float]], against: dict[str, Comparison]
) -> tuple[list[str], str, str]:
    """Who cannot be told apart from the leader; why nobody is called best if that is so; and both in a sentence."""
    unfinished_layouts = [name for name in values if name in unfinished(run)]
    if not against:
        return [], "nothing to compare with", ""
    if min(len(v) for v in values.values()) < LEAST_SEEDS:
        why = f" No layout is called best from fewer than {LEAST_SEEDS} seeds."
        return [], "cannot tell: too few seeds", why
    if unfinished_layouts:
        named = formats.listing(unfinished_layouts)
        why = f" No layout is called best: the loss of {named} was still falling by more than {STEEP:.0%}."
        return [], "cannot tell: training unfinished", why
    if all(c.verdict == "better" for c in against.values()):
        return [], "", f" {leader} is better than every other, seed by seed."
    adjusted = holm({name: c.p_value for name, c in against.items()})
    tied = [name for name in against if adjusted[name] > ALPHA or against[name].verdict != "better"]
    return tied, "", f" Cannot tell {formats.listing([leader, *tied])} apart, seed by seed."


def unfinished(run: RunData) -> list[str]:
    """The layouts whose training on text was still falling steeply (see `STEEP`) when it ended, with any seed."""
    found = []
    own = run["curves"][run["curves"]["measure"] == "perplexity"].dropna(subset=["loss"])
    for (layout, _, _), curve in own.groupby(["layout", "variant", "seed"], sort=False):
        share = curve["step"] / curve["step"].max()
        last, before = curve["loss"][share > 0.9].mean(), curve["loss"][(share > 0.8) & (share <= 0.9)].mean()
        if last < (1 - STEEP) * before:
            found.append(str(layout))
    return list(dict.fromkeys(found))


def _by_seed(rows: pd.DataFrame) -> dict[int, float]:
    return {int(r.seed): r.bits_per_byte for r in rows_of(pool_perplexity(rows, ["seed"]))}


def _seed_range(row: Any) -> str:
    return " (one seed)" if row.seeds == 1 else f" ({row.seeds} seeds, {row.seed_low:.3f} to {row.seed_high:.3f})"


def _by_position(run: RunData, variant: str, rows: pd.DataFrame, name: str) -> Figure:
    pooled = pool_perplexity(rows, ["layout", "start", "end"]).rename(columns={"seed_low": "low", "seed_high": "high"})
    pooled = pooled.dropna(subset=["bits_per_byte"]).sort_values("end", kind="stable")
    pooled["shown"] = [f"{v:.3f}" for v in pooled["bits_per_byte"]]
    pooled["range"] = [f"{low:.3f} to {high:.3f}" for low, high in zip(pooled["low"], pooled["high"])]
    pooled["length"] = pooled["end"]
    x = lengths_axis(pooled["end"].tolist(), "Position in the text, up to (bytes)")
    y = alt.Y("bits_per_byte:Q", scale=alt.Scale(zero=False), title="Bits per byte")
    tips = tooltips(("shown", "bits per byte"), ("range", "over seeds"), ("start", "from"), ("end", "to"))
    chart = alt.layer(*Style(run.layouts).curves(pooled, x, y, tips)).properties(width=WIDTH + 116, height=HEIGHT - 40)
    title = titled("Perplexity by position", variant)
    seeds = rows["seed"].nunique()
    bands = "one seed" if seeds == 1 else f"bands: least and greatest of {seeds} seeds"
    caption = "Bits needed for each byte of real text, by how far into the text it stands: "
    caption += "whoever makes use of the context falls to the right."
    text = at_the_end(pooled.assign(panel=""), "end", "shown", "bytes into the text, in bits per byte")
    named = {"layout": "layout", "start": "from", "end": "to", "bits_per_byte": "bits per byte"}
    data = in_words(pooled, {**named, "low": "least seed", "high": "greatest seed", "seeds": "seeds"})
    return Figure(name, title, caption, text, finish(chart, title, f"lower is better; {bands}"), data)


def _seeds(row: Any) -> str:
    """`3: 2.001 to 2.013`."""
    return "one" if row.seeds == 1 else f"{row.seeds}: {row.seed_low:.3f} to {row.seed_high:.3f}"


def _changed(key: tuple, own: pd.DataFrame, other: pd.DataFrame) -> Change | Refused:
    layout, variant = key
    read = [set(zip(rows["start"], rows["end"], rows["tokens"])) for rows in (own, other)]
    if read[0] != read[1]:
        return Refused("perplexity", layout, "not as many tokens at the same places")
    bits = [_by_seed(rows) for rows in (own, other)]
    if not bits[0].keys() & bits[1].keys():
        return Refused("perplexity", layout, "no seed in common")
    return Change(
        measure="perplexity",
        layout=layout,
        what=f"of the text{in_brackets(variant)}",
        unit="bits per byte",
        before=f"{change.mean(*bits):.3f}",
        after=f"{change.mean(*reversed(bits)):.3f}",
        note=backends_note(own, other),
        **change.of_seeds(*bits),
    )
