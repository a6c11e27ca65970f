"""The killing field's judgment: from the ledger, the store and what the field did to its processes to violations.

Whatever is wrong is named, one line for each. What a stopped process still finished between two awaits, after its
successor had begun, is counted as overlap and is no violation: nobody can take back what code does in the world.
Nothing here runs while the field does.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

from field_ledger import Line, Out
from field_machine import STALL_S, Clocks
from field_model import Planned

from dasync.core import codec, failure, ids
from dasync.core.invariants import Snapshot, inspect
from dasync.core.model import PromiseRecord, State, TaskState
from dasync.core.protocol import AGAIN
from dasync.runtime.function import RETRY

WRITTEN = ("begin", "after", "did", "end", "error", "cut")
OVER = ("end", "error", "cut")
HOPELESS_RETRIES = 2


class Fault(NamedTuple):
    """What was done to whom, and when (monotonic)."""

    kind: str
    life: str
    at: float
    until: float
    """When it was over: a stopped process went on."""
    in_transaction: bool


@dataclass
class Life:
    """One process of the field, from its start to its end."""

    name: str
    role: str = "worker"
    lines: list[Line] = field(default_factory=list)
    killed_at: float | None = None
    termed_at: float | None = None
    exited_at: float | None = None
    status: int | None = None

    @property
    def dead_at(self) -> float:
        """From when on it certainly does nothing."""
        return min(at for at in (self.killed_at, self.exited_at, float("inf")) if at is not None)

    @property
    def up_at(self) -> float:
        """From when on it does what it is there for."""
        return next((line.now for line in self.lines if line.kind == "up"), float("inf"))

    @property
    def stalls(self) -> list[tuple[float, float]]:
        """When it did not run, though it was there."""
        return [(line.ends, line.now) for line in self.lines if line.kind == "stall"]

    @property
    def serves_until(self) -> float:
        """From when on it takes nothing more."""
        return min(self.dead_at, float("inf") if self.termed_at is None else self.termed_at)


@dataclass
class Run:
    """One run of a body under one claim."""

    promise: str
    task: str
    version: int
    claim: str
    role: str
    life: Life
    begin: float
    lines: list[Line]

    @property
    def over_at(self) -> float:
        """From when on it does nothing more."""
        last = self.lines[-1]
        return min(last.now if last.kind in OVER else float("inf"), self.life.dead_at)


@dataclass
class Evidence:
    """What is left of a run of the field."""

    planned: Sequence[Planned]
    lives: Sequence[Life]
    faults: Sequence[Fault]
    heard: Sequence[Mapping[str, Any]]
    """What the callers have put down."""
    snapshot: Snapshot
    clocks: Clocks
    lease: float
    poll: float
    slack: float
    limits: Mapping[str, int]
    """How many of a function may run at a time in one process."""


@dataclass
class Verdict:
    """What came of it."""

    violations: list[str] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)

    def say(self, what: str) -> None:
        self.violations.append(what)


def judge(evidence: Evidence) -> Verdict:
    """Everything that can be told afterwards."""
    verdict = Verdict()
    runs = list(runs_of(evidence.lives, verdict))
    check_outcomes(evidence, verdict)
    check_rows(evidence, verdict)
    check_steps(evidence, verdict)
    check_runs(evidence, runs, verdict)
    check_limits(evidence, runs, verdict)
    check_accepted(evidence, runs, verdict)
    check_after_settlement(evidence, runs, verdict)
    check_gaps(evidence, runs, verdict)
    check_take_overs(evidence, runs, verdict)
    return verdict


# -- what it came to


def outcome(record: PromiseRecord) -> tuple[str, Any]:
    """What a promise of the field has come to, as the model says it."""
    if record.state is State.RESOLVED:
        out = codec.decode(record.value or b"", Out)
        assert isinstance(out, Out)
        return ("value", out.value)
    if record.state is State.REJECTED:
        return ("error", str(failure.decode_error(record.value or b"", {})))
    return (record.state.value, None)


def check_outcomes(evidence: Evidence, verdict: Verdict) -> None:
    """Every execution is settled, as the model says, and its caller has heard just that."""
    rows = evidence.snapshot.promises
    told: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    refused = Counter[str]()
    for entry in evidence.heard:
        what = str(entry["what"])
        if what.startswith("refused "):
            refused[str(entry["error"]).partition(":")[0]] += 1
        else:
            told[what].append(entry)
    shapes, unusual = Counter[str](), Counter[str]()
    for one in evidence.planned:
        record = rows.get(one.id)
        if record is None or record.state is State.PENDING:
            verdict.say(f"{one.id} is not settled: {record}")
            continue
        came = outcome(record)
        shapes[one.shape] += 1
        if came not in one.case.allowed:
            verdict.say(f"{one.id}{one.case.args} came to {came}, not to {one.case.allowed}")
        elif came != one.case.allowed[0]:
            unusual[one.shape] += 1
        heard = [(entry["state"], entry["value"]) for entry in told[one.id]]
        if not heard or any(what != came for what in heard):
            verdict.say(f"{one.id} came to {came}, and its caller heard {heard}")
    verdict.figures |= {"executions": shapes.total(), "shapes": dict(shapes), "unusual outcomes": dict(unusual)}
    verdict.figures["refused to callers"] = dict(refused)


def check_rows(evidence: Evidence, verdict: Verdict) -> None:
    """The store is sound, and nothing is left in it that has not come to its end."""
    snapshot = evidence.snapshot
    for broken in inspect(snapshot):
        verdict.say(f"invariant {broken}")
    for promise in snapshot.promises.values():
        if promise.state is State.PENDING:
            verdict.say(f"left pending: {promise}")
    for task in snapshot.tasks.values():
        if task.state is TaskState.HALTED:
            verdict.say(f"halted: {task.id}: {task.reason}")
        elif task.state is not TaskState.FULFILLED:
            verdict.say(f"left {task.state.value}: {task}")
    for what, rows in (("callback", snapshot.callbacks), ("listener", snapshot.listeners)):
        for row in rows:
            verdict.say(f"left {what}: {row}")
    for process in snapshot.processes.values():
        verdict.say(f"left process: {process}")
    retried = Counter(ids.parent_of(one.id) for one in snapshot.promises.values() if one.function == RETRY)
    for promise in snapshot.promises.values():
        gave_up = promise.function == "hopeless_leaf" and promise.state is State.REJECTED
        if gave_up and retried[promise.id] != HOPELESS_RETRIES:
            verdict.say(f"{promise.id} was tried again {retried[promise.id]} times, not {HOPELESS_RETRIES}")
    verdict.figures["promises"] = len(snapshot.promises)


# -- who ran what


def runs_of(lives: Iterable[Life], verdict: Verdict) -> Iterable[Run]:
    """Every run, and what is wrong with one by itself."""
    for life in lives:
        open_runs: dict[tuple[str, str], Run] = {}
        for line in life.lines:
            if line.kind not in WRITTEN:
                continue
            role, process, _ = line.note.split(":")
            claim = f"{process}#{line.version}"
            key = (line.promise, claim)
            if line.kind == "begin":
                if key in open_runs:
                    verdict.say(f"{line.promise} began twice under {claim}: {open_runs[key].lines[-1]} then {line}")
                open_runs[key] = Run(line.promise, line.task, line.version, claim, role, life, line.now, [line])
            elif key not in open_runs:
                verdict.say(f"{line.promise} did not begin under {claim}: {line}")
            else:
                open_runs[key].lines.append(line)
                if line.kind in OVER:
                    yield open_runs.pop(key)
        yield from open_runs.values()


def check_steps(evidence: Evidence, verdict: Verdict) -> None:
    """No step of an execution, or of a batch, has begun after its process's lease had ended, and there is no code of
    theirs outside such steps but in threads."""
    steps = late = 0
    for life in evidence.lives:
        counts = [int(line.note.split(":")[2]) for line in life.lines if line.note != "-"]
        steps += max(counts, default=0)
        for line in life.lines:
            if line.kind == "late":
                verdict.say(f"{line.promise} went on {line.step_at - line.ends:.3f} s after the lease of {life.name}")
            elif line.kind not in WRITTEN or line.kind == "cut" or line.note.startswith("thread:"):
                continue  # who is closed at the end of its process is cut outside of steps
            elif line.step_at == 0:
                verdict.say(f"{line.promise} ran in {life.name} where nobody looks at the lease: {line}")
            elif line.now >= line.ends:
                late += 1
    verdict.figures |= {"steps looked at": steps, "ended late within a step": late}


def check_runs(evidence: Evidence, runs: Sequence[Run], verdict: Verdict) -> None:
    """No body of a live lease has run twice at a time."""
    leases: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for life in evidence.lives:
        for line in life.lines:
            if line.kind == "lease":
                leases[line.process].append((line.now, line.ends))
    of: dict[str, list[Run]] = defaultdict(list)
    for one in runs:
        of[one.promise].append(one)
    overlaps = dropped = 0
    overlap_s = 0.0
    threads = 0
    for promise, mine in of.items():
        # By their claims: who is stopped as it begins may write that down when its successor has begun long since.
        mine.sort(key=lambda run: (run.version, run.begin))
        for index, second in enumerate(mine):
            for first in mine[:index]:
                if first.claim == second.claim or first.over_at <= second.begin:
                    continue
                known = leases[first.claim.partition("#")[0]]
                at = bisect_right(known, (second.begin, float("inf")))
                ends = known[at - 1][1] if at else 0.0
                works_on = [line for line in first.lines if line.now > second.begin and line.kind != "cut"]
                if second.begin < ends and not (first.role == "thread" and not_in_time(first, second, works_on)):
                    verdict.say(
                        f"{promise} ran twice: {second.claim} began at {second.begin:.6f}, and {first.claim} was at it"
                        f" with a lease until {ends:.6f}: {first.lines[-1]}"
                    )
                elif works_on and first.role == "thread":
                    threads += 1
                elif works_on:
                    overlaps += 1
                    overlap_s = max(overlap_s, works_on[-1].now - second.begin)
                else:
                    dropped += 1
    roles = Counter(run.role for run in runs)
    verdict.figures |= {
        "leaf runs": roles["leaf"] + roles["thread"], "body runs": roles["body"],
        "runs beyond the first": sum(len(mine) - 1 for mine in of.values()),
        "overlaps": overlaps, "longest overlap (s)": round(overlap_s, 3), "overlaps in threads": threads,
        "runs dropped by who came back": dropped,
    }  # fmt: skip


def not_in_time(first: Run, second: Run, works_on: Sequence[Line]) -> bool:
    """Whether a task was handed back whose body runs in a thread, which nobody can interrupt: it ends a bit later."""
    told_to_end = first.life.termed_at is not None and first.life.termed_at < second.begin
    return told_to_end or not works_on


def check_limits(evidence: Evidence, runs: Sequence[Run], verdict: Verdict) -> None:
    """In no process have more of a function run at a time than it lets run."""
    moments: dict[tuple[str, str], list[tuple[float, int]]] = defaultdict(list)
    for one in runs:
        record = evidence.snapshot.promises.get(one.promise)
        if record is not None and record.function in evidence.limits:
            moments[one.life.name, record.function] += [(one.begin, 1), (one.over_at, -1)]
    most = dict.fromkeys(evidence.limits, 0)
    for (life, function), changes in moments.items():
        together = max(accumulate(change for _, change in sorted(changes)))
        most[function] = max(most[function], together)
        if together > evidence.limits[function]:
            verdict.say(f"{together} of {function} ran at a time in {life}, where {evidence.limits[function]} may")
    verdict.figures["most at a time of what is limited"] = most


def check_accepted(evidence: Evidence, runs: Sequence[Run], verdict: Verdict) -> None:
    """What is in the store was computed under the last claim: no zombie's settlement was accepted."""
    claims: dict[str, dict[str, int]] = defaultdict(dict)
    ended: set[tuple[str, str]] = set()
    for one in runs:
        claims[one.promise][one.claim] = one.version
        if one.lines[-1].kind == "end":
            ended.add((one.promise, one.claim))
    checked = 0
    for record in evidence.snapshot.promises.values():
        if not record.function or record.timer or record.state is not State.RESOLVED or record.function == AGAIN:
            continue
        if record.function.startswith("dasync.") or record.id not in claims:
            continue
        out = codec.decode(record.value or b"", Out)
        assert isinstance(out, Out)
        checked += 1
        if (record.id, out.by) not in ended:
            verdict.say(f"{record.id} was settled by {out.by}, and no run of it there came to its end")
        if later := [claim for claim, version in claims[record.id].items() if version > int(out.by.rpartition("#")[2])]:
            verdict.say(f"{record.id} was settled by {out.by}, a zombie: {later} had begun")
    verdict.figures["settlements traced to their run"] = checked


def check_after_settlement(evidence: Evidence, runs: Sequence[Run], verdict: Verdict) -> None:
    """What is settled over the head of its code is not gone on with for long."""
    monotonic = evidence.clocks.monotonic
    longest = 0.0
    blocked = [(fault.at, fault.until) for fault in evidence.faults if fault.in_transaction]
    for one in runs:
        record = evidence.snapshot.promises.get(one.promise)
        if record is None or record.settled_at is None or one.lines[-1].kind not in ("after", "end"):
            continue
        settled = monotonic(record.settled_at)
        out = [(f.at, f.until) for f in evidence.faults if f.kind == "stop" and f.life == one.life.name]
        out += one.life.stalls
        went_on = one.lines[-1].now - settled - covered([*blocked, *out], settled, one.lines[-1].now)
        longest = max(longest, went_on)
        if went_on > evidence.lease + evidence.poll + evidence.slack:
            verdict.say(f"{one.promise} went on for {went_on:.1f} s in {one.claim} after it was settled")
    verdict.figures["longest run after its settlement (s)"] = round(longest, 3)


# -- whether it went on in time


class Excused:
    """The times at which nothing could go on: one process was stopped inside its transaction, which stops everybody,
    as it may have been by the machine; or there was nobody to work or nobody to ask."""

    def __init__(self, evidence: Evidence) -> None:
        self._evidence = evidence
        self._spans = [(fault.at, fault.until) for fault in evidence.faults if fault.in_transaction]
        for life in evidence.lives:
            self._spans += stalls(life, evidence.faults)
        for role in ("worker", "caller"):
            self._spans += absences(evidence, [life for life in evidence.lives if life.role == role])

    def standstill(self, begin: float, end: float, caller: str = "") -> float:
        """The longest part of that time without such a moment; with a caller, without any at which it was not there."""
        spans = list(self._spans)
        if caller:
            mine = [life for life in self._evidence.lives if life.name.startswith(f"{caller}-")]
            spans += absences(self._evidence, mine)
        longest, at = 0.0, begin
        for start, stop in sorted(spans):
            if start < end and stop > begin:
                longest, at = max(longest, start - at), max(at, stop)
        return max(longest, end - at)


def absences(evidence: Evidence, lives: Sequence[Life]) -> list[tuple[float, float]]:
    """When none of those processes was up and running."""
    stops: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for fault in evidence.faults:
        if fault.kind == "stop":
            stops[fault.life].append((fault.at, fault.until))
    present: list[tuple[float, float]] = []
    for life in lives:
        at = life.up_at
        for begin, end in sorted(stops[life.name]):
            present.append((at, begin))
            at = end
        present.append((at, life.serves_until))
    absent, at = [], 0.0
    for begin, end in sorted(present):
        if begin > at:
            absent.append((at, begin))
        at = max(at, end)
    return [*absent, (at, float("inf"))]


def stalls(life: Life, faults: Iterable[Fault]) -> list[tuple[float, float]]:
    """When the machine did not let a process run, and nobody had stopped it; or not at once when that was over."""
    found = []
    for begin, end in life.stalls:
        stops = [f for f in faults if f.kind == "stop" and f.life == life.name and f.at < end and f.until > begin]
        since = max([begin, *(fault.until for fault in stops)])
        if end - since > STALL_S:
            found.append((since, end))
    return found


def covered(spans: Iterable[tuple[float, float]], begin: float, end: float) -> float:
    """How much of the time from `begin` to `end` the spans cover together."""
    total, at = 0.0, begin
    for start, stop in sorted(spans):
        start, stop = max(start, at), min(stop, end)
        if stop > start:
            total, at = total + stop - start, stop
    return total


def check_gaps(evidence: Evidence, runs: Sequence[Run], verdict: Verdict) -> None:
    """Nothing stands still for longer than its own waits, a lease, a poll and the slack: no wake-up was lost."""
    monotonic = evidence.clocks.monotonic
    excused = Excused(evidence)
    moments: dict[str, list[float]] = defaultdict(list)
    for one in runs:
        moments[ids.root_of(one.promise)] += [line.now for line in one.lines]
    for record in evidence.snapshot.promises.values():
        root = ids.root_of(record.id)
        moments[root].append(monotonic(record.created_at))
        if record.settled_at is not None:
            moments[root].append(monotonic(record.settled_at))
    heard = {str(entry["what"]): float(entry["at"]) for entry in evidence.heard}
    longest, whose = 0.0, ""
    for one in evidence.planned:
        mine = sorted(moments[one.id])
        record = evidence.snapshot.promises.get(one.id)
        if record is None or record.settled_at is None:
            continue
        settled = monotonic(record.settled_at)
        spans = [(before, after, "") for before, after in pairwise(at for at in mine if at <= settled)]
        if one.id in heard:
            spans.append((settled, heard[one.id], f"caller-{one.caller}"))
        for before, after, caller in spans:
            gap = after - before
            if gap > evidence.lease:
                gap = excused.standstill(before, after, caller)
            if gap > longest:
                longest, whose = gap, one.id
            if gap > one.case.longest_s + evidence.lease + evidence.poll + evidence.slack:
                verdict.say(f"{one.id} stood still for {gap:.1f} s, from {before:.3f} to {after:.3f}")
    verdict.figures |= {"longest standstill of an execution (s)": round(longest, 3), "of": whose}


def check_take_overs(evidence: Evidence, runs: Sequence[Run], verdict: Verdict) -> None:
    """What a process was at when it was hit goes on elsewhere, or there, in time."""
    monotonic = evidence.clocks.monotonic
    excused = Excused(evidence)
    by_task: dict[str, list[float]] = defaultdict(list)
    for one in runs:
        by_task[one.task] += [line.now for line in one.lines if line.kind != "cut"]
    for task in evidence.snapshot.tasks:
        record = evidence.snapshot.promises[task]
        if record.settled_at is not None:
            by_task[task].append(monotonic(record.settled_at))
    for times in by_task.values():
        times.sort()
    settled = sorted(
        monotonic(one.settled_at)
        for one in evidence.snapshot.promises.values() if one.settled_at is not None
    )  # fmt: skip
    hit: dict[str, list[Run]] = defaultdict(list)
    for one in runs:
        hit[one.life.name].append(one)
    progress, take_over, whose = Counter[str](), Counter[str](), {}
    for fault in evidence.faults:
        index = bisect_left(settled, fault.at)
        if index < len(settled) and not fault.in_transaction:
            progress[fault.kind] = max(progress[fault.kind], settled[index] - fault.at)  # type: ignore[assignment]
        if fault.kind not in ("kill", "stop"):
            continue
        for one in hit[fault.life]:
            last = one.lines[-1]
            if fault.at < one.begin or (last.kind in OVER and last.now <= fault.at):
                continue
            task = evidence.snapshot.promises.get(one.task)  # gone, where what has made it has started over
            if task is None or (task.settled_at is not None and monotonic(task.settled_at) <= fault.at):
                continue  # settled over the head of its code
            after = [at for at in by_task[one.task] if at > fault.at]
            waited = (after[0] if after else float("inf")) - fault.at
            if after and waited > evidence.poll:
                waited = excused.standstill(fault.at, fault.at + waited)
            if waited > take_over[fault.kind]:
                take_over[fault.kind] = waited  # type: ignore[assignment]
                whose[fault.kind] = f"{one.promise}, hit at {fault.at:.3f}"
            allowed = evidence.poll + evidence.slack + (evidence.lease if fault.kind == "stop" else 0)
            if waited > allowed:
                verdict.say(f"{one.task} stood still for {waited:.1f} s after {fault} had hit {one.promise}")
    verdict.figures["longest from a fault to the next settlement (s)"] = {k: round(v, 3) for k, v in progress.items()}
    verdict.figures["longest until what was hit went on (s)"] = {k: round(v, 3) for k, v in take_over.items()}
    verdict.figures["of what"] = whose
