"""Promises that an execution awaits and has not made: each takes their outcomes in its own turn, and so does a replay.

That every program of the matrix comes out right with them is shown there: leaves of the kind `named` are such promises.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from play import World, rows, settle, until

import dasync
from dasync.runtime.function import SHARED
from dasync.runtime.places import Places

GATES = ("first", "second")


@dasync.function
async def notes(log: list[str]) -> list[str]:
    """Who comes when, and after both something durable."""

    async def waits(name: str) -> None:
        log.append(await dasync.promise(str, id=name))

    await asyncio.gather(*map(waits, GATES))
    await note(list(log))
    log.append(await dasync.promise(str, id="last"))
    return log


@dasync.function
async def note(log: list[str]) -> list[str]:
    return log


async def placed(loop: dasync.EventLoop, id: str) -> int:
    """How many rows keep places of shared promises in that execution."""
    found = (await rows(loop)).promises.values()
    return len([one for one in found if one.function == SHARED and one.id.startswith(f"{id}:")])


async def first_run(loop: dasync.EventLoop) -> None:
    """The second gate opens first."""
    notes.options(id="n")([])
    for name in reversed(GATES):
        await until(lambda name=name: name in loop.awaiters)  # type: ignore[misc]
        await settle(loop, name, name)
        await until(lambda name=name: name not in loop.awaiters)  # type: ignore[misc]
    await until(lambda: "last" in loop.awaiters)
    await loop.promises["last"].created()


async def replay(loop: dasync.EventLoop) -> list[str]:
    await settle(loop, "last", "last")
    return await notes.options(id="n")([])


def test_a_replay_takes_them_in_the_order_of_the_first_run(tmp_path: Path) -> None:
    """Whatever the store tells it first, and whatever it knows by now."""
    world = World(str(tmp_path / "s.db"), None)

    async def first(loop: dasync.EventLoop) -> int:
        await first_run(loop)
        return await placed(loop, "n")

    assert world.play(first) == 1
    assert world.play(replay) == ["second", "first", "last"]


def test_an_execution_takes_what_others_know_in_its_own_turn(world: World) -> None:
    """One that comes late waits as it would in a replay; nothing is recorded of those from which nothing followed."""

    @dasync.function
    async def waits() -> str:
        return await dasync.promise(str, id="gate")

    async def main(loop: dasync.EventLoop) -> list[str]:
        early = waits.options(id="early")()
        await until(lambda: "gate" in loop.awaiters)
        await settle(loop, "gate", "open")
        found = [await early, await waits.options(id="late")(), await dasync.promise(str, id="gate")]
        assert await placed(loop, "early") + await placed(loop, "late") == 0
        return found

    assert world.play(main) == ["open"] * 3


@dasync.function
async def chooses(gates: int) -> str:
    """The loser of a race is awaited no longer; something durable follows."""
    first = await dasync.race(*[dasync.promise(str, id=f"gate {gate}") for gate in range(gates)])
    await note([first])
    return await dasync.promise(str, id="last")


def test_what_is_awaited_no_longer_is_not_looked_for(tmp_path: Path) -> None:
    """Settled after the race was over, and before the crash: a replay ends without it."""
    world = World(str(tmp_path / "s.db"), None)

    async def first(loop: dasync.EventLoop) -> None:
        chooses.options(id="n")(3)
        await until(lambda: "gate 2" in loop.awaiters)
        await settle(loop, "gate 1", "one")
        await until(lambda: "last" in loop.awaiters)
        await settle(loop, "gate 2", "two")
        await loop.promises["last"].created()

    async def second(loop: dasync.EventLoop) -> str:
        await settle(loop, "last", "done")
        return await chooses.options(id="n")(3)

    world.play(first)
    assert world.play(second) == "done"


open_gates = True


def test_a_replay_that_does_not_come_to_what_it_had_awaited_diverges(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends, and says what of others it had taken before."""
    world = World(str(tmp_path / "s.db"), None)

    @dasync.function
    async def skips() -> str:
        if open_gates:
            await dasync.promise(str, id="gate")
            dasync.now()
        return await dasync.promise(str, id="last")

    async def first(loop: dasync.EventLoop) -> None:
        skips.options(id="n")()
        await until(lambda: "gate" in loop.awaiters)
        await settle(loop, "gate", "open")
        await until(lambda: "last" in loop.awaiters)
        await loop.promises["last"].created()

    async def second(loop: dasync.EventLoop) -> None:
        await settle(loop, "last", "done")
        with pytest.raises(dasync.NonDeterminismError, match="did not come to 'gate'"):
            await skips.options(id="n")()

    world.play(first)
    monkeypatch.setattr(f"{__name__}.open_gates", False)
    world.play(second)


def test_without_places_a_replay_takes_them_as_it_hears_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ablation: what comes first is another one, and what follows from it was recorded otherwise."""
    monkeypatch.setattr(Places, "withholds", lambda *_: False)
    monkeypatch.setattr(Places, "share", lambda _, __, ___, waiter: waiter.set_result(None))
    monkeypatch.setattr(Places, "expects", lambda *_: None)
    world = World(str(tmp_path / "s.db"), None)
    world.play(first_run)
    with pytest.raises(dasync.NonDeterminismError):
        world.play(replay)
