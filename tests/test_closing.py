"""An EventLoop that is closed in the middle of something: in an outage, canceled, with the asyncio loop gone.

Each program runs in a process of its own, which has to end: what is left behind would keep it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from shell import TIMEOUT_S, environment

HEAD = """
import asyncio, os, resource, sys, threading, time
import dasync

PATH = sys.argv[1]

@dasync.function
async def naps() -> int:
    await asyncio.sleep(100)
    return 1

@dasync.function(process=True)
def double(x: int) -> int:
    return 2 * x

def full(bytes):
    resource.setrlimit(resource.RLIMIT_FSIZE, (bytes, resource.RLIM_INFINITY))
"""


def run(tmp_path: Path, program: str, *args: str) -> tuple[str, str]:
    """What a program says, which ends by itself."""
    (tmp_path / "program.py").write_text(HEAD + program)
    done = subprocess.run(
        [sys.executable, tmp_path / "program.py", tmp_path / "s.db", *args],
        capture_output=True, text=True, timeout=TIMEOUT_S, env=environment(), check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


def test_it_ends_with_the_asyncio_loop_that_it_is_on(tmp_path: Path) -> None:
    """In a task that nobody awaits it is canceled with all others, its own among them: nobody waits for these."""
    program = """
async def serve():
    async with dasync.EventLoop(PATH):
        promise = naps.options(id="n")()
        await promise

async def main():
    task = asyncio.create_task(serve())
    while not task.done() and not os.path.exists(PATH + "-lock"):
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.1)

asyncio.run(main())
print("ended")
"""
    out, complaints = run(tmp_path, program)
    assert out == "ended\n"
    assert "all tasks of the asyncio loop were canceled, the EventLoop's own among them" in complaints


@pytest.mark.parametrize(("name", "told"), [("journal", 2), ("serve", 1), ("beat", 1)])
def test_who_cancels_its_tasks_is_told(tmp_path: Path, name: str, told: int) -> None:
    """Whoever waits is, and without a journal whoever asks later: nothing would ever come."""
    program = """
async def main():
    async with dasync.EventLoop(PATH):
        waits = asyncio.ensure_future(naps.options(id="n")())
        await asyncio.sleep(0.1)
        own = next(task for task in asyncio.all_tasks() if task.get_name() == f"dasync-{sys.argv[2]}")
        own.cancel()
        for asked in (waits, naps.options(id="m")().created()):
            try:
                await asyncio.wait_for(asked, 10)
            except dasync.StoreUnavailable as error:
                print("canceled" in str(error))

asyncio.run(main())
"""
    assert run(tmp_path, program, name)[0] == "True\n" * told


def test_an_outage_is_not_waited_out(tmp_path: Path) -> None:
    """It has begun before, with a heartbeat on its way and something that outlasts outages; the others are told."""
    program = """
async def main():
    loop = dasync.EventLoop(PATH, lease=0.9)
    await loop.__aenter__()
    letter = dasync.promise(int, id="letter")
    await naps.options(id="n")().created()
    await letter.created()
    full(0)
    await asyncio.sleep(0.5)
    for asked in (letter.resolve(1), letter.cancel(), naps.options(id="m")().created()):
        try:
            await asyncio.wait_for(asked, 10)
        except dasync.StoreUnavailable:
            print("told")
    began = time.monotonic()
    try:
        await loop.__aexit__(None, None, None)
    except dasync.StoreUnavailable:
        print("told")
    print(time.monotonic() - began < 5)
    full(resource.RLIM_INFINITY)

asyncio.run(main())
"""
    assert run(tmp_path, program)[0] == "told\ntold\ntold\ntold\nTrue\n"


def test_a_cancel_does_not_cut_it_short(tmp_path: Path) -> None:
    """Whenever it comes: the connection's thread and the task factory are gone, the process has left, and the cancel is
    not lost."""
    program = """
async def serve(ready):
    async with dasync.EventLoop(PATH):
        await naps.options(id="n")().created()
        ready.set()

async def main():
    cut = 0
    for turns in range(0, 40, 2):
        ready = asyncio.Event()
        task = asyncio.create_task(serve(ready))
        await ready.wait()
        for _ in range(turns):
            await asyncio.sleep(0)
        cut += task.cancel()
        await asyncio.wait([task])
        assert task.cancelled() or task.exception() is None
        for _ in range(100):  # it has been told to end
            if threading.active_count() > 1:
                await asyncio.sleep(0.01)
        assert threading.active_count() == 1, threading.enumerate()
        assert asyncio.get_running_loop().get_task_factory() is None
    async with dasync.EventLoop(PATH) as loop:
        assert len(await loop._store.processes()) == 1
    print(cut)

asyncio.run(main())
"""
    assert run(tmp_path, program)[0] == "20\n"


def test_what_is_under_way_is_told(tmp_path: Path) -> None:
    """Somebody else asks for something while it closes: it is done, or refused."""
    program = """
async def main():
    done = 0
    for turns in range(25):
        loop = dasync.EventLoop(PATH, group=f"g{turns}")
        await loop.__aenter__()
        letter = loop.get(f"letter-{turns}")
        await dasync.promise(int, id=f"letter-{turns}").created()

        async def asks():
            for _ in range(turns):
                await asyncio.sleep(0.0003)
            await letter.resolve(1)

        task = asyncio.create_task(asks())
        await loop.__aexit__(None, None, None)
        try:
            await asyncio.wait_for(task, 10)
            done += 1
        except (dasync.StoreUnavailable, dasync.NoEventLoop):
            pass
    print(done > 0)

asyncio.run(main())
"""
    assert run(tmp_path, program)[0] == "True\n"


def test_it_is_opened_once(tmp_path: Path) -> None:
    """A second time it would serve nobody."""
    program = """
async def main():
    loop = dasync.EventLoop(PATH)
    async with loop:
        pass
    try:
        await loop.__aenter__()
    except RuntimeError as error:
        print(error)

asyncio.run(main())
"""
    assert run(tmp_path, program)[0] == "this EventLoop is open already, or was: make another one\n"


def test_no_process_of_the_pool_can_be_started(tmp_path: Path) -> None:
    """For a while there are no file descriptors: that is not what the function has come to."""
    program = """
async def main():
    async with dasync.EventLoop(PATH, processes=1):
        most = resource.getrlimit(resource.RLIMIT_NOFILE)
        taken = []
        resource.setrlimit(resource.RLIMIT_NOFILE, (200, most[1]))
        try:
            while True:
                taken.append(os.open(os.devnull, os.O_RDONLY))
        except OSError:
            os.close(taken.pop())
        promise = double.options(id="d")(21)
        await promise.created()
        await asyncio.sleep(0.3)
        for handle in taken:
            os.close(handle)
        print(await promise)

if __name__ == "__main__":
    asyncio.run(main())
"""
    out, complaints = run(tmp_path, program)
    assert out == "42\n"
    assert "no process of the pool can be started: [Errno 24]" in complaints


FORKS = """
from dasync.core.model import ProcessRecord
from dasync.transports.local import LocalTransport

async def main():
    parent, other = LocalTransport(PATH), LocalTransport(PATH)
    await parent.open("p", print)
    record = ProcessRecord("p", "p", "g", parent.host, "", 1, 0)
    if os.fork() == 0:
        while os.getppid() == int(sys.argv[2]):
            time.sleep(0.01)
        print(other.dead([record]), flush=True)
    else:
        print(parent.dead([record]), flush=True)
    os._exit(0)

sys.argv.append(str(os.getpid()))
asyncio.run(main())
"""


def test_a_forked_child_sees_its_parents_death(tmp_path: Path) -> None:
    """What the parent has locked is not the child's own."""
    (tmp_path / "forks.py").write_text(HEAD + FORKS)
    with subprocess.Popen(
        [sys.executable, tmp_path / "forks.py", tmp_path / "s.db"], stdout=subprocess.PIPE, text=True, env=environment()
    ) as running:
        assert running.communicate(timeout=TIMEOUT_S)[0] == "[]\n['p']\n"


def test_who_ends_without_leaving_is_seen_to_be_gone(tmp_path: Path) -> None:
    """At once, not at the end of his lease: the lock is free, and its file is there."""
    program = """
from dasync.core.model import ProcessRecord
from dasync.transports.local import LocalTransport

async def main():
    for left, seen in ((False, ["p"]), (True, [])):
        one, other = LocalTransport(PATH), LocalTransport(PATH)
        await one.open("p", print)
        await one.close(left=left)
        print(other.dead([ProcessRecord("p", "p", "g", one.host, "", 1, 0)]) == seen)

asyncio.run(main())
"""
    assert run(tmp_path, program)[0] == "True\nTrue\n"
    assert os.listdir(tmp_path / "s.db-processes") == []
