"""`dasync worker`: import a program, run its functions for a group, drain when asked to stop.

SIGTERM and SIGINT drain: nothing more is acquired, what runs is finished or handed back, exit status 0. A second
signal ends the process at once, as a crash would: others take its tasks over. Under a supervisor the end of stdin is
such a signal too. What runs where is the EventLoop's.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator, Sequence

import anyio

from dasync.cli.commands import store_path
from dasync.cli.program import import_app
from dasync.errors import DasyncError
from dasync.loop import EventLoop
from dasync.runtime import registry
from dasync.runtime.clocks import loop_factory

STOPPING = (signal.SIGTERM, signal.SIGINT)
STDIN = 0


def worker(args: argparse.Namespace) -> int:
    """Run a worker until it is told to stop."""
    logging.basicConfig(format="%(asctime)s %(name)s %(levelname)s: %(message)s")
    import_app(args.app)
    names = sorted({made.name for made in registry.registered().values()})
    if not names:
        raise DasyncError(f"{args.app} defines no durable function: put @dasync.function on what it is to run")
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(_work(args, names))
    return 0


async def _work(args: argparse.Namespace, names: Sequence[str]) -> None:
    with anyio.open_signal_receiver(*STOPPING) as signals:
        if args.supervised:
            asyncio.get_running_loop().add_reader(STDIN, _orphaned)
        loop = EventLoop(
            store_path(args.store),
            group=args.group,
            process=args.process,
            lease=args.lease,
            concurrency=args.concurrency,
            processes=args.processes,
            durability=args.durability,
        )
        failures: list[BaseException] = []
        async with loop, anyio.create_task_group() as services:
            _say_ready(args, loop, names)
            services.start_soon(_note_failure, loop, failures, services.cancel_scope)
            await anext(signals)
            print(f"{loop.process} finishes what it runs; a second signal ends it at once", file=sys.stderr, flush=True)
            services.start_soon(_leave_at_once, signals)
            await loop.drain()
            services.cancel_scope.cancel()
    if failures:
        raise DasyncError(f"{loop.process} stops: {failures[0]}")


async def _note_failure(loop: EventLoop, failures: list[BaseException], scope: anyio.CancelScope) -> None:
    """A worker that can write nothing more is of no use to anybody."""
    failures.append(await loop.failed())
    scope.cancel()


def _orphaned() -> None:
    """Stdin has ended, and with it whoever would have told this worker to stop."""
    asyncio.get_running_loop().remove_reader(STDIN)
    signal.raise_signal(signal.SIGTERM)


async def _leave_at_once(signals: AsyncIterator[signal.Signals]) -> None:
    os._exit(128 + await anext(signals))


def _say_ready(args: argparse.Namespace, loop: EventLoop, names: Sequence[str]) -> None:
    store = os.path.abspath(store_path(args.store))
    if args.json:
        ready = {
            "ready": True, "process": loop.process, "group": loop.group, "store": store, "pid": os.getpid(),
            "functions": list(names),
        }  # fmt: skip
        print(json.dumps(ready), flush=True)
    else:
        print(f"{loop.process} is ready: group {loop.group}, store {store}, functions {', '.join(names)}", flush=True)
