"""Where the code of a simulated program stands: the user's frames of a coroutine, and who waits for what in a process.

A frame is the user's if it is neither dasync's nor the standard library's, nor, where there is another one, that of an
installed package. Nothing is run or changed here.
"""

from __future__ import annotations

import asyncio
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from dasync.runtime.branch import BranchTask

_HOUSE = str(Path(__file__).parent.parent) + "/"
_PROGRAMS = f"{_HOUSE}testing/programs.py"
_PATHS = sysconfig.get_paths()
_INSTALLED = tuple({f"{_PATHS[name]}/" for name in ("purelib", "platlib")})
_STDLIB = tuple({f"{_PATHS[name]}/" for name in ("stdlib", "platstdlib")})
_AWAITED = (("cr_frame", "cr_await"), ("gi_frame", "gi_yieldfrom"), ("ag_frame", "ag_await"))


def chain(awaitable: object) -> list[FrameType]:
    """The frames of a coroutine and of what it awaits, the innermost last."""
    frames: list[FrameType] = []
    while awaitable is not None:
        for frame, awaits in _AWAITED:
            if hasattr(awaitable, frame):
                found = getattr(awaitable, frame)
                if found is not None:
                    frames.append(found)
                awaitable = getattr(awaitable, awaits)
                break
        else:
            break
    return frames


def users(frames: Sequence[FrameType]) -> list[FrameType]:
    """Those of them that are the user's."""
    others = [frame for frame in frames if not _is_of(frame, (_HOUSE, "<frozen ")) or _is_of(frame, (_PROGRAMS,))]
    outside = [frame for frame in others if _is_of(frame, _INSTALLED) or not _is_of(frame, _STDLIB)]
    return [frame for frame in outside if not _is_of(frame, _INSTALLED)] or outside


def of_execution(loop: asyncio.AbstractEventLoop | None, id: str, place: str = "") -> list[FrameType]:
    """The user's frames of the execution of promise `id`: of that of its tasks in which the invocation `place` is."""
    tasks = [task for task in tasks_of(loop) if isinstance(task, BranchTask) and task.branch.owner.id == id]
    tasks.sort(key=lambda task: (place.startswith(task.branch.prefix), len(task.branch.prefix)), reverse=True)
    for task in tasks:
        if found := users(chain(task.get_coro())) or in_thread(task):
            return found
    return []


def in_thread(task: BranchTask[Any]) -> list[FrameType]:
    """The user's frames of a function that runs in a thread."""
    ident = getattr(task.branch.owner, "thread_id", lambda: None)()
    frame, frames = sys._current_frames().get(ident or 0), list[FrameType]()
    while frame is not None:
        frames.insert(0, frame)
        frame = frame.f_back
    return users(frames)


def tasks_of(loop: asyncio.AbstractEventLoop | None) -> list[asyncio.Task[Any]]:
    """The tasks of an asyncio loop that are not done, in the same order in every run."""
    if loop is None:
        return []
    return sorted(asyncio.all_tasks(loop), key=lambda task: (len(task.get_name()), task.get_name()))


def waiting(loop: asyncio.AbstractEventLoop | None, awaiters: Mapping[str, Sequence[str]]) -> list[str]:
    """Each of the user's tasks there, where it stands, and for which promises it waits, in a line."""
    lines = []
    for task in tasks_of(loop):
        frames = users(chain(task.get_coro()))
        id = task.branch.owner.id if isinstance(task, BranchTask) else ""
        if not frames and isinstance(task, BranchTask):
            frames = in_thread(task)
        if frames:
            own = (id, task.get_name()) if id else (task.get_name(),)
            promises = [promise for promise, waiters in awaiters.items() if set(own) & set(waiters)]
            prefix = task.branch.prefix if isinstance(task, BranchTask) else ""
            near = [promise for promise in promises if prefix and promise.startswith(prefix)] or promises
            code, at = frames[-1].f_code, frames[-1].f_lineno
            what = f", waits for {', '.join(near)}" if near else ""
            lines.append(f"{f'{id}: ' if id else ''}{code.co_qualname} at {code.co_filename}:{at}{what}")
    return sorted(set(lines))


def _is_of(frame: FrameType, folders: tuple[str, ...]) -> bool:
    return frame.f_code.co_filename.startswith(folders)
