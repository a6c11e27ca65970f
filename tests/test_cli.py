"""The command line as people and scripts use it: real processes, real stores, one line per error."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import re
import shlex
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest
from shell import TIMEOUT_S, dasync, dasync_json, environment, fails, python, run

from dasync import all as all_of
from dasync import function, remote, sleep
from dasync.cli import facts, main
from dasync.cli.render import clean, duration
from dasync.core.protocol import TaskHalt
from dasync.loop import EventLoop
from dasync.runtime.decisions import promise as external
from dasync.stores.sqlite import SqliteStore
from dasync.system import SystemClock

COMMANDS = (
    "invoke", "wait", "show", "tree", "list", "resolve", "reject", "cancel", "resume", "worker", "check", "doctor",
    "export", "replay", "demo",
)  # fmt: skip
HELP_S = 0.25
LEASES = ("0", "-1", "0.01", "86401", "inf", "nan", "long")  # that make no sense
HEAVY = ("asyncio", "anyio", "aiosqlite", "sqlite3", "cattrs", "msgpack", "rich", "shtab", "watchfiles", "dasync.loop")


# -- the door ----------------------------------------------------------------------------------------------


def test_help_is_quick() -> None:
    """`dasync --help` takes less than 250 ms, and none of what is heavy is imported for it."""
    command = [sys.executable, "-X", "importtime", "-m", "dasync", "--help"]
    clock, spent_s = SystemClock(), 1.0
    for _ in range(10):  # this machine may be busy with other things
        began = clock.monotonic()
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, env=environment())
        spent_s = min(spent_s, clock.monotonic() - began)
        lines = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
        imported = {line.rpartition("|")[2].strip() for line in lines}
        assert "argparse" in imported
        assert imported.isdisjoint(HEAVY)
        assert all(command in done.stdout for command in COMMANDS)
        if spent_s < HELP_S:
            return
    pytest.fail(f"--help took {spent_s:.3f} s")


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_explains_its_json(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The help of each command names the keys that `--json` prints."""
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    assert "--json prints" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        ((), "COMMAND"),
        (("frobnicate",), "there is no command 'frobnicate': see `dasync --help`"),
        (("lst",), "there is no command 'lst': did you mean 'list'? See `dasync --help`"),
        (("completion", "basic"), "basic"),
        (("doctor", "a.py", "b.py"), "b.py"),
        (("list", "--task-state", "lost"), "lost"),
        (("invoke", "f", "{"), "ARGS is not JSON"),
        (("invoke", "f", "[" * 100_000), "nested too deeply"),
        (("invoke", "f", "--tag", "x"), "KEY=VALUE"),
        (("invoke", "f", "--version", "one"), "whole number"),
        (("invoke", "f", "--timeout", "nan"), "number of seconds"),
        (("wait", "x", "--for", "-1"), "--for"),
        (("wait", "x", "--timeout", "60"), "--timeout"),
        (("invoke", "f", "--for", "60"), "--wait"),
        (("reject", "x", "no", "--type", "Foo"), "not a builtin error"),
        (("reject", "x", "no", "--type", "KeyboardInterrupt"), "not a builtin error"),
        (("reject", "x", "no", "--type", "UnicodeDecodeError"), "more than a message"),
        (("show",), "ID"),
        (("list", "--limit", "0"), "--limit: a whole number"),
        (("list", "--limit", "9" * 20), "--limit: a whole number"),
        (("list", "--state", "done"), "done"),
        (("resolve", "x", "{"), "--text"),
        (("worker", "shop", "--concurrency", "many"), "--concurrency: a whole number"),
        (("worker", "shop", "--concurrency", "0"), "--concurrency: a whole number"),
        (("worker", "shop", "--processes", "0"), "--processes: a whole number"),
        *((("worker", "shop", "--lease", one), "--lease: a number of seconds from 0.1 to 86400") for one in LEASES),
        (("check",), "DASYNC_APP"),
        (("replay",), "DASYNC_APP"),
        (("replay", "shop.py"), "--id"),
        (("check", "shop.py", "--store", "shop.db"), "--store"),
    ],
)
def test_wrong_usage_is_one_line_and_status_2(
    arguments: tuple[str, ...], what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A command line that makes no sense is told in one line that says what is wrong."""
    status, error = fails(capsys, *arguments)
    assert status == 2
    assert what in error


@pytest.mark.parametrize(
    "command",
    [
        ("show", "x"), ("tree", "x"), ("list",), ("resolve", "x", "1"), ("resume", "x"), ("invoke", "f"),
        ("invoke", "f", "--wait"), ("wait", "x"), ("reject", "x", "no"), ("cancel", "x"), ("export", "x"),
    ],
)  # fmt: skip
def test_a_store_that_is_not_there_is_not_made(
    command: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """To look at a store that does not exist, or to change it, is an error and leaves no file behind."""
    status, error = fails(capsys, *command, "--store", str(tmp_path / "none.db"))
    assert status == 1
    assert "--store" in error
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_no_store_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file of somebody else's is refused by its header and stays as it is."""
    path = tmp_path / "notes.db"
    path.write_text("dear diary" * 100)
    status, error = fails(capsys, "list", "--store", str(path))
    assert status == 1
    assert "not a dasync store" in error
    assert path.read_text() == "dear diary" * 100


@pytest.mark.parametrize("store", ["memory:", "postgresql://here/there"])
def test_a_store_that_is_no_file_is_refused(store: str, capsys: pytest.CaptureFixture[str]) -> None:
    """What cannot be looked into from another process is told so."""
    assert fails(capsys, "list", "--store", store)[0] == 1


def test_the_store_may_come_from_the_environment(filled: str) -> None:
    """DASYNC_STORE names the store where no option does; a URL of SQLite's kind will do."""
    env = environment() | {"DASYNC_STORE": f"sqlite:///{filled}"}
    assert "bill-1" in python("-m", "dasync", "list", env=env)


# -- looking -----------------------------------------------------------------------------------------------


def test_show_tells_all_of_a_promise(filled: str) -> None:
    """State, function, version, arguments, value, times, task and tags; as text and as JSON with stable keys."""
    said = dasync_json("show", "bill-1", "--store", filled)
    assert set(said) == set(facts.Shown.__annotations__)
    assert said["arguments"] == {"args": [["tea"] * 11], "kwargs": {}}
    assert (said["state"], said["function"], said["version"], said["value"]) == ("resolved", "bill", 2, 154)
    assert said["tags"] == {"who": "ada"}
    assert said["task"] == {
        "state": "fulfilled", "version": 1, "process": None, "python": f"{sys.version_info[0]}.{sys.version_info[1]}",
            "reason": None,
    }  # fmt: skip
    child = dasync("show", "bill-1:0", "--store", filled)
    assert '("tea", count=2)' in child
    assert re.search(r"^value +14$", child, re.MULTILINE)
    assert re.search(r"^parent +bill-1$", child, re.MULTILINE)


def test_show_tells_how_a_promise_failed(filled: str) -> None:
    """Type, message and the remote traceback of an error."""
    said = dasync_json("show", "bill-2", "--store", filled)
    error = said["error"]
    assert isinstance(error, dict)
    assert (said["state"], error["type"], error["message"]) == ("rejected", "LookupError", "no dodo since 1662")
    assert "in price" in error["traceback"]
    text = dasync("show", "bill-2", "--store", filled)
    assert "LookupError: no dodo since 1662\n" in text
    assert "Traceback (most recent call last):\n" in text


def test_show_tells_who_waits_for_whom(filled: str) -> None:
    """A suspended execution names what it waits for, and that names the execution."""
    waiting = dasync_json("show", "approval", "--store", filled)
    awaited = dasync_json("show", "approval:0", "--store", filled)
    assert (waiting["awaits"], waiting["pending_below"]) == (["approval:0"], [])
    assert awaited["awaited_by"] == ["approval"]
    assert (awaited["function"], awaited["state"], awaited["settled_at"]) == (None, "pending", None)
    assert dasync_json("show", "too-late", "--store", filled)["state"] == "timedout"


@function
async def rests() -> bool:
    return await external(bool)


@function
async def errand() -> None:
    """What waits for all that can be waited for; it has let go of the first one."""
    ship = remote("ship", on="nowhere")
    ship.options(detached=True)("tea")
    await all_of(rests(), ship("cup"), external(timeout=3600), sleep(3600))


@function
async def works() -> None:
    await asyncio.sleep(TIMEOUT_S)


@pytest.mark.asyncio
async def test_show_and_tree_tell_what_is_pending_below_what_runs(tmp_path: Path) -> None:
    """It has left no word of what it waits for: what it made, what of that is pending, and what that depends on."""
    at = ("--store", str(tmp_path / "w.db"))
    async with asyncio.timeout(TIMEOUT_S), EventLoop(at[1]) as loop:
        errand.options(id="errand")()
        works.options(id="works")()
        while len((await loop.search()).found) < 8:  # noqa: ASYNC110  # nothing tells of what is written behind
            await asyncio.sleep(0.01)
        shown, told, tree, drawn, working = await asyncio.gather(
            run("show", "errand", *at), run("show", "errand", "--json", *at), run("tree", "errand", "--json", *at),
            run("tree", "errand", *at), run("show", "works", *at),
        )  # fmt: skip
    assert re.search(
        r"^below it +errand:1\.0  \(settled outside\)  pending for [^ ]+ m?s\n"
        r" +errand:2  ship  pending for [^ ]+ m?s  task pending, version 0, target nowhere\n"
        r" +errand:3  \(settled outside\)  pending for [^ ]+ m?s  deadline 2\S+ \S+ UTC\n"
        r" +errand:4  dasync.sleep  pending for [^ ]+ m?s  deadline 2\S+ \S+ UTC$",
        shown[1], re.M,
    ), shown[1]  # fmt: skip
    below = json.loads(told[1])["pending_below"]
    assert all(set(one) == set(facts.Brief.__annotations__) for one in below)
    ids = ["errand:1.0", "errand:2", "errand:3", "errand:4"]
    assert [one["id"] for one in below] == ids
    nodes = {one["id"]: [below["id"] for below in one["pending_below"]] for one in json.loads(tree[1])["promises"]}
    assert nodes == {id: ids if id == "errand" else [] for id in ("errand", "errand:0", "errand:1", *ids)}
    assert drawn[1].splitlines()[0].endswith("  pending below it: errand:1.0, errand:2, errand:3 and 1 more")
    assert re.search(r"^below it +nothing that the store knows of is pending$", working[1], re.M)


def test_tree_draws_the_calls(filled: str) -> None:
    """Children hang below their parent in the order of their places; states, durations and waits beside them."""
    lines = dasync("tree", "bill-1", "--store", filled).splitlines()
    assert re.fullmatch(r"bill-1  bill version 2  resolved in \d+ ms", lines[0])
    assert [line.split("  ")[0] for line in lines[1:]] == [
        *(f"├─ bill-1:{place}" for place in range(10)), "└─ bill-1:10",
    ]  # fmt: skip
    waiting = dasync("tree", "approval", "--store", filled)
    root = r"^approval  approve  pending for .*  task suspended, version 1  waits for approval:0$"
    assert re.search(root, waiting, re.M)
    assert re.search(r"^└─ approval:0  \(settled outside\)  pending for .*  awaited by approval", waiting, re.M)
    said = dasync_json("tree", "bill-1", "--store", filled)
    nodes = said["promises"]
    assert isinstance(nodes, list)
    assert [(node["depth"], node["parent"]) for node in nodes] == [(0, None)] + [(1, "bill-1")] * 11
    assert all(set(node) == set(facts.Node.__annotations__) for node in nodes)


def test_tree_on_a_terminal_is_in_color(filled: str) -> None:
    """On a terminal the same tree comes with colors."""
    leader, follower = pty.openpty()
    command = [sys.executable, "-m", "dasync", "tree", "bill-2", "--store", filled]
    env = environment() | {"TERM": "xterm-256color"}
    with subprocess.Popen(command, stdout=follower, env=env) as process:
        os.close(follower)
        said = b""
        try:
            while chunk := os.read(leader, 65536):
                said += chunk
        except OSError:  # Linux's way to say that the other end is closed
            pass
        assert process.wait(TIMEOUT_S) == 0
    os.close(leader)
    assert b"\x1b[31mrejected in" in said
    assert b"bill-2:0" in said


def test_list_goes_through_a_store_part_by_part(filled: str) -> None:
    """`--limit` and `--cursor` give every promise once; `--state` and `--function` choose."""
    found: list[str] = []
    cursor: object = ""
    while cursor is not None:
        part = dasync_json("list", "--limit", "10", "--cursor", str(cursor), "--store", filled)
        promises = part["promises"]
        assert isinstance(promises, list)
        assert all(set(one) == set(facts.Brief.__annotations__) for one in promises)
        found += [one["id"] for one in promises]
        cursor = part["cursor"]
    assert found == sorted({*found})
    assert {"approval", "approval:0", "bill-1", "bill-1:10", "bill-2", "too-late"} < set(found)
    chosen = dasync("list", "--function", "price", "--state", "rejected", "--store", filled).splitlines()
    assert chosen[0].split() == ["ID", "STATE", "FUNCTION", "TASK", "CREATED"]
    assert [line.split()[0] for line in chosen[1:]] == ["bill-2:0"]
    assert dasync("list", "--function", "nobody", "--store", filled) == "no promises\n"
    roots = dasync_json("list", "--roots", "--store", filled)["promises"]
    assert isinstance(roots, list)
    assert [one["id"] for one in roots] == [id for id in found if ":" not in id]
    suspended = dasync_json("list", "--task-state", "suspended", "--store", filled)["promises"]
    assert isinstance(suspended, list)
    assert [one["id"] for one in suspended] == ["approval"]


def test_list_tells_the_command_that_shows_the_next_part(filled: str) -> None:
    """It is on stderr, can be run as it stands, and is not there after the last part."""
    command, found = ["dasync", "list", "--limit", "2", "--function", "price", "--store", filled], list[str]()
    done = subprocess.run(
        [sys.executable, "-m", "dasync", "list", "--roots", "--limit", "1", "--store", filled],
        capture_output=True, text=True, timeout=TIMEOUT_S, env=environment(),
    )  # fmt: skip
    assert done.stderr.endswith(" --roots\n")
    for _ in range(6):
        done = subprocess.run(
            [sys.executable, "-m", *command], capture_output=True, text=True, timeout=TIMEOUT_S, env=environment()
        )
        found += [line.split()[0] for line in done.stdout.splitlines()[1:]]
        if not done.stderr:
            break
        more = re.fullmatch(r"more: (dasync list .*)\n", done.stderr)
        assert more is not None
        command = shlex.split(more[1])
    assert found == sorted([*(f"bill-1:{place}" for place in range(11)), "bill-2:0"])


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
def test_completion_knows_the_commands(shell: str) -> None:
    """Each shell's script names the commands and their options; bash takes its own."""
    script = dasync("completion", shell)
    assert all(command in script for command in (*COMMANDS, "--task-state"))
    assert (" for " if shell == "tcsh" else "--for") in script
    if shell == "bash":
        ask = "COMP_WORDS=(dasync can); COMP_CWORD=1; _shtab_dasync 2>/dev/null; echo ${COMPREPLY[@]}"
        done = subprocess.run(["bash", "-c", f"{script}\n{ask}"], capture_output=True, text=True, timeout=TIMEOUT_S)
        assert done.stdout == "cancel\n"


@pytest.mark.parametrize("command", ["show", "tree"])
def test_an_unknown_promise_is_an_error(command: str, filled: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A promise that is not there is told so, with what to do."""
    status, error = fails(capsys, command, "nobody", "--store", filled)
    assert status == 1
    assert "dasync list" in error


def test_a_reader_that_leaves_early_is_no_error(filled: str) -> None:
    """`dasync list | head -1` ends quietly when head has gone."""
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "dasync", "list", "--store", filled]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, timeout=TIMEOUT_S, env=environment())
    os.close(write)
    assert (done.returncode, done.stderr) == (0, b"")


def test_values_are_told_as_json() -> None:
    """What JSON has no form for becomes text; nothing is lost silently."""
    value = {
        1: (b"\x00\xff", {3, 2}, float("nan")), (1, "a"): datetime(2024, 2, 29, tzinfo=UTC),
        "d": Decimal("1.10"), "t": timedelta(minutes=1), "n": None, "b": True,
    }  # fmt: skip
    assert facts.jsonable(value) == {
        "1": ["base64:AP8=", [2, 3], "nan"], '[1, "a"]': "2024-02-29T00:00:00+00:00",
        "d": "1.10", "t": 60.0, "n": None, "b": True,
    }  # fmt: skip


def test_a_payload_cannot_drive_the_terminal() -> None:
    """Control characters are shown, not sent."""
    assert clean("\x1b[2Jgone\r\nü") == "\\x1b[2Jgone\\r\\nü"


@pytest.mark.parametrize(
    ("ms", "text"),
    [
        (0, "0 ms"), (999, "999 ms"), (1500, "1.5 s"), (61_000, "1 min 1 s"), (7_500_000, "2 h 5 min"),
        (90_000_000, "1 d 1 h"),
    ],
)
def test_durations_have_two_units_at_most(ms: int, text: str) -> None:
    """A duration is as exact as a reader needs."""
    assert duration(ms) == text


# -- changing ----------------------------------------------------------------------------------------------


def test_resolve_settles_a_promise_of_somebody_outside(store: str, capsys: pytest.CaptureFixture[str]) -> None:
    """It settles once: the same value again changes nothing, another one is an error."""
    said = dasync_json("resolve", "approval:0", "true", "--store", store)
    assert said == {"id": "approval:0", "state": "resolved", "value": True, "changed": True}
    assert dasync_json("resolve", "approval:0", "true", "--store", store)["changed"] is False
    status, error = fails(capsys, "resolve", "approval:0", "false", "--store", store)
    assert status == 1
    assert "another outcome" in error
    assert dasync_json("show", "approval:0", "--store", store)["value"] is True
    task = dasync_json("show", "approval", "--store", store)["task"]
    assert isinstance(task, dict)
    assert task["state"] == "pending"  # it was suspended, and may go on


@pytest.mark.parametrize(
    ("id", "what"),
    [
        ("nobody", "holds no promise 'nobody' yet: it can be resolved once its program has made it; wait"),
        ("approval", "settled by 'approve'"),
        ("too-late", "timedout"),
    ],
)
def test_resolve_refuses_what_is_not_to_be_settled_by_hand(
    id: str, what: str, filled: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """No unknown promise, none that a function computes, none that is settled."""
    status, error = fails(capsys, "resolve", id, "1", "--store", filled)
    assert status == 1
    assert what in error


def test_resolve_refuses_a_value_that_is_too_large(filled: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The limit of payloads holds here too."""
    status, error = fails(capsys, "resolve", "approval:0", "x" * 2**22, "--text", "--store", filled)
    assert status == 1
    assert "more than the limit" in error


@pytest.mark.asyncio
async def test_resolve_wakes_who_waits(tmp_path: Path) -> None:
    """The doorbell of the waiting process is rung: it does not wait for its next poll, a minute away."""
    path = str(tmp_path / "bell.db")
    async with asyncio.timeout(TIMEOUT_S), EventLoop(path, poll=60.0, lease=60.0, functions=[]):
        promise = external(str, id="letter")
        await promise.created()
        command = (sys.executable, "-m", "dasync", "resolve", "letter", "--text", "dear", "--store", path)
        process = await asyncio.create_subprocess_exec(*command, env=environment(), stdout=subprocess.PIPE)
        assert await promise == "dear"
        said, _ = await process.communicate()
        assert said == b"letter is resolved\n"
        assert process.returncode == 0


def test_resume_sends_a_halted_task_again(store: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A halted task is pending again; one that is not halted, or not there, is an error."""

    async def halt() -> None:
        rows = SqliteStore(store, SystemClock())
        await rows.open()
        await rows.transact([TaskHalt("approval", "it has\x1b diverged\nat length")])
        await rows.close()

    assert fails(capsys, "resume", "approval", "--store", store)[0] == 1
    assert fails(capsys, "resume", "bill-1:0", "--store", store)[0] == 1
    asyncio.run(halt())
    assert "task halted" in dasync("tree", "approval", "--store", store)
    assert dasync("show", "approval", "--store", store).endswith("\n\nit has\\x1b diverged\nat length\n")
    shown = dasync_json("show", "approval", "--store", store)["task"]
    assert isinstance(shown, dict)
    assert shown["reason"] == "it has\x1b diverged\nat length"
    head, row = dasync("list", "--task-state", "halted", "--store", store).splitlines()
    assert head.endswith("  REASON")
    assert row.endswith("  it has\\x1b diverged")
    assert "REASON" not in dasync("list", "--task-state", "suspended", "--store", store)
    said = dasync_json("resume", "approval", "--store", store)
    task = said["task"]
    assert isinstance(task, dict)
    assert (said["id"], task["state"], task["reason"]) == ("approval", "pending", None)
