"""The simulated disk: the production store and the real SQL, on an SQLite in memory whose edges are the world's.

`SimStore` is the production `SqliteStore`; in place of aiosqlite's thread it has `SimConnection`, whose work is done at
a tick of the world: later than it was asked for, and heard of later still. In between the process may be stopped, with
or without the write lock, or die. The disk can be slow, full or failing, before or after a commit took effect; a power
loss takes away the commits that were not synced, from some point on. Pages are not torn here: the tests of power cuts
do that, on a disk of their own.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import sqlite3
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from functools import partial
from typing import Any, TypeVar, cast

from dasync.core.protocol import Command
from dasync.errors import InvariantViolated
from dasync.ports import Clock, Committed
from dasync.stores.rows import Rows
from dasync.stores.sqlite import Durability, SqliteStore, _Connection
from dasync.testing.cluster import Cluster, Process

T = TypeVar("T")
QUICK_S = (0.00005, 0.0005)  # how long a piece of work waits for the disk, and its answer for the process
SLOW_S = (0.01, 2.0)  # on a slow one
_numbers = itertools.count()


class Recorder:
    """Who hears of every batch that is asked for."""

    def asked(self, process: Process, commands: Sequence[Command]) -> object:
        """A process asks; gives what `heard` takes."""

    def took_effect(self, token: object, committed: Committed) -> None:
        """It has taken effect, whether anybody hears of it or not."""

    def heard(self, token: object, committed: Committed | None, error: BaseException | None) -> None:
        """It has the answer."""


class Disk:
    """The file that all the processes share, and what may go wrong with it."""

    def __init__(self, cluster: Cluster, *, loses: bool = False) -> None:
        self.cluster = cluster
        self.number = 0
        """What the lock file holds."""
        self.slow: set[str] = set()
        """Hosts for which it is slow."""
        self.full = False
        self.failing = 0.0
        """How often a commit fails."""
        self.spared: set[str] = set()
        """Processes for which it is neither full nor failing."""
        self.holder: Work | None = None
        """Who has the write lock."""
        self.commits = 0
        self.recorder = Recorder()
        self.after_commit: Callable[[sqlite3.Connection], None] | None = None
        self.before_work: Callable[[Work], None] | None = None
        """Called before a piece of work takes effect; it may kill."""
        self.after_work: Callable[[Work], None] | None = None
        """Called when one has taken effect and is not heard of yet; it may kill."""
        self.reached: dict[str, int] = {}
        self._loses = loses
        self._uri = f"file:/dasync-{os.getpid()}-{next(_numbers)}?vfs=memdb"
        self._anchor = sqlite3.connect(self._uri, uri=True, isolation_level=None)
        self._images: list[bytes] = []  # the file as last synced, and after each commit since
        self._waiting: deque[Work] = deque()
        self._stopped: list[Work] = []
        self.open: dict[SimConnection, None] = {}
        """The connections that are in use."""
        self._draws = cluster.draws("disk")
        cluster.on_death.append(self._died)

    def reach(self, goal: str) -> None:
        """Something has happened that should happen in some runs."""
        self.reached[goal] = self.reached.get(goal, 0) + 1

    def connect(self, process: Process) -> SimConnection:
        """A connection for one process."""
        made = SimConnection(self, process, self._uri)
        self.open[made] = None
        return made

    def lose_power(self) -> int:
        """Every process is dead by now; gives how many commits are lost."""
        for connection in list(self.open):
            self.drop(connection)
        self.holder = None
        self._waiting.clear()
        self._stopped.clear()
        if not self._images:
            return 0
        kept = self._draws.randrange(len(self._images))
        lost = len(self._images) - 1 - kept
        if lost:
            with closing(sqlite3.connect(":memory:", isolation_level=None)) as image:
                image.deserialize(self._images[kept])
                image.backup(self._anchor)
            self.reach("power: commits that were not synced are lost")
        self._images.clear()
        self.number = self._draws.choice((0, self.number))
        return lost

    def drop(self, connection: SimConnection) -> None:
        """Nobody uses it any more: what it has begun is undone."""
        self.open.pop(connection, None)
        with suppress(sqlite3.Error):
            connection.raw.rollback()
        connection.raw.close()

    def look(self, sql: str, values: Sequence[object] = ()) -> list[Any]:
        """Rows as they are at this moment, for those who watch from outside."""
        return self._anchor.execute(sql, tuple(values)).fetchall()

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """The file itself, for those who watch from outside."""
        yield self._anchor

    def close(self) -> None:
        """The end of the world."""
        for connection in list(self.open):
            self.drop(connection)
        self._anchor.close()
        self._images.clear()
        self._waiting.clear()
        self._stopped.clear()

    # -- work

    def submit(self, work: Work) -> None:
        """It is asked for."""
        self.cluster.at(self.pause(work.process), lambda: self._begin(work))

    def pause(self, process: Process) -> float:
        """How long a way to the disk, or back, takes."""
        return self._draws.uniform(*(SLOW_S if process.host in self.slow else QUICK_S))

    def _begin(self, work: Work) -> None:
        if not work.lives:
            return
        if work.process.stopped:
            self._stopped.append(work)
        elif not work.writes:
            self._do(work)
        elif self.holder is not None:
            self._waiting.append(work)
        else:
            self.holder = work
            self.cluster.at(self.pause(work.process), lambda: self._finish(work))

    def _finish(self, work: Work) -> None:
        if not work.lives:
            return  # its lock was given back as it died
        if work.process.stopped:
            self.reach("a process was stopped with the write lock")
            self._stopped.append(work)
            return
        self._do(work)
        if self.holder is work:  # one that was killed there has given it back
            self._release()

    def _release(self) -> None:
        self.holder = None
        if self._waiting:
            self._begin(self._waiting.popleft())

    def goes_on(self, process: Process) -> None:
        """After a stop."""
        mine = [work for work in self._stopped if work.process is process]
        self._stopped = [work for work in self._stopped if work.process is not process]
        for work in mine:
            again = self._finish if work is self.holder else self._begin
            self.cluster.at(0, partial(again, work))

    def _do(self, work: Work) -> None:
        connection = work.connection
        if self.before_work is not None:
            self.before_work(work)
            if not work.lives:
                return
        if work.writes:
            connection.raw.fault = "" if work.process.name in self.spared else self._fault()
        try:
            if connection not in self.open:
                raise ValueError("the connection was closed meanwhile")
            work.work(connection.raw)
        except BaseException as error:  # the asker's, whatever it is
            work.error = error
        connection.raw.fault, connection.raw.came_to = "", None
        if self.after_work is not None:
            self.after_work(work)
        self.cluster.at(self.pause(work.process), work.tell)
        connection.done()

    def _fault(self) -> str:
        if self.full:
            return "full"
        if self.failing and self._draws.random() < self.failing:
            return self._draws.choice(("before", "after"))
        return ""

    def _died(self, process: Process) -> None:
        for connection in [one for one in self.open if one.process is process]:
            self.drop(connection)
        if self.holder is not None and self.holder.process is process:
            self.reach("a process died with the write lock")
            self._release()
        self._waiting = deque(work for work in self._waiting if work.process is not process)
        self._stopped = [work for work in self._stopped if work.process is not process]

    # -- what the connections tell

    def begins(self, raw: RawConnection) -> None:
        """A transaction is about to begin."""
        if self._loses and not self._images and raw.synchronous == "NORMAL":
            self._images.append(self._anchor.serialize())

    def committed(self, raw: RawConnection) -> None:
        """A transaction has taken effect."""
        self.commits += 1
        if raw.came_to is not None:
            self.recorder.took_effect(*raw.came_to)
            raw.came_to = None
        if self._loses:
            if raw.synchronous == "FULL":
                self._images.clear()
            else:
                self._images.append(self._anchor.serialize())
        if self.after_commit is not None:
            self.after_commit(self._anchor)


class RawConnection(_Connection):
    """The store's own kind of connection, on a disk that may fail."""

    disk: Disk
    fault = ""
    came_to: tuple[object, Committed] | None = None
    """The batch that is to be committed, as its asker's token, and what it comes to."""

    def execute(self, sql: Any, parameters: Any = (), /) -> Any:
        if sql == "BEGIN IMMEDIATE":
            self.disk.begins(self)
        elif sql == "COMMIT":
            return self._commit()
        return super().execute(sql, parameters)  # type: ignore[no-untyped-call]  # as in the store

    def _commit(self) -> Any:
        fault, self.fault = self.fault, ""
        if fault in ("full", "before"):
            self.disk.reach("the disk was full" if fault == "full" else "a commit failed")
            raise failure("SQLITE_FULL" if fault == "full" else "SQLITE_IOERR_WRITE")
        made = super().execute("COMMIT")  # type: ignore[no-untyped-call]  # as in the store
        self.disk.committed(self)
        if fault == "after":
            self.disk.reach("a commit took effect and was said to have failed")
            raise failure("SQLITE_IOERR_FSYNC")
        return made


def failure(name: str) -> sqlite3.OperationalError:
    """What SQLite raises."""
    error = sqlite3.OperationalError("disk I/O error" if "IOERR" in name else "database or disk is full")
    error.sqlite_errorname = name
    return error


class Work:
    """One piece of work for the disk."""

    def __init__(
        self, connection: SimConnection, work: Callable[[sqlite3.Connection], object], future: asyncio.Future[None],
        *, writes: bool,
    ) -> None:  # fmt: skip
        self.connection = connection
        self.process = connection.process
        self.work = work
        self.writes = writes
        self.error: BaseException | None = None
        self._future = future
        self._life = self.process.life

    @property
    def lives(self) -> bool:
        """Whether the process that asked for it does."""
        return self.process.up and self.process.life == self._life

    def tell(self) -> None:
        """Its process hears of it."""
        if self.lives:
            self.process.call(self._tell)

    def _tell(self) -> None:
        if self._future.done():
            return
        if self.error is None:
            self._future.set_result(None)
        else:
            self._future.set_exception(self.error)


class SimConnection:
    """What the store has of aiosqlite: it runs a callable elsewhere, and waits."""

    def __init__(self, disk: Disk, process: Process, uri: str) -> None:
        self.process = process
        self.writes = False
        """Whether what comes next does."""
        self.raw: RawConnection = sqlite3.connect(
            uri, uri=True, isolation_level=None, factory=RawConnection, check_same_thread=False
        )
        self.raw.disk = disk
        self._disk = disk
        self._asked: deque[Work] = deque()

    async def execute(self, work: Callable[[sqlite3.Connection], object]) -> None:
        """Do `work` at some tick; canceled, it is done all the same."""
        if self not in self._disk.open:
            raise ValueError("the connection is closed")
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        writes, self.writes = self.writes, False
        self._asked.append(Work(self, work, future, writes=writes))
        if len(self._asked) == 1:
            self._disk.submit(self._asked[0])
        await future

    def done(self) -> None:
        """One piece is: a connection has one thread, which does one after the other."""
        self._asked.popleft()
        if self._asked:
            self._disk.submit(self._asked[0])

    async def close(self) -> None:
        """It is closed already, by what the store had it do."""
        self._disk.drop(self)


class SimLock:
    """The lock file. Who may write was decided before the work began."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk

    @property
    def number(self) -> int:
        """What the last holder has left here."""
        return self._disk.number

    @number.setter
    def number(self, number: int) -> None:
        self._disk.number = number

    def __enter__(self) -> SimLock:
        return self

    def __exit__(self, *_: object) -> None:
        """Whoever waits is let in when the work is over."""

    def close(self) -> None:
        """It goes with the process."""


class SimStore(SqliteStore):
    """The store of one process on the simulated disk."""

    def __init__(self, disk: Disk, process: Process, clock: Clock, durability: Durability) -> None:
        super().__init__("/simulated/store.db", clock, durability)
        self._disk = disk
        self._process = process
        self._token: object = None

    async def open(self) -> None:
        self._lock = SimLock(self._disk)  # type: ignore[assignment]  # all that is asked of one
        self._owner = os.getpid()
        await self._connected()

    async def transact(self, commands: Sequence[Command]) -> Committed:
        recorder = self._disk.recorder
        token = self._token = recorder.asked(self._process, commands)
        try:
            committed = await super().transact(commands)
        except (Exception, InvariantViolated) as error:
            recorder.heard(token, None, error)
            raise
        recorder.heard(token, committed, None)
        return committed

    async def _connect(self, lock: Any) -> Any:
        connection = self._disk.connect(self._process)
        connection.writes = True
        await connection.execute(self._prepare)
        return connection

    async def _work(self, work: Callable[[Rows], T], *, lasting: bool) -> T:
        token, connection = self._token, cast(Any, self._connection or await self._connected())
        connection.writes = True

        def watched(rows: Rows) -> T:
            done = work(rows)
            connection.raw.came_to = token, done
            return done

        return await super()._work(watched, lasting=lasting)

    def _checkpoint(self, connection: sqlite3.Connection) -> None:
        """There is no WAL."""


