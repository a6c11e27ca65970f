"""Doorbells and signs of life between processes of one machine, in a folder beside the store.

Each process has two files there: a Unix datagram socket, where a letter says what to look for in the store, and a file
under a record lock, which the kernel releases the moment its holder dies, by `kill -9` too, and in which stands what it
ran at the time. A letter brings the news
itself along where it is short, which saves its reader a look into the store. It may be lost; polling makes up for it.
This file never reads or writes the store.
"""

from __future__ import annotations

import asyncio
import fcntl
import mmap
import os
import socket
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import ClassVar
from zlib import crc32

import msgpack  # type: ignore[import-untyped]  # it has no type information

from dasync.core.ids import MARK_BYTES
from dasync.core.model import ProcessRecord, PromiseRecord, State
from dasync.errors import StoreUnavailable
from dasync.ports import Bell, Box, Ring

EVERYTHING = Bell(Ring.TASKS | Ring.NEWS)
RING_BITS = 2  # of a letter's first byte; the others say how often it was passed on
MAX_PASSED = 255 >> RING_BITS
MAX_LETTER_BYTES = 16_384  # longer news are read from the store: a mailbox holds some 200 KiB
BOX_BYTES = 512  # the asyncio loop's task and those of 63 threads
FORGOTTEN_S = 60  # so old is what a dead process has left behind before it goes: by then nobody is about to lock it
MAX_SOCKET_PATH_BYTES = 103  # sun_path holds 108 on Linux and 104 on macOS, with its closing zero


def machine_id() -> str:
    """What tells this machine's running system from every other one."""
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    return socket.gethostname()


def ring(doorbells: Mapping[str, Bell]) -> None:
    """Wake whoever is there, from a process that has no doorbell of its own: it writes once and is gone."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as hand:
        _ring_from(hand, doorbells)


class LocalTransport:
    """Doorbells beside the store at `path`."""

    # Record locks belong to the operating-system process: one that probed its own lock would find it free,
    # and lose it by closing the probe.
    _own: ClassVar[set[str]] = set()

    def __init__(self, path: str) -> None:
        self._folder = f"{path}-processes"
        self.host = machine_id()
        self.box: Box = bytearray(BOX_BYTES)
        self._process = ""
        self._lock = -1
        self._socket: socket.socket | None = None
        self._address = ""
        self._on_ring: Callable[[Bell], None] = lambda _: None

    async def open(self, process: str, on_ring: Callable[[Bell], None]) -> str:
        self._process, self._on_ring = process, on_ring
        try:
            return self._appear(process)
        except OSError as error:  # a full disk: who comes back as another incarnation tries again later
            await self.close(left=True)
            raise StoreUnavailable(f"{self._folder}: no file for a sign of life, or doorbell: {error}") from error

    def _appear(self, process: str) -> str:
        os.makedirs(self._folder, mode=0o700, exist_ok=True)
        self._lock = os.open(self._lock_path(process), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self._own.add(self._lock_path(process))
        # Written, not cut to size: what a full disk has no room for would kill whoever first writes to it in memory.
        os.pwrite(self._lock, bytes(BOX_BYTES), 0)
        self.box = mmap.mmap(self._lock, BOX_BYTES)  # never closed by hand: with its handle the record lock would go
        self._address = self._bell_path(process)
        bell = self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        bell.setblocking(False)
        # No task that waits for letters: one comes as its bell is taken away, and whoever waited is canceled already.
        asyncio.get_running_loop().add_reader(bell, self._hear, bell)
        with suppress(FileNotFoundError):
            os.unlink(self._address)
        bell.bind(self._address)
        os.chmod(self._address, 0o600)
        return self._address

    def ring(self, doorbells: Mapping[str, Bell]) -> None:
        if self._socket is None:
            return
        if self._address in doorbells:  # its own bell cannot be lost: no other process's writes would make up for it
            self._on_ring(Bell(doorbells[self._address].ring))  # what it has settled itself, its own replies bring
        others = {address: ring for address, ring in doorbells.items() if address != self._address}
        _ring_from(self._socket, others)

    def dead(self, processes: Sequence[ProcessRecord]) -> list[str]:
        here = [process.id for process in processes if process.host == self.host]
        return [id for id in here if self._lock_path(id) not in self._own and self._is_free(self._lock_path(id))]

    def ran(self, process: ProcessRecord) -> tuple[bytes, ...]:
        if process.host != self.host or self._lock_path(process.id) in self._own:
            return ()
        try:
            said = Path(self._lock_path(process.id)).read_bytes()
        except OSError:
            return ()
        marks = (said[at : at + MARK_BYTES] for at in range(0, len(said), MARK_BYTES))
        return tuple(sorted({mark for mark in marks if any(mark)}))

    def bury(self, process: str) -> None:
        for path in (self._bell_path(process), self._lock_path(process)):
            with suppress(OSError):
                os.unlink(path)

    def tidy(self, processes: Sequence[ProcessRecord]) -> None:
        known = {self._lock_path(process.id) for process in processes} | self._own
        before = os.fstat(self._lock).st_mtime - FORGOTTEN_S
        for path in map(str, Path(self._folder).glob("*.lock")):
            with suppress(OSError):
                if path not in known and os.stat(path).st_mtime < before and self._is_free(path):
                    with suppress(FileNotFoundError):
                        os.unlink(self._bell(Path(path).stem))
                    os.unlink(path)

    async def close(self, *, left: bool) -> None:
        if self._socket is not None:
            asyncio.get_running_loop().remove_reader(self._socket)
            self._socket.close()
        if self._lock >= 0:
            if self._lock_path(self._process) in self._own:
                if left:  # else the free lock tells that it is gone, at once; without one only its lease would
                    self.bury(self._process)
                self._own.discard(self._lock_path(self._process))
            os.close(self._lock)
        self._socket, self._lock = None, -1

    @classmethod
    def forget(cls) -> None:
        """In a forked child: what its parent has locked is the parent's, whose death is to be seen."""
        cls._own = set()

    def _hear(self, bell: socket.socket) -> None:
        with suppress(BlockingIOError):
            self._on_ring(read_letter(bell.recv(MAX_LETTER_BYTES)))

    @staticmethod
    def _is_free(path: str) -> bool:
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            return False  # no lock to ask: only its lease can tell
        try:
            fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        finally:
            os.close(fd)
        return True

    def _lock_path(self, process: str) -> str:
        return os.path.join(self._folder, f"{_file_name(process)}.lock")

    def _bell_path(self, process: str) -> str:
        return self._bell(_file_name(process))

    def _bell(self, name: str) -> str:
        path = os.path.join(self._folder, f"{name}.bell")
        if len(os.fsencode(path)) <= MAX_SOCKET_PATH_BYTES:
            return path
        folder = os.path.join(tempfile.gettempdir(), f"dasync-{os.getuid()}")
        os.makedirs(folder, mode=0o700, exist_ok=True)
        return os.path.join(folder, f"{crc32(os.fsencode(path)):08x}.bell")


os.register_at_fork(after_in_child=LocalTransport.forget)


def _ring_from(hand: socket.socket, doorbells: Mapping[str, Bell]) -> None:
    for address, bell in doorbells.items():
        # The mailbox of a stopped process fills up, and a dead one is gone: neither may delay a commit.
        with suppress(OSError):
            hand.sendto(letter(bell), socket.MSG_DONTWAIT, address)


def letter(bell: Bell) -> bytes:
    """What is sent: what to look for, then the news if they are short enough to come along."""
    head = bytes([bell.ring | min(bell.passed, MAX_PASSED) << RING_BITS])
    bulk = sum(len(record.param) + len(record.value or b"") for record in bell.news)
    if not bell.news or bulk > MAX_LETTER_BYTES:
        return head
    written: bytes = msgpack.packb([(*record[:11], record.state.value, *record[12:]) for record in bell.news])
    return head + written if len(written) < MAX_LETTER_BYTES else head


def read_letter(letter: bytes) -> Bell:
    """What was sent. From a letter that makes no sense: that there may be everything."""
    try:
        told = msgpack.unpackb(letter[1:], use_list=False) if len(letter) > 1 else ()
        news = tuple(PromiseRecord._make((*record[:11], State(record[11]), *record[12:])) for record in told)
        return Bell(Ring(letter[0] & EVERYTHING.ring), news, letter[0] >> RING_BITS)
    except (ValueError, TypeError, IndexError, msgpack.UnpackException):
        return EVERYTHING


def _file_name(process: str) -> str:
    """A process id as a file name: its characters where they are harmless, always short, always its own."""
    readable = "".join(c if c.isascii() and (c.isalnum() or c in "-_@.") else "_" for c in process)[:48]
    return f"{readable}-{crc32(process.encode()):08x}"


class NoTransport:
    """For a store that no other process can see: its doorbells ring within this program."""

    host = "here"
    _bells: ClassVar[dict[str, Callable[[Bell], None]]] = {}

    def __init__(self) -> None:
        self.box: Box = bytearray(BOX_BYTES)
        self._process = ""

    async def open(self, process: str, on_ring: Callable[[Bell], None]) -> str:
        self._process = process
        self._bells[process] = on_ring
        return process

    def ring(self, doorbells: Mapping[str, Bell]) -> None:
        for address, bell in doorbells.items():
            if address in self._bells:
                self._bells[address](Bell(bell.ring) if address == self._process else bell)

    def dead(self, processes: Sequence[ProcessRecord]) -> list[str]:
        return []

    def ran(self, process: ProcessRecord) -> tuple[bytes, ...]:
        return ()

    def bury(self, process: str) -> None:
        """Nothing is left behind."""

    def tidy(self, processes: Sequence[ProcessRecord]) -> None:
        """Nothing is left behind."""

    async def close(self, *, left: bool) -> None:
        self._bells.pop(self._process, None)
