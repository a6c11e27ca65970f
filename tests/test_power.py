"""Power cuts: a disk that keeps what was synced and may lose, tear and reorder the rest, under a store that is written.

Two processes write a store on the file system of `power.py`. From its log come crash images, moment after moment; each
is opened as after a reboot. At "power" nothing that was acknowledged before the cut is missing; at "process" what is
there is what was there at an earlier moment; at both nothing is torn, mixed or damaged.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import pickle
import random
import shutil
import sqlite3
import struct
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import power
import pytest
from power_writers import ROWS, payload
from shell import environment

from dasync.core import codec
from dasync.core.invariants import Snapshot, inspect
from dasync.core.model import State
from dasync.errors import StoreCorrupt
from dasync.stores.sqlite import SqliteStore
from dasync.system import SystemClock

HERE = Path(__file__).parent
NAME = "s.db"
COUNT = 120  # of batches, and of invocations
IMAGES = 1_000  # for each durability
MOUNT_S = 10
SERVE = "import sys, power; power.serve(*sys.argv[1:])"

disk = pytest.mark.skipif(
    importlib.util.find_spec("mfusepy") is None or not os.access("/dev/fuse", os.R_OK | os.W_OK)
    or shutil.which("fusermount3") is None,
    reason="mfusepy or fuse3 is not installed, or /dev/fuse may not be used",
)  # fmt: skip


@contextmanager
def mounted(folder: Path) -> Iterator[Path]:
    """The disk that forgets; its log is `folder/log` afterwards."""
    mount = folder / "disk"
    mount.mkdir()
    env = environment(PYTHONWARNINGS="default", PYTHONPATH=str(HERE))  # mfusepy has warnings of its own
    server = subprocess.Popen([sys.executable, "-c", SERVE, mount, folder / "log"], env=env)
    try:
        ends = time.monotonic() + MOUNT_S
        while not os.path.ismount(mount):
            assert server.poll() is None, "the disk cannot be mounted"
            assert time.monotonic() < ends
            time.sleep(0.01)
        yield mount
    finally:
        subprocess.run(["fusermount3", "-u", "-z", mount], check=False)
        try:
            server.wait(MOUNT_S)
        finally:
            server.kill()


def load(folder: Path, durability: str) -> list[object]:
    """Write a store with two processes; gives all that the disk was asked meanwhile."""
    with mounted(folder) as mount:
        running = []
        for kind, name in (("batches", "a"), ("program", "b")):
            command = [sys.executable, HERE / "power_writers.py", kind, mount / NAME, name, durability, str(COUNT)]
            running.append(subprocess.Popen(command, env=environment()))
        assert [one.wait(60) for one in running] == [0, 0]
    with open(folder / "log", "rb") as file:
        log: list[object] = pickle.load(file)
    return log


def put(image: power.Image, folder: Path, rng: random.Random) -> None:
    """Lay the store's files out as they are found."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, data in image.files.items():
        if name.startswith(NAME) and "/" not in name and not name.endswith(("-shm", "-lock", "-processes")):
            (folder / name).write_bytes(data)
    if rng.random() < 0.5:  # the shared memory is nobody's any more, whatever is in it
        (folder / f"{NAME}-shm").write_bytes(rng.randbytes(power.SHM_BYTES))


async def rows(path: Path) -> Snapshot:
    """Every row of a store. What is damaged raises `StoreCorrupt`."""
    store = SqliteStore(str(path), SystemClock())
    try:
        await store.open()
        return await store.snapshot()
    finally:
        await store.close()


def batches_in(snapshot: Snapshot) -> int:
    """How many batches of "a" are there; each whole, and none without those before it."""
    rows = {id: one for id, one in snapshot.promises.items() if id.startswith("a-")}
    count, rest = divmod(len(rows), ROWS)
    assert rest == 0, "half a batch"
    for number in range(count):
        for row in range(ROWS):
            id = f"a-{number}-{row}"
            record, last = rows[id], number == count - 1
            assert record.param == payload(id)
            assert record.state is (State.PENDING if last else State.RESOLVED)
            assert record.value == (None if last else payload(id))
    return count


def results_in(snapshot: Snapshot) -> int:
    """How many invocations of "b" are done; each with its result, one after the other."""
    rows = {int(id.partition("-")[2]): one for id, one in snapshot.promises.items() if id.startswith("b-")}
    assert sorted(rows) == list(range(len(rows)))
    done = [number for number, record in rows.items() if record.state is State.RESOLVED]
    for number in done:
        assert codec.decode(rows[number].value or b"") == payload(f"b-{number}")
    assert sorted(done) == list(range(len(done)))
    assert len(rows) - len(done) <= 1
    return len(done)


def check(image: power.Image, snapshot: Snapshot | None, durability: str) -> int:
    """How many acknowledged operations are missing: none at "power"."""
    said = {by: len(image.acknowledged.get(by, ())) for by in "ab"}
    if snapshot is None:
        assert durability == "process" or not any(said.values())
        return sum(said.values())
    assert inspect(snapshot) == []
    found = {"a": batches_in(snapshot), "b": results_in(snapshot)}
    missing = {by: said[by] - found[by] for by in "ab"}
    if durability == "power":
        assert max(missing.values()) <= 0, f"{missing} acknowledged and not there"
    return sum(max(0, count) for count in missing.values())


def half_made(folder: Path, pages_before: int) -> Path:
    """A file whose first page was lost while its first transaction was written, and the journal of that."""
    path = folder / NAME
    path.write_bytes(bytes(8192))
    head = struct.pack(">8sIIIII", bytes.fromhex("d9d505f920a163d7"), 0, 1, pages_before, 512, 4096)
    Path(f"{path}-journal").write_bytes(head.ljust(512, b"\0"))
    return path


def test_a_store_that_was_cut_short_in_the_making_is_made_anew(tmp_path: Path) -> None:
    """It was empty before, as its journal says, and SQLite makes it so; a damaged file that held something is refused
    and left as it is."""
    path = half_made(tmp_path, 0)
    assert asyncio.run(rows(path)).promises == {}
    assert not Path(f"{path}-journal").exists()
    path = half_made(tmp_path, 2)
    with pytest.raises(StoreCorrupt, match="not a dasync store"):
        asyncio.run(rows(path))
    assert path.read_bytes() == bytes(8192)


@pytest.mark.system
@disk
@pytest.mark.parametrize("durability", ["power", "process"])
def test_what_a_power_cut_leaves(tmp_path: Path, durability: str) -> None:
    """1,000 images: writes that were not synced are lost, cut off, reordered or torn."""
    log = load(tmp_path, durability)
    path, rng, seen, lost = tmp_path / "after" / NAME, random.Random(durability), Counter[str](), 0
    kinds = Counter(type(call).__name__ for call in log)
    assert kinds["Ack"] == 2 * COUNT
    assert kinds["Truncate"] > 3, "no checkpoint was met"

    async def reboot() -> None:
        nonlocal lost
        for image in power.images(log, IMAGES, rng):
            at = f"{durability}, call {image.at}, {image.how}"
            try:
                put(image, path.parent, rng)
                snapshot = await rows(path) if NAME in image.files else None
                missing = check(image, snapshot, durability)
            except BaseException as error:
                error.add_note(at)
                raise
            lost += missing > 0
            seen[image.how] += 1
            if rng.random() < 0.1 and snapshot is not None:
                with closing(sqlite3.connect(path)) as connection:
                    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)], at

    asyncio.run(reboot())
    print(f"{durability}: {dict(kinds)}; {dict(seen)}; {lost} images without something that was acknowledged")
