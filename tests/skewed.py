"""Programs for processes whose wall clock is wrong, and how such a process is started: `libfaketime` shifts what the
system says the time is, and leaves the monotonic clock alone.

The offset stands in a file that is read each time, so it can be set while the process runs.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from functools import cache
from pathlib import Path

import programs
from shell import ROOT, environment

import dasync

HERE = Path(__file__).parent
GATE = "gate"


@dasync.function
async def nap(seconds: float) -> float:
    await dasync.sleep(seconds)
    programs.plan.write("awake")
    return seconds


@dasync.function
async def named(name: str) -> str:
    return name


@dasync.function
async def mixed(count: int, where: str) -> list[str]:
    """Take outcomes from here and from elsewhere as they come; then wait for something."""
    seen: list[str] = []

    async def take(name: str, promise: dasync.Promise[str]) -> None:
        seen.append(await promise)
        programs.plan.write(f"took {name}")

    async def some(first: int) -> None:
        for number in range(first, count, 2):
            name = f"{number}"
            await take(name, named.options(on=where if number % 2 else None)(name))

    await asyncio.gather(some(0), some(1))
    programs.plan.write("waits")
    await dasync.promise(str, id=GATE)
    return seen


def serve(path: str, ledger: str, group: str, lease: str) -> None:
    programs.worker(path, ledger, group, float(lease))


@cache
def library() -> str:
    """Where libfaketime is, the one for programs with threads; empty: it is not installed."""
    try:
        found = subprocess.run(["faketime", "-m", "-f", "+0", "printenv", "LD_PRELOAD"], capture_output=True, text=True)
    except OSError:
        return ""
    return found.stdout.strip()


def start(path: Path, ledger: Path, group: str, lease_s: float, offset: Path | None) -> subprocess.Popen[bytes]:
    """A worker; `offset` is the file that says how wrong its clock is, None: its clock is right."""
    env = environment(PYTHONPATH=f"{ROOT}:{HERE}")
    if offset is not None:
        env |= {"LD_PRELOAD": library(), "FAKETIME_TIMESTAMP_FILE": str(offset), "FAKETIME_NO_CACHE": "1"}
        env |= {"FAKETIME_DONT_FAKE_MONOTONIC": "1"}
    code = "import sys, skewed; skewed.serve(*sys.argv[1:])"
    return subprocess.Popen([sys.executable, "-c", code, path, ledger, group, str(lease_s)], env=env)
