"""`dasync invoke` and `dasync wait`: a visitor invokes a function, or waits for what comes of a promise.

To invoke is one command to the store. To wait is to be a guest: a process without functions, in a group of its own,
that is told of the settlement at once by its doorbell. It runs nothing and settles nothing.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from typing import NamedTuple, TypedDict

from dasync.cli import facts, render
from dasync.cli.commands import MAX_PAYLOAD_BYTES, existing, not_found, opened
from dasync.core import ids
from dasync.core.model import PromiseRecord, State, TaskRecord, TaskState
from dasync.core.protocol import PromiseCreate, PromiseGet, Status, TaskGet
from dasync.errors import PromiseConflict
from dasync.loop import EventLoop
from dasync.runtime.declare import remote
from dasync.runtime.promise import Promise
from dasync.runtime.registry import tags_of
from dasync.runtime.root import FRESH_ID_BYTES, SEED_BYTES, conflict, stands_for
from dasync.stores.sqlite import SqliteStore
from dasync.system import SystemClock, SystemEntropy
from dasync.transports import local

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


class Came(NamedTuple):
    """What came of waiting, and what there is to complain of."""

    facts: Waited
    complaint: str


async def invoke(store: str, wanted: Invocation) -> Invoked:
    """Make a root promise with a task; of an id that is in use for the same invocation, the one that is there."""
    create = _command(wanted)
    async with opened(store) as rows:
        committed = await rows.transact([create])
        groups = {process.group for process in await rows.processes()}
    local.ring(committed.doorbells)
    reply = committed.replies[0]
    record = reply.promise
    if record is None:
        raise not_found(store, create.id)
    if not stands_for(create, record):
        raise PromiseConflict(conflict(record, create))
    group = (record.target or "").partition("/")[0]
    if record.state is State.PENDING and group not in groups:
        hint = f"nobody serves group {group!r} now: it waits for `dasync worker APP --group {group}`"
        print(f"dasync: {hint}", file=sys.stderr, flush=True)
    return Invoked(
        id=record.id, created=reply.status is Status.CREATED, function=record.function, version=record.version,
        target=record.target,
    )  # fmt: skip


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


async def wait(store: str, id: str, timeout_s: float | None) -> Came:
    """Wait until a promise is settled, or until `timeout_s` is over."""
    record, task = await _look(store, id)
    if record.state is State.PENDING:
        rows = SqliteStore(existing(store), SystemClock())
        with suppress(TimeoutError):
            async with EventLoop(rows, group=GUESTS, functions=[]) as loop, asyncio.timeout(timeout_s), _told(id):
                await _settled(loop.get(id))
        record, task = await _look(store, id)
    return Came(_waited(record), _complaint(record, task))


async def _look(store: str, id: str) -> tuple[PromiseRecord, TaskRecord | None]:
    async with opened(store) as rows:
        committed = await rows.transact([PromiseGet(id), TaskGet(id)])
    local.ring(committed.doorbells)
    record = committed.replies[0].promise
    if record is None:
        raise not_found(store, id)
    return record, committed.replies[1].task


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


def _complaint(record: PromiseRecord, task: TaskRecord | None) -> str:
    more = f"`dasync show {record.id}` tells more"
    if record.state is State.RESOLVED:
        return ""
    if record.state is State.REJECTED:
        error = facts.error(record.value or b"")
        return f"promise {record.id!r} was rejected: {error['type']}: {render.clean(error['message'])}; {more}"
    if record.state is not State.PENDING:
        reason = facts.reason(record)
        return f"promise {record.id!r} {_ENDS[record.state]}{f' ({render.clean(reason)})' if reason else ''}; {more}"
    if task is not None and task.state is TaskState.HALTED:
        return f"promise {record.id!r} is halted: correct its code, then `dasync resume {record.id}`"
    return f"promise {record.id!r} is pending still and goes on; `dasync wait {record.id}` waits again"


@asynccontextmanager
async def _told(id: str) -> AsyncIterator[None]:
    """Tell a person who sits before a terminal that this waits, and for how long."""
    if not sys.stderr.isatty():
        yield
        return
    teller = asyncio.create_task(_tell(id))
    try:
        yield
    finally:
        teller.cancel()
        with suppress(asyncio.CancelledError):
            await teller


async def _tell(id: str) -> None:
    clock = SystemClock()
    began = clock.monotonic()
    await clock.sleep(TELL_AFTER_S)
    from rich.console import Console
    from rich.text import Text

    with Console(stderr=True).status("") as status:
        while True:
            waited = render.duration(round(clock.monotonic() - began) * 1000)
            status.update(Text(f"waits for {render.clean(id)}, {waited} so far"))
            await clock.sleep(1)
