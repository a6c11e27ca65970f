"""Durable clocks: what code inside an execution sets by asyncio's means counts once and rings in its turn."""

from __future__ import annotations

import asyncio
from typing import Any

import anyio
import pytest
from clocks import FakeClock
from play import World, rows, until_rows

import dasync
from dasync.core.invariants import Snapshot
from dasync.core.model import State
from dasync.stores.memory import MemoryStore

HOUR = 3600.0




@dasync.function
async def asyncio_sleep() -> str:
    await asyncio.sleep(HOUR)
    return "slept"


@dasync.function
async def asyncio_timeout() -> str:
    try:
        async with asyncio.timeout(HOUR):
            return str(await dasync.promise())
    except TimeoutError:
        return "timed out"


@dasync.function
async def asyncio_wait_for() -> str:
    try:
        return str(await asyncio.wait_for(dasync.promise(), HOUR))
    except TimeoutError:
        return "timed out"


@dasync.function
async def call_later() -> str:
    rung = asyncio.Event()
    asyncio.get_running_loop().call_later(HOUR, rung.set)
    await rung.wait()
    return "rung"


@dasync.function
async def call_at() -> str:
    loop = asyncio.get_running_loop()
    rung, at = asyncio.Event(), loop.time() + HOUR
    loop.call_at(at, rung.set)
    await rung.wait()
    assert loop.time() >= at
    return "rung"


@dasync.function
async def anyio_sleep() -> str:
    await anyio.sleep(HOUR)
    return "slept"


@dasync.function
async def anyio_move_on_after() -> str:
    with anyio.move_on_after(HOUR) as scope:
        await dasync.promise()
    return f"moved on {scope.cancelled_caught}"


@dasync.function
async def anyio_fail_after() -> str:
    try:
        with anyio.fail_after(HOUR):
            return str(await dasync.promise())
    except TimeoutError:
        return "timed out"


@dasync.function
async def dasync_timeout() -> str:
    try:
        async with dasync.timeout(HOUR):
            return str(await dasync.promise())
    except TimeoutError:
        return "timed out"


@dasync.function
async def in_two_tasks() -> list[str]:
    """They ring in the order of their times, whatever set them."""
    order: list[str] = []

    async def after(delay_s: float, name: str) -> None:
        await asyncio.sleep(delay_s)
        order.append(name)

    async with asyncio.TaskGroup() as group:
        group.create_task(after(HOUR, "second"))
        group.create_task(after(HOUR / 2, "first"))
        await dasync.sleep(3 * HOUR / 4)
        order.append("between")
    return order


WAYS = {
    function.name: (function, outcome)
    for function, outcome in (
        (asyncio_sleep, "slept"),
        (asyncio_timeout, "timed out"),
        (asyncio_wait_for, "timed out"),
        (call_later, "rung"),
        (call_at, "rung"),
        (anyio_sleep, "slept"),
        (anyio_move_on_after, "moved on True"),
        (anyio_fail_after, "timed out"),
        (dasync_timeout, "timed out"),
        (in_two_tasks, ["first", "between", "second"]),
    )
}


class TwoLives:
    """A program whose process ends after half of its time, on a clock that is set by hand."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.store = MemoryStore(self.clock)

    def live(self, function: Any, hours: float, *, host: Any = dasync.loop_factory) -> Any:
        """Run it for so long; gives its outcome, or None."""

        async def main() -> Any:
            async with dasync.EventLoop(self.store, clock=self.clock, poll=60, lease=10 * HOUR) as loop:
                promise = function.options(id="root")()
                for _ in range(round(4 * hours)):
                    await settle_down(loop)
                    self.clock.advance(HOUR / 4)
                await settle_down(loop)
                return promise.result() if promise.done() else None

        with asyncio.Runner(loop_factory=host) as runner:
            return runner.run(main())


def states(found: Snapshot) -> set[State]:
    return {record.state for record in found.promises.values()}


async def settle_down(loop: dasync.EventLoop) -> None:
    """Let the asyncio loop turn until nothing is written any more."""
    quiet, before = 0, -1
    while quiet < 100:
        await asyncio.sleep(0)
        commands = loop.snapshot().commands
        quiet, before = (quiet + 1, commands) if commands == before else (0, commands)


@pytest.mark.parametrize("way", WAYS)
def test_time_counts_once(way: str) -> None:
    """Half an hour before the process ends and half an hour after it has come back: the hour is over."""
    function, outcome = WAYS[way]
    lives = TwoLives()
    assert lives.live(function, 0.5) is None
    assert lives.live(function, 0.25) is None
    assert lives.live(function, 0.25) == outcome


def test_the_ablation_begins_anew() -> None:
    """On an asyncio loop whose clocks are not durable it is real time that counts, from each start."""
    lives = TwoLives()
    assert lives.live(WAYS["asyncio_sleep"][0], 2, host=asyncio.new_event_loop) is None
    assert lives.live(WAYS["dasync_timeout"][0].options(id="other"), 0, host=asyncio.new_event_loop) is None


def test_dasync_timeout_is_durable_on_any_loop() -> None:
    """On a loop that somebody else made as well."""
    lives = TwoLives()
    assert lives.live(WAYS["dasync_timeout"][0], 0.5, host=asyncio.new_event_loop) is None
    assert lives.live(WAYS["dasync_timeout"][0], 0.5, host=asyncio.new_event_loop) == "timed out"


def test_what_is_stopped_in_time_leaves_no_trace() -> None:
    """A timer around what is quick is never written; one that was written is canceled, and holds nobody up."""

    @dasync.function
    async def quick() -> str:
        async with asyncio.timeout(HOUR):
            await asyncio.to_thread(int)
        return "quick"

    @dasync.function
    async def quick_inside() -> str:
        async with asyncio.timeout(HOUR):
            return await quick()

    async def main() -> dict[str, State]:
        async with dasync.EventLoop() as loop:
            assert await quick_inside.options(id="q")() == "quick"
            found = await until_rows(loop, lambda found: State.PENDING not in states(found))
            return {id: record.state for id, record in found.promises.items()}

    with asyncio.Runner(loop_factory=dasync.loop_factory) as runner:
        found = runner.run(main())
    assert found == {"q": State.RESOLVED, "q:0": State.RESOLVED, "q:%0": State.CANCELED}


def test_outside_executions_timers_are_ordinary() -> None:
    """They cost nothing and leave nothing."""

    async def main() -> int:
        async with dasync.EventLoop() as loop:
            await asyncio.sleep(0.001)
            async with asyncio.timeout(HOUR), dasync.timeout(HOUR):
                await asyncio.sleep(0)
            with pytest.raises(TimeoutError):
                async with dasync.timeout(0.001):
                    await asyncio.sleep(HOUR)
            return len((await rows(loop)).promises)

    with asyncio.Runner(loop_factory=dasync.loop_factory) as runner:
        assert runner.run(main()) == 0


def test_a_function_that_slept_is_tried_again() -> None:
    """A sleep is no invocation: the retry policy still applies, and each attempt sleeps its own time."""
    tried: list[int] = []

    @dasync.function(retry=dasync.Retry.constant(delay=0.001, attempts=3))
    async def fails() -> str:
        tried.append(len(tried))
        await asyncio.sleep(0.001)
        if len(tried) < 3:
            raise OSError("not yet")
        return "at last"

    assert dasync.run(fails) == "at last"
    assert tried == [0, 1, 2]


@pytest.mark.parametrize("bad", [-1, float("nan"), "1", None, True])
def test_what_is_no_time_is_refused(bad: Any) -> None:
    """Before anything is entered."""
    with pytest.raises((TypeError, ValueError), match="a timeout"):
        dasync.timeout(bad)


def test_timers_below_what_has_ended_end_with_it(world: World) -> None:
    """A sleep that nobody awaits any more does not stay in the store until its time."""

    @dasync.function
    async def leaves() -> str:
        await dasync.sleep(HOUR).created()
        dasync.sleep(HOUR)  # nobody has to write this one at all
        return "left"

    async def main(loop: dasync.EventLoop) -> None:
        assert await leaves.options(id="l")() == "left"
        found = await until_rows(loop, lambda found: found.promises["l:0"].state is State.CANCELED)
        assert "l:1" not in found.promises

    world.play(main)
