"""The report of a divergence: in what two calls differ, where, why that may be, and which line made the call."""

from __future__ import annotations

import asyncio
import datetime as dt
import math
from collections.abc import Awaitable, Callable
from pathlib import Path
from uuid import UUID

import pytest
from play import World, ask, settle, until, until_rows

import dasync
from dasync.core import codec, divergence, ids
from dasync.core.divergence import Call
from dasync.core.model import TaskState
from dasync.core.protocol import PromiseCreate

HERE = Path(__file__).name


def call(function: str = "ship", *args: object, version: int = 1, target: str | None = None) -> Call:
    return Call(function, version, codec.CallShape(()).encode(args, {}, None)[0], target, False)


def told(was: object, now: object) -> list[str]:
    return [str(one) for one in divergence.differences(was, now, "args")]


DIFFERENCES: dict[str, tuple[object, object, list[str]]] = {
    "the same": ({"a": [1, (2, {3})]}, {"a": [1, (2, {3})]}, []),
    "a NaN is itself": ([math.nan], [math.nan], []),
    "a value deep inside": (
        [{"items": [1, 2, 3, 5]}], [{"items": [1, 2, 3, 6]}], ["args[0].items[3]: 5 -> 6"],
    ),
    "several": ([1, [2, 3]], [9, [2, 4]], ["args[0]: 1 -> 9", "args[1][1]: 3 -> 4"]),
    "the type alone": ([1, 1], [True, 1.0], ["args[0]: 1 -> True", "args[1]: 1 -> 1.0"]),
    "a key that is no name": ({"a b": 1, 2: 3}, {"a b": 2, 2: 4}, ["args['a b']: 1 -> 2", "args[2]: 3 -> 4"]),
    "keys that came and went": ({"a": 1}, {"b": 2}, ["args.a: 1 -> (nothing)", "args.b: (nothing) -> 2"]),
    "the order of keys": (
        {"a": 1, "b": 2}, {"b": 2, "a": 1}, ["args.keys(): ['a', 'b'] -> ['b', 'a'], in another order"],
    ),
    "an order": (["a", "b", "c"], ["b", "c", "a"], ["args: ['a', 'b', 'c'] -> ['b', 'c', 'a'], in another order"]),
    "one more in the middle": ([1, 2, 3], [1, 9, 2, 3], ["args[1]: (nothing) -> 9"]),
    "one less at the end": ([1, 2, 3], [1, 2], ["args[2]: 3 -> (nothing)"]),
    "a set": ({1, 2}, {1, 3}, ["args: {1, 2} -> {1, 3}"]),
    "a long text": ("x" * 500, "y", [f"args: '{'x' * 75} ... -> 'y'"]),
    "a number that Python does not print": (10**5000, 1, ["args: <int> -> 1"]),
}  # fmt: skip


@pytest.mark.parametrize(("was", "now", "wanted"), DIFFERENCES.values(), ids=DIFFERENCES)
def test_values_are_compared_path_by_path(was: object, now: object, wanted: list[str]) -> None:
    """Just what differs is told, with the path to it, and both sides, neither of them at length."""
    assert told(was, now) == wanted


CAUSES: dict[str, tuple[Call, Call, str]] = {
    "another function": (call("ship"), call("pack"), "an invocation was put in, taken out or moved\n"),
    "another version": (call(version=1), call(version=2), "a deploy gave the function another version"),
    "another place": (call(target="a"), call(target="b"), "its on= was changed"),
    "a time": (
        call("f", dt.datetime(2026, 1, 1, tzinfo=dt.UTC)), call("f", dt.datetime(2026, 1, 2, tzinfo=dt.UTC)),
        "take it from dasync.now()",
    ),
    "seconds since the epoch": (call("f", 1_767_225_600.5), call("f", 1_767_225_601.5), "take it from dasync.now()"),
    "a uuid": (call("f", str(UUID(int=1))), call("f", str(UUID(int=2))), "take it from dasync.uuid4()"),
    "a random number": (call("f", 0.25), call("f", 0.75), "draw it from dasync.random()"),
    "an order": (call("f", ["a", "b"]), call("f", ["b", "a"]), "sort it before it is handed over"),
    "anything else": (call("f", "a"), call("f", "b"), "the code that makes the arguments was changed"),
}  # fmt: skip


@pytest.mark.parametrize(("was", "now", "wanted"), CAUSES.values(), ids=CAUSES)
def test_the_likely_cause_follows_from_what_differs(was: Call, now: Call, wanted: str) -> None:
    """Times, uuids, random numbers and orders are recognized; another function, version or place has other causes."""
    report = str(divergence.other_call("x", "x:0", was, now, ""))
    assert wanted in report
    assert [other for _, _, other in CAUSES.values() if other != wanted and other in report] == []


def test_a_report_is_whole() -> None:
    """Its first line says what; then the place, the line, both sides, the differences, causes, and what to do."""
    was, now = call("ship", {"items": [1, 5]}), call("ship", {"items": [1, 6]})
    error = divergence.other_call("order 42", "order 42:~1.1", was, now, "shop.py:9: await ship(basket)")
    assert str(error) == (
        "replay of 'order 42' diverged at 'order 42:~1.1': 'ship' (version 1) is recorded with other arguments\n"
        "  place     the 2nd invocation in the 2nd task of 'order 42'\n"
        "  source    shop.py:9: await ship(basket)\n"
        "  recorded  'ship' (version 1) with [{'items': [1, 5]}]\n"
        "  now       'ship' (version 1) with [{'items': [1, 6]}]\n"
        "  differs   args[0].items[1]: 5 -> 6\n"
        "  likely    the code that makes the arguments was changed, or they follow from something that is not recorded:"
        " the environment, a file, a global, another process\n"
        "  to do     nothing was settled and no result is lost; correct the code, then let it go on:"
        " `dasync resume 'order 42'`\n"
        "            where the code was changed on purpose, keep what was there for what has begun: behind"
        " `dasync.patched(\"name\")`, or as a former version of the function, `@dasync.function(version=...)`\n"
        "            or give it up: `dasync cancel 'order 42'`"
    )
    assert (error.execution, error.id, error.at) == ("order 42", "order 42:~1.1", "shop.py:9: await ship(basket)")
    assert (error.expected, error.got) == (
        "'ship' (version 1) with [{'items': [1, 5]}]", "'ship' (version 1) with [{'items': [1, 6]}]",
    )  # fmt: skip
    assert error.differences == ("args[0].items[1]: 5 -> 6",)


def test_a_report_stays_short() -> None:
    """Of many differences some are told, and how many more there are; arguments that cannot be read do no harm."""
    report = str(divergence.other_call("x", "x:0", call("f", *range(100)), call("f", *range(1, 101)), ""))
    assert "and 92 more" in report
    assert len(report) < 4_000
    unreadable = Call("f", 1, b"\xc1", None, False)
    assert "with arguments that cannot be read" in str(divergence.other_call("x", "x:0", unreadable, call("f"), ""))


PLACES = {
    "a": "the root 'a'",
    "a:0": "the 1st invocation of 'a'",
    "a:0.11": "the 12th invocation of 'a:0'",
    "a:~1.1": "the 2nd invocation in the 2nd task of 'a'",
    "a:0.~2.~0.22": "the 23rd invocation in the 1st task of the 3rd task of 'a:0'",
    "a:0.!1": "the 1st failed attempt of 'a:0'",
    "a:!2.~0.0": "the 1st invocation in the 1st task after the 2nd failure of 'a'",
    "a:0.^": "the cancel of 'a:0'",
}


@pytest.mark.parametrize("id", PLACES)
def test_a_place_in_words(id: str) -> None:
    """What an id says of the place of an invocation in its program."""
    assert ids.told(id) == PLACES[id]


# -- the line ------------------------------------------------------------------------------------------------

amounts = [1]


@dasync.function
async def pay(amount: int) -> int:
    return amount


@dasync.function
async def on_the_loop() -> object:
    async def later() -> object:
        return await dasync.all(pay(amounts[0]), dasync.promise(id="gate"))  # in a task

    return await asyncio.create_task(later())


@dasync.function
def in_a_thread() -> object:
    return [pay(amounts[0]).wait(), dasync.promise(id="gate").wait()]  # in a thread


@pytest.mark.parametrize("function", [on_the_loop, in_a_thread], ids=["loop", "thread"])
def test_the_line_of_the_call_is_told(
    tmp_path: Path, function: dasync.Function[[], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever way the call was made, in a task, through a combinator or in a thread, its own line is shown."""
    monkeypatch.setattr(f"{__name__}.amounts", [1])

    async def first(loop: dasync.EventLoop) -> None:
        function.options(id="x")()
        await until(lambda: "gate" in loop.awaiters)
        await loop.promises["gate"].created()

    async def second(loop: dasync.EventLoop) -> str:
        replayed = function.options(id="x")()  # before it is woken: who comes later is told of a halted task
        await replayed.created()
        await settle(loop, "gate", None)
        with pytest.raises(dasync.NonDeterminismError) as caught:
            await replayed
        assert caught.value.differences == ("args[0]: 1 -> 2",)
        return caught.value.at

    world = World(str(tmp_path / "s.db"), None)
    world.play(first)
    amounts[0] = 2
    at = world.play(second)
    where = "in a task" if function is on_the_loop else "in a thread"
    assert f"{HERE}:" in at
    assert at.endswith(f"# {where}")


def test_the_line_of_what_ended_early_is_where_it_is_defined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no call to show: the function is, below its decorators."""
    monkeypatch.setattr(f"{__name__}.amounts", [1])

    @dasync.function(
        name="shrinks",
    )
    async def shrinks() -> None:
        for amount in amounts:
            await pay(amount)
        if len(amounts) == 1:
            await dasync.promise(id="gate")

    async def first(loop: dasync.EventLoop) -> None:
        shrinks.options(id="x")()
        await until(lambda: "gate" in loop.awaiters)
        await loop.promises["gate"].created()

    async def second(loop: dasync.EventLoop) -> None:
        await settle(loop, "gate", None)
        with pytest.raises(dasync.NonDeterminismError) as caught:
            await shrinks.options(id="x")()
        assert caught.value.at.endswith("async def shrinks() -> None:")
        assert (caught.value.id, caught.value.got) == ("x:0", "it ended")

    world = World(str(tmp_path / "s.db"), None)
    world.play(first)
    amounts.clear()
    world.play(second)


@pytest.mark.parametrize("choose", [dasync.race, dasync.any], ids=["race", "any"])
def test_a_choice_among_others_diverges(
    tmp_path: Path, choose: Callable[..., Awaitable[object]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A choice is recorded by its place among so many promises: among more or fewer it means nothing."""
    monkeypatch.setattr(f"{__name__}.amounts", [1, 2, 3])

    @dasync.function(name="chooses")
    async def chooses() -> None:
        gates = [dasync.promise(id=f"gate {amount}") for amount in (1, 2, 3)]
        await choose(*gates[: len(amounts)])
        await dasync.promise(id="last gate")

    async def first(loop: dasync.EventLoop) -> None:
        chooses.options(id="x")()
        await until(lambda: "gate 3" in loop.awaiters)
        await settle(loop, "gate 3", None)
        await until(lambda: "last gate" in loop.awaiters)
        await loop.promises["last gate"].created()

    async def second(loop: dasync.EventLoop) -> None:
        await settle(loop, "last gate", None)
        with pytest.raises(dasync.NonDeterminismError, match="is recorded with other arguments") as caught:
            await chooses.options(id="x")()
        assert caught.value.differences == ("args[0]: 3 -> 2",)

    world = World(str(tmp_path / "s.db"), None)
    world.play(first)
    amounts.pop()
    world.play(second)


def test_arguments_that_cannot_be_read_halt_with_a_reason(memory: World) -> None:
    """A task that no code here can begin keeps why."""

    async def main(loop: dasync.EventLoop) -> None:
        await ask(loop, PromiseCreate("bad", "pay", 1, b"\xc1", "default"))
        found = await until_rows(loop, lambda found: found.tasks["bad"].state is TaskState.HALTED)
        assert found.tasks["bad"].reason.startswith("'bad' cannot run: ")

    memory.play(main)
