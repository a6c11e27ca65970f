"""Who may go on: leases, zombies, blocked loops, take-over, and tasks that end the processes which run them."""

from __future__ import annotations

import asyncio
import json
import math
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import programs
import pytest
from clocks import FakeClock
from play import World, rows, until, until_rows
from shell import dasync as run_dasync
from sites import Site, far, site_in
from zygote import Zygote, zygote_of

import dasync
from dasync.core.model import ProcessRecord, TaskState
from dasync.core.protocol import ProcessLeave
from dasync.ports import Around
from dasync.runtime.neighbours import Neighbours
from dasync.transports.local import NoTransport


@pytest.fixture(scope="module")
def zygote() -> Iterator[Zygote]:
    yield from zygote_of("programs")


@pytest.fixture
def site(zygote: Zygote, tmp_path: Path) -> Iterator[Site]:
    yield from site_in(zygote, tmp_path)


# -- zombies


def test_a_zombie_takes_no_step(site: Site) -> None:
    """What a stopped process waited for has come meanwhile, by its own timer: its code does not go on, since its
    lease was over before the step, and another process runs the task."""
    zombie = site.hire(lease=0.6)

    async def main(loop: dasync.EventLoop) -> None:
        nap = far(programs.naps)("n", 0.3)
        assert await site.begun("n") == zombie.pid
        site.stop(zombie)
        heir = await asyncio.to_thread(site.hire)
        assert await nap == f"n by {heir.pid}"
        zombie.kill(signal.SIGCONT)
        await until(lambda: "has lost its lease" in site.log())
        await until_rows(loop, lambda found: len(found.processes) == 3)  # it has joined again
        assert [line.split()[2] for line in site.lines("after n")] == [str(heir.pid)]

    site.play(main)


def test_a_lease_that_nobody_took_is_renewed(site: Site) -> None:
    """Stopped for longer than its lease with nobody there: it goes on where it was, once the store has said so."""
    worker = site.hire(lease=0.3)

    async def main(loop: dasync.EventLoop) -> None:
        nap = far(programs.naps).options(id="n")("n", 0.1)
        assert await site.begun("n") == worker.pid
        site.stop(worker)
        # The caller is there, too, and would take over: it is stopped with the worker, as all of a machine is.
        time.sleep(0.5)  # noqa: ASYNC251  # the point
        worker.kill(signal.SIGCONT)
        assert await nap == f"n by {worker.pid}"

    site.play(main, lease=0.3, poll=60)


def test_a_blocked_loop_loses_its_lease_and_is_named_before(site: Site) -> None:
    """Who blocks, and where, is in the log while it does; its code gets no further than to its next await."""
    blocked = site.hire(lease=0.8)

    async def main(loop: dasync.EventLoop) -> None:
        promise = far(programs.blocks_its_loop)("b", 2.5)
        assert await site.begun("b") == blocked.pid
        await until(lambda: "stood still" in site.log())
        told = site.log()
        assert site.lines("unblocked") == []
        assert "A lease of 0.8 s is lost like that" in told
        assert "programs.py:" in told
        heir = await asyncio.to_thread(site.hire)
        assert await promise == f"b by {heir.pid}"
        await until(lambda: f"unblocked b {blocked.pid}" in site.lines("unblocked"))
        await until(lambda: "has lost its lease" in site.log())
        assert [line.split()[2] for line in site.lines("after b")] == [str(heir.pid)]

    site.play(main)


def test_a_step_waits_for_a_lease_that_is_over() -> None:
    """By a clock in hand: past the end of its lease no code goes on before the heartbeat has been answered, not even
    to be interrupted; then it goes on in place."""
    clock = FakeClock()
    seen: list[str] = []
    gate = asyncio.Event()

    @dasync.function
    async def works() -> str:
        seen.append("begun")
        await gate.wait()
        seen.append("after")
        try:
            async with asyncio.timeout(0):
                await asyncio.Event().wait()
        except TimeoutError:
            seen.append("interrupted")
        return "done"

    async def main(loop: dasync.EventLoop) -> None:
        promise = works()
        await until(lambda: seen)
        answer, transact = asyncio.Event(), loop._store.transact

        async def late(commands: Any) -> Any:
            await answer.wait()
            return await transact(commands)

        loop._store.transact = late  # type: ignore[method-assign]
        clock.advance(9.5)
        gate.set()
        for _ in range(50):
            await asyncio.sleep(0)
        assert seen == ["begun"]
        answer.set()
        assert await promise == "done"
        assert seen == ["begun", "after", "interrupted"]
        assert loop.process.startswith("me@")

    World("memory:", None).play(main, clock=clock, lease=9, process="me")


def test_a_process_that_counts_as_gone_drops_what_waits_for_its_lease() -> None:
    """The answer is that it is gone: the step that was held up is never taken."""
    clock = FakeClock()
    seen: list[str] = []
    gate = asyncio.Event()

    @dasync.function
    async def works() -> str:
        run = len(seen)
        seen.append("begun")
        if run:
            return "by the next one"
        await gate.wait()
        seen.append("a step of the first run")
        return "by the first one"

    async def main(loop: dasync.EventLoop) -> None:
        promise = works()
        await until(lambda: seen)
        await loop._store.transact([ProcessLeave(loop.process)])
        clock.advance(9.5)
        gate.set()
        assert await promise == "by the next one"
        assert seen == ["begun", "begun"]

    World("memory:", None).play(main, clock=clock, lease=9)


# -- take-over


@pytest.mark.parametrize("end", ["kill", "stop", "drain"])
def test_a_task_is_taken_over(site: Site, end: str) -> None:
    """At once from one that is killed or drains, when its lease is over from one that is stopped; once each."""
    first, second = site.hire(lease=0.6), site.hire(lease=0.6)

    async def main(loop: dasync.EventLoop) -> None:
        promise = far(programs.loiter).options(id="l")("l")
        gone = site.workers[await site.begun("l")]
        heir = second if gone is first else first
        if end == "kill":
            gone.kill()
        elif end == "stop":
            site.stop(gone)
        else:
            gone.kill(signal.SIGTERM)
        assert await site.begun("l", other_than=gone.pid) == heir.pid
        site.go()
        assert await promise == f"l by {heir.pid}"
        assert (await rows(loop)).tasks["l"].version == 2

    site.play(main)


# -- poison


@pytest.mark.parametrize("function", [programs.ends_its_process, programs.ends_its_process_from_a_thread])
def test_what_ends_its_processes_is_halted(site: Site, caplog: pytest.LogCaptureFixture, function: Any) -> None:
    """Three workers die of it, the fourth does not get it; what merely ran beside it is not blamed. When it is sent
    again it has as many tries as at first."""

    async def main(loop: dasync.EventLoop) -> None:
        loiters = far(programs.loiter).options(id="l")("l")
        poison = far(function).options(id="p")("p", 4)
        for _ in range(3):
            worker = await asyncio.to_thread(site.hire, max_crashes=3)
            assert await asyncio.to_thread(worker.wait) == 9
        last = await asyncio.to_thread(site.hire, max_crashes=3)
        found = await until_rows(loop, lambda found: found.tasks["p"].state is TaskState.HALTED)
        assert found.tasks["p"].reason.startswith("poisoned: 3 processes in a row have ended while this ran")
        assert await site.begun("l", other_than=worker.pid) == last.pid
        assert found.tasks["l"].crashes == 0
        assert not poison.done()
        async with dasync.EventLoop(str(site.path), group="other") as another:
            with pytest.raises(dasync.Poisoned, match="`dasync resume p`"):
                await another.invoke(far(function).options(id="p"), "p", 4)
        store = ("--store", str(site.path))
        listed = await asyncio.to_thread(run_dasync, "list", "--task-state", "halted", "--json", *store)
        assert [one["id"] for one in json.loads(listed)["promises"]] == ["p"]
        assert re.search("p, which runs .* is halted, poisoned: .* with `dasync resume p`", caplog.text + site.log())
        await asyncio.to_thread(run_dasync, "resume", "p", *store)
        assert await asyncio.to_thread(last.wait) == 9
        healthy = await asyncio.to_thread(site.hire, max_crashes=3)
        assert await poison == f"p by {healthy.pid}"
        site.go()
        assert await loiters == f"l by {healthy.pid}"

    site.play(main, max_crashes=3)


def test_who_cannot_be_buried_is_no_cause_for_haste() -> None:
    """Whose lease is over is looked at when the time has come, and then, as long as the store is away, at each poll."""
    clock = FakeClock()
    silent = ProcessRecord("p", "p", "g", "here", "", 10_000, 1)
    seen = Neighbours(cast(Any, None), transport=NoTransport(), clock=clock, journal=cast(Any, None))
    seen.see("me", Around([silent], None, has_tasks=False, missing=[], waiting=[], changed=True))
    assert seen.soonest_silence_s() == 10
    clock.advance(10)
    assert seen.soonest_silence_s() == math.inf
