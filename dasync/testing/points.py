"""Crash at every point: the places in the course of a small program at which a worker process may die.

A point is a piece of work that a worker writes to the disk, and a way: the process dies before it takes effect, or when
it has taken effect and nobody has heard of it. Work that changes nothing but leases is a point only where the process
runs something: what its code does between two commits can be cut there. The run that counts the points and those that
die at one go the same way up to there, as they have one seed.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from dasync.testing.simdisk import Work
from dasync.testing.world import World

BEFORE, AFTER = "before", "after"


class Point(NamedTuple):
    """Where a process dies."""

    work: int
    """The number of the piece of work, of all that workers write."""
    way: str
    """`before` or `after` it takes effect."""

    def __str__(self) -> str:
        return f"{self.work}:{self.way}"


def parse(text: str) -> Point:
    """The point that was printed so. Raises `ValueError` for what is none."""
    found = re.fullmatch(rf"(\d+):({BEFORE}|{AFTER})", text)
    if found is None:
        raise ValueError(f"a point is written as 17:{BEFORE} or 17:{AFTER}, not {text!r}")
    return Point(int(found[1]), found[2])


class Points:
    """Counts those of one world, and kills at one."""

    def __init__(self, world: World, kill_at: Point | None = None) -> None:
        self.found: list[Point] = []
        self.is_reached = False
        self._world = world
        self._kill_at = kill_at
        self._works = 0
        self._before = (0, 0, 0)
        world.disk.before_work, world.disk.after_work = self._begins, self._is_done

    def _begins(self, work: Work) -> None:
        if self._counts(work):
            self._works += 1
            self._before = self._state(work)
            self._maybe_kill(work, BEFORE)

    def _is_done(self, work: Work) -> None:
        if self._counts(work):
            state, before = self._state(work), self._before
            if state[1:] != before[1:]:
                self.found += [Point(self._works, BEFORE), Point(self._works, AFTER)]
            elif before[0]:
                self.found.append(Point(self._works, BEFORE))
            self._maybe_kill(work, AFTER)

    def _counts(self, work: Work) -> bool:
        return work.writes and work.process.name in self._world.workers

    def _maybe_kill(self, work: Work, way: str) -> None:
        if self._kill_at == (self._works, way):
            self.is_reached = True
            self._world.crash(work.process.name)

    def _state(self, work: Work) -> tuple[int, int, int]:
        """How many tasks the process holds; what tells one state of the promises and tasks from the next."""
        look, loop = self._world.disk.look, work.process.place
        if not look("SELECT 1 FROM sqlite_master WHERE name = 'tasks'"):
            return 0, 0, 0
        held = look("SELECT count(*) FROM tasks WHERE state = 'acquired' AND process = ?", (loop.process,))
        return held[0][0], look("SELECT total(version) FROM tasks")[0][0], self._world.fate.commits
