"""The command line: parse, hand on, print; every error is one line that says what to do.

Exit status: 0, 1 for an error, 2 for wrong usage, 130 after Ctrl-C. This file decides nothing about promises and
imports nothing heavy by itself: each command's module is imported when the command runs, so `--help` is quick.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from dasync.errors import DasyncError

DEFAULT_STORE, DEFAULT_GROUP = "dasync.db", "default"
STATES = ("pending", "resolved", "rejected", "canceled", "timedout")
USAGE = 2
INTERRUPTED = 130  # as shells count: 128 + SIGINT

BRIEF_KEYS = """keys of a promise: id, state, function (null: settled outside), version, parent, target, created_at,
settled_at, timeout_at (ISO 8601, UTC; or null), duration_ms (so far, while pending), and task (null: none) with
state, version, process, python"""
SHOW_KEYS = f"""{BRIEF_KEYS};
and arguments (args, kwargs), value, error (null, or type, message, traceback), attempts (those that failed: number,
failed_at, error, next_at, when the one after it is or was due, or null), tags, awaits and awaited_by (ids of
suspended executions), listeners (processes that are told)"""


class UsageError(Exception):
    """The command line makes no sense; the text says what would."""


class Parser(argparse.ArgumentParser):
    """argparse, with one line per error."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see `{self.prog} --help`")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; gives the exit status."""
    try:
        args = parser().parse_args(argv)
        command: Callable[[argparse.Namespace], int] = args.run
        status = command(args)
        sys.stdout.flush()
        return status
    except UsageError as error:
        return _complain(error, USAGE)
    except (DasyncError, OSError, ValueError) as error:
        if isinstance(error, BrokenPipeError):  # the reader, `head` for one, has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        return _complain(error, 1)
    except KeyboardInterrupt:
        return INTERRUPTED


def _complain(error: Exception, status: int) -> int:
    text = " ".join(str(error).split()) or type(error).__name__
    print(f"dasync: {text}", file=sys.stderr)
    return status


# -- what can be said --------------------------------------------------------------------------------------


def parser() -> argparse.ArgumentParser:
    """The grammar of the command line."""
    top = Parser(prog="dasync", description="Durable async/await: look at a store, settle a promise, run a worker.")
    commands = top.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _look_commands(commands)
    _change_commands(commands)
    _run_commands(commands)
    return top


def _look_commands(commands: argparse._SubParsersAction[Parser]) -> None:
    show_keys = f"--json prints an object; {SHOW_KEYS}."
    show = _command(commands, "show", _show, "show all that is known of one promise", show_keys)
    show.add_argument("id", metavar="ID")

    tree_keys = (
        "--json prints an object: id, and promises, the call tree from the top down, each after its parent;\n"
        f"{BRIEF_KEYS};\nand depth (0: ID itself), awaits, awaited_by, listeners as in `dasync show`."
    )
    tree = _command(commands, "tree", _tree, "show a call tree: states, durations, who waits for what", tree_keys)
    tree.add_argument("id", metavar="ID")

    list_keys = f"--json prints an object: cursor (null: this was the last part), and promises;\n{BRIEF_KEYS}."
    listing = _command(commands, "list", _list, "list promises by id", list_keys)
    listing.add_argument("--state", choices=STATES)
    listing.add_argument("--function", metavar="NAME")
    listing.add_argument("--limit", type=_positive, default=50, metavar="N", help="default: %(default)s")
    listing.add_argument("--cursor", metavar="ID", default="", help="go on after this id")


def _change_commands(commands: argparse._SubParsersAction[Parser]) -> None:
    resolve_keys = "--json prints an object: id, state, value, changed (false: it was resolved so already)."
    resolve = _command(commands, "resolve", _resolve, "resolve a promise that waits for somebody outside", resolve_keys)
    resolve.add_argument("id", metavar="ID")
    resolve.add_argument("value", metavar="VALUE", help="JSON, such as 42, '\"yes\"' or '{\"ok\": true}'")
    resolve.add_argument("--text", action="store_true", help="VALUE is a string, not JSON")

    resume = _command(
        commands, "resume", _resume, "let a halted task run again", "--json prints an object: id, task (as in `show`)."
    )
    resume.add_argument("id", metavar="ID")


def _run_commands(commands: argparse._SubParsersAction[Parser]) -> None:
    worker_keys = "--json prints the ready line as an object: ready, process, group, store, pid, functions."
    worker = _command(commands, "worker", _worker, "run the functions that a program defines", worker_keys)
    worker.add_argument("app", metavar="APP", help="a module (shop.orders) or a file (path/to/orders.py)")
    group = os.environ.get("DASYNC_GROUP") or DEFAULT_GROUP
    worker.add_argument("--group", default=group, help="what to work for (default: $DASYNC_GROUP, else default)")
    worker.add_argument("--process", metavar="NAME", help="this process's name (default: made up)")
    worker.add_argument("--lease", type=float, default=10.0, metavar="SECONDS", help="default: %(default)s")
    concurrency = "how many tasks run at a time (default: %(default)s)"
    worker.add_argument("--concurrency", type=_positive, default=1000, metavar="N", help=concurrency)
    worker.add_argument(
        "--durability", choices=("power", "process"), default="power", help="what an acknowledged write survives"
    )

    demo_keys = (
        "--json prints an object: equal, files, workers, kills (process, pid, done, in_flight), ran_twice (count,\n"
        "survey), promises, settled, settled_once, table (package, files, lines, tokens, functions), total, odd,\n"
        "seconds (plain, start, dasync), store and promise (null without --store)."
    )
    demo = _command(commands, "demo", _demo, "survey Python's standard library with workers that get killed", demo_keys)
    demo.add_argument("--files", type=_positive, default=600, metavar="N", help="default: %(default)s")
    demo.add_argument("--workers", type=_positive, default=3, metavar="N", help="default: %(default)s")
    demo.add_argument("--no-kill", action="store_true", help="kill nobody")


def _command(
    commands: argparse._SubParsersAction[Parser],
    name: str,
    run: Callable[[argparse.Namespace], int],
    help: str,
    epilog: str,
) -> Parser:
    command = commands.add_parser(
        name, help=help, description=help, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    if name == "demo":
        where = "keep the store in this new file (default: a temporary one)"
        command.add_argument("--store", metavar="PATH", help=where)
    else:
        store, where = os.environ.get("DASYNC_STORE") or DEFAULT_STORE, "default: $DASYNC_STORE, else dasync.db"
        command.add_argument("--store", default=store, metavar="PATH", help=where)
    command.add_argument("--json", action="store_true", help="print JSON")
    command.set_defaults(run=run)
    return command


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"a whole number from 1 on is needed, not {text!r}")
    return int(text)


# -- what is done ------------------------------------------------------------------------------------------


def _print(args: argparse.Namespace, facts: object, text: Callable[[], str]) -> int:
    print(json.dumps(facts, ensure_ascii=False) if args.json else text())
    return 0


def _show(args: argparse.Namespace) -> int:
    from dasync.cli import commands, render

    facts = commands.run(commands.show(args.store, args.id))
    return _print(args, facts, lambda: render.promise(facts))


def _tree(args: argparse.Namespace) -> int:
    from dasync.cli import commands, render

    facts = commands.run(commands.tree(args.store, args.id))
    if not args.json and sys.stdout.isatty():
        render.print_tree(facts)
        return 0
    return _print(args, facts, lambda: render.tree(facts))


def _list(args: argparse.Namespace) -> int:
    from dasync.cli import commands, render

    wanted = commands.Wanted(args.state, args.function, args.limit, args.cursor)
    facts = commands.run(commands.search(args.store, wanted))
    return _print(args, facts, lambda: render.listing(facts))


def _resolve(args: argparse.Namespace) -> int:
    from dasync.cli import commands

    try:
        value = args.value if args.text else json.loads(args.value)
    except ValueError as error:
        raise UsageError(f"VALUE is not JSON ({error}); use --text to give it as a string") from None
    facts = commands.run(commands.resolve(args.store, args.id, value))
    return _print(args, facts, lambda: f"{args.id} {'is' if facts['changed'] else 'was already'} resolved")


def _resume(args: argparse.Namespace) -> int:
    from dasync.cli import commands

    facts = commands.run(commands.resume(args.store, args.id))
    return _print(args, facts, lambda: f"{args.id} goes on: its task is {facts['task']['state']}")


def _worker(args: argparse.Namespace) -> int:
    from dasync.cli import serve

    return serve.worker(args)


def _demo(args: argparse.Namespace) -> int:
    from dasync.demo import run

    return run.demo(run.Wanted(args.files, args.workers, not args.no_kill, args.store, args.json))
