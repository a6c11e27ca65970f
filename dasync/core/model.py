"""What exists: the records that a store keeps, and their states.

Records are immutable tuples: one row of one table each, in the order of the table's columns. They hold
no behaviour beyond what follows from their own fields; every change of them is made in `machine.py`.
Times are integers in milliseconds since the epoch.
"""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple


class State(StrEnum):
    """What a promise has come to."""

    PENDING = "pending"
    RESOLVED = "resolved"
    REJECTED = "rejected"
    CANCELED = "canceled"
    TIMEDOUT = "timedout"


class TaskState(StrEnum):
    """How the claim on a promise stands."""

    PENDING = "pending"
    ACQUIRED = "acquired"
    SUSPENDED = "suspended"
    HALTED = "halted"
    FULFILLED = "fulfilled"


class PromiseRecord(NamedTuple):
    """A durable promise. Everything but the last four fields is fixed at birth."""

    id: str
    function: str
    """Registered name of what computes it; empty for one that somebody outside settles."""
    version: int
    param: bytes
    """The encoded arguments."""
    target: str | None
    """Where it may run, `group` or `group/process`; None: within the execution that created it."""
    creator: str | None
    """Id of the task whose execution created it; None for a root."""
    timer: bool
    """A timer resolves at its deadline; any other promise times out."""
    timeout_at: int | None
    tags: str
    """A canonical JSON object of strings, or empty. Opaque here."""
    created_at: int
    born_after: int
    """The turn that its creator's execution had taken last when it made this; 0: none yet."""
    state: State
    settled_at: int | None
    value: bytes | None
    """The encoded result or error."""
    turn: int | None
    """The number of the commit that settled it. An execution takes the outcomes of what it has made turn by turn, in
    the order of these numbers; those of one commit are one turn."""


class TaskRecord(NamedTuple):
    """The claim on a targeted promise: same id, one to one."""

    id: str
    target: str
    function: str
    function_version: int
    seed: bytes
    """Where the random streams of its execution start."""
    created_at: int
    state: TaskState
    version: int
    """The fencing token: raised by each acquire and by nothing else."""
    process: str | None
    """Who holds it, while acquired."""
    python: str
    """Minor version of the Python that first ran it, as `3.11`; empty before. asyncio's task tree differs by it."""
    resumed: bool
    """Something that it awaits was settled since it was acquired: a suspend is answered with "run again"."""
    reason: str = ""
    """Why it is halted, as it was told; empty in any other state."""
    crashes: int = 0
    """How many processes in a row have ended while they ran this very task, with nothing new on record below it."""
    crashed_at: int = 0
    """The latest turn on record below it when that happened last."""


class CallbackRecord(NamedTuple):
    """An execution waits: when `awaited` settles, the task `awaiter` is resumed."""

    awaited: str
    awaiter: str


class ListenerRecord(NamedTuple):
    """Somebody outside waits: when `promise` settles, `process` is told.

    It fires once, in the transition that settles, and stays until the process has acknowledged it: a
    lost wake-up costs time, never the news.
    """

    promise: str
    process: str
    fired: bool


class ProcessRecord(NamedTuple):
    """A live process and its lease, under which it holds tasks.

    A lease is time, and no clock is the same in two processes; so none is written down. Whoever has seen `renewed_at`
    unchanged for `lease_ms` of its own monotonic clock may say that the process is gone.
    """

    id: str
    """One incarnation: a process that joins again is another one."""
    name: str
    """What a target `group/name` addresses; it may outlive an incarnation."""
    group: str
    host: str
    """The machine: only processes of one machine can see each other's record locks."""
    address: str
    """Where its doorbell is; empty: it has none and polls."""
    lease_ms: int
    renewed_at: int
    """When it has renewed its lease last, by its own wall clock, and always later than before: it is compared with
    what was seen of it, and with no clock."""


Record = PromiseRecord | TaskRecord | CallbackRecord | ListenerRecord | ProcessRecord

SETTLED = frozenset({State.RESOLVED, State.REJECTED, State.CANCELED, State.TIMEDOUT})
