"""What the inside needs from any outside: a clock, entropy, a store, a transport. Protocols only.

The real ones are in `system.py`, `stores/` and `transports/`; tests and simulation hand in others. Whatever
cannot be handed in here cannot be simulated.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from enum import IntFlag
from typing import NamedTuple, Protocol

from dasync.core.invariants import Snapshot
from dasync.core.model import ProcessRecord, PromiseRecord, State, TaskRecord, TaskState
from dasync.core.protocol import Command, Reply


class Clock(Protocol):
    """Time, and waiting for it."""

    def now_ms(self) -> int:
        """Milliseconds since the epoch."""

    def monotonic(self) -> float:
        """Seconds that never step back, for measuring."""

    async def sleep(self, seconds: float) -> None:
        """Return when `seconds` have passed on this clock."""


class Entropy(Protocol):
    """Randomness."""

    def bytes(self, count: int) -> bytes:
        """`count` fresh random bytes."""


class Ring(IntFlag):
    """What a doorbell is rung for: whoever is told looks for that alone."""

    TASKS = 1
    """There may be tasks to acquire."""
    NEWS = 2
    """Something that the process listens to is settled."""


class Committed(NamedTuple):
    """A batch that is durable: one reply per command, and the doorbells to ring, by address."""

    replies: list[Reply]
    doorbells: Mapping[str, Ring]


class Found(NamedTuple):
    """One row of a search: a promise and, where it has a target, its task."""

    promise: PromiseRecord
    task: TaskRecord | None


class Search(NamedTuple):
    """Which promises to find."""

    state: State | None = None
    function: str | None = None
    id_prefix: str = ""
    tags: Mapping[str, str] | None = None
    roots: bool = False
    """Only such as no execution created."""
    task_state: TaskState | None = None
    """Only such as have a task, and that in this state."""
    limit: int = 100
    cursor: str = ""
    """Only ids after this one."""


class Backlog(NamedTuple):
    """Tasks that are not fulfilled and agree in all of this, as one row."""

    state: TaskState
    target: str
    function: str
    version: int
    process: str | None
    begun: bool
    """Whether they have been acquired before."""
    tasks: int
    oldest_at: int
    """When the oldest was made (ms)."""
    oldest: str
    """Its id."""


class Store(Protocol):
    """Keeps rows. Every change goes through `transact`, in one transaction per batch, in the batch's order."""

    @property
    def path(self) -> str | None:
        """The file, where there is one: what processes of this machine meet beside."""

    async def open(self) -> None:
        """Connect; creates the store where there is none. Raises `StoreError`."""

    async def close(self) -> None:
        """Let go of it; idempotent."""

    async def transact(self, commands: Sequence[Command]) -> Committed:
        """Decide and write `commands` as one transaction; all are durable when it returns, or none was written."""

    async def changed(self) -> bool:
        """Whether another connection has written since this was last asked."""

    async def search(self, search: Search = ...) -> list[Found]:
        """Promises in the order of their ids."""

    async def subtree(self, id: str) -> Snapshot:
        """A promise and all below it, with their tasks, who waits for them and what they wait for."""

    async def news(self, process: str) -> list[PromiseRecord]:
        """Promises that are settled, of which `process` wanted to be told and has not acknowledged it."""

    async def next_due(self) -> int | None:
        """When the next deadline or lease comes due (ms)."""

    async def missing(
        self, targets: tuple[str, ...], functions: tuple[tuple[str, int], ...]
    ) -> list[tuple[str, int]]:
        """Functions that pending tasks of `targets` need and `functions` does not have."""

    async def waiting_targets(self) -> list[str]:
        """The targets of pending tasks."""

    async def processes(self) -> list[ProcessRecord]:
        """The processes that the store counts as live, by id."""

    async def backlog(self) -> list[Backlog]:
        """The tasks that are not fulfilled, counted: few rows, however many tasks. Reads every task once."""

    async def snapshot(self) -> Snapshot:
        """All rows."""


class Transport(Protocol):
    """How processes wake each other, and how one's death is seen."""

    @property
    def host(self) -> str:
        """The machine that this process is on."""

    async def open(self, process: str, on_ring: Callable[[Ring], None]) -> str:
        """Come alive as `process`; gives the address of its doorbell. `on_ring` is called for each ring."""

    def ring(self, doorbells: Mapping[str, Ring]) -> None:
        """Wake whoever is there; never waits, may be lost."""

    def dead(self, processes: Sequence[ProcessRecord]) -> list[str]:
        """Ids of those among `processes` that certainly live no more."""

    def bury(self, process: str) -> None:
        """Clear away what a dead process left behind."""

    async def close(self) -> None:
        """Take the doorbell away; idempotent."""
