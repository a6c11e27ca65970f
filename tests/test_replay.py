"""Crash and resume: a program is killed in one process and goes on in another one, from the file alone."""

from __future__ import annotations

import asyncio
import itertools
import sqlite3
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from play import World, ask, rows, settle, until, until_rows
from zygote import Zygote, zygote_of

import dasync
from dasync.core import codec
from dasync.core.model import State, TaskState
from dasync.core.protocol import TaskContinue, TaskHalt

HERE = Path(__file__).parent
STEPS = ("a0", "a1", "b0", "b1")
WANTED = [["a0", "a1"], ["b0", "b1"]]
A_SLOW, B_SLOW = ["b0", "b1", "a0", "a1"], ["a0", "a1", "b0", "b1"]
ORDERS = [list(order) for order in sorted(set(itertools.permutations("aabb")))]
for order in ORDERS:
    order[:] = [name + str(order[:i].count(name)) for i, name in enumerate(order)]


@pytest.fixture(scope="module")
def zygote() -> Iterator[Zygote]:
    yield from zygote_of("programs", "uuid")


def stored(path: Path) -> dict[str, tuple[str, object]]:
    """The promises in the file: their states and values by id."""
    connection = sqlite3.connect(path)
    try:
        found = connection.execute("SELECT id, state, value FROM promises ORDER BY id").fetchall()
    finally:
        connection.close()
    return {id: (state, codec.decode(value) if state == "resolved" and value else None) for id, state, value in found}


def left(order: list[str], before: dict[str, tuple[str, object]]) -> list[str]:
    """The steps of `order` that are not recorded as settled."""
    return [step for step in order if ("resolved", step) not in before.values()]


def written(ledger: Path) -> list[str]:
    return ledger.read_text().splitlines() if ledger.exists() else []


# -- gather(seq("a"), seq("b")) ------------------------------------------------------------------------------

# Where the first run is killed: in the body of a step that is not recorded then, or once n steps have passed.
DEATHS = [*(f"in {step}" for step in STEPS), *(f"passed {n}" for n in (1, 2, 3))]
CASES = [
    (shape, first, death, second)
    for (shape, first, death), second in zip(
        itertools.product(("plain_gather", "durable_gather", "task_group", "nested"), ORDERS, DEATHS),
        itertools.cycle(ORDERS[::-1] + ORDERS[1:4]),
        strict=False,
    )
]  # 168 of them
FAVOURITE = [("plain_gather", A_SLOW, death, B_SLOW) for death in DEATHS for _ in range(5)]


def crash_and_resume(
    zygote: Zygote, folder: Path, where: str | None, cases: list[tuple[str, list[str], str, list[str]]]
) -> None:
    """Each case: run in one process until it is killed, resume in another, compare. Four at a time."""
    for start in range(0, len(cases), 4):
        numbered = [
            (folder / f"{number}.db", folder / f"{number}.txt", *case)
            for number, case in enumerate(cases[start : start + 4], start)
        ]
        first = [
            zygote.spawn("programs:two_sequences", str(path), str(ledger), shape, where, order, death)
            for path, ledger, shape, order, death, _ in numbered
        ]
        assert [child.wait() for child in first] == [-9] * len(first)
        between = [(stored(path), written(ledger)) for path, ledger, *_ in numbered]
        second = [
            zygote.spawn("programs:two_sequences", str(path), str(ledger), shape, where, left(order, before), "")
            for (path, ledger, shape, _, _, order), (before, _) in zip(numbered, between, strict=True)
        ]
        for child, (before, begun), (path, ledger, *_), case in zip(
            second, between, numbered, cases[start:], strict=False
        ):
            assert child.result() == WANTED, case
            after, runs = stored(path), Counter(written(ledger))
            settled = set(STEPS) - set(left(list(STEPS), before))
            assert all(runs[step] == begun.count(step) == 1 for step in settled), (case, runs)
            assert all(runs[step] == begun.count(step) + 1 for step in set(STEPS) - settled), (case, runs)
            assert before.items() <= {**after, **{id: was for id, was in before.items() if was[0] == "pending"}}.items()
            assert {state for state, _ in after.values()} == {"resolved"}, case
            assert sorted(str(value) for _, value in after.values() if isinstance(value, str)) == sorted(STEPS)


@pytest.mark.parametrize(("where", "half"), [(None, 0), ("default", 1)], ids=["local", "remote"])
def test_two_sequences_resume_right(zygote: Zygote, tmp_path: Path, where: str | None, half: int) -> None:
    """Killed with "a" slow, resumed from the file in a new process with "b" slow: right each time."""
    crash_and_resume(zygote, tmp_path, where, FAVOURITE[half::12] + CASES[half::12])


@pytest.mark.campaign
@pytest.mark.parametrize(("where", "half"), [(None, 0), ("default", 1)], ids=["local", "remote"])
def test_two_sequences_resume_right_in_every_case(zygote: Zygote, tmp_path: Path, where: str | None, half: int) -> None:
    """Every shape, order and place of death, in turn for local and for remote steps: right 203 times."""
    crash_and_resume(zygote, tmp_path, where, FAVOURITE[half::2] + CASES[half::2])


@pytest.mark.parametrize("death", [f"passed {n}" for n in (1, 2, 3)])
def test_remote_steps_survive_their_caller(zygote: Zygote, tmp_path: Path, death: str) -> None:
    """With the steps on another process's group, the caller is killed and comes back; no step runs twice."""
    path, served = tmp_path / "s.db", tmp_path / "served.txt"
    worker = zygote.spawn("programs:worker", str(path), str(served), "far")
    args = ("programs:two_sequences", str(path), "/dev/null", "plain_gather", "far")
    assert zygote.spawn(*args, A_SLOW, death).wait() == -9
    assert zygote.spawn(*args, B_SLOW, "").result() == WANTED
    assert Counter(written(served)[1:]) == Counter(STEPS)
    worker.kill()


def test_ids_follow_the_shape_and_not_the_order(zygote: Zygote, tmp_path: Path) -> None:
    """Whichever sequence is faster, the promises of each shape have the same ids, and the same values under them."""
    ids: dict[str, dict[str, object]] = {}
    for shape, order in itertools.product(("plain_gather", "task_group", "nested", "durable_gather"), (A_SLOW, B_SLOW)):
        path = tmp_path / f"{shape}-{order[0]}.db"
        child = zygote.spawn("programs:two_sequences", str(path), "/dev/null", shape, None, order, "")
        assert child.result() == WANTED
        found = {id: value for id, (_, value) in stored(path).items() if isinstance(value, str)}
        assert ids.setdefault(shape, found) == found
    by_place = {"~0.0": "a0", "~0.1": "a1", "~1.0": "b0", "~1.1": "b1"}
    assert ids["plain_gather"] == ids["task_group"] == {f"root:{place}": v for place, v in by_place.items()}
    assert ids["nested"] == {f"root:~{n}.~0.{i}": f"{name}{i}" for n, name in enumerate("ab") for i in range(2)}
    assert ids["durable_gather"] == {f"root:{n}.{i}": f"{name}{i}" for n, name in enumerate("ab") for i in range(2)}


def test_numbering_by_call_order_goes_wrong(zygote: Zygote, tmp_path: Path) -> None:
    """The ablation: with ids in the order of the calls, the same crash does not resume right."""

    def resumed(numbered: str) -> object:
        args = (str(tmp_path / f"{numbered}.db"), str(tmp_path / "ledger"), "raw_gather", None)
        assert zygote.spawn("programs:two_sequences", *args, A_SLOW, "passed 3", numbered).wait() == -9
        return zygote.spawn("programs:two_sequences", *args, B_SLOW, "", numbered).result()

    assert resumed("by place") == WANTED
    assert str(resumed("by call order")).startswith("NonDeterminismError: replay of 'root' diverged at 'root:")


# -- every write ---------------------------------------------------------------------------------------------

RESULT = ["X", [["A0", "A1"], ["B0", "B1"]], "FAR", "T"]
LEAVES = {f"leaf {name}" for name in ("x", "a0", "a1", "b0", "b1", "far", "t")}


@pytest.mark.parametrize("when", ["before", "after"])
def test_killed_at_every_transaction(zygote: Zygote, tmp_path: Path, when: str) -> None:
    """A process is killed at its 1st, 2nd, 3rd ... transaction until one lives: each resumes to the same result."""
    for die_at in itertools.count(1):
        path, ledger = tmp_path / f"{die_at}.db", tmp_path / f"{die_at}.txt"
        first = zygote.spawn("programs:mortal", str(path), str(ledger), die_at, when)
        if first.wait() == 0:
            assert first.result() == RESULT
            break
        assert first.wait() == -9
        before, begun = stored(path), Counter(written(ledger))
        assert zygote.spawn("programs:mortal", str(path), str(ledger), 0, when).result() == RESULT
        runs = Counter(written(ledger))
        settled = {f"leaf {str(value).lower()}" for state, value in before.values() if isinstance(value, str)}
        assert all(runs[leaf] == begun[leaf] == 1 for leaf in settled), die_at
        assert all(begun[leaf] <= runs[leaf] <= 2 for leaf in LEAVES - settled), die_at
        assert {state for state, _ in stored(path).values()} == {"resolved"}
    assert die_at > 8


# -- a crash is a crash --------------------------------------------------------------------------------------


def test_a_dying_process_cleans_nothing_up(zygote: Zygote, tmp_path: Path) -> None:
    """In a crash no `finally`, no exit and no GeneratorExit runs; in the run that lives each exit runs once."""
    path, ledger = tmp_path / "s.db", tmp_path / "ledger"
    crashed = zygote.spawn("programs:run_one", str(path), str(ledger), "cleans_up", "", 0, "gate")
    assert crashed.wait() == 77
    assert written(ledger) == ["body"]

    async def main(loop: dasync.EventLoop) -> None:
        await settle(loop, "gate", "came")

    World(str(path), None).play(main, functions=[])
    assert zygote.spawn("programs:run_one", str(path), str(ledger), "cleans_up").result() == "came"
    assert written(ledger) == ["body", "body", "exit", "finally"]


def test_decisions_are_made_once(zygote: Zygote, tmp_path: Path) -> None:
    """`now`, `random` and `uuid4` give in the replay what they gave in the run that was killed, in every branch."""
    path, ledger = tmp_path / "s.db", tmp_path / "ledger"
    assert zygote.spawn("programs:run_one", str(path), str(ledger), "decides", "decided").wait() == -9
    result: Any = zygote.spawn("programs:run_one", str(path), str(ledger), "decides", "", 3).result()
    decided = [line for line in written(ledger) if line.startswith("decided")]
    # The last `now` may have been lost with its process, as nothing followed from it; everything before it was not.
    assert len(decided) == 2
    lost, kept = [eval(line.removeprefix("decided ")) for line in decided]
    assert lost[:3] == kept[:3]
    assert lost[3][1:] == kept[3][1:]
    assert [one for some in kept for one in some] == result
    assert len(set(result)) == len({one for some in kept for one in some}) >= 9
    assert written(ledger).count("leaf between") == 1


def test_a_sleep_is_counted_once(zygote: Zygote, tmp_path: Path) -> None:
    """A week's sleep that was begun before the crash ends a week after its beginning, not after the restart."""
    path, ledger = tmp_path / "s.db", tmp_path / "ledger"
    args = ("programs:run_one", str(path), str(ledger), "sleeps", "")
    assert zygote.spawn(*args, 0, "root:1").wait() == 77
    assert zygote.spawn(*args, 6.9, "root:1").wait() == 77
    assert zygote.spawn(*args, 7.001).result() == "slept"
    assert written(ledger) == ["leaf before"]


# -- divergence ----------------------------------------------------------------------------------------------


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(str(tmp_path / "s.db"), None)


@dasync.function
async def charge(cents: int) -> str:
    return f"charged {cents}"


@dasync.function
async def refund(cents: int) -> str:
    return f"refunded {cents}"


async def code(first: Any) -> str:
    """The body that all of these have but for their first invocation."""
    try:
        result = await first()
    except Exception as error:
        return f"swallowed {type(error).__name__}"
    return f"{result}, then {await dasync.promise(str, id='gate')}"


@dasync.function(name="pay", version=1)
async def recorded() -> str:
    return await code(lambda: charge(100))


def deploy(first: Any) -> Any:
    """Other code under the same name, in the same place."""

    async def recorded() -> str:
        return await code(first)

    recorded.__qualname__ = "recorded"
    return dasync.function(name="pay", version=1)(recorded)


def first_half(world: World) -> None:
    async def main(loop: dasync.EventLoop) -> None:
        recorded.options(id="pay-1")()
        await until(lambda: "gate" in loop.awaiters)
        await loop.promises["gate"].created()

    world.play(main)


DIVERGENT: dict[str, tuple[Any, str, tuple[str, ...]]] = {
    "function": (
        lambda: refund(100), "recorded was 'charge' (version 1), now it is 'refund' (version 1)",
        ("function: 'charge' -> 'refund'",),
    ),
    "version": (lambda: charge.options(version=2)(100), "now it is 'charge' (version 2)", ("version: 1 -> 2",)),
    "arguments": (
        lambda: charge(101), "'charge' (version 1) is recorded with other arguments", ("args[0]: 100 -> 101",)
    ),
    "place": (
        lambda: charge.options(on="default")(100), "now it is 'charge' (version 1) on 'default'",
        ("target: None -> 'default'",),
    ),
    "kind": (
        lambda: dasync.sleep(1), "now it is 'dasync.sleep' (version 1)", ("function: 'charge' -> 'dasync.sleep'",)
    ),
    "outside": (
        lambda: dasync.promise(str), "now it is a promise that is settled outside", ("function: 'charge' -> ''",)
    ),
}  # fmt: skip


@pytest.mark.parametrize(("first", "told", "differences"), DIVERGENT.values(), ids=DIVERGENT)
def test_changed_code_settles_nothing_and_can_be_fixed(
    world: World, first: Any, told: str, differences: tuple[str, ...]
) -> None:
    """A replay that comes to another invocation than was recorded raises, settles nothing and halts its task; with the
    code put right, `task.continue` lets it finish, even where the body swallowed the error."""

    @dasync.function(name="charge", version=2)
    async def charge_2(cents: int) -> str:
        raise AssertionError("never run")

    first_half(world)
    before: list[Any] = []

    async def diverges(loop: dasync.EventLoop) -> None:
        await settle(loop, "gate", "came")
        with pytest.raises(dasync.NonDeterminismError) as caught:
            await recorded.options(id="pay-1")()
        error, report = caught.value, str(caught.value)
        assert report.partition("\n")[0].startswith("replay of 'pay-1' diverged at 'pay-1:0': ")
        assert report.partition("\n")[0].endswith(told)
        assert (error.execution, error.id, error.differences) == ("pay-1", "pay-1:0", differences)
        assert error.expected == "'charge' (version 1) with [100]"
        assert error.at.startswith("tests/test_replay.py:" if Path.cwd() == HERE.parent else str(HERE))
        assert "lambda: " in error.at
        found = await until_rows(loop, lambda found: found.tasks["pay-1"].state is TaskState.HALTED)
        assert found.promises["pay-1"].state is State.PENDING
        assert found.tasks["pay-1"].reason == report
        assert loop.snapshot().tasks == 0
        before.append(found.promises)

    deploy(first)
    world.play(diverges)

    async def stays_halted(loop: dasync.EventLoop) -> None:
        handle = loop.get("pay-1")
        await handle.created()
        assert (await rows(loop)).promises == before[0]
        assert (await rows(loop)).tasks["pay-1"].state is TaskState.HALTED
        assert not handle.done()
        with pytest.raises(dasync.NonDeterminismError, match=r"halted(.|\n)*diverged at 'pay-1:0'"):
            await recorded.options(id="pay-1")()  # invoked again, it tells what has happened
        assert (await ask(loop, TaskContinue("pay-1"))).status == 200
        assert await handle == "charged 100, then came"

    deploy(lambda: charge(100))
    world.play(stays_halted)


def test_a_diverged_child_of_another_task_leaves_its_parent_waiting(world: World) -> None:
    """When a dispatched child diverges, in the very process of its parent too, the parent waits: nothing is settled."""

    enough: list[bool] = []

    @dasync.function
    async def parent() -> str:
        return (await asyncio.gather(recorded.options(on="default")(), until(lambda: enough)))[0]

    async def first(loop: dasync.EventLoop) -> None:
        parent.options(id="p")()
        await until(lambda: "gate" in loop.awaiters)
        await loop.promises["gate"].created()

    async def second(loop: dasync.EventLoop) -> None:
        handle = loop.get("p")
        await until(lambda: "p:0" in loop.awaiters)
        await settle(loop, "gate", "came")
        found = await until_rows(loop, lambda found: found.tasks["p:0"].state is TaskState.HALTED)
        assert [found.promises[id].state for id in ("p", "p:0")] == [State.PENDING, State.PENDING]
        assert [found.tasks[id].state for id in ("p", "p:0")] == [TaskState.ACQUIRED, TaskState.HALTED]
        assert not handle.done()
        deploy(lambda: charge(100))
        enough.append(True)
        assert (await ask(loop, TaskContinue("p:0"))).status == 200
        assert await handle == "charged 100, then came"

    world.play(first)
    deploy(lambda: refund(100))
    world.play(second)


def test_a_function_that_is_gone_halts_nothing(world: World) -> None:
    """A task whose function is not registered stays pending for whoever has it."""
    first_half(world)

    async def main(loop: dasync.EventLoop) -> None:
        await settle(loop, "gate", "came")
        await loop.get("pay-1").created()
        assert (await rows(loop)).tasks["pay-1"].state is TaskState.PENDING

    world.play(main, functions=[charge])


def test_a_replay_that_does_not_come_to_what_is_recorded_diverges(world: World) -> None:
    """What it would give follows from something else than was done: nothing is settled."""

    async def finishes(loop: dasync.EventLoop) -> None:
        await settle(loop, "gate", "came")
        with pytest.raises(dasync.NonDeterminismError, match=r"did not come to 'pay-1:0', recorded as 'charge'"):
            await recorded.options(id="pay-1")()
        found = await until_rows(loop, lambda found: found.tasks["pay-1"].state is TaskState.HALTED)
        assert found.promises["pay-1"].state is State.PENDING
        assert found.promises["pay-1:0"].state is State.RESOLVED

    async def without() -> str:
        return "done without"

    first_half(world)
    without.__qualname__ = "recorded"
    dasync.function(name="pay", version=1)(without)
    world.play(finishes)


def test_a_halted_execution_says_so_when_it_is_invoked_again(tmp_path: Path) -> None:
    """It does not hang: whoever invokes it again under its id is told that it is halted, and how it goes on."""
    world = World(str(tmp_path / "s.db"), None)

    async def halt(loop: dasync.EventLoop) -> None:
        await charge.options(id="h", on="nobody")(1).created()
        await ask(loop, TaskHalt("h"))

    async def again(loop: dasync.EventLoop) -> None:
        with pytest.raises(dasync.NonDeterminismError, match=r"halted.*dasync resume h"):
            await charge.options(id="h")(1)

    world.play(halt)
    world.play(again)
