"""The killing field, played: briefly by default, for a minute as a campaign; and its judgment, which is not blind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from typing import Any

import field_machine
import field_model
import field_program
import killing_field
import pytest
from field_check import Evidence, Fault, Life, judge
from field_ledger import Line, Out
from field_machine import Clocks

from dasync.core import codec
from dasync.core.invariants import Snapshot
from dasync.core.model import PromiseRecord, State, TaskRecord, TaskState

FIELD = killing_field.__file__


def played(*options: object) -> Any:
    """What a run has come to; nothing is wrong."""
    command = [sys.executable, FIELD, "--json", *map(str, options)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    verdict = json.loads(done.stdout or "{}")
    # The verdict stands last: who shows only the end of a long output shows it.
    assert verdict.get("violations") == [], f"{done.stderr[-2000:]}\n{json.dumps(verdict, indent=1)}"
    assert done.returncode == 0
    return verdict["figures"]


def test_a_few_faults_in_a_few_seconds() -> None:
    """Six processes and a fault of each kind: everything comes to what the model says."""
    figures = played("--seconds", 3, "--executions", 40, "--faults", 4, "--seed", 1)
    assert figures["executions"] == 40
    assert figures["faults"] == 4


@pytest.mark.campaign
def test_a_minute_of_faults() -> None:
    """75 faults, 2,000 executions."""
    figures = played("--seconds", 60, "--executions", 2000, "--seed", 1)
    assert figures["executions"] == 2000
    assert figures["faults"] >= 60
    assert figures["most at a time of what is limited"] == field_program.LIMITS
    assert figures["killed with processes of their pool"] > 0


# -- the judgment ----------------------------------------------------------------------------------------------


PLANNED = [field_model.Planned(0, "x", "leaf", 0.0, 0, 0, False, field_model.Case((1, 0.0), field_model.value(1)))]
HEARD = [{"what": "x", "at": 1.1, "state": "value", "value": 1}]


def line(kind: str, now: float, process: str, *, step_at: float | None = None, ends: float = 2.0) -> Line:
    """A line about the leaf `x`, or about the process itself."""
    own = kind in ("up", "lease", "stall")
    version = 0 if own else int(process[1:])
    note = "-:-:1" if own else f"leaf:{process}:1"
    what = "-" if own else "x"
    return Line(kind, what, what, version, process, now, now if step_at is None else step_at, ends, note)


def stall(begin: float, end: float, process: str) -> Line:
    """That process did not run for so long."""
    return line("stall", end, process, ends=begin)


def settled(by: str = "p1#1", at: float = 1.0, id: str = "x") -> Snapshot:
    """A store in which the leaf `x` was settled by that run."""
    value = codec.encode(Out(1, by), Out)
    record = PromiseRecord(
        id, "leaf", 1, b"", "field", None, False, None, "", 0, 0, State.RESOLVED, round(at * 1000), value, 1
    )
    task = TaskRecord(id, "field", "leaf", 1, b"", 0, TaskState.FULFILLED, 1, None, "3.11", False, "", 0, 0)
    return Snapshot({id: record}, {id: task}, frozenset(), frozenset(), {})


def judged(lives: list[Life], snapshot: Snapshot | None = None, **more: Any) -> list[str]:
    """What is wrong; a caller is there all the time."""
    there = Life("caller-0-0", "caller", [line("up", 0, "c1")])
    given: dict[str, Any] = {
        "planned": [], "faults": [], "heard": [], "slack": 1.0, "limits": {}, "clocks": Clocks([(0.0, 0.0)]), **more
    }  # fmt: skip
    evidence = Evidence(lives=[*lives, there], snapshot=snapshot or settled(), lease=1.0, poll=0.25, **given)
    return judge(evidence).violations


def first(*lines: Line, **more: Any) -> Life:
    """The process that has begun `x` at 0.1, with a lease until 2."""
    return Life(
        "worker-0-0", lines=[line("up", 0, "p1"), line("lease", 0, "p1"), line("begin", 0.1, "p1"), *lines], **more
    )


def second(at: float, end: float) -> Life:
    """The process that begins `x` at some time as well."""
    return Life(
        "worker-1-0", lines=[line("up", 0, "p2"), line("begin", at, "p2", ends=9.0), line("end", end, "p2", ends=9.0)]
    )


def test_what_is_right_is_right() -> None:
    """One run; one that was killed and its successor; one that was stopped, and overtaken after its lease."""
    assert judged([first(line("end", 0.9, "p1"))]) == []
    killed = first(killed_at=0.5)
    assert judged([killed, second(0.6, 0.9)], settled("p2#2")) == []
    overtaken = first(line("did", 3.2, "p1", step_at=1.9), line("cut", 3.3, "p1", step_at=3.3, ends=9.0))
    assert judged([overtaken, second(2.5, 2.9)], settled("p2#2", 3.0)) == []
    ahead = second(2.5, 3.4)
    ahead.lines.insert(1, line("lease", 2.4, "p2", ends=9.0))
    stopped_as_it_began = [line("up", 0, "p1"), line("lease", 0, "p1"), line("begin", 3.2, "p1", step_at=1.9)]
    cut = line("cut", 3.3, "p1", step_at=3.3, ends=9.0)
    assert judged([Life("worker-0-0", lines=[*stopped_as_it_began, cut]), ahead], settled("p2#2", 3.4)) == []


def several(*begins: float) -> Life:
    """One process that begins `x`, then `y`, for 0.5 seconds each."""
    lines = [line("up", 0, "p1"), line("lease", 0, "p1")]
    for what, at in zip("xy", begins, strict=True):
        lines += [about(what, line("begin", at, "p1")), about(what, line("end", at + 0.5, "p1"))]
    return Life("worker-0-0", lines=sorted(lines, key=lambda line: line.now))


def about(what: str, line: Line) -> Line:
    return line._replace(promise=what, task=what)


def both() -> Snapshot:
    """A store in which `x` and `y` were settled."""
    one, other = settled(), settled(id="y")
    return one._replace(promises=one.promises | other.promises, tasks=one.tasks | other.tasks)


def third(at: float, end: float) -> Life:
    """The process that has a lease until 2 as well, and begins `x` under a claim that was there before."""
    lines = [line("up", 0, "p1"), line("lease", 0, "p1"), line("begin", at, "p1"), line("end", end, "p1")]
    return Life("worker-0-0", lines=lines)


WRONG = {
    "ran twice": ([first(line("end", 0.9, "p1")), second(0.6, 0.95)], {"snapshot": settled("p2#2")}),
    "x ran twice: p2#2": ([third(0.7, 0.9), second(0.6, 0.95)], {"snapshot": settled("p2#2")}),
    "2 of leaf ran at a time in worker-0-0": ([several(0.1, 0.3)], {"snapshot": both(), "limits": {"leaf": 1}}),
    "began twice": ([first(line("begin", 0.2, "p1"), line("end", 0.9, "p1"))], {}),
    "went on 0.500 s after the lease": ([first(line("late", 2.5, "p1"), line("end", 2.5, "p1"))], {}),
    "where nobody looks at the lease": ([first(line("end", 0.9, "p1", step_at=0.0))], {}),
    "a zombie": (
        [first(line("end", 3.5, "p1", step_at=1.9)), second(2.5, 3.4)], {"snapshot": settled("p1#1", 3.6)},
    ),
    "no run of it there came to its end": ([first(killed_at=0.9)], {}),
    "after it was settled": ([first(line("end", 9.0, "p1", step_at=1.5))], {}),
    "stood still for 8.0 s after Fault": (
        [first(killed_at=0.5), second(8.5, 8.9)],
        {"snapshot": settled("p2#2", 9.0), "faults": [Fault("kill", "worker-0-0", 0.5, 0.5, False)]},
    ),
}  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_wrong_is_named(wrong: str) -> None:
    """Two runs of a live lease, a step after it, a zombie's word that counts, code that does not stop, a standstill."""
    lives, more = WRONG[wrong]
    violations = judged(lives, **more)
    assert len(violations) == 1, violations
    assert wrong in violations[0]


def test_as_many_at_a_time_as_may_are_right() -> None:
    """One after the other where one may run, two where two may."""
    assert judged([several(0.1, 0.6)], both(), limits={"leaf": 1}) == []
    assert judged([several(0.1, 0.3)], both(), limits={"leaf": 2}) == []


def test_a_standstill_while_nobody_could_go_on_is_none() -> None:
    """Who was to go on was not there, or somebody held the store."""
    kill = Fault("kill", "worker-0-0", 0.5, 0.5, False)
    late = second(8.5, 8.9)
    late.lines[0] = line("up", 8.0, "p2")
    assert judged([first(killed_at=0.5), late], settled("p2#2", 9.0), faults=[kill]) == []
    held = Fault("stop", "worker-2-0", 0.6, 8.0, True)
    assert judged([first(killed_at=0.5), second(8.5, 8.9)], settled("p2#2", 9.0), faults=[kill, held]) == []
    stalled = second(8.5, 8.9)
    stalled.lines[1:1] = [stall(0.6, 8.0, "p2")]
    assert judged([first(killed_at=0.5), stalled], settled("p2#2", 9.0), faults=[kill]) == []
    other = Life("worker-2-0", lines=[line("up", 0, "p3"), stall(0.6, 8.0, "p3")])
    assert judged([first(killed_at=0.5), second(8.5, 8.9), other], settled("p2#2", 9.0), faults=[kill]) == []
    stop = Fault("stop", "worker-2-0", 0.6, 8.0, False)  # that was not the machine, and it did not hold the store
    assert judged([first(killed_at=0.5), second(8.5, 8.9), other], settled("p2#2", 9.0), faults=[kill, stop]) != []
    stop = stop._replace(until=1.5)  # it could have gone on then
    assert judged([first(killed_at=0.5), second(8.5, 8.9), other], settled("p2#2", 9.0), faults=[kill, stop]) == []


def test_only_what_a_machine_explains_may_be_said() -> None:
    """A slow one that something has not answered, a kill what its pool has left; an outage is never to be said."""
    late = "dasync WARNING: field.db has not answered for 10 s: process 7 holds its write lock; `dasync doctor`"
    left = "UserWarning: resource_tracker: There appear to be 5 leaked semaphore objects to clean up at shutdown"
    lost = "dasync.worker WARNING: process worker-0@6c has lost its lease (it holds no lease): it drops 54 tasks"
    outage = "dasync WARNING: disk I/O error; 3 commands wait"
    said = "\n".join([late, left, lost, outage])
    assert killing_field.complaints(said, killed=False, slow=False) == [late, left, outage]
    assert killing_field.complaints(said, killed=True, slow=True) == [outage]
    unborn = 'Traceback (most recent call last):\n  File "spawn.py", line 122, in spawn_main\n    ^^^\nEOFError: none\n'
    broken = unborn.replace("EOFError", "ImportError")
    assert killing_field.complaints(unborn + said, killed=True, slow=True) == [outage]
    assert len(killing_field.complaints(unborn, killed=False, slow=True)) == 4
    assert len(killing_field.complaints(broken, killed=True, slow=True)) == 4


PULSE = """
import time, field_machine
field_machine.begin_pulse(lambda since: print(since, flush=True))
print("up", flush=True)
time.sleep(60)
"""


def test_a_pulse_tells_when_a_process_did_not_run() -> None:
    """And what a process has started is found by the mark that it was given."""
    env = {**os.environ, field_machine.MARK: "pulse", "PYTHONPATH": os.path.dirname(FIELD)}
    command = [sys.executable, "-c", PULSE]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=env) as child:
        try:
            assert child.stdout is not None
            while (said := child.stdout.readline()) != b"up\n":
                assert said  # a busy machine stalls it by itself
            child.send_signal(signal.SIGSTOP)
            stopped_at = time.monotonic()
            time.sleep(field_machine.STALL_S + 0.2)
            child.send_signal(signal.SIGCONT)
            assert float(child.stdout.readline()) <= stopped_at + field_machine.STALL_S
            assert child.pid in field_machine.children()["pulse"]
        finally:
            child.kill()
    assert "pulse" not in field_machine.children()


def test_a_wall_clock_that_is_set_makes_no_standstill() -> None:
    """Its times are told by readings from before and after; without them they are wrong by as much."""
    life = first(line("end", 0.9, "p1"))
    given: dict[str, Any] = {"planned": PLANNED, "heard": HEARD}
    assert "stood still for 100" in judged([life], settled(at=101.0), **given)[0]
    assert judged([life], settled(at=101.0), **given, clocks=Clocks([(0.2, 0.2), (100.9, 0.9)])) == []


def test_outcomes_are_compared_with_the_model_and_with_what_callers_heard() -> None:
    """Not settled, settled otherwise, heard otherwise: each is named."""
    planned, heard, [case] = PLANNED, HEARD, [one.case for one in PLANNED]
    lives = [first(line("end", 0.9, "p1"))]
    assert judged(lives, planned=planned, heard=heard) == []
    assert "its caller heard []" in judged(lives, planned=planned)[0]
    other = [planned[0]._replace(case=case._replace(allowed=field_model.value(2)))]
    assert "came to ('value', 1), not to (('value', 2),)" in judged(lives, planned=other, heard=heard)[0]
    missing = [planned[0]._replace(id="y")]
    assert "y is not settled" in judged(lives, planned=missing)[0]


def test_all_that_is_left_pending_is_named() -> None:
    """A promise, a task, a halted one."""
    snapshot = settled()
    record = snapshot.promises["x"]._replace(state=State.PENDING, settled_at=None, value=None, turn=None)
    task = snapshot.tasks["x"]
    for state, words in ((TaskState.PENDING, "left pending"), (TaskState.HALTED, "halted: x: why")):
        reason = "why" if state is TaskState.HALTED else ""
        left = snapshot._replace(promises={"x": record}, tasks={"x": task._replace(state=state, reason=reason)})
        violations = judged([first(killed_at=0.9)], left)
        assert len(violations) == 2
        assert words in violations[1]


def test_a_seed_stands_for_one_plan() -> None:
    """The same executions and faults for the same seed, others for another; every shape, and faults in their shares."""
    plans = [field_model.plan(seed, 500, 10, 2) for seed in (1, 1, 2)]
    assert plans[0] == plans[1] != plans[2]
    assert {one.shape for one in plans[0]} == set(field_model.SHAPES)
    faults = [killing_field.plan_faults(seed, 60, 80) for seed in (1, 1, 2)]
    assert faults[0] == faults[1] != faults[2]
    assert Counter(fault.kind for fault in faults[0]) == {"kill": 32, "stop": 24, "term": 16, "bell": 8}
