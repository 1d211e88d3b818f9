"""How long cases take on so many machines: what the runner does, simulated."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Piece:
    """A case to be scheduled. after: those that have to be over before, by id; ids that are no piece are over."""

    id: str
    seconds: float
    exclusive: bool = False
    after: frozenset[str] = frozenset()


def makespan(pieces: Sequence[Piece], machines: int, slots: int) -> float:
    """Seconds until the last piece is over, if `machines` machines take them in their order, `slots` at a time on each.

    Of those that may start, the first one does, as soon as there is room. Exclusive pieces, one to a machine, start
    when all others are over.
    """
    shared = _list_schedule([piece for piece in pieces if not piece.exclusive], machines * slots)
    return shared + _list_schedule([piece for piece in pieces if piece.exclusive], machines)


def _list_schedule(pieces: Sequence[Piece], places: int) -> float:
    by_number = dict(enumerate(pieces))
    known = {piece.id for piece in pieces}
    left = {number: len(piece.after & known) for number, piece in by_number.items()}
    followers: dict[str, list[int]] = {}
    for number, piece in by_number.items():
        for before in piece.after & known:
            followers.setdefault(before, []).append(number)
    ready = [number for number, count in left.items() if not count]  # rising, which makes it a heap
    running: list[tuple[float, int]] = []
    now = 0.0
    while ready or running:
        while ready and len(running) < places:
            number = heapq.heappop(ready)
            heapq.heappush(running, (now + by_number[number].seconds, number))
        now, number = heapq.heappop(running)
        for follower in followers.get(by_number[number].id, ()):
            left[follower] -= 1
            if not left[follower]:
                heapq.heappush(ready, follower)
    return now
