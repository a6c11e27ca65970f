"""Dispatch: limits by function, turns among functions, and that a worker takes no more than it can run."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from clocks import FakeClock
from play import World, rows, until, until_rows
from test_two_loops import open_on

import dasync
from dasync.core.model import State, TaskState
from dasync.core.protocol import Command, TaskAcquire
from dasync.ports import Committed
from dasync.runtime import slots
from dasync.stores.memory import MemoryStore
from dasync.system import SystemClock
from dasync.testing.leaves import leaf
from dasync.testing.trial import Program, Trial


class Meter:
    """How many bodies run now, and how many ever did at a time."""

    def __init__(self) -> None:
        self.now = self.most = 0
        self.began: list[str] = []
        self._gate = asyncio.Event()

    async def stay(self, name: object = "") -> None:
        """Be one of them, until the gate is opened."""
        self._enter(name)
        try:
            await self._gate.wait()
        finally:
            self.now -= 1

    async def pass_by(self, name: object = "") -> None:
        """Be one of them for some turns of the asyncio loop."""
        self._enter(name)
        for _ in range(20):
            await asyncio.sleep(0)
        self.now -= 1

    def open(self) -> None:
        self._gate.set()

    def _enter(self, name: object) -> None:
        self.began.append(str(name))
        self.now += 1
        self.most = max(self.most, self.now)


# -- at the decoration


@pytest.mark.parametrize(
    ("concurrency", "error", "says"),
    [
        (0, ValueError, r"f: concurrency is 1 or more executions at a time, not 0"),
        (-2, ValueError, "not -2"),
        (1.5, TypeError, r"concurrency is a number of executions, not 1\.5"),
        (True, TypeError, "not True"),
        ("2", TypeError, "not '2'"),
    ],
)
def test_a_limit_that_makes_no_sense_is_refused(concurrency: Any, error: type[Exception], says: str) -> None:
    """When the function is defined, with the value that was given."""

    async def f() -> None: ...

    with pytest.raises(error, match=says):
        dasync.function(concurrency=concurrency)(f)


# -- how many run at a time


def test_children_begin_when_there_is_a_slot(world: World) -> None:
    """Of ten children two run at a time, in the order in which they were invoked; ids and results are as ever."""
    meter = Meter()

    @dasync.function(concurrency=2)
    async def ask(i: int) -> int:
        await meter.pass_by(i)
        return i

    @dasync.function
    async def parent() -> list[int]:
        return await dasync.all(*[ask(i) for i in range(10)])

    async def main(loop: dasync.EventLoop) -> None:
        assert await parent.options(id="p")() == list(range(10))
        assert meter.most == 2
        # In order, but for the first ones, where an acquire kept their slots just then.
        assert all(abs(at - int(name)) <= 1 for at, name in enumerate(meter.began))
        assert {f"p:{i}" for i in range(10)} <= (await rows(loop)).promises.keys()

    world.play(main)


def test_roots_begin_when_there_is_a_slot(world: World) -> None:
    """Those that are invoked here and have none are pending until then, for whoever has one."""
    meter = Meter()

    @dasync.function(concurrency=2)
    async def ask(i: int) -> int:
        await meter.stay(i)
        return i

    async def main(loop: dasync.EventLoop) -> None:
        promises = [ask.options(id=f"a-{i}")(i) for i in range(6)]
        await asyncio.gather(*(promise.created() for promise in promises))
        found = await until_rows(loop, lambda _: meter.now == 2)
        assert Counter(task.state for task in found.tasks.values()) == {TaskState.ACQUIRED: 2, TaskState.PENDING: 4}
        meter.open()
        assert await dasync.all(*promises) == list(range(6))
        assert meter.most == 2

    world.play(main, poll=60)


def test_versions_are_counted_together(memory: World) -> None:
    """What is limited has one name, whichever version calls it."""
    meter = Meter()

    async def body(i: int) -> None:
        await meter.pass_by(i)

    old = dasync.function(name="ask", concurrency=2)(body)
    new = dasync.function(name="ask", version=2, concurrency=2)(body)

    @dasync.function
    async def parent() -> None:
        await dasync.all(*[(old, new)[i % 2](i) for i in range(10)])

    async def main(loop: dasync.EventLoop) -> None:
        await parent()
        assert meter.most == 2
        await dasync.all(*[(old, new)[i % 2](i) for i in range(10)])
        assert meter.most == 2

    memory.play(main)


def test_other_functions_are_not_kept_waiting(memory: World) -> None:
    """A limit is its function's own."""
    meter = Meter()

    @dasync.function(concurrency=1)
    async def ask(i: int) -> int:
        await meter.stay()
        return i

    @dasync.function
    async def free(i: int) -> int:
        return i

    async def main(loop: dasync.EventLoop) -> None:
        asked = [ask(i) for i in range(3)]
        assert await dasync.all(*[free(i) for i in range(100)]) == list(range(100))
        meter.open()
        assert await dasync.all(*asked) == [0, 1, 2]

    memory.play(main)


def test_in_threads_too(world: World) -> None:
    """A plain `def` takes a slot as well."""
    lock, counts = threading.Lock(), [0, 0]

    @dasync.function(concurrency=2)
    def ask(i: int) -> int:
        with lock:
            counts[0] += 1
            counts[1] = max(counts)
        threading.Event().wait(0.005)
        with lock:
            counts[0] -= 1
        return i

    @dasync.function
    def parent(i: int) -> int:
        return ask(i).wait()

    async def main(loop: dasync.EventLoop) -> None:
        assert await dasync.all(*[parent(i) for i in range(20)]) == list(range(20))
        assert counts == [0, 2]

    world.play(main)


# -- who only waits


@dasync.function(concurrency=1)
async def depth(n: int) -> int:
    return 0 if n == 0 else 1 + await depth(n - 1)


@dasync.function(concurrency=1)
async def breadth(n: int) -> int:
    return 1 + sum(await asyncio.gather(*(breadth(n - 1) for _ in range(2)))) if n else 1


@dasync.function(concurrency=1)
async def locked(n: int) -> int:
    """Some of its tasks wait for a lock that another one holds while it waits for its child."""
    lock = asyncio.Lock()

    async def one() -> int:
        async with lock:
            return await locked(n - 1)

    return 1 + sum(await asyncio.gather(one(), one())) if n else 1


@dasync.function(concurrency=1)
async def beside(n: int) -> int:
    """Something of it still runs when it begins to wait, and waits later, for no promise."""
    done = asyncio.Event()

    async def turn() -> None:
        for _ in range(30):
            await asyncio.sleep(0)
        await done.wait()

    task = asyncio.create_task(turn())
    found = 1 + await beside(n - 1) if n else 0
    done.set()
    await task
    return found


@dasync.function(concurrency=1)
async def handed_on(n: int) -> int:
    """An outcome that was there already lets one of its tasks go on, to a lock that one holds who waits for a child."""
    lock = asyncio.Lock()

    async def keeps() -> int:
        async with lock:
            for _ in range(300):  # until the other one's outcome is there, and cannot be taken yet
                await asyncio.sleep(0)
            return await handed_on(n - 1)

    async def comes_later() -> int:
        await noop()
        async with lock:
            return await handed_on(n - 1)

    return 1 + sum(await asyncio.gather(keeps(), comes_later())) if n else 1


@dasync.function
async def noop() -> None: ...


@dasync.function(concurrency=1)
async def elsewhere(n: int) -> int:
    """Its child is a task of its own, which this process has to acquire."""
    return 1 + await elsewhere.options(on="default")(n - 1) if n else 0


@dasync.function(concurrency=1)
async def between(n: int) -> int:
    """There is another function between it and itself."""
    return 1 + await between_them(n - 1) if n else 0


@dasync.function
async def between_them(n: int) -> int:
    return await between(n)


@dasync.function(concurrency=1)
def in_threads(n: int) -> int:
    return 0 if n == 0 else 1 + in_threads(n - 1).wait()


@dasync.function(concurrency=1)
async def unheard(n: int) -> int:
    """Its child is waited for when the body has returned."""
    if n:
        unheard(n - 1)
    return n


RECURSIONS = [
    (depth, 5, 5), (breadth, 3, 15), (locked, 3, 15), (beside, 4, 4), (handed_on, 3, 15), (elsewhere, 4, 4),
    (between, 4, 4), (in_threads, 5, 5), (unheard, 3, 3),
]  # fmt: skip


@pytest.mark.parametrize(("function", "n", "comes_to"), RECURSIONS, ids=[r[0].name for r in RECURSIONS])
def test_a_parent_never_keeps_its_children_from_running(world: World, function: Any, n: int, comes_to: int) -> None:
    """One at a time, each waits for children of the same function: it gives its slot back while it does."""

    async def main(loop: dasync.EventLoop) -> None:
        assert await function(n) == comes_to

    world.play(main)


def test_without_giving_slots_back_they_wait_for_ever(memory: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ablation: who keeps his slot while he waits keeps the one that he waits for from running."""
    monkeypatch.setattr(slots.Slot, "rests", lambda self: False)

    async def main(loop: dasync.EventLoop) -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(depth(3), 0.2)

    memory.play(main)


@pytest.mark.parametrize("how", ["local", "remote", "detached", "outside", "timer"])
def test_who_has_waited_takes_a_slot_before_it_goes_on(world: World, how: str) -> None:
    """However much is settled at once, no more than two go on at a time."""
    meter, waiting = Meter(), Meter()

    @dasync.function
    async def child(i: int) -> int:
        await waiting.stay()
        return i

    @dasync.function(concurrency=2)
    async def ask(i: int) -> int:
        meter.began.append("waits")
        if how == "timer":
            await dasync.sleep(0.05)
        elif how == "outside":
            await loops[0].get("said", int)
        else:
            options = {"local": {}, "remote": {"on": "default"}, "detached": {"detached": True}}
            await child.options(**options[how])(i)
        await meter.pass_by(i)
        return i

    loops: list[dasync.EventLoop] = []

    async def main(loop: dasync.EventLoop) -> None:
        loops.append(loop)
        said = dasync.promise(int, id="said")
        promises = [ask(i) for i in range(8)]
        await until(lambda: meter.began.count("waits") == 8)  # each one's wait lets another one begin
        waiting.open()
        await said.resolve(1)
        assert await dasync.all(*promises) == list(range(8))
        assert meter.most <= 2

    world.play(main)


def test_a_limit_without_the_second_slot_is_none(memory: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ablation: who goes on without a slot goes on with everybody else."""
    monkeypatch.setattr(slots.Slot, "may_go_on", lambda self: True)
    with pytest.raises(AssertionError, match="most"):
        test_who_has_waited_takes_a_slot_before_it_goes_on(memory, "local")


# -- a replay


@dasync.function(concurrency=1)
async def two(first: str, second: str) -> list[str]:
    return [await leaf(first), await leaf(second)]


@dasync.function
async def side_by_side() -> list[list[str]]:
    return list(await asyncio.gather(two("a1", "a2"), two("b1", "b2")))


@dasync.function(concurrency=1)
async def first_of(*names: str) -> list[str]:
    """Which comes first decides what is invoked next."""
    done, _ = await dasync.wait([leaf(name) for name in names], return_when=asyncio.FIRST_COMPLETED)
    first = [promise.result() for promise in done]
    return [*first, *await two(f"{first[0]}1", f"{first[0]}2")]


@dasync.function
async def firsts() -> list[list[str]]:
    return list(await asyncio.gather(first_of("a", "b"), first_of("c")))


PROGRAMS = {
    "side by side": Program(side_by_side, ("a1", "a2", "b1", "b2")),
    "firsts": Program(firsts, ("a", "b", "c", "a1", "a2", "b1", "b2", "c1", "c2"), racing=True),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_replay_is_exact_whoever_had_to_wait(name: str, record_property: Callable[[str, object], None]) -> None:
    """Cut short anywhere and resumed, a program whose functions wait for slots comes to what it could have come to."""
    trial = Trial(PROGRAMS[name])
    cases = list(trial.draw(60, name.encode()))
    record_property("cases", (f"limits: {name}", len(cases)))
    assert [str(fault) for case in cases if (fault := trial.check(case))] == []


def test_a_backoff_takes_no_slot(memory: World) -> None:
    """Between two attempts others run; the next attempt waits until there is a slot again."""
    meter, clock = Meter(), FakeClock()

    @dasync.function(concurrency=1, retry=dasync.Retry.constant(3, attempts=2))
    async def ask(i: int) -> int:
        await meter.pass_by(i)
        if i == 0 and meter.began.count("0") == 1:
            raise OSError("later")
        if i == 1:
            await meter.stay(i)
        return i

    async def main(loop: dasync.EventLoop) -> None:
        first, second = ask.options(id="a")(0), ask.options(id="b")(1)
        await until(lambda: meter.began == ["0", "1", "1"])
        clock.advance(4)
        await until_rows(loop, lambda found: found.promises["a:!1"].state is State.RESOLVED)
        assert meter.began == ["0", "1", "1"]
        meter.open()
        assert await dasync.all(first, second) == [0, 1]
        assert meter.began[3:] == ["0"]
        assert meter.most == 1

    memory.play(main, clock=clock)


# -- cancels


@pytest.mark.parametrize("end", ["cancel", "timeout"])
def test_one_that_waits_for_a_slot_can_be_canceled(world: World, end: str) -> None:
    """It ends at once, has never run, and keeps nobody from its slot."""
    meter = Meter()

    @dasync.function(concurrency=1)
    async def ask(i: int) -> int:
        await meter.stay(i)
        return i

    @dasync.function
    async def parent() -> list[object]:
        second = ask.options(timeout=0.1 if end == "timeout" else None)
        promises = [ask(0), second(1), ask(2)]
        await meter_has_begun()
        if end == "cancel":
            await promises[1].cancel()
        settled = await dasync.all_settled(promises[1])
        meter.open()
        return [settled[0].state.value, *await dasync.all(promises[0], promises[2])]

    @dasync.function
    async def meter_has_begun() -> None:
        await until(lambda: meter.began)

    async def main(loop: dasync.EventLoop) -> None:
        found = await parent()
        assert found[0] == ("canceled" if end == "cancel" else "timedout")
        assert found[1:] == [0, 2]
        assert meter.began == ["0", "2"]
        assert await ask(3) == 3, "the slot is free again"

    world.play(main)


def test_a_canceled_parent_leaves_no_slot_taken(memory: World) -> None:
    """Those of its children that ran and those that waited are all gone."""
    meter = Meter()

    @dasync.function(concurrency=2)
    async def ask(i: int) -> int:
        await meter.stay(i)
        return i

    @dasync.function
    async def parent() -> list[int]:
        return await dasync.all(*[ask(i) for i in range(5)])

    async def main(loop: dasync.EventLoop) -> None:
        promise = parent()
        await until(lambda: meter.now == 2)
        await promise.cancel()
        await until(lambda: meter.now == 0)
        meter.open()
        assert await dasync.all(*[ask(i) for i in range(5)]) == list(range(5))
        assert meter.most == 2

    memory.play(main)


def test_starting_over_takes_a_slot_anew(memory: World) -> None:
    """Runs of one promise and of others take turns: nobody keeps his slot for ever."""
    order: list[str] = []

    @dasync.function(concurrency=1)
    async def rounds(name: str, n: int) -> str:
        order.append(name)
        return rounds.again(name, n - 1) if n else name

    async def main(loop: dasync.EventLoop) -> None:
        assert await dasync.all(rounds("a", 3), rounds("b", 3)) == ["a", "b"]
        assert order.count("a") == order.count("b") == 4

    memory.play(main)


# -- what a worker acquires


class Counted(MemoryStore):
    """Counts what each process holds, at every commit."""

    def __init__(self) -> None:
        super().__init__(SystemClock())
        self.most: Counter[str] = Counter()
        self.acquired: list[str] = []
        self.asked = 0

    async def transact(self, commands: Sequence[Command]) -> Committed:
        committed = await super().transact(commands)
        self.asked += sum(isinstance(command, TaskAcquire) for command in commands)
        self.acquired += [one.task.id for reply in committed.replies for one in reply.acquired]
        held = Counter(task.process for task in (await self.snapshot()).tasks.values() if task.process)
        for process, count in held.items():
            self.most[process] = max(self.most[process], count)
        return committed


def test_two_workers_share_what_neither_can_run_alone(memory: World) -> None:
    """Neither ever holds more than its concurrency, and each gets its share."""
    meter = Meter()

    @dasync.function
    async def work(i: int) -> int:
        await meter.pass_by()
        return i

    async def main() -> None:
        store = Counted()
        async with (
            open_on(store, "home", functions=[]) as home,
            open_on(store, "far", concurrency=4) as one,
            open_on(store, "far", concurrency=4) as two,
        ):
            assert await dasync.all(*[home.invoke(work.options(on="far"), i) for i in range(200)]) == list(range(200))
            assert store.most == {one.process: 4, two.process: 4}
            assert meter.most == 8

    memory.run(main())


def test_a_worker_acquires_no_more_of_a_function_than_it_has_slots_for(memory: World) -> None:
    """The rest is there for another worker, and for other functions."""
    meter = Meter()

    @dasync.function(concurrency=2)
    async def ask(i: int) -> int:
        await meter.stay(i)
        return i

    @dasync.function
    async def other(i: int) -> int:
        return i

    async def main() -> None:
        store = Counted()
        async with open_on(store, "home", functions=[]) as home, open_on(store, "far") as one:
            asked = [home.invoke(ask.options(on="far"), i) for i in range(10)]
            others = [home.invoke(other.options(on="far"), i) for i in range(10)]
            assert await dasync.all(*others) == list(range(10))
            await until(lambda: meter.now == 2)
            assert one.snapshot().tasks == 2
            async with open_on(store, "far") as two:
                await until(lambda: meter.now == 4)
                assert (one.snapshot().tasks, two.snapshot().tasks) == (2, 2)
                meter.open()
                assert await dasync.all(*asked) == list(range(10))
            assert len(store.acquired) == 20, "nothing was handed back"

    memory.run(main())


def test_a_slot_that_comes_free_is_filled_without_a_poll(memory: World) -> None:
    """And an idle worker asks for nothing."""
    meter = Meter()

    @dasync.function(concurrency=1)
    async def ask(i: int) -> int:
        await meter.pass_by(i)
        return i

    async def main() -> None:
        store = Counted()
        async with open_on(store, "home", functions=[]) as home, open_on(store, "far") as far:
            far_away = [ask.options(id=f"a-{i:02}", on="far") for i in range(20)]
            assert await dasync.all(*[home.invoke(f, i) for i, f in enumerate(far_away)]) == list(range(20))
            assert meter.most == 1
            assert meter.began == [str(i) for i in range(20)], "the oldest first"
            await until(lambda: far.snapshot().tasks == 0)
            asked = store.asked
            await asyncio.sleep(0.05)
            assert store.asked - asked <= 1

    memory.run(main())


@pytest.mark.parametrize("concurrency", [1, 3])
def test_one_flood_starves_no_other_function(memory: World, concurrency: int) -> None:
    """Behind three hundred older tasks of one function, another one's few take every second place."""
    order: list[str] = []

    @dasync.function
    async def flood(i: int) -> None:
        order.append("flood")

    @dasync.function
    async def trickle(i: int) -> None:
        order.append("trickle")

    async def main() -> None:
        store = MemoryStore(SystemClock())
        async with open_on(store, "home", functions=[]) as home:
            floods = [home.invoke(flood.options(on="far"), i) for i in range(300)]
            await asyncio.gather(*(promise.created() for promise in floods))
            trickles = [home.invoke(trickle.options(on="far"), i) for i in range(5)]
            await asyncio.gather(*(promise.created() for promise in trickles))
            async with open_on(store, "far", concurrency=concurrency):
                await dasync.all(*floods, *trickles)
        assert order.count("trickle") == 5
        assert max(at for at, name in enumerate(order) if name == "trickle") < 10 + 2 * concurrency

    memory.run(main())


class Late(MemoryStore):
    """Once told so, an acquire is decided and its answer does not come until it may."""

    def __init__(self) -> None:
        super().__init__(SystemClock())
        self.hold, self.may = False, asyncio.Event()
        self.decided = 0

    async def transact(self, commands: Sequence[Command]) -> Committed:
        committed = await super().transact(commands)
        if self.hold and any(reply.acquired for reply in committed.replies):
            self.decided = sum(len(reply.acquired) for reply in committed.replies)
            await self.may.wait()
        return committed


def test_what_has_no_room_any_more_is_handed_back_at_once(memory: World) -> None:
    """Those that waited go on while an acquire is under way: of what that brings, only as much is run as fits."""
    meter, waits = Meter(), Counter[int]()

    @dasync.function
    async def waiter(i: int) -> int:
        waits[i] += 1
        await dasync.promise(int, id=f"gate-{i}")
        await meter.stay()
        return i

    @dasync.function
    async def work(i: int) -> int:
        await meter.stay()
        return i

    async def main() -> None:
        store = Late()
        async with open_on(store, "home", functions=[]) as home, open_on(store, "far", concurrency=4) as far:
            waiters = [home.invoke(waiter.options(on="far"), i) for i in range(4)]
            await until(lambda: len(waits) == 4 and far.snapshot().waiting == 4)
            store.hold = True
            works = [home.invoke(work.options(on="far"), i) for i in range(2)]
            await until(lambda: store.decided)
            for i in range(4):  # in this process: nothing has to be written for that
                promise = far._handlers.pending[f"gate-{i}"]
                record = (await store.snapshot()).promises[promise.id]
                far._handlers.return_(promise, record._replace(state=State.RESOLVED, value=b"\x01", turn=1))
            await until(lambda: meter.now == 4)
            store.may.set()
            await until_rows(far, lambda found: sum(t.process == far.process for t in found.tasks.values()) == 4)
            assert meter.most == 4
            meter.open()
            assert await dasync.all(*works) == [0, 1]
            for promise in waiters:
                await promise.cancel()

    memory.run(main())


def test_what_is_acquired_begins_at_once(memory: World) -> None:
    """Its slot is kept from the moment it is asked for: a child that is invoked meanwhile comes after it."""
    meter, go = Meter(), asyncio.Event()

    @dasync.function(concurrency=1)
    async def ask(name: str) -> str:
        await meter.stay(name)
        return name

    @dasync.function
    async def parent() -> str:
        await go.wait()
        return await ask("child")

    async def main() -> None:
        store = Late()
        async with open_on(store, "home", functions=[]) as home, open_on(store, "far") as far:
            local = far.invoke(parent)
            await local.created()
            store.hold = True
            acquired = home.invoke(ask.options(on="far"), "acquired")
            await until(lambda: store.decided)
            go.set()
            for _ in range(20):
                await asyncio.sleep(0)
            assert meter.began == []
            store.may.set()
            await until(lambda: meter.began)
            meter.open()
            assert await dasync.all(acquired, local) == ["acquired", "child"]
            assert meter.began == ["acquired", "child"]

    memory.run(main())


def test_what_is_acquired_while_a_drain_begins_is_handed_back_at_once(memory: World) -> None:
    """Another worker takes it, though the one that has drained goes on living."""
    meter = Meter()

    @dasync.function
    async def work() -> str:
        await meter.stay()
        return "worked"

    async def main() -> None:
        store = Late()
        async with open_on(store, "home", functions=[]) as home, open_on(store, "far") as one:
            store.hold = True
            promise = home.invoke(work.options(on="far"))
            await until(lambda: store.decided)
            draining = asyncio.create_task(one.drain(0))
            await asyncio.sleep(0)
            store.hold = False
            store.may.set()
            await draining
            await until_rows(one, lambda found: [t.state for t in found.tasks.values()] == [TaskState.PENDING])
            assert (one.snapshot().tasks, meter.began) == (0, [])
            async with open_on(store, "far"):
                meter.open()
                assert await promise == "worked"

    memory.run(main())


def test_a_limited_function_is_suspended_and_resumed_like_others(world: World) -> None:
    """Beyond `max_resident` those that wait are left to the store; they take a slot when they come back."""
    meter = Meter()

    @dasync.function(concurrency=2)
    async def ask(i: int) -> int:
        said = await dasync.promise(int, id=f"gate-{i}")
        await meter.pass_by(i)
        return said

    async def main(loop: dasync.EventLoop) -> None:
        promises = [ask.options(id=f"a-{i}")(i) for i in range(12)]
        await until_rows(
            loop, lambda found: sum(t.state is TaskState.SUSPENDED for t in found.tasks.values()) >= 8
        )
        for i in range(12):
            await loop.get(f"gate-{i}", int).resolve(i)
        assert await dasync.all(*promises) == list(range(12))
        assert meter.most <= 2

    world.play(main, max_resident=2, poll=0.05)


def test_clocks_that_stand_still_keep_nobody_waiting(memory: World) -> None:
    """Slots know no time."""
    meter = Meter()

    @dasync.function(concurrency=1)
    async def ask(i: int) -> int:
        await meter.pass_by(i)
        return i

    async def main(loop: dasync.EventLoop) -> None:
        assert await dasync.all(*[ask(i) for i in range(5)]) == list(range(5))

    memory.play(main, clock=FakeClock())
