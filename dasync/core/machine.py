"""The law: `step(now, command, view) -> Transition`. Every state change of the system is in this file.

Two rules hold the file together. **All that can change a record is here**: stores keep rows and decide
nothing. **The file does not know who asks or where rows are kept**: `now` and a view of the rows go in; the
reply, the moves of records and the messages come out. A step does not read its own writes.

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

from dasync.core import guards
from dasync.core import protocol as p
from dasync.core.model import (
    CallbackRecord,
    ListenerRecord,
    ProcessRecord,
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
            return _touch(now, view, command.id)
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
            return _join(now, command, view)
        case p.ProcessHeartbeat():
            return _heartbeat(now, command, view)
        case p.ProcessLeave():
            return _gone(command.process, view)
        case p.Receive():
            return _receive(command, view)
        case p.Tick():
            more = len(view.due(now, 1)) + len(view.expired(now))
            return Transition(Reply(Status.RUN_AGAIN if more else Status.OK))
        case _:
            assert_never(command)


def due(now: int, view: View) -> list[p.Due]:
    """What has come due by `now`; a tick lets each of these happen, one after the other, then steps itself."""
    leases: list[p.Due] = [p.LeaseDue(process.id) for process in view.expired(now)]
    return leases + [p.PromiseDue(promise.id) for promise in view.due(now, MAX_DUE)]


def happen(now: int, event: p.Due, view: View) -> Transition:
    """Decide one due thing at `now`."""
    match event:
        case p.PromiseDue():
            return _touch(now, view, event.id)
        case p.LeaseDue():
            process = view.process(event.process)
            if process is None or now < process.expires_at:
                return Transition(Reply(Status.OK))
            return _gone(event.process, view)
        case _:
            assert_never(event)


def as_of(record: PromiseRecord, now: int) -> PromiseRecord:
    """The promise as anyone sees it at `now`: past its deadline it shows the deadline's verdict."""
    if not guards.is_due(record, now):
        return record
    return _settled(record, State.RESOLVED if record.timer else State.TIMEDOUT, record.timeout_at or 0, None)


# -- promises ----------------------------------------------------------------------------------------------


def _settled(record: PromiseRecord, state: State, at: int, value: bytes | None) -> PromiseRecord:
    return PromiseRecord(*record[:10], state, at, value)


def _settlement(
    before: PromiseRecord, after: PromiseRecord, view: View, ending: frozenset[str] = frozenset()
) -> tuple[list[Move], list[p.Message]]:
    """All that follows from one promise being settled, in one transition: its task, its awaiters, its listeners.

    Tasks in `ending` end in this transition too, so nothing resumes them.
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
    for listener in view.listeners(before.id):
        moves.append(Move(listener, listener._replace(fired=True)))
        messages.append(p.Settled(listener.process, before.id))
    return moves, messages


def _news_for_its_runner(
    record: PromiseRecord, view: View, by: str | None
) -> tuple[tuple[Move, ...], tuple[p.Message, ...]]:
    """The process that runs a promise's code is told when somebody else, not `by` itself, settles it."""
    task = view.task(record.id if record.target is not None else record.creator or "")
    runner = None if task is None else task.process
    if runner is None or runner == by:
        return (), ()
    return (Move(None, ListenerRecord(record.id, runner, True)),), (p.Settled(runner, record.id),)


def _touch(now: int, view: View, id: str) -> Transition:
    """The promise as it is now; if its deadline has passed, that is written here."""
    record = view.promise(id)
    if record is None:
        return Transition(Reply(Status.NOT_FOUND, reason=f"there is no promise {id!r}"))
    if not guards.is_due(record, now):
        return Transition(Reply(Status.OK, record))
    after = as_of(record, now)
    moves, messages = _settlement(record, after, view)
    return Transition(Reply(Status.OK, after), tuple(moves), tuple(messages))


def _create(now: int, command: p.PromiseCreate, view: View, *, creator: str | None, latest: int | None) -> Transition:
    """A new promise, by `creator` where a fence covers it, and then never outliving `latest`."""
    if view.promise(command.id) is not None:
        found = _touch(now, view, command.id)
        if not guards.waits(command):
            return found
        # Promise and waiter come into being together or not at all: nothing of the command is stored.
        reason = f"promise {command.id!r} exists, so it was not created with a waiter; register the waiter by itself"
        return found._replace(reply=found.reply._replace(status=Status.CONFLICT, reason=reason))
    refusal = guards.cannot_wait(now, command, view)
    if refusal is not None:
        return Transition(refusal)
    record = _born(now, command, creator, latest)
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


def _born(now: int, command: p.PromiseCreate, creator: str | None, latest: int | None) -> PromiseRecord:
    bounds = (command.timeout_at, None if command.timer else latest)
    deadline = min((at for at in bounds if at is not None), default=None)
    invoked_at = now if command.invoked_at is None else min(now, command.invoked_at)
    record = PromiseRecord(
        command.id, command.function, command.version, command.param, command.target, creator,
        command.timer, deadline, command.tags, invoked_at, State.PENDING, None, None,
    )  # fmt: skip
    if guards.is_due(record, now):
        return as_of(record._replace(created_at=min(invoked_at, deadline or 0)), now)  # born settled, at its deadline
    return record if command.state is State.PENDING else _settled(record, command.state, now, command.value)


def _settle(now: int, command: p.PromiseSettle, view: View, *, by: str | None) -> Transition:
    found = _touch(now, view, command.id)
    record = found.reply.promise
    if record is None or record.state is not State.PENDING:
        return found
    after = _settled(record, command.state, max(now, record.created_at), command.value)
    moves, messages = _settlement(record, after, view)
    told, sent = _news_for_its_runner(record, view, by)
    return Transition(Reply(Status.OK, after), (*moves, *told), (*messages, *sent))


def _cancel(now: int, command: p.PromiseCancel, view: View, *, by: str | None) -> Transition:
    found = _touch(now, view, command.id)
    record = found.reply.promise
    if record is None or record.state is not State.PENDING:
        return found
    ending = [*reversed(guards.made_below(record.id, view)), record]  # the deepest first
    moves: dict[Move, None] = {}  # two of them may resume the same awaiter, once
    messages: dict[p.Message, None] = {}
    after = record
    for before in ending:
        after = as_of(before, now)  # a child's deadline may have come
        if after is before:
            after = _settled(before, State.CANCELED, max(now, before.created_at), command.value)
        settled, sent = _settlement(before, after, view, frozenset(one.id for one in ending))
        told, news = _news_for_its_runner(before, view, by if before is record else None)
        moves |= dict.fromkeys((*settled, *told))
        messages |= dict.fromkeys((*sent, *news))
    return Transition(Reply(Status.OK, after), tuple(moves), tuple(messages))


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
        return found if stored else found._replace(moves=(Move(None, callback),))
    if stored and found.moves:  # its deadline passed just now: the settlement resumes this awaiter already
        return found
    moves, messages = _resume(awaiter)
    return found._replace(moves=found.moves + tuple(moves), messages=found.messages + tuple(messages))


def _listen(now: int, command: p.RegisterListener, view: View) -> Transition:
    found = _touch(now, view, command.promise)
    record = found.reply.promise
    if record is None or record.state is not State.PENDING:
        return found
    if not guards.alive(now, view.process(command.process)):
        return Transition(guards.lease_lost(command.process))
    if any(listener.process == command.process for listener in view.listeners(command.promise)):
        return found
    return found._replace(moves=(Move(None, ListenerRecord(command.promise, command.process, False)),))


# -- tasks -------------------------------------------------------------------------------------------------


def _task(task: TaskRecord, state: TaskState, *, resumed: bool = False) -> TaskRecord:
    """The task in another state, held by nobody."""
    return TaskRecord(*task[:6], state, task.version, None, task.python, resumed)


def _born_task(now: int, command: p.PromiseCreate, state: TaskState) -> TaskRecord:
    return TaskRecord(
        command.id, command.target or "", command.function, command.version, command.seed, now,
        state, 0, None, "", False,
    )  # fmt: skip


def _claimed(task: TaskRecord, process: str, python: str) -> TaskRecord:
    """The task acquired: the one place that raises a version."""
    version = task.version + 1
    return TaskRecord(*task[:6], TaskState.ACQUIRED, version, process, task.python or python, False)


def _holds(now: int, claim: p.Claim, view: View) -> TaskRecord | Reply:
    """The fence: the task if the claim holds at `now`, else the refusal."""
    task = view.task(claim.id)
    if task is None:
        return guards.no_task(claim.id)
    if task.state is not TaskState.ACQUIRED or task.version != claim.version or task.process != claim.process:
        held = f"{task.state.value} at version {task.version}"
        reason = f"task {claim.id!r} is {held}, not held by {claim.process!r} at version {claim.version}"
        return Reply(Status.CONFLICT, task=task, reason=reason)
    if not guards.alive(now, view.process(claim.process)):
        return guards.lease_lost(claim.process)
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
    task = _holds(now, command.claim, view)
    if isinstance(task, Reply):
        return Transition(task)
    own = _touch(now, view, task.id)
    if own.moves or own.reply.promise is None:  # its deadline has passed, which ends the task
        return own._replace(reply=Reply(Status.CONFLICT, reason=f"task {task.id!r} has passed its deadline"))
    match command.action:
        case p.PromiseCreate():
            return _create(now, command.action, view, creator=task.id, latest=own.reply.promise.timeout_at)
        case p.PromiseSettle():
            return _settle(now, command.action, view, by=command.claim.process)
        case p.PromiseCancel():
            return _cancel(now, command.action, view, by=command.claim.process)
        case _:
            assert_never(command.action)


def _task_create(now: int, command: p.TaskCreate, view: View) -> Transition:
    process, id = view.process(command.process), command.action.id
    if process is None or not guards.alive(now, process):
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
    acquired, move = _acquired(now, _claimed(task, process.id, command.python), task, promise, view)
    return Transition(found.reply._replace(task=acquired.task, acquired=(acquired,)), (move,))


def _acquired(
    now: int, claimed: TaskRecord, task: TaskRecord, promise: PromiseRecord, view: View
) -> tuple[p.Acquired, Move]:
    children = view.children(task.id) if task.version else ()  # never acquired: it has no children yet
    preload = tuple(as_of(child, now) for child in children)
    return p.Acquired(claimed, promise, preload), Move(task, claimed)


def _acquire(now: int, command: p.TaskAcquire, view: View) -> Transition:
    process = view.process(command.process)
    if process is None or not guards.alive(now, process):
        return Transition(guards.lease_lost(command.process))
    strange = [target for target in command.targets if not guards.serves(process, target)]
    if strange:
        return Transition(Reply(Status.UNPROCESSABLE, reason=f"{process.id!r} does not serve {strange[0]!r}"))
    taken: list[p.Acquired] = []
    moves: list[Move] = []
    for task in view.acquirable(command.targets, command.functions, command.limit):
        promise = view.promise(task.id)
        if promise is not None and not guards.is_due(promise, now):  # a due one is left to the tick
            acquired, move = _acquired(now, _claimed(task, process.id, command.python), task, promise, view)
            taken.append(acquired)
            moves.append(move)
    return Transition(Reply(Status.OK, acquired=tuple(taken)), tuple(moves))


def _fulfill(now: int, command: p.TaskFulfill, view: View) -> Transition:
    task = _holds(now, command.claim, view)
    if isinstance(task, Reply):
        if guards.repeats(task, command.claim, TaskState.FULFILLED):
            return _touch(now, view, command.claim.id)  # the outcome tells the asker whether it was its own
        return Transition(task)
    return _settle(now, p.PromiseSettle(task.id, command.state, command.value), view, by=command.claim.process)


def _suspend(now: int, command: p.TaskSuspend, view: View) -> Transition:
    task = _holds(now, command.claim, view)
    if isinstance(task, Reply):
        repeated = guards.repeats(task, command.claim, TaskState.SUSPENDED)
        return Transition(Reply(Status.OK, task=task.task) if repeated else task)
    awaited = [view.promise(id) for id in command.awaited]
    missing = [id for id, record in zip(command.awaited, awaited, strict=True) if record is None]
    if missing:
        return Transition(Reply(Status.UNPROCESSABLE, reason=f"there is no promise {missing[0]!r} to await"))
    again = task.resumed or any(
        record.state is not State.PENDING or guards.is_due(record, now) for record in awaited if record is not None
    )
    if again:
        seen = task._replace(resumed=False)
        return Transition(Reply(Status.RUN_AGAIN, task=seen), (Move(task, seen),) if task.resumed else ())
    callbacks = [CallbackRecord(id, task.id) for id in dict.fromkeys(command.awaited)]
    moves = tuple(Move(None, callback) for callback in callbacks if callback not in view.callbacks(callback.awaited))
    suspended = _task(task, TaskState.SUSPENDED)
    return Transition(Reply(Status.OK, task=suspended), (Move(task, suspended), *moves))


def _release(now: int, command: p.TaskRelease, view: View) -> Transition:
    task = _holds(now, command.claim, view)
    return Transition(task) if isinstance(task, Reply) else _sent_again(task)


def _sent_again(task: TaskRecord) -> Transition:
    pending = _task(task, TaskState.PENDING)
    return Transition(Reply(Status.OK, task=pending), (Move(task, pending),), (p.Execute(task.target, task.id),))


def _halt(command: p.TaskHalt, view: View) -> Transition:
    task = view.task(command.id)
    if task is None:
        return Transition(guards.no_task(command.id))
    if task.state is TaskState.FULFILLED:
        return Transition(Reply(Status.CONFLICT, task=task, reason=f"task {command.id!r} is fulfilled"))
    halted = _task(task, TaskState.HALTED)
    return Transition(Reply(Status.OK, task=halted), () if halted == task else (Move(task, halted),))


def _continue(command: p.TaskContinue, view: View) -> Transition:
    task = view.task(command.id)
    if task is None:
        return Transition(guards.no_task(command.id))
    if task.state is not TaskState.HALTED:
        return Transition(Reply(Status.CONFLICT, task=task, reason=f"task {command.id!r} is {task.state.value}"))
    return _sent_again(task)


# -- processes ---------------------------------------------------------------------------------------------


def _join(now: int, command: p.ProcessJoin, view: View) -> Transition:
    if view.process(command.process) is not None:
        return Transition(Reply(Status.CONFLICT, reason=f"process id {command.process!r} is in use"))
    c = command
    record = ProcessRecord(c.process, c.name, c.group, c.host, c.address, c.lease_ms, now + c.lease_ms)
    return Transition(Reply(Status.CREATED), (Move(None, record),))


def _heartbeat(now: int, command: p.ProcessHeartbeat, view: View) -> Transition:
    process = view.process(command.process)
    if process is None or not guards.alive(now, process):
        return Transition(guards.lease_lost(command.process))
    renewed = process._replace(expires_at=max(process.expires_at, now + process.lease_ms))
    held = {task.id: task.version for task in view.held(process.id)}
    return Transition(Reply(Status.OK, held=held), () if renewed == process else (Move(process, renewed),))


def _gone(id: str, view: View) -> Transition:
    """A process is no more: its tasks are sent again, what it listened to is forgotten."""
    process = view.process(id)
    if process is None:
        return Transition(Reply(Status.OK))
    moves: list[Move] = [Move(process, None)]
    messages: list[p.Message] = []
    for task in view.held(id):
        sent = _sent_again(task)
        moves += sent.moves
        messages += sent.messages
    moves += [Move(listener, None) for listener in view.listening(id)]
    return Transition(Reply(Status.OK), tuple(moves), tuple(messages))


def _receive(command: p.Receive, view: View) -> Transition:
    known = set(command.acknowledged)
    fired = [listener for listener in view.listening(command.process) if listener.fired]
    moves = tuple(Move(listener, None) for listener in fired if listener.promise in known)
    news = [view.promise(listener.promise) for listener in fired if listener.promise not in known]
    return Transition(Reply(Status.OK, settled=tuple(record for record in news if record is not None)), moves)
