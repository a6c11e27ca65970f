"""Cancels of an execution's asyncio tasks that come from outside its code: a timer of asyncio's, a scope of anyio's.

When such a cancel comes is nobody's decision but the clock's, and what the code does next follows from it. So its place
is recorded: the branch, which of its cancels it is, and the turn that had been taken last. It is written when something
durable follows. A replay lets a cancel that is on record come after that turn, keeps one that comes early, and takes no
later turn before it has come; one that is not on record comes after all that is. A cancel that the code itself asks for
follows from what it has taken, and needs no record.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol, cast

from dasync.runtime.branch import BranchTask

Place = tuple[str, int, int]  # the branch, which of its cancels, the turn before it


class Canceled(Protocol):
    """The execution."""

    turn: int
    """The last turn that it has taken."""


class Cancels:
    """Those of one execution."""

    __slots__ = ("_canceled", "_coming", "_counts", "_kept", "_passing", "unwritten")

    def __init__(self, canceled: Canceled, recorded: Iterable[object]) -> None:
        self._canceled = canceled
        rows = [cast("list[list[object]]", row) for row in recorded]
        self._coming = {(str(branch), cast(int, count)): cast(int, turn) for row in rows for branch, count, turn in row}
        self._counts: dict[str, int] = {}
        self._kept: dict[BranchTask[object], tuple[object, int | None]] = {}
        self._passing = False
        self.unwritten: list[Place] = []
        """Those that have come and from which nothing has followed yet."""

    def ask(self, task: BranchTask[object], message: object, *, behind: bool) -> bool:
        """A task is canceled from outside: now, or when it is time. `behind`: there is more on record to come to."""
        if self._passing:  # of a task that the canceled one awaits
            return task.cut(message)
        if task in self._kept:
            return True
        branch = task.branch.prefix
        count = self._counts.get(branch, 0)
        turn = self._coming.get((branch, count))
        if turn is None and behind:
            self._kept[task] = message, None
        elif turn is not None and turn > self._canceled.turn:
            self._kept[task] = message, turn
        else:
            return self._let_through(task, message)
        return True

    def take_back(self, task: BranchTask[object]) -> bool:
        """Whoever asked for a cancel that has not come does not want it any more; whether there was one."""
        if self._kept.pop(task, None) is None:
            return False
        self._came(task)
        return True

    def holds(self, turn: int) -> bool:
        """Whether a cancel that is on record has to come before that turn."""
        return any(before < turn for before in self._coming.values())

    def waits(self) -> bool:
        """Whether any is kept."""
        return bool(self._kept)

    def release(self, *, behind: bool) -> bool:
        """The code is at rest: let those come whose time it is; whether there were any."""
        latest = self._canceled.turn
        ready = [task for task, (_, at) in self._kept.items() if (not behind if at is None else at <= latest)]
        for task in ready:
            self._let_through(task, self._kept.pop(task)[0])
        return bool(ready)

    def _let_through(self, task: BranchTask[object], message: object) -> bool:
        if not self._came(task):
            self.unwritten.append((task.branch.prefix, self._counts[task.branch.prefix] - 1, self._canceled.turn))
        self._passing = True
        try:
            return task.cut(message)
        finally:
            self._passing = False

    def _came(self, task: BranchTask[object]) -> bool:
        """Count it; whether it is on record."""
        branch = task.branch.prefix
        count = self._counts.get(branch, 0)
        self._counts[branch] = count + 1
        return self._coming.pop((branch, count), None) is not None
