"""One line of `results.jsonl`: what it says, and its bytes.

A line ends with the checksum of all that stands before it, `"sha256"`: the first 16 hex digits of the SHA-256 of the
line without that key. Lines of before schema version 3 have none.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import from_json

from .schema import CHECKSUM_VERSION, SCHEMA_VERSION, migrate

Status = Literal["ok", "out_of_memory", "timeout", "crashed", "not_finite", "invalid"]
"""How a case ended."""
STATUSES: tuple[Status, ...] = get_args(Status)
"""All that a case may end with."""

CHECKSUM = "sha256"
_DIGITS = 16
_START = b'{"schema_version": '
_END = re.compile(rb', "sha256": "([0-9a-f]{%d})"\}' % _DIGITS)
_END_BYTES = len(b', "sha256": ""}') + _DIGITS
_TEXT = rb'"((?:[^"\\]|\\.)*)"'
# what every line of today begins with: enough to know what it is of, without reading what was measured
_HEAD = re.compile(
    rb'\{"schema_version": %d, "case": %b, "layout": %b, "measure": %b, "seed": (-?\d+), "status": "(%b)", '
    rb'"seconds": ([-+.\deE]+), ' % (SCHEMA_VERSION, _TEXT, _TEXT, _TEXT, "|".join(STATUSES).encode())
)


class DamagedLine(ValueError):
    """Bytes that are no result line; the message is to follow where they stand."""


class ResultLine(BaseModel):
    """One finished case, one line of `results.jsonl`; fields that this version does not know are kept.

    case: id, a hash of what was measured. layout: the layout's label in the suite.
    seconds: wall-clock time of the whole case. ended: when the case was over, ISO 8601 in UTC; None where that was not
        recorded.
    machine: `name` and `kind` of where it ran (see `Machine`); None where that was not recorded, or is not known.
    attempts: those before that came to nothing because a machine was lost: `machine`, `ended`, `seconds` and `why`.
    peak_bytes: the most resident memory that its processes held together; None where that was not recorded.
    parameters: those of the measure, and `model` (the resolved configuration), `layout_line`, `device`, `threads`, and
        `tf32` (whether CUDA might compute float32 in TF32; missing where it was not recorded).
    backends: op -> names of the implementations that ran.
    metrics: what the measure returned, None unless status is `ok`. error: what went wrong, None if nothing did.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    # in this order they are written: what comes before `ended` is what `LineHead` reads
    schema_version: int = SCHEMA_VERSION
    case: str
    layout: str
    measure: str
    seed: int
    status: Status
    seconds: float
    ended: str | None = None
    machine: dict[str, str] | None = None
    attempts: list[dict[str, Any]] = Field(default_factory=list)
    peak_bytes: int | None = None
    parameters: dict[str, Any]
    backends: dict[str, list[str]] = Field(default_factory=dict)
    metrics: dict[str, Any] | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class LineHead:
    """What a line is of, see `ResultLine`, and where it stands: number (from 1), offset and size in bytes."""

    case: str
    layout: str
    measure: str
    seed: int
    status: Status
    seconds: float
    number: int
    offset: int
    size: int


def encode_line(record: Mapping[str, Any]) -> bytes:
    """The bytes of a line with its checksum and its newline. Raises `ValueError` for NaN, which is not JSON."""
    said = {name: value for name, value in record.items() if name != CHECKSUM}
    # half of a surrogate pair, as a hostile file name may hold, is no text: it becomes a question mark
    body = json.dumps(said, allow_nan=False, ensure_ascii=False).encode("utf-8", "replace")
    return b'%b, "%b": "%b"}\n' % (body[:-1], CHECKSUM.encode(), _checksum(body))


def decode_line(line: bytes) -> ResultLine:
    """The result that a line, without its newline, says, as this version has it.

    Raises `DamagedLine`, or `SchemaError` for a line of a newer version.
    """
    body = _checked(line)
    try:
        data = _parsed(line if body is None else body)
    except (ValueError, RecursionError):
        raise DamagedLine("is not JSON") from None
    if not isinstance(data, dict):
        raise DamagedLine("is not a result line: it is no JSON object")
    migrated = migrate(data)
    if body is None and data.get("schema_version", 1) >= CHECKSUM_VERSION:
        raise DamagedLine("has lost its checksum")
    try:
        return ResultLine.model_validate(migrated)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise DamagedLine(f"is not a result line: {field}: {first['msg']}") from None


def _parsed(data: bytes) -> Any:
    """What JSON says; quickly, and with one string for all keys of one name. Raises `ValueError`, `RecursionError`."""
    try:
        return from_json(data)
    except ValueError:  # no JSON, or half of a surrogate pair, which this parser refuses
        return json.loads(str(data, "utf-8"))


class HeadReader:
    """Reads the heads of many lines: what was measured is only read in lines of before, which have no checksum."""

    def __init__(self) -> None:
        self._names: dict[bytes, str] = {}  # of few layouts and measures there are many lines

    def __call__(self, line: bytes, number: int, offset: int) -> LineHead:
        """line: without its newline; number, offset: where it stands. Raises as `decode_line`."""
        found = _HEAD.match(line) if _checked(line) is not None else None
        if found is None:
            r = decode_line(line)
            return LineHead(r.case, r.layout, r.measure, r.seed, r.status, r.seconds, number, offset, len(line))
        case, layout, measure, seed, status, seconds = found.groups()
        names = self._name(layout), self._name(measure)
        known: Any = self._name(status)
        return LineHead(_text(case), *names, int(seed), known, float(seconds), number, offset, len(line))

    def _name(self, quoted: bytes) -> str:
        if quoted not in self._names:
            self._names[quoted] = _text(quoted)
        return self._names[quoted]


def is_torn(tail: bytes) -> bool:
    """Whether what follows the last newline is a line that a kill cut off, in which nothing whole stands."""
    return tail.startswith(_START[: len(tail)]) and not is_whole(tail) and not any(found for found, _ in pieces(tail))


def is_whole(line: bytes) -> bool:
    """Whether a line is JSON: it is not before its last brace was written."""
    try:
        json.loads(str(line, "utf-8"))
    except (ValueError, RecursionError):
        return False
    return True


def pieces(line: bytes) -> Iterator[tuple[bytes | None, bytes]]:
    """The parts of a line that is none: pairs of a whole line that stands in it, None for what is between, and the
    bytes of that part."""
    position = 0
    end = None
    while (start := line.find(_START, position)) >= 0:
        if start > position:
            yield None, line[position:start]
        if end is None or end.start() < start:
            end = _END.search(line, start)
        following = line.find(_START, start + 1)
        following = len(line) if following < 0 else following
        whole = _whole(line[start : end.end()] if end else b"") or _first_object(line[start:following])
        position = start + len(whole) if whole else following
        yield whole, line[start:position]
    if position < len(line):
        yield None, line[position:]


def _whole(line: bytes) -> bytes | None:
    """The same if it is a line."""
    try:
        decode_line(line)
    except ValueError:
        return None
    return line


def _first_object(data: bytes) -> bytes | None:
    """The line of JSON that stands at the beginning, whatever follows."""
    text = data.decode("utf-8", "surrogateescape")  # bytes that are no UTF-8 may follow, and must not change sizes
    try:
        _, end = json.JSONDecoder().raw_decode(text)
    except (ValueError, RecursionError):
        return None
    return _whole(text[:end].encode("utf-8", "surrogateescape"))


def _checked(line: bytes) -> bytes | None:
    """A line without its checksum, None if it has none. Raises `DamagedLine` if the checksum is another's."""
    found = _END.fullmatch(line, max(0, len(line) - _END_BYTES))
    if found is None:
        return None
    body = line[:-_END_BYTES] + b"}"
    if _checksum(body) != found[1]:
        raise DamagedLine("does not match its checksum: it was damaged, or edited")
    return body


def _checksum(body: bytes) -> bytes:
    return hashlib.sha256(body).hexdigest()[:_DIGITS].encode()


def _text(quoted: bytes) -> str:
    """What stands between the quotes of a JSON string."""
    return str(json.loads(b'"%b"' % quoted)) if b"\\" in quoted else str(quoted, "utf-8")
