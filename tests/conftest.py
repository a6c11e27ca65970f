"""What every test gets: a registry of functions as a program of its own would have it, and worlds to run in."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from play import World

from dasync.runtime import registry
from dasync.runtime.function import Function

try:
    import uvloop
except ImportError:
    uvloop = None  # type: ignore[assignment]  # a host that may be missing

HERE = Path(__file__).parent
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


@pytest.fixture(autouse=True)
def _own_registry(request: pytest.FixtureRequest) -> Iterator[None]:
    """A test sees the functions of its module and of those that it imports, of no other test module, and what it
    registers itself is forgotten after it: one name may mean one thing here and another there."""
    registries = (registry._functions, registry._conflicts, registry._errors)
    before = [dict(one) for one in registries]
    for key, made in list(registry._functions.items()):
        if Path(registry._file(made)).parent == HERE:
            del registry._functions[key]
    registry._conflicts.clear()
    imported = [thing for thing in vars(request.module).values() if isinstance(thing, ModuleType)]
    for module in (*imported, request.module):
        for made in vars(module).values():
            if isinstance(made, Function) and not made.declared:
                registry._functions[made.name, made.version] = made
    yield
    for one, was in zip(registries, before, strict=True):
        one.clear()
        one.update(was)  # type: ignore[arg-type]  # the three differ in their values
