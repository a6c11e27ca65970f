"""Two sequences side by side, killed and resumed: does each get back its own results? dasync beside its peers.

    python -m benchmarks.interleaving [--runs 40] [--seed 1] [--only dasync,dbos,resonate,edda,duron] [--json]
    python -m benchmarks.interleaving --install --venvs ~/.cache/interleaving [--python resonate=python3.12]

The program: a durable function runs gather(seq("a"), seq("b")); each sequence makes two durable steps, one after the
other. A first process plays it with "a" slow, and is killed after some steps were recorded and before the end. A second
process goes on from the store, with "b" slow. That is *right* when it gives what an undisturbed run gives, *wrong* when
it gives anything else, and an *error* when it raises or gives nothing in time. *Again* counts the steps that ran again
although the program had been given their results before it was killed. Each run draws its delays and its place of death
from the seed; every peer gets the same ones.

Each peer has an adapter in `benchmarks/peers/`, which says how the peer's documentation wants the program written.
Where that is another way than a plain gather, both are played. What is played is what is found: in the folder
`--venvs`, where `--install` makes an environment for each peer with pip, and in the running environment. What is not
there is reported absent. Nothing is asserted. (Of the versions that the adapters are written for, resonate-sdk wants
Python 3.12, and dbos there SQLite 3.42.)
"""

from __future__ import annotations

import argparse
import json
import random
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks.peers.stage import BEGUN, GIVEN, LEDGER, OUTCOME, Plan

ROOT = Path(__file__).parent.parent
RIGHT = [["a0", "a1"], ["b0", "b1"]]
SLOW_S, QUICK_S = (0.08, 0.2), (0.01, 0.08)
INSTALL_S = 600
TOO_LATE = 124  # as `timeout` exits
PROBE = "import importlib.metadata, sys; print(importlib.metadata.version(sys.argv[1]))"


@dataclass(frozen=True)
class Peer:
    """Whom an adapter is for."""

    name: str
    """The adapter's module."""
    distribution: str
    requirement: str
    """What the adapter was written for, in pip's words."""


PEERS = (
    Peer("dasync", "dasync", "dasync"),
    Peer("dbos", "dbos", "dbos>=3,<4"),
    Peer("resonate", "resonate-sdk", "resonate-sdk>=0.8,<0.9"),
    Peer("edda", "edda-framework", "edda-framework>=0.16,<0.17"),
    Peer("duron", "duron", "duron==0.0.3"),
)


@dataclass(frozen=True)
class Found:
    """A peer that can be played, and how."""

    peer: Peer
    python: str
    version: str
    ways: tuple[str, ...]
    serves: bool


@dataclass
class Row:
    """What came of one way of writing the program; or why there was nothing to play."""

    peer: str
    version: str = ""
    way: str = ""
    right: int = 0
    wrong: int = 0
    error: int = 0
    again: int = 0
    notes: Counter[str] = field(default_factory=Counter)


# -- who is there ------------------------------------------------------------------------------------------------------


def last_line(text: str) -> str:
    """What a program said last, which with Python's and pip's errors is what is the matter."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "nothing was said"


def run(*command: str, timeout_s: float) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=timeout_s)
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, TOO_LATE, "", f"nothing came within {timeout_s:g} s")


def adapter(python: str, peer: Peer, *arguments: str) -> list[str]:
    return [python, "-m", f"benchmarks.peers.{peer.name}", *arguments]


def install(peer: Peer, venvs: Path, python: str) -> str:
    """Make the peer's environment; gives what pip had against it, or nothing."""
    home = venvs / peer.distribution
    commands = [[f"{home}/bin/pip", "install", "--quiet", peer.requirement]]
    if not home.exists():
        commands.insert(0, [python, "-m", "venv", str(home)])
    for command in commands:
        done = run(*command, timeout_s=INSTALL_S)
        if done.returncode != 0:
            return last_line(done.stderr or done.stdout)
    return ""


def find(peer: Peer, venvs: Path, patience_s: float) -> Found | str:
    """The peer, where it is and its adapter can be run; else why not."""
    own = venvs / peer.distribution / "bin" / "python"
    python = str(own) if own.exists() and peer.name != "dasync" else sys.executable
    version = run(python, "-c", PROBE, peer.distribution, timeout_s=patience_s)
    if version.returncode != 0:
        return f"absent: pip install {shlex.quote(peer.requirement)}"
    ways = run(*adapter(python, peer, "ways"), timeout_s=patience_s)
    if ways.returncode != 0:
        return f"{version.stdout.strip()} cannot run here: {last_line(ways.stderr)}"
    has = json.loads(last_line(ways.stdout))
    return Found(peer, python, version.stdout.strip(), tuple(has["ways"]), has["serves"])


# -- one run -----------------------------------------------------------------------------------------------------------


def plans(seed: int, number: int, way: str) -> tuple[Plan, Plan]:
    """The two parts of a run: "a" is slow in the first, which dies; "b" is slow in the second."""
    dice = random.Random(f"{seed}:{number}")

    def delays_s(slow: str) -> dict[str, float]:
        span = {name: SLOW_S if name == slow else QUICK_S for name in "ab"}
        return {f"{name}{i}": round(dice.uniform(*span[name]), 3) for name in "ab" for i in range(2)}

    return Plan(way, delays_s("a"), dice.randint(1, 3), dice.random() < 0.5), Plan(way, delays_s("b"))


def ledger(store: Path) -> list[list[str]]:
    path = store / LEDGER
    return [line.split() for line in path.read_text("utf-8").splitlines()] if path.exists() else []


@contextmanager
def server(found: Found, store: Path) -> Iterator[None]:
    """What has to outlive the program's processes, where the peer has such a thing."""
    if not found.serves:
        yield
        return
    command = adapter(found.python, found.peer, "serve", str(store))
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            yield
        finally:
            process.kill()


def play(found: Found, store: Path, action: str, plan: Plan, patience_s: float) -> tuple[int, dict[str, object]]:
    """One part of a run: its exit status, and its outcome, which is an error if it left none."""
    command = adapter(found.python, found.peer, action, str(store), json.dumps(asdict(plan)))
    done = run(*command, timeout_s=patience_s)
    path = store / OUTCOME
    if not path.exists():
        return done.returncode, {"error": f"ended with {done.returncode}: {last_line(done.stderr)}"}
    outcome: dict[str, object] = json.loads(path.read_text("utf-8"))
    return done.returncode, outcome


def told(outcome: dict[str, object]) -> str:
    """An outcome in a line."""
    if "error" in outcome:
        return str(outcome["error"]).splitlines()[0]
    return f"gave {json.dumps(outcome['value'])}"


def one_run(found: Found, row: Row, number: int, seed: int, patience_s: float) -> None:
    """Play both parts and add what came of it to the row."""
    first, second = plans(seed, number, row.way)
    with tempfile.TemporaryDirectory(prefix="interleaving-") as folder, server(found, store := Path(folder)):
        status, outcome = play(found, store, "first", first, patience_s)
        if status != -signal.SIGKILL:
            row.error += 1
            row.notes[f"in the first process: {told(outcome)}"] += 1
            return
        before = ledger(store)
        _, outcome = play(found, store, "resume", second, patience_s)
        after = ledger(store)[len(before) :]
    given = {step for what, step in before if what == GIVEN}
    row.again += len(given & {step for what, step in after if what == BEGUN})
    if outcome == {"value": RIGHT}:
        row.right += 1
        return
    row.notes[told(outcome)] += 1
    if "error" in outcome:
        row.error += 1
    else:
        row.wrong += 1


# -- all of it ---------------------------------------------------------------------------------------------------------


def compare(peers: list[Peer], options: argparse.Namespace, venvs: Path) -> list[Row]:
    rows = []
    pythons = dict(options.python)
    with Progress(console=Console(stderr=True), transient=True) as progress:
        for peer in peers:
            against = ""
            if options.install and peer.name != "dasync":
                making = progress.add_task(f"{peer.distribution}: pip install", total=None)
                against = install(peer, venvs, pythons.get(peer.name, sys.executable))
                progress.remove_task(making)
            found = find(peer, venvs, options.patience)
            if isinstance(found, str):
                rows.append(Row(peer.distribution, notes=Counter([f"{found} ({against})" if against else found])))
                continue
            for way in found.ways:
                row = Row(peer.distribution, found.version, way)
                rows.append(row)
                label = f"{peer.distribution} {found.version}, {way}"
                for number in progress.track(range(options.runs), description=label):
                    one_run(found, row, number, options.seed, options.patience)
    return rows


def show(rows: list[Row]) -> None:
    console = Console(markup=False, highlight=False, soft_wrap=True)
    table = Table("peer", "version", "way", "right", "wrong", "error", "again", box=None)
    for row in rows:
        if row.way:
            counts = (row.right, row.wrong, row.error, row.again)
            table.add_row(row.peer, row.version, row.way, *map(str, counts))
    console.print(table)
    for row in rows:
        for note, count in row.notes.most_common():
            console.print(f"{row.peer}, {row.way}: {count} x {note}" if row.way else f"{row.peer}: {note}")


def named(text: str) -> tuple[str, str]:
    name, equals, python = text.partition("=")
    if not equals or name not in {peer.name for peer in PEERS}:
        raise argparse.ArgumentTypeError(f"wanted a peer's name, = and an interpreter, not {text!r}")
    if shutil.which(python) is None:
        raise argparse.ArgumentTypeError(f"there is no {python}")
    return name, python


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=40, help="of each way of each peer")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", default=",".join(peer.name for peer in PEERS))
    parser.add_argument("--install", action="store_true", help="make an environment for each peer, with pip")
    parser.add_argument("--venvs", type=Path, help="the folder of the environments (default: a temporary one)")
    parser.add_argument(
        "--python", type=named, action="append", default=[], metavar="PEER=PYTHON", help="what its environment runs"
    )
    parser.add_argument("--patience", type=float, default=20, help="seconds for each process")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    only = options.only.split(",")
    if unknown := set(only) - {peer.name for peer in PEERS}:
        parser.error(f"--only: there is no adapter for {', '.join(sorted(unknown))}")
    with tempfile.TemporaryDirectory(prefix="interleaving-venvs-") as temporary:
        venvs = options.venvs.expanduser().absolute() if options.venvs else Path(temporary)
        rows = compare([peer for peer in PEERS if peer.name in only], options, venvs)
    if options.json:
        terms = {"python": sys.version.split()[0], "runs": options.runs, "seed": options.seed}
        print(json.dumps(terms | {"rows": [vars(row) for row in rows]}))
    else:
        show(rows)


if __name__ == "__main__":
    main()
