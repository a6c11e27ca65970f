"""When nothing can be trusted any more: a damaged store, a bug of dasync's own."""

from __future__ import annotations

import asyncio
import sqlite3
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
