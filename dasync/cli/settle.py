"""The commands that settle a promise, or send its task again.

What they change they say in one command; whom it concerns is woken by the doorbells that come back. What may be
settled is the law's say, except that nobody settles by hand what a function computes: that can only be canceled.
"""

from __future__ import annotations

import builtins
from typing import TypedDict

from dasync.cli import facts
from dasync.cli.commands import MAX_PAYLOAD_BYTES, not_found, opened
from dasync.cli.say import UsageError
from dasync.core import codec, failure
from dasync.core.model import PromiseRecord, State
from dasync.core.protocol import PromiseCancel, PromiseGet, PromiseSettle, Status, TaskContinue
from dasync.errors import DasyncError, PromiseConflict, PromiseNotFound
from dasync.transports import local


class Resolved(TypedDict):
    """What `resolve` prints."""

    id: str
    state: str
    value: object
    changed: bool


class Told(TypedDict):
    """An error that was given by hand: it has no traceback."""

    type: str
    message: str


class Rejected(TypedDict):
    """What `reject` prints."""

    id: str
    state: str
    error: Told
    changed: bool


class Canceled(TypedDict):
    """What `cancel` prints."""

    id: str
    state: str
    changed: bool


class Resumed(TypedDict):
    """What `resume` prints."""

    id: str
    task: facts.TaskFacts


async def resolve(store: str, id: str, value: object) -> Resolved:
    """Resolve a promise that `dasync.promise()` made."""
    data = codec.encode(value, limit=MAX_PAYLOAD_BYTES)
    before, after = await _settle(store, PromiseSettle(id, State.RESOLVED, data))
    if after.state is not State.RESOLVED or after.value != data:
        raise _another(after)
    return Resolved(id=id, state=after.state.value, value=facts.jsonable(value), changed=before.state is State.PENDING)


async def reject(store: str, id: str, error: Exception) -> Rejected:
    """Reject a promise that `dasync.promise()` made."""
    data = failure.encode_error(error, MAX_PAYLOAD_BYTES)
    before, after = await _settle(store, PromiseSettle(id, State.REJECTED, data))
    told = _told(data)
    if after.state is not State.REJECTED or _told(after.value or b"") != told:
        raise _another(after)
    return Rejected(id=id, state=after.state.value, error=told, changed=before.state is State.PENDING)


async def cancel(store: str, id: str, reason: str | None) -> Canceled:
    """Cancel any promise that is pending, and before it what its execution made."""
    data = codec.encode(reason, limit=MAX_PAYLOAD_BYTES) if reason else None
    async with opened(store) as rows:
        committed = await rows.transact([PromiseGet(id), PromiseCancel(id, data)])
    local.ring(committed.doorbells)
    before, after = (reply.promise for reply in committed.replies)
    if before is None or after is None:
        raise not_found(store, id)
    return Canceled(id=id, state=after.state.value, changed=before.state is State.PENDING)


async def resume(store: str, id: str) -> Resumed:
    """Send a halted task again."""
    async with opened(store) as rows:
        committed = await rows.transact([TaskContinue(id)])
    local.ring(committed.doorbells)
    reply = committed.replies[0]
    if reply.status is Status.NOT_FOUND:
        raise PromiseNotFound(f"{store} holds no task {id!r}: only a promise that has a target has one; try its parent")
    if reply.status is not Status.OK or reply.task is None:
        raise DasyncError(f"{reply.reason}, not halted: there is nothing to resume")
    return Resumed(id=id, task=facts.task_facts(reply.task))


def error_of(name: str, message: str) -> Exception:
    """An error of the builtin class `name`. Raises `UsageError` for what is none, or needs more than a message."""
    cls = getattr(builtins, name, None)
    if not isinstance(cls, type) or not issubclass(cls, Exception) or issubclass(cls, StopIteration):
        raise UsageError(f"--type: {name!r} is not a builtin error; give one, such as ValueError or PermissionError")
    try:
        made: Exception = cls(message)
    except TypeError:
        raise UsageError(f"--type: a {name} needs more than a message; give another, such as ValueError") from None
    return made


async def _settle(store: str, command: PromiseSettle) -> tuple[PromiseRecord, PromiseRecord]:
    """The promise as it was and as it is now, whoever settled it."""
    async with opened(store) as rows:
        looked = await rows.transact([PromiseGet(command.id)])  # which settles it if its deadline has passed
        local.ring(looked.doorbells)
        before = looked.replies[0].promise
        if before is None:
            raise PromiseNotFound(
                f"{store} holds no promise {command.id!r} yet: it can be {command.state.value} once its program has"
                " made it; wait until `dasync list --state pending` shows it, or see there which id it has"
            )
        if before.function:
            raise PromiseConflict(
                f"promise {command.id!r} is settled by {before.function!r}; only those of dasync.promise() are"
                f" {command.state.value} by hand"
            )
        committed = await rows.transact([command])
    local.ring(committed.doorbells)
    after = committed.replies[0].promise
    if after is None:
        raise not_found(store, command.id)
    return before, after


def _another(after: PromiseRecord) -> PromiseConflict:
    return PromiseConflict(f"promise {after.id!r} is {after.state.value} with another outcome; `dasync show` tells it")


def _told(data: bytes) -> Told:
    said = facts.error(data)
    return Told(type=said["type"], message=said["message"])
