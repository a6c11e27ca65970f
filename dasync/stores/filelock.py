"""One writer at a time over one file, across processes and within one; released by the kernel when its holder dies.

SQLite's own busy handling polls, so writers starve each other, and in SQLite before 3.51.3 commits that race
with checkpoints of another connection can corrupt a WAL. Queueing on this lock avoids both. It guards a
file of its own beside the store: a POSIX record lock is dropped as soon as the process closes *any* handle
of the locked file, and SQLite opens and closes handles of the store as it likes.
"""

from __future__ import annotations

import fcntl
import os
import struct
import sys
import threading
from types import TracebackType
from typing import ClassVar

_FLOCK = "hhqqi0q"  # Linux: struct flock, as the C compiler lays it out


class FileLock:
    """A mutual exclusion named by a path; use `FileLock.of(path)`, then `with lock:`, then `lock.close()`."""

    _open: ClassVar[dict[str, FileLock]] = {}
    _registry: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self, path: str) -> None:
        self._path = path
        self._users = 0
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        # Record locks exclude processes, not the threads of one: two stores of one program need this as well.
        self._threads = threading.Lock()

    @classmethod
    def of(cls, path: str) -> FileLock:
        """The lock of that path, one object for the whole process. Raises `OSError`."""
        path = os.path.realpath(path)
        with cls._registry:
            lock = cls._open.get(path)
            if lock is None:
                lock = cls._open[path] = cls(path)
            lock._users += 1
            return lock

    @classmethod
    def holder(cls, path: str) -> int | None:
        """The process that holds the lock of that path now, as the kernel tells it; 0: one that cannot be seen from
        here; None: nobody, or this very process, or it cannot be told on this system."""
        if sys.platform != "linux":
            return None
        asked = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        with cls._registry:
            lock = cls._open.get(os.path.realpath(path))
            if lock is not None:  # another handle, once closed, would take this process's own lock with it
                answer = fcntl.fcntl(lock._fd, fcntl.F_GETLK, asked)
            else:
                try:
                    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                except FileNotFoundError:
                    return None
                try:
                    answer = fcntl.fcntl(fd, fcntl.F_GETLK, asked)
                finally:
                    os.close(fd)
        kind, _, _, _, pid = struct.unpack(_FLOCK, answer)
        return None if kind == fcntl.F_UNLCK else max(0, pid)

    def __enter__(self) -> FileLock:
        self._threads.acquire()
        try:
            fcntl.lockf(self._fd, fcntl.LOCK_EX)
        except BaseException:
            self._threads.release()
            raise
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        fcntl.lockf(self._fd, fcntl.LOCK_UN)
        self._threads.release()

    @classmethod
    def forget(cls) -> None:
        """In a forked child: what the parent's threads hold is not waited for here."""
        cls._open, cls._registry = {}, threading.Lock()

    def close(self) -> None:
        """Give it back; the last user of the path closes it."""
        with self._registry:
            self._users -= 1
            if self._users == 0:
                self._open.pop(self._path, None)
                os.close(self._fd)


os.register_at_fork(after_in_child=FileLock.forget)
