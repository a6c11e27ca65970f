"""To start over: `return f.again(...)` goes on for ever in bounded space, and outlives crashes as others do."""

from __future__ import annotations

import asyncio
import gc
import itertools
import json
import os
import resource
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from play import World, rows, until, until_rows
from test_replay import stored, written
from zygote import Zygote, zygote_of

import dasync
from dasync.cli import facts
from dasync.core import ids
from dasync.core.model import TaskState
from dasync.core.protocol import TaskContinue, TaskHalt
from dasync.stores.memory import MemoryStore
from dasync.system import SystemClock

began: list[int] = []


@pytest.fixture(scope="module")
def zygote() -> Iterator[Zygote]:
    yield from zygote_of("racers")


@pytest.fixture(autouse=True)
def _nothing_has_begun() -> None:
    began.clear()


@dasync.function
async def add_one(number: int) -> int:
    return number + 1


@dasync.function
async def counts(number: int, end: int) -> int:
    """A few children in each run, and a timer that is left behind."""
    began.append(number)
    first, _ = await dasync.all(add_one(number), add_one(number))
    dasync.sleep(1000)
    return number if number == end else counts.again(first, end)


@dasync.function
async def counts_below(end: int) -> int:
    """The same as a local child."""
    return await counts(0, end) + await counts(0, end)


@dasync.function
async def for_ever(number: int = 0) -> None:
    began.append(number)
    await add_one(number)
    return for_ever.again(number + 1)


# -- bounded -----------------------------------------------------------------------------------------------------


@dasync.function
async def goes_round(number: int, end: int) -> int:
    if number in (end // 3, end):
        began.append(len(gc.get_objects()))
    await dasync.all(add_one(number), add_one(number))
    dasync.sleep(1000)
    return number if number == end else goes_round.again(number + 1, end)


def test_a_loop_takes_bounded_space(memory: World) -> None:
    """1,000 runs: no row is left of all but the last one, and nothing piles up in the process."""

    async def main(loop: dasync.EventLoop) -> None:
        promise = goes_round.options(id="root", timeout=3600)(0, 1_000)
        seen = 0
        while not promise.done():
            seen = max(seen, len((await rows(loop)).promises))
            await asyncio.sleep(0.02)
        assert await promise == 1_000
        assert seen <= 5, "the promise, what keeps the arguments, one run's children"
        assert sorted((await rows(loop)).promises)[:2] == ["root", "root:@1000"]

    memory.play(main)
    first, last = began
    assert last < first + 2_000, "objects that the garbage collector knows"


@pytest.mark.campaign
def test_a_loop_without_end_takes_bounded_memory(tmp_path: Path) -> None:
    """12,000 runs in a file, or as many as DASYNC_RUNS says: it stays as small as it was, and so does the process."""
    runs = int(os.environ.get("DASYNC_RUNS", "12000"))
    path = str(tmp_path / "s.db")
    size, resident = list[int](), list[int]()

    @dasync.function
    async def turns_over(number: int) -> int:
        if number in (runs // 10, runs):
            size.append(os.stat(path).st_size)
            resident.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
        await add_one(number)
        return number if number == runs else turns_over.again(number + 1)

    async def main() -> None:
        async with dasync.EventLoop(path, durability="process") as loop:
            assert await turns_over(0) == runs
            assert len((await rows(loop)).promises) == 3

    asyncio.run(main())
    assert size[1] <= 1.2 * size[0]
    assert resident[1] <= 1.2 * resident[0]


# -- one promise, many runs ------------------------------------------------------------------------------------------


def test_the_promise_stays(world: World) -> None:
    """Who awaits it gets the last run's value; the id stands for the first arguments, whatever the last ones are."""

    async def main(loop: dasync.EventLoop) -> None:
        first = counts.options(id="root", tags={"kind": "loop"})(0, 6)
        await first.created()
        second = counts.options(id="root")(0, 6)
        assert await asyncio.gather(first, second, loop.get("root", int)) == [6, 6, 6]
        assert began == list(range(7))
        assert await counts.options(id="root")(0, 6) == 6
        with pytest.raises(dasync.PromiseConflict):
            await counts.options(id="root")(5, 6)
        record = (await rows(loop)).promises["root"]
        assert (json.loads(record.tags), record.state) == ({"kind": "loop"}, dasync.State.RESOLVED)

    world.play(main)


def test_a_local_child_starts_over(world: World) -> None:
    """Within its parent's execution, and the next child begins anew."""

    async def main(loop: dasync.EventLoop) -> None:
        assert await counts_below.options(id="root")(3) == 6
        assert began == [0, 1, 2, 3, 0, 1, 2, 3]
        left = (await rows(loop)).promises
        assert {id for id in left if "@" not in id} == {"root", "root:0", "root:1"}
        assert {id for id in left if ids.number_of_run(id)} == {"root:0.@3", "root:1.@3"}

    world.play(main)


def test_elsewhere(world: World) -> None:
    """In another process's group: who invoked it there keeps waiting."""
    store = MemoryStore(SystemClock()) if world.store == "memory:" else world.store

    @dasync.function
    async def asks(end: int) -> int:
        return await counts.options(on="far")(0, end)

    async def main() -> None:
        async with (
            dasync.EventLoop(store, group="far", durability="process"),
            dasync.EventLoop(store, durability="process", poll=0.05) as here,
        ):
            assert await here.invoke(asks, 5) == 5

    world.run(main())
    assert began == list(range(6))


def test_in_a_thread(world: World) -> None:
    """A plain `def` starts over too."""

    @dasync.function
    def descends(number: int, sum: int = 0) -> int:
        return sum if number == 0 else descends.again(number - 1, sum + add_one(number).wait())

    async def main(loop: dasync.EventLoop) -> None:
        assert await descends(3) == 4 + 3 + 2

    world.play(main)


def test_random_streams_go_on(memory: World) -> None:
    """No run draws what another one has drawn."""

    @dasync.function
    async def draws(drawn: tuple[str, ...] = ()) -> list[str]:
        drawn = (*drawn, str(dasync.uuid4()))
        return list(drawn) if len(drawn) == 5 else draws.again(drawn)

    async def main(loop: dasync.EventLoop) -> None:
        assert len(set(await draws())) == 5

    memory.play(main)


def test_attempts_begin_anew(memory: World) -> None:
    """Each run has all that its policy grants, and tells of its own failures only."""

    @dasync.function(retry=dasync.Retry.constant(0, attempts=2))
    async def stumbles(number: int) -> int:
        began.append(number)
        if began.count(number) == 1:
            raise OSError(f"run {number}")
        return number if number == 3 else stumbles.again(number + 1)

    async def main(loop: dasync.EventLoop) -> None:
        assert await stumbles.options(id="root")(0) == 3
        assert began == [0, 0, 1, 1, 2, 2, 3, 3]
        kept = await rows(loop)
        (attempt,) = facts.attempts(kept, kept.promises["root"])
        assert (attempt["number"], attempt["error"]["message"]) == (1, "run 3")

    memory.play(main)


def test_a_deadline_is_for_all_runs(world: World) -> None:
    """Of a root and of a local child."""

    @dasync.function
    async def gives_up() -> str:
        try:
            await for_ever.options(timeout=0.05)()
        except dasync.PromiseTimedOut:
            return f"after {len(began) > 1}"
        raise AssertionError("it ended")

    async def main(loop: dasync.EventLoop) -> None:
        assert await gives_up() == "after True"
        with pytest.raises(dasync.PromiseTimedOut):
            await for_ever.options(timeout=0.05)()

    world.play(main)


def test_what_stands_alone_stays(memory: World) -> None:
    """A detached child of each run, and what was made under an id."""

    @dasync.function
    async def lets_go(number: int) -> int:
        add_one.options(detached=True)(number)
        await add_one.options(id=f"shared-{number}")(number)
        return number if number == 2 else lets_go.again(number + 1)

    async def main(loop: dasync.EventLoop) -> None:
        assert await lets_go.options(id="root")(0) == 2
        alone = {"root:0", "root:@1.0", "root:@2.0", "shared-0", "shared-1", "shared-2"}
        kept = await until_rows(loop, lambda now: now.promises.keys() >= alone)
        assert kept.promises.keys() == alone | {"root", "root:@2"}

    memory.play(main)


# -- cancel ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("below", [False, True], ids=["root", "local child"])
def test_a_cancel_ends_all_runs(world: World, below: bool) -> None:
    """Whenever it comes: in a run, or between two."""

    @dasync.function
    async def parent(turns: int) -> str:
        child = for_ever()
        for _ in range(turns):
            await asyncio.sleep(0)
        await child.cancel("enough")
        return child.state.value

    async def main(loop: dasync.EventLoop) -> None:
        for turns in range(0, 60, 3):
            if below:
                assert await parent(turns) == "canceled"
                continue
            promise = for_ever()
            await promise.created()
            for _ in range(turns):
                await asyncio.sleep(0)
            await promise.cancel("enough")
            assert promise.state is dasync.State.CANCELED
        count = len(began)
        await asyncio.sleep(0.01)
        assert len(began) == count

    world.play(main)


def test_a_run_that_is_canceled_does_not_start_over(world: World) -> None:
    """Not even one that takes the cancel for an error of its own."""

    @dasync.function
    async def stubborn(number: int) -> int:
        began.append(number)
        try:
            await dasync.promise(int)
        except asyncio.CancelledError:
            await add_one(number)
        return stubborn.again(number + 1)

    async def main(loop: dasync.EventLoop) -> None:
        promise = stubborn(0)
        await until(lambda: began)
        await promise.cancel("why")
        assert promise.state is dasync.State.CANCELED
        assert began == [0]

    world.play(main)


def test_who_waits_for_what_is_gone_is_told(world: World) -> None:
    """A promise that a run leaves pending ends with it: for this process and for another one."""
    store = MemoryStore(SystemClock()) if world.store == "memory:" else world.store

    @dasync.function
    async def leaves(number: int) -> int:
        if number == 0:
            await dasync.promise(int).created()
            await dasync.promise(int, id="go")
        return number if number == 1 else leaves.again(1)

    async def main() -> None:
        async with (
            dasync.EventLoop(store, group="far", durability="process", poll=0.05) as far,
            dasync.EventLoop(store, durability="process") as here,
        ):
            promise = here.invoke(leaves.options(id="root"), 0)
            await until_rows(here, lambda now: "root:0" in now.promises)
            waiting = [asyncio.ensure_future(one.get("root:0", int)) for one in (here, far)]
            await until_rows(here, lambda now: len([one for one in now.listeners if one.promise == "root:0"]) == 2)
            await far.get("go", int).resolve(1)
            assert await promise == 1
            for one in waiting:
                with pytest.raises(dasync.PromiseNotFound):
                    await one
            await until_rows(here, lambda now: not [one for one in now.listeners if one.promise == "root:0"])


    world.run(main())


# -- crash -------------------------------------------------------------------------------------------------------

VISITS = {f"visit {number} {what}" for number in range(2) for what in ("a", "b", "lap 0", "lap 1")}


def check(result: Any, before: dict[str, tuple[str, object]], ledger: list[str]) -> None:
    assert len(set(result)) == 2, "two runs have drawn from two streams"
    visits = Counter(ledger)
    assert visits.keys() == VISITS
    run = max((ids.number_of_run(id) for id in before if ids.parent_of(id) == "root"), default=0)
    lap = any(ids.number_of_run(id) for id in before if ids.parent_of(id) != "root")
    known = {f"visit {value}" for _, value in before.values() if isinstance(value, str)}
    known |= {visit for visit in VISITS if int(visit.split()[1]) < run} | ({f"visit {run} lap 0"} if lap else set())
    assert [visit for visit, count in visits.items() if count > 1 and visit in known] == []
    assert max(visits.values()) <= 2


@pytest.mark.parametrize("when", ["after", "before"])
def test_killed_at_every_transaction(zygote: Zygote, tmp_path: Path, when: str) -> None:
    """Resumed in a new process: the run that was under way goes on, none that is history comes back.

    After each odd transaction, and at each even one before it is written.
    """
    for start in itertools.count(1 + (when == "before"), 8):
        points = range(start, start + 8, 2)
        paths = {n: (tmp_path / f"{n}.db", tmp_path / f"{n}.txt") for n in points}
        runs = [zygote.spawn("racers:mortal", *map(str, paths[n]), "rounds", 0, [], n, when) for n in points]
        ended = [run.wait() for run in runs]
        assert set(ended) <= {0, -9}
        before = {n: stored(paths[n][0]) for n in points}
        resumed = {n: zygote.spawn("racers:mortal", *map(str, paths[n]), "rounds", 0, [], 0, when) for n in points}
        for n in points:
            check(resumed[n].result(), before[n], written(paths[n][1]))
            assert {id for id in stored(paths[n][0]) if ids.parent_of(id) == "root" and "@1" not in id} == set()
        if 0 in ended:
            assert start > 4
            return


def test_a_halted_run_goes_on_with_its_arguments(world: World) -> None:
    """Taken away in the middle, acquired again: the current run, not the first one."""
    gate = asyncio.Event()

    @dasync.function
    async def stops(number: int) -> int:
        began.append(number)
        await add_one(number)
        if number == 2:
            await gate.wait()
        return number if number == 4 else stops.again(number + 1)

    async def main(loop: dasync.EventLoop) -> None:
        promise = stops.options(id="root")(0)
        await until(lambda: 2 in began)
        await loop._journal.ask(TaskHalt("root"))
        await until_rows(loop, lambda now: now.tasks["root"].state is TaskState.HALTED)
        loop._worker.capacity.held["root"].lost("it was halted")
        gate.set()
        await loop._journal.ask(TaskContinue("root"))
        loop._runner.wake()
        assert await promise == 4
        assert began == [0, 1, 2, 2, 3, 4]

    world.play(main)


# -- what is seen of it ------------------------------------------------------------------------------------------


def test_the_tree_shows_the_last_run(memory: World) -> None:
    """What keeps its arguments, then what it has made."""

    async def main(loop: dasync.EventLoop) -> None:
        await counts.options(id="root")(0, 2)
        kept = await rows(loop)
        shown = facts.tree(kept, "root", 0)["promises"]
        assert [(one["id"], one["depth"], one["function"]) for one in shown][:3] == [
            ("root", 0, "counts"), ("root:@2", 1, "dasync.again"), ("root:@2.0", 1, "add_one"),
        ]  # fmt: skip
        assert facts.shown(kept, "root", 0)["arguments"]["args"] == [0, 2]
        assert facts.shown(kept, "root:@2", 0)["arguments"]["args"] == [2, 2]

    memory.play(main)


# -- bad use -----------------------------------------------------------------------------------------------------


def test_outside_of_a_run_it_is_refused(memory: World) -> None:
    """Without an asyncio loop, outside executions, and in another function."""
    with pytest.raises(RuntimeError, match=r"outside of a run of 'counts'.*to invoke it, call it"):
        counts.again(0, 1)

    @dasync.function
    async def other() -> int:
        return counts.again(0, 1)

    async def main(loop: dasync.EventLoop) -> None:
        with pytest.raises(RuntimeError, match="called outside"):
            counts.again(0, 1)
        with pytest.raises(TypeError, match=r"'counts' version 1> is not what runs here, .*'other'"):
            await other()

    memory.play(main)


@pytest.mark.parametrize(
    ("how", "error", "text"),
    [
        ("forgotten", RuntimeError, r"forgets\.again\(\) was called and not returned: say `return`"),
        ("arguments", TypeError, r"forgets\(\): .*speed"),
        ("value", dasync.UnserializableValue, r"args\[0\]"),
        ("elsewhere", RuntimeError, "was called and not returned"),
        ("caught", None, ""),
    ],
)
def test_what_is_said_wrongly_is_told(memory: World, how: str, error: type[Exception] | None, text: str) -> None:
    """Nothing is removed by it."""

    @dasync.function
    async def forgets(how: Any) -> Any:
        if how == "forgotten":
            forgets.again("done")
        elif how == "arguments":
            return forgets.again(how, speed=2)  # type: ignore[call-arg]  # what is tested
        elif how == "value":
            return forgets.again(object())
        elif how == "elsewhere":
            return [forgets.again("done")]
        elif how == "caught":
            try:
                return forgets.again(object())
            except dasync.UnserializableValue:
                return "caught"
        return how

    async def main(loop: dasync.EventLoop) -> None:
        promise = forgets.options(id="root")(how)
        if error is None:
            assert await promise == how
        else:
            with pytest.raises(error, match=text):
                await promise
        assert (await rows(loop)).promises.keys() == {"root"}

    memory.play(main)
