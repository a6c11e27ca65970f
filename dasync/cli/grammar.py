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
MAX_COUNT = 2**31 - 1
MIN_LEASE_S, MAX_LEASE_S = 0.1, 86_400  # a shorter one ends between two heartbeats; a longer one no store takes
STATES = ("pending", "resolved", "rejected", "canceled", "timedout")
TASK_STATES = ("pending", "acquired", "suspended", "halted", "fulfilled")

BRIEF_KEYS = """keys of a promise: id, state, function (null: settled outside), version, parent, target, created_at,
settled_at, timeout_at (ISO 8601, UTC; or null), duration_ms (so far, while pending), and task (null: none) with
state, version, process, python, reason (why it is halted, or null)"""
SHOW_KEYS = f"""{BRIEF_KEYS};
and arguments (args, kwargs), value, error (null, or type, message, traceback, empty where it was given by hand),
reason (why it was canceled, or null), attempts (those that failed: number, failed_at, error, next_at, when the one
after it is or was due, or null), tags, awaits and awaited_by (ids of suspended executions), listeners (processes that
are told), and pending_below (promises: while its task is acquired, those that its execution has made and that are
pending, without such as have others of them below; which ones it awaits just now only its process knows)"""
WAIT_KEYS = """an object: id, state (pending: the time to wait was over), value (null unless resolved), error
(null unless rejected: type, message, traceback)"""
CHECK_KEYS = """codes: clock, random, uuid, as-completed, blocking (in an async def), set-order, bare-except; a comment
`# dasync: ok` on its line excuses a hazard; exit status: 1 if any is left. --json prints an object: files, functions
(that invoke), excused, and findings, an object each: path, line, column, code, function, source, why, use."""
EXPORT_KEYS = """--json prints, as without it, an object: format, version (1), id, exported_at, promises and tasks,
lists of rows with the fields of dasync/core/model.py: times in ms since the epoch, bytes as base64 beside what can be
read."""
REPLAY_KEYS = """no store is written, no time passes, nothing new starts, and no function runs but those that have
invoked something on record; what these do themselves beside it (a raw await, a print, a `finally`) they really do. An
execution is ok: in step with its history to where that ends; diverged: with a report; or it cannot be replayed: its
function is not defined here, or it waits for what is not on record.
exit status: 1 if one diverges, or none could be replayed. --json prints an object: ok, diverged, cannot (counts),
and executions, an object each: id, function, version, status (ok, diverged, cannot), detail, report (or null)."""
SIM_KEYS = """exit status: 0 all held, 1 something did not (or, from 500 seeds of swarm on, was never reached), 3 the
simulation itself failed, 4 something did not come to its end. --json of one seed prints an object: seed, status, digest
(of everything that happened), ticks, seconds (of the world), operations, commits, reached, violations (pairs: checker,
text), crash, plan, again (the command that runs it again), log (operations). Of many: scenario, first, seeds, failed,
distinct, digest, ticks, operations, commits, days, reached, missed, failures."""
WAIT_STATUS = "exit status: 0 resolved, 1 rejected, canceled or past its deadline, 124 the time to wait was over"

Commands: TypeAlias = "argparse._SubParsersAction[Parser]"  # argparse's own class is generic for checkers only


class Parser(argparse.ArgumentParser):
    """argparse, with one line per error."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see `{self.prog} --help`")

    def _check_value(self, action: argparse.Action, value: object) -> None:
        if isinstance(action, argparse._SubParsersAction) and value not in action.choices:
            close = get_close_matches(str(value), action.choices, n=1)
            what = f"did you mean {close[0]!r}? See" if close else "see"
            raise UsageError(f"there is no command {value!r}: {what} `{self.prog} --help`")
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
    deadline = "the promise's deadline, from now on: as options(timeout=)"
    invoke.add_argument("--timeout", type=_seconds, metavar="SECONDS", help=deadline)
    invoke.add_argument("--tag", type=_tag, action="append", default=[], metavar="KEY=VALUE", help="as often as needed")
    invoke.add_argument("--wait", action="store_true", help="wait for its value, as `dasync wait` does")
    _patience(invoke, "how long to --wait; the promise goes on")

    keys = f"--json prints {WAIT_KEYS};\n{WAIT_STATUS}."
    wait = _command(commands, "wait", actions.wait, "wait for a promise and print its value", keys)
    wait.add_argument("id", metavar="ID")
    _patience(wait, "how long to wait; the promise goes on (default: until it is settled)")


def _look_commands(commands: Commands) -> None:
    show_keys = f"--json prints an object; {SHOW_KEYS}."
    show = _command(commands, "show", actions.show, "show all that is known of one promise", show_keys)
    show.add_argument("id", metavar="ID")

    tree_keys = (
        "--json prints an object: id, and promises, the call tree from the top down, each after its parent;\n"
        f"{BRIEF_KEYS};\nand depth (0: ID itself), awaits, awaited_by, listeners, pending_below as in `dasync show`."
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
    listing.add_argument("--roots", action="store_true", help="only what no execution has made")
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
    lease = "without a sign of life for so long it loses its tasks to others (default: %(default)s)"
    worker.add_argument("--lease", type=_lease, default=10.0, metavar="SECONDS", help=lease)
    concurrency = "how many tasks run at a time (default: %(default)s)"
    worker.add_argument("--concurrency", type=_positive, default=1000, metavar="N", help=concurrency)
    processes = "how many processes run functions with process=True (default: as many as there are CPUs)"
    worker.add_argument("--processes", type=_positive, metavar="N", help=processes)
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

    what = "look for what a replay of a program's functions would not stand: clocks, chance, sets, blocking calls"
    check = _command(commands, "check", actions.check, what, CHECK_KEYS)
    app = os.environ.get("DASYNC_APP")
    programs = "modules, files or folders, which are read and not imported (default: $DASYNC_APP)"
    check.add_argument("apps", metavar="APP", nargs="*", default=[app] if app else [], help=programs)

    _replay_commands(commands)
    _sim_command(commands)
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


def _replay_commands(commands: Commands) -> None:
    what = "print an execution's history, for `dasync replay`"
    export = _command(commands, "export", actions.export, what, EXPORT_KEYS)
    export.add_argument("id", metavar="ID")
    beside = "what it awaits by an id of its own, to come along; what it awaits now comes by itself"
    export.add_argument("others", metavar="OTHER", nargs="*", help=beside)

    what = "try recorded executions on a program as it is now, without side effects: which diverge, and where"
    replay = _command(commands, "replay", actions.replay, what, REPLAY_KEYS)
    named = "programs, as in `worker` (default: $DASYNC_APP), and files that `export` has made, or folders of them"
    replay.add_argument("named", metavar="APP", nargs="*", help=named)
    replay.add_argument("--id", metavar="ID", action="append", default=[], help="of the store, as often as needed")
    how_long = "how long one may wait for what is not recorded, as a thread (default: %(default)s)"
    replay.add_argument("--timeout", type=_seconds, default=30.0, metavar="SECONDS", help=how_long)
    replay.set_defaults(app=os.environ.get("DASYNC_APP") or None)


def _sim_command(commands: Commands) -> None:
    what = "simulate dasync by seeds: processes, disk, network and clocks that fail, and what must hold all the same"
    sim = _command(commands, "sim", actions.sim, what, SIM_KEYS)
    alone = "run this one and print its log; with --seeds, begin here"
    sim.add_argument("--seed", type=_seed, metavar="N", help=alone)
    sim.add_argument("--seeds", type=_positive, metavar="N", help="run so many (default without --seed: 100)")
    night = "run for so many hours, with seeds that no other day has tried"
    sim.add_argument("--nightly", type=_hours, metavar="HOURS", help=night)
    sim.add_argument("--ticks", type=_positive, metavar="N", help="heal everything after so many ticks of the world")
    sim.add_argument("--jobs", type=_positive, metavar="N", help="processes to run in (default: as there are CPUs)")
    scenarios = ("default", "faults", "lazy", "swarm")
    kinds = "no faults; every kind; lost doorbells, stops and kills; kinds chosen by the seed (default: %(default)s)"
    sim.add_argument("--scenario", choices=scenarios, default="swarm", help=kinds)
    given = "these faults in place of the scenario's, as a failure prints them"
    sim.add_argument("--plan", metavar="FAULTS", help=given)
    sim.add_argument("--shrink", action="store_true", help="of a seed that fails, look for the fewest faults that do")
    sim.add_argument("--html", metavar="PATH", help="of one seed, write a page: who asked what when, and what it heard")
    sim.add_argument("--trace", action="store_true", help="of one seed, print everything that happened")


# -- parts -------------------------------------------------------------------------------------------------


def _command(commands: Commands, name: str, run: Callable[[argparse.Namespace], int], help: str, epilog: str) -> Parser:
    command = commands.add_parser(
        name, help=help, description=help, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    if name == "demo":
        where = "keep the store in this new file (default: a temporary one)"
        command.add_argument("--store", metavar="PATH", help=where)
    elif name not in ("check", "sim"):
        where = "default: $DASYNC_STORE, else dasync.db"
        command.add_argument("--store", default=default_store(), metavar="PATH", help=where)
    command.add_argument("--json", action="store_true", help="print JSON")
    command.set_defaults(run=run)
    return command


def _patience(command: Parser, help: str) -> None:
    command.add_argument("--for", dest="patience", type=_seconds, metavar="SECONDS", help=help)


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


def _seed(text: str) -> int:
    if not text.isdecimal() or int(text) > MAX_COUNT:
        raise argparse.ArgumentTypeError(f"a whole number from 0 to {MAX_COUNT}, not {text!r}")
    return int(text)


def _positive(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= MAX_COUNT:
        raise argparse.ArgumentTypeError(f"a whole number from 1 to {MAX_COUNT} is needed, not {text!r}")
    return int(text)


def _lease(text: str) -> float:
    seconds = _number(text)
    if not MIN_LEASE_S <= seconds <= MAX_LEASE_S:
        raise argparse.ArgumentTypeError(
            f"a number of seconds from {MIN_LEASE_S:g} to {MAX_LEASE_S:g} is needed, not {text!r}"
        )
    return seconds


def _seconds(text: str) -> float:
    seconds = _number(text)
    if not 0 <= seconds < math.inf:
        raise argparse.ArgumentTypeError(f"a number of seconds is needed, not {text!r}")
    return seconds


def _hours(text: str) -> float:
    hours = _number(text)
    if not 0 < hours < math.inf:
        raise argparse.ArgumentTypeError(f"a number of hours above 0 is needed, not {text!r}")
    return hours


def _number(text: str) -> float:
    """A number, or one that is none: it fails every comparison."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def _tag(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise argparse.ArgumentTypeError(f"KEY=VALUE is needed, not {text!r}")
    return key, value
