"""What can be told of a promise, as plain dictionaries with stable keys: the contract of every `--json`.

The keys are those of the typed dictionaries below. Values are decoded without annotations: what JSON has no form for
becomes text, and a dataclass is the dictionary of its fields. This file reads records and changes nothing.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Iterable
from datetime import UTC, date, datetime, time, timedelta
from typing import Literal, TypedDict

from dasync.core import failure, ids, lifetime
from dasync.core.codec import CallShape, decode
from dasync.core.invariants import Snapshot
from dasync.core.model import PromiseRecord, State, TaskRecord, TaskState
from dasync.core.protocol import AGAIN
from dasync.errors import DecodeError, RemoteError

_CALL = CallShape(())
_KINDS = {"~": 1, "!": 2, "@": 3}  # of steps in an id; others are invocations


class TaskFacts(TypedDict):
    """The claim on a promise."""

    state: str
    version: int
    process: str | None
    python: str | None
    reason: str | None


class Brief(TypedDict):
    """A promise in a list."""

    id: str
    state: str
    function: str | None
    version: int
    parent: str | None
    target: str | None
    created_at: str
    settled_at: str | None
    timeout_at: str | None
    duration_ms: int
    task: TaskFacts | None


class Waits(TypedDict):
    """Who waits for what, as far as the store knows: callbacks and listeners, and what a running execution has open."""

    awaits: list[str]
    awaited_by: list[str]
    listeners: list[str]
    pending_below: list[Brief]


class Node(Brief, Waits):
    """A promise in a call tree."""

    depth: int


class ErrorFacts(TypedDict):
    """How a promise failed."""

    type: str
    message: str
    traceback: str


class Attempt(TypedDict):
    """An attempt that failed."""

    number: int
    failed_at: str
    error: ErrorFacts
    next_at: str | None


class Arguments(TypedDict):
    """What a function was invoked with."""

    args: list[object]
    kwargs: dict[str, object]


class Shown(Brief, Waits):
    """All that is known of a promise."""

    arguments: Arguments
    value: object
    error: ErrorFacts | None
    reason: str | None
    attempts: list[Attempt]
    tags: dict[str, str]


class Tree(TypedDict):
    """A call tree from the top down, each promise after its parent."""

    id: str
    promises: list[Node]


class Listing(TypedDict):
    """Part of a store's promises."""

    promises: list[Brief]
    cursor: str | None


class Check(TypedDict):
    """What a doctor found of one thing that it looked at."""

    check: str
    status: Literal["ok", "warn", "fail"]
    detail: str
    remedy: str | None


def brief(stored: PromiseRecord, task: TaskRecord | None, now_ms: int) -> Brief:
    """A promise as it stands at `now_ms`, for a list."""
    record = lifetime.as_of(stored, now_ms)
    until = now_ms if record.settled_at is None else record.settled_at
    return Brief(
        id=record.id,
        state=record.state.value,
        function=record.function or None,
        version=record.version,
        parent=ids.parent_of(record.id),
        target=record.target,
        created_at=moment(record.created_at),
        settled_at=None if record.settled_at is None else moment(record.settled_at),
        timeout_at=None if record.timeout_at is None else moment(record.timeout_at),
        duration_ms=max(0, until - record.created_at),
        task=None if task is None else task_facts(task),
    )


def task_facts(task: TaskRecord) -> TaskFacts:
    """The claim on a promise, and why it is halted, if it is."""
    return TaskFacts(
        state=task.state.value, version=task.version, process=task.process, python=task.python or None,
        reason=task.reason or None,
    )  # fmt: skip


def shown(rows: Snapshot, id: str, now_ms: int) -> Shown:
    """All that `rows` tell of the promise `id`, which is among them."""
    record = lifetime.as_of(rows.promises[id], now_ms)
    return Shown(
        **brief(record, rows.tasks.get(id), now_ms),
        **_Waiting(rows, now_ms).of(id),
        arguments=arguments(record),
        value=plain(record.value) if record.state is State.RESOLVED and record.value is not None else None,
        error=_error_of(record),
        reason=reason(record),
        attempts=attempts(rows, record),
        tags=json.loads(record.tags or "{}"),
    )


def attempts(rows: Snapshot, record: PromiseRecord) -> list[Attempt]:
    """The attempts that failed, with the last one, which rejected the promise, if one did."""
    told: list[Attempt] = []
    runs = [one.id for one in rows.promises.values() if one.function == AGAIN and ids.parent_of(one.id) == record.id]
    at = max(runs, default=record.id)
    while (kept := rows.promises.get(ids.retry(at, len(told) + 1))) is not None:
        due = kept.timeout_at
        if due is not None and record.settled_at is not None and record.settled_at < due:
            due = None  # settled over its head: there was no next one
        told.append(_attempt(len(told) + 1, kept.created_at, kept.param, due))
    if record.state is State.REJECTED and record.function:
        told.append(_attempt(len(told) + 1, record.settled_at or 0, record.value or b"", None))
    return told


def _attempt(number: int, failed_at: int, raw: bytes, next_at: int | None) -> Attempt:
    due = None if next_at is None else moment(next_at)
    return Attempt(number=number, failed_at=moment(failed_at), error=error(raw), next_at=due)


def _error_of(record: PromiseRecord) -> ErrorFacts | None:
    """How it was rejected; of a timer that keeps a failed attempt, how that failed."""
    if ids.is_retry(record.id):
        return error(record.param)
    return error(record.value or b"") if record.state is State.REJECTED else None


def tree(rows: Snapshot, id: str, now_ms: int) -> Tree:
    """The promise `id` and all below it, each after its parent, children in the order of their places."""
    below: dict[str, list[str]] = {}
    for one in sorted(rows.promises.keys() - {id}, key=_place):
        parent = ids.parent_of(one)
        while parent is not None and parent not in rows.promises:
            parent = ids.parent_of(parent)
        below.setdefault(parent or id, []).append(one)
    waiting, nodes, left = _Waiting(rows, now_ms), list[Node](), [(id, 0)]
    while left:
        one, depth = left.pop()
        told = brief(rows.promises[one], rows.tasks.get(one), now_ms)
        nodes.append(Node(**told, **waiting.of(one), depth=depth))
        left += [(child, depth + 1) for child in reversed(below.get(one, []))]
    return Tree(id=id, promises=nodes)


class _Waiting:
    """Who waits for what, by id.

    A suspended execution has left with the store what it waits for. Of one that runs the store knows what it made and
    what of that is pending; for which of it the code waits just now is known in its process alone.
    """

    def __init__(self, rows: Snapshot, now_ms: int) -> None:
        self._rows, self._now_ms = rows, now_ms
        self._awaits = _grouped((callback.awaiter, callback.awaited) for callback in rows.callbacks)
        self._awaited_by = _grouped((callback.awaited, callback.awaiter) for callback in rows.callbacks)
        self._listeners = _grouped((one.promise, one.process) for one in rows.listeners if not one.fired)
        self._made = _grouped((one.creator, id) for id, one in rows.promises.items() if one.creator)

    def of(self, id: str) -> Waits:
        return Waits(
            awaits=self._awaits.get(id, []),
            awaited_by=self._awaited_by.get(id, []),
            listeners=self._listeners.get(id, []),
            pending_below=self._pending_below(id),
        )

    def _pending_below(self, id: str) -> list[Brief]:
        """Of the pending promises that a running execution has made those that none of the others is below."""
        task = self._rows.tasks.get(id)
        if task is None or task.state is not TaskState.ACQUIRED or self._brief(id)["state"] != "pending":
            return []
        pending = [one for one in map(self._brief, self._made.get(id, [])) if one["state"] == "pending"]
        above = {one["parent"] for one in pending}
        return [one for one in pending if one["id"] not in above]

    def _brief(self, id: str) -> Brief:
        return brief(self._rows.promises[id], self._rows.tasks.get(id), self._now_ms)


def _grouped(pairs: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for key, one in sorted(pairs, key=lambda pair: (pair[0], _place(pair[1]))):
        groups.setdefault(key, []).append(one)
    return groups


def _place(id: str) -> tuple[str, list[tuple[int, int]]]:
    """Ids in the order of their places: `:10` after `:9`; invocations, then branches, failed attempts, a later run."""
    root, _, place = id.partition(":")
    steps = [(_KINDS.get(step[:1], 0), step.lstrip("~!@")) for step in place.split(".")]
    return root, [(kind, int(number)) for kind, number in steps if number.isdecimal()]


# -- values ------------------------------------------------------------------------------------------------


def arguments(record: PromiseRecord) -> Arguments:
    """What the function was invoked with."""
    if not record.param or ids.is_retry(record.id):
        return Arguments(args=[], kwargs={})
    try:
        args, kwargs = _CALL.decode(record.param)
    except DecodeError:
        return Arguments(args=[_unreadable(record.param)], kwargs={})
    return Arguments(args=[jsonable(arg) for arg in args], kwargs={name: jsonable(arg) for name, arg in kwargs.items()})


def plain(data: bytes) -> object:
    """Stored bytes as JSON can say them."""
    try:
        return jsonable(decode(data))
    except DecodeError:
        return _unreadable(data)


def reason(record: PromiseRecord) -> str | None:
    """Why a promise was canceled, where that was said."""
    if record.state is not State.CANCELED or record.value is None:
        return None
    said = plain(record.value)
    return said if isinstance(said, str | None) else json.dumps(said, ensure_ascii=False)


def error(data: bytes) -> ErrorFacts:
    """A stored error."""
    try:
        found = failure.decode_error(data, {})
    except DecodeError as unreadable:
        return ErrorFacts(type="unreadable", message=str(unreadable), traceback="")
    if isinstance(found, RemoteError):
        return ErrorFacts(type=_class_name(found.type), message=found.message, traceback=found.traceback)
    notes = [note for note in getattr(found, "__notes__", []) if note.startswith(failure.REMOTE)]
    traceback = notes[-1].removeprefix(failure.REMOTE) if notes else ""
    return ErrorFacts(type=_class_name(failure.error_name(type(found))), message=str(found), traceback=traceback)


def jsonable(value: object) -> object:
    """A decoded value, as near as JSON can say it."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, dict):
        return {_key(key): jsonable(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(part) for part in value]
    if isinstance(value, set | frozenset):
        return sorted(map(jsonable, value), key=lambda part: json.dumps(part, sort_keys=True))
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    return _unreadable(value) if isinstance(value, bytes) else str(value)


def _key(key: object) -> str:
    said = jsonable(key)
    return said if isinstance(said, str) else json.dumps(said, ensure_ascii=False, sort_keys=True)


def _unreadable(data: bytes) -> str:
    return f"base64:{base64.b64encode(data).decode()}"


def _class_name(name: str) -> str:
    module, _, qualname = name.partition(":")
    return qualname if module == "builtins" else f"{module}.{qualname}"


def moment(ms: int) -> str:
    """A time as ISO 8601 in UTC."""
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
