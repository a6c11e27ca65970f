"""Where a cancel cuts into an execution, recorded so that a replay is cut at the same place.

Code that is interrupted cleans up, and what it invokes then follows from how far it had come: cut elsewhere, a replay
would invoke something else, or undo too little. So a cancel comes when the execution is quiet; what had not been
delivered to it by then is recorded (the cut), and a replay holds that back until it has come as far. A replay without
a cut on record comes to the end of what is recorded first. Who is canceled, and what of, is decided elsewhere.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextvars import Context, copy_context
from typing import Protocol, cast

CUT = "dasync.cut"
QUIET_TURNS = 12  # of the asyncio loop without progress: whatever was delivered has been taken in by then
MAX_TURNS = 1_000  # a first run that is never quiet is cut after that many
PAUSE_CAP_S = 0.05  # between looks at a replay that is on its way, in a raw await


class Victim(Protocol):
    """The execution, as the cut sees it."""

    made: int
    """How many places for invocations its code has taken."""
    progress: int
    """Raised whenever something is invoked by it or delivered to it."""

    def is_still(self) -> bool:
        """Whether it can only go on when a promise settles that it waits for, and nothing is on its way to it."""

    def is_stuck(self) -> bool:
        """Whether each of its asyncio tasks waits for a promise that it has made."""

    def is_behind(self) -> bool:
        """Whether there is something on record of it that it has not come to."""

    def undelivered(self) -> list[str]:
        """Ids of its pending children."""

    def interrupt(self) -> None:
        """Raise CancelledError in its code."""


class Cut:
    """The cancel of one execution, from when it is asked for until it has come."""

    __slots__ = ("_back", "_ids", "_made", "_quiet", "_seen", "_turns", "_victim", "came", "reason", "recorded")

    def __init__(self, victim: Victim, reason: bytes | None, recorded: object = None) -> None:
        self._victim = victim
        self.recorded = recorded is not None
        """Whether an earlier run was cut already."""
        made, ids, reason = cast("tuple[int, list[str], bytes | None]", recorded or (0, [], reason))
        self.reason = reason
        self.came = False
        """Whether it need not come any more."""
        self._made = made
        self._ids = frozenset(ids)
        self._back: list[tuple[Callable[[], None], Context]] = []
        self._seen = -1
        self._turns = 0
        self._quiet = 0

    def value(self) -> object:
        """What is recorded: how far the code has come, what was not delivered, why it ends."""
        return [self._victim.made, self._victim.undelivered(), self.reason]

    def holds(self, id: str) -> bool:
        """Whether a child of that id is to wait for the cut."""
        return not self.came and id in self._ids

    def hold(self, go_on: Callable[[], None]) -> None:
        """Let that happen after the cut."""
        self._back.append((go_on, copy_context()))

    def approach(self) -> None:
        """Come as soon as the execution is where it is to be cut."""
        if not self._turns:
            self._look()

    def _look(self) -> None:
        loop, victim = asyncio.get_running_loop(), self._victim
        if self.came:
            return
        self._turns += 1
        self._quiet = self._quiet + 1 if self._seen == victim.progress else 0
        self._seen = victim.progress
        if self._may_come():
            self.come()
        elif self._turns < MAX_TURNS:
            loop.call_soon(self._look)
        else:
            loop.call_later(min(PAUSE_CAP_S, (self._turns - MAX_TURNS + 1) / 1000), self._look)

    def _may_come(self) -> bool:
        victim, quiet = self._victim, self._quiet >= QUIET_TURNS
        if self.recorded:
            return victim.made >= self._made and (quiet or victim.is_still())
        if victim.is_behind():
            return quiet and victim.is_stuck()
        return quiet or victim.is_still() or self._turns >= MAX_TURNS

    def come(self) -> None:
        """Interrupt the code."""
        self.came = True
        self._victim.interrupt()
        self.let_go()

    def let_go(self) -> None:
        """The code has been cut, or has ended of itself: what was held back for it goes on."""
        self.came = True
        back, self._back = self._back, []
        for go_on, context in back:
            context.run(go_on)

    def drop(self) -> None:
        """The execution is gone."""
        self.came = True
        self._back.clear()
