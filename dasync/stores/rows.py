"""A batch over rows: read what it names, step the machine, write what changed. The same for every store.

`Rows` is all that a store has to offer; `Working` lays the changes of a batch over it, so that a later
command sees what an earlier one did; `run_batch` is the one place where the machine meets rows. Nothing here
knows SQL, and nothing here decides.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from heapq import nsmallest
from typing import NamedTuple, Protocol, TypeVar
from zlib import crc32

from dasync.core import guards, ids, invariants, machine
from dasync.core import protocol as p
from dasync.core.invariants import Snapshot
from dasync.core.model import (
    CallbackRecord,
    ListenerRecord,
    ProcessRecord,
    PromiseRecord,
    State,
    TaskRecord,
    TaskState,
)
from dasync.core.transition import Records, Transition
from dasync.ports import Around, Backlog, Bell, Clock, Committed, Found, News, Ring, Search

T = TypeVar("T")
EVERYTHING = Search()
MAX_NEWS = 16  # that come along with a doorbell; more are read from the store


class Changes(NamedTuple):
    """What a batch writes: per table the rows to insert, to replace and to delete."""

    promises_born: list[PromiseRecord]
    promises_moved: list[PromiseRecord]
    tasks_born: list[TaskRecord]
    tasks_moved: list[TaskRecord]
    callbacks_born: list[CallbackRecord]
    callbacks_gone: list[CallbackRecord]
    listeners_kept: list[ListenerRecord]
    listeners_gone: list[ListenerRecord]
    processes_kept: list[ProcessRecord]
    processes_gone: list[ProcessRecord]
    promises_gone: list[PromiseRecord]
    tasks_gone: list[TaskRecord]

    def any(self) -> bool:
        """Whether there is anything to write."""
        return any(self)


class Named(NamedTuple):
    """The ids that a batch names; what follows from them is read as it comes up."""

    promises: Collection[str]
    tasks: Collection[str] = ()
    settling: Collection[str] = ()
    """Promises that it may settle: who waits for them is asked for."""
    born: Collection[str] = ()
    """Those of the promises that are made now, as far as anybody knows: under a claim, or with an id drawn for them."""


class Rows(Records, Protocol):
    """What a store offers within one transaction."""

    def prefetch(self, named: Named) -> None:
        """The batch will ask for these: read them in one go."""

    def write(self, changes: Changes) -> None:
        """Write it all, or raise."""

    def processes(self) -> list[ProcessRecord]: ...

    def search(self, search: Search) -> list[Found]: ...
    def subtree(self, id: str) -> Snapshot: ...
    def next_due(self) -> int | None: ...
    def waiting_targets(self) -> list[str]: ...
    def backlog(self) -> list[Backlog]: ...
    def snapshot(self) -> Snapshot: ...


class Working:
    """Rows with the changes of the running batch laid over them: the machine's view."""

    def __init__(self, rows: Rows, turn: int) -> None:
        self.turn = turn
        """The number of this batch's commit."""
        self._rows = rows
        self._promises: dict[str, PromiseRecord | None] = {}
        self._tasks: dict[str, TaskRecord | None] = {}
        self._processes: dict[str, ProcessRecord | None] = {}
        self._callbacks: dict[str, tuple[CallbackRecord, ...]] = {}
        self._listeners: dict[str, tuple[ListenerRecord, ...]] = {}
        # What has changed, with what the store holds of it.
        self._promises_were: dict[str, PromiseRecord | None] = {}
        self._tasks_were: dict[str, TaskRecord | None] = {}
        self._processes_were: dict[str, ProcessRecord | None] = {}
        self._callbacks_were: dict[CallbackRecord, bool] = {}
        self._listeners_were: dict[tuple[str, str], ListenerRecord | None] = {}

    def promise(self, id: str) -> PromiseRecord | None:
        if id not in self._promises:
            self._promises[id] = self._rows.promise(id)
        return self._promises[id]

    def task(self, id: str) -> TaskRecord | None:
        if id not in self._tasks:
            self._tasks[id] = self._rows.task(id)
        return self._tasks[id]

    def process(self, id: str) -> ProcessRecord | None:
        if id not in self._processes:
            self._processes[id] = self._rows.process(id)
        return self._processes[id]

    def callbacks(self, awaited: str) -> Sequence[CallbackRecord]:
        if awaited not in self._callbacks:
            self._callbacks[awaited] = () if self._is_new(awaited) else tuple(self._rows.callbacks(awaited))
        return self._callbacks[awaited]

    def listeners(self, promise: str) -> Sequence[ListenerRecord]:
        if promise not in self._listeners:
            self._listeners[promise] = () if self._is_new(promise) else tuple(self._rows.listeners(promise))
        return self._listeners[promise]

    def children(self, creator: str) -> Sequence[PromiseRecord]:
        low, high = ids.subtree(creator)
        return self._laid_over(
            self._rows.children(creator),
            self._promises,
            self._promises_were,
            lambda r: r.creator == creator and low < r.id < high,
        )

    def below(self, id: str) -> Sequence[PromiseRecord]:
        low, high = ids.subtree(id)
        return self._laid_over(
            self._rows.below(id),
            self._promises,
            self._promises_were,
            lambda r: r.state is State.PENDING and low < r.id < high,
        )

    def under(self, id: str) -> Sequence[PromiseRecord]:
        low, high = ids.subtree(id)
        return self._laid_over(
            self._rows.under(id), self._promises, self._promises_were, lambda r: low < r.id < high
        )

    def held(self, process: str) -> Sequence[TaskRecord]:
        return self._laid_over(self._rows.held(process), self._tasks, self._tasks_were, lambda r: r.process == process)

    def holding(self, process: str) -> tuple[int, int]:
        count, versions = self._rows.holding(process)
        for id, was in self._tasks_were.items():
            for task, sign in ((was, -1), (self._tasks[id], 1)):
                if task is not None and task.process == process:
                    count, versions = count + sign, versions + sign * task.version
        return count, versions

    def listening(self, process: str) -> Sequence[ListenerRecord]:
        promises = {listener.promise for listener in self._rows.listening(process)}
        promises |= {promise for promise, owner in self._listeners_were if owner == process}
        return [one for promise in sorted(promises) for one in self.listeners(promise) if one.process == process]

    def news(self, process: str) -> Sequence[ListenerRecord]:
        changed = [self._listeners[id] for id, owner in self._listeners_were if owner == process]
        fired = {one.promise: one for one in self._rows.news(process) if one[:2] not in self._listeners_were}
        fired |= {one.promise: one for ones in changed for one in ones if one.process == process and one.fired}
        return [fired[id] for id in sorted(fired)]

    def kinds(self, targets: tuple[str, ...]) -> Sequence[tuple[str, int]]:
        changed = (task for task in map(self._tasks.get, self._tasks_were) if task is not None)
        more = {(r.function, r.function_version) for r in changed if _is_pending(r, targets)}
        found = set(self._rows.kinds(targets))  # whether any is left of these is seen when they are read
        return sorted(found | more)

    def acquirable(
        self, targets: tuple[str, ...], functions: tuple[tuple[str, int], ...], limit: int
    ) -> Sequence[TaskRecord]:
        found = self._laid_over(
            self._rows.acquirable(targets, functions, limit + len(self._tasks_were)),
            self._tasks,
            self._tasks_were,
            lambda r: _is_pending(r, targets) and (r.function, r.function_version) in functions,
        )
        return oldest(found, functions, limit)

    def due(self, now: int, limit: int) -> Sequence[PromiseRecord]:
        found = self._laid_over(
            self._rows.due(now, limit + len(self._promises_were)),
            self._promises,
            self._promises_were,
            lambda r: r.state is State.PENDING and r.timeout_at is not None and r.timeout_at <= now,
        )
        return sorted(found, key=lambda r: (r.timeout_at or 0, r.id))[:limit]

    def latest_turn(self, id: str) -> int:
        low, high = ids.subtree(id)  # what this batch has settled is later than all that was settled before
        changed = [self._promises[one] for one in self._promises_were if low < one < high]
        return max([self._rows.latest_turn(id), *(one.turn or 0 for one in changed if one is not None)])

    def processes(self) -> list[ProcessRecord]:
        """Every live process, with the changes of this batch."""
        return self._laid_over(self._rows.processes(), self._processes, self._processes_were, lambda r: True)

    def apply(self, transition: Transition) -> None:
        """Let the moves of a transition be seen by the next step."""
        for before, after in transition.moves:
            record = before if after is None else after
            if isinstance(record, PromiseRecord):
                self._promises_were.setdefault(record.id, before if isinstance(before, PromiseRecord) else None)
                self._promises[record.id] = after if isinstance(after, PromiseRecord) else None
            elif isinstance(record, TaskRecord):
                self._tasks_were.setdefault(record.id, before if isinstance(before, TaskRecord) else None)
                self._tasks[record.id] = after if isinstance(after, TaskRecord) else None
            elif isinstance(record, CallbackRecord):
                self._callbacks_were.setdefault(record, before is not None)
                others = [c for c in self.callbacks(record.awaited) if c != record]
                kept = others if after is None else [*others, record]
                self._callbacks[record.awaited] = tuple(sorted(kept))
            elif isinstance(record, ListenerRecord):
                old = before if isinstance(before, ListenerRecord) else None
                self._listeners_were.setdefault(record[:2], old)
                rest = [one for one in self.listeners(record.promise) if one.process != record.process]
                self._listeners[record.promise] = tuple(sorted(rest if after is None else [*rest, record]))
            elif isinstance(record, ProcessRecord):
                self._processes_were.setdefault(record.id, before if isinstance(before, ProcessRecord) else None)
                self._processes[record.id] = after if isinstance(after, ProcessRecord) else None

    def changes(self) -> Changes:
        """What the batch comes to, each row once."""
        changes = Changes([], [], [], [], [], [], [], [], [], [], [], [])
        for id, was in self._promises_were.items():
            if (promise := self._promises[id]) is not None and promise != was:
                (changes.promises_born if was is None else changes.promises_moved).append(promise)
            elif promise is None and was is not None:
                changes.promises_gone.append(was)
        for id, old in self._tasks_were.items():
            if (task := self._tasks[id]) is not None and task != old:
                (changes.tasks_born if old is None else changes.tasks_moved).append(task)
            elif task is None and old is not None:
                changes.tasks_gone.append(old)
        for callback, stored in self._callbacks_were.items():
            wanted = callback in self._callbacks[callback.awaited]
            if wanted != stored:
                (changes.callbacks_born if wanted else changes.callbacks_gone).append(callback)
        for (promise_id, process_id), before in self._listeners_were.items():
            now = next((one for one in self._listeners[promise_id] if one.process == process_id), None)
            if now is not None and now != before:
                changes.listeners_kept.append(now)
            elif now is None and before is not None:
                changes.listeners_gone.append(before)
        for id, stood in self._processes_were.items():
            process = self._processes[id]
            if process is not None and process != stood:
                changes.processes_kept.append(process)
            elif process is None and stood is not None:
                changes.processes_gone.append(stood)
        return changes

    def _is_new(self, promise: str) -> bool:
        return promise in self._promises_were and self._promises_were[promise] is None

    @staticmethod
    def _laid_over(
        stored: Iterable[_Keyed],
        current: Mapping[str, _Keyed | None],
        changed: Mapping[str, object],
        wanted: Callable[[_Keyed], bool],
    ) -> list[_Keyed]:
        found = {record.id: record for record in stored if record.id not in changed}
        for id in changed:
            record = current[id]
            if record is not None and wanted(record):
                found[id] = record
        return [found[id] for id in sorted(found)]


def _is_pending(task: TaskRecord, targets: tuple[str, ...]) -> bool:
    return task.state is TaskState.PENDING and task.target in targets


def oldest(tasks: Iterable[TaskRecord], functions: tuple[tuple[str, int], ...], limit: int) -> list[TaskRecord]:
    """The `limit` oldest of each of those functions: function by function, oldest first, then by id."""
    of: dict[tuple[str, int], list[TaskRecord]] = {function: [] for function in functions}
    for task in tasks:
        of[task.function, task.function_version].append(task)
    return [one for found in of.values() for one in nsmallest(limit, found, key=lambda r: (r.created_at, r.id))]


TURNS_PER_MS = 1024
_Keyed = TypeVar("_Keyed", PromiseRecord, TaskRecord, ProcessRecord)

# What power loss may undo, since it ends every process of the machine: a claim is free again then, a lease is over,
# news is read anew. None of it says what became of a promise, so it need not wait for the disk.
_PASSING = (p.TaskAcquire, p.ProcessHeartbeat, p.Receive)


def run_batch(rows: Rows, now: int, turn: int, commands: Sequence[p.Command]) -> Committed:
    """Step every command in order and write the outcome; the caller holds the transaction."""
    rows.prefetch(_named(commands))
    working = Working(rows, turn)
    replies: list[p.Reply] = []
    messages: dict[p.Message, None] = {}
    for command in commands:
        settled: list[PromiseRecord] = []
        if type(command) is p.Tick:
            for event in machine.due(now, working):
                transition = machine.happen(now, event, working)
                _take(now, event, working, transition, messages)
                settled += [move.after for move in transition.moves if isinstance(move.after, PromiseRecord)]
        transition = machine.step(now, command, working)
        _take(now, command, working, transition, messages)
        replies.append(transition.reply._replace(settled=tuple(settled)) if settled else transition.reply)
    changes = working.changes()
    if changes.any():
        rows.write(changes)
    return Committed(replies, _doorbells(messages, working) if messages else {})


def _take(
    now: int, cause: p.Cause, working: Working, transition: Transition, messages: dict[p.Message, None]
) -> None:
    if transition.moves:
        invariants.hold(now, cause, working, transition)
        working.apply(transition)
    for message in transition.messages:
        messages[message] = None


def _named(commands: Sequence[p.Command]) -> Named:
    promises: dict[str, None] = {}
    tasks: dict[str, None] = {}
    settling: dict[str, None] = {}
    born: set[str] = set()
    for command in commands:
        if isinstance(command, p.TaskFence):
            promises[command.claim.id] = tasks[command.claim.id] = None
            promises[command.action.id] = None
            if type(command.action) is p.PromiseAgain:
                promises[ids.parent_of(command.action.id) or ""] = None
            elif type(command.action) is p.PromiseCreate:
                born.add(command.action.id)
            else:
                settling[command.action.id] = None
        elif isinstance(command, p.TaskFulfill):
            promises[command.claim.id] = tasks[command.claim.id] = settling[command.claim.id] = None
        elif isinstance(command, p.TaskCreate):
            promises[command.action.id] = tasks[command.action.id] = None
            if command.action.fresh:
                born.add(command.action.id)
        elif isinstance(command, p.PromiseCreate | p.PromiseGet | p.PromiseSettle):
            promises[command.id] = None
            if isinstance(command, p.PromiseCreate) and command.fresh:
                born.add(command.id)
            elif isinstance(command, p.PromiseGet) and command.claim is not None:
                promises[command.claim.id] = tasks[command.claim.id] = None
        elif isinstance(command, p.PromiseCancel):
            promises[command.id] = settling[command.id] = None
        elif isinstance(command, p.RegisterListener):
            promises[command.promise] = settling[command.promise] = None
    return Named(promises, tasks, settling, born)


def _doorbells(messages: Iterable[p.Message], working: Working) -> dict[str, Bell]:
    told = {message.process for message in messages if isinstance(message, p.Settled)}
    doorbells: dict[str, Bell] = {}
    processes = working.processes()
    called = _called([message for message in messages if isinstance(message, p.Execute)], processes)
    for process in processes:
        ring = Ring.TASKS * (process.id in called) | Ring.NEWS * (process.id in told)
        if process.address and ring:
            doorbells[process.address] = Bell(Ring(ring), _news(process.id, working) if process.id in told else ())
    return doorbells


def _news(process: str, working: Working) -> tuple[PromiseRecord, ...]:
    """All that is news to a process, so that it hears of nothing after something later; nothing, if it is too much."""
    news = [working.promise(one.promise) for one in working.news(process)[:MAX_NEWS + 1]]
    known = tuple(record for record in news if record is not None)
    return known if len(known) == len(news) <= MAX_NEWS else ()


def around(
    rows: Rows, targets: tuple[str, ...], functions: tuple[tuple[str, int], ...], *, changed: bool, anyway: bool
) -> Around:
    """What a process of those targets and functions finds around it."""
    needed = rows.kinds(targets)
    missing, waiting = [one for one in needed if one not in functions], rows.waiting_targets() if anyway else []
    return Around(rows.processes(), rows.next_due(), len(missing) < len(needed), missing, waiting, changed)


def _called(messages: Sequence[p.Execute], processes: Sequence[ProcessRecord]) -> set[str]:
    """Who is told of these tasks: of each, one process of its group that is not called yet. Were all of them told, all
    but one would look for it in vain."""
    called, members = set[str](), dict[str, list[str]]()
    for target, task in messages:
        if target not in members:
            members[target] = [one.id for one in processes if one.address and guards.serves(one, target)]
        if left := members[target]:
            called.add(left.pop(crc32(task.encode()) % len(left)))  # any, the same in every store
    return called


class RowStore(ABC):
    """What all row keepers share: each question is one piece of work over rows."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._turn = 0

    @abstractmethod
    async def _work(self, work: Callable[[Rows], T], *, lasting: bool) -> T:
        """Do `work` in one transaction; it is durable when this returns, against power loss only if `lasting`."""

    @abstractmethod
    async def _look(self, work: Callable[[Rows], T]) -> T:
        """Do `work` that only reads."""

    async def transact(self, commands: Sequence[p.Command]) -> Committed:
        lasting = not all(isinstance(command, _PASSING) for command in commands)

        def step(rows: Rows) -> Committed:
            now = self._clock.now_ms()
            return run_batch(rows, now, self._next_turn(now), commands)

        return await self._work(step, lasting=lasting)

    def _next_turn(self, now: int) -> int:
        """The number of the commit under way, greater than that of every commit before.

        By the clock, so that this holds from one life of the store to the next; where others write too, whose clocks
        may be ahead, the store knows better.
        """
        self._turn = max(self._turn + 1, now * TURNS_PER_MS)
        return self._turn

    async def search(self, search: Search = EVERYTHING) -> list[Found]:
        return await self._look(lambda rows: rows.search(search))

    async def subtree(self, id: str) -> Snapshot:
        return await self._look(lambda rows: rows.subtree(id))

    async def news(self, process: str) -> News:
        def read(rows: Rows) -> News:
            fired = [listener.promise for listener in rows.news(process)]
            rows.prefetch(Named(fired))
            found = {id: rows.promise(id) for id in fired}
            settled = [record for record in found.values() if record is not None]
            return News(settled, [id for id, record in found.items() if record is None])

        return await self._look(read)

    @abstractmethod
    async def around(
        self, targets: tuple[str, ...], functions: tuple[tuple[str, int], ...], *, anyway: bool = False
    ) -> Around | None:
        """What a process of those targets and functions finds around it, if others have written, or `anyway`."""

    async def processes(self) -> list[ProcessRecord]:
        return await self._look(lambda rows: rows.processes())

    async def backlog(self) -> list[Backlog]:
        return await self._look(lambda rows: rows.backlog())

    async def snapshot(self) -> Snapshot:
        return await self._look(lambda rows: rows.snapshot())
