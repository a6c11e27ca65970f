"""One promise and its task, as the tables of the public protocol have them: what each operation may do and answer.

`apply(state, operation)` gives everything that may follow; `known.py` has what is known of a promise, and what an
answer that was heard leaves of it. Written from the protocol's tables and the docstrings of `core/protocol.py`; nothing
is shared with `core/machine.py`, which would then be checked against itself. It knows one promise and nothing of any
other: an operation that names several is applied to each by itself. What only another promise could tell is left open,
as `linear.py` says.

A clock is a window (`earliest_ms`..`latest_ms`), a time that follows from it is a span, narrowed when it is seen.
"""

# Where the public protocol (dialects B and C) and dasync differ, and dasync's answer is what is modeled:
#
# |                                        | protocol                 | dasync                                     |
# |----------------------------------------|--------------------------|--------------------------------------------|
# | create, task.create of what is new     | 200                      | 201                                        |
# | create with a waiter, promise exists   | no such command          | 409 with the record; no waiter is stored   |
# | create with a waiter that cannot wait  | no such command          | 422; nothing is stored                     |
# | create born settled by its request     | no such command          | 201; past its deadline the deadline wins   |
# | register_callback, newly stored        | 200                      | 201                                        |
# | register_callback, awaiter is settled  | not said                 | 200; nothing is stored                     |
# | register_callback, other origin        | 400                      | there are no origins                       |
# | register_listener, bad address         | 400                      | 409 where the process has no lease         |
# | task.create, process without lease     | processes have none      | 409                                        |
# | acquire                                | by id: 404, 409          | by target and function: 200 with any       |
# | fence past the task's own deadline     | not said                 | 409, and the deadline's verdict is written |
# | suspend again, the claim suspended     | 409                      | 200                                        |
# | fulfill again, the claim fulfilled     | 409                      | 200 with the record                        |
# | halt of what is fulfilled              | not said                 | 409                                        |
# | rejected_canceled, rejected_timedout   | states                   | canceled, timedout                         |
# | cancel, again, leave, tick             | no such commands         | as `core/protocol.py` says                 |
# | settle as pending, await itself, ...   | 400                      | the command cannot be made                 |

from __future__ import annotations

from collections.abc import Callable

from dasync.core import ids
from dasync.core import protocol as p
from dasync.core.model import State, TaskState
from dasync.core.protocol import Status
from dasync.testing.history import Operation
from dasync.testing.known import ANY, AT_DEADLINE, FOREVER, Answer, Birth, Outcome, Promise, Span, Task, Where

_PENDING, _HELD, _OVER = State.PENDING, TaskState.ACQUIRED, TaskState.FULFILLED
_OK, _NONE, _TAKEN, _REFUSED = (Status.OK,), (Status.NOT_FOUND,), (Status.CONFLICT,), (Status.UNPROCESSABLE,)
_NEW, _RUN_AGAIN = (Status.CREATED,), (Status.RUN_AGAIN,)
_EVERY = tuple(Status)
_SHOWN, _ABSENT = Answer(_OK, True), Answer(_NONE)
_ELSEWHERE = Answer(_EVERY, None, None, Where.OTHER)


def apply(state: Promise, operation: Operation, doubt: bool = False) -> list[Outcome]:
    """All that may follow from `operation` for this promise.

    `doubt`: what other promises decide may have gone the less usual way. A callback's awaiter may be settled already, a
    fence's task may not exist, a suspend may be the repetition of another one.
    """
    return _RULES[type(operation.command)](state, operation, doubt)


# -- what time and settlement do -----------------------------------------------------------------------------


def window(operation: Operation) -> Span:
    """What the clock may have shown."""
    latest = operation.latest_ms
    return operation.earliest_ms, FOREVER - 1 if latest is None else latest


def _touched(state: Promise, operation: Operation) -> list[Promise]:
    """The promise as anyone finds it at that time: past its deadline the deadline has settled it."""
    least, most = window(operation)
    if state.state is not _PENDING or most < state.deadline[0] or state.birth is None:
        return [state]
    low, high = state.deadline
    verdict = State.RESOLVED if state.birth.timer else State.TIMEDOUT
    found = [_settled(state._replace(deadline=(low, min(high, most))), verdict, AT_DEADLINE, None)]
    if least < high:
        found.append(state._replace(deadline=(max(low, least + 1), high)))
    return found


def _settled(state: Promise, verdict: State, at: Span, value: bytes | None) -> Promise:
    task = None if state.task is None else _moved(state.task, _OVER)
    return state._replace(state=verdict, settled=at, value=value, turn=ANY, awaiters=frozenset(), task=task)


def _settled_now(state: Promise, operation: Operation, verdict: State, value: bytes | None) -> Promise:
    least, most = window(operation)
    return _settled(state, verdict, (max(least, state.created[0]), max(most, state.created[1])), value)


def _moved(task: Task, state: TaskState) -> Task:
    """The task in another state, held by nobody."""
    return Task(state, task.version, None, task.python, task.seed)


def _taken(task: Task, process: str, python: str) -> Task:
    return Task(_HELD, task.version + 1, process, task.python or python, task.seed)


def _holds(task: Task, claim: p.Claim) -> bool:
    return task.state is _HELD and task.version == claim.version and task.process == claim.process


def _free(task: Task) -> bool:
    """Whether it can be acquired: one that is suspended may have been resumed."""
    return task.state is TaskState.PENDING or task.state is TaskState.SUSPENDED


# -- promises ------------------------------------------------------------------------------------------------


def _get(state: Promise, operation: Operation, doubt: bool) -> list[Outcome]:
    if state.birth is None:
        return [Outcome(state, _ABSENT)]
    return [Outcome(found, _SHOWN) for found in _touched(state, operation)]


def _create(state: Promise, operation: Operation, doubt: bool) -> list[Outcome]:
    command = operation.command
    assert isinstance(command, p.PromiseCreate)
    return _created(state, operation, command, None)


def _created(state: Promise, operation: Operation, command: p.PromiseCreate, creator: str | None) -> list[Outcome]:
    if state.id != command.id:
        return _awaits(state, command, fenced=creator is not None)
    waits = command.awaiter is not None or command.listener is not None
    if state.birth is not None:
        found, shown = _touched(state, operation), state.task or False
        # A task whose promise is over by now may be shown as it was.
        return [Outcome(one, Answer(_TAKEN if waits else _OK, True, shown if one is state else None)) for one in found]
    born = [Outcome(one, Answer(_NEW, True)) for one in _born(state, operation, command, creator)]
    return [*born, Outcome(state, Answer(_REFUSED))] if waits else born


def _awaits(state: Promise, command: p.PromiseCreate, *, fenced: bool) -> list[Outcome]:
    """The promise is the one whose task is to wait for what is created."""
    live = state.task is not None and state.task.state is not _OVER
    statuses = {*_TAKEN, *_NONE} | ({*_NEW} if live else {*_REFUSED})
    if command.listener is not None or fenced:
        statuses |= {*_REFUSED}  # for another reason
    return [Outcome(state, Answer(tuple(statuses), None, None, Where.OTHER))]


def _born(state: Promise, operation: Operation, command: p.PromiseCreate, creator: str | None) -> list[Promise]:
    """A new promise. One that is created under a fence outlives its creator at no time, whose deadline nobody knows."""
    least, most = window(operation)
    last = FOREVER if command.timeout_at is None else command.timeout_at
    inherits = creator is not None and not command.timer
    deadline = (min(last, least + 1), last) if inherits else (last, last)
    invoked = (least, most) if command.invoked_at is None else _least((least, most), command.invoked_at)
    birth = Birth(command.function, command.version, command.param, command.target, creator, command.timer,
                  command.tags, command.born_after)  # fmt: skip
    task = None if command.target is None else Task(TaskState.PENDING, 0, None, "", command.seed)
    awaiters = frozenset() if command.awaiter is None else frozenset({command.awaiter})
    whole = Promise(state.id, birth, invoked, deadline, _PENDING, ANY, None, ANY, awaiters, task)
    found = []
    if most >= deadline[0]:  # born settled
        created = min(invoked[0], deadline[0]), min(invoked[1], deadline[1])
        verdict = State.RESOLVED if command.timer else State.TIMEDOUT
        found.append(_settled(whole._replace(created=created), verdict, AT_DEADLINE, None))
    if least < deadline[1]:
        pending = command.state is _PENDING
        found.append(whole if pending else _settled(whole, command.state, (least, most), command.value))
    return found


def _least(span: Span, bound: int) -> Span:
    return min(span[0], bound), min(span[1], bound)


def _settle(state: Promise, operation: Operation, doubt: bool) -> list[Outcome]:
    command = operation.command
    assert isinstance(command, p.PromiseSettle)
    return _ended(state, operation, command.state, command.value)


def _ended(state: Promise, operation: Operation, verdict: State, value: bytes | None) -> list[Outcome]:
    if state.birth is None:
        return [Outcome(state, _ABSENT)]
    return [
        Outcome(_settled_now(found, operation, verdict, value) if found.state is _PENDING else found, _SHOWN)
        for found in _touched(state, operation)
    ]


def _cancel(state: Promise, operation: Operation, doubt: bool) -> list[Outcome]:
    command = operation.command
    assert isinstance(command, p.PromiseCancel)
    return _canceled(state, operation, command)


def _canceled(state: Promise, operation: Operation, command: p.PromiseCancel) -> list[Outcome]:
    if state.id == command.id:
        return _ended(state, operation, State.CANCELED, command.value)
    unchanged, birth = Outcome(state, _ELSEWHERE), state.birth
    # Below what is canceled. Whether something between the two stands alone, which spares it, only that one knows.
    if birth is None or birth.creator is None or not (birth.function or birth.timer) or state.state is not _PENDING:
        return [unchanged]
    ended = _ended(state, operation, State.CANCELED, command.value)
    return [unchanged, *(Outcome(one.after, _ELSEWHERE) for one in ended)]


def _call_back(state: Promise, operation: Operation, doubt: bool) -> list[Outcome]:
    command, task = operation.command, state.task
    assert isinstance(command, p.RegisterCallback)
    if state.id == command.awaiter:
        may = _REFUSED if task is None else _OK if task.state is _OVER else (*_OK, *_NEW)
        return [Outcome(state, Answer((*may, *_NONE), None, None, Where.OTHER))]
    if state.birth is None:
        return [Outcome(state, _ABSENT)]
    outcomes = [Outcome(state, Answer(_REFUSED))]
    for found in _touched(state, operation):
        if found.state is not _PENDING or command.awaiter in found.awaiters:
            outcomes.append(Outcome(found, _SHOWN))
            continue
        outcomes.append(Outcome(found._replace(awaiters=found.awaiters | {command.awaiter}), Answer(_NEW, True)))
        if doubt:
            outcomes.append(Outcome(found, _SHOWN))
    return outcomes


def _listen(state: Promise, operation: Operation, doubt: bool) -> list[Outcome]:
    found = _get(state, operation, doubt)
    refused = [Outcome(one.after, Answer(_TAKEN)) for one in found
               if one.after.birth is not None and one.after.state is _PENDING]  # fmt: skip
    return found + refused


def _tick(state: Promise, operation: Operation, doubt: bool) -> list[Outcome]:
    either, told = (*_OK, *_RUN_AGAIN), Where.SETTLED
    found = _touched(state, operation)
    outcomes = [Outcome(one, Answer(either, one.state is not state.state, None, told)) for one in found]
    if found[0].state is not state.state:
        outcomes.append(Outcome(state, Answer(_RUN_AGAIN, False, None, told)))  # more was due than one tick does
    return outcomes


# -- under a claim -------------------------------------------------------------------------------------------


def _fence(state: Promise, operation: Operation, doubt: bool) -> list[Outcome]:
    command = operation.command
    assert isinstance(command, p.TaskFence)
    action, claim = command.action, command.claim
    if state.id == claim.id:
        return _fenced(state, operation, action, claim)
    refused = [Outcome(state, Answer(_TAKEN, False, None))]
    if doubt:
        refused.append(Outcome(state, _ABSENT))
    match action:
        case p.PromiseCreate():
            return refused + _created(state, operation, action, claim.id)
        case p.PromiseSettle():
            return refused + _ended(state, operation, action.state, action.value)
        case p.PromiseCancel():
            return refused + _canceled(state, operation, action)
        case p.PromiseAgain():
            return refused + _again(state, operation, action, claim.id)


def _fenced(state: Promise, operation: Operation, action: object, claim: p.Claim) -> list[Outcome]:
    """The promise is the one whose task is claimed."""
    task = state.task
    if task is None:
        return [Outcome(state, _ABSENT)]
    if not _holds(task, claim):
        return [Outcome(state, Answer(_TAKEN, False, task))]
    outcomes = []
    for found in _touched(state, operation):
        if found.state is _PENDING:
            done = tuple(status for status in _EVERY if status is not Status.CONFLICT)
            outcomes.append(Outcome(found, Answer(done, None, None, Where.OTHER)))
            outcomes.append(Outcome(found, Answer(_TAKEN, True, None, Where.OTHER)))  # the action's own
            if isinstance(action, p.PromiseCancel) and state.id.startswith(ids.places(action.id)):
                outcomes += _canceled(found, operation, action)  # which ends what asks for it, too
        else:
            outcomes.append(Outcome(found, Answer(_TAKEN)))
    return outcomes


def _again(state: Promise, operation: Operation, action: p.PromiseAgain, creator: str) -> list[Outcome]:
    parent = ids.parent_of(action.id) or ""
    if state.id == action.id:
        if state.birth is not None:
            return [Outcome(state, _SHOWN)]
        number = ids.number_of_run(action.id)
        keeps = p.PromiseCreate(action.id, p.AGAIN, number, action.param, state=State.RESOLVED)
        born = [Outcome(one, Answer(_NEW, True)) for one in _born(state, operation, keeps, creator)]
        not_done = Answer((*_NONE, *_REFUSED)), Answer(_OK, True, None, Where.OTHER)  # of a parent that is settled
        return [*born, *(Outcome(state, answer) for answer in not_done)]
    if state.id == parent:
        found = _touched(state, operation)
        begun = [Outcome(one, _ELSEWHERE) for one in found if one.birth is not None and one.state is _PENDING]
        others = tuple(status for status in _EVERY if status is not Status.CREATED)
        not_begun = Answer(others, None, None, Where.OTHER)
        return [*begun, *(Outcome(one, not_begun) for one in dict.fromkeys((state, *found)))]
    unchanged = Outcome(state, _ELSEWHERE)
    made = state.birth is not None and state.birth.creator is not None
    return [unchanged, Outcome(Promise(state.id), _ELSEWHERE)] if made else [unchanged]


def _suspend(state: Promise, operation: Operation, doubt: bool) -> list[Outcome]:
    command, task = operation.command, state.task
    assert isinstance(command, p.TaskSuspend)
    if state.id != command.claim.id:
        return _awaited(state, operation, command, doubt)
    if task is None:
        return [Outcome(state, _ABSENT)]
    if _holds(task, command.claim):
        suspended = _moved(task, TaskState.SUSPENDED)
        return [
            Outcome(state._replace(task=suspended), Answer(_OK, False, suspended)),
            Outcome(state, Answer(_RUN_AGAIN, False, task)),
            Outcome(state, Answer(_REFUSED)),
        ]
    if task.state is TaskState.SUSPENDED and task.version == command.claim.version:
        resumed = _moved(task, TaskState.PENDING)
        refused = Outcome(state._replace(task=resumed), Answer(_TAKEN, False, resumed))
        return [Outcome(state, Answer(_OK, False, task)), refused]
    return [Outcome(state, Answer(_TAKEN, False, task))]


def _awaited(state: Promise, operation: Operation, command: p.TaskSuspend, doubt: bool) -> list[Outcome]:
    """The promise is one that the task is to be suspended on."""
    refused = [*_TAKEN, *_NONE]
    if state.birth is None or len(command.awaited) > 1:
        refused += _REFUSED
    if state.birth is not None:
        refused += _RUN_AGAIN
    if doubt:
        refused += _OK
    outcomes = [Outcome(state, Answer(tuple(refused), None, None, Where.OTHER))]
    if state.birth is not None and state.state is _PENDING and operation.earliest_ms < state.deadline[1]:
        stored = state._replace(awaiters=state.awaiters | {command.claim.id})
        outcomes.append(Outcome(stored, Answer(_OK, None, None, Where.OTHER)))
    return outcomes


def _fulfill(state: Promise, operation: Operation, doubt: bool) -> list[Outcome]:
    command, task = operation.command, state.task
    assert isinstance(command, p.TaskFulfill)
    if task is None:
        return [Outcome(state, _ABSENT)]
    if _holds(task, command.claim):
        return _ended(state, operation, command.state, command.value)
    if task.state is _OVER and task.version == command.claim.version:
        return [Outcome(state, _SHOWN)]
    return [Outcome(state, Answer(_TAKEN, False, task))]


def _release(state: Promise, operation: Operation, doubt: bool) -> list[Outcome]:
    command, task = operation.command, state.task
    assert isinstance(command, p.TaskRelease)
    if task is None:
        return [Outcome(state, _ABSENT)]
    if not _holds(task, command.claim):
        return [Outcome(state, Answer(_TAKEN, False, task))]
    return _now_as(state, _moved(task, TaskState.PENDING))


def _now_as(state: Promise, task: Task) -> list[Outcome]:
    return [Outcome(state._replace(task=task), Answer(_OK, False, task))]


# -- tasks and processes -------------------------------------------------------------------------------------


def _task_get(state: Promise, operation: Operation, doubt: bool) -> list[Outcome]:
    return [Outcome(state, _ABSENT if state.task is None else Answer(_OK, False, state.task))]


def _task_create(state: Promise, operation: Operation, doubt: bool) -> list[Outcome]:
    command, task = operation.command, state.task
    assert isinstance(command, p.TaskCreate)
    action, process, python = command.action, command.process, command.python
    lost = Outcome(state, Answer(_TAKEN))  # its process holds no lease
    if state.id != action.id:
        return [lost, *_awaits(state, action, fenced=False)] if state.id == action.awaiter else _acquire(
            state, operation, doubt)  # fmt: skip
    outcomes = [lost]
    if state.birth is None or action.awaiter is not None or action.listener is not None:
        for after, answer in _created(state, operation, action, None):
            if answer.statuses == _NEW and after.task is not None:
                held = _taken(after.task, process, python) if after.state is _PENDING else after.task
                outcomes.append(Outcome(after._replace(task=held), Answer(_NEW, True, held)))
            else:
                outcomes.append(Outcome(after, answer._replace(task=None)))
        return outcomes
    for found in _touched(state, operation):
        if task is None:
            outcomes.append(Outcome(found, Answer(_REFUSED, True)))
        elif found.state is not _PENDING:
            outcomes.append(Outcome(found, _SHOWN))
        else:
            outcomes.append(Outcome(found, Answer(_TAKEN, True, task)))  # if pending: in a target that it serves not
            if _free(task):
                held = _taken(task, process, python)
                outcomes.append(Outcome(found._replace(task=held), Answer(_OK, True, held)))
    return outcomes


def _acquire(state: Promise, operation: Operation, doubt: bool) -> list[Outcome]:
    command, reply, task = operation.command, operation.reply, state.task
    assert isinstance(command, p.TaskAcquire | p.TaskCreate)
    listed = reply is not None and any(one.task.id == state.id for one in reply.acquired)
    if reply is not None and not listed:  # one that was made by a task which was acquired
        shown = state.birth is not None and any(
            one.task.id == state.birth.creator and one.task.version > 1 for one in reply.acquired
        )
        return [Outcome(state, Answer(_EVERY, shown, None, Where.PRELOAD))]
    outcomes = [] if listed else [Outcome(state, _ELSEWHERE)]
    now = operation.earliest_ms
    if task is not None and _free(task) and state.state is _PENDING and now < state.deadline[1]:
        held = _taken(task, command.process, command.python)
        outcomes.append(Outcome(state._replace(task=held), Answer(_OK, True, held, Where.ACQUIRED)))
    return outcomes


def _halt(state: Promise, operation: Operation, doubt: bool) -> list[Outcome]:
    command, task = operation.command, state.task
    assert isinstance(command, p.TaskHalt)
    if task is None:
        return [Outcome(state, _ABSENT)]
    if task.state is _OVER:
        return [Outcome(state, Answer(_TAKEN, False, task))]
    halted = task.state is TaskState.HALTED
    return _now_as(state, task if halted else _moved(task, TaskState.HALTED)._replace(reason=command.reason))


def _continue(state: Promise, operation: Operation, doubt: bool) -> list[Outcome]:
    task = state.task
    if task is None:
        return [Outcome(state, _ABSENT)]
    if task.state is not TaskState.HALTED:
        return [Outcome(state, Answer(_TAKEN, False, task))]
    return _now_as(state, _moved(task, TaskState.PENDING))


def _leave(state: Promise, operation: Operation, doubt: bool) -> list[Outcome]:
    command, task = operation.command, state.task
    assert isinstance(command, p.ProcessLeave)
    unchanged = Outcome(state, Answer(_OK, None, False, Where.POISONED))
    if task is None or task.process != command.process:
        return [unchanged]
    again, poisoned = _moved(task, TaskState.PENDING), _moved(task, TaskState.HALTED)._replace(reason=None)
    outcomes = [Outcome(state._replace(task=again), unchanged.answer)]
    if command.ran:
        outcomes.append(Outcome(state._replace(task=poisoned), Answer(_OK, None, poisoned, Where.POISONED)))
    # One that was silent may have spoken meanwhile, which only its lease tells.
    return outcomes if command.renewed_at is None else [unchanged, *outcomes]


def _receive(state: Promise, operation: Operation, doubt: bool) -> list[Outcome]:
    over = state.birth is not None and state.state is not _PENDING
    return [Outcome(state, Answer(_OK, over, None, Where.SETTLED))]


def _heartbeat(state: Promise, operation: Operation, doubt: bool) -> list[Outcome]:
    command, task = operation.command, state.task
    assert isinstance(command, p.ProcessHeartbeat)
    held = task is not None and task.process == command.process
    return [Outcome(state, Answer(_OK, None, task if held and task is not None else False, Where.HELD))]


_RULES: dict[type, Callable[[Promise, Operation, bool], list[Outcome]]] = {
    p.PromiseGet: _get, p.PromiseCreate: _create, p.PromiseSettle: _settle, p.PromiseCancel: _cancel,
    p.RegisterCallback: _call_back, p.RegisterListener: _listen, p.TaskGet: _task_get, p.TaskCreate: _task_create,
    p.TaskAcquire: _acquire, p.TaskFence: _fence, p.TaskSuspend: _suspend, p.TaskFulfill: _fulfill,
    p.TaskRelease: _release, p.TaskHalt: _halt, p.TaskContinue: _continue, p.ProcessLeave: _leave,
    p.Receive: _receive, p.ProcessHeartbeat: _heartbeat, p.Tick: _tick,
}  # fmt: skip
