"""Promises that are not made by an execution: roots that are invoked here, and handles to promises made anywhere.

Each is an entry of the journal: it says how the promise comes into being and what the reply means for the handle.
A root id that is in use gives the promise that is there, if it stands for the same invocation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from dasync.core.model import PromiseRecord, State, TaskState
from dasync.core.protocol import Acquired, Command, PromiseCreate, RegisterListener, Reply, Status, TaskCreate
from dasync.errors import PromiseConflict, PromiseNotFound, StoreUnavailable
from dasync.runtime.held import Deadline, Host
from dasync.runtime.promise import Promise


class Starter(Host, Protocol):
    """The event loop, as roots see it."""

    group: str
    python: str

    def reserve(self) -> bool:
        """Keep room for one more task here; False: there is none."""

    def unreserve(self) -> None:
        """The task has come, or will not."""

    def holds(self, id: str) -> bool:
        """Whether the task of that id runs here."""

    def begin(self, acquired: Acquired, promise: Promise[object]) -> None:
        """Run a task that was just acquired."""

    def give_back(self, acquired: Acquired) -> None:
        """Release a task that was acquired and is not to be run here."""


class Root:
    """The invocation of a root."""

    __slots__ = ("_create", "_host", "_local", "_promise", "_reserved")

    def __init__(self, host: Starter, promise: Promise[object], create: PromiseCreate, *, local: bool) -> None:
        self._host = host
        self._promise = promise
        self._create = create
        self._local = local
        self._reserved = False

    def stands_for(self, record: PromiseRecord) -> bool:
        """Whether a record is of this very invocation."""
        mine = self._create
        return (record.function, record.version, record.param, record.timer) == (
            mine.function, mine.version, mine.param, mine.timer,
        )  # fmt: skip

    def command(self) -> Command:
        host = self._host
        self._reserved = self._local and host.reserve()
        if self._reserved:
            return TaskCreate(host.process, self._create, host.python)
        create = self._create
        if create.timer:
            return create
        return PromiseCreate(
            create.id, create.function, create.version, create.param, create.target, False, create.timeout_at,
            create.tags, create.seed, None, host.process,
        )  # fmt: skip

    def replied(self, reply: Reply) -> None:
        host, promise, record = self._host, self._promise, reply.promise
        if self._reserved:
            host.unreserve()
        mine = reply.acquired[0] if reply.acquired else None
        if record is None:
            host.refuse(promise, StoreUnavailable(f"{promise.id!r} was not created: {reply.reason}; invoke it again"))
            return
        if not self.stands_for(record):
            if mine is not None:
                host.give_back(mine)
            host.refuse(promise, PromiseConflict(_conflict(record, self._create)))
            return
        promise.mark_stored()
        if record.state is not State.PENDING:
            host.return_(promise, record.state, record.value)
            return
        if record.timeout_at is not None:
            host.call_at(record.timeout_at, Deadline(host, promise))
        if reply.status is Status.CREATED and reply.task is not None and reply.task.state is TaskState.ACQUIRED:
            host.begin(Acquired(reply.task, record, ()), promise)
        elif mine is not None:
            host.begin(mine, promise)
        elif reply.status is not Status.CREATED and not record.timer and not host.holds(promise.id):
            host.listen(promise)

    def failed(self, error: BaseException, *, final: bool) -> bool:
        if self._reserved:
            self._host.unreserve()
        self._host.refuse(self._promise, error if isinstance(error, Exception) else StoreUnavailable(str(error)))
        return True


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
            host.refuse(promise, PromiseNotFound(f"the store holds no promise {promise.id!r}"))
            return
        if record is None:  # this process has lost its lease; it listens again once it has joined anew
            return
        if self._annotate is not None:
            self._annotate(record)
        promise.mark_stored()
        if record.state is not State.PENDING:
            host.return_(promise, record.state, record.value)
        elif record.timeout_at is not None:
            host.call_at(record.timeout_at, Deadline(host, promise))

    def failed(self, error: BaseException, *, final: bool) -> bool:
        return final


def _conflict(record: PromiseRecord, create: PromiseCreate) -> str:
    def told(function: str, version: int) -> str:
        return f"{function} version {version}" if function else "a promise that is settled outside"

    what = f"id {create.id!r} is in use for {told(record.function, record.version)}"
    if (record.function, record.version) == (create.function, create.version):
        return f"{what} with other arguments; use another id, or the same arguments"
    return f"{what}, not {told(create.function, create.version)}; use another id"
