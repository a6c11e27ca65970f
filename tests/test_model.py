"""The workers' protocol as a model for SPIN (`tests/model/worker.pml`), searched in full and held against the law.

SPIN says that the model is right: no order of its steps breaks what it promises. That the model is of this code is
said here: `machine.py` takes the same steps, one by one, and answers and rows must be the same. A planted bug is found
by SPIN, and on the way to its harm the law must part from the model at the very step that does it. Nothing here runs
`dasync/worker.py`: what the model's workers do was read from there, and is compared with nothing.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import pytest
from worlds import World, claim, join

from dasync.core import protocol as p
from dasync.core.model import State, TaskState

pytestmark = pytest.mark.system  # needs spin and a C compiler; .ci/run installs them

MODEL = Path(__file__).parent / "model" / "worker.pml"
SAFETY = ("-DSAFETY", "-DNOREDUCE")
LIVENESS = ("-DNOREDUCE", "-DNFAIR=4")
SHORTEST = (*SAFETY, "-DBFS")
DEPTH = "-m10000"
WHOLE = {  # the budgets of a search and how many states it has at least; all of them are gone through
    "one fault": (("-DFAULTS=1", "-DCOPIES=1", "-DRETURNS=1"), 1_800_000),
    "two faults": (("-DFAULTS=2", "-DCOPIES=1", "-DRETURNS=0"), 4_800_000),
    "settled, after a fault": (("-DLIVENESS", "-DFAULTS=1", "-DCOPIES=0", "-DRETURNS=0"), 200_000),
    "settled, on a bad network": (("-DLIVENESS", "-DFAULTS=0", "-DCOPIES=1", "-DRETURNS=0"), 100_000),
}

# -- SPIN --------------------------------------------------------------------------------------------------


class Search(NamedTuple):
    """What became of one search."""

    report: str
    errors: int
    states: int
    steps: list[str]
    """The way to the first error, if there is one, as the model prints it."""


def run(folder: Path, *command: str) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, f"{command}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
    return done.stdout


def search(folder: Path, defines: Iterable[str], build: Iterable[str], *how: str) -> Search:
    """Search the model with these `-D`s of its own, and of SPIN's verifier."""
    model = folder / MODEL.name
    model.write_bytes(MODEL.read_bytes())
    run(folder, "spin", *defines, "-a", model.name)
    run(folder, "gcc", "-O2", "-w", *build, "-DMEMLIM=6000", "-o", "pan", "pan.c")
    report = run(folder, "./pan", *how)
    errors, states = (re.search(pattern, report) for pattern in (r"errors: (\d+)", r"(\d+) states, stored"))
    assert errors is not None, report
    assert states is not None, report
    found = run(folder, "spin", "-T", "-t", *defines, model.name) if int(errors[1]) else ""
    return Search(report, int(errors[1]), int(states[1]), found.splitlines())


@pytest.mark.parametrize("name", WHOLE)
def test_no_order_of_steps_breaks_a_promise(name: str, tmp_path: Path) -> None:
    """Every state is looked at, and there is no error in any of them."""
    defines, at_least = WHOLE[name]
    lively = "-DLIVENESS" in defines
    found = search(tmp_path, defines, LIVENESS if lively else SAFETY, DEPTH, *(("-a", "-f") if lively else ()))
    print(found.report)
    assert found.errors == 0, found.report
    for incomplete in ("Search not completed", "too small", "out of memory", "hash table is full", "bit state"):
        assert incomplete not in found.report, found.report
    assert found.states >= at_least, "the search has shrunk"
    assert lively is ("acceptance   cycles \t+ (fairness enabled)" in found.report)
    if name == "one fault":  # which has a budget for everything: no step of the model is dead
        assert set(re.findall(r"state \d+, (.*)", found.report.partition("unreached in")[2])) == {'"-end-"'}


def test_it_takes_fairness_to_settle_everything(tmp_path: Path) -> None:
    """Where one worker may beat for ever while all others stand still, nothing is promised: the claim is not empty."""
    found = search(tmp_path, ("-DLIVENESS", "-DFAULTS=0", "-DCOPIES=0"), LIVENESS, DEPTH, "-a")
    assert "acceptance cycle" in found.report


# -- the model's steps, taken by the law ---------------------------------------------------------------------

NAMES = ("a", "b")
PROMISE = (None, State.PENDING, State.RESOLVED, State.REJECTED)
TASK = (None, TaskState.PENDING, TaskState.ACQUIRED, TaskState.SUSPENDED, TaskState.FULFILLED)
CONFLICT, EXISTS, OK = 409, 410, 200


class Parted(NamedTuple):
    """Where model and law went different ways."""

    step: str
    at: int
    """How many steps came before."""
    answer: int
    """The law's."""
    rows: str
    """The law's."""


class Law:
    """`machine.py`, told what the model's processes do."""

    def __init__(self) -> None:
        self.world = World()
        self._seen: dict[int, int] = {}  # when each process had renewed its lease, as it was looked at

    def take(self, kind: str, words: dict[str, int]) -> int:
        """One step of the model; the answer to it, as the model has it."""
        self.world.now += 1
        if kind == "crash":
            return OK
        process = f"p{words.get('p', 0)}"
        if kind == "look":
            self._seen[words["p"]] = self._renewed_at(process)
            return OK
        reply = self.world.do(self._command(kind, words, process))
        if kind == "acquire" and reply.status == OK:
            assert [one.task.id for one in reply.acquired] == [NAMES[words["t"]]]
        return EXISTS if reply.status == CONFLICT and reply.promise is not None else int(reply.status)

    def _command(self, kind: str, words: dict[str, int], process: str) -> p.Command:
        id = NAMES[words.get("t", 0)]
        held = claim(id, words.get("v", 0), process)
        match kind:
            case "join":
                return join(process)
            case "heartbeat":
                return p.ProcessHeartbeat(process)
            case "leave":
                return p.ProcessLeave(process, self._seen[words["p"]] if words["silent"] else None)
            case "create":
                return p.PromiseCreate(id, id, target="g")
            case "acquire":
                return p.TaskAcquire(process, ("g",), ((id, 1),), 1)
            case "create_b":
                waiter = {"awaiter": "a"} if words["waiter"] else {"listener": process}
                return p.TaskFence(held, p.PromiseCreate("b", "b", target="g", **waiter))
            case "listen":
                return p.RegisterListener("b", process)
            case "call_back":
                return p.RegisterCallback("b", "a")
            case "receive":
                return p.Receive(process, ("b",))
            case "suspend":
                return p.TaskSuspend(held, ("b",))
            case "release":
                return p.TaskRelease(held)
            case "fulfil":
                return p.TaskFulfill(held, PROMISE[words["state"]] or State.PENDING, b"v")
            case "settle_b":
                return p.PromiseSettle("b", PROMISE[words["state"]] or State.PENDING, b"v")
        raise AssertionError(f"the model has a step that is not known here: {kind}")

    def _renewed_at(self, process: str) -> int:
        record = self.world.rows.process(process)
        assert record is not None
        return record.renewed_at

    def rows(self) -> str:
        """As the model prints them."""
        rows = self.world.rows
        shown = []
        for id in NAMES:
            promise, task = rows.promise(id), rows.task(id)
            states = PROMISE.index(promise and promise.state), TASK.index(task and task.state)
            version, process, resumed = (task.version, task.process, task.resumed) if task else (0, None, False)
            row = *states, version, int((process or "p0")[1:]), int(resumed)
            shown.append(f"{id}={','.join(map(str, row))}")
        up = [rows.process(f"p{n}") is not None for n in range(1, 5)]
        fired = {listener.process: 1 + listener.fired for listener in rows.listeners("b")}
        shown += [f"callback={len(rows.callbacks('b'))}", f"up={','.join(str(int(one)) for one in up)}"]
        return " ".join((*shown, f"listens={','.join(str(fired.get(f'p{n}', 0)) for n in range(1, 5))}"))


def replay(lines: Iterable[str], law: Law, taken: set[tuple[str, int]] | None = None) -> Parted | None:
    """Let the law take the steps; where its answer, its rows or its messages are first other than the model's."""
    step, at, answer = "", -1, OK
    for line in lines:
        if line.startswith("STEP "):
            at, step = at + 1, line
            _, kind, *rest = line.partition(" -> ")[0].split()
            answer = law.take(kind, {name: int(value) for name, _, value in (word.partition("=") for word in rest)})
            said = int(line.partition(" -> ")[2] or OK)
            if answer != said:
                return Parted(step, at, answer, law.rows())
            if taken is not None:
                taken.add((kind, answer))
        elif line.startswith("ROWS ") and step:
            rows, _, message = line.removeprefix("ROWS ").partition(" message=")
            somebody = "1" in rows.partition("up=")[2].partition(" ")[0]
            if rows != law.rows() or (somebody and bool(law.world.rung) is not (message == "1")):
                return Parted(step, at, answer, law.rows())
    assert step, "the model has printed no step"
    return None


def steps(lines: Iterable[str]) -> list[str]:
    return [line for line in lines if line.startswith("STEP ")]


ANSWERS = {  # what runs of the model come upon, all together: a comparison that meets no refusal compares little
    *(("create", OK), ("create", 201), ("create_b", 201), ("create_b", EXISTS), ("create_b", CONFLICT)),
    *(("acquire", OK), ("listen", OK), ("call_back", OK), ("call_back", 201), ("receive", OK), ("settle_b", OK)),
    *(("fulfil", OK), ("fulfil", CONFLICT), ("suspend", OK), ("suspend", 300), ("suspend", CONFLICT)),
    *(("release", OK), ("release", CONFLICT), ("heartbeat", OK), ("heartbeat", CONFLICT), ("join", 201)),
    *(("leave", OK), ("look", OK), ("crash", OK)),
}


def test_the_law_takes_every_step_of_random_runs_as_the_model_does(tmp_path: Path) -> None:
    """300 runs by seed: the same answer to each step, and the same rows and messages after it."""
    taken = set[tuple[str, int]]()
    count = 0
    (tmp_path / MODEL.name).write_bytes(MODEL.read_bytes())
    for seed in range(300):
        budgets = (f"-DFAULTS={seed % 3}", f"-DCOPIES={seed // 3 % 4}", f"-DRETURNS={seed // 12 % 3}")
        lines = run(tmp_path, "spin", "-T", f"-n{seed}", "-u4000", *budgets, MODEL.name).splitlines()
        assert replay(lines, Law(), taken) is None, f"spin -T -n{seed} -u4000 {' '.join(budgets)} {MODEL}"
        count += len(steps(lines))
    print(f"{count} steps")
    assert ANSWERS - taken == set()


# -- planted bugs ------------------------------------------------------------------------------------------


class Harm(NamedTuple):
    """What a planted bug comes to."""

    broken: str
    """The assertion that SPIN finds violated."""
    step: str
    """The step that does it."""
    answer: int
    """What the law says to that step."""
    kept: str
    """What stands in the law's rows after it."""


HARMS = {
    # whose lease was given away settles a promise all the same
    "NO_FENCE": Harm("!(stale_claim_settled)", "fulfil", CONFLICT, "b=1,1,1,0,0"),
    # a command that was given up comes late, once its sender holds the task anew
    "NO_VERSION_CHECK": Harm("!(stale_claim_settled)", "fulfil", CONFLICT, "b=1,2,2,"),
    # who has renewed his lease meanwhile is gone for others
    "NO_RENEWAL_CHECK": Harm("!(renewed_lease_was_lost)", "leave", OK, "up=1,1,0,0"),
    # suspended on what is settled already: nobody will resume it
    "BLIND_SUSPEND": Harm("(callback)||(promise[1]==1))", "suspend", 300, "a=1,2,1,"),
    # who is awake is resumed, so that two run the same
    "DOUBLE_RESUME": Harm("!(claim_was_taken)", "settle_b", OK, "a=1,2,1,"),
    # a callback is consumed, and its awaiter stays asleep
    "LOST_RESUME": Harm("((task[0]!=3)||callback)", "settle_b", OK, "a=1,1,1,0,0"),
    # a promise that was resolved is rejected
    "SETTLE_AGAIN": Harm("!(settled_twice)", "settle_b", OK, "b=2,4,"),
    # create with a callback, on a promise that exists and is settled: the callback stays for ever
    "CREATE_STORES_WAITER": Harm("(callback)||(promise[1]==1))", "create_b", EXISTS, "callback=0"),
}


@pytest.mark.parametrize("bug", HARMS)
def test_a_planted_bug_is_found_and_the_law_does_not_have_it(bug: str, tmp_path: Path) -> None:
    """On the shortest way to the harm, the law goes along until the last step, which it refuses or takes otherwise."""
    harm = HARMS[bug]
    found = search(tmp_path, (f"-D{bug}", "-DSHORTEST", "-DFAULTS=1"), SHORTEST)
    assert re.search(rf"assertion violated .*{re.escape(harm.broken)} \(at", found.report), found.report
    print(*found.steps, sep="\n")
    parted = replay(found.steps, Law())
    assert parted is not None, "the law does as the bug does"
    assert parted.at == len(steps(found.steps)) - 1, parted
    assert parted.step.split()[1] == harm.step
    assert (parted.answer, harm.kept in parted.rows) == (harm.answer, True), parted


UNSETTLED = {
    "NO_POLL": "-DFAULTS=0",  # a doorbell gets lost, and nobody looks
    "NO_BURIAL": "-DFAULTS=1",  # nobody says that a process is dead
    "NO_RECONCILE": "-DFAULTS=0",  # the answer to an acquire gets lost, and nobody gives the task back
}


@pytest.mark.parametrize("bug", UNSETTLED)
def test_what_a_worker_leaves_undone_is_found_and_could_be_done(bug: str, tmp_path: Path) -> None:
    """A promise stays pending for ever. The law goes along, and takes the step that the worker does not take."""
    found = search(tmp_path, (f"-D{bug}", "-DLIVENESS", UNSETTLED[bug], "-DRETURNS=0"), LIVENESS, DEPTH, "-a", "-f")
    assert "acceptance cycle" in found.report
    print(*steps(found.steps), sep="\n")
    law = Law()
    assert replay(found.steps, law) is None
    world = law.world
    alive = [process.id for process in world.snapshot().processes.values()]
    if bug == "NO_POLL":
        told = [world.do(p.Receive(process)).settled for process in alive]
        free = world.do(p.TaskAcquire(alive[0], ("g",), (("a", 1), ("b", 1)), 2)).acquired
        assert any(told) or free
    elif bug == "NO_BURIAL":
        for process in alive:
            world.do(p.ProcessLeave(process))
        world.do(join("fresh"))
        assert world.do(p.TaskAcquire("fresh", ("g",), (("a", 1), ("b", 1)), 2)).acquired
    else:
        unknown = [world.do(p.ProcessHeartbeat(process, (0, 0))).held for process in alive]
        assert any(unknown)
