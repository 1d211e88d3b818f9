"""The command `mixerzoo inspect`: what the sparse memories of a trained model do with a text."""

from __future__ import annotations

import json
import os
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from . import cli_mixers

REACH = 20  # bytes shown on either side of a token


def inspect_command(
    checkpoint: Annotated[
        Path, typer.Argument(metavar="CHECKPOINT", help="The folder of a model: RUN/checkpoints/CASE/checkpoint.")
    ],
    text: Annotated[Path, typer.Option(help="The file that the model reads, byte by byte.")],
    token: Annotated[int, typer.Option(help="The token to trace, by its position; negative: from the end.")] = -1,
    out: Annotated[Path | None, typer.Option(help="Folder for what is found; default runs/inspect-TIME.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, or cuda:N for one of several GPUs.")] = "auto",
) -> None:
    """Look into the sparse memories of a model while it reads a text: gates, slots, rewrites, and who wrote what."""
    import torch

    from .device import choose_device, make_current
    from .inspect_model import inspect, load_model, read_text, resolve_token
    from .inspect_plots import save_charts

    cli_mixers.load_plugins()
    place = torch.device(choose_device(device))
    make_current(place)
    content = read_text(text)
    position = resolve_token(token, len(content))
    model = load_model(checkpoint, place)
    found = inspect(model, content, position, place)
    console = Console()
    console.print(usage_table(found))
    for layer in found["token"]["layers"]:
        console.print(trace_table(layer, position, content))
    folder = out or Path("runs") / f"inspect-{datetime.now():%Y%m%d-%H%M%S}"
    folder.mkdir(parents=True, exist_ok=True)
    origin = {"checkpoint": str(checkpoint), "layout": model.config.layout, "text": str(text)}
    (folder / "inspect.json").write_text(json.dumps({**origin, **found}, allow_nan=False) + "\n")
    charts = ", ".join(path.name for path in save_charts(found, folder))
    console.print(f"inspect.json, {charts} are in {escape(str(folder) + os.sep)}", soft_wrap=True)


def usage_table(found: dict[str, Any]) -> Table:
    """One row a layer: gates, how the slots are used, how much was rewritten."""
    table = Table(
        "layer", "gate: mean", "5 % .. 95 %", title=f"{found['tokens']:,} tokens", title_justify="left", highlight=False
    )
    for column in (
        "slots used",
        "coverage",
        "accesses per used slot",
        "KL to uniform",
        "rewrites",
        "norm of a rewrite",
    ):
        table.add_column(column, justify="right")
    for layer in found["layers"]:
        usage, gate, changes = layer["usage"], layer["gate"], [u["change"] for u in layer["updates"]]
        spread = list(gate["quantiles"].values()) if gate else []
        table.add_row(
            escape(layer["name"]),
            f"{gate['mean']:.3f}" if gate else "off",
            f"{spread[0]:.3f} .. {spread[-1]:.3f}" if gate else "",
            f"{usage['used']:,} of {layer['n_slots']:,}",
            f"{100 * usage['coverage']:.1f} %",
            f"{usage['collisions']:.1f}",
            f"{usage['divergence']:.2f} nats",
            f"{len(changes):,}",
            f"{min(changes):.3g} .. {max(changes):.3g}" if changes else "",
        )
    return table


def trace_table(layer: dict[str, Any], position: int, text: bytes) -> Table:
    """The slots that the token read, heaviest first, and the latest tokens that wrote them, within their text."""
    title = Text.assemble(f"{layer['name']}: what token {position:,} read, ", excerpt(text, position))
    table = Table("slot", "head", title=title, title_justify="left")
    for column in ("weight", "writes"):
        table.add_column(column, justify="right")
    table.add_column(escape("latest writers: position, weight, [token]") + _target_note(layer["lookahead"]))
    for read in layer["reads"]:
        writers = Text("\n").join(
            Text.assemble(f"{w['position']:>7,} {w['weight']:.2f} ", excerpt(text, w["position"]))
            for w in read["writers"]
        )
        cells = (f"{read['slot']:,}", str(read["head"]), f"{read['weight']:.3f}", f"{read['writes']:,}")
        table.add_row(*cells, writers if read["writers"] else Text("never written", style="dim"))
    return table


def _target_note(lookahead: int) -> str:
    return f", written with the target {lookahead} later" if lookahead else ", written with its own target"


def excerpt(text: bytes, position: int) -> Text:
    """The bytes around `position`, that one in brackets; what cannot be printed as a dot."""
    before, here, after = (
        _printable(text[max(0, start) : end])
        for start, end in (
            (position - REACH, position),
            (position, position + 1),
            (position + 1, position + 1 + REACH),
        )
    )
    return Text.assemble(before, (f"[{here}]", "bold"), after)


def _printable(part: bytes) -> str:
    shown = part.decode("utf-8", "replace").replace("\n", "\N{RETURN SYMBOL}")
    return "".join(c if c.isprintable() else "\N{MIDDLE DOT}" for c in shown)
