"""Lives that are cut short: what a crash leaves, that the dead do nothing, and that a trial is not blind."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import matrix
import pytest

import dasync
from dasync.core.invariants import inspect
from dasync.runtime.branch import Branch
from dasync.system import stream
from dasync.testing import leaves
from dasync.testing.crash import Death, MemoryDisk
from dasync.testing.leaves import leaf
from dasync.testing.life import Outcome, live
from dasync.testing.schedule import Log, drawn, in_turns, orders, parse, text
from dasync.testing.trial import Case, Program, Trial

PROGRAMS = matrix.PROGRAMS
CUT_SHORT = ("gather_of_sequences", "cancel_that_cleans_up", "durable_children", "race_of_executions", "timeout")


@pytest.mark.parametrize("kind", leaves.KINDS)
@pytest.mark.parametrize("name", CUT_SHORT)
def test_a_life_that_dies_leaves_what_was_recorded_of_one_that_did_not(name: str, kind: str) -> None:
    """The rows after a real death, at any batch, and after any command of it, are those of the recorded moment; whether
    the dying process heard of its last batch makes no difference."""
    program = PROGRAMS[name]
    schedule = " ".join(program.leaves)
    whole = MemoryDisk(records=True)
    assert live(program.function, whole, schedule, kind=kind) is not None
    assert len(whole.moments) >= 8
    for moment in whole.moments:
        deaths = [Death(moment.batches, moment.commands, heard) for heard in {bool(moment.commands), True}]
        for death in deaths:
            disk = MemoryDisk()
            if live(program.function, disk, schedule, kind=kind, death=death) is None:
                assert (disk.rows.snapshot(), disk.log) == (moment.rows, moment.log), (death, moment.log)
        assert inspect(moment.rows) == []


def test_a_dying_life_cleans_nothing_up() -> None:
    """No `finally` of it runs, and its durable code does nothing more; the life after it cleans up once."""
    ledger: list[str] = []

    @dasync.function
    async def careful() -> str:
        ledger.append("begin")
        try:
            return await leaf("a") + await leaf("b")
        finally:
            ledger.append("finally")

    whole = MemoryDisk(records=True)
    live(careful, whole, "a b", kind="local")
    for moment in whole.moments:
        ledger.clear()
        assert live(careful, MemoryDisk(), "a b", kind="local", death=Death(moment.batches, moment.commands)) is None
        assert ledger in ([], ["begin"]) or moment.log.names == {"a", "b"}
        ledger.clear()
        again = live(careful, MemoryDisk(moment), "b a", kind="local")
        assert again is not None
        assert again.outcome == Outcome("value", "'ab'")
        root = moment.rows.promises.get("root")
        assert ledger == (["begin", "finally"] if root is None or root.settled_at is None else [])


# -- a trial is not blind --------------------------------------------------------------------------------------------


def faults(program: Program, count: int = 40) -> Iterator[str]:
    trial = Trial(program)
    return (str(fault) for case in trial.draw(count, b"blind?") if (fault := trial.check(case)) is not None)


def test_a_world_that_numbers_by_call_order_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """With ids in the order of the calls, sequences with threads between resume wrong, and a trial says so."""

    @dasync.function
    async def sequences() -> list[str]:
        async def sequence(thread: str, name: str) -> str:
            return await asyncio.to_thread(leaves.blocked, thread) + await leaf(name)

        return list(await asyncio.gather(sequence("t", "a"), sequence("u", "b")))

    program = Program(sequences, ("a", "b"), raw=("t", "u"), kinds=("external",))
    assert list(faults(program)) == []
    calls: dict[Any, int] = {}

    def by_call_order(self: Branch) -> str:
        owner: Any = self.owner
        calls[owner] = calls.get(owner, -1) + 1
        return f"{owner.id}:{calls[owner]}"

    monkeypatch.setattr(Branch, "next_call", by_call_order)
    assert next(faults(program), "")


def test_a_program_that_remembers_what_is_not_recorded_is_found_out() -> None:
    """What a program knows of its earlier lives makes an outcome that no undisturbed run has."""
    lives = [0]

    @dasync.function
    async def remembers() -> int:
        lives[0] += 1
        await leaf("a")
        return lives[0] - 1

    assert len(list(faults(Program(remembers, ("a",))))) > 5


def test_a_settled_leaf_that_runs_again_is_found_out() -> None:
    """A second run of what is settled shows, whatever the outcome is."""

    @dasync.function
    async def asks_again() -> str:
        here = leaves.stage.get()
        here.ran.append("a")
        return await leaf("a")

    found = list(faults(Program(asks_again, ("a",), kinds=("external",))))
    assert found
    assert all("settled leaves have run again: ['a']" in fault for fault in found)


def test_a_first_run_that_is_not_as_plain_asyncio_has_it_is_found_out() -> None:
    """Plain asyncio is the measure of an undisturbed run."""

    @dasync.function
    async def looks_around() -> bool:
        return leaves.stage.get().kind == leaves.PLAIN

    told = Trial(Program(looks_around, ())).check_first_run("local", "")
    assert told == "local leaves: '': False; plain asyncio: True"


def test_a_program_that_is_stuck_is_an_outcome() -> None:
    """A program that waits for what nobody settles comes to an end that says what it waits for."""

    @dasync.function
    async def waits() -> str:
        return str(await dasync.promise())

    ended = live(waits, MemoryDisk(), "")
    assert ended is not None
    assert ended.outcome == Outcome("stuck", "waiting: {'root:0': ('root',)}")


def test_a_fault_can_be_read_and_tried_again() -> None:
    """A case says in one line what was done, and is all that it takes to do it again."""
    case = Case("local", "a c b d", 6, 1, "c", True, "d b")
    assert str(case) == (
        "local leaves: 'a c b d', crash after batch 6 and 1 commands of the next, meanwhile c, an hour passes,"
        " then 'd b'"
    )
    trial = Trial(PROGRAMS["gather_of_sequences"])
    again = next(trial.draw(1, b"again"))
    assert trial.check(again) is None
    assert trial.cases == {again}


# -- schedules -------------------------------------------------------------------------------------------------------


def test_schedules_are_text() -> None:
    """What is drawn is read as it was drawn; every leaf is in it once."""
    draws = stream(b"schedules")
    for _ in range(300):
        schedule = drawn(draws, "abcd", clocked=True)
        assert text(parse(schedule)) == schedule
        assert sorted(name for step in parse(schedule) for commit in step for name in commit.names) == list("abcd")


def test_orders_are_all_there_are() -> None:
    """Every order of three leaves, one by one, together, and at one instant; with a pause at every place."""
    found = orders(tuple("abc"))
    assert [one for one in found if not set("+,") & set(one)] == ["a b c", "a c b", "b a c", "b c a", "c a b", "c b a"]
    assert {"a+b+c", "a+b c", "c a+b", "a,b,c", "b,a c", "b+c,a"} < set(found)
    assert len(found) == len(set(found)) == 6 * 4 + 2 * 2 * 3 + 1
    paused = orders(("a", "b"), clocked=True)
    assert {". a b", "a . b", "a b .", "a b", ". a+b", "a+b ."} < set(paused)


def test_a_log_is_what_a_disk_has_seen() -> None:
    """Later commits come after, at one instant or at another; what is settled stays as it was."""
    log = Log().after(["b", "a"], 1000).after(["c"], 1000).after(["a"], 2000).after(["d"], 2000)
    assert log == Log("a+b,c d", (1000, 1000, 2000))
    assert log.timed(900)[:3] == ["a+b,c@100 d@1100", "a+b;c@100 d@1100", "a+b;;c@100 d@1100"]
    assert list(log.ends(Log("a+b"))) == [log, Log("a+b,c", (1000, 1000)), Log("a+b", (1000,))]
    assert log.names == set("abcd")
    assert log.readings(clocked=False)[:3] == ["a+b c d", "a+b,c d", "a+b;c d"]
    assert {". a+b . . c . d . .", "a+b;;;c d ."} < set(log.readings(clocked=True))
    assert Log("a b").readings(["t"], clocked=False) == ["a b t", "a t b", "t a b"]


def test_commits_at_one_instant_may_come_to_several_things() -> None:
    """Where nothing tells them apart they may be one commit, come at once, slowly, or one after the other."""
    said = {text(steps) for steps in in_turns("a,b c")}
    assert said == {"a,b c", "a;;;b c", f"a{12 * ';'}b c", "a b c", "a+b c"}
    assert {"a+b;c", "a b+c", "a,b c"} < {text(steps) for steps in in_turns("a,b;c")}


def test_a_log_without_the_time_in_which_nothing_happened() -> None:
    """Its later commits come as much sooner."""
    assert Log("a b c", (1000, 2000, 9000)).without(3000, 8000) == Log("a b c", (1000, 2000, 4000))
