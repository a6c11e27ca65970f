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
    """What a doorbell is rung for: whoever is told looks for that alone. One member of a group is told of a task."""

    TASKS = 1
    """There may be tasks to acquire."""
    NEWS = 2
    """Something that the process listens to is settled."""


class Bell(NamedTuple):
    """What one process is told when its doorbell is rung."""

    ring: Ring
    news: tuple[PromiseRecord, ...] = ()
    """All that is news to it, as it is in the store. A transport may leave it out: then it is read from there."""
    passed: int = 0
    """How many processes have passed it on, having no room for a task."""


class Committed(NamedTuple):
    """A batch that is durable: one reply per command, and the doorbells to ring, by address."""

    replies: list[Reply]
    doorbells: Mapping[str, Bell]


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
    reason: str = ""
    """Why it is halted, if it is."""


class News(NamedTuple):
    """What a process is to be told of promises that it listens to."""

    settled: list[PromiseRecord]
    gone: list[str]
    """Ids of those that are no more: what had made them has started over."""


class Around(NamedTuple):
    """What a process finds around it."""

    processes: list[ProcessRecord]
    next_due: int | None
    """When the next deadline comes due (ms)."""
    has_tasks: bool
    """Whether any pending task is for it."""
    missing: list[tuple[str, int]]
    """Functions that pending tasks of its targets need and that it does not have."""
    waiting: list[str]
    """The targets of all pending tasks, if it was asked anyway."""
    changed: bool
    """Whether another connection has written since this was last asked."""


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

    async def search(self, search: Search = ...) -> list[Found]:
        """Promises in the order of their ids."""

    async def subtree(self, id: str) -> Snapshot:
        """A promise and all below it, with their tasks, who waits for them and what they wait for."""

    async def news(self, process: str) -> News:
        """What `process` wanted to be told of and has not acknowledged."""

    async def around(
        self, targets: tuple[str, ...], functions: tuple[tuple[str, int], ...], *, anyway: bool = False
    ) -> Around | None:
        """What a process of those targets and functions finds around it; None, unless `anyway`: another connection
        has not written since this was last asked. One small read, so that it can be asked for ever."""

    async def processes(self) -> list[ProcessRecord]:
        """The processes that the store counts as live, by id."""

    async def backlog(self) -> list[Backlog]:
        """The tasks that are not fulfilled, counted: few rows, however many tasks. Reads every task once."""

    async def snapshot(self) -> Snapshot:
        """All rows."""


class Box(Protocol):
    """Bytes of a fixed number that are still to be read when this process is gone."""

    def __len__(self) -> int: ...

    def __setitem__(self, at: slice, value: bytes, /) -> None: ...


class Transport(Protocol):
    """How processes wake each other, and how one's death is seen."""

    box: Box
    """Where this process says what it is running."""

    @property
    def host(self) -> str:
        """The machine that this process is on."""

    async def open(self, process: str, on_ring: Callable[[Bell], None]) -> str:
        """Come alive as `process`; gives the address of its doorbell. `on_ring` is called for each ring."""

    def ring(self, doorbells: Mapping[str, Bell]) -> None:
        """Wake whoever is there; never waits, may be lost."""

    def dead(self, processes: Sequence[ProcessRecord]) -> list[str]:
        """Ids of those among `processes` that certainly live no more."""

    def ran(self, process: ProcessRecord) -> tuple[bytes, ...]:
        """What that process was running when it said so last: the marks of tasks, none where it cannot be told."""

    def bury(self, process: str) -> None:
        """Clear away what a dead process left behind."""

    def tidy(self, processes: Sequence[ProcessRecord]) -> None:
        """Clear away what processes left behind that died without being among `processes`, long ago."""

    async def close(self, *, left: bool) -> None:
        """Take the doorbell away; idempotent. Unless the process has `left`, for all to see in the store, the others
        are to find out that it is gone."""
