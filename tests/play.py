"""Run a program on an EventLoop: which store, which asyncio loop, and never for ever."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, NamedTuple, TypeVar

from clocks import FakeClock

import dasync
from dasync.core import codec
from dasync.core.invariants import Snapshot, inspect
from dasync.core.model import State
from dasync.core.protocol import Command, PromiseSettle, Reply
from dasync.ports import Store

T = TypeVar("T")
PATIENCE_S = 30  # a test that takes longer hangs


class World(NamedTuple):
    """Where a program runs."""

    store: str | Store
    host: Callable[[], asyncio.AbstractEventLoop] | None

    def play(self, main: Callable[[dasync.EventLoop], Awaitable[T]], **options: Any) -> T:
        """Run `main` with an EventLoop open; afterwards every row of the store is legal."""

        async def hosted() -> T:
            async with dasync.EventLoop(self.store, **{"durability": "process", **options}) as loop:
                result = await main(loop)
                assert inspect(await rows(loop)) == []
                return result

        return self.run(hosted())

    def run(self, main: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on this world's asyncio loop."""

        async def bounded() -> T:
            async with asyncio.timeout(PATIENCE_S):
                return await main

        with asyncio.Runner(loop_factory=self.host) as runner:
            return runner.run(bounded())


async def rows(loop: dasync.EventLoop) -> Snapshot:
    """Every row of the store that `loop` is open on."""
    return await loop._store.snapshot()


async def until(fact: Callable[[], object]) -> None:
    """Let the asyncio loop turn until `fact` holds."""
    async with asyncio.timeout(PATIENCE_S):
        while not fact():  # noqa: ASYNC110  # what is watched for has no event of its own
            await asyncio.sleep(0.001)


async def until_rows(loop: dasync.EventLoop, fact: Callable[[Snapshot], object]) -> Snapshot:
    """Let the asyncio loop turn until `fact` holds for the rows of the store; gives them."""
    async with asyncio.timeout(PATIENCE_S):
        while not fact(found := await rows(loop)):  # noqa: ASYNC110  # rows that others write have no event
            await asyncio.sleep(0.002)
    return found


async def ask(loop: dasync.EventLoop, command: Command) -> Reply:
    """Say `command` to the store and ring the doorbells, as another program on it would."""
    committed = await loop._store.transact([command])
    loop._transport.ring(committed.doorbells)
    return committed.replies[0]


async def settle(loop: dasync.EventLoop, id: str, value: object) -> None:
    """What `dasync resolve ID VALUE` does."""
    await loop.get(id).created()
    reply = await ask(loop, PromiseSettle(id, State.RESOLVED, codec.encode(value)))
    assert reply.promise is not None, reply.reason
    assert reply.promise.state is State.RESOLVED


async def settle_down() -> None:
    """Let everything that can go on without time go on."""
    for _ in range(50):
        await asyncio.sleep(0)


async def let_pass(clock: FakeClock, seconds: float, steps: int = 20) -> None:
    await settle_down()
    for _ in range(steps):
        clock.advance(seconds / steps)
        await settle_down()
