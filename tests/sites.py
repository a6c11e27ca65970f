"""A file, a ledger, and workers in processes of their own that are stopped and killed there.

    site.hire(lease=0.6)                    # a worker of group `far`, with the functions of programs.py
    site.play(main)                         # a caller, in this process
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from play import World, until
from zygote import Child, Zygote

import dasync


class Site:
    """A file, a ledger, and workers in processes of their own."""

    def __init__(self, zygote: Zygote, folder: Path) -> None:
        self._zygote = zygote
        self.path = folder / "s.db"
        self.ledger = folder / "ledger"
        self.workers: dict[int, Child] = {}

    def hire(self, **options: Any) -> Child:
        terms = {"lease": 10, "poll": 0.05, "names": None, "max_crashes": 5, **options}
        child = self._zygote.spawn("programs:worker", str(self.path), str(self.ledger), "far", *terms.values())
        self.workers[child.pid] = child
        self.wait_for(f"up {child.pid}")
        return child

    def stop(self, worker: Child) -> None:
        """Stop a worker between its writes.

        One that is stopped inside a transaction holds the store until it goes on, which no file database can avoid:
        everybody would wait for it, and this test is about what happens when nobody has to.
        """
        lock = os.stat(f"{self.path}-lock").st_ino
        ends = time.monotonic() + 10
        while True:
            worker.kill(signal.SIGSTOP)
            while Path(f"/proc/{worker.pid}/stat").read_text().rpartition(") ")[2][0] != "T":
                time.sleep(0.001)
            # Asked of the kernel's table: a probe of ours would give up our own lock by closing its handle.
            locks = [line.split() for line in Path("/proc/locks").read_text().splitlines() if "->" not in line]
            if not any(int(one[4]) == worker.pid and one[5].endswith(f":{lock}") for one in locks):
                return
            assert time.monotonic() < ends, "it writes all the time"
            worker.kill(signal.SIGCONT)
            time.sleep(0.003)

    def lines(self, start: str) -> list[str]:
        written = self.ledger.read_text().splitlines() if self.ledger.exists() else []
        return [line for line in written if line.startswith(start)]

    def wait_for(self, start: str) -> None:
        ends = time.monotonic() + 10
        while not self.lines(start):
            assert time.monotonic() < ends, f"nobody wrote {start!r}: {self.lines('')}"
            time.sleep(0.002)

    async def begun(self, name: str, other_than: int = 0) -> int:
        """Who runs `name`: the pid of the latest who began."""
        pids: list[int] = []

        def look() -> bool:
            pids[:] = [int(line.split()[2]) for line in self.lines(f"begin {name} ")]
            return bool(pids) and pids[-1] != other_than

        await until(look)
        return pids[-1]

    def go(self) -> None:
        Path(f"{self.ledger}.go").touch()

    def stop_going(self) -> None:
        Path(f"{self.ledger}.go").unlink()

    def log(self) -> str:
        return Path(f"{self.ledger}.log").read_text()

    def play(self, main: Callable[[dasync.EventLoop], Any], **options: Any) -> Any:
        return World(str(self.path), None).play(main, **{"poll": 0.05, **options})


def site_in(zygote: Zygote, folder: Path) -> Iterator[Site]:
    """A site whose workers end with it, stopped or not."""
    site = Site(zygote, folder)
    yield site
    for child in site.workers.values():
        if child._status is None:
            os.kill(child.pid, signal.SIGCONT)
            child.kill()


def far(function: Any) -> Any:
    return function.options(on="far")
