"""Ten lines that a newcomer writes, each with what dasync says to it. README.md tells them under "When it says no"."""

from __future__ import annotations

import asyncio
import gc
import importlib
import re
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
from play import World, until
from shell import TIMEOUT_S, environment

import dasync


@dasync.function
async def double(x: int) -> int:
    return 2 * x


@dasync.function
async def takes(value: object) -> object:
    return value


@dasync.function
async def fails() -> None:
    raise ValueError("nobody listens")


@pytest.fixture
def memory() -> World:
    return World("memory:", None)


def numbers() -> Iterator[int]:
    yield 1


LINES: dict[str, tuple[Callable[[], object], type[BaseException], str]] = {
    "forgot await": (lambda: takes(double(1)), dasync.UnserializableValue, "to be awaited: did you forget `await`"),
    "a generator as an argument": (lambda: takes(numbers()), dasync.UnserializableValue, r"args\[0\] is a generator"),
    "an open file as an argument": (
        lambda: takes({"log": sys.__stdout__}), dasync.UnserializableValue,
        r"args\[0\]\['log'\] is a _io.*pass plain data",
    ),
    "a lambda as a function": (
        lambda: dasync.function(lambda x: x), TypeError, "a lambda has no name under which it could be found after",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("line", "kind", "said"), LINES.values(), ids=LINES)
def test_it_is_refused_where_it_stands(
    memory: World, line: Callable[[], object], kind: type[BaseException], said: str
) -> None:
    """By an exception at the very line, which names what is wrong and what to do."""

    async def main(loop: dasync.EventLoop) -> None:
        with pytest.raises(kind, match=said):
            line()

    memory.play(main)


def test_forgot_await_and_went_on_with_the_promise(memory: World) -> None:
    """A promise is no number, and says what it is."""

    async def main(loop: dasync.EventLoop) -> None:
        promise = double.options(id="d")(1)
        with pytest.raises(TypeError, match="'Promise' and 'int'"):
            promise + 1  # type: ignore[operator]  # the point
        assert repr(promise) == "<Promise 'd' pending>"
        await promise

    memory.play(main)


def test_forgot_await_and_never_heard_of_the_failure(memory: World, caplog: pytest.LogCaptureFixture) -> None:
    """A root that fails while nobody asks is named when its handle goes."""

    async def main(loop: dasync.EventLoop) -> None:
        promise = fails.options(id="lonely")()
        await until(promise.done)
        del promise
        gc.collect()
        assert "lonely has failed, and nobody asked for its outcome: `dasync show lonely` tells it" in caplog.text
        heard = fails.options(id="heard")()
        await until(heard.done)
        heard.exception()
        del heard
        gc.collect()
        assert "heard has failed" not in caplog.text

    memory.play(main)


def test_awaited_outside() -> None:
    """Without an EventLoop the call says which ways there are to have one."""

    async def main() -> None:
        with pytest.raises(dasync.NoEventLoop, match=r"EventLoop\(\"orders.db\"\).*dasync.run"):
            await double(1)

    asyncio.run(main())
    with pytest.raises(dasync.NoEventLoop, match=r"outside asyncio.*dasync.run\(main\)"):
        double(1)


def test_a_blocking_call(memory: World, caplog: pytest.LogCaptureFixture) -> None:
    """time.sleep in an `async def` stops everybody; while it does, it is told where, and what to write instead."""
    told_meanwhile: list[str] = []

    @dasync.function
    async def blocks(seconds: float) -> None:
        for _ in range(100):
            time.sleep(seconds / 100)  # noqa: ASYNC251  # the point
            if "stood still" in caplog.text:
                told_meanwhile.append(caplog.text)

    @dasync.function
    def may_block(seconds: float) -> None:
        time.sleep(seconds)

    async def main(loop: dasync.EventLoop) -> None:
        await may_block(1.7)
        assert "stood still" not in caplog.text
        await blocks.options(id="b")(3)
        assert re.search(
            r"the asyncio loop has stood still for 1\.0 s: .*test_a_blocking_call.<locals>.blocks of 'b' blocks it at"
            r" .*test_bad_use.py:\d+: time.sleep\(.* with plain `def`, and dasync", told_meanwhile[0],
        )  # fmt: skip
        assert caplog.text.count("stood still") == 1

    memory.play(main, poll=0.01)


def test_a_closure_is_missed_by_name(tmp_path: Path) -> None:
    """A function within a function exists once that has run: a worker that finds its task says which name it misses."""
    program = textwrap.dedent("""
        import asyncio, os, sys, dasync

        def make(rate):
            @dasync.function(name="interest")
            async def interest(x: int) -> int:
                await dasync.promise(id="gate")
                return x * rate
            return interest

        async def main():
            async with dasync.EventLoop(sys.argv[1], lease=1) as loop:
                if sys.argv[2:]:
                    await make(2).options(id="i")(21).created()
                    os._exit(0)
                else:
                    print(await asyncio.wait_for(loop.get("i", int), 2))

        asyncio.run(main())
    """)
    store = str(tmp_path / "s.db")

    def run(*more: str) -> str:
        command = [sys.executable, "-c", program, store, *more]
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, env=environment())
        return done.stdout + done.stderr

    run("make")
    said = run()
    assert "a task needs function 'interest' version 1, which is not registered in this process" in said
    assert "import the module that defines it" in said


def test_a_mutable_default() -> None:
    """It is refused at the definition: every run would share it, so a replay would see what the last run left."""
    with pytest.raises(TypeError, match=r"every run would share the list that is the default of 'seen': use None"):

        @dasync.function
        async def collects(x: int, seen: list[int] = []) -> list[int]:  # noqa: B006  # the point
            return [*seen, x]


def test_a_method() -> None:
    """What it is called on is not stored: it is refused at the definition, with what to write instead."""
    instead = "make 'ship' a function of the module, or a @staticmethod, and give it what it needs of 'self' as argum"

    with pytest.raises(TypeError, match=rf"Shop.ship is a method, .* would have no 'self': {instead}"):

        class Shop:
            @dasync.function
            async def ship(self, sku: str) -> str:
                return sku

    with pytest.raises(TypeError, match=r"Store.ship is a method"):

        class Store:
            @dasync.remote(on="warehouse")
            async def ship(self, sku: str) -> str: ...

    with pytest.raises(TypeError, match=r"Depot.make is a method, and a worker that runs it would have no 'cls'"):

        class Depot:
            @classmethod
            @dasync.function
            async def make(cls) -> None: ...


def test_what_looks_like_a_method_and_is_none(memory: World) -> None:
    """A static method, and a function within a method, need no object."""

    class Shop:
        rate = 2

        @staticmethod
        @dasync.function
        async def price(items: int) -> int:
            return 7 * items

        def seller(self) -> Callable[[int], dasync.Promise[int]]:
            rate = self.rate

            @dasync.function
            async def sell(self: int) -> int:
                return rate * self

            return sell

    async def main(loop: dasync.EventLoop) -> None:
        assert [await Shop.price(1), await Shop().price(2), await Shop().seller()(3)] == [7, 14, 6]

    memory.play(main)
    for kind in (staticmethod, classmethod):
        with pytest.raises(TypeError, match=f"not a {kind.__name__}: write @staticmethod, above @"):
            dasync.function(kind(numbers))


def test_the_same_name_twice(memory: World) -> None:
    """Two functions of one name: the EventLoop does not open, and names both places."""

    @dasync.function(name="twin")
    async def one() -> None: ...

    @dasync.function(name="twin")
    async def other() -> None: ...

    async def main(loop: dasync.EventLoop) -> None: ...

    with pytest.raises(ValueError, match=r"two functions are registered as 'twin' version 1: .*one in .*other in "):
        memory.play(main)


REDEFINED = """
import dasync

@dasync.function
async def fare() -> int:
    return 1

first = fare

@dasync.function
async def fare() -> int:
    return 2
"""


def test_a_name_that_is_given_twice_in_one_file(tmp_path: Path, memory: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first one would run as the second. What is reloaded stands there once, further down or not."""
    (tmp_path / "fares.py").write_text(REDEFINED)
    monkeypatch.syspath_prepend(tmp_path)
    fares = importlib.import_module("fares")
    with pytest.raises(ValueError, match=r"'fare' version 1: fare in .*fares.py:4 and fare in .*fares.py:10; give one"):
        memory.play(main_of(fares))
    (tmp_path / "fares.py").write_text(REDEFINED.partition("first")[0].replace("return 1", "return 1 + 1"))
    memory.play(main_of(importlib.reload(fares)))
    (tmp_path / "fares.py").write_text("\n\n" + (tmp_path / "fares.py").read_text().replace("1 + 1", "4 - 2"))
    memory.play(main_of(importlib.reload(fares)))


def main_of(fares: Any) -> Callable[[dasync.EventLoop], Coroutine[Any, Any, None]]:
    async def main(loop: dasync.EventLoop) -> None:
        assert await fares.fare() == 2

    return main


def test_run_takes_the_function_itself(recwarn: pytest.WarningsRecorder) -> None:
    """`asyncio.run(main())` is a habit."""
    async def main() -> None: ...

    with pytest.raises(TypeError, match=r"write dasync.run\(main\), not dasync.run\(main\(\)\)"):
        dasync.run(main())  # type: ignore[arg-type]  # the point
    assert not recwarn.list


def test_a_recursion_without_end(memory: World) -> None:
    """It ends where an id becomes too long, and says what it looks like."""

    @dasync.function
    async def endless(n: int) -> int:
        return await endless(n + 1)

    async def main(loop: dasync.EventLoop) -> None:
        with pytest.raises(ValueError, match=r"is nested too deeply.*is it a recursion without end"):
            await endless(0)

    memory.play(main)
