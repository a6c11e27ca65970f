"""The law over rows in memory, at a time set by hand: no loop, no store.

Commands go through `run_batch`, so `dasync.stores.rows.machine` may be swapped for another machine, and
`dasync.core.invariants.hold` looks at each transition.
"""

from __future__ import annotations

from collections.abc import Iterable

from clocks import T0

from dasync.core import protocol as p
from dasync.core.invariants import Snapshot, inspect
from dasync.core.model import PromiseRecord, State, TaskRecord
from dasync.stores import rows
from dasync.stores.memory import MemoryRows
from dasync.stores.rows import Changes

LEASE = 10_000
FUNCTIONS = (("f", 1),)


def join(process: str = "me", group: str = "g", lease_ms: int = LEASE) -> p.ProcessJoin:
    return p.ProcessJoin(process, f"{process}-name", group, "host", f"bell:{process}", lease_ms)


def create(id: str, target: str | None = None, **more: object) -> p.PromiseCreate:
    """A promise that is computed by `f` where it has a target, and settled from outside where it has none."""
    return p.PromiseCreate(id, function="f" if target else "", target=target, **more)  # type: ignore[arg-type]


def acquire(process: str = "me", *targets: str, limit: int = 10, python: str = "") -> p.TaskAcquire:
    return p.TaskAcquire(process, targets or ("g",), FUNCTIONS, limit, python)


def resolve(id: str, value: bytes | None = b"v") -> p.PromiseSettle:
    return p.PromiseSettle(id, State.RESOLVED, value)


def claim(id: str = "t", version: int = 1, process: str = "me") -> p.Claim:
    return p.Claim(id, version, process)


def fulfill(held: p.Claim, value: bytes | None = b"v") -> p.TaskFulfill:
    return p.TaskFulfill(held, State.RESOLVED, value)


class KeyedRows(MemoryRows):
    """Rows whose keys are unique, as a database has it: what is born is not there yet."""

    def write(self, changes: Changes) -> None:
        assert not [promise for promise in changes.promises_born if self.promise(promise.id)]
        assert not [task for task in changes.tasks_born if self.task(task.id)]
        assert not [callback for callback in changes.callbacks_born if callback in self.callbacks(callback.awaited)]
        super().write(changes)


class World:
    """`do` commands, look at what became of them."""

    def __init__(self, *commands: p.Command) -> None:
        self.rows = KeyedRows()
        self.now = T0
        self.turn = 0
        self.rung: tuple[str, ...] = ()
        if commands:
            self.do(*commands)

    def do(self, *commands: p.Command) -> p.Reply:
        """One batch; the answer to its last command. Whatever was done, the whole state is legal after it."""
        self.turn += 1
        committed = rows.run_batch(self.rows, self.now, self.turn, commands)
        self.rung = tuple(committed.doorbells)
        assert inspect(self.snapshot()) == []
        return committed.replies[-1]

    def after(self, *commands: p.Command) -> World:
        """The same world once `commands` are done."""
        self.do(*commands)
        return self

    def snapshot(self) -> Snapshot:
        return self.rows.snapshot()

    def promise(self, id: str) -> PromiseRecord:
        found = self.rows.promise(id)
        assert found is not None
        return found

    def task(self, id: str) -> TaskRecord:
        found = self.rows.task(id)
        assert found is not None
        return found

    def states(self, ids: Iterable[str]) -> list[str]:
        return [self.promise(id).state.value for id in ids]
