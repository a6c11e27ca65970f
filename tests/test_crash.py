"""Killed for real: SIGKILL at random moments, and what the kernel is asked before an acknowledgement is given."""

from __future__ import annotations

import asyncio
import os
import random
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import NoReturn

import pytest
from worlds import create, resolve

from dasync.core.model import State
from dasync.stores.sqlite import Durability, SqliteStore
from dasync.system import SystemClock

ROWS = 3  # that one batch writes
FRESH = 40  # kills after which the file is made anew, so that creating it is met by kills as well
ACK = 4  # bytes

strace = pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")


async def _commit(path: str, run: int, durability: Durability, acknowledge: Callable[[bytes], object]) -> None:
    """Commit batches of `ROWS` births and, of the batch before, `ROWS` settlements, until killed."""
    store = SqliteStore(path, SystemClock(), durability)
    await store.open()
    number = 0
    while True:
        settled = [resolve(f"{run}-{number - 1}-{row}") for row in range(ROWS) if number]
        await store.transact([*(create(f"{run}-{number}-{row}") for row in range(ROWS)), *settled])
        acknowledge(number.to_bytes(ACK, "big"))
        number += 1


def _child(path: str, run: int, durability: Durability, pipe: int) -> NoReturn:
    try:
        asyncio.new_event_loop().run_until_complete(_commit(path, run, durability, lambda ack: os.write(pipe, ack)))
    finally:
        os._exit(1)  # never comes here alive


def _killed_once(path: str, run: int, rng: random.Random) -> int:
    """Fork a process that commits, kill it at some moment; gives how many batches it acknowledged."""
    durability = rng.choice(["power", "process"])
    reads, writes = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reads)
        _child(path, run, durability, writes)  # type: ignore[arg-type]
    os.close(writes)
    with open(reads, "rb", buffering=0) as pipe:
        acks = b""
        for _ in range(rng.choice([0, 1, 1, 3, 10])):  # none: killed while it opens, or before
            acks += pipe.read(ACK)
        time.sleep(rng.uniform(0, 0.005 if acks else 0.015))  # the moment of death, not a wait for anything
        os.kill(pid, signal.SIGKILL)
        acks += pipe.read()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    return len(acks) // ACK


def _check(path: str, run: int, acknowledged: int) -> int:
    """Every acknowledged batch is there and no half of one; gives how many batches are there."""
    with closing(sqlite3.connect(path)) as connection:
        if not connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
            assert acknowledged == 0
            return 0
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        span = (f"{run}-", f"{run}.")
        rows = connection.execute("SELECT id, state FROM promises WHERE id > ? AND id < ?", span).fetchall()
    batches = len(rows) // ROWS
    written = {f"{run}-{number}-{row}": "resolved" for number in range(batches) for row in range(ROWS)}
    written.update((f"{run}-{batches - 1}-{row}", "pending") for row in range(ROWS) if batches)
    assert dict(rows) == written, f"run {run}"
    assert acknowledged <= batches <= acknowledged + 1, f"run {run}: only one commit can be under way"
    return batches


def _kills(folder: Path, kills: int, seed: int) -> None:
    rng = random.Random(seed)
    batches = unacknowledged = 0
    for run in range(kills):
        path = str(folder / f"{run // FRESH}.db")
        acknowledged = _killed_once(path, run, rng)
        found = _check(path, run, acknowledged)
        batches += found
        unacknowledged += found - acknowledged
    print(f"{kills} kills, {batches} batches, {unacknowledged} of them committed and not acknowledged")
    assert batches > kills, "the kills came too early to show anything"

    async def whole() -> int:
        store = SqliteStore(path, SystemClock())
        await store.open()
        promises = (await store.snapshot()).promises
        await store.close()
        return sum(promise.state is State.RESOLVED for promise in promises.values())

    assert asyncio.run(whole()) > 0, "every row matches its checksum"


def test_kill_200(tmp_path: Path) -> None:
    """200 SIGKILLs at random moments: all that was acknowledged is there, and no half of a batch."""
    _kills(tmp_path, 200, seed=2)


@pytest.mark.campaign
def test_kill_200_more(tmp_path: Path) -> None:
    """As often again."""
    _kills(tmp_path, 200, seed=3)


# -- as the kernel sees it ---------------------------------------------------------------------------------------

PROGRAM = """
import asyncio, os, sys
from test_crash import _commit

def acknowledge(ack):
    os.write(1, b"ack\\n")
    if int.from_bytes(ack, "big") == 49:
        os._exit(0)

asyncio.run(_commit(sys.argv[1], 0, sys.argv[2], acknowledge))
"""


BEATS = """
import asyncio, os, sys
from worlds import join
from dasync.core.protocol import ProcessHeartbeat
from dasync.stores.sqlite import SqliteStore
from dasync.system import SystemClock

async def beat(path, durability):
    store = SqliteStore(path, SystemClock(), durability)
    await store.open()
    await store.transact([join("a")])
    for _ in range(50):
        await store.transact([ProcessHeartbeat("a")])
        os.write(1, b"ack\\n")
    os._exit(0)

asyncio.run(beat(sys.argv[1], sys.argv[2]))
"""


def _traced(
    path: str, durability: str, *options: str, program: str = PROGRAM
) -> subprocess.CompletedProcess[bytes]:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    run = ["strace", "-f", "-qq", *options, sys.executable, "-c", program, path, durability]
    return subprocess.run(run, env=env, capture_output=True, check=False, timeout=120)


@pytest.mark.system
@strace
@pytest.mark.parametrize(("durability", "synced"), [("power", 50), ("process", 0)])
def test_an_acknowledgement_follows_a_sync(tmp_path: Path, durability: str, synced: int) -> None:
    """At "power" each one; at "process" none but the few that follow a checkpoint or the making of the file."""
    log = tmp_path / "strace.txt"
    done = _traced(str(tmp_path / "d.db"), durability, "-e", "trace=fdatasync,fsync,write", "-o", str(log))
    assert done.stdout == b"ack\n" * 50, done.stderr
    calls = re.findall(r"(fdatasync|fsync)\(\d+.*= 0$|(write)\(1, \"ack", log.read_text(), re.MULTILINE)
    after = [bool(before[0]) for before, call in zip([("", ""), *calls], calls, strict=False) if call[1]]
    assert len(after) == 50
    assert sum(after) >= synced
    if durability == "process":
        assert sum(after) < 5


@pytest.mark.system
@strace
def test_what_settles_nothing_waits_for_no_disk(tmp_path: Path) -> None:
    """At "power" too: power loss ends the process whose beat, claim or acknowledgement it undoes."""
    log = tmp_path / "strace.txt"
    options = ("-e", "trace=fdatasync,fsync", "-o", str(log))
    done = _traced(str(tmp_path / "d.db"), "power", *options, program=BEATS)
    assert done.stdout == b"ack\n" * 50, done.stderr
    assert log.read_text().count("sync(") < 25


READS = """
import asyncio, os, sqlite3, sys, traceback
from contextlib import closing, suppress
from dasync.errors import StoreUnavailable
from dasync.stores.sqlite import SqliteStore
from dasync.system import SystemClock
from worlds import create

async def main():
    store, refused = SqliteStore(sys.argv[1], SystemClock(), "process"), 0
    await store.open()
    for number in range(30):
        with suppress(sqlite3.Error), closing(sqlite3.connect(sys.argv[1], isolation_level=None)) as other:
            other.execute("DELETE FROM callbacks")  # so that what is read next is read from the disk
        try:
            assert len(await store.search()) == number - refused
            await store.processes()
            await store.transact([create(f"{number:02}")])
        except StoreUnavailable:
            refused += 1
    print(refused, len(await store.search()) + refused)
    await store.close()

try:
    asyncio.run(main())
finally:
    sys.stdout.flush()
    traceback.print_exc()
    os._exit(0)  # a thread that is left would keep it
"""


@pytest.mark.system
@strace
def test_a_read_that_fails_is_no_damage(tmp_path: Path) -> None:
    """Whichever it is, from where the store is open: what asked for it is refused, and all goes on."""
    refused = 0
    for number in range(40, 100, 12):
        inject = f"inject=pread64:error=ESTALE:when={number}"
        options = ("-e", "trace=pread64", "-e", inject, "-o", os.devnull)
        done = _traced(str(tmp_path / f"{number}.db"), "", *options, program=READS)
        assert len(done.stdout.split()) == 2, done.stderr.decode()
        some, in_all = map(int, done.stdout.split())
        refused += some
        assert some < 10, "strace counts by threads, and each connection has another one"
        assert in_all == 30
    assert refused > 2


@pytest.mark.system
@strace
@pytest.mark.parametrize("call", ["pwrite64", "fdatasync", "fsync", "ftruncate", "unlink"])
def test_a_kill_at_every_write_of_the_making(tmp_path: Path, call: str) -> None:
    """Whichever second system call it dies in, while the file is made and first written, the next one opens it."""
    for number in range(1, 25, 2):
        path = str(tmp_path / f"{call}-{number}.db")
        inject = f"inject={call}:signal=SIGKILL:when={number}"
        done = _traced(path, "power", "-e", f"trace={call}", "-e", inject, "-o", os.devnull)
        acknowledged = done.stdout.count(b"ack")

        async def goes_on(path: str = path) -> int:
            store = SqliteStore(path, SystemClock())
            await store.open()
            await store.transact([create("alive")])
            found = len((await store.snapshot()).promises) - 1
            await store.close()
            return found

        found = asyncio.run(goes_on())
        assert found % ROWS == 0
        assert acknowledged <= found // ROWS <= acknowledged + 1
        if done.returncode == 0:
            return
