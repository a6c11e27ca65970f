"""The real clock and the real entropy: the one room that may ask the system for time and randomness.

Everything else is handed a `Clock` and an `Entropy` (ports.py); a test of the house holds that.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Callable


class SystemClock:
    """The wall clock of this machine, and asyncio's sleep."""

    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000

    monotonic = staticmethod(time.monotonic)  # as it is: it is asked before each step of code

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


def pause(seconds: float) -> None:
    """Hold this thread up: never the asyncio loop's."""
    time.sleep(seconds)


def call_later(
    loop: asyncio.AbstractEventLoop, delay_s: float, callback: Callable[..., object], *args: object
) -> asyncio.TimerHandle:
    """A timer of the runtime's own: no durable one, although an execution's code may be what runs now."""
    plain: Callable[..., asyncio.TimerHandle] = getattr(loop, "plain_call_later", loop.call_later)
    return plain(delay_s, callback, *args)


class SystemEntropy:
    """The kernel's random bytes."""

    def bytes(self, count: int) -> bytes:
        return os.urandom(count)


def stream(seed: bytes) -> random.Random:
    """The random stream that starts at `seed`: the same one for the same seed, always."""
    return random.Random(seed)
