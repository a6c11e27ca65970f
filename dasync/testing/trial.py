"""Trials: a program is cut short at every transition, resumed in another order, and compared with undisturbed runs.

What is right is not written down anywhere: a resumed run has to come to an outcome that the same program, undisturbed,
comes to when its leaves are settled as they were settled here. Besides, nothing that was settled before the crash
may change, no settled leaf may run again, and the rows have to be legal. A case is one line of text, and so is what is
wrong with it. Which cases are worth trying is drawn from a seed; nothing here knows what a program does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from random import Random
from typing import Any, NamedTuple

from dasync.core.model import PromiseRecord, State
from dasync.runtime.function import Function
from dasync.system import stream
from dasync.testing.clock import T0_MS
from dasync.testing.crash import MemoryDisk, Moment
from dasync.testing.leaves import KINDS, settlement
from dasync.testing.life import Life, Outcome, live, plain
from dasync.testing.schedule import Log, Step, drawn, in_turns, orders

LATE_MS = 3_600_000  # between a crash and a late resumption
BEHIND_MS = 50  # how long a timer may be set before it is written
MAX_READINGS = 500  # of one log: the likeliest come first
MEANWHILE, LATE = 0.2, 0.2  # how often a leaf is settled while nobody runs, and a resumption is late


class Program(NamedTuple):
    """A durable function and what is known of it."""

    function: Function[[], Any]
    leaves: tuple[str, ...]
    clocked: bool = False
    """Whether its outcome depends on how much time passes between two settlements."""
    raw: tuple[str, ...] = ()
    """Where it blocks threads."""
    steered: bool = False
    """Whether the threads' time decides what is invoked: then it may say that it has diverged."""
    racing: bool = False
    """Whether executions race each other: which of them is faster follows from no order of their leaves."""
    starts_over: bool = False
    """Whether what was settled may be removed, and its id be given anew."""
    plain: bool = True
    """Whether plain asyncio can run it, and comes to the same every time."""
    eager: bool = False
    """Whether its host begins tasks at once (Python 3.12)."""
    kinds: tuple[str, ...] = KINDS
    """What its leaves may be."""


class Case(NamedTuple):
    """One crash: how far a first life came, what happened meanwhile, how a second one goes on."""

    kind: str
    first: str
    """The schedule of the first life."""
    batches: int
    commands: int
    """How much of it was written: so many batches, and so many commands of the next."""
    meanwhile: str
    """What is settled while nobody runs, in one commit."""
    late: bool
    """Whether the second life begins an hour after the first one's end."""
    second: str
    """The schedule of the second life."""

    def __str__(self) -> str:
        where = f"batch {self.batches}" + (f" and {self.commands} commands of the next" if self.commands else "")
        meanwhile = f", meanwhile {self.meanwhile}" * bool(self.meanwhile) + ", an hour passes" * self.late
        return f"{self.kind} leaves: {self.first!r}, crash after {where}{meanwhile}, then {self.second!r}"


class Fault(NamedTuple):
    """What is wrong with a case."""

    case: Case
    what: str

    def __str__(self) -> str:
        return f"{self.case}: {self.what}"


class Trial:
    """All that is tried with one program.

    Example:
        >>> import asyncio, dasync
        >>> from dasync.testing.leaves import leaf
        >>> @dasync.function
        ... async def both() -> list[str]:
        ...     return list(await asyncio.gather(leaf("a"), leaf("b")))
        >>> trial = Trial(Program(both, ("a", "b")))
        >>> [fault for case in trial.draw(20, b"any seed") if (fault := trial.check(case))]
        []
    """

    def __init__(self, program: Program) -> None:
        self.program = program
        self.cases: set[Case] = set()
        """Those that were tried."""
        self._undisturbed: dict[tuple[str, str], Life] = {}
        self._measured: dict[tuple[Step, ...], Outcome] = {}
        self._recorded: dict[tuple[str, str], tuple[MemoryDisk, Life]] = {}

    def check_first_run(self, kind: str, schedule: str) -> str:
        """What is wrong with an undisturbed run, measured by plain asyncio."""
        life = self.undisturbed(kind, schedule)
        if life.complaints:
            return f"{kind} leaves: {schedule!r}: {life.complaints}"
        measures = set[Outcome]()
        as_it_went = life.log.timed(T0_MS)
        for steps in chain.from_iterable(map(in_turns, [schedule, *as_it_went])) if self.program.plain else ():
            measures.add(self._plain(steps))
            if life.outcome in measures:
                return ""
        could = " or ".join(sorted(map(_show, measures)))
        return f"{kind} leaves: {schedule!r}: {_show(life.outcome)}; plain asyncio: {could}" if measures else ""

    def undisturbed(self, kind: str, schedule: str) -> Life:
        """What the program does when nothing happens to it."""
        if (kind, schedule) not in self._undisturbed:
            life = self.live(MemoryDisk(), schedule, kind)
            self._undisturbed[kind, schedule] = life
        return self._undisturbed[kind, schedule]

    def expected(
        self, kind: str, log: Log, before: Log, *, on_time: bool = False, gaps: Sequence[tuple[int, int]] = ()
    ) -> Iterator[Life]:
        """The undisturbed runs whose leaves are settled as in `log`, to the millisecond if it was `on_time`.

        What came after `before` may have come after the end, and what came after one of the `gaps` at its beginning.
        """
        racing, clocked = self.program.racing, self.program.clocked
        for end in log.ends(before):
            exact = end.timed(T0_MS) if clocked else []
            if exact:
                exact += [one for gap in gaps for one in end.without(*gap).timed(T0_MS)]
            schedules = exact + ([] if on_time else end.readings(self.program.raw, clocked=clocked))
            for schedule in sorted(schedules[:MAX_READINGS], key=lambda one: (kind, one) not in self._undisturbed):
                life = self.undisturbed(kind, schedule)
                if life.log.commits == end.commits and (end is log or life.outcome.kind != "stuck"):
                    yield life
        for schedule in orders(tuple(sorted(log.names)), clocked=clocked) if racing else ():
            life = self.undisturbed(kind, schedule)
            if life.log.names <= log.names:
                yield life

    def moments(self, kind: str, schedule: str) -> list[Moment]:
        """Every moment at which a life under that schedule can end."""
        return self._record(kind, schedule)[0].moments

    def check(self, case: Case) -> Fault | None:
        """Try one case; None: all is right."""
        self.cases.add(case)
        recorded, first = self._record(case.kind, case.first)
        moment = next(one for one in recorded.moments if (one.batches, one.commands) == (case.batches, case.commands))
        disk = MemoryDisk(moment)
        disk.now_ms += LATE_MS * case.late
        overdue = [one.timeout_at for one in _timers(moment) if one.timeout_at and one.timeout_at <= disk.now_ms + 1]
        if case.meanwhile:
            _settle(disk, case.meanwhile, moment, first, min(overdue, default=None))
        gaps = [(max([moment.now_ms, *overdue]), disk.now_ms)]
        if self.program.racing:  # what came meanwhile may have been faster than what an execution made of a timer
            gaps.append((moment.now_ms - 1, disk.now_ms))
        life = self.live(disk, case.second, case.kind)
        changed = "" if self.program.starts_over else _changed(moment, disk)
        forgets = self._forgets_a_timer(case.kind, case.first, moment)
        if forgets and (came := life.log.times[len(moment.log.times) :]):  # before it, however long before that rang
            gaps.append((moment.now_ms + 1, came[0]))
        on_time = self.program.clocked and not (case.late or forgets)
        wrong = self.judge(case.kind, life, moment.log, on_time=on_time, gaps=gaps) or changed or _again(moment, life)
        return Fault(case, wrong) if wrong else None

    def judge(
        self, kind: str, life: Life, before: Log, *, on_time: bool = False, gaps: Sequence[tuple[int, int]] = ()
    ) -> str:
        """What is wrong with a life that was resumed from a disk with the log `before`.

        `on_time`: it was resumed at once, with all its timers on record, so it goes by the very same clock.
        `gaps`: when nothing happened, in milliseconds since the epoch, as from the last timer that was overdue on.
        """
        if self.program.steered and life.outcome.kind == "diverged":
            return ""
        others = set()
        for other in self.expected(kind, life.log, before, on_time=on_time, gaps=gaps):
            if other.outcome == life.outcome:
                strange = set(life.complaints).difference(other.complaints)
                return f"complaints: {sorted(strange)}" if strange else ""
            others.add(_show(other.outcome))
        if not others:
            return f"{_show(life.outcome)}; no undisturbed run settles leaves as {life.log.schedule!r}"
        could = " or ".join(sorted(others))
        return f"{_show(life.outcome)}; undisturbed, {life.log.schedule!r} comes to {could}"

    def draw(self, count: int, seed: bytes) -> Iterator[Case]:
        """So many cases: of one schedule after the other, drawn from `seed`, every moment at which it can end."""
        draws, program = stream(seed), self.program
        seen: set[Case] = set()
        empty = 0
        while len(seen) < count and empty < count:
            kind = draws.choice(program.kinds)
            first = drawn(draws, program.leaves + program.raw, clocked=program.clocked)
            before = len(seen)
            for moment in self.moments(kind, first):
                case = self._drawn(draws, kind, first, moment)
                if case not in seen:
                    seen.add(case)
                    yield case
            empty = empty + 1 if len(seen) == before else 0

    def _drawn(self, draws: Random, kind: str, first: str, moment: Moment) -> Case:
        """How the life goes on that was cut short at that moment."""
        program = self.program
        there = _pending(moment) if kind != "local" else set()
        left = [name for name in program.leaves if name not in moment.log.names]
        meanwhile = [name for name in left if name in there and draws.random() < MEANWHILE]
        if program.clocked and program.racing:  # no clock tells where two in one commit come among what executions do
            meanwhile = meanwhile[:1]
        left = [name for name in left if name not in meanwhile]
        second = drawn(draws, (*left, *program.raw), clocked=program.clocked)
        may_be_late = program.clocked and not program.racing  # else a timer may be faster than an execution
        late = may_be_late and draws.random() < LATE and not self._forgets_a_timer(kind, first, moment)
        return Case(kind, first, moment.batches, moment.commands, "+".join(meanwhile), late, second)

    def _forgets_a_timer(self, kind: str, first: str, moment: Moment) -> bool:
        """Whether a timer was set by then that was not written: its time begins with the life after."""
        promises = self.moments(kind, first)[-1].rows.promises
        timers = [one for id, one in promises.items() if one.timer and id not in moment.rows.promises]
        return any(one.created_at <= moment.now_ms + BEHIND_MS for one in timers)

    def _plain(self, steps: tuple[Step, ...]) -> Outcome:
        if steps not in self._measured:
            self._measured[steps] = plain(self.program.function, steps, eager=self.program.eager)
        return self._measured[steps]

    def live(self, disk: MemoryDisk, schedule: str, kind: str) -> Life:
        life = live(self.program.function, disk, schedule, kind=kind, eager=self.program.eager)
        assert life is not None, "nobody dies without a death"
        return life

    def _record(self, kind: str, schedule: str) -> tuple[MemoryDisk, Life]:
        if (kind, schedule) not in self._recorded:
            disk = MemoryDisk(records=True)
            life = self.live(disk, schedule, kind)
            self._recorded[kind, schedule] = disk, life
        return self._recorded[kind, schedule]


def _settle(disk: MemoryDisk, names: str, moment: Moment, life: Life, first_due: int | None) -> None:
    """Somebody settles leaves while the process is down. Timers that are overdue ring after that is heard of, as if
    it had come before the first of them was due."""
    commit = names.split("+")
    found = [(id, name) for id, name in moment.names.items() if name in commit]
    disk.write([settlement(id, name, life.values) for id, name in found])
    disk.now_ms += 1
    now_ms = disk.now_ms if first_due is None else max(first_due - 1, *disk.log.times[-1:], T0_MS)
    disk.log = disk.log.after(commit, now_ms, at_once=True)


def _timers(moment: Moment) -> list[PromiseRecord]:
    return [one for one in moment.rows.promises.values() if one.timer and one.state is State.PENDING]


def _pending(moment: Moment) -> set[str]:
    pending = {id for id, record in moment.rows.promises.items() if record.state is State.PENDING}
    return {name for id, name in moment.names.items() if id in pending}


def _changed(moment: Moment, disk: MemoryDisk) -> str:
    for id, was in moment.rows.promises.items():
        now = disk.rows.promise(id)
        if was.state is not State.PENDING and (now is None or (now.state, now.value) != (was.state, was.value)):
            return f"{id} was {was.state} with {was.value!r} before the crash and is {now}"
    return ""


def _again(moment: Moment, life: Life) -> str:
    again = sorted(moment.log.names.intersection(life.ran))
    return f"settled leaves have run again: {again}" if again else ""


def _show(outcome: Outcome) -> str:
    return outcome.told if outcome.kind == "value" else f"{outcome.kind} {outcome.told}"
