"""What the demo shows: progress while it runs, and at the end what was measured. It measures nothing itself."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import NamedTuple, Protocol

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from dasync.cli.render import columns
from dasync.demo.survey import Count

SHOWN_PACKAGES = 10
HEAD = ("package", "files", "lines", "code tokens", "functions")


class Kill(NamedTuple):
    """A process that was killed."""

    process: str
    pid: int
    done: int
    """Files that were counted by then."""
    in_flight: int
    """Of a worker: invocations that it held. Of the coordinator: invocations whose results it was waiting for."""


@dataclass(slots=True)
class Report:
    """All that is said at the end."""

    equal: bool
    files: int
    workers: int
    kills: list[Kill]
    ran_twice: dict[str, int]
    promises: int
    settled: int
    settled_once: bool
    packages: dict[str, Count]
    seconds: dict[str, float]
    store: str | None = None
    promise: str | None = None

    @property
    def total(self) -> Count:
        return reduce(add, self.packages.values(), Count())


def as_json(report: Report) -> str:
    """The report as one object; its keys are those that `dasync demo --help` lists."""

    def row(name: str, count: Count) -> dict[str, object]:
        return {
            "package": name, "files": count.files, "lines": count.lines, "tokens": count.tokens,
            "functions": count.functions,
        }  # fmt: skip

    total = report.total
    return json.dumps(
        {
            "equal": report.equal, "files": report.files, "workers": report.workers,
            "kills": [kill._asdict() for kill in report.kills], "ran_twice": report.ran_twice,
            "promises": report.promises, "settled": report.settled, "settled_once": report.settled_once,
            "table": [row(name, count) for name, count in _by_size(report)], "total": row("total", total),
            "odd": total.odd, "seconds": {name: round(spent, 3) for name, spent in report.seconds.items()},
            "store": report.store, "promise": report.promise,
        }
    )  # fmt: skip


def as_text(report: Report) -> str:
    """The report for people."""
    total, packages = report.total, _by_size(report)
    rows = [_row(name, count) for name, count in packages[:SHOWN_PACKAGES]]
    if rest := packages[SHOWN_PACKAGES:]:
        rows.append(_row(f"{len(rest)} others", reduce(add, (count for _, count in rest))))
    rows.append(_row("total", total))
    lines = ["", columns(HEAD, rows, right=range(1, 5))]
    lines.append(f"{total.odd} odd files, which this Python cannot read to the end, are counted as far as it can")
    lines += ["", f"equal to a single-process run: {_yes(report.equal)}"]
    for kill in report.kills:
        whose = "it awaited" if kill.process == "coordinator" else "it held"
        at = f"killed {kill.process} at {kill.done} of {report.files} files"
        lines.append(f"{at}: {kill.in_flight} invocations in flight ({whose} them)")
    twice = report.ran_twice
    survey = ", and the survey itself" * twice["survey"]
    lines.append(f"ran twice: {twice['count']} of {report.files} counts{survey}")
    once = f"{report.settled} settled of {report.promises}"
    lines.append(f"each promise settled exactly once: {_yes(report.settled_once)} ({once})")
    lines.append(_times(report))
    if report.store is not None:
        lines.append(f"look at it: dasync tree {report.promise} --store {report.store}")
    return "\n".join(lines)


def _times(report: Report) -> str:
    plain, start, run = (report.seconds[name] for name in ("plain", "start", "dasync"))
    return (
        f"time: plain loop {plain:.1f} s, dasync with {report.workers} workers {run:.1f} s"
        f" ({plain / max(run, 0.001):.1f} times as fast), after {start:.1f} s to start the processes"
    )


def _by_size(report: Report) -> list[tuple[str, Count]]:
    return sorted(report.packages.items(), key=lambda item: (-item[1].lines, item[0]))


def _row(name: str, count: Count) -> tuple[str, ...]:
    return (name, *(f"{number:,}" for number in (count.files, count.lines, count.tokens, count.functions)))


def _yes(fact: bool) -> str:
    return "yes" if fact else "no"


# -- progress ----------------------------------------------------------------------------------------------


class Display(Protocol):
    """Where progress is shown."""

    def begin(self, what: str, total: int) -> None:
        """Something of `total` parts begins."""

    def advance(self, done: int) -> None:
        """So many parts are done."""

    def say(self, text: str) -> None:
        """A line of its own."""


@contextmanager
def display(silent: bool) -> Iterator[Display]:
    """A live bar on a terminal, plain lines elsewhere, nothing where the output is JSON."""
    if silent or not sys.stdout.isatty():
        yield Silent() if silent else Lines()
        return
    bars = Progress(TextColumn("{task.description:>10}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with bars:
        yield Bars(bars)


class Bars:
    """A bar for each thing that is counted."""

    def __init__(self, bars: Progress) -> None:
        self._bars = bars
        self._task = TaskID(0)

    def begin(self, what: str, total: int) -> None:
        self._task = self._bars.add_task(what, total=total)

    def advance(self, done: int) -> None:
        self._bars.update(self._task, completed=done)

    def say(self, text: str) -> None:
        self._bars.console.print(text, markup=False, highlight=False)


class Lines:
    """A line for every quarter."""

    def __init__(self) -> None:
        self._what, self._total, self._quarters = "", 1, 0

    def begin(self, what: str, total: int) -> None:
        self._what, self._total, self._quarters = what, total, 0

    def advance(self, done: int) -> None:
        quarters = 4 * done // self._total
        if quarters > self._quarters:
            self._quarters = quarters
            self.say(f"{self._what}: {done} of {self._total} files")

    def say(self, text: str) -> None:
        print(text, flush=True)


class Silent:
    """Shows nothing."""

    def begin(self, what: str, total: int) -> None:
        """Nothing to show."""

    def advance(self, done: int) -> None:
        """Nothing to show."""

    def say(self, text: str) -> None:
        """Nothing to show."""
