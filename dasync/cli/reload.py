"""`dasync worker --reload`: a worker in a child process, started again when a source file of its program changes.

On a change the worker is told to stop and gets some time for what it runs; what it does not finish then is taken over
by its successor. A program that does not import says so in its one line, and the next change is waited for. This
file imports no program and opens no store.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import anyio
from anyio.abc import Process

from dasync.cli import program
from dasync.errors import DasyncError

T = TypeVar("T")
GRACE_S = 5.0  # for what runs when a source has changed; killed then, as by a crash, and taken over at once
STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def worker(args: argparse.Namespace) -> int:
    """Run workers, one after the other, until told to stop; the last one is drained."""
    try:
        from watchfiles import PythonFilter, awatch
    except ImportError:
        raise DasyncError("--reload needs watchfiles: pip install 'dasync[reload]'") from None
    folders = program.folders(args.app)

    async def changed() -> AsyncIterator[list[str]]:
        # A change that comes alone is told after a step; one of many waits for the others.
        async for changes in awatch(*folders, watch_filter=PythonFilter(), debounce=400):
            yield sorted({Path(path).name for _, path in changes})

    return asyncio.run(_supervise(_command(args), changed()))


def _command(args: argparse.Namespace) -> list[str]:
    """The same worker without `--reload`. Without bytecode: two edits within a second may leave a stale one."""
    given = {
        "--store": args.store, "--group": args.group, "--process": args.process, "--lease": args.lease,
        "--concurrency": args.concurrency, "--processes": args.processes, "--durability": args.durability,
    }  # fmt: skip
    options = [str(part) for option in given.items() if option[1] is not None for part in option]
    json = ["--json"] if args.json else []
    return [sys.executable, "-B", "-m", "dasync", "worker", args.app, "--supervised", *options, *json]


async def _supervise(command: Sequence[str], changed: AsyncIterator[list[str]]) -> int:
    with anyio.open_signal_receiver(*STOPPING) as signals:
        stopping = _soon(anext(signals))
        changing = _soon(anext(changed))
        await asyncio.sleep(0)  # it is watched from here on
        child, told = await _start(command), None
        ending = _soon(child.wait())
        try:
            while not stopping.done():
                awaited: list[asyncio.Future[Any]] = [stopping, changing]
                awaited += [] if told is child else [ending]
                await asyncio.wait(awaited, return_when=asyncio.FIRST_COMPLETED)
                if changing.done():
                    names, changing = ", ".join(changing.result()), _soon(anext(changed))
                    if child.returncode is None:
                        _say(f"{names} changed: the worker stops, and starts again")
                        await _stop(child)
                    await child.aclose()
                    if not stopping.done():
                        child = await _start(command)
                        ending = _soon(child.wait())
                elif told is not child and child.returncode is not None and not stopping.done():
                    _say(f"the worker has ended with status {child.returncode}; the next change starts it again")
                    told = child
            return await _drain(child, signals)
        finally:
            if child.returncode is None:
                child.kill()
            await child.aclose()
            for task in (stopping, changing, ending):
                task.cancel()
            await asyncio.wait((stopping, changing, ending))


async def _start(command: Sequence[str]) -> Process:
    # In a session of its own: Ctrl-C is for the supervisor, and a worker that hears two signals ends at once. Its
    # stdin, to which nothing is written, ends with the supervisor however that ends.
    return await anyio.open_process(command, stdin=subprocess.PIPE, stdout=None, stderr=None, start_new_session=True)


async def _stop(child: Process) -> None:
    child.terminate()
    with anyio.move_on_after(GRACE_S):
        await child.wait()
        return
    _say(f"the worker still runs something after {GRACE_S:g} s: it is killed, its successor takes that over")
    child.kill()
    await child.wait()


async def _drain(child: Process, signals: AsyncIterator[signal.Signals]) -> int:
    """Let the worker finish what it runs; a second signal ends it at once."""
    if child.returncode is not None:
        return 0
    child.terminate()
    ending, insisting = _soon(child.wait()), _soon(anext(signals))
    either: tuple[asyncio.Future[Any], ...] = (ending, insisting)
    await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
    if insisting.done() and not ending.done():
        child.kill()
        await ending
        return 128 + insisting.result()
    insisting.cancel()
    return 0


def _soon(work: Awaitable[T]) -> asyncio.Future[T]:
    return asyncio.ensure_future(work)


def _say(what: str) -> None:
    print(f"dasync: {what}", file=sys.stderr, flush=True)
