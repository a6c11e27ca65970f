"""The program on DBOS, on its SQLite system database: a workflow that gathers two coroutines of steps.

DBOS numbers the steps of a workflow as they start. Its documentation allows concurrent steps that start in one order
whatever the clock does, names sequences that are gathered as what not to do, and has them be child workflows: the way
`child workflows`. The way `gather` is the program without them. `DBOS.launch` recovers what a dead process left.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from dbos import DBOS, SetWorkflowID

from benchmarks.peers import stage

ID = "program"


@DBOS.step()
async def step(name: str, i: int) -> str:
    return await stage.work(name, i)


async def sequence(name: str) -> list[str]:
    return [stage.give(name, i, await step(name, i)) for i in range(2)]


@DBOS.workflow()
async def sequence_workflow(name: str) -> list[str]:
    return await sequence(name)


@DBOS.workflow()
async def gathers() -> list[list[str]]:
    return list(await asyncio.gather(sequence("a"), sequence("b")))


@DBOS.workflow()
async def starts_children() -> list[list[str]]:
    children = [await DBOS.start_workflow_async(sequence_workflow, name) for name in "ab"]
    return [await child.get_result() for child in children]


WAYS = {"gather": gathers, "child workflows": starts_children}


def launch(store: Path) -> None:
    DBOS(config={"name": "interleaving", "system_database_url": f"sqlite:///{store}/dbos.sqlite"})
    DBOS.launch()


async def start(way: str) -> object:
    with SetWorkflowID(ID):
        handle = await DBOS.start_workflow_async(WAYS[way])
    return await handle.get_result()


async def wait() -> object:
    handle = await DBOS.retrieve_workflow_async(ID)
    return await handle.get_result()


def first(store: Path, plan: stage.Plan) -> object:
    launch(store)
    return asyncio.run(start(plan.way))


def resume(store: Path, plan: stage.Plan) -> object:
    launch(store)
    return asyncio.run(wait())


if __name__ == "__main__":
    stage.main(first, resume, ways=tuple(WAYS))
