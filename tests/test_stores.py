"""One suite over both row keepers, the same scripts on both, and what SQLite alone can suffer."""

from __future__ import annotations

import asyncio
import json
import os
import random
import sqlite3
import subprocess
import sys
import threading
import warnings
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from pathlib import Path

import pytest
import pytest_asyncio
from clocks import T0, FakeClock
from worlds import LEASE, acquire, claim, create, fulfill, join, resolve

from dasync.core import invariants, machine
from dasync.core import protocol as p
from dasync.core.ids import mark, number_of_run
from dasync.core.invariants import Snapshot
from dasync.core.model import State, TaskState
from dasync.core.protocol import Status
from dasync.errors import InvariantViolated, StoreCorrupt, StoreError, StoreUnavailable, StoreVersion
from dasync.ports import Around, Backlog, Bell, Ring, Search
from dasync.stores.memory import MemoryStore
from dasync.stores.rows import RowStore
from dasync.stores.sqlite import APPLICATION_ID, SCHEMA_VERSION, SqliteStore, schema_version


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "d.db")


@pytest_asyncio.fixture(params=["memory", "power", "process"])
async def store(request: pytest.FixtureRequest, clock: FakeClock, path: str) -> AsyncIterator[RowStore]:
    made = MemoryStore(clock) if request.param == "memory" else SqliteStore(path, clock, request.param)
    await made.open()
    yield made
    await made.close()


@pytest_asyncio.fixture
async def sqlite(clock: FakeClock, path: str) -> AsyncIterator[SqliteStore]:
    made = SqliteStore(path, clock)
    await made.open()
    yield made
    await made.close()


async def do(store: RowStore, *commands: p.Command) -> p.Reply:
    return (await store.transact(commands)).replies[-1]


# -- both ------------------------------------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_a_later_command_sees_what_an_earlier_one_did(store: RowStore) -> None:
    """A whole life in one batch."""
    committed = await store.transact(
        [
            join(), create("t", "g"), acquire(), p.TaskFence(claim(), create("t:0")), p.TaskSuspend(claim(), ("t:0",)),
            resolve("t:0"), acquire(), fulfill(claim(version=2)), p.PromiseGet("t"), p.ProcessLeave("me"),
        ]
    )  # fmt: skip
    assert [reply.status for reply in committed.replies] == [201, 201, 200, 201, 200, 200, 200, 200, 200, 200]
    (again,) = committed.replies[6].acquired
    assert [(child.id, child.state) for child in again.preload] == [("t:0", State.RESOLVED)]
    assert committed.doorbells == {}, "whoever was rung has left"
    snapshot = await store.snapshot()
    assert (snapshot.promises["t"].value, snapshot.tasks["t"].state) == (b"v", TaskState.FULFILLED)
    assert (snapshot.callbacks, snapshot.processes) == (frozenset(), {})


@pytest.mark.asyncio
async def test_a_refused_command_fails_alone(store: RowStore) -> None:
    """Its neighbours in the batch are done."""
    commands = (create("a"), resolve("none"), p.TaskHalt("none"), p.TaskRelease(claim("a")), create("b"))
    replies = (await store.transact(commands)).replies
    assert [reply.status for reply in replies] == [201, 404, 404, 404, 201]
    assert (await store.snapshot()).promises.keys() == {"a", "b"}


UNSAYABLE: dict[str, Callable[[], p.Command]] = {
    "a surrogate in a function": lambda: p.PromiseCreate("x", "f\ud800"),
    "a huge version": lambda: p.PromiseCreate("x", "f", 2**63),
    "tags that are no JSON": lambda: create("x", tags="{"),
    "tags that are no strings": lambda: create("x", tags='{"a": 1}'),
    "get": lambda: p.PromiseGet("\udc80"),
    "task get": lambda: p.TaskGet("\udc80"),
    "halt": lambda: p.TaskHalt("\udc80"),
    "continue": lambda: p.TaskContinue("\udc80"),
    "listen": lambda: p.RegisterListener("\udc80", "me"),
    "call back": lambda: p.RegisterCallback("\udc80", "t"),
}


@pytest.mark.parametrize("make", UNSAYABLE.values(), ids=UNSAYABLE)
def test_what_no_row_could_hold_cannot_be_said(make: Callable[[], p.Command]) -> None:
    """It is refused when the command is made, so it never takes the other commands of a batch with it."""
    with pytest.raises(ValueError, match=r"\w"):
        make()


@pytest.mark.asyncio
async def test_an_error_writes_nothing(store: RowStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A broken invariant in the middle of a batch: not a row of it is written, and the store goes on."""
    await store.transact([create("before")])
    before = await store.snapshot()
    real = machine.step

    def broken(now, command, view):  # type: ignore[no-untyped-def]
        transition = real(now, command, view)
        if command.id == "bad":
            bad = transition.moves[0].after._replace(value=b"v")
            return transition._replace(moves=(transition.moves[0]._replace(after=bad),))
        return transition

    monkeypatch.setattr(machine, "step", broken)
    with pytest.raises(InvariantViolated, match="well_formed_promise_pending_has_no_value"):
        await store.transact([create("one"), create("bad"), create("two")])
    assert await store.snapshot() == before
    await store.transact([create("one")])
    assert (await store.snapshot()).promises.keys() == {"before", "one"}


@pytest.mark.asyncio
async def test_search(store: RowStore) -> None:
    """By state, function, prefix, tags and roots, in the order of ids, page by page; tasks come along."""
    tags = [json.dumps(tag) for tag in ({"team": "a"}, {"team": "b", "x": "1"})]
    await store.transact([join(), create("t", "g", tags=tags[0]), create("u", tags=tags[1]), create("v_%"), acquire()])
    await store.transact([p.TaskFence(claim(), create("t:0")), p.TaskFence(claim(), create("t:1")), resolve("t:1")])

    async def ids(**asked: object) -> list[str]:
        return [found.promise.id for found in await store.search(Search(**asked))]  # type: ignore[arg-type]

    assert await ids() == ["t", "t:0", "t:1", "u", "v_%"]
    assert await ids(roots=True) == ["t", "u", "v_%"]
    assert await ids(state=State.RESOLVED) == ["t:1"]
    assert await ids(function="f") == ["t"]
    assert await ids(function="") == ["t:0", "t:1", "u", "v_%"]
    assert await ids(id_prefix="t:") == ["t:0", "t:1"]
    assert await ids(id_prefix="_") == []
    assert await ids(id_prefix="\U0010ffff") == []
    assert await ids(tags={"team": "b"}) == ["u"]
    assert await ids(tags={"team": "b", "x": "2"}) == []
    assert await ids(limit=2) == ["t", "t:0"]
    assert await ids(limit=2, cursor="t:0") == ["t:1", "u"]
    assert await ids(task_state=TaskState.ACQUIRED) == ["t"]
    assert await ids(task_state=TaskState.PENDING) == []
    assert await ids(task_state=TaskState.ACQUIRED, state=State.RESOLVED) == []
    first, *rest = await store.search()
    assert first.task is not None
    assert (first.task.state, [found.task for found in rest]) == (TaskState.ACQUIRED, [None] * 4)


@pytest.mark.asyncio
async def test_subtree(store: RowStore) -> None:
    """A promise, all below it and what these await, whoever created it, and no neighbour whose id begins alike."""
    await store.transact([join(), create("t", "g"), create("t-2", "g"), create("t1"), acquire()])
    under = [p.TaskFence(claim(), create(id, "g")) for id in ("t:0", "t:1", "t:~1.0")]
    await store.transact([*under, acquire(), p.TaskFence(claim("t:0"), create("t:0.0", listener="me"))])
    await store.transact([p.TaskSuspend(claim("t:0"), ("t:0.0",)), p.RegisterCallback("t-2", "t")])
    whole = await store.subtree("t")
    assert whole.promises.keys() == {"t", "t:0", "t:0.0", "t:1", "t:~1.0"}
    assert whole.tasks.keys() == {"t", "t:0", "t:1", "t:~1.0"}
    assert {(callback.awaited, callback.awaiter) for callback in whole.callbacks} == {("t:0.0", "t:0"), ("t-2", "t")}
    assert {listener.promise for listener in whole.listeners} == {"t:0.0"}
    assert (await store.subtree("t:0")).promises.keys() == {"t:0", "t:0.0"}
    assert (await store.subtree("nothing")).promises == {}


async def looked(
    store: RowStore, targets: tuple[str, ...] = (), functions: tuple[tuple[str, int], ...] = ()
) -> Around:
    found = await store.around(targets, functions, anyway=True)
    assert found is not None
    return found


@pytest.mark.asyncio
async def test_next_due(store: RowStore) -> None:
    """The nearest deadline of a pending promise."""
    assert (await looked(store)).next_due is None
    await store.transact([create("never"), create("a", timeout_at=T0 + LEASE + 5), create("b", timeout_at=T0 + 5)])
    assert (await looked(store)).next_due == T0 + 5
    await store.transact([resolve("b")])
    assert (await looked(store)).next_due == T0 + LEASE + 5


@pytest.mark.asyncio
async def test_missing(store: RowStore) -> None:
    """The functions that pending tasks need and nobody here has."""
    needs = [("f", 1), ("f", 2), ("h", 1)]
    await store.transact([p.PromiseCreate(f"{n}", *need, target="g") for n, need in enumerate(needs)])
    await store.transact([p.PromiseCreate("done", "i", target="g"), resolve("done"), create("far", "elsewhere")])
    found = await looked(store, ("g",), ())
    assert (found.missing, found.has_tasks) == (needs, False)
    assert (await looked(store, ("g",), (("f", 2),))).missing == [("f", 1), ("h", 1)]
    found = await looked(store, ("g", "g/me"), tuple(needs))
    assert (found.missing, found.has_tasks) == ([], True)
    assert not (await looked(store, ("h",), tuple(needs))).has_tasks


@pytest.mark.asyncio
async def test_backlog(store: RowStore, clock: FakeClock) -> None:
    """Tasks that are not fulfilled, counted by all that they agree in, each kind with its oldest."""
    assert await store.backlog() == []
    await store.transact([join(), create("t", "g"), acquire(limit=1)])
    for id in ("v", "u"):
        clock.advance(1)
        await store.transact([create(id, "h")])
    await store.transact([create("w", "h"), p.PromiseSettle("w", State.CANCELED), create("untargeted")])
    assert await store.backlog() == [
        Backlog(TaskState.ACQUIRED, "g", "f", 1, "me", True, 1, T0, "t"),
        Backlog(TaskState.PENDING, "h", "f", 1, None, False, 2, T0 + 1000, "v"),
    ]
    await store.transact([p.TaskRelease(claim())])
    assert [(one.target, one.state, one.begun) for one in await store.backlog()] == [
        ("g", TaskState.PENDING, True), ("h", TaskState.PENDING, False),
    ]  # fmt: skip


@pytest.mark.asyncio
async def test_doorbells(store: RowStore) -> None:
    """Who a message of this batch concerns, with what there is to look for; of a task one member of its group,
    any."""
    await store.transact([join("a"), join("b"), join("c", "h")])
    assert [process.id for process in await store.processes()] == ["a", "b", "c"]
    tasks = Bell(Ring.TASKS)
    assert (await store.transact([create("1", "g"), create("2", "g")])).doorbells == {"bell:a": tasks, "bell:b": tasks}
    two = await store.transact([create("3", "h/c-name", listener="b"), resolve("3")])
    three = (await do(store, p.PromiseGet("3"))).promise
    assert three is not None
    assert two.doorbells == {"bell:b": Bell(Ring.NEWS, (three,)), "bell:c": tasks}
    await do(store, p.Receive("b", ("3",)))  # what is not acknowledged would be told again
    both = await store.transact([create("4", "g", listener="b"), resolve("4")])
    four = (await do(store, p.PromiseGet("4"))).promise
    assert four is not None
    rings = {"bell:a": Ring(0), "bell:b": Ring(0)} | {bell: said.ring for bell, said in both.doorbells.items()}
    assert sorted(rings.values()) in ([Ring.TASKS, Ring.NEWS], [Ring(0), Ring.TASKS | Ring.NEWS])
    assert both.doorbells["bell:b"].news == (four,)
    called = [(await store.transact([create(f"{n}", "g")])).doorbells for n in range(5, 25)]
    assert all(found in ({"bell:a": tasks}, {"bell:b": tasks}) for found in called)
    assert 5 <= called.count({"bell:a": tasks}) <= 15
    assert (await store.transact([p.PromiseGet("1")])).doorbells == {}


@pytest.mark.asyncio
async def test_time_comes_from_the_clock(store: RowStore, clock: FakeClock) -> None:
    """A tick settles what is due by the clock that was handed in."""
    await store.transact([create("x", timeout_at=T0 + 1500), create("y", timer=True, timeout_at=T0 + 2500)])
    clock.advance(1.5)
    assert [promise.id for promise in (await do(store, p.Tick())).settled] == ["x"]
    clock.advance(1)
    assert [promise.state for promise in (await do(store, p.Tick())).settled] == [State.RESOLVED]


@pytest.mark.asyncio
async def test_a_wide_batch(store: RowStore) -> None:
    """Ten thousand commands are one transaction, and values of any bytes come back as they went."""
    values = [bytes([n % 256]) * (n % 3) for n in range(5000)]
    await store.transact([create(f"x{n}", param=value) for n, value in enumerate(values)])
    await store.transact([resolve(f"x{n}", value) for n, value in enumerate(values)])
    kept = (await store.snapshot()).promises
    assert [(kept[f"x{n}"].param, kept[f"x{n}"].value) for n in range(5000)] == [(value, value) for value in values]


# -- the same script on both -----------------------------------------------------------------------------------


def any_command(rng: random.Random, now: int, seen: Snapshot) -> p.Command:
    """Anything that may be said, often something that means something now."""
    runs = max(map(number_of_run, seen.promises), default=0)
    run = f"c:@{runs}." if runs else "c:"
    ids = ["a", "b", "a:0", "a:1", "b:0", "a:0.0", "a:~1.0", "c", f"{run}0", f"{run}0.0", f"{run}1"]
    id, worker = rng.choice(ids), rng.choice(["w1", "w2", "w3"])
    deadline = rng.choice([None, None, now - 1, now + rng.randrange(4000)])
    timer = rng.random() < 0.15
    target = None if timer else rng.choice([None, "g", "g", "h", "g/w1-name"])
    waiter = rng.choice([{}, {}, {"awaiter": rng.choice(ids)}, {"listener": worker}])
    at = (now + 500 if deadline is None else deadline) if timer else deadline
    computes = rng.choice("ffe") if target else rng.choice(["", "f"])
    born = p.PromiseCreate(id, computes, 1, rng.randbytes(3), target, timer, at, "", b"s", **waiter)
    held = [task for task in seen.tasks.values() if task.process is not None]
    stale = p.Claim(id, rng.randrange(3), worker)
    mine = rng.choice([p.Claim(task.id, task.version, task.process or "") for task in held] or [stale])
    under = mine if rng.random() < 0.8 else stale
    over = next((p.Claim(task.id, task.version, task.process or "") for task in held if task.id == "c"), under)
    child = born if id != under.id else p.PromiseCreate(f"{under.id}x:0" if ":" not in under.id else f"{under.id}.9")
    others = tuple(sorted({rng.choice(ids) for _ in range(2)} - {under.id}))
    state = rng.choice([State.RESOLVED, State.REJECTED, State.CANCELED])
    targets = tuple(rng.sample(["g", "h", f"g/{worker}-name"], rng.choice([1, 1, 2])))
    functions = tuple(rng.sample([("e", 1), ("f", 1), ("f", 2)], rng.choice([1, 2, 3])))
    rooms = rng.choice([(), (p.Room(("f",), 1),), (p.Room(("e", "f"), 2), p.Room(("e",), 1))])
    kinds: list[Callable[[], p.Command]] = [
        lambda: p.PromiseGet(id),
        lambda: born,
        lambda: p.PromiseSettle(id, state, rng.randbytes(2)),
        lambda: p.RegisterCallback(id, rng.choice([other for other in ids if other != id])),
        lambda: p.RegisterListener(id, worker),
        lambda: p.TaskGet(id),
        lambda: p.TaskCreate(worker, create(id, "g", timeout_at=deadline), "3.11"),
        lambda: p.TaskAcquire(worker, targets, functions, rng.choice([1, 3]), "3.12", rooms),
        lambda: p.TaskFence(under, child),
        lambda: p.TaskFence(under, p.PromiseSettle(child.id, state)),
        lambda: p.TaskFence(over, p.PromiseAgain(f"c:@{runs + 1}", rng.randbytes(3))),
        lambda: p.PromiseGet(child.id, under),
        lambda: p.TaskSuspend(under, others) if others else p.TaskRelease(under),
        lambda: p.TaskFulfill(under, state, b"r"),
        lambda: p.TaskRelease(under),
        lambda: p.TaskHalt(id, "it has diverged"),
        lambda: p.TaskContinue(id),
        lambda: join(worker, rng.choice(["g", "g", "h"]), rng.choice([800, 3000])),
        lambda: p.ProcessHeartbeat(worker),
        lambda: p.ProcessLeave(worker, *rng.choice([(), (now,), (None, (mark(id),), 2)])),
        lambda: p.Receive(worker, tuple(rng.sample(ids, rng.randrange(3)))),
        p.Tick,
    ]
    weights = [1, 5, 2, 2, 2, 1, 2, 6, 6, 2, 2, 2, 4, 2, 1, 1, 2, 4, 1, 0.5, 1, 1]
    return rng.choices(kinds, weights)[0]()


async def _compare(seed: int, path: str, batches: int) -> tuple[dict[Status, int], int]:
    """How often which answer was given, and how often an execution has started over."""
    rng, clock = random.Random(seed), FakeClock()
    memory, *pair = MemoryStore(clock), *(SqliteStore(path, clock, "process") for _ in range(2))
    statuses: dict[Status, int] = {}
    await asyncio.gather(*(sqlite.open() for sqlite in pair))
    try:
        for batch in range(batches):
            seen, sqlite = await memory.snapshot(), pair[rng.random() < 0.2]
            commands = [any_command(rng, clock.now_ms(), seen) for _ in range(rng.choice([1, 1, 2, 5, 9]))]
            last = next((n for n, one in enumerate(commands) if _starts_over(one)), len(commands))
            commands = commands[: last + 1]  # what comes after it names its places by the new run
            here, there = await memory.transact(commands), await sqlite.transact(commands)
            at = f"seed {seed}, batch {batch}: {commands}"
            assert here == there, at
            assert await memory.snapshot() == await sqlite.snapshot(), at
            here_around, there_around = [await looked(one, ("g", "h")) for one in (memory, sqlite)]
            assert here_around._replace(changed=False) == there_around._replace(changed=False), at
            assert await memory.subtree("a") == await sqlite.subtree("a"), at
            assert await memory.search(Search(roots=True)) == await sqlite.search(Search(roots=True)), at
            assert invariants.inspect(await memory.snapshot()) == [], at
            for reply in here.replies:
                statuses[reply.status] = statuses.get(reply.status, 0) + 1
            clock.advance(rng.choice([0, 0, 0.1, 0.7, -0.2]))
        runs = max(map(number_of_run, (await memory.snapshot()).promises), default=0)
    finally:
        await asyncio.gather(*(sqlite.close() for sqlite in pair))
    return statuses, runs


def _starts_over(command: p.Command) -> bool:
    return isinstance(command, p.TaskFence) and isinstance(command.action, p.PromiseAgain)


async def _differential(seeds: range, folder: Path, batches: int = 60) -> None:
    counts: dict[Status, int] = {}
    rounds = 0
    for seed in seeds:
        statuses, runs = await _compare(seed, str(folder / f"{seed}.db"), batches)
        rounds += runs
        for status, number in statuses.items():
            counts[status] = counts.get(status, 0) + number
    total = sum(counts.values())
    assert counts.keys() == set(Status) - {Status.INVALID}, "the scripts come to every kind of answer"
    assert rounds > 0, "some start over"
    assert counts[Status.OK] + counts[Status.CREATED] > total / 4, "and much of what they say is done"


@pytest.mark.asyncio
async def test_random_scripts_do_the_same_in_both_stores(tmp_path: Path) -> None:
    """Replies, doorbells and all rows are equal after every batch; two connections take turns at the file."""
    await _differential(range(25), tmp_path)


@pytest.mark.asyncio
@pytest.mark.campaign
async def test_many_random_scripts_do_the_same_in_both_stores(tmp_path: Path) -> None:
    """The same with 200 more seeds."""
    await _differential(range(1000, 1200), tmp_path)


# -- SQLite: opening -------------------------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_what_is_written_is_there_after_reopening(sqlite: SqliteStore, clock: FakeClock, path: str) -> None:
    """Of every table."""
    await sqlite.transact([join(), create("t", "g", param=b"p", tags='{"a":"b"}', seed=b"s"), create("x"), acquire()])
    await sqlite.transact([p.TaskSuspend(claim(), ("x",)), p.RegisterListener("t", "me"), create("y", listener="me")])
    await sqlite.transact([p.PromiseSettle("y", State.REJECTED, b"")])
    before = await sqlite.snapshot()
    assert all(before)
    await sqlite.close()
    await sqlite.close()
    with pytest.raises(StoreUnavailable, match="closed"):
        await sqlite.snapshot()
    again = SqliteStore(path, clock)
    await again.open()
    assert await again.snapshot() == before
    await again.close()
    assert sorted(os.listdir(os.path.dirname(path))) == ["d.db", "d.db-lock"]


@pytest.mark.asyncio
async def test_two_stores_on_one_file_see_each_other(sqlite: SqliteStore, clock: FakeClock, path: str) -> None:
    """`around` tells when somebody else has written, and says nothing of its own."""
    other = SqliteStore(path, clock)
    await other.open()
    await sqlite.around((), ())
    await sqlite.transact([create("x")])
    assert await sqlite.around((), ()) is None
    assert not (await looked(sqlite)).changed
    await other.transact([resolve("x")])
    assert (await looked(sqlite)).changed
    assert await sqlite.around((), ()) is None
    assert (await sqlite.snapshot()).promises["x"].state is State.RESOLVED
    await asyncio.gather(*(store.transact([create(f"{n}")]) for n, store in enumerate([sqlite, other] * 20)))
    assert len((await other.snapshot()).promises) == 41
    await other.close()


@pytest.mark.asyncio
async def test_many_stores_open_a_new_file_at_once(clock: FakeClock, path: str) -> None:
    """One makes the schema, the others find it."""
    stores = [SqliteStore(path, clock) for _ in range(8)]
    await asyncio.gather(*(store.open() for store in stores))
    await asyncio.gather(*(store.transact([create(f"{n}")]) for n, store in enumerate(stores)))
    assert len((await stores[0].snapshot()).promises) == 8
    await asyncio.gather(*(store.close() for store in stores))


@pytest.mark.asyncio
async def test_an_empty_file_is_made_a_store(clock: FakeClock, path: str) -> None:
    """As `touch` or `mktemp` leave it."""
    _write(path, b"")
    store = SqliteStore(path, clock)
    await store.open()
    assert (await do(store, create("x"))).status is Status.CREATED
    await store.close()


def _write(path: str, data: bytes) -> None:
    Path(path).write_bytes(data)


def _made(path: Path) -> bytes:
    async def make() -> None:
        store = SqliteStore(str(path), FakeClock())
        await store.open()
        await store.transact([create(f"x{n}", param=b"p" * 2000) for n in range(20)])
        await store.close()

    asyncio.run(make())
    Path(f"{path}-lock").unlink()
    return path.read_bytes()


def _pragma(path: Path, sql: str) -> None:
    _made(path)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(sql)
        connection.commit()
        connection.execute("PRAGMA journal_mode = DELETE")


def _foreign(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE promises (id)")


STRANGERS: dict[str, tuple[Callable[[Path], object], type[StoreError], str]] = {
    "text": (lambda path: path.write_text("Dear diary\n" * 50), StoreCorrupt, "not a dasync store"),
    "short text": (lambda path: path.write_text("x"), StoreCorrupt, "not a dasync store"),
    "garbage": (lambda path: path.write_bytes(random.Random(0).randbytes(9000)), StoreCorrupt, "not a dasync store"),
    "foreign": (_foreign, StoreCorrupt, "another program"),
    "no header": (lambda path: path.write_bytes(b"\0" * 100 + _made(path)[100:]), StoreCorrupt, "not a dasync store"),
    "cut": (lambda path: path.write_bytes(_made(path)[:-5000]), StoreCorrupt, "cut short"),
    "cut to its header": (lambda path: path.write_bytes(_made(path)[:100]), StoreCorrupt, "cut short"),
    "cut within its header": (lambda path: path.write_bytes(_made(path)[:60]), StoreCorrupt, "header"),
    "newer": (lambda path: _pragma(path, f"PRAGMA user_version = {SCHEMA_VERSION + 1}"), StoreVersion, "newer dasync"),
    "marked otherwise": (
        lambda path: _pragma(path, f"PRAGMA application_id = {APPLICATION_ID + 1}"), StoreCorrupt, "another program"
    ),
}  # fmt: skip


def _listing(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.mark.asyncio
@pytest.mark.parametrize("kind", STRANGERS)
async def test_a_file_that_is_not_ours_is_left_as_it_is(kind: str, tmp_path: Path, clock: FakeClock) -> None:
    """It is recognised by its header; not a byte of it changes and nothing appears beside it."""
    make, error, text = STRANGERS[kind]
    await asyncio.to_thread(make, tmp_path / "x.db")
    before = _listing(tmp_path)
    store = SqliteStore(str(tmp_path / "x.db"), clock)
    with pytest.raises(error, match=text) as caught:
        await store.open()
    assert str(tmp_path / "x.db") in str(caught.value)
    assert _listing(tmp_path) == before
    await store.close()


@pytest.mark.asyncio
async def test_a_newer_version_that_is_still_in_the_wal_is_seen(path: str, clock: FakeClock) -> None:
    """The header of the file may be older than its newest transaction."""
    await asyncio.to_thread(_made, Path(path))
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
        store = SqliteStore(path, clock)
        with pytest.raises(StoreVersion, match="newer dasync"):
            await store.open()


@pytest.mark.asyncio
async def test_damage_behind_a_sound_header(path: str, clock: FakeClock) -> None:
    """Pages that are no pages are StoreCorrupt, not a sqlite3 error."""
    whole = await asyncio.to_thread(_made, Path(path))
    _write(path, whole[:4096] + b"\xaa" * (len(whole) - 4096))
    store = SqliteStore(path, clock)
    with pytest.raises(StoreCorrupt, match="damaged"):
        await store.open()


ROT = {
    "value": "UPDATE promises SET value = x'00' WHERE id = 'x'",
    "value gone": "UPDATE promises SET value = NULL WHERE id = 'x'",
    "param": "UPDATE promises SET param = x'70f0' WHERE id = 'x'",
    "state": "UPDATE promises SET state = 'rejected' WHERE id = 'x'",
    "unknown state": "UPDATE promises SET state = 'resolvee' WHERE id = 'x'",
    "deadline": "UPDATE promises SET timeout_at = timeout_at + 1 WHERE id = 'x'",
    "timer": "UPDATE promises SET timer = 1 WHERE id = 'x'",
    "type": "UPDATE promises SET param = 'text' WHERE id = 'x'",
    "blob": "UPDATE promises SET tags = x'ff' WHERE id = 'x'",
    "checksum": "UPDATE promises SET checksum = checksum + 1 WHERE id = 'x'",
}


@pytest.mark.asyncio
@pytest.mark.parametrize("rot", ROT)
async def test_bit_rot_in_a_row_is_named(rot: str, sqlite: SqliteStore, path: str) -> None:
    """The checksum is checked at every read, and the error names the row; the others are served."""
    await sqlite.transact([create("x", param=b"pp", timeout_at=T0 + 9), resolve("x"), create("sound")])
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(ROT[rot])
        connection.commit()
    for read in (sqlite.transact([p.PromiseGet("x")]), sqlite.search(), sqlite.subtree("x"), sqlite.snapshot()):
        with pytest.raises(StoreCorrupt, match="promise 'x'"):
            await read
    assert (await do(sqlite, resolve("sound"))).status is Status.OK


@pytest.mark.asyncio
async def test_an_unknown_task_state_is_corrupt(sqlite: SqliteStore, path: str) -> None:
    """Never read as another one."""
    await sqlite.transact([create("t", "g")])
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("UPDATE tasks SET state = 'gone'")
        connection.commit()
    with pytest.raises(StoreCorrupt, match="task 't'"):
        await sqlite.transact([p.TaskGet("t")])


@pytest.mark.asyncio
async def test_a_store_that_cannot_be_opened_is_unavailable(tmp_path: Path, clock: FakeClock) -> None:
    """A missing folder, a folder, a read-only file: said at once, with nothing left beside."""
    await asyncio.to_thread(_made, tmp_path / "ro.db")
    (tmp_path / "ro.db").chmod(0o444)
    (tmp_path / "folder").mkdir()
    (tmp_path / "empty.db").touch(0o444)
    before = sorted(os.listdir(tmp_path))
    cases = {"none/x.db": "does not exist", "folder": "is a folder", "ro.db": "read-only", "empty.db": "read-only"}
    for name, text in cases.items():
        with pytest.raises(StoreUnavailable, match=text):
            await SqliteStore(str(tmp_path / name), clock).open()
    assert sorted(os.listdir(tmp_path)) == before


@pytest.mark.asyncio
async def test_an_unknown_durability_is_refused(path: str, clock: FakeClock) -> None:
    """There are two."""
    with pytest.raises(ValueError, match="'power' or 'process'"):
        SqliteStore(path, clock, "fast")  # type: ignore[arg-type]


# -- SQLite: when the ground gives way ----------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_a_lost_connection_is_opened_again_once(sqlite: SqliteStore) -> None:
    """After an I/O error everything that was waiting shares one new connection, and `close` ends it."""

    def broken(rows: object) -> None:
        error = sqlite3.OperationalError("disk I/O error")
        error.sqlite_errorname = "SQLITE_IOERR_FSYNC"
        raise error

    await sqlite.transact([create("x")])
    threads = threading.active_count()
    with pytest.raises(StoreUnavailable, match="disk I/O error"):
        await sqlite._look(broken)
    await asyncio.gather(*(sqlite.transact([p.PromiseGet("x")]) for _ in range(10)), sqlite.snapshot())
    assert threading.active_count() == threads
    await sqlite.close()


CHECKPOINTS = """
import fcntl, sys
shared = open(sys.argv[1], "r+b")
fcntl.lockf(shared, fcntl.LOCK_EX, 5, 123)  # the places of those who read, as a checkpoint holds them for a moment
print("holds", flush=True)
sys.stdin.read()
"""


@pytest.mark.campaign
@pytest.mark.asyncio
async def test_who_is_stopped_in_a_checkpoint_damages_nothing(sqlite: SqliteStore, path: str) -> None:
    """SQLite lets a reader try for ten seconds: then the store cannot be had, and can be had when it is over."""
    await sqlite.transact([create("x")])
    other = await asyncio.create_subprocess_exec(
        sys.executable, "-c", CHECKPOINTS, f"{path}-shm",
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert other.stdin is not None
    assert other.stdout is not None
    assert await other.stdout.readline() == b"holds\n"
    try:
        with pytest.raises(StoreUnavailable, match="stopped in the middle of a checkpoint"):
            await sqlite.snapshot()
    finally:
        other.stdin.close()
        await other.wait()
    assert (await sqlite.snapshot()).promises.keys() == {"x"}


def test_a_store_is_not_used_across_a_fork(tmp_path: Path) -> None:
    """The child is told so, may close it, and opens the same file for itself; the parent goes on."""

    async def child(store: SqliteStore) -> bool:
        try:
            await store.transact([create("never")])
        except StoreUnavailable as error:
            told = "fork" in str(error)
        await asyncio.wait_for(store.close(), 10)
        own = SqliteStore(store.path, FakeClock())
        await own.open()
        await asyncio.wait_for(own.transact([create("child")]), 10)
        await own.close()
        return told

    async def parent() -> None:
        store = SqliteStore(str(tmp_path / "d.db"), FakeClock())
        await store.open()
        await store.transact([create("parent")])
        with warnings.catch_warnings():  # a fork beside a thread is what this is about
            warnings.simplefilter("ignore", DeprecationWarning)
            with store._lock:  # as when a commit is under way
                pid = os.fork()
        if pid == 0:
            asyncio.events._set_running_loop(None)
            status = 1
            try:
                status = 0 if asyncio.new_event_loop().run_until_complete(child(store)) else 2
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode((await asyncio.to_thread(os.waitpid, pid, 0))[1]) == 0
        assert (await store.snapshot()).promises.keys() == {"parent", "child"}
        await store.close()

    asyncio.run(parent())


FULL_DISK = """
import asyncio, resource, sys
from clocks import FakeClock
from worlds import create
from dasync.errors import StoreUnavailable
from dasync.stores.sqlite import SqliteStore

def limit(bytes):
    resource.setrlimit(resource.RLIMIT_FSIZE, (bytes, resource.RLIM_INFINITY))

async def main():
    store = SqliteStore(sys.argv[1], FakeClock(), sys.argv[2])
    await store.open()
    acknowledged, refused = [], 0
    limit(600_000)
    for number in range(60):
        try:
            await store.transact([create(f"{number}-{part}", param=b"x" * 15_000) for part in "ab"])
            acknowledged += [f"{number}-{part}" for part in "ab"]
        except StoreUnavailable:
            refused += 1
    assert refused > 10 < len(acknowledged), (refused, acknowledged)
    limit(resource.RLIM_INFINITY)
    assert sorted((await store.snapshot()).promises) == sorted(acknowledged)
    await store.transact([create("room again", param=b"x" * 15_000)])
    assert len((await store.snapshot()).promises) == len(acknowledged) + 1
    await store.close()
    again = SqliteStore(sys.argv[1], FakeClock())
    await again.open()
    assert sorted((await again.snapshot()).promises) == sorted([*acknowledged, "room again"])
    await again.close()
    print("survived", len(acknowledged), refused)

asyncio.run(main())
"""


@pytest.mark.parametrize("durability", ["power", "process"])
def test_a_full_disk(durability: str, path: str) -> None:
    """StoreUnavailable while it lasts; what was acknowledged stays, nothing else does, and it goes on with room."""
    done = _python(FULL_DISK, path, durability)
    assert done.stdout.startswith("survived"), done.stderr


@pytest.mark.asyncio
async def test_a_second_store_of_one_process_does_not_unlock_the_first(sqlite: SqliteStore, path: str) -> None:
    """Whoever closes a handle of a file drops all locks of his process on it. Another process would take itself for the
    last of all then, and clear the WAL away under this one, which would write on into nothing."""
    link = f"{path}.link"
    os.symlink(path, link)
    for other in (path, link):
        second = SqliteStore(other, FakeClock())
        await second.open()
        assert second.path == path
        assert schema_version(other) == SCHEMA_VERSION
        await second.close()
    for wrong in ("missing/x.db", "folder"):
        (Path(path).parent / "folder").mkdir(exist_ok=True)
        with pytest.raises(StoreUnavailable):
            await SqliteStore(str(Path(path).parent / wrong), FakeClock()).open()
    for seen in ("[]\n", "['a']\n"):
        told = await asyncio.to_thread(_python, SEEN, path)
        assert told.stdout == seen, told
        await sqlite.transact([create("a")])


CROSSED = """
import sys, threading, time
from dasync.stores.filelock import FileLock

def queues(lock):
    for _ in range(200):
        with lock:
            time.sleep(0.001)

threads = [threading.Thread(target=queues, args=[FileLock.of(path)]) for path in sys.argv[1:]]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print("done")
"""


def test_two_processes_with_the_same_two_stores_wait_for_each_other(tmp_path: Path) -> None:
    """One holds the first and waits for the second in another thread, the other the reverse: no circle, but to the
    kernel it is one."""
    locks = [str(tmp_path / name) for name in ("a", "b")]
    command = [sys.executable, "-c", CROSSED, *locks]
    pair = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    assert [one.communicate(timeout=60) for one in pair] == [("done\n", "")] * 2


SEEN = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1])
print([row[0] for row in connection.execute("SELECT id FROM promises")])
connection.close()
"""
NO_ROOM_FOR_THE_LOCK = """
import asyncio, os, resource, sys
from clocks import FakeClock
from worlds import create
from dasync.errors import StoreUnavailable
from dasync.stores.sqlite import SqliteStore

def limit(bytes):
    resource.setrlimit(resource.RLIMIT_FSIZE, (bytes, resource.RLIM_INFINITY))

async def main():
    store = SqliteStore(sys.argv[1], FakeClock())
    await store.open()
    assert os.path.getsize(f"{sys.argv[1]}-lock") == 0
    for room in (0, 5):
        limit(room)
        try:
            await store.transact([create("a")])
        except StoreUnavailable as error:
            limit(resource.RLIM_INFINITY)
            print(error)
    await store.transact([create("a")])
    print(*(await store.snapshot()).promises)
    await store.close()

asyncio.run(main())
"""


def test_no_room_in_the_lock_file(path: str) -> None:
    """What it has no room for would be written in memory, where that is a deadly signal."""
    done = _python(NO_ROOM_FOR_THE_LOCK, path)
    assert done.stderr == ""
    *refused, made = done.stdout.splitlines()
    assert [line.startswith(f"{path}: [Errno ") for line in refused] == [True, True]
    assert made == "a"


def _python(program: str, *args: str) -> subprocess.CompletedProcess[str]:
    path = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    run = [sys.executable, "-W", "error", "-c", program, *args]
    return subprocess.run(run, env=path, capture_output=True, text=True, check=False, timeout=60)
