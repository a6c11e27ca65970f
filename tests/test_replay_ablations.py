"""Each rule of exact replay, switched off, makes programs of the matrix come out wrong, and the matrix says so.

What is switched off is one place in the runtime. The programs named here are those that need the rule most; that they
are right with it is what `test_matrix.py` shows. That ids follow the shape is ablated in `test_lives.py`, and with
processes that are killed in `test_replay.py`.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary
from zlib import crc32

import matrix
import pytest
import test_barrier
import test_divergence

from dasync.core.model import PromiseRecord
from dasync.runtime.branch import BranchTask
from dasync.runtime.calls import Calls
from dasync.runtime.child import Child
from dasync.runtime.code import Code
from dasync.runtime.places import Places
from dasync.runtime.promise import UNREAD
from dasync.runtime.turns import Turns
from dasync.testing.trial import Trial

CASES = 150  # of each program; the first wrong one is enough
Patch = pytest.MonkeyPatch


class Ablation(NamedTuple):
    """A rule, how it is switched off, and who notices."""

    off: Callable[[Patch], None]
    programs: tuple[str, ...]


def taken_when_heard_of(patch: Patch) -> None:
    """Each outcome, although others may come with it. (Most programs end by a broken invariant then: one of the same
    commit comes after it.)"""
    patch.setattr(Code, "awaits_only", lambda code, outcome: True)


def outcomes_as_they_are_found(patch: Patch) -> None:
    def recall(self: Turns, outcome: Any, record: PromiseRecord) -> None:
        self._plan.meet(record)
        if record.turn is not None:
            outcome.taken(record, UNREAD)

    patch.setattr(Turns, "recall", recall)


def outcomes_one_by_one(patch: Patch) -> None:
    def come(self: Turns, outcome: Any, record: PromiseRecord, value: object) -> None:
        outcome.taken(record, value)

    patch.setattr(Turns, "come", come)


def turns_at_any_time(patch: Patch) -> None:
    patch.setattr(Turns, "_is_at_rest", lambda self: True)


def no_cuts(patch: Patch) -> None:
    patch.setattr(Places, "record_cut", lambda self: None)


def no_barrier(patch: Patch) -> None:
    patch.setattr(Calls, "_decided", lambda self, promise: None)


def hash_by_address(patch: Patch) -> None:
    """In each life the addresses are others, so sets of tasks are in another order."""
    lives: WeakKeyDictionary[asyncio.AbstractEventLoop, bytes] = WeakKeyDictionary()
    draws = random.Random(0)

    def shaken(task: BranchTask[object]) -> int:
        life = lives.setdefault(task.get_loop(), draws.randbytes(8))
        return crc32(life + task.branch.prefix.encode())

    patch.setattr(BranchTask, "__hash__", shaken)


def now_unrecorded(patch: Patch) -> None:
    patch.setattr(Calls, "now_ms", lambda self, at: self.held.host.clock.now_ms())


def randomness_unrecorded(patch: Patch) -> None:
    patch.setattr(Calls, "seed", lambda self, at: os.urandom(16))


def no_fingerprint(patch: Patch) -> None:
    def recall(self: Child) -> PromiseRecord | None:
        record = self.held.history.pop(self.promise.id, None)
        if record is not None:
            self._stored, self._told = True, record.turn is not None
        return record

    patch.setattr(Child, "recall", recall)


RULES = {
    "outcomes are taken in their turns": Ablation(
        outcomes_as_they_are_found, ("gather_of_sequences", "queue", "wait_for_the_first", "timeout_around_a_gather")
    ),
    "those of one commit are one turn, live too": Ablation(outcomes_one_by_one, ("task_group_whose_child_fails",)),
    "an outcome is taken at once if no other can come": Ablation(taken_when_heard_of, ("timeout_around_a_gather",)),
    "a turn is taken at rest": Ablation(turns_at_any_time, ("wait_for_the_first",)),
    "a cancel is cut at its place": Ablation(no_cuts, ("task_group_whose_child_fails",)),
    "tasks hash by their places": Ablation(hash_by_address, ("wait_in_a_set_order", "task_group_whose_child_fails")),
    "now is recorded": Ablation(now_unrecorded, ("decisions_as_arguments",)),
    "randomness hangs on what is recorded": Ablation(randomness_unrecorded, ("decisions_as_arguments",)),
}


@pytest.mark.parametrize(
    ("rule", "name"), [(rule, name) for rule, ablation in RULES.items() for name in ablation.programs]
)
def test_without_the_rule_a_program_comes_out_wrong(rule: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One wrong case is enough; it is looked for as `test_matrix.py` looks for it."""
    if RULES[rule].off is no_cuts and sys.version_info >= (3, 13):
        pytest.skip("its TaskGroup cancels in another way: among these cases none needs the rule")
    RULES[rule].off(monkeypatch)
    trial = Trial(matrix.PROGRAMS[name])
    assert next((fault for case in trial.draw(CASES, b"ablation") if (fault := trial.check(case)) is not None), None)


def test_without_the_barrier_an_effect_outlives_its_decision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A body starts, and the decision that led to it is not in the file."""
    no_barrier(monkeypatch)
    with pytest.raises(AssertionError):
        asyncio.run(test_barrier.test_a_body_starts_when_every_decision_before_it_is_durable(tmp_path))


def test_without_fingerprints_a_changed_program_is_silently_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The replay of a program whose invocation has other arguments now takes the old one's outcome for its own."""
    no_fingerprint(monkeypatch)
    with pytest.raises(pytest.fail.Exception, match="DID NOT RAISE"):
        test_divergence.test_the_line_of_the_call_is_told(tmp_path, test_divergence.in_a_thread, monkeypatch)
