"""Where a cancel cuts into an execution, recorded so that a replay is cut at the same place.

Code that is interrupted cleans up, and what it invokes then follows from how far it had come: cut elsewhere, a replay
would invoke something else, or undo too little. So a cancel comes when the code has come to rest after some turn; that
turn is recorded, and a replay takes no later one before the cancel has come. A replay without a cut on record comes to
the end of what is recorded first. Who is canceled, and what of, is decided elsewhere, and in `turns.py` when the code
is at rest.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, cast


class Victim(Protocol):
    """The execution, as the cut sees it."""

    made: int
    """How many places for invocations its code has taken."""
    turn: int
    """The last turn that it has taken."""

    def interrupt(self) -> None:
        """Raise CancelledError in its code."""


class Cut:
    """The cancel of one execution, from when it is asked for until it has come."""

    __slots__ = ("_made", "_turn", "_victim", "came", "reason", "recorded")

    def __init__(self, victim: Victim, reason: bytes | None, recorded: object = None) -> None:
        self._victim = victim
        self.recorded = recorded is not None
        """Whether an earlier run was cut already."""
        self._made, self._turn, self.reason = cast("tuple[int, int, bytes | None]", recorded or (0, 0, reason))
        self.came = False
        """Whether it need not come any more."""

    def value(self) -> object:
        """What is recorded: how far the code has come, the last turn it has taken, why it ends."""
        return [self._victim.made, self._victim.turn, self.reason]

    def holds(self, turn: int) -> bool:
        """Whether that turn is to wait for the cut."""
        return self.recorded and not self.came and turn > self._turn

    def may_come(self, stuck: Callable[[], bool] | None) -> bool:
        """Whether the place where the code rests now is the one; `stuck` tells of one that is behind its record."""
        if self.recorded:
            return self._victim.turn >= self._turn and self._victim.made >= self._made
        return stuck is None or stuck()

    def come(self) -> None:
        """Interrupt the code."""
        self.came = True
        self._victim.interrupt()

    def drop(self) -> None:
        """The code has ended of itself, or is gone: there is nothing to cut."""
        self.came = True
