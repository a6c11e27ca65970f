"""Waiting for several promises: `all`, `any`, `race`, `all_settled`.

Which promise came first is a decision of the clock, so inside an execution it is recorded, and a replay goes by the
record. The losers of a race are canceled where they are children of the execution that runs it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from functools import partial
from typing import TypeVar, overload

from dasync.core.model import State
from dasync.runtime import branch
from dasync.runtime.function import Decision, caller
from dasync.runtime.promise import Promise

T = TypeVar("T")
T1 = TypeVar("T1")
T2 = TypeVar("T2")
T3 = TypeVar("T3")
ALL, ANY, RACE = "dasync.all", "dasync.any", "dasync.race"
_NOBODY = -1  # what is recorded when every promise has failed


async def all(*promises: Promise[T]) -> list[T]:
    """Wait for every promise and give their values in the order of the arguments.

    The first failure, in the order in which they settle, is raised at once; the others go on.

    Example:
        >>> import dasync
        >>> @dasync.function
        ... async def square(x: int) -> int:
        ...     return x * x
        >>> async def main() -> list[int]:
        ...     return await dasync.all(*[square(i) for i in range(4)])
        >>> dasync.run(main)
        [0, 1, 4, 9]
    """
    _check("all", promises)
    at = branch.current()
    first = None if at is None else caller(at).recorded(at, ALL)
    with _Arrivals(promises) as arrivals:
        if isinstance(first, int):
            await promises[first].settlement()
            promises[first].result()
        for _ in promises:
            first = await arrivals.next()
            if at is not None and promises[first].state is not State.RESOLVED:
                caller(at).decision(at, ALL).record(first)  # only a failure: with none there is nothing to decide
            promises[first].result()
    return [promise.result() for promise in promises]


async def all_settled(*promises: Promise[T]) -> list[Promise[T]]:
    """Wait until every promise is settled, however that is, and give them back in the order of the arguments.

    Ask each for its `state`, `result()` or `exception()`; nothing is raised here.

    Example:
        >>> import dasync
        >>> @dasync.function
        ... async def divide(x: int, y: int) -> float:
        ...     return x / y
        >>> async def main() -> list[str]:
        ...     return [one.state.value for one in await dasync.all_settled(divide(1, 2), divide(1, 0))]
        >>> dasync.run(main)
        ['resolved', 'rejected']
    """
    _check("all_settled", promises)
    with _Arrivals(promises) as arrivals:
        for _ in promises:
            arrived = promises[await arrivals.next()]
            if arrived.refused:
                arrived.result()
    return list(promises)


@overload
async def race(p1: Promise[T1], p2: Promise[T2], /, *, keep: bool = False) -> T1 | T2: ...
@overload
async def race(p1: Promise[T1], p2: Promise[T2], p3: Promise[T3], /, *, keep: bool = False) -> T1 | T2 | T3: ...
@overload
async def race(*promises: Promise[T], keep: bool = False) -> T: ...
async def race(*promises: Promise[object], keep: bool = False) -> object:
    """The outcome of the promise that settles first: its value, or its error is raised.

    The others are canceled where this execution made them, and nobody waits for that here. With `keep` they go on
    and can be awaited later; those that nobody awaits by then end when the function returns. Outside a durable
    function they always go on.

    Example:
        >>> import dasync
        >>> @dasync.function
        ... async def after(delay: float, name: str) -> str:
        ...     await dasync.sleep(delay)
        ...     return name
        >>> @dasync.function
        ... async def contest() -> str:
        ...     return await dasync.race(after(60, "tortoise"), after(0.01, "hare"))
        >>> dasync.run(contest)
        'hare'
    """
    _check("race", promises, at_least=1)
    decision = _decision(RACE)
    first = None if decision is None else decision.known
    with _Arrivals(promises) as arrivals:
        if not isinstance(first, int):
            first = await arrivals.next()
            if decision is not None:
                decision.record(first)
    await promises[first].settlement()
    if not keep:
        _cancel([promise for promise in promises if promise is not promises[first]])
    return promises[first].result()


@overload
async def any(p1: Promise[T1], p2: Promise[T2], /, *, keep: bool = False) -> T1 | T2: ...
@overload
async def any(p1: Promise[T1], p2: Promise[T2], p3: Promise[T3], /, *, keep: bool = False) -> T1 | T2 | T3: ...
@overload
async def any(*promises: Promise[T], keep: bool = False) -> T: ...
async def any(*promises: Promise[object], keep: bool = False) -> object:
    """The value of the promise that resolves first; an `ExceptionGroup` of all errors when none does.

    The others are canceled where this execution made them, unless `keep`, as with `race`.

    Example:
        >>> import dasync
        >>> @dasync.function
        ... async def ask(mirror: str) -> str:
        ...     if mirror == "a":
        ...         raise OSError("a is down")
        ...     return f"answer from {mirror}"
        >>> async def main() -> str:
        ...     return await dasync.any(ask("a"), ask("b"))
        >>> dasync.run(main)
        'answer from b'
    """
    _check("any", promises, at_least=1)
    decision = _decision(ANY)
    first = None if decision is None else decision.known
    with _Arrivals(promises) as arrivals:
        if not isinstance(first, int):
            first = await _first_resolved(promises, arrivals)
            if decision is not None:
                decision.record(first)
    if first == _NOBODY:
        for promise in promises:
            await promise.settlement()
        errors = [error for promise in promises if (error := promise.exception()) is not None]
        raise BaseExceptionGroup(f"none of {len(promises)} promises resolved", errors)
    await promises[first].settlement()
    if not keep:
        _cancel([promise for promise in promises if promise is not promises[first]])
    return promises[first].result()


async def _first_resolved(promises: tuple[Promise[object], ...], arrivals: _Arrivals) -> int:
    for _ in promises:
        arrived = await arrivals.next()
        if promises[arrived].state is State.RESOLVED:
            return arrived
    return _NOBODY


class _Arrivals:
    """The indexes of promises in the order in which they settle; whoever runs now waits for all of them at once."""

    def __init__(self, promises: tuple[Promise[T], ...]) -> None:
        self._promises = promises
        self._arrived: deque[int] = deque()
        self._waiters: dict[int, asyncio.Future[None]] = {}
        self._news: asyncio.Future[None] | None = None

    def __enter__(self) -> _Arrivals:
        for index, promise in enumerate(self._promises):
            promise.heard = True
            if promise.done() or promise.refused:
                self._arrived.append(index)
            else:
                self._wait(index, promise)
        return self

    def __exit__(self, *_: object) -> None:
        for index, waiter in self._waiters.items():
            waiter.cancel()
            self._promises[index].tracker.leave(self._promises[index], waiter)

    async def next(self) -> int:
        """The next one that is settled, or cannot be had at all."""
        while True:
            while not self._arrived:
                self._news = asyncio.get_running_loop().create_future()
                await self._news
            index = self._arrived.popleft()
            promise, waiter = self._promises[index], self._waiters.pop(index, None)
            if waiter is not None:
                promise.tracker.leave(promise, waiter)
                waiter.result()
            if promise.done() or promise.refused:
                return index
            self._wait(index, promise)  # another handle of its id was refused: this one waits on

    def _wait(self, index: int, promise: Promise[object]) -> None:
        waiter = self._waiters[index] = promise.tracker.await_(promise, among=True)
        waiter.add_done_callback(partial(self._arrive, index))

    def _arrive(self, index: int, waiter: asyncio.Future[None]) -> None:
        if waiter.cancelled():
            return
        self._arrived.append(index)
        if self._news is not None and not self._news.done():
            self._news.set_result(None)


def _check(name: str, promises: tuple[object, ...], at_least: int = 0) -> None:
    strange = next((one for one in promises if not isinstance(one, Promise)), None)
    if strange is not None:
        kind = type(strange).__name__
        raise TypeError(f"{name} takes promises, as {name}(*promises) or {name}(f(1), f(2)), not a {kind}")
    if len(promises) < at_least:
        raise TypeError(f"{name} takes at least one promise: of none, none is ever the first")


def _decision(kind: str) -> Decision | None:
    """Where an execution records which promise came first; None outside one."""
    at = branch.current()
    return None if at is None else caller(at).decision(at, kind)


def _cancel(losers: list[Promise[object]]) -> None:
    at = branch.current()
    if at is not None:
        for loser in losers:
            if not loser.done():
                caller(at).cancel_child(loser)
