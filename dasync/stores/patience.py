"""Says so when a store keeps this process waiting: one that was stopped in a transaction holds everybody up.

It ends no wait: whoever holds the lock may be writing, and only its owner knows.
"""

from __future__ import annotations

import asyncio
import logging

from dasync.stores.filelock import FileLock
from dasync.system import call_later

LONG_S = 10.0  # without an answer; a healthy transaction takes milliseconds
_log = logging.getLogger("dasync.store")


class Patience:
    """Watches over the waiting for one store: `with patience:` around each wait."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._waiting = 0
        self._since = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def __enter__(self) -> None:
        loop = asyncio.get_running_loop()
        if not self._waiting:
            self._since = loop.time()
        self._waiting += 1
        if self._timer is None:  # one for many waits: each looks when it fires, and only then
            self._timer = call_later(loop, LONG_S, self._look, loop)

    def __exit__(self, *_: object) -> None:
        self._waiting -= 1
        self._since = asyncio.get_running_loop().time()

    def close(self) -> None:
        """Watch no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        if not self._waiting:
            return
        passed_s = loop.time() - self._since
        if passed_s >= LONG_S:
            pid = FileLock.holder(f"{self._path}-lock")
            who = f"process {pid} holds its write lock" if pid else "nobody else holds its write lock"
            _log.warning(
                "%s has not answered for %.0f s: %s; `dasync doctor --store %s` tells more",
                self._path, passed_s, who, self._path,
            )  # fmt: skip
        self._timer = call_later(loop, LONG_S, self._look, loop)
