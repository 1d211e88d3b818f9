"""The commands about mixers: list, show, check. torch is imported when one of them runs, not before."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from ..mixers import MixerCard, Option

_LARGEST_TO_BUILD = 64_000_000  # parameters; above that, `show` measures a mixer with small options
_POSITIONS = (64, 256, 1024)
_CHECK_STYLES = {"passed": "green", "failed": "red", "skipped": "yellow"}

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
    console.print(_backend_table(mixer, small_options(mixer), "backend" in options))


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
    device: Annotated[str, typer.Option(help="Where to check once more in bfloat16; auto: a GPU, if any.")] = "auto",
    only: Annotated[str | None, typer.Option(help="Numbers of the checks to run, e.g. 1,3.")] = None,
) -> None:
    """Run the mixer contract; exit code 1 if a mixer breaks it."""
    from ..mixers import check_mixer, list_mixers
    from .device import choose_device

    load_plugins()
    if (mixer is None) != all_mixers:
        raise ValueError("name one mixer, or give --all")
    numbers = _parse_numbers(only)
    place = None if device == "auto" else choose_device(device)
    console, broken = Console(), False
    for name in list_mixers() if mixer is None else [mixer]:
        report = check_mixer(name, device=place, only=numbers, raise_on_failure=False)
        table = Table("#", "check", "result", "seconds", "detail", title=escape(report.mixer), title_justify="left")
        for r in report:
            result = f"[{_CHECK_STYLES[r.status]}]{r.status}[/]"
            detail = "\n".join(filter(None, (r.reason, r.detail)))
            table.add_row(str(r.number), escape(r.title), result, f"{r.seconds:.2f}", escape(detail))
        console.print(table)
        broken = broken or not report.passed
    if broken:
        raise typer.Exit(1)


def load_plugins() -> dict[str, str]:
    """Load the mixers of installed packages; returns what is broken, which the commands show in their own way."""
    from ..mixers import plugin_errors

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return plugin_errors()


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


def _backend_table(mixer: str, options: dict[str, Any], has_option: bool) -> Table:
    """Which backends run on this machine, found out by running them."""
    import torch

    from ..mixers import mixer_card

    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    table = Table("backend", *devices, title="backends here", title_justify="left")
    for backend in mixer_card(mixer).backends:
        chosen = {**options, "backend": backend} if has_option else options
        table.add_row(backend, *(_try_backend(mixer, chosen, device) for device in devices))
    return table


def _try_backend(mixer: str, options: dict[str, Any], device: str) -> str:
    import torch

    from ..mixers import create_mixer

    try:
        with torch.no_grad():
            create_mixer(mixer, 32, **options).to(device)(torch.randn(1, 32, 32, device=device))
    except (RuntimeError, ImportError) as error:
        return f"[yellow]no[/]: {escape(str(error))}"
    return "[green]yes[/]"
