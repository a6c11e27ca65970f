"""A test of one's own program in a simulated world: what it can do there, what it may not, and what is found."""

from __future__ import annotations

import asyncio
import io
import os
import pdb  # noqa: T100  # the debugger that is handed in
import random
import secrets
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

import dasync
from dasync.testing import (
    Broken,
    Deadlock,
    Operation,
    Unsimulated,
    World,
    debug,
    simulate,
)
from dasync.testing.history import line


@dasync.function
async def double(number: int) -> int:
    await asyncio.sleep(0.01)
    return 2 * number


@dasync.function
async def quadruple(number: int) -> int:
    twice = await double(number)
    return await double(twice)


@dasync.function
async def reminder(days: float) -> str:
    await dasync.sleep(days * 86_400)
    return (await double(21), "days later")[1]


@dasync.function
async def approval(id: str) -> str:
    return await dasync.promise(str, id=id)


spent: list[str] = []


@dasync.function
async def spends() -> None:
    """The bug: an effect that no record stands for."""
    await asyncio.sleep(0.01)
    spent.append("money")
    await asyncio.sleep(0.01)


async def spends_once(world: World) -> None:
    spent.clear()
    await world.invoke(spends)
    assert len(spent) == 1


def run(test: Callable[[World], Awaitable[Any]], seed: int = 1, **options: Any) -> Any:
    with World(seed, **options) as world:
        came = world.run(test)  # type: ignore[arg-type]  # a coroutine function
        assert world.violations == []
        return came


# -- what a test can do


def test_months_pass_and_workers_die() -> None:
    """What sleeps for a month goes on when it is over, though all workers die meanwhile."""

    async def test(world: World) -> tuple[str, float]:
        began, promise = world.now(), world.invoke(reminder, 30)
        await world.advance(days=7)
        assert not promise.done()
        world.crash()
        await world.advance(days=22, hours=23)
        assert not promise.done()
        return await promise, (world.now() - began).total_seconds() / 86_400

    came, days = run(test)
    assert came == "days later"
    assert 30 <= days < 30.01


def test_hosts_are_cut_off_from_each_other() -> None:
    """A bell that does not come through is made up for by polling; the history tells what was asked."""

    async def test(world: World) -> int:
        world.partition("host-0", "host-1")
        came = await world.invoke(quadruple, 3)
        world.heal()
        return came + await world.invoke(quadruple, 3)

    with World(4, processes=2) as world:
        assert world.run(test) == 24
        assert sum("fulfill" in line(one) for one in world.history) == 2
        cut = "host-0 and host-1 are cut off from each other"
        assert [mark.text for mark in world.marks] == [cut, "healed", "healed"]


def test_a_person_settles_from_the_test() -> None:
    """The test is a process like any other: what workers wait for it can settle."""

    async def test(world: World) -> str:
        promise = world.invoke(approval.options(id="order-1"), "boss")
        await world.advance(days=3)
        await world.loop.get("boss", str).resolve("granted")
        return await promise

    assert run(test) == "granted"


def test_only_one_worker_of_several_is_killed() -> None:
    """A crash can hit one by its name, for a while or for good."""

    async def test(world: World) -> list[str]:
        assert world.workers == ["default-1", "default-2"]
        world.crash("default-1", restart_after=None)
        world.crash("default-2", restart_after=60)
        await world.advance(seconds=30)
        up = [name for name in world.workers if world.cluster.processes[name].up]
        assert await world.invoke(double, 2) == 4
        return up + [name for name in world.workers if world.cluster.processes[name].up]

    assert run(test, processes=2) == ["default-2"]


def test_a_group_is_served_once_something_is_sent_to_it() -> None:
    """Other functions that happen to be imported change nothing; workers of a group can be named as victims."""

    @dasync.function(on="nowhere")
    async def unused() -> None: ...

    @dasync.function(on="far")
    async def far(number: int) -> int:
        return await double(number)

    @dasync.function
    async def sends(number: int) -> int:
        return await far(number)

    async def test(world: World) -> None:
        assert await world.invoke(sends, 2) == 4
        assert world.groups == ["default", "far"]
        assert world.workers[2:] == ["far-1", "far-2"]

    assert simulate(test, seeds=2, processes=2, faults="0:kill:far-2:1").seeds == 2


def test_asyncio_anyio_and_fakes_work() -> None:
    """Streams fed by hand, memory channels, queues, task groups, threads and timeouts are what they are elsewhere."""

    @dasync.function
    def in_thread(text: str) -> str:
        return text.upper()

    async def test(world: World) -> list[str]:
        said: list[str] = []
        reader = asyncio.StreamReader()
        reader.feed_data(b"hello\n")
        said.append((await reader.readline()).decode().strip())
        send, receive = anyio.create_memory_object_stream[str](1)
        async with anyio.create_task_group() as group, send, receive:
            group.start_soon(send.send, "by anyio")
            said.append(await receive.receive())
        with anyio.move_on_after(3600):
            await anyio.sleep(7200)
        said.append(await asyncio.to_thread(str.upper, "thread"))
        said.append(await anyio.to_thread.run_sync(str.upper, "anyio's thread"))
        said.append(await world.invoke(in_thread, "worker's thread"))
        async with asyncio.TaskGroup() as tasks:
            found = [tasks.create_task(double(number)) for number in range(3)]
        return [*said, *(str(one.result()) for one in found)]

    said = ["hello", "by anyio", "THREAD", "ANYIO'S THREAD", "WORKER'S THREAD", "0", "2", "4"]
    assert run(test) == said


def test_the_same_seed_goes_the_same_way() -> None:
    """Trace or no trace, in a world before or after others; and other seeds go other ways."""
    found = []
    for seed, traces in ((1, False), (2, False), (1, True)):
        with World(seed, faults="3:fail::5:0.7 20:kill:default-1:0", traces=traces) as world:
            world.run(_quadruples)
            assert not traces or any("logs: " in one.text for one in world.cluster.trace or ())
            found.append(world.cluster.digest)
    assert found[0] == found[2] != found[1]


async def _quadruples(world: World) -> None:
    assert await asyncio.gather(*(world.invoke(quadruple, number) for number in range(4))) == [0, 4, 8, 12]


# -- what it may not

REFUSED: dict[str, Callable[[], object]] = {
    "time.time()": lambda: time.time(),
    "time.monotonic()": lambda: time.monotonic(),
    "time.sleep()": lambda: time.sleep(1),
    "random.random()": lambda: random.random(),
    "random.shuffle()": lambda: random.shuffle([1]),
    "random.Random()": lambda: random.Random(),
    "uuid.uuid4()": lambda: uuid.uuid4(),
    "os.urandom()": lambda: os.urandom(1),
    "secrets.token_hex()": lambda: secrets.token_hex(),
    "socket.socket()": lambda: socket.socket(),
    "socket.create_connection()": lambda: socket.create_connection(("localhost", 1)),
    "subprocess.Popen()": lambda: subprocess.Popen(["true"]),
    "subprocess.run()": lambda: subprocess.run(["true"]),
}


@pytest.mark.parametrize("call", REFUSED)
def test_the_real_world_is_refused(call: str) -> None:
    """In the test, in a worker's function and in a thread; the error names the call. Outside of worlds it works."""

    @dasync.function
    async def asks() -> None:
        REFUSED[call]()

    @dasync.function
    def asks_in_thread() -> None:
        REFUSED[call]()

    async def test(world: World) -> list[str]:
        found = []
        for asked in (world.invoke(asks), world.invoke(asks_in_thread), asyncio.to_thread(REFUSED[call])):
            try:
                await asked
            except Exception as error:
                found.append(str(error))
        with pytest.raises(Unsimulated):
            REFUSED[call]()
        return found

    found = run(test)
    assert len(found) == 3
    assert all(call in one and __name__ in one for one in found), found
    if not call.startswith(("sub", "socket.create", "time.sleep")):
        made: Any = REFUSED[call]()
        getattr(made, "close", int)()


@pytest.mark.parametrize(
    ("what", "ask"),
    [
        ("loop.create_connection", lambda: asyncio.open_connection("localhost", 1)),
        ("loop.create_server", lambda: asyncio.start_server(print, "localhost", 1)),
        ("a subprocess", lambda: asyncio.create_subprocess_exec("true")),
        ("getaddrinfo of 'localhost'", lambda: asyncio.get_running_loop().getaddrinfo("localhost", 1)),
        ("loop.add_reader", lambda: asyncio.get_running_loop().add_reader(0, print)),
        ("loop.add_signal_handler", lambda: asyncio.get_running_loop().add_signal_handler(2, print)),
    ],
)
def test_asyncios_ways_to_the_real_world_are_refused(what: str, ask: Callable[[], Any]) -> None:
    """Sockets, files, subprocesses and signals of the asyncio loop: each is named."""

    async def test(world: World) -> None:
        with pytest.raises(Unsimulated, match=what):
            await ask()

    run(test)


# -- what is found


def test_an_effect_before_its_record_is_found_by_a_crash_at_every_point() -> None:
    """The error says at which point, and how to see it again; there it is again."""
    with pytest.raises(AssertionError) as caught:
        simulate(spends_once, exhaustive=True)
    (note,) = caught.value.__notes__
    replay = next(said for said in note.splitlines() if said.startswith("replay"))
    assert "and a crash of whoever writes at" in note
    crash = replay.partition("crash='")[2].partition("'")[0]
    assert f"simulate(spends_once, seeds=[0], crash='{crash}')" in replay
    with pytest.raises(AssertionError):
        simulate(spends_once, seeds=[0], crash=crash)
    simulate(spends_once, seeds=[0])


def test_what_is_recorded_stands_a_crash_at_every_point() -> None:
    """Before and after each commit; how many is told."""
    worlds: list[World] = []

    async def test(world: World) -> None:
        worlds.append(world)
        await _quadruples_one(world)

    tried = simulate(test, exhaustive=True, processes=2)
    assert tried.points > 15
    assert len(worlds) == tried.worlds == tried.points + 2
    killed = [[mark.text for mark in world.marks].count("killed") for world in worlds]
    assert killed == [0, 0, *([1] * tried.points)]
    unheard = "a process died before it heard what had taken effect"
    ways = [world.reached.get(unheard, 0) for world in worlds[2:]]
    assert 5 < sum(ways) < tried.points - 5


async def _quadruples_one(world: World) -> None:
    assert await world.invoke(quadruple, 2) == 8


def test_a_failure_is_told_with_as_few_faults_as_will_do() -> None:
    """Of several crashes one is enough; the plan that is printed fails alike."""
    with pytest.raises(AssertionError) as caught:
        simulate(spends_once, seeds=100, faults="kill")
    (note,) = caught.value.__notes__
    seed, faults = note.partition("seed ")[2].split()[0], note.partition("faults='")[2].partition("'")[0]
    assert "that were planned)" in note
    assert "killed" in note
    with pytest.raises(AssertionError):
        simulate(spends_once, seeds=[int(seed)], faults=faults)
    for left_out in range(len(faults.split())):
        fewer = " ".join(one for at, one in enumerate(faults.split()) if at != left_out)
        simulate(spends_once, seeds=[int(seed)], faults=fewer or "none")


def test_a_test_that_is_not_the_seeds_alone_is_told() -> None:
    """What a module keeps from run to run makes a failure that does not come again: that is said."""
    runs: list[int] = []

    async def test(world: World) -> None:
        runs.append(await world.invoke(double, len(runs)))
        assert len(runs) != 2

    with pytest.raises(AssertionError) as caught:
        simulate(test, seeds=3)
    assert "went another way when it was run again" in caught.value.__notes__[0]


def test_a_deadlock_is_told() -> None:
    """Who waits for what, where; and no time is wasted on it."""

    async def test(world: World) -> None:
        await world.invoke(approval.options(id="order-1"), "nobody")

    with pytest.raises(Deadlock) as caught:
        simulate(test, seeds=1)
    said = str(caught.value)
    assert f"order-1: approval at {Path(__file__)}" in said
    assert "waits for nobody" in said
    assert "test.<locals>.test at" in said or "<locals>.test at" in said
    assert "waits for order-1" in said


def test_what_the_world_finds_is_an_assertion() -> None:
    """A violation that the test itself did not see fails it, too, with each of them."""

    async def test(world: World) -> None:
        world.watch.wrong("claim", "made up")

    with pytest.raises(Broken, match="claim: made up") as caught:
        simulate(test, seeds=1)
    assert [one.checker for one in caught.value.violations] == ["claim"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"sedes": 3, "process": 2}, "process, sedes: no such option; those are seeds, exhaustive, processes"),
        ({"seeds": "many"}, "seeds is how many, or a list of them, not 'many'"),
        ({"exhaustive": True, "faults": "kill"}, "it takes no faults"),
        ({"faults": "klil"}, "not klil"),
        ({"crash": "7"}, "a point is written as 17:before or 17:after, not '7'"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], said: str) -> None:
    """An option that nobody takes, or a value that means nothing, is an error that names it."""
    with pytest.raises((TypeError, ValueError), match=said.replace("(", r"\(")):
        simulate(_quadruples_one, **options)


# -- time travel


def stopped(commands: str, **arguments: Any) -> str:
    said = io.StringIO()
    debug(_quadruples_one, stdin=io.StringIO(commands), stdout=said, **arguments)
    return said.getvalue()


def test_debug_stops_in_the_frame_that_asked() -> None:
    """At an operation by its number the locals of the code that asked for it are there; the same each time."""
    with World(5) as world:
        world.run(_quadruples_one)
        number = next(
            one.number for one in world.history if line(one).startswith("fence") and ":1 ->" in line(one)
        )
    first = stopped("p twice\nw\n", seed=5, at=number)
    assert f"operation {number}: default-" in first
    assert "(Pdb) 4" in first
    assert "return await double(twice)" in first
    assert stopped("p twice\nw\n", seed=5, at=number) == first


def test_debug_stops_in_the_test_where_it_asked() -> None:
    """What no execution has asked for, the test has."""
    said = stopped("p world\n", at=lambda it: it.process == "test" and "quadruple" in line(it))
    assert "_quadruples_one()" in said
    assert "(Pdb) <World seed 0" in said


def test_debug_stops_in_the_parent_of_what_is_over() -> None:
    """Where the code that asked has no frame any more, the nearest one above it that has; wherever that runs."""

    @dasync.function(on="far")
    async def far(number: int) -> int:
        return number + 1

    @dasync.function
    async def sends(number: int) -> int:
        return await far(number)

    async def test(world: World) -> None:
        assert await world.invoke(sends, 2) == 3

    said = io.StringIO()
    at: Callable[[Operation], bool] = lambda it: "fulfill sends" in line(it) and ":0@" in line(it)  # noqa: E731
    debug(test, at=at, stdin=io.StringIO("p number\n"), stdout=said)
    assert "far-" in said.getvalue()
    assert "(Pdb) 2" in said.getvalue()


def test_debug_steps_on() -> None:
    """From where it stopped, `next` goes to the next line of that code; `quit` ends the run."""
    said = stopped("next\np twice\nquit\n", at=lambda it: "create quadruple" in line(it) and ":0 ->" in line(it))
    assert "-> return await double(twice)" in said
    assert "(Pdb) 4" in said
    assert sys.gettrace() is None or "coverage" in repr(sys.gettrace())


def test_debug_stops_where_the_test_fails() -> None:
    """At "violation" it is the frame of the assertion, in the world of that crash."""
    with pytest.raises(AssertionError) as caught:
        simulate(spends_once, exhaustive=True)
    crash = caught.value.__notes__[0].partition("crash='")[2].partition("'")[0]
    said = io.StringIO()
    debug(spends_once, at="violation", crash=crash, stdin=io.StringIO("p len(spent)\n"), stdout=said)
    assert "-> assert len(spent) == 1" in said.getvalue()
    assert "(Pdb) 2" in said.getvalue()


def test_debug_stops_in_a_thread() -> None:
    """A function in a thread that has invoked something and waits is shown there."""

    @dasync.function
    def waits(number: int) -> int:
        return double(number).wait() + 1

    async def test(world: World) -> None:
        assert await world.invoke(waits, 3) == 7

    said = io.StringIO()
    at: Callable[[Operation], bool] = lambda it: "create waits" in line(it) and ":0" in line(it)  # noqa: E731
    debug(test, at=at, stdin=io.StringIO("p number\n"), stdout=said)
    assert "(Pdb) 3" in said.getvalue()
    assert "return double(number).wait() + 1" in said.getvalue()


def test_debug_takes_a_debugger_of_ones_own() -> None:
    """Any class like pdb's; and a moment that never comes is told."""

    class Mine(pdb.Pdb):
        stops = 0

        def interaction(self, frame: Any, *others: Any) -> None:
            type(self).stops += 1

    debug(_quadruples_one, at=lambda it: it.process.startswith("default"), pdb_class=Mine)
    assert Mine.stops > 5
    with pytest.raises(LookupError, match=r"has \d+ operations, and stops at none"):
        debug(_quadruples_one, at=100_000)
    with pytest.raises(LookupError, match="it holds"):
        debug(_quadruples_one)


def test_nothing_is_left_behind() -> None:
    """After a world time, randomness and threads are the real ones, and no loop runs."""
    run(_quadruples_one)
    assert time.time() > 1_700_000_000
    assert random.random() != random.random()
    assert [one for one in threading.enumerate() if one.name == "dasync-simulated" and not one.daemon] == []
    with pytest.raises(RuntimeError):
        asyncio.get_running_loop()
