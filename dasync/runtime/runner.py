"""Where acquired tasks begin to run, and what their executions find around them.

The runner knows the functions of this process and turns an acquired task into a held one with an execution. It
acquires nothing (the worker does) and tracks nothing (the handlers do).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from contextvars import copy_context
from typing import Protocol, cast

from dasync.core.model import PromiseRecord
from dasync.core.protocol import Acquired, Claim, TaskHalt, TaskRelease
from dasync.errors import DecodeError, FunctionNotFound
from dasync.ports import Clock, Ring
from dasync.runtime import branch
from dasync.runtime.branch import Branch
from dasync.runtime.capacity import Capacity
from dasync.runtime.execution import Execution, Invocation
from dasync.runtime.function import Function
from dasync.runtime.handlers import Handlers
from dasync.runtime.held import Deadline, Held, halted
from dasync.runtime.journal import Journal
from dasync.runtime.policy import Retry
from dasync.runtime.promise import Promise
from dasync.runtime.registry import lookup, registered
from dasync.runtime.root import Roots
from dasync.runtime.threads import Seats

_log = logging.getLogger("dasync")


class Staff(Protocol):
    """The worker, as tasks see it."""

    process: str
    capacity: Capacity

    def call_at(self, at_ms: int, deadline: Deadline) -> None:
        """Write `deadline` when its time has come."""

    def wake(self, ring: Ring) -> None:
        """Somebody rang."""


class Runner:
    """Runs tasks of one process."""

    worker: Staff
    roots: Roots

    def __init__(
        self,
        handlers: Handlers,
        journal: Journal,
        clock: Clock,
        *,
        functions: Sequence[Function[..., object]] | None,
        max_payload: int,
        retry: Retry,
    ) -> None:
        self.handlers = handlers
        self.journal = journal
        self.clock = clock
        self.max_payload = max_payload
        self.retry = retry
        self.seats = Seats()
        self.context = copy_context()
        self.context.run(branch.inside.set, True)
        self._said: set[str] = set()
        self._functions = functions

    @property
    def process(self) -> str:
        """Id of this incarnation of the process."""
        return self.worker.process

    # -- for the worker

    def functions(self) -> tuple[tuple[str, int], ...]:
        """Names and versions of the functions that can run here."""
        if self._functions is not None:
            return tuple((f.name, f.version) for f in self._functions)
        return tuple(registered())

    def run(self, acquired: Acquired) -> None:
        """Run a task that the worker has acquired."""
        record = acquired.promise
        promise = self.handlers.known(record.id)
        if promise is None:
            made = registered().get((record.function, record.version))
            promise = self.handlers.handle(record.id, object if made is None else made.result)
            promise.heard = True  # whoever invoked it asks elsewhere
        promise.mark_stored()
        if record.timeout_at is not None:
            self.call_at(record.timeout_at, Deadline(self, promise))
        self.begin(acquired, promise)

    def listens(self) -> bool:
        """Whether anything may be settled elsewhere that this process waits for or runs."""
        return len(self.handlers.pending) > 0

    def news(self, record: PromiseRecord) -> None:
        """A promise is settled that this process may wait for."""
        promise = self.handlers.pending.get(record.id)
        if promise is not None:
            self.handlers.return_(promise, record.state, record.value)

    def awaited_by(self, tasks: Iterable[Held]) -> dict[Held, list[str]]:
        """Those among `tasks` that do nothing but wait for what is settled elsewhere, and what each waits for."""
        return self.handlers.awaiters.awaited_by(tasks)

    def rejoined(self) -> None:
        """This process is a new incarnation: nobody tells it anything that it does not ask for again."""
        for promise in list(self.handlers.pending.values()):
            self.handlers.listen(promise)

    def broken(self, error: BaseException) -> None:
        """Nothing can be written any more: end what runs, tell who waits."""
        self.handlers.broken(error)
        for held in list(self.worker.capacity.held.values()):
            held.lost(str(error))

    # -- for roots

    def begin(self, acquired: Acquired, promise: Promise[object]) -> None:
        """Let the execution of a held task start, or go on from what it has recorded."""
        record = acquired.promise
        promise = self.handlers.known(record.id) or promise
        try:
            made = lookup(record.function, record.version)
            args, kwargs = made.shape.decode(record.param)
        except (FunctionNotFound, DecodeError) as error:
            # What is recorded does not fit the code that is here: nothing is settled, nobody tries again by himself.
            _log.error("%s cannot run: %s; %s", record.id, error, halted(record.id))
            self.journal.ask(TaskHalt(record.id), keep=True)
            if not promise.watchers:  # else an execution here invoked it: it waits, as for a task elsewhere
                self.handlers.refuse(promise, error)
            return
        held = Held(self, acquired, promise)
        self.worker.capacity.hold(held)
        promise.watchers += (held,)  # it may be a child of another execution here as well
        Execution(held, held.id, Invocation(made, record.param, record.tags), None).start(args, kwargs)

    def give_back(self, acquired: Acquired) -> None:
        """Release a task that was acquired and is not to be run here."""
        task = acquired.task
        self.journal.ask(TaskRelease(Claim(task.id, task.version, self.process)), keep=True)

    def wake(self) -> None:
        """There may be tasks to acquire."""
        self.worker.wake(Ring.TASKS)

    def holds(self, id: str) -> bool:
        """Whether the task of that id runs here."""
        return id in self.worker.capacity.held

    def reserve(self) -> int:
        """Keep room for one more task here; 0: there is none."""
        return self.worker.capacity.reserve()

    def unreserve(self) -> None:
        """The task has come, or will not."""
        self.worker.capacity.unreserve()

    # -- for executions

    def owns(self, at: Branch) -> bool:
        """Whether an execution's invocations from there belong to this EventLoop."""
        return cast(Execution, at.owner).held.host is self

    def say_once(self, text: str) -> None:
        """Warn of something, once in the life of this process."""
        if text not in self._said:
            self._said.add(text)
            _log.warning(text)

    def call_at(self, at_ms: int, due: Deadline) -> None:
        """Write `due` when that time has come."""
        self.worker.call_at(at_ms, due)

    def waiting(self, held: Held, waits: bool) -> None:
        """A task only waits for what is settled elsewhere, or does so no longer."""
        self.worker.capacity.waiting(held, waits)

    def let_go(self, held: Held) -> None:
        """This process holds the task no longer."""
        self.worker.capacity.let_go(held)
        if not held.promise.done() and not held.promise.refused and self.handlers.error is None:
            self.handlers.listen(held.promise)  # another process may settle it now
