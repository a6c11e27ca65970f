"""The real clock and the real entropy: the one room that may ask the system for time and randomness.

Everything else is handed a `Clock` and an `Entropy` (ports.py); a test of the house holds that.
"""

from __future__ import annotations

import asyncio
import os
import random
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


def stream(seed: bytes) -> random.Random:
    """The random stream that starts at `seed`: the same one for the same seed, always."""
    return random.Random(seed)
