"""`max_resident`: of many executions that only wait, the longest waiting are left to the store until they can go on."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from clocks import FakeClock
from play import World, ask, rows, settle, until, until_rows

import dasync
from dasync.core import codec
from dasync.core.invariants import Snapshot
from dasync.core.model import State, TaskState
from dasync.core.protocol import Command, PromiseSettle, TaskAcquire
from dasync.ports import Committed
from dasync.stores.memory import MemoryStore
from dasync.system import SystemClock

FEW = 5  # more than may stay: those that are on their way out, or just came in


begun: Counter[str] = Counter()


def suspended(found: Snapshot) -> int:
    return sum(task.state is TaskState.SUSPENDED for task in found.tasks.values())


@pytest.fixture(autouse=True)
def _counted() -> None:
    begun.clear()


@dasync.function
async def double(x: int) -> int:
    return 2 * x


@dasync.function
async def waits(i: int) -> int:
    begun[f"waits {i}"] += 1
    first = await double(i)
    answer = await dasync.promise(int, id=f"gate-{i}")
    return await double(first + answer)


@dasync.function
def blocks(i: int) -> int:
    begun[f"blocks {i}"] += 1
    first = double(i).wait()
    answer = dasync.promise(int, id=f"gate-{i}").wait()
    return double(first + answer).wait()


@dasync.function
async def sleeps(i: int) -> int:
    begun[f"sleeps {i}"] += 1
    await dasync.sleep(60)
    return i


@pytest.mark.parametrize("function", [waits, blocks], ids=["async", "threads"])
def test_three_hundred_wait_and_ten_stay(world: World, function: Any) -> None:
    """300 executions wait for somebody outside, at most ten stay; each gets its value, and who awaits them here too."""
    count, most = 300, 10

    async def main(loop: dasync.EventLoop) -> None:
        async def awaits(i: int) -> tuple[int, int]:
            return i, await function.options(id=f"w-{i}")(i)

        tasks = [asyncio.create_task(awaits(i)) for i in range(count)]
        await until_rows(loop, lambda found: suspended(found) >= count - most)
        assert loop.snapshot().tasks <= most
        assert loop.snapshot().waiting <= most
        for i in range(0, count, 2):
            await settle(loop, f"gate-{i}", i)
            assert await tasks[i] == (i, 6 * i)
            assert loop.snapshot().tasks <= most + FEW
        for i in range(1, count, 2):
            await ask(loop, PromiseSettle(f"gate-{i}", State.RESOLVED, codec.encode(i)))
        assert await asyncio.gather(*tasks[1::2]) == [(i, 6 * i) for i in range(1, count, 2)]
        assert loop.snapshot().tasks == 0
        # Each ran once, and again after it had been suspended; some came back just to be told to go on.
        assert sum(begun.values()) < 3 * count

    world.play(main, max_resident=most)


def test_the_longest_waiting_go_first(memory: World) -> None:
    """Those that came to wait last stay and go on without a replay."""

    async def main(loop: dasync.EventLoop) -> None:
        promises = []
        for i in range(6):
            promises.append(waits(i))
            await until(lambda n=i: f"gate-{n}" in loop.awaiters)
            await promises[-1].created()
        await until_rows(loop, lambda found: suspended(found) == 4)
        for i in range(6):
            await settle(loop, f"gate-{i}", 0)
        assert await dasync.all(*promises) == [4 * i for i in range(6)]
        assert [begun[f"waits {i}"] for i in range(6)] == [2, 2, 2, 2, 1, 1]

    memory.play(main, max_resident=2)


def test_parents_of_remote_children_go_and_come_back(world: World) -> None:
    """A tree of tasks, each of which waits for the one below, with room for one that waits."""

    @dasync.function
    async def nested(depth: int) -> int:
        return 0 if depth == 0 else 1 + await nested.options(on="default")(depth - 1)

    async def main(loop: dasync.EventLoop) -> None:
        assert await dasync.all(*[nested(8) for _ in range(5)]) == [8] * 5
        assert loop.snapshot().tasks == 0

    world.play(main, max_resident=1)


def test_children_that_run_here_are_suspended_with_their_parents(world: World) -> None:
    """A parent and the children that are part of its task go and come back together."""

    @dasync.function
    async def parent(i: int) -> list[int]:
        return list(await asyncio.gather(waits(2 * i), waits(2 * i + 1)))

    async def main(loop: dasync.EventLoop) -> None:
        promises = [parent(i) for i in range(20)]
        await until_rows(loop, lambda found: suspended(found) == 19)
        for i in range(40):
            await settle(loop, f"gate-{i}", 0)
        assert await dasync.all(*promises) == [[8 * i, 8 * i + 4] for i in range(20)]

    world.play(main, max_resident=1)


def test_timers_wake_what_was_suspended(world: World) -> None:
    """Sleeps and backoffs are waits like any other: whoever was suspended in one goes on in time."""
    clock, failed = FakeClock(), set[int]()

    @dasync.function(retry=dasync.Retry.constant(60))
    async def fails_once(i: int) -> int:
        if i not in failed:
            failed.add(i)
            raise OSError
        return i

    async def main(loop: dasync.EventLoop) -> None:
        promises = [sleeps(i) for i in range(20)] + [fails_once(i) for i in range(20)]
        await until_rows(loop, lambda found: suspended(found) == 39)
        task = asyncio.create_task(_flow(clock))
        assert await dasync.all(*promises) == [*range(20), *range(20)]
        task.cancel()
        assert sum(begun.values()) <= 3 * 20

    world.play(main, max_resident=1, clock=clock, lease=86_400)


async def _flow(clock: FakeClock) -> None:
    while True:
        clock.advance(1)
        await asyncio.sleep(0.001)


def test_a_cancel_and_a_deadline_reach_what_was_suspended(world: World) -> None:
    """Who awaits it here hears of both, though nobody here runs it any longer."""
    clock = FakeClock()

    async def main(loop: dasync.EventLoop) -> None:
        due, canceled, rest = waits.options(timeout=30)(0), waits(1), [waits(i) for i in range(2, 6)]
        await until_rows(loop, lambda found: suspended(found) == 5)
        await canceled.cancel("enough")
        with pytest.raises(dasync.PromiseCanceled, match="enough"):
            await canceled
        clock.advance(30)
        flow = asyncio.create_task(_flow(clock))
        with pytest.raises(dasync.PromiseTimedOut):
            await due
        flow.cancel()
        for i in range(2, 6):
            await settle(loop, f"gate-{i}", 0)
        assert await dasync.all(*rest) == [8, 12, 16, 20]

    world.play(main, max_resident=1, clock=clock, lease=86_400)


def test_what_does_more_than_wait_stays(memory: World) -> None:
    """An execution that computes beside its wait, or ends its wait by itself, is not suspended; those behind it are."""
    gate = asyncio.Event()

    @dasync.function
    async def busy() -> int:
        begun["busy"] += 1
        task = asyncio.create_task(gate.wait())
        answer = await dasync.promise(int, id="busy")
        await task
        return answer

    @dasync.function
    def impatient() -> str:
        begun["impatient"] += 1
        try:
            return dasync.promise(str, id="never").wait(timeout=0.2)
        except TimeoutError:
            return "gave up"

    async def main(loop: dasync.EventLoop) -> None:
        promises = [busy(), busy.options(id="second")(), impatient()]
        await until(lambda: {"busy", "never"} <= loop.awaiters.keys())
        others = [waits(i) for i in range(6)]
        await until_rows(loop, lambda found: suspended(found) >= 4)
        assert await promises[2] == "gave up"
        assert (begun["busy"], begun["impatient"]) == (2, 1)
        gate.set()
        await settle(loop, "busy", 1)
        assert await dasync.all(*promises[:2]) == [1, 1]
        for i in range(6):
            await settle(loop, f"gate-{i}", 0)
        assert await dasync.all(*others) == [4 * i for i in range(6)]
        assert begun["busy"] == 2

    memory.play(main, max_resident=2)


def test_two_processes_share_what_was_suspended(host: Any, tmp_path: Path) -> None:
    """Whoever has room replays it; the promises that the first one tracked for it are settled there too."""
    path = str(tmp_path / "s.db")

    async def whole() -> None:
        one = dasync.EventLoop(path, max_resident=1, poll=0.02, durability="process")
        two = dasync.EventLoop(path, max_resident=1, poll=0.02, durability="process")
        async with one, two:
            promises = [one.invoke(waits, i) for i in range(20)]
            await until_rows(one, lambda found: suspended(found) >= 18)
            for i in range(20):
                await settle(one, f"gate-{i}", 0)
            assert await dasync.all(*promises) == [4 * i for i in range(20)]
            assert (one.snapshot().tasks, two.snapshot().tasks) == (0, 0)
            assert [id for id in one.promises if ":" in id] == []

    World(path, host).run(whole())


class Meddler(MemoryStore):
    """Lets something happen right after the next acquire was decided, before its answer has arrived."""

    def __init__(self) -> None:
        super().__init__(SystemClock())
        self.meddle: Callable[[], Awaitable[object]] | None = None

    async def transact(self, commands: Sequence[Command]) -> Committed:
        committed = await super().transact(commands)
        meddle = self.meddle
        if meddle is not None and any(isinstance(command, TaskAcquire) for command in commands):
            self.meddle = None
            await meddle()
        return committed


def test_a_task_that_comes_while_an_acquire_is_under_way_is_taken_too() -> None:
    """Its doorbell rings between the acquire and the answer: it is not forgotten when the answer was empty."""
    store = Meddler()

    async def main(loop: dasync.EventLoop) -> None:
        promises = [waits(i) for i in range(3)]
        await until_rows(loop, lambda found: suspended(found) == 2)
        store.meddle = lambda: ask(loop, PromiseSettle("gate-1", State.RESOLVED, codec.encode(1)))
        await settle(loop, "gate-0", 0)
        await promises[0]
        assert await promises[1] == 6
        await settle(loop, "gate-2", 0)
        assert await promises[2] == 8

    World(store, None).play(main, max_resident=1, poll=60)


def test_a_drain_finds_what_stays_and_what_went(world: World) -> None:
    """After a drain everything is suspended, nothing is lost and nothing held."""

    async def main(loop: dasync.EventLoop) -> None:
        for i in range(10):
            waits.options(id=f"w-{i}")(i)
        await until(lambda: sum(begun.values()) == 10)
        await until_rows(loop, lambda found: any(t.state is TaskState.SUSPENDED for t in found.tasks.values()))
        await loop.drain(5)
        assert loop.snapshot().tasks == 0
        assert {task.state for task in (await rows(loop)).tasks.values()} == {TaskState.SUSPENDED}

    world.play(main, max_resident=3)
