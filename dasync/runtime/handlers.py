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

from dasync.core import codec, failure
from dasync.core.model import PromiseRecord, State
from dasync.core.protocol import Command, PromiseCancel, PromiseGet, PromiseSettle, Reply
from dasync.errors import NoEventLoop, PromiseConflict, PromiseNotFound
from dasync.runtime import branch
from dasync.runtime.awaiters import Awaiters
from dasync.runtime.journal import Entry, Journal
from dasync.runtime.promise import UNREAD, Promise, Watcher
from dasync.runtime.registry import error_classes

_log = logging.getLogger("dasync")


class Handlers:
    """What one process tracks."""

    def __init__(self, journal: Journal, listening: Callable[[Promise[object]], Entry], max_payload: int) -> None:
        self._journal = journal
        self._max_payload = max_payload
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

    def await_(self, promise: Promise[object], *, among: bool = False) -> asyncio.Future[None]:
        """Await: the caller is suspended on the future that this gives, until the promise returns."""
        waiter = self.awaiters.add(promise, self.check_open())
        if promise.id not in self.pending and not promise.done():  # its execution has gone elsewhere
            self.track(promise)
            self.listen(promise)
        waiter.among = among
        if self.error is not None and waiter.held is None:
            waiter.set_exception(self.error)
        elif waiter.sharer is not None and not promise.known:
            waiter.sharer.expects(promise)
        elif waiter.sharer is not None and promise.done():  # others know it already
            self._resume(promise)
        return waiter

    def return_(self, promise: Promise[object], record: PromiseRecord, value: object = UNREAD) -> None:
        """Return: the promise is settled, durably; whoever awaits it is resumed.

        Where an execution here has made it, that is when its turn has come there.
        """
        if promise.done():
            return
        tracked = self.pending.get(promise.id, promise)
        for watcher in tracked.watchers:
            if watcher.takes(record, value):
                return
        self.deliver(promise, record, value)

    def deliver(self, promise: Promise[object], record: PromiseRecord, value: object = UNREAD) -> None:
        """The promise is settled for everybody here: tell them."""
        if promise.done():
            return
        tracked = self.pending.pop(promise.id, promise)
        if ":" not in promise.id:
            self._settled[promise.id] = promise
        promise.settle(record, value)
        for handle in (tracked, *self._twins.pop(promise.id, ())):
            if not handle.done():
                handle.settle(record, value)
        self._resume(promise)

    # -- what else promises and executions need

    def leave(self, promise: Promise[object], waiter: asyncio.Future[None]) -> None:
        """Somebody waits no longer."""
        self.awaiters.remove(promise.id, waiter)

    def is_awaited(self, promise: Promise[object]) -> bool:
        """Whether anybody in this process waits for it now."""
        return promise.id in self.awaiters

    def waits(self, name: str, id: str) -> bool:
        """Whether the execution of that name waits for that promise."""
        return self.awaiters.has(id, name)

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

    def gone(self, id: str) -> None:
        """The store holds no promise of that id any more: tell whoever waits for it here."""
        while (promise := self.pending.get(id)) is not None:
            self.refuse(promise, PromiseNotFound(f"promise {id!r} is gone: what has made it has started over"))

    def track(self, promise: Promise[object]) -> None:
        """From now on it is among the loop's promises; a handle that was there before hears of it too."""
        before = self.pending.get(promise.id)
        if before is not None and before is not promise:
            self._twins.setdefault(promise.id, []).append(before)
        self.pending[promise.id] = promise

    def hand_on(self, promise: Promise[object], watcher: Watcher, holder: object) -> None:
        """What it belongs to (`holder`) is no more here: it is tracked for others who wait, or not at all."""
        promise.watchers = tuple(other for other in promise.watchers if other is not watcher)
        if promise.watchers:  # it is a task of its own as well, and that runs here
            return
        if self.pending.get(promise.id) is not promise:
            return
        if self.awaiters.beside(promise.id, holder):
            self.listen(promise)
        elif twins := self._twins.pop(promise.id, []):
            self.pending[promise.id] = twins.pop(0)
            if twins:
                self._twins[promise.id] = twins
        else:
            del self.pending[promise.id]

    def handle(self, id: str, annotation: object, *, by_hand: bool = False) -> Promise[object]:
        """A handle to the promise of that id; it may be the second one of this process."""
        promise: Promise[object] = Promise(id, self, annotation, by_hand=by_hand)
        if self.pending.setdefault(id, promise) is not promise:
            self._twins.setdefault(id, []).append(promise)
        return promise

    def known(self, id: str) -> Promise[object] | None:
        """The handle of that id that this process has, if any."""
        return self.pending.get(id) or self._settled.get(id)

    def listen(self, promise: Promise[object]) -> None:
        """Ask the store to tell this process when it settles."""
        self._journal.write(self._listening(promise))

    def cancel(self, promise: Promise[object], reason: str | None) -> None:
        """End it as canceled: whoever runs it here sees to that, else the store does."""
        raw = None if reason is None else codec.encode(reason, path="reason", limit=self._max_payload)
        tracked = self.pending.get(promise.id, promise)
        if not any(watcher.cancel(raw) for watcher in reversed(tracked.watchers)):
            self._journal.write(Cancel(self, promise, raw))

    async def settle(self, promise: Promise[object], state: State, value: object) -> None:
        """Resolve it with a value or reject it with an error, from outside. Raises `PromiseConflict`."""
        self.check_open()
        if isinstance(value, BaseException) and state is State.REJECTED:
            raw = failure.encode_error(value, self._max_payload)
        else:
            raw = codec.encode(value, promise.annotation, limit=self._max_payload)
        patient = branch.current() is not None
        there = (await self._journal.ask(PromiseGet(promise.id), keep=patient)).promise
        if there is None:
            raise PromiseNotFound(f"the store holds no promise {promise.id!r}")
        if there.function or there.timer:
            raise PromiseConflict(
                f"promise {promise.id!r} is settled by {there.function!r}: only those of dasync.promise() are settled"
                " from outside; cancel() ends any"
            )
        if state is State.RESOLVED and there.state is State.PENDING:
            codec.decode(raw, promise.annotation, strict=True)  # refused where it is given, not where it is awaited
        settled = (await self._journal.ask(PromiseSettle(promise.id, state, raw), keep=patient)).promise
        if settled is None:
            raise PromiseNotFound(f"the store holds no promise {promise.id!r}")
        self.return_(promise, settled)
        same = settled.value == raw or (state is State.REJECTED and failure.alike(settled.value or b"", raw))
        if settled.state is not state or not same:
            raise PromiseConflict(f"promise {promise.id!r} is {settled.state.value} already, with another outcome")

    def urge(self) -> None:
        """Write what is queued without delay."""
        self._journal.urge()

    def read_error(self, data: bytes) -> BaseException:
        """The error that stored bytes describe."""
        return failure.decode_error(data, error_classes())

    def _resume(self, promise: Promise[object]) -> None:
        for waiter in self.awaiters.pop(promise.id):
            if waiter.done():
                continue
            if waiter.sharer is not None and not promise.refused:
                waiter.sharer.share(promise.id, promise.turn, waiter)
            else:
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


class Cancel:
    """The entry that cancels a promise which nobody here runs."""

    __slots__ = ("_handlers", "_promise", "_reason")

    def __init__(self, handlers: Handlers, promise: Promise[object], reason: bytes | None) -> None:
        self._handlers = handlers
        self._promise = promise
        self._reason = reason

    def command(self) -> Command:
        return PromiseCancel(self._promise.id, self._reason)

    def replied(self, reply: Reply) -> None:
        if reply.promise is None:
            self._handlers.refuse(self._promise, PromiseNotFound(f"the store holds no promise {self._promise.id!r}"))
        else:
            self._handlers.return_(self._promise, reply.promise)

    def failed(self, error: BaseException, *, final: bool) -> bool:
        return final
