"""The asyncio loop of one simulated process: it runs one callback at a time, when the world lets it.

It has asyncio's own tasks, timers and futures, with durable clocks as a loop has that dasync makes; what it does not
have is a `run`: the world (`cluster.py`) calls `step` on the loop of one process, then on that of another, in one
thread, so a process can be stopped between any two callbacks, or die there. Files, sockets and subprocesses of the real
world are refused here by name; functions in threads run when the world says so (`threads.py` of this folder).
"""

from __future__ import annotations

import asyncio
import heapq
from asyncio import events
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from itertools import islice
from typing import Any, NoReturn, TypeVar, TypeVarTuple, Unpack

from dasync.runtime.branch import BranchTask
from dasync.runtime.clocks import DurableClock

T = TypeVar("T")
Args = TypeVarTuple("Args")
Choice = Callable[[int], int]
"""Which of so many ready callbacks is next: an index below that number."""
Later = Callable[[float, Callable[[], object]], None]
"""Call something on this loop after so many seconds."""


class Unsimulated(RuntimeError):  # named for what it was, as dasync's errors are
    """Code in a simulation has asked for something of the real world. Says for what, and what to do instead."""


def refuse(what: str) -> NoReturn:
    """Raise for a thing of the real world."""
    raise Unsimulated(
        f"{what} is of the real world, and this is a simulation, whose every run must be the same for the same seed:"
        " put a fake in its place, or keep what needs it out of what is simulated"
    )


class ServiceTimer:
    """A timer of dasync's own, which goes by the time that machines are awake."""

    def __init__(self) -> None:
        self._cancelled = False

    def cancel(self) -> None:
        """It is not needed any more."""
        self._cancelled = True

    def cancelled(self) -> bool:
        """Whether it is not needed any more."""
        return self._cancelled


class SimLoop(asyncio.BaseEventLoop):
    """The loop of one process. `time` gives the seconds that have passed in the world."""

    def __init__(
        self, time: Callable[[], float], later: Later, run_in_thread: Callable[..., asyncio.Future[Any]]
    ) -> None:
        self._timer_cancelled_count: int
        self._thread_id: int | None
        super().__init__()
        self._now = time
        self._later = later
        self._run_in_thread = run_in_thread
        self._ready: Any
        self._scheduled: list[Any]

    def time(self) -> float:
        return self._now()

    def next_at(self) -> float | None:
        """When it has something to do: now, if that is past; None: never, by itself."""
        if self._ready:
            return 0.0
        timers = self._scheduled
        while timers and timers[0]._cancelled:
            gone = heapq.heappop(timers)
            gone._scheduled = False
            self._timer_cancelled_count = max(0, self._timer_cancelled_count - 1)
        return float(timers[0]._when) if timers else None

    def step(self, choose: Choice) -> None:
        """Run one callback of those that are ready."""
        ready, timers, now = self._ready, self._scheduled, self._now()
        while timers and timers[0]._when <= now:
            timer = heapq.heappop(timers)
            timer._scheduled = False
            ready.append(timer)
        if not ready:
            return
        at = choose(len(ready))
        if at and _may_overtake(ready, at):
            handle = ready[at]
            del ready[at]
        else:
            handle = ready.popleft()
        if not handle._cancelled:
            handle._run()

    def enter(self) -> None:
        """Code of this process runs from now on."""
        self._thread_id = 1  # it counts as running
        events._set_running_loop(self)

    def leave(self) -> None:
        """It does no more."""
        self._thread_id = None
        events._set_running_loop(None)

    def run_in_executor(
        self, executor: Executor | None, func: Callable[[Unpack[Args]], T], *args: *Args
    ) -> asyncio.Future[T]:
        return self._run_in_thread(self, func, args)

    def close(self) -> None:
        self._ready.clear()
        self._scheduled.clear()
        self._closed = True

    # -- what is not simulated

    def _write_to_self(self) -> None:
        """Nobody sleeps that would have to be woken."""

    def _process_events(self, event_list: object) -> None:
        """There are none."""

    def run_forever(self) -> None:
        refuse("running an asyncio loop by itself")

    def add_reader(self, fd: Any, callback: Callable[[Unpack[Args]], Any], *args: *Args) -> None:
        refuse("waiting for a file (loop.add_reader)")

    def add_writer(self, fd: Any, callback: Callable[[Unpack[Args]], Any], *args: *Args) -> None:
        refuse("waiting for a file (loop.add_writer)")

    def add_signal_handler(self, sig: int, callback: Callable[[Unpack[Args]], object], *args: *Args) -> None:
        refuse("a signal handler (loop.add_signal_handler)")

    async def getaddrinfo(self, host: Any, port: Any, **options: Any) -> Any:
        refuse(f"a name server (getaddrinfo of {host!r})")

    async def create_connection(self, *args: Any, **options: Any) -> Any:
        refuse("a socket (loop.create_connection)")

    async def create_server(self, *args: Any, **options: Any) -> Any:
        refuse("a socket (loop.create_server)")

    async def create_datagram_endpoint(self, *args: Any, **options: Any) -> Any:
        refuse("a socket (loop.create_datagram_endpoint)")

    async def create_unix_connection(self, *args: Any, **options: Any) -> Any:
        refuse("a socket (loop.create_unix_connection)")

    async def create_unix_server(self, *args: Any, **options: Any) -> Any:
        refuse("a socket (loop.create_unix_server)")

    async def sock_connect(self, sock: Any, address: Any) -> Any:
        refuse("a socket (loop.sock_connect)")

    async def sock_recv(self, sock: Any, nbytes: int) -> Any:
        refuse("a socket (loop.sock_recv)")

    async def subprocess_exec(self, *args: Any, **options: Any) -> Any:
        refuse("a subprocess")

    async def subprocess_shell(self, *args: Any, **options: Any) -> Any:
        refuse("a subprocess")


class DurableSimLoop(DurableClock, SimLoop):
    """A `SimLoop` with durable clocks."""

    def plain_call_later(self, delay: float, callback: Callable[..., object], *args: object) -> Any:
        """A timer that is not durable."""
        timer = ServiceTimer()
        self._later(delay, lambda: timer.cancelled() or callback(*args))
        return timer


def _may_overtake(ready: Sequence[asyncio.Handle], at: int) -> bool:
    """Whether that one may go before those ahead of it: a task, before tasks of other executions.

    Within an execution asyncio promises the order in which callbacks were asked for, and programs go by it.
    """
    mine = _family(ready[at])
    return mine is not None and all(_family(other) not in (None, mine) for other in islice(ready, at))


def _family(handle: asyncio.Handle) -> object:
    """The execution whose task it lets go on, or the task, if it is of none; None: it is no task's."""
    task = getattr(handle._callback, "__self__", None)  # type: ignore[attr-defined]  # asyncio's own
    if isinstance(task, BranchTask):
        return task.branch.owner
    return task if isinstance(task, asyncio.Task) else None
