"""The other processes on the store, as this one sees them: who is there, who is gone, what nobody serves.

One that is dead the kernel tells of: its record lock is free. One that was stopped, or is on another machine, is gone
when it has not renewed its lease for the whole of it, by this process's own monotonic clock: no two clocks are ever
compared. Its tasks are handed on by whoever is up and sees it first; the law lets only the first one do so. Nothing
here acquires a task.
"""

from __future__ import annotations

import logging
import math
from shlex import quote
from typing import Protocol

from dasync.core.model import ProcessRecord
from dasync.core.protocol import ProcessLeave
from dasync.ports import Around, Clock, Transport
from dasync.runtime.journal import Journal

LOOK_S = 0.01  # at least, between two looks at those who do not renew their lease
_log = logging.getLogger("dasync.worker")


class Terms(Protocol):
    """How this process works."""

    @property
    def group(self) -> str:
        """What it works for."""

    @property
    def max_crashes(self) -> int:
        """How often in a row a task may end its process."""


class Neighbours:
    """The processes that share a store with this one."""

    def __init__(self, terms: Terms, *, transport: Transport, clock: Clock, journal: Journal) -> None:
        self._terms = terms
        self._transport = transport
        self._clock = clock
        self._journal = journal
        self.missing: list[tuple[str, int]] = []
        """Functions that tasks for this process's group need and that it does not have."""
        self._others: list[ProcessRecord] = []
        self._seen: dict[str, tuple[int, float]] = {}  # what each has renewed its lease at, and since when it has not
        self._told: set[tuple[str, int]] = set()
        self._orphans: set[str] = set()
        self._told_orphans: set[str] = set()

    def see(self, me: str, around: Around) -> None:
        """Remember who is there, and since when each has not renewed its lease; say what nobody here can run."""
        before, now = self._seen, self._clock.monotonic()
        self._others = [process for process in around.processes if process.id != me]
        fresh = {process.id: (process.renewed_at, now) for process in self._others}
        self._seen = {id: before[id] if before.get(id, (0,))[0] == seen[0] else seen for id, seen in fresh.items()}
        self.missing = around.missing
        for name, version in around.missing:
            if (name, version) not in self._told:
                self._told.add((name, version))
                _log.warning(
                    "a task needs function %r version %d, which is not registered in this process: it is left to other"
                    " workers of group %r; import the module that defines it", name, version, self._terms.group,
                )  # fmt: skip

    def look_for_orphans(self, around: Around) -> None:
        """Say once when a task has waited from one beat to the next for a group that nobody serves: a typo, maybe."""
        served = {process.group for process in around.processes}
        orphans = {target for target in around.waiting if target.partition("/")[0] not in served}
        for target in sorted(orphans & self._orphans - self._told_orphans):
            _log.warning(
                "a task waits for %r, and no process serves that group: start `dasync worker APP --group %s`, or"
                " correct its on=", target, target.partition("/")[0],
            )  # fmt: skip
        self._told_orphans |= orphans & self._orphans
        self._orphans = orphans

    def after(self, me: str, passed: int) -> str | None:
        """The doorbell of the next process that works for the same group; None: all of them have been told."""
        members = [one for one in self._others if one.group == self._terms.group and one.address]
        if passed >= len(members):
            return None
        return next((one for one in members if one.id > me), members[0]).address

    def soonest_silence_s(self) -> float:
        """How long it is until one of them has been silent for the whole of its lease, if it stays so.

        Not those who have been by now: who could not bury them, as the store is away, tries again at the next poll.
        """
        now = self._clock.monotonic()
        soonest = min((at for at in map(self._silent_at, self._others) if at > now), default=math.inf)
        return max(LOOK_S, soonest - now)

    async def bury(self) -> bool:
        """Hand on the tasks of those who are gone; whether there was anybody."""
        dead, now = set(self._transport.dead(self._others)), self._clock.monotonic()
        gone = [one for one in self._others if one.id in dead or self._silent_at(one) <= now]
        for process in gone:
            silent = process.id not in dead
            what = f"has not renewed its lease for {process.lease_ms / 1000:g} s" if silent else "is dead"
            _log.info("process %s %s; its tasks are taken over", process.id, what)
            ran, since = self._transport.ran(process), process.renewed_at if silent else None
            reply = await self._journal.ask(ProcessLeave(process.id, since, ran, self._terms.max_crashes))
            for task in reply.poisoned:
                how = f"`dasync resume {quote(task.id)}`"
                _log.error("%s, which runs %r, is halted, %s with %s", task.id, task.function, task.reason, how)
            if not silent:  # else it may come back, and clears away by itself
                self._transport.bury(process.id)
            self._others.remove(process)
        return bool(gone)

    def tidy(self) -> None:
        """Clear away what those have left behind whom nobody buries, as they are no more in the store."""
        self._transport.tidy(self._others)

    def _silent_at(self, process: ProcessRecord) -> float:
        return self._seen[process.id][1] + process.lease_ms / 1000
