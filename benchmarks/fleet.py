"""Many processes on one store: what passes through them, who takes over and when, what waiting costs.

    python benchmarks/fleet.py [--runs 3] [--only throughput,takeover,restart,idle] [--json]

- throughput: remote invocations per second, 100 in flight, two workers, at "process" durability, against awaited
  single-row INSERTs of aiosqlite in the same run;
- takeover: from the end of a worker to the first step of its task in another one: killed (kernel lock: at most poll
  + 0.3 s), stopped (at most its lease + 0.3 s), told to end (at once);
- restart: 1,000 executions have come half-way when every process is killed; from the start of the next one until all
  of them are complete;
- idle: 10,000 executions that wait: the share of a core and the memory of their process over ten seconds.

Figures are medians over the runs, for takeover the longest of them. Nothing is asserted.
"""

# ruff: noqa: ASYNC110, ASYNC230, ASYNC240  # it looks on from outside: there is nobody to hold up

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path

import aiosqlite

import dasync

GROUP = "fleet"
INVOCATIONS, IN_FLIGHT, INSERTS = 4_000, 100, 2_000
LEASE_S, POLL_S = 2.0, 0.25
CROWD, IDLE = 1_000, 10_000
IDLE_S = 10


@dasync.function(on=GROUP)
async def echo(x: int) -> int:
    return x


@dasync.function(on=GROUP)
async def loiter(ledger: str) -> None:
    with open(ledger, "a") as file:
        file.write(f"{os.getpid()} {time.monotonic()}\n")
    while not Path(f"{ledger}.go").exists():
        await asyncio.sleep(0.01)


@dasync.function
async def step(x: int) -> int:
    return x


@dasync.function(on=GROUP)
async def half_way(number: int) -> int:
    first = await step(number)
    await dasync.promise(id="gate")
    return await step(first)


async def work(path: str) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with dasync.EventLoop(path, group=GROUP, durability="process", lease=LEASE_S, poll=POLL_S) as loop:
        await stop.wait()
        await loop.drain(0)


@asynccontextmanager
async def workers(path: str, count: int) -> AsyncIterator[list[asyncio.subprocess.Process]]:
    command = (sys.executable, __file__, "--worker", path)
    found = [await asyncio.create_subprocess_exec(*command) for _ in range(count)]
    try:
        yield found
    finally:
        for one in found:
            if one.returncode is None:
                one.send_signal(signal.SIGCONT)
                one.kill()
                await one.wait()


def opened(path: str) -> dasync.EventLoop:
    return dasync.EventLoop(path, group="callers", durability="process", lease=60, poll=POLL_S)


# -- what is measured


async def throughput(folder: str) -> dict[str, float]:
    async with aiosqlite.connect(f"{folder}/raw.db", isolation_level=None) as raw:
        await raw.execute("PRAGMA journal_mode = WAL")
        await raw.execute("PRAGMA synchronous = NORMAL")
        await raw.execute("CREATE TABLE rows (id INTEGER PRIMARY KEY, value BLOB)")
        begun = time.perf_counter()
        for number in range(INSERTS):
            await raw.execute("INSERT INTO rows VALUES (?, ?)", (number, b"value"))
        raw_per_s = INSERTS / (time.perf_counter() - begun)
    path, gate = f"{folder}/t.db", asyncio.Semaphore(IN_FLIGHT)

    async def one(number: int) -> None:
        async with gate:
            assert await echo(number) == number

    async with opened(path), workers(path, 2):
        await asyncio.gather(*map(one, range(200)))
        begun = time.perf_counter()
        await asyncio.gather(*map(one, range(INVOCATIONS)))
        per_s = INVOCATIONS / (time.perf_counter() - begun)
    return {"per_s": round(per_s), "raw_inserts_per_s": round(raw_per_s), "ratio": round(per_s / raw_per_s, 3)}


async def takeover(folder: str) -> dict[str, float]:
    found = {}
    for how, signals in (("killed", signal.SIGKILL), ("stopped", signal.SIGSTOP), ("told_to_end", signal.SIGTERM)):
        path, ledger = f"{folder}/{how}.db", Path(folder, how)
        async with opened(path), workers(path, 2):
            promise = loiter(str(ledger))
            while not ledger.exists() or not ledger.read_text().endswith("\n"):
                await asyncio.sleep(0.01)
            first = int(ledger.read_text().split()[0])
            await asyncio.sleep(LEASE_S / 2)
            ended = time.monotonic()
            os.kill(first, signals)
            while ledger.read_text().count("\n") < 2:
                await asyncio.sleep(0.005)
            found[f"{how}_s"] = round(float(ledger.read_text().splitlines()[1].split()[1]) - ended, 3)
            Path(f"{ledger}.go").touch()
            await promise
    return found


async def restart(folder: str) -> dict[str, float]:
    path = f"{folder}/r.db"
    async with opened(path) as loop:
        promises = [half_way.options(id=f"half-{number}")(number) for number in range(CROWD)]
        async with workers(path, 2):
            while len((await loop.search(function="step", state=dasync.State.RESOLVED, limit=1000)).found) < CROWD:
                await asyncio.sleep(0.05)
    async with opened(path) as loop:
        await dasync.promise(id="gate").resolve()
        begun = time.perf_counter()
        async with workers(path, 2):
            await dasync.all(*(loop.get(promise.id, int) for promise in promises))
            return {"executions": CROWD, "complete_after_s": round(time.perf_counter() - begun, 2)}


async def idle(folder: str) -> dict[str, float]:
    command = (sys.executable, __file__, "--idle", f"{folder}/i.db")
    one = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    said, _ = await one.communicate()
    found: dict[str, float] = json.loads(said)
    return found


async def sit(path: str) -> None:
    async with dasync.EventLoop(path, group=GROUP, durability="process") as loop:
        before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        promises = [half_way.options(id=f"half-{number}")(number) for number in range(IDLE)]
        while loop.snapshot().waiting < IDLE:
            await asyncio.sleep(0.1)
        await asyncio.sleep(1)
        begun, used = time.perf_counter(), time.process_time()
        await asyncio.sleep(IDLE_S)
        share = (time.process_time() - used) / (time.perf_counter() - begun)
        kib = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 1024
        print(json.dumps({
            "executions": len(promises), "core_percent": round(100 * share, 2),
            "mib": round(kib / 1024, 1), "mib_without_them": round(before_kib / 1024, 1),
        }), flush=True)  # fmt: skip
        os._exit(0)


MEASURES = {"throughput": throughput, "takeover": takeover, "restart": restart, "idle": idle}


async def measure(name: str, runs: int) -> dict[str, object]:
    found = []
    for run in range(runs):
        with tempfile.TemporaryDirectory() as folder:
            found.append(await MEASURES[name](folder))
        print(f"  {name} run {run + 1} of {runs}", file=sys.stderr)
    over = max if name == "takeover" else statistics.median
    return {"benchmark": name, **{key: over([one[key] for one in found]) for key in found[0]}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--only", default=",".join(MEASURES))
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--worker", metavar="STORE", help=argparse.SUPPRESS)
    parser.add_argument("--idle", metavar="STORE", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.worker or asked.idle:
        role: Coroutine[object, object, None] = work(asked.worker) if asked.worker else sit(asked.idle)
        asyncio.run(role)
        return
    for name in asked.only.split(","):
        found = asyncio.run(measure(name, asked.runs))
        told = "  ".join(f"{key}={value}" for key, value in found.items())
        print(json.dumps(found) if asked.json else told, flush=True)


if __name__ == "__main__":
    main()
