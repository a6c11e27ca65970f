"""What can be said: commands, replies and messages, valid from the moment they are made.

Two alphabets, kept apart. A **command** is what somebody asks for. A **due** thing is what a store does by
itself when time has passed. Kinds follow the public protocol of durable promises; the ones that it does
not have begin with `dasync.`. This file says what is well said, never what happens.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

from dasync.core import ids
from dasync.core.model import SETTLED, PromiseRecord, State, TaskRecord

MAX_NAME_CHARS = 256  # functions, groups and processes
MAX_VERSION = 2**31 - 1  # of a function
MAX_ACQUIRE = 1_000  # tasks in one acquire: bounds one transaction
MAX_AWAITED = 100_000  # promises that one execution may be suspended on
AGAIN = "dasync.again"  # the function of what keeps the arguments of an execution that has started over
MAX_REASON_BYTES = 16_384  # of UTF-8: why a task was halted
MAX_CRASHES = 5  # of one task, in a row, unless somebody says otherwise
MAX_RAN = 1_000  # tasks whose code can run at one moment: one on the asyncio loop, the others in threads
POISON = "poisoned: "  # what the reason of such a task begins with
POISONED = (
    POISON + "{crashes} processes in a row have ended while this ran, the last of them {process}, and nothing new was"
    " recorded; put right what ends them, then send it again"
)
POISONED_POOL = (
    POISON + "{crashes} processes of the pool in a row have ended while {function!r} of {id!r} ran ({last}); put right"
    " what ends them, then send it again"
)
MAX_TIME_MS = 253_402_300_799_000  # the last instant that datetime can show (year 9999)


class Status(IntEnum):
    """How a command ended; the numbers are those of the public protocol."""

    OK = 200
    CREATED = 201
    RUN_AGAIN = 300
    INVALID = 400
    NOT_FOUND = 404
    CONFLICT = 409
    UNPROCESSABLE = 422


class Claim(NamedTuple):
    """Proof of holding a task: checked in the transaction of every write made under it."""

    id: str
    version: int
    process: str


class Acquired(NamedTuple):
    """A task that was just acquired, with what its execution needs to be replayed."""

    task: TaskRecord
    promise: PromiseRecord
    preload: tuple[PromiseRecord, ...]


class Reply(NamedTuple):
    """The answer to one command. `reason` says why a command was refused."""

    status: Status
    promise: PromiseRecord | None = None
    task: TaskRecord | None = None
    acquired: tuple[Acquired, ...] = ()
    held: Mapping[str, int] | None = None
    """Heartbeat: versions of the tasks that the store believes the process to hold, by task id; None: as it knows."""
    settled: tuple[PromiseRecord, ...] = ()
    poisoned: tuple[TaskRecord, ...] = ()
    """Leave: the tasks that have ended their process too often."""
    reason: str = ""


class Execute(NamedTuple):
    """Message to a target: this task can be acquired."""

    target: str
    task: str


class Settled(NamedTuple):
    """Message to a process: a promise that it listens to is settled."""

    process: str
    promise: str


Message = Execute | Settled


def _name(what: str, value: str) -> None:
    if not 1 <= len(value) <= MAX_NAME_CHARS or not value.isprintable():
        raise ValueError(f"{what} is 1 to {MAX_NAME_CHARS} printable characters, not {value!r}")


def _looked_up(id: str) -> None:
    """Any id may be asked for; one that no row could hold is refused before it reaches a batch."""
    if not id.isprintable():
        raise ValueError(f"{id!r} is not the id of anything: it holds characters that cannot be printed")


def _tags(tags: str) -> bool:
    try:
        held = json.loads(tags)
    except ValueError:
        return False
    return isinstance(held, dict) and all(isinstance(value, str) for value in held.values())


def check_target(target: str) -> str:
    """Give back `target` if it is `group` or `group/process`."""
    _name("a target", target)
    group, slash, process = target.partition("/")
    if not group or (slash and not process):
        raise ValueError(f"a target is 'group' or 'group/process', not {target!r}")
    return target


def cut_reason(text: str) -> str:
    """`text` as a reason may be: UTF-8, of limited length."""
    return text.encode("utf-8", "backslashreplace")[:MAX_REASON_BYTES].decode("utf-8", "ignore")


@dataclass(frozen=True, slots=True)
class PromiseGet:
    """`promise.get`: the promise as it is at this moment."""

    id: str
    claim: Claim | None = None
    """Under which somebody asks: if its deadline settles the promise now, the answer alone tells him."""

    def __post_init__(self) -> None:
        _looked_up(self.id)


@dataclass(frozen=True, slots=True)
class PromiseCreate:
    """`promise.create`: make a pending promise; with a target also its task.

    `awaiter` (a task) or `listener` (a process) wait for it from birth: promise and waiter come into being
    together or not at all (`dasync.create_and_wait`). With another `state` than pending it is born settled
    (`dasync.record`): a child that was done before its pending record left is written once.
    """

    id: str
    function: str = ""
    version: int = 1
    param: bytes = b""
    target: str | None = None
    timer: bool = False
    timeout_at: int | None = None
    tags: str = ""
    seed: bytes = b""
    awaiter: str | None = None
    listener: str | None = None
    state: State = State.PENDING
    value: bytes | None = None
    invoked_at: int | None = None
    """When it was invoked, for one that is born settled; None: now."""
    born_after: int = 0
    """The turn that the execution which makes it had taken last."""
    fresh: bool = False
    """Its id was drawn at random for it just now: a store need not fear that damage hides one of that id."""

    def __post_init__(self) -> None:
        ids.check(self.id)
        if self.function:
            _name("a function", self.function)
        if not 0 <= self.version <= MAX_VERSION:
            raise ValueError(f"{self.id!r}: a version is 0 to {MAX_VERSION}, not {self.version}")
        if self.tags and not _tags(self.tags):
            raise ValueError(f"{self.id!r}: tags are a JSON object of strings, not {self.tags[:80]!r}")
        if self.target is not None:
            check_target(self.target)
            if self.timer:
                raise ValueError(f"{self.id!r}: a timer runs nowhere, so it has no target")
            if not self.function:
                raise ValueError(f"{self.id!r}: a promise with a target needs a function to run there")
        if self.state is not State.PENDING and (self.target or self.timer or self.awaiter or self.listener):
            raise ValueError(f"{self.id!r}: a promise that is born settled runs nowhere and nobody waits for it")
        if self.state is State.TIMEDOUT or (self.value is not None and self.state is State.PENDING):
            raise ValueError(f"{self.id!r}: nobody creates a promise as {self.state.value} with this value")
        if self.timer and self.timeout_at is None:
            raise ValueError(f"{self.id!r}: a timer needs a deadline")
        if self.timeout_at is not None and not 0 <= self.timeout_at <= MAX_TIME_MS:
            raise ValueError(f"{self.id!r}: deadline {self.timeout_at} ms is outside 0 to {MAX_TIME_MS}")


@dataclass(frozen=True, slots=True)
class PromiseSettle:
    """`promise.settle`: resolve, reject or cancel. A settled promise stays as it is and is the answer."""

    id: str
    state: State
    value: bytes | None = None

    def __post_init__(self) -> None:
        _looked_up(self.id)
        if self.state is State.PENDING or self.state is State.TIMEDOUT:
            raise ValueError(f"{self.id!r}: nobody settles a promise as {self.state.value}; only its deadline does")


@dataclass(frozen=True, slots=True)
class PromiseCancel:
    """`dasync.cancel`: cancel a promise and, before it, the pending ones below it that its execution made.

    What stands alone (a shared or a detached promise) and what somebody outside settles is spared. `value` is the
    encoded reason. A settled promise stays as it is and is the answer.
    """

    id: str
    value: bytes | None = None

    def __post_init__(self) -> None:
        _looked_up(self.id)


@dataclass(frozen=True, slots=True)
class PromiseAgain:
    """`dasync.again`: an execution starts over. What its last run has made goes, the arguments of the next one come.

    `id` is what keeps them, below the promise that is computed; that one stays as it is, with those who wait for it.
    What stands alone is spared. If the promise is settled, it is the answer.
    """

    id: str
    param: bytes

    def __post_init__(self) -> None:
        ids.check(self.id)
        if not ids.number_of_run(self.id):
            raise ValueError(f"{self.id!r} is not the id of what keeps the arguments of a run, as order-42:@1 is")


@dataclass(frozen=True, slots=True)
class RegisterCallback:
    """`promise.register_callback`: resume the task `awaiter` when `awaited` settles.

    Answered as created where that is new; one that was registered before, or is of no use any more, is as it was.
    """

    awaited: str
    awaiter: str

    def __post_init__(self) -> None:
        _looked_up(self.awaited + self.awaiter)
        if self.awaited == self.awaiter:
            raise ValueError(f"{self.awaited!r} cannot await itself")


@dataclass(frozen=True, slots=True)
class RegisterListener:
    """`promise.register_listener`: tell `process` when the promise settles."""

    promise: str
    process: str

    def __post_init__(self) -> None:
        _looked_up(self.promise)


@dataclass(frozen=True, slots=True)
class TaskGet:
    """`task.get`: the task as it is."""

    id: str

    def __post_init__(self) -> None:
        _looked_up(self.id)


@dataclass(frozen=True, slots=True)
class TaskCreate:
    """`task.create`: create a targeted promise and acquire its task at once."""

    process: str
    action: PromiseCreate
    python: str = ""

    def __post_init__(self) -> None:
        if self.action.target is None:
            raise ValueError(f"{self.action.id!r}: a task needs a target")


class Room(NamedTuple):
    """How many tasks of some functions, of all of these together, a process has room for."""

    functions: tuple[str, ...]
    tasks: int


@dataclass(frozen=True, slots=True)
class TaskAcquire:
    """`dasync.acquire`: claim up to `limit` pending tasks of `targets` that run one of `functions`.

    Of each function the oldest, one in turn, in the order in which they are named; and no more of the functions of one
    of the `rooms` than that has room for.
    """

    process: str
    targets: tuple[str, ...]
    functions: tuple[tuple[str, int], ...]
    limit: int
    python: str = ""
    rooms: tuple[Room, ...] = ()

    def __post_init__(self) -> None:
        if not 1 <= self.limit <= MAX_ACQUIRE:
            raise ValueError(f"an acquire takes 1 to {MAX_ACQUIRE} tasks, not {self.limit}")
        if any(room.tasks < 1 for room in self.rooms):
            raise ValueError("an acquire names functions that there is room for, and no others")


@dataclass(frozen=True, slots=True)
class TaskFence:
    """`task.fence`: do `action` only while the claim holds."""

    claim: Claim
    action: PromiseCreate | PromiseSettle | PromiseCancel | PromiseAgain

    def __post_init__(self) -> None:
        if self.action.id == self.claim.id:
            raise ValueError(f"{self.action.id!r}: a task settles its own promise by task.fulfill, not under its fence")


@dataclass(frozen=True, slots=True)
class TaskSuspend:
    """`task.suspend`: give the claim back until one of `awaited` settles."""

    claim: Claim
    awaited: tuple[str, ...]

    def __post_init__(self) -> None:
        if not 1 <= len(self.awaited) <= MAX_AWAITED:
            raise ValueError(f"a suspend awaits 1 to {MAX_AWAITED} promises, not {len(self.awaited)}")
        if self.claim.id in self.awaited:
            raise ValueError(f"{self.claim.id!r} cannot await itself")


@dataclass(frozen=True, slots=True)
class TaskFulfill:
    """`task.fulfill`: settle the task's own promise and be done."""

    claim: Claim
    state: State
    value: bytes | None = None

    def __post_init__(self) -> None:
        if self.state not in SETTLED or self.state is State.TIMEDOUT:
            raise ValueError(f"{self.claim.id!r}: a task is not fulfilled as {self.state.value}")


@dataclass(frozen=True, slots=True)
class TaskRelease:
    """`task.release`: give the claim back; the task is sent again at once."""

    claim: Claim


@dataclass(frozen=True, slots=True)
class TaskHalt:
    """`task.halt`: take the task from whoever has it, until it is continued. One that is halted stays as it is."""

    id: str
    reason: str = ""
    """Why, for who is to put it right; `cut_reason` makes any text fit."""

    def __post_init__(self) -> None:
        _looked_up(self.id)
        if cut_reason(self.reason) != self.reason:
            raise ValueError(f"{self.id!r}: a reason is text of at most {MAX_REASON_BYTES} bytes")


@dataclass(frozen=True, slots=True)
class TaskContinue:
    """`task.continue`: send a halted task again."""

    id: str

    def __post_init__(self) -> None:
        _looked_up(self.id)


@dataclass(frozen=True, slots=True)
class ProcessJoin:
    """`dasync.join`: come alive under a lease. An id is used for one incarnation only."""

    process: str
    name: str
    group: str
    host: str
    address: str
    lease_ms: int

    def __post_init__(self) -> None:
        _name("a process id", self.process)
        _name("a process name", self.name)
        _name("a group", self.group)
        if "/" in self.group:
            raise ValueError(f"a group holds no '/': {self.group!r}; 'group/process' addresses one process")
        if not 1 <= self.lease_ms <= 86_400_000:
            raise ValueError(f"a lease is 1 ms to one day, not {self.lease_ms} ms")


@dataclass(frozen=True, slots=True)
class ProcessHeartbeat:
    """`dasync.heartbeat`: renew the lease. The reply names every task that the store counts as held, if these are not
    as many, or not of such versions, as the process knows of."""

    process: str
    knows: tuple[int, int] = (0, 0)
    """The number of tasks that the process holds, and the sum of their versions."""


@dataclass(frozen=True, slots=True)
class ProcessLeave:
    """`dasync.leave`: the process is gone, by its own word or as somebody has seen: its tasks are sent again."""

    process: str
    renewed_at: int | None = None
    """What its lease was renewed at, if it has been silent for the whole of it since: it may have spoken meanwhile."""
    ran: tuple[bytes, ...] = ()
    """The `ids.mark` of each task whose code was running when the process ended without a word: its crash, maybe."""
    max_crashes: int = MAX_CRASHES
    """How many of them in a row a task may have until it is halted as poisoned."""

    def __post_init__(self) -> None:
        if self.max_crashes < 1 or len(self.ran) > MAX_RAN:
            raise ValueError(f"{self.process!r}: max_crashes is 1 or more, and at most {MAX_RAN} tasks ran at once")


@dataclass(frozen=True, slots=True)
class Receive:
    """`dasync.receive`: acknowledge some news and get what else has been settled for this process."""

    process: str
    acknowledged: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed: whatever is due is done, within the same transaction."""


@dataclass(frozen=True, slots=True)
class PromiseDue:
    """A deadline has come."""

    id: str


Command = (
    PromiseGet | PromiseCreate | PromiseSettle | PromiseCancel | RegisterCallback | RegisterListener
    | TaskGet | TaskCreate | TaskAcquire | TaskFence | TaskSuspend | TaskFulfill | TaskRelease | TaskHalt
    | TaskContinue | ProcessJoin | ProcessHeartbeat | ProcessLeave | Receive | Tick
)  # fmt: skip
Cause = Command | PromiseDue
"""What makes the machine step: somebody's command, or the time."""
