"""A simulated world: worker processes on one disk and one network, what befalls them, and what must hold at the end.

Everything between the edges is what production runs: `EventLoop`, the worker, the law, the SQL. The same seed goes the
same way, to the byte. In a test of a user's program, the test's own coroutine is a process, too, which no planned fault
hits. At the end everything is healed; then every execution has to come to its end, and what was seen of the store has
to be linearizable.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, ParamSpec, TypeVar, cast

from dasync.core.protocol import MAX_TIME_MS
from dasync.errors import StoreUnavailable
from dasync.loop import EventLoop
from dasync.runtime.function import Function
from dasync.runtime.promise import Promise
from dasync.stores.sqlite import Durability
from dasync.testing import linear
from dasync.testing.clock import T0_MS, SeededEntropy
from dasync.testing.cluster import Cluster, Line, Main, Process
from dasync.testing.fate import Fate, planned
from dasync.testing.faults import MEAN_COMMITS, Fault
from dasync.testing.history import Mark, Operation, line
from dasync.testing.network import Network, SimTransport
from dasync.testing.policies import Policy
from dasync.testing.reckoning import Reckoning
from dasync.testing.simdisk import Disk, SimStore
from dasync.testing.simpool import SimPool
from dasync.testing.watch import Violation, Watch

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")
Test = Callable[["World"], Coroutine[Any, Any, T]]
ME = "test"
"""The process that a test's own coroutine is."""
GROUP = "default"
SETTLE_LEASES = 2.0  # without anything done, until time leaps
AGAIN_S = 1.0  # until whoever looks after a process that could not open the store starts it again
HOSTS = 2


class World:
    """One world. Nothing happens in it but in `run`, and in what its test awaits.

    `processes` workers serve each of `groups` (by default `"default"`, and any other one from when something is first
    sent to it: what else the real process has imported makes no difference). `faults` is "none", "swarm", "all", kinds
    as "kill stop", or a plan, as it is or as it was printed; one that is drawn is drawn for a program of about so many
    `commits`. Other options are EventLoop's; `lease` and `poll` are in seconds.

    Example:
        >>> import dasync
        >>> from dasync.testing.world import World
        >>> @dasync.function
        ... async def week() -> str:
        ...     await dasync.sleep(7 * 86_400)
        ...     return "over"
        >>> async def test(world: World) -> str:
        ...     promise = world.invoke(week)
        ...     await world.advance(days=3)
        ...     world.crash()
        ...     return await promise
        >>> with World(seed=1) as world:
        ...     world.run(test)
        'over'
    """

    def __init__(
        self,
        seed: int = 0,
        *,
        processes: int = 3,
        groups: Sequence[str] | None = None,
        faults: str | Sequence[Fault] = "none",
        durability: Durability = "power",
        policy: Policy | None = None,
        traces: bool = False,
        commits: int = 2 * MEAN_COMMITS,
        **options: Any,
    ) -> None:
        self.seed = seed
        self.cluster = Cluster(seed, policy, traces=traces)
        self.disk = Disk(self.cluster, loses=True)
        self.watch = Watch(self.cluster)
        self.network = Network(self.cluster, self.disk)
        self.reckoning = Reckoning(self.cluster, self.disk, self.watch)
        self.marks: list[Mark] = []
        """What has befallen it."""
        self.durability: Durability = durability
        self.workers: list[str] = []
        """The names of the worker processes."""
        self._options: dict[str, Any] = {"lease": 10.0, "poll": 1.0, "max_crashes": 1000, **options}
        self._mains: dict[str, Main] = {}
        self._restarts: dict[str, float | None] = {}
        self._processes = processes
        self.grows = groups is None
        """Whether a group that something is sent to gets workers."""
        self.groups = list[str]()
        """Those that have workers."""
        for group in (GROUP,) if groups is None else groups:
            self._serve(group)
        try:
            plan = planned(faults, self.cluster, self.workers, self._options["lease"], commits)
        except ValueError:
            self.disk.close()
            raise
        self.fate = Fate(self, plan)
        self.disk.recorder, self.watch.committed = self.watch, self.fate.committed
        self.watch.look, self.watch.targeted = self.disk.look, self._targeted
        self.cluster.settle_s = SETTLE_LEASES * self._options["lease"] + self._options["poll"]
        self.cluster.horizon = self.reckoning.next_due
        self.cluster.on_death.append(self._died)

    def __repr__(self) -> str:
        return f"<World seed {self.seed}, {self.cluster.time:.3f} s, {len(self.workers)} workers>"

    def __enter__(self) -> World:
        return self

    def __exit__(self, *_: object) -> None:
        self.cluster.close()
        self.disk.close()
        self.watch.close()  # what the dead hold on to stays for ever: let it not be all of this

    # -- made of

    def add(self, name: str, main: Main, *, host: str = "host-0") -> Process:
        """One more process, which runs `main` in each of its lives."""
        self._mains[name] = main
        return self.cluster.process(name, host)

    def open(self, process: Process, group: str) -> EventLoop:
        """An EventLoop for the code of that process: `async with world.open(process, group) as loop:`."""
        store = SimStore(self.disk, process, process, self.durability)
        loop = EventLoop(
            store, group=group, process=process.name, clock=process,
            entropy=SeededEntropy(f"{self.seed} entropy {process.name} {process.life}".encode()),
            transport=SimTransport(self.network, process), **self._options,
        )  # fmt: skip
        loop._runner.pool = cast(Any, SimPool())  # no processes of the real world
        process.place = loop
        return loop

    def _serve(self, group: str) -> list[str]:
        """Workers for a group; gives their names."""
        self.groups.append(group)
        names = [f"{group}-{number}" for number in range(1, self._processes + 1)]
        for number, name in enumerate(names, 1):
            self.workers.append(name)
            self.add(name, _worker(self, group), host=f"host-{number % HOSTS}")
        return names

    def _targeted(self, target: str) -> None:
        group = target.partition("/")[0]
        if self.grows and group not in (*self.groups, ME):
            for name in self._serve(group):
                self.start(name)

    # -- running

    def run(
        self, test: Test[T] | None = None, *, until: Callable[[], bool] | None = None, limit_s: float | None = None
    ) -> T:
        """Run `test` in this world to its end, then heal everything and see that all comes to its end.

        Gives what it returns, or raises what it raises. What did not hold is in `violations`.
        """
        answers: list[Any] = []

        async def body(process: Process) -> None:
            async with self.open(process, ME):
                answers.append(await test(self))  # type: ignore[misc]  # there is one

        if test is not None:
            self.add(ME, body)
            self.disk.spared.add(ME)
        mine, watch = self.cluster.processes.get(ME), self.watch
        over = until or (lambda: mine is None or not mine.up)
        with _logs_traced(self.cluster):
            for name in self._mains:
                self.start(name)
            if not self.cluster.run(lambda: over() or bool(watch.violations), limit_s=limit_s):
                watch.wrong("liveness", f"it was not over after {limit_s:g} s\n{self.cluster.who_waits()}")
            for name, error in self.cluster.failures:
                if name == ME:
                    raise error
            self.finish()
        return cast(T, answers[0] if answers else None)

    def finish(self) -> None:
        """Heal everything, let all come to its end, and look at what is left."""
        if not self.violations:
            self.heal()
            self.reckoning.settle()
        self.reckoning.look_at_rows()
        if self.durability == "power" or not any("commits" in mark.text for mark in self.marks):
            self.check_history()  # else what was acknowledged may be gone: that is what "process" says

    def check_history(self) -> None:
        """Whether what was asked and heard is linearizable."""
        for verdict in linear.check(self.history):
            if not verdict.ok:
                stuck = "" if verdict.stuck is None else f" at {line(verdict.stuck)} of {verdict.stuck.process}"
                self.watch.wrong("linearizability", f"{verdict.promise}, {verdict.ruling.value}{stuck}: {verdict.why}")

    @property
    def history(self) -> list[Operation]:
        """What the processes asked of the store, and heard."""
        return self.watch.history()

    @property
    def violations(self) -> list[Violation]:
        """What did not hold."""
        return self.watch.violations

    @property
    def reached(self) -> dict[str, int]:
        """What has happened that does not happen in every run, and how often."""
        found = dict(self.watch.reached)
        for goal, times in self.disk.reached.items():
            found[goal] = found.get(goal, 0) + times
        return dict(sorted(found.items()))

    # -- what can befall it

    def mark(self, process: str, text: str) -> None:
        """Something befalls the world."""
        self.cluster.stir()
        self.cluster.say(process, text)
        self.marks.append(Mark(self.cluster.ticks, process, text))

    def start(self, name: str) -> None:
        """Start a process, if it is not up."""
        process = self.cluster.processes[name]
        if not process.up:
            self.cluster.stir()
            process.start(self._mains[name])

    def crash(self, name: str | None = None, *, restart_after: float | None = 0.0) -> None:
        """Kill a worker process as `kill -9` does, and start it again after so many seconds; None: it stays dead.
        Without a name: all of them."""
        for one in [name] if name is not None else self.workers:
            process = self.cluster.processes[one]
            if process.up:
                self.mark(one, "killed")
                self._restarts[one] = restart_after
                process.kill()

    def stop(self, name: str, seconds: float) -> None:
        """Stop a process for so many seconds, as SIGSTOP and SIGCONT do."""
        process = self.cluster.processes[name]
        if process.runs:
            self.mark(name, f"stopped for {seconds:g} s")
            process.stop()
            life = process.life
            self.cluster.at(seconds, lambda: self.resume(name) if process.life == life else None)

    def resume(self, name: str) -> None:
        """Let a stopped process go on."""
        process = self.cluster.processes[name]
        if process.stopped:
            self.mark(name, "goes on")
            process.go_on()
            self.disk.goes_on(process)

    def terminate(self, name: str, *, restart_after: float | None = 0.0) -> None:
        """Tell a worker process to end, as SIGTERM does, and start it again."""
        process = self.cluster.processes[name]
        if process.runs:
            self.mark(name, "told to end")
            self._restarts[name] = restart_after
            process.tell_to_end()

    def lose_power(self, seconds: float = 1.0) -> bool:
        """Every process dies at once, for so many seconds, and commits that were not synced may be lost; whether any
        were. The machine of a test's own coroutine cannot lose power: there all the workers die."""
        if ME in self.cluster.processes:
            self.crash(restart_after=seconds)
            return False
        for process in self.cluster.processes.values():
            if process.up:
                self._restarts[process.name] = seconds
                process.kill()
        lost, self.watch.turn = self.disk.lose_power(), 0
        self.mark("", f"power is lost, and {lost} commits" if lost else "power is lost")
        if lost:
            self.watch.forget()
        return bool(lost)

    def jump(self, name: str, seconds: float, for_s: float) -> None:
        """The wall clock of a process jumps, and back after a while."""
        process = self.cluster.processes[name]
        self.mark(name, f"its wall clock jumps by {seconds:g} s")
        self.disk.reach("a wall clock jumped")
        process.skew_ms += round(seconds * 1000)
        self.cluster.at(for_s, lambda: setattr(process, "skew_ms", 0))

    def partition(self, one: str, other: str) -> None:
        """No doorbell comes through between two hosts (`host-0`, `host-1`), until `heal`."""
        self.mark("", f"{one} and {other} are cut off from each other")
        self.network.cut.add(frozenset((one, other)))

    def heal(self) -> None:
        """Everything works again, and everybody is up; what is planned does not happen any more."""
        self.fate.heal()
        self.mark("", "healed")
        for process in list(self.cluster.processes.values()):
            process.skew_ms = 0
            self.resume(process.name)
            if process.name in self.workers:
                self.start(process.name)

    def _died(self, process: Process) -> None:
        after, failures = self._restarts.pop(process.name, None), self.cluster.failures
        for failure in [one for one in failures if one[0] == process.name != ME]:
            if isinstance(failure[1], StoreUnavailable):  # whoever looks after it tries again
                failures.remove(failure)
                self.disk.reach("a process could not open the store")
                after = AGAIN_S
        if after is not None:
            self.cluster.at(after, lambda: self.start(process.name))

    # -- for tests

    @property
    def loop(self) -> EventLoop:
        """The EventLoop of the test's own process."""
        return cast(EventLoop, self.cluster.processes[ME].place)

    def invoke(self, f: Function[P, R], *args: P.args, **kwargs: P.kwargs) -> Promise[R]:
        """Invoke `f` for the workers to run. An id is given as `world.invoke(f.options(id=...), ...)`."""
        return f.options(on=f.configured.on or GROUP)(*args, **kwargs)

    async def advance(self, *, days: float = 0, hours: float = 0, minutes: float = 0, seconds: float = 0) -> None:
        """Let so much time pass, and everything happen that happens meanwhile."""
        await asyncio.sleep(timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds).total_seconds())

    def now(self) -> datetime:
        """What time it is in this world."""
        return datetime.fromtimestamp(min(T0_MS + self.cluster.time * 1000, MAX_TIME_MS) / 1000, UTC)


def _worker(world: World, group: str) -> Main:
    async def work(process: Process) -> None:
        ended = process.ended
        assert ended is not None
        async with world.open(process, group):
            await ended

    return work


@contextmanager
def _logs_traced(cluster: Cluster) -> Iterator[None]:
    """Who wants to read what processes log reads the trace."""
    logger, handler = logging.getLogger("dasync"), _ToTrace(cluster)
    was, logger.propagate = logger.propagate, False
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = was


class _ToTrace(logging.Handler):
    """What processes log goes into the trace."""

    def __init__(self, cluster: Cluster) -> None:
        super().__init__()
        self._cluster = cluster

    def emit(self, record: logging.LogRecord) -> None:
        process = self._cluster.current
        if self._cluster.trace is not None:
            name = "" if process is None else process.name  # not `say`: a trace makes no other run of a seed
            self._cluster.trace.append(
                Line(self._cluster.ticks, self._cluster.now, name, f"logs: {record.getMessage()}")
            )
