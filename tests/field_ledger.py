"""The killing field's ledger: what each body did, when, under which claim, and whether its process's lease was live.

Every process of the field appends to a file of its own (one that is killed may leave half a line at the end, and
nothing else). A line is one `write`, so it is there when the body goes on, whatever becomes of the process. All times
are CLOCK_MONOTONIC, which the processes of one machine share.

Code that no execution runs itself is written down by what runs it here: items of batches are given their runs as they
join one, for their handler to write; a call in a process of the pool begins and ends where its outcome is awaited.

The lease is watched from outside its guard: each step of an execution's code is timed here before dasync looks at
the lease, so a step that begins late is seen with the guard switched off as well. It judges nothing: `field_check.py`
does.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from field_machine import begin_pulse

from dasync.runtime import branch
from dasync.runtime.batches import Batches
from dasync.runtime.code import Code
from dasync.runtime.lease import Lease, Steps

FIELDS = 9  # of a line


@dataclass
class Item:
    """What a batched function of the field takes. As it joins a batch it is given its run."""

    number: int
    seconds: float
    failures: int


@dataclass
class Out:
    """What every function of the field gives: a value that the model knows, and the claim under which it was made."""

    value: Any
    by: str


class Line(NamedTuple):
    """One line of the ledger."""

    kind: str
    """made, up, stall, lease, begin, after, did, end, error, cut, late."""
    promise: str
    task: str
    version: int
    process: str
    """The incarnation."""
    now: float
    step_at: float
    """When the step began in which it was written; 0: in none."""
    ends: float
    """When the lease is over, as far as the process knows; in a stall, when that began."""
    note: str


class Ledger:
    """The file of this process, and its watch over every step."""

    def __init__(self) -> None:
        self._fd = -1
        self._process: Callable[[], str] = lambda: "-"
        self.folder = Path()
        self.steps = 0
        """How many steps of executions' code have begun."""
        self.step_at = 0.0
        """When the step began that runs now; 0: none does."""

    def open(self, path: Path, process: Callable[[], str]) -> None:
        """Begin to write to `path` for the process of that id."""
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._process = process
        self.folder = path.parent
        _watch(self)
        _accompany()
        begin_pulse(lambda since: self.write("stall", ends=since))

    def write(
        self, kind: str, *, promise: str = "-", task: str = "-", version: int = 0, ends: float = 0.0, note: str = "-"
    ) -> None:
        """One line, in the file when this returns."""
        told = (
            kind, promise, task, version, self._process(), f"{time.monotonic():.6f}", f"{self.step_at:.6f}",
            f"{ends:.6f}", note,
        )  # fmt: skip
        os.write(self._fd, (" ".join(map(str, told)) + "\n").encode())


ledger = Ledger()


class Run:
    """One run of a body, as it writes itself down."""

    def __init__(self, role: str) -> None:
        body = branch.body()
        place = branch.current() if body is None else body.branch
        assert place is not None, "a body of the field runs inside an execution"
        owner: Any = place.owner
        self._held = owner.held
        self.promise: str = owner.id
        self.role = role if body is None else "thread"

    def out(self, value: object) -> Out:
        """What the body gives."""
        claim = self._held.claim
        return Out(value, f"{claim.process}#{claim.version}")

    def write(self, kind: str) -> None:
        """One line about this run."""
        claim = self._held.claim
        ends = self._held.lease.ends
        ledger.write(
            kind, promise=self.promise, task=claim.id, version=claim.version, ends=ends,
            note=f"{self.role}:{claim.process}:{ledger.steps}",
        )  # fmt: skip

    def after(self) -> None:
        """It has come through an await."""
        self.write("after")


@contextmanager
def run(role: str) -> Iterator[Run]:
    """A run of a body: `leaf` or `body`. Its end is written down whatever it is."""
    mine = Run(role)
    mine.write("begin")
    try:
        yield mine
    except Exception:
        mine.write("error")
        raise
    except BaseException:
        mine.write("cut")
        raise
    mine.write("end")


@contextmanager
def runs(items: Iterable[Item]) -> Iterator[list[Run]]:
    """The runs of all items of a batch, as one call of its handler has them; it says of each how it has ended."""
    mine: list[Run] = [vars(item)["run"] for item in items]
    for one in mine:
        one.write("begin")
    try:
        yield mine
    except BaseException:
        for one in mine:
            one.write("cut")
        raise


def attempt(promise: str) -> int:
    """Which run of that promise's body this is, over all processes."""
    fd = os.open(ledger.folder / f"attempts-{promise}", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        os.write(fd, b".")
        return os.fstat(fd).st_size
    finally:
        os.close(fd)


# -- the watch over steps


class _Watched:
    """The code of one asyncio task; says so when a step of it begins after the lease has ended."""

    def __init__(self, coro: Any, holder: Any) -> None:
        self._coro = coro
        self._holder = holder

    def _look(self) -> None:
        ledger.steps += 1
        holder = self._holder
        if ledger.step_at >= holder.lease.ends and holder.signal is None:
            ledger.write("late", promise=holder.id, task=holder.id, ends=holder.lease.ends)

    def send(self, value: object) -> object:
        self._look()
        return self._coro.send(value)

    def throw(self, *error: Any) -> object:
        self._look()
        return self._coro.throw(*error)

    def close(self) -> None:
        self._coro.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._coro, name)


def _watch(ledger: Ledger) -> None:
    """Time each step before dasync looks at the lease, and write down each renewal."""
    made: Any = Steps.__init__
    send: Any = Steps.send
    renewed: Any = Lease.renewed

    def init(self: Any, coro: Any, holder: Any) -> None:
        made(self, _Watched(coro, holder), holder)

    def timed(self: Any, value: object) -> object:
        before, ledger.step_at = ledger.step_at, time.monotonic()
        try:
            return send(self, value)
        finally:
            ledger.step_at = before

    def told(self: Any, asked_at: float) -> None:
        renewed(self, asked_at)
        ledger.write("lease", ends=self.ends, note=f"-:-:{ledger.steps}")

    setattr(Steps, "__init__", init)  # noqa: B010  # an instrument of the test, in its own process
    setattr(Steps, "send", timed)  # noqa: B010
    setattr(Lease, "renewed", told)  # noqa: B010


# -- code that no execution runs itself


def _accompany() -> None:
    """Give items their runs, and write down calls in processes of the pool."""
    join: Any = Batches.join
    in_process: Any = Code._in_process

    async def joins(self: Any, function: Any, item: Any, member: Any) -> Any:
        vars(item)["run"] = Run("thread" if function.threaded else "leaf")
        return await join(self, function, item, member)

    async def awaited(self: Any) -> Any:
        with run("leaf") as mine:
            return mine.out((await in_process(self)).value)

    setattr(Batches, "join", joins)  # noqa: B010  # an instrument of the test, in its own process
    setattr(Code, "_in_process", awaited)  # noqa: B010


# -- reading


def read(path: Path) -> list[Line]:
    """The whole lines of one process's file."""
    whole, _, _ = path.read_bytes().rpartition(b"\n")
    lines = []
    for text in whole.decode().split("\n"):
        parts = text.split(" ")
        if len(parts) == FIELDS:
            kind, promise, task, version, process, now, step_at, ends, note = parts
            lines.append(
                Line(kind, promise, task, int(version), process, float(now), float(step_at), float(ends), note)
            )
    return lines
