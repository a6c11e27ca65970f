"""Small worlds in full: two promises, two workers, one awaiter, and every order of commands and of time passing.

A breadth-first search over distinct worlds. `invariants.hold` looks at each transition (in `run_batch`),
`invariants.inspect` at each world; and each one is healed: time runs out, and nothing may be left behind.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from clocks import T0
from worlds import acquire, claim, create, fulfill, join, resolve

from dasync.core import ids
from dasync.core import protocol as p
from dasync.core.invariants import Snapshot, inspect
from dasync.core.model import CallbackRecord, ListenerRecord, ProcessRecord, Record, State, TaskState
from dasync.stores import rows
from dasync.stores.memory import MemoryRows
from dasync.stores.rows import Changes

HOUR = 1000  # a step of time
HOURS = 4  # worlds go on for as many; the deadlines are over before
WORKERS = ("w1", "w2")
PAIRS = {  # the two promises: an execution, and what it awaits
    "timer": (create("t", "g"), create("t:0", timer=True, timeout_at=T0 + 2 * HOUR)),
    "external": (create("t", "g", timeout_at=T0 + 3 * HOUR), create("t:0", timeout_at=T0 + 2 * HOUR)),
    "remote": (create("t", "g", timeout_at=T0 + 3 * HOUR), create("t:0", "g")),
}

World = tuple[int, frozenset[Record]]  # its time and all of its rows


class StillRows(MemoryRows):
    """Rows that any number of batches may start from: what a batch writes is kept beside them."""

    written: Changes | None = None

    def write(self, changes: Changes) -> None:
        self.written = changes

    def load(self, changes: Changes) -> None:
        super().write(changes)


def _key(record: Record) -> object:
    return type(record), record[:2] if isinstance(record, CallbackRecord | ListenerRecord) else record[0]


def _rows(world: World) -> StillRows:
    still = StillRows()
    changes = Changes([], [], [], [], [], [], [], [], [], [], [], [])
    tables = dict(zip((15, 14, 2, 3, 7), changes[:10:2], strict=True))  # by the length of their rows
    for record in world[1]:
        tables[len(record)].append(record)  # type: ignore[arg-type]
    still.load(changes)
    return still


def _after(world: World, still: StillRows, command: p.Command, now: int) -> World | None:
    """The world once `command` is done; None: it changes nothing."""
    still.written = None
    rows.run_batch(still, now, 1, [command])
    if still.written is None:
        return None
    records = {_key(record): record for record in world[1]}
    w = still.written
    for record in (*w.callbacks_gone, *w.listeners_gone, *w.processes_gone, *w.promises_gone, *w.tasks_gone):
        del records[_key(record)]
    kept = (*w.promises_born, *w.promises_moved, *w.tasks_born, *w.tasks_moved, *w.callbacks_born, *w.listeners_kept)
    # Whether it was renewed since T0 is all that anybody asks of a lease here: else the worlds would have no end.
    renewed = [process._replace(renewed_at=min(process.renewed_at, T0 + 1)) for process in w.processes_kept]
    records.update((_key(record), record) for record in (*kept, *renewed))
    return now, frozenset(records.values())


def _commands(still: StillRows, root: p.PromiseCreate, child: p.PromiseCreate) -> Iterator[p.Command]:
    """Everything that anybody may say in this world, stale claims included."""
    yield from (root, p.Tick(), p.PromiseGet("t"))
    for worker in WORKERS:
        yield from (acquire(worker, limit=1), p.ProcessHeartbeat(worker))
    yield from (p.ProcessLeave("w1", None, (ids.mark("t"),), 2), p.ProcessLeave("w2", T0))
    yield from (p.TaskCreate("w1", root), p.RegisterListener("t", "w1"), p.Receive("w1", ("t", "t:0")))
    task = still.task("t")
    if task is None:
        return
    yield from (resolve("t"), p.TaskHalt("t"), p.TaskContinue("t"))
    yield from (resolve("t:0"), p.PromiseGet("t:0"), p.RegisterCallback("t:0", "t"), p.RegisterListener("t:0", "w1"))
    for held in _claims("t", task.version):
        if still.promise("t:@1") is None:  # the second run makes nothing
            yield p.TaskFence(held, child)
        yield from (p.TaskFence(held, resolve("t:0")), p.TaskFence(held, p.PromiseAgain("t:@1", b"a")))
        yield p.PromiseGet("t:0", held)
        yield from (p.TaskSuspend(held, ("t:0",)), p.TaskRelease(held), fulfill(held))
    remote = still.task("t:0")
    if remote is not None:
        for held in _claims("t:0", remote.version):
            yield from (p.TaskRelease(held), fulfill(held))


def _claims(id: str, version: int) -> Iterator[p.Claim]:
    """Claims on a task: the current one, and those that others hold or held."""
    for worker in WORKERS:
        yield from (claim(id, v, worker) for v in (version, version - 1) if v > 0)


def _heal(world: World, still: StillRows) -> None:
    """All deadlines have come and both workers are gone: each task is settled, halted or at hand for a fresh one."""
    for end in (p.Tick(), *map(p.ProcessLeave, WORKERS)):
        world = _after(world, still, end, T0 + 100 * HOUR) or world
        still = _rows(world)
    healed = still
    snapshot = healed.snapshot()
    late = [promise.id for promise in snapshot.promises.values() if promise.timeout_at and promise.settled_at is None]
    assert (late, dict(snapshot.processes)) == ([], {}), world
    stuck = [task for task in snapshot.tasks.values() if task.state in (TaskState.ACQUIRED, TaskState.SUSPENDED)]
    assert [task for task in stuck if not _awaits_pending(snapshot, task.id)] == [], world


def _awaits_pending(snapshot: Snapshot, id: str) -> bool:
    waits = (snapshot.promises[callback.awaited] for callback in snapshot.callbacks if callback.awaiter == id)
    return any(promise.state is State.PENDING for promise in waits)


def explore(root: p.PromiseCreate, child: p.PromiseCreate, depth: int) -> int:
    """Go through all worlds that up to `depth` commands and steps of time lead to; gives their number."""
    births = [join(worker, lease_ms=2 * HOUR) for worker in WORKERS]
    start = frozenset(
        ProcessRecord(b.process, b.name, b.group, b.host, b.address, b.lease_ms, T0) for b in births
    )
    seen: set[World] = {(T0, start)}
    frontier = list(seen)
    for _ in range(depth):
        found: set[World] = set()
        for world in frontier:
            now, records = world
            still = _rows(world)
            if now < T0 + HOURS * HOUR:
                found.add((now + HOUR, records))
            found.update(filter(None, (_after(world, still, c, now) for c in _commands(still, root, child))))
        frontier = list(found - seen)
        seen.update(frontier)
        for world in frontier:
            still = _rows(world)
            assert inspect(still.snapshot()) == [], world
            _heal(world, still)
    return len(seen)


WORLDS = [("timer", 5, 2_000), ("external", 5, 2_000), ("remote", 5, 2_200)]
MORE_WORLDS = [("timer", 7, 12_000), ("external", 7, 11_000), ("remote", 7, 15_000)]
CAMPAIGN = [pytest.param(*world, marks=pytest.mark.campaign) for world in MORE_WORLDS]


@pytest.mark.parametrize(("kind", "depth", "at_least"), [*WORLDS, *CAMPAIGN])
def test_every_order_of_commands_and_ticks(kind: str, depth: int, at_least: int) -> None:
    """No order breaks an invariant, loses a wake-up or leaves a deadline behind."""
    worlds = explore(*PAIRS[kind], depth)
    print(f"{kind}, depth {depth}: {worlds} worlds")
    assert worlds >= at_least, "the search has shrunk"
