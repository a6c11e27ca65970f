"""all, any, race, all_settled, linking and structure: what comes first is decided once, crash or no crash."""

from __future__ import annotations

import asyncio
import itertools
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import programs
import pytest
import racers
from clocks import FakeClock
from play import World, rows, settle, until, until_rows
from test_replay import stored, written
from zygote import Zygote, zygote_of

import dasync
from dasync.core.model import State
from dasync.stores.memory import MemoryStore
from dasync.system import SystemClock


@pytest.fixture(scope="module")
def zygote() -> Iterator[Zygote]:
    yield from zygote_of("racers", "uuid")


@dasync.function
async def echo(text: str) -> str:
    return text


@dasync.function
async def gated(gate: str) -> str:
    return await dasync.promise(str, id=gate)


@dasync.function
async def boom(text: str = "boom") -> str:
    raise ValueError(text)


@dasync.function
async def never(name: str = "never") -> str:
    await dasync.promise()
    return name


async def states(loop: dasync.EventLoop) -> dict[str, str]:
    return {id: record.state.value for id, record in (await rows(loop)).promises.items()}


# -- race


def test_a_race_goes_to_the_first(world: World) -> None:
    """It returns when the first one does; the losers end as canceled, once, and none of them rejects the parent."""

    @dasync.function
    async def races() -> str:
        winner = await dasync.race(never("a"), dasync.sleep(3600), gated("gate"), never.options(on="nobody")("b"))
        return f"{winner} won"

    async def main(loop: dasync.EventLoop) -> None:
        promise = races.options(id="r")()
        await until(lambda: "gate" in loop.awaiters and "r:0.0" in loop.awaiters)
        await settle(loop, "gate", "third")
        assert await promise == "third won"
        found = await states(loop)
        assert [found[f"r:{place}"] for place in range(4)] == ["canceled", "canceled", "resolved", "canceled"]
        assert (await rows(loop)).promises["r:4"].function == "dasync.race"
        assert loop.snapshot().tasks == 0

    world.play(main)


def test_the_first_to_fail_wins_too(world: World) -> None:
    """A race raises the error of a winner that failed."""

    @dasync.function
    async def races() -> str:
        with pytest.raises(ValueError, match="first"):
            await dasync.race(never(), boom("first"))
        return "heard"

    async def main(loop: dasync.EventLoop) -> None:
        assert await races() == "heard"
        with pytest.raises(ValueError, match="outside"):
            await dasync.race(dasync.promise(str), boom("outside"))

    world.play(main)


def test_keep_lets_the_losers_go_on(world: World) -> None:
    """With `keep=True` they can be awaited later; what nobody awaits by the end of the body is canceled there."""

    @dasync.function
    async def races(keep: bool) -> list[str]:
        slow = gated("slow")
        first = await dasync.race(slow, echo("fast"), never(), keep=True)
        return [first, await slow] if keep else [first]

    async def main(loop: dasync.EventLoop) -> None:
        kept = races.options(id="kept")(True)
        await until(lambda: "kept:3" in kept_ids(loop) or "slow" in loop.awaiters)
        await settle(loop, "slow", "s")
        assert await kept == ["fast", "s"]
        found = await states(loop)
        assert (found["kept:0"], found["kept:2"]) == ("resolved", "canceled")

    def kept_ids(loop: dasync.EventLoop) -> set[str]:
        return set(loop.promises)

    world.play(main)


def test_races_of_odd_promises(world: World) -> None:
    """One that is settled already, the same one twice, two handles of one, a promise that somebody outside made."""

    @dasync.function
    async def odd() -> list[str]:
        settled, other, twice = echo("settled"), never(), echo("twice")
        await settled
        shared = loops[0].get("shared", str)
        return [
            await dasync.race(other, settled),
            await dasync.race(twice, twice),
            await dasync.race(shared, gated.options(id="shared")("gate"), loops[0].get("shared")),
            await dasync.any(shared, shared),
            other.state.value,
        ]

    loops: list[dasync.EventLoop] = []

    async def main(loop: dasync.EventLoop) -> None:
        loops[:] = [loop]
        shared = gated.options(id="shared")("gate")
        promise = odd.options(id="o")()
        await until(lambda: len(loop.awaiters.get("shared", ())) == 3)
        await settle(loop, "gate", "g")
        assert (await promise)[:4] == ["settled", "twice", "g", "g"]
        assert await shared == "g"
        assert (await states(loop))["o:1"] == "canceled"

    world.play(main)


def test_a_refused_promise_loses_or_wins_like_any(memory: World) -> None:
    """An id in other use is an outcome: `any` goes past it, `race`, `all` and `all_settled` raise it."""

    @dasync.function
    async def uses(how: str) -> str:
        conflict = echo.options(id="taken")("other")
        match how:
            case "any":
                return await dasync.any(conflict, echo("good"))
            case "race":
                return await dasync.race(conflict, never())
            case "all":
                await dasync.all(conflict, echo("good"))
        await dasync.all_settled(conflict, echo("good"))
        return "unreachable"

    async def main(loop: dasync.EventLoop) -> None:
        await echo.options(id="taken")("this")
        assert await uses("any") == "good"
        for how in ("race", "all", "all_settled"):
            with pytest.raises(dasync.PromiseConflict):
                await uses(how)

    memory.play(main)


def test_a_race_against_the_clock(memory: World) -> None:
    """`race(work, sleep(...))` is a timeout: on a handed-in clock half a day passes in no time."""
    clock = FakeClock()

    @dasync.function
    async def patient() -> str:
        return await dasync.race(never(), late(12 * 3600))

    @dasync.function
    async def late(seconds: float) -> str:
        await dasync.sleep(seconds)
        return "too late"

    async def main(loop: dasync.EventLoop) -> None:
        promise = patient.options(id="p")()
        await until(lambda: "p:1.0" in loop.awaiters)
        clock.advance(12 * 3600 - 1)
        await asyncio.sleep(0.01)
        assert not promise.done()
        clock.advance(2)
        assert await promise == "too late"

    memory.play(main, clock=clock, lease=24 * 3600)


def test_any_goes_past_failures(world: World) -> None:
    """It gives the first value; when none resolves, all errors in the order of the arguments."""

    @dasync.function
    async def tries() -> list[str]:
        first = await dasync.any(boom("a"), never(), echo("value"))
        try:
            await dasync.any(boom("b"), boom("c"))
        except ExceptionGroup as group:
            return [first, *(str(error) for error in group.exceptions)]
        raise AssertionError("one resolved")

    async def main(loop: dasync.EventLoop) -> None:
        assert await tries.options(id="t")() == ["value", "b", "c"]
        assert (await states(loop))["t:1"] == "canceled"
        with pytest.raises(ExceptionGroup, match="none of 1 promises resolved"):
            await dasync.any(boom())

    world.play(main)


def test_all_settled_raises_nothing(world: World) -> None:
    """It gives every promise back, whatever became of it, and a failure among them rejects nobody."""

    @dasync.function
    async def settles() -> list[str]:
        canceled = never()
        await canceled.cancel()
        found = await dasync.all_settled(echo("x"), boom(), canceled, dasync.promise(timeout=0.001))
        return [one.state.value for one in found]

    async def main(loop: dasync.EventLoop) -> None:
        assert await settles() == ["resolved", "rejected", "canceled", "timedout"]
        assert await dasync.all_settled() == []

    world.play(main)


def test_a_decision_is_nothing_to_wait_for(memory: World) -> None:
    """While one is written, the execution that made it goes on: it takes room, and no drain hands it back."""

    @dasync.function
    async def stamps() -> list[int]:
        dasync.now()
        return [loops[0].snapshot().waiting, *map(len, dict(loops[0].awaiters).values())]

    loops: list[dasync.EventLoop] = []

    async def main(loop: dasync.EventLoop) -> None:
        loops[:] = [loop]
        promise = stamps()
        assert await dasync.all_settled(promise) == [promise]
        assert promise.result() == [0, 1]  # the one that waits is this program

    memory.play(main)


# -- across processes, through crashes


def test_a_race_across_processes(zygote: Zygote, tmp_path: Path) -> None:
    """Slow and fast in a worker's process: the race ends with the fast one, and the slow one is interrupted once."""
    path, ledger = tmp_path / "s.db", tmp_path / "ledger"
    worker = zygote.spawn("racers:worker", str(path), str(ledger), "far")

    async def main(loop: dasync.EventLoop) -> None:
        slow = programs.loiter.options(on="far")
        fast = programs.leaf.options(on="far")

        @dasync.function
        async def races() -> str:
            promise = slow("slow")
            await until(lambda: any(line.startswith("begin slow") for line in written(ledger)))
            return await dasync.race(promise, fast("fast"))

        assert await races.options(id="r")() == "FAST"
        await until(lambda: any(line.startswith("ended slow") for line in written(ledger)))
        assert (await states(loop))["r:0"] == "canceled"
        assert await fast("after") == "AFTER"
        assert [line.split()[3] for line in written(ledger) if line.startswith("ended slow")] == ["CancelledError"]

    World(str(path), None).play(main)
    worker.kill()


# A program, its steps in the order of the first run, and in another one for the run that resumes it.
CRASHES: dict[str, tuple[str, object, list[str], list[str]]] = {
    "race": ("race", None, ["a", "b"], ["b", "a"]),
    "any": ("any_of", None, ["y", "x", "a", "b"], ["b", "a"]),
    "any, none": ("none_of", None, ["y", "x"], ["x", "y"]),
    "all, a failure": ("first_failure", None, ["y", "x", "a"], ["x", "y", "a"]),
    "race, the loser cleans up": ("travels", 0.001, ["booked", "alarm"], []),
    "cancel": ("calls_off", 0.001, ["booked", "alarm"], []),
}


def taken(path: Path) -> dict[str, int]:
    """The turns of what is settled."""
    with closing(sqlite3.connect(path)) as connection:
        return dict(connection.execute("SELECT id, turn FROM promises WHERE turn IS NOT NULL"))


def check(name: str, result: Any, before: dict[str, Any], path: Path, lines: list[str]) -> None:
    """What was decided stays, what was undone is undone once and for all, nothing is left behind."""
    after, turns = stored(path), taken(path)
    assert all(after[id] == was for id, was in before.items() if was[0] != "pending")
    assert "pending" not in {state for state, _ in after.values()}, after
    steps = {"race": "ab", "any_of": "xayb", "first_failure": "xay", "none_of": ""}
    if name == "none_of":
        assert result == ["x fell", "y fell", "NONE"]
    elif name in steps:
        decided = before.get(f"root:{len(steps[name])}", ("", None))[1]
        winner = result[0][0]
        assert not isinstance(decided, int) or steps[name][decided] == winner
        assert result == [result[0], result[0].upper()]
        # Nothing follows from a decision that is not on record.
        assert {line[5] for line in lines if line.startswith("leaf")} == {winner}
    else:
        assert result in (["alarm", "HOME"], ["canceled", "HOME"])
        made, turn, _ = after.get("root:0.^", ("", [0, 0, None]))[1]
        heard = {id for place in range(made) if turns.get(id := f"root:0.{place}", turn + 1) <= turn}
        booked = [after[id][1] for id in sorted(heard)]
        undone = [value for id, (_, value) in sorted(after.items()) if id.startswith("root:0.") and id[7:] != "^"]
        assert undone[-len(booked) :] == booked[::-1] if booked else True, after


@pytest.mark.parametrize("name", CRASHES)
def test_killed_at_every_transaction(zygote: Zygote, tmp_path: Path, name: str) -> None:
    """Killed after its 1st, 2nd, ... transaction and resumed where others are faster: one outcome, nothing left."""
    crash(zygote, tmp_path, name, "after")


@pytest.mark.campaign
@pytest.mark.parametrize("name", CRASHES)
def test_killed_before_every_transaction(zygote: Zygote, tmp_path: Path, name: str) -> None:
    """The same, with the last transaction of the first run lost."""
    for _ in range(5):
        crash(zygote, tmp_path, name, "before")


def crash(zygote: Zygote, folder: Path, case: str, when: str) -> None:
    name, arg, first, second = CRASHES[case]
    for start in itertools.count(1, 4):
        points = range(start, start + 4)
        paths = {n: (folder / f"{when}{n}-{len(list(folder.iterdir()))}.db", folder / f"{when}{n}.txt") for n in points}
        for _, ledger in paths.values():
            ledger.unlink(missing_ok=True)
        runs = [zygote.spawn("racers:mortal", *map(str, paths[n]), name, arg, first, n, when) for n in points]
        ended = [run.wait() for run in runs]
        assert set(ended) <= {0, -9}
        before = {n: stored(paths[n][0]) for n in points}
        resumed = {n: zygote.spawn("racers:mortal", *map(str, paths[n]), name, arg, second, 0, when) for n in points}
        for n in points:
            result = resumed[n].result()
            check(name, result, before[n], paths[n][0], written(paths[n][1]))
        if 0 in ended:
            assert start > 4
            return


@pytest.mark.parametrize("record", ["dasync.race", "dasync.all", "dasync.cut"])
def test_without_its_record_a_replay_goes_wrong(zygote: Zygote, tmp_path: Path, record: str) -> None:
    """The ablation: killed when something has followed from a decision, it does not resume without the record."""
    name, order, die_at = {
        "dasync.race": ("keeps_losers", ["b", "a"], "leaf"),
        "dasync.all": ("keeps_failures", ["y", "x"], "leaf"),
        "dasync.cut": ("cuts_off", ["cut", "slow"], "unbook"),
    }[record]

    def resume(forget: str) -> str:
        path, ledger = tmp_path / f"{forget}.db", tmp_path / f"{forget}.txt"
        args = ("racers:mortal", str(path), str(ledger), name, None)
        assert zygote.spawn(*args, order, die_at, "after", forget).wait() == -9
        return str(zygote.spawn(*args, [], 0, "after", forget).result())

    assert "diverged" not in resume("nothing")
    assert "NonDeterminismError: replay of 'root' diverged" in resume(record)


# -- ordinary asyncio around promises


def test_a_task_group_around_remote_invocations(world: World) -> None:
    """It waits for all; when one fails, it raises a group, and the promises of the others end with the body."""
    store = MemoryStore(SystemClock()) if world.store == "memory:" else world.store

    @dasync.function
    async def groups(bad: bool) -> list[str]:
        far: Any = [echo.options(on="far")("a"), (boom if bad else echo).options(on="far")("b")]
        far += [never.options(on="far")()] if bad else []
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one) for one in far]
        return [task.result() for task in tasks]

    async def main() -> None:
        async with dasync.EventLoop(store, group="far"), dasync.EventLoop(store, durability="process") as here:
            assert await here.invoke(groups, False) == ["a", "b"]
            with pytest.raises(ExceptionGroup) as caught:
                await here.invoke(groups.options(id="bad"), True)
            assert [str(error) for error in caught.value.exceptions] == ["b"]
            found = await states(here)
            assert (found["bad:1"], found["bad:2"]) == ("rejected", "canceled")

    world.run(main())


def test_a_timeout_loses_no_promise(world: World) -> None:
    """`asyncio.timeout` around a remote invocation ends the await: the promise goes on, by handle and by id."""
    store = MemoryStore(SystemClock()) if world.store == "memory:" else world.store

    @dasync.function
    async def impatient() -> list[str]:
        far = gated.options(on="far")("gate")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await far
        await dasync.promise(id="go on")
        return [await far, await loops[0].get(far.id, str)]

    loops: list[dasync.EventLoop] = []

    async def main() -> None:
        async with dasync.EventLoop(store, group="far"), dasync.EventLoop(store, durability="process") as here:
            loops[:] = [here]
            promise = here.invoke(impatient.options(id="i"))
            await until(lambda: "go on" in here.awaiters)
            assert (await states(here))["i:0"] == "pending"
            await until_rows(here, lambda found: "gate" in found.promises)
            await settle(here, "gate", "g")
            await settle(here, "go on", None)
            assert await promise == ["g", "g"]

    world.run(main())


def many_awaiters(world: World, count: int) -> None:
    """`count` promises, each awaited by `count` asyncio tasks."""
    resumed = [0] * count

    async def main(loop: dasync.EventLoop) -> None:
        promises = [dasync.promise(int) for _ in range(count)]

        async def wait(number: int) -> None:
            one = await promises[number]
            resumed[number] += one

        tasks = [asyncio.create_task(wait(number)) for number in range(count) for _ in range(count)]
        await asyncio.gather(*[promise.created() for promise in promises])
        assert loop.snapshot().awaiters == count * count
        await asyncio.gather(*[promise.resolve(1) for promise in promises])
        await asyncio.wait(tasks)
        assert loop.snapshot().awaiters == len(loop.awaiters) == 0

    world.play(main, lease=600)
    assert resumed == [count] * count


def test_every_awaiter_is_resumed_once(memory: World) -> None:
    """100 promises with 100 awaiters each: all of them go on, none twice, and none is left on the books."""
    many_awaiters(memory, 100)


@pytest.mark.campaign
def test_every_one_of_a_million_awaiters_is_resumed_once(memory: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """1,000 promises with 1,000 awaiters each."""
    monkeypatch.setattr("play.PATIENCE_S", 300)
    many_awaiters(memory, 1_000)


# -- linking


def test_a_function_that_gives_a_promise_back_links(world: World) -> None:
    """Its promise settles as that one does: with the value, the error, or canceled for the same reason."""

    @dasync.function
    async def links(to: str) -> dasync.Promise[str]:
        match to:
            case "value":
                return echo("linked")
            case "error":
                return boom("linked")
            case "link":
                return links("value")
            case "external":
                return dasync.promise(str, id="external")
        child = never()
        await child.cancel("why")
        return child

    async def main(loop: dasync.EventLoop) -> None:
        value: str = await links("value")
        assert [value, await links("link")] == ["linked", "linked"]
        with pytest.raises(ValueError, match="linked"):
            await links("error")
        canceled = links("canceled")
        with pytest.raises(dasync.PromiseCanceled, match="why"):
            await canceled
        assert canceled.state is State.CANCELED
        external = links("external")
        await until(lambda: "external" in loop.awaiters)
        await settle(loop, "external", "e")
        assert await external == "e"

    world.play(main)


def test_canceling_a_link_cancels_a_child_and_no_root(world: World) -> None:
    """What it is linked to ends with it where it is a child, and goes on where it stands alone."""

    @dasync.function
    async def links(id: str | None) -> dasync.Promise[str]:
        return never() if id is None else never.options(id=id)()

    async def main(loop: dasync.EventLoop) -> None:
        for id, linked, state in ((None, "a:0", "canceled"), ("root", "root", "pending")):
            promise = links.options(id="a" if id is None else "b")(id)
            await until(lambda linked=linked: linked in loop.awaiters)
            await promise.cancel()
            assert (await states(loop))[linked] == state

    world.play(main)


def test_a_link_to_itself_is_refused(memory: World) -> None:
    """It would wait for itself for ever."""

    @dasync.function
    async def circle() -> dasync.Promise[object]:
        return loops[0].get("circle")

    loops: list[dasync.EventLoop] = []

    async def main(loop: dasync.EventLoop) -> None:
        loops[:] = [loop]
        with pytest.raises(ValueError, match="gave back its own promise"):
            await circle.options(id="circle")()

    memory.play(main)


# -- structure


def test_a_detached_child_is_on_its_own(world: World) -> None:
    """Its parent neither waits for it nor fails with it; it can be awaited by its id, and made again by a replay."""

    @dasync.function
    async def parent() -> str:
        boom.options(detached=True)()
        return gated.options(detached=True)("gate").id

    async def main(loop: dasync.EventLoop) -> None:
        id = await parent.options(id="p")()
        assert id == "p:1"
        await settle(loop, "gate", "g")
        assert await loop.get(id, str) == "g"
        assert (await rows(loop)).promises[id].creator is None

    world.play(main)


def test_a_failure_cancels_before_it_rejects(world: World) -> None:
    """On an error the pending children are canceled first, wherever they run; then the promise rejects."""

    @dasync.function
    async def fails() -> None:
        never.options(on="nobody")()
        local = never()
        await until(lambda: "f:1.0" in loops[0].awaiters)
        assert not local.done()
        raise ValueError("now")

    loops: list[dasync.EventLoop] = []

    async def main(loop: dasync.EventLoop) -> None:
        loops[:] = [loop]
        with pytest.raises(ValueError, match="now"):
            await fails.options(id="f")()
        found = (await rows(loop)).promises
        assert [found[id].state.value for id in ("f:0", "f:1", "f")] == ["canceled", "canceled", "rejected"]
        assert max(found["f:0"].settled_at or 0, found["f:1"].settled_at or 0) <= (found["f"].settled_at or 0)

    world.play(main)


def test_a_deadline_cascades(memory: World) -> None:
    """No child outlives its parent's deadline, whatever its own says; its code is interrupted, also below."""
    clock, ended = FakeClock(), []

    @dasync.function
    async def below(depth: int) -> None:
        try:
            if depth:
                await below.options(timeout=3600)(depth - 1)
            await asyncio.Event().wait()
        finally:
            ended.append(depth)

    async def main(loop: dasync.EventLoop) -> None:
        promise = below.options(id="d", timeout=60)(2)
        await until(lambda: {"d:0", "d:0.0"} <= set(loop.promises))
        await loop.get("d:0.0").created()
        found = (await rows(loop)).promises
        assert len({found[id].timeout_at for id in ("d", "d:0", "d:0.0")}) == 1
        clock.advance(61)
        with pytest.raises(dasync.PromiseTimedOut):
            await promise
        await until(lambda: sorted(ended) == [0, 1, 2])
        assert set((await states(loop)).values()) == {"timedout"}

    memory.play(main, clock=clock, lease=3600)


# -- resolve and reject


def test_settling_twice(world: World) -> None:
    """The same outcome again is nothing; another one is a conflict, and the first stands."""

    async def main(loop: dasync.EventLoop) -> None:
        promise = dasync.promise(int, id="p")
        await promise.resolve(1)
        await promise.resolve(1)
        for other in (promise.resolve(2), promise.reject(ValueError("no")), loop.get("p", int).resolve(3)):
            with pytest.raises(dasync.PromiseConflict):
                await other
        assert await promise == 1
        rejected = dasync.promise(int, id="r")
        await rejected.reject(ValueError("no"))
        await rejected.reject(ValueError("no"))
        with pytest.raises(dasync.PromiseConflict, match="rejected already"):
            await rejected.reject(KeyError("other"))
        with pytest.raises(ValueError, match="no"):
            await rejected

    world.play(main)


def test_what_cannot_be_settled_by_hand(world: World) -> None:
    """A function's promise, a timer, one that is canceled or past its deadline, one that is not there."""

    async def main(loop: dasync.EventLoop) -> None:
        canceled, late = dasync.promise(), dasync.promise(timeout=0.001)
        await canceled.cancel()
        await dasync.all_settled(late)
        for promise in (never(), dasync.sleep(60), canceled, late):
            with pytest.raises(dasync.PromiseConflict):
                await promise.resolve()
        with pytest.raises(dasync.PromiseNotFound):
            await loop.get("nowhere").resolve(1)
        with pytest.raises(TypeError, match="reject takes an exception"):
            await dasync.promise().reject("no")  # type: ignore[arg-type]  # the point

    world.play(main)


def test_an_execution_settles_what_it_made(world: World) -> None:
    """Inside an execution too, and again in a replay: who awaits it in another task of it goes on."""

    @dasync.function
    async def settles() -> str:
        promise = dasync.promise(str)
        async with asyncio.TaskGroup() as group:
            waits = group.create_task(promise)
            await promise.resolve("mine")
        return waits.result() + await dasync.promise(str, id="gate")

    async def main(loop: dasync.EventLoop) -> None:
        settles.options(id="s")()
        await until(lambda: "gate" in loop.awaiters)

    async def again(loop: dasync.EventLoop) -> None:
        await settle(loop, "gate", ", twice")
        assert await settles.options(id="s")() == "mine, twice"

    if world.store != "memory:":
        world.play(main)
        world.play(again)


def test_the_racers_are_what_runs(memory: World) -> None:
    """The programs that are killed above do what they say when nobody kills them."""

    async def main(loop: dasync.EventLoop) -> None:
        racers.plan.__init__("/dev/null", ["b", "a"])  # type: ignore[misc]  # this process's own
        assert await racers.race(None) == ["b", "B"]

    memory.play(main)
