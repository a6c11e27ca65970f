"""wait and as_completed: what came when is the same in every run, and written only where the turns do not tell it."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from clocks import FakeClock
from play import World, rows, settle, until
from test_replay import stored, written
from zygote import Zygote, zygote_of

import dasync


@pytest.fixture(scope="module")
def zygote() -> Iterator[Zygote]:
    yield from zygote_of("racers", "uuid")


@dasync.function
async def gated(gate: str) -> str:
    value = await dasync.promise(str, id=gate)
    if value == "fail":
        raise ValueError(gate)
    return value


@dasync.function
async def wait_for(gates: list[str], return_when: str, timeout: float | None) -> list[list[str]]:
    return await waited(gates, return_when, timeout)


async def waited(gates: list[str], return_when: str, timeout: float | None) -> list[list[str]]:
    made = {gated(gate): gate for gate in gates}
    done, pending = await dasync.wait(made, return_when=return_when, timeout=timeout)
    assert [promise.done() for promise in (*done, *pending)] == [True] * len(done) + [False] * len(pending)
    return [[made[promise] for promise in done], [made[promise] for promise in pending]]


async def decisions(loop: dasync.EventLoop) -> list[str]:
    """What was recorded as decided."""
    found = (await rows(loop)).promises.values()
    return [record.function for record in found if record.function in ("dasync.wait", "dasync.as_completed")]


# Which gates are opened in which order, and what becomes of "a", "b" and "c".
WAITS: dict[str, tuple[str, dict[str, str], list[list[str]], int]] = {
    "all": (asyncio.ALL_COMPLETED, {"b": "v", "c": "fail", "a": "v"}, [["b", "c", "a"], []], 0),
    "first": (asyncio.FIRST_COMPLETED, {"b": "v"}, [["b"], ["a", "c"]], 1),
    "first, a failure": (asyncio.FIRST_COMPLETED, {"c": "fail"}, [["c"], ["a", "b"]], 1),
    "exception": (asyncio.FIRST_EXCEPTION, {"c": "v", "b": "fail"}, [["c", "b"], ["a"]], 1),
    "no exception": (asyncio.FIRST_EXCEPTION, {"c": "v", "b": "v", "a": "v"}, [["c", "b", "a"], []], 0),
}


@pytest.mark.parametrize("inside", [True, False], ids=["inside", "outside"])
@pytest.mark.parametrize("case", WAITS)
def test_wait_gives_what_is_done_as_it_came(world: World, case: str, inside: bool) -> None:
    """As asyncio.wait, in order, and nothing is raised; a row says what was done where the turns do not tell it."""
    return_when, opened, wanted, recorded = WAITS[case]

    async def main(loop: dasync.EventLoop) -> None:
        how: Any = wait_for if inside else waited
        waiting = asyncio.ensure_future(how(list("abc"), return_when, None))
        await until(lambda: set("abc") <= set(loop.awaiters))
        for gate, value in opened.items():
            waits = len(loop.awaiters)
            await settle(loop, gate, value)
            await until(lambda waits=waits: waiting.done() or len(loop.awaiters) <= waits - 2)  # the gate, who it kept
        assert await waiting == wanted
        assert await decisions(loop) == ["dasync.wait"] * recorded * inside

    world.play(main)


def test_a_timeout_is_a_durable_timer(memory: World) -> None:
    """Inside an execution: half a day on a handed-in clock; it is canceled where the promises came first."""
    clock = FakeClock()

    async def main(loop: dasync.EventLoop) -> None:
        late = wait_for.options(id="late")(["a", "b"], asyncio.ALL_COMPLETED, 12 * 3600)
        await until(lambda: {"a", "b", "late:3"} <= set(loop.awaiters))
        await settle(loop, "b", "v")
        await until(lambda: "b" not in loop.awaiters)
        clock.advance(12 * 3600 - 1)
        await asyncio.sleep(0.01)
        assert not late.done()
        clock.advance(2)
        assert await late == [["b"], ["a"]]
        soon = wait_for.options(id="soon")(["c"], asyncio.ALL_COMPLETED, 12 * 3600)
        await until(lambda: {"c", "soon:2"} <= set(loop.awaiters))
        await settle(loop, "c", "v")
        assert await soon == [["c"], []]
        found = (await rows(loop)).promises
        assert [found[id].state.value for id in ("late:3", "soon:2")] == ["resolved", "canceled"]
        assert [found["late:2"].function, "soon:1" in found] == ["dasync.wait", False]
        assert found["late:0"].state.value == "canceled"  # nobody awaited it any more

    memory.play(main, clock=clock, lease=24 * 3600)


def test_a_timeout_outside(memory: World) -> None:
    """Outside executions it is asyncio's, and nothing is canceled by it."""

    async def main(loop: dasync.EventLoop) -> None:
        slow, quick = gated("slow"), dasync.promise(str, id="quick")
        await quick.resolve("q")
        assert await dasync.wait([slow, quick], timeout=timedelta(seconds=0.01)) == ([quick], [slow])
        assert await dasync.wait([slow], timeout=0) == ([], [slow])
        await settle(loop, "slow", "s")
        assert await dasync.wait([slow], timeout=60) == ([slow], [])

    memory.play(main)


def test_one_promise_leaves_no_choice(memory: World) -> None:
    """Nothing is recorded of it; of none, nothing is done; one that is given twice counts once."""

    @dasync.function
    async def waits() -> bool:
        one, two = gated("a"), gated("b")
        assert await dasync.wait([]) == ([], [])
        assert await dasync.wait(iter([one, one]), return_when=asyncio.FIRST_COMPLETED) == ([one], [])
        assert [promise async for promise in dasync.as_completed(two, two)] == [two]
        assert [promise async for promise in dasync.as_completed()] == []
        return True

    async def main(loop: dasync.EventLoop) -> None:
        promise = waits()
        await until(lambda: {"a", "b"} <= set(loop.awaiters))
        await settle(loop, "b", "v")
        await settle(loop, "a", "v")
        assert await promise
        assert await decisions(loop) == []

    memory.play(main)


@pytest.mark.parametrize("inside", [True, False], ids=["inside", "outside"])
def test_as_completed_goes_by_when_they_settled(world: World, inside: bool) -> None:
    """Those that settle while the loop is at work too: by when they did, not by their places; nothing is recorded."""

    async def order(loop: dasync.EventLoop) -> list[str]:
        made = {gated(gate): gate for gate in "abcd"}
        ones.update((gate, promise) for promise, gate in made.items())
        came = []
        async for promise in dasync.as_completed(*made):
            assert promise.done()
            came.append(made[promise])
            await until(lambda: all(one.done() for one in made))
        return came

    ones: dict[str, dasync.Promise[str]] = {}

    @dasync.function
    async def ordered() -> list[str]:
        return await order(loops[0])

    loops: list[dasync.EventLoop] = []

    async def main(loop: dasync.EventLoop) -> None:
        loops[:] = [loop]
        waiting = asyncio.ensure_future(ordered()) if inside else asyncio.create_task(order(loop))
        await until(lambda: set("abcd") <= set(loop.awaiters))
        for gate in "cdba":
            await settle(loop, gate, "fail" if gate == "d" else "v")
            await until(ones[gate].done)
        assert await waiting == ["c", "d", "b", "a"]
        assert await decisions(loop) == []

    world.play(main)


def test_promises_of_others_are_recorded(memory: World) -> None:
    """A root among them comes when this process hears of it, which no turn tells: each choice is one row."""

    @dasync.function
    async def mixed() -> list[int]:
        ones = [gated("a"), gated.options(id="root")("b"), gated("c")]
        came = [ones.index(one) async for one in dasync.as_completed(*ones)]
        done, pending = await dasync.wait(ones)
        assert pending == []
        return came + [ones.index(one) for one in done]

    async def main(loop: dasync.EventLoop) -> None:
        promise = mixed()
        await until(lambda: set("abc") <= set(loop.awaiters))
        for gate in "cba":
            waits = len(loop.awaiters)
            await settle(loop, gate, "v")
            await until(lambda waits=waits: promise.done() or len(loop.awaiters) <= waits - 2)
        assert await promise == [2, 1, 0, 2, 1, 0]
        assert await decisions(loop) == ["dasync.as_completed", "dasync.as_completed", "dasync.wait"]

    memory.play(main)


def test_what_cannot_be_had_is_done(memory: World) -> None:
    """An id in other use is an outcome that is given like any, and raised where it is asked for."""

    @dasync.function
    async def uses() -> int:
        refused = gated.options(id="taken")("other")
        done, pending = await dasync.wait([refused, dasync.promise()], return_when=asyncio.FIRST_EXCEPTION)
        assert (done, len(pending)) == ([refused], 1)
        assert [one async for one in dasync.as_completed(refused)] == [refused]
        with pytest.raises(dasync.PromiseConflict):
            await refused
        return 1

    async def main(loop: dasync.EventLoop) -> None:
        await gated.options(id="taken")("this").created()
        assert await uses() == 1

    memory.play(main)


@pytest.mark.parametrize("settled_before", [True, False])
def test_leaving_early_lets_the_others_end_with_the_body(memory: World, settled_before: bool) -> None:
    """What was given and nobody awaits is canceled when the body returns, whether it was waited for or not."""

    @dasync.function
    async def leaves() -> str:
        first, never, other = gated("a"), gated("never"), gated("c")
        if settled_before:
            await first
        async for promise in dasync.as_completed(first, never, other):
            return await promise
        raise AssertionError("none came")

    async def main(loop: dasync.EventLoop) -> None:
        promise = leaves.options(id="l")()
        await until(lambda: {"a", "c", "never"} <= set(loop.awaiters))
        await settle(loop, "a", "v")
        assert await promise == "v"
        found = (await rows(loop)).promises
        assert [found[f"l:{place}"].state.value for place in range(3)] == ["resolved", "canceled", "canceled"]

    memory.play(main)


BAD: dict[str, tuple[Callable[[Any], Any], type[Exception], str]] = {
    "a set": (lambda one: dasync.wait({one}), TypeError, "a list, not a set"),
    "one promise": (lambda one: dasync.wait(one), TypeError, r"as wait\(\[f\(1\), f\(2\)\]\), not a Promise"),
    "no promises": (lambda one: dasync.wait([one, 1]), TypeError, "not a int"),
    "another end": (lambda one: dasync.wait([one], return_when="SOON"), ValueError, "FIRST_EXCEPTION, not 'SOON'"),
    "no time": (lambda one: dasync.wait([one], timeout=-1), ValueError, "timeout is 0 or more seconds"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_use_is_refused(memory: World, case: str) -> None:
    """It is said at once what is wrong."""
    use, error, said = BAD[case]

    async def main(loop: dasync.EventLoop) -> None:
        with pytest.raises(error, match=said):
            await use(dasync.promise())
        with pytest.raises(TypeError, match=r"as_completed takes promises.*not a list"):
            dasync.as_completed([dasync.promise()])  # type: ignore[call-overload]  # the point

    memory.play(main)


# -- through crashes

# A program, where its steps run, their order in the first run, and in the run that resumes it.
CRASHES: dict[str, tuple[str, str | None, list[str], list[str]]] = {
    "first": ("first_done", None, ["b", "a", "c"], ["c", "b", "a"]),
    "first, dispatched": ("first_done", "default", ["b", "a", "c"], ["c", "b", "a"]),
    "exception": ("until_failure", None, ["a", "y", "x"], ["x", "y", "a"]),
    "timeout": ("in_time", None, ["b", "a", "c"], ["c", "b", "a"]),
    "as completed": ("as_they_come", None, ["b", "a", "c"], ["c", "b", "a"]),
    "as completed, dispatched": ("as_they_come", "default", ["b", "a", "c"], ["c", "b", "a"]),
    "as completed, a root": ("as_roots_come", None, ["b", "a", "c"], ["c", "b", "a"]),
}

NAMES = {name: "xay" if name == "until_failure" else "abc" for name, *_ in CRASHES.values()}


@pytest.mark.parametrize("case", ["first", "timeout", "as completed, a root"])
def test_killed_at_every_transaction(zygote: Zygote, tmp_path: Path, case: str) -> None:
    """Killed after its 1st, 2nd, ... transaction and resumed where others are faster: what followed stays so."""
    crash(zygote, tmp_path, case, "after")


@pytest.mark.campaign
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("case", CRASHES)
def test_killed_around_every_transaction(zygote: Zygote, tmp_path: Path, case: str, when: str) -> None:
    """The same for all of them, and with the last transaction of the first run lost."""
    crash(zygote, tmp_path, case, when)


def crash(zygote: Zygote, tmp_path: Path, case: str, when: str) -> None:
    name, where, first, second = CRASHES[case]
    for start in itertools.count(1, 4):
        points = range(start, start + 4)
        paths = {n: (tmp_path / f"{n}.db", tmp_path / f"{n}.txt") for n in points}
        runs = [zygote.spawn("racers:mortal", *map(str, paths[n]), name, where, first, n, when) for n in points]
        ended = [run.wait() for run in runs]
        assert set(ended) <= {0, -9}
        before = {n: stored(paths[n][0]) for n in points}
        resumed = {}
        for n in points:
            settled = {id for id, was in before[n].items() if was[0] != "pending"}
            left = [one for one in second if not settled & {one, f"root:{NAMES[name].index(one)}"}]
            resumed[n] = zygote.spawn("racers:mortal", *map(str, paths[n]), name, where, left, 0, when)
        for n in points:
            check(resumed[n].result(), before[n], *paths[n])
        if 0 in ended:
            assert start > 4
            return


def check(result: Any, before: dict[str, Any], path: Path, ledger: Path) -> None:
    """Each came once; what was told before is told again, first and in that order; nothing else was told."""
    came, told = result
    assert sorted(came) in (["a", "b", "c"], ["a", "x", "y"])
    assert [name.lower() for name in told] == came[: len(told)]
    after = stored(path)
    assert all(after[id] == was for id, was in before.items() if was[0] != "pending")
    assert "pending" not in {state for state, _ in after.values()}, after
    leaves = Counter(line.split()[1] for line in written(ledger) if line.startswith("leaf"))
    recorded = [value for _, value in before.values() if isinstance(value, str) and value.isupper()]
    assert set(leaves) == set(came[: len(told)])
    assert all(leaves[value.lower()] == 1 for value in recorded)
    assert sorted(recorded) == sorted(told[: len(recorded)])


def test_coming_late_changes_no_order(zygote: Zygote, tmp_path: Path) -> None:
    """A replay that looks when all is settled gives the children as they came in the first run; nothing is written."""
    args = ("racers:mortal", str(tmp_path / "s.db"), str(tmp_path / "ledger"), "comes_late", None)
    assert zygote.spawn(*args, ["c", "a", "b"], "book", "after").wait() == -9
    assert zygote.spawn(*args, [], 0, "after").result() == [["c", "a", "b"]] * 2
    assert sorted(stored(tmp_path / "s.db")) == ["root", *(f"root:{place}" for place in range(6))]


@pytest.mark.parametrize("record", ["dasync.wait", "dasync.as_completed"])
def test_without_its_record_a_replay_goes_wrong(zygote: Zygote, tmp_path: Path, record: str) -> None:
    """The ablation: coming in late, when all is settled, a replay does not resume without what was recorded."""
    name, order = {"dasync.wait": ("keeps_pending", ["b", "a"]), "dasync.as_completed": ("hears_late", ["now"])}[record]

    def resume(forget: str) -> object:
        path, ledger = tmp_path / f"{forget}.db", tmp_path / f"{forget}.txt"
        args = ("racers:mortal", str(path), str(ledger), name, None)
        assert zygote.spawn(*args, order, "book", "after", forget).wait() == -9
        return zygote.spawn(*args, [], 0, "after", forget).result()

    assert resume("nothing") == {"keeps_pending": ["b"], "hears_late": ["OWN", "EARLY"]}[name]
    assert "NonDeterminismError: replay of 'root' diverged" in str(resume(record))


def test_all_takes_no_decision_of_another_one(world: World) -> None:
    """Of two over promises that were made before both, the second one failed: a replay knows which."""

    @dasync.function
    async def twice() -> str:
        first, second = gated("a"), gated("b")
        assert await dasync.all(first, first) == ["v", "v"]
        try:
            await dasync.all(first, second)
        except ValueError as error:
            return f"{error} {await gated('c')} {await dasync.promise(str, id='gate')}"
        raise AssertionError("it failed")

    async def main(loop: dasync.EventLoop) -> None:
        twice.options(id="t")()
        for gate, value in (("a", "v"), ("b", "fail"), ("c", "v")):
            await until(lambda gate=gate: gate in loop.awaiters)
            await settle(loop, gate, value)
        await until(lambda: "gate" in loop.awaiters)
        await loop.promises["gate"].created()

    async def again(loop: dasync.EventLoop) -> None:
        await settle(loop, "gate", "!")
        assert await twice.options(id="t")() == "b v !"

    if world.store != "memory:":
        world.play(main)
        world.play(again)
