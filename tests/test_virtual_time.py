"""Virtual time: months in milliseconds, the same in every run, and never past what the real world still has to do."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import anyio
import anyio.from_thread
import anyio.to_thread
import pytest

from dasync.testing import clock
from dasync.testing.clock import SeededEntropy, Stuck, VirtualClock, VirtualLoop, fifo, seeded

T = TypeVar("T")


def live(main: Callable[[], Coroutine[Any, Any, T]], loop: VirtualLoop | None = None) -> T:
    result = (loop or VirtualLoop()).live(main())
    assert result is not None
    return result


def now() -> float:
    return asyncio.get_running_loop().time()


def test_months_pass_in_milliseconds() -> None:
    """A quarter of a year takes some turns of the loop, and timers come in the order of their times."""
    came: list[tuple[int, float]] = []

    async def nap(days: int) -> None:
        await asyncio.sleep(days * 86_400)
        came.append((days, now()))

    async def main() -> int:
        await asyncio.gather(*map(nap, (90, 1, 30)))
        return VirtualClock(loop).now_ms()

    loop = VirtualLoop()
    began = time.perf_counter()
    assert live(main, loop) == clock.T0_MS + 90 * 86_400_000
    assert time.perf_counter() - began < 5
    assert came == [(days, days * 86_400.0) for days in (1, 30, 90)]
    assert loop.turns < 200


async def a_thread() -> None:
    await asyncio.to_thread(time.sleep, 0.05)


async def an_executor() -> None:
    await asyncio.get_running_loop().run_in_executor(None, time.sleep, 0.05)


async def an_anyio_thread() -> None:
    await anyio.to_thread.run_sync(time.sleep, 0.05)


async def a_subprocess() -> None:
    process = await asyncio.create_subprocess_exec("sh", "-c", "sleep 0.05; echo x", stdout=subprocess.PIPE)
    assert await process.communicate() == (b"x\n", None)


async def a_socket() -> None:
    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line = await reader.readline()
        await asyncio.to_thread(time.sleep, 0.02)
        writer.write(line)
        writer.close()

    server = await asyncio.start_server(slow, "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    writer.write(b"x\n")
    assert await reader.readline() == b"x\n"
    writer.close()
    await writer.wait_closed()
    server.close()


@pytest.mark.parametrize("work", [a_thread, an_executor, an_anyio_thread, a_subprocess, a_socket])
def test_time_stands_still_while_the_real_world_works(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """What a thread, a subprocess or a socket does takes no time at all, and comes before the next timer."""

    async def timed() -> float:
        await work()
        return now()

    async def main() -> list[float]:
        return await asyncio.gather(timed(), asyncio.sleep(0.001, 1.0))

    assert live(main) == [0.0, 1.0]


def test_a_thread_that_waits_for_the_loop_holds_nothing_up() -> None:
    """A thread that sleeps on the loop's own clock is woken by it."""

    def thread() -> float:
        anyio.from_thread.run(anyio.sleep, 3600)
        return anyio.from_thread.run_sync(now)

    async def main() -> float:
        return await anyio.to_thread.run_sync(thread)

    began = time.perf_counter()
    assert live(main) == 3600.0
    assert time.perf_counter() - began < 60


def test_an_idle_connection_does_not_stop_time() -> None:
    """A connection on which nothing comes counts for a moment of real time, a listening socket not at all."""

    async def main() -> float:
        met = asyncio.Event()

        async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            met.set()
            await reader.read()
            writer.close()

        server = await asyncio.start_server(silent, "127.0.0.1", 0)
        _, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        await met.wait()
        await asyncio.sleep(60)
        writer.close()
        await writer.wait_closed()
        server.close()
        return now()

    assert live(main) == 60.0


def test_a_loop_with_nothing_to_wait_for_says_who_waits_where() -> None:
    """A deadlock is an error that names the tasks, and one that spins is stopped."""

    async def stuck() -> None:
        await asyncio.Event().wait()

    async def main() -> None:
        await asyncio.create_task(stuck(), name="the one that is stuck")

    with pytest.raises(Stuck, match=rf"nothing is left to wait for\n(.*\n)?  the one that is stuck at .*{__name__}"):
        VirtualLoop().live(main())


def test_a_loop_that_spins_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that never lets time pass does not run for ever."""

    async def spins() -> None:
        while now() < 1:  # noqa: ASYNC110  # it spins, as it should not
            await asyncio.sleep(0)

    monkeypatch.setattr(clock, "MAX_TURNS", 1000)
    with pytest.raises(Stuck, match="something spins"):
        VirtualLoop().live(spins())


async def walk(names: str) -> str:
    """In which order so many tasks take their steps."""
    taken: list[str] = []

    async def step(name: str) -> None:
        for _ in range(3):
            taken.append(name)
            await asyncio.sleep(0)

    await asyncio.gather(*map(step, names))
    return "".join(taken)


def test_the_order_of_what_is_ready_is_drawn_from_a_seed() -> None:
    """First come, first served, unless a seed says otherwise; the same seed says the same, another one another."""

    def walked(policy: clock.Policy) -> str:
        return live(lambda: walk("abcd"), VirtualLoop(policy=policy))

    assert walked(fifo) == "abcd" * 3
    assert walked(seeded(b"1")) == walked(seeded(b"1")) != "abcd" * 3
    drawn = {walked(seeded(str(number).encode())) for number in range(10)}
    assert len(drawn) > 5
    assert all(sorted(one) == sorted("abcd" * 3) for one in drawn)


def test_entropy_is_that_of_its_seed() -> None:
    """The same bytes for the same seed."""
    one, same, other = SeededEntropy(b"1"), SeededEntropy(b"1"), SeededEntropy(b"2")
    drawn = [one.bytes(8) for _ in range(3)]
    assert drawn == [same.bytes(8) for _ in range(3)]
    assert len({*drawn, other.bytes(8)}) == 4


FROZEN = """
import asyncio, contextlib
from dasync.testing.clock import VirtualLoop

async def cleans_up(name):
    with contextlib.ExitStack() as stack:
        stack.callback(print, name, "exit")
        try:
            async with contextlib.AsyncExitStack() as inner:
                inner.push_async_callback(asyncio.sleep, 0)
                async for _ in forever(name):
                    await asyncio.sleep(0.1)
        except BaseException as error:
            print(name, type(error).__name__)
            raise
        finally:
            print(name, "finally")

async def forever(name):
    try:
        while True:
            yield await asyncio.sleep(0.01)
    finally:
        print(name, "generator")

async def main(loop):
    tasks = [asyncio.create_task(cleans_up(name)) for name in "ab"]
    tasks[0].add_done_callback(lambda _: print("callback"))
    loop.call_later(1, loop.freeze)
    loop.call_later(1, print, "after death")
    await asyncio.gather(*tasks)

loop = VirtualLoop()
print(loop.live(main(loop)), loop.is_frozen, loop.is_closed())
"""


def test_the_dead_do_nothing() -> None:
    """In a frozen loop no callback, no `finally` and no exit ever runs, not even when Python ends."""
    done = subprocess.run([sys.executable, "-X", "dev", "-c", FROZEN], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("None True True\n", "")
