"""Programs that insert in batches, in processes of their own: what `Zygote.spawn` runs, beside those of `programs.py`.

The handler writes a line for each item that it is given, and one for each call.
"""

from __future__ import annotations

import asyncio
import os
import time

from programs import MortalStore, plan

import dasync


@dasync.batched(max_size=3, max_wait=0.005)
async def insert(items: list[str]) -> list[str]:
    plan.write(f"call {' '.join(items)} {os.getpid()}")
    for item in items:
        plan.write(f"item {item}")
        plan.reach(f"in {item}")
    await asyncio.sleep(0)
    return [item.upper() for item in items]


@dasync.batched(name="insert in a thread", max_size=3, max_wait=0.005)
def insert_in_a_thread(items: list[str]) -> list[str]:
    """One that kills does so while another one, if it runs at the same time, does."""
    for item in items:
        plan.write(f"item {item}")
        time.sleep(0.01 if f"in {item}" == plan.die_at else 0.05)
        plan.reach(f"in {item}")
    return [item.upper() for item in items]


@dasync.function
async def adds(name: str) -> list[str]:
    first = await insert(f"{name}0")
    return [first, *await asyncio.gather(insert(f"{name}1"), insert(f"{name}2"))]


@dasync.function
async def everybody() -> list[list[str]]:
    return list(await asyncio.gather(*map(adds, "abc")))


def mortal(path: str, ledger: str, die_at: int, when: str) -> object:
    """Run or resume `everybody` and two others, up to the n-th transaction."""
    plan.__init__(ledger)  # type: ignore[misc]  # this process's own

    async def main() -> object:
        async with dasync.EventLoop(MortalStore(path, die_at, when), poll=0.05):
            return await asyncio.gather(
                everybody.options(id="root")(), *[insert.options(id=name)(name) for name in ("d", "e")]
            )

    return asyncio.run(main())


def killed_by(path: str, ledger: str, names: list[str], die_at: str, threads: bool, max_crashes: int) -> object:
    """Insert these, each as a root under its name, in a process that one of them kills; what became of each."""
    plan.__init__(ledger, (), die_at)  # type: ignore[misc]  # this process's own
    one = insert_in_a_thread if threads else insert

    async def main() -> object:
        async with dasync.EventLoop(path, durability="process", poll=0.05, max_crashes=max_crashes):
            promises = [one.options(id=name)(name) for name in names]
            ended = await asyncio.gather(*promises, return_exceptions=True)
            return [type(one).__name__ if isinstance(one, BaseException) else one for one in ended]

    return asyncio.run(main())
