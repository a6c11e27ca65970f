"""Bugs that are planted into dasync one at a time, and the simulation that has to find each: who tests the tester.

    python tests/mutants.py [--only NAME ...] [--seeds 200] [--jobs 2] [--json] [--write]

A mutant is a change of a few characters in the source of one function: a guard taken away, a bound off by one, an
answer lost. `old` must stand in that function exactly once, or the patch does not apply any more, which is a failure.
The seeds are tried from 0 on; the first that ends in a violation is the number in the table. Production checks each
transition before it is written (`invariants.hold`), which catches many at their first step; for those that `without`
marks, the run is made once more with these checks switched off, to see that the simulation's own checkers do not need
them. It says nothing of bugs that nobody thought of. The tables are in `mutant_table.py`; `--write` keeps what a whole
run came to, in `mutants.md` for people and in `mutants.json` for tests, which then need not search.
"""

from __future__ import annotations
import __future__

import argparse
import ast
import inspect
import json
import multiprocessing
import sys
import textwrap
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

from mutant_table import MUTANTS, Mutant, Patch

from dasync.core import invariants
from dasync.core import protocol as p
from dasync.testing import cluster, linear
from dasync.testing.history import Operation, line
from dasync.testing.simulation import CRASH, OK, Result, simulate

SEEDS = 200
KNOWN = Path(__file__).with_name("mutants.json")
PAGE = KNOWN.with_suffix(".md")
MAX_TICKS = 300_000  # of one run: a mutant that spins is one that is found
_FUTURE = __future__.annotations.compiler_flag
HEAD = """\
# Bugs that were planted, and what found them

Made by `{made} --write`, Python {version}: {count} of {all} were found, in {took:.0f} s. *Seed*: the first from 0 on
that ends in a violation with the bug and in none without it. The last column is the same with `invariants.hold`, which
production asks before it writes, switched off: the simulation's own checkers do not need it. A seed that is no longer
the first one is no failure: any change of the programs or the draws shifts what a seed does. `mutants.json` is the same
for programs."""


class Stale(Exception):  # named for what it is
    """A patch does not apply any more."""


@dataclass
class Found:
    """What came of one mutant."""

    name: str
    seed: int | None
    """The first seed that found it; None: none did."""
    scenario: str = ""
    checkers: tuple[str, ...] = ()
    said: str = ""
    without: int | None = None
    """Likewise with production's own checks switched off; None where that was not tried, or nothing was found."""
    without_checkers: tuple[str, ...] = ()
    seconds: float = 0.0


# -- planting


@contextmanager
def planted(mutant: Mutant) -> Iterator[None]:
    """dasync with that bug. Raises `Stale`."""
    texts: dict[str, list[Patch]] = {}
    for patch in mutant.patches:
        texts.setdefault(patch.where, []).append(patch)
    undo: list[tuple[Any, Any, Any]] = []
    try:
        for where, patches in texts.items():
            _plant(where, patches, undo)
        yield
    finally:
        for holder, name, before in reversed(undo):
            _put(holder, name, before)


@contextmanager
def unguarded() -> Iterator[None]:
    """dasync without the checks that production makes of each transition."""
    before = invariants.hold
    invariants.hold = lambda now, cause, view, transition: None
    try:
        yield
    finally:
        invariants.hold = before


def patched_source(where: str, patches: Sequence[Patch]) -> str:
    """The source of `module:name`, a function or what is assigned to a name, with those changes. Raises `Stale`."""
    module, path = where.split(":")
    text = _source(import_module(module), path)
    for patch in patches:
        if text.count(patch.old) != 1:
            raise Stale(f"{where}: {patch.old!r} is there {text.count(patch.old)} times, not once")
        text = text.replace(patch.old, patch.new)
    return text


def _source(module: ModuleType, path: str) -> str:
    found = inspect.getattr_static(_owner(module, path), path.rpartition(".")[2])
    if isinstance(found, staticmethod | classmethod):
        found = found.__func__
    elif isinstance(found, property):
        found = found.fget
    found = inspect.unwrap(found) if callable(found) else found
    if isinstance(found, FunctionType):
        return textwrap.dedent(inspect.getsource(found))
    whole = inspect.getsource(module)
    for node in ast.parse(whole).body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if any(isinstance(target, ast.Name) and target.id == path for target in targets):
            return ast.get_source_segment(whole, node) or ""
    raise Stale(f"{module.__name__}:{path} is neither a function nor a constant")


def _owner(module: ModuleType, path: str) -> Any:
    owner: Any = module
    for name in path.split(".")[:-1]:
        owner = getattr(owner, name)
    return owner


def _plant(where: str, patches: Sequence[Patch], undo: list[tuple[Any, Any, Any]]) -> None:
    source, (module_name, path) = patched_source(where, patches), where.split(":")
    module = import_module(module_name)
    owner, name = _owner(module, path), path.rpartition(".")[2]
    before = inspect.getattr_static(owner, name)
    made: dict[str, Any] = {}
    # In a function of that parameter: `super()` looks for it.
    code = f"def _make(__class__):\n{textwrap.indent(source, '    ')}\n    return {name}\n"
    exec(compile(code, f"<{where}, mutated>", "exec", flags=_FUTURE, dont_inherit=True), module.__dict__, made)
    after = made["_make"](owner)
    undo.append((owner, name, before))
    _put(owner, name, after)
    if owner is module:
        _everywhere(before, after, undo)


def _everywhere(before: Any, after: Any, undo: list[tuple[Any, Any, Any]]) -> None:
    """Wherever else it was imported to by its name, or stands in a table."""
    for loaded in [one for name, one in sys.modules.items() if name.partition(".")[0] == "dasync"]:
        for name, held in list(vars(loaded).items()):
            if held is before:
                undo.append((loaded, name, before))
                setattr(loaded, name, after)
            elif isinstance(held, dict) and not name.startswith("__"):
                for key in [key for key, value in held.items() if value is before]:
                    undo.append((held, key, before))
                    held[key] = after


def _put(holder: Any, name: Any, value: Any) -> None:
    if isinstance(holder, dict):
        holder[name] = value
    else:
        setattr(holder, name, value)


# -- finding


def run(mutant: Mutant, seed: int, *, bare: bool = False) -> Result:
    """One seed of `dasync sim` with that bug; `bare`: without production's own checks."""
    most, cluster.MAX_TICKS = cluster.MAX_TICKS, MAX_TICKS
    try:
        with planted(mutant):
            if not bare:
                return simulate(seed, mutant.scenario)
            with unguarded():
                return simulate(seed, mutant.scenario)
    finally:
        cluster.MAX_TICKS = most


def hunt(name: str, seeds: int = SEEDS) -> Found:
    """Try seed after seed until the mutant is found."""
    mutant, began = MUTANTS[name], time.perf_counter()
    found = Found(name, None, mutant.scenario)
    if (result := first(mutant, range(seeds))) is not None:
        found.seed, found.checkers, found.said = result.seed, checkers(result), said(result)
    if mutant.without and (result := first(mutant, range(seeds), bare=True)) is not None:
        found.without, found.without_checkers = result.seed, checkers(result)
    found.seconds = time.perf_counter() - began
    return found


def first(mutant: Mutant, seeds: Iterable[int], *, bare: bool = False) -> Result | None:
    """The first seed that ends in a violation with that bug, and in none without it."""
    for seed in seeds:
        result = run(mutant, seed, bare=bare)
        if result.status not in (OK, CRASH) and run(mutant._replace(patches=()), seed).status == OK:
            return result
    return None


def known() -> dict[str, Found]:
    """By name, what the last whole run came to."""
    return {one["name"]: Found(**one) for one in json.loads(KNOWN.read_text("utf-8"))}


def checkers(result: Result) -> tuple[str, ...]:
    """Which have seen something wrong."""
    return tuple(dict.fromkeys(one.checker for one in result.violations))


def said(result: Result) -> str:
    """The first thing that was wrong, in short."""
    return result.violations[0].text.partition("\n")[0][:200] if result.violations else ""


def minimal(history: Sequence[Operation]) -> list[Operation]:
    """The fewest operations of one promise that no order explains: each other one is left out, as long as the same
    operation goes on fitting nowhere. Of those that name the same two promises as that one, the first stays: it changes
    nothing by rights, and is most likely what did."""
    verdict = linear.first_error(linear.check(history))
    if verdict is None or verdict.stuck is None:
        return []
    stuck = verdict.stuck
    kept = [*verdict.prefix, stuck]

    named = _named(stuck.command)
    tells = next((one for one in kept[:-1] if len(named) > 1 and _named(one.command) == named), stuck)

    def still(operations: list[Operation]) -> bool:
        again = [one for one in linear.check(operations) if one.promise == verdict.promise]
        return bool(again) and again[0].stuck == stuck

    at = 0
    while at < len(kept):
        fewer = kept[:at] + kept[at + 1 :]
        if kept[at] not in (stuck, tells) and still(fewer):
            kept = fewer
        else:
            at += 1
    return kept


def _named(command: p.Command) -> set[str]:
    """The promises that a command names which lets one wait for the other."""
    if isinstance(command, p.RegisterCallback):
        return {command.awaited, command.awaiter}
    return {command.id, command.awaiter} if isinstance(command, p.PromiseCreate) and command.awaiter else set()


def lines(operations: Sequence[Operation]) -> list[str]:
    """A history, an operation a line."""
    return [f"{one.process:10} {one.begin:6} .. {one.end or '':6}  {line(one)}" for one in operations]


# -- the command


def main(arguments: Sequence[str] | None = None) -> int:
    """Hunt all, or those that are named; 1: one was not found."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", nargs="*", default=[], help="names of mutants")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--json", action="store_true", help="a list of objects in place of the table")
    parser.add_argument("--write", action="store_true", help=f"keep it in {PAGE.name} and {KNOWN.name}")
    options = parser.parse_args(arguments)
    if options.write and options.only:
        parser.error("--write keeps what a whole run came to; leave out --only")
    names = options.only or list(MUTANTS)
    if unknown := [name for name in names if name not in MUTANTS]:
        parser.error(f"no such mutant: {', '.join(unknown)}; there are {', '.join(MUTANTS)}")
    found: dict[str, Found] = {}
    began = time.perf_counter()
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.jobs, mp_context=spawn) as pool:
        under_way = {pool.submit(hunt, name, options.seeds): name for name in names}
        for future in as_completed(under_way):
            one = found[under_way[future]] = future.result()
            print(f"{len(found):3}/{len(names)} {row(one)}", file=sys.stderr, flush=True)
    ordered, took = [found[name] for name in names], time.perf_counter() - began
    left = [one.name for one in ordered if one.seed is None]
    as_json, as_page = json.dumps([asdict(one) for one in ordered], indent=1), page(ordered, options, took)
    if options.write:
        KNOWN.write_text(as_json + "\n", "utf-8")
        PAGE.write_text(as_page + "\n", "utf-8")
    print(as_json if options.json else as_page)
    print(f"{len(ordered) - len(left)} of {len(ordered)} were found, in {took:.0f} s", *left, file=sys.stderr)
    return 1 if left else 0


def page(found: Sequence[Found], options: argparse.Namespace, took: float) -> str:
    """What a run came to, as Markdown."""
    count, version = sum(one.seed is not None for one in found), ".".join(map(str, sys.version_info[:2]))
    made = f"python tests/mutants.py --seeds {options.seeds} --jobs {options.jobs}"
    told = [HEAD.format(made=made, version=version, count=count, all=len(found), took=took), table(found)]
    for one in found:
        if MUTANTS[one.name].shows_history and one.seed is not None:
            told.append(f"## {one.name}, seed {one.seed}\n\nNo order of these requests explains their answers:")
            fewest = lines(minimal(run(MUTANTS[one.name], one.seed).history))
            told.append("\n".join(f"    {operation}" for operation in fewest))
    return "\n\n".join(told)


def row(one: Found) -> str:
    """One mutant in a line."""
    seed = "-" if one.seed is None else str(one.seed)
    bare = f"  bare {one.without}: {', '.join(one.without_checkers)}" if MUTANTS[one.name].without else ""
    return f"{one.name:34} {one.scenario:8} {seed:>4}  {', '.join(one.checkers)}{bare}  ({one.seconds:.1f} s)"


def table(found: Sequence[Found]) -> str:
    """All of them, as Markdown has it."""
    head = "| mutant | what is wrong | scenario | seed | caught by | without production's checks |"
    rows = [head, "|---|---|---|---|---|---|"]
    for one in found:
        mutant = MUTANTS[one.name]
        bare = "" if not mutant.without else "not found"
        if one.without is not None:
            bare = f"{one.without}: {', '.join(one.without_checkers)}"
        seed = "not found" if one.seed is None else str(one.seed)
        rows.append(f"| {one.name} | {mutant.what} | {one.scenario} | {seed} | {', '.join(one.checkers)} | {bare} |")
    return "\n".join(rows)


if __name__ == "__main__":
    sys.exit(main())
