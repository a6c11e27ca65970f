"""The examples in docstrings run, and give what they say."""

from __future__ import annotations

import doctest
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

import dasync

PACKAGE = Path(dasync.__file__).parent
FACES = ("__main__", "cli", "demo", "web")  # programs: importing one may need an extra, and they have no examples


def examples() -> Iterator[doctest.DocTest]:
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        if parts[0] not in FACES:
            name = ".".join(("dasync", *parts)).removesuffix(".__init__")
            yield from doctest.DocTestFinder(exclude_empty=True).find(import_module(name), name)


EXAMPLES = {test.name: test for test in examples() if test.examples}


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_example_runs(name: str) -> None:
    """What the docstring shows is what happens."""
    report: list[str] = []
    results = doctest.DocTestRunner(verbose=False).run(EXAMPLES[name], out=report.append)
    assert results.failed == 0, "".join(report)
    assert results.attempted > 0


@pytest.mark.parametrize(
    "name", [name for name in dasync.__all__ if not isinstance(getattr(dasync, name), type)] + ["EventLoop", "Promise"]
)
def test_every_public_function_has_an_example(name: str) -> None:
    """The functions of the surface, the EventLoop and the Promise show themselves at work."""
    if name != "invoke":  # one line, the same as a call
        assert any(test.endswith(f".{name}") for test in EXAMPLES), name
