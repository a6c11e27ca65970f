"""Who goes on: the one decision of a simulated world, as objects that can be handed in.

`Seeded` draws from a seed, `Priorities` looks for bugs that take few changes of place, `Fifo` is the order of asyncio,
`Scripted` is a list of choices. What is chosen among is not known here.
"""

from __future__ import annotations

from typing import Protocol

from dasync.system import stream


class Policy(Protocol):
    """The one place where it is decided what happens next."""

    def process(self, names: list[str]) -> int:
        """Which of these processes goes on: an index."""

    def callback(self, ready: int) -> int:
        """Which of so many ready callbacks of it, if that one may overtake the others: an index."""


class Fifo:
    """Each process in turn, and asyncio's own order within it."""

    def __init__(self) -> None:
        self._turn = 0

    def process(self, names: list[str]) -> int:
        self._turn += 1
        return self._turn % len(names)

    def callback(self, ready: int) -> int:
        return 0


class Seeded:
    """Any process, and any execution of it."""

    def __init__(self, seed: bytes, disorder: float = 0.1) -> None:
        self._draws = stream(seed)
        self._disorder = disorder
        """How often a task is to be taken out of its turn, before those of other executions."""

    def process(self, names: list[str]) -> int:
        return int(self._draws.random() * len(names))

    def callback(self, ready: int) -> int:
        draws = self._draws
        return 0 if ready == 1 or draws.random() >= self._disorder else int(draws.random() * ready)


class Priorities:
    """PCT: processes have random priorities, which change a few times; the highest one goes on. A bug that takes few
    such changes is found with a probability that can be stated."""

    def __init__(self, seed: bytes, changes: int = 3, horizon: int = 20_000) -> None:
        self._draws = stream(seed)
        self._ranks: dict[str, float] = {}
        self._changes = {self._draws.randrange(horizon) for _ in range(changes)}
        self._tick = 0

    def process(self, names: list[str]) -> int:
        self._tick += 1
        for name in names:
            if name not in self._ranks:
                self._ranks[name] = self._draws.random()
        best = max(range(len(names)), key=lambda at: self._ranks[names[at]])
        if self._tick in self._changes:
            self._ranks[names[best]] = -self._tick
        return best if self._tick % 64 else self._tick // 64 % len(names)  # nobody waits for ever for one that spins

    def callback(self, ready: int) -> int:
        return 0


class Scripted:
    """The choices of a list; when it is used up, the first of each."""

    def __init__(self, choices: list[int]) -> None:
        self._choices = iter(choices)

    def process(self, names: list[str]) -> int:
        return next(self._choices, 0) % len(names)

    def callback(self, ready: int) -> int:
        return next(self._choices, 0) % ready
