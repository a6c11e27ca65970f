"""Functions that are not `async def`: each body runs in a worker thread, where it may invoke and block.

The thread never touches the event loop's state: what it invokes is handed to the asyncio loop's own thread, and so is
what it waits for. There are `MAX_THREADS` seats for bodies that run; one that waits gives its seat back, so bodies
that wait for each other never keep the one that they wait for from running. Nothing here knows what an invocation is.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Coroutine
from concurrent.futures import CancelledError as WaitCanceled
from concurrent.futures import Future
from typing import Protocol, TypeVar

import anyio
import anyio.to_thread

from dasync.runtime import branch
from dasync.runtime.branch import Branch
from dasync.runtime.function import Caller, Decision, Function
from dasync.runtime.promise import Promise

T = TypeVar("T")
R = TypeVar("R")
MAX_THREADS = 40  # bodies that run at a time in one EventLoop, as many as asyncio libraries take by default


class Seats:
    """How many bodies may run at a time."""

    def __init__(self, count: int = MAX_THREADS) -> None:
        self.free = asyncio.Semaphore(count)
        self.limiter = anyio.CapacityLimiter(math.inf)  # the seats are what limits; a body that waits holds none


class Owner(branch.Owner, Protocol):
    """The execution that a body belongs to."""

    def check(self) -> None:
        """Raise what has ended it, if anything has."""


class Body:
    """One run of a function in a thread."""

    def __init__(self, owner: Owner, calls: Caller, at: Branch, seats: Seats) -> None:
        self.branch = at
        self._desk = Desk(calls, self)
        self._owner = owner
        self._seats = seats
        self._loop = asyncio.get_running_loop()
        self._seated = False
        self._interrupted = False
        self._waiting: asyncio.Task[object] | None = None

    @property
    def desk(self) -> Desk:
        """Where its invocations go."""
        return self._desk

    async def run(self, fn: Callable[..., object], args: tuple[object, ...], kwargs: dict[str, object]) -> object:
        """Run `fn` in a thread. Canceled, this returns at once, and the thread ends at its next durable operation."""
        await self._sit()
        try:
            return await anyio.to_thread.run_sync(
                self._enter, fn, args, kwargs, abandon_on_cancel=True, limiter=self._seats.limiter
            )
        finally:
            self._rise()

    def interrupt(self) -> None:
        """Have the function end by a CancelledError, at the next promise that it waits for, or at this one."""
        self._interrupted = True
        if self._waiting is not None:
            self._waiting.cancel()

    # -- in the thread

    def _enter(self, fn: Callable[..., object], args: tuple[object, ...], kwargs: dict[str, object]) -> object:
        branch.thread.set(self)  # in a context of its own: anyio runs it in a copy
        return fn(*args, **kwargs)

    def hand_over(self, say: Callable[..., T], *args: object) -> T:
        """Call `say` in the asyncio loop's thread and give what it gives."""
        answer: Future[T] = Future()

        def run() -> None:
            try:
                self._owner.check()
                answer.set_result(say(*args))
            except BaseException as error:  # it is raised in the thread
                answer.set_exception(error)

        self._loop.call_soon_threadsafe(run)
        return answer.result()

    def wait(self, awaited: Coroutine[object, object, T], timeout_s: float | None) -> T:
        answer: Future[T] = Future()
        self._loop.call_soon_threadsafe(self._begin_waiting, awaited, timeout_s, answer)
        try:
            return answer.result()
        except WaitCanceled:
            self.hand_over(lambda: None)  # raises what has ended the execution, where that is why
            raise asyncio.CancelledError from None

    # -- in the asyncio loop's thread

    def _begin_waiting(self, awaited: Coroutine[object, object, T], timeout_s: float | None, answer: Future[T]) -> None:
        if self._interrupted:
            awaited.close()
            answer.cancel()
            return
        # A task of the execution, at the body's own place: it waits where the body would.
        waiting = branch.task(self._blocked(awaited, timeout_s), self.branch, self._loop)
        self._waiting = waiting
        self._owner.adopt(waiting)
        waiting.add_done_callback(lambda done: _pass_on(done, answer))

    async def _blocked(self, awaited: Coroutine[object, object, T], timeout_s: float | None) -> T:
        self._rise()
        try:
            async with asyncio.timeout(timeout_s):
                return await awaited
        finally:
            self._waiting = None
            await self._sit()

    async def _sit(self) -> None:
        await self._seats.free.acquire()
        self._seated = True

    def _rise(self) -> None:
        if self._seated:
            self._seated = False
            self._seats.free.release()


class Desk:
    """An execution's invocations, as its body's thread makes them."""

    def __init__(self, calls: Caller, body: Body) -> None:
        self._calls = calls
        self._body = body

    def invoke(
        self, at: Branch, function: Function[..., R], args: tuple[object, ...], kwargs: dict[str, object]
    ) -> Promise[R]:
        return self._body.hand_over(self._calls.invoke, at, function, args, kwargs)

    def external(self, at: Branch, annotation: object, id: str | None, timeout_s: float | None) -> Promise[object]:
        return self._body.hand_over(self._calls.external, at, annotation, id, timeout_s)

    def timer(self, at: Branch, seconds: float) -> Promise[None]:
        return self._body.hand_over(self._calls.timer, at, seconds)

    def now_ms(self, at: Branch) -> int:
        return self._body.hand_over(self._calls.now_ms, at)

    def seed(self, at: Branch) -> bytes:
        return self._body.hand_over(self._calls.seed, at)

    def decision(self, at: Branch, kind: str) -> Decision:
        return self._body.hand_over(self._calls.decision, at, kind)

    def recorded(self, at: Branch, kind: str) -> object:
        return self._body.hand_over(self._calls.recorded, at, kind)

    def cancel_child(self, promise: Promise[object]) -> None:
        self._body.hand_over(self._calls.cancel_child, promise)


def _pass_on(done: asyncio.Task[T], answer: Future[T]) -> None:
    if done.cancelled():
        answer.cancel()
    elif (error := done.exception()) is not None:
        answer.set_exception(error)
    else:
        answer.set_result(done.result())
