"""`dasync invoke`, `wait`, `reject` and `cancel`: real processes and stores, each way that it can end."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from clocks import FakeClock
from shell import TIMEOUT_S, dasync_json, environment, fails, run, start
from shell import dasync as command

import dasync
from dasync.cli import guest, main
from dasync.core.protocol import PromiseCreate, TaskHalt
from dasync.stores.sqlite import SqliteStore
from dasync.system import SystemClock


@dasync.function
async def parcel(sku: str, *, count: int = 1) -> list[object]:
    """What the commands here invoke."""
    return [sku, count]


@dasync.function
async def breakage() -> None:
    """What fails."""
    raise LookupError("no dodo\nsince 1662")


@dasync.function
async def errand() -> None:
    """What waits for somebody who is not there."""
    await dasync.remote("ship", on="nowhere")()


UNSERVED = "nobody serves group 'default' now: it waits for `dasync worker APP --group default`"


# -- invoke ------------------------------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_invoke_rings_the_workers_and_waits_for_the_value(tmp_path: Path) -> None:
    """The worker's doorbell is rung, and the guest's: neither waits for its next poll, a minute away."""
    path = str(tmp_path / "w.db")
    async with asyncio.timeout(TIMEOUT_S), dasync.EventLoop(path, group="packers", poll=60.0, lease=60.0):
        on = ("--on", "packers", "--store", path)
        assert await run("invoke", "parcel", '["tea"]', "--wait", *on) == (0, '["tea", 1]\n', "")
        status, said, _ = await run("invoke", "parcel", '{"sku": "cup", "count": 2}', *on, "--wait", "--json")
        told = json.loads(said)
        assert (status, told["id"][:7]) == (0, "parcel-")
        assert told == {"id": told["id"], "state": "resolved", "value": ["cup", 2], "error": None}
        assert await run("invoke", "parcel", "7", "--wait", *on) == (0, "[7, 1]\n", "")
        status, said, complaint = await run("invoke", "breakage", "--id", "broken", "--wait", *on)
        assert (status, said) == (1, "")
        why = "'broken' was rejected: LookupError: no dodo\\nsince 1662; `dasync show broken` tells more"
        assert complaint == f"dasync: promise {why}\n"


def test_invoke_makes_a_promise_with_a_task(store: str) -> None:
    """Function, version, arguments, target, deadline and tags are as they were said; the id is printed."""
    options = ("--version", "3", "--timeout", "3600", "--tag", "who=ada", "--tag", "why=a=b")
    id = command("invoke", "ship", '["tea", 2]', "--on", "warehouse/ann", *options, "--store", store).strip()
    shown = dasync_json("show", id, "--store", store)
    assert id.startswith("ship-")
    assert (shown["function"], shown["version"], shown["target"]) == ("ship", 3, "warehouse/ann")
    assert (shown["arguments"], shown["tags"]) == ({"args": ["tea", 2], "kwargs": {}}, {"who": "ada", "why": "a=b"})
    assert (shown["state"], shown["parent"]) == ("pending", None)
    assert shown["timeout_at"] is not None
    task = shown["task"]
    assert isinstance(task, dict)
    assert task["state"] == "pending"


@pytest.mark.asyncio
async def test_invoke_says_when_nobody_serves_the_group(store: str) -> None:
    """A typo in --on, or a worker that is still to be started: told at once, and no error."""
    for target, who, options in [
        ("wherehouse", "group 'wherehouse'", "--group wherehouse"),
        ("wherehouse/ann", "process 'wherehouse/ann'", "--group wherehouse --process ann"),
    ]:
        status, said, hint = await run("invoke", "ship", '["tea"]', "--on", target, "--store", store)
        assert (status, said[:5]) == (0, "ship-")
        assert hint == f"dasync: nobody serves {who} now: it waits for `dasync worker APP {options}`\n"


@pytest.mark.asyncio
async def test_invoke_waits_for_as_long_as_it_is_told(store: str) -> None:
    """`--timeout` is the promise's deadline, `--for` is how long this command waits: one is over, the other is not."""
    waiting = ("--wait", "--for", "0.05", "--timeout", "3600", "--store", store)
    status, said, complaint = await run("invoke", "ship", "--id", "order-9", *waiting)
    assert (status, said) == (124, "")
    assert complaint.splitlines() == [
        f"dasync: {UNSERVED}", "dasync: promise 'order-9' is pending still; `dasync wait order-9` waits again",
    ]  # fmt: skip


def test_invoke_gives_the_promise_that_is_there(store: str, capsys: pytest.CaptureFixture[str]) -> None:
    """An id in use for the same invocation gives that promise; for another one it is an error."""
    there = ("--id", "order-42", "--store", store)
    said = dasync_json("invoke", "ship", '["tea"]', *there)
    assert said == {"id": "order-42", "created": True, "function": "ship", "version": 1, "target": "default"}
    assert dasync_json("invoke", "ship", '["tea"]', *there)["created"] is False
    assert command("invoke", "ship", '["tea"]', *there) == "order-42 is there already\n"
    for others, what in [
        (("ship", '["cup"]'), "other arguments"),
        (("send", '["tea"]'), "not 'send'"),
        (("ship", '["tea"]', "--version", "2"), "(version 2)"),
    ]:
        status, error = fails(capsys, "invoke", *others, *there)
        assert status == 1
        assert what in error
        assert "another id" in error


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (("f", "--id", "a:b"), "colon"),
        (("f", "--on", "/x"), "group/process"),
        (("", "--id", "x"), "printable"),
        (("f", json.dumps("x" * 2**22)), "limit"),
        (("f", "--tag", f"k={'v' * 300}"), "256"),
        (("f", "--version", str(2**40)), "version"),
    ],
)
def test_invoke_refuses_what_no_promise_could_be(
    arguments: tuple[str, ...], what: str, filled: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ids, groups, names, sizes, tags and versions are checked before anything is written."""
    status, error = fails(capsys, "invoke", *arguments, "--store", filled)
    assert status == 1
    assert what in error


# -- wait --------------------------------------------------------------------------------------------------


def test_wait_tells_what_is_settled_already(filled: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A value is printed as JSON; what failed, and how, is one line and status 1."""
    assert command("wait", "bill-1", "--store", filled) == "154\n"
    assert dasync_json("wait", "bill-1", "--store", filled) == {
        "id": "bill-1", "state": "resolved", "value": 154, "error": None,
    }  # fmt: skip
    assert fails(capsys, "wait", "too-late", "--store", filled) == (
        1, "dasync: promise 'too-late' reached its deadline before it was settled; `dasync show too-late` tells more\n",
    )  # fmt: skip
    status, error = fails(capsys, "wait", "nobody", "--store", filled)
    assert status == 1
    assert "dasync list" in error


def test_wait_with_json_tells_the_error(filled: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The object is on stdout, the line on stderr, and the status is 1."""
    assert main(["wait", "bill-2", "--json", "--store", filled]) == 1
    out, complaint = capsys.readouterr()
    told = json.loads(out)
    assert set(told) == set(guest.Waited.__annotations__)
    assert (told["state"], told["value"]) == ("rejected", None)
    assert (told["error"]["type"], told["error"]["message"]) == ("LookupError", "no dodo since 1662")
    assert "LookupError: no dodo since 1662" in complaint


@pytest.mark.asyncio
async def test_wait_gives_up_when_its_time_is_over(tmp_path: Path) -> None:
    """Status 124 and how to go on; the promise stays pending."""
    path = str(tmp_path / "w.db")
    async with asyncio.timeout(TIMEOUT_S), dasync.EventLoop(path):
        await errand.options(id="errand")().created()
        for options, said in [
            (("--for", "0.05"), ""),
            (("--for", "0", "--json"), '{"id": "errand", "state": "pending", "value": null, "error": null}\n'),
        ]:
            complaint = "dasync: promise 'errand' is pending still; `dasync wait errand` waits again\n"
            assert await run("wait", "errand", *options, "--store", path) == (124, said, complaint)


def test_wait_says_at_once_what_a_promise_needs(store: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A worker where nobody serves the group, somebody who resumes what is halted; for a person, nothing."""
    again = "`dasync wait {0}` waits again"

    def said(id: str) -> list[str]:
        assert main(["wait", id, "--for", "0", "--store", store]) == 124
        out, complaints = capsys.readouterr()
        assert out == ""
        return [line.removeprefix("dasync: ") for line in complaints.splitlines()]

    assert said("approval") == [UNSERVED, f"promise 'approval' is pending still; {again.format('approval')}"]
    assert said("approval:0") == [f"promise 'approval:0' is pending still; {again.format('approval:0')}"]

    async def halt() -> None:
        rows = SqliteStore(store, SystemClock())
        await rows.open()
        await rows.transact([TaskHalt("approval", "it has\x1b diverged\nat length")])
        await rows.close()

    asyncio.run(halt())
    assert said("approval")[0] == (
        "approval is halted: it has\\x1b diverged; correct the code, then `dasync resume approval`"
    )


@pytest.mark.asyncio
async def test_wait_says_when_nobody_begins(tmp_path: Path) -> None:
    """The group is served, by somebody who has no such function: a typo in its name. Not before two seconds."""
    path, now_ms = str(tmp_path / "w.db"), SystemClock().now_ms()
    for id, age_s in [("old", 3), ("new", -60)]:
        rows = SqliteStore(path, FakeClock(now_ms - 1000 * age_s))
        await rows.open()
        await rows.transact([PromiseCreate(id, "shpi", 1, b"", "default", seed=b"1")])
        await rows.close()
    async with asyncio.timeout(TIMEOUT_S), dasync.EventLoop(path, functions=[]):
        status, _, said = await run("wait", "old", "--for", "0", "--store", path)
        assert (status, said.splitlines()) == (124, [
            "dasync: group 'default' is served, but nobody has begun old: they are busy, or have no function 'shpi'"
            " version 1 (`dasync doctor APP` tells what APP lacks)",
            "dasync: promise 'old' is pending still; `dasync wait old` waits again",
        ])  # fmt: skip
        said = (await run("wait", "new", "--for", "0", "--store", path))[2]
        assert said == "dasync: promise 'new' is pending still; `dasync wait new` waits again\n"


@pytest.mark.asyncio
async def test_wait_may_be_interrupted(tmp_path: Path) -> None:
    """Ctrl-C ends the wait, not the promise: status 130, and how to wait again."""
    path = str(tmp_path / "w.db")
    async with asyncio.timeout(TIMEOUT_S), dasync.EventLoop(path, functions=[]) as loop:
        await dasync.promise(id="letter").created()
        waiter = await start("wait", "letter", "--store", path)
        while not any(one.group == guest.GUESTS for one in await loop._store.processes()):  # noqa: ASYNC110  # in another process
            await asyncio.sleep(0.01)
        waiter.send_signal(signal.SIGINT)
        out, complaint = await waiter.communicate()
        assert (waiter.returncode, out) == (130, b"")
        assert complaint == b"dasync: letter goes on; `dasync wait letter` waits for it again\n"
        assert [one.group for one in await loop._store.processes()] == ["default"]  # it has left


def test_wait_tells_a_person_for_how_long(store: str) -> None:
    """On a terminal, after two seconds, it says for what it waits and since when."""
    leader, follower = pty.openpty()
    command = [sys.executable, "-m", "dasync", "wait", "approval", "--store", store]
    env = environment() | {"TERM": "xterm-256color"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=follower, env=env) as process:
        os.close(follower)
        said = b""
        while b"so far" not in said:
            said += os.read(leader, 65536)
        process.kill()
    os.close(leader)
    assert re.search(rb"waits for approval, [23]\.\d s so far", said)


# -- reject and cancel -------------------------------------------------------------------------------------


def test_reject_settles_a_promise_of_somebody_outside(store: str, capsys: pytest.CaptureFixture[str]) -> None:
    """It settles once: the same error again changes nothing, another outcome is an error."""
    rejecting = ("reject", "approval:0", "no, thanks", "--type", "PermissionError", "--store", store)
    said = dasync_json(*rejecting)
    error = {"type": "PermissionError", "message": "no, thanks"}
    assert said == {"id": "approval:0", "state": "rejected", "error": error, "changed": True}
    assert dasync_json(*rejecting)["changed"] is False
    assert command(*rejecting) == "approval:0 was already rejected\n"
    for other in (("reject", "approval:0", "no, thanks"), ("resolve", "approval:0", "1")):
        status, complaint = fails(capsys, *other, "--store", store)
        assert status == 1
        assert "another outcome" in complaint
    shown = dasync_json("show", "approval:0", "--store", store)
    assert shown["error"] == {**error, "traceback": ""}
    assert command("show", "approval:0", "--store", store).count("no, thanks") == 1


@pytest.mark.asyncio
async def test_a_rejection_is_raised_where_it_is_awaited(tmp_path: Path) -> None:
    """As the builtin error that was named; by default a RuntimeError."""
    path = str(tmp_path / "w.db")
    async with asyncio.timeout(TIMEOUT_S), dasync.EventLoop(path, poll=60.0, lease=60.0, functions=[]):
        for type, options in ((PermissionError, ("--type", "PermissionError")), (RuntimeError, ())):
            promise = dasync.promise(id=type.__name__)
            await promise.created()
            done = await run("reject", promise.id, "not today", *options, "--store", path)
            assert done == (0, f"{promise.id} is rejected\n", "")
            with pytest.raises(type, match="not today") as caught:
                await promise
            assert not hasattr(caught.value, "__notes__")  # nobody raised it, so there is no remote traceback to tell


@pytest.mark.parametrize(
    ("id", "what"),
    [
        ("nobody", "it can be rejected once its program has made it"),
        ("approval", "rejected by hand"),
        ("too-late", "timedout"),
    ],
)
def test_reject_refuses_what_is_not_to_be_settled_by_hand(
    id: str, what: str, filled: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """No unknown promise, none that a function computes, none that is settled."""
    status, error = fails(capsys, "reject", id, "no", "--store", filled)
    assert status == 1
    assert what in error


def test_cancel_settles_what_is_pending(store: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever computes it; the reason is kept. What is settled stays as it is, and that is said."""
    said = dasync_json("cancel", "approval", "--reason", "out of stock", "--store", store)
    assert said == {"id": "approval", "state": "canceled", "changed": True}
    assert dasync_json("show", "approval", "--store", store)["reason"] == "out of stock"
    assert dasync_json("show", "approval:0", "--store", store)["state"] == "pending"  # that is somebody else's
    assert "reason      out of stock\n" in command("show", "approval", "--store", store)
    assert "was canceled (out of stock)" in fails(capsys, "wait", "approval", "--store", store)[1]
    assert command("cancel", "approval", "--store", store) == "approval was already canceled: nothing has changed\n"
    said = dasync_json("cancel", "bill-1", "--store", store)
    assert said == {"id": "bill-1", "state": "resolved", "changed": False}
    command("invoke", "ship", "--id", "order", "--store", store)
    assert command("cancel", "order", "--store", store) == "order is canceled\n"
    assert dasync_json("show", "order", "--store", store)["reason"] is None
    status, error = fails(capsys, "cancel", "nobody", "--store", store)
    assert status == 1
    assert "dasync list" in error


@pytest.mark.asyncio
async def test_cancel_ends_what_is_below(tmp_path: Path) -> None:
    """An execution that runs in another process is interrupted, and its pending child is canceled with it."""
    path = str(tmp_path / "w.db")
    async with asyncio.timeout(TIMEOUT_S), dasync.EventLoop(path, poll=60.0, lease=60.0) as loop:
        promise = errand.options(id="errand")()
        while "errand:0" not in loop.awaiters:  # noqa: ASYNC110  # nothing tells of an awaiter
            await asyncio.sleep(0.01)
        assert (await run("cancel", "errand", "--reason", "too late", "--store", path))[0] == 0
        with pytest.raises(dasync.PromiseCanceled, match="too late"):
            await promise
        found = (await loop.search(id_prefix="errand")).found
        assert [(one.promise.id, one.promise.state) for one in found] == [
            ("errand", dasync.State.CANCELED), ("errand:0", dasync.State.CANCELED),
        ]  # fmt: skip


@pytest.mark.asyncio
async def test_a_cancellation_is_raised_where_it_is_awaited(tmp_path: Path) -> None:
    """The doorbell of the waiting process is rung."""
    path = str(tmp_path / "w.db")
    async with asyncio.timeout(TIMEOUT_S), dasync.EventLoop(path, poll=60.0, lease=60.0, functions=[]):
        promise = dasync.remote("ship", on="nowhere")()
        await promise.created()
        assert (await run("cancel", promise.id, "--store", path))[0] == 0
        with pytest.raises(dasync.PromiseCanceled):
            await promise
