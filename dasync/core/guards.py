"""What the law asks before it decides, and how it refuses.

Nothing here changes a record or knows when it is asked; `machine.py` decides.
"""

from __future__ import annotations

from dasync.core import ids
from dasync.core import protocol as p
from dasync.core.model import ProcessRecord, PromiseRecord, State, TaskRecord, TaskState
from dasync.core.protocol import Reply, Status
from dasync.core.transition import View


def is_due(record: PromiseRecord, now: int) -> bool:
    return record.timeout_at is not None and now >= record.timeout_at and record.state is State.PENDING


def is_over(record: PromiseRecord, now: int) -> bool:
    return record.state is not State.PENDING or is_due(record, now)


def waits(command: p.PromiseCreate) -> bool:
    return command.awaiter is not None or command.listener is not None


def serves(process: ProcessRecord, target: str) -> bool:
    return target == process.group or target == f"{process.group}/{process.name}"


def no_task(id: str) -> Reply:
    return Reply(Status.NOT_FOUND, reason=f"there is no task {id!r}")


def not_held(task: TaskRecord, claim: p.Claim) -> Reply:
    held = f"{task.state.value} at version {task.version}"
    reason = f"task {claim.id!r} is {held}, not held by {claim.process!r} at version {claim.version}"
    return Reply(Status.CONFLICT, task=task, reason=reason)


def lease_lost(process: str) -> Reply:
    return Reply(Status.CONFLICT, reason=f"process {process!r} holds no lease")


def repeats(refusal: Reply, claim: p.Claim, state: TaskState) -> bool:
    """The claim was given up by this very command before, whose answer was lost."""
    task = refusal.task
    return task is not None and task.state is state and task.version == claim.version


def cannot_wait(command: p.PromiseCreate, view: View) -> Reply | None:
    if command.awaiter is not None:
        task = view.task(command.awaiter)
        if task is None or task.state is TaskState.FULFILLED or command.awaiter == command.id:
            return Reply(Status.UNPROCESSABLE, reason=f"awaiter {command.awaiter!r} is not a task that can wait")
    if command.listener is not None and view.process(command.listener) is None:
        return Reply(Status.UNPROCESSABLE, reason=f"listener {command.listener!r} is not a live process")
    return None


def made_by_last_run(command: p.PromiseAgain, task: TaskRecord, view: View) -> list[PromiseRecord]:
    """What goes when an execution starts over: what keeps its last run's arguments, and all that this run has made.

    So do its children's children; what stands alone is spared, with all that was made below it.
    """
    id, last = ids.parent_of(command.id) or "", ids.number_of_run(command.id) - 1
    kept = view.promise(ids.run(id, last)) if last else None
    made = [] if kept is None else [kept]
    makers = {task.id}
    for record in view.under(ids.run(id, last) if last else id):  # parents before their children
        if record.creator in makers:
            made.append(record)
            makers.add(record.id)
    return made


def cannot_start_over(
    now: int, command: p.PromiseAgain, record: PromiseRecord, task: TaskRecord, made: list[PromiseRecord]
) -> Reply | None:
    last = ids.number_of_run(command.id) - 1
    within = record.creator == task.id and record.target is None and record.function != "" and not record.timer
    runs = [one.id for one in made if one.function and not one.timer and not is_over(one, now)]
    if not (record.id == task.id or within):
        reason = f"no execution of task {task.id!r} computes {record.id!r}"
    elif last and not (made and made[0].id == ids.run(record.id, last)):
        reason = f"{record.id!r} has not started over {last} times before"
    elif runs:
        reason = f"{runs[0]!r}, which {record.id!r} has made, is not settled"
    else:
        return None
    return Reply(Status.UNPROCESSABLE, reason=reason)


def made_below(id: str, view: View) -> list[PromiseRecord]:
    """The pending promises that a cancel of `id` ends as well, parents before their children."""
    spared: tuple[str, ...] = ()
    made: list[PromiseRecord] = []
    for record in view.below(id):
        if record.creator is None or not (record.function or record.timer):  # alone, or settled outside
            spared += (ids.subtree(record.id)[0],)
        elif not record.id.startswith(spared):
            made.append(record)
    return made
