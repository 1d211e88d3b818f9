"""How long cases take on so many machines: a list schedule, simulated."""

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
    """Seconds until the last piece is over, if `machines` machines take them, `slots` at a time on each.

    Of what may start, the longest starts first, on the machine with the fewest at work. An exclusive piece takes a
    machine that does nothing else, once no other piece may start.
    """
    return _Simulation(pieces, machines, slots).run()


class _Simulation:
    def __init__(self, pieces: Sequence[Piece], machines: int, slots: int) -> None:
        self.pieces = {piece.id: piece for piece in pieces}
        self.slots = slots
        self.open = {piece.id: len(piece.after & self.pieces.keys()) for piece in pieces}
        self.followers: dict[str, list[str]] = {}
        for piece in pieces:
            for before in piece.after & self.pieces.keys():
                self.followers.setdefault(before, []).append(piece.id)
        self.ready: dict[bool, list[tuple[float, int, str]]] = {False: [], True: []}
        self.order = {piece.id: number for number, piece in enumerate(pieces)}
        self.free = [(0, machine) for machine in range(machines)]  # with room for one more: how many at work, which
        self.at_work = [0] * machines
        self.running: list[tuple[float, int, str, int]] = []
        for piece in pieces:
            self._release(piece.id)

    def run(self) -> float:
        now = 0.0
        while True:
            while self._start(now):
                pass
            if not self.running:
                return now
            now, _, name, machine = heapq.heappop(self.running)
            self._finish(name, machine)

    def _release(self, name: str) -> None:
        if self.open[name] == 0:
            piece = self.pieces[name]
            heapq.heappush(self.ready[piece.exclusive], (-piece.seconds, self.order[name], name))

    def _start(self, now: float) -> bool:
        """Start one piece, if any may start."""
        shared, alone = self.ready[False], self.ready[True]
        if shared and (machine := self._with_room()) is not None:
            self._take(shared, machine, 1, now)
            return True
        if alone and not shared and (machine := self._with_room()) is not None and self.at_work[machine] == 0:
            self._take(alone, machine, self.slots, now)
            return True
        return False

    def _with_room(self) -> int | None:
        """The machine with the fewest at work, if it has room; entries that are out of date are dropped."""
        while self.free and self.free[0][0] != self.at_work[self.free[0][1]]:
            heapq.heappop(self.free)
        if not self.free or self.free[0][0] >= self.slots:
            return None
        return self.free[0][1]

    def _take(self, queue: list[tuple[float, int, str]], machine: int, slots: int, now: float) -> None:
        _, order, name = heapq.heappop(queue)
        self._occupy(machine, slots)
        heapq.heappush(self.running, (now + self.pieces[name].seconds, order, name, machine))

    def _finish(self, name: str, machine: int) -> None:
        self._occupy(machine, -self.slots if self.pieces[name].exclusive else -1)
        for follower in self.followers.get(name, ()):
            self.open[follower] -= 1
            self._release(follower)

    def _occupy(self, machine: int, slots: int) -> None:
        self.at_work[machine] += slots
        heapq.heappush(self.free, (self.at_work[machine], machine))
