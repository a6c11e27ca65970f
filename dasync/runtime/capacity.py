"""The tasks that this process holds, and its room for more.

A task whose executions only wait for what is settled elsewhere takes no room: else a thousand parents that wait for
their remote children would keep those children from being acquired. It acquires nothing itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import islice

from dasync.runtime.held import Held

SPARE_SHARE = 16  # of those that may stay, a sixteenth goes along when some must go


class Capacity:
    """How many tasks run here, of how many that may."""

    def __init__(self, concurrency: int, max_resident: int, freed: Callable[[], None]) -> None:
        self.held: dict[str, Held] = {}
        """By id; those that only wait too."""
        self._concurrency = concurrency
        self._max_resident = max_resident
        self._freed = freed
        self._waiting: dict[str, None] = {}  # the longest waiting first
        self._reserved = 0

    @property
    def room(self) -> int:
        """How many more tasks may run here."""
        return max(0, self._concurrency - len(self.held) + len(self._waiting) - self._reserved)

    def shut(self) -> None:
        """There is no more room, whatever ends."""
        self._concurrency = 0

    @property
    def is_shut(self) -> bool:
        """Whether nothing more may run here."""
        return self._concurrency == 0

    def reserve(self, wanted: int = 1) -> int:
        """Keep room for tasks that are about to be acquired: for how many there is; `unreserve` ends that."""
        granted = min(self.room, wanted)
        self._reserved += granted
        return granted

    def unreserve(self, granted: int = 1) -> None:
        """The tasks are here, or will not come."""
        self._reserved -= granted

    def hold(self, held: Held) -> None:
        """A task runs here from now on."""
        self.held[held.id] = held

    def let_go(self, held: Held) -> None:
        """It does no more."""
        if self.held.get(held.id) is held:
            del self.held[held.id]
            self._waiting.pop(held.id, None)
            self._freed()

    def waiting(self, held: Held, waits: bool) -> None:
        """A task only waits for what is settled elsewhere, or does so no longer."""
        if not waits:
            self._waiting.pop(held.id, None)
        elif self.held.get(held.id) is held:
            self._waiting[held.id] = None
            self._freed()

    def too_many(self) -> list[Held]:
        """Those that only wait, beyond the number that may stay here: the longest waiting.

        Somewhat more than must go, so that a growing crowd is not looked through for each who comes.
        """
        excess = len(self._waiting) - self._max_resident
        spare = self._max_resident // SPARE_SHARE if excess > 0 else 0
        return [self.held[id] for id in islice(self._waiting, max(0, excess + spare))]

    def postpone(self, tasks: Iterable[Held]) -> None:
        """These do something besides waiting: their turn to go comes after those that do not."""
        for held in tasks:
            if held.id in self._waiting:
                self._waiting[held.id] = self._waiting.pop(held.id)

    @property
    def crowded(self) -> bool:
        """Whether more tasks only wait than may stay here."""
        return len(self._waiting) > self._max_resident
