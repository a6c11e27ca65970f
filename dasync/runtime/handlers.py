"""The model: promises and awaiters; invoke, await, return.

That is all that an event loop is, and here is its durable form for one process. To invoke is to track a promise and
say so to the store (`begin`); to await is to be among a promise's awaiters (`await_`); a promise returns once its
settlement is durable (`return_`), and whoever awaits it is resumed. Who runs what is not known here.
"""

from __future__ import annotations

import asyncio
import logging
from collections import ChainMap
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import cast
from weakref import WeakValueDictionary

from dasync.core import failure
from dasync.core.model import State
from dasync.errors import NoEventLoop
from dasync.runtime.awaiters import Awaiters
from dasync.runtime.function import error_classes
from dasync.runtime.journal import Entry, Journal
from dasync.runtime.promise import UNREAD, Promise

_log = logging.getLogger("dasync")


class Handlers:
    """What one process tracks."""

    def __init__(self, journal: Journal, listening: Callable[[Promise[object]], Entry]) -> None:
        self._journal = journal
        self._listening = listening
        self.pending: dict[str, Promise[object]] = {}
        """The promises that are tracked, by id."""
        self._settled: WeakValueDictionary[str, Promise[object]] = WeakValueDictionary()
        self._twins: dict[str, list[Promise[object]]] = {}
        self.awaiters = Awaiters()
        """Who waits for what."""
        self._asyncio: asyncio.AbstractEventLoop | None = None
        self.error: BaseException | None = None
        """What has ended the writing, if anything has."""
        self.ended = asyncio.Event()
        """Set when the writing has ended."""

    # -- the three handlers

    def begin(self, promise: Promise[object], entry: Entry) -> None:
        """Invoke: the promise is tracked, and `entry` tells the store of it. Never suspends the caller."""
        self.pending.setdefault(promise.id, promise)
        self._journal.write(entry)

    def await_(self, promise: Promise[object]) -> asyncio.Future[None]:
        """Await: the caller is suspended on the future that this gives, until the promise returns."""
        waiter = self.awaiters.add(promise, self.check_open())
        if self.error is not None and waiter.held is None:
            waiter.set_exception(self.error)
        return waiter

    def return_(
        self, promise: Promise[object], state: State, raw: bytes | None, value: object = UNREAD
    ) -> None:
        """Return: the promise is settled, durably; whoever awaits it is resumed."""
        if promise.done():
            return
        tracked = self.pending.pop(promise.id, promise)
        if ":" not in promise.id:
            self._settled[promise.id] = promise
        promise.settle(state, raw, value)
        for handle in (tracked, *self._twins.pop(promise.id, ())):
            if not handle.done():
                handle.settle(state, raw, value)
        self._resume(promise)

    # -- what else promises and executions need

    def leave(self, promise: Promise[object], waiter: asyncio.Future[None]) -> None:
        """Somebody waits no longer."""
        self.awaiters.remove(promise.id, waiter)

    def is_awaited(self, promise: Promise[object]) -> bool:
        """Whether anybody in this process waits for it now."""
        return promise.id in self.awaiters

    def refuse(self, promise: Promise[object], error: BaseException) -> None:
        """It cannot be had: tell who awaits it. Nothing is settled."""
        twins = self._twins.pop(promise.id, [])
        if promise in twins:
            twins.remove(promise)
        elif self.pending.get(promise.id) is promise:
            del self.pending[promise.id]
            if twins:  # what was refused to one may be right for another: news must still reach it
                self.pending[promise.id] = twins.pop(0)
        if twins:
            self._twins[promise.id] = twins
        promise.refuse(error)
        self._resume(promise)  # another handle of the same id finds itself pending still and waits on

    def track(self, promise: Promise[object]) -> None:
        """From now on it is among the loop's promises; a handle that was there before hears of it too."""
        before = self.pending.get(promise.id)
        if before is not None and before is not promise:
            self._twins.setdefault(promise.id, []).append(before)
        self.pending[promise.id] = promise

    def handle(self, id: str, annotation: object) -> Promise[object]:
        """A handle to the promise of that id; it may be the second one of this process."""
        promise: Promise[object] = Promise(id, self, annotation)
        if self.pending.setdefault(id, promise) is not promise:
            self._twins.setdefault(id, []).append(promise)
        return promise

    def known(self, id: str) -> Promise[object] | None:
        """The handle of that id that this process has, if any."""
        return self.pending.get(id) or self._settled.get(id)

    def listen(self, promise: Promise[object]) -> None:
        """Ask the store to tell this process when it settles."""
        self._journal.write(self._listening(promise))

    def urge(self) -> None:
        """Write what is queued without delay."""
        self._journal.urge()

    def read_error(self, data: bytes) -> BaseException:
        """The error that stored bytes describe."""
        return failure.decode_error(data, error_classes())

    def _resume(self, promise: Promise[object]) -> None:
        for waiter in self.awaiters.pop(promise.id):
            if not waiter.done():
                waiter.set_result(None)

    # -- its life, and what can be seen of it

    def open(self) -> None:
        """Be a guest of the running asyncio loop."""
        self._asyncio = asyncio.get_running_loop()

    def close(self) -> None:
        """Tell who still waits that nothing comes any more."""
        self._asyncio = None
        self.fail_outside(NoEventLoop("the EventLoop was closed; the promise is in the store: await it from another"))

    def check_open(self) -> asyncio.AbstractEventLoop:
        """The asyncio loop that this is a guest of. Raises `NoEventLoop` when closed."""
        if self._asyncio is None:
            raise NoEventLoop("this EventLoop is not open: use `async with dasync.EventLoop(...) as loop:`")
        return self._asyncio

    def broken(self, error: BaseException) -> None:
        """Nothing will be settled here any more: everybody is told, now and later."""
        if self.error is None:
            self.error = error
            _log.critical("dasync stops writing: %s", error)
            self.fail_outside(error)
            self.ended.set()

    def fail_outside(self, error: BaseException) -> None:
        """Raise `error` where anybody but an execution awaits."""
        for waiter in self.awaiters.outside():
            if not waiter.done():
                waiter.set_exception(error)

    @property
    def promises(self) -> Mapping[str, Promise[object]]:
        """The pending promises, and settled roots while somebody holds them."""
        return MappingProxyType(ChainMap(self.pending, cast("dict[str, Promise[object]]", self._settled)))
