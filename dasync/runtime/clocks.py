"""Durable clocks: the timers that code inside an execution sets, by asyncio's own means or by `dasync.timeout`.

On an asyncio loop that dasync made (`dasync.run`, `dasync.loop_factory`, `dasync worker`) each timer that is set inside
an execution is a promise of the store: its time counts once, crash or no crash, and it rings in its turn among the
execution's other outcomes. That holds for `asyncio.sleep`, `timeout`, `wait_for`, `loop.call_later`, `call_at`, and for
anyio's clocks. Outside executions, and on a loop that somebody else made, such timers are as they always are. One that
is canceled before the next batch is written leaves no trace.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextvars import Context, copy_context
from types import TracebackType
from typing import Protocol, cast

from dasync.runtime.branch import Branch, BranchTask
from dasync.runtime.function import Alarm, Seconds, caller, here, seconds


class Sleeper(Protocol):
    """An execution, as its timers see it."""

    time: float
    """What the clock of the asyncio loop showed at least when the last of its timers rang."""

    def alarm(self, at: Branch, delay_s: float, ring: Callable[[], None]) -> Alarm:
        """Call `ring` after that time."""


class AlarmHandle(asyncio.TimerHandle):
    """What `call_later` and `call_at` give inside an execution."""

    alarm: Alarm

    def cancel(self) -> None:
        """It is not needed any more."""
        if not self.cancelled():
            super().cancel()
            self.alarm.stop()


class DurableClock(asyncio.BaseEventLoop):
    """An asyncio loop on which the timers that executions set are durable; to be mixed into a whole one."""

    _ringing: tuple[BranchTask[object], float] | None = None

    def time(self) -> float:
        """Seconds; inside an execution never before the time for which its last timer was set."""
        now, sleeper = super().time(), self._sleeper()
        return now if sleeper is None else max(now, sleeper.time)

    def call_at(
        self, when: float, callback: Callable[..., object], *args: object, context: Context | None = None
    ) -> asyncio.TimerHandle:
        """Call `callback` at that time of `time()`."""
        task = self._setter()
        if task is None:
            return super().call_at(when, callback, *args, context=context)
        handle = AlarmHandle(when, callback, args, self, context or copy_context())
        sleeper = cast(Sleeper, task.branch.owner)

        def ring() -> None:
            if not handle.cancelled():
                sleeper.time = max(sleeper.time, when)
                before, self._ringing = self._ringing, (task, when)
                try:
                    handle._run()
                finally:
                    self._ringing = before

        handle.alarm = sleeper.alarm(task.branch, max(0.0, when - self.time()), ring)
        return handle

    def plain_call_later(
        self, delay: float, callback: Callable[..., object], *args: object
    ) -> asyncio.TimerHandle:
        """Call `callback` after that time, whoever asks for it: a timer that is not durable."""
        return super().call_at(super().time() + delay, callback, *args)

    def _setter(self) -> BranchTask[object] | None:
        """The task of an execution for which code runs now."""
        if self._ringing is not None:
            return self._ringing[0]
        task = asyncio.current_task(self)
        return task if type(task) is BranchTask else None

    def _sleeper(self) -> Sleeper | None:
        task = self._setter()
        return None if task is None else cast(Sleeper, task.branch.owner)


class DurableLoop(DurableClock, asyncio.SelectorEventLoop):
    """The asyncio loop that dasync makes."""


def loop_factory() -> asyncio.AbstractEventLoop:
    """A new asyncio loop with durable clocks, for `asyncio.Runner(loop_factory=dasync.loop_factory)`.

    Inside durable functions that run on it, `asyncio.sleep`, `asyncio.timeout`, `asyncio.wait_for`, `loop.call_later`
    and anyio's clocks are durable timers. `dasync.run` and `dasync worker` use it.

    Example:
        >>> import asyncio, dasync
        >>> @dasync.function
        ... async def nap() -> str:
        ...     await asyncio.sleep(0.01)
        ...     return "rested"
        >>> async def main() -> str:
        ...     async with dasync.EventLoop():
        ...         return await nap()
        >>> with asyncio.Runner(loop_factory=dasync.loop_factory) as runner:
        ...     runner.run(main())
        'rested'
    """
    return DurableLoop()


class timeout:  # noqa: N801  # called as asyncio.timeout is
    """`async with dasync.timeout(seconds):` as `asyncio.timeout`, durable on every asyncio loop.

    The time counts once: a crash does not start it anew, and a replay times out at the same place. `delay` is in
    seconds, or a timedelta. When it is over, what the block awaits is canceled and the block raises `TimeoutError`; a
    promise that was awaited goes on. Outside executions it is `asyncio.timeout`.

    Example:
        >>> import dasync
        >>> @dasync.function
        ... async def asks() -> str:
        ...     try:
        ...         async with dasync.timeout(0.01):
        ...             return await dasync.promise(str)
        ...     except TimeoutError:
        ...         return "nobody came"
        >>> dasync.run(asks)
        'nobody came'
    """

    def __init__(self, delay: Seconds) -> None:
        self._delay_s = seconds(delay, "a timeout")
        self._inner = asyncio.timeout(None)
        self._alarm: Alarm | None = None

    def expired(self) -> bool:
        """Whether the time was over before the block ended."""
        return self._inner.expired()

    async def __aenter__(self) -> timeout:
        await self._inner.__aenter__()
        at = here()
        if at is None:
            self._inner.reschedule(asyncio.get_running_loop().time() + self._delay_s)
        else:
            self._alarm = caller(at).alarm(at, self._delay_s, self._expire)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._alarm is not None:
            self._alarm.stop()
        await self._inner.__aexit__(kind, error, traceback)

    def _expire(self) -> None:
        self._inner.reschedule(asyncio.get_running_loop().time())
