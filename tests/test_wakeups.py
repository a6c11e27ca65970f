"""Who is woken, and what a process that has nothing to do costs the store."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from clocks import FakeClock
from play import World, let_pass, until, until_rows

import dasync
from dasync.stores.sqlite import SqliteStore

NEVER_S = 60.0  # a poll that no test lives to see


@dasync.function
async def leaf(text: str) -> str:
    return text.upper()


@dasync.function
async def other(text: str) -> str:
    return text.lower()


def far(function: Any) -> Any:
    return function.options(on="crew")


async def crew(stack: AsyncExitStack, path: str, count: int, **options: Any) -> list[dasync.EventLoop]:
    terms: dict[str, Any] = {"group": "crew", "poll": NEVER_S, "lease": 600, "durability": "process", **options}
    found = [await stack.enter_async_context(dasync.EventLoop(path, process=f"c{n}", **terms)) for n in range(count)]
    await meet(found)
    return found


async def meet(members: list[dasync.EventLoop]) -> None:
    """Let each see who is there, as its next poll would."""
    for one in members:
        await one._worker._look_around(anyway=True)


def alone(path: Path, main: Callable[[dasync.EventLoop, AsyncExitStack], Any]) -> None:
    """Run `main` as a caller that never polls, with room for a crew."""

    async def hosted(loop: dasync.EventLoop) -> None:
        async with AsyncExitStack() as stack:
            await main(loop, stack)

    World(str(path / "s.db"), None).play(hosted, group="callers", poll=NEVER_S, lease=600)


def test_one_task_wakes_one_of_eight(tmp_path: Path) -> None:
    """Of eight idle processes each task wakes one, any; a fan-out wakes as many as there are tasks."""

    async def main(loop: dasync.EventLoop, stack: AsyncExitStack) -> None:
        members = await crew(stack, loop._store.path or "", 8)
        await asyncio.sleep(0.05)
        before = [one.snapshot().wakeups for one in members]
        for _ in range(40):
            assert await loop.invoke(far(leaf), "x") == "X"
        woken = [one.snapshot().wakeups - was for one, was in zip(members, before, strict=True)]
        assert sum(woken) == 40
        assert max(woken) <= 20
        await dasync.all(*(loop.invoke(far(leaf), "x") for _ in range(5)))
        assert sum(one.snapshot().wakeups for one in members) - sum(before) <= 45

    alone(tmp_path, main)


def test_who_has_no_room_tells_another_one(tmp_path: Path) -> None:
    """A ring for a task that comes to a busy process is passed on, so the task does not wait for a poll."""
    gate = asyncio.Event()

    @dasync.function
    async def busy() -> None:
        await gate.wait()

    async def main(loop: dasync.EventLoop, stack: AsyncExitStack) -> None:
        members = await crew(stack, loop._store.path or "", 3, concurrency=1)
        promises = [loop.invoke(far(busy)) for _ in range(2)]
        await until(lambda: sum(one.snapshot().tasks for one in members) == 2)
        for _ in range(6):
            assert await loop.invoke(far(leaf), "x") == "X"
        gate.set()
        await dasync.all(*promises)

    alone(tmp_path, main)


def test_who_has_not_the_function_tells_another_one(tmp_path: Path) -> None:
    """So does a process that cannot run what it was rung for."""

    async def main(loop: dasync.EventLoop, stack: AsyncExitStack) -> None:
        path = loop._store.path or ""
        terms: dict[str, Any] = {"group": "crew", "poll": NEVER_S, "lease": 600, "durability": "process"}
        loops = [
            dasync.EventLoop(path, process=f"c{n}", functions=functions, **terms)
            for n, functions in enumerate(([leaf], [leaf], [other]))
        ]
        await meet([await stack.enter_async_context(one) for one in loops])
        for _ in range(6):
            assert await loop.invoke(far(other), "X") == "x"

    alone(tmp_path, main)


def test_an_idle_process_reads_once_a_poll_and_writes_its_heartbeat(tmp_path: Path) -> None:
    """A minute of a process with nothing to do, beside another one: no read but one for each poll."""
    clock, hops = FakeClock(), []

    class Counted(SqliteStore):
        async def _hop(self, work: Any) -> Any:
            hops.append(work)
            return await super()._hop(work)

    async def main(loop: dasync.EventLoop) -> None:
        await let_pass(clock, 1)
        hops.clear()
        before = loop.snapshot().batches
        await let_pass(clock, 60, steps=480)
        beats = loop.snapshot().batches - before
        assert 15 <= beats <= 20, "every third of its lease"
        assert len(hops) - beats <= 60 / 0.25

    World(Counted(str(tmp_path / "s.db"), clock, "process"), None).play(main, clock=clock)


def test_an_execution_in_memory_goes_on_in_place(tmp_path: Path) -> None:
    """What it waited for has come: its code goes on where it was, and is not run again."""
    runs: list[str] = []

    @dasync.function
    async def waits() -> str:
        runs.append("begun")
        return await far(leaf)("x") + await dasync.promise(str, id="gate")

    async def main(loop: dasync.EventLoop, stack: AsyncExitStack) -> None:
        await crew(stack, loop._store.path or "", 1)
        promise = loop.invoke(waits)
        await until(lambda: "gate" in loop.awaiters)
        await loop.get("gate", str).resolve("y")
        assert await promise == "Xy"
        assert runs == ["begun"]

    alone(tmp_path, main)


def test_a_thousand_awaiters_are_woken_once_each(tmp_path: Path) -> None:
    """Executions of one process and plain code of another one wait for a promise that a third one settles."""
    woken: list[int] = []

    @dasync.function
    async def guest(number: int) -> None:
        await dasync.promise(id="door")
        woken.append(number)

    async def main(loop: dasync.EventLoop, stack: AsyncExitStack) -> None:
        house, street = await crew(stack, loop._store.path or "", 2)
        loop.invoke(guest, 0)
        await until(lambda: "door" in loop.awaiters)

        async def passer_by(number: int) -> None:
            await street.get("door")
            woken.append(number)

        passing = [asyncio.create_task(passer_by(number)) for number in range(501, 1_000)]
        guests = [house.invoke(guest, number) for number in range(1, 501)]
        await until(lambda: sum(map(len, house.awaiters.values())) >= 500 and len(street.awaiters["door"]) == 499)
        there = {one.process for one in (loop, house, street)}
        await until_rows(loop, lambda rows: {one.process for one in rows.listeners if one.promise == "door"} == there)
        before = [one.snapshot().wakeups for one in (house, street)]
        await loop.get("door").resolve()
        await asyncio.gather(*passing, *guests)
        assert sorted(woken) == list(range(1_000))
        assert [one.snapshot().wakeups - was for one, was in zip((house, street), before, strict=True)] == [1, 1]

    alone(tmp_path, main)
