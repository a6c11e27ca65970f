"""Which operations of a history concern which promise, and in which units they take effect.

A batch is one transaction: what it does to one promise is one step, whole or not at all, in the order of its commands.
An operation that names several promises is a part of a step of each. Some name none and concern many (a tick, a leave,
a cancel of what is above): which ones is worked out here from the whole history, rather too many than too few. Nothing
here knows what an operation does to a promise.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from dasync.core import ids
from dasync.core import protocol as p
from dasync.core.model import PromiseRecord, State
from dasync.core.protocol import Reply, Status
from dasync.testing.history import Operation
from dasync.testing.known import FOREVER, Promise

BEFORE = -1  # the tick before all others


class Part(NamedTuple):
    """One operation, as far as it concerns one promise."""

    operation: Operation
    doubt: bool
    """See `model.apply`."""


class Step(NamedTuple):
    """What one transaction does to one promise."""

    parts: tuple[Part, ...]
    begin: int
    end: int | None
    until: int


class Index:
    """What the whole history tells of each promise, whatever the order of its operations was."""

    def __init__(self, history: Sequence[Operation], initial: Mapping[str, Promise]) -> None:
        self.mentioned: dict[str, int] = {}
        """By promise, when it was first named."""
        self.may_be_over: dict[str, int] = {}
        """When it was settled at the earliest, if it was."""
        self.is_over: dict[str, int] = {}
        """When somebody had heard at the latest that it was."""
        self.has_task: dict[str, int] = {}
        """When somebody had heard at the latest that it had a task."""
        self.targeted: dict[str, set[tuple[str, tuple[str, int]]]] = defaultdict(set)
        """Of each that may have a task, the targets that it may have, with what it then needs to be run."""
        self.made: dict[str, dict[str, None]] = defaultdict(dict)
        """By task, what was made under it and is named below it."""
        self.taken: dict[str, dict[str, None]] = defaultdict(dict)
        """By process, the tasks that it may have held."""
        self.suspended: dict[tuple[str, int], list[Operation]] = defaultdict(list)
        self.restarted: set[str] = set()
        """Roots below which something may have been removed."""
        self._last: dict[str, int] = {}
        """By promise, the earliest that its deadline may be."""
        for promise in initial.values():
            self._read_initial(promise)
        for operation in history:
            self._read(operation)
        for operation in history:
            self._read_effects(operation)
        self.deadlines = sorted((last, id) for id, last in self._last.items() if last < FOREVER)

    def _read_initial(self, promise: Promise) -> None:
        id, birth, task = promise.id, promise.birth, promise.task
        self.mentioned[id] = BEFORE
        self._last[id] = promise.deadline[0]
        if promise.state is not State.PENDING:
            self.may_be_over[id] = self.is_over[id] = BEFORE
        if birth is not None and birth.creator is not None and _is_below(id, birth.creator):
            self.made[birth.creator][id] = None
        if birth is not None and birth.target is not None:
            self.targeted[id].add((birth.target, (birth.function, birth.version)))
            self.has_task[id] = BEFORE
        if task is not None and task.process is not None:
            self.taken[task.process][id] = None

    def _read(self, operation: Operation) -> None:
        command, creator = operation.command, None
        for id in _named(command):
            self.mentioned.setdefault(id, operation.begin)
        if isinstance(command, p.TaskSuspend):
            self.suspended[command.claim[:2]].append(operation)
        if isinstance(command, p.TaskFence):
            creator = command.claim.id
        action = command.action if isinstance(command, p.TaskFence | p.TaskCreate) else command
        if isinstance(action, p.PromiseAgain):
            self.restarted.add(ids.root_of(action.id))
        if not isinstance(action, p.PromiseCreate):
            return
        bounds = [FOREVER if action.timeout_at is None else action.timeout_at, self._last.get(action.id, FOREVER)]
        if creator is not None:
            bounds += [] if action.timer else [self._last.get(creator, FOREVER)]
            if _is_below(action.id, creator):
                self.made[creator][action.id] = None
        self._last[action.id] = min(bounds)
        if action.target is not None:
            self.targeted[action.id].add((action.target, (action.function, action.version)))

    def _read_effects(self, operation: Operation) -> None:
        command, reply = operation.command, operation.reply
        for id in self._may_end(operation):
            self._first(self.may_be_over, id, operation.begin)
        if reply is None or operation.end is None:
            if isinstance(command, p.TaskAcquire):
                for id in self.may_take(command):
                    self.taken[command.process][id] = None
            elif isinstance(command, p.TaskCreate):
                self.taken[command.process][command.action.id] = None
            return
        for record in shown(reply):
            if record.state is not State.PENDING:
                self._first(self.may_be_over, record.id, operation.begin)
                self._first(self.is_over, record.id, operation.end)
            if record.target is not None:
                self._first(self.has_task, record.id, operation.end)
        for task in [one.task for one in reply.acquired] + ([] if reply.task is None else [reply.task]):
            self._first(self.has_task, task.id, operation.end)
            if task.process is not None:
                self.taken[task.process][task.id] = None

    def _may_end(self, operation: Operation) -> Iterator[str]:
        """What may be settled by this, without anybody being shown it."""
        command, reply = operation.command, operation.reply
        action = command.action if isinstance(command, p.TaskFence) else command
        if isinstance(action, p.PromiseCancel):
            yield from self.below(action.id)
        if isinstance(command, p.TaskFence) and reply is not None and reply.status is Status.CONFLICT:
            yield command.claim.id  # whose deadline may have come
        if reply is None:
            yield from _named(command)
            if isinstance(command, p.Tick):
                yield from (id for id, last in self._last.items() if last < FOREVER)

    @staticmethod
    def _first(of: dict[str, int], id: str, tick: int) -> None:
        of[id] = min(of.get(id, tick), tick)

    def below(self, id: str) -> list[str]:
        return [other for other in self.mentioned if _is_below(other, id)]

    def may_take(self, command: p.TaskAcquire) -> list[str]:
        """What an acquire may have taken of which nobody knows the outcome."""
        wanted = {(target, run) for target in command.targets for run in command.functions}
        return [id for id, either in self.targeted.items() if not either.isdisjoint(wanted)]

    def due(self, operation: Operation) -> list[str]:
        """What a tick may have settled, or ought to have."""
        most = FOREVER - 1 if operation.latest_ms is None else operation.latest_ms
        last = FOREVER if operation.end is None else operation.end
        found = self.deadlines[: bisect_right(self.deadlines, (most, chr(0x10FFFF)))]
        return [id for _, id in found if self.mentioned.get(id, 0) <= last and not self._was_over(id, operation.begin)]

    def _was_over(self, id: str, begin: int) -> bool:
        return self.is_over.get(id, FOREVER) < begin and ids.root_of(id) not in self.restarted

    def doubt(self, operation: Operation, id: str) -> bool:
        """Whether what other promises decide may have gone the less usual way, as `model.apply` says it."""
        command = operation.command
        last = FOREVER if operation.end is None else operation.end
        if isinstance(command, p.RegisterCallback):
            return self.may_be_over.get(command.awaiter, FOREVER) <= last
        if isinstance(command, p.TaskFence):
            known = self.has_task.get(command.claim.id, FOREVER) < operation.begin
            return not known or ids.root_of(command.claim.id) in self.restarted
        if isinstance(command, p.TaskSuspend):
            others = self.suspended[command.claim[:2]]
            return any(one.number != operation.number and one.begin <= last for one in others)
        return False


def partition(history: Sequence[Operation], initial: Mapping[str, Promise]) -> dict[str, list[Step]]:
    """By promise, in the order of ids: its steps, in the order in which they were asked for."""
    ordered = sorted(history, key=lambda operation: operation.number)
    index = Index(ordered, initial)
    parts: dict[str, dict[tuple[bool, int], list[Part]]] = defaultdict(dict)
    for operation in ordered:
        alone = operation.batch is None
        key = alone, operation.number if operation.batch is None else operation.batch
        for id in dict.fromkeys(concerned(operation, index)):
            parts[id].setdefault(key, []).append(Part(operation, index.doubt(operation, id)))
    return {id: [_step(found) for found in parts[id].values()] for id in sorted(parts)}


def _step(parts: Sequence[Part]) -> Step:
    ends = [part.operation.end for part in parts]
    heard = [end for end in ends if end is not None]
    limits = [part.operation.until for part in parts]
    bounds = [limit for limit in limits if limit is not None]
    begin = min(part.operation.begin for part in parts)
    return Step(tuple(parts), begin, max(heard) if len(heard) == len(ends) else None, min(bounds, default=FOREVER))


def concerned(operation: Operation, index: Index) -> Iterator[str]:
    """The promises that an operation may change, or tells of."""
    command, reply = operation.command, operation.reply
    match command:
        case p.Tick():
            yield from () if reply is None else (one.id for one in reply.settled)
            yield from index.due(operation)
        case p.ProcessLeave():
            yield from index.taken[command.process]
        case p.TaskAcquire() | p.TaskCreate():
            yield from _named(command)
            if reply is None:
                yield from index.may_take(command) if isinstance(command, p.TaskAcquire) else ()
                return
            for one in reply.acquired:
                yield one.task.id
                yield from (record.id for record in one.preload)
                yield from index.made[one.task.id]
        case p.Receive():
            yield from () if reply is None else (one.id for one in reply.settled)
        case p.ProcessHeartbeat():
            yield from () if reply is None else sorted(reply.held or ())
        case p.TaskFence():
            yield command.claim.id
            if reply is None or reply.status is not Status.CONFLICT or reply.promise is not None:  # else: not done
                yield from _named(command)
                yield from _also(command.action, reply, index)
        case _:
            yield from _named(command)
            yield from _also(command, reply, index)


def _also(command: object, reply: Reply | None, index: Index) -> Iterator[str]:
    """What is below that which a command ends, or removes."""
    if isinstance(command, p.PromiseCancel):
        record = None if reply is None else reply.promise
        ended = record is not None and record.state is State.CANCELED and record.value == command.value
        if reply is None or ended:
            yield from index.below(command.id)
    elif isinstance(command, p.PromiseAgain) and (reply is None or reply.status is Status.CREATED):
        yield from index.below(ids.parent_of(command.id) or "")


def _named(command: object) -> Iterator[str]:
    """The promises that a command names."""
    match command:
        case p.TaskFence():
            yield command.claim.id
            yield from _named(command.action)
        case p.TaskCreate():
            yield from _named(command.action)
        case p.PromiseCreate():
            yield command.id
            yield from () if command.awaiter is None else (command.awaiter,)
        case p.PromiseAgain():
            yield command.id
            yield ids.parent_of(command.id) or ""
        case p.RegisterCallback():
            yield from (command.awaited, command.awaiter)
        case p.RegisterListener():
            yield command.promise
        case p.TaskSuspend():
            yield from (command.claim.id, *command.awaited)
        case p.TaskFulfill() | p.TaskRelease():
            yield command.claim.id
        case p.TaskAcquire() | p.ProcessJoin() | p.ProcessHeartbeat() | p.ProcessLeave() | p.Receive() | p.Tick():
            return
        case p.PromiseGet() | p.PromiseSettle() | p.PromiseCancel() | p.TaskGet() | p.TaskHalt() | p.TaskContinue():
            yield command.id


def shown(reply: Reply) -> Iterator[PromiseRecord]:
    """Every record of a promise in a reply."""
    if reply.promise is not None:
        yield reply.promise
    yield from reply.settled
    for one in reply.acquired:
        yield one.promise
        yield from one.preload


def _is_below(id: str, above: str) -> bool:
    return id.startswith(ids.places(above))


