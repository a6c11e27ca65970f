"""The program that a worker runs: where its sources are, and its import, with whatever goes wrong in one line.

A program is a module, found on the path or in the working directory, or a file; where it is only read, a folder too.
Its functions register themselves as it is imported; this file looks at none of them.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from pathlib import Path
from traceback import extract_tb
from types import ModuleType

from dasync.errors import DasyncError

_OURS = os.path.dirname(os.path.dirname(__file__)) + os.sep

NO_SOURCES = frozenset({"__pycache__", "node_modules", "site-packages"})


def import_app(app: str) -> ModuleType:
    """Import `module` or `path/to/file.py`. Raises `DasyncError` for what cannot be imported."""
    if app.endswith(".py"):
        path = _file(app)
        with _explained(app):
            return _import_file(path)
    _places(app)
    with _explained(app):
        return importlib.import_module(app)


def folders(app: str) -> list[Path]:
    """Where its sources are, without importing it: a file's folder, a module's package or the working directory.

    Raises `DasyncError` where there is no such program.
    """
    if app.endswith(".py"):
        return [_file(app).parent]
    places, here = _places(app), Path.cwd()
    return [here] if not places or any(place.is_relative_to(here) for place in places) else places


def sources(app: str) -> list[Path]:
    """Its source files, without importing it: a file, or all of a folder or a package.

    Raises `DasyncError` where there are none.
    """
    if app.endswith(".py"):
        return [_file(app)]
    place = Path(app).resolve() if Path(app).is_dir() else _place(app)
    found = [place] if place.is_file() else list(_inside(place))
    if not found:
        raise DasyncError(f"there is no Python file in {place}; give a module, a file or a folder")
    return found


def _place(app: str) -> Path:
    """The file or folder of a module. `find_spec` of one in a package would import that package."""
    spec, (_, *rest) = _spec(app), app.split(".")
    tops = [Path(place) for place in spec.submodule_search_locations or ()]
    if spec.submodule_search_locations is None and spec.origin and spec.has_location and not rest:
        tops = [Path(spec.origin)]
    places = [top.joinpath(*rest) for top in tops]
    places += [place.with_name(f"{place.name}.py") for place in places]
    found = next((place for place in places if place.is_dir() or (place.suffix == ".py" and place.is_file())), None)
    if found is None:
        raise DasyncError(f"there is no source of the module {app!r} to be read; give a file with its .py")
    return found.resolve()


def _inside(folder: Path) -> Iterator[Path]:
    """The Python files of a folder, but not those of environments in it and of what is hidden."""
    for at, folders, files in os.walk(folder):
        here = Path(at)
        yield from (here / name for name in sorted(files) if name.endswith(".py"))
        folders[:] = sorted(
            name for name in folders
            if name not in NO_SOURCES and not name.startswith(".") and not (here / name / "pyvenv.cfg").exists()
        )  # fmt: skip


def _file(app: str) -> Path:
    path = Path(app)
    if not path.is_file():
        raise DasyncError(f"there is no file {app}; give a module or a file, relative to {os.getcwd()}")
    return path.resolve()


def _places(app: str) -> list[Path]:
    """The folders of the top module, which is not imported for it."""
    spec = _spec(app)
    if spec.submodule_search_locations is not None:
        return [Path(place).resolve() for place in spec.submodule_search_locations]
    return [Path(spec.origin).resolve().parent] if spec.origin and spec.has_location else []


def _spec(app: str) -> ModuleSpec:
    """The top module, found and not imported."""
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    spec = importlib.util.find_spec(app.partition(".")[0])
    if spec is None:
        raise DasyncError(f"there is no module {app!r} on the path or in {os.getcwd()}; a file is given with its .py")
    return spec


def _import_file(path: Path) -> ModuleType:
    if path.stem in sys.modules:
        raise DasyncError(f"{path.name} hides behind the module {path.stem!r} that dasync uses; give it another name")
    sys.path.insert(0, str(path.parent))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise DasyncError(f"{path} cannot be imported; give a Python file")
    module = sys.modules[path.stem] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@contextmanager
def _explained(app: str) -> Iterator[None]:
    """Whatever an import raises, in one line."""
    try:
        yield
    except DasyncError:
        raise
    except SystemExit as error:
        guard = 'if __name__ == "__main__":'
        raise DasyncError(f"{app} ends the program when imported; put that under `{guard}`") from error
    except Exception as error:
        what = f"{type(error).__name__}: {error.msg if isinstance(error, SyntaxError) else error}"
        raise DasyncError(f"importing {app} failed: {what}{_line(error)}; fix it first") from error


def _line(error: Exception) -> str:
    """Where it is to be corrected: the line that Python cannot read, else the last one that it ran."""
    if isinstance(error, SyntaxError) and error.filename and os.path.exists(error.filename):
        return f" at {error.filename}:{error.lineno or 1}"
    frames = [one for one in extract_tb(error.__traceback__) if not one.filename.startswith("<frozen ")]
    theirs = [one for one in frames if one.filename != importlib.__file__ and not one.filename.startswith(_OURS)]
    return f" at {theirs[-1].filename}:{theirs[-1].lineno}" if theirs else ""
