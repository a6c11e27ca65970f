"""The real clock and the real entropy: the one room that may ask the system for time and randomness."""

from __future__ import annotations

import asyncio
import os
import time


class SystemClock:
    """The wall clock of this machine, and asyncio's sleep."""

    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000

    def monotonic(self) -> float:
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class SystemEntropy:
    """The kernel's random bytes."""

    def bytes(self, count: int) -> bytes:
        return os.urandom(count)
