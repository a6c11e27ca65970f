"""The commands that look at a store or change one thing in it.

They open the store itself, never join as a process and never make a store that is not there. What they change they
say in one command; whom it concerns is woken by the doorbells that come back. What may be changed is the law's say.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import NamedTuple, TypedDict, TypeVar

from dasync.cli import facts
from dasync.core import codec
from dasync.core.model import State
from dasync.core.protocol import PromiseGet, PromiseSettle, Status, TaskContinue
from dasync.errors import DasyncError, PromiseConflict, PromiseNotFound, StoreUnavailable
from dasync.ports import Search
from dasync.stores.sqlite import SqliteStore
from dasync.system import SystemClock
from dasync.transports import local

T = TypeVar("T")
MAX_PAYLOAD_BYTES = 2 * 2**20  # as an EventLoop's own default
_URL = "sqlite:///"


class Resolved(TypedDict):
    """What `resolve` prints."""

    id: str
    state: str
    value: object
    changed: bool


class Resumed(TypedDict):
    """What `resume` prints."""

    id: str
    task: facts.TaskFacts


class Wanted(NamedTuple):
    """Which promises to list."""

    state: str | None
    function: str | None
    limit: int
    cursor: str


def run(command: Coroutine[object, object, T]) -> T:
    """Run a command on an asyncio loop of its own."""
    return asyncio.run(command)


async def show(store: str, id: str) -> facts.Shown:
    """All that the store knows of a promise."""
    async with _opened(store) as rows:
        found = await rows.subtree(id)
    if id not in found.promises:
        raise _not_found(store, id)
    return facts.shown(found, id, SystemClock().now_ms())


async def tree(store: str, id: str) -> facts.Tree:
    """A promise and all below it."""
    async with _opened(store) as rows:
        found = await rows.subtree(id)
    if id not in found.promises:
        raise _not_found(store, id)
    return facts.tree(found, id, SystemClock().now_ms())


async def search(store: str, wanted: Wanted) -> facts.Listing:
    """Promises in the order of their ids."""
    state = None if wanted.state is None else State(wanted.state)
    async with _opened(store) as rows:
        found = await rows.search(
            Search(state, wanted.function, limit=wanted.limit + 1, cursor=wanted.cursor)
        )
    kept, now_ms = found[: wanted.limit], SystemClock().now_ms()
    return facts.Listing(
        promises=[facts.brief(one.promise, one.task, now_ms) for one in kept],
        cursor=kept[-1].promise.id if len(found) > wanted.limit else None,
    )


async def resolve(store: str, id: str, value: object) -> Resolved:
    """Resolve a promise that `dasync.promise()` made."""
    data = codec.encode(value, limit=MAX_PAYLOAD_BYTES)
    async with _opened(store) as rows:
        looked = await rows.transact([PromiseGet(id)])  # which settles it if its deadline has passed
        local.ring(looked.doorbells)
        before = looked.replies[0].promise
        if before is None:
            raise _not_found(store, id)
        if before.function:
            raise PromiseConflict(
                f"promise {id!r} is settled by {before.function!r}; only those of dasync.promise() are resolved by hand"
            )
        committed = await rows.transact([PromiseSettle(id, State.RESOLVED, data)])
    local.ring(committed.doorbells)
    after = committed.replies[0].promise
    if after is None or after.state is not State.RESOLVED or after.value != data:
        state = "gone" if after is None else after.state.value
        raise PromiseConflict(f"promise {id!r} is {state} with another outcome; `dasync show` tells it")
    return Resolved(id=id, state=after.state.value, value=facts.jsonable(value), changed=before.state is State.PENDING)


async def resume(store: str, id: str) -> Resumed:
    """Send a halted task again."""
    async with _opened(store) as rows:
        committed = await rows.transact([TaskContinue(id)])
    local.ring(committed.doorbells)
    reply = committed.replies[0]
    if reply.status is Status.NOT_FOUND:
        raise PromiseNotFound(f"{store} holds no task {id!r}: only a promise that has a target has one; try its parent")
    if reply.status is not Status.OK or reply.task is None:
        raise DasyncError(f"{reply.reason}, not halted: there is nothing to resume")
    return Resumed(id=id, task=facts.task_facts(reply.task))


@asynccontextmanager
async def _opened(store: str) -> AsyncIterator[SqliteStore]:
    """The store that is there. Raises `StoreUnavailable` where there is none."""
    rows = SqliteStore(_existing(store_path(store)), SystemClock())
    await rows.open()
    try:
        yield rows
    finally:
        await rows.close()


def _existing(path: str) -> str:
    if not os.path.exists(path) or os.path.getsize(path) == 0:
        raise StoreUnavailable(f"there is no store at {path}; name one with --store PATH or DASYNC_STORE")
    return path


def store_path(store: str) -> str:
    """The file that `store`, a path or `sqlite:///path`, names."""
    if store == "memory:" or ("://" in store and not store.startswith(_URL)):
        raise StoreUnavailable(f"{store!r} cannot be looked into from here; name a file with --store PATH")
    return store.removeprefix(_URL)


def _not_found(store: str, id: str) -> PromiseNotFound:
    return PromiseNotFound(f"{store} holds no promise {id!r}; `dasync list` shows those that it holds")
