"""Two kinds of failure. An exception is retried as the policy says; a crash is resumed by starting the program again:

    until python examples/05_failures.py; do echo "it crashed; again"; done

Each step may fail half of the time, in both ways. What has succeeded once is never done again, and the attempts of
a step that waits for its next one are counted across crashes (`dasync tree journey --store failures.db`). What crashes
five times in a row is halted as poisoned, unless `max_crashes` says otherwise: `dasync resume journey` sends it again.
"""

import asyncio
import os
import random
import sys

import dasync


@dasync.function(retry=dasync.Retry.exponential(initial=0.02, cap=0.2))
async def catchable(step: int) -> str:
    if random.random() < 0.5:
        print(f"{step}: raises", flush=True)
        raise ConnectionError("no answer")
    return f"{step}: answered"


@dasync.function
async def non_catchable(step: int) -> str:
    if random.random() < 0.5:
        print(f"{step}: dies", flush=True)
        os._exit(1)  # no cleanup, no goodbye: as kill -9 does it
    return f"{step}: survived"


@dasync.function
async def journey(steps: int) -> list[str]:
    story = []
    for step in range(steps):
        story.append(await catchable(step))
        story.append(await non_catchable(step))
    return story


async def main(store: str) -> None:
    async with dasync.EventLoop(store, max_crashes=100):
        print(*await journey.options(id="journey")(3), sep="\n")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1] if sys.argv[1:] else "failures.db"))
