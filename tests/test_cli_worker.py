"""`dasync worker` as a process: ready, at work, drained, killed; programs that cannot work."""

from __future__ import annotations

import asyncio
import json
import re
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import anyio
import pytest
from shell import TIMEOUT_S, environment
from shell import dasync as command
from shell import dasync_json as command_json

import dasync
from dasync.cli import main, reload


@contextmanager
def _worker(
    *arguments: str, cwd: Path | None = None, env: dict[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """A worker in a process of its own; it is not there any more afterwards."""
    command = [sys.executable, "-m", "dasync", "worker", *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, bufsize=0, env=env or environment(), cwd=cwd, **pipes) as process:
        try:
            yield process
        finally:
            process.kill()


def _line(stream: IO[bytes] | None) -> str:
    """The next line that a worker prints. Its pipe is not buffered: what a buffer holds, select does not see."""
    assert stream is not None
    assert select.select([stream], [], [], TIMEOUT_S)[0], "nothing was said in time"
    return stream.readline().decode()


async def _until(path: Path) -> None:
    """Return once a file is there: a sign of life from another process."""
    while not await asyncio.to_thread(path.exists):  # noqa: ASYNC110  # what is looked at is in another process
        await asyncio.sleep(0.01)


@pytest.mark.asyncio
async def test_a_worker_finishes_what_runs_when_it_is_told_to_stop(shop: Path, tmp_path: Path) -> None:
    """SIGTERM: nothing is acquired any more, the body that runs is finished, and the status is 0."""
    path = str(tmp_path / "w.db")
    with _worker(str(shop), "--store", path, "--group", "packers", "--process", "ann", "--json") as worker:
        ready = json.loads(_line(worker.stdout))
        assert ready["ready"] is True
        assert ready["process"].startswith("ann@")
        assert (ready["group"], ready["store"], ready["pid"]) == ("packers", path, worker.pid)
        assert ready["functions"] == ["approve", "bill", "carry", "pack", "price"]
        async with asyncio.timeout(TIMEOUT_S), dasync.EventLoop(path, functions=[]):
            packed = dasync.remote("pack", on="packers")(str(tmp_path))
            await _until(tmp_path / "began")
            worker.send_signal(signal.SIGTERM)
            assert "finishes what it runs" in await asyncio.to_thread(_line, worker.stderr)
            left = dasync.remote("price", on="packers")("tea")
            await left.created()
            (tmp_path / "go").touch()
            assert await packed == "packed"
            assert await asyncio.to_thread(worker.wait, TIMEOUT_S) == 0
            assert not left.done()


@pytest.mark.asyncio
async def test_a_second_signal_ends_a_worker_at_once(shop: Path, tmp_path: Path) -> None:
    """Who does not want to wait for the end of a body sends again; another worker takes the task over."""
    path = str(tmp_path / "w.db")
    with _worker(str(shop), "--store", path, "--group", "packers") as worker:
        ready = rf"packers-\w+@\w+ is ready: group packers, store {re.escape(path)}, functions approve, .*\n"
        assert re.fullmatch(ready, _line(worker.stdout))
        async with asyncio.timeout(TIMEOUT_S), dasync.EventLoop(path, functions=[]):
            packed = dasync.remote("pack", on="packers")(str(tmp_path))
            await _until(tmp_path / "began")
            while worker.poll() is None:  # signals may be merged on their way
                worker.send_signal(signal.SIGINT)
                await asyncio.sleep(0.01)
            assert worker.returncode == 128 + signal.SIGINT
            (tmp_path / "go").touch()
            with _worker(str(shop), "--store", path, "--group", "packers"):
                assert await packed == "packed"


def test_a_worker_takes_a_module_of_the_working_directory(shop: Path, store: str) -> None:
    """APP as a module's name, the environment's defaults; what was resolved meanwhile is finished."""
    command("resolve", "approval:0", "true", "--store", store)
    env = environment() | {"DASYNC_STORE": store, "DASYNC_GROUP": "default", "DASYNC_APP": "shop"}
    with _worker(cwd=shop.parent, env=env) as worker:
        assert "group default" in _line(worker.stdout)
        while (said := command_json("show", "approval", "--store", store))["state"] == "pending":
            assert worker.poll() is None
        assert said["value"] is True
        worker.terminate()
        assert worker.wait(TIMEOUT_S) == 0


def test_wait_knows_that_a_worker_was_killed(shop: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """While it lives it serves its group; what it ran, and what was part of that, waits for another one then."""
    at = ("--store", str(tmp_path / "w.db"))

    def complaints(id: str) -> list[str]:
        main(["wait", id, "--for", "0", *at])
        return capsys.readouterr().err.splitlines()

    with _worker(str(shop), "--group", "packers", *at) as worker:
        assert "is ready" in _line(worker.stdout)
        main(["invoke", "carry", json.dumps([str(tmp_path)]), "--id", "load", "--on", "packers", *at])
        while "holds no promise" in complaints("load:0")[0]:
            pass
        for id in ("load", "load:0"):
            assert complaints(id) == [f"dasync: promise {id!r} is pending still; `dasync wait {id}` waits again"]
        worker.kill()
        worker.wait()
        for id in ("load", "load:0"):
            unserved = "nobody serves group 'packers' now: it waits for `dasync worker APP --group packers`"
            assert complaints(id)[0] == f"dasync: {unserved}"


# -- reload ------------------------------------------------------------------------------------------------

ONE = "import dasync\n@dasync.function\nasync def one() -> int:\n    return 1\n"
TWO = "@dasync.function\nasync def two() -> int:\n    return 2\n"


def _functions(worker: subprocess.Popen[bytes]) -> list[str]:
    """What the worker that is ready next runs."""
    ready = json.loads(_line(worker.stdout))
    assert ready["ready"] is True
    return list(ready["functions"])


def test_a_worker_is_started_again_when_a_source_changes(tmp_path: Path) -> None:
    """With what the program defines now; one that does not import is told in a line, and the next change is awaited."""
    app = tmp_path / "app.py"
    app.write_text(ONE)
    store = str(tmp_path / "w.db")
    with _worker(str(app), "--reload", "--json", "--store", store, "--group", "packers") as worker:
        assert _functions(worker) == ["one"]
        app.write_text(ONE + TWO)
        assert _line(worker.stderr) == "dasync: app.py changed: the worker stops, and starts again\n"
        assert "finishes what it runs" in _line(worker.stderr)
        assert _functions(worker) == ["one", "two"]
        app.write_text("oops(")
        assert "app.py changed" in _line(worker.stderr)
        assert "finishes what it runs" in _line(worker.stderr)
        assert "SyntaxError" in _line(worker.stderr)
        assert "status 1; the next change starts it again" in _line(worker.stderr)
        (tmp_path / "helper.py").write_text(TWO)
        assert "SyntaxError" in _line(worker.stderr)  # of a file beside it: that one may be what it lacked
        assert "the next change" in _line(worker.stderr)
        app.write_text(ONE)
        assert _functions(worker) == ["one"]
        assert command("invoke", "one", "--on", "packers", "--wait", "--store", store) == "1\n"
        worker.terminate()
        assert "finishes what it runs" in _line(worker.stderr)
        assert worker.wait(TIMEOUT_S) == 0
        assert _line(worker.stderr) == ""


@pytest.mark.asyncio
async def test_a_supervisor_that_is_stopped_drains_its_worker(shop: Path, tmp_path: Path) -> None:
    """SIGINT and SIGTERM let the body that runs finish; a second one ends the worker at once."""
    path = str(tmp_path / "w.db")
    for signals in ([signal.SIGINT], [signal.SIGTERM, signal.SIGTERM]):
        folder = tmp_path / str(len(signals))
        folder.mkdir()
        with _worker("shop", "--reload", "--store", path, "--group", "packers", cwd=shop.parent) as worker:
            assert "is ready" in _line(worker.stdout)
            async with asyncio.timeout(TIMEOUT_S), dasync.EventLoop(path, functions=[]):
                packed = dasync.remote("pack", on="packers")(str(folder))
                await _until(folder / "began")
                worker.send_signal(signals[0])
                assert "finishes what it runs" in await asyncio.to_thread(_line, worker.stderr)
                if signals[1:]:
                    worker.send_signal(signals[1])
                    assert await asyncio.to_thread(worker.wait, TIMEOUT_S) == 128 + signals[1]
                    assert not packed.done()
                else:
                    (folder / "go").touch()
                    assert await packed == "packed"
                    assert await asyncio.to_thread(worker.wait, TIMEOUT_S) == 0


@pytest.mark.asyncio
async def test_a_worker_that_does_not_stop_is_killed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A change does not wait for ever: after its grace the worker is killed, and that is said."""
    monkeypatch.setattr(reload, "GRACE_S", 0.05)
    stubborn = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(); time.sleep(60)"
    async with asyncio.timeout(TIMEOUT_S):
        child = await anyio.open_process([sys.executable, "-c", stubborn])
        assert child.stdout is not None
        await child.stdout.receive()
        await reload._stop(child)
        assert child.returncode == -signal.SIGKILL
        await child.aclose()
    assert "it is killed" in capsys.readouterr().err


@pytest.mark.asyncio
async def test_a_worker_does_not_outlive_its_supervisor(shop: Path, tmp_path: Path) -> None:
    """The supervisor is killed: its worker notices and drains, for nobody would ever reload or stop it."""
    path = str(tmp_path / "w.db")
    async with asyncio.timeout(TIMEOUT_S), dasync.EventLoop(path, functions=[]) as loop:
        with _worker(str(shop), "--reload", "--json", "--store", path, "--group", "packers") as supervisor:
            worker = json.loads(await asyncio.to_thread(_line, supervisor.stdout))["pid"]
            assert worker != supervisor.pid
            supervisor.kill()
            assert "finishes what it runs" in await asyncio.to_thread(_line, supervisor.stderr)
        while len(await loop._store.processes()) > 1:  # noqa: ASYNC110  # in another process
            await asyncio.sleep(0.01)


def test_reload_without_watchfiles_says_how_to_get_it(shop: Path) -> None:
    """It is an extra: one line, with the command that installs it."""
    program = (
        "import sys; sys.modules['watchfiles'] = None\n"
        "from dasync.cli import main; sys.exit(main(['worker', sys.argv[1], '--reload']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(shop)], capture_output=True, text=True, timeout=TIMEOUT_S, env=environment()
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "dasync: --reload needs watchfiles: pip install 'dasync[reload]'\n"


# -- programs that cannot work -----------------------------------------------------------------------------

_F = "@dasync.function\nasync def f(): ..."


@pytest.mark.parametrize("options", [[], ["--reload"]])
def test_a_program_that_is_not_there_is_told_so(options: list[str], tmp_path: Path) -> None:
    """Which program it is, and where it was looked for; without any, how to name one. Nothing is waited for."""
    for app, status, what in (["nowhere.py"], 1, "no file"), (["nowhere"], 1, "no module"), ([], 2, "DASYNC_APP"):
        done = subprocess.run(
            [sys.executable, "-m", "dasync", "worker", *app, *options, "--store", "w.db"],
            capture_output=True, text=True, timeout=TIMEOUT_S, env=environment(), cwd=tmp_path,
        )  # fmt: skip
        assert done.returncode == status
        assert what in done.stderr
        assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("app", "source", "what"),
    [
        ("nowhere.at_all", None, "no module"),
        ("nowhere.py", None, "no file"),
        ("broken.py", "x = 1 / 0", "ZeroDivisionError: division by zero at "),
        ("garbled.py", "x = 1\ndef f(:", "SyntaxError: invalid syntax at {folder}/garbled.py:2; fix it first\n"),
        ("torn", "if 1:\nx = 1", ": IndentationError: expected an indented block"),
        ("torn", "if 1:\nx = 1", " at {folder}/torn.py:2; fix it first\n"),
        ("evals.py", "x = 1\neval('1 +')", "SyntaxError: invalid syntax at {folder}/evals.py:2; fix it first\n"),
        ("binary.py", "x = 1\0", "null bytes"),
        ("idle.py", "x = 1", "@dasync.function"),
        ("exits.py", "import sys; sys.exit(3)", "__main__"),
        ("json.py", "x = 1", "another name"),
        ("shares.py", "import dasync\n@dasync.function\nasync def f(a=[]): ...", " at {folder}/shares.py:2; fix"),
        ("twice.py", f"import dasync\n{_F}\n@dasync.function(name='f')\nasync def g(): ...", "name="),
    ],
)
def test_a_program_that_cannot_work_is_told_why(app: str, source: str | None, what: str, tmp_path: Path) -> None:
    """Whatever is wrong with APP is one line, and no store is made for it."""
    if source is not None:
        (tmp_path / app).with_suffix(".py").write_text(source)
    done = subprocess.run(
        [sys.executable, "-m", "dasync", "worker", app, "--store", "w.db"],
        capture_output=True, text=True, timeout=TIMEOUT_S, env=environment(), cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.startswith("dasync: ")
    assert done.stderr.count("\n") == 1
    assert what.format(folder=tmp_path) in done.stderr
    assert "frozen" not in done.stderr
    assert not (tmp_path / "w.db").exists()
