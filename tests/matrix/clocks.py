"""The clock: sleep, timeout, wait_for, call_later."""

from __future__ import annotations

import asyncio
from typing import Any

import dasync
from matrix.catalogue import LONG_S, Seen, program


@program("a b c", clocked=True)
async def sleep() -> Any:
    seen = Seen()

    async def nap() -> None:
        await seen.one("a")
        await asyncio.sleep(LONG_S)
        seen.say("slept")
        await seen.one("b")

    await asyncio.gather(nap(), seen.one("c"))
    return seen.all


@program("a b c", clocked=True)
async def sleeps_of_two_lengths() -> Any:
    """The shorter one is over first, whenever they were begun."""
    seen = Seen()

    async def nap(length: float, name: str) -> None:
        await asyncio.sleep(length)
        seen.say(length)
        await seen.one(name)

    await asyncio.gather(nap(2 * LONG_S, "a"), nap(LONG_S, "b"), seen.one("c"))
    return seen.all


@program("a b c d")
async def sleep_of_no_length() -> Any:
    seen = Seen()

    async def yields(times: int, first: str, second: str) -> None:
        await seen.one(first)
        for turn in range(times):
            await asyncio.sleep(0)
            seen.say(f"{first} {turn}")
        await seen.one(second)

    await asyncio.gather(yields(3, "a", "b"), yields(1, "c", "d"))
    return seen.all


@program("a b", clocked=True)
async def timeout() -> Any:
    seen = Seen()
    try:
        async with asyncio.timeout(LONG_S):
            await seen.one("a")
    except TimeoutError:
        seen.say("timed out")
    await seen.one("b")
    return seen.all


@program("a b c d", clocked=True)
async def timeout_around_a_gather() -> Any:
    """How far each had come when the time was over shows."""
    seen = Seen()
    try:
        async with asyncio.timeout(LONG_S):
            await asyncio.gather(seen.sequence("a", "b"), seen.one("c"))
    except TimeoutError:
        seen.say("timed out")
    await seen.one("d")
    return seen.all


@program("a b", clocked=True)
async def timeout_in_a_timeout() -> Any:
    seen = Seen()
    try:
        async with asyncio.timeout(2 * LONG_S):
            try:
                async with asyncio.timeout(LONG_S):
                    await seen.one("a")
            except TimeoutError:
                seen.say("inner")
            await seen.one("b")
    except TimeoutError:
        seen.say("outer")
    return seen.all


@program("a b c", clocked=True)
async def timeout_around_a_queue() -> Any:
    """What is cut short waits for no promise."""
    seen, line = Seen(), asyncio.Queue[str]()

    async def feed() -> None:
        line.put_nowait(await seen.one("a"))

    feeding = asyncio.create_task(feed())
    try:
        async with asyncio.timeout(LONG_S):
            seen.say(f"got {await line.get()}")
    except TimeoutError:
        seen.say("timed out")
    await seen.one("b")
    await feeding
    await seen.one("c")
    return seen.all


@program("a b c", clocked=True)
async def timeout_that_is_rescheduled() -> Any:
    seen, loop = Seen(), asyncio.get_running_loop()
    try:
        async with asyncio.timeout(LONG_S) as scope:
            await seen.one("a")
            scope.reschedule(loop.time() + LONG_S)
            await seen.one("b")
    except TimeoutError:
        seen.say("timed out")
    await seen.one("c")
    return seen.all


@program("a b c", clocked=True)
async def wait_for() -> Any:
    seen = Seen()
    try:
        await asyncio.wait_for(seen.sequence("a", "b"), LONG_S)
    except TimeoutError:
        seen.say("timed out")
    await seen.one("c")
    return seen.all


@program("a b c", clocked=True)
async def wait_with_a_timeout() -> Any:
    seen = Seen()
    tasks = [asyncio.create_task(seen.one(name), name=name) for name in "ab"]
    done, pending = await asyncio.wait(tasks, timeout=LONG_S)
    seen.say([sorted(task.get_name() for task in some) for some in (done, pending)])
    await seen.one("c")
    if pending:
        await asyncio.wait(pending)
    return seen.all


@program("a b", clocked=True)
async def call_later() -> Any:
    seen, rung = Seen(), asyncio.Event()
    handle = asyncio.get_running_loop().call_later(LONG_S, rung.set)
    ringing = asyncio.create_task(rung.wait())
    first = asyncio.create_task(seen.one("a"))
    done, _ = await asyncio.wait((ringing, first), return_when=asyncio.FIRST_COMPLETED)
    seen.say("rang" if ringing in done else "came")
    handle.cancel()
    ringing.cancel()
    await seen.one("b")
    await first
    return seen.all


@program("a b", clocked=True)
async def retry_with_sleeps() -> Any:
    """A loop around a timeout: how often it was tried shows."""
    seen = Seen()
    waiting = asyncio.ensure_future(seen.one("a"))
    for attempt in range(3):
        try:
            async with asyncio.timeout(LONG_S):
                await asyncio.shield(waiting)
            break
        except TimeoutError:
            seen.say(f"attempt {attempt}")
            await asyncio.sleep(1)
    await seen.one("b")
    await waiting
    return seen.all


@program("a b c", clocked=True)
async def sleeps_at_two_depths() -> Any:
    """The code comes to the longer one first; overdue, they are over in the order of their times all the same."""
    seen = Seen()

    async def nap(length: float, name: str) -> None:
        await asyncio.sleep(length)
        seen.say(length)
        await seen.one(name)

    async def deeper(depth: int) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(deeper(depth - 1) if depth else nap(LONG_S, "a"))

    await asyncio.gather(nap(LONG_S + 0.5, "b"), deeper(3), seen.one("c"))
    return seen.all


@program("a b c", clocked=True, plain=False)
async def durable_sleep() -> Any:
    seen = Seen()

    async def nap() -> None:
        await seen.one("a")
        await dasync.sleep(LONG_S)
        seen.say("slept")
        await seen.one("b")

    await asyncio.gather(nap(), seen.one("c"))
    return seen.all


@program("a b c", clocked=True, plain=False)
async def durable_sleeps_of_two_lengths() -> Any:
    seen = Seen()

    async def nap(length: float, name: str) -> None:
        await dasync.sleep(length)
        seen.say(length)
        await seen.one(name)

    await asyncio.gather(nap(2 * LONG_S, "a"), nap(LONG_S, "b"), seen.one("c"))
    return seen.all


@program("a b c d", clocked=True, plain=False)
async def durable_timeout() -> Any:
    seen = Seen()
    try:
        async with dasync.timeout(LONG_S):
            await asyncio.gather(seen.sequence("a", "b"), seen.one("c"))
    except TimeoutError:
        seen.say("timed out")
    await seen.one("d")
    return seen.all
