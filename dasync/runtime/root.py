"""Promises that are not made by an execution: roots that are invoked here, and handles to promises made anywhere.

Each is an entry of the journal: it says how the promise comes into being and what the reply means for the handle.
A root id that is in use gives the promise that is there, if it stands for the same invocation.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Protocol, TypeVar, cast

from dasync.core import ids
from dasync.core.model import PromiseRecord, State, TaskState
from dasync.core.protocol import Acquired, Command, PromiseCreate, RegisterListener, Reply, Status, TaskCreate
from dasync.errors import FunctionNotFound, LeaseLost, PromiseConflict, PromiseNotFound
from dasync.ports import Entropy
from dasync.runtime import branch
from dasync.runtime.function import SLEEP, Function
from dasync.runtime.handlers import Handlers
from dasync.runtime.held import Deadline, Held, Host, halted
from dasync.runtime.journal import Entry
from dasync.runtime.promise import Promise
from dasync.runtime.registry import lookup, tags_of
from dasync.runtime.slots import Kept

FRESH_ID_BYTES = 8
SEED_BYTES = 16
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
R = TypeVar("R")


class Starter(Host, Protocol):
    """The runner, as roots see it."""

    def reserve(self, function: str, version: int) -> Kept | None:
        """Keep room for one more task of that function here; None: there is none."""

    def unreserve(self, kept: Kept) -> None:
        """The task has come, or will not."""

    def wake(self) -> None:
        """There may be tasks to acquire."""

    def holds(self, id: str) -> bool:
        """Whether the task of that id runs here."""

    def begin(self, acquired: Acquired, promise: Promise[object]) -> None:
        """Run a task that was just acquired."""

    def give_back(self, acquired: Acquired) -> None:
        """Release a task that was acquired and is not to be run here."""

    def ask_anew(self, entry: Entry) -> None:
        """This process has lost its lease: write the entry once more when it has another one."""


class Roots:
    """Invocations from outside executions, on one EventLoop."""

    def __init__(self, host: Starter, handlers: Handlers, entropy: Entropy, group: str) -> None:
        self._host = host
        self._handlers = handlers
        self._entropy = entropy
        self._group = group

    def invoke_function(
        self,
        function: Function[..., R],
        args: tuple[object, ...],
        kwargs: dict[str, object],
        *,
        id: str | None = None,
    ) -> Promise[R]:
        """A root promise comes into being and its function starts. Never suspends the caller.

        `id` is that of a detached child: one that stands alone like a root, at its place in a program.
        """
        self._handlers.check_open()
        options = function.configured
        if function.declared and options.on is None:
            raise FunctionNotFound(f"{function.name!r} is only declared here: say where it runs, with on=")
        if options.on is None:
            lookup(function.name, function.version)
        function.bind(args, kwargs)
        param, _, _ = function.shape.encode(args, kwargs, self._host.max_payload)
        given = options.id or id
        create = PromiseCreate(
            given or self._fresh_id(function.name),
            function.name,
            function.version,
            param,
            options.on or self._group,
            timeout_at=self._deadline(options.timeout_s),
            tags=tags_of(function),
            seed=self._entropy.bytes(SEED_BYTES),
            fresh=given is None,
        )
        return cast("Promise[R]", self._begin(create, function.result, local=options.on is None))

    def external(self, annotation: object, id: str | None, timeout_s: float | None) -> Promise[object]:
        """A root promise that somebody outside settles."""
        self._handlers.check_open()
        create = PromiseCreate(id or self._fresh_id("promise"), timeout_at=self._deadline(timeout_s))
        return self._begin(create, annotation, local=False)

    def timer(self, seconds: float) -> Promise[None]:
        """A root promise that resolves by itself."""
        self._handlers.check_open()
        create = PromiseCreate(self._fresh_id("sleep"), SLEEP, timer=True, timeout_at=self._deadline(seconds))
        return cast("Promise[None]", self._begin(create, object, local=False))

    def now_ms(self) -> int:
        """The time on the EventLoop's clock."""
        return self._host.clock.now_ms()

    def seed(self) -> bytes:
        """Where a random stream starts."""
        return self._entropy.bytes(SEED_BYTES)

    def _begin(self, create: PromiseCreate, annotation: object, *, local: bool) -> Promise[object]:
        promise = self._handlers.handle(create.id, annotation, by_hand=not create.function)
        at = branch.current() or branch.calling_thread()
        held = None if at is None else cast(Held, at.owner.held)
        mine = held if held is not None and held.host is self._host else None
        root = Root(self._host, promise, create, local=local, patient=branch.inside.get(), held=mine)
        self._handlers.begin(promise, root)
        return promise

    def _fresh_id(self, name: str) -> str:
        return ids.fresh_root(name, self._entropy.bytes(FRESH_ID_BYTES))

    def _deadline(self, timeout_s: float | None) -> int | None:
        return None if timeout_s is None else self._host.clock.now_ms() + round(timeout_s * 1000)


class Root:
    """The invocation of a root."""

    __slots__ = ("_create", "_held", "_host", "_kept", "_local", "_patient", "_promise")

    def __init__(
        self, host: Starter, promise: Promise[object], create: PromiseCreate, *, local: bool, patient: bool,
        held: Held | None,
    ) -> None:  # fmt: skip
        self._host = host
        self._promise = promise
        self._create = create
        self._local = local
        self._patient = patient
        """An execution made it: that waits while the store is away, where a program outside is told."""
        self._held = held
        """The task of this process whose execution made it."""
        self._kept: Kept | None = None

    def command(self) -> Command:
        host, create = self._host, self._create
        self._kept = host.reserve(create.function, create.version) if self._local else None
        if self._kept is not None:
            return TaskCreate(host.process, create, PYTHON)
        if create.timer:
            return create
        return PromiseCreate(
            create.id, create.function, create.version, create.param, create.target, False, create.timeout_at,
            create.tags, create.seed, None, host.process, fresh=create.fresh,
        )  # fmt: skip

    def replied(self, reply: Reply) -> None:
        host, promise, record = self._host, self._promise, reply.promise
        self._unreserve()
        if record is not None and reply.task is not None and reply.task.state is TaskState.HALTED:
            host.handlers.refuse(promise, halted(promise.id, reply.task.reason))
            return
        mine = reply.acquired[0] if reply.acquired else None
        if record is None:  # this process has lost its lease
            if self._held is not None:  # and with it the execution that has made this: its successor makes it
                self._held.lost(reply.reason)
                host.handlers.refuse(promise, LeaseLost(f"{promise.id!r} was not created: {reply.reason}"))
            else:
                host.ask_anew(self)
            return
        if not stands_for(self._create, record):
            if mine is not None:
                host.give_back(mine)
            host.handlers.refuse(promise, PromiseConflict(conflict(record, self._create)))
            return
        promise.mark_stored()
        if record.state is not State.PENDING:
            host.handlers.return_(promise, record)
            return
        if record.timeout_at is not None:
            host.call_at(record.timeout_at, Deadline(host, promise))
        if reply.status is Status.CREATED and reply.task is not None and reply.task.state is TaskState.ACQUIRED:
            host.begin(Acquired(reply.task, record, ()), promise)
        elif mine is not None:
            host.begin(mine, promise)
        elif reply.status is Status.CREATED:
            if self._local:
                host.wake()  # there was no room for it just now; there may be some by the time it looks
        elif not record.timer and not host.holds(promise.id):
            host.handlers.listen(promise)

    def failed(self, error: BaseException, *, final: bool) -> bool:
        if self._patient and not final:
            return False
        self._unreserve()
        self._host.handlers.refuse(self._promise, error)
        return True

    def _unreserve(self) -> None:
        if self._kept is not None:
            self._host.unreserve(self._kept)


class Listening:
    """A handle wants to hear of a promise that exists already."""

    __slots__ = ("_annotate", "_host", "_promise")

    def __init__(
        self, host: Host, promise: Promise[object], annotate: Callable[[PromiseRecord], None] | None = None
    ) -> None:
        self._host = host
        self._promise = promise
        self._annotate = annotate

    def command(self) -> Command:
        return RegisterListener(self._promise.id, self._host.process)

    def replied(self, reply: Reply) -> None:
        host, promise, record = self._host, self._promise, reply.promise
        if reply.status is Status.NOT_FOUND:
            host.handlers.refuse(promise, PromiseNotFound(f"the store holds no promise {promise.id!r}"))
            return
        if record is None:  # this process has lost its lease; it listens again once it has joined anew
            return
        if self._annotate is not None:
            self._annotate(record)
        promise.mark_stored()
        if record.state is not State.PENDING:
            host.handlers.return_(promise, record)
        elif record.timeout_at is not None:
            host.call_at(record.timeout_at, Deadline(host, promise))

    def failed(self, error: BaseException, *, final: bool) -> bool:
        return final


def stands_for(create: PromiseCreate, record: PromiseRecord) -> bool:
    """Whether the promise that is there is of that very invocation."""
    return (record.function, record.version, record.param, record.timer) == (
        create.function, create.version, create.param, create.timer,
    )  # fmt: skip


def conflict(record: PromiseRecord, create: PromiseCreate) -> str:
    """What is wrong where it is not."""

    def told(function: str, version: int) -> str:
        return f"{function!r} (version {version})" if function else "a promise that is settled outside"

    what = f"id {create.id!r} is in use for {told(record.function, record.version)}"
    if (record.function, record.version) == (create.function, create.version):
        return f"{what} with other arguments; use another id, or the same arguments"
    return f"{what}, not {told(create.function, create.version)}; use another id"
