"""What a simulation refuses: real time, unseeded randomness, sockets, subprocesses; each by the name of the call.

While a world runs, the functions that would let the real world in raise `Unsimulated` when a program calls them. The
standard library's own use of them, in logging say, is let through: nothing of a program's course hangs on it. What was
imported by name before (`from time import time`) and `datetime.now()`, which is C, cannot be caught here: `dasync
check` finds both in durable functions.
"""

from __future__ import annotations

import asyncio
import random
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from types import FrameType
from typing import Any

from anyio import CapacityLimiter
from anyio._backends import _asyncio as anyio_asyncio

from dasync.testing.simloop import SimLoop, refuse

_TRUSTED = frozenset((
    "_pytest", "anyio", "asyncio", "concurrent", "contextlib", "dasync", "faulthandler", "importlib", "logging",
    "multiprocessing", "pluggy", "pytest", "queue", "sched", "selectors", "sqlite3", "threading", "tempfile",
    "traceback", "warnings", "linecache", "pdb", "bdb", "cmd", "unittest", "coverage", "hypothesis", "random",
))  # fmt: skip
_PROGRAMS = "dasync.testing.programs"  # of ours, but as a user's
_FORBIDDEN = {  # by name: this room may not use them either
    "time": ("time", "time_ns", "monotonic", "monotonic_ns", "perf_counter", "perf_counter_ns", "sleep"),
    "random": (
        "random", "randint", "randrange", "choice", "choices", "shuffle", "sample", "uniform", "getrandbits", "gauss",
        "betavariate", "expovariate", "triangular", "normalvariate", "randbytes",
    ),
    "os": ("urandom",),
    "uuid": ("uuid1", "uuid4"),
    "secrets": ("token_bytes", "token_hex", "token_urlsafe", "choice", "randbelow", "randbits"),
    "socket": ("create_connection", "getaddrinfo"),
    "subprocess": ("run", "call", "check_call", "check_output"),
}  # fmt: skip


@contextmanager
def guarded() -> Iterator[None]:
    """While this is open, the real world is out of reach."""
    modules = [(import_module(module), names) for module, names in _FORBIDDEN.items()]
    real = [(module, name, getattr(module, name)) for module, names in modules for name in names]
    backend: Any = anyio_asyncio.AsyncIOBackend
    stream: Any = random.Random
    seed = stream.seed  # it is how each of them begins
    in_thread = backend.__dict__["run_sync_in_worker_thread"]
    for module, name, function in real:
        setattr(module, name, _refused(module.__name__, name, function))
    made: list[tuple[Any, str, Any]] = [(socket, "socket", socket.socket), (subprocess, "Popen", subprocess.Popen)]
    begun = [(kind, kind.__init__) for _, _, kind in made]  # a class stays: what is one of it may be asked
    for module, name, kind in made:
        kind.__init__ = _refused(module.__name__, name, kind.__init__)
    backend.run_sync_in_worker_thread = classmethod(_in_thread_of(in_thread))
    stream.seed = _seeded(seed)
    try:
        yield
    finally:
        stream.seed = seed
        backend.run_sync_in_worker_thread = in_thread
        for kind, init in begun:
            kind.__init__ = init
        for module, name, function in real:
            setattr(module, name, function)


def _refused(module: str, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def guard(*args: Any, **kwargs: Any) -> Any:
        caller = str(sys._getframe(1).f_globals.get("__name__", ""))
        if caller.partition(".")[0] not in _TRUSTED or caller == _PROGRAMS:
            refuse(f"{module}.{name}(), called by {caller},")
        return function(*args, **kwargs)

    return guard


def _seeded(real: Callable[..., None]) -> Callable[..., None]:
    def seed(self: random.Random, a: Any = None, version: int = 2) -> None:
        """random.Random's, which takes the kernel's bytes where it is given nothing."""
        if a is None:
            frame: FrameType | None = sys._getframe(1)
            while frame is not None and frame.f_globals.get("__name__") == "random":  # what makes one calls this
                frame = frame.f_back
            caller = "" if frame is None else str(frame.f_globals.get("__name__", ""))
            if caller.partition(".")[0] not in _TRUSTED or caller == _PROGRAMS:
                refuse(f"random.Random() without a seed, made by {caller},")
        real(self, a, version)

    return seed


def _in_thread_of(real: Any) -> Callable[..., Any]:
    async def run_sync_in_worker_thread(
        cls: Any, func: Callable[..., Any], args: tuple[Any, ...], abandon_on_cancel: bool = False,
        limiter: CapacityLimiter | None = None,
    ) -> Any:  # fmt: skip
        """anyio's, where a simulated process asks for it."""
        loop = asyncio.get_running_loop()
        if not isinstance(loop, SimLoop):
            return await real.__get__(None, cls)(func, args, abandon_on_cancel=abandon_on_cancel, limiter=limiter)
        async with limiter or cls.current_default_thread_limiter():
            with anyio_asyncio.CancelScope(shield=not abandon_on_cancel):
                return await loop.run_in_executor(None, func, *args)

    return run_sync_in_worker_thread

