"""Several processes that write one file as fast as they can: who gets how much, and how long does a commit take?

    python -m benchmarks.writers [--seconds 4] [--rounds 2] [--writers 4] [--durability power] [--json]

Each writer commits one promise at a time, one after the other. In turn, so that a drifting machine hits all of them:

- dasync: the store as it is, whose writers queue on its file lock;
- unlocked: the same store without that lock, so that they meet in SQLite, with its busy_timeout alone;
- plain: sqlite3 without dasync, rows of the same shape, SQLite's own checkpoints, with the same busy_timeout.

The shares are each writer's commits by an equal share; a commit is timed from its beginning to its acknowledgement, so
with the waiting. The ratios are dasync's by the others' in the same run. Nothing is asserted.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Literal, NamedTuple, cast

from benchmarks.core import INSERT, TABLE, row
from dasync.core.protocol import PromiseCreate
from dasync.errors import StoreUnavailable
from dasync.stores.filelock import FileLock
from dasync.stores.sqlite import BUSY_TIMEOUT_S, Durability, SqliteStore
from dasync.system import SystemClock

ROOT = Path(__file__).parent.parent
Kind = Literal["dasync", "unlocked", "plain"]
KINDS: tuple[Kind, ...] = ("dasync", "unlocked", "plain")
START_S = 0.5  # for all writers of a round to have opened the file


class Told(NamedTuple):
    """What one writer has seen."""

    commits: list[tuple[float, float]]
    """When each began, and when it was acknowledged."""
    errors: list[str]
    """Each that was refused."""


class Figures(NamedTuple):
    """What the writers of one kind come to."""

    commits_per_s: float
    shares: list[float]
    p50_ms: float
    p99_ms: float
    worst_p99_ms: float
    """Of the writer that fares worst: where one takes all, few commits are slow."""
    max_ms: float
    errors: int


class Unlocked(FileLock):
    """No lock at all."""

    def __enter__(self) -> Unlocked:
        return self

    def __exit__(self, *_: object) -> None:
        pass


# -- one writer ------------------------------------------------------------------------------------------------------


async def write(commit: Callable[[int], Awaitable[None]], begins: float, ends: float) -> Told:
    """Commit from one moment to the other."""
    told = Told([], [])
    await asyncio.sleep(max(0.0, begins - time.monotonic()))
    number = 0
    while (begun := time.monotonic()) < ends:
        number += 1
        try:
            await commit(number)
        except (StoreUnavailable, sqlite3.Error) as error:
            told.errors.append(f"{type(error).__name__}: {error}")
        else:
            told.commits.append((begun, time.monotonic()))
    return told


async def stored(path: str, durability: Durability, begins: float, ends: float, *, locked: bool = True) -> Told:
    store, me = SqliteStore(path, SystemClock(), durability), os.getpid()
    await store.open()
    if not locked and store._lock is not None:
        store._lock.close()
        store._lock = Unlocked(f"{path}-lock")

    async def commit(number: int) -> None:
        await store.transact([PromiseCreate(f"{me}-{number}", "increment", 1, b"\x91\x01")])

    told = await write(commit, begins, ends)
    await store.close()
    return told


async def unlocked(path: str, durability: Durability, begins: float, ends: float) -> Told:
    return await stored(path, durability, begins, ends, locked=False)


async def plain(path: str, durability: Durability, begins: float, ends: float) -> Told:
    first = os.getpid() << 32
    with closing(sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, isolation_level=None)) as connection:
        connection.execute(f"PRAGMA synchronous = {'FULL' if durability == 'power' else 'NORMAL'}")

        async def commit(number: int) -> None:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute(INSERT, row(first + number))
            connection.execute("COMMIT")

        return await write(commit, begins, ends)


# -- a round of them -------------------------------------------------------------------------------------------------


def play(
    kind: Kind, path: str, writers: int, durability: Durability, seconds: float,
    meanwhile: Callable[[list[int]], object] = lambda _: None,
) -> list[Told | None]:
    """`writers` processes write a new file for so long; `meanwhile` is told their ids. None: of one that was killed."""
    if kind == "plain":
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute(TABLE)
    command = [sys.executable, "-m", "benchmarks.writers", "--writer", kind, path, durability]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    running = [
        subprocess.Popen(command, text=True, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for _ in range(writers)
    ]
    try:
        for one in running:
            _line_of(one)  # it has imported everything
        begins = time.monotonic() + START_S
        for one in running:
            assert one.stdin is not None
            print(begins, begins + seconds, file=one.stdin, flush=True)
        time.sleep(max(0.0, begins - time.monotonic()))
        meanwhile([one.pid for one in running])
        return [Told(*json.loads(said)) if (said := _line_of(one)) else None for one in running]
    finally:
        for one in running:
            one.kill()
            one.communicate()


def _line_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def figures(rounds: Sequence[Sequence[Told]], seconds: float) -> Figures:
    """All rounds of one kind, taken together: writer by writer."""
    each = [sorted(done - begun for told in one for begun, done in told.commits) for one in zip(*rounds, strict=True)]
    took = sorted(one for some in each for one in some)
    return Figures(
        round(len(took) / seconds / len(rounds)),
        [round(len(some) * len(each) / len(took), 3) for some in each],
        _percentile_ms(took, 50),
        _percentile_ms(took, 99),
        max(_percentile_ms(some, 99) for some in each),
        _percentile_ms(took, 100),
        sum(len(one.errors) for told in rounds for one in told),
    )


def _percentile_ms(took_s: Sequence[float], percent: int) -> float:
    """Of times in order; for ever, where there is none."""
    return round(1e3 * took_s[min(len(took_s) - 1, len(took_s) * percent // 100)], 2) if took_s else float("inf")


def measure(
    seconds: float, rounds: int = 1, *, writers: int = 4, durability: Durability = "power",
    kinds: Sequence[Kind] = KINDS,
) -> dict[Kind, Figures]:
    """Play all kinds in turn, `rounds` times, each for `seconds` in all."""
    told: dict[Kind, list[list[Told]]] = {kind: [] for kind in kinds}
    for number in range(rounds):
        for kind in kinds:
            with tempfile.TemporaryDirectory() as folder:
                path = str(Path(folder, "writers.db"))
                played = play(kind, path, writers, durability, seconds / rounds)
                told[kind].append([one for one in played if one is not None])
            print(f"  {kind}/{durability} round {number + 1} of {rounds}", file=sys.stderr)
    return {kind: figures(found, seconds / rounds) for kind, found in told.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=4.0, help="for each kind, all rounds together")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--writers", type=int, default=4)
    parser.add_argument("--durability", choices=("power", "process"), default="power")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--writer", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.writer:
        kind, path, durability = options.writer
        print("ready", flush=True)
        begins, ends = map(float, sys.stdin.readline().split())
        write_all = plain if kind == "plain" else stored if kind == "dasync" else unlocked
        print(json.dumps(asyncio.run(write_all(path, durability, begins, ends))), flush=True)
        return
    found = measure(
        options.seconds, options.rounds, writers=options.writers, durability=cast(Durability, options.durability)
    )
    ours = found["dasync"]
    others = {kind: one for kind, one in found.items() if kind != "dasync"}
    ratios = {kind: round(ours.worst_p99_ms / other.worst_p99_ms, 3) for kind, other in others.items()}
    if options.json:
        results = {kind: one._asdict() for kind, one in found.items()}
        told = {"python": sys.version.split()[0], "cpus": os.cpu_count(), "sqlite": sqlite3.sqlite_version}
        print(json.dumps({**told, "durability": options.durability, "results": results, "worst_p99_by": ratios}))
        return
    for kind, one in found.items():
        print(f"{kind:<9}" + "  ".join(f"{key}={value}" for key, value in one._asdict().items()))
    print("worst p99 of dasync by that of " + ", ".join(f"{kind}: {ratio}" for kind, ratio in ratios.items()))


if __name__ == "__main__":
    main()
