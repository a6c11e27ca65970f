"""A disk that forgets: a FUSE file system that writes down what it was asked, and the images that a power cut leaves.

`serve` serves it in a process of its own, until it is unmounted; its log then holds every call, in order. What was
written and not synced may be lost, whole or sector by sector, in any order; a name is durable when its folder was
synced, whatever was synced of the file. `images` draws what is found then: the files of some moment, after the cut.
Programs on the disk acknowledge by appending to a file there, so an acknowledgement stands in the log where it was
given. Needs libfuse and mfusepy; only the server imports it.
"""

from __future__ import annotations

import errno
import os
import pickle
import random
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

ACKS = "acks-"  # files of acknowledgements begin so
SECTORS = (512, 4096)
SHM_BYTES = 32_768


# -- the log -----------------------------------------------------------------------------------------------------


class Create(NamedTuple):
    name: str
    file: int


class Remove(NamedTuple):
    name: str


class Rename(NamedTuple):
    name: str
    to: str


class Write(NamedTuple):
    file: int
    offset: int
    data: bytes


class Truncate(NamedTuple):
    file: int
    size: int


class Sync(NamedTuple):
    file: int


class SyncFolder(NamedTuple):
    pass


class Ack(NamedTuple):
    by: str
    text: str


# -- the server --------------------------------------------------------------------------------------------------


@dataclass
class Node:
    number: int
    mode: int
    data: bytearray = field(default_factory=bytearray)


def disk(log: list[object]) -> Any:
    """The operations of the file system, which keeps everything in memory."""
    import mfusepy

    class Disk(mfusepy.Operations):  # type: ignore[misc]  # mfusepy may be absent
        use_ns = True

        def __init__(self) -> None:
            self.nodes: dict[str, Node] = {}
            self.count = 0

        def _at(self, path: str) -> Node:
            if path not in self.nodes:
                raise mfusepy.FuseOSError(errno.ENOENT)
            return self.nodes[path]

        def _make(self, path: str, mode: int) -> int:
            self.count += 1
            self.nodes[path] = Node(self.count, mode)
            log.append(Create(path[1:], self.count))
            return self.count

        def getattr(self, path: str, fh: int | None = None) -> dict[str, Any]:
            if path == "/":
                return {"st_mode": stat.S_IFDIR | 0o755, "st_nlink": 2, "st_uid": os.getuid()}
            node = self._at(path)
            owner = {"st_uid": os.getuid(), "st_gid": os.getgid()}
            return {"st_mode": node.mode, "st_nlink": 1, "st_size": len(node.data), **owner}

        def readdir(self, path: str, fh: int) -> list[str]:
            start = path.rstrip("/") + "/"
            found = [name[len(start) :] for name in self.nodes if name.startswith(start)]
            return [".", "..", *(name for name in found if "/" not in name)]

        def create(self, path: str, mode: int, fi: Any = None) -> int:
            return self._make(path, stat.S_IFREG | (mode & 0o777))

        def mknod(self, path: str, mode: int, dev: int) -> int:
            self._make(path, mode)
            return 0

        def mkdir(self, path: str, mode: int) -> int:
            self._make(path, stat.S_IFDIR | mode)
            return 0

        def open(self, path: str, flags: int) -> int:
            return self._at(path).number

        def chmod(self, path: str, mode: int) -> int:
            self._at(path).mode = mode
            return 0

        def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
            return bytes(self._at(path).data[offset : offset + size])

        def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
            node = self._at(path)
            if path.startswith(f"/{ACKS}"):
                log.extend(Ack(path[1 + len(ACKS) :], line) for line in data.decode().split())
            else:
                log.append(Write(node.number, offset, data))
            lay(node.data, offset, data)
            return len(data)

        def truncate(self, path: str, length: int, fh: int | None = None) -> int:
            node = self._at(path)
            log.append(Truncate(node.number, length))
            resize(node.data, length)
            return 0

        def unlink(self, path: str) -> int:
            del self.nodes[path]
            log.append(Remove(path[1:]))
            return 0

        rmdir = unlink

        def rename(self, old: str, new: str) -> int:
            self.nodes[new] = self.nodes.pop(old)
            log.append(Rename(old[1:], new[1:]))
            return 0

        def fsync(self, path: str, datasync: int, fh: int) -> int:
            log.append(Sync(self._at(path).number))
            return 0

        def fsyncdir(self, path: str, datasync: int, fh: int) -> int:
            log.append(SyncFolder())
            return 0

        def utimens(self, path: str, times: Any = None) -> int:
            return 0

        def statfs(self, path: str) -> dict[str, int]:
            return {"f_bsize": 4096, "f_frsize": 4096, "f_blocks": 1 << 20, "f_bavail": 1 << 20, "f_bfree": 1 << 20}

    return Disk()


def serve(mount: str, path: str) -> None:
    import mfusepy

    log: list[object] = []
    mfusepy.FUSE(disk(log), mount, foreground=True, nothreads=True, fsname="power")
    with open(path, "wb") as file:
        pickle.dump(log, file)


def lay(data: bytearray, offset: int, what: bytes) -> None:
    if offset > len(data):
        data.extend(bytes(offset - len(data)))
    data[offset : offset + len(what)] = what


def resize(data: bytearray, size: int) -> None:
    if size < len(data):
        del data[size:]
    else:
        data.extend(bytes(size - len(data)))


# -- what a power cut leaves -------------------------------------------------------------------------------------


class Image(NamedTuple):
    """What is found when the machine is up again."""

    at: int
    """How many calls of the log had been made."""
    how: str
    files: dict[str, bytes]
    acknowledged: dict[str, list[str]]
    """By whom: in order."""


class Platter:
    """What is durable after so many calls, and what is not yet."""

    def __init__(self) -> None:
        self.files: dict[int, bytearray] = {}
        self.unsynced: dict[int, list[Write | Truncate]] = {}
        self.names: dict[str, int] = {}
        self.unsynced_names: list[Create | Remove | Rename] = []
        self.acknowledged: dict[str, list[str]] = {}

    def take(self, call: object) -> None:
        match call:
            case Create() | Remove() | Rename():
                self.unsynced_names.append(call)
            case Write() | Truncate():
                self.unsynced.setdefault(call.file, []).append(call)
            case Sync(file):
                data = self.files.setdefault(file, bytearray())
                for change in self.unsynced.pop(file, ()):
                    apply(data, change)
            case SyncFolder():
                for rename in self.unsynced_names:
                    name(self.names, rename)
                self.unsynced_names.clear()
            case Ack(by, text):
                self.acknowledged.setdefault(by, []).append(text)

    def cut(self, at: int, rng: random.Random) -> Image:
        """One of the images that a power cut may leave now."""
        how = rng.choice(["all lost", "all kept", "cut off", "reordered", "torn", "torn"])
        names = dict(self.names)
        for change in some(self.unsynced_names, how, rng):
            name(names, change)
        files = {}
        for path, number in names.items():
            data = bytearray(self.files.get(number, b""))
            for part in some(self.unsynced.get(number, []), how, rng):
                apply(data, part)
            files[path] = bytes(data)
        return Image(at, how, files, {by: list(said) for by, said in self.acknowledged.items()})


def apply(data: bytearray, change: Write | Truncate) -> None:
    if isinstance(change, Write):
        lay(data, change.offset, change.data)
    else:
        resize(data, change.size)


def name(names: dict[str, int], change: Create | Remove | Rename) -> None:
    match change:
        case Create(path, number):
            names[path] = number
        case Remove(path):
            names.pop(path, None)
        case Rename(path, to):
            if path in names:
                names[to] = names.pop(path)


def some(changes: list[Any], how: str, rng: random.Random) -> list[Any]:
    """Those of the changes that have come to the disk."""
    if how == "all lost":
        return []
    if how == "all kept":
        return changes
    if how == "cut off":
        return changes[: rng.randint(0, len(changes))]
    chance = rng.random()
    if how == "torn":
        sector = rng.choice(SECTORS)
        changes = [part for change in changes for part in torn(change, sector)]
    kept = [change for change in changes if rng.random() < chance]
    if how == "reordered":
        rng.shuffle(kept)
    return kept


def torn(change: Any, sector: int) -> Iterator[Any]:
    if not isinstance(change, Write):
        yield change
        return
    at = 0
    while at < len(change.data):
        upto = min(len(change.data), at + sector - (change.offset + at) % sector)
        yield Write(change.file, change.offset + at, change.data[at:upto])
        at = upto


def images(log: list[object], count: int, rng: random.Random) -> Iterator[Image]:
    """`count` power cuts, spread over the log; some of them at one moment, each with an image of its own."""
    moments = sorted(rng.randint(0, len(log)) for _ in range(count))
    platter, taken = Platter(), 0
    for moment in moments:
        for call in log[taken:moment]:
            platter.take(call)
        taken = moment
        yield platter.cut(moment, rng)
