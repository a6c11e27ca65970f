"""Several processes that write one file: each gets its share, nobody is refused, and the WAL stays short.

The writers are those of `benchmarks/writers.py`, which commit as fast as they can. One that is stopped inside its
write transaction holds the store until it goes on, which no file database can avoid: such moments are told by the
kernel, which names the holder of the lock, and counted apart.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sqlite3
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pytest
from shell import ROOT

from dasync.cli import doctor, main
from dasync.core.protocol import PromiseCreate
from dasync.stores.filelock import FileLock
from dasync.stores.sqlite import CHECKPOINT_BYTES, PATIENT_BYTES, SqliteStore
from dasync.system import SystemClock

sys.path.append(str(ROOT))  # benchmarks/ is there, and is not installed
writers = import_module("benchmarks.writers")

EQUAL = pytest.approx(1, abs=0.2)
STOPPED_S = 0.4
TRIES = 3  # of a short measurement on a machine that does other things too


def stop(pid: int) -> None:
    """Stop a process; it has stopped when this returns."""
    os.kill(pid, signal.SIGSTOP)
    ends = time.monotonic() + 10
    while Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "T":
        assert time.monotonic() < ends
        time.sleep(0.0005)


def stop_inside(pid: int, path: str) -> None:
    """Stop a writer while it holds the lock, in its transaction."""
    ends = time.monotonic() + 10
    while True:
        stop(pid)
        if FileLock.holder(f"{path}-lock") == pid:
            return
        assert time.monotonic() < ends, "it does not write"
        os.kill(pid, signal.SIGCONT)
        time.sleep(0.002)


# -- shares ------------------------------------------------------------------------------------------------------


def test_writers_are_never_refused_and_none_starves() -> None:
    """Four processes that write as fast as they can; how fast that is, beside what else runs, is no test's matter."""
    ours = writers.measure(0.8, kinds=("dasync",))["dasync"]
    print(ours)
    assert ours.errors == 0
    assert min(ours.shares) > 0.5


@pytest.mark.campaign
def test_the_lock_beside_busy_timeout_alone() -> None:
    """Each writer within a fifth of an equal share; the slowest hundredth of commits, of all writers and of the worst
    one, at least twice as fast as that of the same store without its lock."""
    for left in reversed(range(TRIES)):
        found = writers.measure(5, kinds=("dasync", "unlocked"))
        print(found)
        ours, unlocked = found["dasync"], found["unlocked"]
        assert ours.errors == 0
        fast = ours.p99_ms <= unlocked.p99_ms / 2 and ours.worst_p99_ms <= unlocked.worst_p99_ms / 2
        if (fast and ours.shares == [EQUAL] * 4) or not left:
            assert ours.shares == [EQUAL] * 4
            assert fast
            return


# -- one that is stopped, or killed ------------------------------------------------------------------------------


def test_a_writer_that_is_stopped_in_its_transaction_is_named_and_killed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Everybody waits for it, nobody is refused; `dasync doctor` names it; kill -9 gives the lock back."""
    path = str(tmp_path / "w.db")
    said: list[str] = []

    def meanwhile(pids: list[int]) -> None:
        stop_inside(pids[0], path)
        begun = time.monotonic()
        assert main(["doctor", "--store", path]) == 1
        said.append(capsys.readouterr().out)
        assert FileLock.holder(f"{path}-lock") == pids[0]
        os.kill(pids[0], signal.SIGKILL)
        said.append(f"{pids[0]} {time.monotonic() - begun}")

    told = writers.play("dasync", path, 4, "power", 2.0, meanwhile)
    pid, held_s = said[1].split()
    assert f"process {pid} (" in said[0]
    assert "which is stopped, holds it and nobody else can write" in said[0]
    assert f"kill -KILL {pid}" in said[0]
    assert told[0] is None
    assert [one.errors for one in told[1:]] == [[], [], []]
    waits = [max(done - begun for begun, done in one.commits) for one in told[1:]]
    assert all(float(held_s) - 0.2 < wait < float(held_s) + 5 for wait in waits), "they waited for it, then went on"


class Moment(NamedTuple):
    """Somebody was stopped."""

    who: int
    begun: float
    ended: float
    inside: bool
    """In its transaction."""


@pytest.mark.campaign
def test_who_is_stopped_between_its_transactions_holds_nobody_up(tmp_path: Path) -> None:
    """Writers are stopped at random. Those that do not hold the lock then, queueing for it or not, delay nobody; the
    moments of those that do are counted apart; nobody is refused."""
    path, rng, moments = str(tmp_path / "w.db"), random.Random(5), list[Moment]()

    def meanwhile(pids: list[int]) -> None:
        for _ in range(14):
            who = rng.randrange(4)
            stop(pids[who])
            begun, inside = time.monotonic(), FileLock.holder(f"{path}-lock") == pids[who]
            time.sleep(STOPPED_S)
            moments.append(Moment(who, begun, time.monotonic(), inside))  # before it goes on: then others do, at once
            os.kill(pids[who], signal.SIGCONT)
            time.sleep(rng.uniform(0.05, 0.1))

    told = writers.play("dasync", path, 4, "power", 9.0, meanwhile)
    assert [one.errors for one in told] == [[]] * 4
    held, free = [one for one in moments if one.inside], [one for one in moments if not one.inside]
    print(f"{len(held)} stopped inside, {len(free)} outside")
    for moment in free:  # whatever the others began then went on meanwhile, or with whom they met next
        for number, one in enumerate(told):
            if number != moment.who:
                done = [end for _, end in one.commits if moment.begun < end < moment.ended]
                assert len(done) > 5, f"writer {number} stood still while {moment.who} was stopped outside"
    for moment in held:  # what was acknowledged late was begun before
        done = [end for one in told for begun, end in one.commits if moment.begun < begun and end < moment.ended]
        assert done == [], "nobody can write then"
    apart = [
        (begun, end)
        for number, one in enumerate(told)
        for begun, end in one.commits
        if not any(
            begun < moment.ended and end > moment.begun and (moment.inside or moment.who == number)
            for moment in moments
        )
    ]
    assert max(end - begun for begun, end in apart) < 0.9 * STOPPED_S
    assert free


# -- the WAL -----------------------------------------------------------------------------------------------------


@contextmanager
def readers_without_a_gap(path: str, read_s: float = 0.01) -> Iterator[None]:
    """Each reads briefly, and the next one has begun before it ends: there is always one."""
    over = threading.Event()

    def read() -> None:
        pair = [sqlite3.connect(path, isolation_level=None, check_same_thread=False) for _ in range(2)]
        for one in pair:
            one.execute("PRAGMA busy_timeout = 5000")
        _begin(pair[0])
        while not over.is_set():
            _begin(pair[1])
            time.sleep(read_s)
            pair[0].execute("ROLLBACK")
            pair.reverse()
        for one in pair:
            one.close()

    thread = threading.Thread(target=read)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _begin(connection: sqlite3.Connection) -> None:
    connection.execute("BEGIN")
    connection.execute("SELECT count(*) FROM tasks").fetchall()


@asynccontextmanager
async def opened(path: str) -> AsyncIterator[SqliteStore]:
    store = SqliteStore(path, SystemClock(), "process")
    await store.open()
    try:
        yield store
    finally:
        await store.close()


async def fill(store: SqliteStore, megabytes: int, name: str = "p") -> list[int]:
    """Commit so much; gives the length of the WAL after each commit."""
    lengths = []
    for number in range(4 * megabytes):
        await store.transact([PromiseCreate(f"{name}{number}", "f", 1, bytes(2**18))])
        lengths.append(os.stat(f"{store.path}-wal").st_size)
    return lengths


async def write(path: str, megabytes: int, name: str = "p") -> list[int]:
    async with opened(path) as store:
        return await fill(store, megabytes, name)


def made(path: str) -> None:
    asyncio.run(write(path, 0))


def test_readers_who_come_and_go_do_not_keep_the_wal(tmp_path: Path) -> None:
    """Though at each moment somebody reads, a checkpoint gets through once it waits for those who read just then."""
    path = str(tmp_path / "w.db")
    made(path)
    with readers_without_a_gap(path):
        lengths = asyncio.run(write(path, 32))
    assert max(lengths) < PATIENT_BYTES + 2 * CHECKPOINT_BYTES
    assert sum(after < before for before, after in pairwise(lengths)) >= 1


def test_a_reader_that_never_ends_keeps_the_wal_until_it_does(tmp_path: Path) -> None:
    """What it may still read is kept: the WAL grows, commits go on, and the first ones after its end cut it."""
    path = str(tmp_path / "w.db")
    made(path)
    with closing(sqlite3.connect(path, isolation_level=None)) as reader:
        _begin(reader)
        lengths = asyncio.run(write(path, 24))
        assert lengths == sorted(lengths)
        assert lengths[-1] > 24 * 2**20
        assert reader.execute("SELECT count(*) FROM promises").fetchone() == (0,)
        reader.execute("ROLLBACK")
        lengths = asyncio.run(write(path, 8, "q"))
    assert min(lengths) < CHECKPOINT_BYTES
    assert max(lengths) < 24 * 2**20 + 3 * CHECKPOINT_BYTES


def test_a_wal_that_another_process_has_cut_is_looked_after_as_before(tmp_path: Path) -> None:
    """Who has failed to cut a long one does not wait until it is as long again."""
    path = str(tmp_path / "w.db")

    async def cut_in_turn() -> list[int]:
        async with opened(path) as failed, opened(path) as other:
            with closing(sqlite3.connect(path, isolation_level=None)) as reader:
                _begin(reader)
                await fill(failed, 25)
            while os.stat(f"{path}-wal").st_size > CHECKPOINT_BYTES:
                await fill(other, 1, os.urandom(4).hex())
            return await fill(failed, 10, "q")

    assert max(asyncio.run(cut_in_turn())) < 2 * CHECKPOINT_BYTES


@pytest.mark.campaign
def test_the_wal_under_load(tmp_path: Path) -> None:
    """Writers that write all the time and readers of all kinds, for DASYNC_WAL_S seconds: it stays below 64 MB."""
    seconds = float(os.environ.get("DASYNC_WAL_S", "25"))
    path, longest, looks = str(tmp_path / "w.db"), 0, 0

    def meanwhile(pids: list[int]) -> None:
        nonlocal longest, looks
        ends = time.monotonic() + seconds
        with readers_without_a_gap(path), readers_without_a_gap(path, 0.05):
            while time.monotonic() < ends:
                longest, looks = max(longest, os.stat(f"{path}-wal").st_size), looks + 1
                time.sleep(0.01)

    told = writers.play("dasync", path, 4, "power", seconds, meanwhile)
    found = writers.figures([told], seconds)
    print(f"{found}; the longest WAL of {looks} looks in {seconds:g} s: {longest / 2**20:.1f} MiB")
    assert found.errors == 0
    assert CHECKPOINT_BYTES < longest < doctor.WAL_BYTES
