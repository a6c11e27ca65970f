"""How the command line speaks: facts on stdout, as text or as JSON; complaints on stderr, one line each.

This file knows no command and is imported for every one, so it imports nothing heavy.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable

FAILED = 1
USAGE = 2
TIMED_OUT = 124  # as timeout(1) has it
INTERRUPTED = 130  # as shells count: 128 + SIGINT


class UsageError(Exception):
    """The command line makes no sense; the text says what would."""


def facts(as_json: bool, told: object, text: Callable[[], str]) -> int:
    """Print what a command has found or done; gives its exit status."""
    print(json.dumps(told, ensure_ascii=False) if as_json else text(), flush=True)
    return 0


def complaint(what: object, status: int = FAILED) -> int:
    """Print one line to stderr; gives the exit status."""
    text = " ".join(str(what).split()) or type(what).__name__
    print(f"dasync: {text}", file=sys.stderr, flush=True)
    return status
