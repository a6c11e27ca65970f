"""Programs that run in processes of their own and are killed there: what `Zygote.spawn` runs.

Each keeps a ledger, a file with a line for everything that its code did in the world: what a body did more than once
shows there, and what a dying process still did.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import resource
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from clocks import T0, FakeClock

import dasync
from dasync.core import ids
from dasync.core.protocol import Command
from dasync.ports import Committed
from dasync.runtime import turns
from dasync.runtime.branch import Branch
from dasync.stores.sqlite import SqliteStore
from dasync.system import SystemClock


@dataclass
class Plan:
    """How this process's run goes: which step comes when, and where it is killed."""

    ledger: str = os.devnull
    order: Sequence[str] = ()
    die_at: str = ""
    passed: set[str] = field(default_factory=set)
    change: asyncio.Event = field(default_factory=asyncio.Event)

    def write(self, line: str) -> None:
        """One line of the ledger; it is in the file when this returns."""
        with open(self.ledger, "a", encoding="utf-8") as file:
            file.write(line + "\n")

    def count_of(self, start: str) -> int:
        """How many lines of the ledger begin like that."""
        with open(self.ledger, encoding="utf-8") as file:
            return sum(line.startswith(start) for line in file)

    def count(self, line: str) -> int:
        """How many such lines the ledger has."""
        with open(self.ledger, encoding="utf-8") as file:
            return file.read().splitlines().count(line)

    def die(self) -> None:
        """End this process, as kill -9 does."""
        os.kill(os.getpid(), signal.SIGKILL)

    def let_go(self) -> None:
        """Put the file there."""
        with open(f"{self.ledger}.go", "w"):
            pass

    def may_go(self) -> bool:
        """Whether somebody has put the file there that lets everything go on."""
        return os.path.exists(f"{self.ledger}.go")

    def reach(self, point: str) -> None:
        """The program has come to `point`, which may be where it ends."""
        if point == self.die_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def let_pass(self, step: str) -> None:
        """The program has got what `step` gave: the next one of the order may go on."""
        self.passed.add(step)
        self.reach(f"passed {step}")
        self.reach(f"passed {len(self.passed)}")
        self.change.set()

    async def turn_of(self, step: str) -> None:
        """Wait until every step before `step` has passed."""
        before = set(self.order[: self.order.index(step)]) if step in self.order else set()
        while not before <= self.passed:
            self.change.clear()
            await self.change.wait()


plan = Plan()


# -- two sequences side by side ------------------------------------------------------------------------------------


@dasync.function
async def step(name: str) -> str:
    plan.write(name)
    await plan.turn_of(name)
    plan.reach(f"in {name}")
    return name


async def sequence(name: str, where: str | None) -> list[str]:
    one = step if where is None else step.options(on=where)
    result = []
    for i in range(2):
        result.append(await one(f"{name}{i}"))
        plan.let_pass(f"{name}{i}")
    return result


@dasync.function(name="sequence")
async def durable_sequence(name: str, where: str | None) -> list[str]:
    return await sequence(name, where)


@dasync.function
async def plain_gather(where: str | None) -> list[list[str]]:
    return list(await asyncio.gather(sequence("a", where), sequence("b", where)))


@dasync.function
async def durable_gather(where: str | None) -> list[list[str]]:
    return list(await asyncio.gather(durable_sequence("a", where), durable_sequence("b", where)))


@dasync.function
async def task_group(where: str | None) -> list[list[str]]:
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(sequence(name, where)) for name in "ab"]
    return [task.result() for task in tasks]


@dasync.function
async def nested(where: str | None) -> list[list[str]]:
    async def inner(names: str) -> list[list[str]]:
        return list(await asyncio.gather(*(sequence(name, where) for name in names)))

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(inner(names)) for names in ("a", "b")]
    return [*tasks[0].result(), *tasks[1].result()]


@dasync.function
async def raw_gather(where: str | None) -> list[list[str]]:
    """What is not recorded, a socket say, decides which sequence goes on."""

    async def inner(name: str) -> list[str]:
        result = []
        for i in range(2):
            await plan.turn_of(f"{name}{i}")
            result.append(await echo(f"{name}{i}"))
            plan.let_pass(f"{name}{i}")
        return result

    return list(await asyncio.gather(inner("a"), inner("b")))


@dasync.function
async def echo(name: str) -> str:
    return name


SHAPES = {f.name: f for f in (plain_gather, durable_gather, task_group, nested, raw_gather)}


def two_sequences(
    path: str, ledger: str, shape: str, where: str | None, order: list[str], die_at: str, numbered: str = "by place"
) -> object:
    """Run or resume `shape` with its steps in `order`, up to `die_at`."""
    plan.__init__(ledger, order, die_at)  # type: ignore[misc]  # this process's own
    turns.PATIENCE_S = 0.1  # what one sequence waits for here may be what another one holds back
    if numbered == "by call order":
        Branch.next_call = _by_call_order  # type: ignore[method-assign]  # the ablation

    async def main() -> object:
        async with dasync.EventLoop(path, durability="process"):
            try:
                return await SHAPES[shape].options(id="root")(where)
            except dasync.NonDeterminismError as error:
                return f"NonDeterminismError: {error}"

    return asyncio.run(main())


def _by_call_order(self: Branch) -> str:
    owner: Any = self.owner
    owner.held.seed, number = owner.held.seed, _calls.setdefault(owner.id, 0)
    _calls[owner.id] += 1
    return f"{ids.places(owner.id)}{number}"


_calls: dict[str, int] = {}


# -- killed at every commit ------------------------------------------------------------------------------------------


class MortalStore(SqliteStore):
    """Kills its process at the n-th transaction, before it is written or after."""

    def __init__(self, path: str, die_at: int, when: str) -> None:
        super().__init__(path, SystemClock(), "process")
        self._left = die_at
        self._when = when

    async def transact(self, commands: Sequence[Command]) -> Committed:
        self._left -= 1
        if self._left == 0 and self._when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        committed = await super().transact(commands)
        if self._left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return committed


@dasync.function
async def leaf(name: str) -> str:
    plan.write(f"leaf {name}")
    return name.upper()


@dasync.function
async def middle(name: str) -> list[str]:
    return [await leaf(f"{name}{i}") for i in range(2)]


@dasync.function
async def everything() -> list[object]:
    """A bit of all that an execution may do."""
    first = await leaf("x")
    both = await asyncio.gather(middle("a"), middle("b"))
    await dasync.sleep(0.001)
    dasync.now()
    far = await leaf.options(on="default")("far")
    try:
        async with asyncio.TaskGroup() as group:
            task = group.create_task(leaf("t"))
    finally:
        plan.write("finally")
    return [first, both, far, task.result()]


def mortal(path: str, ledger: str, die_at: int, when: str) -> object:
    """Run or resume `everything`, up to the n-th transaction."""
    plan.__init__(ledger)  # type: ignore[misc]  # this process's own

    async def main() -> object:
        async with dasync.EventLoop(MortalStore(path, die_at, when), poll=0.05):
            return await everything.options(id="root")()

    return asyncio.run(main())


# -- what is decided once --------------------------------------------------------------------------------------------


@dasync.function
async def decides() -> list[str]:
    async def draw() -> list[str]:
        return [str(dasync.now()), str(dasync.random().random()), str(dasync.uuid4())]

    decided = [await draw(), *await asyncio.gather(draw(), draw())]
    await leaf("between")
    decided.append(await draw())
    plan.write(f"decided {decided}")
    plan.reach("decided")
    return [one for some in decided for one in some]


@dasync.function
async def sleeps() -> str:
    await leaf("before")
    await dasync.sleep(7 * 24 * 3600)
    return "slept"


@dasync.function
async def cleans_up() -> str:
    plan.write("body")
    try:
        async with _noisy():
            return await dasync.promise(str, id="gate")
    finally:
        plan.write("finally")


@contextlib.asynccontextmanager
async def _noisy() -> Any:
    try:
        yield
    except GeneratorExit:
        plan.write("GeneratorExit")
        raise
    finally:
        plan.write("exit")


def run_one(path: str, ledger: str, name: str, die_at: str = "", days: float = 0, hurry: str = "") -> object:
    """Run or resume the function `name` on a fake clock; `hurry` ends the process when it waits for such a promise."""
    plan.__init__(ledger, (), die_at)  # type: ignore[misc]  # this process's own

    async def main() -> object:
        clock = FakeClock(T0 + round(days * 24 * 3600 * 1000))
        async with dasync.EventLoop(path, durability="process", clock=clock) as loop:
            task = asyncio.ensure_future(globals()[name].options(id="root")())
            while hurry:
                await asyncio.sleep(0.001)
                if any(id.startswith(hurry) for id in loop.awaiters):
                    await loop.promises[next(id for id in loop.awaiters if id.startswith(hurry))].created()
                    os._exit(77)
            return await task

    return asyncio.run(main())


# -- a disk that is full for a while ------------------------------------------------------------------------


@dasync.function
async def keeps(text: str) -> int:
    return len(text)


@dasync.function
async def goes_on(count: int) -> list[int]:
    plan.write("begun")
    while not plan.may_go():  # noqa: ASYNC110  # a file has no event
        await asyncio.sleep(0.005)
    return [await keeps("x" * 10_000) for _ in range(count)]


def full_disk(path: str, ledger: str) -> list[object]:
    """Write until no file may grow any more, make room, go on: acknowledged ids, the error, what came after."""
    plan.__init__(ledger)  # type: ignore[misc]  # this process's own

    async def main() -> list[object]:
        async with dasync.EventLoop(path, durability="process", poll=0.05) as loop:
            patient = goes_on.options(id="patient")(3)
            await patient.created()
            resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, resource.RLIM_INFINITY))
            acknowledged, error = ["patient"], ""
            while not error:
                try:
                    promise = keeps.options(id=f"k{len(acknowledged)}")("x" * 20_000)
                    await promise.created()
                    acknowledged.append(promise.id)
                    await promise
                except dasync.StoreUnavailable as refused:
                    error = str(refused)
            plan.write("full")
            plan.let_go()  # the patient one works on while nothing can be written
            await asyncio.sleep(0.05)
            still = patient.done()
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            again = await keeps.options(id="again")("y" * 20_000)
            return [acknowledged, error, still, again, await patient, loop.process]

    return asyncio.run(main())


# -- what workers do


@dasync.function
async def loiter(name: str) -> str:
    """Run until somebody puts a file there."""
    plan.write(f"begin {name} {os.getpid()}")
    try:
        while not plan.may_go():  # noqa: ASYNC110  # a file has no event
            await asyncio.sleep(0.005)
    except BaseException as error:
        plan.write(f"ended {name} {os.getpid()} {type(error).__name__}")
        raise
    return f"{name} by {os.getpid()}"


@dasync.function
async def nests(name: str) -> str:
    """One child is settled, one runs in any worker, and one in this process."""
    plan.write(f"begin {name} {os.getpid()}")
    try:
        await leaf("x")
        async with asyncio.TaskGroup() as group:
            group.create_task(loiter.options(on="far")(f"{name}-far"))
            group.create_task(loiter(f"{name}-here"))
    finally:
        plan.write(f"cleaned {name} {os.getpid()}")
    return name


@dasync.function
async def naps(name: str, seconds: float) -> str:
    """Wait for nothing but a timer of the host's."""
    plan.write(f"begin {name} {os.getpid()}")
    await asyncio.sleep(seconds)
    plan.write(f"after {name} {os.getpid()}")
    return f"{name} by {os.getpid()}"


@dasync.function
async def blocks_its_loop(name: str, seconds: float) -> str:
    """Let nobody else in this process run, the first one who runs it."""
    first = not plan.count_of(f"begin {name} ")
    plan.write(f"begin {name} {os.getpid()}")
    if first:
        time.sleep(seconds)  # noqa: ASYNC251  # the point
    plan.write(f"unblocked {name} {os.getpid()}")
    await asyncio.sleep(0)
    plan.write(f"after {name} {os.getpid()}")
    return f"{name} by {os.getpid()}"


@dasync.function
async def ends_its_process(name: str, times: int) -> str:
    """As a segmentation fault would, the first times."""
    plan.write(f"begin {name} {os.getpid()}")
    if plan.count_of(f"begin {name} ") <= times:
        os._exit(9)
    return f"{name} by {os.getpid()}"


@dasync.function
def ends_its_process_from_a_thread(name: str, times: int) -> str:
    """The same where the body runs in a thread."""
    plan.write(f"begin {name} {os.getpid()}")
    if plan.count_of(f"begin {name} ") <= times:
        os._exit(9)
    return f"{name} by {os.getpid()}"


@dasync.function
async def chatters(name: str) -> str:
    """Write all the time."""
    plan.write(f"begin {name} {os.getpid()}")
    count = 0
    while not plan.may_go():
        await chat(count)
        await asyncio.sleep(0.002)
        count += 1
    return f"{name} by {os.getpid()}"


@dasync.function
async def chat(count: int) -> int:
    return os.getpid()


@dasync.function
async def waits(gate: str) -> str:
    plan.write(f"begin {gate} {os.getpid()}")
    return f"{await dasync.promise(str, id=gate)} by {os.getpid()}"


# -- a group's worker ------------------------------------------------------------------------------------------------


def worker(
    path: str,
    ledger: str,
    group: str,
    lease: float = 10,
    poll: float = 0.05,
    names: Sequence[str] | None = None,
    max_crashes: int = 5,
) -> None:
    """Serve `group` until SIGTERM, which drains; `names` limits what it runs."""
    plan.__init__(ledger)  # type: ignore[misc]  # this process's own
    logging.basicConfig(filename=f"{ledger}.log", level=logging.INFO)

    async def main() -> None:
        stop = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
        functions = None if names is None else [globals()[name] for name in names]
        async with dasync.EventLoop(
            path, group=group, durability="process", lease=lease, poll=poll, functions=functions,
            max_crashes=max_crashes,
        ) as loop:  # fmt: skip
            plan.write(f"up {os.getpid()} {loop.process}")
            await stop.wait()
            await loop.drain(0.5)
        plan.write(f"down {os.getpid()}")

    asyncio.run(main())
