"""The Atom feed of a site (RFC 4287): one entry a run, the newest first."""

from __future__ import annotations

import re
import uuid
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

from .run import SiteRun

ATOM = "http://www.w3.org/2005/Atom"
_NEVER = "1970-01-01T00:00:00+00:00"  # Atom wants a date of everything; this one is taken for "not known"
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_ENTRIES = 100


def feed_id(runs: list[SiteRun]) -> str:
    """An id for the site that begins with `runs`: the same for the same runs."""
    return uuid.uuid5(uuid.NAMESPACE_OID, " ".join(["mixerzoo", *sorted(run.digest for run in runs)])).urn


def atom(runs: list[SiteRun], feed: str, home: str | None) -> str:
    """The feed as XML. home: address of the site, ending in `/`; without it links are relative to the feed.

    No date in it is later than the runs': it says the same whenever it is made.
    """
    newest = sorted(runs, key=lambda run: run.order, reverse=True)[:_ENTRIES]
    root = Element("feed", xmlns=ATOM)
    _text(root, "title", "Runs of mixerzoo")
    _text(root, "id", feed)
    _text(root, "updated", max((_date(run) for run in newest), default=_NEVER))
    _text(SubElement(root, "author"), "name", "mixerzoo")
    _text(root, "generator", "mixerzoo")
    SubElement(root, "link", rel="self", type="application/atom+xml", href=f"{home or ''}feed.atom")
    SubElement(root, "link", rel="alternate", type="text/html", href=f"{home or ''}index.html")
    for run in newest:
        _entry(root, run, feed, home or "")
    ElementTree.indent(root)
    return f'<?xml version="1.0" encoding="utf-8"?>\n{ElementTree.tostring(root, encoding="unicode")}\n'


def _entry(root: Element, run: SiteRun, feed: str, home: str) -> None:
    entry = SubElement(root, "entry")
    foreign = "Measured by another tool: " if run.foreign is not None else ""
    _text(entry, "title", f"{foreign}{run.name} on {run.machine}")
    _text(entry, "id", uuid.uuid5(uuid.NAMESPACE_OID, f"{feed} {run.name}").urn)
    _text(entry, "updated", _date(run))
    page = f"{home}runs/{run.name}/report.html"
    SubElement(entry, "link", rel="alternate", type="text/html", href=page)
    SubElement(entry, "category", term=_xml(run.suite))
    flags = [run.incomplete] if run.incomplete else []
    said = [f"{answer.topic}: {answer.said} {answer.value}".strip() for answer in run.answers]
    _text(entry, "summary", ". ".join([run.source, *flags, *run.untaught, *said]).replace("..", "."))


def _date(run: SiteRun) -> str:
    return run.started.isoformat() if run.started else _NEVER


def _text(parent: Element, tag: str, text: str) -> None:
    SubElement(parent, tag).text = _xml(text)


def _xml(text: str) -> str:
    """Without the characters that XML has no way to write."""
    return _NOT_XML.sub("\N{REPLACEMENT CHARACTER}", text)
