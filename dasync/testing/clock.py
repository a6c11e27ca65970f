"""Virtual time: an asyncio loop whose clock jumps to the next timer when there is nothing else to do.

Months pass in milliseconds, and the same program takes the same way in every run. Sockets, threads and subprocesses are
real: while any of them has something to do, time stands still (`outside.py` knows). The order of what is ready is
asyncio's, or drawn from a seed. A loop can be frozen, as a process is that dies: not one callback more.
It refuses to wait for ever: a loop with nothing to wait for raises `Stuck` and says who waits where.
"""

from __future__ import annotations

import asyncio
import ctypes
import selectors
from collections import deque
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar, TypeVarTuple, Unpack

from dasync.runtime.clocks import DurableClock
from dasync.system import stream
from dasync.testing.outside import Job, Outside

T = TypeVar("T")
Args = TypeVarTuple("Args")
T0_MS = 1_700_000_000_000
"""When virtual time begins, in milliseconds since the epoch."""
MAX_TURNS = 1_000_000  # of one loop: more is a program that spins
Policy = Callable[[int], int]
"""Which of so many ready callbacks is next: an index below that number."""


def fifo(ready: int) -> int:
    """First come, first served: asyncio's own order, and the only one that it promises."""
    return 0


def seeded(seed: bytes) -> Policy:
    """Any of them, drawn from `seed`; the same seed draws the same."""
    draws = stream(seed)
    return draws.randrange


class Stuck(Exception):  # named for what happened, as dasync's errors are
    """Nothing is ready, no timer is set and nothing is under way outside, or a program spins. Says who waits where."""


class VirtualLoop(asyncio.SelectorEventLoop):
    """An asyncio loop in virtual time.

    `time()` is the number of seconds since `T0_MS`; it begins at `now_ms`. `policy` decides which callback is next.

    Example:
        >>> import asyncio
        >>> from dasync.testing.clock import VirtualLoop
        >>> with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        ...     runner.run(asyncio.sleep(30 * 86_400))
        ...     runner.get_loop().time()
        2592000.0
    """

    def __init__(self, now_ms: int = T0_MS, policy: Policy = fifo) -> None:
        self.now = (now_ms - T0_MS) / 1000
        """What `time()` gives."""
        self.outside = Outside()
        """What the real world still has to do."""
        self.turns = 0
        """How often it has turned."""
        self._callbacks = _Ready(policy)
        super().__init__(_Selector(self))
        self._ready = self._callbacks

    def time(self) -> float:
        return self.now

    def now_ms(self) -> int:
        """The time, in milliseconds since the epoch."""
        return T0_MS + round(self.now * 1000)

    # -- what keeps time from passing

    def run_in_executor(
        self, executor: Executor | None, func: Callable[[Unpack[Args]], T], *args: *Args
    ) -> asyncio.Future[T]:
        job = Job(func)
        future: asyncio.Future[T] = super().run_in_executor(executor, job, *args)
        self.outside.jobs.add(job)
        future.add_done_callback(lambda _: self.outside.jobs.discard(job))
        return future

    async def _make_subprocess_transport(self, *args: Any, **options: Any) -> asyncio.SubprocessTransport:
        transport: Any = await super()._make_subprocess_transport(*args, **options)  # type: ignore[misc]  # not in typeshed
        self.outside.processes.append(transport)
        return transport  # type: ignore[no-any-return]  # as above

    # -- death

    def freeze(self) -> None:
        """Die: whatever is ready or comes later is never run. The run that is under way ends with `RuntimeError`."""
        nothing = asyncio.Handle(lambda: None, (), self)
        nothing.cancel()
        self._callbacks.instead = nothing
        self.stop()

    @property
    def is_frozen(self) -> bool:
        """Whether it has died."""
        return self._callbacks.instead is not None

    def live(self, main: Coroutine[Any, Any, T]) -> T | None:
        """Run `main` to its end and clean up after it, or until this loop is frozen: then give None and clean
        nothing up. No `finally` and no callback of a dead loop ever runs, not even when Python itself ends."""
        asyncio.set_event_loop(self)  # children are watched on it, in Python 3.11
        task = self.create_task(main)
        try:
            return self.run_until_complete(task)
        except RuntimeError:
            if not self.is_frozen:
                raise
            return None
        finally:
            asyncio.set_event_loop(None)
            self._bury() if self.is_frozen else self._wind_up()

    def _wind_up(self) -> None:
        """What `asyncio.run` does at its end."""
        try:
            left = asyncio.all_tasks(self)
            for task in left:
                task.cancel()
            if left:
                self.run_until_complete(asyncio.gather(*left, return_exceptions=True))
            self.run_until_complete(self.shutdown_asyncgens())
            with self.outside.work():  # a thread that nobody counts
                self.run_until_complete(self.shutdown_default_executor())
        finally:
            self.close()

    def _bury(self) -> None:
        """Keep every task and callback for ever: a coroutine that is collected runs its `finally` blocks."""
        dead: Any = (asyncio.all_tasks(self), list(self._callbacks), self._scheduled)  # type: ignore[attr-defined]  # asyncio's
        for task in dead[0]:
            task._log_destroy_pending = False
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(dead))
        self.close()


class DurableVirtualLoop(DurableClock, VirtualLoop):
    """A `VirtualLoop` with durable clocks, as a loop has that dasync makes."""


class _Ready(deque[asyncio.Handle]):
    """A loop's ready callbacks, of which a policy chooses the next."""

    def __init__(self, policy: Policy) -> None:
        super().__init__()
        self.instead: asyncio.Handle | None = None
        """What a frozen loop gets, whichever callback it asks for."""
        self._policy = policy

    def popleft(self) -> asyncio.Handle:
        if self.instead is not None:
            return self.instead
        at = self._policy(len(self))
        if not at:
            return super().popleft()
        chosen = self[at]
        del self[at]
        return chosen


class _Selector(selectors.DefaultSelector):
    """Asks the real world first, and lets time pass when it has nothing to say."""

    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        loop = self._loop
        loop.turns += 1
        if loop.turns > MAX_TURNS:
            raise Stuck(f"the loop has turned {MAX_TURNS} times: something spins\n{_who_waits(loop)}")
        if timeout == 0:
            return super().select(0) if len(self.get_map()) > 1 else []
        if found := loop.outside.wait(self, super().select, loop._ssock.fileno()):  # type: ignore[attr-defined]  # asyncio's
            return found
        if timeout is None:
            raise Stuck(f"nothing is left to wait for\n{_who_waits(loop)}")
        when: float = loop._scheduled[0]._when  # type: ignore[attr-defined]  # exactly, or rounding would take a turn more
        loop.now = max(loop.now, min(when, loop.now + timeout + 1))
        return []


def _who_waits(loop: VirtualLoop) -> str:
    def place(task: asyncio.Task[Any]) -> str:
        frames = task.get_stack(limit=1)
        return f"{frames[0].f_code.co_filename}:{frames[0].f_lineno}" if frames else "before its first step"

    return "\n".join(sorted(f"  {task.get_name()} at {place(task)}" for task in asyncio.all_tasks(loop)))


def under_way() -> AbstractContextManager[None]:
    """While this is open, something is under way outside that the running loop has to wait for."""
    loop = asyncio.get_running_loop()
    return loop.outside.work() if isinstance(loop, VirtualLoop) else nullcontext()


class VirtualClock:
    """`dasync.ports.Clock` on a `VirtualLoop`."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop

    def now_ms(self) -> int:
        return self._loop.now_ms()

    def monotonic(self) -> float:
        return self._loop.time()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def elapse(self, seconds: float) -> None:
        """Let so much time pass, and everything happen that happens meanwhile."""
        await asyncio.sleep(seconds)


class StillClock:
    """`dasync.ports.Clock` that stands still, for a store that is asked one thing."""

    def __init__(self, now_ms: int) -> None:
        self._now_ms = now_ms

    def now_ms(self) -> int:
        return self._now_ms

    def monotonic(self) -> float:
        return self._now_ms / 1000

    async def sleep(self, seconds: float) -> None:
        await asyncio.get_running_loop().create_future()


class SeededEntropy:
    """`dasync.ports.Entropy` from a seed."""

    def __init__(self, seed: bytes) -> None:
        self._draws = stream(seed)

    def bytes(self, count: int) -> bytes:
        return self._draws.randbytes(count)
