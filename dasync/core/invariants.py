"""What must be true: named properties of a record, of a move, of a state, of a cause.

Five families, told apart by the first word of the name:

- `well_formed_` holds of one record by itself;
- `preserved_` and `monotone_` hold of one record before and after: what must not change, what changes one way;
- `consistent_` holds of several records of one state;
- `authority_` holds of a command, the rows before it and its moves: who was allowed. Fencing bugs make states
  that are legal in every other respect; only this family sees them.

`hold` is called on every transition in production, before anything is written; it works under `python -O`.
`inspect` looks at whole states, for tests and simulation. This file repairs nothing and shares no code with
`machine.py`: a rule that both took from one place would be checked against itself.

Plausible and false, so not here: "settled_at >= the clock's last reading" (clocks step back); "a fulfilled
task has version >= 1" (a promise can be settled from outside before anyone acquired it); "a suspended task has
no settled awaited promise" (it may have been registered on several, one of which resumed it long ago);
"an acquired task's process is in its target's group" (operators may move a process).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple, TypeVar

from dasync.core import protocol as p
from dasync.core.model import (
    CallbackRecord,
    ListenerRecord,
    ProcessRecord,
    PromiseRecord,
    Record,
    State,
    TaskRecord,
    TaskState,
)
from dasync.core.transition import Move, Transition, View
from dasync.errors import InvariantViolated

R = TypeVar("R", PromiseRecord, TaskRecord)
_PENDING = State.PENDING
_HELD = TaskState.ACQUIRED

# -- one record --------------------------------------------------------------------------------------------

PROMISE: dict[str, Callable[[PromiseRecord], bool]] = {
    "well_formed_promise_settled_at_iff_not_pending": lambda r: (r.settled_at is None) is (r.state is _PENDING),
    "well_formed_promise_pending_has_no_value": lambda r: r.value is None or r.state is not _PENDING,
    "well_formed_promise_created_at_lte_timeout_at": lambda r: r.timeout_at is None or r.created_at <= r.timeout_at,
    "well_formed_promise_created_at_lte_settled_at": lambda r: r.settled_at is None or r.created_at <= r.settled_at,
    "well_formed_promise_settled_at_lte_timeout_at": lambda r: (
        r.settled_at is None or r.timeout_at is None or r.settled_at <= r.timeout_at
    ),
    "well_formed_promise_deadline_verdict_matches_timer": lambda r: r.state is not State.TIMEDOUT or not r.timer,
    "well_formed_promise_timed_out_at_its_deadline": lambda r: (
        r.state is not State.TIMEDOUT or (r.settled_at == r.timeout_at and r.value is None)
    ),
    "well_formed_promise_timer_has_deadline": lambda r: not r.timer or r.timeout_at is not None,
    "well_formed_promise_timer_not_targeted": lambda r: not r.timer or r.target is None,
    "well_formed_promise_target_has_function": lambda r: r.target is None or r.function != "",
}

TASK: dict[str, Callable[[TaskRecord], bool]] = {
    "well_formed_task_acquired_iff_has_process": lambda r: (r.process is not None) is (r.state is _HELD),
    "well_formed_task_acquired_version_positive": lambda r: r.version >= 1 or r.state is not _HELD,
    "well_formed_task_version_not_negative": lambda r: r.version >= 0,
    "well_formed_task_only_live_ones_are_resumed": lambda r: (
        not r.resumed or r.state is _HELD or r.state is TaskState.PENDING
    ),
}

CALLBACK: dict[str, Callable[[CallbackRecord], bool]] = {
    "well_formed_callback_awaiter_is_not_self": lambda r: r.awaited != r.awaiter,
}

PROCESS: dict[str, Callable[[ProcessRecord], bool]] = {
    "well_formed_process_lease_positive": lambda r: r.lease_ms > 0,
    "well_formed_process_group_has_no_slash": lambda r: "/" not in r.group,
}

# -- one record, before and after --------------------------------------------------------------------------

_TASK_EDGES = {
    TaskState.PENDING: {TaskState.PENDING, TaskState.ACQUIRED, TaskState.HALTED, TaskState.FULFILLED},
    TaskState.ACQUIRED: set(TaskState),
    TaskState.SUSPENDED: {TaskState.PENDING, TaskState.HALTED, TaskState.FULFILLED},
    TaskState.HALTED: {TaskState.PENDING, TaskState.FULFILLED},
    TaskState.FULFILLED: set[TaskState](),
}

PROMISE_MOVE: dict[str, Callable[[PromiseRecord, PromiseRecord], bool]] = {
    "preserved_promise_birth_fields": lambda b, a: b[:10] == a[:10],
    "preserved_settled_promise": lambda b, a: b.state is _PENDING,
    "monotone_promise_settles_when_it_moves": lambda b, a: a.state is not _PENDING,
}

TASK_MOVE: dict[str, Callable[[TaskRecord, TaskRecord], bool]] = {
    "preserved_task_birth_fields": lambda b, a: b[:6] == a[:6],
    "preserved_task_python_once_known": lambda b, a: b.python == a.python or (not b.python and a.state is _HELD),
    "preserved_fulfilled_task": lambda b, a: b.state is not TaskState.FULFILLED,
    "monotone_task_state_edge_admissible": lambda b, a: a.state in _TASK_EDGES[b.state],
    "monotone_task_version_raised_by_acquire_and_by_nothing_else": lambda b, a: (
        a.version == b.version + (a.state is _HELD and b.state is not _HELD)
    ),
    "preserved_task_holder_while_acquired": lambda b, a: (
        b.state is not _HELD or a.state is not _HELD or b.process == a.process
    ),
    "preserved_task_acquisition_only_from_pending": lambda b, a: (
        a.state is not _HELD or b.state in (TaskState.PENDING, _HELD)
    ),
}

LISTENER_MOVE: dict[str, Callable[[ListenerRecord, ListenerRecord], bool]] = {
    "monotone_listener_fires_once": lambda b, a: not b.fired and a.fired and b[:2] == a[:2],
}

PROCESS_MOVE: dict[str, Callable[[ProcessRecord, ProcessRecord], bool]] = {
    "preserved_process_identity": lambda b, a: b[:6] == a[:6],
    "monotone_process_lease": lambda b, a: a.expires_at >= b.expires_at,
}


def hold(now: int, cause: p.Command | p.Due, view: View, transition: Transition) -> None:
    """Check a transition before it is applied; raises `InvariantViolated` naming the property and the record."""
    moved: set[type] = set()
    for move in transition.moves:
        before, after = move
        moved.add(type(before if after is None else after))
        if isinstance(after, PromiseRecord) and (before is None or isinstance(before, PromiseRecord)):
            _each(PROMISE, after, cause)
            if before is not None:
                _each_move(PROMISE_MOVE, before, after, cause)
        elif isinstance(after, TaskRecord) and (before is None or isinstance(before, TaskRecord)):
            _each(TASK, after, cause)
            if before is not None:
                _each_move(TASK_MOVE, before, after, cause)
        else:
            _hold_small(move, cause)
        if not _knows(view, before, after):
            _broken("consistent_move_starts_from_the_stored_record", before or after, cause)
    for name, allowed in AUTHORITY.items():
        about = _ABOUT.get(name)
        if (about is None or about in moved) and not allowed(now, cause, view, transition.moves):
            _broken(name, transition.moves, cause)


def _hold_small(move: Move, cause: p.Command | p.Due) -> None:
    before, after = move
    if isinstance(after, CallbackRecord):
        _each(CALLBACK, after, cause)
        if before is not None:
            _broken("preserved_callback", move, cause)
    elif isinstance(after, ListenerRecord):
        if isinstance(before, ListenerRecord):
            _each_move(LISTENER_MOVE, before, after, cause)
        elif before is not None:
            _broken("preserved_listener", move, cause)
    elif isinstance(after, ProcessRecord):
        _each(PROCESS, after, cause)
        if isinstance(before, ProcessRecord):
            _each_move(PROCESS_MOVE, before, after, cause)
    elif after is None and isinstance(before, PromiseRecord | TaskRecord):
        _broken("monotone_promises_and_tasks_stay", before, cause)


def _knows(view: View, before: Record | None, after: Record | None) -> bool:
    record = before if after is None else after
    if isinstance(record, PromiseRecord):
        return view.promise(record.id) == before
    if isinstance(record, TaskRecord):
        return view.task(record.id) == before
    if isinstance(record, ProcessRecord):
        return view.process(record.id) == before
    if isinstance(record, CallbackRecord):
        return (record in view.callbacks(record.awaited)) is (before is not None)
    return True


def _each(properties: Mapping[str, Callable[..., bool]], record: Record, cause: object) -> None:
    for name, holds in properties.items():
        if not holds(record):
            _broken(name, record, cause)


def _each_move(properties: Mapping[str, Callable[..., bool]], before: Record, after: Record, cause: object) -> None:
    for name, holds in properties.items():
        if not holds(before, after):
            _broken(name, (before, after), cause)


def _broken(name: str, what: object, cause: object) -> None:
    raise InvariantViolated(f"{name} does not hold of {what!r} after {cause!r}. A bug in dasync: please report it.")


# -- who was allowed ---------------------------------------------------------------------------------------

Authority = Callable[[int, "p.Command | p.Due", View, Sequence[Move]], bool]


def _claim_of(cause: p.Command | p.Due) -> p.Claim | None:
    if isinstance(cause, p.TaskFence | p.TaskSuspend | p.TaskFulfill | p.TaskRelease):
        return cause.claim
    return None


def _authority_claim(now: int, cause: p.Command | p.Due, view: View, moves: Sequence[Move]) -> bool:
    """Under a claim nothing moves unless the claim holds: right version, right process, live lease."""
    claim = _claim_of(cause)
    if claim is None or not moves:
        return True
    task, process = view.task(claim.id), view.process(claim.process)
    held = task is not None and task.state is _HELD and task[7:9] == (claim.version, claim.process)
    if held and process is not None and now < process.expires_at:
        return True
    # What a deadline brings about needs nobody's claim.
    first = moves[0].before
    return isinstance(first, PromiseRecord) and first.timeout_at is not None and now >= first.timeout_at


def _authority_settle(now: int, cause: p.Command | p.Due, view: View, moves: Sequence[Move]) -> bool:
    """A promise settles because of its deadline, or because a settle or fulfill names it; and only at its time."""
    named = cause.action if isinstance(cause, p.TaskFence) else cause
    for before, after in moves:
        if not isinstance(after, PromiseRecord) or after.state is _PENDING:
            continue
        late = after.timeout_at is not None and now >= after.timeout_at
        if late:
            if after.state is not (State.RESOLVED if after.timer else State.TIMEDOUT) or after.value is not None:
                return False
        elif after.state is State.TIMEDOUT:
            return False
        elif isinstance(named, p.PromiseCancel):
            if (after.state, after.value) != (State.CANCELED, named.value) or not _ends_with(named.id, after):
                return False
        elif isinstance(named, p.PromiseSettle) or (before is None and isinstance(named, p.PromiseCreate)):
            if (named.id, named.state, named.value) != (after.id, after.state, after.value):
                return False
        elif not isinstance(named, p.TaskFulfill) or (named.claim.id, named.state) != (after.id, after.state):
            return False
    return True


def _ends_with(id: str, record: PromiseRecord) -> bool:
    """Whether a cancel of `id` may end that promise too: one that an execution below it made and computes."""
    made = record.creator is not None and (record.function != "" or record.timer)
    return record.id == id or (made and record.id.startswith((f"{id}.", f"{id}:")))


def _authority_fence(now: int, cause: p.Command | p.Due, view: View, moves: Sequence[Move]) -> bool:
    """What is created under a fence belongs to the fence's task, and never outlives it; nothing else has a creator."""
    owner = cause.claim.id if isinstance(cause, p.TaskFence) else None
    for before, after in moves:
        if before is None and isinstance(after, PromiseRecord):
            if after.creator != owner:
                return False
            parent = view.promise(owner) if owner is not None else None
            latest = parent.timeout_at if parent is not None else None
            if latest is not None and not after.timer and (after.timeout_at is None or after.timeout_at > latest):
                return False
    return True


def _authority_acquire(now: int, cause: p.Command | p.Due, view: View, moves: Sequence[Move]) -> bool:
    """A task is acquired only by the live process that asks, for a promise that is pending, in a target it serves."""
    for before, after in moves:
        if not isinstance(after, TaskRecord) or after.state is not _HELD:
            continue
        if isinstance(before, TaskRecord) and before.state is _HELD:
            continue
        if not isinstance(cause, p.TaskAcquire | p.TaskCreate) or after.process != cause.process:
            return False
        process = view.process(cause.process)
        if process is None or now >= process.expires_at:
            return False
        promise = view.promise(after.id)
        if before is not None and (promise is None or promise.state is not _PENDING):
            return False
        if before is not None and after.target not in (process.group, f"{process.group}/{process.name}"):
            return False
    return True


def _authority_release(now: int, cause: p.Command | p.Due, view: View, moves: Sequence[Move]) -> bool:
    """A held task is taken from its process only by its claim, its end, an operator, or its promise settling."""
    settled = {after.id for _, after in moves if isinstance(after, PromiseRecord) and after.state is not _PENDING}
    for before, after in moves:
        if not isinstance(before, TaskRecord) or not isinstance(after, TaskRecord):
            continue
        if before.state is not _HELD or after.state is _HELD or before.id in settled:
            continue
        claim = _claim_of(cause)
        if claim is not None and claim.id == before.id:
            continue
        if isinstance(cause, p.ProcessLeave | p.LeaseDue) and cause.process == before.process:
            continue
        if not (isinstance(cause, p.TaskHalt) and cause.id == before.id):
            return False
    return True


def _authority_lease(now: int, cause: p.Command | p.Due, view: View, moves: Sequence[Move]) -> bool:
    """A lease ends by time only when its time has come, and is renewed only by its live holder."""
    for before, after in moves:
        if isinstance(before, ProcessRecord) and after is None:
            if isinstance(cause, p.LeaseDue):
                if now < before.expires_at:
                    return False
            elif not (isinstance(cause, p.ProcessLeave) and cause.process == before.id):
                return False
        elif isinstance(before, ProcessRecord) and not (
            isinstance(cause, p.ProcessHeartbeat) and cause.process == before.id and now < before.expires_at
        ):
            return False
    return True


def _authority_settlement(now: int, cause: p.Command | p.Due, view: View, moves: Sequence[Move]) -> bool:
    """One transition settles a promise, fulfills its task, consumes its callbacks, fires its listeners: all or none."""
    settled = {
        after.id
        for before, after in moves
        if before is not None and isinstance(after, PromiseRecord) and after.state is not _PENDING
    }
    if any(before is None and isinstance(after, ListenerRecord) and after.fired and after.promise not in settled
           for before, after in moves):
        return False  # news of what is not settled
    if not settled:
        return not any(isinstance(before, CallbackRecord) or _fires(before, after) for before, after in moves)
    removed = {before for before, after in moves if after is None}
    fired = {after[:2] for before, after in moves if _fires(before, after) and after is not None}
    fulfilled = {after.id for _, after in moves if isinstance(after, TaskRecord) and after.state is TaskState.FULFILLED}
    for id in settled:
        if any(callback not in removed for callback in view.callbacks(id)):
            return False
        if any(not listener.fired and listener[:2] not in fired for listener in view.listeners(id)):
            return False
        task = view.task(id)
        if task is not None and task.state is not TaskState.FULFILLED and id not in fulfilled:
            return False
    return True


def _fires(before: Record | None, after: Record | None) -> bool:
    return isinstance(before, ListenerRecord) and isinstance(after, ListenerRecord) and after.fired


AUTHORITY: dict[str, Authority] = {
    "authority_claim_holds": _authority_claim,
    "authority_settlement_was_asked_or_due": _authority_settle,
    "authority_created_under_a_fence": _authority_fence,
    "authority_acquired_by_the_asker": _authority_acquire,
    "authority_released_by_its_holder": _authority_release,
    "authority_lease_ended_in_time": _authority_lease,
    "authority_settlement_is_whole": _authority_settlement,
}

# These say nothing of a transition that moves no such record.
_ABOUT: dict[str, type] = {
    "authority_settlement_was_asked_or_due": PromiseRecord,
    "authority_created_under_a_fence": PromiseRecord,
    "authority_acquired_by_the_asker": TaskRecord,
    "authority_released_by_its_holder": TaskRecord,
    "authority_lease_ended_in_time": ProcessRecord,
}

# -- a whole state -----------------------------------------------------------------------------------------


class Snapshot(NamedTuple):
    """All rows of a store."""

    promises: Mapping[str, PromiseRecord]
    tasks: Mapping[str, TaskRecord]
    callbacks: frozenset[CallbackRecord]
    listeners: frozenset[ListenerRecord]
    processes: Mapping[str, ProcessRecord]


STATE: dict[str, Callable[[Snapshot], Iterable[object]]] = {
    "consistent_task_iff_targeted_promise": lambda s: (
        s.tasks.keys() ^ {id for id, promise in s.promises.items() if promise.target is not None}
    ),
    "consistent_task_is_its_promise_twin": lambda s: [
        task.id
        for task in s.tasks.values()
        if (twin := s.promises.get(task.id))
        and (task.target, task.function, task.function_version) != (twin.target, twin.function, twin.version)
    ],
    "consistent_settled_promise_has_fulfilled_task": lambda s: [
        task.id
        for task in s.tasks.values()
        if (twin := s.promises.get(task.id)) and (twin.state is _PENDING) is (task.state is TaskState.FULFILLED)
    ],
    "consistent_callback_awaits_pending_promise": lambda s: [
        callback
        for callback in s.callbacks
        if (awaited := s.promises.get(callback.awaited)) is None or awaited.state is not _PENDING
    ],
    "consistent_callback_awaiter_has_task": lambda s: [
        callback for callback in s.callbacks if callback.awaiter not in s.tasks
    ],
    "consistent_suspended_task_awaits_something": lambda s: (
        {task.id for task in s.tasks.values() if task.state is TaskState.SUSPENDED}
        - {callback.awaiter for callback in s.callbacks}
    ),
    "consistent_listener_fired_iff_settled": lambda s: [
        listener
        for listener in s.listeners
        if (promise := s.promises.get(listener.promise)) is None or listener.fired is (promise.state is _PENDING)
    ],
    "consistent_listener_process_is_alive": lambda s: [
        listener for listener in s.listeners if listener.process not in s.processes
    ],
    "consistent_task_holder_is_alive": lambda s: [
        task.id for task in s.tasks.values() if task.process is not None and task.process not in s.processes
    ],
    "consistent_creator_has_task": lambda s: [
        promise.id for promise in s.promises.values() if promise.creator is not None and promise.creator not in s.tasks
    ],
}


def inspect(snapshot: Snapshot) -> list[str]:
    """Every property that a whole state breaks, each with what breaks it; empty when all hold."""
    broken = [(name, sorted(map(repr, rule(snapshot)))) for name, rule in STATE.items()]
    found = [f"{name}: {culprits}" for name, culprits in broken if culprits]
    singles: list[tuple[Mapping[str, Callable[..., bool]], Iterable[Record]]] = [
        (PROMISE, snapshot.promises.values()),
        (TASK, snapshot.tasks.values()),
        (CALLBACK, snapshot.callbacks),
        (PROCESS, snapshot.processes.values()),
    ]
    for properties, records in singles:
        found += [f"{name}: {r!r}" for r in records for name, holds in properties.items() if not holds(r)]
    return found
