"""Several processes on one file: dispatch, death, zombies, lost bells, drains; and the same by hand on a fake clock."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import programs
import pytest
from clocks import T0, FakeClock
from play import World, ask, let_pass, rows, settle, settle_down, until, until_rows
from sites import Site, far, site_in
from zygote import Zygote, zygote_of

import dasync
from dasync.core.model import ProcessRecord, PromiseRecord, State, TaskState
from dasync.core.protocol import ProcessLeave, PromiseCreate, PromiseSettle, TaskAcquire, TaskHalt
from dasync.ports import Bell, Ring
from dasync.runtime import leaving
from dasync.stores.memory import MemoryStore
from dasync.transports.local import (
    EVERYTHING,
    MAX_LETTER_BYTES,
    LocalTransport,
    _file_name,
    letter,
    machine_id,
    read_letter,
    ring,
)


@pytest.fixture(scope="module")
def zygote() -> Iterator[Zygote]:
    yield from zygote_of("programs")


@pytest.fixture
def site(zygote: Zygote, tmp_path: Path) -> Iterator[Site]:
    yield from site_in(zygote, tmp_path)


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


def test_short_news_comes_with_the_bell(site: Site) -> None:
    """Nobody reads the store for what its doorbell has told; what is too long for a letter is read there."""
    site.hire()

    async def main(loop: dasync.EventLoop) -> None:
        assert await far(programs.leaf)("x") == "X"  # who has just come looks at everything
        looks = []
        news = loop._store.news

        async def counted(process: str) -> Any:
            looks.append(process)
            return await news(process)

        loop._store.news = counted  # type: ignore[method-assign]
        for _ in range(5):
            assert await far(programs.leaf)("y") == "Y"
        assert looks == []
        long = "y" * MAX_LETTER_BYTES
        assert await far(programs.leaf)(long) == long.upper()
        assert len(looks) == 1

    site.play(main, poll=60)


def process_record(process: str) -> ProcessRecord:
    return ProcessRecord(process, process, "g", machine_id(), "", 1000, T0)


LOCKS = """
import fcntl, sys
file = open(sys.argv[1], "r+")
fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
print("locked", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A folder in which doorbells stand beside the store: a long path has them elsewhere."""
    with TemporaryDirectory(prefix="d", dir="/tmp") as folder:
        yield Path(folder)


FULL = """
import asyncio, os, sys
from dasync.errors import StoreUnavailable
from dasync.transports.local import LocalTransport

async def main():
    path = sys.argv[1]
    transport = LocalTransport(f"{path}/s.db")
    await transport.open("first", print)
    await transport.close(left=True)
    with open(f"{path}/filler", "wb", buffering=0) as filler:
        try:
            while True:
                filler.write(bytes(4096))
        except OSError:
            pass
    for name in ("second", "third"):
        try:
            await transport.open(name, print)
        except StoreUnavailable as error:
            print(error)
    os.unlink(f"{path}/filler")
    await transport.open("fourth", print)
    transport.box[0] = 1
    print(sorted(os.listdir(f"{path}/s.db-processes"))[0].split("-")[0])
    await transport.close(left=True)

asyncio.run(main())
"""


@pytest.mark.system
def test_who_comes_back_on_a_full_disk_is_told_so(short_path: Path) -> None:
    """Its box is written in memory, where a lack of room is a deadly signal; so there is room, or no box."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", short_path], check=True)
    try:
        done = subprocess.run([sys.executable, "-c", FULL, short_path], capture_output=True, text=True)
    finally:
        subprocess.run(["umount", short_path], check=True)
    assert done.returncode == 0, done
    *refused, back = done.stdout.splitlines()
    assert [line.partition(": ")[2] for line in refused] == [
        "no file for a sign of life, or doorbell: [Errno 28] No space left on device"
    ] * 2
    assert back == "fourth"


def locker(path: Path) -> subprocess.Popen[str]:
    """A process that locks the file, or ends, and leaves when its stdin does."""
    return subprocess.Popen(
        [sys.executable, "-c", LOCKS, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        text=True,
    )  # fmt: skip


def test_a_doorbell_is_taken_away_while_it_is_rung(tmp_path: Path) -> None:
    """A letter that comes at that very moment is lost, and nobody complains."""
    complaints: list[object] = []

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: complaints.append(context))
        transport, heard = LocalTransport(str(tmp_path / "s.db")), list[Bell]()
        address = await transport.open("p", heard.append)
        ring({address: EVERYTHING})
        await until(lambda: heard)
        ring({address: EVERYTHING})
        await asyncio.sleep(0)  # what runs next runs before who was found readable in the same round
        await transport.close(left=True)
        await settle_down()
        assert heard == [EVERYTHING]
        assert list((tmp_path / "s.db-processes").iterdir()) == []

    asyncio.run(main())
    assert complaints == []


def test_what_the_dead_left_behind_goes(short_path: Path) -> None:
    """A process that lost its place in the store and died before it had another one leaves files that no row tells of:
    the next one that starts takes them away. Those of the living, of the young and of who is to be buried stay."""
    folder = short_path / "s.db-processes"
    folder.mkdir()

    def file(name: str, kind: str) -> Path:
        return folder / f"{_file_name(name)}.{kind}"

    for name in ("forgotten", "young", "row", "alive"):
        for kind in ("lock", "bell"):
            file(name, kind).touch()
            os.utime(file(name, kind), (0, 0) if name != "young" else None)

    async def main() -> None:
        other, mine = LocalTransport(str(short_path / "s.db")), LocalTransport(str(short_path / "s.db"))
        await other.open("other", lambda bell: None)
        os.utime(file("other", "lock"), (0, 0))
        await mine.open("mine", lambda bell: None)
        mine.tidy([process_record("row")])
        names = ("young", "row", "alive", "other", "mine")
        assert set(folder.iterdir()) == {file(name, kind) for name in names for kind in ("lock", "bell")}
        assert mine.ran(process_record("other")) == ()
        with locker(file("other", "lock")) as late:
            assert late.communicate()[0] == ""  # it is locked still: to look at one's own lock is to lose it
        await mine.close(left=True)
        await other.close(left=True)

    with locker(file("alive", "lock")) as alive:
        assert alive.stdout is not None
        assert alive.stdout.readline() == "locked\n"
        asyncio.run(main())
        alive.communicate()


def test_a_letter_is_read_as_it_was_written() -> None:
    """With its news where they are short; one that makes no sense says that there may be everything."""
    record = PromiseRecord("a:0", "f", 1, b"x", "g", "a", False, None, "", T0, 7, State.REJECTED, T0, b"no", 8)
    short, long = Bell(Ring.NEWS, (record,)), Bell(Ring.NEWS, (record._replace(value=bytes(MAX_LETTER_BYTES)),))
    assert read_letter(letter(short)) == short
    assert read_letter(letter(Bell(Ring.TASKS))) == Bell(Ring.TASKS)
    assert read_letter(letter(long)) == Bell(Ring.NEWS)
    whole = letter(short)
    for nonsense in (b"", whole[:-1], whole[:5], whole + b"x", b"\x02\x91\x91\xc0", b"\x02\xc1", b"\x02\x05"):
        assert read_letter(nonsense) == EVERYTHING


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


@pytest.mark.parametrize("how", ["cancel", "timeout"])
def test_an_end_from_elsewhere_reaches_every_process_below(site: Site, how: str) -> None:
    """The code of a remote execution is interrupted where it runs and cleans up, as is that of its children, there and
    in the other worker; all of it settles once, and what was settled stays as it was."""
    pids = {site.hire().pid, site.hire().pid}

    async def main(loop: dasync.EventLoop) -> None:
        limit = {"timeout": 2.0} if how == "timeout" else {}
        promise = far(programs.nests).options(id="n", **limit)("n")
        runner, away = await site.begun("n"), await site.begun("n-far")
        assert {runner, away, await site.begun("n-here")} <= pids
        if how == "cancel":
            await promise.cancel("enough")
        with pytest.raises(dasync.PromiseTimedOut if how == "timeout" else dasync.PromiseCanceled):
            await promise
        ended = (f"ended n-far {away} CancelledError", f"ended n-here {runner} CancelledError", f"cleaned n {runner}")
        for line in ended:
            await until(lambda line=line: line in site.lines(line))
        found = await rows(loop)
        assert [found.promises[id].state for id in ("n:0", "n:1", "n:2")] == [
            State.RESOLVED, *[State.CANCELED if how == "cancel" else State.TIMEDOUT] * 2,
        ]  # fmt: skip
        assert {task.state for task in found.tasks.values()} == {TaskState.FULFILLED}

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
    """When the heartbeat finds that this process counts as gone, what runs is interrupted, and settles nothing."""
    clock = FakeClock()
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
        await loop._store.transact([ProcessLeave(loop.process)])
        await let_pass(clock, 12)
        assert log == ["begun", "interrupted", "begun"]  # it takes its own task again, under its new name
        task = (await rows(loop)).tasks["w"]
        assert (task.process, task.version) == (loop.process, 2)

    World("memory:", None).play(main, clock=clock, lease=9)


def test_who_invokes_hears_nothing_of_a_lost_lease() -> None:
    """What is invoked between the loss of the lease and the moment when this process knows is made under its next name;
    an execution that did so is over, and its next run does it again."""
    clock = FakeClock()
    log: list[str] = []
    go = asyncio.Event()

    @dasync.function
    async def sharing() -> str:
        log.append("begun")
        await go.wait()
        try:
            return await programs.leaf.options(id="shared")("z")
        except BaseException as error:
            log.append(type(error).__name__)
            raise

    async def main(loop: dasync.EventLoop) -> None:
        shares = sharing.options(id="s")()
        await until(lambda: log)
        before = loop.process
        await loop._store.transact([ProcessLeave(before)])
        go.set()
        leaf, far = programs.leaf("x"), dasync.remote("leaf", on="default")("y")
        by_hand = dasync.promise(str, id="by hand")
        await settle_down()
        assert log == ["begun", "CancelledError"]
        assert (await rows(loop)).promises.keys() == {"s"}
        assert not any(promise.done() for promise in (leaf, far, shares))
        await let_pass(clock, 4)
        assert loop.process != before
        assert await dasync.all(leaf, far, shares) == ["X", "Y", "Z"]
        await settle(loop, "by hand", "given")
        assert await by_hand == "given"
        assert log == ["begun", "CancelledError", "begun"]
        await loop._store.transact([ProcessLeave(loop.process)])
        unmade.append(asyncio.create_task(programs.leaf("w").created()))
        await settle_down()

    unmade: list[asyncio.Task[None]] = []
    World("memory:", None).play(main, clock=clock, lease=9)
    assert "the EventLoop is closed" in str(unmade[0].exception())


def test_what_is_acquired_while_a_process_drains_is_handed_back_at_once() -> None:
    """The answer to an acquire that was on its way when the drain began starts nothing here, and who has invoked it
    hears of its outcome from whoever runs it."""
    ran: list[str] = []

    @dasync.function
    async def works(name: str) -> str:
        ran.append(name)
        return name

    async def main(loop: dasync.EventLoop) -> None:
        transact, asked, go = loop._store.transact, asyncio.Event(), asyncio.Event()

        async def slow(commands: Any) -> Any:
            asked.set()
            await go.wait()
            return await transact(commands)

        loop._store.transact = slow  # type: ignore[method-assign]
        mine = works.options(id="mine")("mine")
        await asked.wait()
        await transact([PromiseCreate("theirs", "works", 1, works.shape.encode(("theirs",), {}, None)[0], "default")])
        loop._worker.wake(Ring.TASKS)
        await settle_down()  # the acquire is asked for, the invocation is being written
        await loop.drain(0)
        go.set()
        await until_rows(loop, lambda found: found.tasks.get("mine") and found.tasks["mine"].process is None)
        await settle_down()
        found = await rows(loop)
        assert [found.tasks[id].state for id in ("mine", "theirs")] == [TaskState.PENDING] * 2
        assert ran == []
        assert loop.snapshot().tasks == 0
        async with dasync.EventLoop(loop._store, group="default"):
            assert await mine == "mine"
        assert sorted(ran) == ["mine", "theirs"]

    World("memory:", None).play(main)


def test_an_asyncio_loop_that_ends_over_a_lost_lease_ends() -> None:
    """Nobody closed the EventLoop, its lease was over, and all tasks are canceled: none waits for another lease."""
    clock = FakeClock()

    @dasync.function
    async def works() -> None:
        await asyncio.Event().wait()

    async def main() -> set[asyncio.Task[Any]]:
        loop = dasync.EventLoop("memory:", clock=clock, lease=9)
        await loop.__aenter__()
        promise = works()
        await promise.created()
        await settle_down()
        clock.advance(10)
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        _, pending = await asyncio.wait(others, timeout=5)
        loop._lease.renewed(clock.monotonic())  # lets go of those who wait for it all the same
        return pending

    assert World("memory:", None).run(main()) == set()


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


_numbers = count()


def cleaning(wait: Any, cleaned: asyncio.Event) -> Any:
    """A function that waits, and has something to clean up when that is cut short."""

    async def cleans_up() -> None:
        try:
            await wait()
        finally:
            await cleaned.wait()

    return dasync.function(name=f"cleans_up_{next(_numbers)}")(cleans_up)


WAITS = {"suspended": lambda: dasync.promise(int, id="gate"), "pending": lambda: asyncio.Event().wait()}


@pytest.mark.parametrize("then", WAITS)
def test_what_is_handed_back_has_ended_before_others_run_it(then: str) -> None:
    """Its clean-up belongs to its run: until that is over the task is held, which heartbeats leave as it is."""
    clock, cleaned = FakeClock(), asyncio.Event()
    function = cleaning(WAITS[then], cleaned)

    async def main(loop: dasync.EventLoop) -> None:
        await function.options(id="x")().created()
        await settle_down()
        draining = asyncio.create_task(loop.drain(0))
        await let_pass(clock, 20)
        assert loop.snapshot().tasks == 0
        assert not draining.done()
        assert (await rows(loop)).tasks["x"].process == loop.process
        cleaned.set()
        await draining
        assert (await rows(loop)).tasks["x"].state.value == then

    World("memory:", None).play(main, clock=clock, lease=9)


def test_nobody_waits_for_the_clean_up_of_what_is_suspended() -> None:
    """While code that is to make room cleans up, what others have sent is taken and runs."""
    clock, cleaned = FakeClock(), asyncio.Event()
    function = cleaning(lambda: dasync.promise(int), cleaned)

    async def main(loop: dasync.EventLoop) -> None:
        for number in range(3):
            await function.options(id=f"x{number}")().created()
        await until(lambda: loop.snapshot().tasks == 1)
        await ask(loop, PromiseCreate("sent", "leaf", 1, programs.leaf.shape.encode(("x",), {}, None)[0], "default"))
        assert await loop.get("sent") == "X"
        assert {(await rows(loop)).tasks[f"x{number}"].process for number in range(3)} == {loop.process}
        cleaned.set()
        await until_rows(loop, lambda found: sum(t.state is TaskState.SUSPENDED for t in found.tasks.values()) == 2)

    World("memory:", None).play(main, clock=clock, max_resident=1)


def test_code_that_does_not_end_is_handed_back_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """When it has had its time."""
    monkeypatch.setattr(leaving, "CLEAN_UP_S", 0.01)
    cleaned = asyncio.Event()
    function = cleaning(WAITS["pending"], cleaned)

    async def main(loop: dasync.EventLoop) -> None:
        await function.options(id="x")().created()
        await settle_down()
        await loop.drain(0)
        assert (await rows(loop)).tasks["x"].state is TaskState.PENDING
        cleaned.set()

    World("memory:", None).play(main, clock=FakeClock())
