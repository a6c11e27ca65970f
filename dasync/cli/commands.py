"""The commands that look at a store, and how every command opens the one that it is about.

They open the store itself, never join as a process and never make a store that is not there.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import NamedTuple, TypeVar

from dasync.cli import facts
from dasync.core.model import State, TaskState
from dasync.errors import PromiseNotFound, StoreUnavailable
from dasync.ports import Search
from dasync.stores.sqlite import SqliteStore
from dasync.system import SystemClock

T = TypeVar("T")
MAX_PAYLOAD_BYTES = 2 * 2**20  # as an EventLoop's own default
_URL = "sqlite:///"


class Wanted(NamedTuple):
    """Which promises to list."""

    state: str | None
    function: str | None
    task_state: str | None
    roots: bool
    limit: int
    cursor: str


def run(command: Coroutine[object, object, T]) -> T:
    """Run a command on an asyncio loop of its own."""
    return asyncio.run(command)


async def show(store: str, id: str) -> facts.Shown:
    """All that the store knows of a promise."""
    async with opened(store) as rows:
        found = await rows.subtree(id)
    if id not in found.promises:
        raise not_found(store, id)
    return facts.shown(found, id, SystemClock().now_ms())


async def tree(store: str, id: str) -> facts.Tree:
    """A promise and all below it."""
    async with opened(store) as rows:
        found = await rows.subtree(id)
    if id not in found.promises:
        raise not_found(store, id)
    return facts.tree(found, id, SystemClock().now_ms())


async def search(store: str, wanted: Wanted) -> facts.Listing:
    """Promises in the order of their ids."""
    state = None if wanted.state is None else State(wanted.state)
    task_state = None if wanted.task_state is None else TaskState(wanted.task_state)
    search = Search(
        state, wanted.function, roots=wanted.roots, task_state=task_state, limit=wanted.limit + 1, cursor=wanted.cursor
    )
    async with opened(store) as rows:
        found = await rows.search(search)
    kept, now_ms = found[: wanted.limit], SystemClock().now_ms()
    found_now = [facts.brief(one.promise, one.task, now_ms) for one in kept]
    return facts.Listing(
        # One whose deadline has come since is settled, though nobody was up to write it.
        promises=[one for one in found_now if state is None or one["state"] == state.value],
        cursor=kept[-1].promise.id if len(found) > wanted.limit else None,
    )


@asynccontextmanager
async def opened(store: str) -> AsyncIterator[SqliteStore]:
    """The store that is there. Raises `StoreUnavailable` where there is none."""
    rows = SqliteStore(existing(store), SystemClock())
    await rows.open()
    try:
        yield rows
    finally:
        await rows.close()


def existing(store: str) -> str:
    """The file of the store that is there. Raises `StoreUnavailable` where there is none."""
    path = store_path(store)
    if not os.path.exists(path) or os.path.getsize(path) == 0:
        raise StoreUnavailable(f"there is no store at {path}; name one with --store PATH or DASYNC_STORE")
    return path


def store_path(store: str) -> str:
    """The file that `store`, a path or `sqlite:///path`, names."""
    if store == "memory:" or ("://" in store and not store.startswith(_URL)):
        raise StoreUnavailable(f"{store!r} cannot be looked into from here; name a file with --store PATH")
    return store.removeprefix(_URL)


def not_found(store: str, id: str) -> PromiseNotFound:
    """What is raised for a promise that is not there."""
    return PromiseNotFound(f"{store} holds no promise {id!r}; `dasync list` shows those that it holds")
