"""Waiting for several promises: `all`, `any`, `race`, `all_settled`, `wait`, `as_completed`.

Which promise came first is a decision of the clock, so inside an execution it is recorded, and a replay goes by the
record. In which order an execution took the outcomes of its own children is recorded with these already; of that
nothing is written here. The losers of a race are canceled where they are children of the execution that runs it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from contextlib import suppress
from functools import partial
from typing import TypeVar, overload

from dasync.core.model import State
from dasync.runtime import branch
from dasync.runtime.awaiters import Among
from dasync.runtime.function import ALL, ANY, NEXT, RACE, WAIT, Decision, Seconds, caller, seconds
from dasync.runtime.promise import Promise

T = TypeVar("T")
T1 = TypeVar("T1")
T2 = TypeVar("T2")
T3 = TypeVar("T3")
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
    decision = _decision(ALL, len(promises)) if len(promises) > 1 else None
    with _Arrivals(promises) as arrivals:
        if decision is not None and isinstance(decision.known, int):
            await arrivals.all_of({decision.known})
            promises[decision.known].result()
        for _ in promises:
            first = await arrivals.next()
            if decision is not None and promises[first].state is not State.RESOLVED:
                decision.record(first)  # only a failure: with none there is nothing to decide
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
    first = await _decided(RACE, promises, _first_settled)
    return await _outcome(promises, first, keep=keep)


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
    first = await _decided(ANY, promises, _first_resolved)
    if first == _NOBODY:
        for promise in promises:
            await promise.settlement()
        errors = [error for promise in promises if (error := promise.exception()) is not None]
        raise BaseExceptionGroup(f"none of {len(promises)} promises resolved", errors)
    return await _outcome(promises, first, keep=keep)


async def wait(
    promises: Iterable[Promise[T]], *, return_when: str = asyncio.ALL_COMPLETED, timeout: Seconds | None = None
) -> tuple[list[Promise[T]], list[Promise[T]]]:
    """Wait for promises as `asyncio.wait` does; gives those that are done, as they came, and the others, as given.

    `return_when` is `asyncio.ALL_COMPLETED`, `FIRST_COMPLETED` or `FIRST_EXCEPTION` (any outcome but a value). After
    `timeout` (seconds or a timedelta; inside an execution it is counted once, crash or no crash) it gives what is done
    by then. Nothing is raised and nothing canceled here: ask each for its `result()`. A child that is still pending
    and that nobody awaits any more ends when the function returns.

    Example:
        >>> import asyncio, dasync
        >>> @dasync.function
        ... async def after(delay: float, name: str) -> str:
        ...     await dasync.sleep(delay)
        ...     return name
        >>> @dasync.function
        ... async def contest() -> list[list[str]]:
        ...     runners = [after(60, "tortoise"), after(0.01, "hare")]
        ...     done, pending = await dasync.wait(runners, return_when=asyncio.FIRST_COMPLETED)
        ...     return [[one.result() for one in done], [one.state.value for one in pending]]
        >>> dasync.run(contest)
        [['hare'], ['pending']]
    """
    given, enough = _listed(promises), _ENOUGH.get(return_when)
    if enough is None:
        raise ValueError(f"return_when is one of {', '.join(_ENOUGH)}, not {return_when!r}")
    timeout_s = None if timeout is None else seconds(timeout, "timeout")
    done = await _waited(given, enough, timeout_s) if given else []
    pending = sorted({*range(len(given))}.difference(done))
    return [given[index] for index in done], [given[index] for index in pending]


@overload
def as_completed(p1: Promise[T1], p2: Promise[T2], /) -> AsyncIterator[Promise[T1 | T2]]: ...
@overload
def as_completed(p1: Promise[T1], p2: Promise[T2], p3: Promise[T3], /) -> AsyncIterator[Promise[T1 | T2 | T3]]: ...
@overload
def as_completed(*promises: Promise[T]) -> AsyncIterator[Promise[T]]: ...
def as_completed(*promises: Promise[object]) -> AsyncIterator[Promise[object]]:
    """An async iterator that gives the promises in the order in which they settle, each once it is settled.

    Nothing is raised and nothing canceled here: await each one, or ask it for its `result()`. A child that is still
    pending when the loop is left, and that nobody awaits any more, ends when the function returns.

    Example:
        >>> import dasync
        >>> @dasync.function
        ... async def after(delay: float, name: str) -> str:
        ...     await dasync.sleep(delay)
        ...     return name
        >>> @dasync.function
        ... async def ranking() -> list[str]:
        ...     runners = after(0.2, "tortoise"), after(0.01, "hare")
        ...     return [await one async for one in dasync.as_completed(*runners)]
        >>> dasync.run(ranking)
        ['hare', 'tortoise']
    """
    _check("as_completed", promises)
    return _Completed(promises)


async def _waited(given: tuple[Promise[object], ...], enough: _Enough, timeout_s: float | None) -> list[int]:
    """Which are done once it is over, as they came: as was recorded, or as is seen now and recorded."""
    at = branch.current()
    decision = _decision(WAIT, len(given)) if len(given) > 1 or timeout_s is not None else None
    timer = None if at is None or timeout_s is None else caller(at).timer(at, timeout_s)
    known = None if decision is None else decision.known
    if isinstance(known, list):
        await _until_known(given, known, enough, timer)
        done: list[int] = known
    else:
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s if timer is None else None):
                await _until_enough(given, enough, timer)
        done = _settled(given)
        went_on = len(done) == len(given) and next(filter(enough, given), None) is None
        if decision is not None and not (went_on and _in_turns(given)):
            decision.record(done)
    if at is not None and timer is not None:
        caller(at).cancel_child(timer)
    return done


async def _until_known(
    given: tuple[Promise[object], ...], known: list[int], enough: _Enough, timer: Promise[None] | None
) -> None:
    """Until those are done, and the timer, where it was what ended the first run's waiting."""
    with _Arrivals(given if timer is None else (*given, timer)) as arrivals:
        await arrivals.all_of(set(known))
        went_off = len(known) < len(given) and not [index for index in known if enough(given[index])]
        if timer is not None and went_off:
            await arrivals.all_of({len(given)})


async def _until_enough(given: tuple[Promise[object], ...], enough: _Enough, timer: Promise[None] | None) -> None:
    with _Arrivals(given if timer is None else (*given, timer)) as arrivals:
        for _ in given:
            index = await arrivals.next()
            if index == len(given) or enough(given[index]):
                return


def _settled(promises: Iterable[Promise[object]]) -> list[int]:
    """The indexes of those that are settled, as they came: those that one commit settled by their places."""
    there = [(promise.turn, index) for index, promise in enumerate(promises) if promise.arrived]
    return [index for _, index in sorted(there)]


def _in_turns(promises: Iterable[Promise[object]]) -> bool:
    """Whether this execution takes all of them in turns: then a replay sees them come as the first run did."""
    at = branch.current()
    return at is not None and not [promise for promise in promises if promise.maker != at.owner.id]


class _Completed(AsyncIterator[Promise[T]]):
    """Promises in the order in which they settle.

    Those that an execution takes in turns are given by their turns, so that coming in late changes nothing. With
    another one among them each choice is recorded.
    """

    def __init__(self, promises: tuple[Promise[T], ...]) -> None:
        self._left = dict(enumerate(dict.fromkeys(promises)))
        self._came: deque[int] = deque()
        self._in_turns: bool | None = None

    async def __anext__(self) -> Promise[T]:
        if not self._left:
            raise StopAsyncIteration
        if self._in_turns is None:
            self._in_turns = branch.current() is None or _in_turns(self._left.values())
            for promise in self._left.values():
                promise.heard = True
        decision = _decision(NEXT, len(self._left)) if not self._in_turns and len(self._left) > 1 else None
        if decision is not None and isinstance(decision.known, int):
            index = decision.known
            with _Arrivals((self._left[index],)) as arrivals:
                await arrivals.next()
        else:
            index = await self._next()
            if decision is not None:
                decision.record(index)
        return self._left.pop(index)

    async def _next(self) -> int:
        """The first that has come and was not given."""
        while True:
            while self._came:
                index = self._came.popleft()
                if index in self._left:
                    return index
            left = tuple(self._left)
            with _Arrivals(tuple(self._left.values())) as arrivals:
                await arrivals.next()
            self._came.extend(left[place] for place in _settled(self._left.values()))


async def _decided(kind: str, promises: tuple[Promise[object], ...], find: _Find) -> int:
    """Which promise came first, as was recorded, or as `find` sees now and is recorded."""
    decision = _decision(kind, len(promises))
    known = None if decision is None else decision.known
    with _Arrivals(promises) as arrivals:  # in a replay too: from here on all are asked for
        if isinstance(known, int):
            await arrivals.all_of(set(range(len(promises))) if known == _NOBODY else {known})
            return known
        first = await find(promises, arrivals)
        if decision is not None:
            decision.record(first)
    return first


async def _outcome(promises: tuple[Promise[object], ...], first: int, *, keep: bool) -> object:
    """What the winner gives, once the losers are told."""
    await promises[first].settlement()
    if not keep:
        _cancel([promise for promise in promises if promise is not promises[first]])
    return promises[first].result()


async def _first_settled(promises: tuple[Promise[object], ...], arrivals: _Arrivals) -> int:
    return await arrivals.next()


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
        self._news: Among | None = None

    def __enter__(self) -> _Arrivals:
        for index, promise in enumerate(self._promises):
            promise.heard = True
            if promise.arrived:
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
                self._news = Among(loop=asyncio.get_running_loop())
                await self._news
            index = self._arrived.popleft()
            promise, waiter = self._promises[index], self._waiters.pop(index, None)
            if waiter is not None:
                promise.tracker.leave(promise, waiter)
                waiter.result()
            if promise.arrived:
                return index
            self._wait(index, promise)  # another handle of its id was refused: this one waits on

    async def all_of(self, missing: set[int]) -> None:
        """Wait as long as `next` has to be asked until it has given all of those, as a first run does."""
        while missing:
            missing.discard(await self.next())

    def _wait(self, index: int, promise: Promise[object]) -> None:
        waiter = self._waiters[index] = promise.tracker.await_(promise, among=True)
        waiter.add_done_callback(partial(self._arrive, index))

    def _arrive(self, index: int, waiter: asyncio.Future[None]) -> None:
        if waiter.cancelled():
            return
        self._arrived.append(index)
        if self._news is not None and not self._news.done():
            self._news.set_result(None)


_Find = Callable[[tuple[Promise[object], ...], _Arrivals], Coroutine[object, object, int]]
_Enough = Callable[[Promise[object]], bool]  # asked of one that is settled
_ENOUGH: dict[str, _Enough] = {
    asyncio.ALL_COMPLETED: lambda settled: False,
    asyncio.FIRST_COMPLETED: lambda settled: True,
    asyncio.FIRST_EXCEPTION: lambda settled: settled.state is not State.RESOLVED,
}


def _listed(promises: Iterable[Promise[T]]) -> tuple[Promise[T], ...]:
    """Each once, in their order."""
    if isinstance(promises, set | frozenset):
        raise TypeError("wait takes promises in an order that a replay finds again: a list, not a set")
    if isinstance(promises, Promise) or not isinstance(promises, Iterable):
        raise TypeError(f"wait takes a list of promises, as wait([f(1), f(2)]), not a {type(promises).__name__}")
    given = tuple(dict.fromkeys(promises))
    _check("wait", given)
    return given


def _check(name: str, promises: tuple[object, ...], at_least: int = 0) -> None:
    strange = next((one for one in promises if not isinstance(one, Promise)), None)
    if strange is not None:
        kind = type(strange).__name__
        raise TypeError(f"{name} takes promises, as {name}(*promises) or {name}(f(1), f(2)), not a {kind}")
    if len(promises) < at_least:
        raise TypeError(f"{name} takes at least one promise: of none, none is ever the first")


def _decision(kind: str, among: int) -> Decision | None:
    """Where an execution records which of so many promises came first; None outside one."""
    at = branch.current()
    return None if at is None else caller(at).decision(at, kind, among)


def _cancel(losers: list[Promise[object]]) -> None:
    at = branch.current()
    if at is not None:
        for loser in losers:
            if not loser.done():
                caller(at).cancel_child(loser)
