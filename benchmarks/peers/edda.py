"""The program on edda, on SQLite: a workflow that gathers two coroutines of activities.

Edda numbers the calls of an activity as they come; for concurrent ones its documentation requires an `activity_id=`,
which is the way `activity_id`. The way `gather` is the program without them.

A process that dies leaves its workflow locked. Edda's leader frees locks that are over and resumes their workflows once
a minute; the lock is made to last a second here, and `resume` does by hand, at once, what the leader would do then.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from edda import EddaApp, WorkflowContext, activity, workflow

from benchmarks.peers import stage

LOCK_S = 1


@activity
async def step(ctx: WorkflowContext, name: str, i: int) -> str:
    return await stage.work(name, i)


async def sequence(ctx: WorkflowContext, name: str) -> list[str]:
    return [stage.give(name, i, await step(ctx, name, i)) for i in range(2)]


async def named_sequence(ctx: WorkflowContext, name: str) -> list[str]:
    return [stage.give(name, i, await step(ctx, name, i, activity_id=f"{name}:{i}")) for i in range(2)]


@workflow(lock_timeout_seconds=LOCK_S)
async def gathers(ctx: WorkflowContext) -> list[list[str]]:
    return list(await asyncio.gather(sequence(ctx, "a"), sequence(ctx, "b")))


@workflow(lock_timeout_seconds=LOCK_S)
async def gathers_named(ctx: WorkflowContext) -> list[list[str]]:
    return list(await asyncio.gather(named_sequence(ctx, "a"), named_sequence(ctx, "b")))


WAYS = {"gather": gathers, "activity_id": gathers_named}


async def run(store: Path, way: str, resuming: bool) -> object:
    app = EddaApp(service_name="interleaving", db_url=f"sqlite:///{store}/edda.db")
    await app.initialize()
    if not resuming:
        id = await WAYS[way].start()
    else:
        while not (freed := await app.storage.cleanup_stale_locks()):  # noqa: ASYNC110  # a lock's end tells nobody
            await asyncio.sleep(0.1)
        id = freed[0]["instance_id"]
        await WAYS[way].resume(id)
    instance = await app.storage.get_instance(id)
    return instance["output_data"]["result"]


def first(store: Path, plan: stage.Plan) -> object:
    return asyncio.run(run(store, plan.way, resuming=False))


def resume(store: Path, plan: stage.Plan) -> object:
    return asyncio.run(run(store, plan.way, resuming=True))


if __name__ == "__main__":
    stage.main(first, resume, ways=tuple(WAYS))
