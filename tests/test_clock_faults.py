"""Wall clocks that are wrong, or jump, in one of the processes on a store.

Leases go by each process's monotonic clock and commits are numbered in the order in which they are made, so neither
depends on what the time is said to be. Deadlines do: each process takes what is due by its own clock, so a promise
settles early by as much as the clock of whoever settles it is ahead of its maker's, and not twice.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import programs
import pytest
import skewed
from clocks import T0, FakeClock
from play import World, rows, settle, until, until_rows
from worlds import create, resolve

import dasync
from dasync.core.model import State
from dasync.stores.filelock import FileLock
from dasync.stores.rows import TURNS_PER_MS
from dasync.stores.sqlite import SqliteStore

HOUR_MS = 3_600_000
LEASE_S = 2.0  # not much less: one on a busy machine may be lost for good reason
LOST = re.compile(r"lost its lease|has not renewed|is dead")
SKEWS = ("+1h", "-1h")

faketime = pytest.mark.skipif(not skewed.library(), reason="faketime is not installed")


# -- the order of commits ------------------------------------------------------------------------------------------


def test_commits_are_numbered_in_their_order_whatever_the_clocks_say(tmp_path: Path) -> None:
    """Of two processes whose clocks are an hour apart each numbers its commits later than all before; so does one that
    comes after them, and whose clock was set back."""
    path = str(tmp_path / "s.db")

    async def settled(clock: FakeClock, *ids: str) -> list[int]:
        store = SqliteStore(path, clock)
        await store.open()
        turns = []
        for id in ids:
            reply = (await store.transact([create(id), resolve(id)])).replies[1]
            assert reply.promise is not None
            turns.append(reply.promise.turn or 0)
        await store.close()
        return turns

    async def in_turn() -> list[int]:
        ahead, behind = FakeClock(T0 + HOUR_MS), FakeClock(T0)
        turns = [await settled(clock, f"{n}") for n, clock in enumerate((behind, ahead, behind, behind, ahead))]
        return [turn for some in turns for turn in some]

    turns = asyncio.run(in_turn())
    assert turns == sorted(set(turns))
    assert turns[0] == T0 * TURNS_PER_MS
    assert turns[2] > (T0 + HOUR_MS) * TURNS_PER_MS


def test_what_stands_in_the_lock_file_is_checked(tmp_path: Path) -> None:
    """A number that was torn counts for nothing: the one before it does, of which there is another copy."""
    path = tmp_path / "lock"

    def reopened() -> int:
        lock = FileLock.of(str(path))
        with lock:
            number = lock.number
        lock.close()
        return number

    lock = FileLock.of(str(path))
    with lock:
        assert lock.number == 0
        for number in (2**50, 2**50 + 1, 2**50 + 2):
            lock.number = number
            assert lock.number == number
    lock.close()
    assert reopened() == 2**50 + 2
    whole = path.read_bytes()
    for at in range(len(whole)):  # torn anywhere, at most one of the two is lost
        path.write_bytes(whole[:at] + b"\xff" + whole[at + 1 :])
        assert reopened() in (2**50 + 1, 2**50 + 2)
    path.write_bytes(b"\xff" * len(whole))
    assert reopened() == 0
    path.write_bytes(whole[:3])
    assert reopened() == 0


# -- processes with a wrong clock ----------------------------------------------------------------------------------


class Site:
    """A store, and workers on it, some of whose clocks are wrong."""

    def __init__(self, folder: Path) -> None:
        self.path, self.ledger, self._folder = folder / "s.db", folder / "ledger", folder
        self.workers: list[subprocess.Popen[bytes]] = []

    def hire(self, group: str, skew: str = "", lease_s: float = LEASE_S) -> subprocess.Popen[bytes]:
        """A worker; with `skew` its clock is off by that, which `set_clock` may change."""
        offset = None
        if skew:
            self.set_clock(skew)
            offset = self._folder / "offset"
        worker = skewed.start(self.path, self.ledger, group, lease_s, offset)
        self.workers.append(worker)
        self.wait_for(f"up {worker.pid} ")
        return worker

    def set_clock(self, skew: str) -> None:
        new = self._folder / "new"
        new.write_text(skew)
        new.rename(self._folder / "offset")

    def lines(self, start: str) -> list[str]:
        written = self.ledger.read_text().splitlines() if self.ledger.exists() else []
        return [line for line in written if line.startswith(start)]

    def wait_for(self, start: str) -> None:
        ends = time.monotonic() + 20
        while not self.lines(start):
            assert time.monotonic() < ends, f"nobody wrote {start!r}: {self.lines('')}"
            time.sleep(0.005)

    def go(self) -> None:
        Path(f"{self.ledger}.go").touch()

    def log(self) -> str:
        return Path(f"{self.ledger}.log").read_text()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path)
    yield site
    for worker in site.workers:
        worker.kill()
        worker.wait()


@pytest.mark.system
@faketime
@pytest.mark.parametrize("skew", [*SKEWS, "jumps"])
def test_who_has_a_wrong_clock_keeps_its_tasks_and_takes_nobodys(
    site: Site, skew: str, caplog: pytest.LogCaptureFixture
) -> None:
    """For longer than a lease: ahead, behind, or jumping by hours while it works. No lease is lost, no task begins
    again; and one that is killed is noticed as ever."""
    wrong = site.hire("far", "+0" if skew == "jumps" else skew)
    right = site.hire("near")

    async def main(loop: dasync.EventLoop) -> None:
        held = {name: programs.loiter.options(on=name, id=name)(name) for name in ("far", "near")}
        await until(lambda: len(site.lines("begin")) == 2)
        started = time.monotonic()
        while time.monotonic() - started < 1.5 * LEASE_S:
            for jump in ("+1h", "-1h", "+0") if skew == "jumps" else (skew,):
                site.set_clock(jump)
                await asyncio.sleep(0.3)
        assert sorted(site.lines("begin")) == [f"begin far {wrong.pid}", f"begin near {right.pid}"]
        assert not LOST.search(site.log() + caplog.text)
        heir = await asyncio.to_thread(site.hire, "far", "" if skew == "+1h" else skew.replace("jumps", "-1h"))
        wrong.kill()
        await until(lambda: f"begin far {heir.pid}" in site.lines("begin"))
        site.go()
        assert [await one for one in held.values()] == [f"far by {heir.pid}", f"near by {right.pid}"]

    World(str(site.path), None).play(main, lease=LEASE_S, poll=0.05)


@pytest.mark.system
@faketime
@pytest.mark.parametrize("skew", SKEWS)
def test_a_stopped_process_is_given_its_lease_whatever_its_clock_says(site: Site, skew: str) -> None:
    """And no more: by the monotonic clock of who watches it."""
    wrong = site.hire("far", skew)
    site.hire("far")

    async def main(loop: dasync.EventLoop) -> None:
        promise = programs.loiter.options(on="far/" + await _name(loop, wrong.pid, site), id="l")("l")
        await until(lambda: site.lines("begin"))
        assert site.lines("begin") == [f"begin l {wrong.pid}"]
        _stop(wrong.pid, f"{site.path}-lock")
        stopped = time.monotonic()
        await until_rows(loop, lambda found: found.tasks["l"].process is None)
        silent_s = time.monotonic() - stopped
        assert LEASE_S * 0.6 < silent_s < LEASE_S + 5  # it may have renewed it a third of a lease before
        os.kill(wrong.pid, signal.SIGCONT)
        await until(lambda: len(site.lines("begin")) == 2)  # it comes back, as another incarnation, and begins anew
        site.go()
        assert await promise == f"l by {wrong.pid}"

    World(str(site.path), None).play(main, lease=LEASE_S, poll=0.05)


async def _name(loop: dasync.EventLoop, pid: int, site: Site) -> str:
    (line,) = site.lines(f"up {pid} ")
    return line.split()[2].partition("@")[0]


def _stop(pid: int, lock: str) -> None:
    """Stop it between its transactions."""
    while True:
        os.kill(pid, signal.SIGSTOP)
        while Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "T":
            time.sleep(0.001)
        inode, table = os.stat(lock).st_ino, Path("/proc/locks").read_text().splitlines()
        locks = [line.split() for line in table if "->" not in line]
        if not any(int(one[4]) == pid and one[5].endswith(f":{inode}") for one in locks):
            return
        os.kill(pid, signal.SIGCONT)
        time.sleep(0.003)


@pytest.mark.system
@faketime
@pytest.mark.parametrize("skew", SKEWS)
def test_a_deadline_comes_early_by_the_skew_at_most_and_once(site: Site, skew: str) -> None:
    """Made here and looked after by somebody whose clock is wrong as well, and the other way round."""
    site.hire("far", skew)
    ahead = skew == "+1h"

    async def main(loop: dasync.EventLoop) -> None:
        early = dasync.promise(str, id="within the skew", timeout=1800)
        late = dasync.promise(str, id="beyond the skew", timeout=7200)
        soon = dasync.promise(str, id="soon", timeout=0.5)
        made = time.monotonic()
        for promise in (early, late, soon):
            await promise.created()
        with pytest.raises(dasync.PromiseTimedOut):
            await soon
        assert ahead or time.monotonic() - made > 0.49
        begun = time.monotonic()
        assert await skewed.nap.options(on="far", id="nap")(0.5) == 0.5
        took_s = time.monotonic() - begun
        assert took_s > 0.49 or not ahead  # behind: it is long due by the clock here
        assert took_s < 5
        await asyncio.sleep(1)
        before = (await rows(loop)).promises
        assert before["within the skew"].state is (State.TIMEDOUT if ahead else State.PENDING)
        assert before["beyond the skew"].state is State.PENDING
        for one in before.values():
            assert one.state is State.PENDING or one.settled_at == one.timeout_at or one.id == "nap"
        if ahead:
            with pytest.raises(dasync.PromiseConflict):
                await early.resolve("too late")
        await asyncio.sleep(0.5)
        assert (await rows(loop)).promises == before
        assert site.lines("awake") == ["awake"]

    World(str(site.path), None).play(main, lease=LEASE_S, poll=0.05)


@pytest.mark.system
@faketime
@pytest.mark.parametrize(("first", "leaves", "second"), [
    ("", "-1h", ""), ("-1h", "", ""), ("", "+1h", "-1h"), ("+1h", "", "-1h"),
])  # fmt: skip
def test_outcomes_come_in_the_same_order_again(site: Site, first: str, leaves: str, second: str) -> None:
    """An execution takes outcomes of its own and of another process, whose clocks are hours apart; it is killed, and a
    third process, whose clock is wrong too, takes them in the same order and runs nothing again."""
    count = 24
    site.hire("leaves", leaves, 600)
    runner = site.hire("run", first, 600)

    async def main(loop: dasync.EventLoop) -> None:
        promise = skewed.mixed.options(on="run", id="m")(count, "leaves")
        await until(lambda: site.lines("waits"))
        live = site.lines("took")
        before = (await until_rows(loop, lambda found: skewed.GATE in found.promises)).promises
        runner.kill()
        site.ledger.rename(f"{site.ledger}.first")
        await asyncio.to_thread(site.hire, "run", second or "+0", 600)
        await until(lambda: site.lines("waits"))
        assert site.lines("took") == live
        assert len(live) == count
        after = (await rows(loop)).promises
        assert {id: after[id] for id in before} == before
        await settle(loop, skewed.GATE, "open")
        assert [f"took {name}" for name in await promise] == live

    World(str(site.path), None).play(main, lease=600, poll=0.05)
