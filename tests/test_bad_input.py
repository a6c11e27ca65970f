"""Bad input: each is refused with an error that says what is wrong, before anything is written."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from play import World, rows, until, until_rows
from zygote import Zygote, zygote_of

import dasync
from dasync.core.model import State
from dasync.stores import patience


@dasync.function
async def takes(value: object, other: int = 0) -> object:
    return value


@dasync.function
async def makes(what: str) -> object:
    return {"big": "x" * 5000, "lock": threading.Lock()}[what]


@pytest.fixture(params=["memory", "sqlite"])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> World:
    return World("memory:" if request.param == "memory" else str(tmp_path / "s.db"), None)


LOCK = threading.Lock()
CIRCLE: list[object] = []
CIRCLE.append(CIRCLE)
CALLS: dict[str, tuple[Callable[[], object], type[Exception], str]] = {
    "a lock": (lambda: takes(LOCK), dasync.UnserializableValue, r"args\[0\] is a _thread.lock"),
    "a lock within": (
        lambda: takes({"a": [1, (2, LOCK)]}), dasync.UnserializableValue, r"args\[0\]\['a'\]\[1\]\[1\] is a _thread",
    ),
    "a lock by name": (lambda: takes(value=LOCK), dasync.UnserializableValue, r"kwargs\['value'\] is a _thread.lock"),
    "a circle": (lambda: takes(CIRCLE), dasync.UnserializableValue, "contains itself"),
    "a surrogate": (lambda: takes("\ud800"), dasync.UnserializableValue, "lone surrogate"),
    "an undeclared class": (lambda: takes(World("memory:", None)), dasync.UnserializableValue, "annotate"),
    "too large": (lambda: takes(b"x" * 2000), dasync.PayloadTooLarge, "1000"),
    "too few arguments": (lambda: takes(), TypeError, r"takes\(\): missing a required argument: 'value'"),  # type: ignore[call-arg]  # the point
    "too many arguments": (lambda: takes(1, 2, 3), TypeError, r"takes\(\): too many positional"),  # type: ignore[call-arg]  # the point
    "an unknown argument": (lambda: takes(1, no=2), TypeError, r"takes\(\): got an unexpected keyword"),  # type: ignore[call-arg]  # the point
    "an unknown version": (lambda: takes.options(version=9)(1), dasync.FunctionNotFound, r"'takes' version 9.*\[1\]"),
    "an id with a colon": (lambda: takes.options(id="a:0")(1), ValueError, "'a:0' holds a colon"),
    "an empty id": (lambda: takes.options(id="")(1), ValueError, "1 to 512 characters, this one has 0"),
    "a long id": (lambda: takes.options(id="x" * 513)(1), ValueError, "1 to 512 characters, this one has 513"),
    "an unprintable id": (lambda: takes.options(id="a\nb")(1), ValueError, "cannot be printed"),
    "an id that is no text": (lambda: takes.options(id=7)(1), TypeError, "a promise id is a str, not int"),  # type: ignore[arg-type]  # the point
    "an empty promise id": (lambda: dasync.promise(id=""), ValueError, "1 to 512 characters"),
    "a promise id with a colon": (lambda: dasync.promise(id="a:b"), ValueError, "holds a colon"),
    "a bad group": (lambda: takes.options(on="a/")(1), ValueError, "a target is 'group' or 'group/process'"),
    "a negative timeout": (lambda: takes.options(timeout=-1)(1), ValueError, "0 or more seconds"),
    "a timeout that is no time": (lambda: takes.options(timeout="1")(1), TypeError, "a number of seconds"),  # type: ignore[arg-type]  # the point
    "a timeout that is no number": (lambda: takes.options(timeout=float("nan"))(1), ValueError, "0 or more seconds"),
    "an endless timeout": (lambda: takes.options(timeout=float("inf"))(1), ValueError, "ten thousand years"),
    "tags that are no text": (lambda: takes.options(tags={"a": 1})(1), TypeError, "tags map str to str"),  # type: ignore[dict-item]  # the point
    "too many tags": (lambda: takes.options(tags={str(i): "" for i in range(99)})(1), ValueError, "at most 64 tags"),
    "a negative sleep": (lambda: dasync.sleep(-1), ValueError, "0 or more seconds"),
    "a sleep of no time": (lambda: dasync.sleep("1"), TypeError, "a number of seconds"),  # type: ignore[arg-type]  # the point
}  # fmt: skip


@pytest.mark.parametrize(("call", "kind", "told"), CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("inside", [False, True], ids=["outside", "inside"])
def test_a_bad_call_raises_there_and_writes_nothing(
    world: World, call: Callable[[], object], kind: type[Exception], told: str, inside: bool
) -> None:
    """The error comes at the call, in an execution as outside, and the store holds nothing of it."""

    @dasync.function
    async def calls() -> str:
        with pytest.raises(kind, match=told):
            call()
        return "went on"

    async def main(loop: dasync.EventLoop) -> None:
        if inside:
            assert await calls.options(id="c")() == "went on"
            assert (await rows(loop)).promises.keys() == {"c"}
        else:
            with pytest.raises(kind, match=told):
                call()
            found = await rows(loop)
            assert (found.promises, found.tasks) == ({}, {})
        assert await takes(1) == 1

    world.play(main, max_payload=1000)


def test_a_remote_function_needs_a_group(world: World) -> None:
    """A declaration without `on` is refused where it is made."""
    with pytest.raises(TypeError, match="on"):
        dasync.remote("ship")  # type: ignore[call-overload]  # the point
    with pytest.raises(ValueError, match="a target is"):
        dasync.remote("ship", on="")


@pytest.mark.parametrize("call", [lambda: takes(1), lambda: dasync.sleep(1), lambda: dasync.promise(), dasync.uuid4])
def test_outside_asyncio_there_is_no_loop(call: Callable[[], object]) -> None:
    """A call where no asyncio loop runs says what to do, in a thread too."""
    with pytest.raises(dasync.NoEventLoop, match=r"under dasync\.run\(main\)"):
        call()
    caught: list[Exception] = []

    def thread() -> None:
        try:
            call()
        except Exception as error:
            caught.append(error)

    worker = threading.Thread(target=thread)
    worker.start()
    worker.join()
    assert [type(error) for error in caught] == [dasync.NoEventLoop]


def test_a_bare_callback_has_no_place(world: World) -> None:
    """An invocation from `call_soon`, `call_later` or a done callback inside an execution is refused: a replay could
    not tell its place. From a task that is made there it is fine; from a callback outside it is a root."""
    caught: list[str] = []

    def call(*_: object) -> None:
        try:
            takes("from a callback")
        except dasync.NoEventLoop as error:
            caught.append(str(error))

    @dasync.function
    async def schedules() -> object:
        loop = asyncio.get_running_loop()
        loop.call_soon(call)
        loop.call_later(0.001, call)
        future = loop.create_future()
        future.add_done_callback(call)
        future.set_result(None)
        await asyncio.sleep(0.01)
        return await asyncio.create_task(takes("from a task"))

    async def main(loop: dasync.EventLoop) -> None:
        assert await schedules.options(id="s")() == "from a task"
        assert len(caught) == 3
        assert "bare callback inside an execution" in caught[0]
        assert (await rows(loop)).promises.keys() == {"s", "s:0"}
        asyncio.get_running_loop().call_soon(call)
        await until_rows(loop, lambda found: len(found.promises) == 3)  # the root may be settled and gone by now
        assert len(caught) == 3

    world.play(main)


def test_a_thread_of_an_execution_has_no_place(world: World) -> None:
    """An invocation from a worker thread is refused with the way out."""

    @dasync.function
    async def threads() -> str:
        with pytest.raises(dasync.NoEventLoop, match="outside asyncio"):
            await asyncio.to_thread(lambda: takes(1))
        return "fine"

    async def main(loop: dasync.EventLoop) -> None:
        assert await threads() == "fine"

    world.play(main)


def test_a_result_that_is_too_large_rejects(world: World) -> None:
    """The promise of a function that returns too much, or what cannot be stored, is rejected and says why."""

    async def main(loop: dasync.EventLoop) -> None:
        with pytest.raises(dasync.PayloadTooLarge, match="1000"):
            await makes("big")
        with pytest.raises(dasync.UnserializableValue, match=r"result is a _thread\.lock"):
            await makes("lock")
        assert {record.state for record in (await rows(loop)).promises.values()} == {State.REJECTED}

    world.play(main, max_payload=1000)


def test_a_recursion_without_end_ends(world: World) -> None:
    """Children of children of children are refused at some depth, with an error that names the likely cause."""

    @dasync.function
    async def endless() -> None:
        await endless()

    async def main(loop: dasync.EventLoop) -> None:
        with pytest.raises(ValueError, match="is it a recursion without end"):
            await endless()

    world.play(main)


def test_bad_ids_are_refused_by_get(world: World) -> None:
    """`loop.get` takes the id of a root or of a child, and nothing else."""

    async def main(loop: dasync.EventLoop) -> None:
        for wrong in ("", "a:", "a:0:1", "a\tb", "x" * 3000):
            with pytest.raises(ValueError, match=r"id|nested"):
                loop.get(wrong)
        assert dict(loop.promises) == {}

    world.play(main)


# -- the file ------------------------------------------------------------------------------------------------


def refused(path: str, kind: type[dasync.StoreError], told: str) -> None:
    async def main() -> None:
        with pytest.raises(kind, match=told):
            async with dasync.EventLoop(path):
                raise AssertionError("opened")

    asyncio.run(main())


def test_a_missing_folder(tmp_path: Path) -> None:
    """A path in a folder that does not exist says so, and makes no folder."""
    refused(str(tmp_path / "no" / "s.db"), dasync.StoreUnavailable, r"the folder .*/no does not exist")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_for_a_file(tmp_path: Path) -> None:
    """A folder is not a store."""
    refused(str(tmp_path), dasync.StoreUnavailable, "is a folder; name a file")
    assert list(tmp_path.iterdir()) == []


def test_a_read_only_file(tmp_path: Path) -> None:
    """A file that may not be written is left as it is, even for root, who could."""
    path = tmp_path / "s.db"

    async def main(loop: dasync.EventLoop) -> None:
        assert await takes(1) == 1

    World(str(path), None).play(main)
    before = path.read_bytes()
    path.chmod(0o444)
    there = {file.name for file in tmp_path.iterdir()}
    refused(str(path), dasync.StoreUnavailable, "is read-only; make it writable")
    assert path.read_bytes() == before
    assert {file.name for file in tmp_path.iterdir()} == there
    path.chmod(0o644)
    World(str(path), None).play(main)


@pytest.mark.parametrize("what", ["text", "another database", "half a store"])
def test_a_file_that_is_not_ours(tmp_path: Path, what: str) -> None:
    """A file that is no dasync store is refused and left as it is."""
    path = tmp_path / "s.db"
    if what == "text":
        path.write_text("dear diary")
    elif what == "another database":
        with sqlite3.connect(path) as connection:
            connection.execute("CREATE TABLE mine (x)")
        connection.close()
    else:
        World(str(path), None).play(_nothing)
        path.write_bytes(path.read_bytes()[:5000])
    before = path.read_bytes()
    refused(str(path), dasync.StoreCorrupt, r"is not a dasync store|is cut short")
    assert path.read_bytes() == before


async def _nothing(loop: dasync.EventLoop) -> None: ...


@pytest.fixture(scope="module")
def zygote() -> Iterator[Zygote]:
    yield from zygote_of("programs")


def test_a_full_disk(zygote: Zygote, tmp_path: Path) -> None:
    """When the disk is full, who awaits outside gets StoreUnavailable and executions wait; what was acknowledged
    survives; and with room again everything goes on, in the same process."""
    path, ledger = tmp_path / "s.db", tmp_path / "ledger"
    child = zygote.spawn("programs:full_disk", str(path), str(ledger))
    acknowledged, error, still, again, patient, process = child.result()  # type: ignore[misc]  # JSON
    assert len(acknowledged) > 2
    assert str(path) in error
    assert not still
    assert (again, patient) == (20_000, [10_000] * 3)
    assert process

    async def main(loop: dasync.EventLoop) -> None:
        found = (await rows(loop)).promises
        assert {*acknowledged, "again", "patient:0", "patient:1", "patient:2"} <= found.keys()
        assert all(len(found[id].param) > 20_000 for id in acknowledged[1:])
        assert {found[id].state for id in [*acknowledged[:-1], "again"]} == {State.RESOLVED}

    World(str(path), None).play(main)


def test_a_store_that_vanishes(tmp_path: Path) -> None:
    """A folder that is removed under an open EventLoop is an outage, or goes unnoticed; never a wrong answer."""
    folder = tmp_path / "f"
    folder.mkdir()

    async def main() -> None:
        async with dasync.EventLoop(str(folder / "s.db"), durability="process"):
            assert await takes(1) == 1
            os.rename(folder, tmp_path / "g")
            with suppress(dasync.StoreError):
                assert await takes(2) == 2
            os.rename(tmp_path / "g", folder)
            assert await takes(3) == 3

    World("", None).run(main())


HOLDER = """
import fcntl, sys
with open(sys.argv[1], "a") as lock:
    fcntl.lockf(lock, fcntl.LOCK_EX)
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_lock_that_is_held_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever waits for the store of a process that does not go on is told who that is; then he goes on."""
    store = str(tmp_path / "s.db")
    World(store, None).play(lambda loop: takes(1))
    monkeypatch.setattr(patience, "LONG_S", 0.05)
    command = [sys.executable, "-c", HOLDER, f"{store}-lock"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdin is not None
        assert holder.stdout.readline() == "held\n"

        async def main() -> object:
            async def open_and_call() -> object:
                async with dasync.EventLoop(store):
                    return await takes(2)

            called = asyncio.create_task(open_and_call())
            await until(lambda: f"process {holder.pid} holds its write lock" in caplog.text)
            assert not called.done()
            assert holder.stdin is not None
            holder.stdin.close()
            return await called

        assert World(store, None).run(main()) == 2
