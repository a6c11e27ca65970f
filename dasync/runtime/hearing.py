"""Hearing: a process that writes hears, with the same commit, of everything that was settled before.

An execution takes outcomes in the order of the commits that settled them, and a replay has all of them from the start.
So nobody may take an outcome while an earlier one is on its way to him: what he does next would follow from another
order than his replay sees. Doorbells are quicker than this and may be lost; this cannot be.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from dasync.core.model import PromiseRecord
from dasync.core.protocol import Receive, Reply


class Hearing:
    """The entry that goes along with every batch of a process that runs anything: what it has heard, what is new."""

    def __init__(
        self, process: Callable[[], str], runs: Callable[[], bool], tell: Callable[[Sequence[PromiseRecord]], None]
    ) -> None:
        self._process = process
        self._runs = runs
        self._tell = tell
        self._heard: dict[str, None] = {}
        self._acknowledged: tuple[str, ...] = ()
        self.queued = False
        """Whether it waits for a batch: there is something to acknowledge."""

    def heard(self, ids: Iterable[str]) -> None:
        """These need not be told again."""
        self._heard |= dict.fromkeys(ids)

    def is_wanted(self) -> bool:
        """Whether the next batch is to take it along."""
        return self.queued or self._runs()

    # -- the journal's side

    def command(self) -> Receive:
        self.queued = False
        self._acknowledged = tuple(self._heard)
        return Receive(self._process(), self._acknowledged)

    def replied(self, reply: Reply) -> None:
        for id in self._acknowledged:
            del self._heard[id]
        self._acknowledged = ()
        if reply.settled:
            self._tell(reply.settled)

    def failed(self, error: BaseException, *, final: bool) -> bool:
        return final
