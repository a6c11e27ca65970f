"""What batching saves: users, each a durable invocation of its own, inserted into an SQLite table.

    python benchmarks/batching.py [--users 10000] [--runs 3] [--store memory,process,power] [--json]

Each user is a root, an execution of its own that inserts it:

- sequential: one user after the other, each committed by itself;
- by itself: all users at once, each committed by itself;
- batched: all users at once, committed as the batches come (`max_size=1000, max_wait=0.01`).

Beside them in the same run, turn by turn, stands the floor that no durable program can reach: raw sqlite3 with as many
single commits, and with one executemany. The table is on disk throughout (WAL, synchronous=FULL), and the handlers
insert on the asyncio loop: threads would cost the single inserts most. dasync's own store is in memory, as in the
figures that were published of the idea (3.459524 s against 0.733565 s, about a dozen commits), or with `--store` a file
at durability "process" or "power". Figures are medians over the runs; nothing is asserted but that all users are there.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import NamedTuple

import dasync

INSERT = "INSERT INTO users (value) VALUES (?)"
MAX_SIZE, MAX_WAIT_S = 1_000, 0.01


class Taken(NamedTuple):
    """What one way took."""

    seconds: float
    calls: int = 0
    """How often a handler, or the single insert, was called."""
    transactions: int = 0
    """Of dasync's own store."""


class Table:
    """The users."""

    connection: sqlite3.Connection
    calls: int

    def open(self, folder: str) -> None:
        self.connection = sqlite3.connect(Path(folder, "users.db"), isolation_level=None)
        self.connection.execute("PRAGMA journal_mode = WAL")
        self.connection.execute("PRAGMA synchronous = FULL")
        self.connection.execute("CREATE TABLE users (id INTEGER PRIMARY KEY, value INTEGER)")
        self.calls = 0

    def close(self, users: int) -> None:
        count, distinct = self.connection.execute("SELECT count(*), count(DISTINCT value) FROM users").fetchone()
        assert count == distinct == users, f"{count} rows of {distinct} users, and not of {users}"
        self.connection.close()

    def insert(self, user: int) -> None:
        self.calls += 1
        self.connection.execute(INSERT, (user,))

    def insert_each(self, users: list[int]) -> None:
        for user in users:
            self.insert(user)

    def insert_many(self, users: list[int]) -> None:
        self.calls += 1
        self.connection.execute("BEGIN")
        self.connection.executemany(INSERT, [(user,) for user in users])
        self.connection.execute("COMMIT")


table = Table()


@dasync.function
async def insert_user_by_itself(user: int) -> None:
    table.insert(user)


@dasync.batched(max_size=MAX_SIZE, max_wait=MAX_WAIT_S)
async def insert_user(users: list[int]) -> None:
    table.insert_many(users)


async def one_after_the_other(users: int) -> None:
    for user in range(users):
        await insert_user_by_itself(user)


async def all_by_themselves(users: int) -> None:
    await asyncio.gather(*map(insert_user_by_itself, range(users)))


async def all_in_batches(users: int) -> None:
    await asyncio.gather(*map(insert_user, range(users)))


WAYS: dict[str, Callable[[int], Awaitable[None]]] = {
    "sequential": one_after_the_other, "by_itself": all_by_themselves, "batched": all_in_batches,
}  # fmt: skip
FLOORS: dict[str, Callable[[list[int]], None]] = {
    "raw_single_commits": table.insert_each, "raw_executemany": table.insert_many,
}  # fmt: skip


def floor(name: str, users: int) -> Taken:
    with tempfile.TemporaryDirectory() as folder:
        table.open(folder)
        begun = time.perf_counter()
        FLOORS[name](list(range(users)))
        taken = Taken(time.perf_counter() - begun, table.calls)
        table.close(users)
    return taken


async def durable(name: str, users: int, kind: str) -> Taken:
    with tempfile.TemporaryDirectory() as folder:
        store = "memory:" if kind == "memory" else str(Path(folder, "dasync.db"))
        table.open(folder)
        async with dasync.EventLoop(
            store, durability="power" if kind == "power" else "process", concurrency=users
        ) as loop:
            begun = time.perf_counter()
            await WAYS[name](users)
            seconds = time.perf_counter() - begun
            taken = Taken(seconds, table.calls, loop.snapshot().batches)
        table.close(users)
    return taken


def medians(runs: list[Taken]) -> dict[str, float | int]:
    seconds, calls, transactions = (statistics.median(figures) for figures in zip(*runs, strict=True))
    return {"seconds": round(seconds, 4), "calls": round(calls), "transactions": round(transactions)}


def measure(users: int, runs: int, kind: str) -> dict[str, object]:
    taken: dict[str, list[Taken]] = {name: [] for name in (*WAYS, *FLOORS)}
    for run in range(runs):
        for name in FLOORS:
            taken[name].append(floor(name, users))
        for name in WAYS:
            taken[name].append(asyncio.run(durable(name, users, kind)))
        print(f"  {kind} run {run + 1} of {runs}", file=sys.stderr)

    def ratio(one: str, other: str) -> float:
        pairs = zip(taken[one], taken[other], strict=True)
        return round(statistics.median(a.seconds / b.seconds for a, b in pairs), 2)

    return {
        "store": kind,
        "users": users,
        **{name: medians(figures) for name, figures in taken.items()},
        "ratios": {
            "sequential / batched": ratio("sequential", "batched"),
            "by_itself / batched": ratio("by_itself", "batched"),
            "raw_single_commits / raw_executemany": ratio("raw_single_commits", "raw_executemany"),
            "batched / raw_single_commits": ratio("batched", "raw_single_commits"),
        },
    }


def tell(result: dict[str, object]) -> None:
    print(f"{result['users']:,} users, dasync's store: {result['store']}")
    for name in (*WAYS, *FLOORS):
        figures = result[name]
        assert isinstance(figures, dict)
        store = f", {figures['transactions']:>6,} transactions of the store" * (name in WAYS)
        print(f"  {name:<20} {figures['seconds']:>9.4f} s, {figures['calls']:>6,} calls, each a commit of users{store}")
    ratios = result["ratios"]
    assert isinstance(ratios, dict)
    for name, value in ratios.items():
        print(f"  {name:<38} {value:g}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=10_000)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--store", default="memory", help="of memory, process, power: one or several, with commas")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    results = [measure(options.users, options.runs, kind) for kind in options.store.split(",")]
    if options.json:
        print(json.dumps({"python": sys.version.split()[0], "cpus": os.cpu_count(), "results": results}))
        return
    for result in results:
        tell(result)


if __name__ == "__main__":
    main()
