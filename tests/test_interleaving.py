"""The comparison with peers, as far as it needs none: what it says of dasync is measured, not written down."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from shell import ROOT, environment, python

IN_THE_PROGRAM = """
import sys

if {"first", "resume"} & set(sys.orig_argv):
    import ablation
"""
BY_CALL_ORDER = """
import asyncio
from dasync.core import ids
from dasync.core.model import State
from dasync.runtime.promise import UNREAD
from dasync.runtime.turns import Turns
from dasync.runtime.branch import Branch

calls = {}

def next_call(self):
    calls[self.owner.id] = calls.get(self.owner.id, -1) + 1
    return f"{ids.places(self.owner.id)}{calls[self.owner.id]}"

def come(self, outcome, record, value):
    outcome.taken(record, value)

def recall_outcome(self, outcome, record):
    if record.state is not State.PENDING:
        asyncio.get_running_loop().call_soon(outcome.taken, record, UNREAD)

Branch.next_call, Turns.come, Turns.recall = next_call, come, recall_outcome
"""

def compare(*arguments: str, path: str = str(ROOT)) -> dict[str, dict[str, Any]]:
    """The rows of the comparison, by peer."""
    said = json.loads(
        python("-m", "benchmarks.interleaving", *arguments, "--json", env=environment(PYTHONPATH=path))
    )
    return {row["peer"]: row for row in said["rows"]}


def test_dasync_is_right() -> None:
    """Killed with "a" slow and resumed with "b" slow: right, and no step whose result was given runs again."""
    row = compare("--only", "dasync", "--runs", "2")["dasync"]
    assert (row["right"], row["wrong"], row["error"], row["again"]) == (2, 0, 0, 0)
    assert (row["way"], row["notes"]) == ("gather", {})


def test_what_is_not_right_is_told(tmp_path: Path) -> None:
    """With ids in the order of the calls, and outcomes taken as they come, dasync is not right either.

    In the seed's run "b" is through and a0 is recorded when the process is killed.
    """
    (tmp_path / "ablation.py").write_text(BY_CALL_ORDER)
    (tmp_path / "sitecustomize.py").write_text(IN_THE_PROGRAM)
    row = compare("--only", "dasync", "--runs", "1", "--seed", "2086", path=f"{tmp_path}:{ROOT}")["dasync"]
    assert (row["right"], row["error"]) == (0, 1)
    [(said, count)] = row["notes"].items()
    assert count == 1
    assert said.startswith("NonDeterminismError: replay of 'program' diverged at 'program:")


@pytest.mark.skipif(find_spec("duron") is not None, reason="duron is there")
def test_who_is_not_there_is_reported_absent(tmp_path: Path) -> None:
    """A peer that is in no environment is reported absent, with what would bring it."""
    row = compare("--only", "duron", "--venvs", str(tmp_path))["duron"]
    assert row["notes"] == {"absent: pip install duron==0.0.3": 1}
    assert (row["way"], row["right"], row["wrong"], row["error"]) == ("", 0, 0, 0)
