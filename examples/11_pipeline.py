"""A pipeline over three processes: one fetches files, one counts their words, one loads the counts into a table.

Run it with `python examples/11_pipeline.py`: at the end a timeline shows when each had each of the files.
"""

import asyncio
import sqlite3
import subprocess
import sys
from collections import Counter
from pathlib import Path
from tempfile import mkdtemp

import dasync


@dasync.function(on="fetch")
def fetch(path: str) -> str:
    return Path(path).read_text()


@dasync.function(on="transform")
def transform(text: str) -> dict[str, int]:
    return dict(Counter(text.split()))


@dasync.function(on="load")
def load(table: str, path: str, counts: dict[str, int]) -> None:
    with sqlite3.connect(table) as rows:  # a body may run twice: the second time writes the same
        rows.execute("CREATE TABLE IF NOT EXISTS words (file, word, count, UNIQUE (file, word))")
        rows.executemany("INSERT OR REPLACE INTO words VALUES (?, ?, ?)", [(path, *one) for one in counts.items()])


@dasync.function
async def pipeline(table: str, paths: list[str]) -> None:
    async def one(path: str) -> None:
        async with three_at_a_time:
            await load(table, path, await transform(await fetch(path)))

    three_at_a_time = asyncio.Semaphore(3)
    await asyncio.gather(*[one(path) for path in paths])


async def main(store: str, stages: list[str]) -> None:
    command = [sys.executable, "-m", "dasync", "worker", __file__, "--store", store, "--group"]
    workers = [subprocess.Popen([*command, stage]) for stage in stages]  # noqa: ASYNC220  # at once
    async with dasync.EventLoop(store) as loop:
        await pipeline.options(id="first")(f"{store}-words", [__file__])  # the workers take a moment to start
        await pipeline.options(id="then")(f"{store}-words", sorted(map(str, Path(__file__).parent.glob("*.py"))))
        found = [one.promise for one in (await loop.search(id_prefix="then:")).found]
    start, end = min(one.created_at for one in found), max(one.settled_at or 0 for one in found)
    for one in sorted(found, key=lambda one: (stages.index(one.function), one.created_at)):
        begun, ended = (round((at - start) * 60 / (end - start)) for at in (one.created_at, one.settled_at or 0))
        print(f"{one.function:>9} |{' ' * begun}{'#' * max(1, ended - begun)}")
    for worker in workers:
        worker.terminate()


if __name__ == "__main__":
    asyncio.run(main(f"{mkdtemp()}/pipeline.db", ["fetch", "transform", "load"]))
