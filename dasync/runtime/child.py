"""What is written of an execution's invocations and of its own outcome: the journal's entries.

A `Child` is an invocation made inside an execution: created, then settled, in one row if it was quick. A `Fulfill`
is the outcome of a task. What an invocation is compared with its record by stands here; what may be written is
decided by the store.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from dasync.core import codec, divergence
from dasync.core.divergence import Call
from dasync.core.model import PromiseRecord, State
from dasync.core.protocol import (
    Command,
    PromiseCancel,
    PromiseCreate,
    PromiseGet,
    PromiseSettle,
    Reply,
    TaskFence,
    TaskFulfill,
)
from dasync.errors import LeaseLost
from dasync.runtime import source
from dasync.runtime.held import Held
from dasync.runtime.promise import Promise
from dasync.runtime.turns import Turns

SEED_BYTES = 16


class Parent(Protocol):
    """The execution that made a child."""

    held: Held
    turn: int
    """The last turn that it has taken."""

    @property
    def turns(self) -> Turns:
        """Where its children's outcomes wait for their turns."""

    def thread_id(self) -> int | None:
        """The thread that its body runs in; None: it runs on the asyncio loop."""

    def forget(self, child: Child) -> None:
        """A child is settled."""


class Child:
    """An invocation made inside an execution, and the journal's entry for it: created, then settled."""

    __slots__ = (
        "_begun_at", "_born_after", "_sent", "_stored", "_told", "function", "held", "local", "param", "parent",
        "promise", "queued", "raw", "state", "tags", "target", "timeout_at", "timer", "value", "version",
    )  # fmt: skip

    def __init__(
        self,
        parent: Parent,
        promise: Promise[object],
        function: str,
        version: int,
        param: bytes,
        *,
        target: str | None = None,
        timer: bool = False,
        local: bool = False,
        timeout_at: int | None = None,
        tags: str = "",
    ) -> None:
        self.held = parent.held
        self.parent = parent
        self.promise = promise
        self.function = function
        self.version = version
        self.param = param
        self.target = target
        self.timer = timer
        self.local = local
        self.timeout_at = timeout_at
        self.tags = tags
        self.state = State.PENDING
        self.raw: bytes | None = None
        self.value: object = None
        self.queued = False
        self._stored = False
        self._told = False
        self._begun_at = parent.held.host.clock.now_ms()
        self._born_after = parent.turn
        self._sent = State.PENDING

    def recall(self) -> PromiseRecord | None:
        """What an earlier run recorded of this invocation. Raises `NonDeterminismError` if it was another one."""
        record = self.held.history.pop(self.promise.id, None)
        if record is None:
            return None
        recorded, now = divergence.of(record), Call(self.function, self.version, self.param, self.target, self.timer)
        if recorded != now:
            at = source.calling(self.parent.thread_id())
            error = divergence.other_call(self.held.id, self.promise.id, recorded, now, at)
            self.held.diverge(error)
            raise error
        self._stored = True
        self._told = record.state is not State.PENDING
        return record

    def enqueue(self, *, urgent: bool) -> None:
        """Let the journal write what there is to write; what is queued already takes what has changed along."""
        journal = self.held.host.journal
        if not self.queued:
            self.queued = True
            if urgent:
                journal.write(self)
            else:
                journal.write_behind(self)
        elif urgent:
            journal.urge()

    def settle(self, state: State, raw: bytes | None, value: object) -> None:
        """Its outcome is known; it is delivered once it is durable."""
        self.state, self.raw, self.value = state, raw, value
        self.enqueue(urgent=True)

    def stop(self) -> None:
        """A timer is not needed any more. One that was not written by then never is."""
        if self.promise.done() or self.held.signal is not None or self.state is not State.PENDING:
            return
        self._told = True  # it takes no turn
        self.state = State.CANCELED
        self.parent.forget(self)
        self.held.host.handlers.hand_on(self.promise, self, self.held)
        self.promise.settle(PromiseRecord(
            self.promise.id, self.function, self.version, self.param, None, self.held.id, True, self.timeout_at,
            self.tags, self._begun_at, self._born_after, self.state, self._begun_at, None, None,
        ))  # fmt: skip
        if self._stored:
            self.enqueue(urgent=False)

    # -- the journal's side

    def command(self) -> Command:
        self.queued = False
        if self.timer and not self._stored and self.state is State.CANCELED:
            return PromiseGet(self.held.id)  # stopped in time: there is nothing to write
        if self._stored:
            self._sent = self.state
            if self.state is State.CANCELED and not self.local:
                return TaskFence(self.held.claim, PromiseCancel(self.promise.id, self.raw))
            return TaskFence(self.held.claim, PromiseSettle(self.promise.id, self.state, self.raw))
        self._stored = True
        born_settled = self.local and self.state is not State.PENDING
        if not born_settled and self.state is not State.PENDING:
            self.enqueue(urgent=True)  # what runs elsewhere is created before it is canceled
        self._sent = self.state if born_settled else State.PENDING
        return TaskFence(
            self.held.claim,
            PromiseCreate(
                self.promise.id, self.function, self.version, self.param, self.target, self.timer, self.timeout_at,
                self.tags, self.held.random_seed(self.promise.id)[:SEED_BYTES] if self.target else b"", None, None,
                self._sent, self.raw if born_settled else None, self._begun_at, self._born_after,
            ),
        )  # fmt: skip

    def replied(self, reply: Reply) -> None:
        record, promise = reply.promise, self.promise
        if record is None:
            self.held.lost(reply.reason)
            return
        if self.timer and promise.done():
            return
        if record.state is not State.PENDING:
            mine = record.state is self._sent and record.value == self.raw
            self.held.host.handlers.return_(promise, record, *((self.value,) if mine else ()))
        else:
            promise.mark_stored()

    def failed(self, error: BaseException, *, final: bool) -> bool:
        return _lost_with(self.held, error, final)

    # -- the promise's side

    def takes(self, record: PromiseRecord, value: object) -> bool:
        if self.held.signal is not None:
            return False
        if not self._told:
            self._told = True
            for other in self.promise.watchers:
                if other is not self:  # a task of its own as well, which runs here and is over now
                    other.settled()
            self.parent.turns.come(self, record, value)
        return True

    def taken(self, record: PromiseRecord, value: object) -> None:
        self.held.host.handlers.deliver(self.promise, record, value)

    def settled(self) -> None:
        self.parent.forget(self)
        if self.local and (execution := self.held.running.get(self.promise.id)) is not None:
            execution.overrule()  # settled over its head, by its deadline or from outside

    def cancel(self, reason: bytes | None) -> bool:
        if self.held.signal is not None:
            return False  # the claim is gone
        execution = self.held.running.get(self.promise.id) if self.local else None
        if execution is not None:
            execution.cancel(reason)
        elif not self.local and self.state is State.PENDING:
            self.settle(State.CANCELED, reason, None)
        return True


class Alarm(Child):
    """A timer that code has set by asyncio's means."""

    __slots__ = ("ring",)
    ring: Callable[[], None]

    def settled(self) -> None:
        super().settled()
        if self.promise.state is State.RESOLVED:
            self.ring()


class Decision:
    """The entry of something that the clock decided, as a promise that is born settled."""

    __slots__ = ("_child", "_decided", "known")

    def __init__(self, child: Child, decided: Callable[[Promise[object]], None]) -> None:
        self._child = child
        self._decided = decided
        record = child.recall()
        self.known = None if record is None or record.value is None else codec.decode(record.value)
        """What was decided in an earlier run; None: nothing yet."""

    def record(self, value: object) -> None:
        """It is decided now: the record becomes durable before any effect that follows from it."""
        self._decided(self._child.promise)
        self._child.settle(State.RESOLVED, codec.encode(value), value)


class Fulfill:
    """The journal's entry for a task's own outcome."""

    __slots__ = ("held", "raw", "state", "value")

    def __init__(self, held: Held, state: State, raw: bytes | None, value: object) -> None:
        self.held = held
        self.state = state
        self.raw = raw
        self.value = value

    def command(self) -> Command:
        return TaskFulfill(self.held.claim, self.state, self.raw)

    def replied(self, reply: Reply) -> None:
        record = reply.promise
        if record is None or record.state is State.PENDING:
            self.held.lost(reply.reason)
            return
        mine = record.state is self.state and record.value == self.raw
        host = self.held.host
        host.handlers.return_(self.held.promise, record, *((self.value,) if mine else ()))

    def failed(self, error: BaseException, *, final: bool) -> bool:
        return _lost_with(self.held, error, final)


def _lost_with(held: Held, error: BaseException, final: bool) -> bool:
    if final:
        held.drop(LeaseLost(f"{held.id}: {error}"))
    return final
