"""Drive one function until it is done or blocked: structural ids, replay, fingerprints, children.

An execution is one run of a promise's function, as an asyncio task on the host's loop. Its invocations become
children: local ones run as part of it and are written under its task's fence; remote ones, timers and promises that
somebody outside settles are awaited through the store. In a replay a child that is recorded as settled is not run
again. What an invocation is compared with its record by, and what is refused, is all in this file; what may be
written is decided by the store.
"""

from __future__ import annotations

import asyncio
import json
from typing import TypeVar, cast

from dasync.core import codec, failure, ids
from dasync.core.model import PromiseRecord, State
from dasync.core.protocol import Command, PromiseCreate, PromiseSettle, Reply, Status, TaskFence, TaskFulfill
from dasync.errors import LeaseLost, NonDeterminismError, Suspended
from dasync.runtime import branch
from dasync.runtime.branch import Branch, BranchTask
from dasync.runtime.function import Function, Options, lookup
from dasync.runtime.held import Deadline, Held
from dasync.runtime.promise import Promise

R = TypeVar("R")
SLEEP, NOW = "dasync.sleep", "dasync.now"
SEED_BYTES = 16


class Child:
    """An invocation made inside an execution, and the journal's entry for it: created, then settled."""

    __slots__ = (
        "_begun_at", "_sent", "_stored", "function", "held", "local", "param", "parent", "promise", "queued", "raw",
        "state", "tags", "target", "timeout_at", "timer", "value", "version",
    )  # fmt: skip

    def __init__(
        self,
        parent: Execution,
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
        self._begun_at = parent.held.host.clock.now_ms()
        self._sent = State.PENDING

    def recall(self) -> PromiseRecord | None:
        """What an earlier run recorded of this invocation. Raises `NonDeterminismError` if it was another one."""
        record = self.held.history.pop(self.promise.id, None)
        if record is None:
            return None
        if (record.function, record.version, record.param, record.target, record.timer) != (
            self.function, self.version, self.param, self.target, self.timer,
        ):  # fmt: skip
            error = NonDeterminismError(_difference(record, self))
            self.held.diverge(error)
            raise error
        self._stored = True
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

    # -- the journal's side

    def command(self) -> Command:
        self.queued = False
        self._sent = self.state
        if self._stored:
            return TaskFence(self.held.claim, PromiseSettle(self.promise.id, self.state, self.raw))
        self._stored = True
        waited = self.target is not None or not (self.local or self.timer or self.function)
        return TaskFence(
            self.held.claim,
            PromiseCreate(
                self.promise.id, self.function, self.version, self.param, self.target, self.timer, self.timeout_at,
                self.tags, self.held.random_seed(self.promise.id)[:SEED_BYTES] if self.target else b"", None,
                self.held.host.process if waited else None, self.state, self.raw, self._begun_at,
            ),
        )  # fmt: skip

    def replied(self, reply: Reply) -> None:
        record = reply.promise
        if record is None:
            self.held.lost(reply.reason)
            return
        promise = self.promise
        if record.state is not State.PENDING:
            mine = record.state is self._sent and record.value == self.raw
            self.held.host.handlers.return_(promise, record.state, record.value, *((self.value,) if mine else ()))
        else:
            promise.mark_stored()
            if reply.status is Status.CONFLICT:  # it exists, so it was not created with this process listening
                self.held.host.handlers.listen(promise)

    def failed(self, error: BaseException, *, final: bool) -> bool:
        if final:
            self.held.drop(LeaseLost(f"{self.held.id}: {error}"))
        return final

    # -- the promise's side

    def settled(self) -> None:
        self.parent.forget(self)
        if self.local and (execution := self.held.running.get(self.promise.id)) is not None:
            execution.abandon()  # settled over its head, by its deadline or from outside


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
        host.handlers.return_(self.held.promise, record.state, record.value, *((self.value,) if mine else ()))

    def failed(self, error: BaseException, *, final: bool) -> bool:
        if final:
            self.held.drop(LeaseLost(f"{self.held.id}: {error}"))
        return final


class Execution:
    """One run of one promise's function."""

    __slots__ = (
        "_abandoned", "_canceling", "_children", "_failed", "_function", "_started", "_task", "_tasks", "child", "held",
        "id",
    )  # fmt: skip

    def __init__(self, held: Held, id: str, function: Function[..., object], child: Child | None) -> None:
        self.held = held
        self.id = id
        self.child = child
        """The invocation that it runs for; None: the task's own promise."""
        self._function = function
        self._children: dict[str, Child] = {}
        self._failed: list[Promise[object]] | None = None
        self._tasks: set[asyncio.Task[object]] | None = None
        self._task: BranchTask[None] | None = None
        self._started = False
        self._canceling = False
        self._abandoned = False

    def start(self, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        """Begin to run, with the next turn of the asyncio loop."""
        self.held.running[self.id] = self
        here = Branch(self, ids.places(self.id))
        self._task = branch.task(self._run(args, kwargs), here, asyncio.get_running_loop(), name=self.id)

    # -- invocations made inside

    def invoke(
        self, at: Branch, function: Function[..., R], args: tuple[object, ...], kwargs: dict[str, object]
    ) -> Promise[R]:
        self.held.check()
        host, options = self.held.host, function.configured
        if options.id is not None:  # a root that whoever uses the id shares; not a child
            return host.roots.invoke_function(function, args, kwargs)
        function.bind(args, kwargs)
        param, args, kwargs = function.shape.encode(args, kwargs, host.max_payload)
        promise: Promise[R] = Promise(_checked(at.next_call()), host.handlers, function.result)
        local = options.on is None
        if local and function.declared:
            raise TypeError(f"{function.name!r} is only declared here: say where it runs, with on=")
        if local and options.version is not None:
            function = cast("Function[..., R]", lookup(function.name, function.version))
        child = Child(
            self, promise, function.name, function.version, param,
            target=options.on, local=local, timeout_at=self._deadline(options.timeout_s), tags=_tags(options),
        )  # fmt: skip
        self._begin(child, cast("Function[..., object]", function), args, kwargs)
        return promise

    def external(self, at: Branch, annotation: object, id: str | None, timeout_s: float | None) -> Promise[object]:
        self.held.check()
        if id is not None:
            return self.held.host.roots.external(annotation, id, timeout_s)
        promise: Promise[object] = Promise(_checked(at.next_call()), self.held.host.handlers, annotation)
        self._begin(Child(self, promise, "", 1, b"", timeout_at=self._deadline(timeout_s)))
        return promise

    def timer(self, at: Branch, seconds: float) -> Promise[None]:
        self.held.check()
        promise: Promise[None] = Promise(_checked(at.next_call()), self.held.host.handlers, object)
        due = self.held.host.clock.now_ms() + _ms(seconds)
        self._begin(Child(self, promise, SLEEP, 1, b"", timer=True, timeout_at=due))
        return promise

    def now_ms(self, at: Branch) -> int:
        self.held.check()
        host = self.held.host
        promise: Promise[int] = Promise(_checked(at.next_call()), host.handlers, object)
        child = Child(self, promise, NOW, 1, b"", local=True)
        record = child.recall()
        if record is not None and record.value is not None:
            return cast(int, codec.decode(record.value))
        now_ms = host.clock.now_ms()
        # Records become durable in order, so the last decision's barrier stands for those before it.
        barrier = self.held.barrier = asyncio.get_running_loop().create_future()
        child.settle(State.RESOLVED, codec.encode(now_ms), now_ms)
        host.handlers.track(promise)
        host.handlers.await_(promise).add_done_callback(lambda _: _pass(barrier))
        return now_ms

    def seed(self, at: Branch) -> bytes:
        self.held.check()
        return self.held.random_seed(at.next_draw())

    def adopt(self, task: asyncio.Task[object]) -> None:
        if self._tasks is None:
            self._tasks = set()
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _begin(
        self,
        child: Child,
        function: Function[..., object] | None = None,
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> None:
        """Start a child, or go on with what an earlier run recorded of it."""
        host, promise = self.held.host, child.promise
        record = child.recall()
        host.handlers.track(promise)
        self._children[promise.id] = child
        promise.watchers = (child,)
        if record is not None:
            promise.mark_stored()
            child.timeout_at = record.timeout_at
            if record.state is not State.PENDING:
                # In the first run it was pending when the call returned: it is delivered in a later turn here too.
                asyncio.get_running_loop().call_soon(host.handlers.return_, promise, record.state, record.value)
                return
            if not child.local and not child.timer:
                host.handlers.listen(promise)
        else:
            child.enqueue(urgent=not child.local and not child.timer)
        if child.timeout_at is not None:
            host.call_at(child.timeout_at, Deadline(host, promise))
        if child.local and function is not None:
            Execution(self.held, promise.id, function, child).start(args, kwargs or {})

    def _deadline(self, timeout_s: float | None) -> int | None:
        """When an invocation made now is due: by its own timeout, and never after this execution itself."""
        own = None if timeout_s is None else self.held.host.clock.now_ms() + _ms(timeout_s)
        latest = self.held.timeout_at if self.child is None else self.child.timeout_at
        return own if latest is None else latest if own is None else min(own, latest)

    # -- children

    def forget(self, child: Child) -> None:
        """A child is settled."""
        self._children.pop(child.promise.id, None)
        promise = child.promise
        if promise.state is not State.RESOLVED and not promise.heard:
            self._failed = [*(self._failed or ()), promise]

    async def _finish(self) -> None:
        """The body has returned: its tasks end, its children are waited for; a failure that nobody heard is raised."""
        await _cancel([task for task in self._tasks or () if not task.done()])
        while pending := [c for c in self._children.values() if (c.local or c.target) and not c.promise.done()]:
            # The await of these was cut short and nobody is left to hear them.
            cut = [c for c in pending if c.promise.heard and not self.held.host.handlers.is_awaited(c.promise)]
            await self._cancel_children(cut)
            for child in pending:
                await _settlement(child)
        for promise in sorted(self._failed or (), key=lambda promise: _natural(promise.id)):
            if not promise.heard:
                promise.result()

    async def _cancel_children(self, children: list[Child]) -> None:
        for child in children:
            execution = self.held.running.get(child.promise.id)
            if isinstance(execution, Execution):
                execution.cancel()
            elif not child.promise.done():
                child.settle(State.CANCELED, None, None)
        for child in children:
            await _settlement(child)

    def cancel(self) -> None:
        """End it as canceled: its code is interrupted at its next await and may clean up."""
        self._canceling = True
        if self._task is not None:
            self._task.cancel()
        if not self._started:  # its code will never run, so it cannot settle itself
            self.held.running.pop(self.id, None)
            self._settle(State.CANCELED, None, None)

    def abandon(self) -> None:
        self._abandoned = True
        if not self._started:
            self.held.running.pop(self.id, None)
        for task in self.tasks():
            if task is not asyncio.current_task():
                task.cancel()

    def tasks(self) -> list[asyncio.Task[object]]:
        return [task for task in (self._task, *(self._tasks or ())) if task is not None and not task.done()]

    # -- the run

    async def _run(self, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        held = self.held
        self._started = True
        if not branch.inside.get():  # a child's context is a copy of its parent's
            branch.inside.set(True)
        value: object = None
        try:
            if held.barrier is not None and not held.barrier.done():
                await asyncio.shield(held.barrier)
            value = await self._function.fn(*args, **kwargs)
            if self._children or self._tasks or self._failed:
                await self._finish()
            raw, value = codec.encode_result(value, self._function.result, held.host.max_payload)
            state = State.RESOLVED
        except (Suspended, LeaseLost):
            return
        except asyncio.CancelledError:
            if not await self._interrupted():
                return
            state, raw = State.CANCELED, None
        except (KeyboardInterrupt, SystemExit, GeneratorExit):
            raise  # the end of the whole program settles nothing
        except BaseException as error:  # one that is no Exception as well, or its awaiters would wait for ever
            if not await self._cleaned_up():
                return
            state, raw = State.REJECTED, failure.encode_error(error, held.host.max_payload)
        finally:
            self._task = None
            held.running.pop(self.id, None)
        self._settle(state, raw, value)

    async def _interrupted(self) -> bool:
        """A CancelledError has come out of the body: whether it is an outcome."""
        task = asyncio.current_task()
        asked = task is not None and task.cancelling() > 0
        if self._abandoned or self.held.signal is not None:
            return False
        if asked and not self._canceling:
            # Somebody ends this asyncio loop's tasks, as asyncio.run does at its end: that settles nothing.
            self.held.drop(Suspended(f"{self.id} was interrupted"))
            return False
        if task is not None:
            while task.cancelling():
                task.uncancel()
        return await self._cleaned_up()

    async def _cleaned_up(self) -> bool:
        """The body has failed: its tasks and its pending children end first. False: the task is gone meanwhile."""
        try:
            await _cancel([task for task in self._tasks or () if not task.done()])
            await self._cancel_children(
                [child for child in self._children.values() if child.local or child.target is not None]
            )
        except asyncio.CancelledError:
            return False
        return self.held.signal is None

    def _settle(self, state: State, raw: bytes | None, value: object) -> None:
        held = self.held
        if self._abandoned or held.signal is not None:
            return
        if held.diverged is not None:
            return
        if self.child is not None:
            self.child.settle(state, raw, value)
        else:
            held.host.journal.write(Fulfill(held, state, raw, value))


async def _settlement(child: Child) -> None:
    """Wait until a child is settled; its outcome stays unheard."""
    handlers = child.held.host.handlers
    while not child.promise.done():
        waiter = handlers.await_(child.promise)
        try:
            await waiter
        finally:
            handlers.leave(child.promise, waiter)


async def _cancel(tasks: list[asyncio.Task[object]]) -> None:
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks)


def _pass(barrier: asyncio.Future[None]) -> None:
    if not barrier.done():
        barrier.set_result(None)


def _checked(id: str) -> str:
    return id if len(id) <= ids.MAX_ROOT_CHARS else ids.check(id)


def _ms(seconds: float) -> int:
    return round(seconds * 1000)


def _tags(options: Options) -> str:
    return json.dumps(options.tags, sort_keys=True) if options.tags else ""


def _natural(id: str) -> list[tuple[int, str]]:
    """Ids in the order of their places: `:10` after `:9`."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in id.replace(":", ".").split(".")]


def _difference(record: PromiseRecord, child: Child) -> str:
    def told(function: str, version: int, param: bytes, target: str | None) -> str:
        what = f"{function!r} (version {version})" if function else "a promise that is settled outside"
        what += f" on {target!r}" if target else ""
        try:
            return f"{what} with {codec.decode(param)!r}" if param else what
        except ValueError:
            return what

    return (
        f"replay of {child.held.id!r} diverged at {child.promise.id!r}: recorded was"
        f" {told(record.function, record.version, record.param, record.target)}, now it is"
        f" {told(child.function, child.version, child.param, child.target)}. Nothing was settled. Either the code has"
        " changed under a running execution, or it depends on something that is not recorded (time, randomness, the"
        " order of a set): use dasync.now, dasync.random, or a function of its own for it. Then let it go on with"
        f" `dasync resume {child.held.id}`."
    )


