"""Crashes: the disk that outlives a process, the moments at which one can die, and the death itself.

What a crash leaves is the rows as they stood between two transitions. A `MemoryDisk` that records keeps every such
moment of a life, batches cut in two as the journal might have cut them, and another life can begin from each. A
`Death` ends a life for real: its asyncio loop is frozen, or the process ends. Nothing here cleans up: no `finally`, no
callback, no commit of a dying life happens after its death.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, NoReturn, Protocol, TypeVar

from dasync.core.invariants import Snapshot
from dasync.core.protocol import Command, ProcessLeave
from dasync.ports import Around, Clock, Committed, Store
from dasync.stores.memory import MemoryRows, MemoryStore
from dasync.stores.rows import Changes, Rows, RowStore
from dasync.stores.sqlite import SqliteStore
from dasync.testing.clock import T0_MS, StillClock, VirtualLoop, under_way
from dasync.testing.leaves import Stage
from dasync.testing.schedule import Log

T = TypeVar("T")
DIED = 9
"""The exit status of a process that has died as planned."""


class Moment(NamedTuple):
    """What a crash at that moment leaves."""

    batches: int
    """How many batches were written whole."""
    commands: int
    """How many commands of the next one were written too, as if they had been a batch of their own."""
    rows: Snapshot
    now_ms: int
    log: Log
    names: Mapping[str, str]
    """Which promise is which leaf by then."""


class Death(NamedTuple):
    """When and how a life ends: after so many batches, and so many commands of the next one."""

    batches: int
    commands: int = 0
    heard: bool = False
    """Whether the process hears of the last batch, and goes on until it would write the next one."""
    leaves_process: bool = False
    """Whether the process ends, as by kill -9; else its asyncio loop is frozen."""


class Disk(Protocol):
    """What outlives a process."""

    now_ms: int
    """When the next life begins."""
    age: int
    """How much has happened on it: tells the next life from those before."""

    @property
    def log(self) -> Log:
        """Which leaves were settled on it, and in which order."""

    def wrote(self, committed: Committed, stage: Stage, now_ms: int) -> None:
        """A batch is written."""

    def store(self, clock: Clock, stage: Stage, death: Death | None) -> Store:
        """A store on it, for one life."""


class MemoryDisk:
    """A disk in memory: empty, or as it was at some moment, the process that was there being known as dead."""

    def __init__(self, moment: Moment | None = None, *, records: bool = False) -> None:
        self.rows = MemoryRows()
        self.now_ms = T0_MS if moment is None else moment.now_ms + 1
        self.log = Log() if moment is None else moment.log
        self.age = 0 if moment is None else 1
        self.records = records
        self.moments: list[Moment] = []
        """Those at which the rows had changed, where this disk records."""
        self.batches = 0
        if moment is not None:
            self.rows.write(births(moment.rows))
            self.write([ProcessLeave(dead) for dead in moment.rows.processes])

    def store(self, clock: Clock, stage: Stage, death: Death | None) -> Store:
        return _Memory(self, clock, stage, death)

    def write(self, commands: Sequence[Command]) -> None:
        """Somebody else writes, while nobody lives here."""
        twin = _Twin(self.rows, StillClock(self.now_ms))
        with suppress(StopIteration):
            twin.transact(commands).send(None)  # it never waits

    def wrote(self, committed: Committed, stage: Stage, now_ms: int) -> None:
        self.log = self.log.after(stage.settled(committed.replies), now_ms)
        self.batches += 1
        if self.records:
            self.keep(Moment(self.batches, 0, self.rows.snapshot(), now_ms, self.log, dict(stage.names)))

    def keep(self, moment: Moment) -> None:
        """A crash may happen at that moment."""
        if not self.moments or self.moments[-1].rows != moment.rows:
            self.moments.append(moment)


class FileDisk:
    """A disk that is an SQLite file; beside it stands when it was written, and which leaves were settled then."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.now_ms = T0_MS
        self.log = Log()
        self.age = 0
        self._ledger = Path(f"{path}-ledger")
        for line in self._ledger.read_text().splitlines() if self._ledger.exists() else ():
            at_ms, *names = line.split()
            self.now_ms, self.log = int(at_ms) + 1, self.log.after(names, int(at_ms))
            self.age += 1

    def store(self, clock: Clock, stage: Stage, death: Death | None) -> Store:
        return _Sqlite(self, clock, stage, death)

    def wrote(self, committed: Committed, stage: Stage, now_ms: int) -> None:
        before, self.log = self.log, self.log.after(stage.settled(committed.replies), now_ms)
        with self._ledger.open("a") as file:
            file.write(f"{now_ms} {' '.join(sorted(self.log.names - before.names))}\n")


class _Watched(RowStore):
    """A store whose batches are counted; at the appointed one its process dies."""

    def watch(self, disk: Disk, stage: Stage, death: Death | None) -> None:
        self._disk = disk
        self._stage = stage
        self._death = death
        self._batches = 0

    async def transact(self, commands: Sequence[Command]) -> Committed:
        death = self._death
        if death is not None and self._batches >= death.batches:
            if death.commands:
                await self._write(commands[: death.commands])
            await self._die(death)
        committed = await self._write(commands)
        self._batches += 1
        if death is not None and self._batches == death.batches and not (death.heard or death.commands):
            await self._die(death)
        return committed

    async def _write(self, commands: Sequence[Command]) -> Committed:
        committed = await super().transact(commands)
        self._disk.wrote(committed, self._stage, self._clock.now_ms())
        return committed

    async def _die(self, death: Death) -> NoReturn:
        if death.leaves_process:
            os._exit(DIED)
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop), "only a loop in virtual time can be frozen"
        loop.freeze()
        await loop.create_future()
        raise AssertionError("the dead do not go on")


class _Memory(_Watched, MemoryStore):
    def __init__(self, disk: MemoryDisk, clock: Clock, stage: Stage, death: Death | None) -> None:
        super().__init__(clock)
        self._rows = disk.rows
        self._memory = disk
        self.watch(disk, stage, death)

    async def _write(self, commands: Sequence[Command]) -> Committed:
        disk, now_ms = self._memory, self._clock.now_ms()
        for count in range(1, len(commands) if disk.records else 1):
            rows = MemoryRows()
            rows.write(births(disk.rows.snapshot()))
            part = await _Twin(rows, self._clock, self._turn).transact(commands[:count])
            log = disk.log.after(self._stage.settled(part.replies), now_ms)
            disk.keep(Moment(disk.batches, count, rows.snapshot(), now_ms, log, dict(self._stage.names)))
        return await super()._write(commands)


class _Twin(MemoryStore):
    """Another store on such rows; `turn` is the number of the last commit."""

    def __init__(self, rows: Rows, clock: Clock, turn: int = 0) -> None:
        super().__init__(clock)
        self._rows = rows
        self._turn = turn


class _Sqlite(_Watched, SqliteStore):
    """Its thread is one that the asyncio loop has to wait for. It writes one batch after the other: the process may
    end after each, and what was in the thread by then would be in the file, and not in what stands beside it."""

    def __init__(self, disk: FileDisk, clock: Clock, stage: Stage, death: Death | None) -> None:
        super().__init__(disk.path, clock, "process")
        self.watch(disk, stage, death)
        self._one_by_one = asyncio.Lock()

    async def transact(self, commands: Sequence[Command]) -> Committed:
        async with self._one_by_one:
            return await super().transact(commands)

    async def open(self) -> None:
        with under_way():
            await super().open()

    async def close(self) -> None:
        with under_way():
            await super().close()

    async def around(
        self, targets: tuple[str, ...], functions: tuple[tuple[str, int], ...], *, anyway: bool = False
    ) -> Around | None:
        with under_way():
            return await super().around(targets, functions, anyway=anyway)

    async def _work(self, work: Callable[[Rows], T], *, lasting: bool) -> T:
        with under_way():
            return await super()._work(work, lasting=lasting)

    async def _look(self, work: Callable[[Rows], T]) -> T:
        with under_way():
            return await super()._look(work)


def births(rows: Snapshot) -> Changes:
    """All of those rows, as one batch that makes them."""
    return Changes(
        promises_born=list(rows.promises.values()), promises_moved=[],
        tasks_born=list(rows.tasks.values()), tasks_moved=[],
        callbacks_born=list(rows.callbacks), callbacks_gone=[],
        listeners_kept=list(rows.listeners), listeners_gone=[],
        processes_kept=list(rows.processes.values()), processes_gone=[], promises_gone=[], tasks_gone=[],
    )  # fmt: skip
