"""The command line: parse, hand on, print; every error is one line that says what to do.

Exit status: 0, 1 for an error, 2 for wrong usage, 124 when the time to wait was over, 130 after Ctrl-C. What can be
said is in `grammar.py`, what is done for it in `actions.py`. Neither imports anything heavy by itself: each command's
modules are imported when it runs, so `--help` is quick.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence

from dasync.cli import grammar, say
from dasync.errors import DasyncError


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; gives the exit status."""
    try:
        args = grammar.parser().parse_args(argv)
        command: Callable[[argparse.Namespace], int] = args.run
        status = command(args)
        sys.stdout.flush()
        return status
    except say.UsageError as error:
        return say.complaint(error, say.USAGE)
    except (DasyncError, OSError, ValueError) as error:
        if isinstance(error, BrokenPipeError):  # the reader, `head` for one, has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        return say.complaint(error)
    except KeyboardInterrupt:
        return say.INTERRUPTED
