"""The killing field's model: which executions there are, and what each may come to, computed in plain Python.

A shape is a durable function of `field_program.py` and a draw: from a random stream and a number to its arguments and
what it may come to. To add one, write both; nothing else knows the list. Nothing here runs a durable function.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, NamedTuple

import field_program as program

import dasync

CALLERS_SHARE = 0.25  # of the executions run in a caller's own group, the others in the workers'
INVOKED_BY = 0.9  # of the seconds everything is invoked
ID = "x-{index:05}-{shape}"

CANCELED = ("canceled", None)


class Case(NamedTuple):
    """One execution of a shape."""

    args: tuple[Any, ...]
    allowed: tuple[tuple[str, Any], ...]
    """What it may come to: ("value", ...) or ("canceled", None)."""
    cancel_after: float | None = None
    """When somebody cancels it, in seconds from its invocation."""
    gate: tuple[str, int, float] | None = None
    """What somebody resolves for it, with what, after how many seconds."""
    longest_s: float = 1.0
    """The longest time for which nothing may happen in it, if no fault comes."""


class Planned(NamedTuple):
    """An execution that is to be invoked."""

    index: int
    id: str
    shape: str
    at: float
    caller: int
    helper: int
    """The caller that cancels it or opens its gate."""
    local: bool
    """It runs in the callers' group."""
    case: Case


Draw = Callable[[random.Random, int], Case]


class Shape(NamedTuple):
    function: dasync.Function[..., Any]
    weight: float
    draw: Draw


SHAPES: dict[str, Shape] = {}


def shape(function: dasync.Function[..., Any], weight: float) -> Callable[[Draw], Draw]:
    """Let executions of that function be drawn, that often."""

    def keep(draw: Draw) -> Draw:
        SHAPES[function.name] = Shape(function, weight, draw)
        return draw

    return keep


def value(expected: Any) -> tuple[tuple[str, Any], ...]:
    """The only thing that it may come to."""
    return (("value", expected),)


def leaf(number: int, times: int = 1) -> int:
    """What leaves come to, one after the other."""
    for _ in range(times):
        number = 3 * number + 1
    return number


def far(rng: random.Random) -> int:
    """Which children go to the workers."""
    return rng.getrandbits(8)


def plan(seed: int, executions: int, seconds: float, callers: int) -> list[Planned]:
    """The executions of a run, in the order in which they are invoked."""
    rng = random.Random(f"plan {seed}")
    names, weights = list(SHAPES), [shape.weight for shape in SHAPES.values()]
    times = sorted(rng.uniform(0, seconds * INVOKED_BY) for _ in range(executions))
    planned = []
    for index, at in enumerate(times):
        name = rng.choices(names, weights)[0]
        caller, helper = rng.randrange(callers), rng.randrange(callers)
        id = ID.format(index=index, shape=name)
        local = rng.random() < CALLERS_SHARE
        planned.append(Planned(index, id, name, at, caller, helper, local, SHAPES[name].draw(rng, index)))
    return planned


@shape(program.chain, 6)
def _chain(rng: random.Random, number: int) -> Case:
    hops = rng.randint(1, 5)
    return Case((number, hops, far(rng), rng.choice([0.0, 0.01, 0.1])), value(leaf(number, hops)))


@shape(program.fan_out, 5)
def _fan_out(rng: random.Random, number: int) -> Case:
    width = rng.randint(2, 8)
    how = rng.choice(["all", "gather", "group", "as_completed"])
    return Case((number, width, far(rng), how), value([leaf(number + i) for i in range(width)]))


@shape(program.toils, 3)
def _toils(rng: random.Random, number: int) -> Case:
    return Case((number, far(rng)), value([leaf(number + i) for i in range(3)]))


@shape(program.sequences, 3)
def _sequences(rng: random.Random, number: int) -> Case:
    return Case((number, far(rng)), value([leaf(number, 2), leaf(number + 2, 2)]))


@shape(program.race, 2)
def _race(rng: random.Random, number: int) -> Case:
    allowed = (*value(leaf(number)), *value(leaf(number + 1)))  # the slow one wins if the fast one is long dead
    return Case((number, far(rng)), allowed, longest_s=program.LONG_S)


@shape(program.timers, 3)
def _timers(rng: random.Random, number: int) -> Case:
    seconds = rng.choice([0.05, 0.5, 2.0])
    return Case((number, seconds, far(rng)), value([leaf(number), True]), longest_s=seconds + 0.5)


@shape(program.retries, 3)
def _retries(rng: random.Random, number: int) -> Case:
    return Case((number, rng.randint(0, 3), far(rng)), value([leaf(number), f"hopeless {number}"]))


@shape(program.tree, 2)
def _tree(rng: random.Random, number: int) -> Case:
    depth = rng.randint(1, 2)
    leaves = [number * 2**depth + i for i in range(2**depth)]
    return Case((number, depth, far(rng)), value(sum(map(leaf, leaves))))


@shape(program.canceled, 2)
def _canceled(rng: random.Random, number: int) -> Case:
    return Case((number, far(rng)), (*value(leaf(number, 5)), CANCELED), cancel_after=rng.uniform(0, 1.8))


@shape(program.cancels, 2)
def _cancels(rng: random.Random, number: int) -> Case:
    return Case((number, far(rng)), (*value("canceled"), *value(leaf(number))), longest_s=program.LONG_S)


@shape(program.gated, 3)
def _gated(rng: random.Random, number: int) -> Case:
    gate, given, after = f"gate-{number}", rng.randrange(1000), rng.uniform(0, 1.0)
    return Case((number, gate, far(rng)), value([leaf(number), leaf(given)]), gate=(gate, given, after), longest_s=1.5)


@shape(program.limits, 2)
def _limits(rng: random.Random, number: int) -> Case:
    usual = ["timeout", "timed out", "asyncio"]  # a process that is out for long may find both the outcome and the time
    others = [["timeout", "timed out"], ["timed out", "asyncio"], ["timed out"]]
    allowed = tuple(one for heard in (usual, *others) for one in value(heard))
    return Case((number, far(rng)), allowed, longest_s=program.LONG_S)


@shape(program.starts_over, 2)
def _starts_over(rng: random.Random, number: int) -> Case:
    rounds = rng.randint(1, 4)
    return Case((number, rounds, far(rng)), value(leaf(number, rounds + 1)))


@shape(program.threaded, 2)
def _threaded(rng: random.Random, number: int) -> Case:
    return Case((number, far(rng)), value(leaf(number, 2)))


@shape(program.shares, 2)
def _shares(rng: random.Random, number: int) -> Case:
    common = f"common-{number // 16}"
    return Case((number, common, far(rng)), value([leaf(number), leaf(len(common))]))


@shape(program.detaches, 1)
def _detaches(rng: random.Random, number: int) -> Case:
    return Case((number, far(rng)), value(leaf(number)))


@shape(program.batches, 4)
def _batches(rng: random.Random, number: int) -> Case:
    failures = rng.choices([0, 1, 2], [8, 1, 1], k=rng.randint(2, 5))
    each = [leaf(number + i) for i in range(len(failures))]
    return Case((number, failures, rng.random() < 0.4, far(rng)), value(leaf(sum(each))))


@shape(program.narrow, 1)
def _narrow(rng: random.Random, number: int) -> Case:
    return Case((number, 6, far(rng)), value([leaf(number + i) for i in range(6)]))


@shape(program.computes, 0.3)
def _computes(rng: random.Random, number: int) -> Case:
    return Case((number, far(rng)), value(leaf(number)), longest_s=program.SPAWN_S)
