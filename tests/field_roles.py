"""The killing field's processes: a worker, which serves the group, and a caller, which asks for executions.

Both are killed at any moment and started again by the field. A caller that begins again asks for everything that it
has not put down as heard, under the same ids. SIGTERM ends either in an orderly way, with status 0; so does the end of
stdin without any order, should the field be gone. SIGUSR1 makes it say what it is at.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple

import field_model
import field_program as program
from field_ledger import ledger

import dasync

CALLERS = "callers"
DRAIN_S = 0.3  # what a worker that is to end gives to what it runs
AGAIN_S = 0.05  # before something is asked for again
NEVER_POISONED = 1_000_000  # crashes: here it is never the code's own doing


class Terms(NamedTuple):
    """What the field tells each of its processes."""

    role: str
    name: str
    folder: str
    store: str
    life: int
    seed: int
    executions: int
    seconds: float
    callers: int
    epoch: float
    """When the field began, on the monotonic clock."""
    lease: float
    poll: float
    concurrency: int
    max_resident: int
    durability: str


def live(args: argparse.Namespace) -> None:
    """Be what the field wants, until it wants no more."""
    terms = Terms(**json.loads(args.terms))
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(name)s %(levelname)s: %(message)s")
    host = dasync.loop_factory if args.host == "dasync" else None
    with asyncio.Runner(loop_factory=host) as runner:
        runner.run((work if terms.role == "worker" else call)(terms))


def event_loop(terms: Terms, group: str, functions: list[Any] | None = None) -> dasync.EventLoop:
    loop = dasync.EventLoop(
        terms.store, group=group, process=terms.name, lease=terms.lease, poll=terms.poll, functions=functions,
        concurrency=terms.concurrency, max_resident=terms.max_resident, max_crashes=NEVER_POISONED,
        processes=program.PROCESSES, durability=terms.durability,  # type: ignore[arg-type]  # one of the two words
    )  # fmt: skip
    ledger.open(Path(terms.folder) / f"ledger-{terms.name}-{terms.life}", lambda: loop.process or "-")
    ledger.write("made")
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, say_state, loop)
    asyncio.get_running_loop().add_reader(0, os._exit, 3)
    return loop


def say_state(loop: dasync.EventLoop) -> None:
    """What this process is at, for whoever looks into a hang."""
    print(loop.snapshot(), dict(loop.awaiters), file=sys.stderr)
    for task in asyncio.all_tasks():
        task.print_stack(file=sys.stderr)
    sys.stderr.flush()


async def work(terms: Terms) -> None:
    """Serve the workers' group until SIGTERM, which drains."""
    stop = asyncio.Event()
    loop = event_loop(terms, program.WORKERS)
    async with loop:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
        ledger.write("up")
        waiting = [asyncio.create_task(stop.wait()), asyncio.create_task(loop.failed())]
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        if waiting[1].done():
            raise waiting[1].result()
        waiting[1].cancel()
        await loop.drain(DRAIN_S)


# -- callers


async def call(terms: Terms) -> None:
    """Ask for this caller's share of the plan, and put down what comes of it, until SIGTERM."""
    number = int(terms.name.rpartition("-")[2])
    planned = field_model.plan(terms.seed, terms.executions, terms.seconds, terms.callers)
    stop = asyncio.Event()
    loop = event_loop(terms, CALLERS)
    book = Book(Path(terms.folder), terms.name, terms.life)
    async with loop:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
        ledger.write("up")
        caller = Caller(loop, terms, book)
        try:
            async with asyncio.TaskGroup() as duties:
                for one in planned:
                    if one.caller == number:
                        duties.create_task(caller.ask(one))
                    if one.helper == number:
                        duties.create_task(caller.help(one))
                await stop.wait()
                raise Stopped
        except* Stopped:
            pass


class Stopped(Exception):
    """SIGTERM has come."""


class Book:
    """What a caller has heard, over all its lives."""

    def __init__(self, folder: Path, name: str, life: int) -> None:
        self.heard = {entry["what"] for path in folder.glob(f"heard-{name}-*") for entry in read_book(path)}
        self._fd = os.open(folder / f"heard-{name}-{life}", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def put_down(self, what: str, **said: Any) -> None:
        """One line, in the file when this returns."""
        line = json.dumps({"what": what, "at": time.monotonic(), **said})
        os.write(self._fd, (line + "\n").encode())


def read_book(path: Path) -> list[dict[str, Any]]:
    """The whole lines of one life's book."""
    whole, _, _ = path.read_bytes().rpartition(b"\n")
    return [json.loads(line) for line in whole.decode().splitlines()]


class Caller:
    """One life of a caller."""

    def __init__(self, loop: dasync.EventLoop, terms: Terms, book: Book) -> None:
        self._loop = loop
        self._terms = terms
        self._book = book

    async def ask(self, one: field_model.Planned) -> None:
        """Invoke an execution and await it."""
        if one.id in self._book.heard:
            return
        await self._until(one.at)
        function = field_model.SHAPES[one.shape].function.options(id=one.id)
        function = function if one.local else function.options(on=program.WORKERS)
        try:
            out = await self._insist(one.id, lambda: function(*one.case.args))
            self._book.put_down(one.id, state="value", value=out.value, by=out.by)
        except dasync.PromiseCanceled:
            self._book.put_down(one.id, state="canceled", value=None)
        except Exception as error:
            self._book.put_down(one.id, state="error", value=str(error))

    async def help(self, one: field_model.Planned) -> None:
        """Cancel an execution, or open its gate."""
        if (what := f"help {one.id}") in self._book.heard:
            return
        if one.case.cancel_after is not None:
            await self._until(one.at + one.case.cancel_after)
            await self._insist(what, lambda: self._loop.get(one.id).cancel("enough"))
            self._book.put_down(what)
        elif one.case.gate is not None:
            gate, given, after = one.case.gate
            await self._until(one.at + after)
            await self._insist(what, lambda: dasync.promise(int, id=gate).resolve(given))
            self._book.put_down(what)

    async def _until(self, at: float) -> None:
        await asyncio.sleep(self._terms.epoch + at - time.monotonic())

    async def _insist(self, what: str, ask: Callable[[], Awaitable[Any]]) -> Any:
        """Ask until it is there, and until the store can be had; what it said instead is put down."""
        while True:
            try:
                return await ask()
            except dasync.PromiseNotFound:
                pass  # whoever is to invoke it is late
            except dasync.StoreUnavailable as error:
                self._book.put_down(f"refused {what}", error=f"{type(error).__name__}: {error}")
            await asyncio.sleep(AGAIN_S)
