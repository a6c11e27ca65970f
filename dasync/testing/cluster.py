"""Several simulated processes in one thread: whose callback runs next, what time it is, who is dead or stopped.

Everything that happens is a callback of some process or an event of the world (a bell that arrives, a disk that has
written, a fault). A seed chooses which is next among all that could be; when none could, time jumps to the next timer.
Each choice goes into a hash: two runs with the same hash went the same way. Separate random streams serve separate
concerns, so that a draw more in one shifts nothing in the others. What processes do is not known here.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import heapq
import struct
import sys
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from hashlib import blake2b
from random import Random
from typing import Any, NamedTuple

from dasync.system import stream
from dasync.testing.clock import T0_MS
from dasync.testing.frames import waiting
from dasync.testing.guard import guarded
from dasync.testing.policies import Policy, Seeded
from dasync.testing.simloop import DurableSimLoop, SimLoop
from dasync.testing.simthreads import Threads

STEP_S = 2e-6  # what a callback costs: without it a program that spins would stop the clocks
RESTLESS, RESTLESS_STEP_S = 4_000, 1e-4  # after so many in a row: who waits so for a slow disk waits on
TURNS = 8  # between two looks whether it is over
MAX_TICKS = 5_000_000  # of one run: more is a program that spins


class Deadlock(Exception):  # named for what happened, as dasync's errors are
    """Nothing is ready and no timer is set, and what is waited for has not happened. Says who waits where, for what."""


class Spins(Exception):  # likewise
    """A run does not come to an end: something is always ready."""


class Line(NamedTuple):
    """One line of the trace."""

    tick: int
    at_s: float
    process: str
    text: str


Main = Callable[["Process"], Coroutine[Any, Any, object]]


class Process:
    """One simulated process of the operating system: its life, its clock, its asyncio loop."""

    def __init__(self, cluster: Cluster, name: str, host: str) -> None:
        self.cluster = cluster
        self.name = name
        self.host = host
        self.life = 0
        """How often it was started."""
        self.up = False
        self.stopped = False
        self.skew_ms = 0
        """How far its wall clock is from the world's."""
        self.loop: SimLoop | None = None
        self.task: asyncio.Task[object] | None = None
        self.ended: asyncio.Future[None] | None = None
        """In its loop: done once it is told to end."""
        self.place: Any = None
        """What runs in it, as whoever started it has it."""

    @property
    def runs(self) -> bool:
        """Whether it is up and not stopped."""
        return self.up and not self.stopped

    def now_ms(self) -> int:
        """Its wall clock."""
        return T0_MS + round(self.cluster.time * 1000) + self.skew_ms

    def monotonic(self) -> float:
        """Seconds that the machine was awake; no fault sets them back."""
        return self.cluster.now

    async def sleep(self, seconds: float) -> None:
        """Return when so many seconds have passed."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._later(seconds, _set, done)
        await done

    def _later(self, seconds: float, callback: Callable[..., object], *args: object) -> None:
        """Call that in this life, when its machine was awake for so long."""
        life = self.life

        def call() -> None:
            if self.life == life:
                self.call(callback, *args)

        self.cluster.at(seconds, call, service=True)

    def start(self, main: Main) -> None:
        """Begin a new life with `main`."""
        assert not self.up, f"{self.name} runs already"
        cluster = self.cluster
        self.life += 1
        self.up, self.stopped = True, False
        self.loop = loop = DurableSimLoop(lambda: cluster.time, self._later, cluster.threads.run)
        loop.set_exception_handler(lambda _, context: cluster.complain(self, context))
        with cluster.inside(self):
            self.ended = loop.create_future()
            self.task = loop.create_task(main(self))
            self.task.add_done_callback(lambda task: self._over(task))
        cluster.say(self.name, f"starts, life {self.life}")

    def kill(self) -> None:
        """Not one callback more."""
        if self.up:
            self.cluster.say(self.name, "is killed")
            self._end()

    def stop(self) -> None:
        """Nothing of it runs until `go_on`; its clock goes on."""
        if self.runs:
            self.stopped = True
            self.cluster.say(self.name, "is stopped")

    def go_on(self) -> None:
        """After `stop`."""
        if self.stopped:
            self.stopped = False
            self.cluster.say(self.name, "goes on")

    def tell_to_end(self) -> None:
        """Ask it to end in an orderly manner."""
        if self.up and self.ended is not None and not self.ended.done():
            self.cluster.say(self.name, "is told to end")
            with self.cluster.inside(self):
                self.ended.set_result(None)

    def call(self, callback: Callable[..., object], *args: object) -> None:
        """Let its loop call that soon, if it lives."""
        if self.up and self.loop is not None:
            self.loop.call_soon(callback, *args)

    def _over(self, task: asyncio.Task[object]) -> None:
        self.cluster.say(self.name, "ends")
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self.cluster.failures.append((self.name, error))
        self._end()

    def _end(self) -> None:
        loop, self.up, self.stopped = self.loop, False, False
        assert loop is not None
        self.loop = None
        self.cluster.bury(loop)
        for listener in list(self.cluster.on_death):
            listener(self)


class Cluster:
    """The processes, the time and the order of everything."""

    def __init__(self, seed: int, policy: Policy | None = None, *, traces: bool = False) -> None:
        self.seed = seed
        self.now = 0.0
        """Seconds since the beginning of the world, in which its machines were awake."""
        self.slept = 0.0
        """Seconds for which all of them slept at once, for nothing was to be done."""
        self._in_a_row = 0  # callbacks since everything was at rest
        self.active_at = 0.0
        """When something was done last, by `now`."""
        self.settle_s: float | None = None
        """After so long without anything done, time leaps to what comes next; None: it never leaps."""
        self.horizon: Callable[[], float | None] = lambda: None
        """When the store has something to do next, by `time`."""
        self.ticks = 0
        self.policy: Policy = policy or Seeded(self._name("schedule"))
        self.processes: dict[str, Process] = {}
        self.threads = Threads()
        self.trace: list[Line] | None = [] if traces else None
        self.failures: list[tuple[str, BaseException]] = []
        """Processes that have ended by an error."""
        self.complaints: list[str] = []
        """What asyncio had to say."""
        self.on_death: list[Callable[[Process], None]] = []
        self.before_step: Callable[[Process], None] | None = None
        self._hash = blake2b(digest_size=16)
        self._events: list[tuple[float, int, bool, Callable[[], None]]] = []
        self._pending = 0  # events that are no service's
        self._number = 0
        self._current: Process | None = None
        self._dead: list[object] = []

    def draws(self, concern: str) -> Random:
        """A random stream for one concern."""
        return stream(self._name(concern))

    def _name(self, concern: str) -> bytes:
        return f"{self.seed} {concern}".encode()

    def process(self, name: str, host: str = "host") -> Process:
        """A new process, which does not run yet."""
        made = self.processes[name] = Process(self, name, host)
        return made

    @property
    def time(self) -> float:
        """Seconds since the beginning of the world, asleep or awake."""
        return self.now + self.slept

    @property
    def current(self) -> Process | None:
        """The process whose code runs at this moment."""
        return self._current

    @property
    def digest(self) -> str:
        """What tells this run from every other one."""
        return self._hash.hexdigest()

    def say(self, process: str, text: str) -> None:
        """A line of the trace: nothing in it depends on addresses, hashes or real time."""
        self._hash.update(f"{self.ticks} {process} {text}\n".encode())
        if self.trace is not None:
            self.trace.append(Line(self.ticks, self.now, process, text))

    def complain(self, process: Process, context: dict[str, Any]) -> None:
        """asyncio has something to say."""
        error = context.get("exception")
        self.complaints.append(f"{process.name}: {context.get('message')}: {error!r}")

    # -- events of the world

    def at(self, seconds: float, event: Callable[[], None], *, service: bool = False) -> None:
        """Let `event` happen after so many seconds. A `service` is one that comes again and again."""
        self._number += 1
        self._pending += not service
        heapq.heappush(self._events, (self.now + seconds, self._number, service, event))

    def stir(self) -> None:
        """Something is being done."""
        self.active_at = self.now

    # -- running

    @contextmanager
    def inside(self, process: Process) -> Iterator[None]:
        """Code of that process runs."""
        loop = process.loop
        assert loop is not None
        before, self._current = self._current, process
        if before is not None and before.loop is not None:
            before.loop.leave()
        loop.enter()
        try:
            yield
        finally:
            loop.leave()
            self._current = before
            if before is not None and before.loop is not None:
                before.loop.enter()

    def run(self, until: Callable[[], bool], *, limit_s: float | None = None) -> bool:
        """Let things happen until `until`; False: it was not so by `limit_s` seconds of the world."""
        with _one_world():
            while not until():
                for _ in range(TURNS):
                    if not self._turn(limit_s):
                        return until()
        return True

    def _turn(self, limit_s: float | None) -> bool:
        now, soonest = self.now, float("inf")
        if self._events:
            soonest = self._events[0][0]
            if soonest <= now:
                _, _, service, event = heapq.heappop(self._events)
                self._pending -= not service
                self.ticks += 1
                event()
                return True
        ready, timer, time = list[Process](), float("inf"), now + self.slept
        for process in self.processes.values():
            loop = process.loop
            if loop is None or process.stopped:
                continue
            if loop._ready:  # asked for here, and not by a call, as this is what the world does most
                ready.append(process)
            elif loop._scheduled and (at := loop.next_at()) is not None:
                if at <= time:
                    ready.append(process)
                elif at < timer:
                    timer = at
        if ready:
            self._step(ready)
            return True
        return self._pass(soonest, timer, limit_s)

    def _pass(self, event: float, timer: float, limit_s: float | None) -> bool:
        """Let time pass until something can happen: an event by `now`, a timer by `time`; False: not by `limit_s`."""
        soonest = min(event, timer - self.slept)
        if soonest == float("inf"):
            raise Deadlock(f"nothing is left to wait for\n{self.who_waits()}")
        if self.settle_s is not None and not self._pending and self.now - self.active_at > self.settle_s:
            due = self.horizon()
            ahead = min(timer, float("inf") if due is None else due, float("inf") if limit_s is None else limit_s)
            if ahead == float("inf"):
                raise Deadlock(f"nothing is left to wait for, and nothing comes due\n{self.who_waits()}")
            if ahead > self.time + self.settle_s:
                self.slept += ahead - self.time
                self.stir()
                self.say("", f"time leaps to {ahead:.6f}")
                return True
        if limit_s is not None and soonest + self.slept > limit_s:
            self.now = max(self.now, limit_s - self.slept)
            return False
        self.now, self._in_a_row = soonest, 0
        return True

    def _step(self, ready: list[Process]) -> None:
        chosen = 0 if len(ready) == 1 else self.policy.process([process.name for process in ready])
        process = ready[chosen]
        loop = process.loop
        assert loop is not None
        self.ticks += 1
        if self.ticks > MAX_TICKS:
            raise Spins(f"{MAX_TICKS} callbacks have run, and there are always more\n{self.who_waits()}")
        self._hash.update(_STEP.pack(len(ready), chosen, self.now))
        if self.before_step is not None:
            self.before_step(process)
        self._current = process
        loop.enter()
        try:
            loop.step(self.policy.callback)
            self.threads.rest()
        finally:
            loop.leave()
            self._current = None
        self._in_a_row += 1
        self.now += STEP_S if self._in_a_row <= RESTLESS else RESTLESS_STEP_S

    def who_waits(self) -> str:
        """What each process does, and where each asyncio task of the user's stands."""
        lines = []
        for process in self.processes.values():
            state = "stopped" if process.stopped else "up" if process.up else "down"
            lines.append(f"  {process.name} ({state})")
            awaiters = getattr(process.place, "awaiters", {}) if process.up else {}
            lines += [f"    {line}" for line in waiting(process.loop, awaiters)]
        return "\n".join(lines)

    # -- the dead

    def bury(self, loop: SimLoop) -> None:
        """Keep what a dead process had: a coroutine that is collected would run its `finally` blocks."""
        tasks = asyncio.all_tasks(loop)
        for task in tasks:
            task._log_destroy_pending = False  # type: ignore[attr-defined]  # asyncio's own
            asyncio.tasks._unregister_task(task)  # else every look at a loop's tasks goes through all the dead
        self._dead.append((loop, tasks, list(loop._ready), list(loop._scheduled)))

    def close(self) -> None:
        """The end of the world: what is left of it is never run."""
        for process in self.processes.values():
            if process.up:
                process._end()
        self.threads.close()
        self._events.clear()
        self.processes.clear()
        self.on_death.clear()
        self.horizon = lambda: None
        # For ever: even Python's own end would run their `finally` blocks, in a world that is no more.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._dead))


_STEP = struct.Struct("<HHd")
_worlds: list[bool] = []


@contextmanager
def _one_world() -> Iterator[None]:
    """One runs at a time; finalizers, which Python calls when it likes, wait until the end."""
    if _worlds:
        yield
        return
    outer = asyncio._get_running_loop()
    if outer is not None:
        asyncio._set_running_loop(None)
    collects, hooks = gc.isenabled(), sys.get_asyncgen_hooks()
    gc.disable()
    sys.set_asyncgen_hooks(firstiter=_first, finalizer=_final)
    _worlds.append(True)
    try:
        with guarded():
            yield
    finally:
        _worlds.clear()
        sys.set_asyncgen_hooks(*hooks)
        if collects:
            gc.enable()
        if outer is not None:
            asyncio._set_running_loop(outer)


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _first(agen: Any) -> None:
    loop: Any = asyncio._get_running_loop()
    if loop is not None:
        loop._asyncgen_firstiter_hook(agen)


def _final(agen: Any) -> None:
    loop: Any = asyncio._get_running_loop()
    if loop is not None and not loop.is_closed():
        loop._asyncgen_finalizer_hook(agen)
