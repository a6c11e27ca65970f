"""What tasks share: Lock, Event, Queue, Semaphore, Condition, Barrier."""

from __future__ import annotations

import asyncio
from typing import Any

from matrix.catalogue import Seen, program


@program("a b c d")
async def lock() -> Any:
    seen, held = Seen(), asyncio.Lock()

    async def use(first: str, second: str) -> None:
        await seen.one(first)
        async with held:
            seen.say(f"{first} holds it")
            await seen.one(second)
            seen.say(f"{first} lets go")

    await asyncio.gather(use("a", "b"), use("c", "d"))
    return seen.all


@program("a b c")
async def event() -> Any:
    seen, happened = Seen(), asyncio.Event()

    async def waits(name: str) -> None:
        await happened.wait()
        await seen.one(name)

    async def sets() -> None:
        await seen.one("a")
        happened.set()
        seen.say("set")

    await asyncio.gather(waits("b"), waits("c"), sets())
    return seen.all


@program("a b c d")
async def queue() -> Any:
    """Who came first is served first: the consumer's next leaf depends on the order."""
    seen, line = Seen(), asyncio.Queue[str](maxsize=1)

    async def produce(name: str) -> None:
        await seen.one(name)
        await line.put(name)
        seen.say(f"put {name}")

    async def consume() -> list[str]:
        return [f"{await line.get()}{await seen.one(name)}" for name in ("c", "d")]

    _, _, consumed = await asyncio.gather(produce("a"), produce("b"), consume())
    return [consumed, seen.all]


@program("a b c d")
async def queue_with_workers() -> Any:
    seen, line = Seen(), asyncio.Queue[str]()

    async def work(name: str) -> None:
        while True:
            job = await line.get()
            await seen.one(job)
            seen.say(f"{name} did {job}")
            line.task_done()

    workers = [asyncio.create_task(work(name)) for name in ("first", "second")]
    for job in "abcd":
        line.put_nowait(job)
    await line.join()
    for worker in workers:
        worker.cancel()
    await asyncio.wait(workers)
    return seen.all


@program("a b c d")
async def semaphore() -> Any:
    seen, seats = Seen(), asyncio.Semaphore(2)

    async def sit(name: str) -> None:
        async with seats:
            seen.say(f"{name} sits")
            await seen.one(name)

    await asyncio.gather(*map(sit, "abcd"))
    return seen.all


@program("a b c")
async def condition() -> Any:
    seen, changed, come = Seen(), asyncio.Condition(), [0]

    async def waits() -> None:
        async with changed:
            await changed.wait_for(lambda: come[0] == 2)
            seen.say("both have come")
            await seen.one("c")

    async def comes(name: str) -> None:
        await seen.one(name)
        async with changed:
            come[0] += 1
            changed.notify_all()

    await asyncio.gather(waits(), comes("a"), comes("b"))
    return seen.all


@program("a b c d")
async def barrier() -> Any:
    seen, together = Seen(), asyncio.Barrier(2)

    async def meet(before: str, after: str) -> None:
        await seen.one(before)
        seen.say(await together.wait())
        await seen.one(after)

    await asyncio.gather(meet("a", "b"), meet("c", "d"))
    return seen.all


@program("a b c")
async def bare_future() -> Any:
    """A future that one task sets and another awaits."""
    seen, promised = Seen(), asyncio.get_running_loop().create_future()

    async def sets() -> None:
        promised.set_result(await seen.one("a"))

    async def awaits() -> None:
        seen.say(f"got {await promised}")
        await seen.one("b")

    await asyncio.gather(sets(), awaits(), seen.one("c"))
    return seen.all
