"""A shop with durable functions, and `dasync` run on it in processes of its own, as people and scripts run it."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dasync.cli import main

ROOT = Path(__file__).parent.parent
TIMEOUT_S = 30

SHOP = '''
import asyncio, sys
from pathlib import Path
import dasync

@dasync.function
async def price(item: str, *, count: int = 1) -> int:
    if item == "dodo":
        raise LookupError("no dodo since 1662")
    return 7 * count

@dasync.function(version=2)
async def bill(items: list[str]) -> int:
    return sum(await dasync.all(*[price(item, count=2) for item in items]))

@dasync.function
async def approve() -> bool:
    return await dasync.promise(bool)

@dasync.function
async def pack(folder: str) -> str:
    (Path(folder) / "began").touch()
    while not (Path(folder) / "go").exists():
        await asyncio.sleep(0.01)
    return "packed"

@dasync.function
async def carry(folder: str) -> str:
    return await pack(folder)

async def main() -> None:
    async with dasync.EventLoop(sys.argv[1], durability="process") as loop:
        await bill.options(id="bill-1", tags={"who": "ada"})(["tea"] * 11)
        try:
            await bill.options(id="bill-2")(["dodo"])
        except LookupError:
            pass
        approve.options(id="approval")()
        while "approval:0" not in loop.awaiters:
            await asyncio.sleep(0.01)
        try:
            await dasync.promise(id="too-late", timeout=0)
        except dasync.PromiseTimedOut:
            pass

if __name__ == "__main__":
    asyncio.run(main())
'''


def environment(**more: str) -> dict[str, str]:
    """Nothing of dasync's from outside, this tree's dasync, and every warning an error."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith("DASYNC_")}
    return plain | {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error", "COLUMNS": "120"} | more


def python(*arguments: str, env: dict[str, str] | None = None) -> str:
    """Run Python; gives what it prints."""
    done = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, timeout=TIMEOUT_S, env=env or environment(),
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def dasync(*arguments: str) -> str:
    """Run a command; gives what it prints."""
    return python("-m", "dasync", *arguments)


def dasync_json(*arguments: str) -> dict[str, object]:
    """Run a command with `--json`; gives the object that it prints."""
    said = json.loads(dasync(*arguments, "--json"))
    assert isinstance(said, dict)
    return said


async def start(*arguments: str) -> asyncio.subprocess.Process:
    """Begin to run a command, while this process goes on."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    command = (sys.executable, "-m", "dasync", *arguments)
    return await asyncio.create_subprocess_exec(*command, env=environment(), **pipes)  # type: ignore[arg-type]


async def run(*arguments: str) -> tuple[int | None, str, str]:
    """A command, while this process goes on: its status, what it prints and what it complains of."""
    process = await start(*arguments)
    out, complaints = await process.communicate()
    return process.returncode, out.decode(), complaints.decode()


def fails(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """Run a command in this process; it fails with one line. Gives status and line."""
    status = main(arguments)
    out, error = capsys.readouterr()
    assert out == ""
    assert error.startswith("dasync: ")
    assert error.count("\n") == 1
    assert error.endswith("\n")
    return status, error
