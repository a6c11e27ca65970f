"""Doorbells and signs of life between processes of one machine, in a folder beside the store.

Each process has two files there: a Unix datagram socket, where one byte says what to look for in the store, and a file
under a record lock, which the kernel releases the moment its holder dies, by `kill -9` too. A ring may be lost;
polling makes up for it. This file never reads or writes the store.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import socket
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import ClassVar
from zlib import crc32

import anyio
from anyio.abc import SocketAttribute, UNIXDatagramSocket

from dasync.core.model import ProcessRecord
from dasync.ports import Ring

EVERYTHING = Ring.TASKS | Ring.NEWS
MAX_SOCKET_PATH_BYTES = 103  # sun_path holds 108 on Linux and 104 on macOS, with its closing zero


def machine_id() -> str:
    """What tells this machine's running system from every other one."""
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    return socket.gethostname()


def ring(doorbells: Mapping[str, Ring]) -> None:
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
        self._process = ""
        self._lock = -1
        self._socket: UNIXDatagramSocket | None = None
        self._listening: asyncio.Task[None] | None = None
        self._address = ""
        self._on_ring: Callable[[Ring], None] = lambda _: None

    async def open(self, process: str, on_ring: Callable[[Ring], None]) -> str:
        os.makedirs(self._folder, mode=0o700, exist_ok=True)
        self._process, self._on_ring = process, on_ring
        self._lock = os.open(self._lock_path(process), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self._own.add(self._lock_path(process))
        self._address = self._bell_path(process)
        self._socket = await anyio.create_unix_datagram_socket(local_path=self._address, local_mode=0o600)
        self._listening = asyncio.create_task(self._listen(self._socket, on_ring), name="dasync-doorbell")
        return self._address

    def ring(self, doorbells: Mapping[str, Ring]) -> None:
        if self._socket is None:
            return
        if self._address in doorbells:  # its own bell cannot be lost: no other process's writes would make up for it
            self._on_ring(doorbells[self._address])
        others = {address: ring for address, ring in doorbells.items() if address != self._address}
        _ring_from(self._socket.extra(SocketAttribute.raw_socket), others)

    def dead(self, processes: Sequence[ProcessRecord]) -> list[str]:
        here = [process.id for process in processes if process.host == self.host]
        return [id for id in here if self._lock_path(id) not in self._own and self._is_free(self._lock_path(id))]

    def bury(self, process: str) -> None:
        for path in (self._bell_path(process), self._lock_path(process)):
            with suppress(OSError):
                os.unlink(path)

    async def close(self) -> None:
        if self._listening is not None:
            self._listening.cancel()
            with suppress(asyncio.CancelledError):
                await self._listening
        if self._socket is not None:
            await self._socket.aclose()
        if self._lock >= 0:
            self.bury(self._process)
            self._own.discard(self._lock_path(self._process))
            os.close(self._lock)
        self._socket, self._listening, self._lock = None, None, -1

    @staticmethod
    async def _listen(bell: UNIXDatagramSocket, on_ring: Callable[[Ring], None]) -> None:
        async for said, _ in bell:
            on_ring(Ring(said[0] & EVERYTHING) if said else EVERYTHING)

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
        path = os.path.join(self._folder, f"{_file_name(process)}.bell")
        if len(os.fsencode(path)) <= MAX_SOCKET_PATH_BYTES:
            return path
        folder = os.path.join(tempfile.gettempdir(), f"dasync-{os.getuid()}")
        os.makedirs(folder, mode=0o700, exist_ok=True)
        return os.path.join(folder, f"{crc32(os.fsencode(path)):08x}.bell")


def _ring_from(hand: socket.socket, doorbells: Mapping[str, Ring]) -> None:
    for address, ring in doorbells.items():
        # The mailbox of a stopped process fills up, and a dead one is gone: neither may delay a commit.
        with suppress(OSError):
            hand.sendto(bytes([ring]), socket.MSG_DONTWAIT, address)


def _file_name(process: str) -> str:
    """A process id as a file name: its characters where they are harmless, always short, always its own."""
    readable = "".join(c if c.isascii() and (c.isalnum() or c in "-_@.") else "_" for c in process)[:48]
    return f"{readable}-{crc32(process.encode()):08x}"


class NoTransport:
    """For a store that no other process can see: its doorbells ring within this program."""

    host = "here"
    _bells: ClassVar[dict[str, Callable[[Ring], None]]] = {}

    def __init__(self) -> None:
        self._process = ""

    async def open(self, process: str, on_ring: Callable[[Ring], None]) -> str:
        self._process = process
        self._bells[process] = on_ring
        return process

    def ring(self, doorbells: Mapping[str, Ring]) -> None:
        for address, ring in doorbells.items():
            if address in self._bells:
                self._bells[address](ring)

    def dead(self, processes: Sequence[ProcessRecord]) -> list[str]:
        return []

    def bury(self, process: str) -> None:
        """Nothing is left behind."""

    async def close(self) -> None:
        self._bells.pop(self._process, None)
