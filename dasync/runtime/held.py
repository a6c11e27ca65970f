"""A task that this process holds: the claim under which its executions write, and their history.

`Held` is what the executions of one task share: the fence, what a replay knows, the random seed, and the signal that
ends them when the claim is gone. It says what must be written; the journal writes it, the store decides.
"""

from __future__ import annotations

import asyncio
import logging
import shlex
from collections.abc import Sequence
from contextvars import Context
from hashlib import sha256
from typing import Protocol

from dasync.core import codec, ids
from dasync.core.model import PromiseRecord, State
from dasync.core.protocol import (
    AGAIN,
    POISON,
    POISONED_POOL,
    Acquired,
    Claim,
    Command,
    PromiseGet,
    Reply,
    TaskHalt,
    cut_reason,
)
from dasync.errors import LeaseLost, NonDeterminismError, Poisoned
from dasync.ports import Clock
from dasync.runtime.batches import Batches
from dasync.runtime.function import ALARM, DECISIONS, PATCHED
from dasync.runtime.function import Host as Invoker
from dasync.runtime.journal import Journal
from dasync.runtime.lease import Lease
from dasync.runtime.policy import Retry
from dasync.runtime.pool import Crashed, Pool
from dasync.runtime.promise import Promise, Tracker
from dasync.runtime.slots import Slots
from dasync.runtime.threads import Seats

_log = logging.getLogger("dasync")


class Host(Protocol):
    """What executions find around them: the runner."""

    clock: Clock
    journal: Journal
    lease: Lease
    max_payload: int
    context: Context
    """The context variables that executions begin with."""
    retry: Retry
    """The policy of functions that have none of their own."""
    seats: Seats
    """Where functions run that are not `async def`."""
    batches: Batches
    """Where items of batched functions meet."""
    slots: Slots
    """How many of a function run at a time."""
    pool: Pool
    """The processes of functions with `process=True`."""

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

    def parts(self) -> Sequence[asyncio.Task[object]]:
        """The asyncio tasks that it consists of, its body's first."""

    def takes_more(self) -> bool:
        """Whether an outcome that is settled already is still to be taken."""

    def alarms(self) -> list[str]:
        """The timers that its code has set by asyncio's means, and that have not rung."""


class Held:
    """One acquired task, from the acquire to its end here."""

    __slots__ = (
        "barrier", "blocked", "claim", "diverged", "history", "host", "id", "is_settled", "lease", "mark", "patches",
        "promise", "recorded", "running", "runs", "seed", "signal", "suspect", "timeout_at",
    )  # fmt: skip

    def __init__(self, host: Host, acquired: Acquired, promise: Promise[object]) -> None:
        task = acquired.task
        self.host = host
        self.id = task.id
        self.lease = host.lease
        self.mark = ids.mark(task.id)
        self.claim = Claim(task.id, task.version, host.process)
        self.promise = promise
        self.seed = task.seed
        self.suspect = task.crashes > 0
        """The last process that ran it has ended meanwhile."""
        self.timeout_at = acquired.promise.timeout_at
        self.history: dict[str, PromiseRecord] = {record.id: record for record in acquired.preload}
        """What is recorded of earlier runs and has not been reached again."""
        self.recorded: dict[str, list[PromiseRecord]] = {}
        """The same by the execution that made it, but for decisions, as it was at the beginning."""
        self.patches: set[tuple[str, str]] = set()
        """The executions that have come to a change of their code with the changed code, and the name of the change."""
        self.runs: dict[str, PromiseRecord] = {}
        """What keeps the arguments of the latest run, by the promise whose execution has started over."""
        for record in acquired.preload:
            stopped = record.function == ALARM and record.state is State.CANCELED
            if record.function == AGAIN:
                self.runs[ids.parent_of(record.id) or ""] = record
            elif not stopped and record.function not in DECISIONS:
                self.recorded.setdefault(ids.parent_of(record.id) or "", []).append(record)
            elif record.function == PATCHED and record.value is not None:
                self.patches.add((ids.parent_of(record.id) or "", str(codec.decode(record.value))))
        self.running: dict[str, Running] = {}
        self.is_settled = False
        """Whether its own promise is settled, which those who wait for it may hear of later."""
        self.blocked = 0
        """How many promises that are settled elsewhere its executions wait for now."""
        self.barrier: asyncio.Future[None] | None = None
        """Not done while a decision is not durable: no body may start, or an effect could outlive what led to it."""
        self.signal: BaseException | None = None
        """Set once the task is gone: every further durable operation raises it."""
        self.diverged: NonDeterminismError | None = None

    def hear(self, record: PromiseRecord) -> None:
        """What an earlier run has made and this one may not have come to is settled."""
        if record.id in self.history:
            self.history[record.id] = record

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
            asyncio.get_running_loop().call_soon(self._halt, error, str(error))

    def poison(self, id: str, function: str, crashed: Crashed) -> None:
        """The code of one of its executions has ended its process, and again: nothing is settled."""
        reason = POISONED_POOL.format(crashes=crashed.crashes, function=function, id=id, last=crashed.last)
        self._halt(halted(self.id, reason), reason)

    def _halt(self, error: NonDeterminismError | Poisoned, reason: str) -> None:
        if self.signal is None:
            _log.error("%s; `dasync show %s` tells more", str(error).partition("\n")[0], self.id)
            self.host.journal.ask(TaskHalt(self.id, cut_reason(reason)), keep=True)
            self._unwatch()
            if not self.promise.watchers:  # else an execution here invoked it: it waits, as for a task elsewhere
                self.host.handlers.refuse(self.promise, error)
            self.drop(LeaseLost(f"{self.id} is halted"))

    def takes(self, record: PromiseRecord, value: object) -> bool:
        return False

    def settled(self) -> None:
        """The task's own promise is settled: by its execution, or over its head."""
        self.is_settled = True
        self.drop(LeaseLost(f"promise {self.id!r} is settled"))

    def cancel(self, reason: bytes | None) -> bool:
        """Its execution ends as canceled, after its children; nothing to do once that has returned."""
        execution = self.running.get(self.id)
        if execution is not None:
            execution.cancel(reason)
        return True

    def run_of(self, id: str) -> int:
        """How often the execution of a promise has started over."""
        kept = self.runs.get(id)
        return 0 if kept is None else kept.version

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

    __slots__ = ("_claim", "_host", "_promise")

    def __init__(self, host: Host, promise: Promise[object], claim: Claim | None = None) -> None:
        self._host = host
        self._promise = promise
        self._claim = claim
        """That of the task that has made the promise, if it runs here: its verdict is no news to it then."""

    @property
    def needed(self) -> bool:
        """Whether the promise is still waited for."""
        return not (self._promise.done() or self._promise.refused)

    def command(self) -> Command:
        return PromiseGet(self._promise.id, self._claim)

    def replied(self, reply: Reply) -> None:
        record = reply.promise
        if record is not None and record.state is not State.PENDING:
            self._host.handlers.return_(self._promise, record)

    def failed(self, error: BaseException, *, final: bool) -> bool:
        return final


def halted(id: str, reason: str) -> NonDeterminismError | Poisoned:
    """What is told of a halted task: what to do, then why it was halted."""
    if reason.startswith(POISON):
        return Poisoned(f"the task of {id!r} is halted, {reason} with `dasync resume {shlex.quote(id)}`")
    what = (
        f"the task of {id!r} is halted: the code that ran it did not fit what is recorded. Nothing is lost: correct"
        f" the code, then let it go on with `dasync resume {shlex.quote(id)}`"
    )
    return NonDeterminismError(f"{what}\n{reason}" if reason else what, execution=id, id=id)
