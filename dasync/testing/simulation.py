"""One run of `dasync sim`: a seed becomes a world, clients, faults and a verdict; a plan that fails is made shorter.

Clients ask for executions of every shape, open gates, cancel; each is killed and started again like any other process,
and asks again for what it has not heard. What an execution comes to must be what its model says. Nothing here prints.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from dasync.core.protocol import Claim
from dasync.errors import PromiseCanceled, PromiseNotFound, StoreUnavailable
from dasync.loop import EventLoop
from dasync.runtime.decisions import promise as external
from dasync.testing import programs
from dasync.testing.cluster import Deadlock, Line, Process, Spins
from dasync.testing.faults import Fault
from dasync.testing.history import Mark, Operation
from dasync.testing.raw import GROUP, Raw
from dasync.testing.watch import Violation
from dasync.testing.world import World

SCENARIOS = {
    "default": "any order of everything, and no faults",
    "faults": "faults of every kind",
    "lazy": "every doorbell is lost, and some processes are stopped or killed: polling has to do",
    "swarm": "some kinds of faults, chosen anew for each seed",
}
CLIENTS, WORKERS = 2, 2
EXECUTIONS = 8
SPREAD_S = 3.0  # within which they are asked for
LIMIT_S = 86_400.0  # of the world
OK, VIOLATION, CRASH, LIVENESS = 0, 1, 3, 4


@dataclass
class Result:
    """What a run came to."""

    seed: int
    scenario: str
    limit: int | None = None
    """After how many ticks it was healed, where that was asked for."""
    digest: str = ""
    ticks: int = 0
    seconds: float = 0.0
    """Of the world."""
    operations: int = 0
    commits: int = 0
    violations: list[Violation] = field(default_factory=list)
    crash: str = ""
    """What the simulation itself failed by."""
    plan: list[Fault] = field(default_factory=list)
    reached: dict[str, int] = field(default_factory=dict)
    history: list[Operation] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)
    trace: list[Line] = field(default_factory=list)

    @property
    def again(self) -> str:
        """The command that runs it again."""
        own = simulated_plan(self.seed, self.scenario) != self.plan
        plan = f" --plan '{' '.join(map(str, self.plan))}'" if own else ""
        ticks = "" if self.limit is None else f" --ticks {self.limit}"
        return f"dasync sim --seed {self.seed} --scenario {self.scenario}{ticks}{plan}"

    @property
    def status(self) -> int:
        """The exit status that it stands for."""
        if self.crash:
            return CRASH
        if not self.violations:
            return OK
        return LIVENESS if all(one.checker == "liveness" for one in self.violations) else VIOLATION


class Client:
    """A program outside that asks for executions, and sends commands raw, in each of its lives."""

    def __init__(self, world: World, number: int, cases: Sequence[tuple[float, str, programs.Case]], raw: Raw) -> None:
        self.name = f"client-{number}"
        self._cases = {id: (at, case) for at, id, case in cases}
        self.left = dict(self._cases)
        self._lost = 0
        self._raw = raw
        self._sent = False
        self._world = world
        world.add(self.name, self.main, host=f"host-{number % 2}")

    @property
    def is_done(self) -> bool:
        """Whether it has heard of everything."""
        return not self.left and self._sent and self._lost == self._losses()

    async def main(self, process: Process) -> None:
        """One of its lives. It asks again for all where what it had heard may be gone, with the gates it had opened."""
        ended = process.ended
        assert ended is not None
        if self._lost != self._losses():
            self._lost, self.left, self._sent = self._losses(), dict(self._cases), False
        async with self._world.open(process, GROUP) as loop:
            asks = [asyncio.ensure_future(self._ask(loop, id, at, case)) for id, (at, case) in self.left.items()]
            waiting = asyncio.gather(*asks, self._send(loop))
            await asyncio.wait((waiting, ended), return_when=asyncio.FIRST_COMPLETED)
            waiting.cancel()
            if waiting.done() and not waiting.cancelled():
                waiting.result()
                await ended

    def _losses(self) -> int:
        """How often power was lost, and commits with it."""
        return self._world.disk.reached.get("power: commits that were not synced are lost", 0)

    async def _ask(self, loop: EventLoop, id: str, at: float, case: programs.Case) -> None:
        """Ask until it is heard: an outage is no answer."""
        await asyncio.sleep(max(0.0, at - self._world.cluster.time))
        while True:
            try:
                came = await self._heard(loop, id, case)
            except (StoreUnavailable, PromiseNotFound):  # it was not made
                await asyncio.sleep(0.5)
                continue
            break
        if came not in case.allowed and not (case.cancel and came == programs.CANCELED):
            what = f"{id}, {case.function.name}{case.args}, came to {came!r}, not to one of {case.allowed!r}"
            self._world.watch.wrong("outcome", what)
        self.left.pop(id, None)

    async def _send(self, loop: EventLoop) -> None:
        if not self._sent:
            await self._raw.ask(loop)
            self._sent = True

    async def _heard(self, loop: EventLoop, id: str, case: programs.Case) -> Any:
        promise = loop.invoke(case.function.options(id=id, on="default"), *case.args)
        if case.gate is not None:
            gate, given = case.gate
            await promise.created()
            await asyncio.sleep(0.2)
            await external(int, id=gate).resolve(given)
        if case.cancel:
            await asyncio.sleep(0.3)
            await promise.cancel("not wanted")
        try:
            return await promise
        except PromiseCanceled:
            return programs.CANCELED


def simulate(
    seed: int,
    scenario: str = "swarm",
    *,
    plan: Sequence[Fault] | None = None,
    ticks: int | None = None,
    executions: int = EXECUTIONS,
    traces: bool = False,
    prepare: Callable[[World], None] = lambda world: None,
) -> Result:
    """Run the world of that seed. `plan`: with these faults in place of the scenario's. `ticks`: heal after so many,
    and see that what is under way by then comes to its end."""
    result = Result(seed, scenario, ticks)
    world = _made(seed, scenario, plan, traces=traces)
    draws = world.cluster.draws("clients")
    cases = [(draws.uniform(0, SPREAD_S), f"x-{number}", programs.case(draws, number)) for number in range(executions)]
    claims: list[Claim] = []
    clients = [
        Client(world, number, cases[number::CLIENTS], Raw(world.cluster.draws(f"raw {number}"), claims))
        for number in range(CLIENTS)
    ]
    programs.forget()
    programs.watched_by(world.watch)
    prepare(world)
    try:
        world.run(
            until=lambda: (ticks is not None and world.cluster.ticks >= ticks) or all(one.is_done for one in clients),
            limit_s=LIMIT_S,
        )
    except (Deadlock, Spins) as stuck:
        world.watch.wrong("liveness", str(stuck))
    except Exception as error:
        result.crash = f"{type(error).__name__}: {error}"
        if traces:
            raise
    finally:
        programs.watched_by(None)
        _read(result, world)
        world.__exit__()
    return result


def simulated_plan(seed: int, scenario: str) -> list[Fault]:
    """The faults that the seed itself has in store."""
    with _made(seed, scenario, None, traces=False) as world:
        return world.fate.plan


def _made(seed: int, scenario: str, plan: Sequence[Fault] | None, *, traces: bool) -> World:
    faults = {"default": "none", "faults": "all", "lazy": "kill stop", "swarm": "swarm"}[scenario]
    world = World(
        seed, processes=WORKERS, groups=("default", programs.FAR), faults=faults if plan is None else plan,
        traces=traces, durability="process" if seed % 4 == 3 else "power", max_resident=(10_000, 0, 2)[seed % 3],
    )  # fmt: skip
    if scenario == "lazy":
        world.network.loss = 1.0
    return world


def _read(result: Result, world: World) -> None:
    cluster = world.cluster
    result.digest, result.ticks, result.seconds = cluster.digest, cluster.ticks, cluster.time
    result.commits, result.violations, result.plan = world.disk.commits, list(world.violations), world.fate.plan
    result.reached, result.marks = world.reached, world.marks
    result.history, result.trace = world.history, list(cluster.trace or ())
    result.operations = len(result.history)
    for complaint in cluster.complaints:
        result.violations.append(Violation("asyncio", complaint, cluster.ticks))
    for name, error in cluster.failures:
        said = f"{name} ended by {type(error).__name__}: {error}"
        result.violations.append(Violation("process", said, cluster.ticks))


def shrink(
    result: Result, again: Callable[[list[Fault]], Result], tell: Callable[[str], None] = lambda _: None
) -> Result:
    """The same failure with as few faults as will do: each is left out in turn, for as long as it goes on failing."""
    best, at = result, 0
    kinds = {one.checker for one in result.violations}
    while at < len(best.plan):
        tried = again([*best.plan[:at], *best.plan[at + 1 :]])
        if kinds & {one.checker for one in tried.violations}:
            best = tried
            tell(f"{len(best.plan)} faults do")
        else:
            at += 1
    return best


def sometimes(results: Iterable[Result]) -> dict[str, int]:
    """Goals, and in how many runs each was reached."""
    counts: dict[str, int] = dict.fromkeys(GOALS, 0)
    for result in results:
        for goal in result.reached:
            counts[goal] = counts.get(goal, 0) + 1
    return counts


GOALS = (
    "a zombie was refused", "a callback raced a settlement", "a task was acquired again", "a doorbell was lost",
    "a doorbell rang twice", "a doorbell was cut off", "the disk was full", "the disk was slow", "a commit failed",
    "a commit took effect and was said to have failed", "what took effect was not heard of",
    "a process died before it heard what had taken effect", "a process died with the write lock",
    "a process was stopped with the write lock", "power: commits that were not synced are lost",
    "a wall clock jumped", "a lease was lost", "a silent process was taken for gone", "an execution was suspended",
    "a process could not open the store",
)  # fmt: skip
"""What should happen in some runs of many: one that never does is a hole in the simulation."""

