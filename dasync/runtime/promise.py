"""The awaitable that a caller holds.

A `Promise` is a handle: what it stands for is a row in the store. It is settled by the event loop, when the
settlement is durable; it settles nothing by itself and knows no store.
"""

from __future__ import annotations

import asyncio
import logging
from abc import ABCMeta
from collections.abc import Coroutine, Generator
from typing import NoReturn, Protocol, TypeVar, cast
from zlib import crc32

from dasync.core import codec, ids
from dasync.core.model import PromiseRecord, State
from dasync.errors import DecodeError, PromiseCanceled, PromiseTimedOut
from dasync.runtime import branch

T_co = TypeVar("T_co", covariant=True)
_log = logging.getLogger("dasync")
UNREAD = object()  # a value that is not decoded yet
_INNER = {
    "annotation", "arrived", "birth", "expect", "heard", "known", "maker", "mark_stored", "raw", "refuse", "refused",
    "settle", "settlement", "tracker", "turn", "watchers",
}  # fmt: skip


class Tracker(Protocol):
    """Who tracks promises and awaiters: the event loop."""

    def await_(self, promise: Promise[object], *, among: bool = False) -> asyncio.Future[None]:
        """Somebody waits, maybe `among` others: the future is done when the promise is settled."""

    def leave(self, promise: Promise[object], waiter: asyncio.Future[None]) -> None:
        """Somebody waits no longer."""

    def is_awaited(self, promise: Promise[object]) -> bool:
        """Whether anybody in this process waits for it now."""

    def waits(self, name: str, id: str) -> bool:
        """Whether the execution of that name waits for that promise."""

    def track(self, promise: Promise[object]) -> None:
        """From now on it is among the tracked promises."""

    def hand_on(self, promise: Promise[object], watcher: Watcher, holder: object) -> None:
        """What it belongs to (`holder`) is no more here: it is tracked for others who wait, or not at all."""

    def listen(self, promise: Promise[object]) -> None:
        """Ask the store to tell this process when it settles."""

    def return_(
        self, promise: Promise[object], record: PromiseRecord, value: object = ...
    ) -> None:
        """It is settled, durably: resume who awaits it, where an execution here has made it in its turn there."""

    def deliver(self, promise: Promise[object], record: PromiseRecord, value: object = ...) -> None:
        """Its turn has come: resume who awaits it."""

    def refuse(self, promise: Promise[object], error: BaseException) -> None:
        """It cannot be had: tell who awaits it. Nothing is settled."""

    def gone(self, id: str) -> None:
        """The store holds no promise of that id any more: tell whoever waits for it here."""

    def urge(self) -> None:
        """Write what is queued without delay."""

    def cancel(self, promise: Promise[object], reason: str | None) -> None:
        """End it as canceled, and before it what its execution made."""

    async def settle(self, promise: Promise[object], state: State, value: object) -> None:
        """Resolve it with a value or reject it with an error, from outside. Raises `PromiseConflict`."""

    def check_open(self) -> asyncio.AbstractEventLoop:
        """The asyncio loop that this is a guest of. Raises `NoEventLoop` when closed."""

    def read_error(self, data: bytes) -> BaseException:
        """The error that stored bytes describe."""


class Watcher(Protocol):
    """What a promise stands for in this process: an invocation made here, a task held here."""

    def takes(self, record: PromiseRecord, value: object) -> bool:
        """Whether this one has it delivered in its turn, having been told that it is settled."""

    def settled(self) -> None:
        """The promise is settled, by whomever."""

    def cancel(self, reason: bytes | None) -> bool:
        """End it as canceled, if that is for this one to do; `reason` is encoded."""


class _Surface(ABCMeta):
    """What `dir`, `help` and completion show of a promise: what programs use, not what the event loop does to it."""

    def __dir__(cls) -> list[str]:
        return [name for name in super().__dir__() if name not in _INNER]


class _Driven(Coroutine[object, object, T_co]):
    """The coroutine protocol that asyncio's tasks drive; each task has an await of its own."""

    __slots__ = ("_drivers",)
    _drivers: dict[asyncio.Task[object] | None, Generator[object, object, T_co]] | None

    def send(self, value: object) -> object:
        task = asyncio.current_task()
        drivers = self._drivers = self._drivers or {}
        driver = drivers.get(task)
        if driver is None:
            driver = drivers[task] = self.__await__()
        try:
            return driver.send(value)
        except BaseException:
            del drivers[task]
            raise

    def throw(self, *error: object) -> object:
        task = asyncio.current_task()
        driver = (self._drivers or {}).pop(task, None) or self.__await__()
        result = driver.throw(*error)  # type: ignore[call-overload]  # both of throw's signatures, passed on
        (self._drivers or {})[task] = driver
        return result

    def close(self) -> None:
        """End the await of a task that gave up before its end; the promise goes on."""
        drivers, self._drivers = self._drivers, None
        for driver in (drivers or {}).values():
            driver.close()


class Promise(_Driven[T_co], metaclass=_Surface):
    """A durable promise: `await` it for its value or its error.

    It can be awaited any number of times, from several places. It is a coroutine object as far as asyncio and
    anyio are concerned, so `asyncio.create_task(f(x))`, `asyncio.gather(f(x), ...)`, `tg.create_task(f(x))` and
    `tg.start_soon(f, x)` take it. Canceling an await never cancels the promise.

    Example:
        >>> import dasync
        >>> @dasync.function
        ... async def double(x: int) -> int:
        ...     return 2 * x
        >>> async def main() -> int:
        ...     promise = double(21)
        ...     await promise.created()
        ...     assert promise.state is dasync.State.PENDING or promise.done()
        ...     return await promise
        >>> dasync.run(main)
        42
    """

    __slots__ = (
        "__weakref__", "_annotation", "_births", "_by_hand", "_raw", "_refusal", "_state", "_stored",
        "_tracker", "_value", "heard", "id", "maker", "turn", "watchers",
    )  # fmt: skip

    def __init__(self, id: str, tracker: Tracker, annotation: object, *, by_hand: bool = False) -> None:
        self.id = id
        """Its address: any process can await it, `dasync show` prints it."""
        self.heard = False
        """Whether anyone has asked for its outcome: a failure that nobody hears rejects the parent."""
        self.watchers: tuple[Watcher, ...] = ()
        """Who acts on its settlement before its awaiters do."""
        self.maker: str | None = None
        """The execution that has made it as a child, and takes its outcome in a turn."""
        self.turn = 0
        """Which commit has settled it: the lower, the earlier; 0 while that is not known."""
        self._tracker = tracker
        self._annotation = annotation
        self._state = State.PENDING
        self._raw: bytes | None = None
        self._value: object = UNREAD
        self._by_hand = by_hand  # somebody outside settles it: what he gives is checked to the last
        self._stored = False
        self._refusal: BaseException | None = None
        self._births: list[asyncio.Future[None]] | None = None
        self._drivers = None

    def __del__(self) -> None:
        # A child's failure rejects its parent; of a root's, which nobody asked for, nobody would ever hear.
        if self._state is State.REJECTED and not self.heard and ids.root_of(self.id) == self.id:
            _log.error("%s has failed, and nobody asked for its outcome: `dasync show %s` tells it", self.id, self.id)

    def __dir__(self) -> list[str]:
        return dir(type(self))

    def __hash__(self) -> int:
        return crc32(self.id.encode())  # not by address: sets of promises are gone through alike in every run

    def __repr__(self) -> str:
        return f"<Promise {self.id!r} {self._state.value}>"

    @property
    def state(self) -> State:
        """`State.PENDING` until the settlement is durable and known here."""
        return self._state

    def done(self) -> bool:
        """Whether it is settled."""
        return self._state is not State.PENDING

    def result(self) -> T_co:
        """The value; raises the error of a failed one, `asyncio.InvalidStateError` while it is pending."""
        self.heard = True
        if self._state is State.RESOLVED:
            if self._value is UNREAD:
                self._value = self._decoded()
            return cast(T_co, self._value)
        return self._raise()

    def _decoded(self) -> object:
        try:
            return None if self._raw is None else codec.decode(self._raw, self._annotation, strict=self._by_hand)
        except DecodeError as error:
            raise DecodeError(f"promise {self.id!r}: {error}") from error

    def exception(self) -> BaseException | None:
        """The error of a failed one, None for a resolved one; raises `InvalidStateError` while it is pending."""
        self.heard = True
        if self._state is State.RESOLVED:
            return None
        try:
            self._raise()
        except asyncio.InvalidStateError:
            raise
        except BaseException as error:
            return error

    async def cancel(self, reason: str | None = None) -> None:
        """End it as canceled and, before it, the pending children below it; returns when that is durable.

        Code that runs for it is interrupted at its next await. A promise that is settled already stays as it is.
        Children made with `detached=True`, shared promises and those that somebody outside settles go on.

        Example:
            >>> import dasync
            >>> @dasync.function
            ... async def wait_for_ever() -> None:
            ...     await dasync.promise()
            >>> async def main() -> str:
            ...     promise = wait_for_ever()
            ...     await promise.cancel("no longer needed")
            ...     return promise.state.value
            >>> dasync.run(main)
            'canceled'
        """
        if reason is not None and not isinstance(reason, str):
            raise TypeError(f"a reason is a str, not {reason!r}")
        self.heard = True
        if not self.done() and not self.refused:
            self._tracker.cancel(self, reason)
        await self.settlement()

    async def resolve(self, value: object = None) -> None:
        """Settle a promise that `dasync.promise()` made, with a value; returns when that is durable.

        Doing so again is nothing; settling it otherwise raises `PromiseConflict`.

        Example:
            >>> import dasync
            >>> async def main() -> int:
            ...     promise = dasync.promise(int, id="answer")
            ...     await promise.resolve(42)
            ...     return await promise
            >>> dasync.run(main)
            42
        """
        await self._tracker.settle(self, State.RESOLVED, value)

    async def reject(self, error: BaseException) -> None:
        """Settle a promise that `dasync.promise()` made, with an error; else as `resolve`."""
        if not isinstance(error, BaseException):
            raise TypeError(f"reject takes an exception, not {error!r}; a value is given with resolve")
        await self._tracker.settle(self, State.REJECTED, error)

    def wait(self, timeout: float | None = None) -> T_co:
        """Block this thread until it is settled; gives the value or raises the error.

        For functions that are not `async def`, and other threads. `timeout` is in seconds; when it is over,
        `TimeoutError` is raised and the promise goes on.

        Example:
            >>> import dasync
            >>> @dasync.function
            ... def add(x: int, y: int) -> int:
            ...     return x + y
            >>> @dasync.function
            ... def total(n: int) -> int:
            ...     return sum(add(i, i).wait() for i in range(n))
            >>> async def main() -> int:
            ...     return await total(4)
            >>> dasync.run(main)
            12
        """
        self.heard = True
        body = branch.body()
        if _in_a_loop():
            raise RuntimeError(f"wait() would block the asyncio loop: use `await` for promise {self.id!r}")
        if body is not None:
            body.wait(self.settlement, timeout)
        elif not self.done() and not self.refused:
            waiting = asyncio.run_coroutine_threadsafe(self.settlement(), self._tracker.check_open())
            try:
                waiting.result(timeout)
            finally:
                waiting.cancel()
        return self.result()

    async def settlement(self) -> None:
        """Return once it is settled, however that is; raises nothing but what keeps it from being had at all."""
        while not self.arrived:
            waiter = self._tracker.await_(self)
            try:
                await waiter
            finally:
                self._tracker.leave(self, waiter)
        if self._refusal is not None:
            raise self._refusal

    async def created(self) -> None:
        """Return once the pending record is durable. Raises `PromiseConflict` for an id in other use."""
        if not self._stored and self._refusal is None:
            self._tracker.urge()
            await self.birth()
        if self._refusal is not None:
            raise self._refusal

    def _raise(self) -> NoReturn:
        if self._refusal is not None:
            raise self._refusal
        if self._state is State.PENDING:
            raise asyncio.InvalidStateError(f"promise {self.id!r} is pending: await it")
        if self._state is State.TIMEDOUT:
            raise PromiseTimedOut(f"promise {self.id!r} reached its deadline before it was settled")
        if self._state is State.CANCELED:
            reason = "" if self._raw is None else f": {codec.decode(self._raw)}"
            raise PromiseCanceled(f"promise {self.id!r} was canceled{reason}")
        # Decoded anew for each who asks: one exception object raised in several places mixes their tracebacks up.
        raise self._tracker.read_error(self._raw or b"")

    # -- what the event loop does to it

    def mark_stored(self) -> None:
        """Its pending record is durable."""
        self._stored = True
        births, self._births = self._births, None
        for birth in births or ():
            if not birth.done():
                birth.set_result(None)

    def settle(self, record: PromiseRecord, value: object = UNREAD) -> None:
        """It is settled, durably; `value` saves decoding the record's where it is known."""
        self._state, self._raw, self._value, self.turn = record.state, record.value, value, record.turn or 0
        if not self._stored:
            self.mark_stored()
        watchers, self.watchers = self.watchers, ()
        for watcher in watchers:
            watcher.settled()

    def expect(self, annotation: object) -> None:
        """Its value will be of that type."""
        self._annotation = annotation

    def refuse(self, error: BaseException) -> None:
        """It cannot stand for what was invoked: whoever asks gets `error`. Nothing is settled."""
        self._refusal = error
        self.mark_stored()

    @property
    def known(self) -> bool:
        """Whether its record is durable, and was heard of."""
        return self._stored

    def birth(self) -> asyncio.Future[None]:
        """Done once its record is durable, and heard of, or it is refused."""
        self._births = [*(self._births or ()), asyncio.get_running_loop().create_future()]
        return self._births[-1]

    @property
    def annotation(self) -> object:
        """What its value is, as far as it was said."""
        return self._annotation

    @property
    def tracker(self) -> Tracker:
        """The event loop that tracks it."""
        return self._tracker

    @property
    def raw(self) -> bytes | None:
        """The encoded outcome."""
        return self._raw

    @property
    def arrived(self) -> bool:
        """Whether whoever runs now need not wait for it: an execution takes what it has not made in its turn, too."""
        done = self._state is not State.PENDING
        return self._refusal is not None or (done and (self.maker is not None or not branch.withholds(self.id)))

    @property
    def refused(self) -> bool:
        """Whether asking it gives an error that is not the promise's own."""
        return self._refusal is not None

    # -- await

    def __await__(self) -> Generator[object, object, T_co]:
        self.heard = True
        # Children first, and without a call: a replay comes through here once for each.
        while (self._state is State.PENDING and self._refusal is None) or (self.maker is None and not self.arrived):
            waiter = self._tracker.await_(self)
            try:
                yield from waiter
            finally:
                self._tracker.leave(self, waiter)
        return self.result()


def _in_a_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
