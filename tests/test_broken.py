"""When nothing can be trusted any more: a damaged store, a bug of dasync's own."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

import dasync
from dasync.core import invariants
from dasync.core.model import PromiseRecord
from dasync.errors import InvariantViolated, StoreCorrupt


@dasync.function
async def answer() -> int:
    return 42


@pytest.mark.asyncio
async def test_a_broken_invariant_stops_the_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rule that does not hold ends the writing: whoever awaits is told, nothing is settled, now or later."""
    path = tmp_path / "s.db"
    async with dasync.EventLoop(str(path)) as loop:
        assert await answer.options(id="before")() == 42

        def never(record: PromiseRecord) -> bool:
            return record.id != "planted"

        monkeypatch.setitem(invariants.PROMISE, "well_formed_planted", never)
        with pytest.raises(InvariantViolated, match=r"well_formed_planted .* please report it"):
            await answer.options(id="planted")()
        assert isinstance(await loop.failed(), InvariantViolated)
        with pytest.raises((InvariantViolated, dasync.StoreUnavailable)):
            await answer.options(id="after")()
    connection = sqlite3.connect(path)
    assert connection.execute("SELECT id, state FROM promises").fetchall() == [("before", "resolved")]
    connection.close()


PLANTED = """
import asyncio, json, logging, sqlite3, sys
import dasync
from dasync.core import invariants

assert False, "under python -O nobody gets here"
path, gate, swallowed = sys.argv[1], asyncio.Event(), []

@dasync.function
async def answer() -> int:
    return 42

@dasync.function
async def child() -> int:
    return 1

@dasync.function
async def parent() -> object:
    await gate.wait()
    try:
        return await child()
    except BaseException as error:
        swallowed.append(type(error).__name__)
        return "settled by a bug"

def dump():
    connection = sqlite3.connect(path)
    tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    rows = {t: connection.execute(f"SELECT * FROM {t} ORDER BY 1, 2").fetchall() for t in tables}
    connection.close()
    return rows

async def caught(awaitable):
    try:
        await awaitable
    except BaseException as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"

async def main():
    told = {"optimize": sys.flags.optimize}
    logging.disable()
    async with dasync.EventLoop(path, lease=0.5, poll=0.05) as loop:
        assert_equal(await answer.options(id="before")(), 42)
        other = asyncio.create_task(caught(dasync.promise(id="other")))
        running = parent.options(id="running")()
        await running.created()
        await asyncio.sleep(0.2)
        before = dump()
        invariants.PROMISE["well_formed_planted"] = lambda record: record.function != "child"
        gate.set()
        told["running"] = await caught(running)
        told["other"] = await other
        told["failed"] = repr(await loop.failed())
        broken = dump()
        told["later"] = [await caught(answer.options(id=f"later-{i}")()) for i in range(3)]
        told["created"] = await caught(answer.options(id="created")().created())
        told["timer"] = await caught(dasync.sleep(0))
        await asyncio.sleep(1)
        told["swallowed"] = swallowed
        told["still"] = dump() == broken
    told["closed"] = dump() == broken
    told["as before"] = {table: rows for table, rows in broken.items() if table != "processes"} == {
        table: rows for table, rows in before.items() if table != "processes"
    }
    del invariants.PROMISE["well_formed_planted"]
    async with dasync.EventLoop(path, poll=0.05) as loop:
        told["healed"] = await asyncio.wait_for(loop.get("running"), 20)
        told["found"] = sorted(found.promise.id for found in (await loop.search()).found)
    print(json.dumps(told))

def assert_equal(a, b):
    if a != b:
        raise SystemExit(f"{a} is not {b}")

asyncio.run(main())
"""


def test_a_broken_invariant_stops_the_writing_under_python_o(tmp_path: Path) -> None:
    """A child whose record breaks a rule: whoever awaits anything is told which rule and to report it, whatever the
    user's code swallows; no row changes any more, not even a lease. A healthy process then goes on from there."""
    done = subprocess.run(
        [sys.executable, "-O", "-c", PLANTED, str(tmp_path / "s.db")], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["optimize"] == 1
    for what in ("running", "other", "failed", "created", "timer"):
        assert "InvariantViolated" in told[what], (what, told[what])
        assert "well_formed_planted does not hold of" in told[what]
        assert "'child'" in told[what]
        assert "A bug in dasync: please report it." in told[what]
    assert {text.partition(":")[0] for text in told["later"]} == {"InvariantViolated"}
    assert len(told["swallowed"]) == 1
    assert told["still"]
    assert told["closed"]
    assert told["as before"]
    assert told["healed"] == 1
    assert told["found"] == ["before", "other", "running", "running:0"]


@pytest.mark.asyncio
async def test_a_damaged_row_stops_the_writing(tmp_path: Path) -> None:
    """A payload that does not match its checksum is never returned: `StoreCorrupt` names the row."""
    path = tmp_path / "s.db"
    async with dasync.EventLoop(str(path)):
        await answer.options(id="damaged")()
    connection = sqlite3.connect(path)
    connection.execute("UPDATE promises SET value = x'07' WHERE id = 'damaged'")
    connection.commit()
    connection.close()
    async with dasync.EventLoop(str(path)) as loop:
        with pytest.raises(StoreCorrupt, match="damaged"):
            await loop.get("damaged")
        assert isinstance(await asyncio.wait_for(loop.failed(), 5), StoreCorrupt)
