"""The commands about mixers: list, show, check. torch is imported when one of them runs, not before."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.table import Table

if TYPE_CHECKING:
    from ..mixers import CheckReport, MixerCard, Option
    from .contract_report import ContractRun

_LARGEST_TO_BUILD = 64_000_000  # parameters; above that, `show` measures a mixer with small options
_POSITIONS = (64, 256, 1024)
_CHECK_STYLES = {"passed": "green", "failed": "red", "skipped": "yellow"}
_TAKEN = {"always": "where it can run", "proven": "where doctor has proven it", "never": "never"}

Name = Annotated[str, typer.Argument(metavar="MIXER", help="Name of a mixer, see `mixerzoo list`.")]


def list_command(
    pattern: Annotated[str, typer.Argument(help="Shell pattern of names, e.g. '*delta*'.")] = "*",
    family: Annotated[str | None, typer.Option(help="Only this family, e.g. linear.")] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Families as the Markdown table of the README.")] = False,
) -> None:
    """The mixers of the zoo, plug-ins included."""
    from ..mixers import list_mixers, mixer_card

    console, broken = Console(), load_plugins()
    names = list_mixers(pattern, family=family)
    if markdown:
        print(families_markdown(names))
        return
    table = Table()
    for column in ("name", "family", "year", "state", "backends", "summary"):
        table.add_column(column, no_wrap=column == "name", overflow="fold")
    for card in map(mixer_card, names):
        backends = ", ".join(card.backends)
        table.add_row(card.name, card.family, str(card.year), card.state_growth, backends, escape(card.summary))
    if names:
        console.print(table)
    if broken:
        console.print(_broken_table(broken))
    if not names:
        of = f" of the family {family!r}" if family else ""
        raise ValueError(f"no mixer{of} matches {pattern!r}; `mixerzoo list` shows all")


def families_markdown(names: list[str]) -> str:
    """The mixers `names` as a Markdown table with a line for each family."""
    from ..mixers import mixer_card

    families: dict[str, list[str]] = {}
    for card in map(mixer_card, names):
        families.setdefault(card.family, []).append(f"`{card.name}`")
    lines = [f"| {family} | {len(own)} | {', '.join(own)} |" for family, own in sorted(families.items())]
    return "\n".join(["| family | count | mixers |", "| --- | --- | --- |", *lines])


def show_command(
    mixer: Name,
    d_model: Annotated[int, typer.Option(min=1, help="Width to count parameters and measure states at.")] = 64,
) -> None:
    """One mixer: its card, options, parameters, the growth of its state, and which backends run here."""
    from ..mixers import mixer_card, mixer_options, small_options

    load_plugins()
    console, card, options = Console(), mixer_card(mixer), mixer_options(mixer)
    for line in _card_lines(card):
        console.print(line, soft_wrap=True)
    console.print(_option_table(options))
    parameters = _count_parameters(mixer, d_model)
    console.print(f"parameters at d_model={d_model}, default options: {parameters:,}")
    small = small_options(mixer) if parameters > _LARGEST_TO_BUILD else {}
    console.print(_state_table(mixer, d_model, small))
    console.print(_backend_table(mixer, small_options(mixer)))


def _card_lines(card: MixerCard) -> Iterator[str]:
    """What the card says, for the console."""
    yield f"[bold]{escape(card.name)}[/] ({escape(card.family)}, {card.year})"
    yield escape(card.summary)
    yield escape(f"{card.paper}, https://arxiv.org/abs/{card.arxiv}" if card.arxiv else card.paper)
    if card.recurrence:
        yield f"recurrence: {escape(card.recurrence)}"
    training = "trains in parallel over time" if card.parallel else "trains chunk after chunk"
    role, time = card.role.replace("_", "-"), escape(card.complexity)
    yield f"role: {role}; time: {time}; state: {card.state_growth}; {training}"
    if card.limits:
        yield f"limits: {escape(card.limits)}"
    if card.compile_note:
        yield f"torch.compile: {escape(card.compile_note)}"


def _option_table(options: dict[str, Option]) -> Table:
    from ..mixers import REQUIRED

    table = Table("option", "takes", "default", "meaning", title="options", title_justify="left")
    for name, option in options.items():
        default = "" if option.default is REQUIRED else repr(option.default)
        table.add_row(name, escape(option.expects), escape(default), escape(option.help))
    return table


def check_command(
    mixer: Annotated[str | None, typer.Argument(metavar="MIXER", help="Name of a mixer.")] = None,
    all_mixers: Annotated[bool, typer.Option("--all", help="Check every mixer of the zoo.")] = False,
    device: Annotated[
        str, typer.Option(help="Where to check once more in float32 and bfloat16; auto: a GPU, if any.")
    ] = "auto",
    only: Annotated[str | None, typer.Option(help="Numbers of the checks to run, e.g. 1,3.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder to write check.json and check.md to.")] = None,
) -> None:
    """Run the mixer contract; exit code 1 if a mixer breaks it."""
    import torch

    from ..mixers import list_mixers
    from .contract_report import ContractRun
    from .device import choose_device, make_current

    load_plugins()
    if (mixer is None) != all_mixers:
        raise ValueError("name one mixer, or give --all")
    numbers = _parse_numbers(only)
    place = None if device == "auto" else choose_device(device)
    if place is not None:
        make_current(torch.device(place))
    names, console = list_mixers() if mixer is None else [mixer], Console()
    # Compiling for real takes most of the time, and is the same compiler for every mixer: all are traced only.
    run = ContractRun.of(place, "aot_eager" if all_mixers else "inductor")
    for name in track(names, "checking", console=Console(stderr=True), disable=not all_mixers, transient=True):
        run.check(name, numbers, survive=all_mixers)
    if out is not None:
        run.write(out)
    if all_mixers:
        console.print(_zoo_table(run))
        console.print(run.summary, soft_wrap=True)
    for entry in run.entries:
        if entry.error is not None:
            console.print(f"[red]{escape(entry.mixer)}: {escape(entry.error)}[/]", soft_wrap=True)
        elif entry.report is not None and not (all_mixers and entry.passed):
            console.print(_check_table(entry.report, failures_only=all_mixers))
    if not run.passed:
        raise typer.Exit(1)


def _zoo_table(run: ContractRun) -> Table:
    """A line for each mixer, a column for each check."""
    from .contract_report import MARKS

    numbers = run.titles
    table = Table("mixer", *map(str, numbers), "s", title="the mixer contract", title_justify="left", padding=(0, 0))
    for entry in run.entries:
        marks = entry.marks
        cells = [f"[{_CHECK_STYLES[status]}]{MARKS[status]}[/]" for status in (marks[n] for n in numbers)]
        table.add_row(escape(entry.mixer), *cells, f"{entry.seconds:.1f}")
    return table


def _check_table(report: CheckReport, failures_only: bool) -> Table:
    table = Table("#", "check", "result", "seconds", "detail", title=escape(report.mixer), title_justify="left")
    for r in report.failures if failures_only else report:
        result = f"[{_CHECK_STYLES[r.status]}]{r.status}[/]"
        detail = "\n".join(filter(None, (r.reason, r.detail)))
        table.add_row(str(r.number), escape(r.title), result, f"{r.seconds:.2f}", escape(detail))
    return table


def load_plugins() -> dict[str, str]:
    """Load the plug-ins of installed packages; returns what is broken, which the commands show in their own way."""
    from .plugins import failed_plugins

    return failed_plugins()


def _broken_table(broken: dict[str, str]) -> Table:
    table = Table("plug-in", "error", title="plug-ins that could not be loaded", title_justify="left", style="red")
    for source, error in broken.items():
        table.add_row(escape(source), escape(error))
    return table


def _parse_numbers(text: str | None) -> list[int] | None:
    try:
        return None if text is None else [int(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"--only takes numbers of checks, e.g. 1,3, got {text!r}") from None


def _count_parameters(mixer: str, d_model: int) -> int:
    import torch

    from ..mixers import create_mixer

    with torch.device("meta"):
        return sum(p.numel() for p in create_mixer(mixer, d_model).parameters())


def _state_table(mixer: str, d_model: int, options: dict[str, Any]) -> Table:
    """Bytes of the state of one sequence after so many tokens, measured."""
    import torch

    from ..mixers import create_mixer

    note = f" (with {', '.join(f'{k}={v}' for k, v in options.items())})" if options else ""
    table = Table("tokens", "bytes", title=f"state of one sequence, float32{note}", title_justify="left")
    model = create_mixer(mixer, d_model, **options).eval()
    with torch.no_grad():
        for tokens in _POSITIONS:
            _, state = model(torch.randn(1, tokens, d_model), return_state=True)
            table.add_row(f"{tokens:,}", f"{state.nbytes:,}")
    return table


def _backend_table(mixer: str, options: dict[str, Any]) -> Table:
    """Which backends run on this machine, found out by running them, and when `auto` takes them."""
    import torch

    from ..mixers import mixer_card

    card = mixer_card(mixer)
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    table = Table("backend", "auto takes it", *devices, title="backends here", title_justify="left")
    for backend in card.backends:
        trust = {op.backends[backend].trust for op in card.ops}
        taken = "" if not trust else max((_TAKEN[t] for t in trust), key=list(_TAKEN.values()).index)
        runs = (_try_backend(mixer, {**options, "backend": backend}, device) for device in devices)
        table.add_row(backend, taken, *runs)
    return table


def _try_backend(mixer: str, options: dict[str, Any], device: str) -> str:
    """`yes` and the first dtype in which it runs, or `no` and why it does not; libraries raise what they like."""
    import torch

    from ..mixers import create_mixer
    from ..mixers.ops.dispatch import CannotRunError

    reason = ""
    for dtype in (torch.float32, torch.bfloat16):
        try:
            with torch.no_grad():
                model = create_mixer(mixer, 32, **options).to(device, dtype)
                model(torch.randn(1, 32, 32, device=device, dtype=dtype))
        except Exception as error:
            said = error.reason if isinstance(error, CannotRunError) else str(error)
            reason = reason or said or type(error).__name__
        else:
            return f"[green]yes[/], in {str(dtype).removeprefix('torch.')}"
    return f"[yellow]no[/]: {escape(reason)}"
