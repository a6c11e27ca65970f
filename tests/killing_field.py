"""The killing field: worker and caller processes on one file, faults at random seeded moments, and the reckoning.

    python tests/killing_field.py --seconds 60 --executions 2000 --seed 1

Callers ask for executions of mixed shape; meanwhile the field kills (SIGKILL), stops for longer than the lease
(SIGSTOP, then SIGCONT), ends (SIGTERM) and deafens (removes doorbells) processes, and starts those that are gone again.
At the end everything must have come to what the model says, each once, no zombie's word may count, and what a process
had started for its pool must have ended with it. The seed fixes the plan of executions and faults; what is under way
when a fault comes is up to the machine. Exit status 1, and every violation named, if anything is wrong. Who runs what
is `field_roles.py`, who judges `field_check.py`, what the machine did by itself `field_machine.py`.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import os
import random
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, NamedTuple

import field_check
import field_ledger
import field_machine
import field_model
import field_program
import field_roles

import dasync
from dasync.stores.filelock import FileLock
from dasync.stores.sqlite import SqliteStore
from dasync.system import SystemClock

SHARES = {"kill": 0.4, "stop": 0.3, "term": 0.2, "bell": 0.1}
FAULTS_PER_S = 1.25
ALL_BELLS = 0.3  # of the removals, those of every doorbell
STOP_LEASES = (1.2, 2.0)  # how many leases a stop lasts
LAST = 0.2  # of the faults, those that may hit the last worker or the last caller that is there
REST_S = 0.3  # what a process that was stopped has before it is hit again: stopped twice in a row is stopped for longer
TICK_S = 0.005
AWAKE_S = 0.25  # what a tick may take at most of the time that others are given
LOOK_S = 0.5
START_S = 1.0  # how long a process takes to start on a machine that has nothing else to do
UP_S = 60.0  # how long a process may take to be there
END_S = 30.0  # how long one that was told to end may take
BENIGN = re.compile(  # what processes may say of themselves here
    r"has lost its lease|the asyncio loop has stood still|a task waits for '\w+', and no process serves|^\s*$"
)
SLOW = re.compile(  # and what they may say on a machine that has much else to do: what stands still is judged by itself
    r"has not answered for \d+ s|waits for a cancel that its first run had at this place"
)
LEFT = re.compile(  # and what is said when one was killed that had a pool
    r"resource_tracker: There appear to be \d+ leaked|warnings.warn\('resource_tracker:"
)
UNBORN = re.compile(  # and by a process of that pool which it had not told yet what to do
    r"^Traceback.*\n(?: .*\n)*? .* in spawn_main\n(?: .*\n)*(?:EOFError|FileNotFoundError|BrokenPipeError)\b.*\n?", re.M
)
Settlement = tuple[str, int, bytes | None]


class Planned(NamedTuple):
    """A fault to come."""

    at: float
    kind: str
    draw: int
    """Chooses the victim, among those that are there by then."""
    leases: float


def plan_faults(seed: int, seconds: float, count: int) -> list[Planned]:
    """Faults of every kind in their shares, at random moments."""
    rng = random.Random(f"faults {seed}")
    kinds = [kind for kind, share in SHARES.items() for _ in range(round(share * count))]
    kinds += ["kill"] * (count - len(kinds))
    rng.shuffle(kinds)
    times = sorted(rng.uniform(0.02, 0.98) * seconds for _ in range(count))
    return [
        Planned(at, kind, rng.getrandbits(30), rng.uniform(*STOP_LEASES))
        for at, kind in zip(times, kinds, strict=False)
    ]


class Process:
    """One life of a worker or a caller."""

    def __init__(self, field: Field, role: str, name: str, number: int) -> None:
        self.role, self.name, self.number = role, name, number
        self.life = field_check.Life(f"{name}-{number}", role)
        self.path = field.folder / f"ledger-{self.life.name}"
        self.log = field.folder / f"log-{self.life.name}"
        self.up = False
        self.start_s = 0.0
        self.stopped_until: float | None = None
        self.resumed_at = 0.0
        self.began, self.began_awake, self.termed_awake = time.monotonic(), field.awake_s, 0.0
        args = field.args
        terms = field_roles.Terms(
            role, name, str(field.folder), field.store, number, args.seed, args.executions, args.seconds, args.callers,
            field.epoch, args.lease, args.poll, args.concurrency, args.max_resident, args.durability,
        )  # fmt: skip
        command = [
            sys.executable, __file__, "--role", role, "--host", args.host, "--terms", json.dumps(terms._asdict()),
        ]  # fmt: skip
        with self.log.open("wb") as log:
            self.popen = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=log, env=field.mark(self))

    def send(self, number: int) -> None:
        """A signal, to whoever is there."""
        self.popen.send_signal(number)

    def look_whether_up(self) -> None:
        """It is once it has said so."""
        if not self.up and self.path.exists():
            self.up = any(line.kind == "up" for line in field_ledger.read(self.path))
            self.start_s = time.monotonic() - self.began

    def is_stopped(self) -> bool:
        """Whether the kernel has it stopped by now, in all of its threads."""
        try:
            tasks = list(Path(f"/proc/{self.popen.pid}/task").iterdir())
            return all((task / "stat").read_text().rpartition(") ")[2][0] in "TtZX" for task in tasks)
        except OSError:
            return True

    def tail(self) -> str:
        return self.log.read_text(errors="replace")[-2000:]


class Field:
    """One run."""

    def __init__(self, args: argparse.Namespace, folder: Path) -> None:
        self.args = args
        self.folder = folder
        self.store = args.store or str(folder / "field.db")
        self.planned = field_model.plan(args.seed, args.executions, args.seconds, args.callers)
        self.coming = plan_faults(args.seed, args.seconds, args.faults)[::-1]
        self.faults: list[field_check.Fault] = []
        self.processes: dict[str, Process] = {}
        self.past: list[Process] = []
        self.violations: list[str] = []
        self.heard: dict[str, tuple[int, list[dict[str, Any]]]] = {}
        self.epoch = 0.0
        self.awake_s = 0.0
        """What it has had of the time, by ticks of which none counts for much: who was not let run did not wait."""
        self.readings = [field_machine.both_clocks()]
        self.bereaved: dict[str, float] = {}
        """The lives that are over and have left processes behind, and since when, in time awake."""
        self.longest_bereaved_s = 0.0
        self.killed_with_pool = 0
        self.longest_tick_s = self.longest_start_s = 0.0
        self._witnessed: dict[str, Settlement] = {}
        self._ending = False
        self._told_at = 0.0
        self._settled = self._promises = 0

    # -- the run

    def play(self) -> field_check.Verdict:
        """From the first process to the reckoning."""
        self.epoch = time.monotonic() + 2.0
        try:
            for number in range(self.args.workers):
                self._start("worker", f"worker-{number}")
            for number in range(self.args.callers):
                self._start("caller", f"caller-{number}")
            self._fight()
            self._heal()
            self._end()
        finally:
            for process in self.processes.values():
                if process.popen.poll() is None:
                    process.popen.kill()
                    process.popen.wait()
        return self._reckon()

    def _fight(self) -> None:
        """Faults, at their moments."""
        while self.coming or self._now() < self.args.seconds:
            self._tick()
            if self.coming and self.coming[-1].at <= self._now():
                self._strike(self.coming.pop())

    def _heal(self) -> None:
        """No more faults: everything comes to its end, in time."""
        while any(p.stopped_until is not None or not p.up for p in self.processes.values()):
            self._tick()
        args = self.args
        seen, since = (0, 0), self.awake_s
        while not self._is_complete():
            self._tick()
            now = (self._settled, sum(len(entries) for _, entries in self.heard.values()))
            if now != seen:
                seen, since = now, self.awake_s
            longest_s = max(one.case.longest_s for one in self.planned)
            if self.awake_s - since > (patience := args.lease + args.poll + self._slack() + longest_s):
                self._say_hang(patience)
                return

    def _slack(self) -> float:
        """More of it on a machine that has much else to do, which shows in how long a process takes to start."""
        return float(self.args.slack * max(1.0, self.longest_start_s / START_S))

    def _say_hang(self, patience: float) -> None:
        self.violations.append(f"nothing was settled for {patience:.1f} s after the last fault, with more to do")
        for process in self.processes.values():
            process.send(signal.SIGUSR1)
        time.sleep(1)
        for process in self.processes.values():
            self.violations.append(f"{process.life.name} was at: {process.tail()}")

    def _end(self) -> None:
        """Everybody ends in an orderly way."""
        self._ending = True
        for process in self.processes.values():
            self._terminate(process)
        while any(process.life.exited_at is None for process in self.processes.values()) or self.bereaved:
            self._tick()
            self._look_for_orphans()

    def mark(self, process: Process) -> dict[str, str]:
        """The environment of a process, and of all that it starts."""
        return {**os.environ, field_machine.MARK: str(process.path)}

    def _start(self, role: str, name: str) -> None:
        before = self.processes.get(name)
        if before is not None:
            self.past.append(before)
        self.processes[name] = Process(self, role, name, before.number + 1 if before is not None else 0)

    def _now(self) -> float:
        return time.monotonic() - self.epoch

    # -- faults

    def _strike(self, fault: Planned) -> None:
        if fault.kind == "bell":
            self._remove_bells(fault)
            return
        there = [p for p in self.processes.values() if p.up and p.stopped_until is None and p.life.dead_at == _NEVER]
        rested = time.monotonic() - REST_S
        there = [p for p in there if p.life.termed_at is None and p.resumed_at < rested]
        if random.Random(fault.draw).random() >= LAST:
            roles = Counter(process.role for process in there)
            there = [process for process in there if roles[process.role] > 1]
        if not there:
            self.coming.append(fault._replace(at=self._now() + 0.05))
            return
        victim = there[fault.draw % len(there)]
        now = time.monotonic()
        if fault.kind == "kill":
            self.killed_with_pool += len(field_machine.children().get(str(victim.path), [])) > 1
            victim.life.killed_at = now = time.monotonic()
            victim.send(signal.SIGKILL)
            self.faults.append(field_check.Fault("kill", victim.life.name, now, now, False))
        elif fault.kind == "term":
            self._terminate(victim)
            self.faults.append(field_check.Fault("term", victim.life.name, now, now, False))
        else:
            self._stop(victim, fault.leases * self.args.lease)

    def _terminate(self, process: Process) -> None:
        process.life.termed_at, process.termed_awake = time.monotonic(), self.awake_s
        process.send(signal.SIGTERM)

    def _stop(self, victim: Process, seconds: float) -> None:
        now = time.monotonic()
        victim.send(signal.SIGSTOP)
        while not victim.is_stopped():
            time.sleep(0.0005)
        held = FileLock.holder(f"{self.store}-lock") == victim.popen.pid
        victim.stopped_until = time.monotonic() + seconds
        self.faults.append(field_check.Fault("stop", victim.life.name, now, victim.stopped_until, held))

    def _remove_bells(self, fault: Planned) -> None:
        bells = sorted(Path(f"{self.store}-processes").glob("*.bell"))
        if not bells:
            self.coming.append(fault._replace(at=self._now() + 0.05))
            return
        everybody = random.Random(fault.draw).random() < ALL_BELLS
        chosen = bells if everybody else [bells[fault.draw % len(bells)]]
        for bell in chosen:
            with suppress(FileNotFoundError):
                bell.unlink()
        now = time.monotonic()
        whose = "everybody" if everybody else chosen[0].name
        self.faults.append(field_check.Fault("bell", whose, now, now, False))

    # -- what goes on meanwhile

    def _tick(self) -> None:
        began = time.monotonic()
        time.sleep(TICK_S)
        for process in list(self.processes.values()):
            self._look_after(process)
        if time.monotonic() - self._told_at > LOOK_S:
            self._told_at = time.monotonic()
            self._look()
            self._look_for_orphans()
        took = time.monotonic() - began
        self.awake_s += min(took, AWAKE_S)
        self.longest_tick_s = max(self.longest_tick_s, took)

    def _look_after(self, process: Process) -> None:
        now, life = time.monotonic(), process.life
        if process.stopped_until is not None and now >= process.stopped_until:
            process.send(signal.SIGCONT)
            self._end_stop(process, time.monotonic())
        if life.exited_at is None and process.popen.poll() is not None:
            life.exited_at, life.status = time.monotonic(), process.popen.returncode
            self.bereaved[str(process.path)] = self.awake_s
            wanted = -signal.SIGKILL if life.killed_at is not None else 0
            if life.status != wanted or (life.killed_at is None and life.termed_at is None):
                self.violations.append(f"{life.name} ended with status {life.status}: {process.tail()}")
            if not self._ending:
                self._start(process.role, process.name)
            return
        process.look_whether_up()
        self.longest_start_s = max(self.longest_start_s, process.start_s)
        if life.exited_at is not None:
            return
        if not process.up and self.awake_s - process.began_awake > UP_S:
            self._give_up(process, f"was not up after {UP_S} s")
        allowed = max(END_S, self._slack())
        if life.termed_at is not None and life.killed_at is None and self.awake_s - process.termed_awake > allowed:
            self._give_up(process, f"was there still {allowed:.1f} s after SIGTERM")

    def _look_for_orphans(self) -> None:
        """What a process has started ends with it, however it ends."""
        there = field_machine.children() if self.bereaved else {}
        for mark, since in list(self.bereaved.items()):
            passed = self.awake_s - since
            if mark not in there:
                del self.bereaved[mark]
                self.longest_bereaved_s = max(self.longest_bereaved_s, passed)
            elif passed > self._slack():
                del self.bereaved[mark]
                self.violations.append(f"{passed:.1f} s after {Path(mark).name} ended, its {there[mark]} were there")

    def _end_stop(self, process: Process, at: float) -> None:
        process.stopped_until, process.resumed_at = None, at
        for index, fault in enumerate(self.faults):
            if fault.kind == "stop" and fault.life == process.life.name and fault.until > at - self.args.lease:
                self.faults[index] = fault._replace(until=at)

    def _give_up(self, process: Process, why: str) -> None:
        process.send(signal.SIGUSR1)
        time.sleep(1)
        self.violations.append(f"{process.life.name} {why}: {process.tail()}")
        process.life.killed_at = time.monotonic()
        process.popen.kill()

    def _look(self) -> None:
        """Read what has come of it, and say so."""
        self.readings.append(field_machine.both_clocks())
        with suppress(sqlite3.OperationalError), closing(_reading(self.store)) as connection:
            row = connection.execute("SELECT count(*), coalesce(sum(state <> 'pending'), 0) FROM promises").fetchone()
            self._promises, self._settled = row
            self._witness(connection)
        self._read_heard()
        kinds = Counter(fault.kind for fault in self.faults)
        told = ", ".join(f"{kinds[kind]} {kind}" for kind in SHARES)
        up = sum(process.up and process.stopped_until is None for process in self.processes.values())
        roots = sum("state" in entry for _, entries in self.heard.values() for entry in entries)
        print(
            f"{self._now():6.1f} s  {roots} of {self.args.executions} executions heard, {self._settled} of"
            f" {self._promises} promises settled, {up} processes up, {len(self.faults)} faults ({told})",
            file=sys.stderr, flush=True, end="\r" if sys.stderr.isatty() else "\n",
        )  # fmt: skip

    def _witness(self, connection: sqlite3.Connection) -> None:
        """What was settled is settled as it was: executions, that is, not all that is below them."""
        sql = "SELECT id, state, settled_at, value FROM promises WHERE creator IS NULL AND state <> 'pending'"
        now: dict[str, Settlement] = {row[0]: row[1:] for row in connection.execute(sql)}
        for id, was in self._witnessed.items():
            if now.get(id) != was:
                self.violations.append(f"{id} was settled as {was} and is {now.get(id)} now")
        self._witnessed = now

    def _read_heard(self) -> None:
        for path in self.folder.glob("heard-*"):
            size = path.stat().st_size
            if self.heard.get(path.name, (-1,))[0] != size:
                self.heard[path.name] = (size, field_roles.read_book(path))

    def _is_complete(self) -> bool:
        heard = {entry["what"] for _, entries in self.heard.values() for entry in entries}
        return self._settled == self._promises > 0 and heard.issuperset(one.id for one in self.planned)

    # -- the reckoning

    def _reckon(self) -> field_check.Verdict:
        everybody = [*self.past, *self.processes.values()]
        for process in everybody:
            process.life.lines = field_ledger.read(process.path) if process.path.exists() else []
        self._read_heard()
        with closing(_reading(self.store)) as connection:
            self._witness(connection)
            found = [row[0] for row in connection.execute("PRAGMA integrity_check")]
        if found != ["ok"]:
            self.violations.append(f"integrity_check: {found}")
        slack = self._slack()
        evidence = field_check.Evidence(
            self.planned, [process.life for process in everybody], self.faults,
            [entry for _, entries in self.heard.values() for entry in entries],
            asyncio.run(_snapshot(self.store)), clocks := field_machine.Clocks(self.readings),
            self.args.lease, self.args.poll, slack, field_program.LIMITS,
        )  # fmt: skip
        (self.folder / "faults").write_text("\n".join(map(str, sorted(self.faults, key=lambda fault: fault.at))))
        verdict = field_check.judge(evidence)
        self._tidy()
        verdict.violations[:0] = self.violations
        verdict.violations += list(self._complaints(everybody))
        kinds = Counter(fault.kind for fault in self.faults)
        stalled = [b - a for process in everybody for a, b in field_check.stalls(process.life, self.faults)]
        verdict.figures = {
            "seed": self.args.seed, "faults": len(self.faults), **{f"faults: {kind}": kinds[kind] for kind in SHARES},
            "stops inside a transaction": sum(fault.in_transaction for fault in self.faults),
            **verdict.figures, "processes started": len(everybody),
            "seconds until all was settled": round(self._now(), 1),
            "longest start of a process (s)": round(self.longest_start_s, 3),
            "of that, to join the store (s)": round(max(map(_joining, everybody)), 3), "slack (s)": round(slack, 3),
            "longest tick of the field itself (s)": round(self.longest_tick_s, 3),
            "longest stall of a process (s)": round(max(stalled, default=0.0), 3),
            "wall clock against monotonic one (s)": round(clocks.drift_s(), 3),
            "killed with processes of their pool": self.killed_with_pool,
            "longest until those were gone (s)": round(self.longest_bereaved_s, 3),
        }  # fmt: skip
        return verdict

    def _tidy(self) -> None:
        """Who was killed between two leases left files that nobody knows of; the next program takes them away."""
        folder = Path(f"{self.store}-processes")
        for path in folder.iterdir():
            os.utime(path, (0, 0))
        asyncio.run(_visit(self.store))
        if left := sorted(path.name for path in folder.iterdir()):
            self.violations.append(f"left beside the store: {left}")

    def _complaints(self, everybody: list[Process]) -> Iterator[str]:
        """What processes have said that they should not have to."""
        slow = self._slack() > self.args.slack
        for process in everybody:
            said = process.log.read_text(errors="replace")
            if bad := complaints(said, killed=process.life.killed_at is not None, slow=slow):
                yield f"{process.life.name} says: " + "\n    ".join(bad[:30])


_NEVER = float("inf")


def _joining(process: Process) -> float:
    """How long a process took from having everything at hand to being up."""
    at = {line.kind: line.now for line in process.life.lines if line.kind in ("made", "up")}
    return at["up"] - at["made"] if len(at) == 2 else 0.0


def complaints(said: str, *, killed: bool, slow: bool) -> list[str]:
    """What a process has said that it should not have to."""
    benign = [BENIGN, *([SLOW] if slow else []), *([LEFT] if killed else [])]
    said = UNBORN.sub("", said) if killed else said
    return [line for line in said.splitlines() if not any(one.search(line) for one in benign)]


def _reading(path: str) -> sqlite3.Connection:
    if not os.path.exists(path):
        raise sqlite3.OperationalError("not there yet")
    return sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=0.2)


async def _visit(path: str) -> None:
    async with dasync.EventLoop(path, group="visitors", functions=[], durability="process"):
        pass


async def _snapshot(path: str) -> Any:
    store = SqliteStore(path, SystemClock(), "process")
    await store.open()
    try:
        return await store.snapshot()
    finally:
        await store.close()


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Kill workers and callers at random moments; check what comes of it.")
    parser.add_argument("--seconds", type=float, default=60, help="how long faults come")
    parser.add_argument("--executions", type=int, default=2000)
    parser.add_argument("--faults", type=int, help=f"how many; default {FAULTS_PER_S} for each second")
    parser.add_argument("--seed", type=int, default=1, help="of the plan of executions and faults")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--callers", type=int, default=2)
    parser.add_argument("--lease", type=float, default=1.5, help="in seconds")
    parser.add_argument("--poll", type=float, default=0.25, help="in seconds")
    parser.add_argument("--concurrency", type=int, default=100, help="tasks that run in a process at a time")
    parser.add_argument("--max-resident", type=int, default=20, help="tasks that only wait in a process at a time")
    parser.add_argument("--slack", type=float, default=5.0, help="seconds more that an idle machine may take")
    parser.add_argument("--durability", choices=["power", "process"], default="process")
    parser.add_argument("--host", choices=["asyncio", "dasync"], default="asyncio", help="whose asyncio loop")
    parser.add_argument("--store", help="a file that is not there yet; default: one that goes if all is well")
    parser.add_argument("--keep", action="store_true", help="leave the ledgers, logs and the store where they are")
    parser.add_argument("--json", action="store_true", help="the figures and the violations as JSON")
    parser.add_argument("--role", choices=["worker", "caller"], help=argparse.SUPPRESS)
    parser.add_argument("--terms", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.faults is None:
        args.faults = max(1, round(args.seconds * FAULTS_PER_S))
    return args


def main() -> int:
    args = arguments()
    if args.role:
        field_roles.live(args)
        return 0
    folder = Path(tempfile.mkdtemp(prefix="field-"))
    if args.store and os.path.exists(args.store):
        raise SystemExit(f"{args.store} exists, and the field needs a store of its own")
    print(f"killing field: seed {args.seed}, {args.executions} executions, {args.faults} faults, in {folder}",
          file=sys.stderr)  # fmt: skip
    verdict = Field(args, folder).play()
    if args.json:
        print(json.dumps(dataclasses.asdict(verdict), indent=2))
    else:
        for name, figure in verdict.figures.items():
            print(f"{name:52} {figure}")
        for violation in verdict.violations:
            print(f"VIOLATION: {violation}")
        print("violations: ", len(verdict.violations) or "none")
    if verdict.violations or args.keep:
        print(f"kept: {folder}", file=sys.stderr)
    else:
        shutil.rmtree(folder)
    return 1 if verdict.violations else 0


if __name__ == "__main__":
    sys.exit(main())
