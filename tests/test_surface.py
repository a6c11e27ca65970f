"""The public surface as programs: every part of the contract that this version delivers, on each store and host."""

from __future__ import annotations

import asyncio
import contextvars
import enum
import pydoc
import re
import rlcompleter
from collections.abc import AsyncIterator, Coroutine, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any
from uuid import UUID

import anyio
import pytest
from play import World, rows, settle, until

import dasync
from dasync.core.model import State
from dasync.stores.memory import MemoryStore
from dasync.system import SystemClock


@dasync.function
async def double(x: int) -> int:
    return 2 * x


@dasync.function
async def quadruple(x: int) -> int:
    return await double(await double(x))


@dasync.function
async def boom(text: str = "boom") -> None:
    raise ValueError(text)


@dasync.function
async def hold_on(gate: str) -> str:
    """Wait for somebody outside."""
    return await dasync.promise(str, id=gate)


# -- invoke, await, return -----------------------------------------------------------------------------------


def test_a_promise_shows_what_programs_use(memory: World) -> None:
    """In `help`, in `dir` and in completion: the surface and the coroutine protocol, not what the event loop does."""
    surface = {"id", "state", "done", "result", "exception", "created", "cancel", "resolve", "reject", "wait"}
    surface |= {"send", "throw", "close"}

    async def main(loop: dasync.EventLoop) -> None:
        promise = double(1)
        for seen in (dasync.Promise, promise):
            assert {name for name in dir(seen) if not name.startswith("_")} == surface
        assert "__await__" in dir(promise)
        completer = rlcompleter.Completer({"promise": promise})
        assert completer.complete("promise.se", 0) == "promise.send("
        assert completer.complete("promise.se", 1) is None
        await promise

    memory.play(main)
    told = pydoc.render_doc(dasync.Promise, renderer=pydoc.plaintext)
    assert set(re.findall(r"^ \|  (?:async )?([a-z]\w*)(?:\(|$)", told, re.M)) == surface


def test_invoking_gives_a_promise_and_awaiting_gives_the_value(world: World) -> None:
    """`f(x)` returns at once with a pending promise; `await` gives what the function returns."""

    async def main(loop: dasync.EventLoop) -> None:
        promise = quadruple(3)
        assert isinstance(promise, dasync.Promise)
        assert isinstance(promise, Coroutine)
        assert (promise.state, promise.done()) == (dasync.State.PENDING, False)
        assert await promise == 12
        assert (promise.state, promise.done(), promise.result(), promise.exception()) == (
            State.RESOLVED,
            True,
            12,
            None,
        )

    world.play(main)


def test_the_promise_starts_without_being_awaited(world: World) -> None:
    """Invoking starts the function; nobody needs to await for it to be done."""

    async def main(loop: dasync.EventLoop) -> None:
        promise = double(4)
        await until(promise.done)
        assert promise.result() == 8

    world.play(main)


def test_awaiting_twice_gives_the_same_value(world: World) -> None:
    """A promise can be awaited again, at once and later, by several tasks."""

    async def main(loop: dasync.EventLoop) -> None:
        promise = double(5)

        async def wait() -> int:
            return await promise

        assert await asyncio.gather(wait(), wait(), wait()) == [10, 10, 10]
        assert await promise == 10
        assert await promise == 10

    world.play(main)


def test_one_promise_is_awaited_by_several_executions(world: World) -> None:
    """Executions share a root by its id, and each gets its value."""

    @dasync.function
    async def shares(who: str) -> str:
        return f"{who}: {await double.options(id='shared')(21)}"

    async def main(loop: dasync.EventLoop) -> None:
        assert await dasync.all(shares("a"), shares("b")) == ["a: 42", "b: 42"]
        assert list((await rows(loop)).promises).count("shared") == 1

    world.play(main)


def test_a_pending_promise_has_no_result(memory: World) -> None:
    """`result()` and `exception()` of a pending promise raise InvalidStateError, which names it."""

    async def main(loop: dasync.EventLoop) -> None:
        promise = dasync.promise(int, id="waits")
        with pytest.raises(asyncio.InvalidStateError, match="'waits' is pending"):
            promise.result()
        with pytest.raises(asyncio.InvalidStateError):
            promise.exception()

    memory.play(main)


def test_created_returns_when_the_record_is_durable(world: World) -> None:
    """After `created()` another reader of the store finds the promise pending; before, it need not."""

    async def main(loop: dasync.EventLoop) -> None:
        promise = hold_on("gate")
        await promise.created()
        await promise.created()
        assert (await rows(loop)).promises[promise.id].state is State.PENDING

    world.play(main)


def test_created_of_a_child_flushes_what_is_written_behind(world: World) -> None:
    """A local child's pending record is written behind; `created()` waits for it and hurries it."""
    seen: list[State] = []

    @dasync.function
    async def parent() -> None:
        child = hold_on("gate")
        await child.created()
        seen.append((await rows(loops[0])).promises[child.id].state)

    loops: list[dasync.EventLoop] = []

    async def main(loop: dasync.EventLoop) -> None:
        loops.append(loop)
        promise = parent()
        await until(lambda: seen)
        assert seen == [State.PENDING]
        assert not promise.done()

    world.play(main)


def test_a_failure_is_raised_at_the_await(world: World) -> None:
    """The error of a function is raised where its promise is awaited, each time as a fresh object."""

    async def main(loop: dasync.EventLoop) -> None:
        promise = boom("why")
        with pytest.raises(ValueError, match="why") as first:
            await promise
        with pytest.raises(ValueError, match="why") as second:
            promise.result()
        assert first.value is not second.value
        assert isinstance(promise.exception(), ValueError)
        assert promise.state is State.REJECTED

    world.play(main)


def test_the_three_spellings_of_an_invocation(world: World) -> None:
    """`f(x)`, `dasync.invoke(f, x)` and `loop.invoke(f, x)` are the same, outside an execution and inside."""

    @dasync.function
    async def inside() -> list[int]:
        return [await double(1), await dasync.invoke(double, 1), await loops[0].invoke(double, x=1)]

    loops: list[dasync.EventLoop] = []

    async def main(loop: dasync.EventLoop) -> None:
        loops.append(loop)
        assert [await double(1), await dasync.invoke(double, x=1), await loop.invoke(double, 1)] == [2, 2, 2]
        assert await inside.options(id="i")() == [2, 2, 2]
        assert {"i:0", "i:1", "i:2"} <= (await rows(loop)).promises.keys()

    world.play(main)


def test_the_function_as_written_is_at_hand() -> None:
    """`f.fn` is the coroutine function, which a unit test runs without any EventLoop."""
    assert asyncio.run(double.fn(4)) == 8
    assert (double.name, double.version, double.__name__) == ("double", 1, "double")
    assert repr(double) == "<dasync function 'double' version 1>"


def test_keyword_arguments_and_defaults_travel(world: World) -> None:
    """Arguments are bound as Python binds them."""

    @dasync.function
    async def shape(a: int, /, b: int = 2, *rest: int, c: int = 3, **more: int) -> object:
        return [a, b, rest, c, more]

    async def main(loop: dasync.EventLoop) -> None:
        assert await shape(1) == [1, 2, (), 3, {}]
        assert await shape(1, 5, 6, c=7, d=8) == [1, 5, (6,), 7, {"d": 8}]
        assert await shape(1, b=9) == [1, 9, (), 3, {}]

    world.play(main)


def test_run_opens_a_loop_around_main(tmp_path: Path) -> None:
    """`dasync.run` runs a coroutine function or a dasync function, and the store keeps what it did."""

    async def main() -> int:
        return await double.options(id="kept")(21)

    assert dasync.run(main, store=str(tmp_path / "r.db")) == 42

    @dasync.function
    async def program() -> int:
        return await double(4)

    assert dasync.run(program) == 8

    async def look(loop: dasync.EventLoop) -> object:
        return await loop.get("kept")

    assert World(str(tmp_path / "r.db"), None).play(look) == 42
    assert World(f"sqlite:///{tmp_path / 'r.db'}", None).play(look) == 42


def test_an_error_of_main_comes_out_of_run() -> None:
    """`dasync.run` raises what main raises."""
    with pytest.raises(ValueError, match="boom"):
        dasync.run(boom)


# -- asyncio and anyio, inside executions and outside -------------------------------------------------------


async def by_gather() -> list[int]:
    return list(await asyncio.gather(double(1), double(2), double(3)))


async def by_task_group() -> list[int]:
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(double(i)) for i in (1, 2, 3)]
    return [task.result() for task in tasks]


async def by_create_task() -> list[int]:
    tasks = [asyncio.create_task(double(i)) for i in (1, 2, 3)]
    return [await task for task in tasks]


async def by_all() -> list[int]:
    return await dasync.all(double(1), double(2), double(3))


async def by_wait() -> list[int]:
    tasks = [asyncio.ensure_future(double(i)) for i in (1, 2, 3)]
    done, pending = await asyncio.wait(tasks)
    assert not pending
    return [task.result() for task in tasks if task in done]


async def by_wait_for() -> list[int]:
    return [await asyncio.wait_for(double(i), 10) for i in (1, 2, 3)]


async def by_timeout() -> list[int]:
    async with asyncio.timeout(10):
        return [await double(i) for i in (1, 2, 3)]


async def by_shield() -> list[int]:
    return [await asyncio.shield(double(i)) for i in (1, 2, 3)]


async def by_anyio() -> list[int]:
    async with anyio.create_task_group() as group:
        for i in (1, 2, 3):
            group.start_soon(double, i)
        group.start_soon(quadruple, 1, name="named")
    return [2, 4, 6]


async def by_runner_of_any_coroutine() -> list[int]:
    async def wrapped(coroutine: Coroutine[object, object, int]) -> int:
        return await coroutine

    return [await wrapped(double(i)) for i in (1, 2, 3)]


WAYS = [
    by_gather, by_task_group, by_create_task, by_all, by_wait, by_wait_for, by_timeout, by_shield, by_anyio,
    by_runner_of_any_coroutine,
]  # fmt: skip


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize("inside", [False, True], ids=["outside", "inside"])
def test_a_promise_goes_where_a_coroutine_goes(world: World, way: Any, inside: bool) -> None:
    """Whatever takes a coroutine object takes a promise, in an execution and outside one."""
    way_in = dasync.function(name=f"uses_{way.__name__}")(way)

    async def main(loop: dasync.EventLoop) -> None:
        assert await (way_in() if inside else way()) == [2, 4, 6]

    world.play(main)


def test_gather_of_one_promise_twice(world: World) -> None:
    """The same promise may be given twice to gather, and awaited besides."""

    @dasync.function
    async def twice() -> list[int]:
        promise = double(4)
        return [*await asyncio.gather(promise, promise), await promise]

    async def main(loop: dasync.EventLoop) -> None:
        assert await twice() == [8, 8, 8]

    world.play(main)


def test_ordinary_asyncio_works_inside_an_execution(world: World) -> None:
    """Locks, queues, events, semaphores, threads, async generators and contextvars work as outside."""
    variable = contextvars.ContextVar("variable", default="unset")

    @dasync.function
    async def ordinary() -> object:
        queue: asyncio.Queue[int] = asyncio.Queue(1)
        lock, event, some = asyncio.Lock(), asyncio.Event(), asyncio.Semaphore(2)
        variable.set("set")

        async def produce() -> None:
            for i in range(3):
                async with lock, some:
                    await queue.put(await double(i))
            event.set()

        async def numbers() -> Any:
            for _ in range(3):
                yield await queue.get()

        task = asyncio.create_task(produce())
        seen = [number async for number in numbers()]
        await event.wait()
        await task
        thread = await asyncio.to_thread(sum, [1, 2])
        return [seen, thread, variable.get()]

    async def main(loop: dasync.EventLoop) -> None:
        assert await ordinary() == [[0, 2, 4], 3, "set"]

    world.play(main)


def test_canceling_an_await_does_not_cancel_the_promise(world: World) -> None:
    """A task that is canceled while it awaits gives up alone; the promise goes on and is awaited by others."""

    async def main(loop: dasync.EventLoop) -> None:
        promise = hold_on("gate")
        task = asyncio.create_task(promise)
        other = asyncio.create_task(promise)
        await until(lambda: promise.id in loop.awaiters)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(promise, 0.01)
        assert promise.state is State.PENDING
        await settle(loop, "gate", "came")
        assert [await promise, await other] == ["came", "came"]

    world.play(main)


def test_a_timeout_around_an_await_is_caught_and_the_body_goes_on(world: World) -> None:
    """`asyncio.timeout` cuts the await; the child whose await was cut, and which nobody else awaits, is canceled."""

    @dasync.function
    async def impatient() -> str:
        try:
            async with asyncio.timeout(0.01):
                return await hold_on("never")
        except TimeoutError:
            return f"gave up after {await double(1)}"

    async def main(loop: dasync.EventLoop) -> None:
        assert await impatient.options(id="i")() == "gave up after 2"
        found = (await rows(loop)).promises
        assert [found["i:0"].state, found["i:1"].state] == [State.CANCELED, State.RESOLVED]

    world.play(main)


# -- structure -----------------------------------------------------------------------------------------------


def test_children_that_were_never_awaited_are_waited_for(world: World) -> None:
    """A body that returns first does not end before its children."""

    @dasync.function
    async def slow(log: str) -> None:
        await asyncio.sleep(0.02)
        seen.append(log)

    @dasync.function
    async def leaves() -> str:
        slow("a")
        slow("b")
        return "returned"

    seen: list[str] = []

    async def main(loop: dasync.EventLoop) -> None:
        assert await leaves() == "returned"
        assert sorted(seen) == ["a", "b"]

    world.play(main)


def test_a_failure_that_nobody_awaits_rejects_the_parent(world: World) -> None:
    """A child that fails unheard is not lost: its parent is rejected with its error."""

    @dasync.function
    async def deaf() -> str:
        boom("first")
        boom("second")
        return "fine"

    async def main(loop: dasync.EventLoop) -> None:
        with pytest.raises(ValueError, match="first"):
            await deaf()

    world.play(main)


@pytest.mark.parametrize("how", ["await", "exception", "gather"])
def test_a_failure_that_was_heard_rejects_nobody(world: World, how: str) -> None:
    """A failure that the parent has asked for is the parent's to deal with."""

    @dasync.function
    async def hears(how: str) -> str:
        promise = boom()
        if how == "await":
            with pytest.raises(ValueError, match="boom"):
                await promise
        elif how == "gather":
            assert isinstance((await asyncio.gather(promise, return_exceptions=True))[0], ValueError)
        else:
            await until(promise.done)
            assert isinstance(promise.exception(), ValueError)
        return "fine"

    async def main(loop: dasync.EventLoop) -> None:
        assert await hears(how) == "fine"

    world.play(main)


def test_pending_children_are_canceled_when_a_body_raises(world: World) -> None:
    """Local and remote children are canceled, their clean-up runs, and then the parent rejects with its own error."""
    log: list[str] = []

    @dasync.function
    async def tidy() -> None:
        try:
            await hold_on("never")
        finally:
            log.append("cleaned up")

    @dasync.function
    async def raises() -> None:
        tidy()
        double.options(on="nobody")(1)
        await asyncio.sleep(0.01)
        raise KeyError("body")

    async def main(loop: dasync.EventLoop) -> None:
        with pytest.raises(KeyError, match="body"):
            await raises.options(id="r")()
        assert log == ["cleaned up"]
        found = (await rows(loop)).promises
        assert {id: found[id].state for id in ("r", "r:0", "r:0.0", "r:1")} == {
            "r": State.REJECTED, "r:0": State.CANCELED, "r:0.0": State.CANCELED, "r:1": State.CANCELED,
        }  # fmt: skip
        assert found["never"].state is State.PENDING  # shared by its id: nobody's child

    world.play(main)


def test_tasks_that_a_body_left_behind_are_canceled(world: World) -> None:
    """An asyncio task does not outlive the execution that made it."""
    log: list[str] = []

    @dasync.function
    async def leaves_a_task() -> str:
        async def forever() -> None:
            try:
                await asyncio.Event().wait()
            finally:
                log.append("ended")

        task = asyncio.create_task(forever())
        await asyncio.sleep(0)
        assert not task.done()
        return "done"

    async def main(loop: dasync.EventLoop) -> None:
        assert await leaves_a_task() == "done"
        assert log == ["ended"]

    world.play(main)


def test_timers_and_external_promises_hold_no_parent(world: World) -> None:
    """A body that returns does not wait for a sleep or for an outside decision that it did not await."""

    @dasync.function
    async def quick() -> str:
        dasync.sleep(3600)
        dasync.promise(str)
        return "quick"

    async def main(loop: dasync.EventLoop) -> None:
        assert await quick() == "quick"

    world.play(main)


def test_exits_run_once(world: World) -> None:
    """`try/finally` and `async with` around a durable await run their exit once, on return, error and timeout."""
    log: list[str] = []

    @asynccontextmanager
    async def resource(name: str) -> Any:
        try:
            yield
        finally:
            await double(1)
            log.append(name)

    @dasync.function
    async def careful(how: str) -> int:
        try:
            async with resource(f"with {how}"):
                if how == "error":
                    await boom()
                if how == "timeout":
                    async with asyncio.timeout(0.01):
                        await hold_on("never")
                return await double(2)
        finally:
            log.append(f"finally {how}")

    async def main(loop: dasync.EventLoop) -> None:
        assert await careful("return") == 4
        with pytest.raises(ValueError, match="boom"):
            await careful("error")
        with pytest.raises(TimeoutError):
            await careful("timeout")
        assert log == [f"{exit} {how}" for how in ("return", "error", "timeout") for exit in ("with", "finally")]

    world.play(main)


def test_a_child_fails_within_a_task_group(world: World) -> None:
    """A TaskGroup inside an execution aborts its other members, whose promises are canceled with the parent."""

    @dasync.function
    async def grouped() -> str:
        with pytest.raises(ExceptionGroup) as caught:  # noqa: PT012  # the group is what raises
            async with asyncio.TaskGroup() as group:
                group.create_task(hold_on("never"))
                group.create_task(boom("one"))
        return f"survived {caught.value.exceptions[0]}"

    async def main(loop: dasync.EventLoop) -> None:
        assert await grouped.options(id="g")() == "survived one"
        assert (await rows(loop)).promises["g:0"].state is State.CANCELED

    world.play(main)


def test_a_body_that_cancels_itself_is_canceled(world: World) -> None:
    """A CancelledError that comes out of a body, and that nobody sent, settles its promise as canceled."""

    @dasync.function
    async def gives_up() -> None:
        raise asyncio.CancelledError

    async def main(loop: dasync.EventLoop) -> None:
        promise = gives_up()
        with pytest.raises(dasync.PromiseCanceled, match=promise.id):
            await promise
        assert promise.state is State.CANCELED

    world.play(main)


# -- options -------------------------------------------------------------------------------------------------


def test_an_id_names_a_root_once(world: World) -> None:
    """Invoking an id again with the same function, version and arguments gives the same promise, run once."""
    runs: list[int] = []

    @dasync.function
    async def counted(x: int) -> int:
        runs.append(x)
        return x

    async def main(loop: dasync.EventLoop) -> None:
        one = counted.options(id="order-42")
        first, second = one(7), one(7)
        assert first.id == second.id == "order-42"
        assert [await first, await second, await one(7)] == [7, 7, 7]
        assert runs == [7]

    world.play(main)


def test_an_id_survives_the_loop(tmp_path: Path) -> None:
    """A later EventLoop on the same file gets the recorded value without running anything."""
    runs: list[int] = []

    @dasync.function
    async def once(x: int) -> int:
        runs.append(x)
        return x

    async def main(loop: dasync.EventLoop) -> int:
        return await once.options(id="o")(7)

    world = World(str(tmp_path / "s.db"), None)
    assert [world.play(main), world.play(main)] == [7, 7]
    assert runs == [7]


OTHER_USES: dict[str, Any] = {
    "arguments": lambda: double.options(id="o")(2),
    "function": lambda: quadruple.options(id="o")(1),
    "version": lambda: double.options(id="o", version=2, on="nobody")(1),
    "promise": lambda: dasync.promise(id="o"),
}


@pytest.mark.parametrize("other", OTHER_USES.values(), ids=OTHER_USES)
def test_an_id_in_other_use_is_a_conflict(world: World, other: Any) -> None:
    """With other arguments, another function, version or kind, `await` and `created()` raise; the first is unharmed."""

    async def main(loop: dasync.EventLoop) -> None:
        first = double.options(id="o")(1)
        with pytest.raises(dasync.PromiseConflict, match=r"id 'o' is in use for 'double' \(version 1\)"):
            await other()
        with pytest.raises(dasync.PromiseConflict):
            await other().created()
        assert await first == 2

    world.play(main)


def test_a_conflict_does_not_strand_the_right_invocation(tmp_path: Path) -> None:
    """Of two handles of one id in a process, the wrong one is refused and the right one still hears of the outcome."""

    async def make(loop: dasync.EventLoop) -> None:
        await hold_on.options(id="o")("gate").created()

    async def main(loop: dasync.EventLoop) -> None:
        wrong, right = hold_on.options(id="o")("other"), hold_on.options(id="o")("gate")
        with pytest.raises(dasync.PromiseConflict):
            await wrong
        await settle(loop, "gate", "came")
        assert await right == "came"

    world = World(str(tmp_path / "s.db"), None)
    world.play(make)
    world.play(main)


def test_options_are_a_copy(memory: World) -> None:
    """`f.options(...)` leaves `f` as it was, and options given step by step add up."""
    configured = double.options(timeout=5).options(tags={"a": "b"}, on="here")
    assert (configured.configured.timeout_s, configured.configured.tags, configured.configured.on) == (
        5, {"a": "b"}, "here",
    )  # fmt: skip
    assert (double.configured.timeout_s, double.configured.tags, double.configured.on) == (None, None, None)


def test_a_promise_times_out(world: World) -> None:
    """A promise that is pending at its deadline times out; the error is a TimeoutError and names it."""

    async def main(loop: dasync.EventLoop) -> None:
        promise = hold_on.options(timeout=timedelta(milliseconds=20))("never")
        with pytest.raises(dasync.PromiseTimedOut, match=promise.id) as caught:
            await promise
        assert isinstance(caught.value, TimeoutError)
        assert promise.state is State.TIMEDOUT

    world.play(main)


def test_a_declared_timeout_is_the_default(world: World) -> None:
    """`@dasync.function(timeout=)` holds for every invocation, a child's too, unless options say otherwise."""

    @dasync.function(timeout=0.02)
    async def limited() -> str:
        return await hold_on("never")

    @dasync.function
    async def tries() -> str:
        try:
            return await limited()
        except dasync.PromiseTimedOut:
            return "timed out"

    async def main(loop: dasync.EventLoop) -> None:
        assert await tries() == "timed out"
        with pytest.raises(dasync.PromiseTimedOut):
            await limited()

    world.play(main)


def test_a_child_never_outlives_its_parents_deadline(world: World) -> None:
    """Children, local, remote, external and theirs, have at most their parent's deadline, and time out with it."""

    @dasync.function
    async def nested() -> None:
        await hold_on("never")

    @dasync.function
    async def parent() -> None:
        nested()
        nested.options(timeout=3600)()
        nested.options(on="nobody")()
        dasync.promise(int, timeout=3600)
        await asyncio.Event().wait()

    async def main(loop: dasync.EventLoop) -> None:
        promise = parent.options(id="p", timeout=0.1)()
        with pytest.raises(dasync.PromiseTimedOut):
            await promise
        deadline = (await rows(loop)).promises["p"].timeout_at
        async with asyncio.timeout(5):
            while True:
                below = {id: one for id, one in (await rows(loop)).promises.items() if id.startswith("p:")}
                if all(one.state is State.TIMEDOUT for one in below.values()):
                    break
                await asyncio.sleep(0.01)
        assert below.keys() == {"p:0", "p:0.0", "p:1", "p:1.0", "p:2", "p:3"}
        assert {one.timeout_at for one in below.values()} == {deadline}
        await until(lambda: not [id for id in loop.promises if id.startswith("p:")])

    world.play(main, poll=0.02)


def test_a_child_that_settles_at_its_own_earlier_deadline(world: World) -> None:
    """A child's own timeout counts when it is the earlier one."""

    @dasync.function
    async def parent() -> str:
        try:
            return await hold_on.options(timeout=0.01)("never")
        except dasync.PromiseTimedOut:
            return "child timed out"

    async def main(loop: dasync.EventLoop) -> None:
        assert await parent.options(timeout=60)() == "child timed out"

    world.play(main)


def test_versions_live_side_by_side(world: World) -> None:
    """One name may have several versions; `version=` chooses, and each runs its own body."""

    @dasync.function(name="greet")
    async def old() -> str:
        return "v1"

    @dasync.function(name="greet", version=2)
    async def new() -> str:
        return "v2"

    @dasync.function
    async def both() -> list[str]:
        return [await old(), await new()]

    async def main(loop: dasync.EventLoop) -> None:
        assert [await old(), await new(), await both()] == ["v1", "v2", ["v1", "v2"]]
        assert await new.options(version=1)() == "v1"

    world.play(main)


@pytest.mark.parametrize("inside", [False, True])
def test_a_chosen_version_runs_that_versions_body(memory: World, inside: bool) -> None:
    """`f.options(version=1)` runs version 1's body as root and as local child, or says that there is none."""

    @dasync.function(name="greet")
    async def old() -> str:
        return "v1"

    @dasync.function(name="greet", version=2)
    async def new() -> str:
        return "v2"

    @dasync.function
    async def chooses() -> str:
        return await new.options(version=1)()

    async def main(loop: dasync.EventLoop) -> None:
        assert await (chooses() if inside else new.options(version=1)()) == "v1"

    memory.play(main)


def test_tags_are_found_by_search(world: World) -> None:
    """Tags are stored with the promise, and `search(tags=)` finds those that have all of them."""

    async def main(loop: dasync.EventLoop) -> None:
        for customer in ("ada", "bob"):
            for kind in ("new", "old"):
                one = double.options(id=f"{customer}-{kind}", tags={"customer": customer, "kind": kind})
                assert await one(1) == 2
        found = await loop.search(tags={"customer": "ada"})
        assert [one.promise.id for one in found.found] == ["ada-new", "ada-old"]
        both = await loop.search(tags={"customer": "ada", "kind": "old"})
        assert [one.promise.id for one in both.found] == ["ada-old"]

    world.play(main)


def test_a_group_of_ones_own_is_served(world: World) -> None:
    """`on=` the EventLoop's own group, or its own process, is acquired and run right here, as root and as child."""

    @dasync.function
    async def dispatches(target: str) -> int:
        return await double.options(on=target)(1)

    async def main(loop: dasync.EventLoop) -> None:
        assert await double.options(on="default")(1) == 2
        assert await double.options(on="default/me")(1) == 2
        assert await dispatches("default") == 2
        assert await dispatches("default/me") == 2

    world.play(main, process="me", poll=60)


def test_more_roots_than_there_is_room_for(world: World) -> None:
    """With concurrency 2, twenty roots run two at a time, and all of them run."""
    running, most = [0], [0]

    @dasync.function
    async def counted(x: int) -> int:
        running[0] += 1
        most[0] = max(most[0], running[0])
        await asyncio.sleep(0.001)
        running[0] -= 1
        return x

    async def main(loop: dasync.EventLoop) -> None:
        assert await dasync.all(*[counted(i) for i in range(20)]) == list(range(20))
        assert most[0] == 2

    world.play(main, concurrency=2, poll=60)


def test_who_only_waits_takes_no_room(world: World) -> None:
    """With concurrency 1, a parent that awaits a dispatched child lets that child run: no deadlock."""

    @dasync.function
    async def deep(n: int) -> int:
        return n if n == 0 else 1 + await deep.options(on="default")(n - 1)

    async def main(loop: dasync.EventLoop) -> None:
        assert await deep(5) == 5

    world.play(main, concurrency=1, poll=60)


# -- remote --------------------------------------------------------------------------------------------------


def test_a_declared_function_runs_where_it_is_implemented(host: Any, tmp_path: Path) -> None:
    """`@dasync.remote` is typed and checked here; the body runs on the group's EventLoop, for the untyped form too."""
    path = str(tmp_path / "s.db")

    @dasync.function(name="ship")
    async def implementation(sku: str, count: int = 1) -> dict[str, int]:
        return {sku: count}

    @dasync.remote(on="warehouse", name="ship")
    async def ship(sku: str, count: int = 1) -> dict[str, int]:
        raise AssertionError("never run")

    untyped = dasync.remote("ship", on="warehouse")

    @dasync.function
    async def order() -> list[dict[str, int]]:
        return [await ship("a"), await ship("b", count=2), await untyped("c", 3)]

    async def main(loop: dasync.EventLoop) -> None:
        async with dasync.EventLoop(path, group="warehouse", durability="process", functions=[implementation]) as there:
            assert await loop.invoke(ship, "x") == {"x": 1}
            assert await loop.invoke(untyped, "x", count=4) == {"x": 4}
            assert await loop.invoke(order) == [{"a": 1}, {"b": 2}, {"c": 3}]
            assert there.snapshot().tasks == 0

    World(path, host).play(main)


def test_a_declaration_checks_arguments(memory: World) -> None:
    """Wrong arguments raise at the call, before anything is sent; without `on` there is nowhere to send it."""

    @dasync.remote(on="warehouse")
    async def ship(sku: str) -> str: ...

    async def main(loop: dasync.EventLoop) -> None:
        with pytest.raises(TypeError, match="ship"):
            ship(1, 2)  # type: ignore[call-arg]  # the point
        assert (await rows(loop)).promises == {}

    memory.play(main)
    with pytest.raises(TypeError):
        dasync.remote("ship")  # type: ignore[call-overload]  # the point


# -- outside decisions, time, randomness -----------------------------------------------------------------------


def test_a_promise_that_somebody_outside_settles(world: World) -> None:
    """`dasync.promise` is settled past the program, by id, and wakes who awaits it, inside and outside."""

    async def main(loop: dasync.EventLoop) -> None:
        waiting = hold_on("approval")
        await until(lambda: "approval" in loop.promises)
        outside = dasync.promise(str, id="approval")
        await outside.created()
        await settle(loop, "approval", "yes")
        assert [await waiting, await outside] == ["yes", "yes"]

    world.play(main)


def test_an_outside_promise_without_a_name(world: World) -> None:
    """Outside an execution it gets a fresh id, inside one the id of its place; its value has the declared type."""

    @dasync.function
    async def waits() -> object:
        return await dasync.promise(tuple[int, ...])

    async def main(loop: dasync.EventLoop) -> None:
        fresh = dasync.promise(int)
        assert fresh.id != dasync.promise(int).id
        promise = waits.options(id="w")()
        await until(lambda: "w:0" in loop.promises)
        await loop.promises["w:0"].created()
        await settle(loop, "w:0", (1, 2))
        assert await promise == (1, 2)

    world.play(main)


def test_an_outside_promise_times_out(world: World) -> None:
    """Without anybody to settle it, it times out."""

    async def main(loop: dasync.EventLoop) -> None:
        with pytest.raises(dasync.PromiseTimedOut):
            await dasync.promise(int, timeout=0.01)

    world.play(main)


def test_sleep_inside_and_outside(world: World) -> None:
    """`dasync.sleep` takes seconds or a timedelta and resolves with None."""

    @dasync.function
    async def naps() -> object:
        return [await dasync.sleep(0), await dasync.sleep(timedelta(milliseconds=10))]

    async def main(loop: dasync.EventLoop) -> None:
        assert await naps() == [None, None]
        assert await dasync.sleep(0.01) is None

    world.play(main)


def test_now_random_and_uuid4(world: World) -> None:
    """They are what they say, inside and outside; inside, `now` is a recorded decision of the execution."""

    @dasync.function
    async def draws() -> list[object]:
        return [dasync.now(), dasync.now(), dasync.random().random(), dasync.random().random(), dasync.uuid4()]

    async def main(loop: dasync.EventLoop) -> None:
        now, later, one, other, name = await draws.options(id="d")()
        assert isinstance(now, datetime)
        assert now.tzinfo is UTC or now.utcoffset() == timedelta(0)
        assert abs(datetime.now(UTC) - now) < timedelta(seconds=10)
        assert later >= now  # type: ignore[operator]  # both are datetimes
        assert one != other
        assert isinstance(name, UUID)
        assert name.version == 4
        found = (await rows(loop)).promises
        assert [found[id].function for id in ("d:0", "d:1")] == ["dasync.now"] * 2
        assert isinstance(dasync.random(), Random)
        assert dasync.uuid4() != dasync.uuid4()
        assert dasync.now().tzinfo is not None

    world.play(main)


def test_all_raises_the_first_failure(world: World) -> None:
    """`dasync.all` gives values in order; the first failure is raised at once while the others go on."""

    async def main(loop: dasync.EventLoop) -> None:
        waits = hold_on("gate")
        with pytest.raises(ValueError, match="boom"):
            await dasync.all(double(1), boom(), waits)
        assert not waits.done()
        assert await dasync.all() == []
        done = double(1)
        await done
        assert await dasync.all(done, double(2), done) == [2, 4, 2]

    world.play(main)


# -- values and errors -----------------------------------------------------------------------------------------


class Colour(enum.Enum):
    RED = 1
    BLUE = 2


@dataclass
class Line:
    sku: str
    count: int
    colours: set[Colour] = field(default_factory=set)


@dataclass
class Order:
    lines: list[Line]
    at: datetime
    notes: dict[str, tuple[int, ...]]


@dasync.function
async def restock(order: Order, limit: int) -> Order:
    order.lines.append(Line("extra", limit))
    return order


@pytest.mark.parametrize("inside", [False, True], ids=["root", "child"])
def test_arguments_and_results_are_copies(world: World, inside: bool) -> None:
    """What a function gets is decode(encode(x)), in the first run too: mutating it reaches nobody else."""

    @dasync.function
    async def through(order: Order) -> list[object]:
        result = await restock(order, 3)
        return [len(order.lines), len(result.lines), result is order, type(result).__name__]

    async def main(loop: dasync.EventLoop) -> None:
        order = Order([Line("a", 1, {Colour.RED, Colour.BLUE})], datetime(2026, 1, 1, tzinfo=UTC), {"n": (1, 2)})
        if inside:
            assert await through(order) == [1, 2, False, "Order"]
        else:
            result = await restock(order, 3)
            assert (len(order.lines), len(result.lines)) == (1, 2)
            assert result == Order([*order.lines, Line("extra", 3)], order.at, order.notes)

    world.play(main)


@pytest.mark.parametrize("inside", [False, True], ids=["root", "child"])
def test_a_mutable_argument_and_result_are_copied(memory: World, inside: bool) -> None:
    """Lists and dicts are copied on the way in and on the way out, and a default is the function's own."""
    kept: list[Any] = []

    @dasync.function
    async def keeps(items: list[int]) -> list[int]:
        items.append(99)
        kept.append(items)
        return items

    @dasync.function
    async def parent() -> list[object]:
        mine = [1]
        result = await keeps(mine)
        kept[0].append(100)
        return [mine, result]

    async def main(loop: dasync.EventLoop) -> None:
        assert await (parent() if inside else parent.fn()) == [[1], [1, 99]]

    memory.play(main)


@dasync.error
class OutOfStock(Exception):
    """Registered, with a constructor of its own."""

    def __init__(self, sku: str, *, left: int = 0) -> None:
        super().__init__(f"no {sku}")
        self.sku = sku
        self.left = left


class AlsoKnown(Exception):
    """In the module of a registered function."""


def test_an_error_keeps_its_type(world: World) -> None:
    """Builtins, registered classes and those of a function's module come back as they were, with cause and notes."""

    @dasync.function
    async def fails(how: str) -> None:
        try:
            raise KeyError("inner")
        except KeyError as cause:
            error: Exception = OutOfStock("apples", left=3) if how == "registered" else AlsoKnown("known")
            error.add_note("a note")
            raise error from cause

    async def main(loop: dasync.EventLoop) -> None:
        with pytest.raises(OutOfStock, match="no apples") as caught:
            await fails("registered")
        assert (caught.value.sku, caught.value.left) == ("apples", 3)
        assert isinstance(caught.value.__cause__, KeyError)
        assert "a note" in caught.value.__notes__
        assert any("Remote traceback" in note and "raise error from cause" in note for note in caught.value.__notes__)
        with pytest.raises(AlsoKnown, match="known"):
            await fails("module")

    world.play(main)


def test_an_unknown_error_is_described(world: World) -> None:
    """An error class that nobody registered comes back as RemoteError with its type, message and traceback."""

    class Local(Exception):
        pass

    @dasync.function
    async def fails() -> None:
        raise Local("what happened")

    async def main(loop: dasync.EventLoop) -> None:
        with pytest.raises(dasync.RemoteError, match="what happened") as caught:
            await fails()
        assert caught.value.type.endswith("Local")
        assert caught.value.message == "what happened"
        assert "in fails" in caught.value.traceback

    world.play(main)


class Odd(BaseException):
    """Not an Exception."""


def test_an_error_that_is_no_exception_rejects_too(world: World) -> None:
    """A body may raise any BaseException: it rejects like another, in a child as in a root, and passes `except`."""

    @dasync.function
    async def odd() -> None:
        raise Odd("strange")

    @dasync.function
    async def calls() -> str:
        try:
            await odd()
        except Exception:
            return "swallowed"
        return "nothing"

    async def main(loop: dasync.EventLoop) -> None:
        for f in (odd, calls):
            with pytest.raises(Odd, match="strange"):
                await f()
        assert loop.snapshot().tasks == 0

    world.play(main)


def test_an_error_passes_through_three_executions(world: World) -> None:
    """An error that is not caught rejects each execution on its way up and keeps its type."""

    @dasync.function
    async def middle() -> None:
        await boom("deep")

    @dasync.function
    async def top() -> None:
        await middle()

    async def main(loop: dasync.EventLoop) -> None:
        with pytest.raises(ValueError, match="deep"):
            await top()

    world.play(main)


def test_a_result_that_cannot_be_stored_rejects(world: World) -> None:
    """A function that returns what cannot be encoded is rejected with UnserializableValue, which names the path."""

    @dasync.function
    async def returns_lock() -> object:
        return {"a": [asyncio.Lock()]}

    async def main(loop: dasync.EventLoop) -> None:
        with pytest.raises(dasync.UnserializableValue, match=r"\['a'\]\[0\]"):
            await returns_lock()

    world.play(main)


# -- the event loop ----------------------------------------------------------------------------------------------


def test_promises_and_awaiters_show_the_model(world: World) -> None:
    """While outer waits for inner, both are tracked and outer is inner's awaiter; afterwards nothing is left."""
    seen: list[object] = []

    @dasync.function
    async def inner() -> int:
        loop = loops[0]
        await until(lambda: "root:0" in loop.awaiters)
        seen.append((sorted(loop.promises), dict(loop.awaiters)))
        return 42

    @dasync.function
    async def outer() -> int:
        return 2 * await inner()

    loops: list[dasync.EventLoop] = []

    async def main(loop: dasync.EventLoop) -> None:
        loops.append(loop)
        task = asyncio.current_task()
        assert task is not None
        task.set_name("main")
        promise = outer.options(id="root")()
        assert await promise == 84
        assert seen == [(["root", "root:0"], {"root": ("main",), "root:0": ("root",)})]
        assert dict(loop.awaiters) == {}
        assert list(loop.promises) == ["root"]  # a settled root, while somebody holds it
        assert loop.promises["root"] is promise
        assert isinstance(loop.promises, Mapping)
        with pytest.raises(TypeError):
            loop.promises["x"] = promise  # type: ignore[index]  # read-only

    world.play(main)


def test_get_attaches_to_any_promise(world: World) -> None:
    """`loop.get` gives a handle to a root or a child, pending or settled, decoded by its function's annotation."""

    async def main(loop: dasync.EventLoop) -> None:
        order = Order([Line("a", 1)], datetime(2026, 1, 1, tzinfo=UTC), {})
        assert await restock.options(id="r")(order, 1) is not None
        again: Any = await loop.get("r")
        assert again == Order([Line("a", 1), Line("extra", 1)], order.at, {})
        assert await quadruple.options(id="q")(2) == 8
        assert await loop.get("q:0") == 4
        with pytest.raises(dasync.PromiseNotFound, match="'nothing'"):
            await loop.get("nothing")
        with pytest.raises(dasync.PromiseNotFound):
            await loop.get("nothing").created()
        pending = loop.get((waits := hold_on("gate")).id)
        await until(lambda: "gate" in loop.promises)
        await settle(loop, "gate", "came")
        assert [await pending, await waits] == ["came", "came"]

    world.play(main)


def test_get_in_another_program(tmp_path: Path, host: Any) -> None:
    """A promise made by one EventLoop is awaited by id from another one on the same file."""
    world = World(str(tmp_path / "s.db"), host)

    async def main(loop: dasync.EventLoop) -> None:
        async with dasync.EventLoop(world.store, group="other", durability="process") as other:
            waits = loop.invoke(hold_on, "gate")
            await waits.created()
            there: Any = other.get(waits.id, str)
            await there.created()
            await until(lambda: "gate" in loop.promises)
            await loop.promises["gate"].created()
            await settle(other, "gate", "came")
            assert await there == "came"

    world.play(main)


def test_a_late_handle_does_not_strand_an_earlier_one(tmp_path: Path) -> None:
    """Two handles of one promise in one process are both settled, whichever hears of it first."""
    world = World(str(tmp_path / "s.db"), None)

    async def main(loop: dasync.EventLoop) -> None:
        async with dasync.EventLoop(world.store, group="other", durability="process", poll=60) as other:
            waits = loop.invoke(hold_on, "gate")
            await waits.created()
            early = other.get(waits.id)
            await early.created()
            await until(lambda: "gate" in loop.promises)
            other._transport.bury(other.process)  # deaf: it is told nothing
            await settle(loop, "gate", "came")
            assert await waits == "came"
            late = other.get(waits.id, str)  # learns of it by asking
            assert await late == "came"
            assert await early == "came"

    world.play(main)


def test_search_pages_through_the_store(world: World) -> None:
    """`search` filters by state, function and prefix, in the order of ids, and a cursor goes on where it ended."""

    async def main(loop: dasync.EventLoop) -> None:
        for i in range(7):
            await quadruple.options(id=f"q-{i}")(i)
        with pytest.raises(ValueError, match="boom"):
            await boom.options(id="b")()
        page, ids = await loop.search(id_prefix="q-", limit=8), []
        while True:
            ids += [found.promise.id for found in page.found]
            if page.cursor is None:
                break
            page = await loop.search(id_prefix="q-", limit=8, cursor=page.cursor)
        assert ids == sorted(f"q-{i}{child}" for i in range(7) for child in ("", ":0", ":1"))
        rejected = await loop.search(state=dasync.State.REJECTED)
        assert [found.promise.id for found in rejected.found] == ["b"]
        roots = await loop.search(function="quadruple")
        assert (len(roots.found), roots.cursor) == (7, None)
        assert roots.found[0].task is not None
        with pytest.raises(ValueError, match="limit"):
            await loop.search(limit=0)

    world.play(main)


def test_a_snapshot_is_a_frozen_picture(world: World) -> None:
    """`loop.snapshot()` counts what is tracked, awaited and held, and cannot be changed."""

    async def main(loop: dasync.EventLoop) -> None:
        task = asyncio.create_task(hold_on("gate"))
        await until(lambda: "gate" in loop.awaiters)
        picture = loop.snapshot()
        assert (picture.promises, picture.awaiters, picture.tasks, picture.waiting) == (2, 2, 1, 1)
        assert (picture.process, picture.group) == (loop.process, "default")
        assert picture.batches >= 1
        assert picture.commands >= picture.batches
        with pytest.raises(AttributeError):
            picture.tasks = 5  # type: ignore[misc]  # frozen
        await settle(loop, "gate", "came")
        assert await task == "came"
        assert loop.snapshot()[2:6] == (0, 0, 0, 0)

    world.play(main)


def test_two_loops_in_one_program(host: Any, tmp_path: Path) -> None:
    """With two EventLoops open, `loop.invoke` says which store; a bare call says that it cannot know."""

    async def main() -> None:
        async with dasync.EventLoop(str(tmp_path / "a.db")) as a, dasync.EventLoop("memory:") as b:
            assert [await a.invoke(quadruple, 1), await b.invoke(quadruple, 2)] == [4, 8]
            with pytest.raises(dasync.NoEventLoop, match=r"2 EventLoops are open here .*: say which one"):
                double(1)
            assert [len((await rows(loop)).promises) for loop in (a, b)] == [3, 3]
        async with dasync.EventLoop("memory:"):
            assert await double(1) == 2

    World("memory:", host).run(main())


def test_without_an_event_loop_the_error_says_what_to_do() -> None:
    """A call outside asyncio, and one with no EventLoop open, raise NoEventLoop with the way out."""
    with pytest.raises(dasync.NoEventLoop, match=r"outside asyncio.*dasync\.run"):
        double(1)

    async def main() -> None:
        with pytest.raises(dasync.NoEventLoop, match=r"use `async with dasync\.EventLoop"):
            double(1)
        with pytest.raises(dasync.NoEventLoop):
            dasync.sleep(1)
        with pytest.raises(dasync.NoEventLoop):
            dasync.now()

    asyncio.run(main())


def test_a_closed_loop_says_so() -> None:
    """After `async with` the EventLoop refuses, and whoever still waited is told that it closed."""

    async def main() -> None:
        async with dasync.EventLoop("memory:") as loop:
            waits = asyncio.create_task(hold_on("never"))
            await until(lambda: "never" in loop.awaiters)
        with pytest.raises(dasync.NoEventLoop, match="was closed"):
            await waits
        with pytest.raises(dasync.NoEventLoop, match="not open"):
            loop.invoke(double, 1)
        assert "closed" in repr(loop)

    asyncio.run(main())


def test_a_loop_can_be_opened_again_on_its_file(tmp_path: Path) -> None:
    """What was pending when an EventLoop closed goes on in the next one, without being invoked again."""
    world = World(str(tmp_path / "s.db"), None)

    async def first(loop: dasync.EventLoop) -> None:
        await hold_on.options(id="h")("gate").created()

    async def second(loop: dasync.EventLoop) -> object:
        await settle(loop, "gate", "came")
        return await loop.get("h")

    world.play(first)
    assert world.play(second) == "came"


def test_drain_hands_back_what_waits(world: World) -> None:
    """A drained EventLoop acquires nothing more; what only waits is suspended, what runs is finished first."""
    started = asyncio.Event()

    @dasync.function
    async def works() -> str:
        started.set()
        await asyncio.sleep(0.03)
        return "finished"

    async def main(loop: dasync.EventLoop) -> None:
        waits, runs = hold_on.options(id="w")("gate"), works.options(id="r")()
        await until(lambda: "gate" in loop.awaiters and started.is_set())
        await loop.drain(timeout=10)
        assert await runs == "finished"
        tasks = (await rows(loop)).tasks
        assert [tasks["w"].state.value, tasks["r"].state.value] == ["suspended", "fulfilled"]
        later = double.options(id="later")(1)
        await later.created()
        assert (await rows(loop)).tasks["later"].state.value == "pending"
        assert not waits.done()

    world.play(main)


def test_drain_lets_what_still_runs_finish(world: World) -> None:
    """An execution that waits for one thing and works on another is not cut short by a drain with time left."""
    runs: list[str] = []

    @dasync.function
    async def works() -> str:
        runs.append("started")
        await asyncio.sleep(0.03)
        runs.append("finished")
        return "worked"

    @dasync.function
    async def mixed() -> list[str]:
        return list(await asyncio.gather(hold_on("gate"), works()))

    async def main(loop: dasync.EventLoop) -> None:
        mixed.options(id="m")()
        await until(lambda: "gate" in loop.awaiters and runs)
        await loop.drain(timeout=10)
        assert runs == ["started", "finished"]
        assert (await rows(loop)).tasks["m"].state.value == "suspended"

    world.play(main)


def test_drain_interrupts_a_task_group(world: World) -> None:
    """Executions that are in the middle of a TaskGroup when the time of a drain is over settle nothing."""

    @dasync.function
    async def busy() -> None:
        async def chatter() -> None:
            while True:
                await double(1)

        async with asyncio.TaskGroup() as group:
            group.create_task(chatter())
            group.create_task(chatter())

    async def main(loop: dasync.EventLoop) -> None:
        promise = busy.options(id="b")()
        await until(lambda: loop.snapshot().batches > 5)
        await loop.drain(timeout=0.02)
        assert loop.snapshot().tasks == 0
        found = await rows(loop)
        assert (found.promises["b"].state, found.tasks["b"].state.value) == (State.PENDING, "pending")
        assert not promise.done()

    world.play(main)


def test_functions_limit_what_a_loop_runs(tmp_path: Path) -> None:
    """`functions=` leaves everything else to other EventLoops."""
    path = str(tmp_path / "s.db")

    async def main(loop: dasync.EventLoop) -> None:
        async with dasync.EventLoop(path, functions=[quadruple], durability="process") as other:
            assert await other.invoke(double.options(on="default"), 2) == 4
            assert other.snapshot().tasks == 0

    World(path, None).play(main)


def test_a_store_object_is_taken_as_it_is(memory: World) -> None:
    """Any `Store` may be given; two EventLoops of one program can share one."""
    store = MemoryStore(SystemClock())

    async def main(loop: dasync.EventLoop) -> None:
        async with dasync.EventLoop(store, group="workers") as other:
            assert await loop.invoke(double.options(on="workers"), 2) == 4
            assert await other.invoke(double, 3) == 6
            assert len((await rows(loop)).promises) == 2

    World(store, None).play(main, poll=60)


def test_the_hosts_task_factory_is_given_back(memory: World) -> None:
    """Outside executions tasks come from the host's own factory, while a loop is open and after it."""
    made: list[str] = []

    def factory(loop: asyncio.AbstractEventLoop, coro: Any, **options: Any) -> asyncio.Task[Any]:
        made.append(coro.__qualname__)
        return asyncio.Task(coro, loop=loop, **options)

    async def mine() -> int:
        return await double(1)

    async def main() -> None:
        asyncio.get_running_loop().set_task_factory(factory)
        async with dasync.EventLoop("memory:"):
            assert await asyncio.create_task(mine()) == 2
            assert await by_gather_in_execution() == [2, 4, 6]
        assert asyncio.get_running_loop().get_task_factory() is factory
        assert sum("mine" in name for name in made) == 1

    by_gather_in_execution = dasync.function(name="gathers")(by_gather)
    memory.run(main())


def test_limits_of_the_constructor_are_checked() -> None:
    """Values that cannot work are refused when the EventLoop is made."""
    for wrong in ({"lease": 0}, {"poll": -1}, {"concurrency": 0}, {"max_payload": 0}, {"durability": "luck"}):
        with pytest.raises(ValueError, match="|".join(wrong) + "|positive"):
            dasync.EventLoop("x.db", **wrong)  # type: ignore[arg-type]  # the point
    with pytest.raises(ValueError, match="give a path"):
        dasync.EventLoop("mongodb://here")


# -- declaring ---------------------------------------------------------------------------------------------------


def test_defining_a_function_again_replaces_it(memory: World) -> None:
    """The same file and qualified name defined again is the same function, as in a reload: the new body runs."""

    def define(result: int) -> Any:
        @dasync.function
        async def reloaded() -> int:
            return result

        return reloaded

    define(1)
    new = define(2)

    async def main(loop: dasync.EventLoop) -> None:
        assert await new() == 2

    memory.play(main)


def test_two_functions_of_one_name_are_refused_when_a_loop_opens(memory: World) -> None:
    """A real conflict of names says where both are, when an EventLoop opens and not when they are defined."""

    @dasync.function(name="twin")
    async def one() -> None: ...

    @dasync.function(name="twin")
    async def other() -> None: ...

    async def main(loop: dasync.EventLoop) -> None: ...

    with pytest.raises(ValueError, match=r"'twin' version 1.*one.*other"):
        memory.play(main)


def test_wrong_arguments_raise_at_the_call(memory: World) -> None:
    """Too many, too few, or unknown arguments raise TypeError where the call is, as a plain call would."""

    @dasync.function
    async def inside() -> str:
        with pytest.raises(TypeError, match=r"double\(\): missing a required argument"):
            double()  # type: ignore[call-arg]  # the point
        return "went on"

    async def main(loop: dasync.EventLoop) -> None:
        for args, kwargs in (((), {}), ((1, 2), {}), ((1,), {"y": 2}), ((1,), {"x": 2})):
            with pytest.raises(TypeError, match=r"double\(\)"):
                double(*args, **kwargs)
        assert await inside() == "went on"
        assert list((await rows(loop)).tasks) == [id for id in (await rows(loop)).promises if ":" not in id]

    memory.play(main)


def test_what_cannot_be_a_function_is_refused() -> None:
    """`@dasync.function` takes what a worker can find by its name; names, versions and times are checked."""
    with pytest.raises(TypeError, match="a lambda has no name"):
        dasync.function(lambda: 1)
    with pytest.raises(TypeError, match="takes a function"):
        dasync.function(int)

    async def pages() -> AsyncIterator[int]:
        yield 1

    with pytest.raises(TypeError, match="pages yields, and a promise has one value"):
        dasync.function(pages)
    for wrong in ({"name": "n\n"}, {"name": "x" * 300}, {"version": -1}, {"on": ""}, {"on": "a/"}, {"timeout": -1}):
        with pytest.raises(ValueError, match=r"\w"):
            dasync.function(**wrong)(double.fn)  # type: ignore[call-overload]  # the point
    with pytest.raises(TypeError):
        dasync.function(timeout="soon")(double.fn)  # type: ignore[call-overload]  # the point
    with pytest.raises(TypeError, match="exception class"):
        dasync.error(int)  # type: ignore[type-var]  # the point


def test_what_is_no_promise_and_no_function_is_named(memory: World) -> None:
    """`all` of a list and `invoke` of a plain function are told what they take."""

    async def main(loop: dasync.EventLoop) -> None:
        with pytest.raises(TypeError, match=r"all\(\*promises\).* not a list"):
            await dasync.all([double(1), double(2)])  # type: ignore[arg-type]  # the point
        with pytest.raises(TypeError, match=r"made by @dasync\.function, not <built-in function len>"):
            dasync.invoke(len, [])  # type: ignore[arg-type]  # the point
        with pytest.raises(dasync.UnserializableValue, match="did you forget `await`"):
            double(double(1))  # type: ignore[arg-type]  # the point

    memory.play(main)


def test_a_remote_traceback_shows_the_program_only(memory: World) -> None:
    """Where the functions went wrong, innermost first, without the frames of dasync that called them."""

    @dasync.function
    async def outer() -> None:
        await boom("deep")

    async def main(loop: dasync.EventLoop) -> None:
        with pytest.raises(ValueError, match="deep") as caught:
            await outer()
        (note,) = caught.value.__notes__
        assert "in boom\n" in note
        assert "in outer\n" in note
        assert "/dasync/runtime/" not in note

    memory.play(main)


@pytest.mark.parametrize(("type_", "value"), [(bool, "no"), (str, 42), (int, 1.5)])
def test_what_a_person_gives_is_checked(memory: World, type_: type, value: object) -> None:
    """Plain types too: a text is no decision, given by hand or from Python."""

    async def main(loop: dasync.EventLoop) -> None:
        promise = dasync.promise(type_, id="asked")
        await promise.created()
        with pytest.raises(dasync.DecodeError, match="does not fit its annotation"):
            await promise.resolve(value)
        assert promise.state is State.PENDING
        await settle(loop, "asked", value)
        with pytest.raises(dasync.DecodeError, match="promise 'asked': the stored value does not fit"):
            await promise

    memory.play(main)
