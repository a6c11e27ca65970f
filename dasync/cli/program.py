"""The program that a worker runs: where its sources are, and its import, with whatever goes wrong in one line.

A program is a module, found on the path or in the working directory, or a file. Its functions register themselves as
it is imported; this file looks at none of them.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from traceback import extract_tb
from types import ModuleType

from dasync.errors import DasyncError


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


def _file(app: str) -> Path:
    path = Path(app)
    if not path.is_file():
        raise DasyncError(f"there is no file {app}; give a module or a file, relative to {os.getcwd()}")
    return path.resolve()


def _places(app: str) -> list[Path]:
    """The folders of the top module, which is not imported for it."""
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    spec = importlib.util.find_spec(app.partition(".")[0])
    if spec is None:
        raise DasyncError(f"there is no module {app!r} on the path or in {os.getcwd()}; a file is given with its .py")
    if spec.submodule_search_locations is not None:
        return [Path(place).resolve() for place in spec.submodule_search_locations]
    return [Path(spec.origin).resolve().parent] if spec.origin and spec.has_location else []


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
        frames = extract_tb(error.__traceback__)
        at = f" at {frames[-1].filename}:{frames[-1].lineno}" if frames else ""
        raise DasyncError(f"importing {app} failed: {type(error).__name__}: {error}{at}; fix it first") from error
