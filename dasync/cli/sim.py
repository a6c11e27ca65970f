"""`dasync sim`: run simulated worlds by their seeds, in several processes, and show what did not hold.

What a world is, and what must hold in it, is told in `dasync/testing/`; here seeds are dealt out, counted and printed.
What is printed as JSON holds nothing of the wall clock or of this process: the same seeds print the same bytes,
whatever `--jobs` says.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from hashlib import blake2b
from math import inf
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from dasync.cli.render import clean
from dasync.system import SystemClock
from dasync.testing import faults, linear, report
from dasync.testing.history import as_json, line
from dasync.testing.simulation import GOALS, OK, Result, shrink, simulate

Tell = Callable[[str], None]
Advance = Callable[[], None]
CHUNK = 10  # seeds that are dealt out at a time
WORKER_CHUNKS = 20  # after so many, on average, processes are replaced: what was killed in a world is never freed
MANY_SEEDS = 500  # from so many on, a goal that was not reached is a failure
SEEDS_A_NIGHT = 1_000_000  # seeds that each day has for itself
TAIL = 25  # lines of the trace


class Wanted(NamedTuple):
    """Which worlds to run."""

    seed: int | None
    seeds: int | None
    nightly: float | None
    """For how many hours to go on, with seeds that no other day has."""
    ticks: int | None
    jobs: int | None
    scenario: str
    plan: str | None
    shrink: bool
    html: str | None
    trace: bool
    json: bool


class Ran(TypedDict):
    """What one seed came to."""

    seed: int
    status: int
    digest: str
    ticks: int
    seconds: float
    operations: int
    commits: int
    reached: list[str]
    violations: list[list[str]]
    crash: str
    plan: list[str]
    again: str


def run(wanted: Wanted) -> int:
    """Run them; gives the exit status."""
    logging.getLogger("dasync").setLevel(logging.CRITICAL)
    one = wanted.seed is not None and wanted.seeds is wanted.nightly is None
    return _one(wanted, wanted.seed or 0) if one else _many(wanted)


# -- one seed


def _one(wanted: Wanted, seed: int) -> int:
    result = _simulated(wanted, seed, traces=wanted.trace)
    if wanted.shrink and result.violations and not result.crash:
        result = _shrunk(wanted, result)
    if wanted.html:
        _page(result, wanted.html)
    if wanted.json:
        print(json.dumps({**_ran(result), "log": [as_json(one) for one in result.history]}, indent=1))
        return result.status
    if wanted.trace:
        for told in result.trace:
            print(f"{told.tick:>8} {told.at_s:>12.6f} {told.process:<12} {clean(told.text)}")
    else:
        for one in result.history:
            print(f"{one.begin:>8} {one.process:<12} {clean(line(one))}")
    _tell(result, wanted)
    return result.status


def _simulated(wanted: Wanted, seed: int, *, traces: bool = False) -> Result:
    plan = None if wanted.plan is None else [faults.parse(one) for one in wanted.plan.split()]
    return simulate(seed, wanted.scenario, plan=plan, ticks=wanted.ticks, traces=traces)


def _shrunk(wanted: Wanted, result: Result) -> Result:
    with _Bar("shrinking", None, wanted.json) as (tell, _):
        made = shrink(
            result, lambda plan: simulate(result.seed, result.scenario, plan=plan, ticks=wanted.ticks), tell
        )
        return simulate(result.seed, result.scenario, plan=made.plan, ticks=wanted.ticks, traces=True)


def _page(result: Result, path: str) -> None:
    verdicts = linear.check(result.history)
    title = f"dasync sim, seed {result.seed}, {result.scenario}"
    Path(path).write_text(report.page(result.history, verdicts, result.marks, title), "utf-8")
    print(f"the page is {path}", file=sys.stderr)


def _tell(result: Result, wanted: Wanted) -> None:
    print(
        f"seed {result.seed}, {result.scenario}: {result.ticks} ticks, {result.seconds:.3f} s of the world,"
        f" {result.operations} operations, {result.commits} commits, trace {result.digest}"
    )
    for mark in result.marks:
        print(f"  tick {mark.tick}: {mark.process or 'all'}: {mark.text}")
    if result.status == OK:
        print("everything held")
        return
    for violation in result.violations:
        print(f"VIOLATION at tick {violation.tick}, {violation.checker}: {clean(violation.text)}")
    if result.crash:
        print(f"the simulation itself failed: {clean(result.crash)}")
    if result.trace and not wanted.trace:
        print("the end of the trace:")
        for told in result.trace[-TAIL:]:
            print(f"  {told.tick:>8} {told.process:<12} {clean(told.text)[:200]}")
    print(f"to see it again: {result.again}")


# -- many


def _many(wanted: Wanted) -> int:
    clock = SystemClock()
    began, tonight = clock.monotonic(), clock.now_ms() // 86_400_000 * SEEDS_A_NIGHT
    first = wanted.seed if wanted.seed is not None else 0 if wanted.nightly is None else tonight
    most = wanted.seeds or (100 if wanted.nightly is None else SEEDS_A_NIGHT)
    jobs = min(wanted.jobs or os.cpu_count() or 1, (most + CHUNK - 1) // CHUNK)
    until = inf if wanted.nightly is None else began + 3600 * wanted.nightly
    runs: dict[int, Ran] = {}
    with _Bar("seeds", most if wanted.nightly is None else None, wanted.json) as (tell, advance):
        for ran in _dealt(wanted, range(first, first + most), jobs, until):
            runs[ran["seed"]] = ran
            advance()
            if ran["status"] != OK:
                tell(f"seed {ran['seed']}: {ran['crash'] or ran['violations'][0][0]}")
    ordered, count = [runs[seed] for seed in sorted(runs)], len(runs)
    failed = [ran for ran in ordered if ran["status"] != OK]
    goals = {goal: sum(goal in ran["reached"] for ran in ordered) for goal in GOALS}
    goals |= {goal: sum(goal in ran["reached"] for ran in ordered) for ran in ordered for goal in ran["reached"]}
    missed = [goal for goal in GOALS if not goals[goal]] if wanted.scenario == "swarm" and count >= MANY_SEEDS else []
    together = blake2b("".join(ran["digest"] for ran in ordered).encode(), digest_size=16).hexdigest()
    days = sum(ran["seconds"] for ran in ordered) / 86_400
    summary: dict[str, Any] = {
        "scenario": wanted.scenario, "first": first, "seeds": count, "failed": len(failed),
        "distinct": len({ran["digest"] for ran in ordered}), "digest": together,
        "ticks": sum(ran["ticks"] for ran in ordered), "operations": sum(ran["operations"] for ran in ordered),
        "commits": sum(ran["commits"] for ran in ordered), "days": round(days, 6),
        "reached": dict(sorted(goals.items())), "missed": missed, "failures": failed,
    }  # fmt: skip
    if wanted.json:
        print(json.dumps(summary, indent=1))
    else:
        took = clock.monotonic() - began
        rates = [f"{n / took:.{digits}f} {of}" for n, digits, of in (
            (count, 1, "seeds"), (summary["operations"], 0, "operations"), (days, 3, "days of the world"),
        )]  # fmt: skip
        print(f"{took:.1f} s with {jobs} jobs; in a second: {', '.join(rates)}")
        _sum_up(summary, goals, missed, failed)
    if failed and (wanted.shrink or wanted.html):
        _one(wanted._replace(seeds=None, json=False, ticks=wanted.ticks), failed[0]["seed"])
    return max((ran["status"] for ran in failed), default=1 if missed else OK)


def _sum_up(summary: dict[str, Any], goals: dict[str, int], missed: Sequence[str], failed: Sequence[Ran]) -> None:
    print(
        f"{summary['seeds']} seeds of {summary['scenario']}: {summary['distinct']} distinct runs,"
        f" {summary['operations']} operations, {summary['commits']} commits, {summary['days']} days of the world, trace"
        f" {summary['digest']}"
    )
    print("in how many of them it happened that")
    for goal, times in sorted(goals.items(), key=lambda item: -item[1]):
        print(f"  {times:>6}  {goal}")
    for goal in missed:
        print(f"NEVER REACHED: {goal}")
    for ran in failed:
        what = [f"{checker}: {clean(text)[:300]}" for checker, text in ran["violations"]] or [clean(ran["crash"])]
        print(f"VIOLATION in seed {ran['seed']}: {what[0]}\n  to see it again: {ran['again']}")
    if not failed and not missed:
        print("everything held")


def _dealt(wanted: Wanted, seeds: range, jobs: int, until: float) -> Iterator[Ran]:
    """What each of the seeds came to; no more of them once the monotonic clock says `until`."""
    now = SystemClock().monotonic
    if jobs <= 1:
        for seed in seeds:
            yield _ran(_simulated(wanted, seed))
            if now() >= until:
                break
        return
    shift = CHUNK * WORKER_CHUNKS * jobs
    for start in range(0, len(seeds), shift):
        part = seeds[start : start + shift]
        # Not by max_tasks_per_child: with it a pool of Python 3.11 may stand still for ever.
        with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
            chunks = [pool.submit(_chunk, wanted, part[at : at + CHUNK]) for at in range(0, len(part), CHUNK)]
            for done in as_completed(chunks):
                yield from done.result()
                if now() >= until:
                    pool.shutdown(cancel_futures=True)
                    return


def _chunk(wanted: Wanted, seeds: Sequence[int]) -> list[Ran]:
    logging.getLogger("dasync").setLevel(logging.CRITICAL)
    return [_ran(_simulated(wanted, seed)) for seed in seeds]


def _ran(result: Result) -> Ran:
    return Ran(
        seed=result.seed, status=result.status, digest=result.digest, ticks=result.ticks,
        seconds=round(result.seconds, 6), operations=result.operations, commits=result.commits,
        reached=sorted(result.reached), violations=[[one.checker, one.text] for one in result.violations],
        crash=result.crash, plan=[str(fault) for fault in result.plan], again=result.again if result.status else "",
    )  # fmt: skip


class _Bar:
    """Progress on the terminal, or a line now and then."""

    def __init__(self, what: str, count: int | None, quiet: bool) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
            TimeRemainingColumn(), console=Console(stderr=True), disable=quiet and not sys.stderr.isatty(),
        )  # fmt: skip
        self._task = self._progress.add_task(what, total=count)

    def __enter__(self) -> tuple[Tell, Advance]:
        self._progress.start()
        return self._tell, lambda: self._progress.advance(self._task)

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def _tell(self, text: str) -> None:
        self._progress.console.print(text, markup=False, highlight=False)


