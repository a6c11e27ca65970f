"""What a step reads and what it decides: the shapes that `machine.step` takes and gives.

Nothing here decides. A `View` shows rows as they stand before a step; a `Transition` holds the answer, the
records that change and the messages to send.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from dasync.core.model import CallbackRecord, ListenerRecord, ProcessRecord, PromiseRecord, Record, TaskRecord
from dasync.core.protocol import Message, Reply


class Records(Protocol):
    """The rows as they stand before a step. Sequences are in a fixed order, the same in every store."""

    def promise(self, id: str) -> PromiseRecord | None:
        """The promise of that id."""

    def task(self, id: str) -> TaskRecord | None:
        """The task of that id."""

    def process(self, id: str) -> ProcessRecord | None:
        """The live process of that id."""

    def callbacks(self, awaited: str) -> Sequence[CallbackRecord]:
        """The executions that wait on a promise, by awaiter."""

    def listeners(self, promise: str) -> Sequence[ListenerRecord]:
        """The processes that wait on a promise, by process."""

    def children(self, creator: str) -> Sequence[PromiseRecord]:
        """The promises created under one task and named below it, by id."""

    def below(self, id: str) -> Sequence[PromiseRecord]:
        """The pending promises named below one, whoever created them, by id."""

    def under(self, id: str) -> Sequence[PromiseRecord]:
        """Every promise named below one, whoever created it, by id."""

    def held(self, process: str) -> Sequence[TaskRecord]:
        """The tasks that a process has acquired, by id."""

    def holding(self, process: str) -> tuple[int, int]:
        """How many tasks a process has acquired, and the sum of their versions."""

    def listening(self, process: str) -> Sequence[ListenerRecord]:
        """What a process listens to, by promise."""

    def news(self, process: str) -> Sequence[ListenerRecord]:
        """What of that has happened and is not acknowledged."""

    def kinds(self, targets: tuple[str, ...]) -> Sequence[tuple[str, int]]:
        """Names and versions of the functions that pending tasks of those targets need, in this order, each once."""

    def acquirable(
        self, targets: tuple[str, ...], functions: tuple[tuple[str, int], ...], limit: int
    ) -> Sequence[TaskRecord]:
        """The `limit` oldest pending tasks of each of those functions, in those targets: function by function as named,
        oldest first, then by id."""

    def due(self, now: int, limit: int) -> Sequence[PromiseRecord]:
        """Pending promises whose deadline has passed, by deadline, then by id."""

    def latest_turn(self, id: str) -> int:
        """The latest turn of what is settled and named below a promise; 0: nothing is."""


class View(Records, Protocol):
    """What a step may look at."""

    @property
    def turn(self) -> int:
        """The number of the commit that the step will be part of: later ones have higher numbers."""


class Move(NamedTuple):
    """One record before and after; None before: born; None after: removed."""

    before: Record | None
    after: Record | None


class Transition(NamedTuple):
    """What a step decided."""

    reply: Reply
    moves: tuple[Move, ...] = ()
    messages: tuple[Message, ...] = ()
