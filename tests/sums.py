"""Functions that run in processes of the pool, and a program of them that is killed: `python sums.py STORE FOLDER`.

What a function does in the world it leaves in files of a folder: a line for each run, with its process.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import NoReturn

import dasync


@dasync.error
class OutOfPaper(Exception):
    """Keeps its type."""


@dataclass(frozen=True)
class Parcel:
    """Travels by the codec: whoever pickles it is told."""

    weight: Decimal
    names: tuple[str, ...]

    def __reduce__(self) -> NoReturn:
        raise AssertionError("it was pickled")


def begin(folder: str, name: str) -> int:
    """Put down that a run has begun; gives how many have."""
    with open(Path(folder) / name, "a", encoding="utf-8") as file:
        file.write(f"{os.getpid()}\n")
    return len(pids(folder, name))


def note(folder: str, name: str) -> None:
    """Put down that it has run."""
    with open(Path(folder) / "notes", "a", encoding="utf-8") as file:
        file.write(f"{name}\n")


def pids(folder: str | Path, name: str) -> list[int]:
    """The processes of the runs that have begun so far."""
    path = Path(folder) / name
    return [int(line) for line in path.read_text().splitlines()] if path.exists() else []


def stand(folder: str, name: str) -> None:
    """Compute until somebody says `go`."""
    while not (Path(folder) / f"{name}.go").exists():
        threading.Event().wait(0.002)


def go(folder: str, name: str) -> None:
    """Say so."""
    (Path(folder) / f"{name}.go").touch()


@dasync.function(process=True)
def where() -> int:
    return os.getpid()


@dasync.function(process=True)
def doubled(parcel: Parcel, *, times: int = 2) -> Parcel:
    return Parcel(parcel.weight * times, parcel.names * times)


@dasync.function(process=True)
def prints(paper: int) -> str:
    if paper < 0:
        raise OutOfPaper("no paper", paper)
    return "x" * paper


@dasync.function(process=True)
def forgets() -> object:
    return threading.Lock()


@dasync.function(process=True)
def floods(folder: str) -> None:
    note(folder, "floods")


@dasync.function(process=True)
def trickles(folder: str) -> None:
    note(folder, "trickles")


@dasync.function
async def flooded(folder: str) -> None:
    flood = [floods(folder) for _ in range(20)]
    await dasync.all(*flood, *[trickles(folder) for _ in range(3)])


@dasync.function(process=True)
def invokes() -> int:
    return where().wait()


@dasync.function(process=True)
def tells_the_time() -> str:
    return str(dasync.now())


@dasync.function(process=True, retry=dasync.Retry.constant(0, attempts=3))
def fails_twice(folder: str) -> int:
    if (run := begin(folder, "fails_twice")) < 3:
        raise OSError(f"run {run}")
    return run


@dasync.function(process=True, retry=dasync.Retry.constant(0, attempts=3))
def gives_up(folder: str) -> int:
    begin(folder, "gives_up")
    raise dasync.Terminal("for good")


@dasync.function(process=True)
def spins(folder: str, name: str) -> int:
    begin(folder, name)
    while True:
        pass


@dasync.function(process=True)
def stands(folder: str, name: str) -> int:
    begin(folder, name)
    stand(folder, name)
    return os.getpid()


@dasync.function(process=True, concurrency=1)
def alone(folder: str, name: str) -> int:
    begin(folder, "alone")
    stand(folder, name)
    return os.getpid()


@dasync.function(process=True)
def ends(folder: str, how: str, runs: int) -> int:
    """Its process ends in so many runs, before one returns."""
    if (run := begin(folder, how)) > runs:
        return run
    if how == "exit":
        sys.exit(3)
    if how == "_exit":
        os._exit(0)
    os.kill(os.getpid(), getattr(signal, how))
    return 0


@dasync.function
async def parent(folder: str, how: str, runs: int) -> int:
    return await ends(folder, how, runs)


@dasync.function
async def twice(folder: str) -> list[int]:
    """Its first child is recorded when it is killed in the second."""
    return [await where(), await stands(folder, "second")]


async def main(store: str, folder: str) -> None:
    async with dasync.EventLoop(store, durability="process", processes=2):
        spinning = spins.options(id="spins")(folder, "spins") if "spin" in sys.argv else None
        print(await twice.options(id="twice")(folder))
        if spinning is not None:
            await spinning


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:3]))
