"""Random programs: trees of constructs, and the Python code that they are.

A tree is data, made and shrunk by Hypothesis; what is run is the code, so what a failure shows is what went wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from hypothesis import strategies as st

from dasync.testing.trial import Case, Program

MAX_LEAVES = 4
LONG_S = 7.313  # of sleeps and timeouts, and a little more for each: longer than a schedule without a pause
HEAD = """\
import asyncio
import dasync
from dasync.testing.leaves import leaf
from dasync.testing.trial import Case, Program, Trial
"""


@dataclass(frozen=True)
class Tree:
    """A construct and the parts that it is put around."""

    kind: str
    parts: tuple[Tree, ...] = ()

    def kinds(self) -> set[str]:
        """All the constructs in it."""
        return {self.kind}.union(*(part.kinds() for part in self.parts))


@st.composite
def trees(draw: st.DrawFn, leaves: int = 0, depth: int = 4) -> Tree:
    """Trees with so many leaves; 0: with one to four."""
    leaves = leaves or draw(st.integers(1, MAX_LEAVES))
    if leaves == 1 and (depth == 0 or draw(st.booleans())):
        return Tree(draw(st.sampled_from(["leaf", "leaf", "leaf", "failing leaf"])))
    if leaves == 2 and depth == 0:
        return Tree("race")
    kinds = [*ONE, *TWO, *SEVERAL, *(["race"] if leaves == 2 else [])]
    kind = draw(st.sampled_from(kinds if depth else sorted(SEVERAL)))
    if kind == "race":
        return Tree("race")
    if kind in ONE:
        return Tree(kind, (draw(trees(leaves, depth - 1)),))
    first = draw(st.integers(1, leaves - 1)) if leaves > 1 else 1
    parts = [draw(trees(first, max(0, depth - 1)))]
    parts.append(draw(trees(leaves - first, max(0, depth - 1)) if leaves > first else BESIDE))
    if kind in SEVERAL and draw(st.booleans()):
        parts.append(draw(BESIDE))
    return Tree(kind, tuple(draw(st.permutations(parts))))


BESIDE = st.sampled_from(["yield", "sleep"]).map(Tree)
"""What has no leaf."""


class Writer:
    """Writes the code of a tree."""

    def __init__(self, tree: Tree) -> None:
        self.leaves: list[str] = []
        self.functions: list[str] = []
        self._numbers = count(1)
        self.body = list(self.lines(tree))

    def lines(self, tree: Tree) -> Iterator[str]:
        """The statements of a construct."""
        return KINDS[tree.kind](self, *tree.parts)

    def leaf(self, mark: str = "") -> str:
        """The name of the next leaf."""
        self.leaves.append("abcdefgh"[len(self.leaves)] + mark)
        return self.leaves[-1]

    def number(self) -> int:
        """What tells one construct from the others."""
        return next(self._numbers)

    def part(self, tree: Tree, name: str) -> Iterator[str]:
        """A part as a coroutine function of its own."""
        yield f"async def {name}():"
        yield from indented(self.lines(tree))


def indented(lines: Iterator[str]) -> Iterator[str]:
    return (f"    {line}" for line in lines)


# -- the constructs: what each is in Python


def leaf(writer: Writer) -> Iterator[str]:
    yield f"seen.append(await leaf({writer.leaf()!r}))"


def failing_leaf(writer: Writer) -> Iterator[str]:
    yield f"seen.append(await leaf({writer.leaf('!')!r}))"


def race(writer: Writer) -> Iterator[str]:
    yield f"seen.append(await dasync.race(leaf({writer.leaf()!r}), leaf({writer.leaf()!r})))"


def yields(writer: Writer) -> Iterator[str]:
    yield "await asyncio.sleep(0)"
    yield f"seen.append('yielded {writer.number()}')"


def sleeps(writer: Writer) -> Iterator[str]:
    number = writer.number()
    yield f"await asyncio.sleep({LONG_S + number / 20:.3f})"
    yield f"seen.append('slept {number}')"


def sequence(writer: Writer, *parts: Tree) -> Iterator[str]:
    for part in parts:
        yield from writer.lines(part)


def _named(writer: Writer, parts: tuple[Tree, ...]) -> Iterator[tuple[str, list[str]]]:
    for part in parts:
        name = f"part_{writer.number()}"
        yield name, list(writer.part(part, name))


def gather(writer: Writer, *parts: Tree) -> Iterator[str]:
    named = list(_named(writer, parts))
    for _, lines in named:
        yield from lines
    yield f"await asyncio.gather({', '.join(f'{name}()' for name, _ in named)})"
    yield f"seen.append('gathered {writer.number()}')"


def group(writer: Writer, *parts: Tree) -> Iterator[str]:
    named = list(_named(writer, parts))
    for _, lines in named:
        yield from lines
    group = f"group_{writer.number()}"
    yield f"async with asyncio.TaskGroup() as {group}:"
    for name, _ in named:
        yield f"    {group}.create_task({name}())"
    yield f"seen.append('{group}')"


def first(writer: Writer, *parts: Tree) -> Iterator[str]:
    """The first to come; the others are canceled, and what they came to is awaited."""
    named = list(_named(writer, parts))
    for _, lines in named:
        yield from lines
    tasks = f"tasks_{writer.number()}"
    yield f"{tasks} = [{', '.join(f'asyncio.create_task({name}(), name={name!r})' for name, _ in named)}]"
    yield f"await asyncio.wait({tasks}, return_when=asyncio.FIRST_COMPLETED)"
    yield f"seen.append([task.get_name() for task in {tasks} if task.done()])"
    yield f"for task in {tasks}:"
    yield "    task.cancel()"
    yield f"await asyncio.gather(*{tasks}, return_exceptions=True)"


def locked(writer: Writer, *parts: Tree) -> Iterator[str]:
    """One at a time."""
    lock, named = f"lock_{writer.number()}", []
    yield f"{lock} = asyncio.Lock()"
    for part in parts:
        named.append(f"part_{writer.number()}")
        yield f"async def {named[-1]}():"
        yield f"    async with {lock}:"
        yield from indented(indented(writer.lines(part)))
    yield f"await asyncio.gather({', '.join(f'{name}()' for name in named)})"


def queued(writer: Writer, *parts: Tree) -> Iterator[str]:
    """Whoever is over says so in a queue."""
    line, named = f"queue_{writer.number()}", []
    yield f"{line} = asyncio.Queue()"
    for part in parts:
        named.append(f"part_{writer.number()}")
        yield from writer.part(part, named[-1])
        yield f"    {line}.put_nowait({named[-1]!r})"
    yield f"async def takes_{line}():"
    yield f"    for _ in range({len(parts)}):"
    yield f"        seen.append(await {line}.get())"
    yield f"await asyncio.gather(takes_{line}(), {', '.join(f'{name}()' for name in named)})"


def canceled(writer: Writer, going: Tree, until: Tree) -> Iterator[str]:
    """One runs until the other is over, then it is canceled."""
    name = f"part_{writer.number()}"
    yield from writer.part(going, name)
    task = f"task_{writer.number()}"
    yield f"{task} = asyncio.create_task({name}())"
    yield from writer.lines(until)
    yield f"{task}.cancel()"
    yield f"await asyncio.wait([{task}])"
    yield f"seen.append(f'{task} {{{task}.cancelled()}}')"


def cleaned_up(writer: Writer, body: Tree, at_last: Tree) -> Iterator[str]:
    yield "try:"
    yield from indented(writer.lines(body))
    yield "finally:"
    yield from indented(writer.lines(at_last))


def timeout(writer: Writer, part: Tree) -> Iterator[str]:
    number = writer.number()
    yield "try:"
    yield f"    async with asyncio.timeout({LONG_S + number / 20:.3f}):"
    yield from indented(indented(writer.lines(part)))
    yield "except TimeoutError:"
    yield f"    seen.append('timed out {number}')"


def wait_for(writer: Writer, part: Tree) -> Iterator[str]:
    number = writer.number()
    yield from writer.part(part, f"part_{number}")
    yield "try:"
    yield f"    await asyncio.wait_for(part_{number}(), {LONG_S + number / 20:.3f})"
    yield "except TimeoutError:"
    yield f"    seen.append('timed out {number}')"


def caught(writer: Writer, part: Tree) -> Iterator[str]:
    yield "try:"
    yield from indented(writer.lines(part))
    yield "except Exception as error:"
    yield f"    seen.append(f'caught {writer.number()}: {{type(error).__name__}}')"


def looped(writer: Writer, part: Tree) -> Iterator[str]:
    """Until enough has come, twice at most: once round it runs the part, once it waits for a leaf."""
    yield f"for turn in range({writer.number() + 1}):"
    yield "    if len(seen) > 2:"
    yield "        break"
    yield "    seen.append(f'turn {turn}')"
    yield "    if turn == 0:"
    yield from indented(indented(writer.lines(part)))


def shielded(writer: Writer, part: Tree) -> Iterator[str]:
    name = f"part_{writer.number()}"
    yield from writer.part(part, name)
    yield f"await asyncio.shield(asyncio.create_task({name}()))"


def child(writer: Writer, part: Tree) -> Iterator[str]:
    """The part as an execution of its own."""
    name = f"child_{writer.number()}"
    lines = ["@dasync.function", f"async def {name}():", "    seen = []", *indented(writer.lines(part))]
    writer.functions += [*lines, "    return seen", ""]
    yield f"seen.append(await {name}())"


SEVERAL: dict[str, Callable[..., Iterator[str]]] = {
    "sequence": sequence, "gather": gather, "group": group, "first": first, "locked": locked, "queued": queued,
}  # fmt: skip
TWO: dict[str, Callable[..., Iterator[str]]] = {"canceled": canceled, "cleaned up": cleaned_up}
ONE: dict[str, Callable[..., Iterator[str]]] = {
    "timeout": timeout, "wait for": wait_for, "caught": caught, "looped": looped, "shielded": shielded, "child": child,
}  # fmt: skip
BARE: dict[str, Callable[..., Iterator[str]]] = {
    "leaf": leaf, "failing leaf": failing_leaf, "race": race, "yield": yields, "sleep": sleeps,
}  # fmt: skip
KINDS = {**SEVERAL, **TWO, **ONE, **BARE}


# -- a program of a tree


@dataclass
class Grown:
    """A tree, its code, and the program that the code makes."""

    tree: Tree
    code: str = field(init=False)
    program: Program = field(init=False)

    def __post_init__(self) -> None:
        writer, kinds = Writer(self.tree), self.tree.kinds()
        body = ["@dasync.function", "async def program():", "    seen = []", *indented(iter(writer.body))]
        self.code = "\n".join([HEAD, *writer.functions, *body, "    return seen", ""])
        scope: dict[str, Any] = {}
        exec(compile(self.code, "<grown>", "exec"), scope)
        self.program = Program(
            scope["program"],
            tuple(writer.leaves),
            clocked=bool(kinds & {"timeout", "wait for", "sleep"}),
            racing="child" in kinds,
            plain=not kinds & {"child", "race", "group"},  # a group's children are canceled in a set's order
        )

    def told(self, case: Case) -> str:
        """A script that tries this case alone."""
        known = {name: value for name, value in self.program._asdict().items() if name in ("clocked", "racing")}
        options = "".join(f", {name}={value}" for name, value in known.items())
        made = f"program = Program(program, {self.program.leaves}{options})"
        return f"{self.code}\n{made}\nprint(Trial(program).check({case!r}))\n"
