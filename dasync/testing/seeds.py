"""A user's test, tried in many simulated worlds: with each of its seeds, or with a crash at every point.

What fails is run again with fewer and fewer faults for as long as it fails in the same way, and is told with all that
it takes to see it again. Knows nothing of pytest: `plugin.py` does, and a script needs no more than `simulate`.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Any, NamedTuple

from dasync.loop import EventLoop
from dasync.testing import points
from dasync.testing.cluster import Line
from dasync.testing.fate import check_kinds
from dasync.testing.faults import MEAN_COMMITS, Fault
from dasync.testing.frames import users
from dasync.testing.history import Mark
from dasync.testing.points import Point, Points
from dasync.testing.watch import Violation
from dasync.testing.world import World

SEEDS = 50
MAX_POINTS = 5_000
SHOWN_LINES = 20
_IDLE = re.compile(r"(heartbeat|tick|receive)\b|acquire for \S+ -> 200$|is (killed|stopped)$")
# Of EventLoop's options the world's own; by `processes` it means its own processes.
_OURS = ("store", "group", "process", "processes", "clock", "entropy", "transport")
OPTIONS = (
    "processes", "groups", "faults",
    *(name for name in inspect.signature(EventLoop).parameters if name not in _OURS),
)  # fmt: skip
"""What `simulate`, `debug` and the marker take beside their own arguments."""

Test = Callable[[World], Coroutine[Any, Any, object]]
Replay = Callable[[int, str | None, str | None], str]
"""How to see it again: from a seed, faults in place of its own, a crash at a point."""


class Broken(AssertionError):  # named for what was found, as dasync's errors are
    """In a simulated world something did not hold that must. Raised by who tries a test; `violations` says what."""

    def __init__(self, violations: Sequence[Violation]) -> None:
        self.violations = tuple(violations)
        super().__init__("\n".join(f"{one.checker}: {one.text}" for one in violations))


class Tried(NamedTuple):
    """What was tried, all of which held."""

    seeds: int
    points: int
    """At which a process was killed."""
    worlds: int
    """One of them to see how large the program is."""


@dataclass(frozen=True)
class Case:
    """One world, as it can be made again."""

    seed: int
    faults: str | Sequence[Fault]
    commits: int = 2 * MEAN_COMMITS
    """How many the program takes without faults, about."""
    groups: Sequence[str] | None = None
    """Those that are served from the beginning; None: the default one. Others are, too, once they are used."""
    crash: Point | None = None
    options: dict[str, Any] = field(default_factory=dict)

    def world(self, *, traces: bool = False) -> World:
        """That world."""
        options: dict[str, Any] = {"groups": self.groups, "commits": self.commits, **self.options}
        world = World(self.seed, faults=self.faults, traces=traces, **options)
        world.grows = "groups" not in self.options
        return world

    def measured(self, run: Run) -> Case:
        """For the program that has run so without faults."""
        return replace(self, commits=run.commits, groups=run.groups)


class Run(NamedTuple):
    """What a world came to."""

    case: Case
    error: BaseException | None
    digest: str
    commits: int
    groups: list[str]
    plan: list[Fault]
    points: list[Point]
    marks: list[Mark]
    trace: list[Line]

    def fails_as(self, other: Run) -> bool:
        """Whether both fail, in the same way."""
        mine, its = self.error, other.error
        if isinstance(mine, Broken) and isinstance(its, Broken):
            return bool({one.checker for one in mine.violations} & {one.checker for one in its.violations})
        return mine is not None and type(mine) is type(its)


def simulate(
    test: Test,
    *,
    seeds: int | Sequence[int] | None = None,
    exhaustive: bool = False,
    crash: str | None = None,
    replay: Replay | None = None,
    tell: Callable[[str], None] | None = None,
    **options: Any,
) -> Tried:
    """Run `test(world)` in a fresh `World` for each seed, and raise what it raises, or `Broken`, at the first failure.

    `seeds` is how many, or which (default: 50). `exhaustive=True`: no faults but one crash of a worker process, at
    every point in turn, before and after each commit, for each seed (default: one). `crash` repeats one of them. `tell`
    is given every line of what happens. Other options are World's, `processes=3`, `groups=`, `faults="none"`, and
    EventLoop's. The error has notes: the seed, the faults, as few as will do, how to see it again, what happened last.

    Example:
        >>> import dasync
        >>> from dasync.testing import World, simulate
        >>> @dasync.function
        ... async def answer() -> int:
        ...     return 42
        >>> async def test(world: World) -> None:
        ...     assert await world.invoke(answer) == 42
        >>> simulate(test, seeds=3, processes=2, faults="swarm")
        Tried(seeds=3, points=0, worlds=4)
    """
    __tracebackhide__ = True
    case = _checked(seeds, exhaustive=exhaustive, crash=crash, options=options)
    chosen = list(range(seeds) if isinstance(seeds, int) else seeds or range(1 if exhaustive else SEEDS))
    tried = points_tried = 0
    for run in _runs(test, case, chosen, exhaustive=exhaustive, traces=tell is not None):
        if tell is not None:
            crash_at = "" if run.case.crash is None else f", crash at {run.case.crash}"
            tell(f"seed {run.case.seed}, faults {shown(run.plan)}{crash_at}, hash {run.digest}")
            for line in run.trace:
                tell(line_of(line))
        if run.error is not None:
            raise _explained(test, run, case.faults, replay or _replay_of(test, options))
        tried, points_tried = tried + 1, points_tried + (run.case.crash is not None)
    return Tried(len(chosen), points_tried, tried)


def attempt(test: Test, case: Case, *, traces: bool = False, prepare: Callable[[World], object] | None = None) -> Run:
    """Run `test` in one world."""
    with case.world(traces=traces) as world:
        found = Points(world, case.crash)
        if prepare is not None:
            prepare(world)
        error: BaseException | None = None
        try:
            world.run(test)
            if violations := violations_of(world):
                error = Broken(violations)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as raised:  # pytest's skip is one
            error = raised
        cluster = world.cluster
        return Run(
            case, error, cluster.digest, world.fate.commits, world.groups, world.fate.plan, found.found, world.marks,
            list(cluster.trace or ()),
        )  # fmt: skip


def violations_of(world: World) -> list[Violation]:
    """What did not hold in it, processes that ended by an error among it."""
    failed = [
        Violation("process", f"{name} ended by {type(error).__name__}: {error}", world.cluster.ticks)
        for name, error in world.cluster.failures
    ]
    return [*world.violations, *failed]


def first(test: Test, case: Case) -> Run:
    """The run of seed 0 without faults, which tells how large the program is, and which groups it uses: all that a plan
    of faults is drawn for, so that a seed means the same wherever it is run."""
    return attempt(test, replace(case, seed=0, faults="none", crash=None))


def case_of(options: dict[str, Any]) -> Case:
    """The case of these options, with no seed yet. Raises `TypeError` for those that nobody takes."""
    __tracebackhide__ = True
    if unknown := sorted(set(options) - set(OPTIONS)):
        raise TypeError(f"{', '.join(unknown)}: no such option; those are seeds, exhaustive, {', '.join(OPTIONS)}")
    faults = options.get("faults", "none")
    check_kinds(faults)
    return Case(0, faults, options={name: value for name, value in options.items() if name != "faults"})


def own_traceback(traceback: TracebackType | None) -> TracebackType | None:
    """From the user's first frame on; nothing, if none is his."""
    while traceback is not None and not users([traceback.tb_frame]):
        traceback = traceback.tb_next
    return traceback


def line_of(line: Line) -> str:
    """One line of a trace."""
    return f"{line.at_s:12.6f} {line.process:<12} {line.text}"


def _checked(seeds: object, *, exhaustive: bool, crash: str | None, options: dict[str, Any]) -> Case:
    __tracebackhide__ = True
    case = case_of(options)
    if not (seeds is None or isinstance(seeds, Sequence | int)) or isinstance(seeds, str | bool):
        raise TypeError(f"seeds is how many, or a list of them, not {seeds!r}")
    if exhaustive and case.faults != "none":
        raise ValueError("exhaustive=True tries one crash at a time: it takes no faults")
    return replace(case, crash=None if crash is None else points.parse(crash))


def _runs(test: Test, case: Case, seeds: Sequence[int], *, exhaustive: bool, traces: bool) -> Iterator[Run]:
    """The runs of all these seeds, for as long as they hold."""
    run = first(test, case)
    yield run
    case = case.measured(run)
    for seed in seeds:
        run = attempt(test, replace(case, seed=seed), traces=traces)
        yield run
        if not exhaustive or case.crash is not None:
            continue
        if len(run.points) > MAX_POINTS:
            raise ValueError(f"{len(run.points)} points at which to crash: exhaustive=True is for small programs")
        for point in run.points:
            yield attempt(test, replace(case, seed=seed, crash=point), traces=traces)


def _explained(test: Test, run: Run, given: str | Sequence[Fault], replay: Replay) -> BaseException:
    """Its error, or that of a run with fewer faults that fails alike, with all that is known of it in its notes."""
    again, notes = attempt(test, run.case, traces=True), list[str]()
    if again.digest == run.digest and again.fails_as(run):
        best = _shrunk(test, again)
    else:
        best = run._replace(trace=again.trace)
        notes.append(
            "again    this seed went another way when it was run again: something that the test or its program does\n"
            "         is not the seed's alone (what a module keeps from run to run, a fixture, an unordered set)"
        )
    case, fewer, error = best.case, len(best.plan) < len(run.plan), best.error
    assert error is not None
    faults = None if case.faults == given else shown(best.plan)
    crash = "" if case.crash is None else f", and a crash of whoever writes at {case.crash}"
    notes = [
        f"dasync: in a simulated world, seed {case.seed}",
        f"faults   {shown(best.plan)}{f' (of {len(run.plan)} that were planned)' if fewer else ''}{crash}",
        *notes,
        f"replay   {replay(case.seed, faults, None if case.crash is None else str(case.crash))}",
        f"trace    what befell the world, and the last of {len(best.trace)} lines, without heartbeats and the like",
        *map(line_of, _end_of(best)),
    ]
    error.add_note("\n".join(notes))
    return error.with_traceback(own_traceback(error.__traceback__))


def _end_of(run: Run) -> list[Line]:
    """What befell a world, and the end of its trace."""
    lines = [one for one in run.trace if not _IDLE.match(one.text)]
    befell = {(mark.tick, mark.process, mark.text) for mark in run.marks}
    return [one for one in lines[:-SHOWN_LINES] if (one.tick, one.process, one.text) in befell] + lines[-SHOWN_LINES:]


def _shrunk(test: Test, run: Run) -> Run:
    """The same failure with as few faults as will do: each is left out in turn, for as long as it goes on failing."""
    best, at = run, 0
    while at < len(best.plan):
        plan = [*best.plan[:at], *best.plan[at + 1 :]]
        tried = attempt(test, replace(best.case, faults=plan), traces=True)
        if tried.fails_as(run):
            best = tried
        else:
            at += 1
    return best


def shown(plan: Sequence[Fault]) -> str:
    """The plan as `World(faults=...)` takes it."""
    return " ".join(map(str, plan)) or "none"


def _replay_of(test: Test, options: dict[str, Any]) -> Replay:
    """How a script sees a failure again."""

    def replay(seed: int, faults: str | None, crash: str | None) -> str:
        said = {**options, **({} if faults is None else {"faults": faults}), "crash": crash}
        rest = "".join(f", {name}={value!r}" for name, value in said.items() if value is not None)
        return f"simulate({getattr(test, '__name__', 'test')}, seeds=[{seed}]{rest})"

    return replay
