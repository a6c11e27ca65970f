"""Several at a time: gather, TaskGroup, wait, as_completed."""

from __future__ import annotations

import asyncio
from typing import Any

import dasync
from dasync.testing.leaves import leaf
from matrix.catalogue import LONG_S, Seen, program


@program("a b c")
async def gather() -> Any:
    seen = Seen()
    return [await asyncio.gather(*map(seen.one, "abc")), seen.all]


@program("a b c d")
async def gather_of_promises() -> Any:
    return [await asyncio.gather(leaf("a"), leaf("b"), leaf("c")), await leaf("d")]


@program("a b c d")
async def gather_of_sequences() -> Any:
    seen = Seen()
    return [await asyncio.gather(seen.sequence("a", "b"), seen.sequence("c", "d")), seen.all]


@program("a b! c d")
async def gather_that_fails() -> Any:
    seen = Seen()
    try:
        await asyncio.gather(*map(seen.one, ("a", "b!", "c")))
    except OSError as error:
        seen.say(f"failed: {error}")
    await seen.one("d")
    return seen.all


@program("a b! c")
async def gather_of_exceptions() -> Any:
    seen = Seen()
    found = await asyncio.gather(*map(seen.one, ("a", "b!", "c")), return_exceptions=True)
    return [[str(one) for one in found], seen.all]


@program("a b x y")
async def what_comes_first_decides() -> Any:
    """What is invoked next depends on the order."""
    seen = Seen()

    async def then(name: str, after: str) -> None:
        await seen.one(name)
        if seen.all == [name]:
            await seen.one(after)
        else:
            seen.say(await leaf(after))

    await asyncio.gather(then("a", "x"), then("b", "y"))
    return seen.all


@program("a b x y")
async def shared_counter() -> Any:
    """The first to come takes x, the second y."""
    seen, left = Seen(), ["y", "x"]

    async def take(name: str) -> str:
        await seen.one(name)
        return f"{name}{await seen.one(left.pop())}"

    return [await asyncio.gather(take("a"), take("b")), seen.all]


@program("a b c")
async def task_group() -> Any:
    seen = Seen()
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(seen.one(name)) for name in "abc"]
        seen.say("body")
    return [[task.result() for task in tasks], seen.all]


@program("a b! c d", plain=False)
async def task_group_whose_child_fails() -> Any:
    seen = Seen()

    async def careful(name: str) -> None:
        try:
            await seen.one(name)
        finally:
            seen.say(f"over: {name}")

    try:
        async with asyncio.TaskGroup() as group:
            for name in ("a", "b!", "c"):
                group.create_task(careful(name))
    except* OSError as errors:
        seen.say([str(error) for error in errors.exceptions])
    await seen.one("d")
    return seen.all


@program("a b! c d")
async def task_group_that_cleans_up() -> Any:
    """A sibling that is canceled invokes while it cleans up."""
    seen = Seen()

    async def careful(name: str) -> None:
        try:
            await seen.one(name)
        except asyncio.CancelledError:
            seen.say("canceled")
            await seen.one("d")
            raise

    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(careful("a"))
            group.create_task(seen.one("b!"))
    except* OSError as errors:
        seen.say([str(error) for error in errors.exceptions])
    await seen.one("c")
    return seen.all


@program("a b c d")
async def task_groups_nested() -> Any:
    seen = Seen()

    async def inner(*names: str) -> None:
        async with asyncio.TaskGroup() as group:
            for name in names:
                group.create_task(seen.one(name))
        seen.say("".join(names))

    async with asyncio.TaskGroup() as group:
        group.create_task(inner("a", "b"))
        group.create_task(inner("c", "d"))
    return seen.all


@program("a b! c d")
async def task_group_in_a_task_group_fails() -> Any:
    seen = Seen()

    async def inner() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(seen.one("a"))
            group.create_task(seen.one("b!"))

    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(inner())
            group.create_task(seen.one("c"))
    except* OSError:
        seen.say("failed")
    await seen.one("d")
    return seen.all


async def _rounds(return_when: str, *names: str) -> list[object]:
    """Wait again and again; who is done is told by name, not in a set's order."""
    seen = Seen()
    pending = {asyncio.create_task(seen.one(name), name=name) for name in names}
    while pending:
        done, pending = await asyncio.wait(pending, return_when=return_when)
        seen.say(sorted(task.get_name() for task in done))
        for task in done:
            task.exception()
    return seen.all


@program("a b c d")
async def wait_for_the_first() -> Any:
    return await _rounds(asyncio.FIRST_COMPLETED, "a", "b", "c", "d")


@program("a b! c")
async def wait_for_the_first_exception() -> Any:
    return await _rounds(asyncio.FIRST_EXCEPTION, "a", "b!", "c")


@program("a b c")
async def wait_for_all() -> Any:
    return await _rounds(asyncio.ALL_COMPLETED, "a", "b", "c")


@program("a b x y", plain=False)
async def wait_in_a_set_order() -> Any:
    """Sets of tasks iterate alike in every run: what follows from their order is the same."""
    after, seen = {"a": "x", "b": "y"}, Seen()
    pending = {asyncio.create_task(seen.one(name), name=name) for name in after}
    while pending:
        done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            await seen.one(after[task.get_name()])
    return seen.all


@program("a b c", plain=False)
async def wait_with_promises() -> Any:
    """Promises themselves as awaitables of `gather`, twice."""
    promises = [leaf(name) for name in "abc"]
    both = await asyncio.gather(asyncio.gather(*promises), asyncio.gather(*reversed(promises)))
    return [both, [promise.state.value for promise in promises]]


@program("a b! c", plain=False)
async def as_completed() -> Any:
    found: list[str] = []
    async for promise in dasync.as_completed(leaf("a"), leaf("b!"), leaf("c")):
        found.append(str(promise.exception() or promise.result()))
    return found


@program("a b c d", plain=False, clocked=True)
async def wait_beside_a_task() -> Any:
    """A wait that was over because of its timeout is not over any sooner in a replay."""
    seen = Seen()

    async def waits() -> None:
        done, pending = await dasync.wait([leaf("a"), leaf("b")], return_when=asyncio.FIRST_COMPLETED, timeout=LONG_S)
        seen.say([len(done), len(pending)])

    await asyncio.gather(waits(), seen.one("c"))
    await seen.one("d")
    return seen.all


@program("a b c", plain=False, clocked=True)
async def wait_in_order() -> Any:
    seen, pending, timeout = Seen(), [leaf(name) for name in "abc"], LONG_S
    while pending:
        done, pending = await dasync.wait(pending, return_when=asyncio.FIRST_COMPLETED, timeout=timeout)
        seen.say([promise.result() for promise in done])
        timeout = None if seen.all.count([]) == 2 else LONG_S
    return seen.all
