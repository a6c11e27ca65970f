"""`dasync check`: read a program and say what in its functions a replay would not stand, with the durable form to use.

The program is what is named, and what that imports from the folder it is in. It is read and never imported, so it
may need packages that are not here. What is a hazard is decided in `dasync/analysis`.
"""

from __future__ import annotations

import sys
import sysconfig
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

from dasync.analysis.hazards import Checked, Finder
from dasync.analysis.names import Program
from dasync.analysis.source import Source
from dasync.cli import program, render
from dasync.system import SystemClock

if TYPE_CHECKING:
    from rich.status import Status

TELL_AFTER_S = 2.0
Tell = Callable[[PurePath], None]


def check(apps: Sequence[str]) -> Checked:
    """Check programs as one."""
    with _telling() as tell:
        read = Program(_sources(apps, tell))
        finder = Finder(read)
        for path, module in read.modules.items():
            tell(path)
            finder.look(module)
    return finder.checked()


def _sources(apps: Sequence[str], tell: Tell) -> Iterator[Source]:
    """The files of the programs, and those that they import from beside them."""
    named = dict.fromkeys(path for app in apps for path in program.sources(app))
    roots = {_folders(path)[-1] for path in named} - _installed()
    found, left = set(named), list(named)

    def exists(path: PurePath) -> bool:
        return not roots.isdisjoint(path.parents) and Path(path).is_file()

    for path in left:
        tell(path)
        source = Source(path, path.read_bytes(), _shown(path))
        yield source
        beside = [folder / "__init__.py" for folder in _folders(path)[:-1]] + [*map(Path, source.imports(exists))]
        left += [one for one in dict.fromkeys(beside) if one not in found]
        found.update(beside)


def _folders(path: Path) -> list[Path]:
    """The packages that a file is in, and last the folder from which they are imported."""
    folders = [path.parent]
    while (folders[-1] / "__init__.py").is_file():
        folders.append(folders[-1].parent)
    return folders


def _installed() -> set[Path]:
    """Where the standard library and installed packages are: what lies there beside each other is no one program."""
    places = sysconfig.get_paths()
    return {Path(places[key]).resolve() for key in ("stdlib", "platstdlib", "purelib", "platlib")}


def _shown(path: Path) -> str:
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


@contextmanager
def _telling() -> Iterator[Tell]:
    """Tell a person who sits before a terminal which file is looked at, once it takes long."""
    clock = SystemClock()
    began = clock.monotonic()
    with ExitStack() as stack:
        status: Status | None = None

        def tell(path: PurePath) -> None:
            nonlocal status
            if status is None and sys.stderr.isatty() and clock.monotonic() - began > TELL_AFTER_S:
                from rich.console import Console

                status = stack.enter_context(Console(stderr=True).status(""))
            if status is not None:
                from rich.text import Text

                status.update(Text(f"checks {render.clean(_shown(Path(path)))}"))

        yield tell
