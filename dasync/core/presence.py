"""What processes say of themselves, as the law decides it: they come alive, they stay alive, they take their news.

A part of `machine.py`, which is the only one to ask; what becomes of a process that is gone, and of its tasks, is
decided there. Nothing here touches a promise or a task.
"""

from __future__ import annotations

from dasync.core import guards
from dasync.core import protocol as p
from dasync.core.model import ProcessRecord
from dasync.core.protocol import Reply, Status
from dasync.core.transition import Move, Transition, View


def join(now: int, command: p.ProcessJoin, view: View) -> Transition:
    if view.process(command.process) is not None:
        return Transition(Reply(Status.CONFLICT, reason=f"process id {command.process!r} is in use"))
    c = command
    record = ProcessRecord(c.process, c.name, c.group, c.host, c.address, c.lease_ms, now)
    return Transition(Reply(Status.CREATED), (Move(None, record),))


def heartbeat(now: int, command: p.ProcessHeartbeat, view: View) -> Transition:
    process = view.process(command.process)
    if process is None:
        return Transition(guards.lease_lost(command.process))
    renewed = process._replace(renewed_at=max(process.renewed_at + 1, now))  # a clock that was set back renews as well
    agreed = view.holding(process.id) == command.knows
    held = None if agreed else {task.id: task.version for task in view.held(process.id)}
    return Transition(Reply(Status.OK, held=held), (Move(process, renewed),))


def receive(command: p.Receive, view: View) -> Transition:
    known = set(command.acknowledged)
    news = view.news(command.process)
    moves = tuple(Move(listener, None) for listener in news if listener.promise in known)
    settled = [view.promise(listener.promise) for listener in news if listener.promise not in known]
    return Transition(Reply(Status.OK, settled=tuple(record for record in settled if record is not None)), moves)
