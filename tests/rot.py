"""A store with a few hundred promises of all kinds, what must be read from it, and its bits, one of which flips.

`make` leaves the store of a process that was killed. `look` reads all that is in one, as a program does that goes on,
and says in one word what came of it; nothing here knows where the bit was.
"""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import sqlite3
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, suppress
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

import dasync
import dasync.runtime.decisions  # not in the child: pytest rewrites what is imported, which 3.11 cannot do there
from dasync.core.invariants import Snapshot
from dasync.core.model import PromiseRecord
from dasync.core.protocol import PromiseGet, TaskGet
from dasync.errors import StoreCorrupt
from dasync.runtime import registry
from dasync.stores.sqlite import SqliteStore
from dasync.system import SystemClock

ROOTS, FAILED, CANCELED, ORDERS, WAITING, OPEN, LONG = 60, 15, 10, 20, 15, 15, 8
COUNT = ROOTS + FAILED + CANCELED + 4 * ORDERS + 5 * WAITING + OPEN + LONG
LONG_BYTES = 20_000
TOGETHER = 16  # promises that are asked for in one transaction, where none of them is damaged
PATIENCE_S = 5  # for all that goes on; a tenth of a second is usual
ran: list[str] = []
"""Leaves that ran in this process."""


@dasync.function(name="rot_price")
async def price(name: str) -> str:
    ran.append(name)
    return f"price of {name}"


@dasync.function(name="rot_fails")
async def fails(name: str) -> str:
    raise LookupError(f"no {name}")


@dasync.function(name="rot_long")
async def long(seed: int) -> bytes:
    ran.append(f"long {seed}")
    return long_value(seed)


@dasync.function(name="rot_order")
async def order(name: str) -> list[str]:
    return list(await asyncio.gather(*[price(f"{name}.{item}") for item in range(3)]))


@dasync.function(name="rot_waits")
async def waits(name: str) -> list[str]:
    prices = [await price(f"{name}.{item}") for item in range(3)]
    return [*prices, await dasync.promise(str, id=f"gate {name}")]


@cache
def long_value(seed: int) -> bytes:
    return random.Random(seed).randbytes(LONG_BYTES)


# -- the store ---------------------------------------------------------------------------------------------------


def make(path: str) -> None:
    """The store of a process that was killed when all was written: part of it is in the -wal."""
    pid = os.fork()
    if pid == 0:
        _live(path)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def _live(path: str) -> NoReturn:
    status = 1
    registry._conflicts.clear()  # the parent's, among test modules that this process has no use for
    try:
        asyncio.new_event_loop().run_until_complete(_fill(path))
        status = 0
    finally:
        os._exit(status)


async def _fill(path: str) -> None:
    async with dasync.EventLoop(path, durability="process", lease=600) as loop:
        for name in range(ROOTS):
            await price.options(id=f"root {name}", tags={"n": str(name)})(f"root {name}")
        for name in range(FAILED):
            with_error = fails.options(id=f"failed {name}")(f"failed {name}")
            await asyncio.wait([asyncio.ensure_future(with_error)])
        for name in range(CANCELED):
            stopped = dasync.promise(str, id=f"canceled {name}")
            await stopped.created()
            await stopped.cancel("because")
        for name in range(LONG):
            await long.options(id=f"long {name}")(name)
        for name in range(ORDERS):
            await order.options(id=f"order {name}")(f"order {name}")
        for name in range(WAITING):
            waits.options(id=f"waits {name}")(f"waits {name}")
        for name in range(OPEN):
            await dasync.promise(str, id=f"open {name}", timeout=86_400).created()
        while len([id for id in loop.awaiters if id.startswith("gate")]) < WAITING:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        for name in range(WAITING):
            await loop.get(f"gate waits {name}").created()
        os._exit(0)  # as kill -9: nothing more is written, nobody is told


def settle_down(path: str) -> None:
    """Everything is in the file itself, nothing in the -wal."""
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("SELECT count(*) FROM promises").fetchone()


def copy(path: str, to: str) -> None:
    """The files of a store that nobody has open; the -shm is made anew."""
    for kind in ("", "-wal"):
        if os.path.exists(path + kind):
            shutil.copyfile(path + kind, to + kind)
    folder = f"{path}-processes"
    if os.path.isdir(folder):
        shutil.copytree(folder, f"{to}-processes", ignore=shutil.ignore_patterns("*.bell"))


def remove(path: str) -> None:
    for kind in ("", "-wal", "-shm", "-lock"):
        Path(path + kind).unlink(missing_ok=True)
    shutil.rmtree(f"{path}-processes", ignore_errors=True)


def flip(path: str, byte: int, bit: int) -> None:
    with open(path, "r+b") as file:
        file.seek(byte)
        was = file.read(1)[0]
        file.seek(byte)
        file.write(bytes([was ^ 1 << bit]))


def rename_key(path: str, id: str, other: str) -> None:
    """The key of one promise, of `rot_price`, reads differently; the row stays where it is."""
    data, row, damaged = Path(path).read_bytes(), f"{id}rot_price".encode(), f"{other}rot_price".encode()
    assert row in data
    assert len(row) == len(damaged)
    Path(path).write_bytes(data.replace(row, damaged))


# -- what is in it -----------------------------------------------------------------------------------------------


async def records(path: str) -> dict[str, PromiseRecord]:
    """Every promise of a sound store."""
    return dict((await all_rows(path)).promises)


async def all_rows(path: str) -> Snapshot:
    async with _opened(path) as store:
        return await store.snapshot()


async def get(path: str, id: str) -> None:
    """Read a promise, and its task if it has one."""
    async with _opened(path) as store:
        await store.transact([PromiseGet(id), TaskGet(id)])


@asynccontextmanager
async def _opened(path: str) -> AsyncIterator[SqliteStore]:
    store = SqliteStore(path, SystemClock(), "process")
    try:
        await store.open()
        yield store
    finally:
        await store.close()


async def get_each(path: str, expected: dict[str, PromiseRecord]) -> Counter[str]:
    """Ask the store for every promise: how many are right, told to be corrupt, gone or wrong."""
    found, wanted = Counter[str](), list(expected)
    with suppress(StoreCorrupt):
        async with _opened(path) as store:
            for start in range(0, len(wanted), TOGETHER):
                found += await _get(store, wanted[start : start + TOGETHER], expected)
    found["told"] += len(wanted) - found.total()
    return +found


async def _get(store: SqliteStore, wanted: list[str], expected: dict[str, PromiseRecord]) -> Counter[str]:
    try:
        replies = (await store.transact([PromiseGet(id) for id in wanted])).replies
    except StoreCorrupt:
        if len(wanted) == 1:
            return Counter(told=1)
        return sum([await _get(store, [id], expected) for id in wanted], Counter())
    pairs = [(reply.promise, expected[id]) for id, reply in zip(wanted, replies, strict=True)]
    return Counter("gone" if found is None else "right" if found == sound else "wrong" for found, sound in pairs)


async def go_on(path: str) -> Counter[str]:
    """A program goes on: it asks for everything again, opens the gates, and looks what came of it."""
    found: Counter[str] = Counter()
    ran.clear()
    try:
        async with asyncio.timeout(PATIENCE_S), dasync.EventLoop(path, durability="process", poll=0.02) as loop:
            for name in range(WAITING):
                await loop.get(f"gate waits {name}", str).resolve(f"open {name}")
            outcomes = await asyncio.gather(*(_outcome(id, sound) for id, sound in _invocations()))
            found.update(outcomes)
    except StoreCorrupt:
        found["told"] += 1
    except TimeoutError:
        found["stuck"] += 1
    found["ran again"] += len(ran)
    return +found


def _invocations() -> Iterator[tuple[dasync.Promise[Any], object]]:
    """What the store's program has invoked, invoked again, and what it comes to."""
    for name in range(WAITING):
        prices = [f"price of waits {name}.{item}" for item in range(3)]
        yield waits.options(id=f"waits {name}")(f"waits {name}"), [*prices, f"open {name}"]
    for name in range(ROOTS):
        id = f"root {name}"
        yield price.options(id=id, tags={"n": str(name)})(id), f"price of {id}"
    for name in range(ORDERS):
        id = f"order {name}"
        yield order.options(id=id)(id), [f"price of {id}.{item}" for item in range(3)]
    for name in range(LONG):
        yield long.options(id=f"long {name}")(name), long_value(name)
    for name in range(FAILED):
        yield fails.options(id=f"failed {name}")(f"failed {name}"), (f"no failed {name}",)


async def _outcome(promise: dasync.Promise[object], sound: object) -> str:
    try:
        value = await promise
    except LookupError as error:
        value = error.args
    except StoreCorrupt:
        return "told"
    return "right" if value == sound else "wrong"
