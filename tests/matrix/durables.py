"""What only durable code has: children that are executions, races, decisions, and examples of all together."""

from __future__ import annotations

import asyncio
from typing import Any

import dasync
from dasync.testing.leaves import leaf
from matrix.catalogue import Seen, program


@dasync.function(name="matrix.child")
async def child(*names: str) -> Any:
    seen = Seen()
    await seen.sequence(*names)
    return seen.all


@dasync.function(name="matrix.side_by_side")
async def side_by_side(*names: str) -> Any:
    seen = Seen()
    await asyncio.gather(*map(seen.one, names))
    return seen.all


@program("a b c d", plain=False)
async def durable_children() -> Any:
    return await asyncio.gather(child("a", "b"), child("c", "d"))


@program("a b c d", plain=False, racing=True)
async def durable_grandchildren() -> Any:
    seen = Seen()

    async def note(*names: str) -> None:
        seen.say(await side_by_side(*names))

    await asyncio.gather(note("a", "b"), note("c", "d"))
    return seen.all


@dasync.batched(name="matrix.batch", max_size=2, max_wait=0)
async def batch(names: list[str]) -> list[str | Exception]:
    return [OSError(name) if name.endswith("!") else name.upper() for name in names]


@program("a b! c d", plain=False)
async def batched_children() -> Any:
    """Some come to the handler together, some alone; what they give is theirs."""
    seen = Seen()

    async def sequence(name: str) -> None:
        try:
            await leaf(name)
        except OSError:
            seen.say(f"no {name}")
        try:
            seen.say(await batch(name))
        except OSError as error:
            seen.say(f"refused {error}")
        await batch("again")

    await asyncio.gather(*map(sequence, ("a", "b!", "c", "d")))
    return seen.all


@program("a b c d", plain=False)
async def race() -> Any:
    seen = Seen()
    seen.say(await dasync.race(leaf("a"), leaf("b"), leaf("c")))
    await seen.one("d")
    return seen.all


@program("a b c d", plain=False)
async def race_beside_a_task() -> Any:
    """What follows from the winner comes in the same place among what others of the same commit bring."""
    seen, beside = Seen(), asyncio.create_task(leaf_of("a"))
    seen.say(await dasync.race(leaf("b"), leaf("c")))
    beside.cancel()
    await asyncio.wait([beside])
    seen.say(beside.cancelled())
    await seen.one("d")
    return seen.all


async def leaf_of(name: str) -> str:
    return await leaf(name)


@program("a! b c! d", plain=False)
async def choices_beside_a_task() -> Any:
    seen = Seen()

    async def chooses() -> None:
        seen.say(await dasync.any(leaf("a!"), leaf("b")))

    async def needs_all() -> None:
        try:
            await dasync.all(dasync.sleep(0), leaf("c!"))
        except OSError as error:
            seen.say(f"not all: {error}")

    await asyncio.gather(chooses(), needs_all(), seen.one("d"))
    return seen.all


@program("a b c d", plain=False, racing=True)
async def race_of_executions() -> Any:
    """The loser is canceled, having come as far as it came."""
    seen = Seen()
    seen.say(await dasync.race(child("a", "b"), child("c")))
    await seen.one("d")
    return seen.all


@program("a! b c d", plain=False)
async def any_of_three() -> Any:
    seen = Seen()
    seen.say(await dasync.any(leaf("a!"), leaf("b"), leaf("c")))
    await seen.one("d")
    return seen.all


@program("a b! c d", plain=False)
async def all_of_three() -> Any:
    seen = Seen()
    try:
        seen.say(await dasync.all(leaf("a"), leaf("b!"), leaf("c")))
    except OSError as error:
        seen.say(str(error))
    await seen.one("d")
    return seen.all


@program("a b! c", plain=False)
async def all_settled() -> Any:
    found = await dasync.all_settled(leaf("a"), leaf("b!"), leaf("c"))
    return [[one.state.value, str(one.exception() or one.result())] for one in found]


@program("a b c d", plain=False, racing=True)
async def cancel_of_an_execution() -> Any:
    seen, going = Seen(), child("a", "b")
    await seen.one("c")
    await going.cancel()
    seen.say(going.state.value)
    await seen.one("d")
    return seen.all


@program("a b c", plain=False)
async def decisions() -> Any:
    """Equal draws are equal in every run; how much time has passed does not show."""
    seen, begun = Seen(), dasync.now()

    async def draw(name: str) -> None:
        before = dasync.random().random(), dasync.uuid4()
        await seen.one(name)
        seen.say(before != (dasync.random().random(), dasync.uuid4()))
        seen.say(dasync.now() >= begun)

    await asyncio.gather(*map(draw, "abc"))
    return seen.all


@dasync.function(name="matrix.echo")
async def echo(said: str) -> str:
    return said


@program("a b", plain=False)
async def decisions_as_arguments() -> Any:
    """What is handed over says so where a replay would decide otherwise."""
    seen, said = Seen(), [dasync.now().isoformat(), str(dasync.random().random()), str(dasync.uuid4())]
    await seen.one("a")
    seen.say([await echo(one) == one for one in said])
    await seen.one("b")
    return seen.all


@program("a b", plain=False, clocked=True)
async def now_decides() -> Any:
    """What is invoked depends on the recorded time."""
    seen, begun = Seen(), dasync.now()
    await seen.one("a")
    late = (dasync.now() - begun).total_seconds() > 10
    seen.say(late)
    await (seen.one("b") if late else child("b"))
    return [seen.all, late]


@program("a b c", plain=False)
async def promises_awaited_twice() -> Any:
    seen, shared = Seen(), leaf("a")

    async def awaits(name: str) -> None:
        seen.say(f"{name} has {await shared}")
        await seen.one(name)

    await asyncio.gather(awaits("b"), awaits("c"), awaits_it(shared, seen))
    return seen.all


async def awaits_it(shared: dasync.Promise[str], seen: Seen) -> None:
    seen.say(f"so has the third {await shared}")


@program("a b c d", plain=False)
async def loops() -> Any:
    """A conversation: each answer decides what is asked next."""
    seen, asked = Seen(), ["a", "b", "c", "d"]
    pending = {asyncio.create_task(seen.one(asked.pop(0))) for _ in range(2)}
    while pending:
        done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        seen.say(len(done))
        if asked:
            pending.add(asyncio.create_task(seen.one(asked.pop(0))))
    return seen.all


@program("a b c", plain=False)
async def patched() -> Any:
    """Code that has changed goes its new way in every run of an execution that came to it."""
    seen = Seen()

    async def goes(name: str) -> None:
        await seen.one(name)
        seen.say(f"{name} is new" if dasync.patched(f"change {name}") else f"{name} is old")

    await asyncio.gather(goes("a"), goes("b"), seen.one("c"))
    return seen.all


@dasync.function(name="matrix.laps")
async def laps(done: list[str]) -> list[str]:
    if len(done) == 3:
        return done
    return laps.again([*done, await leaf("abc"[len(done)])])


@program("a b c d", plain=False, starts_over=True)
async def starting_over() -> Any:
    return await asyncio.gather(laps([]), leaf("d"))


@program("a b", plain=False, starts_over=True)
async def starting_over_beside_a_sequence() -> Any:
    seen = Seen()

    async def laps() -> None:
        seen.say(await lap(2))

    await asyncio.gather(laps(), seen.sequence("a", "b"))
    return sorted(map(str, seen.all))


@dasync.function(name="matrix.lap")
async def lap(left: int) -> int:
    await dasync.sleep(0.1)
    return lap.again(left - 1) if left else 0
