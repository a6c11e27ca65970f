"""What an execution may say while it runs: invocations, timers, decisions, each at its place in the program.

Each becomes a child with a structural id. In a replay a child that is recorded is not made again, and one that is
recorded as settled is not run again. Who runs a local child, and when the execution itself ends, is known one file
further (`execution.py`).
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from functools import partial
from typing import TypeVar, cast

from dasync.core import ids
from dasync.core.model import PromiseRecord, State
from dasync.runtime.branch import Branch
from dasync.runtime.child import Child, Decision
from dasync.runtime.cut import CUT, Cut
from dasync.runtime.function import Function
from dasync.runtime.held import Deadline, Held
from dasync.runtime.promise import Promise
from dasync.runtime.registry import lookup, tags_of

R = TypeVar("R")
Run = tuple[Function[..., object], tuple[object, ...], dict[str, object]]
SLEEP, NOW, RETRY = "dasync.sleep", "dasync.now", "dasync.retry"


class Calls(ABC):
    """The invocations of one execution."""

    __slots__ = (
        "children", "cut", "failed", "held", "id", "invoked", "made", "on_the_way", "progress", "timeout_at",
        "unwritten",
    )  # fmt: skip

    def __init__(self, held: Held, id: str, timeout_at: int | None) -> None:
        self.held = held
        self.id = id
        self.timeout_at = timeout_at
        """Its own deadline, which no child of it outlives."""
        self.children: dict[str, Child] = {}
        """Those that are pending."""
        self.failed: list[Promise[object]] | None = None
        """Those that have failed before anybody asked for their outcome."""
        self.invoked = False
        """Whether it has made anything that a second attempt would make again."""
        self.made = 0
        """How many places for invocations its code has taken."""
        self.progress = 0
        """Raised whenever something is invoked by it or delivered to it."""
        self.on_the_way = 0
        """How many recorded outcomes are to be delivered in the next turn."""
        self.cut: Cut | None = None
        """The cancel of this execution, once it is asked for."""
        self.unwritten: object = None
        """The place of the cut, while nothing has followed from it."""

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

    def backoff(self, failures: int, error: bytes, delay_s: float) -> Promise[None]:
        """The timer that keeps a failed attempt until the next one; as it was recorded, if it was."""
        promise: Promise[None] = Promise(_checked(ids.retry(self.id, failures)), self.held.host.handlers, object)
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

    def decision(self, at: Branch, kind: str) -> Decision:
        self.speak()
        return self._decision(self._place(at), kind)

    def recorded(self, at: Branch, kind: str) -> object:
        record = self.held.history.get(at.coming_call())
        return None if record is None or record.function != kind else self.decision(at, kind).known

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

    def record_cut(self) -> None:
        """Something follows from the cut now: write where it was."""
        if self.unwritten is not None:
            value, self.unwritten = self.unwritten, None
            self._decision(ids.cut(self.id), CUT).record(value)

    def forget(self, child: Child) -> None:
        self.progress += 1
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
        child.promise.watchers = (child,)
        self.held.host.handlers.track(child.promise)
        self.progress += 1
        run = None if function is None else (function, args, kwargs or {})
        if self.cut is not None and self.cut.holds(child.promise.id):
            self.cut.hold(partial(self._go_on, child, record, run))
        else:
            self._go_on(child, record, run)

    def _go_on(self, child: Child, record: PromiseRecord | None, run: Run | None) -> None:
        host, promise = self.held.host, child.promise
        if record is not None:
            promise.mark_stored()
            child.timeout_at = record.timeout_at
            if record.state is not State.PENDING:
                # In the first run it was pending when the call returned: it is delivered in a later turn here too.
                self.on_the_way += 1
                asyncio.get_running_loop().call_soon(self._deliver, promise, record)
                return
            if not child.local and not child.timer:
                host.handlers.listen(promise)
        else:
            child.enqueue(urgent=child.function == RETRY or not (child.local or child.timer))
        if child.timeout_at is not None:
            host.call_at(child.timeout_at, Deadline(host, promise))
        if child.local and run is not None:
            self.run_child(child, *run)

    def _deliver(self, promise: Promise[object], record: PromiseRecord) -> None:
        self.on_the_way -= 1
        self.held.host.handlers.return_(promise, record.state, record.value)

    def _place(self, at: Branch) -> str:
        """The id of the next invocation made there."""
        self.made += 1
        return _checked(at.next_call())

    def _decision(self, id: str, kind: str) -> Decision:
        promise: Promise[object] = Promise(_checked(id), self.held.host.handlers, object)
        return Decision(Child(self, promise, kind, 1, b"", local=True), self._decided)

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

    def cancel(self, reason: bytes | None) -> bool:
        return False


def _checked(id: str) -> str:
    return id if len(id) <= ids.MAX_ROOT_CHARS else ids.check(id)
