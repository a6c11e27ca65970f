"""`dasync worker`: import a program, run its functions for a group, drain when asked to stop.

SIGTERM and SIGINT drain: nothing more is acquired, what runs is finished or handed back, exit status 0. A second
signal ends the process at once, as a crash would: others take its tasks over. What runs where is the EventLoop's.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import importlib.util
import json
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from traceback import extract_tb
from types import ModuleType

import anyio

from dasync.cli.commands import store_path
from dasync.errors import DasyncError
from dasync.loop import EventLoop
from dasync.runtime import registry

STOPPING = (signal.SIGTERM, signal.SIGINT)


def worker(args: argparse.Namespace) -> int:
    """Run a worker until it is told to stop."""
    logging.basicConfig(format="%(asctime)s %(name)s %(levelname)s: %(message)s")
    import_app(args.app)
    names = sorted({made.name for made in registry.registered().values()})
    if not names:
        raise DasyncError(f"{args.app} defines no durable function: put @dasync.function on what it is to run")
    asyncio.run(_work(args, names))
    return 0


async def _work(args: argparse.Namespace, names: Sequence[str]) -> None:
    with anyio.open_signal_receiver(*STOPPING) as signals:
        loop = EventLoop(
            store_path(args.store),
            group=args.group,
            process=args.process,
            lease=args.lease,
            concurrency=args.concurrency,
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


# -- the program -------------------------------------------------------------------------------------------


def import_app(app: str) -> ModuleType:
    """Import `module` or `path/to/file.py`. Raises `DasyncError` for what cannot be imported."""
    path = Path(app)
    if app.endswith(".py"):
        if not path.is_file():
            raise DasyncError(f"there is no file {app}; give a module or a file, relative to {os.getcwd()}")
        with _explained(app):
            return _import_file(path.resolve())
    sys.path.insert(0, os.getcwd())
    if importlib.util.find_spec(app.partition(".")[0]) is None:
        raise DasyncError(f"there is no module {app!r} on the path or in {os.getcwd()}; a file is given with its .py")
    with _explained(app):
        return importlib.import_module(app)


def _import_file(path: Path) -> ModuleType:
    if path.stem in sys.modules:
        raise DasyncError(f"{path.name} hides behind the module {path.stem!r} that dasync uses; give it another name")
    sys.path.insert(0, str(path.parent))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise DasyncError(f"{path} cannot be imported; give a Python file")
    module = sys.modules[path.stem] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@contextmanager
def _explained(app: str) -> Iterator[None]:
    """Whatever an import raises, in one line."""
    try:
        yield
    except DasyncError:
        raise
    except SystemExit as error:
        guard = 'if __name__ == "__main__":'
        raise DasyncError(f"{app} ends the program when imported; put that under `{guard}`") from error
    except Exception as error:
        frames = extract_tb(error.__traceback__)
        at = f" at {frames[-1].filename}:{frames[-1].lineno}" if frames else ""
        raise DasyncError(f"importing {app} failed: {type(error).__name__}: {error}{at}; fix it first") from error
