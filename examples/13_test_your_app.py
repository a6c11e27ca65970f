"""Test your own program: in simulated worlds, whose workers die, an effect is found that comes before its record.

    python examples/13_test_your_app.py          # finds the bug, says how to see it again, and tries the cure
    pytest examples/13_test_your_app.py          # the same as tests

Only the bank is a fake: it is not the program's. Each seed is an order of events and a plan of crashes of its own.
"""

import asyncio
from functools import partial

import pytest

import dasync
from dasync.testing import World, simulate

accounts: dict[str, int] = {}  # the bank, which outlives the workers
keys: set[str] = set()  # of the orders that it has carried out


async def bank(cents: int, key: str | None = None) -> None:
    await asyncio.sleep(0.01)
    if key is None or key not in keys:
        accounts["ann"], accounts["bob"] = accounts["ann"] - cents, accounts["bob"] + cents
        keys.add(key or "")
    await asyncio.sleep(0.01)


@dasync.function
async def careless(cents: int) -> None:
    await bank(cents)  # the bug: an effect before anything is on record; after a crash it comes again


@dasync.function
async def order(cents: int, key: str) -> None:
    await bank(cents, key)


@dasync.function
async def careful(cents: int) -> None:
    await order(cents, str(dasync.uuid4()))  # the cure: a step of its own, with a key that a replay finds again


@pytest.mark.dasync(seeds=100, faults="kill")
@pytest.mark.parametrize("transfer", [pytest.param(careless, marks=pytest.mark.xfail(strict=True)), careful])
async def test_money_moves_once(world: World, transfer: dasync.Function[[int], None]) -> None:
    keys.clear()
    accounts.update(ann=100, bob=0)
    await world.invoke(transfer, 30)
    assert accounts == {"ann": 70, "bob": 30}, accounts


if __name__ == "__main__":
    try:
        simulate(partial(test_money_moves_once, transfer=careless), seeds=100, faults="kill")
    except AssertionError as error:
        print("careless:", error, *error.__notes__, sep="\n")
    print("careful:", simulate(partial(test_money_moves_once, transfer=careful), seeds=100, faults="kill"))
