"""Functions with `process=True`: they compute in processes of a pool, with the guarantees of all others."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import sums
from clocks import FakeClock
from play import World, ask, rows, until, until_rows
from shell import ROOT, environment
from sums import Parcel, pids

import dasync
from dasync.core.model import State, TaskState
from dasync.core.protocol import TaskContinue

HERE = Path(__file__).parent
SUMS = HERE / "sums.py"
PATIENCE_S = 20


def lives(pid: int) -> bool:
    """Whether that process runs; one that has ended and was not buried yet does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):  # or it ended while it was read
        return False


def wait_for(fact: Callable[[], object]) -> None:
    """In this thread, with no asyncio loop about."""

    async def main() -> None:
        await until(fact)

    asyncio.run(main())


def noted(folder: str) -> list[str]:
    """What has begun, in its order."""
    return Path(folder, "notes").read_text().splitlines()


@pytest.fixture
def folder(tmp_path: Path) -> str:
    return str(tmp_path)


# -- at the decoration


def test_what_a_process_could_not_call_is_refused() -> None:
    """When it is defined: an `async def`, and a function that cannot be imported."""

    async def waits() -> None: ...

    def inner() -> None: ...

    with pytest.raises(TypeError, match=r"waits is `async def`.* process=True is for a plain `def` that computes"):
        dasync.function(process=True)(waits)  # type: ignore[arg-type]  # that is the point
    with pytest.raises(TypeError, match=r"inner is made inside a function.* define it at the top of a module"):
        dasync.function(process=True)(inner)


# -- what goes there and what comes back


def test_arguments_results_and_errors_travel_as_anywhere(memory: World, folder: str) -> None:
    """Into another process and back, by the codec and never pickled; errors keep their type and tell the line."""

    async def main(loop: dasync.EventLoop) -> None:
        assert multiprocessing.active_children() == [], "nothing is started before it is needed"
        assert await sums.where() != os.getpid()
        parcel = await sums.doubled(Parcel(Decimal("1.5"), ("a", "b")), times=3)
        assert parcel == Parcel(Decimal("4.5"), ("a", "b") * 3)
        with pytest.raises(sums.OutOfPaper, match="no paper") as caught:
            await sums.prints(-1)
        assert caught.value.args == ("no paper", -1)
        (note,) = caught.value.__notes__
        assert "in prints\n    raise OutOfPaper" in note
        assert "dasync" not in note.replace(str(ROOT), "").replace("@dasync", "")
        with pytest.raises(dasync.UnserializableValue, match=r"result is a _thread\.lock"):
            await sums.forgets()
        with pytest.raises(dasync.PayloadTooLarge, match=r"result: 2003 bytes"):
            await sums.prints(2000)
        with pytest.raises(dasync.NoEventLoop, match=r"'invokes' runs in a process of the pool .* nothing durable can"):
            await sums.invokes()
        with pytest.raises(dasync.NoEventLoop, match=r"'tells_the_time' runs in a process of the pool"):
            await sums.tells_the_time()
        assert await sums.fails_twice(folder) == 3
        with pytest.raises(dasync.Terminal, match="for good"):
            await sums.gives_up(folder)
        assert len(pids(folder, "gives_up")) == 1
        assert len(multiprocessing.active_children()) == 1, "one at a time needs one process"

    memory.play(main, max_payload=1000)
    wait_for(lambda: not multiprocessing.active_children())


def test_it_computes_beside_the_asyncio_loop(memory: World, folder: str) -> None:
    """While as many compute as there are processes, everything else goes on; the rest wait for their turn."""

    @dasync.function
    async def quick(i: int) -> int:
        return i

    async def main(loop: dasync.EventLoop) -> None:
        standing = [sums.stands.options(id=f"s-{i}")(folder, f"s-{i}") for i in range(5)]
        await until(lambda: sum(bool(pids(folder, f"s-{i}")) for i in range(5)) == 2)
        assert await dasync.all(*[quick(i) for i in range(50)]) == list(range(50))
        states = Counter(t.state for t in (await rows(loop)).tasks.values() if t.function == "stands")
        assert states == {TaskState.ACQUIRED: 2, TaskState.PENDING: 3}, "no more is acquired than can run"
        for i in range(5):
            sums.go(folder, f"s-{i}")
        assert len(set(await dasync.all(*standing))) == 2

    memory.play(main, processes=2)


def test_a_limit_of_its_own_holds_too(memory: World, folder: str) -> None:
    """Of a function with `concurrency=1` one process runs, whatever else is free; others use the rest."""

    async def main(loop: dasync.EventLoop) -> None:
        alone = [sums.alone.options(id=f"a-{i}")(folder, f"a-{i}") for i in range(3)]
        other = sums.stands(folder, "other")
        await until(lambda: pids(folder, "alone") and pids(folder, "other"))
        sums.go(folder, "other")
        await other
        for i, promise in enumerate(alone):
            await until(lambda begun=i + 1: len(pids(folder, "alone")) == begun)
            assert await sums.where() != os.getpid(), "there is a process for others"
            assert len(pids(folder, "alone")) == i + 1
            sums.go(folder, f"a-{i}")
            await promise

    memory.play(main, processes=2)


def test_functions_take_turns_in_the_pool(memory: World, folder: str) -> None:
    """The only process serves them one after the other, however many of one came first."""

    async def main(loop: dasync.EventLoop) -> None:
        await sums.flooded(folder)
        order = noted(folder)
        assert len(order) == 23
        assert max(at for at, name in enumerate(order) if name == "trickles") < 10

    memory.play(main, processes=1)


# -- the end of a run


@pytest.mark.parametrize("end", ["cancel", "timeout", "close"])
def test_its_process_ends_with_it(memory: World, folder: str, end: str) -> None:
    """Canceled, at its deadline, or when the EventLoop is closed: it does not compute on, and nobody else is hurt."""
    gone, clock = list[int](), FakeClock()

    async def main(loop: dasync.EventLoop) -> None:
        other = sums.stands(folder, "other")
        promise = sums.spins.options(timeout=500 if end == "timeout" else None)(folder, "spins")
        await until(lambda: pids(folder, "spins") and pids(folder, "other"))
        gone.extend(pids(folder, "spins"))
        if end == "close":
            gone.extend(pids(folder, "other"))
            return
        if end == "cancel":
            await promise.cancel()
        else:
            clock.advance(501)
        await dasync.all_settled(promise)
        assert promise.state is (State.CANCELED if end == "cancel" else State.TIMEDOUT)
        await until(lambda: not lives(gone[0]))
        sums.go(folder, "other")
        assert await other == pids(folder, "other")[0]
        assert await sums.where() not in gone

    memory.play(main, processes=2, clock=clock)
    wait_for(lambda: not any(map(lives, gone)))
    assert len(pids(folder, "other")) == 1


@pytest.mark.parametrize("how", ["exit", "_exit", "SIGSEGV", "SIGKILL"])
def test_one_that_ends_its_process_is_run_again(
    memory: World, folder: str, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    """However it ends it; what ran beside it is not touched."""

    async def main(loop: dasync.EventLoop) -> None:
        beside = sums.stands(folder, "beside")
        await until(lambda: pids(folder, "beside"))
        assert await sums.ends(folder, how, 1) == 2
        sums.go(folder, "beside")
        assert await beside == pids(folder, "beside")[0]
        assert len(pids(folder, "beside")) == 1

    with caplog.at_level(logging.WARNING):
        memory.play(main, processes=2)
    status = {"exit": 3, "_exit": 0}.get(how) if how.endswith("exit") else -getattr(signal, how)
    assert f"of the pool has ended with status {status}, while it ran 'ends' of 'ends-" in caplog.text


@pytest.mark.parametrize("function", [sums.ends, sums.parent], ids=["root", "child"])
def test_one_that_goes_on_ending_its_process_is_poisoned(world: World, folder: str, function: Any) -> None:
    """After `max_crashes` in a row its task is halted and says why; sent again, it is run again."""

    async def main(loop: dasync.EventLoop) -> None:
        with pytest.raises(dasync.Poisoned, match=r"is halted, poisoned: 2 processes of the pool in a row have ended"):
            await function.options(id="e")(folder, "_exit", 3)
        assert len(pids(folder, "_exit")) == 2
        found = await until_rows(loop, lambda found: found.tasks["e"].state is TaskState.HALTED)
        who = "'e:0'" if function is sums.parent else "'e'"
        assert f"while 'ends' of {who} ran (process {pids(folder, '_exit')[-1]}" in found.tasks["e"].reason
        assert found.promises["e"].state is State.PENDING
        assert loop.snapshot().tasks == 0
        with pytest.raises(dasync.Poisoned, match="with `dasync resume e`"):
            await function.options(id="e")(folder, "_exit", 3)
        await ask(loop, TaskContinue("e"))
        assert await loop.get("e", int) == 4

    world.play(main, max_crashes=2)


# -- the end of its parent


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """`python sums.py STORE FOLDER ...`, in a session of its own."""
    started: list[subprocess.Popen[str]] = []

    def start(*more: str, path: Path = SUMS) -> subprocess.Popen[str]:
        command = [sys.executable, str(path), str(tmp_path / "s.db"), str(tmp_path), *more]
        started.append(subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
            env=environment(PYTHONPATH=os.pathsep.join((str(ROOT), str(HERE)))),
        ))  # fmt: skip
        return started[-1]

    yield start
    for one in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(one.pid, signal.SIGKILL)
        one.communicate()


def test_the_pool_dies_with_its_parent(program: Callable[..., subprocess.Popen[str]], tmp_path: Path) -> None:
    """`kill -9` of the parent leaves no orphan, though each computes; started again, it goes on with what is recorded.

    The functions are those of the program that is run, `__main__` there and another name in the pool.
    """
    first = program("spin")
    wait_for(lambda: pids(tmp_path, "spins") and pids(tmp_path, "second"))
    children = [*pids(tmp_path, "spins"), *pids(tmp_path, "second")]
    assert all(map(lives, children))
    first.kill()
    first.wait()
    wait_for(lambda: not any(map(lives, children)))
    (tmp_path / "second.go").touch()
    second = program()
    out, complaints = second.communicate(timeout=PATIENCE_S)
    assert second.returncode == 0, complaints
    recorded, ran = json.loads(out)
    again = pids(tmp_path, "second")
    assert (len(again), ran) == (2, again[1])
    assert recorded in (*children, again[0]), "the first child was not run again"


def test_ctrl_c_is_for_the_parent(program: Callable[..., subprocess.Popen[str]], tmp_path: Path) -> None:
    """A signal to all of the group ends the program once and quietly: no process of the pool complains."""
    running = program("spin")
    wait_for(lambda: pids(tmp_path, "spins") and pids(tmp_path, "second"))
    os.killpg(running.pid, signal.SIGINT)
    _, complaints = running.communicate(timeout=PATIENCE_S)
    assert complaints.rstrip().endswith("KeyboardInterrupt")
    assert not any(word in complaints for word in ("pool_child", "multiprocessing", "run again")), complaints
    wait_for(lambda: not any(map(lives, (*pids(tmp_path, "spins"), *pids(tmp_path, "second")))))


UNGUARDED = """
import asyncio, sys
import dasync

@dasync.function(process=True)
def square(x: int) -> int:
    return x * x

async def main() -> None:
    async with dasync.EventLoop("memory:", max_crashes=1):
        print(await square(3))

asyncio.run(main())
"""


def test_a_program_that_runs_when_imported_is_told_what_to_write(
    program: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    """The process that only imports it opens no EventLoop; the program ends, and says the remedy, not five times."""
    (tmp_path / "bare.py").write_text(UNGUARDED)
    running = program(path=tmp_path / "bare.py")
    out, complaints = running.communicate(timeout=PATIENCE_S)
    assert (running.returncode, out) == (1, "")
    assert "put what it runs under `if __name__ == \"__main__\":`" in complaints
    assert "Poisoned" in complaints
    assert complaints.count("Traceback") == 1
    assert "is run again" not in complaints


def test_a_session_that_cannot_be_imported_is_told_so() -> None:
    """What is typed in has no file that a process of the pool could import."""
    lines = UNGUARDED.replace("asyncio.run(main())", "").replace("\n\n", "\n")
    command = [sys.executable, "-c", f"{lines}\nasyncio.run(main())"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, env=environment(), check=False)
    assert "TypeError: 'square' is defined in an interactive session" in done.stderr


APP = """
import dasync

@dasync.error
class Odd(Exception): pass

@dasync.function(process=True)
def half(n: int) -> int:
    if n % 2:
        raise Odd(n)
    return n // 2
"""


def test_a_worker_of_a_file_computes_in_a_pool(tmp_path: Path) -> None:
    """`dasync worker path/to/app.py`: its processes find the file too, from whatever folder it was started."""
    (tmp_path / "apps").mkdir()
    (tmp_path / "apps" / "halves.py").write_text(APP)
    store = str(tmp_path / "s.db")
    command = [sys.executable, "-m", "dasync", "worker", "apps/halves.py", "--store", store, "--group", "far"]
    worker = subprocess.Popen(command, cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, text=True)
    half = dasync.remote("half", on="far")

    async def main(loop: dasync.EventLoop) -> None:
        assert await dasync.all(*[half(2 * i) for i in range(6)]) == list(range(6))
        with pytest.raises(dasync.RemoteError, match="halves:Odd: 3"):
            await half(3)

    try:
        assert worker.stdout is not None
        assert "ready" in worker.stdout.readline()
        World(store, None).play(main)
    finally:
        worker.terminate()
        worker.communicate(timeout=PATIENCE_S)
    assert worker.returncode == 0
