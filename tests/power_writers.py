"""What runs on the disk that forgets: writers whose every acknowledgement stands in its log.

    python tests/power_writers.py KIND PATH NAME DURABILITY COUNT

`batches` commits through the store, as several executions at once do; `program` awaits durable functions, as a program
does. What they have written can be told by their names and numbers alone.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
from collections.abc import Callable
from functools import cache

import dasync
from dasync.core import protocol as p
from dasync.core.model import State
from dasync.stores import sqlite
from dasync.stores.sqlite import Durability, SqliteStore
from dasync.system import SystemClock

ROWS = 3  # of a batch
SHORT_WAL = 100_000  # bytes: so that there are many checkpoints


@cache
def payload(id: str) -> bytes:
    rng = random.Random(id)
    return rng.randbytes(rng.randrange(800))


@dasync.function
async def echo(id: str) -> bytes:
    return payload(id)


async def batches(path: str, name: str, durability: Durability, count: int, ack: Callable[[int], None]) -> None:
    """Each batch makes `ROWS` promises and settles those of the one before; a heartbeat, which waits for no disk, comes
    between some."""
    store = SqliteStore(path, SystemClock(), durability)
    await store.open()
    await store.transact([p.ProcessJoin(name, name, "g", "elsewhere", "", 600_000)])
    for number in range(count):
        made = [f"{name}-{number}-{row}" for row in range(ROWS)]
        before = [f"{name}-{number - 1}-{row}" for row in range(ROWS) if number]
        await store.transact([
            *(p.PromiseCreate(id, "", 1, payload(id)) for id in made),
            *(p.PromiseSettle(id, State.RESOLVED, payload(id)) for id in before),
        ])
        ack(number)
        if number % 4 == 0:
            await store.transact([p.ProcessHeartbeat(name)])
    os._exit(0)  # as the power cut finds it: still open


async def program(path: str, name: str, durability: Durability, count: int, ack: Callable[[int], None]) -> None:
    async with dasync.EventLoop(path, durability=durability, group=name, poll=0.05):
        for number in range(count):
            id = f"{name}-{number}"
            assert await echo.options(id=id)(id) == payload(id)
            ack(number)
        os._exit(0)


def main(kind: str, path: str, name: str, durability: str, count: str) -> None:
    sqlite.CHECKPOINT_BYTES = SHORT_WAL
    acks = os.open(os.path.join(os.path.dirname(path), f"acks-{name}"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    write = {"batches": batches, "program": program}[kind]
    asyncio.run(write(path, name, durability, int(count), lambda number: _said(acks, number)))  # type: ignore[arg-type]


def _said(acks: int, number: int) -> None:
    os.write(acks, f"{number}\n".encode())


if __name__ == "__main__":
    main(*sys.argv[1:])
