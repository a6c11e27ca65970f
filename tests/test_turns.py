"""Turns: outcomes in the order in which they were taken first; cancels where they came; sets in the same order."""

from __future__ import annotations

import asyncio

import pytest
from play import World, rows, settle, until, until_rows

import dasync
from dasync.core.model import State
from dasync.ports import News
from dasync.runtime.branch import BranchTask
from dasync.stores.memory import MemoryStore
from dasync.system import SystemClock
from dasync.transports.local import NoTransport

seen: list[object] = []


@pytest.fixture(autouse=True)
def _nothing_seen() -> None:
    seen.clear()


@dasync.function
async def echo(x: str) -> str:
    return x


@dasync.function
async def looks() -> list[object]:
    """What it sees of the one while it awaits the other follows from their order."""
    far, near = echo.options(on="far")("far"), dasync.promise(str, id=None)
    told: list[object] = [await near, far.done()]
    told.append(await far)
    seen.append(list(told))
    await dasync.promise(id="gate")
    return told


async def nothing(process: str) -> News:
    return News([], [])


def test_what_nobody_has_told_it_a_process_hears_with_its_next_commit() -> None:
    """It was settled first, so it is taken first, though no doorbell and no poll has told of it.

    The ablation is in `test_unheard_turns.py`.
    """
    store = MemoryStore(SystemClock())

    async def main() -> None:
        async with dasync.EventLoop(store, poll=60) as here:
            store.news = nothing  # type: ignore[method-assign]  # no poll hears of it
            here.invoke(looks.options(id="l"))
            await until_rows(here, lambda found: "l:1" in found.promises)
            NoTransport._bells[here.process] = lambda bell: None  # its doorbell is out of order
            async with dasync.EventLoop(store, group="far", poll=60):
                await until_rows(here, lambda found: found.promises["l:0"].state is State.RESOLVED)
            await here.get("l:1", str).resolve("near")
            await until(lambda: seen)
        del store.news
        async with dasync.EventLoop(store) as again:
            await settle(again, "gate", None)
            assert await again.get("l") == ["near", True, "far"]

    asyncio.run(main())
    assert seen == [["near", True, "far"]] * 2


# -- cancels


@dasync.function
async def falls(x: str) -> str:
    raise OSError(x)


@dasync.function
async def group(goes_on: bool) -> list[str]:
    """A TaskGroup that aborts, and maybe something that follows."""

    async def waits() -> None:
        await dasync.promise()

    async def one() -> None:
        await falls("one")

    try:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(waits())
            tasks.create_task(one())
    except* OSError:
        pass
    return [await echo("on")] if goes_on else []


@pytest.mark.parametrize("goes_on", [True, False])
def test_a_cancel_is_written_when_something_follows(world: World, goes_on: bool) -> None:
    """Its place is on record before what follows from it, and not at all where nothing does."""

    async def main(loop: dasync.EventLoop) -> None:
        await group.options(id="g")(goes_on)
        found = (await rows(loop)).promises
        assert ("g:^0" in found) is goes_on
        if goes_on:
            assert found["g:^0"].function == "dasync.cut"

    world.play(main)


# -- sets


@dasync.function
async def goes_through() -> list[str]:
    async def one(name: str) -> str:
        return await echo(name)

    tasks = {asyncio.create_task(one(str(n)), name=str(n)) for n in range(40)}
    names = [task.get_name() for task in tasks]
    promises = {echo(str(n)) for n in range(40)}
    return names + [promise.id.partition(":")[2] for promise in promises]


def test_sets_are_gone_through_alike(world: World) -> None:
    """Sets of tasks and of promises, whatever lies where in memory."""
    kept: list[object] = []

    async def main(loop: dasync.EventLoop) -> None:
        orders = []
        for n in range(5):
            orders.append(await goes_through.options(id="s")() if not n else await again(world.store))
            kept.extend(bytearray(n * 100 + k) for k in range(500))  # the heap is another one each time
        assert all(order == orders[0] for order in orders)

    async def again(_: object) -> list[str]:
        async with dasync.EventLoop(MemoryStore(SystemClock())) as other:
            return await other.invoke(goes_through.options(id="s"))

    world.play(main)


def test_by_address_they_are_not(memory: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ablation."""
    monkeypatch.setattr(BranchTask, "__hash__", object.__hash__)
    monkeypatch.setattr(dasync.Promise, "__hash__", object.__hash__)
    with pytest.raises(AssertionError):
        test_sets_are_gone_through_alike(memory)
