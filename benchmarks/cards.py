"""Which mixers a run compares, as its environment says it: so that who reads a run needs neither torch nor plug-ins."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_KEPT = ("family", "summary", "paper", "arxiv", "year")


def describe_mixers(layouts: Mapping[str, str]) -> dict[str, Any]:
    """`layout_mixers`, the names of the mixers of each layout by label, each once, in the order in which its line names
    them; and `cards` of them all: name -> `family`, `summary`, `paper`, `arxiv`, `year`.

    layouts: lines by label. A line that cannot be parsed has no mixers here, a mixer that is not installed no card.
    """
    if not layouts:
        return {"cards": {}, "layout_mixers": {}}
    # slow to import, and needed only where a run is made or one of before is read
    from ..mixers import UnknownMixerError, mixer_card

    named = {label: _mixers_of(line) for label, line in layouts.items()}
    cards: dict[str, dict[str, Any]] = {}
    for name in dict.fromkeys(name for names in named.values() for name in names):
        try:
            card = mixer_card(name)
        except UnknownMixerError:
            continue
        cards[name] = {field: getattr(card, field) for field in _KEPT}
    return {"cards": cards, "layout_mixers": named}


def _mixers_of(line: Any) -> list[str]:
    from ..models import LayoutError, parse_layout

    try:
        layout = parse_layout(str(line))
    except LayoutError:
        return []
    specs = [*(part.mixer for part in layout.pattern), *(part.mixer for part in layout.insertions)]
    return list(dict.fromkeys(spec.name for spec in specs))
