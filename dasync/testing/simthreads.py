"""Functions in threads, in a simulation: each is begun at a tick of the world, which then waits for it.

A thread really runs, since its function may block: for an outcome that only the asyncio loop can give it. But never two
at a time, nor one beside the loop: after each callback the world waits until every thread has ended or blocks on a
future that is not set. So the order of everything stays the seed's.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Callable
from contextvars import copy_context
from typing import Any, TypeVar

from dasync.testing.outside import waits_for_a_future

T = TypeVar("T")
LOOK_S = 0.0002  # real seconds between looks at a thread that is at work
MAX_LOOKS = 50_000


class Threads:
    """Those of one world."""

    def __init__(self) -> None:
        self._live: list[_Thread] = []

    def run(
        self, loop: asyncio.AbstractEventLoop, func: Callable[..., Any], args: tuple[Any, ...]
    ) -> asyncio.Future[Any]:
        """Call `func` in a thread that is begun at a later tick."""
        future: asyncio.Future[Any] = loop.create_future()
        thread = _Thread(loop, future, func, args)
        loop.call_soon(self._begin, thread)
        return future

    def rest(self) -> None:
        """Return when no thread is at work."""
        if not self._live:
            return
        for thread in self._live:
            thread.wait()
        over = [thread for thread in self._live if not thread.is_alive()]
        self._live = [thread for thread in self._live if thread.is_alive()]
        for thread in over:
            thread.tell()

    def close(self) -> None:
        """Those that still block do so for ever: nobody answers them."""
        self._live.clear()

    def _begin(self, thread: _Thread) -> None:
        if not thread.future.cancelled():
            self._live.append(thread)
            thread.start()


class _Thread(threading.Thread):
    def __init__(
        self, loop: asyncio.AbstractEventLoop, future: asyncio.Future[Any], func: Callable[..., Any],
        args: tuple[Any, ...],
    ) -> None:  # fmt: skip
        super().__init__(name="dasync-simulated", daemon=True)
        self.future = future
        self._loop = loop
        self._call = func
        self._arguments = args
        self._in = copy_context()
        self._value: Any = None
        self._error: BaseException | None = None

    def run(self) -> None:
        try:
            self._value = self._in.run(self._call, *self._arguments)
        except BaseException as error:
            self._error = error

    def wait(self) -> None:
        """Return when it has ended or blocks."""
        for _ in range(MAX_LOOKS):
            if not self.is_alive() or waits_for_a_future(sys._current_frames().get(self.ident or 0)):
                return
            self.join(LOOK_S)
        raise TimeoutError("a function in a thread does not come to its end")

    def tell(self) -> None:
        """Its outcome arrives."""
        if self._loop.is_closed() or self.future.done():
            return
        if self._error is None:
            self._loop.call_soon(_set, self.future, self._value, None)
        else:
            self._loop.call_soon(_set, self.future, None, self._error)


def _set(future: asyncio.Future[Any], value: Any, error: BaseException | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(value)
    else:
        future.set_exception(error)
