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
from dasync.core.protocol import Acquired, Claim, TaskHalt, TaskRelease, cut_reason
from dasync.errors import DecodeError, FunctionNotFound
from dasync.ports import Clock, Ring
from dasync.runtime import branch
from dasync.runtime.batches import Batches
from dasync.runtime.branch import Branch
from dasync.runtime.capacity import Capacity
from dasync.runtime.code import Invocation
from dasync.runtime.execution import Execution
from dasync.runtime.function import Function
from dasync.runtime.handlers import Handlers
from dasync.runtime.held import Deadline, Held, halted
from dasync.runtime.journal import Entry, Journal
from dasync.runtime.lease import Lease
from dasync.runtime.policy import Retry
from dasync.runtime.pool import Pool
from dasync.runtime.promise import Promise
from dasync.runtime.registry import lookup, registered
from dasync.runtime.root import Roots
from dasync.runtime.slots import Kept, Offer, Slots
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
        lease: Lease,
        functions: Sequence[Function[..., object]] | None,
        max_payload: int,
        retry: Retry,
        pool: Pool,
        processes: int,
    ) -> None:
        self.lease = lease
        self.handlers = handlers
        self.journal = journal
        self.clock = clock
        self.max_payload = max_payload
        self.retry = retry
        self.seats = Seats()
        self.pool = pool
        self.slots = Slots(processes, self.wake)
        self._served: dict[tuple[str, int], int] = {}  # when a task of which function was taken last
        self._taken = 0
        self.context = copy_context()
        self.context.run(branch.inside.set, True)
        self.batches = Batches(clock, lease, self.seats, self.context)
        self._said: set[str] = set()
        self._unmade: list[Entry] = []
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

    def offer(self, most: int) -> Offer:
        """The functions of which there may be up to `most` tasks more here: those first that had none for longest."""
        turn, known = sorted(self.functions(), key=lambda kind: self._served.get(kind, 0)), registered()
        return self.slots.offer([(kind, known.get(kind)) for kind in turn], most)

    def taken(self, offer: Offer, acquired: Sequence[Acquired]) -> None:
        """What came of an offer; what has no room here by now goes back at once."""
        self.slots.close(offer, acquired)
        for one in acquired:
            self._taken += 1
            self._served[one.task.function, one.task.function_version] = self._taken
            if self.worker.capacity.room:
                self.run(one)
            else:
                self.give_back(one)

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

    def tell(self, settled: Sequence[PromiseRecord], gone: Sequence[str] = ()) -> None:
        """Promises that this process may wait for are settled; of these ids there are none any more."""
        for record in settled:
            if record.creator is not None and (held := self.worker.capacity.held.get(record.creator)) is not None:
                held.hear(record)
            promise = self.handlers.pending.get(record.id)
            if promise is not None:
                self.handlers.return_(promise, record)
        for id in gone:
            self.handlers.gone(id)

    def awaited_by(self, tasks: Iterable[Held]) -> dict[Held, list[str]]:
        """Those among `tasks` that do nothing but wait for what is settled elsewhere, and what each waits for."""
        return self.handlers.awaiters.awaited_by(tasks)

    def rejoined(self) -> None:
        """This process is a new incarnation: nobody tells it anything that it does not ask for again."""
        unmade, self._unmade = self._unmade, []
        for entry in unmade:  # before anybody listens: what is not made yet would be said not to exist
            self.journal.write(entry)
        for promise in list(self.handlers.pending.values()):
            self.handlers.listen(promise)

    def give_up(self, error: BaseException) -> None:
        """There is no other lease to come."""
        unmade, self._unmade = self._unmade, []
        for entry in unmade:
            entry.failed(error, final=True)

    def broken(self, error: BaseException) -> None:
        """Nothing can be written any more: end what runs, tell who waits."""
        self.handlers.broken(error)
        self.give_up(error)
        for held in list(self.worker.capacity.held.values()):
            held.lost(str(error))

    # -- for roots

    def begin(self, acquired: Acquired, promise: Promise[object]) -> None:
        """Let the execution of a held task start, or go on from what it has recorded."""
        if self.worker.capacity.is_shut:  # since it was asked for: who drains has handed back what was here by then
            self.give_back(acquired)
            self.handlers.listen(promise)
            return
        record = acquired.promise
        promise = self.handlers.known(record.id) or promise
        held = Held(self, acquired, promise)
        param = held.runs.get(record.id, record).param
        try:
            made = lookup(record.function, record.version)
            args, kwargs = made.shape.decode(param)
        except (FunctionNotFound, DecodeError) as error:
            # What is recorded does not fit the code that is here: nothing is settled, nobody tries again by himself.
            _log.error("%s cannot run: %s; %s", record.id, error, halted(record.id, ""))
            self.journal.ask(TaskHalt(record.id, cut_reason(f"{record.id!r} cannot run: {error}")), keep=True)
            if not promise.watchers:  # else an execution here invoked it: it waits, as for a task elsewhere
                self.handlers.refuse(promise, error)
            return
        self.worker.capacity.hold(held)
        promise.watchers += (held,)  # it may be a child of another execution here as well
        Execution(held, held.id, Invocation(made, param, record.tags), None).start(args, kwargs)

    def give_back(self, acquired: Acquired) -> None:
        """Release a task that was acquired and is not to be run here."""
        task = acquired.task
        self.journal.ask(TaskRelease(Claim(task.id, task.version, self.process)), keep=True)

    def ask_anew(self, entry: Entry) -> None:
        """This process has lost its lease: write the entry once more when it has another one."""
        self._unmade.append(entry)

    def wake(self) -> None:
        """There may be tasks to acquire."""
        self.worker.wake(Ring.TASKS)

    def holds(self, id: str) -> bool:
        """Whether the task of that id runs here."""
        return id in self.worker.capacity.held

    def reserve(self, function: str, version: int) -> Kept | None:
        """Keep room for one more task of that function here; None: there is none."""
        kept = self.slots.reserve(lookup(function, version))
        if kept is not None and not self.worker.capacity.reserve():
            self.slots.unreserve(kept)
            return None
        return kept

    def unreserve(self, kept: Kept) -> None:
        """The task has come, or will not."""
        self.slots.unreserve(kept)
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
        done = held.is_settled or held.promise.done() or held.promise.refused
        if not done and self.handlers.error is None:
            self.handlers.listen(held.promise)  # another process may settle it now
