"""What must be true: named properties of a record, of a move, of a state, of a cause.

Five families, told apart by the first word of the name:

- `well_formed_` holds of one record by itself;
- `preserved_` and `monotone_` hold of one record before and after: what must not change, what changes one way;
- `consistent_` holds of several records of one state;
- `authority_` holds of a command, the rows before it and its moves: who was allowed (`authority.py`).

`hold` is called on every transition in production, before anything is written; it works under `python -O`.
`inspect` looks at whole states, for tests and simulation. This file repairs nothing and shares no code with
`machine.py`: a rule that both took from one place would be checked against itself.

Plausible and false, so not here: "settled_at >= the clock's last reading" (clocks step back); "a fulfilled
task has version >= 1" (a promise can be settled from outside before anyone acquired it); "a suspended task has
no settled awaited promise" (it may have been registered on several, one of which resumed it long ago);
"an acquired task's process is in its target's group" (operators may move a process).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import NamedTuple, TypeVar

from dasync.core import protocol as p
from dasync.core.authority import ABOUT, AUTHORITY, BORN, CHANGED, KIND, REMOVED, starts_over
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
from dasync.core.transition import Transition, View
from dasync.errors import InvariantViolated

R = TypeVar("R", PromiseRecord, TaskRecord)
_PENDING = State.PENDING
_HELD = TaskState.ACQUIRED

# -- one record --------------------------------------------------------------------------------------------

PROMISE: dict[str, Callable[[PromiseRecord], bool]] = {
    "well_formed_promise_settled_at_iff_not_pending": lambda r: (r.settled_at is None) is (r.state is _PENDING),
    "well_formed_promise_turn_iff_not_pending": lambda r: (r.turn is None) is (r.state is _PENDING),
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
    "well_formed_task_crashes_not_negative": lambda r: r.crashes >= 0 and (r.crashes > 0 or r.crashed_at == 0),
    "well_formed_task_only_a_halted_one_has_a_reason": lambda r: not r.reason or r.state is TaskState.HALTED,
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
    "preserved_promise_birth_fields": lambda b, a: b[:11] == a[:11],
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

CALLBACK_MOVE: dict[str, Callable[[CallbackRecord, CallbackRecord], bool]] = {
    "preserved_callback": lambda b, a: False,
}

LISTENER_MOVE: dict[str, Callable[[ListenerRecord, ListenerRecord], bool]] = {
    "monotone_listener_fires_once": lambda b, a: not b.fired and a.fired and b[:2] == a[:2],
}

PROCESS_MOVE: dict[str, Callable[[ProcessRecord, ProcessRecord], bool]] = {
    "preserved_process_identity": lambda b, a: b[:6] == a[:6],
    "monotone_process_lease": lambda b, a: a.renewed_at > b.renewed_at,
}


# By kind of record: what holds of one, and of one before and after.
_RULES: dict[type, tuple[Mapping[str, Callable[..., bool]], Mapping[str, Callable[..., bool]]]] = {
    PromiseRecord: (PROMISE, PROMISE_MOVE),
    TaskRecord: (TASK, TASK_MOVE),
    CallbackRecord: (CALLBACK, CALLBACK_MOVE),
    ListenerRecord: ({}, LISTENER_MOVE),
    ProcessRecord: (PROCESS, PROCESS_MOVE),
}


def hold(now: int, cause: p.Cause, view: View, transition: Transition) -> None:
    """Check a transition before it is applied; raises `InvariantViolated` naming the property and the record."""
    kinds = 0
    for before, after in transition.moves:
        record = before if after is None else after
        table = type(record)
        kinds |= KIND[table][BORN if before is None else REMOVED if after is None else CHANGED]
        if after is None:
            if (table is PromiseRecord or table is TaskRecord) and starts_over(cause) is None:
                _broken("monotone_promises_and_tasks_stay", before, cause)
        else:
            alone, moved = _RULES[table]
            for name, holds in alone.items():
                if not holds(after):
                    _broken(name, after, cause)
            if before is not None:
                if type(before) is not table:
                    _broken("consistent_move_is_of_one_record", (before, after), cause)
                for name, moves_well in moved.items():
                    if not moves_well(before, after):
                        _broken(name, (before, after), cause)
        if not _knows(view, before, after):
            _broken("consistent_move_starts_from_the_stored_record", before or after, cause)
    for name in _asked(kinds):
        if not AUTHORITY[name](now, cause, view, transition.moves):
            _broken(name, transition.moves, cause)


@cache
def _asked(kinds: int) -> tuple[str, ...]:
    """What is asked of moves of these kinds."""
    return tuple(name for name, about in ABOUT.items() if about & kinds)


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


def _broken(name: str, what: object, cause: object) -> None:
    raise InvariantViolated(f"{name} does not hold of {what!r} after {cause!r}. A bug in dasync: please report it.")


# -- a whole state -----------------------------------------------------------------------------------------


class Snapshot(NamedTuple):
    """All rows of a store."""

    promises: Mapping[str, PromiseRecord]
    tasks: Mapping[str, TaskRecord]
    callbacks: frozenset[CallbackRecord]
    listeners: frozenset[ListenerRecord]
    processes: Mapping[str, ProcessRecord]


def _has_gone(id: str, s: Snapshot) -> bool:
    """Whether it was made by a run that another one has followed."""
    kept = (promise.id for promise in s.promises.values() if promise.function == p.AGAIN)
    return any(id.startswith(one.rpartition("@")[0]) and not f"{id}.".startswith(f"{one}.") for one in kept)


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
        callback for callback in s.callbacks if callback.awaiter not in s.tasks and not _has_gone(callback.awaiter, s)
    ],
    "consistent_suspended_task_awaits_something": lambda s: (
        {task.id for task in s.tasks.values() if task.state is TaskState.SUSPENDED}
        - {callback.awaiter for callback in s.callbacks}
    ),
    "consistent_listener_fired_iff_settled": lambda s: [
        listener
        for listener in s.listeners
        if (promise := s.promises.get(listener.promise)) is None or listener.fired is (promise.state is _PENDING)
        if promise is not None or not (listener.fired and _has_gone(listener.promise, s))
    ],
    "consistent_listener_process_is_alive": lambda s: [
        listener for listener in s.listeners if listener.process not in s.processes
    ],
    "consistent_task_holder_is_alive": lambda s: [
        task.id for task in s.tasks.values() if task.process is not None and task.process not in s.processes
    ],
    "consistent_creator_has_task": lambda s: [
        promise.id
        for promise in s.promises.values()
        if promise.creator is not None and promise.creator not in s.tasks and not _has_gone(promise.creator, s)
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
