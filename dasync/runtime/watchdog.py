"""Says so when the asyncio loop stands still, while it does: which task's code blocks it, in which line, since when.

A process whose loop is blocked renews no lease, and whoever notices afterwards notices too late. So a thread asks the
loop for a sign of life every now and then. It interrupts nothing and takes nothing away.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from contextlib import suppress
from threading import Event, Thread, get_ident
from types import FrameType

from dasync.runtime import source
from dasync.runtime.lease import Lease, Steps

BLOCKED_S = 1.0  # without a sign of life, until that is said; of a short lease it is a quarter
_log = logging.getLogger("dasync.worker")


class Watchdog:
    """Watches over the running asyncio loop, in real time."""

    def __init__(self, lease: Lease, lease_s: float) -> None:
        self._lease = lease
        self._lease_s = lease_s
        self._loop = asyncio.get_running_loop()
        self._loop_thread = get_ident()
        self._answered, self._stopped = Event(), Event()
        self._thread = Thread(target=self._watch, name="dasync-watchdog", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Watch no more."""
        self._stopped.set()

    def _watch(self) -> None:
        patience_s = min(BLOCKED_S, self._lease_s / 4)
        while not self._stopped.wait(patience_s / 2):
            self._answered.clear()
            with suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._answered.set)
            if self._answered.wait(patience_s):
                continue
            self._say(patience_s)
            while not (self._stopped.is_set() or self._loop.is_closed() or self._answered.wait(patience_s)):
                pass  # it is said once

    def _say(self, stood_s: float) -> None:
        running, frame = self._lease.running, sys._current_frames().get(self._loop_thread)
        if self._loop.is_closed() or not self._loop.is_running() or frame is None:
            return
        function, line = _outermost(frame), source.calling(self._loop_thread)
        who = f"{function} of {running.id!r}" if running is not None and function else "something"
        _log.warning(
            "the asyncio loop has stood still for %.1f s: %s blocks it%s. A lease of %g s is lost like that; write what"
            " blocks, as time.sleep or a long computation do, with plain `def`, and dasync runs it in a thread",
            stood_s, who, f" at {line}" if line else "", self._lease_s,
        )  # fmt: skip


def _outermost(frame: FrameType | None) -> str:
    """The function whose steps are taken in that thread."""
    function = ""
    while frame is not None and frame.f_code is not Steps.send.__code__:
        if not source.is_foreign(frame.f_code.co_filename):
            function = frame.f_code.co_qualname
        frame = frame.f_back
    return "" if frame is None else function
