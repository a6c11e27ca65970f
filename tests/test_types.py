"""The types as a program sees them: mypy strict and pyright accept every use and refuse each misuse."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from shell import ROOT

TYPED = Path(__file__).parent / "typed"
PATIENCE_S = 300  # pyright is fetched when it first runs

pytestmark = pytest.mark.system


def mypy(path: Path) -> set[int]:
    """The lines that it refuses."""
    command = ["mypy", "--strict", "--config-file=", "--no-error-summary", "--explicit-package-bases", str(path)]
    return _lines(rf"{re.escape(path.name)}:(\d+): error", command)


def pyright(path: Path) -> set[int]:
    """The lines that it refuses."""
    return _lines(rf"{re.escape(path.name)}:(\d+):\d+ - error", ["pyright", "--pythonpath", sys.executable, str(path)])


def _lines(error: str, command: list[str]) -> set[int]:
    done = subprocess.run(
        [sys.executable, "-m", *command], capture_output=True, text=True, timeout=PATIENCE_S, cwd=ROOT
    )
    assert done.returncode in (0, 1), done.stdout + done.stderr
    return {int(line) for line in re.findall(error, done.stdout)}


@pytest.mark.parametrize("checker", [mypy, pyright])
def test_every_use_is_accepted(checker: Callable[[Path], set[int]]) -> None:
    """Nothing in a typed use of the whole surface needs an ignore."""
    pytest.importorskip(checker.__name__)
    assert checker(TYPED / "use.py") == set()


@pytest.mark.parametrize("checker", [mypy, pyright])
def test_each_misuse_is_refused(checker: Callable[[Path], set[int]]) -> None:
    """Exactly the marked lines are errors."""
    pytest.importorskip(checker.__name__)
    source = (TYPED / "misuse.py").read_text().splitlines()
    marked = {number for number, line in enumerate(source, 1) if "  # E: " in line}
    assert len(marked) > 25
    assert checker(TYPED / "misuse.py") == marked
