"""What every test gets: a registry of functions as a program of its own would have it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from dasync.runtime import registry
from dasync.runtime.function import Function

HERE = Path(__file__).parent


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
