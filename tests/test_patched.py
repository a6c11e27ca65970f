"""Code that changes under running executions: `patched`, and versions side by side."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from play import World, rows, settle, until
from test_replay import stored, written
from zygote import Zygote, zygote_of

import dasync
from dasync.core.model import TaskState


@pytest.fixture(scope="module")
def zygote() -> Iterator[Zygote]:
    yield from zygote_of("racers", "uuid")


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(str(tmp_path / "s.db"), None)


@dasync.function
async def leaf(text: str) -> str:
    return text


async def gate(id: str) -> str:
    return await dasync.promise(str, id=id)


def deploy(body: Callable[[], Any]) -> Any:
    """This code, under the name that the code before it had."""
    body.__qualname__ = body.__name__ = "program"
    return dasync.function(name="program")(body)


def run_until(world: World, body: Callable[[], Any], id: str, *open_gates: str) -> None:
    """Run the program with this code until it waits at that gate; then its process is gone."""
    program = deploy(body)

    async def main(loop: dasync.EventLoop) -> None:
        program.options(id="p")()
        for name in open_gates:
            await until(lambda name=name: name in loop.awaiters)
            await settle(loop, name, name)
        await until(lambda: id in loop.awaiters)
        await loop.promises[id].created()

    world.play(main)


def result_of(world: World, body: Callable[[], Any], waits_at: str, *open_gates: str) -> tuple[object, list[str]]:
    """What the program, which waits at that gate, gives with this code; and where a patch is recorded."""
    program, found = deploy(body), []

    async def main(loop: dasync.EventLoop) -> None:
        promise = program.options(id="p")()
        await settle(loop, waits_at, waits_at)
        for name in open_gates:
            await until(lambda name=name: name in loop.awaiters)
            await settle(loop, name, name)
        result = await promise
        places = sorted(one.id for one in (await rows(loop)).promises.values() if one.function == "dasync.patched")
        found.append((result, places))

    world.play(main)
    return found[0]  # type: ignore[no-any-return]  # what main has put there


async def old() -> list[str]:
    return [await leaf("a"), await gate("before"), await leaf("b"), await gate("after"), await leaf("c")]


async def new() -> list[str]:
    came = [await leaf("a"), await gate("before")]
    came += [await leaf("more"), await leaf("b+")] if dasync.patched("more") else [await leaf("b")]
    return [*came, await gate("after"), await leaf("c")]


OLD, NEW = ["a", "before", "b", "after", "c"], ["a", "before", "more", "b+", "after", "c"]


def test_an_execution_that_begins_with_the_change_has_it(world: World) -> None:
    """True, recorded at its place, and so in every replay."""
    run_until(world, new, "after", "before")
    assert result_of(world, new, "after") == (NEW, ["p:1"])


def test_an_execution_that_is_past_it_has_not(world: World) -> None:
    """False, at no place: what is recorded is found where it was; nothing is recorded of the change."""
    run_until(world, old, "after", "before")
    assert result_of(world, new, "after") == (OLD, [])


def test_an_execution_that_is_not_yet_there_has_it(world: World) -> None:
    """One that began with the old code and has done nothing beyond that place goes on with the new."""
    run_until(world, old, "before")
    assert result_of(world, new, "before", "after") == (NEW, ["p:1"])


def test_without_the_patch_the_change_diverges(world: World) -> None:
    """The ablation: the same change by itself comes to something else than is recorded."""

    async def changed() -> list[str]:
        return [await leaf("a"), await gate("before"), await leaf("more"), await leaf("b+")]

    run_until(world, old, "after", "before")
    with pytest.raises(dasync.NonDeterminismError, match="diverged at 'p:1'"):
        result_of(world, changed, "after")


def test_the_answer_to_one_name_stays_the_same(world: World) -> None:
    """In a loop that an execution is in the middle of it is False to the end; in a new one True, recorded once."""

    async def loops() -> list[str]:
        return [f"{await leaf(str(n))} {await gate(str(n))}" for n in range(3)]

    async def changed() -> list[str]:
        return [f"{await leaf(str(n))} {await gate(str(n))} {dasync.patched('x')}" for n in range(3)]

    run_until(world, loops, "1", "0")
    assert result_of(world, changed, "1", "2") == (["0 0 False", "1 1 False", "2 2 False"], [])
    fresh = World(f"{world.store}2", None)
    run_until(fresh, changed, "1", "0")
    assert result_of(fresh, changed, "1", "2") == (["0 0 True", "1 1 True", "2 2 True"], ["p:1"])


@pytest.mark.parametrize("second_first", [False, True])
def test_whichever_branch_comes_first(world: World, second_first: bool) -> None:
    """Two tasks come to one change, in another order in the replay: one answer, and every place is as it was."""
    slow = [0.0, 0.03]

    async def branch(number: int) -> list[str]:
        await asyncio.sleep(slow[number])
        text = f"{number} {dasync.patched('x')}"
        return [await leaf(text), await leaf(text)]

    async def changed() -> list[list[str]]:
        both = await asyncio.gather(branch(0), branch(1))
        return [*both, [await gate("end")]]

    run_until(world, changed, "end")
    if second_first:
        slow.reverse()
    wanted = [["0 True"] * 2, ["1 True"] * 2, ["end"]]
    assert result_of(world, changed, "end") == (wanted, ["p:~0.0"])


def test_a_patch_before_an_older_one(world: World) -> None:
    """An execution that has recorded the one after it is past it."""

    async def later() -> list[object]:
        return [await leaf("a"), dasync.patched("older"), await gate("end")]

    async def earlier() -> list[object]:
        return [await leaf("a"), dasync.patched("newer"), dasync.patched("older"), await gate("end")]

    run_until(world, later, "end")
    assert result_of(world, earlier, "end") == (["a", False, True, "end"], ["p:1"])


def test_a_patch_after_a_recorded_time(world: World) -> None:
    """A decision on record says as well that an earlier run has gone past."""

    async def stamps() -> list[object]:
        return [dasync.now().year > 2000, await asyncio.sleep(0.05), await gate("end")]

    async def changed() -> list[object]:
        return [dasync.patched("x"), dasync.now().year > 2000, await gate("end")]

    run_until(world, stamps, "end")
    assert result_of(world, changed, "end") == ([False, True, "end"], [])


def test_in_a_function_that_is_not_async(world: World) -> None:
    """In a thread it is answered as elsewhere."""

    def blocks() -> list[object]:
        return [leaf("a").wait(), dasync.promise(str, id="end").wait()]

    def changed() -> list[object]:
        return [dasync.patched("x"), leaf("a").wait(), dasync.promise(str, id="end").wait()]

    run_until(world, blocks, "end")
    assert result_of(world, changed, "end") == ([False, "a", "end"], [])
    fresh = World(f"{world.store}2", None)
    run_until(fresh, changed, "end")
    assert result_of(fresh, changed, "end") == ([True, "a", "end"], ["p:0"])


def test_outside_executions_the_code_is_new(memory: World) -> None:
    """In a program, in a function as written, and without any asyncio loop; but no callback has an answer."""
    told: list[BaseException] = []

    def call_back() -> None:
        try:
            dasync.patched("x")
        except dasync.NoEventLoop as error:
            told.append(error)

    @dasync.function
    async def calls_back() -> None:
        asyncio.get_running_loop().call_soon(call_back)
        await until(lambda: told)

    async def main(loop: dasync.EventLoop) -> None:
        assert dasync.patched("x")
        await calls_back()

    memory.play(main)
    assert "such a call has no place in the program" in str(told[0])
    assert asyncio.run(calls_as_written())
    assert dasync.patched("x")


async def calls_as_written() -> bool:
    return await asks.fn()


@dasync.function
async def asks() -> bool:
    return dasync.patched("x")


@pytest.mark.parametrize("name", ["", "x" * 257, "a\nb", 7])
def test_names_are_checked(name: Any) -> None:
    """It is kept with the execution: 1 to 256 printable characters."""
    with pytest.raises((TypeError, ValueError), match="the name of a patch is"):
        dasync.patched(name)


# -- through crashes


def test_killed_at_every_transaction_of_the_old_code(zygote: Zygote, tmp_path: Path) -> None:
    """Killed with the old code at its 1st, 2nd, ... transaction, killed again with the new one, and resumed: all of it
    is old or all of it is new, as the first invocation behind the change was on record or not."""
    for start in itertools.count(1, 4):
        points = range(start, start + 4)
        args = {n: ("racers:mortal", str(tmp_path / f"{n}.db"), str(tmp_path / f"{n}.txt"), "changes") for n in points}
        first = [zygote.spawn(*args[n], None, ["old"], n, "after") for n in points]
        ended = [run.wait() for run in first]
        before = {n: stored(tmp_path / f"{n}.db") for n in points}
        second = [zygote.spawn(*args[n], None, [], 3, "after") for n in points]
        assert {run.wait() for run in [*first, *second]} <= {0, -9}
        resumed = {n: zygote.spawn(*args[n], None, [], 0, "after") for n in points}
        for n in points:
            style = "old" if "root:1" in before[n] else "new"
            assert resumed[n].result() == ["FIRST", style, f"{style} a", f"{style} b"], n
            booked = [line for line in written(tmp_path / f"{n}.txt") if line.startswith("book")]
            assert all(line.startswith("book new") for line in booked) or style == "old" or "book old" in booked, n
        if 0 in ended:
            assert start > 4
            return


def test_without_its_record_a_replay_goes_wrong(zygote: Zygote, tmp_path: Path) -> None:
    """The ablation: killed when something has followed from the change, it is taken for one that is past it."""

    def resume(forget: str) -> object:
        args = ("racers:mortal", str(tmp_path / f"{forget}.db"), str(tmp_path / f"{forget}.txt"), "changes", None)
        assert zygote.spawn(*args, [], "book", "after", forget).wait() == -9
        return zygote.spawn(*args, [], 0, "after", forget).result()

    assert resume("nothing") == ["FIRST", "new", "new a", "new b"]
    assert "NonDeterminismError: replay of 'root' diverged" in str(resume("dasync.patched"))


# -- versions


def test_an_execution_keeps_its_version(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """A process that has only the next version leaves it alone and says so once; one that has both runs each."""

    @dasync.function(name="greet")
    async def first() -> str:
        return f"version 1, {await gate('gate')}"

    @dasync.function(name="greet", version=2)
    async def second() -> str:
        return "version 2"

    async def begins(loop: dasync.EventLoop) -> None:
        first.options(id="g")()
        await until(lambda: "gate" in loop.awaiters)
        await loop.promises["gate"].created()

    async def has_the_next(loop: dasync.EventLoop) -> None:
        await settle(loop, "gate", "came")
        for _ in range(3):
            assert await second() == "version 2"
            await until(lambda: "greet" in caplog.text)
        assert (await rows(loop)).tasks["g"].state is TaskState.PENDING
        assert loop.snapshot().tasks == 0

    async def has_both(loop: dasync.EventLoop) -> None:
        assert [await loop.get("g", str), await second()] == ["version 1, came", "version 2"]
        assert await first.options(id="g")() == "version 1, came"
        with pytest.raises(dasync.PromiseConflict, match=r"'greet' \(version 1\), not 'greet' \(version 2\)"):
            await second.options(id="g")()

    with caplog.at_level(logging.WARNING, "dasync"):
        world.play(begins, functions=[first])
        world.play(has_the_next, functions=[second], poll=0.01)
        world.play(has_both)
    said = [record.getMessage() for record in caplog.records if "needs function" in record.getMessage()]
    assert len(said) == 1
    assert "a task needs function 'greet' version 1, which is not registered in this process" in said[0]


def test_a_child_keeps_its_version(world: World) -> None:
    """A caller that is replayed with the next version of what it has called diverges; with `version=1` it goes on."""

    @dasync.function(name="child")
    async def child() -> str:
        return "version 1"

    @dasync.function(name="child", version=2)
    async def next_child() -> str:
        return "version 2"

    async def before() -> list[str]:
        return [await child(), await gate("end")]

    async def pinned() -> list[str]:
        one = next_child if dasync.patched("next child") else next_child.options(version=1)
        return [await one(), await gate("end")]

    run_until(world, before, "end")
    assert result_of(world, pinned, "end") == (["version 1", "end"], [])
    fresh = World(f"{world.store}2", None)
    run_until(fresh, pinned, "end")
    assert result_of(fresh, pinned, "end") == (["version 2", "end"], ["p:0"])
