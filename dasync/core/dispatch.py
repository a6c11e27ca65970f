"""Which tasks an acquire takes: of each function its oldest, one in turn, so that one flood starves no other.

A part of `machine.py`, which is the only one to ask. The turn goes by the order in which the command names functions:
who asks names first what it has taken longest ago, so that the turn goes on from one acquire to the next, and an
acquire of a single task is as fair as one of a thousand. Nothing here changes a record.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dasync.core.model import TaskRecord
from dasync.core.protocol import TaskAcquire
from dasync.core.transition import View

Kind = tuple[str, int]  # a function's name and version


def in_turn(command: TaskAcquire, view: View) -> list[TaskRecord]:
    """The pending tasks that the command takes, in the order in which it takes them."""
    pending = set(view.kinds(command.targets))
    kinds = tuple(kind for kind in dict.fromkeys(command.functions) if kind in pending)
    found: dict[Kind, list[TaskRecord]] = {}
    taken: list[TaskRecord] = []
    while kinds and len(taken) < command.limit:
        hungry, kinds = kinds[: command.limit], kinds[command.limit :]
        # So many of each as would do if all had as many; twice as many of those that have more, if that was too few.
        share = command.limit // len(hungry) + 1
        while hungry and len(taken) < command.limit:
            found |= {kind: [] for kind in hungry}
            for task in view.acquirable(command.targets, hungry, share):
                found[task.function, task.function_version].append(task)
            taken = _dealt(command, found)
            hungry = tuple(kind for kind in hungry if share <= len(found[kind]) < _most(command, kind))
            share *= 2
    return taken


def _most(command: TaskAcquire, kind: Kind) -> int:
    return min([command.limit, *(room.tasks for room in command.rooms if kind[0] in room.functions)])


def _dealt(command: TaskAcquire, found: Mapping[Kind, Sequence[TaskRecord]]) -> list[TaskRecord]:
    """One of each function in turn, as far as there is room."""
    left = [room.tasks for room in command.rooms]
    rooms = {kind: [at for at, room in enumerate(command.rooms) if kind[0] in room.functions] for kind in found}
    taken: list[TaskRecord] = []
    waiting = {kind: iter(tasks) for kind, tasks in found.items()}
    while waiting:
        for kind, tasks in list(waiting.items()):
            if len(taken) == command.limit:
                return taken
            task = next(tasks, None) if all(left[at] for at in rooms[kind]) else None
            if task is None:
                del waiting[kind]
                continue
            taken.append(task)
            for at in rooms[kind]:
                left[at] -= 1
    return taken
