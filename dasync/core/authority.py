"""Who was allowed: properties of what made the machine step, of the rows before it and of its moves.

The family `authority_` of `invariants.py`, which asks for these on every transition. Fencing bugs make states that are
legal in every other respect; only these see them. Nothing here is shared with `machine.py`, or it would be checked
against itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

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
from dasync.core.transition import Move, View

_PENDING = State.PENDING
_HELD = TaskState.ACQUIRED

Authority = Callable[[int, "p.Cause", View, Sequence[Move]], bool]
_Claiming = (p.TaskFence, p.TaskSuspend, p.TaskFulfill, p.TaskRelease)  # a union would be made anew for each look


def _claim_of(cause: p.Cause) -> p.Claim | None:
    return cause.claim if isinstance(cause, _Claiming) else None


def _authority_claim(now: int, cause: p.Cause, view: View, moves: Sequence[Move]) -> bool:
    """Under a claim nothing moves unless the claim holds: right version, right process, one that is not gone."""
    claim = _claim_of(cause)
    if claim is None or not moves:
        return True
    task, process = view.task(claim.id), view.process(claim.process)
    held = task is not None and task.state is _HELD and (task.version, task.process) == claim[1:]
    if held and process is not None:
        return True
    # What a deadline brings about needs nobody's claim.
    first = moves[0].before
    return isinstance(first, PromiseRecord) and first.timeout_at is not None and now >= first.timeout_at


def _authority_settle(now: int, cause: p.Cause, view: View, moves: Sequence[Move]) -> bool:
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
        elif before is None and isinstance(named, p.PromiseAgain):
            if (named.id, State.RESOLVED, named.param, None) != (after.id, after.state, after.param, after.value):
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


def _authority_fence(now: int, cause: p.Cause, view: View, moves: Sequence[Move]) -> bool:
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


def _authority_acquire(now: int, cause: p.Cause, view: View, moves: Sequence[Move]) -> bool:
    """A task is acquired only by the live process that asks, for a promise that is pending, in a target it serves."""
    for before, after in moves:
        if not isinstance(after, TaskRecord) or after.state is not _HELD:
            continue
        if isinstance(before, TaskRecord) and before.state is _HELD:
            continue
        if not isinstance(cause, p.TaskAcquire | p.TaskCreate) or after.process != cause.process:
            return False
        process = view.process(cause.process)
        if process is None:
            return False
        promise = view.promise(after.id)
        if before is not None and (promise is None or promise.state is not _PENDING):
            return False
        if before is not None and after.target not in (process.group, f"{process.group}/{process.name}"):
            return False
    return True


def _authority_take(now: int, cause: p.Cause, view: View, moves: Sequence[Move]) -> bool:
    """An acquire takes no more than it asks for: in all, of its targets and functions, and for each of its rooms."""
    if not isinstance(cause, p.TaskAcquire):
        return True
    taken = [after for _, after in moves if isinstance(after, TaskRecord) and after.state is _HELD]
    asked = all(
        task.target in cause.targets and (task.function, task.function_version) in cause.functions for task in taken
    )
    fit = all(sum(task.function in room.functions for task in taken) <= room.tasks for room in cause.rooms)
    return asked and fit and len(taken) <= cause.limit


def _authority_release(now: int, cause: p.Cause, view: View, moves: Sequence[Move]) -> bool:
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
        if isinstance(cause, p.ProcessLeave) and cause.process == before.process:
            continue
        if not (isinstance(cause, p.TaskHalt) and cause.id == before.id):
            return False
    return True


def _authority_lease(now: int, cause: p.Cause, view: View, moves: Sequence[Move]) -> bool:
    """A process is gone only by a word that names it, and as it was last seen; its lease is renewed by itself."""
    for before, after in moves:
        if isinstance(before, ProcessRecord) and after is None:
            if not isinstance(cause, p.ProcessLeave) or cause.process != before.id:
                return False
            if cause.renewed_at not in (None, before.renewed_at):
                return False
        elif isinstance(before, ProcessRecord) and not (
            isinstance(cause, p.ProcessHeartbeat) and cause.process == before.id
        ):
            return False
    return True


def _authority_crashes(now: int, cause: p.Cause, view: View, moves: Sequence[Move]) -> bool:
    """Crashes are counted where a process ends that ran the task, and forgotten where somebody sends it again."""
    for before, after in moves:
        if not isinstance(before, TaskRecord) or not isinstance(after, TaskRecord) or before.crashes == after.crashes:
            continue
        ended = isinstance(cause, p.ProcessLeave) and cause.process == before.process
        continued = isinstance(cause, p.TaskContinue) and after.crashes == 0
        if not (continued or (ended and after.crashes in (1, before.crashes + 1))):
            return False
    return True


def _authority_settlement(now: int, cause: p.Cause, view: View, moves: Sequence[Move]) -> bool:
    """One transition settles a promise, fulfills its task, consumes its callbacks, fires its listeners: all or none.

    One that removes a promise does so for its callbacks and its listeners. Who runs the code that made a settled
    promise, or that it stands for, is told, but for the claim that has settled it.
    """
    settled = {
        after.id
        for before, after in moves
        if isinstance(before, PromiseRecord) and before.state is _PENDING
        and isinstance(after, PromiseRecord) and after.state is not _PENDING
    }
    if any(before is None and isinstance(after, ListenerRecord) and after.fired and after.promise not in settled
           for before, after in moves):
        return False  # news of what is not settled
    gone = {before.id for before, after in moves if isinstance(before, PromiseRecord) and after is None}
    if not settled and not gone:
        return not any(isinstance(before, CallbackRecord) or _fires(before, after) for before, after in moves)
    removed = {before for before, after in moves if after is None}
    fired = {after[:2] for before, after in moves if _fires(before, after) and after is not None}
    fulfilled = {after.id for _, after in moves if isinstance(after, TaskRecord) and after.state is TaskState.FULFILLED}
    for id in settled | gone:
        if any(callback not in removed for callback in view.callbacks(id)):
            return False
        told = fired if id in settled else fired | {one[:2] for one in removed if isinstance(one, ListenerRecord)}
        if any(not listener.fired and listener[:2] not in told for listener in view.listeners(id)):
            return False
    claim = cause.claim if isinstance(cause, p.PromiseGet) else _claim_of(cause)
    heard = fired | {after[:2] for _, after in moves if isinstance(after, ListenerRecord)}
    for id in settled:
        task, record = view.task(id), view.promise(id)
        if task is not None and task.state is not TaskState.FULFILLED and id not in fulfilled:
            return False
        made = view.task(record.creator) if record is not None and record.creator is not None else None
        for one in (task, made):
            if one is None or one.process is None or claim == p.Claim(one.id, one.version, one.process):
                continue
            if (id, one.process) not in heard:
                return False
    return True


def starts_over(cause: p.Cause) -> p.PromiseAgain | None:
    action = cause.action if isinstance(cause, p.TaskFence) else None
    return action if isinstance(action, p.PromiseAgain) else None


def _authority_removal(now: int, cause: p.Cause, view: View, moves: Sequence[Move]) -> bool:
    """What goes was made by the last run of an execution that starts over, under its own claim, and runs no more."""
    gone = [before for before, after in moves if after is None and isinstance(before, PromiseRecord | TaskRecord)]
    starts, claim = starts_over(cause), _claim_of(cause)
    if not gone:
        return True
    if starts is None or claim is None:
        return False
    above, _, number = starts.id.rpartition("@")
    last = f"{above}@{int(number) - 1}" if number != "1" else ""
    computed = view.promise(above[:-1])
    if computed is None or claim.id not in (computed.id, computed.creator if computed.target is None else None):
        return False
    tasks = {record.id for record in gone if isinstance(record, TaskRecord)}
    promises = {record.id: record for record in gone if isinstance(record, PromiseRecord)}
    if tasks != {id for id, record in promises.items() if record.target is not None}:
        return False
    for id, record in promises.items():
        runs = record.state is _PENDING and record.function != "" and not record.timer
        late = record.timeout_at is not None and now >= record.timeout_at
        ours = record.creator == claim.id or record.creator in tasks
        if (runs and not late) or not ours or not (id == last or id.startswith(f"{last}." if last else above)):
            return False
    return True


def _fires(before: Record | None, after: Record | None) -> bool:
    return isinstance(before, ListenerRecord) and isinstance(after, ListenerRecord) and after.fired


AUTHORITY: dict[str, Authority] = {
    "authority_claim_holds": _authority_claim,
    "authority_settlement_was_asked_or_due": _authority_settle,
    "authority_created_under_a_fence": _authority_fence,
    "authority_acquired_by_the_asker": _authority_acquire,
    "authority_acquired_no_more_than_asked": _authority_take,
    "authority_released_by_its_holder": _authority_release,
    "authority_lease_ended_in_time": _authority_lease,
    "authority_crashes_are_counted_at_the_end_of_a_process": _authority_crashes,
    "authority_settlement_is_whole": _authority_settlement,
    "authority_removed_by_who_starts_over": _authority_removal,
}

# A kind of move is a bit: of which record, and whether it is born, changed or removed by it.
BORN, CHANGED, REMOVED = range(3)
KIND: dict[type, tuple[int, int, int]] = {
    record: (1 << at, 2 << at, 4 << at)
    for at, record in zip(
        range(0, 15, 3), (PromiseRecord, TaskRecord, CallbackRecord, ListenerRecord, ProcessRecord), strict=True
    )
}
_PROMISE, _TASK, _CALLBACK, _LISTENER, _PROCESS = KIND.values()

# The kinds of moves that each tells of; of a transition with no other ones it need not be asked.
ABOUT: dict[str, int] = {
    "authority_claim_holds": sum(map(sum, KIND.values())),
    "authority_settlement_was_asked_or_due": _PROMISE[BORN] | _PROMISE[CHANGED],
    "authority_created_under_a_fence": _PROMISE[BORN],
    "authority_acquired_by_the_asker": _TASK[BORN] | _TASK[CHANGED],
    "authority_acquired_no_more_than_asked": _TASK[BORN] | _TASK[CHANGED],
    "authority_released_by_its_holder": _TASK[CHANGED],
    "authority_lease_ended_in_time": _PROCESS[CHANGED] | _PROCESS[REMOVED],
    "authority_crashes_are_counted_at_the_end_of_a_process": _TASK[CHANGED],
    "authority_settlement_is_whole": (
        _PROMISE[CHANGED] | _PROMISE[REMOVED] | _CALLBACK[CHANGED] | _CALLBACK[REMOVED]
        | _LISTENER[BORN] | _LISTENER[CHANGED]
    ),
    "authority_removed_by_who_starts_over": _PROMISE[REMOVED] | _TASK[REMOVED],
}
