"""What durability costs: dasync beside raw aiosqlite, in one run, on one disk.

    python benchmarks/core.py [--runs 5] [--only sequential,concurrent,remote,steps] [--json]

For each durability ("process": synchronous=NORMAL, "power": FULL), turn by turn so that a drifting machine hits both:

- sequential: durable child invocations one after the other, against awaited single-row INSERTs, each its own commit;
- concurrent: 2,000 executions of 5 children each (12,000 promises), against `executemany` of 12,000 rows of the same
  shape, 1,000 a transaction;
- remote: the round trip of one invocation to another process, p50 and p99;
- steps: the cost of a step of one execution of 100, 1,000 and 10,000 steps: it must not grow.

Figures are medians over the runs; the ratio is dasync's rate by the raw rate of the same run. Nothing is asserted.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path

import aiosqlite
import anyio

import dasync

EXECUTIONS, CHILDREN = 2_000, 5
ROWS = EXECUTIONS * (CHILDREN + 1)
SINGLES = 1_000
ROUND_TRIPS = 500
GROUP = "benchmark"
TABLE = (
    "CREATE TABLE promises (id TEXT PRIMARY KEY, function TEXT, version INTEGER, param BLOB, target TEXT, creator TEXT,"
    " timer INTEGER, timeout_at INTEGER, tags TEXT, created_at INTEGER, born_after INTEGER, state TEXT,"
    " settled_at INTEGER, value BLOB, turn INTEGER, checksum INTEGER) WITHOUT ROWID"
)
INSERT = "INSERT INTO promises VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"


@dasync.function
async def increment(x: int) -> int:
    return x + 1


@dasync.function
async def chain(steps: int) -> int:
    value = 0
    for _ in range(steps):
        value = await increment(value)
    return value


@dasync.function(on=GROUP)
async def echo(x: int) -> int:
    return x


def row(number: int) -> tuple[object, ...]:
    at = 1_700_000_000_000
    birth = (f"chain:{number}", "increment", 1, b"\x91\x01", None, "chain", 0, None, "", at)
    return (*birth, at * 1024, "resolved", at, b"\x02", at * 1024 + number, number)


async def raw_connection(path: Path, durability: str) -> aiosqlite.Connection:
    connection = await aiosqlite.connect(path, isolation_level=None)
    await connection.execute("PRAGMA journal_mode = WAL")
    await connection.execute(f"PRAGMA synchronous = {'FULL' if durability == 'power' else 'NORMAL'}")
    await connection.execute(TABLE)
    return connection


async def timed(work: Callable[[], Awaitable[object]]) -> float:
    begun = time.perf_counter()
    await work()
    return time.perf_counter() - begun


async def raw_singles(path: Path, durability: str) -> float:
    connection = await raw_connection(path, durability)

    async def insert() -> None:
        for number in range(SINGLES):
            await connection.execute(INSERT, row(number))

    taken = await timed(insert)
    await connection.close()
    return SINGLES / taken


async def raw_many(path: Path, durability: str) -> float:
    connection = await raw_connection(path, durability)

    async def insert() -> None:
        for start in range(0, ROWS, 1_000):
            await connection.execute("BEGIN")
            await connection.executemany(INSERT, [row(number) for number in range(start, start + 1_000)])
            await connection.execute("COMMIT")

    taken = await timed(insert)
    await connection.close()
    return ROWS / taken


async def sequential(path: Path, durability: str) -> float:
    async with dasync.EventLoop(str(path), durability=durability):  # type: ignore[arg-type]  # one of the two
        await chain(10)
        return SINGLES / await timed(lambda: chain(SINGLES))


async def concurrent(path: Path, durability: str) -> float:
    async with dasync.EventLoop(str(path), durability=durability, concurrency=EXECUTIONS):  # type: ignore[arg-type]
        await chain(10)
        return ROWS / await timed(lambda: asyncio.gather(*[chain(CHILDREN) for _ in range(EXECUTIONS)]))


async def remote(path: Path, durability: str) -> list[float]:
    async with dasync.EventLoop(str(path), durability=durability):  # type: ignore[arg-type]
        worker = await anyio.open_process([sys.executable, __file__, "--worker", str(path), durability])
        try:
            for number in range(20):
                await echo(number)
            return [await timed(lambda: echo(1)) for _ in range(ROUND_TRIPS)]
        finally:
            worker.terminate()
            await worker.wait()


async def work(path: str, durability: str) -> None:
    async with dasync.EventLoop(path, group=GROUP, durability=durability):  # type: ignore[arg-type]
        await asyncio.Event().wait()


async def steps(path: Path, durability: str) -> dict[str, float]:
    async with dasync.EventLoop(str(path), durability=durability):  # type: ignore[arg-type]
        await chain(10)
        return {str(count): 1e6 * await timed(lambda: chain(count)) / count for count in (100, 1_000, 10_000)}  # noqa: B023  # awaited at once


Measured = Callable[[Path, str], Coroutine[object, object, float]]


def compare(name: str, durability: str, runs: int, ours: Measured, raw: Measured) -> dict[str, object]:
    mine, theirs = [], []
    for run in range(runs):
        with tempfile.TemporaryDirectory() as folder:
            theirs.append(asyncio.run(raw(Path(folder, "raw.db"), durability)))
            mine.append(asyncio.run(ours(Path(folder, "dasync.db"), durability)))
        print(f"  {name}/{durability} run {run + 1} of {runs}", file=sys.stderr)
    return {
        "benchmark": name,
        "durability": durability,
        "dasync_per_s": round(statistics.median(mine)),
        "raw_per_s": round(statistics.median(theirs)),
        "ratio": round(statistics.median(m / t for m, t in zip(mine, theirs, strict=True)), 3),
    }


def measure(runs: int, only: set[str]) -> list[dict[str, object]]:
    results: list[dict[str, object]] = []
    for durability in ("process", "power"):
        if "sequential" in only:
            results.append(compare("sequential", durability, runs, sequential, raw_singles))
        if "concurrent" in only:
            results.append(compare("concurrent", durability, runs, concurrent, raw_many))
        with tempfile.TemporaryDirectory() as folder:
            if "remote" in only:
                taken = sorted(asyncio.run(remote(Path(folder, "remote.db"), durability)))
                results.append({
                    "benchmark": "remote",
                    "durability": durability,
                    "p50_ms": round(1e3 * taken[len(taken) // 2], 2),
                    "p99_ms": round(1e3 * taken[len(taken) * 99 // 100], 2),
                })
            if "steps" in only:
                costs = [asyncio.run(steps(Path(folder, f"steps-{run}.db"), durability)) for run in range(runs)]
                medians = {count: round(statistics.median(cost[count] for cost in costs)) for count in costs[0]}
                results.append({"benchmark": "steps", "durability": durability, "us_per_step": medians})
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--only", default="sequential,concurrent,remote,steps")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        asyncio.run(work(*options.worker))
        return
    results = measure(options.runs, set(options.only.split(",")))
    if options.json:
        print(json.dumps({"python": sys.version.split()[0], "cpus": os.cpu_count(), "results": results}))
        return
    for result in results:
        print("  ".join(f"{key}={value}" for key, value in result.items()))


if __name__ == "__main__":
    main()
