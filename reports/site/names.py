"""Names of files and folders for what runs and suites are called, which may be any text."""

from __future__ import annotations

import hashlib
import re
import unicodedata

SAFE = r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}"
_LONGEST = 80


def safe_name(text: str) -> str:
    """`text` in ASCII letters, digits, `.`, `_` and `-`, at most 80 of them, the first a letter or a digit."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return re.sub(r"[^A-Za-z0-9._-]+", "-", plain).strip("-._")[:_LONGEST].rstrip("-._") or "run"


def page_name(text: str) -> str:
    """A name that no other text has, not even on a disk that takes `A` for `a`: `text` itself wherever it is safe."""
    name = safe_name(text)
    return name if name == text == text.lower() else f"{name.lower()}-{short_hash(text)}"


def short_hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:8]
