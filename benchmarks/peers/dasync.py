"""The program on dasync: one durable function that gathers two plain coroutines; resuming is calling it again."""

from __future__ import annotations

import asyncio
from pathlib import Path

import dasync
from benchmarks.peers import stage


@dasync.function
async def step(name: str, i: int) -> str:
    return await stage.work(name, i)


async def sequence(name: str) -> list[str]:
    return [stage.give(name, i, await step(name, i)) for i in range(2)]


@dasync.function
async def program() -> list[list[str]]:
    return list(await asyncio.gather(sequence("a"), sequence("b")))


async def run(store: Path) -> list[list[str]]:
    async with dasync.EventLoop(str(store / "dasync.db")):
        return await program.options(id="program")()


def first(store: Path, plan: stage.Plan) -> object:
    return asyncio.run(run(store))


if __name__ == "__main__":
    stage.main(first, first, ways=("gather",))
