"""Follows every link of a built site from its files, without the network: `python docs/check_site.py build/site`.

Says which lead to no file or no place on a page, and what a page would fetch from elsewhere: it must work offline.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

FETCHED = {"script": "src", "img": "src", "iframe": "src", "source": "src", "video": "src", "object": "data"}
FETCHING = {"stylesheet", "icon", "preload", "modulepreload", "prefetch", "preconnect", "manifest"}
IN_STYLE = re.compile(r"(?:url\(|@import)\s*[\"']?\s*((?:https?:)?//[^\"')\s]+)")


@dataclass
class Links(HTMLParser):
    """What a page links to, what it fetches, and the places on it that a link can name."""

    links: list[str] = field(default_factory=list)
    fetched: list[str] = field(default_factory=list)
    places: set[str] = field(default_factory=set)
    in_style: bool = False

    def __post_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.in_style = tag == "style"
        self.places |= {found[name] for name in ("id", "name") if found.get(name)}
        self.fetched += IN_STYLE.findall(found.get("style", ""))
        if tag in FETCHED and FETCHED[tag] in found:
            self.fetched.append(found[FETCHED[tag]])
        elif tag == "link" and FETCHING & set(found.get("rel", "").split()):
            self.fetched.append(found.get("href", ""))
        elif tag in ("a", "area") and "href" in found:
            self.links.append(found["href"])

    def handle_endtag(self, tag: str) -> None:
        self.in_style = False

    def handle_data(self, data: str) -> None:
        if self.in_style:
            self.fetched += IN_STYLE.findall(data)


def read(page: Path) -> Links:
    links = Links()
    links.feed(page.read_text(encoding="utf-8"))
    links.close()
    return links


def faults(site: Path) -> list[str]:
    """One line for each link that leads nowhere, and for each address that a page would fetch from elsewhere."""
    site = site.resolve()
    # a server's page for what is missing: its links are those of the server's root
    pages = {path: read(path) for path in sorted(site.rglob("*.html")) if path != site / "404.html"}
    found = []
    for page, links in pages.items():
        name = page.relative_to(site).as_posix()
        for target in dict.fromkeys([*links.links, *links.fetched]):
            fault = _fault(target, page, site, pages, target in links.fetched)
            found += [f"{name}: {target[:200]} {fault}"] if fault else []
    for sheet in sorted(site.rglob("*.css")):
        addresses = IN_STYLE.findall(sheet.read_text(encoding="utf-8"))
        found += [f"{sheet.relative_to(site).as_posix()}: {address} is fetched from elsewhere" for address in addresses]
    return found


def _fault(target: str, page: Path, site: Path, pages: dict[Path, Links], fetched: bool) -> str:
    """What is wrong with a link; nothing if nothing is."""
    try:
        parts = urlsplit(target)
    except ValueError:
        return "is no address"
    if parts.scheme == "data" and fetched:
        return ""
    if parts.scheme or parts.netloc:
        return "is fetched from elsewhere" if fetched else ""
    if parts.path.startswith("/"):
        return "is not relative, so that it leads nowhere without a server"
    path = (page.parent / unquote(parts.path)).resolve() if parts.path else page
    if not path.is_relative_to(site):
        return "leaves the site"
    if not path.is_file():
        return "does not exist"
    place = unquote(parts.fragment)
    return "names no place of that page" if place and path in pages and place not in pages[path].places else ""


if __name__ == "__main__":
    wrong = faults(Path(sys.argv[1]))
    print("\n".join(wrong) or f"all links of {sys.argv[1]} lead somewhere, and nothing is fetched from elsewhere")
    sys.exit(1 if wrong else 0)
