"""`dasync invoke` and `dasync wait`: a visitor invokes a function, or waits for what comes of a promise.

To invoke is one command to the store. To wait is to be a guest: a process without functions, in a group of its own,
that is told of the settlement at once by its doorbell. Both say what is missing where nothing goes on without it: a
worker, or somebody who resumes. This file runs nothing and settles nothing.
"""

from __future__ import annotations

import asyncio
import shlex
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import NamedTuple, TypedDict

from dasync.cli import facts, render, say, served
from dasync.cli.commands import MAX_PAYLOAD_BYTES, existing, not_found, opened, store_path
from dasync.core import ids
from dasync.core.model import ProcessRecord, PromiseRecord, State, TaskRecord, TaskState
from dasync.core.protocol import PromiseCreate, PromiseGet, Status, TaskGet
from dasync.errors import PromiseConflict, StoreUnavailable
from dasync.loop import EventLoop
from dasync.runtime.declare import remote
from dasync.runtime.promise import Promise
from dasync.runtime.registry import tags_of
from dasync.runtime.root import FRESH_ID_BYTES, SEED_BYTES, conflict, stands_for
from dasync.stores.sqlite import SqliteStore
from dasync.system import SystemClock, SystemEntropy
from dasync.transports import local
from dasync.transports.local import LocalTransport

GUESTS = "dasync-wait"  # nobody works for it, so a guest is never taken for a worker of anybody's group
TELL_AFTER_S = 2.0
_ENDS = {State.CANCELED: "was canceled", State.TIMEDOUT: "reached its deadline before it was settled"}


class Invocation(NamedTuple):
    """What to invoke, and how."""

    name: str
    version: int
    args: tuple[object, ...]
    kwargs: dict[str, object]
    on: str
    id: str | None
    timeout_s: float | None
    tags: Mapping[str, str]


class Invoked(TypedDict):
    """What `invoke` prints."""

    id: str
    created: bool
    function: str
    version: int
    target: str | None


class Waited(TypedDict):
    """What `wait` prints."""

    id: str
    state: str
    value: object
    error: facts.ErrorFacts | None


class Made(NamedTuple):
    """What came of invoking, and what has to happen before it goes on, where that is known."""

    facts: Invoked
    hint: str


class Came(NamedTuple):
    """What came of waiting, and what there is to complain of."""

    facts: Waited
    complaint: str


class Seen(NamedTuple):
    """A promise, and what it needs to go on, where that is known."""

    record: PromiseRecord
    hint: str


async def invoke(store: str, wanted: Invocation) -> Made:
    """Make a root promise with a task; of an id that is in use for the same invocation, the one that is there."""
    create = _command(wanted)
    async with opened(store) as rows:
        committed = await rows.transact([create, TaskGet(create.id)])
        processes = await rows.processes()
    local.ring(committed.doorbells)
    reply, claim = committed.replies
    record = reply.promise
    if record is None:
        raise not_found(store, create.id)
    if not stands_for(create, record):
        raise PromiseConflict(conflict(record, create))
    invoked = Invoked(
        id=record.id, created=reply.status is Status.CREATED, function=record.function, version=record.version,
        target=record.target,
    )  # fmt: skip
    return Made(invoked, _hint(store, record, claim.task, processes))


def _command(wanted: Invocation) -> PromiseCreate:
    entropy = SystemEntropy()
    function = remote(wanted.name, on=wanted.on, version=wanted.version).options(
        id=wanted.id, timeout=wanted.timeout_s, tags=wanted.tags
    )
    options = function.configured
    timeout_at = None
    if options.timeout_s is not None:
        timeout_at = SystemClock().now_ms() + round(options.timeout_s * 1000)
    return PromiseCreate(
        options.id or ids.fresh_root(function.name, entropy.bytes(FRESH_ID_BYTES)),
        function.name,
        function.version,
        function.shape.encode(wanted.args, wanted.kwargs, MAX_PAYLOAD_BYTES)[0],
        options.on,
        timeout_at=timeout_at,
        tags=tags_of(function),
        seed=entropy.bytes(SEED_BYTES),
    )


async def wait(store: str, id: str, patience_s: float | None) -> Came:
    """Wait until a promise is settled, or until `patience_s` is over; says at once what it needs to go on, and soon if
    nobody begins it."""
    seen = await _look(store, id)
    said = [""]
    _say(seen, said)
    if seen.record.state is State.PENDING:
        rows = SqliteStore(existing(store), SystemClock())
        with suppress(TimeoutError):
            async with (
                EventLoop(rows, group=GUESTS, functions=[]) as loop,
                asyncio.timeout(patience_s),
                _told(store, id, said),
            ):
                await _settled(loop.get(id))
        seen = await _look(store, id)
    return Came(_waited(seen.record), _complaint(seen, said))


def _say(seen: Seen, said: list[str]) -> None:
    """What it needs, if that was not `said`."""
    if seen.hint not in said:
        say.complaint(seen.hint)
        said.append(seen.hint)


async def _look(store: str, id: str) -> Seen:
    async with opened(store) as rows:
        committed = await rows.transact([PromiseGet(id)])
        record = committed.replies[0].promise
        if record is None:
            raise not_found(store, id)
        claim = await rows.transact([TaskGet(_claimed(record))])
        processes = await rows.processes()
    local.ring(committed.doorbells)
    return Seen(record, _hint(store, record, claim.replies[0].task, processes))


def _claimed(record: PromiseRecord) -> str:
    """The promise whose task computes this one: itself, or the execution that it is part of."""
    return record.id if record.target or not record.creator else record.creator


def _hint(store: str, record: PromiseRecord, task: TaskRecord | None, processes: Sequence[ProcessRecord]) -> str:
    """What has to happen before a promise goes on, in a line; empty where nothing is known to be missing."""
    if record.state is not State.PENDING or record.timer or not record.function or task is None:
        return ""
    if task.state is TaskState.HALTED:
        why = render.clean(render.first_line(task.reason)) or "its code did not fit what is recorded"
        return f"{task.id} is halted: {why}; correct the code, then `dasync resume {shlex.quote(task.id)}`"
    transport = LocalTransport(store_path(store))
    live = served.live(processes, transport.dead(processes), SystemClock().now_ms(), transport.host)
    if any(one.id == task.process for one in live):
        return ""
    who = "process" if "/" in task.target else "group"
    if not served.is_served(task.target, live):
        return f"nobody serves {who} {task.target!r} now: it waits for `{served.worker_for(task.target)}`"
    new = task.state is TaskState.PENDING and not task.version
    if not new or SystemClock().now_ms() < task.created_at + 1000 * TELL_AFTER_S:
        return ""
    return (
        f"{who} {task.target!r} is served, but nobody has begun {task.id}: they are busy, or have no function"
        f" {task.function!r} version {task.function_version} (`dasync doctor APP` tells what APP lacks)"
    )


async def _settled(promise: Promise[object]) -> None:
    try:
        await promise
    except Exception:
        if not promise.done():  # what was raised is not its outcome
            raise


def _waited(record: PromiseRecord) -> Waited:
    resolved = record.state is State.RESOLVED and record.value is not None
    return Waited(
        id=record.id,
        state=record.state.value,
        value=facts.plain(record.value or b"") if resolved else None,
        error=facts.error(record.value or b"") if record.state is State.REJECTED else None,
    )


def _complaint(seen: Seen, said: Sequence[str]) -> str:
    """Why there is no value, in a line that does not repeat the hints that were `said`."""
    record = seen.record
    more = f"`dasync show {record.id}` tells more"
    if record.state is State.RESOLVED:
        return ""
    if record.state is State.REJECTED:
        error = facts.error(record.value or b"")
        return f"promise {record.id!r} was rejected: {error['type']}: {render.clean(error['message'])}; {more}"
    if record.state is not State.PENDING:
        reason = facts.reason(record)
        return f"promise {record.id!r} {_ENDS[record.state]}{f' ({render.clean(reason)})' if reason else ''}; {more}"
    again = "" if seen.hint in said else seen.hint
    return f"promise {record.id!r} is pending still; {again or f'`dasync wait {record.id}` waits again'}"


@asynccontextmanager
async def _told(store: str, id: str, said: list[str]) -> AsyncIterator[None]:
    """Say when nobody begins it; tell a person who sits before a terminal that this waits, and for how long."""
    teller = asyncio.create_task(_tell(store, id, said))
    try:
        yield
    finally:
        teller.cancel()
        with suppress(asyncio.CancelledError):
            await teller


async def _tell(store: str, id: str, said: list[str]) -> None:
    clock = SystemClock()
    began = clock.monotonic()
    await clock.sleep(TELL_AFTER_S)
    with suppress(StoreUnavailable):
        _say(await _look(store, id), said)
    if not sys.stderr.isatty():
        return
    from rich.console import Console
    from rich.text import Text

    with Console(stderr=True).status("") as status:
        while True:
            waited = render.duration(round(clock.monotonic() - began) * 1000)
            status.update(Text(f"waits for {render.clean(id)}, {waited} so far"))
            await clock.sleep(1)
