"""The law: `step(now, command, view) -> Transition`. Every state change of the system is decided in this file.

Two rules hold the file together. **All that can change a record is decided here**, with what processes say of
themselves set apart in `presence.py`, what a promise's record then is in `lifetime.py`, whose task is next in
`dispatch.py`: stores keep rows and decide nothing. **The file does not know who asks or where rows are kept**: `now`
and a view of the rows go in; the reply, the moves of records and the messages come out. A step does not read its own
writes.

A promise:  pending -> resolved | rejected | canceled | timed out, once.
A task:

    |            | acquire  | suspend   | resume  | release, lease ends | halt   | continue | promise settles |
    |------------|----------|-----------|---------|---------------------|--------|----------|-----------------|
    | pending    | acquired |           | +resumed|                     | halted |          | fulfilled       |
    | acquired   |          | suspended | +resumed| pending             | halted |          | fulfilled       |
    | suspended  |          |           | pending |                     | halted |          | fulfilled       |
    | halted     |          |           |         |                     | halted | pending  | fulfilled       |
    | fulfilled  |          |           |         |                     |        |          |                 |

Questions that servers of this field got wrong, and the answers here (each named test is in
tests/test_machine.py):

- Deadlines of all promises are armed, untargeted ones too: test_every_deadline_is_armed.
- The awaiter of an untargeted promise that times out is woken: test_timeout_wakes_awaiter_of_untargeted_promise.
- No task is dispatched for a promise that is settled already: test_no_dispatch_for_settled_promise.
- A resume whose awaiter is settled, halted or gone changes nothing: test_resume_of_dead_awaiter_changes_nothing.
- A read past a deadline shows the deadline's verdict: test_read_past_deadline_shows_verdict.
- Settling after the deadline and before the tick answers with the verdict: test_settle_past_deadline_times_out.
- There is no delay to enforce: a timer is a promise, and nothing is dispatched late.
- There are no schedules here, so no occurrence can be missed.
- A callback on a promise that settled in the same batch resumes at once: test_callback_on_promise_settled_in_batch.
- A duplicate suspend is idempotent: test_duplicate_suspend_is_idempotent.
- There is no debug surface: time goes in as an argument.
"""

from __future__ import annotations

from typing import assert_never

from dasync.core import dispatch, guards, ids, lifetime, presence
from dasync.core import protocol as p
from dasync.core.model import (
    CallbackRecord,
    ListenerRecord,
    PromiseRecord,
    State,
    TaskRecord,
    TaskState,
)
from dasync.core.protocol import Reply, Status
from dasync.core.transition import Move, Transition, View

MAX_DUE = 1_000  # due things in one tick: bounds one transaction


def step(now: int, command: p.Command, view: View) -> Transition:
    """Decide one command at `now` (ms) over `view`. Pure; the caller applies the moves."""
    match command:
        case p.TaskFence():
            return _fence(now, command, view)
        case p.PromiseCreate():
            return _create(now, command, view, creator=None, latest=None)
        case p.PromiseSettle():
            return _settle(now, command, view, by=None)
        case p.PromiseCancel():
            return _cancel(now, command, view, by=None)
        case p.PromiseGet():
            return _get(now, command, view)
        case p.RegisterListener():
            return _listen(now, command, view)
        case p.RegisterCallback():
            return _call_back(now, command, view)
        case p.TaskCreate():
            return _task_create(now, command, view)
        case p.TaskAcquire():
            return _acquire(now, command, view)
        case p.TaskFulfill():
            return _fulfill(now, command, view)
        case p.TaskSuspend():
            return _suspend(now, command, view)
        case p.TaskRelease():
            return _release(now, command, view)
        case p.TaskGet():
            task = view.task(command.id)
            return Transition(Reply(Status.OK, task=task) if task else guards.no_task(command.id))
        case p.TaskHalt():
            return _halt(command, view)
        case p.TaskContinue():
            return _continue(command, view)
        case p.ProcessJoin():
            return presence.join(now, command, view)
        case p.ProcessHeartbeat():
            return presence.heartbeat(now, command, view)
        case p.ProcessLeave():
            return _leave(command, view)
        case p.Receive():
            return presence.receive(command, view)
        case p.Tick():
            return Transition(Reply(Status.RUN_AGAIN if view.due(now, 1) else Status.OK))
        case _:
            assert_never(command)


def due(now: int, view: View) -> list[p.PromiseDue]:
    """What has come due by `now`; a tick lets each of these happen, one after the other, then steps itself."""
    return [p.PromiseDue(promise.id) for promise in view.due(now, MAX_DUE)]


def happen(now: int, event: p.PromiseDue, view: View) -> Transition:
    """Decide one due thing at `now`."""
    return _touch(now, view, event.id)


# -- promises ----------------------------------------------------------------------------------------------


def _settlement(
    before: PromiseRecord, after: PromiseRecord, view: View, by: str | None, ending: frozenset[str] = frozenset()
) -> tuple[list[Move], list[p.Message]]:
    """All that follows from one promise being settled, in one transition: its task, its awaiters, its listeners.

    Who runs the code that made it, or that it stands for, is told as well, but for the task `by` itself: an execution
    takes outcomes in the order of their commits, so it must not learn of one after a later one. Tasks in `ending` end
    in this transition too, so nothing resumes them.
    """
    moves = [Move(before, after)]
    messages: list[p.Message] = []
    if before.target is not None and (task := view.task(before.id)) is not None:
        moves.append(Move(task, _task(task, TaskState.FULFILLED)))
    for callback in view.callbacks(before.id):
        moves.append(Move(callback, None))
        resumed, sent = _resume(None if callback.awaiter in ending else view.task(callback.awaiter))
        moves += resumed
        messages += sent
    told: dict[str, ListenerRecord | None] = {listener.process: listener for listener in view.listeners(before.id)}
    for id in (before.id if before.target is not None else None, before.creator):
        task = view.task(id) if id not in (None, by) else None
        if task is not None and task.process is not None:
            told.setdefault(task.process, None)
    for process, listener in told.items():
        moves.append(Move(listener, ListenerRecord(before.id, process, True)))
        messages.append(p.Settled(process, before.id))
    return moves, messages


def _touch(now: int, view: View, id: str, by: str | None = None) -> Transition:
    """The promise as it is now; if its deadline has passed, that is written here."""
    record = view.promise(id)
    if record is None:
        return Transition(Reply(Status.NOT_FOUND, reason=f"there is no promise {id!r}"))
    if not guards.is_due(record, now):
        return Transition(Reply(Status.OK, record))
    after = lifetime.as_of(record, now, view.turn)
    moves, messages = _settlement(record, after, view, by)
    return Transition(Reply(Status.OK, after), tuple(moves), tuple(messages))


def _get(now: int, command: p.PromiseGet, view: View) -> Transition:
    held = None if command.claim is None else _holds(command.claim, view)
    return _touch(now, view, command.id, held.id if isinstance(held, TaskRecord) else None)


def _create(now: int, command: p.PromiseCreate, view: View, *, creator: str | None, latest: int | None) -> Transition:
    """A new promise, by `creator` where a fence covers it, and then never outliving `latest`."""
    if view.promise(command.id) is not None:
        found = _touch(now, view, command.id)
        found = found._replace(reply=found.reply._replace(task=view.task(command.id)))  # which may be halted
        if not guards.waits(command):
            return found
        # Promise and waiter come into being together or not at all: nothing of the command is stored.
        reason = f"promise {command.id!r} exists, so it was not created with a waiter; register the waiter by itself"
        return found._replace(reply=found.reply._replace(status=Status.CONFLICT, reason=reason))
    if (refusal := guards.cannot_wait(command, view)) is not None:
        return Transition(refusal)
    record = lifetime.born(now, command, creator, latest, view.turn)
    moves: list[Move] = [Move(None, record)]
    messages: list[p.Message] = []
    pending = record.state is State.PENDING
    if command.target is not None:
        moves.append(Move(None, _born_task(now, command, TaskState.PENDING if pending else TaskState.FULFILLED)))
        if pending:
            messages.append(p.Execute(command.target, command.id))
    if pending and command.awaiter is not None:
        moves.append(Move(None, CallbackRecord(command.id, command.awaiter)))
    if pending and command.listener is not None:
        moves.append(Move(None, ListenerRecord(command.id, command.listener, False)))
    return Transition(Reply(Status.CREATED, record), tuple(moves), tuple(messages))


def _settle(now: int, command: p.PromiseSettle, view: View, *, by: str | None) -> Transition:
    found = _touch(now, view, command.id, by)
    record = found.reply.promise
    if record is None or record.state is not State.PENDING:
        return found
    after = lifetime.settled(record, command.state, max(now, record.created_at), command.value, view.turn)
    moves, messages = _settlement(record, after, view, by)
    return Transition(Reply(Status.OK, after), tuple(moves), tuple(messages))


def _cancel(now: int, command: p.PromiseCancel, view: View, *, by: str | None) -> Transition:
    found = _touch(now, view, command.id, by)
    record = found.reply.promise
    if record is None or record.state is not State.PENDING:
        return found
    ending = [*reversed(guards.made_below(record.id, view)), record]  # the deepest first
    moves: dict[Move, None] = {}  # two of them may resume the same awaiter, once
    messages: dict[p.Message, None] = {}
    after = record
    for before in ending:
        after = lifetime.as_of(before, now, view.turn)  # a child's deadline may have come
        if after is before:
            after = lifetime.settled(before, State.CANCELED, max(now, before.created_at), command.value, view.turn)
        asks = by if before is record else None  # who asks hears of that one by its answer, and may run others below
        settled, sent = _settlement(before, after, view, asks, frozenset(one.id for one in ending))
        moves |= dict.fromkeys(settled)
        messages |= dict.fromkeys(sent)
    return Transition(Reply(Status.OK, after), tuple(moves), tuple(messages))


def _again(now: int, command: p.PromiseAgain, view: View, task: TaskRecord) -> Transition:
    """What the last run of an execution has made goes, what keeps the arguments of the next one comes."""
    if (kept := view.promise(command.id)) is not None:  # it was said before, and the answer was lost
        return Transition(Reply(Status.OK, kept))
    found = _touch(now, view, ids.parent_of(command.id) or "")
    record = found.reply.promise
    if record is None or record.state is not State.PENDING:
        return found
    made = guards.made_by_last_run(command, task, view)
    if (refusal := guards.cannot_start_over(now, command, record, task, made)) is not None:
        return Transition(refusal)
    number = ids.number_of_run(command.id)
    keeps = p.PromiseCreate(command.id, p.AGAIN, number, command.param, state=State.RESOLVED)
    kept = lifetime.born(now, keeps, task.id, record.timeout_at, view.turn)
    moves: dict[Move, None] = {Move(None, kept): None}
    messages: dict[p.Message, None] = {}
    for one in made:
        gone, sent = _removal(one, view, task)
        moves |= dict.fromkeys(gone)
        messages |= dict.fromkeys(sent)
    return Transition(Reply(Status.CREATED, kept), tuple(moves), tuple(messages))


def _removal(record: PromiseRecord, view: View, by: TaskRecord) -> tuple[list[Move], list[p.Message]]:
    """One promise goes, with its task. Who still waits for it, other than `by` itself, is told to look: it is gone."""
    moves, messages = [Move(record, None)], list[p.Message]()
    if record.target is not None and (task := view.task(record.id)) is not None:
        moves.append(Move(task, None))
    for callback in view.callbacks(record.id):
        resumed, sent = _resume(None if callback.awaiter == by.id else view.task(callback.awaiter))
        moves += [Move(callback, None), *resumed]
        messages += sent
    for listener in view.listeners(record.id):
        if listener.process == by.process:
            moves.append(Move(listener, None))
        elif not listener.fired:
            moves.append(Move(listener, ListenerRecord(record.id, listener.process, True)))
            messages.append(p.Settled(listener.process, record.id))
    return moves, messages


def _call_back(now: int, command: p.RegisterCallback, view: View) -> Transition:
    found = _touch(now, view, command.awaited)
    awaited, awaiter = found.reply.promise, view.task(command.awaiter)
    if awaited is None:
        return found
    if awaiter is None:
        return Transition(Reply(Status.UNPROCESSABLE, reason=f"awaiter {command.awaiter!r} is not a task"))
    if awaiter.state is TaskState.FULFILLED:
        return found
    callback = CallbackRecord(command.awaited, command.awaiter)
    stored = callback in view.callbacks(command.awaited)
    if awaited.state is State.PENDING:
        return found if stored else Transition(Reply(Status.CREATED, awaited), (Move(None, callback),))
    if stored and found.moves:  # its deadline passed just now: the settlement resumes this awaiter already
        return found
    moves, messages = _resume(awaiter)
    return found._replace(moves=found.moves + tuple(moves), messages=found.messages + tuple(messages))


def _listen(now: int, command: p.RegisterListener, view: View) -> Transition:
    found = _touch(now, view, command.promise)
    record = found.reply.promise
    if record is None or record.state is not State.PENDING:
        return found
    if view.process(command.process) is None:
        return Transition(guards.lease_lost(command.process))
    if any(listener.process == command.process for listener in view.listeners(command.promise)):
        return found
    return found._replace(moves=(Move(None, ListenerRecord(command.promise, command.process, False)),))


# -- tasks -------------------------------------------------------------------------------------------------


def _task(task: TaskRecord, state: TaskState, *, resumed: bool = False) -> TaskRecord:
    """The task in another state, held by nobody."""
    return TaskRecord(*task[:6], state, task.version, None, task.python, resumed, "", *task[12:])


def _born_task(now: int, command: p.PromiseCreate, state: TaskState) -> TaskRecord:
    return TaskRecord(
        command.id, command.target or "", command.function, command.version, command.seed, now,
        state, 0, None, "", False,
    )  # fmt: skip


def _claimed(task: TaskRecord, process: str, python: str) -> TaskRecord:
    """The task acquired: the one place that raises a version."""
    version = task.version + 1
    held = (TaskState.ACQUIRED, version, process, task.python or python, False, "")
    return TaskRecord(*task[:6], *held, *task[12:])


def _holds(claim: p.Claim, view: View) -> TaskRecord | Reply:
    """The fence: the task if the claim holds, else the refusal. Of a process that is gone no claim holds any more."""
    task = view.task(claim.id)
    if task is None:
        return guards.no_task(claim.id)
    if task.state is not TaskState.ACQUIRED or task.version != claim.version or task.process != claim.process:
        return guards.not_held(task, claim)
    return task


def _resume(awaiter: TaskRecord | None) -> tuple[list[Move], list[p.Message]]:
    """An awaited promise has settled: what becomes of the task that waits for it."""
    if awaiter is None:
        return [], []
    if awaiter.state is TaskState.SUSPENDED:
        return [Move(awaiter, _task(awaiter, TaskState.PENDING))], [p.Execute(awaiter.target, awaiter.id)]
    if awaiter.state in (TaskState.PENDING, TaskState.ACQUIRED) and not awaiter.resumed:
        return [Move(awaiter, awaiter._replace(resumed=True))], []
    return [], []


def _fence(now: int, command: p.TaskFence, view: View) -> Transition:
    task = _holds(command.claim, view)
    if isinstance(task, Reply):
        return Transition(task)
    own = view.promise(task.id)
    if own is None or guards.is_due(own, now):  # its deadline has passed, which ends the task
        refusal = Reply(Status.CONFLICT, reason=f"task {task.id!r} has passed its deadline")
        return _touch(now, view, task.id)._replace(reply=refusal)
    match command.action:
        case p.PromiseCreate():
            return _create(now, command.action, view, creator=task.id, latest=own.timeout_at)
        case p.PromiseSettle():
            return _settle(now, command.action, view, by=task.id)
        case p.PromiseCancel():
            return _cancel(now, command.action, view, by=task.id)
        case p.PromiseAgain():
            return _again(now, command.action, view, task)
        case _:
            assert_never(command.action)


def _task_create(now: int, command: p.TaskCreate, view: View) -> Transition:
    process, id = view.process(command.process), command.action.id
    if process is None:
        return Transition(guards.lease_lost(command.process))
    if view.promise(id) is None or guards.waits(command.action):
        born = _create(now, command.action, view, creator=None, latest=None)
        task = next((move.after for move in born.moves if isinstance(move.after, TaskRecord)), None)
        if task is None or task.state is not TaskState.PENDING:
            return born._replace(reply=born.reply._replace(task=task))
        claimed = _claimed(task, process.id, command.python)
        moves = tuple(Move(None, claimed) if move.after is task else move for move in born.moves)
        return Transition(born.reply._replace(task=claimed), moves)
    found, task = _touch(now, view, id), view.task(id)
    if task is None:
        reason = f"promise {id!r} has no target, so it has no task"
        return found._replace(reply=Reply(Status.UNPROCESSABLE, found.reply.promise, reason=reason))
    if found.moves or task.state is TaskState.FULFILLED:
        return found
    promise = found.reply.promise
    if promise is None or task.state is not TaskState.PENDING or not guards.serves(process, task.target):
        reason = f"task {id!r} is {task.state.value} for {task.target!r}"
        return Transition(Reply(Status.CONFLICT, promise, task, reason=reason))
    acquired, move = _acquired(_claimed(task, process.id, command.python), task, promise, view)
    return Transition(found.reply._replace(task=acquired.task, acquired=(acquired,)), (move,))


def _acquired(claimed: TaskRecord, task: TaskRecord, promise: PromiseRecord, view: View) -> tuple[p.Acquired, Move]:
    # Without a version it has no children yet. They are told as written: without a turn nobody has taken a verdict.
    preload = tuple(view.children(task.id)) if task.version else ()
    return p.Acquired(claimed, promise, preload), Move(task, claimed)


def _acquire(now: int, command: p.TaskAcquire, view: View) -> Transition:
    process = view.process(command.process)
    if process is None:
        return Transition(guards.lease_lost(command.process))
    if strange := [target for target in command.targets if not guards.serves(process, target)]:
        return Transition(Reply(Status.UNPROCESSABLE, reason=f"{process.id!r} does not serve {strange[0]!r}"))
    taken: list[p.Acquired] = []
    moves: list[Move] = []
    for task in dispatch.in_turn(command, view):
        promise = view.promise(task.id)
        if promise is not None and not guards.is_due(promise, now):  # a due one is left to the tick
            acquired, move = _acquired(_claimed(task, process.id, command.python), task, promise, view)
            taken.append(acquired)
            moves.append(move)
    return Transition(Reply(Status.OK, acquired=tuple(taken)), tuple(moves))


def _fulfill(now: int, command: p.TaskFulfill, view: View) -> Transition:
    task = _holds(command.claim, view)
    if isinstance(task, Reply):
        if guards.repeats(task, command.claim, TaskState.FULFILLED):
            return _touch(now, view, command.claim.id)  # the outcome tells the asker whether it was its own
        return Transition(task)
    return _settle(now, p.PromiseSettle(task.id, command.state, command.value), view, by=task.id)


def _suspend(now: int, command: p.TaskSuspend, view: View) -> Transition:
    task = _holds(command.claim, view)
    if isinstance(task, Reply):
        repeated = guards.repeats(task, command.claim, TaskState.SUSPENDED)
        return Transition(Reply(Status.OK, task=task.task) if repeated else task)
    awaited = {id: view.promise(id) for id in command.awaited}
    if missing := [id for id, record in awaited.items() if record is None]:
        return Transition(Reply(Status.UNPROCESSABLE, reason=f"there is no promise {missing[0]!r} to await"))
    if task.resumed or any(guards.is_over(record, now) for record in awaited.values() if record is not None):
        seen = task._replace(resumed=False)
        return Transition(Reply(Status.RUN_AGAIN, task=seen), (Move(task, seen),) if task.resumed else ())
    callbacks = [CallbackRecord(id, task.id) for id in awaited]
    moves = tuple(Move(None, callback) for callback in callbacks if callback not in view.callbacks(callback.awaited))
    suspended = _task(task, TaskState.SUSPENDED)
    return Transition(Reply(Status.OK, task=suspended), (Move(task, suspended), *moves))


def _release(now: int, command: p.TaskRelease, view: View) -> Transition:
    task = _holds(command.claim, view)
    return Transition(task) if isinstance(task, Reply) else _sent_again(task)


def _sent_again(task: TaskRecord, was: TaskRecord | None = None) -> Transition:
    pending = _task(task, TaskState.PENDING)
    return Transition(Reply(Status.OK, task=pending), (Move(was or task, pending),), (p.Execute(task.target, task.id),))


def _halt(command: p.TaskHalt, view: View) -> Transition:
    task = view.task(command.id)
    if task is None:
        return Transition(guards.no_task(command.id))
    if task.state is TaskState.FULFILLED:
        return Transition(Reply(Status.CONFLICT, task=task, reason=f"task {command.id!r} is fulfilled"))
    halted = task if task.state is TaskState.HALTED else _task(task, TaskState.HALTED)._replace(reason=command.reason)
    return Transition(Reply(Status.OK, task=halted), () if halted is task else (Move(task, halted),))


def _continue(command: p.TaskContinue, view: View) -> Transition:
    task = view.task(command.id)
    if task is None:
        return Transition(guards.no_task(command.id))
    if task.state is not TaskState.HALTED:
        return Transition(Reply(Status.CONFLICT, task=task, reason=f"task {command.id!r} is {task.state.value}"))
    return _sent_again(task._replace(crashes=0, crashed_at=0), task)


# -- processes ---------------------------------------------------------------------------------------------


def _leave(command: p.ProcessLeave, view: View) -> Transition:
    """A process is no more: its tasks are sent again, what it listened to is forgotten."""
    process = view.process(command.process)
    if process is None or command.renewed_at not in (None, process.renewed_at):
        return Transition(Reply(Status.OK))
    moves: list[Move] = [Move(process, None)]
    messages: list[p.Message] = []
    poisoned: list[TaskRecord] = []
    for task in view.held(process.id):
        sent = _crashed(task, command, view) if ids.mark(task.id) in command.ran else _sent_again(task)
        poisoned += [after for after in (sent.reply.task,) if after is not None and after.state is TaskState.HALTED]
        moves += sent.moves
        messages += sent.messages
    moves += [Move(listener, None) for listener in view.listening(process.id)]
    return Transition(Reply(Status.OK, poisoned=tuple(poisoned)), tuple(moves), tuple(messages))


def _crashed(task: TaskRecord, command: p.ProcessLeave, view: View) -> Transition:
    """A process has ended while it ran this very task, which is not sent round for ever."""
    latest = view.latest_turn(task.id)
    crashes = task.crashes + 1 if latest == task.crashed_at else 1
    if crashes < command.max_crashes:
        return _sent_again(task._replace(crashes=crashes, crashed_at=latest), task)
    reason = p.POISONED.format(crashes=crashes, process=command.process)
    poisoned = _task(task, TaskState.HALTED)._replace(reason=reason, crashes=crashes, crashed_at=latest)
    return Transition(Reply(Status.OK, task=poisoned), (Move(task, poisoned),))
