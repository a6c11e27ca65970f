"""Faults as data: what befalls a simulated world, and after which commit. A plan is drawn from a seed.

A plan can be printed, replayed and made shorter: that is why faults are not drawn on the way. A commit that writes
nothing but heartbeats counts for nothing, so that a plan means the same however long the world idles. What a fault does
is `world.py`'s.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import NamedTuple


class Fault(NamedTuple):
    """One thing that befalls a world."""

    after: int
    """After so many commits that are no heartbeats."""
    kind: str
    """One of `KINDS`."""
    who: str = ""
    """The process that it hits, or a pair `a/b` of hosts; empty: all of them."""
    for_s: float = 0.0
    """How long it lasts, or how long the process stays away."""
    much: float = 0.0
    """How often a letter is lost, a commit fails; by how many seconds a clock jumps."""

    def __str__(self) -> str:
        much = f" {self.much:g}" if self.much else ""
        return f"{self.after}:{self.kind}:{self.who}:{self.for_s:g}{much and ':' + much.strip()}"


KINDS = {
    "kill": "a process dies, and is started again",
    "stop": "a process stands still, maybe for longer than its lease",
    "term": "a process is told to end, and is started again",
    "power": "all of them die at once, and commits that were not synced are lost",
    "loss": "doorbells are lost",
    "doubles": "doorbells ring twice",
    "delays": "doorbells ring late, and so out of order",
    "cut": "nothing comes through between two hosts",
    "slow": "the disk is slow",
    "full": "the disk is full",
    "fail": "commits fail, or take effect and are said to have failed",
    "clock": "a wall clock jumps",
}
WEIGHTS = {"kill": 6, "stop": 4, "term": 2, "power": 1, "clock": 1}  # of the others: 1
MEAN_COMMITS = 60


def parse(text: str) -> Fault:
    """The fault that was printed so. Raises `ValueError` for what is none."""
    after, kind, who, for_s, *much = text.split(":")
    if kind not in KINDS:
        raise ValueError(f"{kind!r} is no kind of fault; those are {', '.join(KINDS)}")
    return Fault(int(after), kind, who, float(for_s), float(much[0]) if much else 0.0)


def swarm(draws: Random, processes: Sequence[str], hosts: Sequence[str], lease_s: float) -> list[Fault]:
    """A plan of some kinds, chosen anew for each seed: what never comes together with everything is found, too."""
    kinds = [kind for kind in KINDS if draws.random() < 0.4]
    return plan(draws, processes, hosts, lease_s, kinds, draws.randrange(1, 9)) if kinds else []


def plan(
    draws: Random, processes: Sequence[str], hosts: Sequence[str], lease_s: float, kinds: Sequence[str], count: int
) -> list[Fault]:
    """So many faults of those kinds."""
    weights = [WEIGHTS.get(kind, 1) for kind in kinds]
    faults = [
        _drawn(draws, draws.choices(kinds, weights)[0], processes, hosts, lease_s) for _ in range(count)
    ]  # fmt: skip
    return sorted(faults)


def _drawn(draws: Random, kind: str, processes: Sequence[str], hosts: Sequence[str], lease_s: float) -> Fault:
    after = int(draws.expovariate(1 / MEAN_COMMITS))
    who = draws.choice(processes)
    short, long = draws.uniform(0.01, lease_s / 2), draws.uniform(lease_s * 1.1, lease_s * 3)
    if kind == "stop":
        return Fault(after, kind, who, round(draws.choice((short, long)), 3))
    if kind in ("kill", "term"):
        return Fault(after, kind, who, round(draws.choice((0.0, short, long)), 3))
    if kind == "power":
        return Fault(after, kind, "", round(short, 3))
    if kind == "cut":
        return Fault(after, kind, "/".join(draws.sample(list(hosts), 2)) if len(hosts) > 1 else "", round(long, 3))
    if kind == "clock":
        much = draws.choice((3600.0, -3600.0, round(draws.uniform(-5, 5), 3)))
        return Fault(after, kind, who, round(long, 3), much)
    return Fault(after, kind, "", round(draws.choice((short, long)), 3), draws.choice((0.1, 0.5, 1.0)))
