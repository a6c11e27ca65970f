"""How many executions of a function run here at a time: its `concurrency=`, and the processes of the pool.

An execution of such a function takes a slot before its body begins, and gives it back while it waits for promises and
nothing of it runs: else a parent would keep the children that it waits for from running. It takes a slot again before
it takes an outcome; which outcome that is, and in which order they come, does not change by it. What is about to be
acquired keeps its slots from being taken meanwhile; who waits here comes before what is not acquired yet. A canceled
execution is interrupted without one.

Nothing here acquires a task, and what a function does is not known.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from itertools import count
from typing import NamedTuple, Protocol

from dasync.core.protocol import Acquired, Room
from dasync.runtime.awaiters import Among, Waiter
from dasync.system import call_later

Kind = tuple[str, int]  # a function's name and version
SOON_LOOKS, PAUSE_S = 32, 0.005


class Limited(Protocol):
    """A function, as its limits concern it."""

    name: str
    version: int
    concurrency: int | None
    process: bool


class Goer(Protocol):
    """An execution, as one that runs or waits."""

    @property
    def function(self) -> Limited:
        """What it runs."""

    def parts(self) -> Sequence[asyncio.Task[object]]:
        """The asyncio tasks that it consists of."""

    def in_thread(self) -> bool | None:
        """Whether its body runs in a thread and does anything but wait there; None: it runs in no thread."""

    def takes_more(self) -> bool:
        """Whether an outcome that is settled already is still to be taken."""

    def go_on(self) -> None:
        """It has a slot again: it may take the next outcome."""


class Limit:
    """How many of some functions run, of those that may."""

    __slots__ = ("holders", "most", "reserved", "short")

    def __init__(self) -> None:
        self.most = 0
        """Of those that may, where versions of a function differ."""
        self.holders: dict[Slot, None] = {}
        self.reserved = 0
        """For tasks that are about to be acquired."""
        self.short = False
        """Whether the last acquire might have taken more of these functions, if there had been room."""

    def room(self, most: int) -> int:
        """How many more may run, of so many."""
        return most - len(self.holders) - self.reserved


Bounds = tuple[tuple[Limit, int], ...]
Kept = tuple[Limit, ...]  # limits in each of which a slot is kept


class Slot:
    """One execution's, from its start to its end."""

    __slots__ = ("_slots", "bounds", "execution", "granted", "kind")

    def __init__(self, slots: Slots, execution: Goer, bounds: Bounds) -> None:
        self.kind: Kind = (execution.function.name, execution.function.version)
        self.execution = execution
        self.bounds = bounds
        self.granted: asyncio.Future[None] | None = None
        """For an execution that waits to begin."""
        self._slots = slots

    @property
    def taken(self) -> bool:
        """Whether the execution may run."""
        return self in self.bounds[0][0].holders

    async def begin(self) -> None:
        """Return when the execution may begin."""
        if not self.taken:
            self.granted = asyncio.get_running_loop().create_future()
            await self.granted
            self.granted = None

    def may_go_on(self) -> bool:
        """Whether the execution may take its next outcome; if not, it is told when it may."""
        if not self.taken:
            self._slots.enqueue(self)
        self.stir()
        return self.taken

    def stir(self) -> None:
        """The execution waits for something more: soon nothing of it may run."""
        self._slots.stir()

    def leave(self, _: object = None) -> None:
        """The execution has ended."""
        self._slots.leave(self)

    def rests(self) -> bool | None:
        """Whether the execution waits for a promise, and nothing of it runs; None: that will be seen in a moment."""
        execution = self.execution
        if self.granted is not None or execution.takes_more():
            return False
        if (runs := execution.in_thread()) is not None:
            return not runs
        waits = [part._fut_waiter for part in execution.parts()]  # type: ignore[attr-defined]  # asyncio's own
        blocked = [one for one in waits if one is not None and not one.done()]
        if not any(isinstance(one, Waiter | Among) for one in blocked):
            return False
        return True if len(blocked) == len(waits) else None


class Offer(NamedTuple):
    """Which functions' tasks are about to be acquired, and for how many of them slots are kept."""

    functions: tuple[Kind, ...]
    rooms: tuple[Room, ...]
    limits: tuple[Limit, ...]
    """Those of the rooms."""
    short: bool
    """Whether functions are left out, for as many of them run as may."""


class Slots:
    """Those of one EventLoop."""

    def __init__(self, processes: int, freed: Callable[[], None]) -> None:
        self._processes = processes
        self._freed = freed  # there is room that the last acquire was short of
        self._pool = Limit()
        self._named: dict[str, Limit] = {}
        self._queues: dict[Kind, dict[Slot, None]] = {}
        self._turns = count(1)
        self._served: dict[Kind, int] = {}  # when one of which function was let in last
        self._looking = False
        self._looks = 0  # in a row that did not tell whether somebody rests

    # -- for executions

    def ask(self, execution: Goer, *, kept: bool) -> Slot | None:
        """A slot, taken if there is room, else in the queue, and if one was `kept` for it before that; None: the
        function has no limit."""
        bounds = self._bounds(execution.function)
        if not bounds:
            return None
        slot = Slot(self, execution, bounds)
        if (kept or slot.kind not in self._queues) and _has_room(bounds):
            _take(slot)
        else:
            self.enqueue(slot)
        return slot

    def enqueue(self, slot: Slot) -> None:
        """It waits for its turn."""
        queue = self._queues.setdefault(slot.kind, {})
        queue[slot] = None
        self.stir()

    def leave(self, slot: Slot) -> None:
        """It is needed no more."""
        _give_back(slot)
        if (queue := self._queues.get(slot.kind)) is not None:
            queue.pop(slot, None)
            if not queue:
                del self._queues[slot.kind]
        self.stir()

    def stir(self) -> None:
        """Somebody may go on."""
        if not self._looking:
            self._looking = True
            asyncio.get_running_loop().call_soon(self._look)

    # -- for what is acquired

    def reserve(self, function: Limited) -> Kept | None:
        """Keep a slot for one that is about to be acquired; `unreserve` ends that. None: there is none."""
        bounds = self._bounds(function)
        if bounds and ((function.name, function.version) in self._queues or not _has_room(bounds)):
            return None
        for limit, _ in bounds:
            limit.reserved += 1
        return tuple(limit for limit, _ in bounds)

    def unreserve(self, kept: Kept) -> None:
        """It is here, or will not come."""
        for limit in kept:
            limit.reserved -= 1
            self.stir()

    def offer(self, functions: Iterable[tuple[Kind, Limited | None]], most: int) -> Offer:
        """Those among `functions` that there is room for, with slots kept for up to `most` of each; then `close`."""
        self._reclaim()
        fit, short = list[Kind](), False
        rooms: dict[Limit, tuple[int, dict[str, None]]] = {}
        for kind, function in functions:
            bounds = () if function is None else self._bounds(function)
            if bounds and (kind in self._queues or not _has_room(bounds)):
                short = True
                for limit, bound in bounds:
                    limit.short = limit.short or kind in self._queues or limit.room(bound) <= 0
                continue
            fit.append(kind)
            for limit, bound in bounds:
                before, names = rooms.get(limit, (0, {}))
                rooms[limit] = (max(before, min(most, limit.room(bound))), {**names, kind[0]: None})
        for limit, (tasks, _) in rooms.items():
            limit.reserved += tasks
        named = tuple(Room(tuple(names), tasks) for tasks, names in rooms.values())
        return Offer(tuple(fit), named, tuple(rooms), short)

    def close(self, offer: Offer, acquired: Sequence[Acquired]) -> None:
        """The tasks are here, or will not come: their slots may be taken."""
        for limit, room in zip(offer.limits, offer.rooms, strict=True):
            limit.reserved -= room.tasks
            limit.short = sum(one.task.function in room.functions for one in acquired) == room.tasks
        if offer.limits:
            self.stir()

    # -- who goes on

    def _bounds(self, function: Limited) -> Bounds:
        """The limits that a function's executions come under, each with how many of them it lets run."""
        if function.concurrency is None and not function.process:
            return ()
        bounds: Bounds = ()
        if function.concurrency is not None:
            bounds = ((self._named.setdefault(function.name, Limit()), function.concurrency),)
        if function.process:
            bounds += ((self._pool, self._processes),)
        for limit, most in bounds:
            limit.most = max(limit.most, most)
        return bounds

    def _look(self) -> None:
        self._looking = False
        if self._queues or any(limit.short for limit in self._limits()):
            self._reclaim()
        while ready := [queue for queue in self._queues.values() if _has_room(_first(queue).bounds)]:
            # Functions in turn, for the pool is not one function's alone.
            self._grant(min(map(_first, ready), key=lambda slot: self._served.get(slot.kind, 0)))
        short = [limit for limit in self._limits() if limit.short and limit.room(limit.most) > 0]
        for limit in short:
            limit.short = False
        if short:
            self._freed()

    def _grant(self, slot: Slot) -> None:
        queue = self._queues[slot.kind]
        del queue[slot]
        if not queue:
            del self._queues[slot.kind]
        self._served[slot.kind] = next(self._turns)
        _take(slot)
        if slot.granted is None:
            slot.execution.go_on()
        elif not slot.granted.done():
            slot.granted.set_result(None)

    def _limits(self) -> list[Limit]:
        return [self._pool, *self._named.values()]

    def _reclaim(self) -> None:
        """Who rests holds no slot."""
        unsure = False
        for limit in self._limits():
            for slot in list(limit.holders):
                rests = slot.rests()
                if rests:
                    _give_back(slot)
                elif rests is None:
                    unsure = True
        self._looks = self._looks + 1 if unsure else 0
        if unsure and not self._looking:
            self._looking, loop = True, asyncio.get_running_loop()
            if self._looks <= SOON_LOOKS:
                loop.call_soon(self._look)
            else:  # what it waits for besides is no matter of a moment
                call_later(loop, PAUSE_S, self._look)


def _first(queue: dict[Slot, None]) -> Slot:
    return next(iter(queue))


def _has_room(bounds: Bounds) -> bool:
    return all(limit.room(most) > 0 for limit, most in bounds)


def _take(slot: Slot) -> None:
    for limit, _ in slot.bounds:
        limit.holders[slot] = None


def _give_back(slot: Slot) -> None:
    for limit, _ in slot.bounds:
        limit.holders.pop(slot, None)
