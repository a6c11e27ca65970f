"""anyio inside durable functions: its clocks, task groups, cancel scopes, streams, limiters and threads."""

from __future__ import annotations

from typing import Any

import anyio
import anyio.from_thread
import anyio.to_thread
from anyio.abc import TaskStatus
from anyio.streams.memory import MemoryObjectSendStream

from matrix.catalogue import LONG_S, Seen, program


@program("a b c", clocked=True)
async def anyio_sleep() -> Any:
    seen = Seen()

    async def nap() -> None:
        await seen.one("a")
        await anyio.sleep(LONG_S)
        seen.say("slept")
        await seen.one("b")

    async with anyio.create_task_group() as group:
        group.start_soon(nap)
        group.start_soon(seen.one, "c")
    return seen.all


@program("a b c d")
async def anyio_start_soon() -> Any:
    seen = Seen()
    async with anyio.create_task_group() as group:
        group.start_soon(seen.sequence, "a", "b")
        group.start_soon(seen.sequence, "c", "d")
    return seen.all


@program("a b c d")
async def anyio_start() -> Any:
    seen = Seen()

    async def service(name: str, then: str, *, task_status: TaskStatus[str]) -> None:
        task_status.started(await seen.one(name))
        await seen.one(then)

    async with anyio.create_task_group() as group:
        seen.say(f"started {await group.start(service, 'a', 'b')}")
        seen.say(f"started {await group.start(service, 'c', 'd')}")
    return seen.all


@program("a b! c d")
async def anyio_task_group_fails() -> Any:
    """In which order siblings are canceled does not show: anyio keeps their scopes in a set that goes by address."""
    seen, over = Seen(), set[str]()

    async def careful(name: str) -> None:
        try:
            await seen.one(name)
        finally:
            over.add(name)

    try:
        async with anyio.create_task_group() as group:
            for name in ("a", "b!", "c"):
                group.start_soon(careful, name)
    except* OSError as errors:
        seen.say([str(error) for error in errors.exceptions])
    await seen.one("d")
    return [seen.all, sorted(over)]


@program("a b c d")
async def anyio_cancel_scope() -> Any:
    seen = Seen()

    async def cancels(scope: anyio.CancelScope) -> None:
        await seen.one("c")
        scope.cancel()

    async with anyio.create_task_group() as group:
        with anyio.CancelScope() as scope:
            group.start_soon(cancels, scope)
            await seen.sequence("a", "b")
        seen.say(scope.cancelled_caught)
    await seen.one("d")
    return seen.all


@program("a b c d")
async def anyio_shielded_clean_up() -> Any:
    """What is canceled cleans up behind a shield, durably."""
    seen = Seen()

    async def careful() -> None:
        try:
            await seen.sequence("a", "b")
        finally:
            with anyio.CancelScope(shield=True):
                await seen.one("d")

    async with anyio.create_task_group() as group:
        group.start_soon(careful)
        await seen.one("c")
        group.cancel_scope.cancel()
    return seen.all


@program("a b c", clocked=True)
async def anyio_move_on_after() -> Any:
    seen = Seen()
    with anyio.move_on_after(LONG_S) as scope:
        await seen.sequence("a", "b")
    seen.say(scope.cancelled_caught)
    await seen.one("c")
    return seen.all


@program("a b c", clocked=True)
async def anyio_fail_after() -> Any:
    seen = Seen()
    try:
        with anyio.fail_after(LONG_S):
            await seen.sequence("a", "b")
    except TimeoutError:
        seen.say("failed")
    await seen.one("c")
    return seen.all


@program("a b c d")
async def anyio_streams() -> Any:
    seen = Seen()
    send, receive = anyio.create_memory_object_stream[str](1)

    async def produce(name: str, mine: MemoryObjectSendStream[str]) -> None:
        async with mine:
            await mine.send(await seen.one(name))
            seen.say(f"sent {name}")

    async with anyio.create_task_group() as group, receive:
        for name in "ab":
            group.start_soon(produce, name, send.clone())
        send.close()
        after = iter("cd")
        async for item in receive:
            seen.say(f"got {item}")
            await seen.one(next(after))
    return seen.all


@program("a b c d")
async def anyio_capacity_limiter() -> Any:
    seen, limiter = Seen(), anyio.CapacityLimiter(2)

    async def sit(name: str) -> None:
        async with limiter:
            seen.say(f"{name} sits")
            await seen.one(name)

    async with anyio.create_task_group() as group:
        for name in "abcd":
            group.start_soon(sit, name)
    return seen.all


@program("a b c d")
async def anyio_event_and_lock() -> Any:
    seen, happened, held = Seen(), anyio.Event(), anyio.Lock()

    async def waits(name: str) -> None:
        await happened.wait()
        async with held:
            await seen.one(name)

    async with anyio.create_task_group() as group:
        for name in "bcd":
            group.start_soon(waits, name)
        await seen.one("a")
        happened.set()
    return seen.all


@program("a b c d")
async def anyio_to_thread() -> Any:
    async def sequence(found: list[str], first: str, second: str) -> None:
        seen = Seen()
        await seen.one(first)
        seen.say(await anyio.to_thread.run_sync(str.upper, first))
        await seen.one(second)
        found.extend(map(str, seen.all))

    one: list[str] = []
    two: list[str] = []
    async with anyio.create_task_group() as group:
        group.start_soon(sequence, one, "a", "b")
        group.start_soon(sequence, two, "c", "d")
    return [one, two]


@program("a b c", clocked=True)
async def anyio_from_thread() -> Any:
    """A thread that calls back into the asyncio loop."""
    seen = Seen()

    def thread() -> str:
        anyio.from_thread.run_sync(seen.say, "called back")
        anyio.from_thread.run(anyio.sleep, 1)
        return "thread"

    await seen.one("a")
    seen.say(await anyio.to_thread.run_sync(thread))
    await seen.sequence("b", "c")
    return seen.all
