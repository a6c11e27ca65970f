"""What a process of the pool does: find a function by the module that defines it, call it, and give bytes back.

It opens no store and no EventLoop, holds nothing that its parent holds, and ends when its parent does, however that
ends. Signals to a whole group of processes, as Ctrl-C sends one, are for the parent to act on.
"""

from __future__ import annotations

import os
import signal
import sys
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from multiprocessing.connection import wait
from multiprocessing.process import parent_process
from threading import Thread

from dasync.core import codec, failure
from dasync.runtime import branch
from dasync.runtime.registry import lookup

ORPHANED, ENDED, UNGUARDED = 1, 3, 4  # exit status


def begin() -> None:
    """The process has started."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    parent = parent_process()
    if parent is not None:
        Thread(target=_end_with, args=(parent.sentinel,), name="dasync-orphan", daemon=True).start()


def greet() -> None:
    """It is there."""


def run(where: tuple[str, str], name: str, version: int, param: bytes, limit: int) -> tuple[bool, bytes]:
    """Call a function: whether it has returned, and its encoded result or error."""
    branch.confine(name)
    try:
        _import(*where)
        made = lookup(name, version)
        args, kwargs = made.shape.decode(param)
        return True, codec.encode_result(made.fn(*args, **kwargs), made.result, limit)[0]
    except (KeyboardInterrupt, SystemExit, GeneratorExit):
        os._exit(ENDED)  # it means to end its process: so it does, and that is no answer
    except BaseException as error:
        return False, failure.encode_error(error, limit)


def _import(module: str, file: str) -> None:
    """Let the functions of a module register themselves."""
    if module in sys.modules:  # as __main__ is: the parent's program, under its name
        return
    try:
        import_module(module)
    except ModuleNotFoundError as error:
        spec = spec_from_file_location(module, file) if error.name == module else None
        if spec is None or spec.loader is None:
            raise
        made = sys.modules[module] = module_from_spec(spec)
        spec.loader.exec_module(made)


def _end_with(parent: int) -> None:
    wait([parent])
    os._exit(ORPHANED)
