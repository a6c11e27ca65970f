"""The program that the demo runs: count what is in each file of the standard library, fold the counts by package.

`measure` and `fold` are plain Python; `count` and `survey` are the same as durable functions. These keep a ledger of
their own, outside dasync, of what was begun and ended by which process: the witness of how often a body really ran.
Nothing here knows that processes get killed.
"""

from __future__ import annotations

import ast
import os
import sysconfig
import tokenize
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from dasync.runtime.combinators import all as all_of
from dasync.runtime.declare import function

WORKERS, COORDINATOR = "demo-workers", "demo-coordinator"  # the groups
LEDGER = "DASYNC_DEMO_LEDGER"  # the environment variable that names the ledger
MAX_FILE_BYTES = 24 * 1024  # the one file in five that is larger would take longer than all the others
_NO_CODE = frozenset(
    (
        tokenize.ENCODING, tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT,
        tokenize.ENDMARKER,
    )
)  # fmt: skip
# Bad encodings, other Pythons' syntax, null bytes, unclosed brackets, nesting without end: the test data has them all.
_ODD = (SyntaxError, ValueError, tokenize.TokenError, RecursionError, MemoryError)


@dataclass(frozen=True, slots=True)
class Count:
    """What is in one file, or in several."""

    files: int = 0
    lines: int = 0
    tokens: int = 0
    functions: int = 0
    odd: int = 0
    """Files that this Python cannot read to the end."""

    def __add__(self, other: Count) -> Count:
        return Count(
            self.files + other.files,
            self.lines + other.lines,
            self.tokens + other.tokens,
            self.functions + other.functions,
            self.odd + other.odd,
        )


# -- plain Python ------------------------------------------------------------------------------------------


def library() -> Path:
    """Where the standard library of the running interpreter is."""
    return Path(sysconfig.get_path("stdlib"))


def choose(limit: int) -> list[str]:
    """Up to `limit` files of the standard library, spread evenly over the sorted list: the same ones each time."""
    root = library()
    found = sorted(
        str(path.relative_to(root))
        for path in root.rglob("*.py")
        if not {"site-packages", "dist-packages"}.intersection(path.parts) and path.stat().st_size <= MAX_FILE_BYTES
    )
    chosen = min(limit, len(found))
    return [found[index * len(found) // chosen] for index in range(chosen)]


def measure(path: str) -> Count:
    """Count lines, code tokens and functions of a file; an odd one as far as it can be read."""
    file = library() / path
    lines = file.read_bytes().count(b"\n")
    tokens = functions = odd = 0
    try:
        with file.open("rb") as source:
            for token in tokenize.tokenize(source.readline):
                tokens += token.type not in _NO_CODE
        with warnings.catch_warnings(action="ignore"):  # what the compiler thinks of old code
            tree = ast.parse(file.read_bytes())
        functions = sum(isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) for node in ast.walk(tree))
    except _ODD:
        odd = 1
    return Count(1, lines, tokens, functions, odd)


def fold(paths: Sequence[str], counts: Sequence[Count]) -> dict[str, Count]:
    """The counts by package."""
    packages: dict[str, Count] = {}
    for path, one in zip(paths, counts, strict=True):
        package = Path(path).parts[0].removesuffix(".py") if "/" in path else "(single modules)"
        packages[package] = packages.get(package, Count()) + one
    return packages


# -- the same, durable -------------------------------------------------------------------------------------


@function(on=WORKERS)
async def count(path: str) -> Count:
    """Measure one file, on any worker."""
    with _noted(path):
        return measure(path)


@function(on=COORDINATOR)
async def survey(paths: list[str]) -> dict[str, Count]:
    """Fan out one remote invocation per file, and fold what comes back."""
    with _noted("survey"):
        return fold(paths, await all_of(*[count(path) for path in paths]))


@contextmanager
def _noted(what: str) -> Iterator[None]:
    """Write into the ledger that `what` has begun, and that it has ended."""
    _note("begin", what)
    yield
    _note("end", what)


def _note(event: str, what: str) -> None:
    path = os.environ.get(LEDGER)
    if path:
        with open(path, "a", encoding="utf-8") as ledger:  # dasync: ok, each run of a body is to leave its note
            ledger.write(f"{event} {os.getpid()} {what}\n")  # one write, at the file's end: processes do not mix
