"""`dasync doctor`: a sound store, and each thing that can be wrong with one, made to be wrong."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sqlite3
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from shell import SHOP, TIMEOUT_S, environment, python
from shell import dasync as command

from dasync.cli import doctor, facts, main
from dasync.core import protocol as p
from dasync.ports import Clock
from dasync.stores.filelock import FileLock
from dasync.stores.sqlite import SCHEMA_VERSION, SqliteStore
from dasync.system import SystemClock
from dasync.transports.local import machine_id

CHECKS = [
    "store", "sqlite", "schema", "lock", "wal", "clock", "processes", "held", "halted", "groups", "waiting",
]  # fmt: skip
HOUR_MS = 3_600_000


class Shifted:
    """The system's clock, by an hour early or late."""

    def __init__(self, by_ms: int) -> None:
        self._by_ms = by_ms

    def now_ms(self) -> int:
        return SystemClock().now_ms() + self._by_ms

    def monotonic(self) -> float:
        return SystemClock().monotonic()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


@pytest.fixture
def store(tmp_path: Path) -> str:
    """An empty store."""
    path = str(tmp_path / "own.db")
    _write(path)
    return path


def _write(path: str, *commands: p.Command, clock: Clock | None = None) -> None:
    async def write() -> None:
        rows = SqliteStore(path, clock or SystemClock())
        await rows.open()
        await rows.transact(commands)
        await rows.close()

    asyncio.run(write())


def _task(id: str, target: str, function: str = "ship") -> p.PromiseCreate:
    return p.PromiseCreate(id, function, 1, b"\x90", target, seed=bytes(16))


def _join(process: str, group: str, host: str = "elsewhere") -> p.ProcessJoin:
    return p.ProcessJoin(process, process.partition("@")[0], group, host, "", 60_000)


def _acquire(process: str, group: str) -> p.TaskAcquire:
    return p.TaskAcquire(process, (group,), (("ship", 1),), 10)


def _examined(capsys: pytest.CaptureFixture[str], store: str, *app: str) -> tuple[int, dict[str, facts.Check]]:
    """The status of `dasync doctor --json`, and what it found, by check."""
    status = main(["doctor", *app, "--json", "--store", store])
    found = json.loads(capsys.readouterr().out)
    assert all(set(one) == set(facts.Check.__annotations__) for one in found)
    assert all((one["status"] == "ok") == (one["remedy"] is None) for one in found)
    assert status == any(one["status"] == "fail" for one in found)
    return status, {one["check"]: one for one in found}


@contextmanager
def _holding(store: str) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the write lock of a store."""
    hold = "import sys; from dasync.stores.filelock import FileLock\nwith FileLock.of(sys.argv[1]): print(); input()"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", hold, f"{store}-lock"], text=True, env=environment(), **pipes) as one:
        try:
            assert one.stdout is not None
            assert one.stdout.readline() == "\n"
            yield one
        finally:
            one.kill()


def test_a_sound_store_is_in_order(store: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A line per check, none of them a failure, and status 0; as JSON a list of the same."""
    lines = command("doctor", "--store", store).splitlines()
    assert [line.split()[1] for line in lines] == CHECKS
    status, found = _examined(capsys, store)
    assert (status, list(found)) == (0, CHECKS)
    old = sqlite3.sqlite_version_info < doctor.SOUND_SQLITE
    assert {name for name, one in found.items() if one["status"] != "ok"} == ({"sqlite"} if old else set())
    assert found["store"]["detail"].startswith(f"{store}, ")
    assert sqlite3.sqlite_version in found["sqlite"]["detail"]


def test_a_store_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It fails, says what to do, and makes no file."""
    status, found = _examined(capsys, str(tmp_path / "none.db"))
    assert (status, list(found), found["store"]["status"]) == (1, ["store", "sqlite"], "fail")
    assert found["store"]["remedy"] == "name one with --store PATH or DASYNC_STORE"
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_no_store(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is told so and left as it is."""
    path = tmp_path / "notes.db"
    path.write_text("dear diary" * 100)
    found = _examined(capsys, str(path))[1]
    assert "not a dasync store" in found["store"]["detail"]
    assert path.read_text() == "dear diary" * 100


def test_a_damaged_store(store: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Damage behind a sound header fails as the store's."""
    with open(store, "r+b") as file:
        file.seek(100)
        file.write(b"\xff" * 3000)
    found = _examined(capsys, store)[1]
    assert found["store"]["status"] == "fail"
    assert "damaged" in found["store"]["detail"]


def test_a_store_of_a_newer_dasync(store: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The schema's version is what fails."""
    with open(store, "r+b") as file:
        file.seek(60)
        file.write(struct.pack(">I", SCHEMA_VERSION + 1))
    status, found = _examined(capsys, store)
    assert (status, found["schema"]["status"]) == (1, "fail")
    assert "newer dasync" in str(found["schema"]["remedy"]) + found["schema"]["detail"]


def test_a_stopped_process_that_holds_the_lock_is_named(store: str, capsys: pytest.CaptureFixture[str]) -> None:
    """By its id and program, with the ways out; the doctor does not wait for the lock itself."""
    with _holding(store) as holder:
        status, found = _examined(capsys, store)
        assert (status, found["lock"]["status"]) == (1, "fail")
        assert f"process {holder.pid} (" in found["lock"]["detail"]
        assert "is stopped" not in found["lock"]["detail"]
        holder.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, holder.pid, os.WSTOPPED | os.WNOWAIT)
        found = _examined(capsys, store)[1]
        assert "is stopped" in found["lock"]["detail"]
        assert f"kill -CONT {holder.pid}" in str(found["lock"]["remedy"])
        assert "processes" not in found
    assert _examined(capsys, store)[1]["lock"]["detail"] == "nobody holds it"


def test_to_ask_for_the_holder_does_not_lose_the_lock(tmp_path: Path) -> None:
    """A process that holds the lock can ask: it is not told of itself, and holds it still."""
    path = str(tmp_path / "lock")
    assert FileLock.holder(path) is None
    lock = FileLock.of(path)
    with lock:
        assert FileLock.holder(path) is None
        probe = f"import fcntl; fcntl.lockf(open({path!r}, 'r+b'), fcntl.LOCK_EX | fcntl.LOCK_NB)"
        done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, timeout=TIMEOUT_S)
        assert "BlockingIOError" in done.stderr
    lock.close()


def test_a_long_wal(store: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Above 64 MiB somebody keeps it from being cut."""
    with open(f"{store}-wal", "wb") as wal:
        wal.truncate(doctor.WAL_BYTES + 1)
    found = _examined(capsys, store)[1]
    assert (found["wal"]["status"], found["wal"]["detail"][:8]) == ("warn", "64.0 MiB")


def test_a_clock_that_was_set_back(store: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A lease that ends later than a lease from now was written by a clock ahead of this one; so was a file."""
    _write(store, _join("ann@1", "g"), clock=Shifted(HOUR_MS))
    clock = _examined(capsys, store)[1]["clock"]
    assert clock["status"] == "warn"
    assert "59 min 5" in clock["detail"] or "1 h 0 min" in clock["detail"]
    other = str(tmp_path / "other.db")
    _write(other)
    later = SystemClock().now_ms() / 1000 + 600
    os.utime(other, (later, later))
    assert _examined(capsys, other)[1]["clock"]["status"] == "warn"


def test_processes_that_are_gone(store: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Live ones are named; one past its lease, and one whose record lock is free, are gone."""
    _write(store, _join("ann@1", "g"))
    found = _examined(capsys, store)[1]
    assert found["processes"]["detail"] == "1 live: ann@1 (group g)"
    _write(store, _join("bob@1", "g"), clock=Shifted(-HOUR_MS))
    processes = _examined(capsys, store)[1]["processes"]
    assert (processes["status"], processes["detail"]) == (
        "warn", "1 live: ann@1 (group g); past their lease: bob@1",
    )  # fmt: skip


def test_of_this_machine_the_kernel_tells(store: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A process whose wall clock is an hour behind is not gone for that; and a group that it serves is served."""
    _write(store, _join("bob@1", "g", machine_id()), _task("a", "g"), clock=Shifted(-HOUR_MS))
    found = _examined(capsys, store)[1]
    assert (found["processes"]["status"], found["groups"]["status"]) == ("ok", "ok")


def test_a_killed_process_is_dead_before_its_lease_ends(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its record lock tells; a worker that is started takes over."""
    store, shop = str(tmp_path / "w.db"), tmp_path / "shop.py"
    shop.write_text(SHOP)
    worker = [sys.executable, "-m", "dasync", "worker", str(shop), "--process", "ann", "--store", store]
    with subprocess.Popen(worker, text=True, stdout=subprocess.PIPE, env=environment()) as process:
        assert process.stdout is not None
        assert "is ready" in process.stdout.readline()
        assert _examined(capsys, store)[1]["processes"]["status"] == "ok"
        process.kill()
    processes = _examined(capsys, store)[1]["processes"]
    assert processes["detail"].startswith("0 live; dead: ann@")
    assert "start a worker" in str(processes["remedy"])


def test_a_halted_task(store: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Fails: it does not go on before it is resumed."""
    _write(store, _task("order 42", "g"), p.TaskHalt("order 42", "it has diverged\nat length"))
    status, found = _examined(capsys, store)
    assert (status, found["halted"]["detail"]) == (1, "1 task: order 42 ('ship'), it has diverged")
    assert "`dasync resume 'order 42'`" in str(found["halted"]["remedy"])


def test_a_task_that_is_acquired_by_nobody(store: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Fails: no process will ever hand it back."""
    _write(store, _join("ann@1", "g"), _task("order", "g"), _acquire("ann@1", "g"))
    found = _examined(capsys, store)[1]
    assert (found["held"]["status"], found["held"]["detail"]) == ("ok", "1 task acquired")
    connection = sqlite3.connect(store)
    connection.execute("DELETE FROM processes")
    connection.commit()
    connection.close()
    status, found = _examined(capsys, store)
    assert (status, found["held"]["status"]) == (1, "fail")
    assert "such as order" in found["held"]["detail"]


def test_groups_without_workers(store: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A group, or one process of it, that has work and is not there; with the command that starts it."""
    _write(store, _join("ann@1", "g"), _task("a", "g"), _task("b", "g/ann"))
    assert _examined(capsys, store)[1]["groups"]["status"] == "ok"
    _write(store, _task("c", "g/bob"))
    groups = _examined(capsys, store)[1]["groups"]
    assert "1 task for 'g/bob', the oldest " in groups["detail"]
    assert "`dasync worker APP --group g --process bob`" in str(groups["remedy"])
    _write(store, _task("d", "far"), clock=Shifted(-2 * HOUR_MS))
    groups = _examined(capsys, store)[1]["groups"]
    assert "1 task for 'far', the oldest 2 h" in groups["detail"]
    assert "`dasync worker APP --group far`" in str(groups["remedy"])


def test_tasks_that_nobody_begins(store: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A group is served and its task waits for long all the same; one that was begun once does not count."""
    _write(store, _task("new", "g"), _join("ann@1", "g"))
    assert _examined(capsys, store)[1]["waiting"]["status"] == "ok"
    _write(store, _task("old", "g", "send"), clock=Shifted(-HOUR_MS))
    waiting = _examined(capsys, store)[1]["waiting"]
    assert waiting["status"] == "warn"
    assert "'send' version 1 for 'g'" in waiting["detail"]


def test_functions_that_a_program_does_not_define(
    store: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With APP, or DASYNC_APP, open tasks are compared with what it defines; one that does not import fails."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    app = tmp_path / "ships.py"
    app.write_text("import dasync\n@dasync.function\nasync def ship(): ...\n")
    _write(store, _task("order", "g"))
    found = _examined(capsys, store, str(app))[1]
    assert found["functions"]["detail"] == f"{app} defines all that open tasks need"
    _write(store, _task("letter", "g", "send"))
    env = environment() | {"DASYNC_APP": str(app), "DASYNC_STORE": store}
    said = python("-m", "dasync", "doctor", env=env).splitlines()[-1]
    told = f"1 task of functions that {app} does not define: 'send' version 1 (for 'g'); keep a version defined"
    assert said.startswith(f"warn  functions  {told}")
    broken = tmp_path / "broken.py"
    broken.write_text("x = 1 / 0")
    status, found = _examined(capsys, store, str(broken))
    assert (status, found["functions"]["status"]) == (1, "fail")
    assert "ZeroDivisionError" in found["functions"]["detail"]
