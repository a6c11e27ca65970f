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
from contextlib import suppress
from threading import get_ident
from typing import Protocol, TypeVar, cast

import anyio
import anyio.to_thread

from dasync.errors import Suspended
from dasync.runtime import branch
from dasync.runtime.awaiters import Waiter
from dasync.runtime.branch import Branch
from dasync.runtime.function import Alarm, Caller, Decision, Function
from dasync.runtime.promise import Promise

T = TypeVar("T")
R = TypeVar("R")
LOOK_S = 1.0  # how often a thread that waits for the asyncio loop looks whether that has ended
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
        self.thread_id = 0
        """Of the thread that it runs in now."""
        self._desk = Desk(calls, self)
        self._owner = owner
        self._seats = seats
        self._loop = asyncio.get_running_loop()
        self._seat: int | None = None
        self._interrupted = False  # it is yet to be told so
        self._over = False
        self._task: asyncio.Task[object] | None = None  # the one that runs it, until it has a seat
        self._waiting: asyncio.Task[object] | None = None

    @property
    def desk(self) -> Desk:
        """Where its invocations go."""
        return self._desk

    async def run(self, fn: Callable[..., object], args: tuple[object, ...], kwargs: dict[str, object]) -> object:
        """Run `fn` in a thread. Canceled, this returns at once, and the thread ends at its next durable operation."""
        self._task = asyncio.current_task()
        try:
            await self._sit()
            self._task = None
            value = await anyio.to_thread.run_sync(
                self._enter, fn, args, kwargs, abandon_on_cancel=True, limiter=self._seats.limiter
            )
        finally:
            self._over = True
            self._rise()
        if self._interrupted:
            raise asyncio.CancelledError
        return value

    def rests(self) -> bool:
        """Whether the thread waits, for an outcome that has not come."""
        waits = None if self._waiting is None else self._waiting._fut_waiter  # type: ignore[attr-defined]  # asyncio's
        return isinstance(waits, Waiter) and not waits.done()

    def interrupt(self) -> None:
        """Have the function end by a CancelledError: at this wait or its next one, at its end, or before it begins."""
        now = self._waiting or self._task
        if now is not None:
            now.cancel()
        else:
            self._interrupted = True

    # -- in the thread

    def _enter(self, fn: Callable[..., object], args: tuple[object, ...], kwargs: dict[str, object]) -> object:
        branch.thread.set(self)  # in a context of its own: anyio runs it in a copy
        self.thread_id = get_ident()
        try:
            return None if self._interrupted else fn(*args, **kwargs)
        finally:
            self.thread_id = 0

    def hand_over(self, say: Callable[..., T], *args: object) -> T:
        """Call `say` in the asyncio loop's thread and give what it gives."""
        answer: Future[T] = Future()

        def run() -> None:
            try:
                self._owner.check()
                answer.set_result(say(*args))
            except BaseException as error:  # it is raised in the thread
                answer.set_exception(error)

        return self._answered(answer, run)

    def wait(self, awaited: Callable[[], Coroutine[object, object, T]], timeout_s: float | None) -> T:
        answer: Future[T] = Future()
        try:
            return self._answered(answer, lambda: self._begin_waiting(awaited, timeout_s, answer))
        except WaitCanceled:
            self.hand_over(lambda: None)  # raises what has ended the execution, where that is why
            raise asyncio.CancelledError from None

    def _answered(self, answer: Future[T], ask: Callable[[], None]) -> T:
        """What `ask`, called in the asyncio loop's thread, has `answer` give. A loop that has ended gives none."""
        try:
            self._loop.call_soon_threadsafe(ask)
        except RuntimeError:
            raise Suspended("the asyncio loop has ended") from None
        while not answer.done():
            with suppress(TimeoutError):
                answer.exception(LOOK_S)
            if self._loop.is_closed() and not answer.done():
                raise Suspended("the asyncio loop has ended")
        return answer.result()

    # -- in the asyncio loop's thread

    def _begin_waiting(
        self, awaited: Callable[[], Coroutine[object, object, T]], timeout_s: float | None, answer: Future[T]
    ) -> None:
        try:
            self._owner.check()
        except BaseException as error:  # it is raised in the thread
            answer.set_exception(error)
            return
        if self._interrupted:
            self._interrupted = False
            answer.cancel()
            return
        # A task of the execution, at the body's own place: it waits where the body would.
        waiting = branch.task(self._blocked(awaited, timeout_s), self.branch, self._loop)
        self._waiting = waiting
        self._owner.adopt(cast("branch.BranchTask[object]", waiting))
        waiting.add_done_callback(lambda done: _pass_on(done, answer))

    async def _blocked(self, awaited: Callable[[], Coroutine[object, object, T]], timeout_s: float | None) -> T:
        self._rise()
        try:
            return await (awaited() if timeout_s is None else self._in_time(awaited, timeout_s))
        finally:
            self._waiting = None
            await self._sit()

    async def _in_time(self, awaited: Callable[[], Coroutine[object, object, T]], timeout_s: float) -> T:
        """Await in a task of its own: one that is going to end its wait by itself does more than wait."""
        waiting = branch.task(awaited(), self.branch, self._loop)
        self._waiting = waiting
        self._owner.adopt(cast("branch.BranchTask[object]", waiting))
        try:
            await asyncio.wait([waiting], timeout=timeout_s)
            if not waiting.done():
                raise TimeoutError
            return waiting.result()
        finally:
            waiting.cancel()

    async def _sit(self) -> None:
        """Take a seat. A body that is over needs none: nobody would give it back."""
        if not self._over:
            await self._seats.free.acquire()
            self._seat = self._owner.held.lease.enter(self._owner.held.mark)
        if self._over:
            self._rise()

    def _rise(self) -> None:
        if self._seat is not None:
            self._owner.held.lease.leave(self._seat)
            self._seat = None
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

    def patched(self, at: Branch, name: str) -> bool:
        return self._body.hand_over(self._calls.patched, at, name)

    def again(self, function: Function[..., object], args: tuple[object, ...], kwargs: dict[str, object]) -> object:
        return self._body.hand_over(self._calls.again, function, args, kwargs)

    def cancel_child(self, promise: Promise[object]) -> None:
        self._body.hand_over(self._calls.cancel_child, promise)

    def alarm(self, at: Branch, delay_s: float, ring: Callable[[], None]) -> Alarm:
        return self._body.hand_over(self._calls.alarm, at, delay_s, ring)


def _pass_on(done: asyncio.Task[T], answer: Future[T]) -> None:
    if done.cancelled():
        answer.cancel()
    elif (error := done.exception()) is not None:
        answer.set_exception(error)
    else:
        answer.set_result(done.result())
