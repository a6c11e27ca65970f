"""Histories for the checker of linearizability: random ones, of what a real store answered, and ways to spoil them.

A history is told as it was, or as its clients may have seen it: windows that overlap, clocks that are not known,
answers that never came. Nothing here looks at the model.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import NamedTuple

from clocks import FakeClock
from test_stores import any_command

from dasync.core import protocol as p
from dasync.core.invariants import Snapshot
from dasync.core.model import PromiseRecord, State
from dasync.core.protocol import Reply, Status
from dasync.stores.memory import MemoryStore
from dasync.testing.history import Operation

GAP = 10  # ticks between two batches


class Blur(NamedTuple):
    """How much less is known than what was."""

    ticks: int = 0
    """An operation may have been asked for so much earlier, and heard of so much later."""
    clock_ms: int = 0
    lost: float = 0.0
    """The share of batches whose answers nobody hears; half of these are never done."""


SHARP = Blur()


async def told(seed: int, batches: int = 60, blur: Blur = SHARP) -> list[Operation]:
    """What clients of one store saw of a random script."""
    rng, clock, history = random.Random(seed), FakeClock(), list[Operation]()
    store = MemoryStore(clock)
    for batch in range(batches):
        commands = [command(rng, clock.now_ms(), await store.snapshot()) for _ in range(rng.choice([1, 1, 2, 5, 9]))]
        tick, now, fate = batch * GAP + blur.ticks, clock.now_ms(), rng.random()
        done = None if fate < blur.lost / 2 else (await store.transact(commands)).replies
        begin, end = tick - rng.randrange(blur.ticks + 1), tick + rng.randrange(blur.ticks + 1) + 1
        least, most = now - rng.randrange(blur.clock_ms + 1), now + rng.randrange(blur.clock_ms + 1)
        bounds = rng.choice([(most, end), (None, None)])
        for place, one in enumerate(commands):
            alone = Operation(0, f"client-{batch % 3}", one, begin, None, None, least, bounds[0], batch, bounds[1])
            if done is not None and fate >= blur.lost:
                alone = alone._replace(end=end, reply=done[place], latest_ms=most, until=None)
            history.append(alone)
        clock.advance(rng.choice([0, 0, 0.1, 0.7, -0.2]))
    history.sort(key=lambda operation: operation.begin)
    return [operation._replace(number=number) for number, operation in enumerate(history)]


def command(rng: random.Random, now: int, seen: Snapshot) -> p.Command:
    """Anything that may be said, cancels among it."""
    if rng.random() > 0.04:
        return any_command(rng, now, seen)
    cancel = p.PromiseCancel(rng.choice(["a", "b", "c", "a:0", "b:0"]), rng.randbytes(1))
    held = [task for task in seen.tasks.values() if task.process is not None and task.id != cancel.id]
    if not held or rng.random() < 0.5:
        return cancel
    task = rng.choice(held)
    return p.TaskFence(p.Claim(task.id, task.version, task.process or ""), cancel)


# -- lies ------------------------------------------------------------------------------------------------------

Lie = Callable[[random.Random, Reply], Reply | None]


def _another_status(rng: random.Random, reply: Reply) -> Reply | None:
    return reply._replace(status=rng.choice([status for status in Status if status is not reply.status]))


def _of_promise(change: Callable[[random.Random, PromiseRecord], PromiseRecord | None]) -> Lie:
    def lie(rng: random.Random, reply: Reply) -> Reply | None:
        changed = None if reply.promise is None else change(rng, reply.promise)
        return None if changed is None else reply._replace(promise=changed)

    return lie


def _another_state(rng: random.Random, one: PromiseRecord) -> PromiseRecord | None:
    state = rng.choice([state for state in State if state is not one.state])
    if state is State.PENDING:
        return one._replace(state=state, settled_at=None, value=None, turn=None)
    return one._replace(state=state, settled_at=one.settled_at or one.created_at, turn=one.turn or 1)


def _another_value(rng: random.Random, one: PromiseRecord) -> PromiseRecord | None:
    return None if one.state is State.PENDING else one._replace(value=b"a lie")


def _task_of_another_version(rng: random.Random, reply: Reply) -> Reply | None:
    task = reply.task
    return None if task is None else reply._replace(task=task._replace(version=task.version + rng.choice([-1, 1])))


def _news_forgotten(rng: random.Random, reply: Reply) -> Reply | None:
    return reply._replace(settled=reply.settled[1:]) if reply.settled else None


def _preload_forgotten(rng: random.Random, reply: Reply) -> Reply | None:
    if not reply.acquired or not reply.acquired[0].preload:
        return None
    first = reply.acquired[0]
    return reply._replace(acquired=(first._replace(preload=first.preload[1:]), *reply.acquired[1:]))


def _taken_at_another_version(rng: random.Random, reply: Reply) -> Reply | None:
    if not reply.acquired:
        return None
    first = reply.acquired[0]
    other = first._replace(task=first.task._replace(version=first.task.version + 1))
    return reply._replace(acquired=(other, *reply.acquired[1:]))


LIES: dict[str, Lie] = {
    "status": _another_status,
    "state": _of_promise(_another_state),
    "value": _of_promise(_another_value),
    "timeout": _of_promise(lambda rng, one: one._replace(timeout_at=(one.timeout_at or 5_000) + 1)),
    "created": _of_promise(lambda rng, one: one._replace(created_at=one.created_at - 1)),
    "param": _of_promise(lambda rng, one: one._replace(param=b"a lie")),
    "turn": _of_promise(lambda rng, one: None if one.turn is None else one._replace(turn=one.turn + 1)),
    "no promise": lambda rng, reply: None if reply.promise is None else reply._replace(promise=None),
    "version": _task_of_another_version,
    "tick's news": _news_forgotten,
    "preload": _preload_forgotten,
    "acquired": _taken_at_another_version,
}


def spoiled(rng: random.Random, history: Sequence[Operation], lie: Lie) -> tuple[Operation, list[Operation]] | None:
    """The history with one answer changed, and the operation that was answered so."""
    places = [place for place, operation in enumerate(history) if operation.reply is not None]
    for place in rng.sample(places, len(places)):
        reply = history[place].reply
        changed = None if reply is None else lie(rng, reply)
        if changed is not None:
            operation = history[place]._replace(reply=changed)
            return operation, [*history[:place], operation, *history[place + 1 :]]
    return None
