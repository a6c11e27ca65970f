"""One life of a process: a durable function runs on a disk while its leaves are settled by a schedule.

The life opens an EventLoop as a program would, invokes the function under one id, and settles leaves as the schedule
says, each step once nothing else can happen. It ends when the function's promise is settled, by death, or when nothing
goes on any more. What it came to is a value to compare; judging it is left to the trial.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from dasync.core.invariants import inspect
from dasync.core.model import State
from dasync.errors import NonDeterminismError
from dasync.loop import EventLoop
from dasync.ports import Clock, Store
from dasync.runtime.branch import BranchTask
from dasync.runtime.function import Function
from dasync.runtime.promise import Promise
from dasync.testing import leaves
from dasync.testing.clock import T0_MS, DurableVirtualLoop, SeededEntropy, VirtualClock, VirtualLoop
from dasync.testing.crash import Death, Disk
from dasync.testing.leaves import Stage
from dasync.testing.schedule import Log, Step, parse
from dasync.transports.local import NoTransport, ring

ROOT = "root"
"""The id under which the function is invoked."""
STEP_S = 1.0  # virtual seconds between two steps of a schedule
PAUSE_S = 9.0  # a long time: longer than most timers of the programs under test
PATIENCE_S = 60.0  # after the last step, until it counts as stuck
MAX_RESIDENT = 10_000
POLL_S, LEASE_S = 30.0, 3600.0  # no time to lose on services that have nothing to do


class Outcome(NamedTuple):
    """What a function came to."""

    kind: str
    """`value`, `error`, `diverged` or `stuck`."""
    told: str


class Life(NamedTuple):
    """What a life came to."""

    outcome: Outcome
    log: Log
    ran: tuple[str, ...]
    """The local leaves whose body has begun."""
    values: Mapping[str, object]
    """What leaves resolve to, where that is not their name."""
    complaints: tuple[str, ...]
    """What asyncio had to say of it, and broken invariants of the rows that it left."""


class Time(Clock, Protocol):
    """A clock by which the test itself lets time pass."""

    async def elapse(self, seconds: float) -> None:
        """Let so much time pass, and everything happen that happens meanwhile."""


def live(
    function: Function[[], Any],
    disk: Disk,
    schedule: str,
    *,
    kind: str = "external",
    eager: bool = False,
    max_resident: int = MAX_RESIDENT,
    death: Death | None = None,
) -> Life | None:
    """Run or resume `function` on `disk`, its leaves settled by `schedule`; None: it has died.

    The asyncio loop has durable clocks. `eager`: its tasks begin at once (Python 3.12). `max_resident`: as the
    EventLoop has it; with 0 the function is suspended wherever it waits for others.
    """
    loop = _prepared(DurableVirtualLoop(disk.now_ms), eager)
    main = play(function, disk, schedule, VirtualClock(loop), kind=kind, max_resident=max_resident, death=death)
    life = loop.live(main)
    disk.now_ms = loop.now_ms() + 1
    disk.age += 1
    return life


async def play(
    function: Function[[], Any],
    disk: Disk,
    schedule: str,
    time: Time,
    *,
    kind: str = "external",
    max_resident: int = MAX_RESIDENT,
    death: Death | None = None,
) -> Life:
    """What `live` does, as a guest of the running asyncio loop."""
    loop, stage, complaints = asyncio.get_running_loop(), Stage(kind), list[str]()
    loop.set_exception_handler(lambda _, context: complaints.extend(_complaint(context)))
    leaves.stage.set(stage)
    store, entropy = disk.store(time, stage, death), SeededEntropy(str(disk.age).encode())
    options: Any = {"poll": POLL_S, "lease": LEASE_S, "max_resident": max_resident}
    async with EventLoop(store, clock=time, entropy=entropy, **options) as host:
        promise = host.invoke(function.options(id=ROOT))
        ended = asyncio.create_task(promise.settlement())
        hand = asyncio.create_task(_Hand(stage, time, store).settle(parse(schedule)))
        await asyncio.wait((ended, hand), return_when=asyncio.FIRST_COMPLETED)
        stage.end()
        if not hand.cancel():
            hand.result()
        complaints += inspect(await store.snapshot())
        if ended.done():
            outcome = _told_by(promise, ended)
        else:
            ended.cancel()
            waiting = {id: names for id, names in host.awaiters.items() if id != ROOT}
            outcome = Outcome("stuck", f"waiting: {waiting}")
    return Life(outcome, disk.log, tuple(stage.ran), stage.values, tuple(complaints))


def _told_by(promise: Promise[Any], ended: asyncio.Task[None]) -> Outcome:
    error = ended.exception() or promise.exception()
    return Outcome("value", repr(promise.result())) if error is None else _failed(error)


def plain(function: Function[[], Any], steps: Sequence[Step], *, eager: bool = False) -> Outcome:
    """What plain asyncio makes of `function` as it is written, without dasync, its leaves settled by those steps."""
    loop = _prepared(VirtualLoop(), eager)
    outcome = loop.live(_play_plain(function, list(steps), VirtualClock(loop)))
    assert outcome is not None, "nobody dies without a death"
    return outcome


def _prepared(loop: VirtualLoop, eager: bool) -> VirtualLoop:
    if eager:
        loop.set_task_factory(asyncio.eager_task_factory)  # type: ignore[attr-defined]  # from Python 3.12 on
    return loop


async def _play_plain(function: Function[[], Any], steps: list[Step], time: Time) -> Outcome:
    stage = Stage(leaves.PLAIN)
    leaves.stage.set(stage)
    hand = asyncio.create_task(_Hand(stage, time).settle(steps))
    ended = asyncio.ensure_future(_shown(function.fn()))
    await asyncio.wait((ended, hand), return_when=asyncio.FIRST_COMPLETED)
    stage.end()
    if not hand.cancel():
        hand.result()
    if not ended.done():
        ended.cancel()
        return Outcome("stuck", "plain")
    if ended.cancelled():
        return Outcome("error", "CancelledError")
    error = ended.exception()
    return Outcome("value", ended.result()) if error is None else _failed(error)


async def _shown(value: Awaitable[object]) -> str:
    return repr(await value)  # as it is now: whatever still runs may change it


class _Hand:
    """Whoever settles leaves: another process, as the one under test sees it."""

    def __init__(self, stage: Stage, time: Time, store: Store | None = None) -> None:
        self._stage = stage
        self._time = time
        self._store = store

    async def settle(self, steps: list[Step]) -> None:
        """Settle leaves step by step; those that are not there yet when others of the schedule are, come later."""
        for _ in range(round(PATIENCE_S / STEP_S) + len(steps)):
            at_ms = steps[0][0].at_ms if steps and steps[0] else 0
            await self._time.elapse((T0_MS + at_ms - self._time.now_ms()) / 1000 if at_ms else STEP_S)
            before_pause = steps[: steps.index(())] if () in steps else steps
            pending = await self._pending()
            at = next((at for at, step in enumerate(before_pause) if pending & _names(step)), None)
            if at is not None:
                steps = [*steps[:at], *await self._take(steps[at], pending), *steps[at + 1 :]]
            elif () in steps:
                steps = [*before_pause, *steps[len(before_pause) + 1 :]]
                await self._time.elapse(PAUSE_S)

    async def _pending(self) -> set[str]:
        """The leaves that can be settled now."""
        stage = self._stage
        found = {name for name, future in stage.raw.items() if not future.done()}
        found |= {name for name in stage.ran if not stage.gate(name).is_set()}
        if self._store is None or stage.kind == "local":
            return found
        promises = (await self._store.snapshot()).promises
        pending = {id for id in stage.names if id in promises and promises[id].state is State.PENDING}
        return found | {stage.names[id] for id in pending}

    async def _take(self, step: Step, pending: set[str]) -> list[Step]:
        """Settle those leaves of a step that are pending; gives what is left of it."""
        for commit in step:
            for _ in range(commit.turns):
                await asyncio.sleep(0)
            await self._commit([name for name in commit.names if name in pending])
        left = (commit._replace(names=tuple(n for n in commit.names if n not in pending)) for commit in step)
        kept = tuple(commit for commit in left if commit.names)
        return [kept] if kept else []

    async def _commit(self, names: list[str]) -> None:
        stage, store = self._stage, self._store
        for name in names:
            if name in stage.raw:
                stage.raw[name].set_result(name)
        if store is None or stage.kind == "local":
            for name in names:
                stage.gate(name).set()
        elif ids := [(id, name) for name in names for id in stage.ids(name)]:
            committed = await store.transact([leaves.settlement(id, name, stage.values) for id, name in ids])
            (NoTransport().ring if store.path is None else ring)(committed.doorbells)


def _names(step: Step) -> set[str]:
    return {name for commit in step for name in commit.names}


def _failed(error: BaseException) -> Outcome:
    return Outcome("diverged" if isinstance(error, NonDeterminismError) else "error", _told(error))


def _told(error: BaseException) -> str:
    if isinstance(error, BaseExceptionGroup):
        return f"{type(error).__name__}({', '.join(map(_told, error.exceptions))})"
    return f"{type(error).__name__}({error})"


def _complaint(context: dict[str, Any]) -> list[str]:
    if isinstance(context.get("task") or context.get("future"), BranchTask):
        return []  # the program has left it behind; when that is noticed is up to the garbage collector
    return [f"{context.get('message')}: {context.get('exception')!r}"]
