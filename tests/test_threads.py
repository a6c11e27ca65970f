"""Functions that are not `async def`: in worker threads they invoke, block, fail, are canceled and are replayed."""

from __future__ import annotations

import asyncio
import contextvars
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from clocks import FakeClock
from play import World, rows, settle, until, until_rows
from test_processes import Site
from zygote import Zygote, zygote_of

import dasync
from dasync.core.model import State, TaskState
from dasync.runtime import threads


class Gate:
    """Where a body stands in its thread until the test lets it go."""

    def __init__(self) -> None:
        self._open = threading.Event()
        self.reached = 0

    def stand(self) -> None:
        self.reached += 1
        assert self._open.wait(20), "nobody opened the gate"

    def open(self) -> None:
        self._open.set()


def ended_by(kinds: list[str], body: Callable[[], Any]) -> Any:
    """What `body` gives; what ends it is kept in `kinds`."""
    try:
        return body()
    except BaseException as error:
        kinds.append(type(error).__name__)
        raise


@dasync.function
def add(x: int, y: int) -> int:
    return x + y


@dasync.function
def total(n: int) -> int:
    return sum(add(i, i).wait() for i in range(n))


@dasync.function
def deep(n: int) -> int:
    return 0 if n == 0 else 1 + deep(n - 1).wait()


@dasync.function
async def double(x: int) -> int:
    return 2 * x


# -- invoke and block ----------------------------------------------------------------------------------------


def test_a_plain_function_invokes_and_blocks(world: World) -> None:
    """A `def` runs in a thread; it invokes others, plain and async, and waits for each as it goes."""
    seen: list[int] = []

    @dasync.function
    def both(x: int) -> list[int]:
        seen.append(threading.get_ident())
        return [add(x, 1).wait(), double(x).wait(), total(3).wait()]

    async def main(loop: dasync.EventLoop) -> None:
        assert await both.options(id="b")(5) == [6, 10, 6]
        assert threading.get_ident() not in seen
        found = (await rows(loop)).promises
        assert {"b:0", "b:1", "b:2", "b:2.0", "b:2.1", "b:2.2"} <= found.keys()
        assert await dasync.all(*[add(i, i) for i in range(100)]) == [2 * i for i in range(100)]

    world.play(main)


def test_an_async_function_awaits_a_plain_one(world: World) -> None:
    """To who awaits it there is no difference."""

    @dasync.function
    async def parent() -> list[int]:
        return list(await asyncio.gather(add(1, 2), total(4), double(4)))

    async def main(loop: dasync.EventLoop) -> None:
        assert await parent() == [3, 12, 8]

    world.play(main)


def test_parents_that_wait_never_keep_their_children_from_running(world: World) -> None:
    """200 parents wait in threads, each for a child in a thread: many more than there are seats."""

    @dasync.function
    def parent(i: int) -> int:
        return add(i, 1).wait()

    async def main(loop: dasync.EventLoop) -> None:
        assert threads.MAX_THREADS < 200
        assert await dasync.all(*[parent(i) for i in range(200)]) == [i + 1 for i in range(200)]

    world.play(main)


def test_a_recursion_goes_deeper_than_there_are_seats(world: World) -> None:
    """Each level waits in a thread of its own."""

    async def main(loop: dasync.EventLoop) -> None:
        assert await deep(threads.MAX_THREADS + 20) == threads.MAX_THREADS + 20

    world.play(main)


def test_without_giving_seats_back_they_wait_for_ever(memory: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ablation: who keeps his seat while he waits keeps the one that he waits for from running."""

    async def keeps(self: threads.Body, awaited: Any, timeout_s: float | None) -> Any:
        return await awaited()

    async def main(loop: dasync.EventLoop) -> None:
        monkeypatch.setattr(threads.Body, "_blocked", keeps)
        promise = deep.options(id="d")(threads.MAX_THREADS + 20)
        await until(lambda: len(loop.awaiters) >= threads.MAX_THREADS)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(promise, 0.3)

    memory.play(main)


def test_a_thread_never_starves_the_loop(world: World) -> None:
    """While every seat is taken by a body that computes, async functions run, and the next bodies get their turn."""
    gate = Gate()

    @dasync.function
    def stands(i: int) -> int:
        gate.stand()
        return i

    async def main(loop: dasync.EventLoop) -> None:
        promises = [stands(i) for i in range(threads.MAX_THREADS + 5)]
        await until(lambda: gate.reached == threads.MAX_THREADS)
        assert await double(4) == 8
        assert gate.reached == threads.MAX_THREADS
        gate.open()
        assert await dasync.all(*promises) == list(range(threads.MAX_THREADS + 5))

    world.play(main)


def test_now_random_uuid4_sleep_and_promises_from_a_thread(world: World) -> None:
    """All that an async body may say, a thread may say too; each at its place."""

    @dasync.function
    def says() -> list[object]:
        moment = dasync.now()
        dasync.sleep(0.001).wait()
        answer = dasync.promise(int, id="answer").wait()
        nobody = dasync.promise(timeout=0.001)
        with pytest.raises(dasync.PromiseTimedOut):
            nobody.wait()
        return [moment, dasync.random().random(), dasync.uuid4(), answer, nobody.id]

    async def main(loop: dasync.EventLoop) -> None:
        promise = says.options(id="s")()
        await until(lambda: "answer" in loop.awaiters)
        assert loop.awaiters["answer"] == ("s",)
        await settle(loop, "answer", 42)
        said: list[Any] = await promise
        assert said[3:] == [42, "s:2"]
        assert {"s:0", "s:1", "s:2"} <= (await rows(loop)).promises.keys()
        assert said[0].tzinfo is not None

    world.play(main)


def test_context_variables_reach_the_thread_and_go_on_from_there(world: World) -> None:
    """A body sees the context of its invocation; what it sets, its children see and nobody else."""
    who = contextvars.ContextVar("who", default="nobody")

    @dasync.function
    async def tells() -> str:
        return who.get()

    @dasync.function
    def asks() -> list[str]:
        before = who.get()
        who.set("thread")
        return [before, tells().wait()]

    @dasync.function
    async def parent() -> list[str]:
        who.set("parent")
        return [*await asks(), who.get()]

    async def main(loop: dasync.EventLoop) -> None:
        assert await parent() == ["parent", "thread", "parent"]
        assert who.get() == "nobody"

    world.play(main)


def test_a_failure_in_a_thread_keeps_its_type_and_traceback(world: World) -> None:
    """An error comes out of `wait()` as itself, of the promise likewise, with the lines that raised it."""

    @dasync.function
    def breaks() -> None:
        raise LookupError("in the thread")

    @dasync.function
    def catches() -> str:
        with pytest.raises(LookupError, match="in the thread"):
            breaks().wait()
        return "caught"

    @dasync.function
    def passes_on() -> None:
        breaks().wait()

    async def main(loop: dasync.EventLoop) -> None:
        assert await catches() == "caught"
        with pytest.raises(LookupError, match="in the thread") as caught:
            await passes_on()
        assert "in breaks" in "".join(traceback.format_exception(caught.value))

    world.play(main)


def test_a_body_that_raises_stop_iteration_rejects(memory: World) -> None:
    """What asyncio cannot carry is told as it tells it itself."""

    @dasync.function
    def stops() -> None:
        next(iter([]))

    async def main(loop: dasync.EventLoop) -> None:
        with pytest.raises(RuntimeError, match="StopIteration"):
            await stops()

    memory.play(main)


def test_a_plain_function_links_to_the_promise_that_it_returns(world: World) -> None:
    """Its own promise settles as that one does."""

    @dasync.function
    def chooses(x: int) -> dasync.Promise[int]:
        return double(x)

    async def main(loop: dasync.EventLoop) -> None:
        assert await chooses(21) == 42

    world.play(main)


def test_children_that_a_thread_never_waited_for_are_waited_for(world: World) -> None:
    """Structured: the parent ends after its children, and a failure that nobody heard rejects it."""

    @dasync.function
    def leaves() -> str:
        add(1, 2)
        return "left"

    @dasync.function
    def breaks() -> None:
        raise ValueError("unheard")

    @dasync.function
    def leaves_a_failure() -> str:
        breaks()
        return "left"

    async def main(loop: dasync.EventLoop) -> None:
        assert await leaves.options(id="l")() == "left"
        assert (await rows(loop)).promises["l:0"].state is State.RESOLVED
        with pytest.raises(ValueError, match="unheard"):
            await leaves_a_failure()

    world.play(main)


# -- wait(), wherever it is called -----------------------------------------------------------------------------


def test_wait_with_a_timeout_leaves_the_promise(world: World) -> None:
    """`wait(timeout)` raises TimeoutError when it is over; the promise goes on and can be waited for again."""

    @dasync.function
    def patient() -> list[object]:
        answer = dasync.promise(int, id="answer")
        with pytest.raises(TimeoutError):
            answer.wait(timeout=0.01)
        states.append(answer.state)
        return [answer.wait(timeout=20), answer.wait(timeout=0)]

    states: list[State] = []

    async def main(loop: dasync.EventLoop) -> None:
        promise = patient()
        await until(lambda: states)
        await settle(loop, "answer", 42)
        assert await promise == [42, 42]
        assert states == [State.PENDING]

    world.play(main)


def test_wait_in_async_code_says_what_to_do(memory: World) -> None:
    """It would block the asyncio loop: it is refused at once, inside an execution and outside."""

    @dasync.function
    async def blocks() -> int:
        return double(1).wait()

    async def main(loop: dasync.EventLoop) -> None:
        with pytest.raises(RuntimeError, match=r"use `await`"):
            await blocks()
        promise = double(2)
        with pytest.raises(RuntimeError, match=r"use `await`"):
            promise.wait()
        assert await promise == 4

    memory.play(main)


def test_wait_from_any_other_thread(world: World) -> None:
    """A thread outside executions may block on a promise that it was given; its timeout leaves the promise too."""

    async def main(loop: dasync.EventLoop) -> None:
        assert await asyncio.to_thread(double(21).wait) == 42
        answer = dasync.promise(int, id="answer")
        with pytest.raises(TimeoutError):
            await asyncio.to_thread(answer.wait, 0.01)
        waiting = asyncio.create_task(asyncio.to_thread(answer.wait, 20))
        await until(lambda: "answer" in loop.awaiters)
        await settle(loop, "answer", 5)
        assert await waiting == 5
        assert await asyncio.to_thread(answer.wait, 0) == 5
        never = dasync.promise(int, id="never")
        waiting = asyncio.create_task(asyncio.to_thread(never.wait))
        await until(lambda: "never" in loop.awaiters)
        kept.append(waiting)

    async def whole() -> None:
        async with dasync.EventLoop(world.store, durability="process") as loop:
            await main(loop)
        with pytest.raises(dasync.NoEventLoop, match="was closed"):
            await kept[0]

    kept: list[asyncio.Task[int]] = []
    world.run(whole())


def test_invoking_in_a_thread_of_ones_own_is_refused(memory: World) -> None:
    """A thread that nobody but the program knows has no place in it: NoEventLoop says what to do."""
    said: list[str] = []

    def elsewhere() -> None:
        try:
            double(1)
        except dasync.NoEventLoop as error:
            said.append(str(error))

    @dasync.function
    def starts() -> None:
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()

    @dasync.function
    async def hands_over() -> None:
        await asyncio.to_thread(elsewhere)

    @dasync.function
    def parent() -> None:
        hands_over().wait()

    async def main(loop: dasync.EventLoop) -> None:
        await starts()
        await hands_over()
        await parent.options(id="p")()
        assert len(said) == 3
        assert "p:1" not in (await rows(loop)).promises

    memory.play(main)


def test_asyncio_run_inside_a_body_says_that_it_cannot_invoke(memory: World) -> None:
    """A loop of its own may do anything but invoke: that loop is not the one that runs the body."""

    @dasync.function
    def nests() -> int:
        async def inner() -> int:
            await asyncio.sleep(0)
            return await double(1)

        return asyncio.run(inner())

    @dasync.function
    def nests_harmlessly() -> str:
        async def inner() -> str:
            await asyncio.sleep(0)
            return "done"

        return asyncio.run(inner())

    async def main(loop: dasync.EventLoop) -> None:
        with pytest.raises(dasync.NoEventLoop, match=r"asyncio loop of its own.*async def"):
            await nests()
        assert await nests_harmlessly() == "done"

    memory.play(main)


def test_the_function_as_written_is_at_hand() -> None:
    """`f.fn` is the plain function, for unit tests; invoking it without an EventLoop says so."""
    assert add.fn(1, 2) == 3  # type: ignore[comparison-overlap]  # typed as a coroutine function
    with pytest.raises(dasync.NoEventLoop, match=r"f\.fn"):
        add(1, 2)


def test_a_plain_declaration_runs_where_it_is_implemented(host: Any, tmp_path: Path) -> None:
    """`dasync.remote` over a `def`: typed, checked, awaited as any other and waited for in a thread."""

    @dasync.remote(on="far", name="add")
    def far_add(x: int, y: int) -> int:
        raise AssertionError("never run")

    @dasync.function
    def parent() -> int:
        return far_add(1, 2).wait() + add.options(on="far")(3, 4).wait()

    async def whole() -> None:
        path = str(tmp_path / "s.db")
        far = dasync.EventLoop(path, group="far", functions=[add], poll=0.02)
        async with far, dasync.EventLoop(path, poll=0.02) as near:
            assert await near.invoke(parent) == 10
            with pytest.raises(TypeError, match="missing"):
                near.invoke(far_add, 1)

    World("", host).run(whole())


# -- cancel ----------------------------------------------------------------------------------------------------


def test_a_cancel_ends_a_wait(world: World) -> None:
    """A body that blocks is interrupted there by a CancelledError; it may clean up, with waits of its own."""
    kinds: list[str] = []

    @dasync.function
    def waits() -> int:
        try:
            return ended_by(kinds, lambda: dasync.promise(int, id="never").wait())
        finally:
            kinds.append(f"cleaned up {add(1, 2).wait()}")

    async def main(loop: dasync.EventLoop) -> None:
        promise = waits()
        await until(lambda: "never" in loop.awaiters)
        await promise.cancel("enough")
        assert promise.state is State.CANCELED
        assert kinds == ["CancelledError", "cleaned up 3"]
        with pytest.raises(dasync.PromiseCanceled, match="enough"):
            await promise

    world.play(main)


def test_a_cancel_ends_a_computation_at_its_next_wait(world: World) -> None:
    """No thread can be stopped while it computes: the cancel waits for its next `wait()`."""
    gate, kinds = Gate(), list[str]()

    @dasync.function
    def computes() -> int:
        gate.stand()
        return ended_by(kinds, lambda: add(1, 2).wait())

    async def main(loop: dasync.EventLoop) -> None:
        promise = computes()
        await until(lambda: gate.reached)
        canceling = asyncio.create_task(promise.cancel())
        await asyncio.sleep(0.01)
        assert not promise.done()
        gate.open()
        await canceling
        assert promise.state is State.CANCELED
        assert kinds == ["CancelledError"]

    world.play(main)


def test_a_cancel_that_comes_while_it_computes_its_last_is_kept(world: World) -> None:
    """A body that waits for nothing more runs to its end; what it gives is not wanted any longer."""
    gate, ended = Gate(), list[str]()

    @dasync.function
    def computes() -> str:
        gate.stand()
        ended.append("here")
        return "done"

    async def main(loop: dasync.EventLoop) -> None:
        promise = computes()
        await until(lambda: gate.reached)
        canceling = asyncio.create_task(promise.cancel())
        await asyncio.sleep(0.01)
        gate.open()
        await canceling
        assert (promise.state, ended) == (State.CANCELED, ["here"])

    world.play(main)


def test_a_cancel_before_there_was_a_seat(world: World) -> None:
    """A body that has not begun never will: the cancel returns at once."""
    gate, ran = Gate(), list[str]()

    @dasync.function
    def stands() -> None:
        gate.stand()

    @dasync.function
    def late() -> None:
        ran.append("late")

    async def main(loop: dasync.EventLoop) -> None:
        standing = [stands() for _ in range(threads.MAX_THREADS)]
        await until(lambda: gate.reached == threads.MAX_THREADS)
        promise = late()
        await promise.created()
        await asyncio.sleep(0.01)
        await promise.cancel()
        assert promise.state is State.CANCELED
        gate.open()
        await dasync.all(*standing)
        assert await add(1, 2) == 3
        assert ran == []

    world.play(main)


# -- what is taken from it ---------------------------------------------------------------------------------------


def test_seats_come_back_from_executions_that_were_dropped(world: World) -> None:
    """Deadlines, cancels and drops of bodies that wait leave no seat behind: later bodies run."""

    @dasync.function
    def waits(i: int) -> None:
        dasync.promise(id=f"never-{i}").wait()

    async def main(loop: dasync.EventLoop) -> None:
        count = threads.MAX_THREADS + 5
        promises = [waits.options(timeout=0.1)(i) for i in range(count)]
        for promise in promises:
            with pytest.raises(dasync.PromiseTimedOut):
                await promise
        assert await dasync.all(*[add(i, i) for i in range(count)]) == [2 * i for i in range(count)]
        seats = loop._runner.seats
        await until(lambda: seats.free._value == threads.MAX_THREADS)

    world.play(main)


def test_a_thread_past_its_deadline_ends_at_its_next_operation(world: World) -> None:
    """The promise has timed out while the thread computed: LeaseLost, which no `except Exception` catches, ends it
    where it invokes, and where it waits for what it had before."""
    gate, kinds, clock = Gate(), list[str](), FakeClock()

    @dasync.function(timeout=5)
    def waits() -> None:
        before = dasync.promise(id="before")
        gate.stand()
        ended_by(kinds, before.wait)

    @dasync.function(timeout=5)
    def invokes() -> None:
        gate.stand()
        ended_by(kinds, lambda: add(1, 2))

    async def main(loop: dasync.EventLoop) -> None:
        promises = [waits(), invokes()]
        await until(lambda: gate.reached == 2)
        clock.advance(5)
        for promise in promises:
            with pytest.raises(dasync.PromiseTimedOut):
                await promise
        gate.open()
        await until(lambda: len(kinds) == 2)
        assert kinds == ["LeaseLost", "LeaseLost"]
        assert "before" not in loop.awaiters

    world.play(main, clock=clock)


def test_a_drain_interrupts_a_wait_at_once(host: Any, tmp_path: Path) -> None:
    """A body that blocks is suspended, its thread ends by Suspended; the next EventLoop replays it to its end."""
    kinds: list[str] = []
    calls: list[int] = []
    world = World(str(tmp_path / "s.db"), host)

    @dasync.function
    def leaf(i: int) -> int:
        calls.append(i)
        return i

    @dasync.function
    def waits() -> list[int]:
        first = leaf(1).wait()
        answer = ended_by(kinds, lambda: dasync.promise(int, id="answer").wait())
        return [first, answer, leaf(3).wait()]


    async def main(loop: dasync.EventLoop) -> None:
        promise = waits.options(id="w")()
        await until(lambda: "answer" in loop.awaiters)
        began = time.monotonic()
        await loop.drain(5)
        assert time.monotonic() - began < 3
        await until(lambda: kinds)
        assert kinds == ["Suspended"]
        found = await until_rows(loop, lambda found: found.tasks["w"].state is TaskState.SUSPENDED)
        assert not found.promises["w"].settled_at
        assert not promise.done()

    async def again(loop: dasync.EventLoop) -> None:
        promise = loop.get("w")
        await settle(loop, "answer", 2)
        assert await promise == [1, 2, 3]
        assert calls == [1, 3]

    world.play(main)
    world.play(again)


# -- in processes that die ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def zygote() -> Iterator[Zygote]:
    yield from zygote_of("programs", "stubborn")


@pytest.mark.parametrize("die_at", ["leaf a", "leaf b", "leaf c", "before the end"])
def test_a_body_in_a_thread_survives_kill_9(zygote: Zygote, tmp_path: Path, die_at: str) -> None:
    """The next process replays it: what was recorded is not run again, what it decided stays decided."""
    path, ledger = str(tmp_path / "s.db"), str(tmp_path / "ledger")
    assert zygote.spawn("stubborn:run", path, ledger, "blocks", die_at).wait() == -9
    first, decided, second = zygote.spawn("stubborn:run", path, ledger, "blocks").result()  # type: ignore[misc]
    assert (first, second) == ("A", ["B", "C"])
    lines = (tmp_path / "ledger").read_text().splitlines()
    assert {line for line in lines if line.startswith("decided")} == {f"decided {decided}"}
    leaves = [line for line in lines if line.startswith("leaf")]
    assert set(leaves) == {"leaf a", "leaf b", "leaf c"}
    assert leaves.count("leaf a") == (2 if die_at == "leaf a" else 1)
    assert len(leaves) <= (3 if die_at == "before the end" else 5)


def test_a_zombie_thread_ends_at_its_next_operation(zygote: Zygote, tmp_path: Path) -> None:
    """A process that was stopped for longer than its lease has lost the task: the thread that computed on ends where
    it invokes, settles nothing, and the heir's outcome counts."""
    site = Site(zygote, tmp_path)
    zombie = site.hire(lease=0.6)

    async def main(loop: dasync.EventLoop) -> None:
        promise = dasync.remote("blocks_at", on="far").options(id="b")("x")
        assert await site.begun("x") == zombie.pid
        site.stop(zombie)
        heir = await asyncio.to_thread(site.hire, lease=10)
        assert await site.begun("x", other_than=zombie.pid) == heir.pid
        zombie.kill(signal.SIGCONT)
        await until(lambda: "has lost its lease" in site.log())
        site.go()
        assert await promise == f"x by {heir.pid}"
        await until(lambda: site.lines(f"ended x {zombie.pid}"))
        assert site.lines("ended") == [f"ended x {zombie.pid} LeaseLost"]
        assert (await rows(loop)).tasks["b"].version == 2

    try:
        site.play(main)
    finally:
        for worker in site.workers.values():
            worker.kill()
