"""Promises that an execution awaits and has not made: roots, which others know by their ids.

Nothing in such a promise's row says when this execution took its outcome, for others take it too, each in its own turn.
So the place is recorded here: the turn that had been taken last, and the order among those; written when something
durable follows. Until it is taken an outcome is no news to the execution, whoever else in this process knows it. A
replay takes one that is on record at its place, and the others after all that is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from functools import partial
from typing import Protocol, cast

FIRST, LATER = 1 << 60, 1 << 61
"""Among what is taken at one turn: after the turn itself come those on record, then those that are not."""
Place = tuple[str, int, bool, int]  # the promise, the turn before it, whether the execution was cut, which group


class Taker(Protocol):
    """The execution."""

    turn: int
    """The last turn that it has taken."""

    def is_cut(self) -> bool:
        """Whether its cancel has come."""


class Shared:
    """Those of one execution."""

    __slots__ = ("_arrived", "_coming", "_group", "_taken", "_taker", "unknown", "unwritten")

    def __init__(self, taker: Taker, recorded: Iterable[object]) -> None:
        self._taker = taker
        places = [cast(Place, tuple(one)) for row in recorded for one in cast("list[list[object]]", row)]
        self._coming = {id: (turn, FIRST + group, cut) for id, turn, cut, group in places}
        self._group = max((group for *_, group in places), default=0)
        self._arrived: dict[str, list[asyncio.Future[None]]] = {}
        self._taken: set[str] = set()
        self.unknown: set[str] = set()
        """Those of which it is not known yet whether they are settled: a replay waits until it is."""
        self.unwritten: list[Place] = []
        """Those that were taken and from which nothing has followed yet."""

    def withholds(self, id: str) -> bool:
        """Whether the execution has not taken that one, settled or not."""
        return id not in self._taken

    def arrive(self, id: str, waiter: asyncio.Future[None]) -> Callable[[], None] | None:
        """It is settled, and somebody awaits it; what takes it, if that is news."""
        if id in self._taken:
            waiter.set_result(None)
            return None
        waiting = self._arrived.setdefault(id, [])
        waiting.append(waiter)
        return partial(self._take, id) if len(waiting) == 1 else None

    def place(self, id: str, turn: int, earliest: int) -> tuple[int, int]:
        """When it is to be taken, settled by the commit `turn`; one that is not on record, not before `earliest`."""
        if id in self._coming:
            return self._coming[id][:2]
        return max([turn, earliest, self._taker.turn, *(before for before, _, _ in self._coming.values())]), LATER

    def next_group(self) -> None:
        """Those that are taken from now on are one group: one commit has settled them."""
        self._group += 1

    def missing(self, turn: int, at: int) -> str | None:
        """One that is on record for that place, or for one before it, and has not arrived."""
        waits = ((place, id) for id, place in self._coming.items() if id not in self._arrived)
        before = [(place, id) for place, id in waits if place[:2] <= (turn, at)]
        return min(before)[1] if before else None

    def forget(self) -> None:
        """The code starts again: what is on record of its last attempt is not looked for."""
        self._coming.clear()

    def first(self) -> str | None:
        """The first that is on record and was not taken."""
        return min(((place, id) for id, place in self._coming.items()), default=(None, None))[1]

    def is_behind(self, *, uncut: bool = False) -> bool:
        """Whether any is on record that was not taken; `uncut`: of those from before the cut."""
        return any(not (uncut and cut) for _, _, cut in self._coming.values())

    def _take(self, id: str) -> None:
        waiting = [waiter for waiter in self._arrived.pop(id) if not waiter.done()]
        if not waiting:
            return  # who awaited it has been canceled meanwhile: it was no news to anybody
        self._taken.add(id)
        if self._coming.pop(id, None) is None:
            self.unwritten.append((id, self._taker.turn, self._taker.is_cut(), self._group))
        for waiter in waiting:
            waiter.set_result(None)
