"""Batches: where items of one batched function meet, in whichever executions of this process they began.

The first item opens a batch, others join it, and one call of the handler is made for all. A batch belongs to no
execution: nothing is recorded of it, and its handler invokes nothing durable. What is recorded of an item, who tries it
again and who cancels it, is its own execution's business.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import nullcontext
from contextvars import Context
from typing import Any, NamedTuple, Protocol

import anyio.to_thread

from dasync.ports import Clock
from dasync.runtime import branch
from dasync.runtime.batched import Batched
from dasync.runtime.lease import Lease, Steps
from dasync.runtime.threads import Seats

AnyBatched = Batched[Any, object]


class Member(Protocol):
    """The task that an item belongs to."""

    id: str
    mark: bytes
    suspect: bool
    """The last process that ran it has ended meanwhile."""


class Failed(NamedTuple):
    """An item's outcome that is no value."""

    error: BaseException
    trace: object
    """Where it was raised: many raise the same one, and each adds its own."""


class Batches:
    """Those of one EventLoop."""

    def __init__(self, clock: Clock, lease: Lease, seats: Seats, context: Context) -> None:
        self.clock = clock
        self.lease = lease
        self.seats = seats
        self.context = context
        self.open: dict[tuple[Callable[..., object], str], Batch] = {}
        """Those that items may join."""
        self.suspects = asyncio.Lock()
        """Their handlers run in one thread at a time, so that who ends the process does not do it beside another."""

    async def join(self, function: AnyBatched, item: object, member: Member) -> object:
        """What the handler gives for `item`, which it takes with others; raises what it gives or raises as an error."""
        # A task whose code may have ended a process is by itself, so that no other is taken for it.
        key = function.fn, member.id if member.suspect else ""
        batch = self.open.get(key)
        if batch is None:
            batch = self.open[key] = Batch(self, key, function, member)
        slot = batch.add(item)
        try:
            outcome = await slot
        except asyncio.CancelledError:
            await batch.leave(slot)
            raise
        if isinstance(outcome, Failed):
            raise outcome.error.with_traceback(outcome.trace)  # type: ignore[arg-type]  # it was its own
        return outcome


class Batch:
    """Items, and the one call of the handler that is made for them."""

    def __init__(
        self, batches: Batches, key: tuple[Callable[..., object], str], function: AnyBatched, member: Member
    ) -> None:
        # The first one stands for all where a process says what it runs.
        self.id, self.mark, self.lease = member.id, member.mark, batches.lease
        self.signal: BaseException | None = None
        self._batches = batches
        self._key = key
        self._function = function
        self._items: dict[asyncio.Future[object], object] = {}
        self._pause: asyncio.Task[None] | None = None
        self._call: asyncio.Task[None] | None = None

    def add(self, item: object) -> asyncio.Future[object]:
        """One more; its outcome."""
        slot: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        self._items[slot] = item
        if len(self._items) >= self._function.max_size:
            self._begin()
        elif self._pause is None:
            self._pause = self._start(self._wait())
        return slot

    async def leave(self, slot: asyncio.Future[object]) -> None:
        """Nobody wants that outcome any more. With the last one the whole batch ends; this returns once it has."""
        self._items.pop(slot, None)
        if self._items:
            await asyncio.sleep(0)  # all that are handed back leave together, and none before its handler has ended
        else:
            self._close()
            self.signal = asyncio.CancelledError()
            if self._call is not None:
                self._call.cancel()
        if not self._items and self._call is not None and not self._call.done():
            await asyncio.wait([self._call])

    def _start(self, coro: Coroutine[object, object, None]) -> asyncio.Task[None]:
        """A task that belongs to no execution, although one makes it: no task factory is asked."""
        context = self._batches.context.copy()
        context.run(branch.handler.set, self._function.name)
        return asyncio.Task(coro, loop=asyncio.get_running_loop(), name=f"batch {self._function.name}", context=context)

    async def _wait(self) -> None:
        await self._batches.clock.sleep(self._function.max_wait_s)
        self._begin()

    def _begin(self) -> None:
        self._close()
        self._call = self._start(Steps(self._run(), self))

    def _close(self) -> None:
        """Nobody else joins."""
        if self._batches.open.get(self._key) is self:
            del self._batches.open[self._key]
        if self._pause is not None:
            self._pause.cancel()

    # -- the call

    async def _run(self) -> None:
        items = {slot: item for slot, item in self._items.items() if not slot.done()}
        if not items:
            return
        try:
            outcomes = await self._handled(list(items.values()))
        except (KeyboardInterrupt, SystemExit, GeneratorExit):
            raise  # the end of the whole program settles nothing
        except BaseException as error:  # as of any function: each execution makes of it what it means
            outcomes = [error] * len(items)
        # All at once: what their executions write goes to the store together.
        for slot, outcome in zip(items, outcomes, strict=True):
            if not slot.done():
                failed = isinstance(outcome, BaseException)
                slot.set_result(Failed(outcome, outcome.__traceback__) if failed else outcome)

    async def _handled(self, items: list[object]) -> list[Any]:
        """An outcome for each of them."""
        function, count = self._function, len(items)
        given = await (self._in_thread(items) if function.threaded else function.fn(items))
        if given is None:
            return [None] * count
        rule = f"{function.name}: a handler returns a list with an outcome for each item, or None"
        if not isinstance(given, list):
            raise TypeError(f"{rule}; this one returned {type(given).__qualname__!r}")
        if len(given) != count:
            raise ValueError(f"{rule}; this one returned {len(given)} for {count} items")
        return given

    async def _in_thread(self, items: list[object]) -> object:
        seats = self._batches.seats
        async with self._batches.suspects if self._key[1] else nullcontext(), seats.free:
            seat = self.lease.enter(self.mark)
            try:
                return await anyio.to_thread.run_sync(
                    self._function.fn, items, abandon_on_cancel=True, limiter=seats.limiter
                )
            finally:
                self.lease.leave(seat)
