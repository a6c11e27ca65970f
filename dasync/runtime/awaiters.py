"""Who waits for what in this process.

The second half of the model's state: promise ids to those who wait. It wakes nobody by itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Protocol, TypeVar, cast

from dasync.runtime.branch import BranchTask, Known
from dasync.runtime.promise import Promise


class Member(Protocol):
    """An execution, as one that may wait."""

    id: str

    @property
    def held(self) -> Holder:
        """The task that it belongs to."""

    @property
    def slot(self) -> Stirred | None:
        """Its slot, where its function has a limit."""


class Stirred(Protocol):
    """What is to be told when an execution begins to wait."""

    def stir(self) -> None:
        """It may run no longer."""


class Sharer(Protocol):
    """An execution, as one that waits for what it has not made."""

    def expects(self, promise: Known) -> None:
        """It is not known yet whether the promise is settled."""

    def share(self, id: str, turn: int, waiter: asyncio.Future[None]) -> None:
        """The promise is settled, by the commit of that number: let it have it when it is time."""


class Holder(Protocol):
    """A task that this process holds, as its executions' waiting concerns it."""

    @property
    def running(self) -> Mapping[str, Running]:
        """Its executions, by the promises that they run for."""

    def block(self) -> None:
        """One more of its executions waits for what is settled elsewhere."""

    def unblock(self) -> None:
        """One of them waits no longer."""


H = TypeVar("H", bound=Holder)


class Running(Protocol):
    """An execution that may be asked for its asyncio tasks."""

    def parts(self) -> Sequence[asyncio.Task[object]]:
        """The asyncio tasks that it consists of, its body's first."""

    def takes_more(self) -> bool:
        """Whether an outcome that is settled already is still to be taken."""

    def alarms(self) -> list[str]:
        """The timers that its code has set by asyncio's means, and that have not rung."""


class Waiter(asyncio.Future[None]):
    """Somebody who waits for a promise: the future that resumes him, and who he is."""

    __slots__ = ("among", "elsewhere", "held", "name", "sharer", "task")
    name: str
    """An execution's id, or the name of an asyncio task outside executions."""
    task: asyncio.Task[object] | None
    held: Holder | None
    """The task that the waiting execution belongs to; None outside executions."""
    elsewhere: bool
    """An execution waits for what is settled elsewhere: meanwhile its task takes no room."""
    sharer: Sharer | None
    """The execution that waits, and has not made the promise."""
    among: bool
    """He waits for others too, and may go on when any of them is settled."""


class Among(asyncio.Future[None]):
    """What somebody awaits who waits for several promises at once."""


class Awaiters:
    """Promise ids to waiters."""

    def __init__(self) -> None:
        self._of: dict[str, list[Waiter]] = {}
        self.view = AwaitersView(self._of)

    def add(self, promise: Promise[object], loop: asyncio.AbstractEventLoop) -> Waiter:
        """Whoever runs now waits for `promise`."""
        waiter, task = Waiter(loop=loop), asyncio.current_task(loop)
        waiter.task, waiter.sharer = task, None
        if type(task) is BranchTask:
            execution = cast(Member, task.branch.owner)
            waiter.name, waiter.held = execution.id, execution.held
            if execution.slot is not None:
                execution.slot.stir()
            waiter.sharer = task.branch.owner if promise.maker is None else None
            waiter.elsewhere = promise.id not in execution.held.running
            if waiter.elsewhere:
                execution.held.block()
        else:
            waiter.name = task.get_name() if task is not None else "callback"
            waiter.held, waiter.elsewhere = None, False
        waiting = self._of.get(promise.id)
        if waiting is None:
            self._of[promise.id] = [waiter]
        else:
            waiting.append(waiter)
        return waiter

    def remove(self, id: str, waiter: asyncio.Future[None]) -> None:
        """One of them waits no longer."""
        waiting = self._of.get(id)
        if waiting is not None and isinstance(waiter, Waiter) and waiter in waiting:
            waiting.remove(waiter)
            _unblock(waiter)
            if not waiting:
                del self._of[id]

    def has(self, id: str, name: str) -> bool:
        """Whether somebody of that name waits for that one."""
        return any(waiter.name == name for waiter in self._of.get(id, ()))

    def pop(self, id: str) -> list[Waiter]:
        """All of them wait no longer."""
        waiting = self._of.pop(id, [])
        for waiter in waiting:
            _unblock(waiter)
        return waiting

    def beside(self, id: str, holder: object) -> bool:
        """Whether anybody waits for a promise who does not belong to that task."""
        return any(waiter.held is not holder for waiter in self._of.get(id, ()))

    def outside(self) -> list[Waiter]:
        """Those who are not executions."""
        return [waiter for waiting in self._of.values() for waiter in waiting if waiter.held is None]

    def awaited_by(self, tasks: Iterable[H]) -> dict[H, list[str]]:
        """Those among `tasks` that do nothing but wait for what is settled elsewhere, and what each waits for."""
        waits: dict[H, list[tuple[str, Waiter]]] = {held: [] for held in tasks}
        for id, waiting in self._of.items():
            for waiter in waiting:
                if waiter.held in waits:
                    waits[waiter.held].append((id, waiter))
        return {
            held: sorted({id for id, waiter in mine if waiter.elsewhere}.union(*map(_alarms, held.running.values())))
            for held, mine in waits.items()
            if any(waiter.elsewhere for _, waiter in mine)
            and _only_waits(held, {waiter.task for _, waiter in mine if not waiter.done()})
        }

    def __contains__(self, id: str) -> bool:
        return id in self._of

    def __len__(self) -> int:
        return sum(map(len, self._of.values()))


class AwaitersView(Mapping[str, tuple[str, ...]]):
    """Promise ids to the names of who waits; read-only."""

    def __init__(self, of: Mapping[str, list[Waiter]]) -> None:
        self._of = of

    def __getitem__(self, id: str) -> tuple[str, ...]:
        return tuple(waiter.name for waiter in self._of[id])

    def __iter__(self) -> Iterator[str]:
        return iter(self._of)

    def __len__(self) -> int:
        return len(self._of)

    def __repr__(self) -> str:
        return repr(dict(self))


def _only_waits(held: Holder, waiting: set[asyncio.Task[object] | None]) -> bool:
    """Whether none of a task's asyncio tasks does anything but wait for promises, or for each other."""
    for execution in held.running.values():
        if execution.takes_more():
            return False
        running = execution.parts()
        body, others = running[0] if running else None, running[1:]
        # A body that awaits no promise waits for the tasks that it has made, if it has made any.
        if any(task not in waiting for task in others) or not (body in waiting or others):
            return False
    return True


def _alarms(execution: Running) -> list[str]:
    return execution.alarms()


def _unblock(waiter: Waiter) -> None:
    if waiter.held is not None and waiter.elsewhere:
        waiter.held.unblock()
