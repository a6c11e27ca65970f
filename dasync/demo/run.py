"""The demo itself: the survey in a plain loop, then by a crew of processes of which two are killed on the way.

It starts the processes, invokes the survey, follows the ledger, kills one worker and the coordinator with SIGKILL
when their moment has come, starts them again, and compares. All figures of the report are measured: from the ledger
how often bodies ran, from the store what was settled. What a report looks like is in `report.py`.
"""

from __future__ import annotations

import logging
import os
import signal
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import anyio
from anyio.abc import TaskGroup
from anyio.lowlevel import checkpoint

from dasync.core.model import State, TaskState
from dasync.demo import report, survey
from dasync.demo.crew import Crew, Member
from dasync.demo.report import Display, Kill, Report
from dasync.demo.survey import Count
from dasync.errors import DasyncError
from dasync.loop import EventLoop
from dasync.ports import Found
from dasync.runtime.promise import Promise
from dasync.system import SystemClock

INTERRUPTED = 130
LOOK_S = 0.01  # between looks at the ledger
KILL_WORKER_AT, KILL_COORDINATOR_AT = 0.2, 0.5  # of the files
Settlement = tuple[State, int | None, bytes | None]


class Wanted(NamedTuple):
    """What the command line asks for."""

    files: int
    workers: int
    kill: bool
    store: str | None
    json: bool


def demo(wanted: Wanted) -> int:
    """Run it; gives the exit status."""
    if wanted.store is not None and os.path.exists(wanted.store):
        raise DasyncError(f"{wanted.store} exists, and the demo needs a store of its own; name a new file")
    logging.getLogger("dasync").setLevel(logging.ERROR)  # that processes die is the demo's own doing
    try:
        return anyio.run(_until_signal, wanted)
    except BaseExceptionGroup as group:
        raise _first(group) from None


async def _until_signal(wanted: Wanted) -> int:
    status = INTERRUPTED
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_cancel_on_signal, tasks)
        status = await _demo(wanted, tasks)
        tasks.cancel_scope.cancel()
    return status


async def _cancel_on_signal(tasks: TaskGroup) -> None:
    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        await anext(signals)
        tasks.cancel_scope.cancel()


async def _demo(wanted: Wanted, tasks: TaskGroup) -> int:
    paths = survey.choose(wanted.files)
    with tempfile.TemporaryDirectory(prefix="dasync-demo-") as folder, report.display(wanted.json) as display:
        display.say(f"{len(paths)} files of {survey.library()}, {wanted.workers} workers, {os.cpu_count()} cores")
        expected, plain_s = await _plain(paths, display)
        store = wanted.store or str(Path(folder, "demo.db"))
        async with _stage(store, Path(folder), wanted, tasks) as stage:
            totals = await stage.play(paths, display)
            found = await stage.report(totals, expected, plain_s)
    if wanted.store is not None:
        found.store, found.promise = store, stage.root
    print(report.as_json(found) if wanted.json else report.as_text(found))
    return 0 if found.equal and found.settled_once else 1


async def _plain(paths: Sequence[str], display: Display) -> tuple[dict[str, Count], float]:
    """The survey in this process, without dasync, and how many seconds it took."""
    clock = SystemClock()
    began, counts = clock.monotonic(), list[Count]()
    display.begin("plain loop", len(paths))
    for path in paths:
        counts.append(survey.measure(path))
        display.advance(len(counts))
        await checkpoint()  # let Ctrl-C through
    return survey.fold(paths, counts), clock.monotonic() - began


@asynccontextmanager
async def _stage(store: str, folder: Path, wanted: Wanted, tasks: TaskGroup) -> AsyncIterator[Stage]:
    """The event loop that invokes, and the crew that works."""
    ledger = folder / "ledger"
    ledger.touch()
    loop = EventLoop(store, group="demo", functions=[], durability="process")
    async with loop, Crew(store, folder, ledger) as crew:
        yield Stage(loop, crew, Ledger(ledger), wanted, tasks)


class Stage:
    """One run of the survey, from the first invocation to the report."""

    def __init__(self, loop: EventLoop, crew: Crew, ledger: Ledger, wanted: Wanted, tasks: TaskGroup) -> None:
        self.root = ""
        self._clock = SystemClock()
        self._loop = loop
        self._crew = crew
        self._ledger = ledger
        self._wanted = wanted
        self._tasks = tasks
        self._kills: list[Kill] = []
        self._seen: dict[str, Settlement] = {}
        self._changed = 0
        self._start_s = self._run_s = 0.0
        self._files = 0

    async def play(self, paths: list[str], display: Display) -> dict[str, Count]:
        """Invoke, follow, kill, start again; gives the result."""
        self._files = len(paths)
        began = self._clock.monotonic()
        async with anyio.create_task_group() as starting:
            starting.start_soon(self._crew.start, "coordinator", survey.COORDINATOR)
            for number in range(self._wanted.workers):
                starting.start_soon(self._crew.start, f"worker-{number + 1}", survey.WORKERS)
        self._start_s = self._clock.monotonic() - began
        display.begin("dasync", len(paths))
        promise = survey.survey(paths)
        self.root = promise.id
        while not promise.done():
            self._crew.check()
            self._ledger.read()
            display.advance(self._ledger.done)
            await self._kill_whose_time_has_come(display)
            await self._wait_a_little(promise)
        self._run_s = self._clock.monotonic() - began - self._start_s
        self._ledger.read()
        display.advance(len(paths))
        return await promise

    async def _wait_a_little(self, promise: Promise[dict[str, Count]]) -> None:
        with anyio.move_on_after(LOOK_S):
            await promise

    async def _kill_whose_time_has_come(self, display: Display) -> None:
        if not self._wanted.kill:
            return
        share = self._ledger.done / self._files
        if not self._kills and share >= KILL_WORKER_AT:
            victim = next((one for pid in self._ledger.busy() if (one := self._crew.called(pid))), None)
            if victim is not None and victim.group == survey.WORKERS:
                await self._kill(victim, display)
        elif len(self._kills) == 1 and share >= KILL_COORDINATOR_AT:
            await self._kill(self._crew.members["coordinator"], display)

    async def _kill(self, victim: Member, display: Display) -> None:
        await self._crew.kill(victim.name)
        rows = await self._rows()
        pending = sum(one.promise.state is State.PENDING for one in rows if one.promise.id != self.root)
        self._witness(rows)
        self._kills.append(Kill(victim.name, victim.pid, self._ledger.done, pending))
        display.say(f"kill -9 {victim.pid} ({victim.name}) with {self._ledger.done} of {self._files} files done")
        self._tasks.start_soon(self._crew.start, victim.name, victim.group)

    def _witness(self, rows: Sequence[Found]) -> None:
        """Keep what is settled, and see whether any of what was settled before has changed."""
        for record, _ in rows:
            if record.state is not State.PENDING:
                now: Settlement = (record.state, record.settled_at, record.value)
                self._changed += self._seen.setdefault(record.id, now) != now
        self._changed += len(self._seen.keys() - {record.id for record, _ in rows})

    async def _rows(self) -> list[Found]:
        """Every promise of the survey, with its task."""
        rows: list[Found] = []
        cursor: str | None = ""
        while cursor is not None:
            page = await self._loop.search(id_prefix=self.root, limit=1000, cursor=cursor)
            rows += page.found
            cursor = page.cursor
        return rows

    async def report(self, totals: dict[str, Count], expected: dict[str, Count], plain_s: float) -> Report:
        """Everything that was measured."""
        rows = await self._rows()
        self._witness(rows)
        settled = sum(promise.state is State.RESOLVED for promise, _ in rows)
        fulfilled = sum(task is not None and task.state is TaskState.FULFILLED for _, task in rows)
        # Only the death of its holder sends a task again, so these are what the killed worker held.
        taken_over = sum(task is not None and task.version > 1 for promise, task in rows if promise.id != self.root)
        kills = [kill if kill.process == "coordinator" else kill._replace(in_flight=taken_over) for kill in self._kills]
        begun = self._ledger.begun
        return Report(
            equal=totals == expected,
            files=self._files,
            workers=self._wanted.workers,
            kills=kills,
            ran_twice={
                "count": sum(times > 1 for what, times in begun.items() if what != "survey"),
                "survey": int(begun["survey"] > 1),
            },
            promises=len(rows),
            settled=settled,
            settled_once=settled == fulfilled == len(rows) == self._files + 1 and not self._changed,
            packages=totals,
            seconds={"plain": plain_s, "start": self._start_s, "dasync": self._run_s},
        )


class Ledger:
    """What the bodies have written, read as it grows."""

    def __init__(self, path: Path) -> None:
        self.begun: Counter[str] = Counter()
        self._ended: set[str] = set()
        self._open: dict[str, int] = {}
        self._path = path
        self._offset = 0

    @property
    def done(self) -> int:
        """How many files have been counted to the end."""
        return len(self._ended)

    def busy(self) -> list[int]:
        """The processes that are counting a file right now."""
        return [pid for what, pid in self._open.items() if what != "survey"]

    def read(self) -> None:
        with self._path.open("rb") as file:
            file.seek(self._offset)
            data = file.read()
        whole, _, _ = data.rpartition(b"\n")
        self._offset += len(whole) + 1 if whole else 0
        for line in whole.decode().splitlines():
            event, pid, what = line.split(" ", 2)
            if event == "begin":
                self.begun[what] += 1
                self._open[what] = int(pid)
            else:
                self._open.pop(what, None)
                if what != "survey":
                    self._ended.add(what)


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    error = group.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error
