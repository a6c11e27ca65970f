"""A task that this process holds: the claim under which its executions write, and their history.

`Held` is what the executions of one task share: the fence, what a replay knows, the random seed, and the signal that
ends them when the claim is gone. It says what must be written; the journal writes it, the store decides.
"""

from __future__ import annotations

import asyncio
from contextvars import Context
from hashlib import sha256
from typing import Protocol

from dasync.core.model import PromiseRecord, State
from dasync.core.protocol import Acquired, Claim, Command, PromiseGet, Reply, TaskHalt
from dasync.errors import LeaseLost, NonDeterminismError
from dasync.ports import Clock
from dasync.runtime.function import Host as Invoker
from dasync.runtime.journal import Journal
from dasync.runtime.policy import Retry
from dasync.runtime.promise import Promise, Tracker
from dasync.runtime.threads import Seats


class Host(Protocol):
    """What executions find around them: the runner."""

    clock: Clock
    journal: Journal
    max_payload: int
    context: Context
    """The context variables that executions begin with."""
    retry: Retry
    """The policy of functions that have none of their own."""
    seats: Seats
    """Where functions run that are not `async def`."""

    @property
    def handlers(self) -> Tracker:
        """Promises and awaiters of this process."""

    @property
    def roots(self) -> Invoker:
        """Where roots are invoked."""

    @property
    def process(self) -> str:
        """Id of this incarnation of the process."""

    def call_at(self, at_ms: int, due: Deadline) -> None:
        """Write `due` when that time has come."""

    def waiting(self, held: Held, waits: bool) -> None:
        """Its executions begin, or cease, to wait for something that is settled elsewhere."""

    def let_go(self, held: Held) -> None:
        """This process holds the task no longer."""

    def say_once(self, text: str) -> None:
        """Warn of something, once in the life of this process."""


class Running(Protocol):
    """An execution, as its task's other executions see it."""

    def abandon(self) -> None:
        """Stop running; settle nothing."""

    def overrule(self) -> None:
        """Its promise is settled already: stop running, and end what it made."""

    def cancel(self, reason: bytes | None) -> None:
        """End it as canceled."""

    def tasks(self) -> list[asyncio.Task[object]]:
        """The asyncio tasks that it consists of, its body's first."""


class Held:
    """One acquired task, from the acquire to its end here."""

    __slots__ = (
        "barrier", "blocked", "claim", "diverged", "history", "host", "id", "promise", "running", "seed",
        "signal", "timeout_at",
    )  # fmt: skip

    def __init__(self, host: Host, acquired: Acquired, promise: Promise[object]) -> None:
        task = acquired.task
        self.host = host
        self.id = task.id
        self.claim = Claim(task.id, task.version, host.process)
        self.promise = promise
        self.seed = task.seed
        self.timeout_at = acquired.promise.timeout_at
        self.history: dict[str, PromiseRecord] = {record.id: record for record in acquired.preload}
        """What is recorded of earlier runs and has not been reached again."""
        self.running: dict[str, Running] = {}
        self.blocked = 0
        """How many promises that are settled elsewhere its executions wait for now."""
        self.barrier: asyncio.Future[None] | None = None
        """Not done while a decision is not durable: no body may start, or an effect could outlive what led to it."""
        self.signal: BaseException | None = None
        """Set once the task is gone: every further durable operation raises it."""
        self.diverged: NonDeterminismError | None = None

    def block(self) -> None:
        """One more of its executions waits for what is settled elsewhere."""
        self.blocked += 1
        if self.blocked == 1:
            self.host.waiting(self, True)

    def unblock(self) -> None:
        """One of them waits no longer."""
        self.blocked -= 1
        if self.blocked == 0:
            self.host.waiting(self, False)

    def check(self) -> None:
        """Raise what has ended this task, if anything has."""
        if self.signal is not None:
            raise self.signal
        if self.diverged is not None:
            raise self.diverged

    def diverge(self, error: NonDeterminismError) -> None:
        """A replay came to something else than was recorded: nothing is settled, and nobody tries again by himself."""
        if self.diverged is None:
            self.diverged = error
            asyncio.get_running_loop().call_soon(self._halt, error)

    def _halt(self, error: NonDeterminismError) -> None:
        if self.signal is None:
            self.host.journal.ask(TaskHalt(self.id), keep=True)
            self._unwatch()
            if not self.promise.watchers:  # else an execution here invoked it: it waits, as for a task elsewhere
                self.host.handlers.refuse(self.promise, error)
            self.drop(LeaseLost(f"{self.id} has diverged"))

    def settled(self) -> None:
        """The task's own promise is settled: by its execution, or over its head."""
        self.drop(LeaseLost(f"promise {self.id!r} is settled"))

    def cancel(self, reason: bytes | None) -> bool:
        """Its execution ends as canceled, after its children; nothing to do once that has returned."""
        execution = self.running.get(self.id)
        if execution is not None:
            execution.cancel(reason)
        return True

    def random_seed(self, name: str) -> bytes:
        """Where the random stream of that name starts."""
        return sha256(self.seed + name.encode()).digest()

    def lost(self, reason: str) -> None:
        """A write was refused: another process may be running this task by now."""
        self.drop(LeaseLost(f"{self.id}: {reason}"))

    def drop(self, signal: BaseException) -> None:
        """End every execution of the task here; nothing is settled by it any more."""
        if self.signal is None:
            self.signal = signal
            self._unwatch()
            for execution in list(self.running.values()):
                execution.abandon()
            self.host.let_go(self)

    def _unwatch(self) -> None:
        self.promise.watchers = tuple(watcher for watcher in self.promise.watchers if watcher is not self)


class Deadline:
    """An entry: look at a promise whose deadline has come; the store gives the verdict."""

    __slots__ = ("_host", "_promise")

    def __init__(self, host: Host, promise: Promise[object]) -> None:
        self._host = host
        self._promise = promise

    @property
    def needed(self) -> bool:
        """Whether the promise is still waited for."""
        return not self._promise.done()

    def command(self) -> Command:
        return PromiseGet(self._promise.id)

    def replied(self, reply: Reply) -> None:
        record = reply.promise
        if record is not None and record.state is not State.PENDING:
            self._host.handlers.return_(self._promise, record.state, record.value)

    def failed(self, error: BaseException, *, final: bool) -> bool:
        return final


def halted(id: str) -> str:
    """What to do about a halted task."""
    return (
        f"the task of {id!r} is halted: the code that ran it did not fit what is recorded. Nothing is lost: correct"
        f" the code, then let it go on with `dasync resume {id}`"
    )
