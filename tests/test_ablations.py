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

from dasync.core import dispatch, guards, lifetime, machine, presence
from dasync.errors import InvariantViolated
from dasync.stores import rows

PARTS = (guards, lifetime, presence, dispatch, machine)
LAW = {module.__name__: Path(module.__file__ or "").read_text("utf-8") for module in PARTS}


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
    "fence: own deadline": Ablation(
        "if own is None or guards.is_due(own, now):",
        "if own is None:",
        partial(tests.test_pair, "task", "overdue", "fence_create"),
    ),
    "fence: creator": Ablation(
        "creator=task.id, latest", "creator=None, latest", tests.test_born_settled, "authority_created_under_a_fence"
    ),
    "fence: deadline capped": Ablation(
        "if latest is not None and not command.timer:",
        "if False:",
        tests.test_a_child_does_not_outlive_its_parent,
        "authority_created_under_a_fence",
    ),
    "fence: no deadline is capped too": Ablation(
        "deadline = latest if deadline is None else min(deadline, latest)",
        "deadline = deadline and min(deadline, latest)",
        tests.test_a_child_does_not_outlive_its_parent,
        "authority_created_under_a_fence",
    ),
    "fence: a timer is not capped": Ablation(
        "if latest is not None and not command.timer:",
        "if latest is not None:",
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
        "    return _touch(now, view, event.id)\n",
        "    found = _touch(now, view, event.id)\n    return found._replace(moves=found.moves[:1])\n",
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
        "record.state is not State.PENDING or is_due(record, now)",
        "record.state is not State.PENDING",
        partial(tests.test_pair, "promise", "overdue", "suspend"),
    ),
    "clock stepped back: settle": Ablation(
        "max(now, record.created_at)",
        "now",
        tests.test_clocks_step_back,
        "well_formed_promise_created_at_lte_settled_at",
    ),
    "clock stepped back: lease": Ablation(
        "max(process.renewed_at + 1, now)",
        "now",
        tests.test_a_lease_is_not_ended_while_it_is_renewed,
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
        "moves.append(Move(listener, ListenerRecord(before.id, process, True)))",
        "pass",
        tests.test_listeners_fire_once,
        "authority_settlement_is_whole",
    ),
    "listeners told": Ablation(
        "messages.append(p.Settled(process, before.id))", "pass", tests.test_listeners_fire_once
    ),
    "listeners are not told before": Ablation(
        "news = view.news(command.process)", "news = view.listening(command.process)", tests.test_listeners_fire_once
    ),
    "news stay until acknowledged": Ablation(
        "for listener in news if listener.promise in known)", "for listener in news)", tests.test_listeners_fire_once
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
        "if command.listener is not None and view",
        "if False and view",
        partial(tests.test_a_promise_is_not_born_for_a_waiter_that_cannot_wait, {"listener": "nobody"}),
    ),
    "listen: process lives": Ablation(
        "    if view.process(command.process) is None:\n"
        "        return Transition(guards.lease_lost(command.process))\n"
        "    if any",
        "    if any",
        partial(tests.test_pair, "process", "absent", "listen"),
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
        "if strange := [target for target in command.targets if not guards.serves(process, target)]:",
        "if strange := []:",
        partial(tests.test_pair, "process", "alive", "acquire_alien"),
    ),
    "one of each in turn": Ablation(
        """            taken.append(task)
""",
        """            taken.append(task)
            taken += (rest := list(tasks)[: command.limit - len(taken)])
""",
        tests.test_functions_take_turns,
    ),
    "the turn of who is named first": Ablation(
        "for kind in dict.fromkeys(command.functions) if kind in pending",
        "for kind in sorted(set(command.functions)) if kind in pending",
        tests.test_the_turn_is_that_of_who_is_named_first,
    ),
    "more of those that have more": Ablation(
        "hungry = tuple(kind for kind in hungry if share <= len(found[kind]) < _most(command, kind))",
        "hungry = ()",
        tests.test_a_turn_that_nobody_uses_is_anothers,
    ),
    "the next functions when the first have no more": Ablation(
        "hungry, kinds = kinds[: command.limit], kinds[command.limit :]",
        "hungry, kinds = kinds[: command.limit], ()",
        tests.test_few_of_many_are_left,
    ),
    "no more than there is room for": Ablation(
        "task = next(tasks, None) if all(left[at] for at in rooms[kind]) else None",
        "task = next(tasks, None)",
        tests.test_a_room_holds_so_many_of_its_functions_together,
        "authority_acquired_no_more_than_asked",
    ),
    "no more than asked for": Ablation(
        "            if len(taken) == command.limit:\n                return taken\n",
        "",
        tests.test_functions_take_turns,
        "authority_acquired_no_more_than_asked",
    ),
    "children handed over": Ablation(
        "tuple(view.children(task.id)) if task.version else ()", "()", tests.test_an_acquire_hands_over_the_children
    ),
    "children handed over as written": Ablation(
        "tuple(view.children(task.id))",
        "tuple(lifetime.as_of(child, 2 * promise.created_at) for child in view.children(task.id))",
        tests.test_an_acquire_hands_children_over_as_written,
    ),
    "the runner is told": Ablation(
        "for id in (before.id if before.target is not None else None, before.creator):",
        "for id in (before.id if before.target is not None else None,):",
        partial(tests.test_who_runs_an_execution_is_told_what_its_promises_come_to, tests.TOLD[0]),
        "authority_settlement_is_whole",
    ),
    "the runner of what it stands for is told": Ablation(
        "for id in (before.id if before.target is not None else None, before.creator):",
        "for id in (before.creator,):",
        partial(
            tests.test_the_runner_is_told,
            tests.p.PromiseCancel("t:1"),
            {("t:1", "other"), ("t:1", "me"), ("t:1.0", "other")},
        ),
        "authority_settlement_is_whole",
    ),
    "who settles is not told": Ablation(
        "task = view.task(id) if id not in (None, by) else None",
        "task = view.task(id) if id is not None else None",
        partial(tests.test_the_runner_is_told, tests.fulfill(tests.claim()), set()),
    ),
    "what is below is told to who asks": Ablation(
        "asks = by if before is record else None",
        "asks = by",
        partial(
            tests.test_the_runner_is_told,
            tests.p.TaskFence(tests.claim(), tests.p.PromiseCancel("t:0")),
            {("t:0.0", "me")},
        ),
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
        "if task.resumed or any(", "if any(", tests.test_what_settled_while_it_ran_is_not_lost_at_the_suspend
    ),
    "suspended on the pending only": Ablation(
        "guards.is_over(record, now) for record",
        "False for record",
        tests.test_callback_on_promise_settled_in_batch,
    ),
    "suspended on what exists": Ablation(
        "if missing := [id for id, record in awaited.items() if record is None]:",
        "if missing := []:",
        partial(tests.test_pair, "promise", "absent", "suspend"),
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
    "a halted task stays as it is": Ablation(
        "task if task.state is TaskState.HALTED else _task(task",
        "_task(task",
        tests.test_a_halt_keeps_its_reason_until_it_is_over,
        "monotone_task_state_edge_admissible",
    ),
    "a halt keeps its reason": Ablation(
        "._replace(reason=command.reason)", "", tests.test_a_halt_keeps_its_reason_until_it_is_over
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
    "who has renewed its lease is not gone": Ablation(
        "process is None or command.renewed_at not in (None, process.renewed_at)",
        "process is None",
        tests.test_a_lease_is_not_ended_while_it_is_renewed,
        "authority_lease_ended_in_time",
    ),
    "crashes are counted of the one that ran": Ablation(
        "if ids.mark(task.id) in command.ran else",
        "if command.ran else",
        tests.test_a_task_that_ends_its_processes_is_poisoned,
    ),
    "crashes are counted in a row": Ablation(
        "task.crashes + 1 if latest == task.crashed_at else 1",
        "task.crashes + 1",
        tests.test_a_task_that_ends_its_processes_is_poisoned,
    ),
    "crashes are counted up to a number": Ablation(
        "if crashes < command.max_crashes:", "if True:", tests.test_a_task_that_ends_its_processes_is_poisoned
    ),
    "crashes are kept when it is acquired": Ablation(
        "return TaskRecord(*task[:6], *held, *task[12:])",
        "return TaskRecord(*task[:6], *held)",
        tests.test_a_task_that_ends_its_processes_is_poisoned,
        "authority_crashes_are_counted_at_the_end_of_a_process",
    ),
    "crashes are forgotten when it is continued": Ablation(
        "task._replace(crashes=0, crashed_at=0), task", "task", tests.test_a_task_that_ends_its_processes_is_poisoned
    ),
    "held tasks are named": Ablation(
        "agreed = view.holding(process.id) == command.knows",
        "agreed = True",
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
        "after = lifetime.as_of(before, now, view.turn)  # a child's",
        "after = before  # a child's",
        tests.test_a_cancel_leaves_deadlines_their_verdict,
        "authority_settlement_was_asked_or_due",
    ),
    "a cancel resumes nobody that it ends": Ablation(
        "None if callback.awaiter in ending else view.task(callback.awaiter)",
        "view.task(callback.awaiter)",
        tests.test_a_cancel_resumes_nobody_that_it_ends,
    ),
    # to start over
    "what was made goes": Ablation(
        "moves, messages = [Move(record, None)], list[p.Message]()",
        "moves, messages = [], list[p.Message]()",
        tests.test_who_starts_over_begins_with_nothing,
        "authority_removed_by_who_starts_over",
    ),
    "what was made goes with its task": Ablation(
        "        moves.append(Move(task, None))\n",
        "        pass\n",
        tests.test_who_starts_over_begins_with_nothing,
        "authority_removed_by_who_starts_over",
    ),
    "what kept the last arguments goes": Ablation(
        "made = [] if kept is None else [kept]",
        "made = []",
        tests.test_who_starts_over_begins_with_nothing,
    ),
    "what stands alone stays": Ablation(
        "if record.creator in makers:",
        "if record.creator in {None, *makers}:",
        tests.test_who_starts_over_begins_with_nothing,
    ),
    "what is below what stands alone stays": Ablation(
        "if record.creator in makers:",
        "if record.creator is not None:",
        tests.test_who_starts_over_begins_with_nothing,
    ),
    "what its children have made goes": Ablation(
        "            makers.add(record.id)\n",
        "",
        tests.test_who_starts_over_begins_with_nothing,
    ),
    "only who computes it starts it over": Ablation(
        "if not (record.id == task.id or within):",
        "if False:",
        partial(tests.test_pair, "promise", "pending", "fence_again"),
    ),
    "to start over repeats": Ablation(
        "if (kept := view.promise(command.id)) is not None:  # it was said",
        "if (kept := None) is not None:  # it was said",
        tests.test_to_start_over_twice_is_to_start_over_once,
        "consistent_move_starts_from_the_stored_record",
    ),
    "no run is left out": Ablation(
        "elif last and not (made and made[0].id == ids.run(record.id, last)):",
        "elif False:",
        tests.test_to_start_over_twice_is_to_start_over_once,
    ),
    "what runs is not removed": Ablation(
        "    elif runs:\n",
        "    elif False:\n",
        partial(tests.test_nobody_starts_over_while_what_it_made_runs, tests.p.PromiseCreate("t:6", "f")),
        "authority_removed_by_who_starts_over",
    ),
    "what is over is removed": Ablation(
        "if one.function and not one.timer and not is_over(one, now)]",
        "if one.function and not one.timer and one.state is State.PENDING]",
        partial(tests.test_nobody_starts_over_while_what_it_made_runs, tests.p.PromiseCreate("t:6", "f")),
    ),
    "who waits for what goes is resumed": Ablation(
        "_resume(None if callback.awaiter == by.id else view.task(callback.awaiter))",
        "_resume(None)",
        tests.test_who_waits_for_what_goes_is_told,
    ),
    "who starts over is not resumed by it": Ablation(
        "_resume(None if callback.awaiter == by.id else view.task(callback.awaiter))",
        "_resume(view.task(callback.awaiter))",
        tests.test_who_waits_for_what_goes_is_told,
    ),
    "callbacks go with what they wait for": Ablation(
        "moves += [Move(callback, None), *resumed]",
        "moves += resumed",
        tests.test_who_waits_for_what_goes_is_told,
        "authority_settlement_is_whole",
    ),
    "who listens to what goes is told": Ablation(
        "moves.append(Move(listener, ListenerRecord(record.id, listener.process, True)))",
        "pass",
        tests.test_who_waits_for_what_goes_is_told,
        "authority_settlement_is_whole",
    ),
    "who listens to what goes is rung": Ablation(
        "messages.append(p.Settled(listener.process, record.id))",
        "pass",
        tests.test_who_waits_for_what_goes_is_told,
    ),
    "who starts over is not told": Ablation(
        "if listener.process == by.process:",
        "if False:",
        tests.test_who_waits_for_what_goes_is_told,
    ),
    "its tasks are sent again": Ablation(
        "for task in view.held(process.id):", "for task in ():", tests.test_a_dead_process_has_its_tasks_sent_again
    ),
    "its listeners are forgotten": Ablation(
        "moves += [Move(listener, None) for listener in view.listening(process.id)]",
        "pass",
        tests.test_a_dead_process_has_its_tasks_sent_again,
    ),
}


def _patched(ablation: Ablation) -> ModuleType:
    """The machine without that guard, which stands in machine.py itself or in one of its parts."""
    assert "".join(LAW.values()).count(ablation.guard) == 1, f"not once in the law: {ablation.guard!r}"
    made = {name.rpartition(".")[2]: ModuleType(name) for name in LAW}
    for (name, text), module in zip(LAW.items(), made.values(), strict=True):
        exec(compile(text.replace(ablation.guard, ablation.without), f"ablated {name}", "exec"), module.__dict__)
        vars(module).update({part: other for part, other in made.items() if part in vars(module)})
    return made["machine"]


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
