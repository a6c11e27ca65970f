"""Who waits for what in this process.

The second half of the model's state: promise ids to those who wait. It wakes nobody by itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from typing import NamedTuple, cast

from dasync.runtime import branch
from dasync.runtime.execution import Execution
from dasync.runtime.held import Held
from dasync.runtime.promise import Promise


class Waiter(NamedTuple):
    """Somebody who waits for a promise."""

    name: str
    """An execution's id, or the name of an asyncio task outside executions."""
    task: asyncio.Task[object] | None
    held: Held | None
    elsewhere: bool
    """An execution waits for what is settled elsewhere: meanwhile its task takes no room."""


class Awaiters:
    """Promise ids to waiters, each with the future that resumes it."""

    def __init__(self) -> None:
        self._of: dict[str, dict[asyncio.Future[None], Waiter]] = {}
        self.view = AwaitersView(self._of)

    def add(self, promise: Promise[object], future: asyncio.Future[None]) -> Waiter:
        """Whoever runs now waits for `promise`."""
        at, task = branch.current(), asyncio.current_task()
        if at is None:
            waiter = Waiter(task.get_name() if task is not None else "callback", task, None, False)
        else:
            execution = cast(Execution, at.owner)
            held = execution.held
            waiter = Waiter(execution.id, task, held, promise.id not in held.running)
            held.blocked += waiter.elsewhere
        self._of.setdefault(promise.id, {})[future] = waiter
        return waiter

    def remove(self, id: str, future: asyncio.Future[None]) -> None:
        """One of them waits no longer."""
        waiting = self._of.get(id)
        if waiting is not None and (waiter := waiting.pop(future, None)) is not None:
            _unblock(waiter)
            if not waiting:
                del self._of[id]

    def pop(self, id: str) -> list[asyncio.Future[None]]:
        """All of them wait no longer."""
        waiting = self._of.pop(id, {})
        for waiter in waiting.values():
            _unblock(waiter)
        return list(waiting)

    def outside(self) -> list[asyncio.Future[None]]:
        """The futures of those who are not executions."""
        return [future for waiting in self._of.values() for future, waiter in waiting.items() if waiter.held is None]

    def awaited_by(self, held: Held) -> list[str]:
        """What a task waits for that is settled elsewhere; nothing, if any of its asyncio tasks does something else."""
        waits = {
            (waiter.task, id, waiter.elsewhere)
            for id, waiting in self._of.items()
            for waiter in waiting.values()
            if waiter.held is held
        }
        waiting_tasks = {task for task, _, _ in waits}
        for execution in held.running.values():
            running = execution.tasks()
            body, others = running[0] if running else None, running[1:]
            # A body that awaits no promise waits for the tasks that it has made, if it has made any.
            if any(task not in waiting_tasks for task in others) or not (body in waiting_tasks or others):
                return []
        return sorted({id for _, id, elsewhere in waits if elsewhere})

    def __contains__(self, id: str) -> bool:
        return id in self._of

    def __len__(self) -> int:
        return sum(map(len, self._of.values()))


class AwaitersView(Mapping[str, tuple[str, ...]]):
    """Promise ids to the names of who waits; read-only."""

    def __init__(self, of: Mapping[str, Mapping[asyncio.Future[None], Waiter]]) -> None:
        self._of = of

    def __getitem__(self, id: str) -> tuple[str, ...]:
        return tuple(waiter.name for waiter in self._of[id].values())

    def __iter__(self) -> Iterator[str]:
        return iter(self._of)

    def __len__(self) -> int:
        return len(self._of)

    def __repr__(self) -> str:
        return repr(dict(self))


def _unblock(waiter: Waiter) -> None:
    if waiter.held is not None:
        waiter.held.blocked -= waiter.elsewhere
