"""A process that writes hears, with the same commit, of all that was settled before: nothing is taken out of turn.

Found by `dasync sim` with programs that depend on the order of outcomes: a process whose doorbell was lost took the
later of two outcomes first, and ended before it heard of the earlier one; nothing on record said so.
"""

from __future__ import annotations

import asyncio

import pytest

import dasync
from dasync.runtime.hearing import Hearing
from dasync.testing.world import World

POLL_S, PAUSE_S = 3.0, 0.1  # far comes at a poll of its process, and is heard of at a later one of the other
lives: list[list[str]] = []


@dasync.function(name="unheard_leaf")
async def leaf(number: int, seconds: float = 0.0) -> int:
    await asyncio.sleep(seconds)
    return number


@dasync.function(name="unheard_far", on="far")
async def far(seconds: float) -> int:
    await asyncio.sleep(seconds)
    return 0


@dasync.function(name="unheard_order")
async def order() -> list[str]:
    """What comes first is told to what comes next."""
    came: list[str] = []
    lives.append(came)

    async def each(name: str, promise: dasync.Promise[int]) -> None:
        await promise
        came.append(name)
        await leaf(10 * len(came))

    await asyncio.gather(each("far", far(0.1)), each("near", leaf(0, 3.5)))
    await dasync.sleep(1.0)
    return came


async def _crashed_once_something_came(world: World) -> list[str]:
    lives.clear()
    world.network.loss = 1.0
    promise = world.invoke(order)
    while not any(lives):
        await world.advance(seconds=PAUSE_S)
    world.crash("default-1")
    return await promise


def test_a_lost_doorbell_changes_no_order() -> None:
    """The far outcome is settled before the near one, and taken before it: in the first run as in the replay."""
    with World(seed=1, processes=1, groups=("default", "far"), poll=POLL_S) as world:
        came = world.run(_crashed_once_something_came, limit_s=600)
        assert world.violations == []
    assert lives[0][0] == "far"
    assert came == lives[-1] == ["far", "near"]


def test_without_hearing_it_would(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that does not hear of it takes what came later first; its replay does not, and is halted."""
    monkeypatch.setattr(Hearing, "is_wanted", lambda self: self.queued)
    with World(seed=1, processes=1, groups=("default", "far"), poll=POLL_S) as world:
        world.run(_crashed_once_something_came, limit_s=600)
        assert [one.checker for one in world.violations] == ["liveness"]
    assert lives[0][0] == "near"
    assert lives[-1][0] == "far"
