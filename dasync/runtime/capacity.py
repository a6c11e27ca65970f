"""The tasks that this process holds, and its room for more.

A task whose executions only wait for what is settled elsewhere takes no room: else a thousand parents that wait for
their remote children would keep those children from being acquired. It acquires nothing itself.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice

from dasync.runtime.held import Held

MAX_BUSY = 100  # tasks that are found to do more than wait, in one look for those that may go


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

    def too_many(self, only_waits: Callable[[Held], object]) -> list[Held]:
        """Those beyond the number that may stay here, of which `only_waits` holds: the longest waiting."""
        going: list[Held] = []
        excess = max(0, len(self._waiting) - self._max_resident)
        for id in list(islice(self._waiting, excess + MAX_BUSY)):
            held = self.held[id]
            if len(going) == excess:
                break
            if only_waits(held):
                going.append(held)
            else:  # it does something besides: its turn comes after those that do not
                self._waiting[id] = self._waiting.pop(id)
        return going

    @property
    def crowded(self) -> bool:
        """Whether more tasks only wait than may stay here."""
        return len(self._waiting) > self._max_resident
