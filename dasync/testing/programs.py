"""The programs of `dasync sim`: durable functions of every shape, and what each may come to.

Leaves say when they begin and end to whoever watches (`watched_by`), which must see no two of one promise run at a time
in processes whose leases are not over. A shape is a function and a draw: from a random stream and a number to its
arguments and what it may come to. Nothing here knows of a world.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from random import Random
from typing import Any, NamedTuple, Protocol

import anyio

from dasync.errors import PromiseCanceled, PromiseTimedOut
from dasync.runtime.batched import batched
from dasync.runtime.combinators import race as first_of
from dasync.runtime.decisions import promise, sleep
from dasync.runtime.declare import function
from dasync.runtime.function import Function
from dasync.runtime.policy import Retry
from dasync.runtime.promise import Promise

FAR = "far"
"""The group to which some children are sent."""


class Watcher(Protocol):
    """Who hears of bodies."""

    def begins(self) -> Any:
        """A body begins; gives what `ends` takes."""

    def ends(self, body: Any) -> None:
        """It ends."""


_watchers: list[Watcher] = []


def watched_by(watcher: Watcher | None) -> None:
    """Let that one hear of bodies from now on."""
    _watchers[:] = [] if watcher is None else [watcher]


@contextmanager
def _body() -> Iterator[None]:
    watcher = _watchers[0] if _watchers else None
    body = None if watcher is None else watcher.begins()
    try:
        yield
    finally:
        if watcher is not None:
            watcher.ends(body)


class Flaky(Exception):
    """What leaves raise that are to be tried again."""


_runs: dict[str, int] = {}


@function(name="sim_leaf")
async def leaf(number: int, seconds: float = 0.0) -> int:
    """Three times the number, and one."""
    with _body():
        if seconds:
            await asyncio.sleep(seconds)
        return 3 * number + 1


@function(name="sim_far_leaf", on=FAR)
async def far_leaf(number: int, seconds: float = 0.0) -> int:
    """The same, elsewhere."""
    with _body():
        await asyncio.sleep(seconds)
        return 3 * number + 1


@function(name="sim_thread_leaf")
def thread_leaf(number: int) -> int:
    """The same, in a thread."""
    return 3 * number + 1


@function(name="sim_computes", process=True)
def computes(number: int) -> int:
    """The same, in a process of a pool."""
    return 3 * number + 1


@function(name="sim_flaky", retry=Retry.constant(0.5, attempts=20))
async def flaky(number: int) -> int:
    """Fails twice in each three runs; a run that succeeds may be lost, so there are attempts enough."""
    with _body():
        await asyncio.sleep(0.01)
        _runs[f"flaky {number}"] = runs = _runs.get(f"flaky {number}", 0) + 1
        if runs % 3:
            raise Flaky("not yet")
        return 3 * number + 1


@batched(name="sim_many", max_size=8, max_wait=0.05)
async def many(numbers: list[int]) -> list[int]:
    """The same, of many at once."""
    return [3 * number + 1 for number in numbers]


@function(name="sim_limited", concurrency=1)
async def limited(number: int) -> int:
    """The same, one at a time."""
    with _body():
        await asyncio.sleep(0.05)
        return 3 * number + 1


def near_or_far(where: int, at: int) -> Function[..., int]:
    """Bit `at` of `where` sends a leaf elsewhere."""
    return far_leaf if where >> at & 1 else leaf


@function(name="sim_chain")
async def chain(number: int, hops: int, where: int) -> int:
    for hop in range(hops):
        number = await near_or_far(where, hop)(number, 0.01 * hop)
    return number


@function(name="sim_fan_out")
async def fan_out(number: int, width: int, where: int) -> int:
    return sum(await asyncio.gather(*(near_or_far(where, at)(number + at, 0.02 * at) for at in range(width))))


@function(name="sim_sequences")
async def sequences(number: int, where: int) -> list[int]:
    async def sequence(at: int) -> int:
        return await near_or_far(where, at)(await near_or_far(where, at + 1)(number + at))

    return list(await asyncio.gather(sequence(0), sequence(2)))


@function(name="sim_group")
async def group(number: int, where: int) -> str:
    """A task of the group fails: the others are canceled."""

    async def fails() -> None:
        await near_or_far(where, 0)(number)
        raise Flaky("abort")

    async def waits(at: int) -> None:
        await near_or_far(where, at)(number + at, 500.0)

    try:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(fails())
            for at in (1, 2):
                tasks.create_task(waits(at))
    except ExceptionGroup as group:
        return ",".join(type(error).__name__ for error in group.exceptions)
    return "nothing failed"


@function(name="sim_first")
async def first(number: int, where: int) -> int:
    tasks = [asyncio.ensure_future(near_or_far(where, at)(number + at, 0.05 + 500.0 * at)) for at in range(3)]
    done, others = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in others:
        task.cancel()
    return min(task.result() for task in done)


@function(name="sim_scope")
async def scope(number: int, where: int) -> str:
    with anyio.move_on_after(0.3) as moved:
        await near_or_far(where, 0)(number, 500.0)
    return "moved on" if moved.cancelled_caught else "came"


@function(name="sim_race")
async def race(number: int, where: int) -> int:
    return await first_of(near_or_far(where, 0)(number, 0.01), near_or_far(where, 1)(number + 1, 500.0))


@function(name="sim_timers")
async def timers(number: int, where: int) -> int:
    await sleep(2.0 + number % 3)
    value = await near_or_far(where, 0)(number)
    await asyncio.sleep(0.5)
    return value


@function(name="sim_patient")
async def patient(number: int, where: int) -> int:
    """Runs for longer than a process may be stopped and come back."""
    return sum(await asyncio.gather(near_or_far(where, 0)(number, 40.0), near_or_far(where, 1)(number)))


@function(name="sim_retries")
async def retries(number: int, where: int) -> int:
    return await flaky(number)


@function(name="sim_cancels")
async def cancels(number: int, where: int) -> str:
    child = near_or_far(where, 0)(number, 500.0)
    await near_or_far(where, 1)(number, 0.02)
    await child.cancel("enough")
    try:
        await child
    except PromiseCanceled:
        return "canceled"
    return "it came first"


@function(name="sim_gives_up")
async def gives_up(number: int, where: int) -> int:
    near_or_far(where, 0)(number, 500.0)
    await near_or_far(where, 1)(number)
    raise Flaky("with a child that runs")


@function(name="sim_fails")
async def fails(number: int, where: int) -> str:
    try:
        return str(await gives_up(number, where))
    except Flaky:
        return "failed"


@function(name="sim_late")
async def late(number: int, where: int) -> str:
    try:
        return str(await near_or_far(where, 0).options(timeout=0.5)(number, 500.0))
    except PromiseTimedOut:
        return "timed out"


@function(name="sim_gated")
async def gated(number: int, gate: str, where: int) -> int:
    given = await promise(int, id=gate)
    return await near_or_far(where, 0)(given)


@function(name="sim_shares")
async def shares(number: int, common: str, where: int) -> list[int]:
    shared = far_leaf.options(id=common)(len(common), 0.1)
    return [await near_or_far(where, 0)(number), await shared]


@function(name="sim_order")
async def order(number: int, common: str, where: int) -> list[int]:
    """What comes first decides what is invoked next: in another order it is another program."""
    came: list[int] = []

    async def waits(promise: Promise[int], at: int) -> None:
        await promise
        came.append(at)
        await leaf(10 * len(came) + at)

    async def raw(at: int) -> None:
        await asyncio.to_thread(int)  # no promise: a replay cannot know how long it takes
        await waits(leaf(number + at), at)

    shared = waits(far_leaf.options(id=common)(len(common), 0.1), 9)
    others = (waits(near_or_far(where, at)(number + at, 0.1 + 0.4 * (at % 2)), at) for at in range(3))
    await asyncio.gather(shared, *others, raw(3))
    return sorted(came)


@function(name="sim_again")
async def again(number: int, rounds: int, where: int) -> int:
    number = await near_or_far(where, rounds)(number)
    return again.again(number, rounds - 1, where) if rounds else number


@function(name="sim_threads")
def threads(number: int, where: int) -> int:
    return near_or_far(where, 0)(number).wait() + thread_leaf(number).wait()


@function(name="sim_mixed")
async def mixed(number: int, where: int) -> list[int]:
    """Batches, limits, the pool."""
    parts = [many(number), many(number + 1), limited(number), limited(number + 1), computes(number)]
    return list(await asyncio.gather(*parts))


# -- what they may come to


class Case(NamedTuple):
    """One execution."""

    function: Function[..., Any]
    args: tuple[Any, ...]
    allowed: tuple[Any, ...]
    gate: tuple[str, int] | None = None
    """What somebody outside resolves for it, and with what."""
    cancel: bool = False
    """Whether somebody outside cancels it on its way: it may come to `CANCELED`, too."""


CANCELED = "(canceled)"
Draw = Callable[[Random, int], Case]


def _leaf(number: int, times: int = 1) -> int:
    for _ in range(times):
        number = 3 * number + 1
    return number


def case(draws: Random, number: int) -> Case:
    """A case of any shape."""
    where, shape = draws.getrandbits(6), draws.choice(SHAPES)
    made = shape(draws, number, where)
    return made._replace(cancel=True) if made.gate is None and draws.random() < 0.08 else made


def _chain(draws: Random, number: int, where: int) -> Case:
    hops = draws.randint(1, 4)
    return Case(chain, (number, hops, where), (_leaf(number, hops),))


def _fan_out(draws: Random, number: int, where: int) -> Case:
    width = draws.randint(2, 6)
    return Case(fan_out, (number, width, where), (sum(_leaf(number + at) for at in range(width)),))


def _sequences(draws: Random, number: int, where: int) -> Case:
    return Case(sequences, (number, where), ([_leaf(number, 2), _leaf(number + 2, 2)],))


def _first(draws: Random, number: int, where: int) -> Case:
    return Case(first, (number, where), tuple(_leaf(number + at) for at in range(3)))


def _race(draws: Random, number: int, where: int) -> Case:
    return Case(race, (number, where), (_leaf(number), _leaf(number + 1)))


def _gated(draws: Random, number: int, where: int) -> Case:
    given = draws.randrange(100)
    return Case(gated, (number, f"gate-{number}", where), (_leaf(given),), gate=(f"gate-{number}", given))


def _shares(draws: Random, number: int, where: int) -> Case:
    common = f"common-{number // 4}"
    return Case(shares, (number, common, where), ([_leaf(number), _leaf(len(common))],))


def _order(draws: Random, number: int, where: int) -> Case:
    return Case(order, (number, f"common-{number // 4}", where), ([0, 1, 2, 3, 9],))


def _again(draws: Random, number: int, where: int) -> Case:
    rounds = draws.randint(1, 3)
    return Case(again, (number, rounds, where), (_leaf(number, rounds + 1),))


def _mixed(draws: Random, number: int, where: int) -> Case:
    return Case(mixed, (number, where), ([_leaf(number + at) for at in (0, 1, 0, 1, 0)],))


def _numbered(function: Function[..., Any], come: Callable[[int], tuple[Any, ...]]) -> Callable[..., Case]:
    return lambda draws, number, where: Case(function, (number, where), come(number))


SHAPES: tuple[Callable[[Random, int, int], Case], ...] = (
    _chain, _fan_out, _sequences, _first, _race, _gated, _shares, _again, _mixed,
    _numbered(group, lambda number: ("Flaky",)),
    _numbered(scope, lambda number: ("moved on", "came")),
    _numbered(timers, lambda number: (_leaf(number),)),
    _numbered(patient, lambda number: (2 * _leaf(number),)),
    _numbered(retries, lambda number: (_leaf(number),)),
    _numbered(cancels, lambda number: ("canceled", "it came first")),
    _numbered(fails, lambda number: ("failed",)),
    _numbered(late, lambda number: ("timed out", str(_leaf(number)))),
    _numbered(threads, lambda number: (2 * _leaf(number),)),
    _order,
)  # fmt: skip


def forget() -> None:
    """A new world begins."""
    _runs.clear()
