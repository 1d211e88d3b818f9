"""What the fuzz tests share: how many examples, hostile values, mutations, and the only ends that a mistake may have.

`make test` runs few examples, always the same. `FUZZ=1000` (or `make fuzz`) runs a thousand times as many, new ones
each time; hypothesis prints what reproduces a failure.
"""

from __future__ import annotations

import copy
import datetime
import json
import os
import random
import signal
from collections.abc import Callable, Iterator
from typing import Any

from hypothesis import HealthCheck, Verbosity, settings

TIMES = int(os.environ.get("FUZZ", "1"))
_HANG_SECONDS = 120

NAMES = [
    "",
    "a",
    "speed",
    "recall",
    "needle",
    "measure",
    "seeds",
    "__class__",
    "a" * 3000,
    "x\x1b[2Jy",
    "[red]",
    "\u202eabc",
]
TEXTS = [
    *NAMES,
    "..",
    "../../etc/passwd",
    "/dev/zero",
    "a\nb",
    "1e400",
    "9" * 5000,
    "%s%n{0}",
    "\ud800",
    "<script>",
    "-1",
    "nan",
]
NUMBERS = [
    0,
    1,
    -1,
    2,
    7,
    2**31,
    2**53 + 1,
    2**63,
    2**64,
    10**30,
    10**400,
    0.5,
    -0.0,
    1e-320,
    1e300,
    float("inf"),
    float("nan"),
]
VALUES = [*TEXTS, *NUMBERS, True, False, None, [], {}, [[]], [None], {"": None}, {"a": {"b": [1]}}, [1, "a", 2.5]]
YAML_VALUES = [*VALUES, datetime.date(2026, 1, 1), b"\xff", {1: 2}, {None: 1}, {(1, 2): 3}]


def fuzz(examples: int) -> Callable[..., Any]:
    """So many examples in CI; more, and others, with `FUZZ`."""
    return settings(
        max_examples=examples * TIMES,
        derandomize=TIMES == 1,
        deadline=None,
        database=None,
        print_blob=True,
        verbosity=Verbosity.normal,
        suppress_health_check=list(HealthCheck),
    )


class Hang(BaseException):
    """It does not come back; no `except Exception` takes it."""


def ends_well(call: Callable[[], Any], *, also: tuple[type[BaseException], ...] = ()) -> Any:
    """What `call` returns; None if it refused with a clear message. Any other end fails the test.

    A refusal is a ValueError or an OSError with a message, of what the user can mend: not a UnicodeError, a KeyError, a
    RecursionError or a MemoryError. also: further ends that are documented.
    """

    def hang(*_: Any) -> None:
        raise Hang(f"nothing came back within {_HANG_SECONDS} s")

    before = signal.signal(signal.SIGALRM, hang)
    signal.alarm(_HANG_SECONDS)
    try:
        return call()
    except also:
        return None
    except (ValueError, OSError) as error:
        assert not isinstance(error, UnicodeError), f"no message for people: {error!r}"
        assert str(error).strip(), f"{error!r} says nothing"
        return None
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def mutated(data: Any, rng: random.Random, values: list[Any] = VALUES, times: int = 2) -> Any:
    """A copy of nested dicts and lists with up to `times` places changed, dropped, doubled, renamed or exchanged."""
    data = copy.deepcopy(data)
    for _ in range(rng.randint(1, times)):
        places = list(_places(data))
        if not places:
            return rng.choice(values)
        parent, key = rng.choice(places)
        change = rng.choice(["replace"] * 5 + ["drop", "double", "rename", "exchange", "wrap"])
        if change == "drop":
            del parent[key]
        elif change == "double" and isinstance(parent, list):
            parent.insert(key, copy.deepcopy(parent[key]))
        elif change == "rename" and isinstance(parent, dict):
            parent[rng.choice(NAMES)] = parent.pop(key)
        elif change == "exchange":
            other, at = rng.choice(places)
            parent[key] = copy.deepcopy(other[at])
        elif change == "wrap":
            parent[key] = rng.choice([[parent[key]], {"a": parent[key]}, [parent[key]] * 50])
        else:
            parent[key] = copy.deepcopy(rng.choice(values))
    return data


def _places(data: Any) -> Iterator[tuple[Any, Any]]:
    for key in list(data) if isinstance(data, dict) else range(len(data)) if isinstance(data, list) else ():
        yield data, key
        yield from _places(data[key])


def mutated_text(text: str, rng: random.Random, pieces: list[str]) -> str:
    """`text` with a few stretches cut, doubled, moved, or replaced by one of `pieces`."""
    for _ in range(rng.randint(1, 3)):
        a, b = sorted(rng.randint(0, len(text)) for _ in range(2))
        b = min(b, a + rng.choice([0, 1, 3, 30]))
        text = text[:a] + rng.choice([*pieces, "", text[a:b] * 2, text[a:b][::-1]]) + text[b:]
    return text


def mutated_bytes(content: bytes, rng: random.Random) -> bytes:
    """`content` cut, with bytes changed, with garbage in it, or with a stretch twice."""
    found = bytearray(content)
    for _ in range(rng.randint(1, 3)):
        at = rng.randint(0, len(found))
        change = rng.choice(["flip", "flip", "cut", "garbage", "double", "zeros"])
        if change == "flip" and at < len(found):
            found[at] = rng.randint(0, 255)
        elif change == "cut":
            del found[at:]
        elif change == "double":
            found[at:at] = found[max(0, at - 40) : at]
        else:
            found[at:at] = bytes(8) if change == "zeros" else rng.randbytes(rng.choice([1, 8, 100]))
    return bytes(found)


def as_json(data: Any) -> bytes:
    """JSON as a hostile hand writes it: NaN, infinities and lone surrogates included."""
    return json.dumps(data, ensure_ascii=True, default=str).encode()
