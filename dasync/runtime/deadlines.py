"""Deadlines of the promises that this process tracks, each looked at when its time has come.

The store gives the verdict; this only asks it in time. Promises that nobody tracks are the tick's business.
"""

from __future__ import annotations

import asyncio
import heapq

from dasync.ports import Clock
from dasync.runtime.held import Deadline
from dasync.runtime.journal import Journal

SWEPT_FIRST = 1_000  # entries; those that nobody needs are cleared away whenever there are twice as many as were left
LOOK_AGAIN_S = 1.0  # a wall clock may be set while we sleep, so no sleep is longer than this


class Deadlines:
    """What is due when, and the service that sees to it."""

    def __init__(self, clock: Clock, journal: Journal) -> None:
        self._clock = clock
        self._journal = journal
        self._heap: list[tuple[int, int, Deadline]] = []
        self._count = 0
        self._many = SWEPT_FIRST
        self._earlier = asyncio.Event()

    def add(self, at_ms: int, deadline: Deadline) -> None:
        """Write `deadline` when that time has come."""
        self._count += 1
        if len(self._heap) > self._many:
            self._heap = [entry for entry in self._heap if entry[2].needed]
            heapq.heapify(self._heap)
            self._many = max(SWEPT_FIRST, 2 * len(self._heap))
        heapq.heappush(self._heap, (at_ms, self._count, deadline))
        if self._heap[0][2] is deadline:
            self._earlier.set()

    async def keep(self) -> None:
        """Serve until canceled."""
        while True:
            self._earlier.clear()
            while self._heap and not self._heap[0][2].needed:
                heapq.heappop(self._heap)
            if not self._heap:
                await self._earlier.wait()
                continue
            wait_ms = self._heap[0][0] - self._clock.now_ms()
            if wait_ms > 0:
                await self._until(wait_ms / 1000)
            else:
                self._journal.write(heapq.heappop(self._heap)[2])

    async def _until(self, wait_s: float) -> None:
        """Sleep, but not past an earlier deadline that comes meanwhile."""
        earlier = asyncio.create_task(self._earlier.wait())
        pause = asyncio.create_task(self._pause(min(wait_s, LOOK_AGAIN_S)))
        try:
            await asyncio.wait((pause, earlier), return_when=asyncio.FIRST_COMPLETED)
        finally:
            pause.cancel()
            earlier.cancel()

    async def _pause(self, seconds: float) -> None:
        await self._clock.sleep(seconds)
