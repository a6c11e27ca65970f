"""What is done for each command: read its arguments, have it done, print what came of it.

Every function takes the parsed arguments and gives the exit status. What does the work is imported when it is asked
for: it brings SQLite and asyncio along, which `--help` can do without.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys

from dasync.cli import say
from dasync.cli.say import UsageError

Arguments = tuple[tuple[object, ...], dict[str, object]]


def invoke(args: argparse.Namespace) -> int:
    """Make a root promise with a task for a group."""
    if args.patience is not None and not args.wait:
        raise UsageError("--for is how long to --wait: give both, or neither")
    positional, named = _call(args.arguments)
    from dasync.cli import commands, guest

    wanted = guest.Invocation(
        args.name, args.version, positional, named, args.on, args.id, args.timeout, dict(args.tag)
    )
    invoked, hint = commands.run(guest.invoke(args.store, wanted))
    if args.wait:
        return _waited(args, invoked["id"])
    if hint:
        say.complaint(hint)
    return say.facts(args.json, invoked, lambda: invoked["id"] + ("" if invoked["created"] else " is there already"))


def wait(args: argparse.Namespace) -> int:
    """Wait until a promise is settled."""
    return _waited(args, args.id)


def _waited(args: argparse.Namespace, id: str) -> int:
    from dasync.cli import commands, guest

    try:
        came = commands.run(guest.wait(args.store, id, args.patience))
    except KeyboardInterrupt:
        return say.complaint(f"{id} goes on; `dasync wait {id}` waits for it again", say.INTERRUPTED)
    if args.json or came.facts["state"] == "resolved":
        say.facts(args.json, came.facts, lambda: json.dumps(came.facts["value"], ensure_ascii=False))
    if came.complaint:
        return say.complaint(came.complaint, say.TIMED_OUT if came.facts["state"] == "pending" else say.FAILED)
    return 0


# -- looking -----------------------------------------------------------------------------------------------


def show(args: argparse.Namespace) -> int:
    """All that is known of one promise."""
    from dasync.cli import commands, render

    facts = commands.run(commands.show(args.store, args.id))
    return say.facts(args.json, facts, lambda: render.promise(facts))


def tree(args: argparse.Namespace) -> int:
    """A call tree."""
    from dasync.cli import commands, render

    facts = commands.run(commands.tree(args.store, args.id))
    if not args.json and sys.stdout.isatty():
        render.print_tree(facts)
        return 0
    return say.facts(args.json, facts, lambda: render.tree(facts))


def list_(args: argparse.Namespace) -> int:
    """Promises by id, a part of them; then the command that shows the next part."""
    from dasync.cli import commands, render

    wanted = commands.Wanted(args.state, args.function, args.task_state, args.roots, args.limit, args.cursor)
    facts = commands.run(commands.search(args.store, wanted))
    status = say.facts(args.json, facts, lambda: render.listing(facts))
    if facts["cursor"] is not None and not args.json:
        options = {
            "--state": args.state, "--function": args.function, "--task-state": args.task_state,
            "--limit": args.limit, "--store": args.store, "--cursor": facts["cursor"],
        }  # fmt: skip
        chosen = [str(part) for option in options.items() if option[1] is not None for part in option]
        chosen += ["--roots"] * args.roots
        print(f"more: dasync list {shlex.join(chosen)}", file=sys.stderr)
    return status


def doctor(args: argparse.Namespace) -> int:
    """Examine a store."""
    from dasync.cli import commands, doctor, render

    checks = commands.run(doctor.examine(args.store, args.app))
    say.facts(args.json, checks, lambda: render.checks(checks))
    return say.FAILED if any(check["status"] == "fail" for check in checks) else 0


# -- settling ----------------------------------------------------------------------------------------------


def resolve(args: argparse.Namespace) -> int:
    """Resolve a promise by hand."""
    value = args.value if args.text else _json("VALUE", args.value, "use --text to give it as a string")
    from dasync.cli import commands, settle

    facts = commands.run(settle.resolve(args.store, args.id, value))
    return say.facts(args.json, facts, lambda: f"{args.id} {_changed(facts['changed'])} resolved")


def reject(args: argparse.Namespace) -> int:
    """Reject a promise by hand."""
    from dasync.cli import commands, settle

    error = settle.error_of(args.type, args.message)
    facts = commands.run(settle.reject(args.store, args.id, error))
    return say.facts(args.json, facts, lambda: f"{args.id} {_changed(facts['changed'])} rejected")


def cancel(args: argparse.Namespace) -> int:
    """Cancel a promise."""
    from dasync.cli import commands, settle

    facts = commands.run(settle.cancel(args.store, args.id, args.reason))
    unchanged = "" if facts["changed"] else ": nothing has changed"
    return say.facts(args.json, facts, lambda: f"{args.id} {_changed(facts['changed'])} {facts['state']}{unchanged}")


def _changed(changed: bool) -> str:
    return "is" if changed else "was already"


def resume(args: argparse.Namespace) -> int:
    """Let a halted task run again."""
    from dasync.cli import commands, settle

    facts = commands.run(settle.resume(args.store, args.id))
    return say.facts(args.json, facts, lambda: f"{args.id} goes on: its task is {facts['task']['state']}")


# -- programs ----------------------------------------------------------------------------------------------


def worker(args: argparse.Namespace) -> int:
    """Run a worker, and with `--reload` run it again and again."""
    if args.app is None:
        raise UsageError("which program? Name it, as in `dasync worker shop.py`, or set DASYNC_APP")
    if args.reload:
        from dasync.cli import reload

        return reload.worker(args)
    from dasync.cli import serve

    return serve.worker(args)


def check(args: argparse.Namespace) -> int:
    """Look for what a replay of a program would not stand."""
    if not args.apps:
        raise UsageError("which program? Name it, as in `dasync check shop.py`, or set DASYNC_APP")
    from dasync.cli import check, render

    checked = check.check(args.apps)
    say.facts(args.json, checked, lambda: render.checked(checked))
    return say.FAILED if checked["findings"] else 0


def export(args: argparse.Namespace) -> int:
    """Print the history of an execution."""
    from dasync.cli import commands, replay

    found = commands.run(replay.export(args.store, args.id, args.others))
    print(json.dumps(found, ensure_ascii=False, indent=1), flush=True)
    return 0


def replay(args: argparse.Namespace) -> int:
    """Try recorded executions on a program."""
    from dasync.cli import commands, replay

    apps, paths = replay.parted(args.named, args.app)
    if not apps:
        raise UsageError("which program? Name it, as in `dasync replay shop.py history.json`, or set DASYNC_APP")
    if bool(paths) is bool(args.id):
        raise UsageError("which executions? Name files that `dasync export` has made, or --id ID and a --store")
    summary = commands.run(replay.run(replay.Wanted(apps, paths, args.id, args.store, args.timeout)))
    say.facts(args.json, summary, lambda: replay.text(summary))
    return say.FAILED if replay.failed(summary) else 0


def sim(args: argparse.Namespace) -> int:
    """Run simulated worlds."""
    from dasync.cli import sim

    return sim.run(
        sim.Wanted(
            args.seed, args.seeds, args.nightly, args.ticks, args.jobs, args.scenario, args.plan, args.shrink,
            args.html, args.trace, args.json,
        )
    )  # fmt: skip


def completion(args: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    """Print the completion script of a shell."""
    import shtab

    for command in _parsers(parser):
        for action in command._actions:
            if action.metavar in ("PATH", "APP"):
                action.complete = shtab.FILE  # type: ignore[attr-defined]  # where shtab looks for it
    print(shtab.complete(parser, args.shell))
    return 0


def _parsers(parser: argparse.ArgumentParser) -> list[argparse.ArgumentParser]:
    chosen = [action.choices for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return [command for choices in chosen for command in choices.values()]


def demo(args: argparse.Namespace) -> int:
    """Run the demo."""
    from dasync.demo import run

    return run.demo(run.Wanted(args.files, args.workers, not args.no_kill, args.store, args.json))


# -- JSON on the command line ------------------------------------------------------------------------------


def _call(text: str | None) -> Arguments:
    if text is None:
        return (), {}
    value = _json("ARGS", text, "give an array, as in '[\"tea\", 2]'")
    if isinstance(value, list):
        return tuple(value), {}
    return ((), value) if isinstance(value, dict) else ((value,), {})


def _json(what: str, text: str, remedy: str) -> object:
    try:
        value: object = json.loads(text)
    except RecursionError:
        raise UsageError(f"{what} is nested too deeply; {remedy}") from None
    except ValueError as error:
        raise UsageError(f"{what} is not JSON ({error}); {remedy}") from None
    return value
