"""Time travel: a seed is run again, and stops at a chosen operation, in the code that asked for it.

A seed always goes the same way, so any moment of a run can be had as often as it is wanted. Where it stops is the frame
of the user's in which the execution stands, or its parent where it has none any more, or else the test. The debugger is
pdb, or what is handed in. Nothing is judged here.
"""

from __future__ import annotations

import pdb  # noqa: T100  # it is what this file is about
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from types import FrameType, TracebackType
from typing import IO, Any

from dasync.core import ids
from dasync.core import protocol as p
from dasync.ports import Committed
from dasync.testing import frames, points
from dasync.testing.cluster import Process
from dasync.testing.history import Operation, line
from dasync.testing.seeds import Test, case_of, first, own_traceback, violations_of
from dasync.testing.simdisk import Recorder
from dasync.testing.world import ME, World

VIOLATION = "violation"
At = int | str | Callable[[Operation], bool]
_SKIPPED = ["dasync.*", "asyncio.*", "contextlib", "anyio.*"]


class Quit(KeyboardInterrupt):  # passes every `except Exception` on its way out, as asyncio lets it
    """Whoever debugs has had enough."""


class Debugger:
    """The debugger, told where to stop: among frames that wait rather than call each other."""

    def __init__(self, pdb_class: type[pdb.Pdb], stdin: IO[str] | None, stdout: IO[str] | None) -> None:
        self._pdb = pdb_class(stdin=stdin, stdout=stdout, skip=_SKIPPED, nosigint=True)

    def say(self, text: str) -> None:
        """Tell what there is to see."""
        self._pdb.message(text)

    def stop(self, stack: Sequence[FrameType]) -> None:
        """Stop in the innermost of them. Raises `Quit`."""
        debugger: Any = self._pdb
        debugger.reset()
        lines = [(frame, frame.f_lineno) for frame in stack]
        debugger.get_stack = lambda frame, traceback: (list(lines), len(lines) - 1)
        try:
            debugger.interaction(stack[-1], None)
        finally:
            del debugger.get_stack
        if debugger.quitting:
            raise Quit
        if debugger.breaks or debugger.stoplineno != -1:  # told to step, or to go on to a breakpoint
            debugger.botframe = stack[0]  # nothing outside is traced
            for frame in stack:
                frame.f_trace = debugger.trace_dispatch
            sys.settrace(debugger.trace_dispatch)

    def post_mortem(self, traceback: TracebackType) -> None:
        """Look at what is over."""
        debugger: Any = self._pdb
        debugger.reset()
        debugger.interaction(None, traceback)


class Stops(Recorder):
    """Hears what the world's watch hears, and stops where it was told to."""

    def __init__(self, world: World, at: At, debugger: Debugger) -> None:
        self.count = 0
        """How many operations were asked for."""
        self.stopped = 0
        self.latest: tuple[Process, p.Command] | None = None
        """What took effect last."""
        self._world = world
        self._at = at
        self._debugger = debugger

    def asked(self, process: Process, commands: Sequence[p.Command]) -> object:
        token = self._world.watch.asked(process, commands)
        begin, now = self._world.cluster.ticks, process.now_ms()
        for command in commands:
            operation = Operation(self.count, process.name, command, begin, None, None, now)
            self.count += 1
            if operation.number == self._at or (callable(self._at) and self._at(operation)):
                self.stopped += 1
                what = f"operation {operation.number}: {process.name} asks: {line(operation)}"
                self._debugger.say(f"{what}, {self._world.cluster.time:.6f} s")
                if stack := self.stack(process, command):
                    self._debugger.stop(stack)
        return token

    def took_effect(self, token: Any, committed: Committed) -> None:
        self.latest = token.process, token.commands[-1]
        self._world.watch.took_effect(token, committed)

    def heard(self, token: object, committed: Committed | None, error: BaseException | None) -> None:
        self._world.watch.heard(token, committed, error)

    def stack(self, process: Process, command: p.Command) -> list[FrameType]:
        """The user's frames from which that was asked for."""
        id: str | None  # of whose execution it is; up to the root
        place: str
        id, place = _asker(command)
        others = [one for one in self._world.cluster.processes.values() if one is not process]
        while id is not None:
            for one in (process, *others):
                if found := frames.of_execution(one.loop, id, place):
                    return found
            id = ids.parent_of(id)
        me = self._world.cluster.processes.get(ME)
        return [] if me is None or me.task is None else frames.users(frames.chain(me.task.get_coro()))


def debug(
    test: Test,
    seed: int = 0,
    at: At = VIOLATION,
    *,
    crash: str | None = None,
    pdb_class: type[pdb.Pdb] = pdb.Pdb,
    stdin: IO[str] | None = None,
    stdout: IO[str] | None = None,
    **options: Any,
) -> None:
    """Run `test` in the world of that seed, and stop with pdb where `at` says, in the frame of the user's code there.

    `at` is the number of an operation in `world.history`, a predicate of operations (it stops at each that it is true
    of, when it is asked for), or "violation": where the test fails, or at what took effect last before something did
    not hold. `crash` and the other options are those of `simulate`. `stdin` and `stdout` are pdb's. Returns when the
    run is over, or at pdb's `quit`; raises `LookupError` if the run never came there.

    Example:
        >>> import io
        >>> import dasync
        >>> from dasync.testing import World, debug
        >>> from dasync.testing.history import line
        >>> @dasync.function
        ... async def double(number: int) -> int:
        ...     return 2 * number
        >>> @dasync.function
        ... async def four() -> int:
        ...     two = await double(1)
        ...     return await double(two)
        >>> async def test(world: World) -> None:
        ...     assert await world.invoke(four.options(id="f")) == 4
        >>> said = io.StringIO()
        >>> debug(test, at=lambda it: "create f:1" in line(it), stdin=io.StringIO("p two"), stdout=said)
        >>> print(said.getvalue())  # doctest: +ELLIPSIS
        operation ...: default-... asks: fence f@1: create f:1 as resolved -> ?, 0... s
        ...
        (Pdb) 2
        ...
    """
    given = case_of(options)
    case = replace(given.measured(first(test, given)), seed=seed, crash=None if crash is None else points.parse(crash))
    debugger, tracing = Debugger(pdb_class, stdin, stdout), sys.gettrace()
    with case.world() as world:
        points.Points(world, case.crash)
        stops = Stops(world, at, debugger)
        world.disk.recorder = stops
        try:
            _run(world, test, stops, debugger, at)
        except Quit:
            return
        finally:
            sys.settrace(tracing)
    if not stops.stopped:
        where = "it holds" if at == VIOLATION else f"it has {stops.count} operations, and stops at none of them"
        raise LookupError(f"the run of seed {seed} is over: {where}")


def _run(world: World, test: Test, stops: Stops, debugger: Debugger, at: At) -> None:
    try:
        world.run(test)
    except Exception as error:
        debugger.say(f"{type(error).__name__}: {error}")
        if at == VIOLATION:
            stops.stopped += 1
            if (traceback := own_traceback(error.__traceback__)) is not None:
                debugger.post_mortem(traceback)
    if at == VIOLATION and (found := violations_of(world)):
        stops.stopped += 1
        for one in found:
            debugger.say(f"{one.checker}: {one.text}")
        if stops.latest is not None and (stack := stops.stack(*stops.latest)):
            debugger.stop(stack)


def _asker(command: p.Command) -> tuple[str | None, str]:
    """The promise whose execution asks for that, and the promise that it is about."""
    match command:
        case p.TaskFence():
            id = getattr(command.action, "id", command.claim.id)
            return ids.parent_of(id) or command.claim.id, id
        case p.TaskFulfill() | p.TaskSuspend() | p.TaskRelease():
            return command.claim.id, command.claim.id
        case p.RegisterCallback():
            return command.awaiter, command.awaited
        case p.TaskCreate():
            return ids.parent_of(command.action.id), command.action.id
        case _:
            id = getattr(command, "id", "")
            return getattr(command, "awaiter", None) or (ids.parent_of(id) if id else None), id
