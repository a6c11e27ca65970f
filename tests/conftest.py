"""What every test gets: a registry of functions of its own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from dasync.runtime import function


@pytest.fixture(autouse=True)
def _own_registry() -> Iterator[None]:
    """Functions and errors that a test registers are forgotten after it, so that no test sees another's names."""
    registries = (function._functions, function._conflicts, function._errors)
    before = [dict(registry) for registry in registries]
    yield
    for registry, was in zip(registries, before, strict=True):
        registry.clear()
        registry.update(was)  # type: ignore[arg-type]  # the three differ in their values
