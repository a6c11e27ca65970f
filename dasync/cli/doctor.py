"""`dasync doctor`: examine a store and the processes around it, one line per check, with a remedy where one is needed.

It looks and changes nothing: it buries nobody, sends no task again and does not wait for the write lock, whose holder
may be what is wrong. What it says of tasks comes from counts, so it is as quick on a large store.
"""

from __future__ import annotations

import os
import shlex
import sqlite3
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal

from dasync.cli import facts, program, served
from dasync.cli.commands import existing, opened
from dasync.cli.facts import Check
from dasync.cli.render import duration, first_line
from dasync.core.model import ProcessRecord, TaskState
from dasync.errors import DasyncError, StoreError, StoreVersion
from dasync.ports import Backlog
from dasync.runtime import registry
from dasync.stores.filelock import FileLock
from dasync.stores.sqlite import OLDEST_SQLITE, SCHEMA_VERSION, recognize, schema_version
from dasync.system import SystemClock
from dasync.transports.local import LocalTransport

SOUND_SQLITE = (3, 51, 3)  # from here on commits and checkpoints of several connections cannot damage a WAL
LOCK_LOOKS, LOCK_LOOK_S = 20, 0.05  # a transaction is over long before the last look
WAL_BYTES = 64 * 2**20  # sixteen times what a checkpoint cuts it at
LONG_MS = 60_000  # for a task that nobody has begun
SKEW_MS = 2_000  # more than clocks of one machine and rounding come to
NAMED = 3  # examples in a line


async def examine(store: str, app: str | None) -> list[Check]:
    """All checks, from the file up; those that need what has failed are left out."""
    checks = [_sqlite()]
    try:
        path, version = _found(store)
    except (StoreError, OSError) as error:
        return [_refused(error), *checks]
    lock, wal = await _lock(path), _wal(path)
    checks += [_ok("schema", f"version {version}, the latest known is {SCHEMA_VERSION}"), lock, wal]
    if lock["status"] == "fail":
        return [_ok("store", _file(path)), *checks]
    times = [os.stat(path).st_mtime, *_mtime(f"{path}-wal")]
    try:
        async with opened(path) as rows:
            processes, backlog = await rows.processes(), await rows.backlog()
    except StoreError as error:
        return [_refused(error), *checks]
    now, transport = SystemClock().now_ms(), LocalTransport(path)
    dead = transport.dead(processes)
    live = served.live(processes, dead, now, transport.host)
    checks += [
        _clock(now, processes, times), _processes(live, processes, dead), _held(processes, backlog), _halted(backlog),
        _groups(now, live, backlog), _waiting(now, live, backlog),
    ]  # fmt: skip
    if app is not None:
        checks.append(_functions(app, backlog))
    return [_ok("store", _file(path)), *checks]


def _ok(check: str, detail: str) -> Check:
    return Check(check=check, status="ok", detail=detail, remedy=None)


def _bad(check: str, status: Literal["warn", "fail"], detail: str, remedy: str) -> Check:
    return Check(check=check, status=status, detail=detail, remedy=remedy)


def _refused(error: StoreError | OSError) -> Check:
    what, told, remedy = str(error).rpartition("; ")
    check = "schema" if isinstance(error, StoreVersion) else "store"
    return _bad(check, "fail", what if told else remedy, remedy if told else "name another one with --store PATH")


# -- the file ----------------------------------------------------------------------------------------------


def _found(store: str) -> tuple[str, int]:
    """The store's file and the version of its schema, by its header."""
    path = os.path.realpath(existing(store))
    recognize(path)
    return path, schema_version(path)


def _file(path: str) -> str:
    return f"{path}, {_size(os.stat(path).st_size)}"


def _size(count: int) -> str:
    return f"{count / 2**20:.1f} MiB" if count >= 2**20 else f"{count / 2**10:.1f} KiB"


def _mtime(path: str) -> list[float]:
    with suppress(OSError):
        return [os.stat(path).st_mtime]
    return []


def _sqlite() -> Check:
    version = f"SQLite {sqlite3.sqlite_version}"
    if sqlite3.sqlite_version_info < OLDEST_SQLITE:
        return _bad("sqlite", "fail", f"{version} is too old", "use a Python that brings 3.40 or newer")
    if sqlite3.sqlite_version_info >= SOUND_SQLITE:
        return _ok("sqlite", version)
    fixed = ".".join(map(str, SOUND_SQLITE))
    return _bad(
        "sqlite", "warn",
        f"{version}: before {fixed} several writers are safe only because dasync queues them on its own lock",
        "let no other program write the file while dasync uses it, or use a Python that brings a newer SQLite",
    )  # fmt: skip


def _wal(path: str) -> Check:
    try:
        size = os.stat(f"{path}-wal").st_size
    except OSError:
        return _ok("wal", "none")
    if size <= WAL_BYTES:
        return _ok("wal", _size(size))
    return _bad(
        "wal", "warn", f"{_size(size)}: somebody has kept it from being cut for long",
        "end the program that reads the file all the time (a sqlite3 shell in a transaction, a backup)",
    )  # fmt: skip


async def _lock(path: str) -> Check:
    """Who holds the write lock, for longer than a transaction takes."""
    clock, seen = SystemClock(), set[int]()
    for _ in range(LOCK_LOOKS):
        pid = FileLock.holder(f"{path}-lock")
        if pid is None:
            return _ok("lock", "nobody holds it for long" if seen else "nobody holds it")
        seen.add(pid)
        await clock.sleep(LOCK_LOOK_S)
    if len(seen) > 1:
        return _ok("lock", f"in use all the time, by processes {_some(map(str, sorted(seen)))}")
    pid = seen.pop()
    if pid == 0:
        who, remedy = "a process that cannot be seen from here", "look for it in other containers of this machine"
    else:
        who, remedy = f"process {pid}{_program(pid)}", f"see what it does; `kill -KILL {pid}` gives the lock back"
    if _is_stopped(pid):
        who += ", which is stopped,"
        remedy = f"`kill -CONT {pid}` lets it go on, `kill -KILL {pid}` gives the lock back"
    return _bad("lock", "fail", f"{who} holds it and nobody else can write", remedy)


def _program(pid: int) -> str:
    with suppress(OSError):
        words = Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").split(b"\0")
        return f" ({shlex.join(word.decode(errors='replace') for word in words)[:120]})"
    return ""


def _is_stopped(pid: int) -> bool:
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[0] in ("T", "t")
    return False


# -- processes and tasks -----------------------------------------------------------------------------------


def _clock(now: int, processes: Sequence[ProcessRecord], times: Sequence[float]) -> Check:
    ahead = max((one.renewed_at - now for one in processes), default=0)
    ahead = max([ahead, *(round(time * 1000) - now for time in times)])
    if ahead <= SKEW_MS:
        return _ok("clock", facts.moment(now))
    return _bad(
        "clock", "warn", f"{facts.moment(now)} is {duration(ahead)} before what has been written already",
        "set the clock (see `timedatectl`): until it has caught up, deadlines come too late",
    )  # fmt: skip


def _processes(there: Sequence[ProcessRecord], processes: Sequence[ProcessRecord], dead: Sequence[str]) -> Check:
    late = [one.id for one in processes if one.id not in dead and one not in there]
    live = [f"{one.id} (group {one.group})" for one in there]
    told = f"{len(live)} live" + (f": {_some(live)}" if live else "")
    if not dead and not late:
        return _ok("processes", told)
    gone = [f"dead: {_some(dead)}"] if dead else []
    gone += [f"past their lease: {_some(late)}"] if late else []
    remedy = "start a worker: it takes over what they held" if not live else "wait a moment: a live one takes over"
    return _bad("processes", "warn", f"{told}; {'; '.join(gone)}", remedy)


def _held(processes: Sequence[ProcessRecord], backlog: Sequence[Backlog]) -> Check:
    held = [one for one in backlog if one.state is TaskState.ACQUIRED]
    lost = [one for one in held if one.process not in {process.id for process in processes}]
    if not lost:
        return _ok("held", f"{_tasks(held)} acquired")
    return _bad(
        "held", "fail", f"{_tasks(lost)} acquired by nobody that is there, such as {lost[0].oldest}",
        f"this is a bug of dasync, please report it; `dasync cancel {shlex.quote(lost[0].oldest)}` ends it",
    )  # fmt: skip


def _halted(backlog: Sequence[Backlog]) -> Check:
    halted = [one for one in backlog if one.state is TaskState.HALTED]
    if not halted:
        return _ok("halted", "no task")
    return _bad(
        "halted", "fail", f"{_tasks(halted)}: {_some(map(_why_halted, halted))}",
        f"correct the code, then `dasync resume {shlex.quote(halted[0].oldest)}`;"
        " `dasync list --task-state halted` shows them all",
    )  # fmt: skip


def _why_halted(one: Backlog) -> str:
    why = first_line(one.reason)
    return f"{one.oldest} ({one.function!r})" + (f", {why}" if why else "")


def _groups(now: int, live: Sequence[ProcessRecord], backlog: Sequence[Backlog]) -> Check:
    """Groups, or processes of them, that have work and are not there."""
    alone: dict[str, list[Backlog]] = {}
    for one in backlog:
        if one.state is TaskState.PENDING and not served.is_served(one.target, live):
            alone.setdefault(one.target, []).append(one)
    if not alone:
        return _ok("groups", "each that has pending tasks is served")
    told = [f"{_tasks(found)} for {target!r}, {_age(now, found)}" for target, found in sorted(alone.items())]
    remedy = f"start `{served.worker_for(min(alone))}`, or correct its on="
    return _bad("groups", "warn", f"nobody serves {_some(told)}", remedy)


def _waiting(now: int, live: Sequence[ProcessRecord], backlog: Sequence[Backlog]) -> Check:
    """Tasks that nobody begins although somebody serves their group."""
    pending = [one for one in backlog if one.state is TaskState.PENDING]
    late = [
        one for one in pending if not one.begun and one.oldest_at < now - LONG_MS and served.is_served(one.target, live)
    ]
    if not late:
        return _ok("waiting", f"{_tasks(pending)} pending")
    told = _some(f"{one.function!r} version {one.version} for {one.target!r}" for one in late)
    return _bad(
        "waiting", "warn", f"{_tasks(late)} not begun, {_age(now, late)}: {told}",
        "import what defines the function in the workers of that group; where it is, start more of them",
    )  # fmt: skip


def _functions(app: str, backlog: Sequence[Backlog]) -> Check:
    """What open tasks need and the program does not define."""
    try:
        program.import_app(app)
        known = registry.registered()
    except (DasyncError, ValueError) as error:
        what, told, remedy = str(error).rpartition("; ")
        return _bad("functions", "fail", what if told else remedy, remedy if told else "correct it")
    missing = [one for one in backlog if (one.function, one.version) not in known]
    if not missing:
        return _ok("functions", f"{app} defines all that open tasks need")
    told = _some(dict.fromkeys(f"{one.function!r} version {one.version} (for {one.target!r})" for one in missing))
    return _bad(
        "functions", "warn", f"{_tasks(missing)} of functions that {app} does not define: {told}",
        "keep a version defined until its tasks are done, or run a worker on a program that has it",
    )  # fmt: skip


def _tasks(backlog: Sequence[Backlog]) -> str:
    count = sum(one.tasks for one in backlog)
    return f"{count} task{'' if count == 1 else 's'}"


def _age(now: int, backlog: Sequence[Backlog]) -> str:
    return f"the oldest {duration(max(0, now - min(one.oldest_at for one in backlog)))} old"


def _some(told: Iterable[str]) -> str:
    named = list(told)
    return ", ".join(named[:NAMED]) + (f" and {len(named) - NAMED} more" if len(named) > NAMED else "")
