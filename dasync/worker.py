"""A process at work: join, acquire, run, fulfill or hand back; heartbeats, other processes' deaths, graceful drain.

The life of a task here is one pipeline: `_acquire` claims it, `begin` (the event loop's) runs it, its execution
fulfills it, or `hand_back` suspends or releases it. Everything is said through the journal; doorbells are hints and
polling makes up for lost ones. This file knows nothing of functions and arguments.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from dasync.core.model import PromiseRecord
from dasync.core.protocol import (
    MAX_ACQUIRE,
    Acquired,
    Claim,
    ProcessHeartbeat,
    ProcessJoin,
    ProcessLeave,
    PromiseGet,
    Reply,
    Status,
    TaskAcquire,
    TaskRelease,
    Tick,
)
from dasync.errors import StoreError, StoreUnavailable, Suspended
from dasync.ports import Bell, Clock, Entropy, News, Ring, Store, Transport
from dasync.runtime.capacity import Capacity
from dasync.runtime.deadlines import Deadlines
from dasync.runtime.hearing import Hearing
from dasync.runtime.held import Deadline, Held
from dasync.runtime.journal import Journal
from dasync.runtime.lease import Lease
from dasync.runtime.leaving import Leaving
from dasync.runtime.neighbours import Neighbours
from dasync.runtime.slots import Offer

BEATS_PER_LEASE = 3  # a heartbeat may fail twice before the lease is gone
DRAIN_LOOK_S = 0.01  # how often a drain looks for what only waits by now
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
    max_crashes: int


class Employer(Protocol):
    """What a worker needs from the event loop."""

    def functions(self) -> tuple[tuple[str, int], ...]:
        """Names and versions of the functions that can run here."""

    def offer(self, most: int) -> Offer:
        """Which functions' tasks this process may acquire now, in whose turn, and how many; `taken` ends that."""

    def taken(self, offer: Offer, acquired: Sequence[Acquired]) -> None:
        """What came of an offer: run it."""

    def listens(self) -> bool:
        """Whether this process waits for anything that is settled elsewhere."""

    def tell(self, settled: Sequence[PromiseRecord], gone: Sequence[str] = ()) -> None:
        """Promises that this process may wait for are settled; of these ids there are none any more."""

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
        lease: Lease,
    ) -> None:
        self.process = ""
        self.capacity = Capacity(terms.concurrency, terms.max_resident, self._freed)
        self._deadlines = Deadlines(clock, journal)
        self._employer = employer
        self.wakeups = 0
        """How often its doorbell has rung."""
        self._terms = terms
        self._targets = (terms.group, f"{terms.group}/{terms.name}")
        self._store = store
        self._transport = transport
        self._clock = clock
        self._entropy = entropy
        self._journal = journal
        self._lease = lease
        self._rung = asyncio.Event()
        self._polled = False
        self._passed: int | None = None  # how often the last ring for a task had been passed on
        self._more = self._news = True  # there may be tasks to acquire, and news to read
        self._short = False  # functions were left out of the last acquire, for as many of them run as may
        self._services: list[asyncio.Task[None]] = []
        self._stopped = False
        self._neighbours = Neighbours(terms, transport=transport, clock=clock, journal=journal)
        self._beaten = True  # since it has last looked around
        self._next_due: int | None = None
        self._unknown: set[tuple[str, int]] = set()
        self._leaving = Leaving(journal)
        self.left = False
        """Whether it has said in the store that it leaves."""
        self._over = False  # its lease, and it has not come back yet
        self._hearing = Hearing(lambda: self.process, lambda: bool(self.capacity.held), self._hears)
        journal.companion = self._hearing

    # -- life

    async def join(self) -> None:
        """Come alive: bury the dead, take a lease, begin to serve."""
        await self._look_around()
        await self._neighbours.bury()
        await self._take_lease()
        self._neighbours.tidy()
        for service in (self._serve, self._poll, self._beat, self._deadlines.keep):
            task = asyncio.create_task(service(), name=f"dasync-{service.__name__.strip('_')}")
            task.add_done_callback(self._ended)
            self._services.append(task)

    def stop(self) -> None:
        """Stop serving."""
        self._stopped = True
        self.capacity.shut()
        for service in self._services:
            service.cancel()

    def _ended(self, service: asyncio.Task[None]) -> None:
        """A service ends when it is stopped; anything else ends this process's work."""
        if not service.cancelled() and (error := service.exception()) is not None:
            self._employer.broken(error)
        elif not self._stopped:
            self._employer.broken(StoreUnavailable(f"{service.get_name()} was canceled, and it is the EventLoop's own"))
        for held in list(self.capacity.held.values()):  # nobody renews the lease: what waits for that would never end
            held.drop(Suspended(f"{held.id}: this process serves no more"))

    async def leave(self) -> None:
        """Stop serving and say so; tasks that are still held are sent again."""
        self.stop()
        if self._services:
            await asyncio.wait(self._services)
        with suppress(StoreError):
            await self._journal.ask(ProcessLeave(self.process))
            self.left = True

    async def drain(self, timeout_s: float) -> None:
        """Acquire nothing more; let what runs finish for `timeout_s`, hand the rest back."""
        self.capacity.shut()
        ends = self._clock.monotonic() + timeout_s
        while self.capacity.held and self._clock.monotonic() < ends:
            self._hand_back(self._employer.awaited_by(self.capacity.held.values()))
            if self.capacity.held:
                await self._clock.sleep(min(DRAIN_LOOK_S, timeout_s))
        self._hand_back(self.capacity.held.values())
        await self._leaving.gone()

    async def _take_lease(self) -> None:
        await self._transport.close(left=False)
        self.process = f"{self._terms.name}@{self._entropy.bytes(4).hex()}"
        address = await self._transport.open(self.process, self.hear)
        join = ProcessJoin(
            self.process, self._terms.name, self._terms.group, self._transport.host, address, self._terms.lease_ms
        )
        self._lease.box, asked_at = self._transport.box, self._clock.monotonic()
        reply = await self._journal.ask(join)
        if reply.status is not Status.CREATED:
            raise StoreUnavailable(f"process {self.process!r} could not join: {reply.reason}")
        self._lease.renewed(asked_at)

    # -- services, each a loop of its own

    async def _serve(self) -> None:
        self._rung.set()
        while True:
            await self._rung.wait()
            self._rung.clear()
            polled, self._polled = self._polled, False
            with _outages():
                if polled:
                    await self._look_around()
                if self._news:
                    await self._read_news()
                passed, self._passed = self._passed, None
                if self._more and not await self._acquire() and passed is not None:
                    await self._pass_on(passed)
                if self.capacity.crowded:
                    await self._suspend_some()
                if polled:
                    if await self._neighbours.bury():
                        self.wake(Ring.TASKS)
                    await self._tick()

    async def _poll(self) -> None:
        while True:
            await self._clock.sleep(min(self._terms.poll_s, self._neighbours.soonest_silence_s()))
            self._polled = True
            self._rung.set()

    async def _beat(self) -> None:
        while True:
            await self._clock.sleep(self._terms.lease_ms / 1000 / BEATS_PER_LEASE)
            with _outages():
                asked_at = self._clock.monotonic()
                held = self.capacity.held.values()
                knows = len(held), sum(one.claim.version for one in held)
                reply = await self._journal.ask(ProcessHeartbeat(self.process, knows), keep=True)
                if reply.status is not Status.OK:
                    await self._start_over(reply.reason)
                    continue
                self._lease.renewed(asked_at)
                self._reconcile(reply)
                self._beaten = True
                if self._over:  # it had joined, and was not told so
                    self._come_back()

    # -- what the services do

    def hear(self, bell: Bell) -> None:
        """Somebody rang: there may be tasks, or news."""
        self.wakeups += 1
        if Ring.TASKS in bell.ring:
            self._passed = bell.passed
        self._tell(bell.news)
        self.wake(bell.ring & ~Ring.NEWS if bell.news else bell.ring)

    async def _pass_on(self, passed: int) -> None:
        """Only one process is told of a task: when it has no room for it, or not the function, it tells another one."""
        full = self._short or not self.capacity.room
        if not full or self._neighbours.after(self.process, passed) is None:
            await self._look_around(anyway=True)
        other = self._neighbours.after(self.process, passed)
        if other is not None and (full or self._neighbours.missing):
            self._transport.ring({other: Bell(Ring.TASKS, passed=passed + 1)})

    def wake(self, ring: Ring) -> None:
        """There may be tasks to acquire, or news to read."""
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
            news = await self._store.news(self.process) if self._employer.listens() else News([], [])
        except StoreUnavailable:
            self._news = True
            raise
        self._tell(news.settled, news.gone)

    def _tell(self, settled: Sequence[PromiseRecord], gone: Sequence[str] = ()) -> None:
        if settled or gone:  # not before what was settled here meanwhile, which may have come first
            self._journal.after(partial(self._hears, settled, gone))

    def _hears(self, settled: Sequence[PromiseRecord], gone: Sequence[str] = ()) -> None:
        self._employer.tell(settled, gone)
        self._hearing.heard((*(record.id for record in settled), *gone))
        if not self._hearing.queued:  # what is not acknowledged is read again; so this can wait for the next batch
            self._hearing.queued = True
            self._journal.write_behind(self._hearing)

    async def _acquire(self) -> int:
        """Acquire what there is and what there is room for; how many tasks."""
        count = 0
        self._more = True
        # Half of the room at most: roots that are invoked here meanwhile start at once.
        while limit := self.capacity.reserve(min(MAX_ACQUIRE, (self.capacity.room + 1) // 2)):
            self._more = False  # before it is asked: what comes meanwhile rings again
            offer = self._employer.offer(limit)
            self._short, asked = offer.short, _Asked(self, self._employer, offer, limit)
            try:
                if offer.functions:
                    acquire = TaskAcquire(
                        self.process, self._targets, offer.functions, limit, self._terms.python, offer.rooms
                    )
                    # Begun before anything else is heard: what settles from now on is told to who runs them.
                    await self._journal.ask(acquire, keep=True, then=asked.taken)
            except StoreUnavailable:
                self._more = True
                raise
            finally:
                asked.taken()
            count += asked.count
            if asked.count < limit:
                break
            self._more = True
        return count

    async def _look_around(self, *, anyway: bool = False) -> None:
        """Who is there, what comes due, what there is to do and nobody can run, if others have written or it is time.

        It is the only read of a process that has nothing to do, and one of them for each poll.
        """
        beaten, self._beaten = self._beaten, False
        around = await self._store.around(self._targets, self._employer.functions(), anyway=anyway or beaten)
        if around is None:
            return
        self._more, self._news = self._more or around.has_tasks, self._news or around.changed
        self._next_due = around.next_due
        self._neighbours.see(self.process, around)
        if beaten:
            self._neighbours.look_for_orphans(around)

    async def _tick(self) -> None:
        while self._next_due is not None and self._next_due <= self._clock.now_ms():
            await self._journal.ask(Tick())
            await self._look_around(anyway=True)
            self.wake(Ring.TASKS)

    def _reconcile(self, reply: Reply) -> None:
        """Release what the store counts as held and nobody here knows: the answer to its acquire was lost."""
        held = [one.claim for one in self.capacity.held.values()] if reply.held else []
        known = {claim.id: claim.version for claim in (*held, *self._leaving.claims())}
        unknown = {(id, version) for id, version in (reply.held or {}).items() if known.get(id) != version}
        for id, version in sorted(unknown & self._unknown):  # twice in a row: not just on its way here
            self._journal.ask(TaskRelease(Claim(id, version, self.process)), keep=True)
        self._unknown = unknown

    async def _start_over(self, reason: str) -> None:
        """The lease is gone: drop everything, come back as another incarnation."""
        tasks = list(self.capacity.held.values())
        _log.warning("process %s has lost its lease (%s): it drops %d tasks", self.process, reason, len(tasks))
        self._over = True
        for held in tasks:
            held.lost(reason)
        await self._take_lease()
        self._come_back()

    def _come_back(self) -> None:
        self._over = False
        self._employer.rejoined()
        self.wake(Ring.TASKS | Ring.NEWS)

    # -- handing back

    async def _suspend_some(self) -> None:
        """Leave the longest waiting to the store: whoever has room replays them when they can go on."""
        candidates = self.capacity.too_many()
        waiting = self._employer.awaited_by(candidates)
        self.capacity.postpone(held for held in candidates if held not in waiting)
        if waiting:
            # One that is replayed asks anew for what it awaits; once this is answered, it knows what has settled.
            await self._journal.ask(PromiseGet(next(iter(waiting)).id))
            now = self._employer.awaited_by(waiting)
            still = [held for held, awaited in waiting.items() if held.signal is None and now.get(held) == awaited]
            self._hand_back(still)

    def _hand_back(self, tasks: Iterable[Held]) -> None:
        """Suspend what only waits, release the rest; another worker takes it from there."""
        tasks = list(tasks)
        waits = self._employer.awaited_by(tasks)
        for held in tasks:
            self._leaving.part_with(held, waits.get(held, ()))


class _Asked:
    """Tasks that were asked for, and the room that is kept for them."""

    def __init__(self, worker: Worker, employer: Employer, offer: Offer, limit: int) -> None:
        self._worker = worker
        self._employer = employer
        self._offer: Offer | None = offer
        self._limit = limit
        self.count = 0

    def taken(self, reply: Reply | None = None) -> None:
        """Run what came of it, once; without a reply: nothing comes."""
        offer, self._offer = self._offer, None
        if offer is not None:
            acquired = () if reply is None else reply.acquired
            self.count = len(acquired)
            self._worker.capacity.unreserve(self._limit)
            self._employer.taken(offer, acquired)


class _outages(suppress):  # noqa: N801  # a context manager, named as one is used
    """A service outlives an outage of the store: the journal has said so already."""

    def __init__(self) -> None:
        super().__init__(StoreUnavailable)
