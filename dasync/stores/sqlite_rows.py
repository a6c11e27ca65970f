"""Rows in SQLite: every statement of the project is in this file, and the schema in schema.sql.

Rows go in and out; no statement decides anything. Reads within a batch are bulk reads by key (`prefetch`), so
the cost of a batch hardly depends on how many commands share it. Runs in the thread of the connection.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Sequence
from contextlib import closing
from functools import cache
from typing import TypeVar
from zlib import crc32

from dasync.core import ids
from dasync.core.invariants import Snapshot
from dasync.core.model import (
    SETTLED,
    CallbackRecord,
    ListenerRecord,
    ProcessRecord,
    PromiseRecord,
    State,
    TaskRecord,
    TaskState,
)
from dasync.errors import StoreCorrupt
from dasync.ports import Backlog, Found, Search
from dasync.stores.hot import Hot
from dasync.stores.rows import Changes, Named, oldest

FEW = 16  # pending tasks that are read to see which there are
T = TypeVar("T")
SqlValue = str | int | bytes | None

_STATES = {state.value: state for state in State}
_TASK_STATES = {state.value: state for state in TaskState}
_PROMISE = (
    "id, function, version, param, target, creator, timer, timeout_at, tags, created_at, born_after, state, settled_at,"
    " value, turn, checksum"
)
_TASK = (
    "id, target, function, function_version, seed, created_at, state, version, process, python, resumed, reason,"
    " crashes, crashed_at, checksum"
)
_IN = "IN (SELECT value FROM json_each(?))"
_BEFORE = f"SELECT {_PROMISE} FROM promises WHERE id <= ? ORDER BY id DESC LIMIT 1"
_AFTER = f"SELECT {_PROMISE} FROM promises WHERE id >= ? ORDER BY id LIMIT 1"
_BESIDE = f"SELECT * FROM ({_BEFORE}) UNION ALL SELECT * FROM ({_AFTER})"
# Rows that are passed over by a column of theirs: not by one that is damaged.
_STRAY = "creator IS NULL OR (instr(id, creator || ':') != 1 AND instr(id, creator || '.') != 1)"
_SETTLED = f"({', '.join(repr(state.value) for state in sorted(SETTLED))})"
_DUE = "state = 'pending' AND timeout_at IS NOT NULL"
# From one value to the next by the index tasks_pending: DISTINCT would go through every pending task.
_WAITING_TARGETS = """
    WITH RECURSIVE targets(t) AS (
        SELECT min(target) FROM tasks WHERE state = 'pending'
        UNION ALL
        SELECT (SELECT min(target) FROM tasks WHERE state = 'pending' AND target > t) FROM targets WHERE t IS NOT NULL
    ) SELECT t FROM targets WHERE t IS NOT NULL"""
_OF = "FROM tasks WHERE state = 'pending' AND target = :target"
_KINDS = f"""
    WITH RECURSIVE names(f) AS (
        SELECT min(function) {_OF}
        UNION ALL
        SELECT (SELECT min(function) {_OF} AND function > f) FROM names WHERE f IS NOT NULL
    ), versions(f, v) AS (
        SELECT f, (SELECT min(function_version) {_OF} AND function = f) FROM names WHERE f IS NOT NULL
        UNION ALL
        SELECT f, (SELECT min(function_version) {_OF} AND function = f AND function_version > v) FROM versions
        WHERE v IS NOT NULL
    ) SELECT f, v FROM versions WHERE v IS NOT NULL"""
_OLDEST = (
    f"SELECT {', '.join(f't.{name}' for name in _TASK.split(', '))} FROM json_each(?) f CROSS JOIN tasks t"
    " WHERE t.id IN (SELECT id FROM tasks WHERE state = 'pending' AND target = ?"
    " AND function = json_extract(f.value, '$[0]') AND function_version = json_extract(f.value, '$[1]')"
    " ORDER BY created_at, id LIMIT ?)"
)
_RESTORE = "restore the store from a backup"


def checksum(record: PromiseRecord) -> int:
    """CRC-32 over the whole row: SQLite gives back flipped bits as data."""
    (
        id, function, version, param, target, creator, timer, timeout_at, tags, created_at, born_after, state,
        settled_at, value, turn,
    ) = record  # fmt: skip
    fixed = f"{id}\0{function}\0{version}\0{target}\0{creator}\0{timer}\0{timeout_at}\0{tags}\0{created_at}"
    sum = crc32(param, crc32(f"{fixed}\0{state}\0{settled_at}\0{born_after}\0{turn}".encode()))
    return sum if value is None else crc32(value, sum ^ 1)


def task_checksum(record: TaskRecord) -> int:
    """Likewise: a claim that is another one than was written could be let go on, or be lost."""
    fixed = f"{record.id}\0{record.target}\0{record.function}\0{record.function_version}\0{record.created_at}"
    held = f"\0{record.state}\0{record.version}\0{record.process}\0{record.python}\0{record.resumed}"
    told = f"\0{record.reason}\0{record.crashes}\0{record.crashed_at}"
    return crc32(record.seed, crc32((fixed + held + told).encode()))


def _promise(row: Sequence[object]) -> PromiseRecord:
    try:
        # The checksum vouches for the types.
        record = PromiseRecord._make((*row[:6], row[6] == 1, *row[7:11], _STATES[str(row[11])], *row[12:15]))
        sound = checksum(record) == row[15]
    except (KeyError, TypeError, ValueError, AttributeError):
        sound = False
        record = None
    if not sound or record is None:
        raise StoreCorrupt(f"promise {row[0]!r}: the row does not match its checksum; {_RESTORE}")
    return record


def _promise_row(record: PromiseRecord) -> tuple[SqlValue, ...]:
    return (*record[:11], str(record.state), *record[12:], checksum(record))


def _task(row: Sequence[object]) -> TaskRecord:
    try:
        record = TaskRecord._make((*row[:6], _TASK_STATES[str(row[6])], *row[7:10], row[10] == 1, *row[11:14]))
        sound = task_checksum(record) == row[14]
    except (KeyError, TypeError, ValueError, AttributeError):
        sound = False
        record = None
    if not sound or record is None:
        raise StoreCorrupt(f"task {row[0]!r}: the row does not match its checksum; {_RESTORE}")
    return record


def _listener(row: Sequence[object]) -> ListenerRecord:
    return ListenerRecord(str(row[0]), str(row[1]), row[2] == 1)


def _task_state(id: object, stored: object) -> TaskState:
    state = _TASK_STATES.get(str(stored))
    if state is None:
        raise StoreCorrupt(f"task {id!r}: unknown state {stored!r}; {_RESTORE}")
    return state


def _task_row(record: TaskRecord) -> tuple[SqlValue, ...]:
    return (*record[:6], str(record.state), *record[7:], task_checksum(record))


class SqliteRows:
    """The tables of one connection, for one transaction."""

    def __init__(self, connection: sqlite3.Connection, hot: Hot | None = None) -> None:
        self._connection = connection
        self._hot = hot or Hot()
        self._promises: dict[str, PromiseRecord | None] = {}
        self._tasks: dict[str, TaskRecord | None] = {}
        self._few: dict[tuple[str, ...], list[TaskRecord] | None] = {}
        self._callbacks: dict[str, list[CallbackRecord]] = {}
        self._listeners: dict[str, list[ListenerRecord]] = {}

    def _all(self, sql: str, *values: SqlValue) -> list[Sequence[object]]:
        return self._connection.execute(sql, values).fetchall()

    # -- what a batch reads

    def prefetch(self, named: Named) -> None:
        """Read what the batch names, each table once. Good for this transaction only."""
        hot = self._hot
        self._promises = {id: hot.promises.get(id) for id in named.promises}
        self._tasks = {id: hot.tasks.get(id) for id in named.tasks}
        if cold := [id for id, record in self._promises.items() if record is None]:
            rows = self._all(f"SELECT {_PROMISE} FROM promises WHERE id {_in(cold)}", _key(cold))
            self._promises.update((record.id, record) for record in map(_promise, rows))
            if len(rows) < len(cold):  # what is born under a claim was looked for when its task was acquired
                self._check_gaps(id for id in cold if self._promises[id] is None and id not in named.born)
        if cold := [id for id, task in self._tasks.items() if task is None]:
            rows = self._all(f"SELECT {_TASK} FROM tasks WHERE id {_in(cold)}", _key(cold))
            for task in map(_task, rows):
                self._tasks[task.id] = task
                if task.state is TaskState.ACQUIRED and (promise := self._promises.get(task.id)) is not None:
                    hot.tasks[task.id], hot.promises[task.id] = task, promise
            for id in cold:
                self._check_claim(id)
        waited = [id for id in named.settling if self._promises.get(id) is not None]  # others nobody can wait for
        self._callbacks = {id: [] for id in waited}
        self._listeners = {id: [] for id in waited}
        if waited:
            for row in self._all(f"SELECT * FROM callbacks WHERE awaited {_in(waited)}", _key(waited)):
                _of(self._callbacks, row).append(CallbackRecord(str(row[0]), str(row[1])))
            for row in self._all(f"SELECT * FROM listeners WHERE promise {_in(waited)}", _key(waited)):
                _of(self._listeners, row).append(_listener(row))
            for id in waited:  # sorted here, where it is a few: a statement that sorts costs five times as much
                self._callbacks[id].sort()
                self._listeners[id].sort()

    def _check_gaps(self, missing: Iterable[str]) -> None:
        """There is no such promise; or a bit of its key has flipped, and it is where it was but sorts elsewhere.

        Then the search for it has ended beside it, as has one that was led astray by it: its neighbors tell. Raises
        `StoreCorrupt`.
        """
        for id in missing:
            for row in self._all(_BESIDE, id, id):
                _promise(row)

    def _between(self, bounds: tuple[str, str], where: str = "1", *values: SqlValue) -> list[PromiseRecord]:
        """The promises between two ids. What stands before and behind them is looked at too: it may belong to them."""
        low, high = bounds
        for row in self._all(_BEFORE, low):
            _promise(row)
        sql = f"SELECT {_PROMISE} FROM promises WHERE id > ? AND ({where} OR id >= ?) ORDER BY id"
        found = []
        with closing(self._connection.execute(sql, (low, *values, high))) as rows:
            for row in rows:
                record = _promise(row)
                if record.id >= high:
                    break
                found.append(record)
        return found

    def promise(self, id: str) -> PromiseRecord | None:
        if id not in self._promises:
            rows = self._all(f"SELECT {_PROMISE} FROM promises WHERE id = ?", id)
            self._promises[id] = _promise(rows[0]) if rows else None
            if not rows:
                self._check_gaps([id])
        return self._promises[id]

    def task(self, id: str) -> TaskRecord | None:
        if id not in self._tasks:
            unborn = id in self._promises and self._promises[id] is None  # and a task is born with its promise
            rows = [] if unborn else self._all(f"SELECT {_TASK} FROM tasks WHERE id = ?", id)
            self._tasks[id] = _task(rows[0]) if rows else None
            self._check_claim(id)
        return self._tasks[id]

    def _check_claim(self, id: str) -> None:
        """A promise with a target and its task come and go together. Raises `StoreCorrupt`."""
        promise, task = self._promises.get(id), self._tasks[id]
        if id in self._promises and (task is None) != (promise is None or promise.target is None):
            raise StoreCorrupt(f"{'promise' if task else 'task'} {id!r}: the row is not to be found; {_RESTORE}")

    def process(self, id: str) -> ProcessRecord | None:
        if id in self._hot.processes:
            return self._hot.processes[id]
        rows = self._all("SELECT * FROM processes WHERE id = ?", id)
        if not rows:
            return None
        process = self._hot.processes[id] = ProcessRecord._make(rows[0])
        return process

    def callbacks(self, awaited: str) -> Sequence[CallbackRecord]:
        if awaited not in self._callbacks:
            rows = self._all("SELECT awaited, awaiter FROM callbacks WHERE awaited = ? ORDER BY awaiter", awaited)
            self._callbacks[awaited] = [CallbackRecord(str(row[0]), str(row[1])) for row in rows]
        return self._callbacks[awaited]

    def listeners(self, promise: str) -> Sequence[ListenerRecord]:
        if promise not in self._listeners:
            sql = "SELECT * FROM listeners WHERE promise = ? ORDER BY process"
            self._listeners[promise] = [*map(_listener, self._all(sql, promise))]
        return self._listeners[promise]

    def children(self, creator: str) -> Sequence[PromiseRecord]:
        found = self._between(ids.subtree(creator), f"creator = ? OR {_STRAY}", creator)
        return [record for record in found if record.creator == creator]

    def below(self, id: str) -> Sequence[PromiseRecord]:
        return self._between(ids.subtree(id), f"state NOT IN {_SETTLED}")

    def under(self, id: str) -> Sequence[PromiseRecord]:
        bounds = ids.subtree(id)
        found = self._between(bounds)
        # Whoever asks for all of these asks for all that hangs on them: it is read in one go too.
        self._promises.update((record.id, record) for record in found)
        self._listeners.update((record.id, []) for record in found)
        self._callbacks.update((record.id, []) for record in found)
        for row in self._all(f"SELECT {_TASK} FROM tasks WHERE id > ? AND id < ?", *bounds):
            self._tasks[str(row[0])] = _task(row)
        for row in self._all("SELECT * FROM callbacks WHERE awaited > ? AND awaited < ? ORDER BY 1, 2", *bounds):
            _of(self._callbacks, row).append(CallbackRecord(str(row[0]), str(row[1])))
        for row in self._all("SELECT * FROM listeners WHERE promise > ? AND promise < ? ORDER BY 1, 2", *bounds):
            self._listeners.setdefault(str(row[0]), []).append(_listener(row))  # news may outlive its promise
        return found

    def held(self, process: str) -> Sequence[TaskRecord]:
        return [_task(row) for row in self._all(f"SELECT {_TASK} FROM tasks WHERE process = ? ORDER BY id", process)]

    def holding(self, process: str) -> tuple[int, int]:
        rows = self._all("SELECT count(*), coalesce(sum(version), 0) FROM tasks WHERE process = ?", process)
        return int(str(rows[0][0])), int(str(rows[0][1]))

    def listening(self, process: str) -> Sequence[ListenerRecord]:
        return [*map(_listener, self._all("SELECT * FROM listeners WHERE process = ? ORDER BY promise", process))]

    def news(self, process: str) -> Sequence[ListenerRecord]:
        sql = "SELECT * FROM listeners WHERE process = ? AND fired = 1 ORDER BY promise"
        return [*map(_listener, self._all(sql, process))]

    def _pending(self, targets: tuple[str, ...]) -> list[TaskRecord] | None:
        """The pending tasks of those targets, if they are few: then one look tells all. None: they are many."""
        if targets not in self._few:
            sql = f"SELECT {_TASK} FROM tasks WHERE state = 'pending' AND target {_IN} LIMIT {FEW + 1}"
            found = [_task(row) for row in self._all(sql, json.dumps(targets))]
            self._few[targets] = found if len(found) <= FEW else None
        return self._few[targets]

    def kinds(self, targets: tuple[str, ...]) -> Sequence[tuple[str, int]]:
        if (few := self._pending(targets)) is not None:
            return sorted({(task.function, task.function_version) for task in few})
        found = [row for target in targets for row in self._connection.execute(_KINDS, {"target": target})]
        return sorted({(str(row[0]), int(str(row[1]))) for row in found})

    def acquirable(
        self, targets: tuple[str, ...], functions: tuple[tuple[str, int], ...], limit: int
    ) -> Sequence[TaskRecord]:
        if (few := self._pending(targets)) is not None:
            found = [task for task in few if (task.function, task.function_version) in functions]
        else:
            # A target at a time: its index has the order already, where a sort over several costs ten times as much.
            runnable = json.dumps(functions)
            found = [_task(row) for target in targets for row in self._all(_OLDEST, runnable, target, limit)]
        self._tasks.update((task.id, task) for task in found)
        return oldest(found, functions, limit)

    def due(self, now: int, limit: int) -> Sequence[PromiseRecord]:
        sql = f"SELECT {_PROMISE} FROM promises WHERE {_DUE} AND timeout_at <= ? ORDER BY timeout_at, id LIMIT ?"
        return [_promise(row) for row in self._all(sql, now, limit)]

    def latest_turn(self, id: str) -> int:
        rows = self._all("SELECT max(turn) FROM promises WHERE id > ? AND id < ?", *ids.subtree(id))
        return int(str(rows[0][0] or 0))

    def processes(self) -> list[ProcessRecord]:
        rows = self._all("SELECT * FROM processes ORDER BY id")
        return [ProcessRecord._make(row) for row in rows]

    # -- what a batch writes

    def write(self, changes: Changes) -> None:
        """Every changed row, a statement per table and kind of change."""
        self._hot.wrote(changes, self._promises)
        c = changes
        self._insert("promises", [_promise_row(r) for r in c.promises_born])
        self._many(
            "UPDATE promises SET state = ?, settled_at = ?, value = ?, turn = ?, checksum = ? WHERE id = ?",
            [(str(r.state), *r[12:], checksum(r), r.id) for r in c.promises_moved],
        )
        self._remove("promises", c.promises_gone)
        self._remove("tasks", c.tasks_gone)
        self._insert("tasks", [_task_row(r) for r in c.tasks_born])
        self._many(
            "UPDATE tasks SET state = ?, version = ?, process = ?, python = ?, resumed = ?, reason = ?, crashes = ?,"
            " crashed_at = ?, checksum = ? WHERE id = ?",
            [(str(r.state), *r[7:], task_checksum(r), r.id) for r in c.tasks_moved],
        )
        self._many("INSERT INTO callbacks VALUES (?, ?)", c.callbacks_born)
        self._many("DELETE FROM callbacks WHERE awaited = ? AND awaiter = ?", c.callbacks_gone)
        self._many("INSERT OR REPLACE INTO listeners VALUES (?, ?, ?)", c.listeners_kept)
        self._many("DELETE FROM listeners WHERE promise = ? AND process = ?", [r[:2] for r in c.listeners_gone])
        self._many("INSERT OR REPLACE INTO processes VALUES (?, ?, ?, ?, ?, ?, ?)", c.processes_kept)
        self._many("DELETE FROM processes WHERE id = ?", [(r.id,) for r in c.processes_gone])

    def _insert(self, table: str, rows: Sequence[tuple[SqlValue, ...]]) -> None:
        """Insert `rows`, many with one statement.

        `executemany` lets go of the GIL for each row and then queues for it against the asyncio loop's thread: with
        both threads busy that costs more than the rows do.
        """
        at = 0
        for size in (100, 10, 1):
            while len(rows) - at >= size:
                values = [value for row in rows[at : at + size] for value in row]
                self._connection.execute(_insertion(table, len(rows[at]), size), values)
                at += size

    def _remove(self, table: str, rows: Sequence[PromiseRecord] | Sequence[TaskRecord]) -> None:
        if rows:
            self._connection.execute(f"DELETE FROM {table} WHERE id {_IN}", (json.dumps([row.id for row in rows]),))

    def _many(self, sql: str, rows: Sequence[tuple[SqlValue, ...]]) -> None:
        if rows:
            self._connection.executemany(sql, rows)

    # -- what people and pages ask

    def search(self, search: Search) -> list[Found]:
        where, values = ["p.id > ?"], [search.cursor]
        if search.state is not None:
            where.append("p.state = ?")
            values.append(search.state.value)
        if search.function is not None:
            where.append("p.function = ?")
            values.append(search.function)
        if search.id_prefix:
            where.append("p.id >= ? AND substr(p.id, 1, length(?)) = ?")
            values += [search.id_prefix] * 3
        if search.roots:
            where.append("instr(p.id, ':') = 0")
        if search.task_state is not None:
            where.append("t.state = ?")
            values.append(search.task_state.value)
        for key, value in (search.tags or {}).items():
            where.append("p.tags != '' AND (SELECT value FROM json_each(p.tags) WHERE key = ?) = ?")
            values += [key, value]
        columns = ", ".join(f"p.{name}" for name in _PROMISE.split(", "))
        columns += ", " + ", ".join(f"t.{name}" for name in _TASK.split(", "))
        sql = f"SELECT {columns} FROM promises p LEFT JOIN tasks t ON t.id = p.id WHERE {' AND '.join(where)}"
        rows = self._all(f"{sql} ORDER BY p.id LIMIT ?", *values, search.limit)
        return [Found(_promise(row[:16]), None if row[16] is None else _task(row[16:])) for row in rows]

    def subtree(self, id: str) -> Snapshot:
        span, bounds = "({0} = ? OR ({0} > ? AND {0} < ?))", (id, *ids.subtree(id))
        return self._snapshot(span, bounds)

    def snapshot(self) -> Snapshot:
        return self._snapshot("1", ())

    def _snapshot(self, span: str, bounds: tuple[SqlValue, ...]) -> Snapshot:
        at = span.format
        kept = [_promise(row) for row in self._all(f"SELECT {_PROMISE} FROM promises WHERE {at('id')}", *bounds)]
        claims = [_task(row) for row in self._all(f"SELECT {_TASK} FROM tasks WHERE {at('id')}", *bounds)]
        waits = self._all(
            f"SELECT awaited, awaiter FROM callbacks WHERE {at('awaited')} OR {at('awaiter')}", *bounds, *bounds
        )
        hears = self._all(f"SELECT promise, process, fired FROM listeners WHERE {at('promise')}", *bounds)
        return Snapshot(
            {record.id: record for record in kept},
            {record.id: record for record in claims},
            frozenset(CallbackRecord(str(row[0]), str(row[1])) for row in waits),
            frozenset(_listener(row) for row in hears),
            {process.id: process for process in self.processes()},
        )

    def next_due(self) -> int | None:
        at = self._all(f"SELECT min(timeout_at) FROM promises WHERE {_DUE}")[0][0]
        return at if isinstance(at, int) else None

    def waiting_targets(self) -> list[str]:
        return [str(row[0]) for row in self._all(_WAITING_TARGETS)]

    def backlog(self) -> list[Backlog]:
        kind = "state, target, function, function_version, process, version > 0"
        rows = self._all(
            f"SELECT {kind}, count(*), min(created_at), id, reason FROM tasks"  # the last two are of the row of the min
            f" WHERE state != 'fulfilled' GROUP BY {kind} ORDER BY {kind}"
        )
        return [Backlog._make((_task_state(row[8], row[0]), *row[1:5], row[5] == 1, *row[6:])) for row in rows]


@cache
def _insertion(table: str, columns: int, rows: int) -> str:
    one = f"({', '.join('?' * columns)})"
    return f"INSERT INTO {table} VALUES {', '.join([one] * rows)}"


def _of(found: dict[str, list[T]], row: Sequence[object]) -> list[T]:
    """Those of the promise that is the row's first column, one of those that were asked for."""
    if (those := found.get(str(row[0]))) is None:
        raise StoreCorrupt(f"what waits for {row[0]!r} is listed among what waits for others; {_RESTORE}")
    return those


def _in(ids: Sequence[str]) -> str:
    return "= ?" if len(ids) == 1 else _IN


def _key(ids: Sequence[str]) -> str:
    return ids[0] if len(ids) == 1 else json.dumps(ids)
