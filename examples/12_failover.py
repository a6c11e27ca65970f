"""Failover: a worker is killed in the middle of a sleep of three seconds, and another one finishes what it had begun.

Run it with `python examples/12_failover.py`: the sleep does not begin again, since when it ends is on record.
"""

import asyncio
import os
import signal
import subprocess
import sys
import time
from tempfile import TemporaryDirectory

import dasync


@dasync.function
async def who() -> int:
    return os.getpid()


@dasync.function(on="crew")
async def nap(seconds: float) -> list[int]:
    fell_asleep = await who()
    await dasync.sleep(seconds)
    return [fell_asleep, os.getpid()]


async def main(store: str) -> None:
    command = [sys.executable, "-m", "dasync", "worker", __file__, "--store", store, "--group", "crew"]
    crew = [subprocess.Popen(command, stdout=subprocess.DEVNULL) for _ in range(2)]  # noqa: ASYNC220  # at once
    names = {worker.pid: f"worker {number}" for number, worker in enumerate(crew, 1)}
    async with dasync.EventLoop(store) as loop:
        promise = nap.options(id="nap")(3)
        first = await loop.get("nap:0", int) if await begun(loop) else 0
        start, events = time.monotonic(), [(0.0, f"{names[first]} sleeps")]
        await asyncio.sleep(1)
        os.kill(first, signal.SIGKILL)
        events.append((time.monotonic() - start, f"{names[first]} is killed"))
        _, last = await promise
        events.append((time.monotonic() - start, f"{names[last]} goes on"))
    for at, what in events:
        print(f"{at:4.1f} s |{' ' * round(15 * at)}* {what}")
    for worker in crew:
        worker.terminate()
        worker.wait()


async def begun(loop: dasync.EventLoop) -> bool:
    while not (await loop.search(id_prefix="nap:0", state=dasync.State.RESOLVED)).found:  # noqa: ASYNC110  # elsewhere
        await asyncio.sleep(0.01)
    return True


if __name__ == "__main__":
    with TemporaryDirectory() as folder:
        asyncio.run(main(f"{folder}/failover.db"))
