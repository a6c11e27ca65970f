"""What waiting costs in memory: a pending promise that is held, and an execution that waits for one of its own.

    python benchmarks/memory.py [--count 100000] [--json]

Each is measured in a process of its own, as the growth of its resident set, with every execution kept resident
(`max_resident` high enough). Beside it stands the same number of plain asyncio tasks that wait for a future each.
Nothing is asserted.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path

import dasync

BATCH = 1_000
KINDS = ("asyncio", "promise", "execution")


@dasync.function
async def waits() -> None:
    await dasync.promise()


async def wait_for(future: asyncio.Future[None]) -> None:
    await future


def resident_bytes() -> int:
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def growth(count: int, make: Callable[[], Coroutine[object, object, Sequence[object]]]) -> float:
    """Bytes for each of `count` things, made a batch at a time."""
    kept = [await make()]  # what the first ones bring along is not theirs
    before = resident_bytes()
    for done in range(0, count, BATCH):
        kept.append(await make())
        if sys.stderr.isatty():
            print(f"\r{done + BATCH:,} of {count:,}", end="", file=sys.stderr, flush=True)
    await asyncio.sleep(1)
    return (resident_bytes() - before) / count


async def measure(kind: str, count: int, folder: str) -> float:
    if kind == "asyncio":
        loop = asyncio.get_running_loop()

        async def tasks() -> list[object]:
            return [asyncio.create_task(wait_for(loop.create_future())) for _ in range(BATCH)]

        return await growth(count, tasks)
    made: Callable[[], dasync.Promise[object]] = dasync.promise if kind == "promise" else waits
    room = 2 * count + 2 * BATCH
    async with dasync.EventLoop(
        f"{folder}/memory.db", durability="process", lease=600, concurrency=room, max_resident=room
    ):

        async def promises() -> list[object]:
            batch = [made() for _ in range(BATCH)]
            for promise in batch:
                await promise.created()
            return [*batch]

        return await growth(count, promises)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--kind", choices=KINDS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.kind:
        with tempfile.TemporaryDirectory() as folder:
            print(asyncio.run(measure(args.kind, args.count, folder)), flush=True)
            os._exit(0)  # nobody has to be told that they are gone
    bytes_each = {}
    for kind in KINDS:
        command = [sys.executable, __file__, "--kind", kind, "--count", str(args.count)]
        bytes_each[kind] = round(float(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout))
        if not args.json:
            ratio = bytes_each[kind] / bytes_each["asyncio"]
            print(f"{kind:<10} {bytes_each[kind]:>6,} bytes each, {ratio:.1f} times a waiting asyncio task")
    if args.json:
        print(json.dumps({"count": args.count, "bytes_each": bytes_each}))


if __name__ == "__main__":
    main()
