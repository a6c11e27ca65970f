"""The program on duron, on its file log: one durable function that gathers two plain coroutines.

Its guide gathers effects in just this way. `Session.start` begins, and on a log that has a run it resumes.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import duron
from duron.contrib.storage import FileLogStorage

from benchmarks.peers import stage


@duron.effect
async def step(name: str, i: int) -> str:
    return await stage.work(name, i)


async def sequence(ctx: duron.Context, name: str) -> list[str]:
    return [stage.give(name, i, await ctx.run(step, name, i)) for i in range(2)]


@duron.durable
async def program(ctx: duron.Context) -> list[list[str]]:
    return list(await asyncio.gather(sequence(ctx, "a"), sequence(ctx, "b")))


async def run(store: Path) -> object:
    async with duron.Session(FileLogStorage(store / "log.jsonl")) as session:
        task = await session.start(program)
        return await task.result()


def first(store: Path, plan: stage.Plan) -> object:
    return asyncio.run(run(store))


if __name__ == "__main__":
    stage.main(first, first, ways=("gather",))
