"""Source lines, for a person to find: the one that invokes something now, and where a function is defined.

Frames of dasync and of the standard library are passed over: what is meant is the program's own code. It reads
sources and changes nothing; where there is no line to show, it gives an empty text.
"""

from __future__ import annotations

import asyncio
import linecache
import os
import re
import sys
import sysconfig
from contextlib import suppress
from types import FrameType

LINE_CHARS = 120
MAX_DECORATOR_LINES = 20  # above a `def`
_DEF = re.compile(r"(async\s+)?def\b")
_HOUSE = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "")
_LIBRARY = os.path.join(sysconfig.get_paths()["stdlib"], "")


def calling(thread_id: int | None) -> str:
    """The line that makes the call which is being handled: in the running task, or in a thread that waits for it."""
    if thread_id is None:
        task = asyncio.current_task()
        frame, last = sys._getframe(), getattr(task.get_coro() if task is not None else None, "cr_frame", None)
    else:
        frame, last = sys._current_frames()[thread_id], None
    found: FrameType | None = frame
    while found is not None and is_foreign(found.f_code.co_filename):
        found = None if found is last else found.f_back  # what lies beyond runs the asyncio loop
    return "" if found is None else _line(found.f_code.co_filename, found.f_lineno)


def defining(function: object) -> str:
    """The line in which a function is defined."""
    code = getattr(function, "__code__", None)
    if code is None:
        return ""
    first = code.co_firstlineno  # that of its first decorator
    lines = [linecache.getline(code.co_filename, first + below).lstrip() for below in range(MAX_DECORATOR_LINES)]
    return _line(code.co_filename, next((first + i for i, line in enumerate(lines) if _DEF.match(line)), first))


def is_foreign(path: str) -> bool:
    """Whether a file is not the program's own: dasync's, or of the standard library."""
    installed = "site-packages" in path or "dist-packages" in path
    return path.startswith((_HOUSE, "<frozen")) or (path.startswith(_LIBRARY) and not installed)


def _line(path: str, number: int) -> str:
    text = linecache.getline(path, number).strip()
    with suppress(OSError):  # the working directory may be gone
        path = path.removeprefix(os.path.join(os.getcwd(), ""))
    return f"{path}:{number}" + (f": {text[:LINE_CHARS]}" if text else "")
