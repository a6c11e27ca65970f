"""No effect outlives the decision that led to it: bodies start when the decisions before them are durable."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path

import pytest

import dasync


@pytest.mark.asyncio
async def test_a_body_starts_when_every_decision_before_it_is_durable(tmp_path: Path) -> None:
    """`now()` goes on at once; a later child's body finds all of the decisions in the file, not just the first."""
    path = tmp_path / "s.db"

    def stored() -> set[str]:
        connection = sqlite3.connect(path)
        try:
            return {row[0] for row in connection.execute("SELECT id FROM promises WHERE function = 'dasync.now'")}
        finally:
            connection.close()

    @dasync.function
    async def effect() -> list[str]:
        return sorted(stored())

    @dasync.function
    async def decides(pauses: int) -> list[str]:
        dasync.now()
        for _ in range(pauses):
            await asyncio.sleep(0)  # the first decision is on its way; the second goes with a later batch
        dasync.now()
        return await effect()

    async with dasync.EventLoop(str(path)):
        for pauses in range(8):
            id = f"r{pauses}"
            before = stored()
            found = await decides.options(id=id)(pauses)
            assert set(found) - before == {f"{id}:0", f"{id}:1"}
