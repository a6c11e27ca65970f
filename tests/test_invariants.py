"""Each named property has something that breaks it; the plausible claims that are not among them are false."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest
from clocks import T0
from worlds import LEASE, World, acquire, claim, create, fulfill, join, resolve

from dasync.core import invariants
from dasync.core import protocol as p
from dasync.core.invariants import Snapshot, hold, inspect
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
from dasync.core.protocol import Reply, Status
from dasync.core.transition import Move, Transition
from dasync.errors import InvariantViolated

PENDING = PromiseRecord("t", "f", 1, b"", "g", None, False, T0 + 500, "", T0, State.PENDING, None, None)
RESOLVED = PENDING._replace(state=State.RESOLVED, settled_at=T0, value=b"v")
TIMEDOUT = PENDING._replace(state=State.TIMEDOUT, settled_at=T0 + 500)
WAITING = TaskRecord("t", "g", "f", 1, b"", T0, TaskState.PENDING, 0, None, "", False)
HELD = WAITING._replace(state=TaskState.ACQUIRED, version=1, process="me")
SUSPENDED = WAITING._replace(state=TaskState.SUSPENDED, version=1)
FULFILLED = WAITING._replace(state=TaskState.FULFILLED)
PROCESS = ProcessRecord("me", "me-name", "g", "host", "", LEASE, T0 + LEASE)
CALLBACK = CallbackRecord("x", "t")
LISTENER = ListenerRecord("t", "me", False)

# -- one record ----------------------------------------------------------------------------------------------

RECORDS: dict[str, Record] = {
    "well_formed_promise_settled_at_iff_not_pending": PENDING._replace(settled_at=T0),
    "well_formed_promise_pending_has_no_value": PENDING._replace(value=b"v"),
    "well_formed_promise_created_at_lte_timeout_at": PENDING._replace(created_at=T0 + 501),
    "well_formed_promise_created_at_lte_settled_at": RESOLVED._replace(settled_at=T0 - 1),
    "well_formed_promise_settled_at_lte_timeout_at": RESOLVED._replace(settled_at=T0 + 501),
    "well_formed_promise_deadline_verdict_matches_timer": TIMEDOUT._replace(timer=True, target=None),
    "well_formed_promise_timed_out_at_its_deadline": TIMEDOUT._replace(settled_at=T0 + 499),
    "well_formed_promise_timer_has_deadline": PENDING._replace(timer=True, target=None, timeout_at=None),
    "well_formed_promise_timer_not_targeted": PENDING._replace(timer=True),
    "well_formed_promise_target_has_function": PENDING._replace(function=""),
    "well_formed_task_acquired_iff_has_process": WAITING._replace(process="me"),
    "well_formed_task_acquired_version_positive": HELD._replace(version=0),
    "well_formed_task_version_not_negative": WAITING._replace(version=-1),
    "well_formed_task_only_live_ones_are_resumed": FULFILLED._replace(resumed=True),
    "well_formed_callback_awaiter_is_not_self": CallbackRecord("t", "t"),
    "well_formed_process_lease_positive": PROCESS._replace(lease_ms=0),
    "well_formed_process_group_has_no_slash": PROCESS._replace(group="g/h"),
}

MOVES: dict[str, tuple[Record | None, Record | None]] = {
    "preserved_promise_birth_fields": (PENDING, RESOLVED._replace(param=b"other")),
    "preserved_settled_promise": (RESOLVED, RESOLVED._replace(value=b"other")),
    "monotone_promise_settles_when_it_moves": (RESOLVED, PENDING),
    "preserved_task_birth_fields": (WAITING, HELD._replace(seed=b"other")),
    "preserved_task_python_once_known": (WAITING._replace(python="3.11"), HELD._replace(python="3.12")),
    "preserved_fulfilled_task": (FULFILLED, FULFILLED._replace(python="3.12")),
    "monotone_task_state_edge_admissible": (SUSPENDED, HELD._replace(version=2)),
    "monotone_task_version_raised_by_acquire_and_by_nothing_else": (WAITING, HELD._replace(version=2)),
    "preserved_task_holder_while_acquired": (HELD, HELD._replace(process="other")),
    "preserved_task_acquisition_only_from_pending": (SUSPENDED, HELD._replace(version=2)),
    "monotone_listener_fires_once": (LISTENER._replace(fired=True), LISTENER._replace(fired=True)),
    "preserved_process_identity": (PROCESS, PROCESS._replace(address="other")),
    "monotone_process_lease": (PROCESS, PROCESS._replace(expires_at=T0)),
    "preserved_callback": (CALLBACK, CALLBACK),
    "well_formed_listener_is_born_unfired": (None, LISTENER._replace(fired=True)),
    "monotone_promises_and_tasks_stay": (RESOLVED, None),
    "consistent_move_starts_from_the_stored_record": (None, PENDING._replace(id="stored")),
}

RECORD_RULES = {**invariants.PROMISE, **invariants.TASK, **invariants.CALLBACK, **invariants.PROCESS}
MOVE_RULES = {
    **invariants.PROMISE_MOVE,
    **invariants.TASK_MOVE,
    **invariants.LISTENER_MOVE,
    **invariants.PROCESS_MOVE,
}
INLINE = {  # what `hold` says by itself
    "preserved_callback",
    "well_formed_listener_is_born_unfired",
    "monotone_promises_and_tasks_stay",
    "consistent_move_starts_from_the_stored_record",
}
SHADOWED = {  # an earlier property breaks wherever these do
    "preserved_task_acquisition_only_from_pending": "monotone_task_state_edge_admissible",
    "monotone_promise_settles_when_it_moves": "preserved_settled_promise",
}


def stored(*records: Record) -> World:
    """A world that holds just these rows, legal or not."""
    world = World()
    tables = {PromiseRecord: 0, TaskRecord: 2, CallbackRecord: 4, ListenerRecord: 6, ProcessRecord: 8}
    changes: list[list[Record]] = [[] for _ in range(10)]
    for record in records:
        changes[tables[type(record)]].append(record)
    world.rows.write(invariants_changes(changes))
    return world


def invariants_changes(changes: list[list[Record]]):  # type: ignore[no-untyped-def]
    from dasync.stores.rows import Changes

    return Changes(*changes)  # type: ignore[arg-type]
