"""Schedules: in which order leaves are settled, which of them in one commit, and where time passes. Pure text.

    a b+c . d,e;;f      a; then b and c in one commit; a long time passes; then d, at the same instant but in a commit
                        of its own e, and when the asyncio loop has turned twice f
    a@1000 b,c@8500     a at that time, in milliseconds since the beginning, b and c at another

A `Log` is the schedule that a disk has seen; `orders` are all that a program's leaves can have, `drawn` is any of them.
This file settles nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import permutations, product
from random import Random
from typing import NamedTuple

PAUSE = "."
JOINTS = (" ", " ", "+", ",", ";", ";;;;")  # between two leaves of a schedule that is drawn
FEW_TURNS = 3
MAX_TURNS = 12  # of the asyncio loop between commits at one instant: an execution has come to rest by then


class Commit(NamedTuple):
    """Leaves that are settled together."""

    names: tuple[str, ...]
    turns: int = 0
    """How often the asyncio loop turns before it, after the commit before it."""
    at_ms: int = 0
    """When, since the beginning, if it is the first of a step; 0: some time after the step before."""


LITTLE = [[","], *([",", ";" * turns] for turns in range(1, MAX_TURNS + 1))]
"""What may be between two commits at one instant: nothing, or so many turns, everywhere the same."""
Step = tuple[Commit, ...]
"""Commits at one instant; none: a long time passes."""


def parse(schedule: str) -> list[Step]:
    """The steps of a schedule.

    Example:
        >>> [[commit.names for commit in step] for step in parse("a b+c . d,e")]
        [[('a',)], [('b', 'c')], [], [('d',), ('e',)]]
    """
    return [() if step == PAUSE else tuple(_commits(step)) for step in schedule.split()]


def _commits(step: str) -> Iterator[Commit]:
    step, _, at_ms = step.partition("@")
    first, *others = re.split(r"(,|;+)", step)
    yield Commit(tuple(first.split("+")), 0, int(at_ms or 0))
    for between, names in zip(others[::2], others[1::2], strict=True):
        yield Commit(tuple(names.split("+")), between.count(";"))


def text(steps: Iterable[Step]) -> str:
    """The schedule of those steps, the leaves of one commit by their names."""
    return " ".join(_step(step) or PAUSE for step in steps)


def _step(step: Step) -> str:
    joints = ["", *(";" * commit.turns or "," for commit in step[1:])]
    found = "".join(joint + "+".join(sorted(commit.names)) for joint, commit in zip(joints, step, strict=False))
    return f"{found}@{step[0].at_ms}" if step and step[0].at_ms else found


class Log(NamedTuple):
    """Which leaves were settled on a disk, in its commits' order."""

    schedule: str = ""
    times: tuple[int, ...] = ()
    """When each commit was, in milliseconds since the epoch."""

    @property
    def commits(self) -> list[tuple[str, ...]]:
        """Which leaves were settled together."""
        return [commit.names for step in parse(self.schedule) for commit in step]

    @property
    def names(self) -> frozenset[str]:
        """The leaves that are settled."""
        return frozenset(name for names in self.commits for name in names)

    def after(self, commit: Iterable[str], now_ms: int, *, at_once: bool = False) -> Log:
        """As it is once those leaves are settled, too; what was settled before stays as it was.

        `at_once`: the program may not have moved since the commit before, whatever the clock says.
        """
        fresh = sorted(set(commit) - self.names)
        if not fresh:
            return self
        between = "" if not self.times else "," if at_once or now_ms == self.times[-1] else " "
        return Log(f"{self.schedule}{between}{'+'.join(fresh)}", (*self.times, now_ms))

    def without(self, began_ms: int, ended_ms: int) -> Log:
        """As it would be if the time between those two had not passed."""
        return self._replace(times=tuple(at if at < ended_ms else at - ended_ms + began_ms for at in self.times))

    def ends(self, before: Log) -> Iterator[Log]:
        """This log, and what it was earlier, back to `before`."""
        steps = parse(self.schedule)
        yield self
        while steps and len(self.commits) > len(before.commits):
            steps[-1] = steps[-1][:-1]
            steps = [step for step in steps if step]
            if sum(map(len, steps)) < len(before.commits):
                return
            yield Log(text(steps), self.times[: sum(map(len, steps))])

    def timed(self, began_ms: int) -> list[str]:
        """The schedules by which each commit comes exactly when it came here, the likeliest first.

        Between two commits at one instant the program may have moved, or not, or a little.
        """
        joints = [at > 0 for step in parse(self.schedule) for at, _ in enumerate(step)]
        times = [at_ms - began_ms for at_ms in self.times]
        found: dict[str, None] = {}
        for little in LITTLE:
            ways = [
                ([] if joined and at_ms == times[at - 1] else [" "]) + (little if joined else [])
                for at, (joined, at_ms) in enumerate(zip(joints, times, strict=True))
            ]
            found.update((self._at(times, way), None) for way in product(*ways))
        return sorted(found, key=lambda one: one.count(";"))

    def _at(self, times: list[int], way: tuple[str, ...]) -> str:
        """The schedule of these commits, so joined; a step comes when its first commit came."""
        steps: list[str] = []
        for names, at_ms, joint in zip(self.commits, times, way, strict=True):
            if joint == " ":
                steps.append(f"{'+'.join(names)}@{at_ms}")
            else:
                before, _, first_ms = steps[-1].partition("@")
                steps[-1] = f"{before}{joint}{'+'.join(names)}@{first_ms}"
        return " ".join(steps)

    def readings(self, raw: Sequence[str] = (), *, clocked: bool) -> list[str]:
        """The schedules of undisturbed runs that come to this log, the likeliest first.

        Between two commits at one instant the program may have moved, or not, or a little; where the outcome depends
        on the clock, a long time may have passed, once or twice, between any two, before the first and after the
        last; and what is not recorded (`raw`) may have come at any time.
        """
        passes = ["", f"{PAUSE} ", f"{PAUSE} {PAUSE} "] if clocked else [""]
        joints = [at > 0 for step in parse(self.schedule) for at, _ in enumerate(step)]
        names = ["+".join(commit) for commit in self.commits]
        found: dict[str, None] = {}
        for little in LITTLE:
            ways = [[f" {passed}" for passed in passes] + (little if joined else []) for joined in joints]
            joined_so = ("".join(map("".join, zip(way, names, strict=True))) for way in product(*ways))
            found.update((f"{one} {passed}".strip(), None) for one in joined_so for passed in passes)
        for name in raw:
            found = {put: None for one in found for put in _put(name, one.split())}
        return sorted(found, key=lambda one: (one.count(PAUSE) + one.count(";"), one))


def _put(name: str, steps: list[str]) -> list[str]:
    return [" ".join([*steps[:at], name, *steps[at:]]) for at in range(len(steps) + 1)]


@lru_cache
def orders(leaves: tuple[str, ...], *, clocked: bool = False) -> list[str]:
    """Every order of those leaves: one by one, in one commit, at one instant; where it matters, with a pause."""
    found: dict[str, None] = {}
    for order in permutations(leaves):
        for joints in product((" ", "+", ","), repeat=max(0, len(order) - 1)):
            steps = parse("".join(joint + name for joint, name in zip(("", *joints), order, strict=False)))
            places = range(-1, len(steps) + 1) if clocked else (-1,)
            paused = (steps if at < 0 else [*steps[:at], (), *steps[at:]] for at in places)
            found.update((text(one), None) for one in paused)
    return sorted(found, key=lambda one: (one.count("+") + one.count(","), one))


def drawn(draws: Random, leaves: Sequence[str], *, clocked: bool = False) -> str:
    """Any order of those leaves."""
    joined = (draws.choice(JOINTS) + name for name in draws.sample(leaves, len(leaves)))
    steps = parse("".join(joined).lstrip("".join(JOINTS)))
    for _ in range(draws.choice((0, 1, 1, 2)) if clocked else 0):
        steps.insert(draws.randint(0, len(steps)), ())
    return text(steps)


def in_turns(schedule: str) -> list[tuple[Step, ...]]:
    """What a schedule may come to where nothing tells commits at one instant from one commit, or one after the other;
    the leaves of one commit in any turn."""
    found = [tuple(step for part in way for step in part) for way in product(*map(_ways, parse(schedule)))]
    return [turned for steps in found for turned in product(*map(_turned, steps))]


def _ways(step: Step) -> list[list[Step]]:
    """The step as it is; then what each of its commits may be to the one before: the same one, or one that comes at
    once, a little later, when the program has come to rest, or some time later."""
    ways: dict[tuple[Step, ...], None] = {(step,): None}
    for joints in product("+,;: ", repeat=max(0, len(step) - 1)):
        steps = [step[:1]]
        for joint, commit in zip(joints, step[1:], strict=False):
            before = steps[-1]
            if joint == " ":
                steps.append((commit._replace(turns=0),))
            elif joint == "+":
                steps[-1] = (*before[:-1], before[-1]._replace(names=before[-1].names + commit.names))
            else:
                turns = {",": 0, ";": commit.turns or FEW_TURNS, ":": MAX_TURNS}[joint]
                steps[-1] = (*before, commit._replace(turns=turns))
        ways[tuple(steps)] = None
    return [list(way) for way in ways]


def _turned(step: Step) -> list[Step]:
    ways = [[commit._replace(names=names) for names in permutations(commit.names)] for commit in step]
    return list(product(*ways))
