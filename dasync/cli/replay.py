"""`dasync export` and `dasync replay`: recorded executions taken along, and tried on the code that is here now.

Histories come from a store, by id, or from files that `export` has made. A store is read and never written. What a
replay is, and what it runs, is told in `dasync/replay.py`.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, redirect_stdout
from pathlib import Path
from typing import NamedTuple, TypedDict

from dasync.cli import exports
from dasync.cli.commands import not_found, opened
from dasync.cli.program import import_app
from dasync.cli.render import clean
from dasync.cli.say import UsageError
from dasync.core.invariants import Snapshot
from dasync.core.model import PromiseRecord
from dasync.errors import DasyncError
from dasync.ports import Store
from dasync.replay import Find, History, Verdict, replay
from dasync.runtime import registry
from dasync.system import SystemClock


class Wanted(NamedTuple):
    """What to replay on what."""

    apps: Sequence[str]
    paths: Sequence[Path]
    ids: Sequence[str]
    store: str
    timeout_s: float


class Replayed(TypedDict):
    """One execution that was replayed."""

    id: str
    function: str
    version: int
    status: str
    detail: str
    report: str | None


class Summary(TypedDict):
    """What `replay` prints."""

    executions: list[Replayed]
    ok: int
    diverged: int
    cannot: int


def parted(named: Sequence[str], default: str | None) -> tuple[list[str], list[Path]]:
    """Programs, and files or folders of histories. A folder with an `__init__.py` is a program."""
    paths = [one for one in named if one.endswith(".json") or _is_folder(one)]
    apps = [one for one in named if one not in paths]
    return apps or ([default] if default else []), [Path(one) for one in paths]


def _is_folder(name: str) -> bool:
    return os.path.isdir(name) and not os.path.exists(os.path.join(name, "__init__.py"))


async def export(store: str, id: str, others: Sequence[str]) -> exports.Exported:
    """The history of one execution, with what it awaits now and those `others` that stand beside it."""
    async with opened(store) as rows:
        found = await _subtree(rows, store, id)
        awaited = {one.awaited for one in found.callbacks if one.awaiter in found.tasks} - found.promises.keys()
        beside = [await _subtree(rows, store, other) for other in [*others, *sorted(awaited)]]
    return exports.exported(exports.joined(exports.history(found, id), beside), SystemClock().now_ms())


async def run(wanted: Wanted) -> Summary:
    """Replay all that is wanted, one after the other."""
    with redirect_stdout(sys.stderr), _quiet():
        for app in wanted.apps:
            import_app(app)
        if not registry.registered():
            raise DasyncError(f"{wanted.apps[0]} defines no durable function: put @dasync.function on what is to run")
        async with _histories(wanted) as (found, find):
            verdicts = [await replay(one, find, wanted.timeout_s) for one in found]
    return Summary(
        executions=[Replayed(**{**one._asdict(), "report": one.report or None}) for one in verdicts],  # type: ignore[typeddict-item]  # the same keys
        ok=_count(verdicts, "ok"),
        diverged=_count(verdicts, "diverged"),
        cannot=_count(verdicts, "cannot"),
    )


def failed(summary: Summary) -> bool:
    """Whether a deploy of this code is to wait: one diverges, or not one could be replayed."""
    return summary["diverged"] > 0 or summary["ok"] == 0


def text(summary: Summary) -> str:
    """A line for each execution, the report of each that diverged, and a count."""
    told = f"{summary['ok']} in step, {summary['diverged']} diverged, {summary['cannot']} could not be replayed"
    return "\n".join([*map(_line, summary["executions"]), told])


def _line(one: Replayed) -> str:
    version = f" version {one['version']}" if one["version"] != 1 else ""
    line = clean(f"{one['status']:<8}  {one['id']}  {one['function']}{version}: {one['detail']}")
    return "\n".join([line, *(clean(more) for more in (one["report"] or "").splitlines()[1:])])


def _count(verdicts: Iterable[Verdict], status: str) -> int:
    return sum(verdict.status == status for verdict in verdicts)


@asynccontextmanager
async def _histories(wanted: Wanted) -> AsyncIterator[tuple[list[History], Find]]:
    """The histories, and where those of other executions that they invoke are looked up."""
    if not wanted.ids:
        found = [exports.read(path) for path in _files(wanted.paths)]
        known = {id: record for one in found for id, record in one.promises.items()}

        async def find(id: str) -> PromiseRecord | None:
            return known.get(id)

        yield found, find
        return
    async with opened(wanted.store) as rows:
        found = [exports.history(await _subtree(rows, wanted.store, id), id) for id in wanted.ids]
        yield found, _finder(rows)


async def _subtree(rows: Store, store: str, id: str) -> Snapshot:
    found = await rows.subtree(id)
    if id not in found.promises:
        raise not_found(store, id)
    return found


def _finder(rows: Store) -> Find:
    async def find(id: str) -> PromiseRecord | None:
        return (await rows.subtree(id)).promises.get(id)

    return find


def _files(paths: Sequence[Path]) -> list[Path]:
    found = [file for path in paths for file in (sorted(path.glob("*.json")) if path.is_dir() else [path])]
    if not found:
        raise UsageError("there is no .json file in that folder; `dasync export ID > FILE` makes one")
    return found


@contextmanager
def _quiet() -> Iterator[None]:
    """What a worker would log of a divergence is in the report."""
    log = logging.getLogger("dasync")
    level = log.level
    log.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        log.setLevel(level)
