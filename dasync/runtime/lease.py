"""The lease of this process, as code feels it: no step of an execution begins once it is over, until it is renewed.

A process that was stopped, or whose asyncio loop was blocked, does not know what others have decided meanwhile: its
tasks may run elsewhere by now. So before each step of their code the lease is looked at, by this process's monotonic
clock; when it is over, the step waits until the store has answered. What a process is running at each moment it leaves
in a box that outlives it, so that a crash can be put down to the task that was running. Who renews is the worker.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Coroutine, Generator
from types import TracebackType
from typing import Protocol, TypeVar, cast

from dasync.core.ids import MARK_BYTES
from dasync.ports import Box, Clock

T = TypeVar("T")
NOTHING = bytes(MARK_BYTES)
HERE = slice(0, MARK_BYTES)  # of the box: what runs on the asyncio loop; behind it, what runs in threads


class Holder(Protocol):
    """The task that a step belongs to."""

    id: str
    lease: Lease
    mark: bytes
    """Of its id."""
    signal: BaseException | None
    """Set once it is gone."""


class Lease:
    """How long this process may act on what it holds, and what it is at."""

    def __init__(self, clock: Clock, length_s: float) -> None:
        self.now = clock.monotonic
        self.ends = math.inf
        """When it is over, by `now`."""
        self.running: Holder | None = None
        """The task whose code runs on the asyncio loop at this moment."""
        self.box: Box = bytearray(MARK_BYTES)
        """Where it says so for those who find this process dead."""
        self._length_s = length_s
        self._seats: dict[int, None] = {}  # the free ones of those that have ever been taken
        self._taken = 0
        self._held_up: list[asyncio.Future[None]] = []

    def renewed(self, asked_at: float) -> None:
        """The store has answered to what was asked at that time: it is this process's from then on."""
        self.ends = asked_at + self._length_s
        held_up, self._held_up = self._held_up, []
        for future in held_up:
            if not future.done():
                future.set_result(None)

    def hold_up(self) -> asyncio.Future[None]:
        """For a step that may not begin before the store has answered."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._held_up.append(future)
        return future

    def enter(self, mark: bytes) -> int:
        """The code of that task runs in a thread from now on; gives the seat to `leave`."""
        if self._seats:
            seat, _ = self._seats.popitem()
        else:
            self._taken += 1
            seat = self._taken * MARK_BYTES
        self._write(seat, mark)
        return seat

    def leave(self, seat: int) -> None:
        """It does no more."""
        self._write(seat, NOTHING)
        self._seats[seat] = None

    def _write(self, seat: int, mark: bytes) -> None:
        if seat + MARK_BYTES <= len(self.box):
            self.box[seat : seat + MARK_BYTES] = mark


class Steps(Coroutine[object, object, T]):
    """The code of one asyncio task of an execution, step by step."""

    __slots__ = ("_coro", "_error", "_holder")

    def __init__(self, coro: Coroutine[object, object, T] | Generator[object, None, T], holder: Holder) -> None:
        self._coro = cast("Coroutine[object, object, T]", coro)
        self._holder = holder
        self._error: BaseException | None = None  # to be raised in the code when it may go on

    def send(self, value: object) -> object:
        holder = self._holder
        lease = holder.lease
        if lease.now() >= lease.ends and holder.signal is None:
            return self._wait(lease)
        error = self._error
        before, lease.running = lease.running, holder
        lease.box[HERE] = holder.mark
        try:
            if error is None:
                return self._coro.send(None)
            self._error = None
            return self._coro.throw(error)
        finally:
            lease.running = before
            lease.box[HERE] = NOTHING if before is None else before.mark

    def throw(
        self,
        error: type[BaseException] | BaseException,
        value: BaseException | object = None,
        trace: TracebackType | None = None,
        /,
    ) -> object:
        self._error = error if isinstance(error, BaseException) else cast(BaseException, value or error())
        return self.send(None)

    def close(self) -> None:
        self._coro.close()

    def __await__(self) -> Generator[object, None, T]:
        raise TypeError("the steps of a task are taken by the task")

    def __getattr__(self, name: str) -> object:
        return getattr(self._coro, name)  # cr_frame and the like, for whoever looks at a task

    @staticmethod
    def _wait(lease: Lease) -> asyncio.Future[None]:
        future = lease.hold_up()
        future._asyncio_future_blocking = True  # as `await` would say to the asyncio task
        return future
