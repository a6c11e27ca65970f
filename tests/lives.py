"""Lives of the matrix's programs in processes of their own, on a file: what `Zygote.spawn` runs."""

from __future__ import annotations

from matrix import PROGRAMS

from dasync.testing.crash import Death, FileDisk
from dasync.testing.life import Life, live


def first(path: str, name: str, kind: str, schedule: str, batches: int, commands: int, heard: bool) -> None:
    """Run a program until its process ends as `Death` says; it comes back only when it never does."""
    death = Death(batches, commands, heard, leaves_process=True)
    live(PROGRAMS[name].function, FileDisk(path), schedule, kind=kind, eager=PROGRAMS[name].eager, death=death)


def second(path: str, name: str, kind: str, schedule: str) -> Life | None:
    """Resume it."""
    return live(PROGRAMS[name].function, FileDisk(path), schedule, kind=kind, eager=PROGRAMS[name].eager)
