"""Tasks by themselves: create_task and its options, shield and cancel, generators, managers, context variables."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from contextvars import Context, ContextVar, copy_context
from typing import Any

from dasync.testing import leaves
from dasync.testing.leaves import leaf
from matrix.catalogue import Seen, program

who: ContextVar[str] = ContextVar("who", default="nobody")


@program("a b c")
async def create_task_by_name() -> Any:
    seen = Seen()

    async def named(name: str) -> str:
        task = asyncio.current_task()
        assert task is not None
        return f"{task.get_name()} {await seen.one(name)} {task.get_name()}"

    tasks = [asyncio.create_task(named(name), name=f"task {name}") for name in "abc"]
    return [[await task for task in tasks], seen.all]


@program("a b c")
async def create_task_of_a_promise() -> Any:
    tasks = [asyncio.create_task(leaf(name)) for name in "abc"]
    return [await task for task in reversed(tasks)]


@program("a b c")
async def create_task_in_a_context() -> Any:
    seen = Seen()

    async def in_context(name: str) -> str:
        before = who.get()
        who.set(f"{before}+{name}")
        return f"{before} {await seen.one(name)} {who.get()}"

    copied, empty = copy_context(), Context()
    copied.run(who.set, "copied")
    empty.run(leaves.stage.set, leaves.stage.get())
    first = asyncio.create_task(in_context("a"), context=copied)
    second = asyncio.create_task(in_context("b"), context=empty)
    third = asyncio.create_task(in_context("c"))
    return [await asyncio.gather(first, second, third), who.get(), copied[who], seen.all]


@program("a b c d")
async def context_variables() -> Any:
    seen = Seen()

    async def inner(name: str) -> str:
        who.set(f"{who.get()}.{name}")
        await seen.one(name)
        return who.get()

    async def outer(name: str, *names: str) -> list[str]:
        who.set(name)
        return [*await asyncio.gather(*map(inner, names)), who.get()]

    return [await asyncio.gather(outer("x", "a", "b"), outer("y", "c", "d")), who.get(), seen.all]


@program("a b c d")
async def ensure_future_of_a_task() -> Any:
    """Tasks that make tasks, awaited where they were not made."""
    seen = Seen()

    async def parent(name: str, child: str) -> asyncio.Task[str]:
        made = asyncio.ensure_future(seen.one(child))
        await seen.one(name)
        return made

    made = await asyncio.gather(parent("a", "b"), parent("c", "d"))
    return [[await task for task in made], seen.all]


if sys.version_info >= (3, 12):

    @program("a b c d", eager=True)
    async def eager_tasks() -> Any:
        """On a host whose tasks begin at once."""
        seen = Seen()

        async def begins(*names: str) -> None:
            seen.say(f"begin {names[0]}")
            await seen.sequence(*names)

        tasks = [asyncio.create_task(begins("a", "b")), asyncio.create_task(begins("c", "d"))]
        seen.say("made")
        await asyncio.gather(*tasks)
        return seen.all


@program("a b c")
async def shield_with_cancel() -> Any:
    seen, promise = Seen(), leaf("a")
    shielded = asyncio.ensure_future(promise)

    async def waits() -> None:
        try:
            seen.say(f"shielded {await asyncio.shield(shielded)}")
        except asyncio.CancelledError:
            seen.say("canceled")
            raise

    waiting = asyncio.create_task(waits())
    await seen.one("b")
    waiting.cancel()
    await asyncio.wait([waiting])
    await seen.one("c")
    seen.say(await shielded)
    return [seen.all, waiting.cancelled()]


@program("a b c")
async def cancel_of_a_sequence() -> Any:
    """How far the sequence had come when it was canceled shows."""
    seen = Seen()
    task = asyncio.create_task(seen.sequence("a", "b"))
    await seen.one("c")
    task.cancel()
    await asyncio.wait([task])
    return [seen.all, task.cancelled()]


@program("a b c d")
async def cancel_that_cleans_up() -> Any:
    seen = Seen()

    async def careful() -> None:
        try:
            await seen.sequence("a", "b")
        finally:
            seen.say("clean up")
            await seen.one("d")

    task = asyncio.create_task(careful())
    await seen.one("c")
    task.cancel()
    await asyncio.wait([task])
    return [seen.all, task.cancelled()]


@program("a b c d")
async def cancel_that_is_swallowed() -> Any:
    seen = Seen()

    async def stubborn() -> str:
        try:
            await seen.one("a")
        except asyncio.CancelledError:
            seen.say("swallowed")
        return await seen.one("b")

    task = asyncio.create_task(stubborn())
    await seen.one("c")
    task.cancel()
    await asyncio.wait([task])
    await seen.one("d")
    return [seen.all, task.cancelled()]


@program("a b c")
async def async_generators() -> Any:
    seen = Seen()

    async def letters(*names: str) -> AsyncIterator[str]:
        try:
            for name in names:
                yield await seen.one(name)
        finally:
            seen.say(f"closed after {seen.all[-1]}")

    async with aclosing(letters("a", "b", "c")) as found:
        async for letter in found:  # type: ignore[attr-defined]  # an async generator is an async iterator
            seen.say(letter.upper())
            if letter == "b":
                break
    return [seen.all, [one async for one in letters("c")]]


@program("a b c d")
async def async_generators_side_by_side() -> Any:
    seen = Seen()

    async def letters(*names: str) -> AsyncIterator[str]:
        for name in names:
            yield await leaf(name)

    async def consume(*names: str) -> None:
        async for letter in letters(*names):
            seen.say(letter)

    await asyncio.gather(consume("a", "b"), consume("c", "d"))
    return seen.all


@program("a b c d")
async def async_context_managers() -> Any:
    seen = Seen()

    @asynccontextmanager
    async def opened(enter: str, leave: str) -> AsyncIterator[str]:
        yield await seen.one(enter)
        await seen.one(leave)

    async def use(enter: str, leave: str) -> None:
        async with opened(enter, leave) as found:
            seen.say(found.upper())

    await asyncio.gather(use("a", "b"), use("c", "d"))
    return seen.all


@program("a b! c d")
async def exit_stacks() -> Any:
    """What was entered is left in reverse when a step fails."""
    seen = Seen()
    try:
        async with AsyncExitStack() as stack:
            stack.push_async_callback(seen.one, "c")
            await seen.one("a")
            stack.push_async_callback(seen.one, "d")
            await seen.one("b!")
    except OSError as error:
        seen.say(f"failed: {error}")
    return seen.all
