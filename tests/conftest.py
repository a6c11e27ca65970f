"""What every test gets: a registry of functions as a program of its own would have it, and worlds to run in."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from play import World
from shell import SHOP, python

from dasync.runtime import registry
from dasync.runtime.function import Function

try:
    import uvloop
except ImportError:
    uvloop = None  # type: ignore[assignment]  # a host that may be missing

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as a shell's job in the background has it, and its children
    signal.signal(signal.SIGINT, signal.default_int_handler)

HERE = Path(__file__).parent
EXAMPLES = HERE.parent / "examples"
BENCHMARKS = HERE.parent / "benchmarks"
HOSTS = [
    "asyncio",
    pytest.param("uvloop", marks=pytest.mark.skipif(uvloop is None, reason="uvloop is not installed")),
]


@pytest.fixture(params=HOSTS)
def host(request: pytest.FixtureRequest) -> Any:
    return None if request.param == "asyncio" else uvloop.new_event_loop


@pytest.fixture(params=["memory", "sqlite"])
def world(request: pytest.FixtureRequest, host: Any, tmp_path: Path) -> World:
    """Every combination of store and host."""
    return World("memory:" if request.param == "memory" else str(tmp_path / "s.db"), host)


@pytest.fixture
def memory() -> World:
    """The fastest world, for what depends on neither."""
    return World("memory:", None)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A program with durable functions."""
    path = tmp_path_factory.mktemp("shop") / "shop.py"
    path.write_text(SHOP)
    return path


@pytest.fixture(scope="module")
def filled(shop: Path) -> str:
    """A store in which the shop has run; nobody changes it."""
    store = str(shop.parent / "filled.db")
    python(str(shop), store)
    return store


@pytest.fixture
def store(shop: Path, tmp_path: Path) -> str:
    """A store of one's own in which the shop has run."""
    path = str(tmp_path / "own.db")
    python(str(shop), path)
    return path


@pytest.fixture(autouse=True)
def _own_registry(request: pytest.FixtureRequest) -> Iterator[None]:
    """A test sees the functions of its module and of those that it imports, of no other test module, and what it
    registers itself is forgotten after it: one name may mean one thing here and another there."""
    registries = (registry._functions, registry._conflicts, registry._errors)
    before = [dict(one) for one in registries]
    imported = [thing for thing in vars(request.module).values() if isinstance(thing, ModuleType)]
    matrix = any(module.__name__ == "matrix" for module in imported)
    for key, made in list(registry._functions.items()):
        file = Path(registry._file(made))
        if file.parent in (HERE, BENCHMARKS) or (file.parent in (HERE / "matrix", EXAMPLES) and not matrix):
            del registry._functions[key]
    registry._conflicts.clear()
    for module in (*imported, request.module):
        for made in vars(module).values():
            if isinstance(made, Function) and not made.declared:
                registry._functions[made.name, made.version] = made
    yield
    for one, was in zip(registries, before, strict=True):
        one.clear()
        one.update(was)  # type: ignore[arg-type]  # the three differ in their values


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """How many cases were tried of each program, where tests have put that down as the property `cases`."""
    tried: Counter[str] = Counter()
    for reports in terminalreporter.stats.values():
        for report in reports:
            tried.update(dict(_cases(report)))
    if tried:
        terminalreporter.section(f"{tried.total():,} cases of {len(tried)} programs")
        width = max(map(len, tried)) + 1
        cells = [f"{what:{width}}{count:5}" for what, count in sorted(tried.items())]
        for start in range(0, len(cells), 3):
            terminalreporter.line("   ".join(cells[start : start + 3]))


def _cases(report: object) -> list[tuple[str, int]]:
    if getattr(report, "when", "") != "call":
        return []
    return [(what, count) for key, (what, count) in getattr(report, "user_properties", ()) if key == "cases"]
