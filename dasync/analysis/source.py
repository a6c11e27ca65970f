"""A source file: its lines, its syntax tree, and where the modules that it imports may be.

It is given paths and bytes. It opens nothing, and refuses what Python itself could not read, with file and line.
"""

from __future__ import annotations

import ast
import re
import tokenize
import warnings
from collections.abc import Callable, Iterator
from io import BytesIO, TextIOWrapper
from pathlib import PurePath

from dasync.errors import DasyncError

_EXCUSE = re.compile(r"#\s*dasync:\s*ok\b")


class Source:
    """A file of the program; `name` is what people call it. Raises `DasyncError` for what is no Python."""

    def __init__(self, path: PurePath, data: bytes, name: str = "") -> None:
        self.path = path
        self.name = name or str(path)
        try:
            encoding, _ = tokenize.detect_encoding(BytesIO(data).readline)
            text = TextIOWrapper(BytesIO(data), encoding).read()
            with warnings.catch_warnings(action="ignore"):  # what the compiler thinks of old code
                self.tree = ast.parse(text)
        except SyntaxError as error:
            at = f"{error.lineno or 1}:{error.offset or 1}"
            raise DasyncError(f"{self.name}:{at}: {error.msg}; correct it first") from None
        except (ValueError, RecursionError, MemoryError) as error:  # a bad encoding, null bytes, nesting without end
            raise DasyncError(f"{self.name}:1:1: it cannot be read as Python: {error}; correct it first") from None
        self._lines = text.split("\n")

    def line(self, number: int) -> str:
        """A line's text, without what is around it."""
        return self._lines[number - 1].strip()

    def column(self, node: ast.expr | ast.stmt | ast.excepthandler) -> int:
        """Where in its line a node begins, counted in characters from 1."""
        return len(self._lines[node.lineno - 1].encode()[: node.col_offset].decode()) + 1

    def excuses(self, node: ast.expr | ast.stmt | ast.excepthandler) -> bool:
        """Whether a comment says so where the node begins or, being an expression, ends."""
        last = (node.end_lineno or node.lineno) if isinstance(node, ast.expr) else node.lineno
        return any(_EXCUSE.search(self._lines[number - 1]) for number in (node.lineno, last))

    def imports(self, exists: Callable[[PurePath], bool]) -> Iterator[PurePath]:
        """The files that it imports, of those that exist."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                wanted = [(alias.name, 0) for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                base = node.module or ""
                wanted = [(base, node.level)] if base else []
                wanted += [(f"{base}.{alias.name}".lstrip("."), node.level) for alias in node.names]
            else:
                continue
            found = (locate(self.path, dotted, level, exists) for dotted, level in wanted)
            yield from (path for path in found if path is not None)


def locate(importer: PurePath, dotted: str, level: int, exists: Callable[[PurePath], bool]) -> PurePath | None:
    """The file of a module that `importer` imports, `level` dots above itself or, without any, from a folder above it.

    dasync itself is none: it is known by what it is, not by how it is written.
    """
    if not level and dotted.partition(".")[0] == "dasync":
        return None
    for folder in importer.parents[level - 1 : level] if level else importer.parents:
        if not level and exists(folder / "__init__.py"):
            continue  # within a package an absolute import does not look
        place = folder.joinpath(*dotted.split(".")) if dotted else folder
        for path in (place.with_name(f"{place.name}.py"), place / "__init__.py"):
            if exists(path):
                return path
    return None
