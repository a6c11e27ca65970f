"""A process at work: join, acquire, run, fulfill or hand back; heartbeats, other processes' deaths, graceful drain.

The life of a task here is one pipeline: `_acquire` claims it, `begin` (the event loop's) runs it, its execution
fulfills it, or `hand_back` suspends or releases it. Everything is said through the journal; doorbells are hints and
polling makes up for lost ones. This file knows nothing of functions and arguments.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from dasync.core.model import ProcessRecord, PromiseRecord
from dasync.core.protocol import (
    MAX_ACQUIRE,
    Acquired,
    Claim,
    ProcessHeartbeat,
    ProcessJoin,
    ProcessLeave,
    PromiseGet,
    Receive,
    Reply,
    Status,
    TaskAcquire,
    TaskRelease,
    TaskSuspend,
    Tick,
)
from dasync.errors import StoreError, StoreUnavailable, Suspended
from dasync.ports import Clock, Entropy, Ring, Store, Transport
from dasync.runtime.capacity import Capacity
from dasync.runtime.deadlines import Deadlines
from dasync.runtime.held import Deadline, Held
from dasync.runtime.journal import Acknowledgement, Journal

BEATS_PER_LEASE = 3  # a heartbeat may fail twice before the lease is gone
DRAIN_LOOK_S = 0.01  # how often a drain looks for what only waits by now
BLOCKED_S = 1.0  # how long the asyncio loop may stand still before that is said: a lease is lost in ten
CLEAN_UP_S = 5.0  # how long code that is being suspended may clean up
_log = logging.getLogger("dasync.worker")


@dataclass(frozen=True, slots=True)
class Terms:
    """How a process works."""

    group: str
    name: str
    lease_ms: int
    concurrency: int
    max_resident: int
    poll_s: float
    python: str


class Employer(Protocol):
    """What a worker needs from the event loop."""

    def functions(self) -> tuple[tuple[str, int], ...]:
        """Names and versions of the functions that can run here."""

    def run(self, acquired: Acquired) -> None:
        """Run a task that was just acquired."""

    def listens(self) -> bool:
        """Whether this process waits for anything that is settled elsewhere."""

    def news(self, record: PromiseRecord) -> None:
        """A promise is settled that this process may wait for."""

    def awaited_by(self, tasks: Iterable[Held]) -> dict[Held, list[str]]:
        """Those among `tasks` that do nothing but wait for what is settled elsewhere, and what each waits for."""

    def broken(self, error: BaseException) -> None:
        """Nothing more can be done: the store is damaged, or we are."""

    def rejoined(self) -> None:
        """This process is a new incarnation: nobody tells it anything that it does not ask for again."""


class Worker:
    """This process, as the store and other processes see it."""

    def __init__(
        self,
        employer: Employer,
        terms: Terms,
        *,
        store: Store,
        transport: Transport,
        clock: Clock,
        entropy: Entropy,
        journal: Journal,
    ) -> None:
        self.process = ""
        self.capacity = Capacity(terms.concurrency, terms.max_resident, self._freed)
        self._deadlines = Deadlines(clock, journal)
        self._employer = employer
        self._terms = terms
        self._store = store
        self._transport = transport
        self._clock = clock
        self._entropy = entropy
        self._journal = journal
        self._rung = asyncio.Event()
        self._polled = False
        self._more = True  # there may be tasks to acquire
        self._news = True  # there may be news to read
        self._services: list[asyncio.Task[None]] = []
        self._asleep_since = (math.inf, math.inf)
        self._others: list[ProcessRecord] = []
        self._next_due: int | None = None
        self._unknown: set[tuple[str, int]] = set()
        self._told: set[tuple[str, int]] = set()
        self._orphans: set[str] = set()
        self._told_orphans: set[str] = set()

    # -- life

    async def join(self) -> None:
        """Come alive: bury the dead, take a lease, begin to serve."""
        await self._bury(await self._store.processes())
        await self._take_lease()
        for service in (self._serve, self._poll, self._beat, self._deadlines.keep):
            task = asyncio.create_task(service(), name=f"dasync-{service.__name__.strip('_')}")
            task.add_done_callback(self._ended)
            self._services.append(task)

    def stop(self) -> None:
        """Stop serving."""
        self.capacity.shut()
        if self._services:
            self._say_if_blocked()
        for service in self._services:
            service.cancel()

    def _ended(self, service: asyncio.Task[None]) -> None:
        """A service ends when it is stopped; anything else is the end of this process's work."""
        if not service.cancelled() and (error := service.exception()) is not None:
            self._employer.broken(error)

    async def leave(self) -> None:
        """Stop serving and say so; tasks that are still held are sent again."""
        self.stop()
        if self._services:
            await asyncio.wait(self._services)
        with suppress(StoreError):
            await self._journal.ask(ProcessLeave(self.process))

    async def drain(self, timeout_s: float) -> None:
        """Acquire nothing more; let what runs finish for `timeout_s`, hand the rest back."""
        self.capacity.shut()
        ends = self._clock.monotonic() + timeout_s
        while self.capacity.held and self._clock.monotonic() < ends:
            await self._hand_back(list(self._employer.awaited_by(self.capacity.held.values())))
            if self.capacity.held:
                await self._clock.sleep(min(DRAIN_LOOK_S, timeout_s))
        await self._hand_back(list(self.capacity.held.values()))

    async def _take_lease(self) -> None:
        await self._transport.close()
        self.process = f"{self._terms.name}@{self._entropy.bytes(4).hex()}"
        address = await self._transport.open(self.process, self.wake)
        join = ProcessJoin(
            self.process, self._terms.name, self._terms.group, self._transport.host, address, self._terms.lease_ms
        )
        reply = await self._journal.ask(join)
        if reply.status is not Status.CREATED:
            raise StoreUnavailable(f"process {self.process!r} could not join: {reply.reason}")

    # -- services, each a loop of its own

    async def _serve(self) -> None:
        self._rung.set()
        while True:
            await self._rung.wait()
            self._rung.clear()
            polled, self._polled = self._polled, False
            with _outages():
                changed = polled and await self._store.changed()
                self._more, self._news = self._more or changed, self._news or changed
                if self._news:
                    await self._read_news()
                if self._more:
                    await self._acquire()
                if self.capacity.crowded:
                    await self._suspend_some()
                if changed:
                    await self._look_around()
                if polled:
                    await self._bury(self._others)
                    await self._tick()

    async def _poll(self) -> None:
        while True:
            self._asleep_since = asyncio.get_running_loop().time(), self._clock.monotonic()
            await self._clock.sleep(self._terms.poll_s)
            self._say_if_blocked()
            self._polled = True
            self._rung.set()

    def _say_if_blocked(self) -> None:
        """Whether the asyncio loop has stood still since the poll went to sleep."""
        turned_at, asleep_at = self._asleep_since
        # By both clocks: one that was handed in may stand still or jump.
        late_s = min(asyncio.get_running_loop().time() - turned_at, self._clock.monotonic() - asleep_at)
        if late_s - self._terms.poll_s > BLOCKED_S:
            _log.warning(
                "the asyncio loop stood still for %.1f s: something blocks it, as time.sleep or a long computation"
                " in an `async def` does; write that with plain `def`, and dasync runs it in a thread",
                late_s - self._terms.poll_s,
            )
            self._asleep_since = (math.inf, math.inf)  # it is said once

    async def _beat(self) -> None:
        while True:
            await self._clock.sleep(self._terms.lease_ms / 1000 / BEATS_PER_LEASE)
            with _outages():
                reply = await self._journal.ask(ProcessHeartbeat(self.process), keep=True)
                if reply.status is Status.OK:
                    self._reconcile(reply)
                    self._next_due = await self._store.next_due()
                    await self._look_for_orphans()
                else:
                    await self._start_over(reply.reason)

    # -- what the services do

    def wake(self, ring: Ring) -> None:
        """Somebody rang: there may be tasks, or news."""
        self._more = self._more or Ring.TASKS in ring
        self._news = self._news or Ring.NEWS in ring
        self._rung.set()

    def _freed(self) -> None:
        if self._more or self.capacity.crowded:
            self._rung.set()

    def call_at(self, at_ms: int, deadline: Deadline) -> None:
        """Write `deadline` when its time has come."""
        self._deadlines.add(at_ms, deadline)

    async def _read_news(self) -> None:
        self._news = False  # before it is read: what is settled meanwhile rings again
        try:
            news = await self._store.news(self.process) if self._employer.listens() else []
        except StoreUnavailable:
            self._news = True
            raise
        for record in news:
            self._employer.news(record)
        if news:
            # What is not acknowledged is read again; so this can wait for the next batch.
            self._journal.write_behind(Acknowledgement(Receive(self.process, tuple(record.id for record in news))))

    async def _acquire(self) -> None:
        functions = self._employer.functions()
        self._more = bool(functions)
        # Half of the room at most: roots that are invoked here meanwhile start at once.
        while functions and (limit := self.capacity.reserve(min(MAX_ACQUIRE, (self.capacity.room + 1) // 2))):
            self._more = False  # before it is asked: what comes meanwhile rings again
            terms = self._terms
            targets = (terms.group, f"{terms.group}/{terms.name}")
            acquire = TaskAcquire(self.process, targets, functions, limit, terms.python)
            asked, self._more = self._journal.ask(acquire, keep=True), False  # who rings from now on is heard
            try:
                reply = await asked
            except StoreUnavailable:
                self._more = True
                raise
            finally:
                self.capacity.unreserve(limit)
            for acquired in reply.acquired:
                self._employer.run(acquired)
            if len(reply.acquired) < limit:
                return
            self._more = True

    async def _look_around(self) -> None:
        """Others have written: who is there, what comes due, what nobody here can run."""
        self._others = await self._store.processes()
        self._next_due = await self._store.next_due()
        functions = self._employer.functions()
        for name, version in await self._store.missing((self._terms.group,), functions):
            if (name, version) not in self._told:
                self._told.add((name, version))
                _log.warning(
                    "a task needs function %r version %d, which is not registered in process %s: it is left to other"
                    " workers of group %r; import the module that defines it",
                    name, version, self.process, self._terms.group,
                )  # fmt: skip

    async def _look_for_orphans(self) -> None:
        """Say once when a task has waited from one beat to the next for a group that nobody serves: a typo, maybe."""
        served = {process.group for process in await self._store.processes()}
        orphans = {target for target in await self._store.waiting_targets() if target.partition("/")[0] not in served}
        for target in sorted(orphans & self._orphans - self._told_orphans):
            _log.warning(
                "a task waits for %r, and no process serves that group: start `dasync worker APP --group %s`, or"
                " correct its on=", target, target.partition("/")[0],
            )  # fmt: skip
        self._told_orphans |= orphans & self._orphans
        self._orphans = orphans

    async def _bury(self, processes: list[ProcessRecord]) -> None:
        for dead in self._transport.dead([process for process in processes if process.id != self.process]):
            _log.info("process %s is dead; its tasks are taken over", dead)
            await self._journal.ask(ProcessLeave(dead))
            self._transport.bury(dead)
            self._others = [process for process in self._others if process.id != dead]
            self.wake(Ring.TASKS)

    async def _tick(self) -> None:
        while self._next_due is not None and self._next_due <= self._clock.now_ms():
            reply = await self._journal.ask(Tick())
            for record in reply.settled:
                self._employer.news(record)
            self._next_due = await self._store.next_due()
            self.wake(Ring.TASKS)

    def _reconcile(self, reply: Reply) -> None:
        """Release what the store counts as held and nobody here knows: the answer to its acquire was lost."""
        held = {(id, version) for id, version in (reply.held or {}).items()}
        unknown = held - {(id, mine.claim.version) for id, mine in self.capacity.held.items()}
        for id, version in unknown & self._unknown:  # twice in a row: not just on its way here
            self._journal.ask(TaskRelease(Claim(id, version, self.process)), keep=True)
        self._unknown = unknown

    async def _start_over(self, reason: str) -> None:
        """The lease is gone: drop everything, come back as another incarnation."""
        tasks = list(self.capacity.held.values())
        _log.warning("process %s has lost its lease (%s): it drops %d tasks", self.process, reason, len(tasks))
        for held in tasks:
            held.lost(reason)
        await self._take_lease()
        self._employer.rejoined()
        self.wake(Ring.TASKS | Ring.NEWS)

    # -- handing back

    async def _suspend_some(self) -> None:
        """Leave the longest waiting to the store: whoever has room replays them when they can go on."""
        candidates = self.capacity.too_many()
        waiting = self._employer.awaited_by(candidates)
        self.capacity.busy(held for held in candidates if held not in waiting)
        if waiting:
            # One that is replayed asks anew for what it awaits; once this is answered, it knows what has settled.
            await self._journal.ask(PromiseGet(next(iter(waiting)).id))
            now = self._employer.awaited_by(waiting)
            still = [held for held, awaited in waiting.items() if held.signal is None and now.get(held) == awaited]
            await self._hand_back(still)

    async def _hand_back(self, tasks: list[Held]) -> None:
        """Suspend what only waits, release the rest; another worker takes it from there."""
        ending: list[asyncio.Task[object]] = []
        suspending: list[tuple[Held, asyncio.Future[Reply]]] = []
        releasing: list[Held] = []
        waits = self._employer.awaited_by(tasks)
        for held in tasks:
            awaited = tuple(waits.get(held, ()))
            ending += [task for execution in held.running.values() for task in execution.tasks()]
            held.drop(Suspended(f"{held.id} is handed back"))
            if awaited:
                suspending.append((held, self._journal.ask(TaskSuspend(held.claim, awaited))))
            else:
                releasing.append(held)
        # What it waits for may be settled by now: then it has work to do, for whoever takes it.
        releasing += [held for held, reply in suspending if (await reply).status is not Status.OK]
        for reply in [self._journal.ask(TaskRelease(held.claim)) for held in releasing]:
            await reply
        if ending:
            await asyncio.wait(ending, timeout=CLEAN_UP_S)


class _outages(suppress):  # noqa: N801  # a context manager, named as one is used
    """A service outlives an outage of the store: the journal has said so already."""

    def __init__(self) -> None:
        super().__init__(StoreUnavailable)
