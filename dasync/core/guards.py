"""What the law asks before it decides, and how it refuses.

Nothing here changes a record or knows when it is asked; `machine.py` decides.
"""

from __future__ import annotations

from dasync.core import ids
from dasync.core import protocol as p
from dasync.core.model import ProcessRecord, PromiseRecord, State, TaskState
from dasync.core.protocol import Reply, Status
from dasync.core.transition import View


def is_due(record: PromiseRecord, now: int) -> bool:
    return record.timeout_at is not None and now >= record.timeout_at and record.state is State.PENDING


def waits(command: p.PromiseCreate) -> bool:
    return command.awaiter is not None or command.listener is not None


def alive(now: int, process: ProcessRecord | None) -> bool:
    return process is not None and now < process.expires_at


def serves(process: ProcessRecord, target: str) -> bool:
    return target == process.group or target == f"{process.group}/{process.name}"


def no_task(id: str) -> Reply:
    return Reply(Status.NOT_FOUND, reason=f"there is no task {id!r}")


def lease_lost(process: str) -> Reply:
    return Reply(Status.CONFLICT, reason=f"process {process!r} holds no lease")


def repeats(refusal: Reply, claim: p.Claim, state: TaskState) -> bool:
    """The claim was given up by this very command before, whose answer was lost."""
    task = refusal.task
    return task is not None and task.state is state and task.version == claim.version


def cannot_wait(now: int, command: p.PromiseCreate, view: View) -> Reply | None:
    if command.awaiter is not None:
        task = view.task(command.awaiter)
        if task is None or task.state is TaskState.FULFILLED or command.awaiter == command.id:
            return Reply(Status.UNPROCESSABLE, reason=f"awaiter {command.awaiter!r} is not a task that can wait")
    if command.listener is not None and not alive(now, view.process(command.listener)):
        return Reply(Status.UNPROCESSABLE, reason=f"listener {command.listener!r} is not a live process")
    return None


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
