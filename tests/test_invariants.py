"""Each named property has something that breaks it; the plausible claims that are not among them are false."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import pytest
from clocks import T0
from worlds import LEASE, World, acquire, claim, create, fulfill, join, resolve

from dasync.core import invariants
from dasync.core import protocol as p
from dasync.core.invariants import hold, inspect
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
from dasync.stores.rows import Changes

PENDING = PromiseRecord("t", "f", 1, b"", "g", None, False, T0 + 500, "", T0, 0, State.PENDING, None, None, None)
RESOLVED = PENDING._replace(state=State.RESOLVED, settled_at=T0, value=b"v", turn=7)
TIMEDOUT = PENDING._replace(state=State.TIMEDOUT, settled_at=T0 + 500, turn=7)
WAITING = TaskRecord("t", "g", "f", 1, b"", T0, TaskState.PENDING, 0, None, "", False)
HELD = WAITING._replace(state=TaskState.ACQUIRED, version=1, process="me")
SUSPENDED = WAITING._replace(state=TaskState.SUSPENDED, version=1)
FULFILLED = WAITING._replace(state=TaskState.FULFILLED)
PROCESS = ProcessRecord("me", "me-name", "g", "host", "", LEASE, T0)
OTHER = PENDING._replace(id="other", target=None)
CALLBACK = CallbackRecord("x", "t")
LISTENER = ListenerRecord("t", "me", False)

# -- one record ----------------------------------------------------------------------------------------------

RECORDS: dict[str, Record] = {
    "well_formed_promise_settled_at_iff_not_pending": PENDING._replace(settled_at=T0),
    "well_formed_promise_turn_iff_not_pending": PENDING._replace(turn=7),
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
    "well_formed_task_crashes_not_negative": WAITING._replace(crashed_at=7),
    "well_formed_task_only_a_halted_one_has_a_reason": WAITING._replace(reason="why"),
    "well_formed_callback_awaiter_is_not_self": CallbackRecord("t", "t"),
    "well_formed_process_lease_positive": PROCESS._replace(lease_ms=0),
    "well_formed_process_group_has_no_slash": PROCESS._replace(group="g/h"),
}

MOVES: dict[str, tuple[Record | None, Record | None]] = {
    "preserved_promise_birth_fields": (PENDING, RESOLVED._replace(param=b"other")),
    "preserved_settled_promise": (RESOLVED, RESOLVED._replace(value=b"other")),
    "monotone_promise_settles_when_it_moves": (PENDING, PENDING),
    "preserved_task_birth_fields": (WAITING, HELD._replace(seed=b"other")),
    "preserved_task_python_once_known": (WAITING._replace(python="3.11"), HELD._replace(python="3.12")),
    "preserved_fulfilled_task": (FULFILLED, FULFILLED),
    "monotone_task_state_edge_admissible": (SUSPENDED, HELD._replace(version=2)),
    "monotone_task_version_raised_by_acquire_and_by_nothing_else": (WAITING, HELD._replace(version=2)),
    "preserved_task_holder_while_acquired": (HELD, HELD._replace(process="other")),
    "preserved_task_acquisition_only_from_pending": (SUSPENDED, HELD._replace(version=2)),
    "monotone_listener_fires_once": (LISTENER._replace(fired=True), LISTENER._replace(fired=True)),
    "preserved_process_identity": (PROCESS, PROCESS._replace(address="other")),
    "monotone_process_lease": (PROCESS, PROCESS),
    "preserved_callback": (CALLBACK, CALLBACK),
    "consistent_move_is_of_one_record": (CALLBACK, LISTENER),
    "monotone_promises_and_tasks_stay": (RESOLVED, None),
    "consistent_move_starts_from_the_stored_record": (None, OTHER),
}

RECORD_RULES = {**invariants.PROMISE, **invariants.TASK, **invariants.CALLBACK, **invariants.PROCESS}
MOVE_RULES = {
    **invariants.PROMISE_MOVE,
    **invariants.TASK_MOVE,
    **invariants.CALLBACK_MOVE,
    **invariants.LISTENER_MOVE,
    **invariants.PROCESS_MOVE,
}
INLINE = {  # what `hold` says by itself
    "consistent_move_is_of_one_record",
    "monotone_promises_and_tasks_stay",
    "consistent_move_starts_from_the_stored_record",
}
NEVER_FIRST = {"preserved_task_acquisition_only_from_pending"}  # the table of edges says so before it


def stored(*records: Record) -> World:
    """A world of just these rows, legal or not."""
    world = World()
    kinds = (PromiseRecord, TaskRecord, CallbackRecord, ListenerRecord, ProcessRecord)
    kept = [[record for record in records if type(record) is kind] for kind in kinds]
    world.rows.write(Changes(*(part for born in (*kept, []) for part in (born, []))))  # type: ignore[arg-type]
    return world


def broken_by(cause: p.Cause, world: World, moves: list[tuple[Record | None, Record | None]]) -> str:
    """The property that `hold` names."""
    transition = Transition(Reply(Status.OK), tuple(Move(*move) for move in moves))
    with pytest.raises(InvariantViolated) as caught:
        hold(world.now, cause, world.rows, transition)
    return str(caught.value).split()[0]


@pytest.mark.parametrize("name", RECORD_RULES)
def test_a_record_breaks_it(name: str) -> None:
    """`hold` names the property before the record is written, `inspect` finds it in a state."""
    assert not RECORD_RULES[name](RECORDS[name])
    assert broken_by(p.PromiseGet("t"), World(), [(None, RECORDS[name])]) == name
    assert any(found.startswith(name) for found in inspect(stored(RECORDS[name]).snapshot()))


@pytest.mark.parametrize("name", MOVE_RULES)
def test_a_move_breaks_it(name: str) -> None:
    """Both records are well formed; only what lies between them is wrong."""
    before, after = MOVES[name]
    assert not MOVE_RULES[name](before, after)
    assert all(holds(after) for rule, holds in RECORD_RULES.items() if _kind(after) in rule)
    assert before is not None
    assert (broken_by(p.PromiseGet("t"), stored(before), [(before, after)]) == name) is (name not in NEVER_FIRST)


@pytest.mark.parametrize("name", sorted(INLINE))
def test_a_move_breaks_what_hold_says_by_itself(name: str) -> None:
    """No callback is replaced, no listener is born fired, no promise is removed, no move starts from elsewhere."""
    assert broken_by(p.PromiseGet("t"), stored(OTHER), [MOVES[name]]) == name


def _kind(record: Record | None) -> str:
    return f"_{type(record).__name__.removesuffix('Record').lower()}_"


# -- who was allowed -----------------------------------------------------------------------------------------

LIVE = (PENDING, HELD, PROCESS)
X = OTHER._replace(id="x", timeout_at=None)
X_RESOLVED = X._replace(state=State.RESOLVED, settled_at=T0, value=b"v", turn=7)
CHILD = X._replace(id="t:0", creator="t", timeout_at=T0 + 500)
MADE = X_RESOLVED._replace(id="t:0", creator="t")
AGAIN = WAITING._replace(version=1)
RENEWED = PROCESS._replace(renewed_at=T0 + 1)
CRASHED = AGAIN._replace(crashes=1)
HELD_AGAIN = HELD._replace(crashes=1)
PARKED = AGAIN._replace(state=TaskState.HALTED, crashes=2)
GET = p.PromiseGet("x")


WAITING_TOO, HELD_TOO = (task._replace(id="u") for task in (WAITING, HELD))
TWO = (PENDING, PENDING._replace(id="u"), WAITING, WAITING_TOO)


def _with_room(tasks: int) -> p.TaskAcquire:
    return replace(acquire(), rooms=(p.Room(("f",), tasks),))


def _starts(id: str) -> p.TaskFence:
    return p.TaskFence(claim(), p.PromiseAgain(id, b"a"))


STARTS = _starts("t:@1")
KEPT = MADE._replace(id="t:@1", function=p.AGAIN, param=b"a", value=None, timeout_at=T0 + 500)
KEPT_BELOW, KEPT_FAR, KEPT_NEXT = (KEPT._replace(id=id) for id in ("t:0.@1", "t:2.@1", "t:@2"))
CHILD = CHILD._replace(function="f")
EXTERNAL = CHILD._replace(id="t:1", function="")
WAITS = CallbackRecord("t:1", "t")
ALONE, STRANGE = MADE._replace(creator=None), MADE._replace(creator="u")
MADE_BESIDE = MADE._replace(id="t:1")
FAR = MADE._replace(id="t:2", target="g", function="f")
FAR_DONE = FULFILLED._replace(id="t:2")
BELOW_FAR = MADE._replace(id="t:2.0", creator="t:2")
Case = tuple[int, p.Cause, tuple[Record, ...], list[tuple[Record | None, Record | None]]]

ALLOWED: dict[str, list[Case]] = {  # time since T0, cause, rows, moves
    "authority_claim_holds": [
        (0, p.TaskRelease(claim(version=2)), LIVE, [(HELD, AGAIN)]),
        (0, p.TaskRelease(claim(process="other")), LIVE, [(HELD, AGAIN)]),
        (0, p.TaskRelease(claim()), (PENDING, HELD), [(HELD, AGAIN)]),
        (0, p.TaskFence(claim(), create("t:0")), (PENDING, SUSPENDED, PROCESS), [(None, CHILD)]),
        (0, p.TaskFence(claim(), create("t:0")), (PROCESS,), [(None, CHILD)]),
    ],
    "authority_settlement_was_asked_or_due": [
        (0, GET, (X,), [(X, X_RESOLVED)]),
        (0, resolve("y"), (X,), [(X, X_RESOLVED)]),
        (0, resolve("x", b"other"), (X,), [(X, X_RESOLVED)]),
        (0, p.PromiseSettle("x", State.REJECTED, b"v"), (X,), [(X, X_RESOLVED)]),
        (0, create("x", state=State.REJECTED, value=b"v"), (), [(None, X_RESOLVED)]),
        (0, fulfill(claim()), (*LIVE, X), [(X, X_RESOLVED)]),
        (499, p.PromiseDue("t"), (PENDING,), [(PENDING, TIMEDOUT)]),
        (500, resolve("t"), (PENDING,), [(PENDING, RESOLVED)]),
    ],
    "authority_created_under_a_fence": [
        (0, create("t:0"), LIVE, [(None, CHILD)]),
        (0, p.TaskFence(claim(), create("t:0")), LIVE, [(None, CHILD._replace(creator=None))]),
        (0, p.TaskFence(claim(), create("t:0")), LIVE, [(None, CHILD._replace(timeout_at=None))]),
        (0, p.TaskFence(claim(), create("t:0")), LIVE, [(None, CHILD._replace(timeout_at=T0 + 501))]),
    ],
    "authority_acquired_by_the_asker": [
        (0, GET, (PENDING, WAITING, PROCESS), [(WAITING, HELD)]),
        (0, acquire("other"), (PENDING, WAITING, PROCESS), [(WAITING, HELD)]),
        (0, acquire(), (PENDING, WAITING), [(WAITING, HELD)]),
        (0, acquire(), (RESOLVED, WAITING, PROCESS), [(WAITING, HELD)]),
        (0, acquire(), (PENDING, WAITING, PROCESS._replace(group="h")), [(WAITING, HELD)]),
    ],
    "authority_acquired_no_more_than_asked": [
        (0, acquire("me", "g/me-name"), (PENDING, WAITING, PROCESS), [(WAITING, HELD)]),
        (0, p.TaskAcquire("me", ("g",), (("f", 2),), 9), (PENDING, WAITING, PROCESS), [(WAITING, HELD)]),
        (0, acquire(limit=1), (*TWO, PROCESS), [(WAITING, HELD), (WAITING_TOO, HELD_TOO)]),
        (0, _with_room(1), (*TWO, PROCESS), [(WAITING, HELD), (WAITING_TOO, HELD_TOO)]),
    ],
    "authority_released_by_its_holder": [
        (0, p.ProcessLeave("other"), LIVE, [(HELD, AGAIN)]),
        (0, p.TaskHalt("u"), LIVE, [(HELD, HELD._replace(state=TaskState.HALTED, process=None))]),
        (0, p.TaskContinue("t"), LIVE, [(HELD, AGAIN)]),
        (0, p.TaskRelease(claim()), (*LIVE, HELD._replace(id="u")), [(HELD._replace(id="u"), AGAIN._replace(id="u"))]),
    ],
    "authority_lease_ended_in_time": [
        (0, p.ProcessLeave("me", T0 - 1), (PROCESS,), [(PROCESS, None)]),
        (0, p.ProcessLeave("other"), (PROCESS,), [(PROCESS, None)]),
        (0, p.Tick(), (PROCESS,), [(PROCESS, None)]),
        (0, p.ProcessHeartbeat("other"), (PROCESS,), [(PROCESS, RENEWED)]),
        (0, p.Tick(), (PROCESS,), [(PROCESS, RENEWED)]),
    ],
    "authority_crashes_are_counted_at_the_end_of_a_process": [
        (0, p.TaskRelease(claim()), LIVE, [(HELD, CRASHED)]),
        (0, p.ProcessLeave("me"), LIVE, [(HELD, CRASHED._replace(crashes=2))]),
        (0, p.TaskContinue("t"), (PENDING, PARKED), [(PARKED, CRASHED)]),
        (0, p.TaskRelease(claim()), (PENDING, HELD_AGAIN, PROCESS), [(HELD_AGAIN, AGAIN)]),
    ],
    "authority_settlement_is_whole": [
        (0, resolve("x"), (X, CALLBACK), [(X, X_RESOLVED)]),
        (0, resolve("x"), (X, ListenerRecord("x", "me", False)), [(X, X_RESOLVED)]),
        (0, resolve("t"), (PENDING, WAITING), [(PENDING, RESOLVED)]),
        (0, GET, (X, CALLBACK), [(CALLBACK, None)]),
        (0, GET, (X, LISTENER), [(LISTENER, LISTENER._replace(fired=True))]),
        (0, STARTS, (*LIVE, EXTERNAL, WAITS), [(None, KEPT), (EXTERNAL, None)]),
        (0, STARTS, (*LIVE, EXTERNAL, ListenerRecord("t:1", "me", False)), [(None, KEPT), (EXTERNAL, None)]),
    ],
    "authority_removed_by_who_starts_over": [
        (0, STARTS, (*LIVE, CHILD), [(None, KEPT), (CHILD, None)]),
        (0, STARTS, (*LIVE, ALONE), [(None, KEPT), (ALONE, None)]),
        (0, STARTS, (*LIVE, STRANGE), [(None, KEPT), (STRANGE, None)]),
        (0, STARTS, (*LIVE, FAR, FAR_DONE), [(None, KEPT), (FAR, None)]),
        (0, STARTS, (*LIVE, FAR, FAR_DONE), [(None, KEPT), (FAR_DONE, None)]),
        (0, STARTS, LIVE, [(None, KEPT), (PENDING, None), (HELD, None)]),
        (0, _starts("t:0.@1"), (*LIVE, CHILD, MADE_BESIDE), [(None, KEPT_BELOW), (MADE_BESIDE, None)]),
        (0, _starts("t:2.@1"), (*LIVE, FAR, FAR_DONE, BELOW_FAR), [(None, KEPT_FAR), (BELOW_FAR, None)]),
        (0, _starts("t:@2"), (*LIVE, KEPT, MADE), [(None, KEPT_NEXT), (MADE, None)]),
    ],
}
CASES = [(name, number) for name, cases in ALLOWED.items() for number in range(len(cases))]


@pytest.mark.parametrize(("name", "number"), CASES)
def test_somebody_who_was_not_allowed_breaks_it(name: str, number: int) -> None:
    """Every record and every move is legal by itself; only the cause shows what is wrong."""
    since, cause, records, moves = ALLOWED[name][number]
    world = stored(*records)
    world.now = T0 + since
    assert broken_by(cause, world, moves) == name


# -- a whole state -------------------------------------------------------------------------------------------

STATES: dict[str, tuple[Record, ...]] = {
    "consistent_task_iff_targeted_promise": (PENDING,),
    "consistent_task_is_its_promise_twin": (PENDING, WAITING._replace(target="h")),
    "consistent_settled_promise_has_fulfilled_task": (RESOLVED, WAITING),
    "consistent_callback_awaits_pending_promise": (X_RESOLVED, PENDING, WAITING, CALLBACK),
    "consistent_callback_awaiter_has_task": (X, CALLBACK),
    "consistent_suspended_task_awaits_something": (PENDING, SUSPENDED),
    "consistent_listener_fired_iff_settled": (X, ListenerRecord("x", "me", True), PROCESS),
    "consistent_listener_process_is_alive": (PENDING, WAITING, LISTENER),
    "consistent_task_holder_is_alive": (PENDING, HELD),
    "consistent_creator_has_task": (CHILD,),
}


@pytest.mark.parametrize("name", invariants.STATE)
def test_a_state_breaks_it(name: str) -> None:
    """And nothing else is wrong with that state."""
    assert [found.split(":")[0] for found in inspect(stored(*STATES[name]).snapshot())] == [name]


def test_each_property_has_what_breaks_it() -> None:
    """The tables of this file name what invariants.py and authority.py name."""
    assert RECORDS.keys() == RECORD_RULES.keys()
    assert MOVES.keys() == MOVE_RULES.keys() | INLINE
    assert ALLOWED.keys() == invariants.AUTHORITY.keys()
    assert STATES.keys() == invariants.STATE.keys()
    families = {"well", "preserved", "monotone", "consistent", "authority"}
    names = RECORDS.keys() | MOVES.keys() | ALLOWED.keys() | STATES.keys()
    assert {name.split("_")[0] for name in names} == families
    with open(invariants.__file__, encoding="utf-8") as source:
        inline = {line.split('"')[1] for line in source if '_broken("' in line}
    assert inline == INLINE


def test_a_legal_move_is_let_through() -> None:
    """The same moves by who is allowed: nothing is raised."""
    legal: list[Case] = [
        (0, p.TaskRelease(claim()), LIVE, [(HELD, AGAIN)]),
        (0, resolve("x"), (X, CALLBACK), [(X, X_RESOLVED), (CALLBACK, None)]),
        (0, p.TaskFence(claim(), create("t:0")), LIVE, [(None, CHILD)]),
        (0, acquire(), (PENDING, WAITING, PROCESS), [(WAITING, HELD)]),
        (0, p.ProcessLeave("me", T0), (PROCESS,), [(PROCESS, None)]),
        (0, p.ProcessLeave("me"), LIVE, [(HELD, CRASHED), (PROCESS, None)]),
        (0, p.TaskContinue("t"), (PENDING, PARKED), [(PARKED, AGAIN)]),
        (0, STARTS, (*LIVE, MADE, FAR, FAR_DONE), [(None, KEPT), (MADE, None), (FAR, None), (FAR_DONE, None)]),
        (0, STARTS, (*LIVE, EXTERNAL, WAITS), [(None, KEPT), (EXTERNAL, None), (WAITS, None)]),
        (0, _starts("t:0.@1"), (*LIVE, CHILD), [(None, KEPT_BELOW)]),
        (0, _starts("t:@2"), (*LIVE, KEPT), [(None, KEPT_NEXT), (KEPT, None)]),
        (500, p.PromiseDue("t"), (PENDING, WAITING), [(PENDING, TIMEDOUT), (WAITING, FULFILLED)]),
    ]
    for since, cause, records, moves in legal:
        hold(T0 + since, cause, stored(*records).rows, Transition(Reply(Status.OK), tuple(Move(*m) for m in moves)))


def test_hold_works_without_asserts() -> None:
    """Under `python -O` too."""
    program = (
        "from test_invariants import *\n"
        "assert False, 'not evaluated'\n"
        "try:\n"
        "    hold(T0, GET, World().rows, Transition(Reply(Status.OK), (Move(None, RECORDS[sorted(RECORDS)[0]]),)))\n"
        "except InvariantViolated as violated:\n"
        "    print(str(violated).split()[0] == sorted(RECORDS)[0])\n"
    )
    path = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    run = [sys.executable, "-O", "-c", program]
    done = subprocess.run(run, env=path, capture_output=True, text=True, check=False, timeout=60)
    assert (done.stdout, done.stderr) == ("True\n", "")


# -- plausible and false -------------------------------------------------------------------------------------


def test_settled_at_may_lie_before_the_last_reading_of_the_clock() -> None:
    """Clocks step back."""
    world = World(create("x"))
    world.now += 100
    world.do(p.PromiseGet("x"))
    world.now -= 50
    settled = world.do(resolve("x")).promise
    assert settled is not None
    assert settled.settled_at == T0 + 50


def test_a_fulfilled_task_may_never_have_been_acquired() -> None:
    """Its promise was settled from outside first."""
    world = World(create("t", "g"), resolve("t"))
    assert (world.task("t").state, world.task("t").version) == (TaskState.FULFILLED, 0)


def test_a_suspended_task_may_have_a_settled_awaited_promise() -> None:
    """It was registered on several, one of which resumed it long ago."""
    world = World(join(), create("t", "g"), create("x"), create("y"), acquire(), p.TaskSuspend(claim(), ("x", "y")))
    world.do(resolve("x"), acquire(), p.TaskSuspend(claim(version=2), ("y",)))
    assert world.task("t").state is TaskState.SUSPENDED
    assert world.promise("x").state is State.RESOLVED


def test_a_task_may_be_held_from_outside_its_targets_group() -> None:
    """Who creates a task may run it at once, wherever it would have been sent."""
    world = World(join(), p.TaskCreate("me", create("t", "elsewhere")))
    assert (world.task("t").target, world.task("t").process) == ("elsewhere", "me")
