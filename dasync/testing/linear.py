"""Linearizability: whether a history can be told as one operation after the other, in an order that its times allow.

Wing and Gong's search with Lowe's memoization, promise by promise: an operation takes effect at one instant between
its begin and its end, each answer must be one that `model.py` allows at that instant. Of two operations, one that ended
before the other began comes first; in the same tick they may come in any order. One that was never heard of may take
effect at any time after its begin (until its process was dead, where that is known), or never.

Promises are checked one by one, which is what makes it fast; a history whose parts are all linearizable need not be so
as a whole. What is given up by this:

- That several promises change at one instant. A cancel's effect on what is below it, a settlement's on who awaits it, a
  start-over's on what it removes: each may happen or not, as far as the promise itself allows; `core/invariants.py` has
  the rules that hold between promises.
- That a suspended task is resumed only by what it awaits, and soon: it may be found resumed at any time. So a suspend
  may be answered with "run again" at any time.
- Why a command was refused that another record decides: a listener without a lease, a target that its process does not
  serve, a fence whose task does not exist, unless the history shows that it does.
- What a child inherits: that its deadline is no later than that of the promise above it.
- Who is due to hear: what a `receive` leaves out, what an `acquire` does not take, the lease of a process.

The search is bounded. Where the bound is hit the ruling is "undecided", which is neither of the other two.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum
from typing import NamedTuple

from dasync.core import protocol as p
from dasync.testing import known, model
from dasync.testing.history import Operation
from dasync.testing.known import Promise
from dasync.testing.parts import Part, Step, partition, shown

MAX_TRIED = 300_000  # steps tried for one promise; a sequential history needs one for each of its steps
_READS = (p.PromiseGet, p.TaskGet, p.Receive, p.ProcessHeartbeat, p.Tick)


class Ruling(StrEnum):
    """What was found."""

    LINEARIZABLE = "linearizable"
    VIOLATION = "violation"
    UNDECIDED = "undecided"


class Verdict(NamedTuple):
    """What was found of one promise."""

    promise: str
    ruling: Ruling
    prefix: tuple[Operation, ...]
    """The longest prefix that is linearizable, in the order in which its operations take effect."""
    stuck: Operation | None
    """The first operation that can stand nowhere after it; None: there is none, or it is not known."""
    why: str
    """In words: what was known then, what was due, what was heard."""
    tried: int

    @property
    def ok(self) -> bool:
        """Whether it is linearizable. A verdict that is undecided is not ok either."""
        return self.ruling is Ruling.LINEARIZABLE


def check(
    history: Sequence[Operation], initial: Mapping[str, Promise] | None = None, max_tried: int = MAX_TRIED
) -> list[Verdict]:
    """One verdict for each promise that the history names, in the order of their ids.

    `initial`: promises that there were before; any other was absent. The history must hold everything that was asked of
    the store since, by anybody.
    """
    before = initial or {}
    parts = partition(history, before)
    return [_Search(id, steps, max_tried).verdict(before.get(id) or Promise(id)) for id, steps in parts.items()]


def first_error(verdicts: Sequence[Verdict]) -> Verdict | None:
    """The violation whose operation was asked for first, else what is undecided; None: all is well."""
    wrong = [one for one in verdicts if not one.ok]
    return min(
        wrong,
        key=lambda one: (one.ruling is Ruling.UNDECIDED, one.stuck.number if one.stuck else 0, one.promise),
        default=None,
    )


class _Node(NamedTuple):
    """A point of the search: what has taken effect, and what is known then."""

    state: Promise
    base: int
    """So many of the steps that were heard of have taken effect, the first ones."""
    mask: int
    """And these of the ones after them."""
    used: int
    """And these of those that were never heard of."""
    latest: int
    """The latest begin of all of these."""


def _twins(steps: Sequence[Step]) -> list[int | None]:
    """Of each step the one before it that asks for the same and is over no later, as where an acquire is repeated."""
    last: dict[tuple[p.Command, ...], int] = {}
    found: list[int | None] = []
    for number, step in enumerate(steps):
        commands = tuple(part.operation.command for part in step.parts)
        twin = last.get(commands) if all(isinstance(one, p.TaskAcquire | p.ProcessLeave) for one in commands) else None
        found.append(twin if twin is not None and steps[twin].until <= step.until else None)
        last[commands] = number
    return found


class _Search:
    """The search for one promise."""

    def __init__(self, promise: str, steps: Sequence[Step], max_tried: int) -> None:
        self._heard = sorted((step for step in steps if step.end is not None), key=lambda step: step.begin)
        self._unheard = sorted((step for step in steps if step.end is None), key=lambda step: step.begin)
        self._reads = [all(isinstance(part.operation.command, _READS) for part in step.parts) for step in self._heard]
        self._twin = _twins(self._unheard)
        replies = [part.operation.reply for step in self._heard for part in step.parts]
        told = (record for reply in replies if reply is not None for record in shown(reply))
        self._made_at = {record.created_at for record in told if record.id == promise}
        self._max_tried = max_tried
        self._tried = 0

    def verdict(self, state: Promise) -> Verdict:
        path = [_Node(state, 0, 0, 0, -1)]
        taken: list[Step] = []
        open_ends = [self._next(path[0])]
        visited = {path[0]}
        best, deepest = list[Step](), path[0]
        while True:
            if path[-1].base == len(self._heard):
                return Verdict(state.id, Ruling.LINEARIZABLE, _operations(taken), None, "", self._tried)
            found = next((pair for pair in open_ends[-1] if pair[0] not in visited), None)
            if self._tried > self._max_tried:
                why = f"given up after {self._tried} steps tried"
                return Verdict(state.id, Ruling.UNDECIDED, _operations(best or taken), None, why, self._tried)
            if found is not None:
                node, step = found
                visited.add(node)
                path.append(node)
                taken.append(step)
                open_ends.append(self._next(node))
                continue
            if _count(path[-1]) > _count(deepest):
                best, deepest = list(taken), path[-1]
            open_ends.pop()
            path.pop()
            if not path:
                stuck, why = self._reason(deepest)
                return Verdict(state.id, Ruling.VIOLATION, _operations(best), stuck, why, self._tried)
            taken.pop()

    def _next(self, node: _Node) -> Iterator[tuple[_Node, Step]]:
        """Everything that may take effect next."""
        places = self._candidates(node)
        last = self._last_chance(node)
        for place in places:
            step = self._heard[place]
            if self._reads[place] and step.begin <= last and node.state in self._try(node.state, step):
                yield self._placed(node, place, node.state), step
                return  # what only reads, and fits, may as well be now
        for place in places:
            for state in self._try(node.state, self._heard[place]):
                yield self._placed(node, place, state), self._heard[place]
        yield from sorted(self._never_heard(node, places), key=lambda pair: self._is_unlikely(pair[0].state))

    def _never_heard(self, node: _Node, places: Sequence[int]) -> Iterator[tuple[_Node, Step]]:
        horizon = min((self._heard[place].end or 0 for place in places), default=0)
        for number, step in enumerate(self._unheard):
            if node.used >> number & 1 or step.begin > horizon or step.until < node.latest:
                continue
            twin = self._twin[number]
            if twin is not None and not node.used >> twin & 1 and self._unheard[twin].until >= node.latest:
                continue  # which would do as well now, and this one as well as that one later
            for state in self._try(node.state, step):
                # To have found that no deadline had come is nothing that anybody could see.
                if state._replace(deadline=node.state.deadline) != node.state:
                    latest = max(node.latest, step.begin)
                    yield node._replace(state=state, used=node.used | 1 << number, latest=latest), step

    def _is_unlikely(self, state: Promise) -> bool:
        """Whether it was made at another time than anybody has ever been told: that is tried last."""
        least, most = state.created
        return state.birth is not None and not any(least <= at <= most for at in self._made_at)

    def _last_chance(self, node: _Node) -> int:
        """The first tick after which something can take effect no more that was never heard of, and still can now."""
        left = (step.until for number, step in enumerate(self._unheard) if not node.used >> number & 1)
        return min((until for until in left if until >= node.latest), default=known.FOREVER)

    def _candidates(self, node: _Node) -> list[int]:
        """The steps that were heard of before which no other one of them must have taken effect."""
        place, end, found = node.base, known.FOREVER, []
        while place < len(self._heard) and self._heard[place].begin <= end:
            if not node.mask >> (place - node.base) & 1:
                found.append(place)
                end = min(end, self._heard[place].end or 0)
            place += 1
        return [place for place in found if self._heard[place].begin <= end]

    def _placed(self, node: _Node, place: int, state: Promise) -> _Node:
        base, mask = node.base, node.mask | 1 << (place - node.base)
        while mask & 1:
            base, mask = base + 1, mask >> 1
        return _Node(state, base, mask, node.used, max(node.latest, self._heard[place].begin))

    def _try(self, state: Promise, step: Step) -> list[Promise]:
        """What may be known of the promise once the step has taken effect."""
        self._tried += 1
        states = [state]
        for part in step.parts:
            states = [after for before in states for after in _after(before, part)]
            if len(states) > 1:  # each once, after each part: they would double with every one
                states = list(dict.fromkeys(states))
        return states

    def _reason(self, node: _Node) -> tuple[Operation, str]:
        """Which operation can stand nowhere, and why: of those that come next, the one that ended first."""
        place = min(self._candidates(node), key=lambda place: (self._heard[place].end, place))
        states = [node.state]
        for part in self._heard[place].parts:
            later = [after for before in states for after in _after(before, part)]
            if not later:
                return part.operation, known.why_not(states[0], part.operation, model.apply(states[0], *part))
            states = later
        raise AssertionError("a step that fits leads on, so this is not the end of the search")


def _after(state: Promise, part: Part) -> list[Promise]:
    reply, outcomes = part.operation.reply, model.apply(state, *part)
    if reply is None:
        return [outcome.after for outcome in outcomes]
    return [after for after in (known.after(outcome, reply) for outcome in outcomes) if after is not None]


def _count(node: _Node) -> int:
    """How many of the steps that were heard of have taken effect."""
    return node.base + node.mask.bit_count()


def _operations(steps: Sequence[Step]) -> tuple[Operation, ...]:
    return tuple(part.operation for step in steps for part in step.parts)
