"""The processes that run functions with `process=True`, each on arguments and for a result that are bytes already.

Each is the one process of a `ProcessPoolExecutor` of its own, spawned: a pool of several breaks as a whole when one of
them ends, and does not say which; and whoever is canceled has his process ended, which must be nobody else's. (anyio's
pool belongs to the asyncio loop and not to an EventLoop, and forgets a process whose caller is canceled while it
starts.) What the executor pickles is `pool_child.run` by its name and plain str, int and bytes, there and back:
arguments, results and errors are encoded by dasync's own codec on both sides, and no payload is ever unpickled.

Nothing here knows what an execution is; how many may run at a time is `slots.py`, what a process does `pool_child.py`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.context import SpawnContext, SpawnProcess
from multiprocessing.process import current_process

import anyio.to_thread

from dasync.core import codec, failure
from dasync.runtime import pool_child
from dasync.runtime.function import Function
from dasync.runtime.registry import error_classes
from dasync.system import call_later

Call = tuple[tuple[str, str], str, int, bytes, int]  # what `pool_child.run` takes
MAINS = ("__main__", "__mp_main__")
NAME = "dasync-pool"  # of each: by it a process knows what it was spawned for before it imports anything else
PAUSE_S = 1.0  # until another try to start one
LAST_WORDS_S = 1.0  # how long to wait for the status of a process that has ended
_IMPORTS = (
    "imports this program, and importing it opens an EventLoop: put what it runs under `if __name__ == \"__main__\":`"
)
_log = logging.getLogger("dasync")


class Crashed(Exception):
    """A function has ended its process too often in a row."""

    def __init__(self, crashes: int, last: str) -> None:
        super().__init__(crashes, last)
        self.crashes = crashes
        self.last = last
        """The last of those processes, and how it ended."""


class Pool:
    """Those of one EventLoop; each is started when it is needed first."""

    def __init__(self, max_crashes: int, max_payload: int) -> None:
        self._max_crashes = max_crashes
        self._max_payload = max_payload
        self._idle: list[_Process] = []
        self._busy: set[_Process] = set()

    async def run(self, function: Function[..., object], id: str, param: bytes) -> object:
        """What the function returns for those arguments, or raise what it raises. Canceled, its process is killed.

        Raises `Crashed` when its processes have ended without an answer, as often in a row as that may happen.
        """
        call, crashes = (_where(function), function.name, function.version, param, self._max_payload), 0
        while True:
            process = await self._free()
            try:
                returned, raw = await process.run(call)
            except BrokenProcessPool:
                crashes, last = crashes + 1, await process.last_words()
                if crashes == self._max_crashes or process.status == pool_child.UNGUARDED:  # as it would be each time
                    raise Crashed(crashes, last) from None
                _log.warning("%s, while it ran %r of %r: that is run again", last, function.name, id)
                continue
            finally:
                self._busy.discard(process)
                if process.is_free:
                    self._idle.append(process)
                else:
                    process.kill()
            if not returned:
                raise failure.decode_error(raw, error_classes())
            return codec.decode(raw, function.result)

    def close(self) -> None:
        """End them all."""
        for process in (*self._idle, *self._busy):
            process.kill()
        self._idle.clear()

    async def _free(self) -> _Process:
        while True:
            while self._idle and not self._idle[-1].is_alive:  # nobody that runs is to blame for the end of an idle one
                self._idle.pop().kill()
            try:
                process = self._idle.pop() if self._idle else _Process()
            except OSError as error:  # no file descriptors, no memory: no function's failure, and not to be recorded
                _log.warning("no process of the pool can be started: %s; it is tried again", error)
                loop = asyncio.get_running_loop()
                later = loop.create_future()
                call_later(loop, PAUSE_S, later.set_result, None)
                await later
                continue
            self._busy.add(process)
            return process


class _Process:
    """One of them."""

    def __init__(self) -> None:
        context = _Context()
        self._executor = ProcessPoolExecutor(1, mp_context=context, initializer=pool_child.begin)
        try:
            self._started: Future[None] = self._executor.submit(pool_child.greet)
        except OSError:
            self._executor.shutdown(wait=False, cancel_futures=True)
            raise
        self._process = context.made
        self.is_free = False
        """Whether it waits for something to do."""

    @property
    def is_alive(self) -> bool:
        return self._process is not None and self._process.is_alive()

    @property
    def status(self) -> int | None:
        """With which it has ended, if that is known."""
        return None if self._process is None else self._process.exitcode

    async def run(self, call: Call) -> tuple[bool, bytes]:
        """Whether a function has returned, and what, in bytes; or its error. Raises `BrokenProcessPool`."""
        self.is_free = False
        # Nothing large is on its way to a process that does not read yet: it might be killed meanwhile.
        await asyncio.wrap_future(self._started)
        answer = await asyncio.wrap_future(self._executor.submit(pool_child.run, *call))
        self.is_free = True
        return answer

    def kill(self) -> None:
        """End it at once."""
        self.is_free = False
        if self._process is not None:
            self._process.kill()
        self._executor.shutdown(wait=False, cancel_futures=True)

    async def last_words(self) -> str:
        """Which it was, and how it has ended."""
        if self._process is None:
            return "a process of the pool did not start"
        await anyio.to_thread.run_sync(self._process.join, LAST_WORDS_S)
        who = f"process {self._process.pid} of the pool"
        if self.status == pool_child.UNGUARDED:
            return f"{who} {_IMPORTS}"
        return f"{who} has ended{'' if self.status is None else f' with status {self.status}'}"


class _Context(SpawnContext):
    """Spawns, and keeps the process that is spawned: an executor does not give it."""

    made: SpawnProcess | None = None

    def Process(self, *args: object, **kwargs: object) -> SpawnProcess:  # type: ignore[override]  # noqa: N802  # a class
        self.made = SpawnProcess(*args, **{**kwargs, "name": NAME})  # type: ignore[arg-type]  # what the executor gives a Process
        return self.made


def _where(function: Function[..., object]) -> tuple[str, str]:
    """The module that defines a function, and its file."""
    module, main = function.__module__, sys.modules["__main__"]
    spec = getattr(main, "__spec__", None)
    if module in MAINS and spec is not None and spec.name.endswith(".__main__"):
        module = spec.name  # multiprocessing imports any other program itself
    code = getattr(function.fn, "__code__", None)
    file = "" if code is None else str(code.co_filename)
    if module in MAINS and not getattr(main, "__file__", None):
        raise TypeError(
            f"{function.name!r} is defined in an interactive session, where a process of the pool cannot find it:"
            " write it in a module and import that"
        )
    return module, file


def check_guarded() -> None:
    """Raise where a process that multiprocessing has spawned runs the program that it only is to import. One of the
    pool ends: its parent says why, once."""
    process = current_process()
    if getattr(process, "_inheriting", False):  # it imports its parent's program
        if process.name == NAME:
            os._exit(pool_child.UNGUARDED)
        raise RuntimeError(f"a process that multiprocessing has spawned {_IMPORTS}")
