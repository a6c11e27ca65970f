"""Limits: how many of a function run at a time, and computing in processes of a pool.

Run it with `python examples/16_limits.py`: six pages are asked for, no more than two at a time, and what they say is
counted in other processes. A worker takes no more tasks of a function than it has room for, and the functions in turn.
"""

import asyncio
import os

import dasync

asking = most = 0


@dasync.function(concurrency=2)  # in this process: the service does not like more
async def ask(page: int) -> str:
    global asking, most
    asking += 1
    most = max(most, asking)
    await asyncio.sleep(0.02)
    asking -= 1
    return "tea cup pot " * page


@dasync.function(process=True)  # it computes: neither the asyncio loop nor other threads wait for it
def count(text: str) -> tuple[int, int]:
    return os.getpid(), len(text.split())


@dasync.function
async def survey(pages: int) -> int:
    texts = await dasync.all(*[ask(page) for page in range(pages)])
    counted = await dasync.all(*[count(text) for text in texts])
    assert os.getpid() not in {process for process, _ in counted}
    return sum(words for _, words in counted)


async def main() -> None:
    print(f"{await survey(6)} words, {most} at a time")


if __name__ == "__main__":  # a process of the pool imports this file
    dasync.run(main)
