"""Linearizability: histories that can be told in an order and such that cannot, by hand, at random and spoiled."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from itertools import permutations, product

import pytest
from clocks import T0
from histories import LIES, Blur, spoiled, told

from dasync.core import protocol as p
from dasync.core.model import PromiseRecord, State, TaskRecord, TaskState
from dasync.core.protocol import Acquired, Reply, Status
from dasync.stores.memory import MemoryStore
from dasync.testing import known, model
from dasync.testing.history import Operation, as_json, line
from dasync.testing.known import Promise
from dasync.testing.linear import Ruling, check, first_error
from dasync.testing.parts import Step, partition

PENDING = PromiseRecord("x", "", 1, b"", None, None, False, None, "", T0, 0, State.PENDING, None, None, None)
DONE = PENDING._replace(state=State.RESOLVED, settled_at=T0, value=b"v", turn=7)
OTHER = DONE._replace(value=b"w")
SOON = PENDING._replace(timeout_at=T0 + 50)
LATE = SOON._replace(state=State.TIMEDOUT, settled_at=T0 + 50, turn=8)
TASKED = PENDING._replace(id="t", function="f", target="g")
WAITING = TaskRecord("t", "g", "f", 1, b"", T0, TaskState.PENDING, 0, None, "", False)
HELD = WAITING._replace(state=TaskState.ACQUIRED, version=1, process="w1")
AGAIN = HELD._replace(version=2, process="w2")
SUSPENDED = WAITING._replace(state=TaskState.SUSPENDED, version=1)
CHILD = PENDING._replace(id="t:0", function="f", creator="t")

CREATE, GET, RESOLVE = p.PromiseCreate("x"), p.PromiseGet("x"), p.PromiseSettle("x", State.RESOLVED, b"v")
RESOLVE_OTHERWISE = p.PromiseSettle("x", State.RESOLVED, b"w")
CREATE_SOON = p.PromiseCreate("x", timeout_at=T0 + 50)
CREATE_TASK = p.PromiseCreate("t", "f", target="g")
ACQUIRE = p.TaskAcquire("w1", ("g",), (("f", 1),), 1)
ACQUIRE_AGAIN = p.TaskAcquire("w2", ("g",), (("f", 1),), 1)
CLAIM, CLAIM_AGAIN = p.Claim("t", 1, "w1"), p.Claim("t", 2, "w2")
CREATED, MADE = Reply(Status.CREATED, PENDING), Reply(Status.CREATED, TASKED)
TAKEN = Reply(Status.OK, acquired=(Acquired(HELD, TASKED, ()),))
TAKEN_AGAIN = Reply(Status.OK, acquired=(Acquired(AGAIN, TASKED, ()),))
CREATE_CHILD = p.TaskFence(CLAIM, p.PromiseCreate("t:0", "f"))
BORN = Reply(Status.CREATED, CHILD)
CHILD_DONE = CHILD._replace(state=State.RESOLVED, settled_at=T0, value=b"v", turn=7)
DO_CHILD = p.TaskFence(CLAIM, p.PromiseCreate("t:0", "f", state=State.RESOLVED, value=b"v"))
KEPT = CHILD_DONE._replace(id="t:@1", function=p.AGAIN, param=b"next", value=None)
FINISH = p.TaskFulfill(CLAIM, State.RESOLVED, b"v")
FINISHED = Reply(Status.OK, TASKED._replace(state=State.RESOLVED, settled_at=T0, value=b"v", turn=9))
GONE = p.ProcessLeave("w1")
OK, NOT_FOUND = Reply(Status.OK), Reply(Status.NOT_FOUND)


def ok(record: PromiseRecord) -> Reply:
    return Reply(Status.OK, record)


Said = tuple[p.Command, Reply | None, int, int | None]  # when it was asked for, and when it was heard of


def history(*said: Said, **more: object) -> list[Operation]:
    """What was said, at a clock that stands still unless told otherwise."""
    ordered = sorted(said, key=lambda one: one[2])
    return [
        Operation(number, "client", command, begin, end, reply, T0, T0)._replace(**more)  # type: ignore[arg-type]
        for number, (command, reply, begin, end) in enumerate(ordered)
    ]


def at(operations: Sequence[Operation], windows: dict[int, tuple[int, int | None]]) -> list[Operation]:
    """The same at other clocks: by number, the first and the last reading after T0."""
    moved = []
    for one in operations:
        least, most = windows.get(one.number, (0, 0))
        moved.append(one._replace(earliest_ms=T0 + least, latest_ms=None if most is None else T0 + most))
    return moved


def of_batch(*operations: Sequence[Operation]) -> list[Operation]:
    """Each of these lists is one batch."""
    found = [one._replace(batch=batch) for batch, commands in enumerate(operations) for one in commands]
    return [one._replace(number=number) for number, one in enumerate(found)]


GOOD: dict[str, list[Operation]] = {
    "two creates at once": history((CREATE, ok(PENDING), 0, 9), (CREATE, CREATED, 1, 8)),
    "a read of what is being written": history(
        (CREATE, CREATED, 0, 1), (RESOLVE, ok(DONE), 2, 9), (GET, ok(DONE), 3, 4), (GET, ok(DONE), 5, 6)
    ),
    "and of what was before": history((CREATE, CREATED, 0, 1), (RESOLVE, ok(DONE), 2, 9), (GET, ok(PENDING), 3, 4)),
    "the loser of two settlements": history(
        (CREATE, CREATED, 0, 1), (RESOLVE, ok(OTHER), 2, 9), (RESOLVE_OTHERWISE, ok(OTHER), 3, 8)
    ),
    "the same said twice": history((CREATE, CREATED, 0, 1), (RESOLVE, ok(DONE), 2, 3), (RESOLVE, ok(DONE), 4, 5)),
    "a create that nobody heard of": history((CREATE, None, 0, None), (GET, ok(PENDING), 5, 6)),
    "that never happened": history((CREATE, None, 0, None), (GET, NOT_FOUND, 5, 6)),
    "that happened late": history((CREATE, None, 0, None), (GET, NOT_FOUND, 5, 6), (GET, ok(PENDING), 7, 8)),
    "and of which it is not known when": at(
        history((CREATE, None, 0, None), (GET, ok(PENDING._replace(created_at=T0 + 9)), 5, 6)), {0: (0, None)}
    ),
    "a settlement that was heard of only in a read": history(
        (CREATE, CREATED, 0, 1), (RESOLVE, None, 2, None), (RESOLVE_OTHERWISE, ok(DONE), 3, 4)
    ),
    "one that nobody heard of, before its process died and before a read that tells nothing of it": [
        *history((CREATE, CREATED, 0, 1)),
        *(one._replace(number=1) for one in history((RESOLVE, None, 2, None), until=3)),
        *(one._replace(number=one.number + 2) for one in history((p.TaskGet("x"), NOT_FOUND, 5, 6),
                                                                 (GET, ok(DONE), 7, 8))),
    ],
    "a deadline": at(
        history((CREATE_SOON, Reply(Status.CREATED, SOON), 0, 1), (GET, ok(SOON), 2, 3), (GET, ok(LATE), 4, 5)),
        {1: (49, 49), 2: (50, 50)},
    ),
    "a deadline by a clock ahead, then one behind": at(
        history((CREATE_SOON, Reply(Status.CREATED, SOON), 0, 1), (GET, ok(LATE), 2, 3), (GET, ok(LATE), 4, 5)),
        {1: (60, 60), 2: (10, 10)},
    ),
    "a deadline about now, either way": at(
        history((CREATE_SOON, Reply(Status.CREATED, SOON), 0, 1), (GET, ok(SOON), 2, 3), (GET, ok(LATE), 4, 5)),
        {1: (40, 60), 2: (40, 60)},
    ),
    "a settlement that the deadline won": at(
        history((CREATE_SOON, Reply(Status.CREATED, SOON), 0, 1), (RESOLVE, ok(LATE), 2, 3)), {1: (50, 50)}
    ),
    "a tick": at(
        history((CREATE_SOON, Reply(Status.CREATED, SOON), 0, 1), (p.Tick(), Reply(Status.OK, settled=(LATE,)), 2, 3)),
        {1: (70, 70)},
    ),
    "a tick that nobody heard of": at(
        history((CREATE_SOON, Reply(Status.CREATED, SOON), 0, 1), (p.Tick(), None, 2, None), (GET, ok(LATE), 4, 5)),
        {1: (70, 70), 2: (10, 10)},
    ),
    "a task from end to end": history((CREATE_TASK, MADE, 0, 1), (ACQUIRE, TAKEN, 2, 3), (FINISH, FINISHED, 4, 5)),
    "a task that is finished twice": history(
        (CREATE_TASK, MADE, 0, 1), (ACQUIRE, TAKEN, 2, 3), (FINISH, None, 4, None), (FINISH, FINISHED, 5, 6)
    ),
    "a zombie": history(
        (CREATE_TASK, MADE, 0, 1), (ACQUIRE, TAKEN, 2, 3), (GONE, OK, 4, 5), (ACQUIRE_AGAIN, TAKEN_AGAIN, 6, 7),
        (FINISH, Reply(Status.CONFLICT, task=AGAIN), 8, 9),
    ),
    "a suspend and what resumes it": history(
        (CREATE, CREATED, 0, 1), (CREATE_TASK, MADE, 0, 1), (ACQUIRE, TAKEN, 2, 3),
        (p.TaskSuspend(CLAIM, ("x",)), Reply(Status.OK, task=SUSPENDED), 4, 5), (RESOLVE, ok(DONE), 6, 7),
        (ACQUIRE_AGAIN, TAKEN_AGAIN, 8, 9),
    ),
    "a callback, said twice": history(
        (CREATE, CREATED, 0, 1), (CREATE_TASK, MADE, 0, 1), (p.RegisterCallback("x", "t"), CREATED, 2, 3),
        (p.RegisterCallback("x", "t"), ok(PENDING), 4, 5),
    ),
    "a batch": of_batch(history((CREATE, CREATED, 0, 9), (RESOLVE, ok(DONE), 0, 9)), history((GET, NOT_FOUND, 1, 2))),
    "a child in the preload": history(
        (CREATE_TASK, MADE, 0, 1), (ACQUIRE, TAKEN, 2, 3), (CREATE_CHILD, BORN, 4, 5), (GONE, OK, 6, 7),
        (ACQUIRE_AGAIN, Reply(Status.OK, acquired=(Acquired(AGAIN, TASKED, (CHILD,)),)), 8, 9),
    ),
    "what starting over removes": history(
        (CREATE_TASK, MADE, 0, 1), (ACQUIRE, TAKEN, 2, 3), (DO_CHILD, Reply(Status.CREATED, CHILD_DONE), 4, 5),
        (p.TaskFence(CLAIM, p.PromiseAgain("t:@1", b"next")), Reply(Status.CREATED, KEPT), 6, 7),
        (p.PromiseGet("t:0"), NOT_FOUND, 8, 9), (p.PromiseGet("t:@1"), ok(KEPT), 8, 9),
    ),
    "a cancel from above": history(
        (CREATE_TASK, MADE, 0, 1), (ACQUIRE, TAKEN, 2, 3), (CREATE_CHILD, BORN, 4, 5),
        (p.PromiseCancel("t"), ok(TASKED._replace(state=State.CANCELED, settled_at=T0, turn=9)), 6, 7),
        (p.PromiseGet("t:0"), ok(CHILD._replace(state=State.CANCELED, settled_at=T0, turn=9)), 8, 9),
    ),
}  # fmt: skip

BAD: dict[str, tuple[list[Operation], int, str]] = {  # each with the operation that stands nowhere, and a word of why
    "the famous bug": (
        history(
            (CREATE_TASK, MADE, 0, 1), (CREATE, CREATED, 0, 1),
            (p.PromiseCreate("x", awaiter="t"), Reply(Status.CONFLICT, PENDING), 2, 3),
            (p.RegisterCallback("x", "t"), ok(PENDING), 4, 5),
        ), 3, "answered 201 with the promise or 422, and '200' was heard",
    ),
    "a create of what is there": (history((CREATE, CREATED, 0, 1), (CREATE, CREATED, 2, 3)), 1, "200 with the promise"),
    "a create with a waiter of what is there": (
        history((CREATE, CREATED, 0, 1), (p.PromiseCreate("x", listener="w1"), ok(PENDING), 2, 3)), 1, "409 with",
    ),
    "two settlements": (
        history((CREATE, CREATED, 0, 1), (RESOLVE, ok(DONE), 2, 3), (RESOLVE_OTHERWISE, ok(OTHER), 4, 5)),
        2, "value 'v' is due, not 'w'",
    ),
    "two settlements at once": (
        history((CREATE, CREATED, 0, 1), (RESOLVE, ok(DONE), 2, 5), (RESOLVE_OTHERWISE, ok(OTHER), 3, 6)),
        2, "value 'v' is due, not 'w'",
    ),
    "a settlement of a settlement": (
        history((CREATE, CREATED, 0, 1), (RESOLVE, ok(DONE), 2, 3), (GET, ok(DONE._replace(turn=8)), 4, 5)), 2, "turn",
    ),
    "a stale read": (
        history((CREATE, CREATED, 0, 1), (RESOLVE, ok(DONE), 2, 3), (GET, ok(PENDING), 4, 5)), 2, "state resolved is",
    ),
    "a read that goes back": (
        history((CREATE, CREATED, 0, 1), (RESOLVE, ok(DONE), 2, 9), (GET, ok(DONE), 3, 4), (GET, ok(PENDING), 5, 6)),
        3, "state resolved is due, not pending",
    ),
    "a write that was heard of and lost": (
        history((CREATE, CREATED, 0, 1), (GET, NOT_FOUND, 2, 3)), 1, "200 with the promise",
    ),
    "a settlement that was heard of and lost": (
        history((CREATE, CREATED, 0, 1), (RESOLVE, ok(DONE), 2, 3), (RESOLVE_OTHERWISE, ok(OTHER), 4, 5)), 2, "value",
    ),
    "a timeout too early": (
        at(
            history((CREATE_SOON, Reply(Status.CREATED, SOON), 0, 1), (GET, ok(LATE), 2, 3)), {1: (49, 49)},
        ), 1, "pending until",
    ),
    "a deadline that is not seen": (
        at(
            history((CREATE_SOON, Reply(Status.CREATED, SOON), 0, 1), (GET, ok(SOON), 2, 3)), {1: (50, 50)},
        ), 1, "state timedout is due, not pending",
    ),
    "a tick that forgets a deadline": (
        at(
            history((CREATE_SOON, Reply(Status.CREATED, SOON), 0, 1), (p.Tick(), OK, 2, 3)), {1: (50, 50)},
        ), 1, "what was settled",
    ),
    "a settlement past the deadline": (
        at(
            history((CREATE_SOON, Reply(Status.CREATED, SOON), 0, 1), (RESOLVE, ok(DONE._replace(timeout_at=T0 + 50)),
                    2, 3)), {1: (50, 50)},
        ), 1, "state timedout is due",
    ),
    "a verdict at another time": (
        at(
            history((CREATE_SOON, Reply(Status.CREATED, SOON), 0, 1), (GET, ok(LATE._replace(settled_at=T0)), 2, 3)),
            {1: (70, 70)},
        ), 1, "settled_at",
    ),
    "an effect before it was asked for": (
        history((GET, ok(PENDING), 0, 1), (CREATE, CREATED, 2, 3)), 0, "there is no promise x",
    ),
    "an effect before it was asked for by one that heard nothing": (
        history((GET, ok(PENDING), 0, 1), (CREATE, None, 2, None)), 0, "there is no promise x",
    ),
    "an effect of one that is dead": (
        [
            *history((CREATE, None, 0, None), until=3),
            *(one._replace(number=one.number + 1) for one in history((GET, NOT_FOUND, 4, 5), (GET, ok(PENDING), 6, 7))),
        ], 2, "there is no promise x",
    ),
    "half of a batch": (
        of_batch(
            history((CREATE, CREATED, 0, 9), (RESOLVE, ok(DONE), 0, 9)), history((GET, ok(PENDING), 1, 2)),
            history((GET, NOT_FOUND, 0, 1)),
        ), 2, "x is resolved with",
    ),
    "half of a batch that nobody heard of": (
        of_batch(
            history((CREATE, None, 0, None), (RESOLVE, None, 0, None)), history((GET, ok(PENDING), 1, 2)),
        ), 2, "there is no promise x",
    ),
    "a callback that is new twice": (
        history(
            (CREATE, CREATED, 0, 1), (CREATE_TASK, MADE, 0, 1), (p.RegisterCallback("x", "t"), CREATED, 2, 3),
            (p.RegisterCallback("x", "t"), CREATED, 4, 5),
        ), 3, "awaited by t",
    ),
    "a callback of a suspend that is forgotten": (
        history(
            (CREATE, CREATED, 0, 1), (CREATE_TASK, MADE, 0, 1), (ACQUIRE, TAKEN, 2, 3),
            (p.TaskSuspend(CLAIM, ("x",)), Reply(Status.OK, task=SUSPENDED), 4, 5),
            (p.RegisterCallback("x", "t"), CREATED, 6, 7),
        ), 4, "awaited by t",
    ),
    "a suspend on what is settled": (
        history(
            (CREATE, CREATED, 0, 1), (CREATE_TASK, MADE, 0, 1), (ACQUIRE, TAKEN, 2, 3), (RESOLVE, ok(DONE), 2, 3),
            (p.TaskSuspend(CLAIM, ("x",)), Reply(Status.OK, task=SUSPENDED), 4, 5),
        ), 4, "x is resolved",
    ),
    "a task that two hold": (
        history((CREATE_TASK, MADE, 0, 1), (ACQUIRE, TAKEN, 2, 3), (ACQUIRE_AGAIN, TAKEN_AGAIN, 4, 5)),
        2, "acquired by w1 at version 1",
    ),
    "a version that is not raised": (
        history(
            (CREATE_TASK, MADE, 0, 1), (ACQUIRE, TAKEN, 2, 3), (GONE, OK, 4, 5),
            (ACQUIRE_AGAIN, Reply(Status.OK, acquired=(Acquired(AGAIN._replace(version=1), TASKED, ()),)), 6, 7),
        ), 3, "the task's version is 2, not 1",
    ),
    "a zombie that is let in": (
        history(
            (CREATE_TASK, MADE, 0, 1), (ACQUIRE, TAKEN, 2, 3), (GONE, OK, 4, 5), (ACQUIRE_AGAIN, TAKEN_AGAIN, 6, 7),
            (FINISH, FINISHED, 8, 9),
        ), 4, "acquired by w2 at version 2",
    ),
    "a zombie whose child is let in": (
        history(
            (CREATE_TASK, MADE, 0, 1), (ACQUIRE, TAKEN, 2, 3), (GONE, OK, 4, 5), (ACQUIRE_AGAIN, TAKEN_AGAIN, 6, 7),
            (CREATE_CHILD, BORN, 8, 9),
        ), 4, "is answered 409",
    ),
    "a claim that is refused": (
        history((CREATE_TASK, MADE, 0, 1), (ACQUIRE, TAKEN, 2, 3), (FINISH, Reply(Status.CONFLICT, task=HELD), 4, 5)),
        2, "200 with the promise",
    ),
    "a task of what is settled": (
        history(
            (CREATE_TASK, MADE, 0, 1), (ACQUIRE, TAKEN, 2, 3), (FINISH, FINISHED, 4, 5),
            (ACQUIRE_AGAIN, TAKEN_AGAIN, 6, 7),
        ), 3, "t is resolved",
    ),
    "a child that the preload lacks": (
        history(
            (CREATE_TASK, MADE, 0, 1), (ACQUIRE, TAKEN, 2, 3), (CREATE_CHILD, BORN, 4, 5), (GONE, OK, 6, 7),
            (ACQUIRE_AGAIN, TAKEN_AGAIN, 8, 9),
        ), 4, "the promise is not shown",
    ),
    "a heartbeat of a task that is gone": (
        history(
            (CREATE_TASK, MADE, 0, 1), (ACQUIRE, TAKEN, 2, 3), (GONE, OK, 4, 5),
            (p.ProcessHeartbeat("w1"), Reply(Status.OK, held={"t": 1}), 6, 7),
        ), 3, "what is held",
    ),
    "news of what is pending": (
        history((CREATE, CREATED, 0, 1), (p.Receive("w1"), Reply(Status.OK, settled=(DONE,)), 2, 3)), 1, "x is pending",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", GOOD)
def test_a_history_that_can_be_told(name: str) -> None:
    """Each promise has an order in which its operations took effect, and all that were heard of are in it."""
    for verdict in check(GOOD[name]):
        assert (verdict.ruling, verdict.why) == (Ruling.LINEARIZABLE, "")
        assert verdict.stuck is None


@pytest.mark.parametrize("name", BAD)
def test_a_history_that_cannot_be_told(name: str) -> None:
    """The operation that stands nowhere is named, and why; what comes before it can be told."""
    operations, stuck, why = BAD[name]
    verdict = first_error(check(operations))
    assert verdict is not None
    assert (verdict.ruling, verdict.stuck) == (Ruling.VIOLATION, operations[stuck])
    assert why in verdict.why
    assert operations[stuck] not in verdict.prefix
    assert [one.ok for one in check(verdict.prefix) if one.promise == verdict.promise] in ([], [True])


def test_the_famous_bug_in_lines() -> None:
    """Three requests, as a person reads them."""
    operations, stuck, _ = BAD["the famous bug"]
    assert [line(one) for one in operations[1:]] == [
        "create x -> 201", "create-and-callback x for t -> 409", "callback x for t -> 200",
    ]  # fmt: skip
    assert as_json(operations[stuck])["request"] == {
        "kind": "promise.register_callback", "awaited": "x", "awaiter": "t",
    }  # fmt: skip


def test_the_longest_prefix_is_in_the_order_of_effects() -> None:
    """Not in that of the questions."""
    read = (GET, ok(DONE), 2, 9)
    operations = history((CREATE, CREATED, 0, 1), read, (RESOLVE, ok(DONE), 3, 4), (GET, ok(PENDING), 10, 11))
    verdict = first_error(check(operations))
    assert verdict is not None
    assert [one.number for one in verdict.prefix] == [0, 2, 1]


def test_a_bound_on_the_search() -> None:
    """Where it is hit, nothing is known, and that is what is said."""
    verdicts = check(GOOD["a deadline"], max_tried=1)
    assert [(one.ruling, one.ok) for one in verdicts] == [(Ruling.UNDECIDED, False)]
    assert first_error(verdicts) == verdicts[0]


def test_many_at_once_are_decided() -> None:
    """Twenty settlements in flight at once, of unknown outcome, and reads of one of them; then of two."""
    settles = [p.PromiseSettle("x", State.RESOLVED, bytes([n])) for n in range(20)]
    lost: list[Said] = [(one, None, n, None) for n, one in enumerate(settles)]
    first, second = (ok(DONE._replace(value=bytes([n]))) for n in (3, 4))
    begun: list[Said] = [(CREATE, CREATED, 0, 50), *lost]
    assert first_error(check(history(*begun, (GET, first, 60, 61), (GET, first, 62, 63)))) is None
    wrong = first_error(check(history(*begun, (GET, first, 60, 61), (GET, second, 62, 63))))
    assert wrong is not None
    assert wrong.ruling is Ruling.VIOLATION
    assert wrong.tried < 2_000


def test_orders_that_come_to_the_same_are_tried_once() -> None:
    """Eight callbacks at once and a wrong read: of their forty thousand orders, only what they come to counts."""
    calls: list[Said] = [(p.RegisterCallback("x", f"t{n}"), CREATED, n + 2, 20) for n in range(8)]
    verdicts = check(history((CREATE, CREATED, 0, 1), *calls, (GET, ok(DONE), 30, 31)))
    wrong = next(one for one in verdicts if one.promise == "x")
    assert wrong.ruling is Ruling.VIOLATION
    assert len(wrong.prefix) == 9
    assert wrong.tried < 3_000


# -- at random: the model and the machine ------------------------------------------------------------------------

BLURS = {
    "as it was": Blur(),
    "windows": Blur(ticks=30),
    "clocks": Blur(clock_ms=300),
    "losses": Blur(lost=0.2),
    "all of it": Blur(25, 300, 0.2),
}


async def _agree(seeds: range, blur: Blur) -> int:
    number = tried = 0
    for seed in seeds:
        operations = await told(seed, blur=blur)
        verdicts = check(operations)
        wrong = first_error(verdicts)
        assert wrong is None, f"seed {seed}, {wrong.promise}: {wrong.why}"
        number += len(operations)
        tried += sum(one.tried for one in verdicts)
    assert tried < 2 * number, "about one step for each operation: the search hardly ever turns back"
    return number


@pytest.mark.asyncio
@pytest.mark.parametrize("name", BLURS)
async def test_what_the_store_does_is_what_the_model_allows(name: str) -> None:
    """Thousands of commands of all kinds, however much of their answers, times and clocks is known."""
    assert await _agree(range(20), BLURS[name]) > 4_000


@pytest.mark.asyncio
@pytest.mark.campaign
@pytest.mark.parametrize("name", BLURS)
async def test_what_the_store_does_is_what_the_model_allows_for_long(name: str) -> None:
    """The same with 100 more seeds."""
    assert await _agree(range(1000, 1100), BLURS[name]) > 20_000


@pytest.mark.asyncio
async def test_a_history_may_begin_with_what_is_there() -> None:
    """The second half of a history, from what the first has left; without that it is wrong."""
    operations = await told(3)
    half = operations[len(operations) // 2].begin
    first = [one for one in operations if one.begin < half]
    rest = [one for one in operations if one.begin >= half]
    left = await _left_by(first)
    assert first_error(check(rest, left)) is None
    assert first_error(check(rest)) is not None


async def _left_by(operations: Sequence[Operation]) -> dict[str, Promise]:
    clock = _Clock()
    store = MemoryStore(clock)
    for batch in dict.fromkeys(one.batch for one in operations):
        alike = [one for one in operations if one.batch == batch]
        clock.now = alike[0].earliest_ms
        replies = (await store.transact([one.command for one in alike])).replies
        assert replies == [one.reply for one in alike]
    return known.stored(await store.snapshot())


class _Clock:
    """A clock that shows what it is told."""

    now = 0

    def now_ms(self) -> int:
        return self.now

    def monotonic(self) -> float:
        return self.now / 1000

    async def sleep(self, seconds: float) -> None:
        raise AssertionError("nothing here sleeps")


# -- spoiled -----------------------------------------------------------------------------------------------------

FOUND = {  # of a hundred lies, at least so many are found
    "status": 75,  # what processes say of themselves concerns no promise
    "state": 100, "value": 90, "timeout": 99, "created": 95, "param": 100, "no promise": 100, "version": 95,
    "turn": 85,  # the first who hears of a turn is believed
    "tick's news": 40,  # what a receive leaves out is not checked
    "acquired": 95,
}  # fmt: skip


@pytest.mark.asyncio
@pytest.mark.parametrize("name", FOUND)
async def test_a_lie_is_found(name: str) -> None:
    """One answer of a good history is changed: for most kinds there is no order then."""
    found = total = 0
    for seed in range(25):
        lie = spoiled(random.Random(seed), await told(seed), LIES[name])
        if lie is not None:
            total += 1
            found += first_error(check(lie[1])) is not None
    assert total >= 8
    assert 100 * found >= FOUND[name] * total, f"{found} of {total} were found"


# -- the search, against every order there is --------------------------------------------------------------------


def test_the_search_misses_no_order() -> None:
    """Small histories, good and spoiled: the search finds an order where trying all of them does, and nowhere else."""
    rulings = {True: 0, False: 0}
    for seed in range(60):
        operations = asyncio.run(told(seed, 14, Blur(25, 300, 0.3)))
        lie = spoiled(random.Random(seed), operations, LIES["state" if seed % 2 else "status"])
        for one in [operations, *([lie[1]] if lie else [])]:
            verdicts = {verdict.promise: verdict for verdict in check(one)}
            for id, steps in partition(one, {}).items():
                if len(steps) <= 6:
                    possible = _some_order(id, steps)
                    assert verdicts[id].ok is possible, f"seed {seed}, {id}: {verdicts[id]}"
                    rulings[possible] += 1
    assert min(rulings.values()) >= 20


def _some_order(id: str, steps: Sequence[Step]) -> bool:
    lost = [step for step in steps if step.end is None]
    heard = [step for step in steps if step.end is not None]
    chosen = product([False, True], repeat=len(lost))
    return any(
        _fits(id, order)
        for choice in chosen
        for order in permutations(heard + [step for step, taken in zip(lost, choice, strict=True) if taken])
    )


def _fits(id: str, order: Sequence[Step]) -> bool:
    for place, step in enumerate(order):
        if any((later.until if later.end is None else later.end) < step.begin for later in order[place + 1 :]):
            return False
    states = {Promise(id)}
    for operation, doubt in (part for step in order for part in step.parts):
        outcomes = [outcome for state in states for outcome in model.apply(state, operation, doubt)]
        if operation.reply is None:
            states = {outcome.after for outcome in outcomes}
        else:
            states = {left for one in outcomes if (left := known.after(one, operation.reply)) is not None}
    return bool(states)
