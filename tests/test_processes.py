"""Several processes on one file: dispatch, death, zombies, lost bells, drains; and the same by hand on a fake clock."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import programs
import pytest
from clocks import T0, FakeClock
from play import World, ask, rows, settle, until, until_rows
from zygote import Child, Zygote, zygote_of

import dasync
from dasync.core.model import State, TaskState
from dasync.core.protocol import PromiseCreate, PromiseSettle, TaskAcquire, TaskHalt
from dasync.stores.memory import MemoryStore


@pytest.fixture(scope="module")
def zygote() -> Iterator[Zygote]:
    yield from zygote_of("programs")


class Site:
    """A file, a ledger, and workers in processes of their own."""

    def __init__(self, zygote: Zygote, folder: Path) -> None:
        self._zygote = zygote
        self.path = folder / "s.db"
        self.ledger = folder / "ledger"
        self.workers: dict[int, Child] = {}

    def hire(self, **options: Any) -> Child:
        terms = {"lease": 10, "poll": 0.05, "names": None, **options}
        child = self._zygote.spawn("programs:worker", str(self.path), str(self.ledger), "far", *terms.values())
        self.workers[child.pid] = child
        self.wait_for(f"up {child.pid}")
        return child

    def stop(self, worker: Child) -> None:
        """Stop a worker between its writes.

        One that is stopped inside a transaction holds the store until it goes on, which no file database can avoid:
        everybody would wait for it, and this test is about what happens when nobody has to.
        """
        lock = os.stat(f"{self.path}-lock").st_ino
        ends = time.monotonic() + 10
        while True:
            worker.kill(signal.SIGSTOP)
            while Path(f"/proc/{worker.pid}/stat").read_text().rpartition(") ")[2][0] != "T":
                time.sleep(0.001)
            # Asked of the kernel's table: a probe of ours would give up our own lock by closing its handle.
            locks = [line.split() for line in Path("/proc/locks").read_text().splitlines() if "->" not in line]
            if not any(int(one[4]) == worker.pid and one[5].endswith(f":{lock}") for one in locks):
                return
            assert time.monotonic() < ends, "it writes all the time"
            worker.kill(signal.SIGCONT)
            time.sleep(0.003)

    def lines(self, start: str) -> list[str]:
        written = self.ledger.read_text().splitlines() if self.ledger.exists() else []
        return [line for line in written if line.startswith(start)]

    def wait_for(self, start: str) -> None:
        ends = time.monotonic() + 10
        while not self.lines(start):
            assert time.monotonic() < ends, f"nobody wrote {start!r}: {self.lines('')}"
            time.sleep(0.002)

    async def begun(self, name: str, other_than: int = 0) -> int:
        """Who runs `name`: the pid of the latest who began."""
        pids: list[int] = []

        def look() -> bool:
            pids[:] = [int(line.split()[2]) for line in self.lines(f"begin {name} ")]
            return bool(pids) and pids[-1] != other_than

        await until(look)
        return pids[-1]

    def go(self) -> None:
        Path(f"{self.ledger}.go").touch()

    def stop_going(self) -> None:
        Path(f"{self.ledger}.go").unlink()

    def log(self) -> str:
        return Path(f"{self.ledger}.log").read_text()

    def play(self, main: Callable[[dasync.EventLoop], Any], **options: Any) -> Any:
        return World(str(self.path), None).play(main, **{"poll": 0.05, **options})


@pytest.fixture
def site(zygote: Zygote, tmp_path: Path) -> Iterator[Site]:
    site = Site(zygote, tmp_path)
    yield site
    for child in site.workers.values():
        if child._status is None:
            os.kill(child.pid, signal.SIGCONT)
            child.kill()


def far(function: Any) -> Any:
    return function.options(on="far")


def test_an_invocation_runs_in_another_process(site: Site) -> None:
    """`on=` sends it to a worker's process; many at once are shared among the workers; errors come back typed."""
    pids = {site.hire().pid, site.hire().pid}

    async def main(loop: dasync.EventLoop) -> None:
        ran = await dasync.all(*[far(programs.chat)(i) for i in range(50)])
        assert set(ran) <= pids
        assert await far(programs.leaf)("x") == "X"
        with pytest.raises(AttributeError, match="'int' object has no attribute 'upper'"):
            await dasync.remote("leaf", on="far")(3)

    site.play(main)


def test_a_killed_workers_task_is_taken_over_at_once(site: Site) -> None:
    """kill -9 frees the record lock: another worker begins anew at once, though the lease has long to go."""
    site.hire(lease=600)
    site.hire(lease=600)

    async def main(loop: dasync.EventLoop) -> None:
        promise = far(programs.loiter).options(id="l")("l")
        dead = await site.begun("l")
        site.workers[dead].kill()
        started = time.monotonic()
        heir = await site.begun("l", other_than=dead)
        assert time.monotonic() - started < 5
        site.go()
        assert await promise == f"l by {heir}"
        task = (await rows(loop)).tasks["l"]
        assert (task.state, task.version) == (TaskState.FULFILLED, 2)

    site.play(main, lease=600)


def test_a_new_worker_takes_over_from_one_that_died_alone(site: Site) -> None:
    """With nobody left in the group, the next worker that starts goes on with what the dead one held."""
    site.hire(lease=600)

    async def main(loop: dasync.EventLoop) -> None:
        promise = far(programs.loiter)("l")
        dead = await site.begun("l")
        site.workers[dead].kill()
        heir = await asyncio.to_thread(site.hire, lease=600)
        assert await site.begun("l", other_than=dead) == heir.pid
        site.go()
        assert await promise == f"l by {heir.pid}"

    site.play(main, lease=600)


def test_a_zombie_settles_nothing(site: Site) -> None:
    """A worker that is stopped for longer than its lease has lost its tasks: its writes are refused when it comes
    back, it drops the executions, says so, joins anew and takes new work."""
    zombie = site.hire(lease=0.6)

    async def main(loop: dasync.EventLoop) -> None:
        loiters, chatters = far(programs.loiter)("l"), far(programs.chatters).options(id="c")("c")
        assert await site.begun("l") == await site.begun("c") == zombie.pid
        site.stop(zombie)
        heir = await asyncio.to_thread(site.hire, lease=10)
        assert await site.begun("l", other_than=zombie.pid) == await site.begun("c", other_than=zombie.pid) == heir.pid
        zombie.kill(signal.SIGCONT)
        await until(lambda: f"ended l {zombie.pid} CancelledError" in site.lines("ended"))
        await until_rows(loop, lambda found: len(found.processes) == 3)
        await until(lambda: "has lost its lease" in site.log())
        site.go()
        assert await loiters == f"l by {heir.pid}"
        assert await chatters == f"c by {heir.pid}"
        found = await rows(loop)
        assert found.tasks["c"].version == 2
        heir.kill()
        site.stop_going()
        again = far(programs.loiter)("m")
        assert await site.begun("m") == zombie.pid
        site.go()
        assert await again == f"m by {zombie.pid}"

    site.play(main)


def test_a_lost_doorbell_costs_at_most_a_poll(site: Site) -> None:
    """With every doorbell gone, polling finds the task and the outcome."""
    site.hire(poll=0.2)

    async def main(loop: dasync.EventLoop) -> None:
        assert await far(programs.leaf)("x") == "X"
        bells = [process.address for process in (await rows(loop)).processes.values()]
        assert len(bells) == 2
        for bell in bells:
            os.unlink(bell)
        for _ in range(3):
            started = time.monotonic()
            assert await far(programs.leaf)("y") == "Y"
            assert time.monotonic() - started < 5  # twice 0.2 s and a slow machine; without polling it is for ever

    site.play(main, poll=0.2)


def test_news_makes_nobody_acquire(site: Site) -> None:
    """A remote call costs its caller two commands, create and receive: the bell that brings the outcome says so."""
    site.hire()
    calls = 20

    async def main(loop: dasync.EventLoop) -> None:
        assert await far(programs.leaf)("x") == "X"
        before = loop.snapshot().commands
        for _ in range(calls):
            await far(programs.leaf)("y")
        assert loop.snapshot().commands - before < 2.5 * calls  # a heartbeat may come between

    site.play(main, poll=60)


def test_a_worker_without_the_function_leaves_the_task(site: Site) -> None:
    """It says once what is missing, and another worker of the group runs it."""
    without = site.hire(names=["leaf"])

    async def main(loop: dasync.EventLoop) -> None:
        promise = far(programs.chat)(1)
        await until(lambda: "needs function 'chat' version 1" in site.log())
        assert await far(programs.leaf)("x") == "X"
        await far(programs.leaf)("y")
        able = await asyncio.to_thread(site.hire)
        assert await promise == able.pid != without.pid
        assert site.log().count("needs function 'chat'") <= 2  # each process once
        assert "left to other workers of group 'far'" in site.log()

    site.play(main)


def test_sigterm_drains(site: Site) -> None:
    """A worker that is told to stop suspends what waits, hands back what runs, and ends; another one finishes both."""
    first = site.hire()

    async def main(loop: dasync.EventLoop) -> None:
        waits, loiters = far(programs.waits).options(id="w")("gate"), far(programs.loiter).options(id="l")("l")
        assert await site.begun("gate") == await site.begun("l") == first.pid
        await until_rows(loop, lambda found: "gate" in found.promises)
        first.kill(signal.SIGTERM)
        assert await asyncio.to_thread(first.wait) == 0
        found = await rows(loop)
        assert (found.tasks["w"].state, found.tasks["l"].state) == (TaskState.SUSPENDED, TaskState.PENDING)
        assert [process.group for process in found.processes.values()] == ["default"]
        second = await asyncio.to_thread(site.hire)
        assert await site.begun("l", other_than=first.pid) == second.pid
        site.go()
        await settle(loop, "gate", "came")
        assert [await waits, await loiters] == [f"came by {second.pid}", f"l by {second.pid}"]

    site.play(main)


def test_a_fork_with_an_open_store_is_refused(tmp_path: Path) -> None:
    """A child that was forked while an EventLoop was open may not write through it, and its end harms nobody."""

    async def main(loop: dasync.EventLoop) -> None:
        pid = os.fork()
        if pid == 0:
            try:
                loop._store._look(lambda rows: None).send(None)  # type: ignore[attr-defined]  # no asyncio here
            except dasync.StoreUnavailable as error:
                os._exit(7 if "before a fork" in str(error) else 1)
            finally:
                os._exit(2)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7  # noqa: ASYNC222  # it ends at once
        assert await programs.leaf("x") == "X"

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # forking with threads: the point
        World(str(tmp_path / "s.db"), None).play(main)


# -- by hand, on a fake clock ----------------------------------------------------------------------------------


class FakeEntropy:
    """Bytes that count up."""

    def __init__(self) -> None:
        self._count = 0

    def bytes(self, count: int) -> bytes:
        self._count += 1
        return self._count.to_bytes(count, "big")


async def settle_down() -> None:
    """Let everything that can go on without time go on."""
    for _ in range(50):
        await asyncio.sleep(0)


async def let_pass(clock: FakeClock, seconds: float, steps: int = 20) -> None:
    await settle_down()
    for _ in range(steps):
        clock.advance(seconds / steps)
        await settle_down()


def test_a_week_passes_in_no_time() -> None:
    """On a handed-in clock a sleep of a week ends when the clock says so, and not before."""
    clock = FakeClock()

    @dasync.function
    async def patient() -> list[str]:
        begun = dasync.now()
        await dasync.sleep(7 * 24 * 3600)
        return [begun.isoformat(), dasync.now().isoformat()]

    async def main(loop: dasync.EventLoop) -> None:
        promise = patient()
        await until(lambda: f"{promise.id}:1" in loop.awaiters)
        await let_pass(clock, 7 * 24 * 3600 - 1, steps=7 * 24)
        assert not promise.done()
        await let_pass(clock, 1)
        assert await promise == ["2023-11-14T22:13:20+00:00", "2023-11-21T22:13:20+00:00"]

    World("memory:", None).play(main, clock=clock, lease=24 * 3600)


def test_a_deadline_passes_on_the_fake_clock(tmp_path: Path) -> None:
    """Timeouts and leases are counted on the clock that was handed in, with SQLite too."""
    clock = FakeClock()

    async def main(loop: dasync.EventLoop) -> None:
        promise = dasync.promise(str, timeout=3600)
        await promise.created()
        clock.advance(3599)
        await asyncio.sleep(0.02)
        assert not promise.done()
        clock.advance(2)
        with pytest.raises(dasync.PromiseTimedOut):
            await promise
        assert (await rows(loop)).promises[promise.id].settled_at == T0 + 3_600_000

    World(str(tmp_path / "s.db"), None).play(main, clock=clock)


def test_clock_and_entropy_determine_everything() -> None:
    """Two runs with the same clock and entropy leave the same rows: no other time or randomness comes in."""

    @dasync.function
    async def draws() -> list[str]:
        await dasync.sleep(5)
        return [str(dasync.now()), str(dasync.uuid4()), str(dasync.random().random())]

    async def main(loop: dasync.EventLoop) -> object:
        promises = [draws(), draws(), dasync.promise(str, timeout=9)]
        outside = [str(dasync.now()), str(dasync.uuid4()), str(dasync.random().random())]
        await let_pass(clock, 10)
        assert all(promise.done() for promise in promises)
        return [await rows(loop), outside, loop.process]

    runs = []
    for _ in range(2):
        clock = FakeClock()
        runs.append(World("memory:", None).play(main, clock=clock, entropy=FakeEntropy()))
    assert runs[0] == runs[1]


def test_a_lease_that_is_not_renewed_ends() -> None:
    """When a process's clock stands still, its lease ends by the store's: the other takes its task over, and when it
    moves again it drops the execution, comes back as another incarnation and hears of the outcome all the same."""
    stopped, clock = FakeClock(), FakeClock()
    store = MemoryStore(clock)
    runs: list[str] = []
    gates = [asyncio.Event(), asyncio.Event()]

    @dasync.function
    async def works() -> str:
        me = len(runs)
        runs.append("begun")
        try:
            await gates[me].wait()
        except asyncio.CancelledError:
            runs.append("dropped")
            raise
        return f"run {me}"

    async def main(loop: dasync.EventLoop) -> None:
        promise = works.options(id="w")()
        await until(lambda: runs)
        was = loop.process
        async with dasync.EventLoop(store, clock=clock, lease=9, process="heir") as heir:
            await let_pass(clock, 12)
            assert runs == ["begun", "begun"]
            task = (await rows(loop)).tasks["w"]
            assert (task.process, task.version) == (heir.process, 2)
            assert loop.process == was
            gates[0].set()  # too late: what it has computed is refused
            await settle_down()
            assert (await rows(loop)).promises["w"].state is State.PENDING
            await let_pass(stopped, 4)
            assert loop.process != was
            assert loop.snapshot().tasks == 0
            gates[1].set()
            assert await promise == "run 1"
        assert (await rows(loop)).promises["w"].state is State.RESOLVED

    World(store, None).play(main, clock=stopped, lease=9)


def test_executions_of_a_lost_lease_are_dropped() -> None:
    """When the heartbeat finds the lease gone, what runs is interrupted, and settles nothing."""
    stopped, clock = FakeClock(), FakeClock()
    store = MemoryStore(clock)
    log: list[str] = []

    @dasync.function
    async def works() -> str:
        log.append("begun")
        try:
            await asyncio.Event().wait()
        finally:
            log.append("interrupted")
        return ""

    async def main(loop: dasync.EventLoop) -> None:
        works.options(id="w")()
        await until(lambda: log)
        clock.advance(10)
        await let_pass(stopped, 12)
        assert log == ["begun", "interrupted", "begun"]  # it takes its own task again, under its new name
        task = (await rows(loop)).tasks["w"]
        assert (task.process, task.version) == (loop.process, 2)

    World(store, None).play(main, clock=stopped, lease=9)


def test_an_acquire_whose_answer_was_lost_is_released() -> None:
    """What the store counts as held by a process that does not know of it is released by the heartbeat, and runs."""
    clock = FakeClock()

    async def main(loop: dasync.EventLoop) -> None:
        create = PromiseCreate("orphan", "leaf", 1, programs.leaf.shape.encode(("x",), {}, None)[0], "default")
        acquire = TaskAcquire(loop.process, ("default",), (("leaf", 1),), 10)
        await loop._store.transact([create, acquire])
        assert (await rows(loop)).tasks["orphan"].process == loop.process
        assert loop.snapshot().tasks == 0
        await let_pass(clock, 3.1, steps=1)
        assert (await rows(loop)).tasks["orphan"].version == 1  # once unknown: it may be on its way here
        await let_pass(clock, 3.1, steps=1)
        assert await loop.get("orphan") == "X"
        assert (await rows(loop)).tasks["orphan"].version == 2

    World("memory:", None).play(main, clock=clock, lease=9)


def test_what_is_missing_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """However often it polls, a process names a function that it misses once."""
    world = World(str(tmp_path / "s.db"), None)

    async def main(loop: dasync.EventLoop) -> None:
        async with dasync.EventLoop(world.store, group="far", functions=[], poll=0.005, durability="process") as other:
            promise = loop.invoke(far(programs.leaf), "x")
            await until(lambda: "needs function 'leaf'" in caplog.text)
            for _ in range(5):
                await loop.invoke(programs.leaf, "y")
                await asyncio.sleep(0.01)
            assert not promise.done()
            assert other.snapshot().tasks == 0
        assert [record.levelno for record in caplog.records if "needs" in record.message] == [logging.WARNING]

    world.play(main)


def test_a_group_that_nobody_serves_is_named_once(caplog: pytest.LogCaptureFixture) -> None:
    """A task that waits from one heartbeat to the next for a group without processes is worth a word: a typo, maybe."""
    clock = FakeClock()

    async def main(loop: dasync.EventLoop) -> None:
        await programs.leaf.options(on="wherehouse")("x").created()
        await let_pass(clock, 6)
        assert "no process serves" not in caplog.text
        await let_pass(clock, 30)
        said = [record.getMessage() for record in caplog.records if "no process serves" in record.getMessage()]
        assert len(said) == 1
        assert "'wherehouse'" in said[0]

    World("memory:", None).play(main, clock=clock, lease=15)


def test_a_task_that_is_halted_is_left_alone(tmp_path: Path) -> None:
    """A halted task is acquired by nobody until it is continued; a settlement from outside ends it all the same."""

    async def main(loop: dasync.EventLoop) -> None:
        promise = programs.waits.options(id="w")("gate")
        await until(lambda: "gate" in loop.awaiters)
        await ask(loop, TaskHalt("w"))
        await settle(loop, "gate", "came")
        await until(lambda: loop.snapshot().tasks == 0)
        assert not promise.done()
        await ask(loop, PromiseSettle("w", State.CANCELED))
        with pytest.raises(dasync.PromiseCanceled):
            await promise

    World(str(tmp_path / "s.db"), None).play(main)
