"""Programs that race and cancel, in processes of their own: what `Zygote.spawn` runs, beside those of `programs.py`."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Sequence
from typing import Any

from programs import MortalStore, leaf, plan, worker

import dasync
from dasync.core.model import State
from dasync.core.protocol import Command
from dasync.ports import Committed
from dasync.runtime.child import Decision
from dasync.stores.sqlite import SqliteStore
from dasync.system import SystemClock

__all__ = ["worker"]  # what else is spawned from here


@dasync.function
async def runner(name: str) -> str:
    """Come in when the plan says so."""
    plan.write(f"run {name} {os.getpid()}")
    try:
        await turn_of(name)
    except asyncio.CancelledError:
        plan.write(f"canceled {name}")
        raise
    return name


async def turn_of(name: str) -> None:
    """Wait for the turn of `name`, some transactions after the one before."""
    await plan.turn_of(name)
    if name in plan.order[1:]:
        await asyncio.sleep(0.01)
    plan.let_pass(name)


async def in_no_hurry() -> None:
    """Come in late in the second run, when all is settled: what came first is not to be seen any more."""
    await asyncio.sleep(0 if plan.order else 0.05)


@dasync.function
async def race(where: str | None) -> list[str]:
    one = runner if where is None else runner.options(on=where)
    winner = await dasync.race(one("a"), one("b"))
    plan.reach("decided")
    return [winner, await leaf(winner)]


@dasync.function
async def keeps_losers(_: None) -> list[str]:
    """The slower one goes on, and is recorded before what follows from the decision."""
    slow, fast = runner("a"), runner("b")
    await in_no_hurry()
    winner = await dasync.race(slow, fast, keep=True)
    await slow
    return [winner, await leaf(winner)]


@dasync.function
async def any_of(where: str | None) -> list[str]:
    one = falls if where is None else falls.options(on=where)
    winner = await dasync.any(one("x"), one("a"), one("y"), one("b"))
    return [winner, await leaf(winner)]


@dasync.function
async def none_of(where: str | None) -> list[str]:
    one = falls if where is None else falls.options(on=where)
    try:
        await dasync.any(one("x"), one("y"))
    except ExceptionGroup as group:
        return [*(str(error) for error in group.exceptions), await leaf("none")]
    raise AssertionError("one of them resolved")


@dasync.function
async def first_failure(where: str | None) -> list[str]:
    one = falls if where is None else falls.options(on=where)
    try:
        await dasync.all(one("x"), one("a"), one("y"))
    except OSError as error:
        return [str(error), await leaf(str(error))]
    raise AssertionError("none of them failed")


@dasync.function
async def keeps_failures(_: None) -> list[str]:
    """Both fail before what follows from the first failure is recorded."""
    both = falls("x"), falls("y")
    await in_no_hurry()
    try:
        await dasync.all(*both)
    except OSError as error:
        await dasync.all_settled(*both)
        return [str(error), await leaf(str(error))]
    raise AssertionError("none of them failed")


@dasync.function
async def falls(name: str) -> str:
    await turn_of(name)
    if name in "xy":
        raise OSError(f"{name} fell")
    return name


@dasync.function
async def first_done(where: str | None) -> list[list[str]]:
    one = runner if where is None else runner.options(on=where)
    done, pending = await dasync.wait([one("a"), one("b"), one("c")], return_when=asyncio.FIRST_COMPLETED)
    first = [promise.result() for promise in done]
    told = [await leaf(name) for name in first]
    rest, _ = await dasync.wait(pending)
    return [first + [promise.result() for promise in rest], told]


@dasync.function
async def until_failure(where: str | None) -> list[list[str]]:
    one = falls if where is None else falls.options(on=where)
    done, pending = await dasync.wait([one("x"), one("a"), one("y")], return_when=asyncio.FIRST_EXCEPTION)
    came = [str(promise.exception() or promise.result())[0] for promise in done]
    told = [await leaf(name) for name in came]
    rest, _ = await dasync.wait(pending)
    return [came + [str(promise.exception() or promise.result())[0] for promise in rest], told]


@dasync.function
async def in_time(where: str | None) -> list[list[str]]:
    one = runner if where is None else runner.options(on=where)
    done, pending = await dasync.wait([one("a"), one("b"), one("c")], timeout=0.015)
    came = [promise.result() for promise in done]
    told = [await leaf(name) for name in came]
    rest, _ = await dasync.wait(pending)
    return [came + [promise.result() for promise in rest], told]


@dasync.function
async def as_they_come(where: str | None) -> list[list[str]]:
    one = runner if where is None else runner.options(on=where)
    came = [await promise async for promise in _told(dasync.as_completed(one("a"), one("b"), one("c")))]
    return [came, [name.upper() for name in came]]


@dasync.function
async def as_roots_come(_: None) -> list[list[str]]:
    """The one in the middle is no child."""
    ones = runner("a"), runner.options(id="b")("b"), runner("c")
    came = [await promise async for promise in _told(dasync.as_completed(*ones))]
    return [came, [name.upper() for name in came]]


async def _told(promises: AsyncIterator[dasync.Promise[str]]) -> AsyncIterator[dasync.Promise[str]]:
    async for promise in promises:
        assert promise.done()
        await leaf(promise.result())
        yield promise


@dasync.function
async def keeps_pending(_: None) -> list[str]:
    """The one that is pending settles before what follows from the decision is recorded."""
    slow, fast = runner("a"), runner("b")
    await in_no_hurry()
    done, _pending = await dasync.wait([slow, fast], return_when=asyncio.FIRST_COMPLETED)
    await slow
    return [await book("+".join(promise.result() for promise in done))]


@dasync.function
async def comes_late(_: None) -> list[list[str]]:
    """All of them are children, so their turns tell the order, however late this looks."""
    ones = runner("a"), runner("b"), runner("c")
    await in_no_hurry()
    came = [await book(promise.result()) async for promise in dasync.as_completed(*ones)]
    done, _pending = await dasync.wait(ones)
    return [came, [promise.result() for promise in done]]


@dasync.function
async def hears_late(_: None) -> list[str]:
    """What this process hears of last was settled first, by another execution."""
    await leaf.options(id="early")("early")
    own = leaf("own")
    await own
    early = leaf.options(id="early")("early")
    await in_no_hurry()
    return [await book(promise.result()) async for promise in dasync.as_completed(early, own)]


@dasync.function
async def book(what: str) -> str:
    plan.write(f"book {what}")
    return what


@dasync.function
async def changes(_: None) -> list[str]:
    """The code as it was, where the plan says "old", else as it was changed."""
    came = [await leaf("first")]
    style = "new" if "old" not in plan.order and dasync.patched("style") else "old"
    came.append(await book(style))
    return came + await asyncio.gather(book(f"{style} a"), book(f"{style} b"))


@dasync.function
async def unbook(what: str) -> str:
    plan.write(f"unbook {what}")
    return what


@dasync.function
async def trip(pause: float) -> None:
    """What is undone when it is canceled follows from how far it has come."""
    booked: list[str] = []
    try:
        for what in ("hotel", "train"):
            booked.append(await book(what))
            await asyncio.sleep(pause)
        plan.let_pass("booked")
        await book.options(on="nobody")("flight")
        booked.append("flight")
    finally:
        for what in reversed(booked):
            await unbook(what)


@dasync.function
async def alarm() -> str:
    await plan.turn_of("alarm")
    return "alarm"


@dasync.function
async def travels(pause: float) -> list[str]:
    going = trip(pause)
    return [str(await dasync.race(going, alarm())), await leaf("home")]


@dasync.function
async def calls_off(pause: float) -> list[str]:
    going = trip(pause)
    await plan.turn_of("alarm")
    await going.cancel("called off")
    return [going.state.value, await leaf("home")]


@dasync.function
async def insists() -> None:
    """What it waits for when it is canceled settles while it cleans up."""
    slow = runner("slow")
    try:
        await slow
        await book("never")
    finally:
        plan.let_pass("cut")
        await unbook(await slow)


@dasync.function
async def cuts_off(_: None) -> list[str]:
    going = insists()
    await asyncio.sleep(0.02)
    await going.cancel()
    return [going.state.value, await leaf("home")]


@dasync.function
async def visit(name: str) -> str:
    plan.write(f"visit {name}")
    return name


@dasync.function
async def laps(name: str, lap: int = 0) -> int:
    """A local child that starts over by itself."""
    await visit(f"{name} lap {lap}")
    return lap if lap == 1 else laps.again(name, lap + 1)


@dasync.function
async def rounds(number: int, drawn: tuple[str, ...] = ()) -> list[str]:
    """Two runs, each with two children side by side, one of them a task of its own, and a timer left behind."""
    await asyncio.gather(visit(f"{number} a"), visit.options(on="default")(f"{number} b"))
    dasync.sleep(1000)
    await laps(f"{number}")
    drawn = (*drawn, str(dasync.uuid4()))
    return list(drawn) if number == 1 else rounds.again(number + 1, drawn)


class Until(SqliteStore):
    """Kills its process once a child of that function is recorded as settled."""

    def __init__(self, path: str, function: str) -> None:
        super().__init__(path, SystemClock(), "process")
        self._function = function

    async def transact(self, commands: Sequence[Command]) -> Committed:
        committed = await super().transact(commands)
        settled = [reply.promise for reply in committed.replies if reply.promise is not None]
        if any(one.function == self._function and one.state is State.RESOLVED for one in settled):
            os.kill(os.getpid(), signal.SIGKILL)
        return committed


def mortal(
    path: str, ledger: str, name: str, arg: object, order: list[str], die_at: int | str, when: str, forget: str = ""
) -> object:
    """Run or resume the function `name` with its steps in `order`, up to the n-th transaction, or to the one that
    settles such a function. Decisions of the kind `forget` are not recorded: the ablation."""
    plan.__init__(ledger, order)  # type: ignore[misc]  # this process's own
    record = Decision.record

    def record_others(self: Any, value: object) -> None:
        if self._child.function != forget:
            record(self, value)

    Decision.record = record_others  # type: ignore[method-assign]  # this process's own

    async def main() -> object:
        store = MortalStore(path, die_at, when) if isinstance(die_at, int) else Until(path, die_at)
        async with dasync.EventLoop(store, poll=0.05):
            try:
                return await globals()[name].options(id="root")(arg)
            except (dasync.NonDeterminismError, OSError) as error:
                return f"{type(error).__name__}: {error}"

    return asyncio.run(main())
