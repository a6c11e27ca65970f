"""The killing field's machine: what it does by itself while the field is played, and which processes are on it.

A busy machine lets a process wait, and none of that is the fault of whoever waits. So each process has a pulse: a
thread that sleeps for a moment, again and again, and says so when it has slept for much longer. Blocked asyncio loops
are not taken for that, for the thread goes on beside them. The two clocks are read side by side, as both are used.
"""

from __future__ import annotations

import os
import time
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Thread

PULSE_S = 0.05
STALL_S = 0.5  # what is slept longer than that is no more a matter of taking turns
MARK = "FIELD_LIFE"  # in the environment of a life of the field and of all that it starts
READINGS = 5  # of both clocks, of which that is taken that took least time


def begin_pulse(stalled: Callable[[float], object]) -> None:
    """Tell, from a thread, since when this process did not run, whenever that was for long."""

    def beat() -> None:
        while True:
            since = time.monotonic()
            time.sleep(PULSE_S)
            if time.monotonic() - since > PULSE_S + STALL_S:
                stalled(since)

    Thread(target=beat, name="pulse", daemon=True).start()


def children() -> dict[str, list[int]]:
    """What runs that a life has started, by its mark: processes of its pool and what belongs to them."""
    found: dict[str, list[int]] = defaultdict(list)
    wanted = f"{MARK}=".encode()
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            told = (folder / "environ").read_bytes().split(b"\0")  # empty once it has ended
        except OSError:
            continue
        for entry in told:
            if entry.startswith(wanted):
                found[os.fsdecode(entry[len(wanted) :])].append(int(folder.name))
    return found


def both_clocks() -> tuple[float, float]:
    """Wall time and monotonic time of one moment."""
    readings = []
    for _ in range(READINGS):
        before, wall, after = time.monotonic(), time.time(), time.monotonic()
        readings.append((after - before, wall, before))
    _, wall, before = min(readings)
    return wall, before


class Clocks:
    """From wall time to monotonic time, by readings of both; a wall clock may be set while the field is played."""

    def __init__(self, readings: Sequence[tuple[float, float]]) -> None:
        self._readings = sorted(readings)

    def monotonic(self, wall_ms: int) -> float:
        """What the monotonic clock showed, in seconds."""
        wall = wall_ms / 1000
        at = bisect_left(self._readings, (wall, 0.0))
        near = self._readings[max(0, at - 1) : at + 1]
        then, monotonic = min(near, key=lambda reading: abs(reading[0] - wall))
        return monotonic + wall - then

    def drift_s(self) -> float:
        """How much the wall clock has gone another way than the monotonic one."""
        apart = [wall - monotonic for wall, monotonic in self._readings]
        return max(apart) - min(apart)
