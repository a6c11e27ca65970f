"""Programs that race and cancel, in processes of their own: what `Zygote.spawn` runs, beside those of `programs.py`."""

from __future__ import annotations

import asyncio
import os

from programs import MortalStore, leaf, plan, worker

import dasync

__all__ = ["worker"]  # what else is spawned from here


@dasync.function
async def runner(name: str) -> str:
    """Come in when the plan says so."""
    plan.write(f"run {name} {os.getpid()}")
    try:
        await plan.turn_of(name)
    except asyncio.CancelledError:
        plan.write(f"canceled {name}")
        raise
    plan.let_pass(name)
    return name


@dasync.function
async def race(where: str | None) -> list[str]:
    one = runner if where is None else runner.options(on=where)
    winner = await dasync.race(one("a"), one("b"))
    plan.reach("decided")
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
async def falls(name: str) -> str:
    await plan.turn_of(name)
    plan.let_pass(name)
    if name in "xy":
        raise OSError(f"{name} fell")
    return name


@dasync.function
async def book(what: str) -> str:
    plan.write(f"book {what}")
    return what


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


def mortal(path: str, ledger: str, name: str, arg: object, order: list[str], die_at: int, when: str) -> object:
    """Run or resume the function `name` with its steps in `order`, up to the n-th transaction."""
    plan.__init__(ledger, order)  # type: ignore[misc]  # this process's own

    async def main() -> object:
        async with dasync.EventLoop(MortalStore(path, die_at, when), poll=0.05):
            try:
                return await globals()[name].options(id="root")(arg)
            except (dasync.NonDeterminismError, OSError) as error:
                return f"{type(error).__name__}: {error}"

    return asyncio.run(main())
