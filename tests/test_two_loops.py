"""Several EventLoops in one program: on one store as processes are, on two stores as programs are."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Sequence
from typing import Any

import pytest
from play import World, rows, settle, until, until_rows

import dasync
from dasync.core.model import State, TaskState
from dasync.core.protocol import Command, PromiseCancel, TaskAcquire
from dasync.ports import Committed, Store
from dasync.stores.memory import MemoryStore
from dasync.system import SystemClock


@dasync.function
async def double(x: int) -> int:
    return 2 * x


@dasync.function
async def gated(gate: str) -> str:
    return await dasync.promise(str, id=gate)


@dasync.function
async def parent(gate: str) -> str:
    return f"parent of {await gated(gate)}"


def shared(world: World) -> str | Store:
    """A store that several EventLoops may open."""
    return MemoryStore(SystemClock()) if world.store == "memory:" else world.store


def open_on(store: str | Store, group: str = "default", **options: Any) -> dasync.EventLoop:
    return dasync.EventLoop(store, group=group, durability="process", poll=60, **options)


# -- two stores


def test_an_execution_invokes_on_another_store_by_id(memory: World) -> None:
    """`other.invoke(f.options(id=...))` inside an execution makes a root on the other store, once for all replays."""
    runs: list[str] = []

    @dasync.function
    async def there() -> str:
        runs.append("there")
        return "from there"

    @dasync.function
    async def here() -> str:
        runs.append("here")
        promise = others[0].invoke(there.options(id="there-1"))
        assert await promise == "from there"
        return await dasync.promise(str, id="gate")

    others: list[dasync.EventLoop] = []
    one, two = MemoryStore(SystemClock()), MemoryStore(SystemClock())

    async def main() -> None:
        async with open_on(two) as other:
            others[:] = [other]
            async with open_on(one) as first:
                first.invoke(here.options(id="h"))
                await until(lambda: "gate" in first.awaiters)
                assert list((await rows(other)).promises) == ["there-1"]
            async with open_on(one) as second:
                await settle(second, "gate", "came")
                assert await second.get("h") == "came"
                assert "there-1" not in (await rows(second)).promises
        assert runs == ["here", "there", "here"]

    memory.run(main())


def test_without_an_id_another_store_refuses(memory: World) -> None:
    """It would be invoked anew in each replay; the error says what to do, and nothing is made on either store."""

    @dasync.function
    async def here() -> str:
        with pytest.raises(dasync.NoEventLoop, match=r"execution of another EventLoop: give it an id") as caught:
            others[0].invoke(double, 1)
        assert isinstance(caught.value, RuntimeError)
        return await asyncio.to_thread(lambda: "refused")

    @dasync.function
    def in_thread() -> str:
        with pytest.raises(dasync.NoEventLoop, match="async def"):
            others[0].invoke(double.options(id="d"), 1)
        return "refused"

    others: list[dasync.EventLoop] = []

    async def main() -> None:
        async with open_on("memory:") as first, open_on("memory:") as other:
            others[:] = [other]
            assert await first.invoke(here) == await first.invoke(in_thread) == "refused"
            assert not (await rows(other)).promises
            assert len((await rows(first)).promises) == 2

    memory.run(main())


def test_promises_of_two_stores_are_awaited_together(memory: World) -> None:
    """`all` and `race` take promises of several EventLoops, inside an execution and outside; what is of another store
    is no child, so a race leaves it."""

    @dasync.function
    async def races() -> list[str]:
        far = others[0].invoke(gated.options(id="far"), "never")
        return [await dasync.race(far, gated("near")), far.state.value]

    others: list[dasync.EventLoop] = []

    async def main() -> None:
        async with open_on("memory:") as first, open_on("memory:") as other:
            others[:] = [other]
            assert await dasync.all(first.invoke(double, 1), other.invoke(double, 2)) == [2, 4]
            promise = first.invoke(races)
            await until(lambda: "near" in first.awaiters and "never" in other.awaiters)
            await settle(first, "near", "n")
            assert await promise == ["n", "pending"]
            assert other.get("far").state is State.PENDING

    memory.run(main())


# -- one store


def test_get_hears_of_what_goes_on_elsewhere(world: World) -> None:
    """A handle to a child of an execution that is handed on is settled by what another EventLoop does with it."""

    async def main() -> None:
        store = shared(world)
        async with open_on(store) as first:
            promise = first.invoke(parent.options(id="p"), "gate")
            await until(lambda: "gate" in first.awaiters)
            child = first.get("p:0")
            assert first.get("p:0") is child
            await child.created()
            waits = asyncio.create_task(child.settlement())
            later = first.get("p:0", str)
            await later.created()
            await first.drain(0)
            async with open_on(store) as second:
                await settle(second, "gate", "g")
                assert await promise == "parent of g"
                await waits
                assert child.result() == await later == await first.get("p:0") == "g"
            gc.collect()  # from Python 3.12 on code that was canceled is part of a cycle, with what it held
            assert not [id for id in first.promises if id != "p"]

    world.run(main())


def test_a_child_of_what_was_handed_on_can_be_canceled(world: World) -> None:
    """Nobody runs it any more here: the store ends it."""

    async def main() -> None:
        async with open_on(shared(world)) as loop:
            loop.invoke(parent.options(id="p"), "gate")
            await until(lambda: "gate" in loop.awaiters)
            child = loop.get("p:0")
            await child.created()
            await loop.drain(0)
            assert (await rows(loop)).tasks["p"].state is TaskState.SUSPENDED
            await child.cancel("why")
            found = (await rows(loop)).promises
            assert (found["p:0"].state, found["p"].state) == (State.CANCELED, State.PENDING)

    world.run(main())


def test_a_cancel_goes_on_elsewhere(memory: World) -> None:
    """What is handed on while it cleans up is canceled where it goes on, and cleans up there."""
    cleaned: list[int] = []
    gates = [asyncio.Event(), asyncio.Event()]

    @dasync.function
    async def cleans() -> str:
        try:
            return await dasync.promise(str)
        finally:
            run = len(cleaned)
            cleaned.append(run)
            await gates[run].wait()

    async def main() -> None:
        store = shared(memory)
        async with open_on(store) as first:
            promise = first.invoke(cleans.options(id="c"))
            await until(lambda: "c:0" in first.awaiters)
            asked = asyncio.create_task(promise.cancel("enough"))
            await until(lambda: cleaned == [0])
            await first.drain(0)
            async with open_on(store) as second:
                await until(lambda: cleaned == [0, 1])
                gates[1].set()
                await asked
                assert promise.state is State.CANCELED
                assert second.snapshot().tasks == 0

    memory.run(main())


class Slow(MemoryStore):
    """Its answer to an acquire is late."""

    def __init__(self) -> None:
        super().__init__(SystemClock())
        self.asked, self.answer = asyncio.Event(), asyncio.Event()

    async def transact(self, commands: Sequence[Command]) -> Committed:
        committed = await super().transact(commands)
        if isinstance(commands[0], TaskAcquire) and not self.answer.is_set():
            self.asked.set()
            await self.answer.wait()
        return committed


def test_a_ring_during_an_acquire_is_heard(memory: World) -> None:
    """What comes while a worker is told that there is nothing to do is found without a poll."""

    async def main() -> None:
        store = Slow()
        async with open_on(store, "far"):
            await store.asked.wait()
            async with open_on(store) as here:
                promise = here.invoke(double.options(on="far"), 4)
                await promise.created()
                store.answer.set()
                assert await promise == 8

    memory.run(main())


@pytest.mark.parametrize("how", ["cancel", "store"])
def test_a_cancel_tells_every_process_below(world: World, how: str) -> None:
    """Of a chain across three EventLoops: each one's code is interrupted, whoever cancels the first."""
    begun: list[str] = []
    ended: list[str] = []

    @dasync.function
    async def chain(groups: list[str]) -> None:
        begun.append(groups[0] if groups else "last")
        try:
            if groups:
                await chain.options(on=groups[0])(groups[1:])
            await asyncio.Event().wait()
        finally:
            ended.append(groups[0] if groups else "last")

    async def main() -> None:
        store = shared(world)
        async with open_on(store, "a") as a, open_on(store, "b") as b, open_on(store, "c") as c:
            promise = c.invoke(chain.options(id="r", on="a"), ["b", "a"])
            loops = (a, b)
            await until(lambda: len(begun) == 3 and [loop.snapshot().tasks for loop in loops] == [2, 1])
            if how == "cancel":
                await promise.cancel()
            else:
                committed = await c._store.transact([PromiseCancel("r")])
                c._transport.ring(committed.doorbells)
            await until(lambda: sorted(ended) == ["a", "b", "last"])
            found = await until_rows(c, lambda found: all(p.state is State.CANCELED for p in found.promises.values()))
            assert sorted(found.promises) == ["r", "r:0", "r:0.0"]
            await until(lambda: not any(loop.snapshot().tasks for loop in loops))

    world.run(main())
