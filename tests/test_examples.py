"""Every example runs as its docstring says, in a process of its own, and shows its one idea."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from urllib.request import Request, urlopen

import pytest
from shell import ROOT, TIMEOUT_S, dasync, environment, python

EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
MAX_LINES = 60


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_an_example_is_small_and_says_how_to_run_it(path: Path) -> None:
    """At most 60 lines, with a docstring that names the command."""
    source = path.read_text()
    assert source.count("\n") <= MAX_LINES
    assert f"python examples/{path.name}" in source.split('"""')[1]


def test_the_model() -> None:
    """While outer waits there are two pending promises and one awaiter; then it gives 84."""
    assert python("examples/01_model.py").splitlines() == [
        "promises: {'outer': 'pending', 'outer:0': 'pending'}",
        "awaiters: {'outer:0': ('outer',)}",
        "84",
    ]


def test_the_order_goes_on_after_a_crash(tmp_path: Path) -> None:
    """The message goes out in the first run only; what was fulfilled while nobody ran, and what never was, is told."""
    store = str(tmp_path / "orders.db")
    command = [sys.executable, "examples/02_order.py", store]
    crashed = subprocess.run(
        [*command, "crash"], capture_output=True, text=True, timeout=TIMEOUT_S, env=environment(), cwd=ROOT
    )
    assert (crashed.returncode, crashed.stdout) == (1, "sms: order-1 is confirmed\n")
    dasync("resolve", "order-1-fulfilled", "--text", "the warehouse", "--store", store)
    again = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, env=environment(), cwd=ROOT)
    assert again.stdout.splitlines() == [
        "mail: invoice for order-1: 1.20, shipped by the warehouse",
        "mail: sorry, order-2 has no price",
        "sms: order-3 is confirmed",
        "mail: sorry, promise 'order-3-fulfilled' reached its deadline before it was settled",
    ]
    assert again.returncode == 0
    assert re.search(r"order-1  process_order  resolved in", dasync("tree", "order-1", "--store", store))


def test_two_processes() -> None:
    """Both dishes come from the worker's process, which is not the caller's."""
    said = python("examples/03_two_processes.py")
    caller = re.search(r"ordered in process (\d+)", said)
    workers = re.findall(r"^(?:soup|noodles) from process (\d+)$", said, re.MULTILINE)
    assert caller is not None
    assert len(workers) == 2
    assert len({*workers, caller[1]}) == 2


@pytest.mark.parametrize("on_file", [False, True])
def test_fibonacci(on_file: bool, tmp_path: Path) -> None:
    """Local, remote and mixed recursion come to the same number, in memory and on a file."""
    said = python("examples/04_fibonacci.py", *([str(tmp_path / "f.db")] if on_file else []))
    assert said.splitlines()[:3] == ["local(10) = 55", "remote(10) = 55", "mixed(10) = 55"]
    assert re.fullmatch(r"\d+ commands in \d+ transactions", said.splitlines()[3])


def _run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, timeout=TIMEOUT_S, env=environment(), cwd=ROOT
    )


@contextmanager
def _running(*command: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, *command], stdout=subprocess.PIPE, text=True, env=environment(), cwd=ROOT
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate(timeout=TIMEOUT_S)


def test_failures(tmp_path: Path) -> None:
    """Started again after each crash it comes to its end, and no step that succeeded is done again."""
    store = str(tmp_path / "failures.db")
    runs = [_run("examples/05_failures.py", store)]
    while runs[-1].returncode and len(runs) < 100:
        runs.append(_run("examples/05_failures.py", store))
    story = [f"{step}: {how}" for step in range(3) for how in ("answered", "survived")]
    assert runs[-1].stdout.splitlines()[-6:] == story
    assert {run.returncode for run in runs[:-1]} <= {1}
    troubles = [line for run in runs for line in run.stdout.splitlines() if line.endswith(("raises", "dies"))]
    steps = [(int(line.split(":")[0]), line.endswith("dies")) for line in troubles]
    assert steps == sorted(steps), "each is over before the next one begins"
    assert sum(line.endswith("dies") for line in troubles) == len(runs) - 1


def test_human(tmp_path: Path) -> None:
    """The decision is taken while nobody runs, and checked against its annotation."""
    store = str(tmp_path / "expenses.db")
    with _running("examples/06_human.py", store) as waiting:
        assert waiting.stdout is not None
        assert waiting.stdout.readline() == "waiting for a decision on expense-7-decision\n"
    dasync("resolve", "expense-7-decision", '{"approved": true, "by": "Ada"}', "--store", store)
    assert _run("examples/06_human.py", store).stdout.splitlines()[-1] == "12.50 paid to Grace, approved by Ada"


def test_asgi(tmp_path: Path) -> None:
    """A request starts an execution, a second one joins it, another looks; SIGTERM ends the server gracefully."""
    pytest.importorskip("uvicorn")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    order = f"http://127.0.0.1:{port}/orders/42"
    with _running("examples/07_asgi.py", str(tmp_path / "web.db"), str(port)) as server:
        while server.poll() is None and not _listens(port):
            pass
        for _ in range(2):
            with urlopen(Request(order, method="POST"), timeout=TIMEOUT_S) as answer:
                assert answer.read() == b'{"outcome":"42 is reserved and on its way"}'
        with urlopen(order, timeout=TIMEOUT_S) as answer:
            states = b'{"order-42":"resolved","order-42:0":"resolved","order-42:0.0":"resolved"}'
            assert answer.read() == states
        server.send_signal(signal.SIGTERM)
        assert server.wait(TIMEOUT_S) in (0, -signal.SIGTERM)


def _listens(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def test_structured() -> None:
    """Losers and siblings are canceled; a promise outlives a timeout around its await, a detached child its parent; of
    several promises each outcome is had."""
    assert _run("examples/08_structured.py").stdout.splitlines() == [
        "race: from hare",
        "  tortoise is canceled",
        "group: not today",
        "timeout: the promise goes on, from slow",
        "settled: rejected not today",
        "settled: resolved from quick",
        "  sibling is canceled",
        "the program is over",
        "  audit: nobody waits for this one",
    ]


def test_saga(tmp_path: Path) -> None:
    """Killed among the undos, it does the one that is left, and none twice."""
    store = str(tmp_path / "trip.db")
    crashed = _run("examples/09_saga.py", store, "crash")
    assert (crashed.returncode, crashed.stdout.splitlines()) == (
        1, ["booked: flight", "booked: hotel", "undone: hotel-1"],
    )  # fmt: skip
    assert _run("examples/09_saga.py", store).stdout.splitlines() == ["undone: flight-1", "no trip: no car is left"]


def test_batching() -> None:
    """Hundreds of executions insert with a few transactions, and the one that may not is the one that fails."""
    first, failed, told = _run("examples/10_batching.py").stdout.splitlines()
    assert (first, failed) == ("user-0 is user 1", "ValueError('no name')")
    found = re.fullmatch(r"501 sign-ups, (\d+) transactions?", told)
    assert found is not None
    assert int(found[1]) < 20


def test_pipeline() -> None:
    """Each stage has had each file, and no file is transformed before it is fetched or loaded before that."""
    bars = re.findall(r"^ *(\w+) \|( *)(#+)$", python("examples/11_pipeline.py"), re.MULTILINE)
    stages = {name: [(len(gap), len(gap) + len(bar)) for one, gap, bar in bars if one == name] for name, *_ in bars}
    assert {name: len(found) for name, found in stages.items()} == dict.fromkeys(stages, len(EXAMPLES))
    assert list(stages) == ["fetch", "transform", "load"]
    for before, after in (("fetch", "transform"), ("transform", "load")):
        assert min(at for at, _ in stages[before]) <= min(at for at, _ in stages[after])
        assert max(at for _, at in stages[before]) <= max(at for _, at in stages[after])


def test_failover() -> None:
    """The other worker goes on when the sleep has ended, not three seconds after it has taken over."""
    said = python("examples/12_failover.py")
    slept, killed, goes_on = re.findall(r"^ *([\d.]+) s \| *\* (worker \d) (.*)$", said, re.MULTILINE)
    assert [slept[2], killed[2], goes_on[2]] == ["sleeps", "is killed", "goes on"]
    assert slept[1] == killed[1] != goes_on[1]
    assert 1 <= float(killed[0]) < float(goes_on[0])


def test_test_your_app() -> None:
    """The bug is found, with its seed and a replay; the cure holds; both are tests, too."""
    said = python("examples/13_test_your_app.py")
    found, _, holds = said.partition("careful:")
    assert re.match(r"careless:\n\{'ann': (40|10|-\d+), 'bob': \d+\}\ndasync: in a simulated world, seed \d+\n", found)
    assert re.search(r"^replay   simulate\(.*seeds=\[\d+\], faults='.*kill", found, re.MULTILINE)
    assert holds == " Tried(seeds=100, points=0, worlds=101)\n"
    plugin = ("-p", "no:dasync", "-p", "dasync.testing.plugin", "-p", "no:cacheprovider", "-o", "addopts=")
    done = _run("-m", "pytest", *plugin, "examples/13_test_your_app.py", "-q")
    assert "1 passed, 1 xfailed" in done.stdout


def test_threads() -> None:
    """What blocks is waited for, and a promise that was given back is what the caller gets."""
    digests = {text: sha256(text.encode()).hexdigest()[:8] for text in ("tea", "cup", "pot")}
    assert _run("examples/14_threads.py").stdout.splitlines() == [" ".join(one) for one in digests.items()]


def test_crowd() -> None:
    """No more than ten of those that wait stay, and all go on but the one that is canceled."""
    waiting, inside = _run("examples/15_crowd.py").stdout.splitlines()
    found = re.fullmatch(r"500 wait, (\d+) of them resident", waiting)
    assert found is not None
    assert int(found[1]) <= 10
    assert inside == "499 are in, promise 'guest-0' was canceled: went home"


def test_limits() -> None:
    """Two at a time, and counted elsewhere."""
    assert _run("examples/16_limits.py").stdout == "45 words, 2 at a time\n"
