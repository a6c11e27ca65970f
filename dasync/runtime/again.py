"""To start over: what `f.again(...)` gives to the run that returns it, and the journal's entry that ends that run.

The next run has the same promise and an empty history: what the last one has made is removed in the transaction that
keeps the new arguments. When that is said, and what runs then, is known to the execution.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection

from dasync.core import ids
from dasync.core.protocol import AGAIN, Command, PromiseAgain, Reply, TaskFence
from dasync.errors import DecodeError, LeaseLost, NonDeterminismError
from dasync.runtime.child import Child
from dasync.runtime.function import Function
from dasync.runtime.held import Held
from dasync.runtime.promise import Promise

Args = tuple[object, ...]
Kwargs = dict[str, object]


class Again:
    """The wish to start over, with the arguments of the next run, encoded and as that run will see them."""

    __slots__ = ("_durable", "_held", "_id", "_promise", "args", "kwargs", "param")

    def __init__(
        self, held: Held, promise: Promise[object], function: Function[..., object], args: Args, kwargs: Kwargs
    ) -> None:
        function.bind(args, kwargs)
        self._held = held
        self._promise = promise
        self._id = ids.run(promise.id, held.run_of(promise.id) + 1)
        self.param, self.args, self.kwargs = function.shape.encode(args, kwargs, held.host.max_payload)
        self._durable: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def __repr__(self) -> str:
        return f"<{self._promise.id} is to start over: return this>"

    async def written(self, left: Collection[Child]) -> None:
        """End the run, which leaves these pending: timers, and what somebody outside settles. It is history then."""
        for child in left:  # what settles from now on is nobody's turn any more
            child.promise.watchers = ()
        self._held.host.journal.write(self)
        await self._durable
        for child in left:
            self._held.host.handlers.gone(child.promise.id)

    # -- the journal's side

    def command(self) -> Command:
        return TaskFence(self._held.claim, PromiseAgain(self._id, self.param))

    def replied(self, reply: Reply) -> None:
        record = reply.promise
        if record is None:
            self._held.lost(reply.reason)
        elif record.function != AGAIN:  # settled over its head
            self._held.host.handlers.return_(self._promise, record)
        else:
            self._held.runs[self._promise.id] = record
            if not self._durable.done():
                self._durable.set_result(None)

    def failed(self, error: BaseException, *, final: bool) -> bool:
        if final:
            self._held.drop(LeaseLost(f"{self._held.id}: {error}"))
        return final


def latest(child: Child, function: Function[..., object]) -> tuple[bytes, Args, Kwargs]:
    """What a local child that has started over goes on with: what it said last."""
    held, kept = child.held, child.held.runs[child.promise.id]
    try:
        return kept.param, *function.shape.decode(kept.param)
    except DecodeError as unfit:
        error = NonDeterminismError(f"{child.promise.id!r} has started over with what does not fit any more: {unfit}")
        held.diverge(error)
        raise error from unfit


def check_same(function: Function[..., object], running: Function[..., object]) -> None:
    """Raise `TypeError` where another function is to start over than the one that runs."""
    if (function.name, function.version) != (running.name, running.version):
        raise TypeError(
            f"{function!r} is not what runs here, {running!r} is: only a function itself can start over; to go on with"
            " another one, await it, or return its promise"
        )
