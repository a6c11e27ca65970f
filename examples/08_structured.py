"""Structured concurrency: nothing that a function invoked outlives it, unless it was let go on purpose.

Run it with `python examples/08_structured.py`: a race, a group that fails, a timeout, all outcomes, a child on its own.
"""

import asyncio

import dasync


@dasync.function
async def fetch(mirror: str, delay: float) -> str:
    try:
        await dasync.sleep(delay)
        return f"from {mirror}"
    except asyncio.CancelledError:
        print(f"  {mirror} is canceled")
        raise


@dasync.function
async def refuse() -> None:
    raise PermissionError("not today")


@dasync.function
async def audit(what: str) -> None:
    await dasync.sleep(0.05)
    print(f"  audit: {what}")


@dasync.function
async def program() -> None:
    print("race:", await dasync.race(fetch("tortoise", 60), fetch("hare", 0.01)))
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(fetch("sibling", 60))
            group.create_task(refuse())
    except* PermissionError as errors:
        print("group:", *errors.exceptions)
    slow = fetch("slow", 0.2)
    try:
        async with asyncio.timeout(0.01):
            await slow
    except TimeoutError:
        print("timeout: the promise goes on,", await slow)
    for one in await dasync.all_settled(refuse(), fetch("quick", 0.01)):
        print("settled:", one.state, one.exception() or one.result())
    audit.options(detached=True)("nobody waits for this one")


async def main() -> None:
    await program.options(id="program")()
    print("the program is over")
    await dasync.sleep(0.2)


if __name__ == "__main__":
    dasync.run(main)
