"""What is known of one promise and its task, what may be heard of them, and what an answer leaves of that.

The shapes that `model.py` works with. A number that follows from a clock is a span, as only its window is known; the
first answer that shows it makes it a point. Nothing here says what an operation does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from enum import Enum
from typing import NamedTuple

from dasync.core.invariants import Snapshot
from dasync.core.model import PromiseRecord, State, TaskRecord, TaskState
from dasync.core.protocol import Reply, Status
from dasync.testing.history import Operation, asked, heard, text_of

FOREVER = 1 << 62  # no deadline; later than any clock shows
Span = tuple[int, int]
"""The least and the greatest that a number can be."""
ANY: Span = (0, FOREVER)
AT_DEADLINE: Span = (-1, -1)
"""When a deadline settles, it is settled at the deadline, whatever that is."""


class Task(NamedTuple):
    """The claim on the promise. One that is suspended may have been resumed since: nothing here tells when."""

    state: TaskState
    version: int
    process: str | None
    python: str
    seed: bytes
    reason: str | None = ""
    """None: somebody else has put it into words."""


class Birth(NamedTuple):
    """What is fixed when a promise is made."""

    function: str
    version: int
    param: bytes
    target: str | None
    creator: str | None
    timer: bool
    tags: str
    born_after: int


class Promise(NamedTuple):
    """What is known of one promise."""

    id: str
    birth: Birth | None = None
    """None: there is no such promise."""
    created: Span = ANY
    deadline: Span = (FOREVER, FOREVER)
    state: State = State.PENDING
    settled: Span = ANY
    value: bytes | None = None
    turn: Span = ANY
    awaiters: frozenset[str] = frozenset()
    task: Task | None = None


class Where(Enum):
    """Where in a reply the promise is to be looked for."""

    REPLY = "the reply"
    OTHER = "the reply, which is about another promise"
    ACQUIRED = "what was acquired"
    PRELOAD = "what was preloaded"
    SETTLED = "what was settled"
    HELD = "what is held"
    POISONED = "what was poisoned"


class Answer(NamedTuple):
    """What may be heard."""

    statuses: tuple[Status, ...]
    record: bool | None = False
    """Whether the promise is shown, as it is then; None: that is not looked at."""
    task: Task | bool | None = False
    """The task as it is shown; False: none is; None: that is not looked at."""
    where: Where = Where.REPLY


class Outcome(NamedTuple):
    """One thing that may follow from an operation."""

    after: Promise
    answer: Answer


def stored(snapshot: Snapshot) -> dict[str, Promise]:
    """What a store holds, as the beginning of a history."""
    found = {}
    for id, record in snapshot.promises.items():
        task = snapshot.tasks.get(id)
        deadline = FOREVER if record.timeout_at is None else record.timeout_at
        found[id] = Promise(
            id,
            Birth(*record[1:7], record.tags, record.born_after),
            (record.created_at, record.created_at),
            (deadline, deadline),
            record.state,
            ANY if record.settled_at is None else (record.settled_at, record.settled_at),
            record.value,
            ANY if record.turn is None else (record.turn, record.turn),
            frozenset(one.awaiter for one in snapshot.callbacks if one.awaited == id),
            None if task is None else Task(task.state, task.version, task.process, task.python, task.seed, task.reason),
        )
    return found


def after(outcome: Outcome, reply: Reply) -> Promise | None:
    """What is known of the promise if that was heard; None: it contradicts the outcome."""
    state, (statuses, record, task, where) = outcome
    if reply.status not in statuses:
        return None
    if record is not None:
        shown = _promise_in(reply, state.id, where)
        if (shown is None) is record:
            return None
        if shown is not None and where is not Where.OTHER:
            narrowed = _narrowed(state, shown)
            if narrowed is None:
                return None
            state = narrowed
    return state if task is None else _with_task(state, task, reply, where)


def _promise_in(reply: Reply, id: str, where: Where) -> PromiseRecord | None:
    if where is Where.REPLY or where is Where.OTHER:
        return reply.promise
    if where is Where.SETTLED:
        return next((one for one in reply.settled if one.id == id), None)
    if where is Where.ACQUIRED:
        return next((one.promise for one in reply.acquired if one.task.id == id), None)
    return next((one for acquired in reply.acquired for one in acquired.preload if one.id == id), None)


def _task_in(reply: Reply, id: str, where: Where) -> TaskRecord | None:
    if where is Where.ACQUIRED:
        return next((one.task for one in reply.acquired if one.task.id == id), None)
    if where is Where.POISONED:
        return next((one for one in reply.poisoned if one.id == id), None)
    return reply.task


def _narrowed(state: Promise, shown: PromiseRecord) -> Promise | None:
    """The promise, now that its record was seen; None: that is another one."""
    birth = state.birth
    if birth is None or shown.state is not state.state or shown.value != state.value or shown.id != state.id:
        return None
    if shown[1:7] != birth[:6] or shown.tags != birth.tags or shown.born_after != birth.born_after:
        return None
    deadline = FOREVER if shown.timeout_at is None else shown.timeout_at
    created, last, settled, turn = state.created, state.deadline, state.settled, state.turn
    if not (created[0] <= shown.created_at <= created[1] and last[0] <= deadline <= last[1]):
        return None
    if shown.state is State.PENDING:
        if shown.settled_at is not None or shown.turn is not None:
            return None
        if created[0] == created[1] and last[0] == last[1]:
            return state
        return state._replace(created=(shown.created_at, shown.created_at), deadline=(deadline, deadline))
    if shown.settled_at is None or shown.turn is None or not turn[0] <= shown.turn <= turn[1]:
        return None
    if settled is AT_DEADLINE or settled == AT_DEADLINE:
        settled = deadline, deadline
    if not settled[0] <= shown.settled_at <= settled[1] or shown.settled_at > deadline:
        return None
    return state._replace(
        created=(shown.created_at, shown.created_at), deadline=(deadline, deadline),
        settled=(shown.settled_at, shown.settled_at), turn=(shown.turn, shown.turn),
    )  # fmt: skip


def _with_task(state: Promise, task: Task | bool, reply: Reply, where: Where) -> Promise | None:
    if where is Where.HELD:
        version = (reply.held or {}).get(state.id)
        return state if isinstance(task, Task) and task.version == version else None
    shown, birth = _task_in(reply, state.id, where), state.birth
    if where is Where.REPLY and any(one.task != shown for one in reply.acquired):
        return None
    if not isinstance(task, Task) or shown is None or birth is None:
        return state if shown is None and not isinstance(task, Task) else None
    if (shown.id, shown.target, shown.function, shown.function_version) != (
        state.id, birth.target, birth.function, birth.version,
    ):  # fmt: skip
        return None
    resumed = task.state is TaskState.SUSPENDED and shown.state is TaskState.PENDING
    if shown.state is not task.state and not resumed:
        return None
    if (shown.version, shown.process, shown.python, shown.seed) != (task.version, task.process, task.python, task.seed):
        return None
    if task.reason is not None and task.reason != shown.reason:
        return None
    if not resumed and task.reason is not None:
        return state
    return state._replace(task=task._replace(state=shown.state, reason=shown.reason))


# -- in words ------------------------------------------------------------------------------------------------


def why_not(state: Promise, operation: Operation, outcomes: Sequence[Outcome]) -> str:
    """Why what was heard cannot be: what is known, what was due, what was heard."""
    said = f"{told(state)}; {asked(operation.command)!r} "
    if operation.reply is None or not outcomes:
        return said + "cannot take effect then"
    due = dict.fromkeys(_due(outcome.answer) for outcome in sorted(outcomes, key=lambda one: min(one.answer.statuses)))
    said += f"is answered {' or '.join(due)}, and {heard(operation.reply)!r} was heard"
    close = [one for one in outcomes if operation.reply.status in one.answer.statuses]
    found = dict.fromkeys(", ".join(_differences(one, operation.reply)) for one in close)
    return said + (f" ({' or '.join(found)})" if any(found) else "")


def told(state: Promise) -> str:
    """What is known of a promise, in words."""
    if state.birth is None:
        return f"there is no promise {state.id}"
    said = f"{state.id} is {state.state.value}"
    if state.state is State.PENDING and state.deadline[0] < FOREVER:
        said += f" until {_span(state.deadline)}"
    if state.value is not None:
        said += f" with {text_of(state.value)}"
    if state.awaiters:
        said += f", awaited by {', '.join(sorted(state.awaiters))}"
    if state.task is not None:
        holder = f" by {state.task.process}" if state.task.process else ""
        said += f", its task is {state.task.state.value}{holder} at version {state.task.version}"
    return said


def _span(span: Span) -> str:
    least, most = span
    return str(least) if least == most else f"{least} at the earliest" if most >= FOREVER else f"{least} to {most}"


def _due(answer: Answer) -> str:
    named = "/".join(str(int(one)) for one in sorted(answer.statuses))
    statuses = "any status" if len(answer.statuses) == len(Status) else named
    words = {True: " with the promise", False: " without it", None: ""}
    if answer.where is Where.REPLY:
        return statuses + (" with the promise" if answer.record else "")
    return f"{statuses}{words[answer.record]} ({answer.where.value})"


def _differences(outcome: Outcome, reply: Reply) -> Iterator[str]:
    """What was due and what was shown instead."""
    state, (_, record, task, where) = outcome
    shown = _promise_in(reply, state.id, where)
    if record is not None and (shown is None) is record:
        yield "the promise is not shown" if record else "the promise is shown"
    elif record and shown is not None and where is not Where.OTHER:
        yield from _fields(state, shown)
    if task is not None:
        seen = _task_in(reply, state.id, where)
        if where is Where.HELD or not isinstance(task, Task) or seen is None:
            if _with_task(state, task, reply, where) is None:
                yield "the task is not as it is shown"
        else:
            for name in ("state", "version", "process", "python", "reason"):
                due, held = getattr(task, name), getattr(seen, name)
                if due != held and due is not None:
                    yield f"the task's {name} is {due}, not {held or 'none'}"


def _fields(state: Promise, shown: PromiseRecord) -> Iterator[str]:
    birth = state.birth
    if birth is None or shown.id != state.id:
        yield f"it is {shown.id!r} that is shown"
        return
    deadline = FOREVER if shown.timeout_at is None else shown.timeout_at
    if shown.state is not state.state:
        yield f"state {state.state.value} is due, not {shown.state.value}"
        return
    for name in birth._fields:
        if getattr(birth, name) != getattr(shown, name):
            yield f"{name} {getattr(birth, name)!r} is due, not {getattr(shown, name)!r}"
    if shown.value != state.value:
        due, given = ("none" if value is None else text_of(value) for value in (state.value, shown.value))
        yield f"value {due} is due, not {given}"
    settled = (deadline, deadline) if state.settled == AT_DEADLINE else state.settled
    spans = [("created_at", state.created, shown.created_at), ("timeout_at", state.deadline, deadline)]
    if state.state is not State.PENDING:
        spans += [("settled_at", settled, shown.settled_at or 0), ("turn", state.turn, shown.turn or 0)]
    for name, (least, most), value in spans:
        if not least <= value <= most:
            yield f"{name} {_span((least, most))} is due, not {value}"
