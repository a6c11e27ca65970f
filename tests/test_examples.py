"""Every example runs as its docstring says, in a process of its own, and shows its one idea."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from shell import ROOT, TIMEOUT_S, dasync, environment, python

EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
MAX_LINES = 60


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_an_example_is_small_and_says_how_to_run_it(path: Path) -> None:
    """At most 60 lines, with a docstring that names the command."""
    source = path.read_text()
    assert source.count("\n") <= MAX_LINES
    assert f"python examples/{path.name}" in source.split('"""')[1]


def test_the_model() -> None:
    """While outer waits there are two pending promises and one awaiter; then it gives 84."""
    assert python("examples/01_model.py").splitlines() == [
        "promises: {'outer': 'pending', 'outer:0': 'pending'}",
        "awaiters: {'outer:0': ('outer',)}",
        "84",
    ]


def test_the_order_goes_on_after_a_crash(tmp_path: Path) -> None:
    """The message goes out in the first run only; what was fulfilled while nobody ran, and what never was, is told."""
    store = str(tmp_path / "orders.db")
    command = [sys.executable, "examples/02_order.py", store]
    crashed = subprocess.run(
        [*command, "crash"], capture_output=True, text=True, timeout=TIMEOUT_S, env=environment(), cwd=ROOT
    )
    assert (crashed.returncode, crashed.stdout) == (1, "sms: order-1 is confirmed\n")
    dasync("resolve", "order-1-fulfilled", "--text", "the warehouse", "--store", store)
    again = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, env=environment(), cwd=ROOT)
    assert again.stdout.splitlines() == [
        "mail: invoice for order-1: 1.20, shipped by the warehouse",
        "mail: sorry, order-2 has no price",
        "sms: order-3 is confirmed",
        "mail: sorry, promise 'order-3-fulfilled' reached its deadline before it was settled",
    ]
    assert again.returncode == 0
    assert re.search(r"order-1  process_order  resolved in", dasync("tree", "order-1", "--store", store))


def test_two_processes() -> None:
    """Both dishes come from the worker's process, which is not the caller's."""
    said = python("examples/03_two_processes.py")
    caller = re.search(r"ordered in process (\d+)", said)
    workers = re.findall(r"^(?:soup|noodles) from process (\d+)$", said, re.MULTILINE)
    assert caller is not None
    assert len(workers) == 2
    assert len({*workers, caller[1]}) == 2


@pytest.mark.parametrize("on_file", [False, True])
def test_fibonacci(on_file: bool, tmp_path: Path) -> None:
    """Local, remote and mixed recursion come to the same number, in memory and on a file."""
    said = python("examples/04_fibonacci.py", *([str(tmp_path / "f.db")] if on_file else []))
    assert said.splitlines()[:3] == ["local(10) = 55", "remote(10) = 55", "mixed(10) = 55"]
    assert re.fullmatch(r"\d+ commands in \d+ transactions", said.splitlines()[3])
