"""One SQLite file, shared by every process that opens it: connections, transactions, durability.

aiosqlite keeps the connection's thread; a whole batch goes there in one hop and commits once. Writers and
checkpoints queue on one file lock (`filelock.py` says why). Statements live in `sqlite_rows.py`, the law in
`core/machine.py`; this file decides only whether a file is ours and what an SQLite error means.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sqlite3
import struct
from collections.abc import Callable
from contextlib import suppress
from importlib.resources import files
from typing import Literal, cast

import aiosqlite

from dasync.errors import StoreCorrupt, StoreError, StoreUnavailable, StoreVersion
from dasync.ports import Around, Clock
from dasync.stores.filelock import FileLock
from dasync.stores.hot import Hot
from dasync.stores.patience import Patience
from dasync.stores.rows import Rows, RowStore, T, around
from dasync.stores.sqlite_rows import SqliteRows

Durability = Literal["power", "process"]

APPLICATION_ID = 1684108153  # "dasy", as schema.sql sets it
SCHEMA_VERSION = 1
OLDEST_SQLITE = (3, 40, 0)  # the oldest one that the tests have run on
BUSY_TIMEOUT_S = 5.0  # for programs that write without our lock, such as the sqlite3 shell
CHECKPOINT_BYTES = 8 * 2**20  # of WAL: a short WAL keeps reads fast and bit rot in it rare; each cut stops writers
# Readers who come and go without a gap would keep the WAL for ever: from this length on they are waited for, but not
# for one that does not end.
PATIENT_BYTES = 16 * 2**20
# Several times, briefly: SQLite waits for the place of a reader in its table, which later readers may take as well.
PATIENT_TRIES, PATIENCE_MS = 5, 50
# Between two looks at how long the WAL is, in time and in commits of this process: it grows by a few megabytes then.
LOOK_S, LOOK_COMMITS = 0.01, 16
CHECKED_BYTES = 64 * 2**20  # of a file whose pages are checked whenever it is opened, which takes 1.5 ms a MiB
_HEADER_BYTES = 100
_MAGIC = b"SQLite format 3\x00"
_JOURNAL_MAGIC = bytes.fromhex("d9d505f920a163d7")
_SYNCHRONOUS = {"power": "FULL", "process": "NORMAL"}
# With these the file may be healthy and the moment wrong; every other sqlite3.DatabaseError is damage.
_PASSING = (
    "FULL", "IOERR", "CANTOPEN", "READONLY", "BUSY", "LOCKED", "PROTOCOL", "PERM", "AUTH", "NOMEM", "INTERRUPT",
    "NOLFS",
)  # fmt: skip
# Of a hop: SQLite's, one that quotes damaged text and so cannot be read, the lock file's, no memory.
_FAILURES = (sqlite3.Error, UnicodeDecodeError, OSError, MemoryError)
_log = logging.getLogger("dasync.store")


class _Connection(sqlite3.Connection):
    """Runs a callable in the connection's thread: aiosqlite's own way of handing work there, one hop for all of it."""

    hot: Hot
    """What this very connection knows: after a failure the next one begins anew."""
    synchronous: str
    """How it syncs at present."""

    def sync(self, level: str) -> None:
        """Sync at that level from now on; a commit that is synced syncs those before it as well."""
        if level != self.synchronous:
            super().execute(f"PRAGMA synchronous = {level}")
            self.synchronous = level

    def execute(self, sql, parameters=(), /):  # type: ignore[no-untyped-def]  # sqlite3's signature, widened by callables
        return sql(self) if callable(sql) else super().execute(sql, parameters)


class SqliteStore(RowStore):
    """A store in the SQLite file at `path`; made when it does not exist.

    `durability="power"`: what was acknowledged survives power loss (synchronous=FULL); `"process"`: it
    survives the death of any process, however sudden (synchronous=NORMAL).
    """

    def __init__(self, path: str, clock: Clock, durability: Durability = "power") -> None:
        super().__init__(clock)
        if durability not in _SYNCHRONOUS:
            raise ValueError(f"durability is 'power' or 'process', not {durability!r}")
        self.path = os.path.realpath(path)  # as SQLite names its other files, whatever links there are
        self._durability = durability
        self._connection: aiosqlite.Connection | None = None
        self._connecting = asyncio.Lock()
        self._lock: FileLock | None = None
        self._patience = Patience(self.path)
        self._owner = 0
        self._wal_bytes = 0  # as seen last
        self._looked_at, self._unlooked = -LOOK_S, 0
        self._checkpoint_at, self._patient_at = CHECKPOINT_BYTES, PATIENT_BYTES
        self._data_version = -1

    async def open(self) -> None:
        if sqlite3.sqlite_version_info < OLDEST_SQLITE:
            raise StoreUnavailable(f"SQLite {sqlite3.sqlite_version} is too old: Python needs one from 3.40 on")
        recognize(self.path)
        try:
            self._lock = FileLock.of(f"{self.path}-lock")
        except OSError as error:
            raise StoreUnavailable(f"{self.path}: cannot make its lock file: {error}") from error
        self._owner = os.getpid()
        try:
            await self._connected()
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        if self._owner != os.getpid():  # never opened, or in a forked child: then it is the parent's to close
            return
        self._patience.close()
        async with self._connecting:  # one that is being made belongs to it as well
            connection, lock, self._connection, self._lock = self._connection, self._lock, None, None
            if lock is not None:
                try:
                    if connection is not None:
                        await _let_go(connection, lock)
                finally:
                    lock.close()

    async def around(
        self, targets: tuple[str, ...], functions: tuple[tuple[str, int], ...], *, anyway: bool = False
    ) -> Around | None:
        def look(connection: sqlite3.Connection) -> Around | None:
            version = connection.execute("PRAGMA data_version").fetchone()[0]
            before, self._data_version = self._data_version, version
            if version == before and not anyway:
                return None
            changed = version != before
            return _reading(connection, lambda rows: around(rows, targets, functions, changed=changed, anyway=anyway))

        return await self._hop(look)

    async def _work(self, work: Callable[[Rows], T], *, lasting: bool) -> T:
        return await self._hop(lambda connection: self._transaction(connection, work, lasting=lasting))

    async def _look(self, work: Callable[[Rows], T]) -> T:
        return await self._hop(lambda connection: _reading(connection, work))

    # -- in the connection's thread

    def _next_turn(self, now: int) -> int:
        lock = self._held()
        self._turn = max(self._turn, lock.number)
        lock.number = turn = super()._next_turn(now)
        return turn

    def _held(self) -> FileLock:
        if self._lock is None:
            raise StoreUnavailable(f"{self.path}: the store is closed")
        return self._lock

    def _transaction(self, connection: sqlite3.Connection, work: Callable[[Rows], T], *, lasting: bool) -> T:
        hot = cast(_Connection, connection).hot
        cast(_Connection, connection).sync(_SYNCHRONOUS[self._durability if lasting else "process"])
        with self._held():
            connection.execute("BEGIN IMMEDIATE")
            try:
                hot.begin(connection.execute("PRAGMA data_version").fetchone()[0])
                result = work(SqliteRows(connection, hot))
                connection.execute("COMMIT")
            except BaseException:
                hot.clear()
                if connection.in_transaction:
                    with suppress(sqlite3.Error):
                        connection.execute("ROLLBACK")
                raise
            self._checkpoint(connection)
        return result

    def _checkpoint(self, connection: sqlite3.Connection) -> None:
        """Move the WAL into the file and cut it to nothing, when it is long and nobody is reading from it."""
        now_s, self._unlooked = self._clock.monotonic(), self._unlooked + 1
        if now_s < self._looked_at + LOOK_S and self._unlooked < LOOK_COMMITS:
            return
        self._looked_at, self._unlooked = now_s, 0
        try:
            before, size = self._wal_bytes, os.stat(f"{self.path}-wal").st_size
            self._wal_bytes = size
            if size < before:  # somebody has cut it
                self._checkpoint_at, self._patient_at = CHECKPOINT_BYTES, PATIENT_BYTES
            if size <= self._checkpoint_at:
                return
            patient = size > self._patient_at  # else a reader may keep the WAL, not the writers' queue
            connection.execute(f"PRAGMA busy_timeout = {PATIENCE_MS if patient else 0}")
            try:
                busy, tries = True, PATIENT_TRIES if patient else 1
                while busy and tries:
                    busy, tries = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0] != 0, tries - 1
            finally:
                connection.execute(f"PRAGMA busy_timeout = {round(BUSY_TIMEOUT_S * 1000)}")
            self._checkpoint_at = (size if busy else 0) + CHECKPOINT_BYTES
            if not busy:
                self._patient_at = PATIENT_BYTES
            elif patient:
                self._patient_at = size * 3 // 2  # ever more seldom, for the sake of those who write
        except (OSError, sqlite3.Error) as error:  # the commit before it stands; a later one tries again
            _log.warning("%s: checkpoint failed: %s", self.path, error)

    def _prepare(self, connection: sqlite3.Connection) -> None:
        """Make or check the schema, then set what holds for this connection."""
        _check_version(self.path, connection.execute("PRAGMA user_version").fetchone()[0])  # the WAL may be newer
        if connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0:
            # Journal mode DELETE until the schema stands: it puts the header, our mark, into the file itself.
            script = files("dasync.stores").joinpath("schema.sql").read_text("utf-8")
            connection.executescript(f"BEGIN IMMEDIATE;\n{script}\nCOMMIT;")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA wal_autocheckpoint = 0")
        connection.execute("SELECT count(*) FROM promises").fetchone()
        fresh = cast(_Connection, connection)
        fresh.hot, fresh.synchronous = Hot(), ""
        fresh.sync(_SYNCHRONOUS[self._durability])

    def _check_pages(self, connection: sqlite3.Connection) -> None:
        """SQLite takes a page's own data on trust: what a flipped bit there hides is as if it had never been."""
        if os.path.getsize(self.path) <= CHECKED_BYTES:
            found = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
            if found != "ok":
                raise sqlite3.DatabaseError(found)

    # -- hops

    async def _connected(self) -> aiosqlite.Connection:
        """The connection, fit for use; after an abandoned one a new one, which all who wait for it share."""
        async with self._connecting:
            lock = self._held()
            if self._connection is None:
                try:
                    self._connection = await self._connect(lock)
                except _FAILURES as error:
                    raise explain(self.path, error) from error
            return self._connection

    async def _connect(self, lock: FileLock) -> aiosqlite.Connection:
        connection = await aiosqlite.connect(
            self.path, timeout=BUSY_TIMEOUT_S, isolation_level=None, factory=_Connection
        )
        try:
            with self._patience:
                await connection.execute(_locked(lock, self._prepare))
                await connection.execute(self._check_pages)
        except BaseException:
            await _let_go(connection, lock)
            raise
        return connection

    async def _hop(self, work: Callable[[sqlite3.Connection], T]) -> T:
        if self._owner != os.getpid():
            raise StoreUnavailable(f"{self.path}: opened before a fork; open the store in the child process itself")
        connection = self._connection or await self._connected()
        results: list[T] = []

        def keep(connection: sqlite3.Connection) -> None:
            results.append(work(connection))

        try:
            with self._patience:
                await connection.execute(keep)
        except _FAILURES as error:
            if "IOERR" in _name(error):
                await self._abandon(connection)
            raise explain(self.path, error) from error
        except ValueError as error:
            if connection is self._connection:
                raise
            raise StoreUnavailable(f"{self.path}: the store was closed, or its connection lost") from error
        return results[0]

    async def _abandon(self, connection: aiosqlite.Connection) -> None:
        """After a failed read, write or sync the handle is not to be trusted: the next hop opens a new one."""
        if connection is self._connection and self._lock is not None:
            self._connection = None
            await _let_go(connection, self._lock)


def recognize(path: str) -> None:
    """Say whether `path` may be opened as a store, by its header alone: nothing is touched. Raises `StoreError`."""
    folder = os.path.dirname(path)
    if not os.path.isdir(folder):
        raise StoreUnavailable(f"{path}: the folder {folder} does not exist; create it or name another path")
    if os.path.isdir(path):
        raise StoreUnavailable(f"{path} is a folder; name a file")
    try:
        header = _header(path)
        read_only = os.stat(path).st_mode & 0o222 == 0 or not os.access(path, os.W_OK)
    except FileNotFoundError:
        if not os.access(folder, os.W_OK):
            raise StoreUnavailable(f"{path}: the folder {folder} cannot be written") from None
        return
    except OSError as error:
        raise StoreUnavailable(f"{path}: {error}") from error
    if header:
        _recognize_header(path, header)
    if read_only:
        raise StoreUnavailable(f"{path} is read-only; make it writable or name another path")


def schema_version(path: str) -> int:
    """The version of its schema, by its header."""
    return int(struct.unpack_from(">I", _header(path), 60)[0])


def _header(path: str) -> bytes:
    path = os.path.realpath(path)
    return FileLock.head(f"{path}-lock", path, _HEADER_BYTES)


def _recognize_header(path: str, header: bytes) -> None:
    if len(header) < _HEADER_BYTES or not header.startswith(_MAGIC):
        if _is_being_made(path):
            return
        raise StoreCorrupt(f"{path} is not a dasync store: it is no SQLite file, or its header is damaged")
    (page_size,) = struct.unpack_from(">H", header, 16)
    pages, version, mark = (struct.unpack_from(">I", header, at)[0] for at in (28, 60, 68))
    if mark != APPLICATION_ID:
        raise StoreCorrupt(f"{path} is not a dasync store: the SQLite file belongs to another program")
    _check_version(path, version)
    # Beside a journal somebody is at work on it, or died there and SQLite repairs it. The size is asked last.
    at_work = any(os.path.exists(f"{path}-{kind}") for kind in ("wal", "journal"))
    size = os.path.getsize(path)
    if not at_work and size < pages * (65_536 if page_size == 1 else page_size):
        raise StoreCorrupt(f"{path} is cut short: {size} bytes of {pages} pages; restore it from a backup")


def _is_being_made(path: str) -> bool:
    """Whether its first transaction is under way, or was when its maker died: SQLite makes it empty again then."""
    try:
        with open(f"{path}-journal", "rb") as file:
            magic, _, _, pages = struct.unpack(">8sIII", file.read(20))
    except (OSError, struct.error):
        return False
    return bool(magic == _JOURNAL_MAGIC and pages == 0)


def _check_version(path: str, version: int) -> None:
    if version > SCHEMA_VERSION:
        raise StoreVersion(
            f"{path} has schema version {version}, this dasync knows {SCHEMA_VERSION}: install a newer dasync"
        )


def _name(error: Exception) -> str:
    return getattr(error, "sqlite_errorname", None) or ""


def explain(path: str, error: Exception) -> StoreError:
    """What a failure means for a caller."""
    name = _name(error)
    if isinstance(error, OSError | MemoryError):
        return StoreUnavailable(f"{path}: {str(error) or 'out of memory'}")
    if isinstance(error, sqlite3.ProgrammingError | sqlite3.InterfaceError):
        return StoreError(f"{path}: {error}")
    if any(word in name for word in _PASSING):
        hint = {
            "FULL": "the disk is full: free some space", "READONLY": "the file cannot be written",
            "PROTOCOL": "somebody was stopped in the middle of a checkpoint, which holds up whoever reads",
        }  # fmt: skip
        why = next((text for word, text in hint.items() if word in name), str(error))
        return StoreUnavailable(f"{path}: {why} ({name})")
    return StoreCorrupt(f"{path} is damaged ({error}); restore it from a backup")


def _reading(connection: sqlite3.Connection, work: Callable[[Rows], T]) -> T:
    connection.execute("BEGIN")
    try:
        return work(SqliteRows(connection))
    finally:
        if connection.in_transaction:  # else SQLite has ended it, by the error that is under way
            connection.execute("ROLLBACK")


async def _let_go(connection: aiosqlite.Connection, lock: FileLock) -> None:
    """Close it. The last connection checkpoints as it closes, which must not race with another's commit."""
    try:
        with suppress(*_FAILURES, ValueError):
            await connection.execute(_locked(lock, sqlite3.Connection.close))
    finally:
        with suppress(sqlite3.Error, ValueError):
            await connection.close()


def _locked(lock: FileLock, work: Callable[[sqlite3.Connection], None]) -> Callable[[sqlite3.Connection], None]:
    def run(connection: sqlite3.Connection) -> None:
        with lock:
            work(connection)

    return run
