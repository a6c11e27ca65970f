"""Batches: items of one function that begin together are one call of its handler, and each is a promise of its own."""

from __future__ import annotations

import asyncio
import itertools
import re
import sqlite3
import threading
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import batchers
import pytest
from clocks import FakeClock
from play import World, ask, rows, until
from test_processes import Site
from zygote import Zygote, zygote_of

import dasync
from dasync.core import codec
from dasync.core.model import State, TaskState
from dasync.core.protocol import Command, ProcessJoin, ProcessLeave, PromiseCancel
from dasync.ports import Committed
from dasync.runtime.function import Function
from dasync.stores.memory import MemoryStore

WAIT_S = 0.01
calls: list[list[Any]] = []


@pytest.fixture(autouse=True)
def _no_calls() -> None:
    calls.clear()


@pytest.fixture(scope="module")
def zygote() -> Iterator[Zygote]:
    yield from zygote_of("batchers")


@pytest.fixture
def site(zygote: Zygote, tmp_path: Path) -> Iterator[Site]:
    site = Site(zygote, tmp_path)
    yield site
    for child in site.workers.values():
        if child._status is None:
            child.kill()


@dasync.batched(max_size=4, max_wait=WAIT_S)
async def square(numbers: list[int]) -> list[int | Exception]:
    calls.append(numbers)
    return [ValueError(f"{number} is negative") if number < 0 else number * number for number in numbers]


@dasync.function
async def sum_of_squares(*numbers: int) -> int:
    return sum(await dasync.all(*map(square, numbers)))


async def joined(*promises: dasync.Promise[Any]) -> None:
    """These have begun, and nothing else can happen but that time passes."""
    for promise in promises:
        await promise.created()
    for _ in range(30):
        await asyncio.sleep(0)


async def ended(promise: dasync.Promise[Any]) -> str:
    """What became of it, in a word or two."""
    [promise] = await dasync.all_settled(promise)
    return f"{promise.state.value} {promise.exception() or promise.result()}"


def handler(**options: Any) -> tuple[Function[[int], int], asyncio.Event, list[str]]:
    """A batched function whose handler goes on when the event is set, and what it has come through."""
    gate, seen = asyncio.Event(), list[str]()

    @dasync.batched(**{"max_size": 3, "max_wait": WAIT_S, **options})
    async def gated(numbers: list[int]) -> list[int]:
        seen.append(f"begin {numbers}")
        try:
            await gate.wait()
        except asyncio.CancelledError:
            seen.append("canceled")
            await asyncio.sleep(0.005)
            seen.append("cleaned up")
            raise
        seen.append("end")
        return [10 * number for number in numbers]

    return gated, gate, seen


# -- coalescing --------------------------------------------------------------------------------------------


def test_items_of_several_executions_are_one_call(world: World) -> None:
    """Roots, and children of different executions, that begin before the time is over; each has its own result."""
    clock = FakeClock()

    async def main(loop: dasync.EventLoop) -> None:
        promises = [square.options(id="r")(2), sum_of_squares.options(id="a")(3), sum_of_squares.options(id="b")(4)]
        await joined(*promises)
        assert calls == []
        clock.advance(WAIT_S)
        assert await asyncio.gather(*promises) == [4, 9, 16]
        assert [sorted(call) for call in calls] == [[2, 3, 4]]
        found = (await rows(loop)).promises
        assert {(found[id].function, found[id].param) for id in ("r", "a:0", "b:0")} == {
            ("square", codec.encode([number])) for number in (2, 3, 4)
        }

    world.play(main, clock=clock)


def test_a_full_batch_goes_at_once(memory: World) -> None:
    """`max_size` items do not wait for the time; those beyond open the next batch."""
    clock = FakeClock()

    async def main(loop: dasync.EventLoop) -> None:
        promise = sum_of_squares.options(id="s")(*range(10))
        await until(lambda: len(calls) == 2)
        await joined(promise)
        assert calls == [[0, 1, 2, 3], [4, 5, 6, 7]]
        clock.advance(WAIT_S)
        assert await promise == 285
        assert calls[2:] == [[8, 9]]

    memory.play(main, clock=clock)


def test_a_full_batch_is_called_once(memory: World) -> None:
    """The time, when it is over, finds it gone."""
    clock = FakeClock()
    gated, gate, seen = handler()

    async def main(loop: dasync.EventLoop) -> None:
        promises = [gated(number) for number in range(3)]
        await until(lambda: seen)
        clock.advance(WAIT_S)
        await joined()
        gate.set()
        assert await asyncio.gather(*promises) == [0, 10, 20]
        assert seen == ["begin [0, 1, 2]", "end"]

    memory.play(main, clock=clock)


def test_the_time_counts_from_the_first_item(memory: World) -> None:
    """A later one makes nobody wait longer; one that comes after the call is in the next batch."""
    clock = FakeClock()

    async def main(loop: dasync.EventLoop) -> None:
        first = square(1)
        await joined(first)
        clock.advance(WAIT_S * 0.9)
        second = square(2)
        await joined(second)
        clock.advance(WAIT_S * 0.1)
        assert await asyncio.gather(first, second) == [1, 4]
        third = square(3)
        await joined(third)
        clock.advance(WAIT_S * 0.9)
        await joined()
        assert calls == [[1, 2]]
        clock.advance(WAIT_S * 0.1)
        assert await third == 9

    memory.play(main, clock=clock)


def test_no_time_is_one_turn(memory: World) -> None:
    """With `max_wait=0`, what begins in one turn of the asyncio loop is one call, on a clock that stands still."""

    @dasync.batched(max_wait=0)
    async def twice(numbers: list[int]) -> list[int]:
        calls.append(numbers)
        return [2 * number for number in numbers]

    @dasync.function
    async def several() -> list[int]:
        return await dasync.all(*map(twice, range(5)))

    async def main(loop: dasync.EventLoop) -> None:
        assert await several() == [0, 2, 4, 6, 8]
        assert calls == [[0, 1, 2, 3, 4]]

    memory.play(main, clock=FakeClock())


def test_versions_and_event_loops_have_batches_of_their_own(memory: World) -> None:
    """What is not the same handler in the same EventLoop does not meet."""

    @dasync.batched(max_wait=WAIT_S, version=2, name="square")
    async def square_too(numbers: list[int]) -> list[int]:
        calls.append(numbers)
        return [number * number for number in numbers]

    async def main(loop: dasync.EventLoop) -> None:
        async with dasync.EventLoop("memory:") as other:
            promises = [loop.invoke(square, 1), loop.invoke(square_too, 1), other.invoke(square, 1)]
            timed = loop.invoke(square.options(timeout=60, tags={"a": "b"}), 2)
            again = loop.invoke(square.options(version=2), 3)
            assert [await promise for promise in (*promises, timed, again)] == [1, 1, 1, 4, 9]
        assert sorted(map(sorted, calls)) == [[1], [1, 2], [1, 3]]

    memory.play(main)


def test_what_waits_for_a_batch_takes_room(memory: World) -> None:
    """It is at work, and not waiting for elsewhere: nobody leaves it to the store, and a batch fills with what runs."""

    async def main(loop: dasync.EventLoop) -> None:
        promises = [square.options(id=f"s{number}")(number) for number in range(6)]
        await until(lambda: loop.snapshot().tasks == 2)
        assert loop.snapshot().waiting == 0
        assert await asyncio.gather(*promises) == [0, 1, 4, 9, 16, 25]
        assert {len(call) for call in calls} <= {1, 2}

    memory.play(main, concurrency=2, max_resident=0)


def test_the_outcomes_of_a_batch_are_few_transactions(memory: World) -> None:
    """What 500 executions write when their batch is done is one transaction, but for what comes beside it."""

    @dasync.batched(max_size=500, max_wait=60)
    async def counts(users: list[int]) -> None:
        before.append(loop_of[0].snapshot().batches)

    before: list[int] = []
    loop_of: list[dasync.EventLoop] = []

    async def main(loop: dasync.EventLoop) -> None:
        loop_of.append(loop)
        promises = [counts(number) for number in range(500)]
        assert await asyncio.gather(*promises) == [None] * 500
        assert len(before) == 1
        assert loop.snapshot().batches - before[0] <= 3

    memory.play(main)


# -- outcomes ----------------------------------------------------------------------------------------------


@dataclass
class User:
    name: str
    age: int


def test_items_and_results_are_as_their_annotations_say(world: World) -> None:
    """Each is encoded by what the lists hold, and checked at the invocation; the handler gets copies."""

    @dasync.batched(max_wait=0)
    async def birthday(users: list[User]) -> list[User] | None:
        for user in users:
            user.age += 1
        return users

    async def main(loop: dasync.EventLoop) -> None:
        ada = User("Ada", 36)
        assert await asyncio.gather(birthday(ada), birthday(User("Bob", 1))) == [User("Ada", 37), User("Bob", 2)]
        assert ada.age == 36
        with pytest.raises(dasync.UnserializableValue, match=r"args\[0\]\.age is a builtin_function"):
            birthday(User("Eve", print))  # type: ignore[arg-type]  # the point
        with pytest.raises(TypeError, match=r"birthday\(\): missing a required argument: 'item'"):
            birthday()  # type: ignore[call-arg]  # the point
        with pytest.raises(TypeError, match=r"birthday\(\): too many positional arguments"):
            birthday(ada, ada)  # type: ignore[call-arg]  # the point

    world.play(main)


def test_the_handler_as_written(memory: World) -> None:
    """`f.fn` takes the list, for a unit test."""
    assert asyncio.run(square.fn([1, 2])) == [1, 4]


def test_an_exception_in_the_list_rejects_that_item_alone(world: World) -> None:
    """With its type; the others have their results."""

    async def main(loop: dasync.EventLoop) -> None:
        promises = [square.options(id=f"s{number}")(number) for number in (1, -2, 3)]
        assert [await ended(promise) for promise in promises] == ["resolved 1", "rejected -2 is negative", "resolved 9"]
        assert isinstance(promises[1].exception(), ValueError)
        assert [len(call) for call in calls] == [3]

    world.play(main)


def test_a_handler_that_raises_fails_every_item(world: World) -> None:
    """Each promise rejects by itself, with the handler's traceback; what the others add to that does not pile up."""
    error = LookupError("no table")

    @dasync.batched(max_wait=WAIT_S)
    async def fails(numbers: list[int]) -> list[int]:
        calls.append(numbers)
        raise error

    async def main(loop: dasync.EventLoop) -> None:
        promises = [fails(number) for number in range(20)]
        assert {await ended(promise) for promise in promises} == {"rejected no table"}
        [note] = promises[-1].exception().__notes__  # type: ignore[union-attr]  # it has failed
        assert note.count("raise error") == 1
        assert len(list(traceback.walk_tb(error.__traceback__))) < 10
        assert len(calls) == 1

    world.play(main)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([1], "ValueError: odd: a handler returns a list with an outcome for each item, or None; this one returned 1"
              " for 2 items"),
        ((1, 2), "TypeError: odd: a handler returns a list with an outcome for each item, or None; this one returned"
                 " 'tuple'"),
        ({1: 1, 2: 2}, "TypeError: odd: .*'dict'"),
        (7, "TypeError: odd: .*'int'"),
        ([asyncio.CancelledError(), 2], "PromiseCanceled: .*was canceled"),
        ([StopIteration(), 2], "RuntimeError: coroutine raised StopIteration"),
        ([{"log": print}, 2], "UnserializableValue: result.*print|UnserializableValue: result.'log'. is a"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("plain", [False, True], ids=["async", "def"])
def test_what_is_no_outcome_for_each_is_an_error(memory: World, given: Any, said: str, plain: bool) -> None:
    """A list of another length, or no list, is told to every item; an odd item, to that one."""

    async def odd(numbers: list[int]) -> Any:
        return given

    def odd_in_a_thread(numbers: list[int]) -> Any:
        return given

    odd.__annotations__.pop("return")
    odd_in_a_thread.__annotations__.pop("return")
    decorated = dasync.batched(max_wait=WAIT_S, name="odd")
    function: Any = decorated(odd_in_a_thread) if plain else decorated(odd)

    async def main(loop: dasync.EventLoop) -> None:
        found = await asyncio.gather(function(1), function(2), return_exceptions=True)
        assert re.match(said, f"{type(found[0]).__name__}: {found[0]}")
        assert found[1] == 2 if isinstance(given, list) and len(given) == 2 else type(found[1]) is type(found[0])

    memory.play(main)


def test_each_item_is_tried_again_by_its_own_policy(world: World) -> None:
    """Each item of a batch that failed, and one that failed alone, joins a later batch; Terminal is final."""

    @dasync.batched(max_wait=WAIT_S, retry=dasync.Retry.constant(0.001, attempts=3))
    async def flaky(numbers: list[int]) -> list[int | Exception]:
        calls.append(sorted(numbers))
        if len(calls) == 1:
            raise ConnectionError("away")
        outcomes: list[int | Exception] = []
        for number in numbers:
            error = dasync.Terminal("never") if number == 1 else ConnectionError("busy")
            outcomes.append(error if number in (1, 2) else number)
        return outcomes

    async def main(loop: dasync.EventLoop) -> None:
        promises = [flaky.options(id=f"f{number}")(number) for number in range(3)]
        once = flaky.options(id="once", retry=dasync.Retry.never())(3)
        assert [await ended(promise) for promise in (*promises, once)] == [
            "resolved 0", "rejected never", "rejected busy", "rejected away",
        ]  # fmt: skip
        assert calls[0] == [0, 1, 2, 3]
        assert Counter(itertools.chain(*calls)) == {0: 2, 1: 2, 2: 3, 3: 1}
        found = (await rows(loop)).promises
        assert sorted(id for id, one in found.items() if one.function == "dasync.retry") == [
            "f0:!1", "f1:!1", "f2:!1", "f2:!2",
        ]  # fmt: skip

    world.play(main)


def test_an_id_gives_the_same_promise(world: World) -> None:
    """As of any function: once for all, and another item under it is a conflict."""

    async def main(loop: dasync.EventLoop) -> None:
        one = square.options(id="s")
        assert await asyncio.gather(one(3), one(3)) == [9, 9]
        assert calls == [[3]]
        with pytest.raises(dasync.PromiseConflict, match="with other arguments"):
            await one(4)

    world.play(main)


def test_a_plain_handler_runs_in_a_thread(world: World) -> None:
    """A `def` may block, as other functions do, and one batch is one thread."""
    seen: list[int] = []

    @dasync.batched(max_wait=WAIT_S)
    def length(texts: list[str]) -> list[int]:
        seen.append(threading.get_ident())
        return [len(text) for text in texts]

    async def main(loop: dasync.EventLoop) -> None:
        assert await asyncio.gather(*map(length, ("a", "bb", "ccc"))) == [1, 2, 3]
        assert len(seen) == 1
        assert threading.get_ident() not in seen

    world.play(main)


@pytest.mark.parametrize("plain", [False, True], ids=["async", "def"])
def test_a_handler_invokes_nothing(memory: World, plain: bool) -> None:
    """It belongs to no execution, so that is refused in words, wherever it comes from: the code itself or a task."""

    def invoke(numbers: list[int]) -> None:
        ways: list[Callable[[], object]] = [
            lambda: square(1), dasync.now, dasync.random, lambda: dasync.sleep(1), dasync.promise,
            lambda: dasync.invoke(square.options(id="s"), 1), lambda: loops[0].invoke(square, 1),
        ]  # fmt: skip
        for way in ways:
            with pytest.raises(dasync.NoEventLoop, match="the handler of 'invokes' has invoked something durable"):
                way()
        raise OSError("all were refused")

    async def invoke_in_a_task(numbers: list[int]) -> None:
        await asyncio.create_task(asyncio.sleep(0))
        await asyncio.create_task(_awaiting(invoke, numbers))

    loops: list[dasync.EventLoop] = []
    decorated = dasync.batched(max_wait=WAIT_S, name="invokes")
    function: Any = decorated(invoke) if plain else decorated(invoke_in_a_task)

    @dasync.function
    async def parent() -> None:
        await function(1)

    async def main(loop: dasync.EventLoop) -> None:
        loops.append(loop)
        for one in (function(1), parent()):
            with pytest.raises(OSError, match="all were refused"):
                await one
        assert await square(3) == 9

    memory.play(main)


async def _awaiting(invoke: Callable[[list[int]], None], numbers: list[int]) -> None:
    invoke(numbers)


def test_a_parent_numbers_its_tasks_as_without_batches(memory: World) -> None:
    """The tasks of a batch are no branches of the execution whose item has opened or filled it."""

    @dasync.function
    async def parent() -> list[int]:
        numbers = await asyncio.gather(*[_of(number) for number in range(5)])
        return [*numbers, *await asyncio.gather(_of(5))]

    async def _of(number: int) -> int:
        return await square(number)

    async def main(loop: dasync.EventLoop) -> None:
        assert await parent.options(id="p")() == [0, 1, 4, 9, 16, 25]
        assert {id for id in (await rows(loop)).promises if id != "p"} == {f"p:~{n}.0" for n in range(6)}

    memory.play(main)


# -- cancels, deadlines, ends ------------------------------------------------------------------------------


def test_what_is_canceled_before_the_call_is_left_out(world: World) -> None:
    """By its promise, by a deadline, or by whoever runs elsewhere; the others go on."""
    clock = FakeClock()

    async def main(loop: dasync.EventLoop) -> None:
        gone, late, other = square.options(id="a")(0), square.options(id="late", timeout=WAIT_S / 2)(1), square(2)
        await joined(gone, late, other)
        await gone.cancel("not now")
        elsewhere = square.options(id="b")(3)
        await joined(elsewhere)
        await ask(loop, PromiseCancel("b"))
        clock.advance(WAIT_S / 2)
        assert (await ended(late)).startswith("timedout")
        assert (await ended(elsewhere)).startswith("canceled")
        clock.advance(WAIT_S / 2)
        assert await other == 4
        assert calls == [[2]]
        assert await ended(gone) == "canceled promise 'a' was canceled: not now"

    world.play(main, clock=clock)


def test_a_batch_that_nobody_waits_for_is_not_called(memory: World) -> None:
    """All of its items are canceled in time; the next item opens a batch with a time of its own."""
    clock = FakeClock()

    async def main(loop: dasync.EventLoop) -> None:
        alone = square(1)
        await joined(alone)
        await alone.cancel()
        clock.advance(WAIT_S * 0.9)
        after = square(2)
        await joined(after)
        clock.advance(WAIT_S * 0.1)
        await joined()
        assert calls == []
        clock.advance(WAIT_S * 0.9)
        assert await after == 4
        assert calls == [[2]]

    memory.play(main, clock=clock)


@pytest.mark.parametrize("gone", range(3))
def test_what_is_canceled_during_the_call_is_dropped(world: World, gone: int) -> None:
    """Its result is nobody's; the handler goes on for the others, be it the one that opened or filled the batch."""
    gated, gate, seen = handler()

    async def main(loop: dasync.EventLoop) -> None:
        promises = [gated.options(id=f"g{number}")(number) for number in range(3)]
        await until(lambda: seen)
        await promises[gone].cancel()
        gate.set()
        found = [await ended(promise) for promise in promises]
        assert found.pop(gone).startswith("canceled")
        assert found == [f"resolved {10 * number}" for number in range(3) if number != gone]
        assert seen == ["begin [0, 1, 2]", "end"]

    world.play(main)


def test_a_handler_ends_with_the_last_of_its_items(world: World) -> None:
    """When all are canceled it is, and may clean up before the last one counts as canceled."""
    gated, _, seen = handler()

    async def main(loop: dasync.EventLoop) -> None:
        promises = [gated.options(id=f"g{number}")(number) for number in range(3)]
        await until(lambda: seen)
        await asyncio.gather(*[promise.cancel() for promise in promises])
        assert seen == ["begin [0, 1, 2]", "canceled", "cleaned up"]
        assert {(await rows(loop)).promises[f"g{number}"].state for number in range(3)} == {State.CANCELED}

    world.play(main)


def test_a_timeout_around_an_await_leaves_the_item_out(memory: World) -> None:
    """asyncio's own cancel: the child that nobody awaits any more is canceled, and its batch goes without it."""
    clock = FakeClock()

    @dasync.function
    async def impatient() -> str:
        try:
            async with dasync.timeout(WAIT_S / 2):
                return str(await square(1))
        except TimeoutError:
            return "gave up"

    async def main(loop: dasync.EventLoop) -> None:
        waits, other = impatient.options(id="i")(), square.options(id="s")(2)
        await joined(waits, other)
        clock.advance(WAIT_S / 2)
        assert await waits == "gave up"
        clock.advance(WAIT_S / 2)
        assert await other == 4
        assert calls == [[2]]
        assert (await rows(loop)).promises["i:0"].state is State.CANCELED

    memory.play(main, clock=clock)


def test_a_batch_in_the_making_is_handed_back(world: World, tmp_path: Path) -> None:
    """A process that drains and closes before the call has lost nothing: the next one makes it."""
    clock = FakeClock()
    store = MemoryStore(clock) if world.store == "memory:" else world.store

    async def first(loop: dasync.EventLoop) -> None:
        promises = [square.options(id="s")(2), sum_of_squares.options(id="a")(3, 4)]
        await joined(*promises)
        await loop.drain(0)
        tasks = (await rows(loop)).tasks
        assert {tasks[id].state for id in ("s", "a")} == {TaskState.PENDING}
        clock.advance(WAIT_S)
        await joined()

    async def second(loop: dasync.EventLoop) -> None:
        again = [loop.get("s", int), loop.get("a", int)]
        await until(lambda: loop.snapshot().tasks == 2)
        await joined()
        clock.advance(WAIT_S)
        assert await asyncio.gather(*again) == [4, 25]

    there = World(store, world.host)
    there.play(first, clock=clock)
    assert calls == []
    there.play(second, clock=clock)
    assert [sorted(call) for call in calls] == [[2, 3, 4]]


def test_what_is_handed_back_is_not_handled_any_more(memory: World) -> None:
    """Not even when that comes between the end of the time and the call."""
    clock = FakeClock()

    async def main(loop: dasync.EventLoop) -> None:
        promises = [square(1), square(2)]
        await joined(*promises)
        clock.advance(WAIT_S)
        await asyncio.sleep(0)
        await loop.drain(0)
        await joined()
        assert calls == []

    memory.play(main, clock=clock)


def test_a_handler_under_way_is_canceled_at_the_close(memory: World) -> None:
    """It may clean up; its items are handed back unsettled, and are given to the handler again."""
    clock = FakeClock()
    there = World(MemoryStore(clock), None)
    gated, gate, seen = handler()

    async def first(loop: dasync.EventLoop) -> None:
        promises = [gated.options(id=f"g{number}")(number) for number in range(3)]
        await joined(*promises)
        await until(lambda: seen)

    async def second(loop: dasync.EventLoop) -> None:
        assert {(await rows(loop)).promises[f"g{n}"].state for n in range(3)} == {State.PENDING}
        gate.set()
        assert [await loop.get(f"g{number}") for number in range(3)] == [0, 10, 20]

    there.play(first, clock=clock)
    assert seen == ["begin [0, 1, 2]", "canceled", "cleaned up"]
    there.play(second, clock=clock)
    assert seen[3:] == ["begin [0, 1, 2]", "end"]


def test_items_are_handed_back_when_their_handler_has_ended(memory: World) -> None:
    """All of them, and no other worker has one before that: while the handler cleans up, it may be at any of them."""
    seen, cleaned = list[str](), asyncio.Event()

    @dasync.batched(max_size=3)
    async def tidies(numbers: list[int]) -> None:
        seen.append("begin")
        try:
            await asyncio.Event().wait()
        finally:
            seen.append("cleans up")
            await cleaned.wait()
            seen.append("cleaned up")

    async def main(loop: dasync.EventLoop) -> None:
        promises = [tidies.options(id=f"t{number}")(number) for number in range(3)]
        await joined(*promises)
        assert seen == ["begin"]
        draining = asyncio.create_task(loop.drain(0))
        await joined()
        assert {task.process for task in (await rows(loop)).tasks.values()} == {loop.process}
        cleaned.set()
        await draining
        assert {task.state for task in (await rows(loop)).tasks.values()} == {TaskState.PENDING}
        assert seen == ["begin", "cleans up", "cleaned up"]

    memory.play(main, clock=FakeClock())


def test_a_drain_lets_a_batch_finish(memory: World) -> None:
    """Within its time, as it lets any function."""

    async def main(loop: dasync.EventLoop) -> None:
        promises = [square(number) for number in range(2)]
        await joined(*promises)
        await loop.drain(5)
        assert [promise.result() for promise in promises] == [0, 1]

    memory.play(main)


def test_a_handler_does_not_begin_when_the_lease_is_over(memory: World) -> None:
    """Another process may have the items by then: the handler waits until the store has answered, and is given up, at
    once, when they are gone."""
    clock, answers = FakeClock(), asyncio.Event()

    class Slow(MemoryStore):
        async def transact(self, commands: Sequence[Command]) -> Committed:
            if clock.monotonic() > 0 and any(isinstance(command, ProcessJoin) for command in commands):
                await answers.wait()
            return await super().transact(commands)

    def handlers() -> list[asyncio.Task[Any]]:
        return [task for task in asyncio.all_tasks() if task.get_name() == "batch square"]

    async def main(loop: dasync.EventLoop) -> None:
        promise = square.options(id="s")(2)
        await joined(promise)
        assert len(handlers()) == 1
        await loop._store.transact([ProcessLeave(loop.process)])
        clock.advance(12)  # the time of the batch is over, and so is the lease
        await until(lambda: loop.snapshot().tasks == 0)
        await joined()
        running = handlers()
        answers.set()
        assert (running, calls) == ([], [])
        await until(lambda: loop.snapshot().tasks == 1)
        await joined()
        clock.advance(WAIT_S)
        assert await promise == 4
        assert calls == [[2]]

    World(Slow(clock), None).play(main, clock=clock, lease=9)


# -- crashes -----------------------------------------------------------------------------------------------

NAMES = [f"{name}{i}" for name in "abc" for i in range(3)] + ["d", "e"]
WANTED = [[[f"{name}{i}" for i in range(3)] for name in "ABC"], "D", "E"]


def stored(path: Path) -> dict[str, tuple[str, object]]:
    """State and value of every promise, by its id, as the file has it."""
    if not path.exists():
        return {}
    connection = sqlite3.connect(path)
    try:
        if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'promises'").fetchall():
            return {}
        found = connection.execute("SELECT id, state, value FROM promises").fetchall()
    finally:
        connection.close()
    return {id: (state, None if value is None else codec.decode(value)) for id, state, value in found}


def given(ledger: Path) -> Counter[str]:
    lines = ledger.read_text().splitlines() if ledger.exists() else []
    return Counter(line.removeprefix("item ") for line in lines if line.startswith("item "))


@pytest.mark.parametrize("when", ["after", pytest.param("before", marks=pytest.mark.campaign)])
def test_killed_at_every_transaction(zygote: Zygote, tmp_path: Path, when: str) -> None:
    """It resumes to the same; an item that was recorded is given to the handler once, every other at least once."""
    for start in itertools.count(1, 4):
        points = range(start, start + 4)
        args = {n: (str(tmp_path / f"{n}.db"), str(tmp_path / f"{n}.txt")) for n in points}
        runs = [zygote.spawn("batchers:mortal", *args[n], n, when) for n in points]
        statuses = [run.wait() for run in runs]
        assert set(statuses) <= {0, -9}
        before = {n: (stored(Path(args[n][0])), given(Path(args[n][1]))) for n in points}
        resumed = {n: zygote.spawn("batchers:mortal", *args[n], 0, when) for n in points}
        for n, (found, begun) in before.items():
            assert resumed[n].result() == WANTED
            runs_of = given(Path(args[n][1]))
            recorded = {str(value).lower() for _, value in found.values() if isinstance(value, str)}
            assert all(runs_of[name] == begun[name] == 1 for name in recorded), n
            assert all(max(1, begun[name]) <= runs_of[name] <= 2 for name in NAMES if name not in recorded), n
            assert {state for state, _ in stored(Path(args[n][0])).values()} == {"resolved"}
        if 0 in statuses:
            assert start > 4
            return


@pytest.mark.parametrize("threads", [False, True], ids=["async", "def"])
def test_one_item_that_kills_is_found(zygote: Zygote, tmp_path: Path, threads: bool) -> None:
    """An item ends the process whenever it is handled: its task is halted as poisoned in the end, and no other one."""
    path, ledger = tmp_path / "s.db", tmp_path / "ledger"
    args = ("batchers:killed_by", str(path), str(ledger), ["a", "b", "c"], "in c", threads, 3)
    deaths = 0
    while (last := zygote.spawn(*args)).wait() == -9:
        deaths += 1
        assert deaths < 10
    assert last.result() == ["A", "B", "Poisoned"]
    assert deaths >= 3
    assert stored(path)["c"] == ("pending", None)


# -- other processes -----------------------------------------------------------------------------------------


def test_a_worker_coalesces_what_it_holds(site: Site) -> None:
    """Dispatched by `on=` from executions of another process, declared there or not: one call in the worker."""
    worker = site.hire()

    @dasync.remote(on="far", name="insert")
    async def elsewhere(item: str) -> str: ...

    @dasync.function
    async def asks(name: str) -> list[str]:
        return await dasync.all(batchers.insert.options(on="far")(name), elsewhere(f"{name}{name}"))

    async def main(loop: dasync.EventLoop) -> None:
        found = await asyncio.gather(*map(asks, "abc"))
        assert found == [["A", "AA"], ["B", "BB"], ["C", "CC"]]

    site.play(main)
    made = [line.split()[1:] for line in site.lines("call")]
    assert {line[-1] for line in made} == {str(worker.pid)}
    assert sorted(name for *names, _ in made for name in names) == ["a", "aa", "b", "bb", "c", "cc"]
    assert len(made) < 6


# -- what may be a handler ---------------------------------------------------------------------------------


class Table:
    async def add(self, rows: list[str]) -> None: ...


async def no_list(row: int) -> None: ...
async def a_sequence(rows: tuple[int, ...]) -> None: ...
async def two(rows: list[int], table: str) -> None: ...
async def none() -> None: ...
async def many(*rows: int) -> None: ...
async def by_name(*, rows: list[int]) -> None: ...
async def no_list_back(rows: list[int]) -> int: ...
async def two_lists_back(rows: list[int]) -> list[int] | dict[str, int]: ...
async def yields(rows: list[int]) -> Any:
    yield rows


untyped: Any = dasync.batched
REFUSED: dict[str, tuple[Callable[[], object], type[Exception], str]] = {
    "max_size=0": (lambda: untyped(max_size=0), ValueError, "max_size is .*1 or more, not 0"),
    "max_size=True": (lambda: untyped(max_size=True), ValueError, "max_size is .*1 or more, not True"),
    "max_size=1.5": (lambda: untyped(max_size=1.5), ValueError, "max_size"),
    "max_wait=-1": (lambda: untyped(max_wait=-1), ValueError, "max_wait is 0 or more seconds"),
    "max_wait=x": (lambda: untyped(max_wait="x"), TypeError, "max_wait is a number"),
    "a method": (lambda: untyped(Table.add), TypeError, "Table.add is a method"),
    "no list": (lambda: untyped(no_list), TypeError, r"no_list\(\) is the handler .*'row' is list\[...\], of what"),
    "a tuple": (lambda: untyped(a_sequence), TypeError, r"not tuple\[int, ...\]"),
    "two parameters": (lambda: untyped(two), TypeError, "takes the list of items and nothing else"),
    "no parameter": (lambda: untyped(none), TypeError, "takes the list of items and nothing else"),
    "any number": (lambda: untyped(many), TypeError, "takes the list of items and nothing else"),
    "by its name": (lambda: untyped(by_name), TypeError, "takes the list of items and nothing else"),
    "no list back": (lambda: untyped(no_list_back), TypeError, r"returns list\[...\].*, not <class 'int'>"),
    "two lists back": (lambda: untyped(two_lists_back), TypeError, r"it returns list\[...\]"),
    "a lambda": (lambda: untyped(lambda rows: rows), TypeError, "a lambda has no name"),
    "a generator": (lambda: untyped(yields), TypeError, "yields, and a promise has one value"),
    "no function": (lambda: untyped(square), TypeError, "@dasync.batched takes a function"),
    "version": (lambda: untyped(version=-1)(square.fn), ValueError, "version is an int"),
    "on": (lambda: untyped(on=""), ValueError, "target"),
}  # fmt: skip


@pytest.mark.parametrize(("bad", "kind", "said"), REFUSED.values(), ids=REFUSED)
def test_what_is_no_handler_is_refused(bad: Callable[[], object], kind: type[Exception], said: str) -> None:
    """At its definition, in words."""
    with pytest.raises(kind, match=said):
        bad()


def test_annotations_may_come_later(memory: World) -> None:
    """What they name need not exist yet; read at the first use, they are checked then."""
    space: dict[str, Any] = {"dasync": dasync}
    exec(
        "from __future__ import annotations\n"
        "@dasync.batched(max_wait=0)\n"
        "async def late(rows: list[Row]) -> list[Row]: return rows\n"
        "@dasync.batched(max_wait=0)\n"
        "async def wrong(rows: Row) -> None: ...\n"
        "from dataclasses import dataclass\n"
        "@dataclass\n"
        "class Row: number: int\n",
        {**space, "__name__": __name__}, space,
    )  # fmt: skip
    space["late"].fn.__globals__["Row"] = space["Row"]

    async def main(loop: dasync.EventLoop) -> None:
        assert await space["late"](space["Row"](1)) == space["Row"](1)
        with pytest.raises(TypeError, match=r"wrong\(\) is the handler of a batch"):
            space["wrong"](1)

    memory.play(main)


def test_two_handlers_of_one_name_are_a_conflict(memory: World) -> None:
    """As two functions are, when the EventLoop opens; the same place again replaces."""
    dasync.batched(name="square")(no_more)

    async def main(loop: dasync.EventLoop) -> None: ...

    with pytest.raises(ValueError, match="two functions are registered as 'square' version 1"):
        memory.play(main)


async def no_more(rows: list[int]) -> None: ...
