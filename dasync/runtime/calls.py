"""What an execution may say while it runs: invocations, timers, decisions, each at its place in the program.

Each becomes a child with a structural id. In a replay a child that is recorded is not made again, and one that is
recorded as settled is not run again. Who runs a local child, and when the execution itself ends, is known one file
further (`execution.py`).
"""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import Callable
from functools import partial
from typing import TypeVar, cast

from dasync.core import codec, divergence, ids
from dasync.core.model import PromiseRecord, State
from dasync.runtime import source
from dasync.runtime.branch import Branch
from dasync.runtime.child import Alarm, Child, Decision
from dasync.runtime.function import ALARM, NOW, PATCHED, RETRY, SLEEP, Function
from dasync.runtime.held import Deadline, Held
from dasync.runtime.places import Places
from dasync.runtime.promise import Promise
from dasync.runtime.registry import lookup, tags_of

R = TypeVar("R")


# What is on record of a promise that the execution has awaited and not made: no more than its id.
SHARED_CALL = divergence.Call("", 1, b"", None, False)


class Calls(Places):
    """The invocations of one execution."""

    __slots__ = ("_patches", "children", "failed", "invoked", "time", "timeout_at")

    def __init__(self, held: Held, id: str, timeout_at: int | None) -> None:
        super().__init__(held, id)
        self.timeout_at = timeout_at
        """Its own deadline, which no child of it outlives."""
        self.children: dict[str, Child] = {}
        """Those that are pending."""
        self.failed: list[Promise[object]] | None = None
        """Those that have failed before anybody asked for their outcome."""
        self.invoked = False
        """Whether it has made anything that a second attempt would make again."""
        self.time = 0.0
        """For when the last timer was set that has rung, by the clock of the asyncio loop."""
        self._patches: dict[str, bool] | None = None  # what its code was told of each of its changes

    def alarms(self) -> list[str]:
        """The timers that its code has set by asyncio's means, and that have not rung."""
        return [id for id, child in self.children.items() if child.function == ALARM]

    @abstractmethod
    def check(self) -> None:
        """Raise what has ended it, if anything has."""

    @abstractmethod
    def again(self, function: Function[..., object], args: tuple[object, ...], kwargs: dict[str, object]) -> object:
        """What it returns to start over with those arguments."""

    @abstractmethod
    def run_child(
        self, child: Child, function: Function[..., object], args: tuple[object, ...], kwargs: dict[str, object]
    ) -> None:
        """Run a local child as part of this task."""

    def invoke(
        self, at: Branch, function: Function[..., R], args: tuple[object, ...], kwargs: dict[str, object]
    ) -> Promise[R]:
        self.speak()
        self.invoked = True
        host, options = self.held.host, function.configured
        if options.id is not None:  # a root that whoever uses the id shares; not a child
            return host.roots.invoke_function(function, args, kwargs)
        if options.detached:
            return host.roots.invoke_function(function, args, kwargs, id=self._place(at))
        function.bind(args, kwargs)
        param, args, kwargs = function.shape.encode(args, kwargs, host.max_payload)
        promise: Promise[R] = Promise(self._place(at), host.handlers, function.result)
        local = options.on is None
        if local and function.declared:
            raise TypeError(f"{function.name!r} is only declared here: say where it runs, with on=")
        if local and options.version is not None:
            function = cast("Function[..., R]", lookup(function.name, function.version).adopting(options))
        child = Child(
            self, promise, function.name, function.version, param,
            target=options.on, local=local, timeout_at=self._deadline(options.timeout_s),
            tags=tags_of(function) if options.tags or options.retry else "",
        )  # fmt: skip
        self.begin(child, cast("Function[..., object]", function), args, kwargs)
        return promise

    def external(self, at: Branch, annotation: object, id: str | None, timeout_s: float | None) -> Promise[object]:
        self.speak()
        self.invoked = True
        if id is not None:
            return self.held.host.roots.external(annotation, id, timeout_s)
        promise: Promise[object] = Promise(self._place(at), self.held.host.handlers, annotation, by_hand=True)
        self.begin(Child(self, promise, "", 1, b"", timeout_at=self._deadline(timeout_s)))
        return promise

    def timer(self, at: Branch, seconds: float) -> Promise[None]:
        self.speak()
        self.invoked = True
        promise: Promise[None] = Promise(self._place(at), self.held.host.handlers, object)
        self.begin(Child(self, promise, SLEEP, 1, b"", timer=True, timeout_at=self._after(seconds)))
        return promise

    def alarm(self, at: Branch, delay_s: float, ring: Callable[[], None]) -> Alarm:
        self.held.check()
        promise: Promise[object] = Promise(_checked(at.next_alarm()), self.held.host.handlers, object)
        alarm = Alarm(self, promise, ALARM, 1, b"", timer=True, timeout_at=self._after(delay_s))
        alarm.ring = ring
        self.begin(alarm)
        return alarm

    def backoff(self, failures: int, error: bytes, delay_s: float) -> Promise[None]:
        """The timer that keeps a failed attempt until the next one; as it was recorded, if it was."""
        promise: Promise[None] = Promise(_checked(ids.retry(self.at, failures)), self.held.host.handlers, object)
        recorded = self.held.history.get(promise.id)
        param = error if recorded is None else recorded.param
        self.begin(Child(self, promise, RETRY, failures, param, timer=True, timeout_at=self._after(delay_s)))
        return promise

    def now_ms(self, at: Branch) -> int:
        decision = self.decision(at, NOW)
        if isinstance(decision.known, int):
            return decision.known
        now_ms = self.held.host.clock.now_ms()
        decision.record(now_ms)
        return now_ms

    def decision(self, at: Branch, kind: str, among: int | None = None) -> Decision:
        self.speak()
        return self._decision(self._place(at), kind, b"" if among is None else codec.encode([among]))

    def patched(self, at: Branch, name: str) -> bool:
        self.speak()
        told = self._patches = self._patches or {}
        recorded, first = (self.id, name) in self.held.patches, name not in told
        if first:
            told[name] = recorded or not self._is_behind(at)
        if told[name]:  # each call takes a place, whichever of them, in which branch, comes first and is recorded
            decision = self.decision(at, PATCHED)
            if first and not recorded:
                decision.record(name)
        return told[name]

    def seed(self, at: Branch) -> bytes:
        self.held.check()
        return self.held.random_seed(at.next_draw())

    def cancel_child(self, promise: Promise[object]) -> None:
        child = self.children.get(promise.id)
        if child is not None:
            child.promise.heard = True
            child.cancel(None)

    def speak(self) -> None:
        """The code says something durable: where it was cut before that becomes durable first."""
        self.held.check()
        self.record_cut()

    def missing(self) -> str | None:
        """The first of what an earlier run has made that this one has not come to."""
        return self.turns.missing() if self.is_behind() else None

    def check_complete(self, fn: Callable[..., object]) -> None:
        """The code has done its work: raise `NonDeterminismError` if it has not come to all that is recorded."""
        if not self.held.recorded and self._turns is None and self.shared is None:
            return  # nothing is
        missing, was = self.missing(), SHARED_CALL
        if missing is not None:
            was = divergence.of(self.held.history[missing])
        elif self.shared is not None:
            missing = self.shared.first()
        if missing is not None:
            error = divergence.never_made(self.held.id, missing, was, source.defining(fn))
            self.held.diverge(error)
            raise error

    def forget(self, child: Child) -> None:
        self.children.pop(child.promise.id, None)
        promise = child.promise
        if promise.state in (State.REJECTED, State.TIMEDOUT) and not promise.heard:
            self.failed = [*(self.failed or ()), promise]

    def begin(
        self,
        child: Child,
        function: Function[..., object] | None = None,
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> None:
        """Start a child, or go on with what an earlier run recorded of it."""
        record = child.recall()
        self.children[child.promise.id] = child
        child.promise.watchers, child.promise.maker = (child,), self.id
        self.held.host.handlers.track(child.promise)
        host, promise = self.held.host, child.promise
        if record is not None:
            promise.mark_stored()
            child.timeout_at = record.timeout_at
            if record.state is State.CANCELED and record.function == ALARM:
                self.children.pop(promise.id)  # nobody hears it, now as then
                return
            self.turns.recall(child, record)
            if record.state is not State.PENDING:
                return
        else:
            child.enqueue(urgent=child.function == RETRY or not (child.local or child.timer))
        if child.timeout_at is not None:
            ring = partial(host.call_at, child.timeout_at, Deadline(host, promise, self.held.claim))
            if record is None:
                ring()
            else:
                self.turns.ring(ring)
        if child.local and function is not None:
            self.run_child(child, function, args, kwargs or {})

    def _place(self, at: Branch) -> str:
        """The id of the next invocation made there."""
        self.made += 1
        if self._turns is not None:
            self._turns.stir()
        return _checked(at.next_call())

    def _decision(self, id: str, kind: str, param: bytes = b"") -> Decision:
        promise: Promise[object] = Promise(_checked(id), self.held.host.handlers, object)
        return Decision(Child(self, promise, kind, 1, param, local=True), self._decided)

    def _is_behind(self, at: Branch) -> bool:
        """Whether an earlier run has gone past this place."""
        return at.coming_call() in self.held.history or self.turns.missing() is not None

    def _decided(self, promise: Promise[object]) -> None:
        """A decision is about to be written: no body starts before it is durable."""
        # Records become durable in order, so the last decision's barrier stands for those before it.
        barrier = self.held.barrier = asyncio.get_running_loop().create_future()
        promise.watchers = (_Gate(barrier),)

    def _deadline(self, timeout_s: float | None) -> int | None:
        """When an invocation made now is due: by its own timeout, and never after this execution itself."""
        own, latest = None if timeout_s is None else self._after(timeout_s), self.timeout_at
        return own if latest is None else latest if own is None else min(own, latest)

    def _after(self, seconds: float) -> int:
        return self.held.host.clock.now_ms() + round(seconds * 1000)


class _Gate:
    """Opens a barrier when the decision before it is durable."""

    __slots__ = ("_barrier",)

    def __init__(self, barrier: asyncio.Future[None]) -> None:
        self._barrier = barrier

    def settled(self) -> None:
        if not self._barrier.done():
            self._barrier.set_result(None)

    def takes(self, record: PromiseRecord, value: object) -> bool:
        return False

    def cancel(self, reason: bytes | None) -> bool:
        return False


def _checked(id: str) -> str:
    return id if len(id) <= ids.MAX_ROOT_CHARS else ids.check(id)
