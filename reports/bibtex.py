"""BibTeX of the papers that the mixers of a run come from, as the cards name them."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from typing import Any

from .formats import latex

# as the cards write it: `Gu & Dao, Mamba: ...`, `Yang et al., Gated ...`
_PAPER = re.compile(r"(?P<first>[^,]+?)(?: (?P<rest>et al\.)| & (?P<second>[^,]+))?, (?P<title>.+)")


def bibtex(cards: Mapping[str, Mapping[str, Any]]) -> str:
    """One entry for each paper, with a comment that names its mixers; a comment alone for mixers without one.

    cards: mixer -> `paper`, `arxiv`, `year`. A card says the first author and whether there are more, so an entry does
    too (`and others`); one that names no author has none.
    """
    papers: dict[tuple[Any, ...], list[str]] = {}
    for mixer, card in cards.items():
        known = tuple(None if card.get(name) in (None, "") else str(card[name]) for name in ("paper", "arxiv", "year"))
        papers.setdefault(known, []).append(mixer)
    keys: set[str] = set()
    parts = []
    for (paper, arxiv, year), mixers in papers.items():
        named = _comment(", ".join(mixers))
        if paper is None or paper == "-":
            parts.append(f"% {named}: no paper\n")
        else:
            parts.append(f"% {named}\n{_entry(paper, arxiv, year, keys)}")
    return "\n".join(parts)


def _entry(paper: str, arxiv: str | None, year: str | None, keys: set[str]) -> str:
    found = _PAPER.fullmatch(paper)
    # without `et al.` or `&`, what stands before a comma may be a part of the title
    named = found if found and (found["rest"] or found["second"]) else None
    title, authors = (named["title"], _authors(named)) if named else (paper, None)
    fields = {"title": f"{{{latex(title)}}}", "author": authors, "year": latex(year) if year else None}
    if arxiv:
        fields |= {"eprint": latex(arxiv), "archivePrefix": "arXiv", "url": f"https://arxiv.org/abs/{latex(arxiv)}"}
    lines = [f"  {name} = {{{value}}}," for name, value in fields.items() if value]
    return "\n".join([f"@misc{{{_key(named['first'] if named else '', year, title, keys)},", *lines, "}"]) + "\n"


def _authors(found: re.Match[str]) -> str:
    """Names in braces, as they stand: a team has no first name, and `von Oswald` is one."""
    names = [f"{{{latex(name)}}}" for name in (found["first"], found["second"]) if name]
    return " and ".join([*names, *(["others"] if found["rest"] else [])])


def _key(author: str, year: str | None, title: str, taken: set[str]) -> str:
    """`gu2023mamba`; a letter more where that is taken."""
    words = [_plain(word) for word in title.split()]
    stem = f"{_plain(author)}{_plain(year or '')}{next((word for word in words if len(word) > 3), '')}" or "paper"
    key = next(k for k in (stem, *(f"{stem}{n}" for n in range(2, len(taken) + 3))) if k not in taken)
    taken.add(key)
    return key


def _plain(text: str) -> str:
    ascii_only = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9]", "", ascii_only.lower())


def _comment(text: str) -> str:
    """One line in which BibTeX finds no entry."""
    return " ".join(text.replace("@", " at ").split())
