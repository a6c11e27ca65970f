"""One writer at a time over one file, across processes and within one; released by the kernel when its holder dies.

SQLite's own busy handling polls, so writers starve each other, and in SQLite before 3.51.3 commits that race
with checkpoints of another connection can corrupt a WAL. Queueing on this lock avoids both. It guards a
file of its own beside the store: a POSIX record lock is dropped as soon as the process closes *any* handle
of the locked file, and SQLite opens and closes handles of the store as it likes. In the file stands a number that
those who hold the lock hand on: it outlives each of them, but not a power loss for certain.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import struct
import sys
import threading
from types import TracebackType
from typing import ClassVar
from zlib import crc32

from dasync.system import pause

PAUSE_S = 0.001  # until the next try where the kernel sees a circle
_FLOCK = "hhqqi0q"  # Linux: struct flock, as the C compiler lays it out
# A number and its CRC-32, for what is left of a file after a power loss may be anything. Twice: whoever is killed
# while it writes one leaves the other, of the commit before that which it did not come to.
_NUMBER = struct.Struct("<QI")
_SLOTS = (0, 16)
_BYTES = 32


class FileLock:
    """A mutual exclusion named by a path; use `FileLock.of(path)`, then `with lock:`, then `lock.close()`."""

    _open: ClassVar[dict[str, FileLock]] = {}
    _registry: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self, path: str) -> None:
        self._path = path
        self._users = 0
        self._kept = -1  # a handle of the file that it guards
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        # Record locks exclude processes, not the threads of one: two stores of one program need this as well.
        self._threads = threading.Lock()
        self._older = _SLOTS[0]
        self._slots: mmap.mmap | None = None  # what stands in the file: a commit should not cost two more system calls

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
    def head(cls, path: str, guarded: str, count: int) -> bytes:
        """The first bytes of the file that the lock of `path` guards. Raises `OSError`.

        While this process has that lock the handle stays open: to close any handle of the file would drop the locks
        that SQLite's connections in this process have on it, and with them all that they write from then on.
        """
        with cls._registry:  # nobody opens it meanwhile
            lock = cls._open.get(os.path.realpath(path))
            if lock is not None and lock._kept >= 0:
                return os.pread(lock._kept, count, 0)
            handle = os.open(guarded, os.O_RDONLY | os.O_CLOEXEC)
            if lock is not None:
                lock._kept = handle
            try:
                return os.pread(handle, count, 0)
            finally:
                if lock is None:
                    os.close(handle)

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
            self._wait()
        except BaseException:
            self._threads.release()
            raise
        return self

    def _wait(self) -> None:
        while True:
            try:
                fcntl.lockf(self._fd, fcntl.LOCK_EX)
                return
            except OSError as error:
                # The kernel takes a process for one who waits with all that it holds: two processes with the same two
                # stores look like a circle to it, though each waits in a thread that holds nothing.
                if error.errno != errno.EDEADLK:
                    raise
                pause(PAUSE_S)

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        fcntl.lockf(self._fd, fcntl.LOCK_UN)
        self._threads.release()

    @property
    def number(self) -> int:
        """What the last holder has left here, 0 if nobody has; for who holds the lock."""
        slots = self._mapped()
        found = [_sound(*_NUMBER.unpack_from(slots, at)) for at in _SLOTS]
        number = max(found)
        self._older = _SLOTS[found[0] == number]
        return number

    @number.setter
    def number(self, number: int) -> None:
        """For who has just asked for the one before."""
        _NUMBER.pack_into(self._mapped(), self._older, number, _sum(number))

    def _mapped(self) -> mmap.mmap:
        if self._slots is None:
            # Written, not cut to size: what a full disk has no room for would kill whoever writes to it in memory.
            missing = bytes(max(0, _BYTES - os.fstat(self._fd).st_size))
            if os.pwrite(self._fd, missing, _BYTES - len(missing)) < len(missing):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self._path)
            self._slots = mmap.mmap(self._fd, _BYTES)
        return self._slots

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
                if self._slots is not None:
                    self._slots.close()
                if self._kept >= 0:
                    os.close(self._kept)
                os.close(self._fd)


def _sum(number: int) -> int:
    return crc32(number.to_bytes(8, "little"))


def _sound(number: int, checksum: int) -> int:
    return number if _sum(number) == checksum else 0


os.register_at_fork(after_in_child=FileLock.forget)
