"""Rows in SQLite: every statement of the project is in this file, and the schema in schema.sql.

Rows go in and out; no statement decides anything. Reads within a batch are bulk reads by key (`prefetch`), so
the cost of a batch hardly depends on how many commands share it. Runs in the thread of the connection.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from functools import cache
from zlib import crc32

from dasync.core import ids
from dasync.core.invariants import Snapshot
from dasync.core.model import (
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
from dasync.stores.rows import Changes

HOT_TASKS = 10_000  # more than run at a time; beyond it everything is forgotten and read again
SqlValue = str | int | bytes | None

_STATES = {state.value: state for state in State}
_TASK_STATES = {state.value: state for state in TaskState}
_PROMISE = (
    "id, function, version, param, target, creator, timer, timeout_at, tags, created_at, state, settled_at, value,"
    " checksum"
)
_TASK = "id, target, function, function_version, seed, created_at, state, version, process, python, resumed"
_IN = "IN (SELECT value FROM json_each(?))"
_DUE = "state = 'pending' AND timeout_at IS NOT NULL"


def checksum(record: PromiseRecord) -> int:
    """CRC-32 over the whole row: SQLite gives back flipped bits as data."""
    head = f"{record.id}\0{record.function}\0{record.version}\0{record.target}\0{record.creator}\0{record.timer}"
    tail = f"\0{record.timeout_at}\0{record.tags}\0{record.created_at}\0{record.state.value}\0{record.settled_at}"
    sum = crc32(record.param, crc32((head + tail).encode()))
    return sum if record.value is None else crc32(record.value, sum ^ 1)


def _promise(row: Sequence[object]) -> PromiseRecord:
    try:
        id, function, version, param, target, creator, timer, timeout_at, tags, created_at, state, at, value, sum = row
        birth = (id, function, version, param, target, creator, timer == 1, timeout_at, tags, created_at)
        # The checksum below vouches for the types.
        record = PromiseRecord._make((*birth, _STATES[str(state)], at, value))
        sound = checksum(record) == sum
    except (KeyError, TypeError, ValueError, AttributeError):
        sound = False
        record = None
    if not sound or record is None:
        raise StoreCorrupt(f"promise {row[0]!r}: the row does not match its checksum; restore the store from a backup")
    return record


def _promise_row(record: PromiseRecord) -> tuple[SqlValue, ...]:
    return (*record[:10], record.state.value, record.settled_at, record.value, checksum(record))


def _task(row: Sequence[object]) -> TaskRecord:
    return TaskRecord._make((*row[:6], _task_state(row[0], row[6]), *row[7:10], row[10] == 1))


def _task_state(id: object, stored: object) -> TaskState:
    state = _TASK_STATES.get(str(stored))
    if state is None:
        raise StoreCorrupt(f"task {id!r}: unknown state {stored!r}; restore the store from a backup")
    return state


def _task_row(record: TaskRecord) -> tuple[SqlValue, ...]:
    return (*record[:6], record.state.value, *record[7:])


class Hot:
    """Rows that every write under a claim asks for, kept from one transaction to the next while nobody else writes.

    Without it each batch would read the claim's task, its promise and its process anew: a third of its cost.
    `data_version`, asked under the write lock, tells whether another connection has committed since.
    """

    def __init__(self) -> None:
        self.version = -1
        self.promises: dict[str, PromiseRecord] = {}
        self.tasks: dict[str, TaskRecord] = {}
        self.processes: dict[str, ProcessRecord] = {}

    def clear(self) -> None:
        """Know nothing."""
        self.version = -1
        self.promises.clear()
        self.tasks.clear()
        self.processes.clear()

    def begin(self, version: int) -> None:
        """A transaction begins, at that `data_version`."""
        if version != self.version or len(self.tasks) > HOT_TASKS:
            self.clear()
            self.version = version

    def wrote(self, changes: Changes) -> None:
        """A transaction is about to commit."""
        for task in (*changes.tasks_born, *changes.tasks_moved):
            if task.state is TaskState.ACQUIRED:
                self.tasks[task.id] = task
            else:
                self.tasks.pop(task.id, None)
                self.promises.pop(task.id, None)
        for promise in changes.promises_born:
            if promise.id in self.tasks:
                self.promises[promise.id] = promise
        for promise in changes.promises_moved:
            self.promises.pop(promise.id, None)
        for process in changes.processes_kept:
            self.processes[process.id] = process
        for process in changes.processes_gone:
            self.processes.pop(process.id, None)


class SqliteRows:
    """The tables of one connection, for one transaction."""

    def __init__(self, connection: sqlite3.Connection, hot: Hot | None = None) -> None:
        self._connection = connection
        self._hot = hot or Hot()
        self._promises: dict[str, PromiseRecord | None] = {}
        self._tasks: dict[str, TaskRecord | None] = {}
        self._callbacks: dict[str, list[CallbackRecord]] = {}
        self._listeners: dict[str, list[ListenerRecord]] = {}

    def _all(self, sql: str, *values: SqlValue) -> list[Sequence[object]]:
        return self._connection.execute(sql, values).fetchall()

    # -- what a batch reads

    def prefetch(self, promises: Sequence[str], tasks: Sequence[str], settling: Sequence[str]) -> None:
        """Read what the batch names, each table once. Good for this transaction only."""
        hot = self._hot
        self._promises = {id: hot.promises.get(id) for id in promises}
        self._tasks = {id: hot.tasks.get(id) for id in tasks}
        if cold := [id for id, record in self._promises.items() if record is None]:
            rows = self._all(f"SELECT {_PROMISE} FROM promises WHERE id {_in(cold)}", _key(cold))
            self._promises.update((record.id, record) for record in map(_promise, rows))
        if cold := [id for id, task in self._tasks.items() if task is None]:
            rows = self._all(f"SELECT {_TASK} FROM tasks WHERE id {_in(cold)}", _key(cold))
            for task in map(_task, rows):
                self._tasks[task.id] = task
                if task.state is TaskState.ACQUIRED and (promise := self._promises.get(task.id)) is not None:
                    hot.tasks[task.id], hot.promises[task.id] = task, promise
        # Only a promise that is stored already can have anybody waiting.
        waited = [id for id in settling if self._promises.get(id) is not None]
        self._callbacks = {id: [] for id in waited}
        self._listeners = {id: [] for id in waited}
        if waited:
            for row in self._all(f"SELECT * FROM callbacks WHERE awaited {_in(waited)}", _key(waited)):
                self._callbacks[str(row[0])].append(CallbackRecord(str(row[0]), str(row[1])))
            for row in self._all(f"SELECT * FROM listeners WHERE promise {_in(waited)}", _key(waited)):
                self._listeners[str(row[0])].append(ListenerRecord(str(row[0]), str(row[1]), row[2] == 1))
            for id in waited:  # sorted here, where it is a few: a statement that sorts costs five times as much
                self._callbacks[id].sort()
                self._listeners[id].sort()

    def promise(self, id: str) -> PromiseRecord | None:
        if id not in self._promises:
            rows = self._all(f"SELECT {_PROMISE} FROM promises WHERE id = ?", id)
            self._promises[id] = _promise(rows[0]) if rows else None
        return self._promises[id]

    def task(self, id: str) -> TaskRecord | None:
        if id not in self._tasks:
            rows = self._all(f"SELECT {_TASK} FROM tasks WHERE id = ?", id)
            self._tasks[id] = _task(rows[0]) if rows else None
        return self._tasks[id]

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
            rows = self._all("SELECT * FROM listeners WHERE promise = ? ORDER BY process", promise)
            self._listeners[promise] = [ListenerRecord(str(row[0]), str(row[1]), row[2] == 1) for row in rows]
        return self._listeners[promise]

    def children(self, creator: str) -> Sequence[PromiseRecord]:
        sql = f"SELECT {_PROMISE} FROM promises WHERE id > ? AND id < ? AND creator = ? ORDER BY id"
        return [_promise(row) for row in self._all(sql, *ids.subtree(creator), creator)]

    def below(self, id: str) -> Sequence[PromiseRecord]:
        sql = f"SELECT {_PROMISE} FROM promises WHERE id > ? AND id < ? AND state = 'pending' ORDER BY id"
        return [_promise(row) for row in self._all(sql, *ids.subtree(id))]

    def held(self, process: str) -> Sequence[TaskRecord]:
        return [_task(row) for row in self._all(f"SELECT {_TASK} FROM tasks WHERE process = ? ORDER BY id", process)]

    def listening(self, process: str) -> Sequence[ListenerRecord]:
        rows = self._all("SELECT * FROM listeners WHERE process = ? ORDER BY promise", process)
        return [ListenerRecord(str(row[0]), str(row[1]), row[2] == 1) for row in rows]

    def acquirable(
        self, targets: tuple[str, ...], functions: tuple[tuple[str, int], ...], limit: int
    ) -> Sequence[TaskRecord]:
        # A target at a time: its index has the order already, where a sort over several costs ten times as much.
        sql = (
            f"SELECT {_TASK} FROM tasks WHERE state = 'pending' AND target = ? AND (function, function_version) IN"
            " (SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]') FROM json_each(?))"
            " ORDER BY created_at, id LIMIT ?"
        )
        runnable = json.dumps(functions)
        found = [_task(row) for target in targets for row in self._all(sql, target, runnable, limit)]
        return sorted(found, key=lambda task: (task.created_at, task.id))[:limit]

    def due(self, now: int, limit: int) -> Sequence[PromiseRecord]:
        sql = f"SELECT {_PROMISE} FROM promises WHERE {_DUE} AND timeout_at <= ? ORDER BY timeout_at, id LIMIT ?"
        return [_promise(row) for row in self._all(sql, now, limit)]

    def expired(self, now: int) -> Sequence[ProcessRecord]:
        return [process for process in self.processes() if process.expires_at <= now]

    def processes(self) -> list[ProcessRecord]:
        rows = self._all("SELECT * FROM processes ORDER BY id")
        return [ProcessRecord._make(row) for row in rows]

    # -- what a batch writes

    def write(self, changes: Changes) -> None:
        """Every changed row, a statement per table and kind of change."""
        self._hot.wrote(changes)
        c = changes
        self._insert("promises", [_promise_row(r) for r in c.promises_born])
        self._many(
            "UPDATE promises SET state = ?, settled_at = ?, value = ?, checksum = ? WHERE id = ?",
            [(r.state.value, r.settled_at, r.value, checksum(r), r.id) for r in c.promises_moved],
        )
        self._insert("tasks", [_task_row(r) for r in c.tasks_born])
        self._many(
            "UPDATE tasks SET state = ?, version = ?, process = ?, python = ?, resumed = ? WHERE id = ?",
            [(r.state.value, *r[7:], r.id) for r in c.tasks_moved],
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
        return [Found(_promise(row[:14]), None if row[14] is None else _task(row[14:])) for row in rows]

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
            frozenset(ListenerRecord(str(row[0]), str(row[1]), row[2] == 1) for row in hears),
            {process.id: process for process in self.processes()},
        )

    def next_due(self) -> int | None:
        rows = self._all(
            f"SELECT min(at) FROM (SELECT min(timeout_at) AS at FROM promises WHERE {_DUE}"
            " UNION ALL SELECT min(expires_at) FROM processes)"
        )
        at = rows[0][0]
        return at if isinstance(at, int) else None

    def waiting_targets(self) -> list[str]:
        rows = self._all("SELECT DISTINCT target FROM tasks WHERE state = 'pending' ORDER BY 1")
        return [str(row[0]) for row in rows]

    def missing(
        self, targets: tuple[str, ...], functions: tuple[tuple[str, int], ...]
    ) -> list[tuple[str, int]]:
        rows = self._all(
            "SELECT DISTINCT function, function_version FROM tasks WHERE state = 'pending'"
            f" AND target {_IN} ORDER BY 1, 2",
            json.dumps(targets),
        )
        needed = [(str(row[0]), int(str(row[1]))) for row in rows]
        return [one for one in needed if one not in functions]

    def backlog(self) -> list[Backlog]:
        kind = "state, target, function, function_version, process, version > 0"
        rows = self._all(
            f"SELECT {kind}, count(*), min(created_at), id FROM tasks"  # SQLite takes the id from the row of the min
            f" WHERE state != 'fulfilled' GROUP BY {kind} ORDER BY {kind}"
        )
        return [Backlog._make((_task_state(row[8], row[0]), *row[1:5], row[5] == 1, *row[6:])) for row in rows]


@cache
def _insertion(table: str, columns: int, rows: int) -> str:
    one = f"({', '.join('?' * columns)})"
    return f"INSERT INTO {table} VALUES {', '.join([one] * rows)}"


def _in(ids: Sequence[str]) -> str:
    return "= ?" if len(ids) == 1 else _IN


def _key(ids: Sequence[str]) -> str:
    return ids[0] if len(ids) == 1 else json.dumps(ids)
