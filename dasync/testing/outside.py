"""What the real world still has to do: threads, subprocesses, sockets. While it does, virtual time stands still.

Jobs are counted until their outcome has arrived; worker threads count the items of their `queue` themselves; of open
files those count on which an answer may come (not listening sockets, not doorbells). A thread that waits for the
asyncio loop is not at work. It waits for no job for ever, and takes a connection for idle on which nothing comes.
"""

from __future__ import annotations

import os
import socket
import stat
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import closing, contextmanager
from selectors import BaseSelector, SelectorKey
from types import FrameType
from typing import Any, Generic, Protocol, TypeVar, TypeVarTuple, Unpack

T = TypeVar("T")
Args = TypeVarTuple("Args")
Events = list[tuple[SelectorKey, int]]
LOOK_S = 0.002  # real seconds between looks at what is under way
IDLE_LOOKS = 100  # looks without an event, after which open connections are idle
MAX_LOOKS = 10_000  # looks at work that does not come to an end


class Process(Protocol):
    """A subprocess."""

    def get_returncode(self) -> int | None:
        """None while it runs."""


class Job(Generic[*Args, T]):
    """A function that a thread is to call."""

    def __init__(self, function: Callable[[Unpack[Args]], T]) -> None:
        self._function = function
        self.thread_id = 0
        """Of the thread that calls it; 0: none yet, or no longer."""

    def __call__(self, *args: *Args) -> T:
        self.thread_id = threading.get_ident()
        try:
            return self._function(*args)
        finally:
            self.thread_id = 0


class Outside:
    """What one asyncio loop waits for of the real world."""

    def __init__(self) -> None:
        self.jobs: set[Job[*tuple[Any, ...], Any]] = set()
        """What threads are to call; each until its outcome has arrived."""
        self.processes: list[Process] = []
        """Subprocesses; those that have ended are forgotten."""
        self._work = 0
        self._idle: dict[int, object] = {}

    @contextmanager
    def work(self) -> Iterator[None]:
        """Something is under way as long as this is open."""
        self._work += 1
        try:
            yield
        finally:
            self._work -= 1

    def wait(self, selector: BaseSelector, select: Callable[[float], Events], own: int) -> Events:
        """Wait, in real time, for an event of the files in `selector`; none: nothing more is to be expected.

        `own` is the file by which threads wake the asyncio loop. Raises `TimeoutError` for work without an end.
        """
        for look in range(MAX_LOOKS):
            at_work = self._is_at_work()  # before the files are looked at: a thread writes to one before it is done
            files = [key for key in selector.get_map().values() if key.fd != own and self._may_answer(key)]
            events = select(LOOK_S if at_work or files else 0)
            if events or not (at_work or files):
                for key, _ in events:
                    self._idle.pop(key.fd, None)
                return events
            if not at_work and look >= IDLE_LOOKS:
                self._idle.update((key.fd, key.data) for key in files)
        raise TimeoutError("a thread or a subprocess does not come to its end")

    def _is_at_work(self) -> bool:
        self.processes = [process for process in self.processes if process.get_returncode() is None]
        if self._work or self.processes:
            return True
        threads = [job.thread_id for job in self.jobs]
        for thread in threading.enumerate():  # anyio's: each has a queue of what it is to call
            if getattr(getattr(thread, "queue", None), "unfinished_tasks", 0):
                threads.append(thread.ident or 0)
        frames = sys._current_frames() if threads else {}
        return not all(waits_for_a_future(frames.get(thread)) for thread in threads)

    def _may_answer(self, key: SelectorKey) -> bool:
        if self._idle.get(key.fd) is key.data:
            return False
        if not stat.S_ISSOCK(os.fstat(key.fd).st_mode):
            return True
        with closing(socket.socket(fileno=os.dup(key.fd))) as its:
            listens = its.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
            return not listens and its.type is not socket.SOCK_DGRAM


def waits_for_a_future(frame: FrameType | None) -> bool:
    """Whether a thread is blocked until somebody sets the outcome of a future, which is not set yet."""
    for _ in range(4):  # the lock's frame or two, then the future's own
        if frame is None:
            return False
        if frame.f_code in _WAITS:
            future = frame.f_locals.get("self")  # None as it returns
            return future is not None and not future.done()
        frame = frame.f_back
    return False


_WAITS = (Future.result.__code__, Future.exception.__code__)
