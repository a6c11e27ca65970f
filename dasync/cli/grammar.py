"""What can be said on the command line: commands, options, their help and the keys of their `--json`.

It parses and refuses what makes no sense, in one line; what is then done is in `actions.py`. The store, the group and
the program have their defaults in the environment: DASYNC_STORE, DASYNC_GROUP, DASYNC_APP.
"""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Callable
from difflib import get_close_matches
from typing import NoReturn, TypeAlias

from dasync.cli import actions
from dasync.cli.say import UsageError

DEFAULT_STORE, DEFAULT_GROUP = "dasync.db", "default"
STATES = ("pending", "resolved", "rejected", "canceled", "timedout")
TASK_STATES = ("pending", "acquired", "suspended", "halted", "fulfilled")

BRIEF_KEYS = """keys of a promise: id, state, function (null: settled outside), version, parent, target, created_at,
settled_at, timeout_at (ISO 8601, UTC; or null), duration_ms (so far, while pending), and task (null: none) with
state, version, process, python"""
SHOW_KEYS = f"""{BRIEF_KEYS};
and arguments (args, kwargs), value, error (null, or type, message, traceback), reason (why it was canceled, or
null), attempts (those that failed: number, failed_at, error, next_at, when the one after it is or was due, or null),
tags, awaits and awaited_by (ids of suspended executions), listeners (processes that are told)"""
WAIT_KEYS = """an object: id, state (pending: the time was over), value (null unless resolved), error (null unless
rejected: type, message, traceback)"""
WAIT_STATUS = "exit status: 0 resolved, 1 rejected, canceled or timed out"

Commands: TypeAlias = "argparse._SubParsersAction[Parser]"  # argparse's own class is generic for checkers only


class Parser(argparse.ArgumentParser):
    """argparse, with one line per error."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see `{self.prog} --help`")

    def _check_value(self, action: argparse.Action, value: object) -> None:
        if isinstance(action, argparse._SubParsersAction) and value not in action.choices:
            close = get_close_matches(str(value), action.choices, n=1)
            meant = f", did you mean {close[0]!r}?" if close else ""
            raise UsageError(f"there is no command {value!r}{meant}; see `{self.prog} --help`")
        super()._check_value(action, value)


class Version(argparse.Action):
    """Prints the version; read when it is asked for, since that costs more than the rest of the grammar."""

    def __init__(self, option_strings: list[str], dest: str, help: str | None = None) -> None:
        super().__init__(option_strings, dest, nargs=0, help=help)

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        from importlib.metadata import version

        print(f"dasync {version('dasync')}")
        parser.exit()


def parser() -> Parser:
    """The grammar of the command line."""
    top = Parser(prog="dasync", description="Durable async/await: look at a store, settle a promise, run a worker.")
    top.add_argument("--version", action=Version, help="print the version and leave")
    commands = top.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _invoke_commands(commands)
    _look_commands(commands)
    _settle_commands(commands)
    _worker_command(commands)
    _other_commands(commands)
    return top


# -- commands ----------------------------------------------------------------------------------------------


def _invoke_commands(commands: Commands) -> None:
    keys = (
        "--json prints an object: id, created (false: it was there already), function, version, target; with --wait\n"
        f"{WAIT_KEYS};\n{WAIT_STATUS}."
    )
    invoke = _command(commands, "invoke", actions.invoke, "invoke a function on the workers of a group", keys)
    invoke.add_argument("name", metavar="NAME", help="the function, by its registered name")
    arguments = "JSON: an array of arguments, an object of named ones, or anything else as the only one"
    invoke.add_argument("arguments", metavar="ARGS", nargs="?", help=arguments)
    where = "who runs it: a group, or group/process (default: $DASYNC_GROUP, else default)"
    invoke.add_argument("--on", default=_group(), metavar="GROUP", help=where)
    invoke.add_argument("--id", metavar="ID", help="the promise's id; in use for the same, it gives that promise")
    invoke.add_argument("--version", type=_whole, default=1, metavar="N", help="of the function (default: 1)")
    invoke.add_argument("--timeout", type=_seconds, metavar="SECONDS", help="the promise's deadline, from now")
    invoke.add_argument("--tag", type=_tag, action="append", default=[], metavar="KEY=VALUE", help="as often as needed")
    invoke.add_argument("--wait", action="store_true", help="wait for its value, as `dasync wait` does")

    status = f"{WAIT_STATUS}, 124 the time to wait was over"
    keys = f"--json prints {WAIT_KEYS};\n{status}."
    wait = _command(commands, "wait", actions.wait, "wait for a promise and print its value", keys)
    wait.add_argument("id", metavar="ID")
    wait.add_argument("--timeout", type=_seconds, metavar="SECONDS", help="how long to wait; the promise goes on")


def _look_commands(commands: Commands) -> None:
    show_keys = f"--json prints an object; {SHOW_KEYS}."
    show = _command(commands, "show", actions.show, "show all that is known of one promise", show_keys)
    show.add_argument("id", metavar="ID")

    tree_keys = (
        "--json prints an object: id, and promises, the call tree from the top down, each after its parent;\n"
        f"{BRIEF_KEYS};\nand depth (0: ID itself), awaits, awaited_by, listeners as in `dasync show`."
    )
    tree = _command(
        commands, "tree", actions.tree, "show a call tree: states, durations, who waits for what", tree_keys
    )
    tree.add_argument("id", metavar="ID")

    list_keys = f"--json prints an object: cursor (null: this was the last part), and promises;\n{BRIEF_KEYS}."
    listing = _command(commands, "list", actions.list_, "list promises by id", list_keys)
    listing.add_argument("--state", choices=STATES, help="of the promise")
    listing.add_argument("--function", metavar="NAME")
    listing.add_argument("--task-state", choices=TASK_STATES, help="of its task: only promises that have one")
    listing.add_argument("--limit", type=_positive, default=50, metavar="N", help="default: %(default)s")
    listing.add_argument("--cursor", metavar="ID", default="", help="go on after this id")


def _settle_commands(commands: Commands) -> None:
    resolve_keys = "--json prints an object: id, state, value, changed (false: it was resolved so already)."
    resolve = _command(
        commands, "resolve", actions.resolve, "resolve a promise that waits for somebody outside", resolve_keys
    )
    resolve.add_argument("id", metavar="ID")
    resolve.add_argument("value", metavar="VALUE", help="JSON, such as 42, '\"yes\"' or '{\"ok\": true}'")
    resolve.add_argument("--text", action="store_true", help="VALUE is a string, not JSON")

    reject_keys = (
        "--json prints an object: id, state, error (type, message), changed (false: it was rejected so already)."
    )
    reject = _command(
        commands, "reject", actions.reject, "reject a promise that waits for somebody outside", reject_keys
    )
    reject.add_argument("id", metavar="ID")
    reject.add_argument("message", metavar="MESSAGE")
    reject.add_argument("--type", default="RuntimeError", metavar="NAME", help="a builtin error (default: %(default)s)")

    cancel_keys = (
        "its code is interrupted, and what it invokes from then on is refused: durable undos do not run.\n"
        "--json prints an object: id, state, changed (false: it was settled already)."
    )
    what = "cancel a promise that is pending, and what is pending below it"
    cancel = _command(commands, "cancel", actions.cancel, what, cancel_keys)
    cancel.add_argument("id", metavar="ID")
    cancel.add_argument("--reason", metavar="TEXT", help="kept with the promise; `dasync show` tells it")

    resume_keys = "--json prints an object: id, task (as in `show`)."
    resume = _command(commands, "resume", actions.resume, "let a halted task run again", resume_keys)
    resume.add_argument("id", metavar="ID")


def _worker_command(commands: Commands) -> None:
    worker_keys = "--json prints the ready line as an object: ready, process, group, store, pid, functions."
    worker = _command(commands, "worker", actions.worker, "run the functions that a program defines", worker_keys)
    _app(worker, "a module (shop.orders) or a file (path/to/orders.py) (default: $DASYNC_APP)")
    where = "what to work for (default: $DASYNC_GROUP, else default)"
    worker.add_argument("--group", default=_group(), metavar="NAME", help=where)
    worker.add_argument("--process", metavar="NAME", help="this process's name (default: made up)")
    worker.add_argument("--lease", type=float, default=10.0, metavar="SECONDS", help="default: %(default)s")
    concurrency = "how many tasks run at a time (default: %(default)s)"
    worker.add_argument("--concurrency", type=_positive, default=1000, metavar="N", help=concurrency)
    worker.add_argument(
        "--durability", choices=("power", "process"), default="power", help="what an acknowledged write survives"
    )
    again = "start again when a source file of APP changes; needs pip install 'dasync[reload]'"
    worker.add_argument("--reload", action="store_true", help=again)
    worker.add_argument("--supervised", action="store_true", help=argparse.SUPPRESS)  # stop when stdin ends


def _other_commands(commands: Commands) -> None:
    doctor_keys = (
        "a check fails where nothing goes on until somebody acts, and warns where that may be; exit status: 1 if any\n"
        "fails. --json prints a list, an object per check: check, status (ok, warn, fail), detail, remedy (null: ok)."
    )
    doctor = _command(commands, "doctor", actions.doctor, "examine a store, and say what to do about it", doctor_keys)
    _app(doctor, "whose functions open tasks are compared with, as in `worker` (default: $DASYNC_APP)")

    completion = commands.add_parser(
        "completion", help="print a script that completes commands in a shell",
        description="Print a script that completes commands, options and files in a shell.",
        epilog='bash: eval "$(dasync completion bash)" in ~/.bashrc\n'
        'zsh:  dasync completion zsh > "${fpath[1]}/_dasync"\n'
        "tcsh: dasync completion tcsh | source /dev/stdin in ~/.tcshrc",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    completion.add_argument("shell", choices=("bash", "zsh", "tcsh"))
    completion.set_defaults(run=lambda args: actions.completion(args, parser()))

    demo_keys = (
        "--json prints an object: equal, files, workers, kills (process, pid, done, in_flight), ran_twice (count,\n"
        "survey), promises, settled, settled_once, table (package, files, lines, tokens, functions), total, odd,\n"
        "seconds (plain, start, dasync), store and promise (null without --store)."
    )
    what = "survey Python's standard library with workers that get killed"
    demo = _command(commands, "demo", actions.demo, what, demo_keys)
    demo.add_argument("--files", type=_positive, default=600, metavar="N", help="default: %(default)s")
    demo.add_argument("--workers", type=_positive, default=3, metavar="N", help="default: %(default)s")
    demo.add_argument("--no-kill", action="store_true", help="kill nobody")


# -- parts -------------------------------------------------------------------------------------------------


def _command(
    commands: Commands, name: str, run: Callable[[argparse.Namespace], int], help: str, epilog: str
) -> Parser:
    command = commands.add_parser(
        name, help=help, description=help, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    if name == "demo":
        where = "keep the store in this new file (default: a temporary one)"
        command.add_argument("--store", metavar="PATH", help=where)
    else:
        where = "default: $DASYNC_STORE, else dasync.db"
        command.add_argument("--store", default=default_store(), metavar="PATH", help=where)
    command.add_argument("--json", action="store_true", help="print JSON")
    command.set_defaults(run=run)
    return command


def _app(command: Parser, help: str) -> None:
    command.add_argument("app", metavar="APP", nargs="?", default=os.environ.get("DASYNC_APP") or None, help=help)


def default_store() -> str:
    """The store where no option names one."""
    return os.environ.get("DASYNC_STORE") or DEFAULT_STORE


def _group() -> str:
    return os.environ.get("DASYNC_GROUP") or DEFAULT_GROUP


def _whole(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"a whole number is needed, not {text!r}")
    return int(text)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"a whole number from 1 on is needed, not {text!r}")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise argparse.ArgumentTypeError(f"a number of seconds is needed, not {text!r}")
    return seconds


def _tag(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise argparse.ArgumentTypeError(f"KEY=VALUE is needed, not {text!r}")
    return key, value
