"""The construct matrix: each program right at first, and right again when it is cut short anywhere and resumed.

A case is one program, one kind of leaves, the schedule of its first life, the transition after which that ends, what
is settled meanwhile, and the schedule of the second life. How many were tried is told at the end of a run of pytest.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import matrix
import pytest
from clocks import FakeClock
from zygote import Zygote, zygote_of

from dasync.core.model import TaskState
from dasync.testing import leaves, life
from dasync.testing.crash import DIED, FileDisk, MemoryDisk
from dasync.testing.life import Life, Outcome
from dasync.testing.schedule import Log, orders
from dasync.testing.trial import Program, Trial

try:
    import uvloop
except ImportError:
    uvloop = None  # type: ignore[assignment]  # a host that may be missing

EXAMPLES, PROGRAMS = matrix.EXAMPLES, matrix.PROGRAMS
CASES, MANY_CASES = 16, 60  # of each program
GUESTS = [name for name, program in PROGRAMS.items() if not (program.clocked or program.raw or program.eager)]
OUTSIDE = {"http_request", "open_connection", "subprocess"}  # while any of it goes on, nothing is suspended
SUSPENDED = [name for name, program in PROGRAMS.items() if not (program.raw or program.eager or name in OUTSIDE)]
each_program = pytest.mark.parametrize("name", PROGRAMS)


def first_runs(name: str, schedules: list[str]) -> list[str]:
    """What is wrong with undisturbed runs, the kinds of leaves taking turns."""
    trial = Trial(PROGRAMS[name])
    kinds = leaves.KINDS * len(schedules)
    wrong = (trial.check_first_run(kind, schedule) for kind, schedule in zip(kinds, schedules, strict=False))
    return [fault for fault in wrong if fault]


def all_orders(name: str) -> list[str]:
    """Every order; a thread goes on by itself, never together with a commit."""
    program = PROGRAMS[name]
    found = orders(program.leaves + program.raw, clocked=program.clocked)
    return [one for one in found if all(len(step) == 1 for step in one.split() if set(program.raw) & set(step))]


@each_program
def test_a_first_run_is_as_plain_asyncio_has_it(name: str) -> None:
    """Leaf by leaf in several orders (three leaves: in all), and with several in one commit or at one instant."""
    schedules = all_orders(name)[:: 12 if PROGRAMS[name].raw else 1]
    alone = [schedule for schedule in schedules if not set("+,") & set(schedule)]
    some = [found[:: 1 + len(found) // most] for found, most in ((alone, 12), (schedules[len(alone) :], 6))]
    assert first_runs(name, some[0] + some[1]) == []


@pytest.mark.campaign
@each_program
def test_a_first_run_is_as_plain_asyncio_has_it_in_every_order(name: str) -> None:
    """Every other order and grouping; of those with threads, which real time passes in, every eighth."""
    assert first_runs(name, all_orders(name)[:: 8 if PROGRAMS[name].raw else 2]) == []


@pytest.mark.parametrize("name", SUSPENDED)
def test_it_goes_the_same_way_when_it_is_suspended_at_every_wait(name: str) -> None:
    """Left to the store wherever it only waits, and replayed for each outcome: nothing shows of that."""
    trial = Trial(PROGRAMS[name])
    found = orders(trial.program.leaves, clocked=trial.program.clocked)
    for kind, schedule in zip(leaves.KINDS, found[:: 1 + len(found) // 4], strict=False):
        life = life_of(trial.program, schedule, kind)
        assert (life.outcome, life.complaints) == (trial.undisturbed(kind, schedule).outcome, ()), f"{kind} {schedule}"


def test_what_is_suspended_at_every_wait_was_in_the_store_meanwhile() -> None:
    """Else the test above would show nothing."""
    disk = MemoryDisk(records=True)
    life.live(PROGRAMS["lock"].function, disk, "a b c d", max_resident=0)
    states = [task.state for moment in disk.moments for task in moment.rows.tasks.values()]
    assert states.count(TaskState.SUSPENDED) > 1


def life_of(program: Program, schedule: str, kind: str) -> Life:
    found = life.live(program.function, MemoryDisk(), schedule, kind=kind, max_resident=0)
    assert found is not None
    return found


def resumed(name: str, count: int, note: Callable[[str, Any], None]) -> None:
    trial = Trial(PROGRAMS[name])
    wrong = [fault for case in trial.draw(count, name.encode()) if (fault := trial.check(case))]
    note("cases", [name, len(trial.cases)])
    wrong.sort(key=lambda fault: len(str(fault.case)))
    told = "\n".join(map(str, wrong[:5]))
    assert not wrong, f"{len(wrong)} of {len(trial.cases)} cases are wrong; the shortest:\n{told}"


@each_program
def test_it_resumes_from_every_prefix(name: str, record_property: Callable[[str, Any], None]) -> None:
    """Cut short after each transition of some lives and resumed in another order, it comes to what it could have."""
    resumed(name, CASES, record_property)


@pytest.mark.campaign
@each_program
def test_it_resumes_from_every_prefix_of_many_lives(name: str, record_property: Callable[[str, Any], None]) -> None:
    """The same for four times as many."""
    resumed(name, MANY_CASES, record_property)


# -- the examples ----------------------------------------------------------------------------------------------------


class Told(Trial):
    """A trial that keeps what its lives print, too."""

    def __init__(self, program: Program) -> None:
        super().__init__(program)
        self.undisturbed_say: list[list[str]] = []
        self.resumed_says: list[str] = []

    def live(self, disk: MemoryDisk, schedule: str, kind: str) -> Life:
        resumes = disk.age > 0
        with redirect_stdout(StringIO()) as out:
            ended = super().live(disk, schedule, kind)
        said = [line for line in out.getvalue().splitlines() if "audit" not in line]  # that one stands alone
        if resumes:
            self.resumed_says = said
        else:
            self.undisturbed_say.append(said)
        return ended


def is_part(said: list[str], of: list[str]) -> bool:
    rest = iter(of)
    return all(line in rest for line in said)


def example(name: str, count: int, note: Callable[[str, Any], None]) -> None:
    trial = Told(EXAMPLES[name])
    for case in trial.draw(count, name.encode()):
        assert trial.check(case) is None
        assert any(is_part(trial.resumed_says, said) for said in trial.undisturbed_say), (case, trial.resumed_says)
    note("cases", [f"example: {name}", len(trial.cases)])


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_resumes_from_every_prefix(name: str, record_property: Callable[[str, Any], None]) -> None:
    """Its value is one that it could have, and it prints nothing that it would not have printed, in no other order."""
    example(name, CASES, record_property)


@pytest.mark.campaign
@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_resumes_from_every_prefix_of_many_lives(
    name: str, record_property: Callable[[str, Any], None]
) -> None:
    """The same for four times as many."""
    example(name, MANY_CASES, record_property)


# -- killed for real -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def zygote() -> Iterator[Zygote]:
    yield from zygote_of("lives")


@pytest.mark.campaign
@each_program
def test_it_resumes_in_another_process(
    zygote: Zygote, tmp_path: Path, name: str, record_property: Callable[[str, Any], None]
) -> None:
    """On a file, in processes that end without a word after every other transaction: as undisturbed in memory."""
    trial, program = Trial(PROGRAMS[name]), PROGRAMS[name]
    index = list(PROGRAMS).index(name)
    kinds = [kind for kind in leaves.KINDS if kind in program.kinds and kind != "remote"]
    schedules, kind = all_orders(name), kinds[index % len(kinds)]
    first, second = schedules[7 * index % len(schedules)], " ".join(reversed(program.leaves + program.raw))
    wrong, batches = [], -(index % 2)
    while True:
        batches += 2
        path, where = str(tmp_path / f"{batches}.db"), (batches, int(batches % 3 == 2), batches % 3 == 0)
        if (status := zygote.spawn("lives:first", path, name, kind, first, *where).wait()) == 0:
            break
        assert status == DIED
        before = FileDisk(path).log
        outcome, log, ran, values, complaints = zygote.spawn("lives:second", path, name, kind, second).result()  # type: ignore[misc]  # a Life, as JSON has it
        ended = Life(Outcome(*outcome), Log(log[0], tuple(log[1])), tuple(ran), values, tuple(complaints))
        if found := trial.judge(kind, ended, before):
            wrong.append(f"{kind} leaves: {first!r}, killed after batch {where}, then {second!r}: {found}")
    record_property("cases", [f"{name}, killed", batches // 2])
    assert batches > 5
    assert wrong == []


# -- as a guest of another loop --------------------------------------------------------------------------------------


class TurningClock(FakeClock):
    """Time passes when the asyncio loop has turned so often that nothing is left to do but for the real world."""

    def __init__(self, now_ms: int, real_s: float) -> None:
        super().__init__(now_ms)
        self._real_s = real_s

    async def elapse(self, seconds: float) -> None:
        for _ in range(150):
            await asyncio.sleep(0)
        await asyncio.sleep(self._real_s)
        self.advance(seconds)


@pytest.mark.skipif(uvloop is None, reason="uvloop is not installed")
@pytest.mark.parametrize("name", GUESTS)
def test_it_resumes_on_uvloop(name: str, record_property: Callable[[str, Any], None]) -> None:
    """With uvloop as host of the second life, in real time: as undisturbed on asyncio."""
    trial, function = Trial(PROGRAMS[name]), PROGRAMS[name].function
    real_s = 0.03 if "outside" in function.__module__ or "thread" in name else 0
    drawn = [case for case in trial.draw(12, b"uvloop") if not case.meanwhile][::3]
    for case in drawn:
        moment = next(one for one in trial.moments(case.kind, case.first) if one[:2] == (case.batches, case.commands))
        disk = MemoryDisk(moment)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            clock = TurningClock(disk.now_ms, real_s)
            ended = runner.run(life.play(function, disk, case.second, clock, kind=case.kind))
        assert trial.judge(case.kind, ended, moment.log) == "", case
    record_property("cases", [f"{name}, on uvloop", len(drawn)])
