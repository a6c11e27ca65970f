"""Retries: policies, what is tried again and what is not, and that attempts and backoffs outlive a crash."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from clocks import FakeClock
from hypothesis import given
from hypothesis import strategies as st
from play import World, rows, until
from shell import dasync as command
from shell import dasync_json as command_json
from zygote import Zygote, zygote_of

import dasync
from dasync import Retry
from dasync.core.model import State
from dasync.errors import NonDeterminismError
from dasync.runtime.policy import MAX_DELAY_S

ATTEMPTS = 4  # as in stubborn.py
PATIENT = 86_400  # a lease in seconds, for clocks that jump


@pytest.fixture(scope="module")
def zygote() -> Iterator[Zygote]:
    yield from zygote_of("programs", "stubborn")


@dasync.function
async def nothing() -> None: ...


@dasync.function
async def boom() -> None:
    raise ValueError("boom")


async def turns() -> None:
    """Let the asyncio loop turn a few times: what is under way comes to where it waits for the clock."""
    for _ in range(50):
        await asyncio.sleep(0)


async def backs_off(loop: dasync.EventLoop, id: str) -> None:
    """Return once somebody waits for the attempt after the one that `id` keeps, and for its time."""
    await until(lambda: id in loop.awaiters)
    await turns()


# -- policies as data ------------------------------------------------------------------------------------------

delays = st.floats(0, MAX_DELAY_S) | st.integers(0, 10**6)
counts = st.none() | st.integers(1, 1_000_000)
policies = st.one_of(
    st.builds(Retry.exponential, delays, st.floats(1, 1000) | st.integers(1, 1000), delays, counts, st.floats(0, 1)),
    st.builds(Retry.linear, delays, delays, delays, counts),
    st.builds(Retry.constant, delays, counts),
    st.builds(Retry.never),
)


@given(policies)
def test_a_policy_is_read_back_as_it_was_written(policy: Retry) -> None:
    """`parse(text())` is the same policy, to the last digit."""
    assert Retry.parse(policy.text()) == policy


@given(policies, st.integers(1, 1_000_000), st.floats(0, 1))
def test_a_delay_is_within_its_bounds(policy: Retry, failures: int, draw: float) -> None:
    """After any number of failures: no delay when the attempts are used up, else one from 0 to the cap."""
    delay_s = policy.delay_s(failures, draw)
    assert (delay_s is None) == (policy.attempts is not None and failures >= policy.attempts)
    if delay_s is not None:
        assert 0 <= delay_s <= policy.cap
        middle = policy.delay_s(failures, 0.5)
        assert middle is not None
        assert delay_s >= middle * (1 - policy.jitter) * (1 - 1e-9)
        assert delay_s <= middle * (1 + policy.jitter) * (1 + 1e-9)
        if policy.initial == 0 == policy.step:
            assert delay_s == 0


@given(policies, st.integers(1, 100_000))
def test_a_delay_never_shrinks_but_by_jitter(policy: Retry, failures: int) -> None:
    """Without the jitter each delay is at least as long as the one before."""
    first, second = policy.delay_s(failures, 0.5), policy.delay_s(failures + 1, 0.5)
    assert second is None or (first is not None and first <= second)


@pytest.mark.parametrize(
    ("policy", "waits"),
    [
        (Retry.never(), []),
        (Retry.constant(2, attempts=1), []),
        (Retry.constant(2, attempts=4), [2, 2, 2]),
        (Retry.linear(1, 2, cap=6, attempts=6), [1, 3, 5, 6, 6]),
        (Retry.exponential(1, 2, cap=10, attempts=6, jitter=0), [1, 2, 4, 8, 10]),
        (Retry.exponential(3, attempts=3, jitter=0), [3, 6]),
    ],
)
def test_the_delays_of_a_policy(policy: Retry, waits: list[float]) -> None:
    """One delay fewer than attempts, as the policy's name says."""
    told = [policy.delay_s(failures, 0.9) for failures in range(1, len(waits) + 2)]
    assert told == [*waits, None]


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda: Retry.constant(-1), "initial"),
        (lambda: Retry.constant(math.nan), "initial"),
        (lambda: Retry.constant(math.inf), "initial"),
        (lambda: Retry.constant("1"), "initial"),  # type: ignore[arg-type]  # what is tested
        (lambda: Retry.constant(True), "initial"),
        (lambda: Retry.constant(1, attempts=0), "attempts"),
        (lambda: Retry.constant(1, attempts=2.0), "attempts"),  # type: ignore[arg-type]  # what is tested
        (lambda: Retry.linear(step=-1), "step"),
        (lambda: Retry.exponential(factor=0.5), "factor"),
        (lambda: Retry.exponential(jitter=1.1), "jitter"),
        (lambda: Retry.exponential(cap=10**10), "cap"),
        (lambda: Retry.parse(""), "one of never"),
        (lambda: Retry.parse("sometimes"), "sometimes"),
        (lambda: Retry.parse("constant initial=x"), "x"),
        (lambda: Retry.parse("constant factor=2.0"), "constant factor"),
    ],
)
def test_a_policy_that_makes_no_sense_is_refused(make: Any, what: str) -> None:
    """It raises ValueError when it is made, and names what is wrong."""
    with pytest.raises(ValueError, match=what):
        make()


def test_what_is_no_policy_is_refused(memory: World) -> None:
    """Wherever a policy is taken, anything else is a TypeError that shows one."""
    with pytest.raises(TypeError, match=r"Retry\.exponential"):
        dasync.EventLoop(retry=3)  # type: ignore[arg-type]  # what is tested
    with pytest.raises(TypeError, match=r"Retry\.exponential"):
        nothing.options(retry=3)  # type: ignore[arg-type]  # what is tested
    with pytest.raises(TypeError, match=r"Retry\.exponential"):

        @dasync.function(retry=3)  # type: ignore[call-overload]  # what is tested
        async def f() -> None: ...


# -- what is tried again -----------------------------------------------------------------------------------------


def test_a_function_runs_as_often_as_its_policy_says(world: World) -> None:
    """After each failure it waits as long as the policy says; the last error is the promise's."""
    clock, ran = FakeClock(), list[float]()

    @dasync.function(retry=Retry.linear(10, 5, attempts=4))
    async def fails() -> None:
        ran.append(clock.monotonic())
        raise OSError(f"failure {len(ran)}")

    async def main(loop: dasync.EventLoop) -> None:
        promise = fails.options(id="r")()
        for number, wait_s in enumerate((10, 15, 20), 1):
            await backs_off(loop, f"r:!{number}")
            clock.advance(wait_s - 0.5)
            await turns()
            assert len(ran) == number
            clock.advance(0.5)
        with pytest.raises(OSError, match="failure 4"):
            await promise
        assert ran == [0, 10, 25, 45]
        kept = [record for id, record in (await rows(loop)).promises.items() if id.startswith("r:!")]
        assert [(record.function, record.version, record.state) for record in sorted(kept)] == [
            ("dasync.retry", number, State.RESOLVED) for number in (1, 2, 3)
        ]

    world.play(main, clock=clock, lease=PATIENT)


@pytest.mark.parametrize("threaded", [False, True])
def test_a_function_that_succeeds_in_the_end_resolves(world: World, threaded: bool) -> None:
    """Each attempt, on the loop or in a thread, gets fresh arguments; the failures before leave no other trace."""
    ran: list[list[int]] = []

    def body(items: list[int]) -> list[int]:
        items.append(len(ran))
        ran.append(items)
        if len(ran) < 3:
            raise OSError("not yet")
        return items

    @dasync.function(name="on_the_loop", retry=Retry.constant(0))
    async def on_the_loop(items: list[int]) -> list[int]:
        return body(items)

    @dasync.function(name="in_a_thread", retry=Retry.constant(0))
    def in_a_thread(items: list[int]) -> list[int]:
        return body(items)

    @dasync.function
    async def parent() -> list[int]:
        return await (in_a_thread if threaded else on_the_loop)([7])

    async def main(loop: dasync.EventLoop) -> None:
        assert await parent.options(id="p")() == [7, 2]
        assert ran == [[7, 0], [7, 1], [7, 2]]
        found = (await rows(loop)).promises
        assert found.keys() == {"p", "p:0", "p:0.!1", "p:0.!2"}
        ran.clear()
        assert await (in_a_thread if threaded else on_the_loop)([7]) == [7, 2]

    world.play(main)


class Broken(dasync.Terminal):
    """A final error of somebody's own."""


@pytest.mark.parametrize(
    "error",
    [
        dasync.Terminal("for good"),
        Broken("for good"),
        dasync.UnserializableValue("for good"),
        dasync.PayloadTooLarge("for good"),
        NonDeterminismError("for good"),
        ExceptionGroup("some", [OSError("maybe"), ExceptionGroup("more", [Broken("for good")])]),
        BaseExceptionGroup("some", [KeyboardInterrupt()]),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_that_is_final_ends_the_attempts(memory: World, error: BaseException) -> None:
    """Another attempt would give the same: the policy is not asked."""
    ran: list[int] = []

    @dasync.function(retry=Retry.constant(0, attempts=5))
    async def fails() -> None:
        ran.append(1)
        raise error

    async def main(loop: dasync.EventLoop) -> None:
        promise = fails()
        with pytest.raises(BaseException, match=r"for good|some"):
            await promise
        assert len(ran) == 1

    memory.play(main)


def test_a_result_that_cannot_be_stored_is_not_tried_again(memory: World) -> None:
    """The function has succeeded; what it gave is the mistake."""
    ran: list[int] = []

    @dasync.function(retry=Retry.constant(0, attempts=5))
    async def gives() -> object:
        ran.append(1)
        return object()

    async def main(loop: dasync.EventLoop) -> None:
        with pytest.raises(dasync.UnserializableValue):
            await gives()
        assert len(ran) == 1

    memory.play(main)


@pytest.mark.parametrize(
    "invoke",
    [
        lambda: nothing(),
        lambda: dasync.sleep(0),
        lambda: dasync.promise(id="shared"),
        lambda: nothing.options(id="root")(),
        lambda: nothing.options(detached=True)(),
    ],
)
def test_a_function_that_invoked_is_not_run_again(
    memory: World, invoke: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """What it invoked has policies of its own: its own does not apply, and that is said once."""
    ran: list[int] = []

    @dasync.function(retry=Retry.constant(0, attempts=5))
    async def orchestrates() -> None:
        ran.append(1)
        invoke()
        raise ValueError("after")

    async def main(loop: dasync.EventLoop) -> None:
        for _ in range(3):
            with pytest.raises(ValueError, match="after"):
                await orchestrates()
        assert len(ran) == 3

    with caplog.at_level(logging.WARNING, "dasync"):
        memory.play(main)
    said = [record.message for record in caplog.records if "'orchestrates'" in record.message]
    assert len(said) == 1
    assert "retry policy does not apply" in said[0]


def test_the_loops_policy_is_for_those_without_one(memory: World, caplog: pytest.LogCaptureFixture) -> None:
    """`EventLoop(retry=)` holds for every function that says nothing; for one that invoked it is silently void."""
    ran: list[str] = []

    @dasync.function
    async def plain() -> None:
        ran.append("plain")
        raise OSError

    @dasync.function(retry=Retry.constant(0, attempts=3))
    async def own() -> None:
        ran.append("own")
        raise OSError

    @dasync.function
    async def parent() -> None:
        ran.append("parent")
        await plain()

    async def main(loop: dasync.EventLoop) -> None:
        for function in (plain, own, parent, plain.options(retry=Retry.never())):
            with pytest.raises(OSError):  # noqa: PT011  # it has no text
                await function()

    with caplog.at_level(logging.WARNING, "dasync"):
        memory.play(main, retry=Retry.constant(0, attempts=2))
    assert [ran.count(name) for name in ("plain", "own", "parent")] == [2 + 2 + 1, 3, 1]
    assert caplog.records == []


def test_options_override_what_the_function_declares(world: World) -> None:
    """A policy of an invocation is its own, of a child and of a root; it is kept as a tag where it differs."""
    ran: list[str] = []

    @dasync.function(retry=Retry.constant(0, attempts=2))
    async def fails(name: str) -> None:
        ran.append(name)
        raise OSError

    @dasync.function
    async def parent() -> None:
        for retry in (Retry.never(), Retry.constant(0, attempts=3)):
            with pytest.raises(OSError):  # noqa: PT011  # it has no text
                await fails.options(retry=retry)(f"child {retry.kind}")

    async def main(loop: dasync.EventLoop) -> None:
        for retry in (None, Retry.never(), Retry.constant(0, attempts=4), Retry.constant(0, attempts=2)):
            named = fails.options(id=f"r-{retry.attempts if retry else 0}", retry=retry)
            with pytest.raises(OSError):  # noqa: PT011  # it has no text
                await named("root")
        await parent()
        assert [ran.count(name) for name in ("root", "child never", "child constant")] == [2 + 1 + 4 + 2, 1, 3]
        found = (await rows(loop)).promises
        assert [found[f"r-{n}"].tags for n in (0, 1, 2)] == ["", '{"dasync.retry": "never attempts=1"}', ""]
        assert "constant initial=0" in found["r-4"].tags

    world.play(main)


def test_a_policy_travels_to_whoever_runs_it(host: Any, tmp_path: Path) -> None:
    """The caller's policy holds in another group, where the function declares none, and over one that it declares."""
    ran: list[str] = []
    path = str(tmp_path / "s.db")

    @dasync.function
    async def says_nothing() -> None:
        ran.append("nothing")
        raise OSError

    @dasync.function(retry=Retry.constant(0, attempts=5))
    async def says_five() -> None:
        ran.append("five")
        raise OSError

    async def whole() -> None:
        far = dasync.EventLoop(path, group="far", functions=[says_nothing, says_five], poll=0.02, durability="process")
        async with far, dasync.EventLoop(path, functions=[], poll=0.02, durability="process") as near:
            for name in ("says_nothing", "says_five"):
                declared = dasync.remote(name, on="far", retry=Retry.constant(0, attempts=3))
                with pytest.raises(OSError):  # noqa: PT011  # it has no text
                    await near.invoke(declared)
            with pytest.raises(OSError):  # noqa: PT011  # it has no text
                await near.invoke(dasync.remote("says_five", on="far"))

    World(path, host).run(whole())
    assert [ran.count(name) for name in ("nothing", "five")] == [3, 3 + 5]


def test_each_attempt_has_places_of_its_own(world: World) -> None:
    """What an attempt decides is its own, and a second attempt that invokes does so below the first failure."""
    seen: list[tuple[object, float]] = []

    @dasync.function(retry=Retry.constant(0.01, attempts=2))
    async def tries() -> None:
        seen.append((dasync.now(), dasync.random().random()))
        if len(seen) == 1:
            raise OSError("first")
        await nothing()

    async def main(loop: dasync.EventLoop) -> None:
        await tries.options(id="r")()
        assert seen[0][0] < seen[1][0]  # type: ignore[operator]  # both are datetimes
        assert seen[0][1] != seen[1][1]
        found = (await rows(loop)).promises
        assert found.keys() == {"r", "r:0", "r:!1", "r:!1.0", "r:!1.1"}
        assert (found["r:0"].function, found["r:!1.0"].function) == ("dasync.now", "dasync.now")
        assert found["r:!1.1"].function == "nothing"

    world.play(main)


def test_what_an_attempt_left_behind_ends_before_the_next(memory: World) -> None:
    """asyncio tasks of a failed attempt are canceled and have ended when the next one begins."""
    told: list[str] = []

    @dasync.function(retry=Retry.constant(0, attempts=2))
    async def leaves() -> None:
        async def lingers() -> None:
            try:
                await asyncio.sleep(60)
            finally:
                told.append("ended")

        told.append("begun")
        task = asyncio.create_task(lingers())
        await asyncio.sleep(0)
        raise OSError(str(task))

    async def main(loop: dasync.EventLoop) -> None:
        with pytest.raises(OSError, match="lingers"):
            await leaves()
        assert told == ["begun", "ended", "begun", "ended"]

    memory.play(main)


def test_a_large_error_is_kept_in_part(memory: World) -> None:
    """Each failed attempt is kept in a bounded number of bytes; the promise's own error is the whole one."""

    @dasync.function(retry=Retry.constant(0, attempts=3))
    async def fails() -> None:
        raise OSError("x" * 500_000)

    async def main(loop: dasync.EventLoop) -> None:
        promise = fails.options(id="r")()
        with pytest.raises(OSError, match=r"x{500000}"):
            await promise
        found = (await rows(loop)).promises
        assert all(len(found[f"r:!{n}"].param) <= 16_384 for n in (1, 2))

    memory.play(main)


# -- what ends the attempts ----------------------------------------------------------------------------------------


def test_a_deadline_ends_the_attempts(world: World) -> None:
    """`timeout=` is for all attempts together."""
    clock, ran = FakeClock(), list[float]()

    @dasync.function(timeout=10, retry=Retry.constant(4))
    async def fails() -> None:
        ran.append(clock.monotonic())
        raise OSError

    async def main(loop: dasync.EventLoop) -> None:
        promise = fails.options(id="r")()
        for number in (1, 2):
            await backs_off(loop, f"r:!{number}")
            clock.advance(4)
        await backs_off(loop, "r:!3")
        clock.advance(2)
        with pytest.raises(dasync.PromiseTimedOut):
            await promise
        clock.advance(60)
        await turns()
        assert ran == [0, 4, 8]

    world.play(main, clock=clock, lease=PATIENT)


def test_a_cancel_ends_the_attempts(world: World) -> None:
    """In the backoff at once; in an attempt that answers with an error, that one is the last."""
    ran: list[str] = []

    @dasync.function(retry=Retry.constant(3600))
    async def fails() -> None:
        ran.append("fails")
        raise OSError

    @dasync.function(retry=Retry.constant(0))
    async def answers() -> None:
        ran.append("answers")
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            raise OSError("cleaning up") from None

    async def main(loop: dasync.EventLoop) -> None:
        promise = fails.options(id="r")()
        await backs_off(loop, "r:!1")
        await promise.cancel()
        assert promise.state is State.CANCELED
        promise = answers()
        await until(lambda: "answers" in ran)
        await promise.cancel()
        assert promise.state is State.REJECTED
        assert ran == ["fails", "answers"]

    world.play(main)


def test_timeouts_cascade(world: World) -> None:
    """No child outlives its parent's deadline, however deep, however patient and however often it is tried again."""
    clock, ran = FakeClock(), list[str]()

    @dasync.function(retry=Retry.constant(2))
    async def fails() -> None:
        ran.append("fails")
        raise OSError

    @dasync.function(timeout=3600)
    def blocks() -> None:
        dasync.promise(id="never", timeout=7200).wait()

    @dasync.function(timeout=60)
    async def middle() -> None:
        await dasync.all(fails(), blocks(), dasync.promise(timeout=9))

    @dasync.function(timeout=5)
    async def top() -> None:
        await middle()

    async def main(loop: dasync.EventLoop) -> None:
        promise = top.options(id="t")()
        await until(lambda: "never" in loop.awaiters)
        await backs_off(loop, "t:0.0.!1")
        clock.advance(2)
        await backs_off(loop, "t:0.0.!2")
        clock.advance(3)
        with pytest.raises(dasync.PromiseTimedOut):
            await promise
        await until(lambda: not {id for id in loop.promises if id.startswith("t:") and "!" not in id})
        found = (await rows(loop)).promises
        due = {id: record.timeout_at for id, record in found.items() if id != "never" and "!" not in id}
        assert due.keys() == {"t", "t:0", "t:0.0", "t:0.1", "t:0.2"}
        assert set(due.values()) == {found["t"].created_at + 5000}
        assert ran == ["fails", "fails"]

    world.play(main, clock=clock, lease=PATIENT)


# -- what outlives a crash -------------------------------------------------------------------------------------------


def test_a_backoff_is_handed_on(tmp_path: Path, host: Any) -> None:
    """A drain suspends an execution that waits for its next attempt; whoever opens the store goes on from there."""
    ran: list[int] = []
    world, clock = World(str(tmp_path / "s.db"), host), FakeClock()

    @dasync.function(retry=Retry.constant(100, attempts=3))
    async def fails() -> None:
        ran.append(1)
        raise OSError(f"failure {len(ran)}")

    async def first(loop: dasync.EventLoop) -> None:
        fails.options(id="r")()
        await backs_off(loop, "r:!1")
        await loop.drain(0)
        assert (await rows(loop)).tasks["r"].state.value == "suspended"

    async def second(loop: dasync.EventLoop) -> None:
        promise = loop.get("r")
        clock.advance(99)
        await turns()
        assert len(ran) == 1
        clock.advance(1)
        await backs_off(loop, "r:!2")
        clock.advance(100)
        with pytest.raises(OSError, match="failure 3"):
            await promise

    world.play(first, clock=clock, lease=PATIENT)
    world.play(second, clock=clock, lease=PATIENT)
    assert len(ran) == 3


@pytest.mark.parametrize("name", ["fails", "fails_in_a_thread", "asks"])
@pytest.mark.parametrize("die_at", ["", *(f"run {n + 1}" for n in range(ATTEMPTS))])
def test_the_count_of_attempts_survives_kill_9(zygote: Zygote, tmp_path: Path, name: str, die_at: str) -> None:
    """Killed in any attempt, the next process goes on with that one: a crash counts as no failure, and of those that
    failed none is run again. `dasync show` and `dasync tree` tell of each."""
    path, ledger = str(tmp_path / "s.db"), str(tmp_path / "ledger")
    if die_at:
        assert zygote.spawn("stubborn:run", path, ledger, name, die_at).wait() == -9
    runs = ATTEMPTS + bool(die_at)
    last = f"failure {runs}"
    assert zygote.spawn("stubborn:run", path, ledger, name).result() == ("told " if name == "asks" else "") + last
    assert (tmp_path / "ledger").read_text().splitlines() == ["run"] * runs

    id = "root:0" if name == "asks" else "root"
    said: Any = command_json("show", id, "--store", path)["attempts"]
    assert [one["number"] for one in said] == [1, 2, 3, 4]
    assert [one["error"]["type"] for one in said] == ["OSError"] * 4
    assert said[3]["error"]["message"] == last
    assert [one["next_at"] is None for one in said] == [False, False, False, True]
    times = [(one["failed_at"], one["next_at"], after["failed_at"]) for one, after in pairwise(said)]
    assert [three for three in times if sorted(three) != list(three)] == []


def test_a_backoff_survives_kill_9(zygote: Zygote, tmp_path: Path) -> None:
    """An hour's backoff goes on in the next process where it stood, not from its beginning, and is told in time."""
    path, ledger = str(tmp_path / "s.db"), str(tmp_path / "ledger")
    assert zygote.spawn("stubborn:run_later", path, ledger, 0, None).wait() == -9
    assert zygote.spawn("stubborn:run_later", path, ledger, 0.5, None).wait() == -9
    assert zygote.spawn("stubborn:run_later", path, ledger, 0.9, 0.1).result() == [1, "in the end"]
    told = [line for line in (tmp_path / "ledger").read_text().splitlines() if line.startswith("told")]
    assert len(told) == 3
    assert set(told) == {"told [(1, '2023-11-14T22:13:20.000Z', '2023-11-14T23:13:20.000Z')]"}


# -- what is told of it ------------------------------------------------------------------------------------------------


def test_show_and_tree_tell_of_attempts(tmp_path: Path) -> None:
    """While it waits: what failed, when, and when the next attempt is due; in the tree after the other children."""
    path = str(tmp_path / "s.db")

    @dasync.function(retry=Retry.constant(3600))
    async def fails() -> None:
        dasync.now()
        raise OSError("not\nyet")

    @dasync.function
    async def parent() -> None:
        await asyncio.gather(fails(), dasync.promise())

    async def main(loop: dasync.EventLoop) -> None:
        parent.options(id="p")()
        await backs_off(loop, "p:0.!1")
        with pytest.raises(ValueError, match="boom"):
            await boom.options(id="once")()

    World(path, None).play(main)
    said: Any = command_json("show", "p:0", "--store", path)
    assert said["error"] is None
    assert [(one["number"], one["error"]["message"]) for one in said["attempts"]] == [(1, "not\nyet")]
    assert "in fails" in said["attempts"][0]["error"]["traceback"]
    line = next(line for line in command("show", "p:0", "--store", path).splitlines() if line.startswith("attempts"))
    assert "1 failed at 20" in line
    assert "OSError: not\\nyet; the next one at 20" in line

    timer: Any = command_json("show", "p:0.!1", "--store", path)
    assert (timer["function"], timer["version"], timer["arguments"]["args"]) == ("dasync.retry", 1, [])
    assert timer["error"]["message"] == "not\nyet"
    tree = [line.lstrip("└├│─ ").split("  ") for line in command("tree", "p", "--store", path).splitlines()]
    assert [(id, function) for id, function, *_ in tree] == [
        ("p", "parent"), ("p:0", "fails"), ("p:0.0", "dasync.now"), ("p:0.!1", "dasync.retry"),
        ("p:1", "(settled outside)"),
    ]  # fmt: skip

    once: Any = command_json("show", "once", "--store", path)
    assert [(one["number"], one["next_at"]) for one in once["attempts"]] == [(1, None)]
    assert "\nattempts " not in command("show", "once", "--store", path)


def test_a_tree_puts_attempts_last(tmp_path: Path) -> None:
    """Children in the order of their places: invocations, branches, then each failure and what came after it."""
    path = str(tmp_path / "s.db")
    left = [11]

    @dasync.function(retry=Retry.constant(0))
    async def tries() -> None:
        dasync.now()
        await asyncio.create_task(decides())
        left[0] -= 1
        if left[0]:
            raise OSError
        await nothing()

    async def decides() -> None:
        dasync.now()

    async def main(loop: dasync.EventLoop) -> None:
        await tries.options(id="t")()

    World(path, None).play(main)
    said: Any = command_json("tree", "t", "--store", path)
    after = [f"t:!{n}{place}" for n in range(1, 11) for place in ("", ".0", ".1", ".~0.0") if place != ".1" or n == 10]
    assert [one["id"] for one in said["promises"]] == ["t", "t:0", "t:~0.0", *after]
    assert {one["depth"] for one in said["promises"]} == {0, 1}
