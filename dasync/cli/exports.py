"""One execution's history as a JSON file: what `dasync export` prints, and its way back.

The file is an object: `format` ("dasync-history"), `version` (1), `id`, `exported_at`, and two lists, `promises` and
`tasks`, of rows with the fields of `core/model.py`: times in milliseconds since the epoch, bytes as an object with
`base64` and, to be looked at only, `readable`. A reader ignores keys that it does not know, and refuses a `version`
that is newer than its own. What came out of a file is checked for its types; nothing here runs it.
"""

from __future__ import annotations

import binascii
import json
from base64 import b64decode, b64encode
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TypedDict, TypeVar

from dasync.cli import facts
from dasync.core import ids
from dasync.core.invariants import Snapshot
from dasync.core.model import PromiseRecord, State, TaskRecord, TaskState
from dasync.errors import DasyncError
from dasync.replay import History

FORMAT, VERSION = "dasync-history", 1
R = TypeVar("R", PromiseRecord, TaskRecord)
_PROMISE_TYPES: dict[str, tuple[type, ...]] = {
    "id": (str,), "function": (str,), "version": (int,), "param": (bytes,), "target": (str, type(None)),
    "creator": (str, type(None)), "timer": (bool,), "timeout_at": (int, type(None)), "tags": (str,),
    "created_at": (int,), "born_after": (int,), "state": (State,), "settled_at": (int, type(None)),
    "value": (bytes, type(None)), "turn": (int, type(None)),
}  # fmt: skip
_TASK_TYPES: dict[str, tuple[type, ...]] = {
    "id": (str,), "target": (str,), "function": (str,), "function_version": (int,), "seed": (bytes,),
    "created_at": (int,), "state": (TaskState,), "version": (int,), "process": (str, type(None)), "python": (str,),
    "resumed": (bool,), "reason": (str,),
}  # fmt: skip


class Exported(TypedDict):
    """What `export` prints."""

    format: str
    version: int
    id: str
    exported_at: str
    promises: list[dict[str, object]]
    tasks: list[dict[str, object]]


def history(rows: Snapshot, id: str) -> History:
    """The history of an execution that is among `rows`. Raises `DasyncError` for what is no execution of its own."""
    if id not in rows.tasks and ids.root_of(id) == id:
        raise DasyncError(f"{id!r} has no code of its own; it can only come along with an execution that awaits it")
    if id not in rows.tasks:
        raise DasyncError(f"{id!r} runs as a part of another execution; name that: {ids.root_of(id)}")
    return History(id, rows.promises, rows.tasks)


def joined(found: History, others: Iterable[Snapshot]) -> History:
    """A history with those of other roots: what an execution awaits by an id stands beside it, not below."""
    promises, tasks = dict(found.promises), dict(found.tasks)
    for rows in others:
        promises |= rows.promises
        tasks |= rows.tasks
    return History(found.id, promises, tasks)


def exported(found: History, now_ms: int) -> Exported:
    """A history as JSON can say it."""
    return Exported(
        format=FORMAT,
        version=VERSION,
        id=found.id,
        exported_at=facts.moment(now_ms),
        promises=[_promise(found.promises[id]) for id in sorted(found.promises)],
        tasks=[_task(found.tasks[id]) for id in sorted(found.tasks)],
    )


def read(path: Path) -> History:
    """The history in a file. Raises `DasyncError` for a file that holds none."""
    try:
        said = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise DasyncError(f"{path} is not JSON ({error}); give what `dasync export ID` has printed") from None
    if not isinstance(said, dict) or said.get("format") != FORMAT or not isinstance(said.get("version"), int):
        raise DasyncError(f"{path} is no history; give what `dasync export ID` has printed")
    if said["version"] > VERSION:
        raise DasyncError(f"{path} has version {said['version']} of the format, this dasync knows {VERSION}: update it")
    try:
        promises = [_row(PromiseRecord, one, _PROMISE_TYPES) for one in said["promises"]]
        tasks = [_row(TaskRecord, one, _TASK_TYPES) for one in said["tasks"]]
        found = History(said["id"], {one.id: one for one in promises}, {one.id: one for one in tasks})
        if found.id not in found.promises or found.id not in found.tasks:
            raise ValueError(f"the rows of {found.id!r} are missing")
    except (KeyError, TypeError, ValueError) as error:
        raise DasyncError(f"{path} is damaged: {type(error).__name__}: {error}; export it again") from None
    return found


def _promise(record: PromiseRecord) -> dict[str, object]:
    fields: dict[str, object] = dict(record._asdict())
    fields["param"] = _bytes(record.param, facts.arguments(record))
    if record.value is not None:
        rejected = record.state is State.REJECTED
        fields["value"] = _bytes(record.value, facts.error(record.value) if rejected else facts.plain(record.value))
    return fields


def _task(task: TaskRecord) -> dict[str, object]:
    return {**task._asdict(), "seed": _bytes(task.seed, None)}


def _bytes(data: bytes, readable: object) -> dict[str, object]:
    told: dict[str, object] = {"base64": b64encode(data).decode()}
    return told if readable is None else {**told, "readable": readable}


def _row(cls: type[R], said: Mapping[str, object], types: Mapping[str, tuple[type, ...]]) -> R:
    fields: dict[str, object] = {}
    for name, kinds in types.items():
        value = said[name]
        if bytes in kinds and isinstance(value, dict):
            value = _decoded(value["base64"])
        elif (state := kinds[0]) in (State, TaskState):
            value = state(str(value))
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            raise TypeError(f"{name} is {value!r}")
        fields[name] = value
    return cls(**fields)  # type: ignore[arg-type]  # the types are checked above


def _decoded(text: str) -> bytes:
    try:
        return b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError(f"base64: {error}") from None
