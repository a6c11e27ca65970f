"""Each guard of machine.py, switched off, makes a named test fail; where an invariant sees it too, it says its name.

The source is patched as text, and a patch that no longer applies fails. A guard that can go without any test
noticing is no guard: whoever adds one to machine.py adds it here.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest
import test_machine as tests

from dasync.core import guards, machine
from dasync.core.model import State
from dasync.errors import InvariantViolated
from dasync.stores import rows

SOURCE = Path(machine.__file__).read_text("utf-8")
GUARDS = Path(guards.__file__).read_text("utf-8")


class Ablation(NamedTuple):
    """A guard by the text that makes it, what is left without it, and who notices."""

    guard: str
    without: str
    test: Callable[[], None]
    invariant: str | None = None
    """The property that `invariants.hold` names first, if it sees it."""


CREATE_WITH_WAITER = partial(
    tests.test_create_with_waiter_on_an_existing_promise_stores_nothing, {"awaiter": "t"}, False
)

ABLATIONS = {
    # the fence
    "claim: version": Ablation(
        "task.version != claim.version or ", "", tests.test_a_superseded_claim_moves_nothing, "authority_claim_holds"
    ),
    "claim: process": Ablation(
        " or task.process != claim.process:", ":", tests.test_a_superseded_claim_moves_nothing, "authority_claim_holds"
    ),
    "claim: lease": Ablation(
        "    if not guards.alive(now, view.process(claim.process)):\n"
        "        return guards.lease_lost(claim.process)\n"
        "    return task",
        "    return task",
        tests.test_a_superseded_claim_moves_nothing,
        "authority_claim_holds",
    ),
    "fence: own deadline": Ablation(
        "if own.moves or own.reply.promise is None:",
        "if own.reply.promise is None:",
        partial(tests.test_pair, "task", "overdue", "fence_create"),
    ),
    "fence: creator": Ablation(
        "creator=task.id, latest", "creator=None, latest", tests.test_born_settled, "authority_created_under_a_fence"
    ),
    "fence: deadline capped": Ablation(
        "bounds = (command.timeout_at, None if command.timer else latest)",
        "bounds = (command.timeout_at,)",
        tests.test_a_child_does_not_outlive_its_parent,
        "authority_created_under_a_fence",
    ),
    "fence: no deadline is capped too": Ablation(
        "bounds = (command.timeout_at, None if command.timer else latest)",
        "bounds = (command.timeout_at, command.timeout_at and latest)",
        tests.test_a_child_does_not_outlive_its_parent,
        "authority_created_under_a_fence",
    ),
    "fence: a timer is not capped": Ablation(
        "bounds = (command.timeout_at, None if command.timer else latest)",
        "bounds = (command.timeout_at, latest)",
        tests.test_a_child_does_not_outlive_its_parent,
    ),
    "version raised": Ablation(
        "version = task.version + 1",
        "version = task.version",
        tests.test_version_is_raised_by_acquire_only,
        "well_formed_task_acquired_version_positive",
    ),
    "version not lost": Ablation(
        "state, task.version, None, task.python, resumed",
        "state, 0, None, task.python, resumed",
        tests.test_version_is_raised_by_acquire_only,
        "monotone_task_version_raised_by_acquire_and_by_nothing_else",
    ),
    "python kept": Ablation(
        "task.python or python",
        "python",
        tests.test_python_is_recorded_at_the_first_acquire,
        "preserved_task_python_once_known",
    ),
    # deadlines
    "deadline applied": Ablation(
        "record.timeout_at is not None and now >= record.timeout_at and record.state is State.PENDING",
        "False",
        tests.test_read_past_deadline_shows_verdict,
    ),
    "deadline applied to the pending only": Ablation(
        "now >= record.timeout_at and record.state is State.PENDING",
        "now >= record.timeout_at",
        partial(tests.test_pair, "promise", "resolved", "get"),
        "preserved_settled_promise",
    ),
    "deadline applied before a settle": Ablation(
        "p.PromiseSettle, view: View, *, by: str | None) -> Transition:\n    found = _touch(now",
        "p.PromiseSettle, view: View, *, by: str | None) -> Transition:\n    found = _touch(0",
        tests.test_settle_past_deadline_times_out,
        "authority_settlement_was_asked_or_due",
    ),
    "deadlines of the untargeted": Ablation(
        "for promise in view.due(now, MAX_DUE)]",
        "for promise in view.due(now, MAX_DUE) if promise.target]",
        tests.test_every_deadline_is_armed,
    ),
    "deadlines wake awaiters": Ablation(
        "        case p.PromiseDue():\n            return _touch(now, view, event.id)",
        "        case p.PromiseDue():\n"
        "            found = _touch(now, view, event.id)\n"
        "            return found._replace(moves=found.moves[:1])",
        tests.test_timeout_wakes_awaiter_of_untargeted_promise,
        "authority_settlement_is_whole",
    ),
    "timers resolve": Ablation(
        "State.RESOLVED if record.timer else State.TIMEDOUT",
        "State.TIMEDOUT",
        tests.test_every_deadline_is_armed,
        "well_formed_promise_deadline_verdict_matches_timer",
    ),
    "due ones are not acquired": Ablation(
        "if promise is not None and not guards.is_due(promise, now):",
        "if promise is not None:",
        tests.test_no_dispatch_for_settled_promise,
    ),
    "due ones are not awaited": Ablation(
        " or guards.is_due(record, now) for record in awaited",
        " for record in awaited",
        partial(tests.test_pair, "promise", "overdue", "suspend"),
    ),
    "clock stepped back: settle": Ablation(
        "max(now, record.created_at)",
        "now",
        tests.test_clocks_step_back,
        "well_formed_promise_created_at_lte_settled_at",
    ),
    "clock stepped back: lease": Ablation(
        "max(process.expires_at, now + process.lease_ms)",
        "now + process.lease_ms",
        tests.test_a_lease_is_not_ended_before_its_time,
        "monotone_process_lease",
    ),
    "a tick is bounded": Ablation("MAX_DUE = 1_000", "MAX_DUE = 1_000_000_000", tests.test_a_tick_is_bounded),
    # settled once, as a whole
    "settled once": Ablation(
        "    if record is None or record.state is not State.PENDING:\n        return found\n    after",
        "    if record is None:\n        return found\n    after",
        partial(tests.test_pair, "promise", "rejected", "resolve"),
        "preserved_settled_promise",
    ),
    "settled with its task": Ablation(
        "moves.append(Move(task, _task(task, TaskState.FULFILLED)))",
        "pass",
        tests.test_everything_that_settles_resumes,
        "authority_settlement_is_whole",
    ),
    "callbacks consumed": Ablation(
        "moves.append(Move(callback, None))",
        "pass",
        tests.test_everything_that_settles_resumes,
        "authority_settlement_is_whole",
    ),
    "awaiters resumed": Ablation(
        "        moves += resumed\n        messages += sent\n", "", tests.test_everything_that_settles_resumes
    ),
    "listeners fired": Ablation(
        "moves.append(Move(listener, listener._replace(fired=True)))",
        "pass",
        tests.test_listeners_fire_once,
        "authority_settlement_is_whole",
    ),
    "listeners told": Ablation(
        "messages.append(p.Settled(listener.process, before.id))", "pass", tests.test_listeners_fire_once
    ),
    "listeners are not told before": Ablation("if listener.fired]", "]", tests.test_listeners_fire_once),
    "news stay until acknowledged": Ablation(
        "for listener in fired if listener.promise in known)", "for listener in fired)", tests.test_listeners_fire_once
    ),
    # promise and waiter together or not at all
    "create with a waiter: promise": Ablation(
        "return found._replace(reply=found.reply._replace(status=Status.CONFLICT, reason=reason))",
        "return found._replace(moves=(*found.moves, Move(None, CallbackRecord(command.id, command.awaiter or ''))))",
        CREATE_WITH_WAITER,
    ),
    "create with a waiter: answer": Ablation(
        "        if not guards.waits(command):\n            return found", "        return found", CREATE_WITH_WAITER
    ),
    "create with a waiter: task": Ablation(
        "view.promise(id) is None or guards.waits(command.action)", "view.promise(id) is None", CREATE_WITH_WAITER
    ),
    "create with a waiter: awaiter lives": Ablation(
        "if task is None or task.state is TaskState.FULFILLED or command.awaiter == command.id:",
        "if False:",
        partial(tests.test_a_promise_is_not_born_for_a_waiter_that_cannot_wait, {"awaiter": "nobody"}),
    ),
    "create with a waiter: listener lives": Ablation(
        "if command.listener is not None and not",
        "if False and not",
        partial(tests.test_a_promise_is_not_born_for_a_waiter_that_cannot_wait, {"listener": "nobody"}),
    ),
    "listen: process lives": Ablation(
        "    if not guards.alive(now, view.process(command.process)):\n"
        "        return Transition(guards.lease_lost(command.process))\n"
        "    if any",
        "    if any",
        partial(tests.test_pair, "process", "lapsed", "listen"),
    ),
    # dispatch
    "born settled: task fulfilled": Ablation(
        "TaskState.PENDING if pending else TaskState.FULFILLED",
        "TaskState.PENDING",
        tests.test_no_dispatch_for_settled_promise,
    ),
    "born settled: nobody called": Ablation(
        "        if pending:\n            messages.append(",
        "        if True:\n            messages.append(",
        tests.test_no_dispatch_for_settled_promise,
    ),
    "acquired only when pending": Ablation(
        "if promise is None or task.state is not TaskState.PENDING or not guards.serves",
        "if promise is None or not guards.serves",
        partial(tests.test_pair, "task", "suspended", "task_create"),
        "monotone_task_state_edge_admissible",
    ),
    "acquired only in its target": Ablation(
        "task.state is not TaskState.PENDING or not guards.serves(process, task.target)",
        "task.state is not TaskState.PENDING",
        tests.test_a_task_that_exists_is_taken_in_its_target_only,
        "authority_acquired_by_the_asker",
    ),
    "acquired only for served targets": Ablation(
        "    if strange:", "    if False:", partial(tests.test_pair, "process", "alive", "acquire_alien")
    ),
    "acquired only by the living": Ablation(
        "    if process is None or not guards.alive(now, process):\n"
        "        return Transition(guards.lease_lost(command.process))\n"
        "    strange",
        "    if process is None:\n        return Transition(guards.lease_lost(command.process))\n    strange",
        partial(tests.test_pair, "process", "lapsed", "acquire"),
        "authority_acquired_by_the_asker",
    ),
    "children handed over": Ablation(
        "view.children(task.id) if task.version else ()", "()", tests.test_an_acquire_hands_over_the_children
    ),
    "children handed over as anyone sees them": Ablation(
        "as_of(child, now) for child in", "child for child in", tests.test_an_acquire_shows_the_verdict_of_deadlines
    ),
    # suspend and resume
    "dead awaiters stay": Ablation(
        "if awaiter.state is TaskState.SUSPENDED:",
        "if awaiter.state in (TaskState.SUSPENDED, TaskState.HALTED):",
        partial(tests.test_resume_of_dead_awaiter_changes_nothing, tests.p.TaskHalt("t")),
    ),
    "dead awaiters stay: fulfilled": Ablation(
        "if awaiter.state is TaskState.SUSPENDED:",
        "if awaiter.state in (TaskState.SUSPENDED, TaskState.FULFILLED):",
        partial(tests.test_resume_of_dead_awaiter_changes_nothing, tests.resolve("t")),
        "preserved_fulfilled_task",
    ),
    "resumed while it ran": Ablation(
        "return [Move(awaiter, awaiter._replace(resumed=True))], []",
        "return [], []",
        tests.test_what_settled_while_it_ran_is_not_lost_at_the_suspend,
    ),
    "resumed, once": Ablation(
        "again = task.resumed or any(", "again = any(", tests.test_what_settled_while_it_ran_is_not_lost_at_the_suspend
    ),
    "suspended on the pending only": Ablation(
        "record.state is not State.PENDING or guards.is_due(record, now) for record",
        "False for record",
        tests.test_callback_on_promise_settled_in_batch,
    ),
    "suspended on what exists": Ablation(
        "    if missing:", "    if False:", partial(tests.test_pair, "promise", "absent", "suspend")
    ),
    "callback on the settled resumes": Ablation(
        "    moves, messages = _resume(awaiter)\n    return found",
        "    moves, messages = [], []\n    return found",
        tests.test_callback_on_promise_settled_in_batch,
    ),
    "suspend repeats": Ablation(
        "repeated = guards.repeats(task, command.claim, TaskState.SUSPENDED)",
        "repeated = False",
        tests.test_duplicate_suspend_is_idempotent,
    ),
    "suspend repeats its own version": Ablation(
        "task.state is state and task.version == claim.version",
        "task.state is state",
        tests.test_a_retried_fulfill_is_answered_with_the_outcome,
    ),
    "suspend registers once": Ablation(
        " if callback not in view.callbacks(callback.awaited))",
        ")",
        tests.test_duplicate_suspend_is_idempotent,
        "consistent_move_starts_from_the_stored_record",
    ),
    "fulfill repeats": Ablation(
        "if guards.repeats(task, command.claim, TaskState.FULFILLED):",
        "if False:",
        tests.test_a_retried_fulfill_is_answered_with_the_outcome,
    ),
    "the fulfilled are not halted": Ablation(
        "    if task.state is TaskState.FULFILLED:\n        return Transition(Reply(Status.CONFLICT, task",
        "    if False:\n        return Transition(Reply(Status.CONFLICT, task",
        partial(tests.test_pair, "task", "fulfilled", "halt"),
        "preserved_fulfilled_task",
    ),
    "only the halted continue": Ablation(
        "if task.state is not TaskState.HALTED:",
        "if False:",
        partial(tests.test_pair, "task", "mine", "continue"),
        "authority_released_by_its_holder",
    ),
    # processes
    "an id for one incarnation": Ablation(
        "if view.process(command.process) is not None:",
        "if False:",
        partial(tests.test_pair, "process", "alive", "join"),
        "consistent_move_starts_from_the_stored_record",
    ),
    "a lease that ended is not renewed": Ablation(
        "    if process is None or not guards.alive(now, process):\n"
        "        return Transition(guards.lease_lost(command.process))\n"
        "    renewed",
        "    if process is None:\n        return Transition(guards.lease_lost(command.process))\n    renewed",
        tests.test_a_lease_is_not_ended_before_its_time,
        "authority_lease_ended_in_time",
    ),
    "a lease ends when its time has come": Ablation(
        "if process is None or now < process.expires_at:",
        "if process is None:",
        tests.test_a_lease_is_not_ended_before_its_time,
    ),
    "held tasks are named": Ablation(
        "held = {task.id: task.version for task in view.held(process.id)}",
        "held = {}",
        tests.test_a_lost_acquire_reply_is_seen_in_the_heartbeat,
    ),
    "a cancel spares what stands alone": Ablation(
        "if record.creator is None or not (record.function or record.timer):",
        "if not (record.function or record.timer):",
        tests.test_a_cancel_ends_what_is_below,
        "authority_settlement_was_asked_or_due",
    ),
    "a cancel spares what is settled outside": Ablation(
        "if record.creator is None or not (record.function or record.timer):",
        "if record.creator is None:",
        tests.test_a_cancel_ends_what_is_below,
        "authority_settlement_was_asked_or_due",
    ),
    "a cancel spares what is below those": Ablation(
        "elif not record.id.startswith(spared):", "else:", tests.test_a_cancel_ends_what_is_below
    ),
    "a cancel ends what is below": Ablation(
        "ending = [*reversed(guards.made_below(record.id, view)), record]",
        "ending = [record]",
        tests.test_a_cancel_ends_what_is_below,
    ),
    "a cancel leaves deadlines their verdict": Ablation(
        "after = as_of(before, now)  # a child's",
        "after = before  # a child's",
        tests.test_a_cancel_leaves_deadlines_their_verdict,
        "authority_settlement_was_asked_or_due",
    ),
    "a cancel resumes nobody that it ends": Ablation(
        "None if callback.awaiter in ending else view.task(callback.awaiter)",
        "view.task(callback.awaiter)",
        tests.test_a_cancel_resumes_nobody_that_it_ends,
    ),
    "the runner is told": Ablation(
        "if runner is None or runner == by:",
        "if True:",
        partial(tests.test_the_runner_is_told, tests.p.PromiseSettle("t:0", State.CANCELED), {("t:0", "me")}),
    ),
    "who settles is not told": Ablation(
        "if runner is None or runner == by:",
        "if runner is None:",
        partial(tests.test_the_runner_is_told, tests.fulfill(tests.claim()), set()),
    ),
    "its tasks are sent again": Ablation(
        "for task in view.held(id):", "for task in ():", tests.test_a_dead_process_has_its_tasks_sent_again
    ),
    "its listeners are forgotten": Ablation(
        "moves += [Move(listener, None) for listener in view.listening(id)]",
        "pass",
        tests.test_a_dead_process_has_its_tasks_sent_again,
    ),
}


def _patched(ablation: Ablation) -> ModuleType:
    """The machine without that guard, which stands in machine.py itself or in guards.py."""
    assert (SOURCE + GUARDS).count(ablation.guard) == 1, f"not once in the law: {ablation.guard!r}"
    module, asked = ModuleType("ablated_machine"), ModuleType("ablated_guards")
    for made, name, text in ((asked, "guards", GUARDS), (module, "machine", SOURCE)):
        exec(compile(text.replace(ablation.guard, ablation.without), f"ablated_{name}.py", "exec"), made.__dict__)
    vars(module)["guards"] = asked
    return module


@pytest.mark.parametrize("name", ABLATIONS)
def test_without_its_guard_a_test_fails(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test passes with the machine as it is, and fails without the guard, invariants or none."""
    ablation = ABLATIONS[name]
    ablation.test()
    monkeypatch.setattr(rows, "machine", _patched(ablation))
    with pytest.raises((AssertionError, InvariantViolated)) as caught:
        ablation.test()
    seen = str(caught.value).split()[0] if isinstance(caught.value, InvariantViolated) else None
    assert seen == ablation.invariant
    monkeypatch.setattr(rows.invariants, "hold", lambda *_: None)
    with pytest.raises(AssertionError):
        ablation.test()
