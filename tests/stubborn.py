"""Functions that fail or block, for processes of their own that are killed: what `test_retry` and `test_threads` spawn.

Where they stand and die, and what they write down, is the `plan` of `programs`.
"""

from __future__ import annotations

import asyncio
import os
import time

from clocks import T0, FakeClock
from programs import plan

import dasync
from dasync.cli import facts

ATTEMPTS = 4


@dasync.function(retry=dasync.Retry.constant(0.01, attempts=ATTEMPTS))
async def fails() -> None:
    plan.write("run")
    plan.reach(f"run {plan.count('run')}")
    raise OSError(f"failure {plan.count('run')}")


@dasync.function
async def asks(child: str) -> str:
    """Fail where a child of one's own does."""
    try:
        await fails()
    except OSError as error:
        return f"{child} {error}"
    return "nothing"


@dasync.function(name="fails_in_a_thread", retry=dasync.Retry.constant(0.01, attempts=ATTEMPTS))
def fails_in_a_thread() -> None:
    plan.write("run")
    plan.reach(f"run {plan.count('run')}")
    raise OSError(f"failure {plan.count('run')}")


@dasync.function(retry=dasync.Retry.constant(3600, attempts=2))
async def fails_once() -> str:
    plan.write("run")
    if plan.count("run") == 1:
        raise OSError("not yet")
    return "in the end"


@dasync.function
def blocking_leaf(name: str) -> str:
    plan.write(f"leaf {name}")
    plan.reach(f"leaf {name}")
    return name.upper()


@dasync.function
def blocks() -> list[object]:
    """A body in a thread, with a bit of all that it may do."""
    first = blocking_leaf("a").wait()
    decided = [dasync.now().isoformat(), dasync.random().random(), str(dasync.uuid4())]
    plan.write(f"decided {decided}")
    both = [blocking_leaf("b"), blocking_leaf("c")]
    dasync.sleep(0.001).wait()
    second = [promise.wait() for promise in both]
    plan.reach("before the end")
    return [first, decided, second]


@dasync.function
def blocks_at(gate: str) -> str:
    """Wait in a thread for somebody outside, after standing there for a file."""
    plan.write(f"begin {gate} {os.getpid()}")
    try:
        while not plan.may_go():
            time.sleep(0.005)
        blocking_leaf(gate).wait()
    except BaseException as error:
        plan.write(f"ended {gate} {os.getpid()} {type(error).__name__}")
        raise
    return f"{gate} by {os.getpid()}"


FUNCTIONS = {f.name: f for f in (fails, fails_in_a_thread, fails_once, blocks)} | {"asks": asks}


def run(path: str, ledger: str, name: str, die_at: str = "") -> object:
    """Run or resume the function `name` up to `die_at`; gives what it gives, or its error's text."""
    plan.__init__(ledger, (), die_at)  # type: ignore[misc]  # this process's own

    async def main() -> object:
        async with dasync.EventLoop(path, durability="process", poll=0.02):
            args = ("told",) if name == "asks" else ()
            try:
                return await FUNCTIONS[name].options(id="root")(*args)
            except OSError as error:
                return str(error)

    return asyncio.run(main())


def run_later(path: str, ledger: str, hours: float, further: float | None) -> object:
    """Go on with `fails_once` on a clock that is so far on and then goes further; killed where it goes no further.

    Gives how often it had run before the clock moved, and what it gave.
    """
    plan.__init__(ledger)  # type: ignore[misc]  # this process's own

    async def main() -> object:
        clock = FakeClock(T0 + round(hours * 3_600_000))
        async with dasync.EventLoop(path, durability="process", clock=clock, lease=86_400) as loop:
            promise = fails_once.options(id="root")()
            while "root:!1" not in loop.awaiters:  # noqa: ASYNC110  # it has no event of its own
                await asyncio.sleep(0.001)
            await loop.promises["root:!1"].created()
            await asyncio.sleep(0.05)
            before = plan.count("run")
            rows = await loop._store.subtree("root")
            told = facts.shown(rows, "root", clock.now_ms())["attempts"]
            plan.write(f"told {[(one['number'], one['failed_at'], one['next_at']) for one in told]}")
            if further is None:
                plan.die()
            clock.advance((further or 0) * 3600)
            return [before, await promise]

    return asyncio.run(main())
