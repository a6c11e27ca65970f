"""Canceling: depth first, cooperative where the code runs here, the law's elsewhere; never what stands alone."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from play import World, ask, rows, until, until_rows

import dasync
from dasync.core.model import State, TaskState
from dasync.core.protocol import PromiseCancel, TaskContinue, TaskHalt
from dasync.stores.memory import MemoryStore
from dasync.system import SystemClock

seen: list[str] = []


@pytest.fixture(autouse=True)
def _nothing_seen() -> None:
    seen.clear()


@dasync.function
async def leaf(name: str) -> str:
    seen.append(f"leaf {name}")
    return name


@dasync.function
async def waits(name: str = "w") -> None:
    """Wait for what never comes, and clean up durably."""
    seen.append(f"begin {name}")
    try:
        await dasync.promise()
    except BaseException as error:
        seen.append(f"{type(error).__name__} in {name}")
        raise
    finally:
        seen.append(f"cleaned {await leaf(f'up {name}')}")


@dasync.function
async def nests(depth: int) -> None:
    try:
        await (nests(depth - 1) if depth else dasync.promise())
    finally:
        seen.append(f"end {depth}")


async def states(loop: dasync.EventLoop) -> dict[str, str]:
    return {id: record.state.value for id, record in sorted((await rows(loop)).promises.items())}


# -- what a cancel does


def test_cancel_returns_and_the_await_raises(world: World) -> None:
    """`await p.cancel()` returns once that is durable; awaiting the promise then raises, with the reason."""

    async def main(loop: dasync.EventLoop) -> None:
        promise = waits.options(id="w")()
        await until(lambda: "begin w" in seen)
        await promise.cancel("too late")
        assert (await states(loop))["w"] == "canceled"
        assert promise.state is State.CANCELED
        with pytest.raises(dasync.PromiseCanceled, match=r"promise 'w' was canceled: too late"):
            await promise
        assert isinstance(promise.exception(), dasync.PromiseCanceled)
        await promise.cancel("again")
        assert seen == ["begin w", "CancelledError in w", "leaf up w", "cleaned up w"]

    world.play(main)


def test_cancel_goes_depth_first(world: World) -> None:
    """Children end before their parents, in the code and in the store."""

    async def main(loop: dasync.EventLoop) -> None:
        promise = nests.options(id="n")(3)
        await until(lambda: "n:0.0.0.0" in loop.awaiters)
        await promise.cancel()
        assert seen == ["end 0", "end 1", "end 2", "end 3"] or seen == ["end 3", "end 2", "end 1", "end 0"]
        found = await rows(loop)
        ids = ["n:0.0.0", "n:0.0", "n:0", "n"]
        assert [found.promises[id].state for id in ids] == [State.CANCELED] * 4
        at = [found.promises[id].settled_at or 0 for id in ids]
        assert at == sorted(at)
        assert found.promises["n:0.0.0.0"].state is State.PENDING

    world.play(main)


def test_a_settled_child_stays_settled(world: World) -> None:
    """Canceling what is settled changes nothing, and neither does canceling its parent."""

    @dasync.function
    async def parent() -> None:
        done = leaf("x")
        await done
        await done.cancel()
        assert done.state is State.RESOLVED
        await waits()

    async def main(loop: dasync.EventLoop) -> None:
        promise = parent.options(id="p")()
        await until(lambda: "begin w" in seen)
        await promise.cancel()
        found = await states(loop)
        assert (found["p"], found["p:0"], found["p:1"]) == ("canceled", "resolved", "canceled")

    world.play(main)


def test_what_stands_alone_goes_on(world: World) -> None:
    """A parent's cancel spares detached and shared children and those that somebody outside settles."""

    @dasync.function
    async def parent() -> None:
        waits.options(detached=True)("detached")
        waits.options(id="shared")("shared")
        dasync.promise()
        dasync.promise(id="named")
        waits.options(on="nobody")()
        await waits("local")

    async def main(loop: dasync.EventLoop) -> None:
        promise = parent.options(id="p")()
        await until(lambda: {"begin detached", "begin shared", "begin local"} <= {*seen})
        await promise.cancel()
        found = await states(loop)
        assert {id for id, state in found.items() if state == "canceled"} == {"p", "p:2", "p:3"}
        assert {"p:0", "shared", "p:1", "named"} <= {id for id, state in found.items() if state == "pending"}

    world.play(main)


def test_a_child_that_was_asked_to_end_rejects_nobody(world: World) -> None:
    """The parent of a canceled child goes on, whoever asked: itself, the program outside, or another program."""

    @dasync.function
    async def parent(how: str) -> str:
        child = waits(how)
        await until(lambda: f"begin {how}" in seen)
        if how == "itself":
            await child.cancel()
        return "went on"

    async def main(loop: dasync.EventLoop) -> None:
        for how in ("itself", "outside", "store"):
            promise = parent.options(id=how)(how)
            await until(lambda how=how: f"begin {how}" in seen)
            if how == "outside":
                await loop.get(f"{how}:0").cancel()
            elif how == "store":
                await loop.get(f"{how}:0").created()
                await ask(loop, PromiseCancel(f"{how}:0"))
            assert await promise == "went on"
            assert (await states(loop))[f"{how}:0"] == "canceled"

    world.play(main)


# -- when it comes


@pytest.mark.parametrize("where", [None, "default", "nobody"])
def test_canceled_in_the_tick_of_the_invocation(world: World, where: str | None) -> None:
    """A child that is canceled before it could start never runs; its parent goes on."""

    @dasync.function
    async def parent() -> str:
        child = (waits if where is None else waits.options(on=where))("child")
        await child.cancel("changed my mind")
        return child.state.value

    async def main(loop: dasync.EventLoop) -> None:
        root = waits.options(id="root")("root")
        await root.cancel()
        assert root.state is State.CANCELED
        assert await parent.options(id="p")() == "canceled"
        if where != "default":  # a worker may have been quicker
            assert seen == []
        assert (await states(loop))["p:0"] == "canceled"
        assert loop.snapshot().tasks == 0

    world.play(main)


def test_canceled_twice_at_once_cleans_up_once(world: World) -> None:
    """A second cancel does not interrupt the clean-up of the first."""

    async def main(loop: dasync.EventLoop) -> None:
        promise = waits.options(id="w")()
        await until(lambda: "begin w" in seen)
        await asyncio.gather(promise.cancel("one"), loop.get("w").cancel("two"))
        assert seen == ["begin w", "CancelledError in w", "leaf up w", "cleaned up w"]

    world.play(main)


def test_canceled_while_it_fails(world: World) -> None:
    """A cancel that comes while a failed body's children end does not keep it from ending."""
    gate = asyncio.Event()

    @dasync.function
    async def slow_to_end() -> None:
        try:
            await dasync.promise()
        finally:
            seen.append("ending")
            await gate.wait()

    @dasync.function
    async def fails() -> None:
        slow_to_end()
        await asyncio.sleep(0.01)
        raise ValueError("first")

    async def main(loop: dasync.EventLoop) -> None:
        promise = fails.options(id="f")()
        await until(lambda: "ending" in seen)
        canceling = asyncio.create_task(promise.cancel())
        await asyncio.sleep(0.01)
        gate.set()
        await canceling
        with pytest.raises(ValueError, match="first"):
            await promise
        assert loop.snapshot().tasks == 0

    world.play(main)


def test_canceled_while_it_waits_for_its_children(world: World) -> None:
    """A body that has returned, and whose children go on, is canceled with them."""

    @dasync.function
    async def parent() -> str:
        waits()
        return "returned"

    async def main(loop: dasync.EventLoop) -> None:
        promise = parent.options(id="p")()
        await until(lambda: "begin w" in seen)
        await asyncio.sleep(0.01)
        await promise.cancel()
        assert [promise.state.value, (await states(loop))["p:0"]] == ["canceled", "canceled"]

    world.play(main)


def test_a_body_may_swallow_its_cancel(world: World) -> None:
    """As in asyncio: `cancel()` returns, and the outcome is what the body made of it."""

    @dasync.function
    async def stubborn(how: str) -> str:
        try:
            await dasync.promise()
        except asyncio.CancelledError:
            if how == "raises":
                raise ValueError("instead") from None
        return await leaf("stayed")

    async def main(loop: dasync.EventLoop) -> None:
        for how, state in (("returns", State.RESOLVED), ("raises", State.REJECTED)):
            promise = stubborn.options(id=how)(how)
            await until(lambda how=how: f"{how}:0" in loop.awaiters)
            await promise.cancel()
            assert promise.state is state

    world.play(main)


def test_who_cancels_himself(world: World) -> None:
    """An execution may cancel its own promise, its parent's, or be canceled from a task of its own."""

    @dasync.function
    async def own(id: str) -> None:
        try:
            await loops[0].get(id).cancel("enough")
        finally:
            seen.append(f"cleaned {await leaf(id)}")

    @dasync.function
    async def parent() -> None:
        await own("parent")

    @dasync.function
    async def branches() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(loops[0].get("branches").cancel())
            await dasync.promise()

    loops: list[dasync.EventLoop] = []

    async def main(loop: dasync.EventLoop) -> None:
        loops[:] = [loop]
        for promise in (own.options(id="own")("own"), parent.options(id="parent")(), branches.options(id="branches")()):
            with pytest.raises(dasync.PromiseCanceled):
                await promise
        assert (await states(loop))["parent:0"] == "canceled"
        assert loop.snapshot().tasks == 0

    world.play(main)


def test_a_parent_that_awaits_a_canceled_child_fails(world: World) -> None:
    """An await that nobody caught rejects with `PromiseCanceled`; the parent itself was not canceled."""

    @dasync.function
    async def parent() -> None:
        await waits()

    async def main(loop: dasync.EventLoop) -> None:
        promise = parent.options(id="p")()
        await until(lambda: "begin w" in seen)
        await loop.get("p:0").cancel("why")
        with pytest.raises(dasync.PromiseCanceled, match="promise 'p:0' was canceled: why"):
            await promise
        assert promise.state is State.REJECTED

    world.play(main)


SHAPES: dict[str, Any] = {}


def shape(body: Any) -> Any:
    """A way to wait, as a function; with a clean-up of its own where it is `async def`."""

    async def waits_so() -> None:
        seen.append("begun")
        try:
            await body()
        finally:
            seen.append(f"cleaned {await leaf('up')}")

    SHAPES[body.__name__] = waits_so
    return body


@shape
async def gather() -> None:
    await asyncio.gather(waits("a"), waits("b"), dasync.sleep(3600))


@shape
async def task_group() -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(waits("a"))
        group.create_task(asyncio.sleep(3600))


@shape
async def racing() -> None:
    await dasync.race(waits("a"), dasync.promise(), leaf.options(on="nobody")("b"))


@shape
async def together() -> None:
    await dasync.all(leaf("a"), waits("b"))


@shape
async def raw() -> None:
    await asyncio.sleep(3600)


@shape
async def shielded() -> None:
    await asyncio.shield(waits("a"))


@shape
async def with_timeout() -> None:
    async with asyncio.timeout(3600):
        await waits("a")


@shape
async def children_never_awaited() -> None:
    waits("a")
    leaf.options(on="nobody")("b")
    await asyncio.Event().wait()


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("inside", [False, True], ids=["root", "child"])
def test_however_it_waits(memory: World, name: str, inside: bool) -> None:
    """Code that is canceled in any of these cleans up, durably, and leaves nothing that runs."""
    made = dasync.function(name="waits_so")(SHAPES[name])

    @dasync.function
    async def parent() -> str:
        child = made()
        await until(lambda: "begun" in seen)
        await asyncio.sleep(0.005)
        await child.cancel()
        return child.state.value

    async def main(loop: dasync.EventLoop) -> None:
        promise = (parent if inside else made).options(id="p")()
        if inside:
            assert await promise == "canceled"
        else:
            await until(lambda: "begun" in seen)
            await asyncio.sleep(0.005)
            await promise.cancel()
            assert promise.state is State.CANCELED
        assert "cleaned up" in seen
        left = {r.function for r in (await rows(loop)).promises.values() if r.state is State.PENDING}
        assert left <= {"", "dasync.sleep"}
        assert loop.snapshot().tasks == loop.snapshot().awaiters == 0

    memory.play(main)


def test_a_thread_is_canceled_where_it_waits(memory: World) -> None:
    """A function that is no `async def` gets its CancelledError at the promise that it waits for, or the next one."""

    @dasync.function
    def blocks() -> None:
        try:
            waits("below").wait()
        except BaseException as error:
            seen.append(type(error).__name__)
            raise

    async def main(loop: dasync.EventLoop) -> None:
        promise = blocks.options(id="b")()
        await until(lambda: "begin below" in seen)
        await promise.cancel()
        assert (promise.state, (await states(loop))["b:0"]) == (State.CANCELED, "canceled")
        await until(lambda: "CancelledError" in seen)

    memory.play(main)


def test_canceled_between_attempts(memory: World) -> None:
    """A retry that is waited for is waited for no longer."""

    @dasync.function(retry=dasync.Retry.constant(3600))
    async def flaky() -> None:
        raise OSError("again")

    async def main(loop: dasync.EventLoop) -> None:
        promise = flaky.options(id="f")()
        await until(lambda: "f:!1" in loop.awaiters)
        await promise.cancel()
        assert promise.state is State.CANCELED
        assert loop.snapshot().tasks == 0

    memory.play(main)


def test_what_is_left_behind_can_be_canceled(world: World) -> None:
    """A promise that somebody outside settles outlives its parent; nobody's claim is needed to end it."""

    @dasync.function
    async def parent() -> str:
        return dasync.promise().id

    async def main(loop: dasync.EventLoop) -> None:
        left = loop.get(await parent.options(id="p")())
        assert "p:0" not in (await states(loop)) or left.state is State.PENDING
        await left.cancel("nobody asks")
        assert (await states(loop))["p:0"] == "canceled"
        assert not [id for id in loop.promises if ":" in id]

    world.play(main)


# -- said by another program


def test_another_program_cancels_what_runs_here(world: World) -> None:
    """The code is interrupted by the news, below the promise too, and nothing is settled by it any more."""

    @dasync.function
    async def parent() -> None:
        waits.options(on="default")("remote")
        try:
            await raw("raw")
        finally:
            seen.append("end parent")

    @dasync.function
    async def raw(name: str) -> None:
        seen.append(f"begin {name}")
        try:
            await asyncio.Event().wait()
        finally:
            seen.append(f"end {name}")

    async def main(loop: dasync.EventLoop) -> None:
        promise = parent.options(id="p")()
        await until(lambda: {"begin raw", "begin remote"} <= {*seen})
        await until(lambda: "begin remote" in seen)
        await loop.get("p:1").created()
        await ask(loop, PromiseCancel("p"))
        with pytest.raises(dasync.PromiseCanceled):
            await promise
        await until(lambda: {"end raw", "end parent", "CancelledError in remote"} <= {*seen})
        found = await states(loop)
        assert (found["p"], found["p:0"], found["p:1"]) == ("canceled",) * 3
        await until(lambda: loop.snapshot()[2:6] == (0, 0, 0, 0))

    world.play(main, poll=60)


def test_what_the_store_did_not_know_yet_ends_too(world: World) -> None:
    """When another program cancels a child, what its code made a moment ago ends with it, written or not."""

    @dasync.function
    async def child() -> None:
        await gate.wait()
        raw("new")
        waits.options(on="nobody")("far")
        seen.append("made")
        await asyncio.Event().wait()

    @dasync.function
    async def raw(name: str) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            seen.append(f"end {name}")

    @dasync.function
    async def parent() -> str:
        await dasync.all_settled(child())
        await gates[1].wait()
        return "went on"

    gates = [asyncio.Event(), asyncio.Event()]
    gate = gates[0]

    async def main(loop: dasync.EventLoop) -> None:
        promise = parent.options(id="p")()
        await until(lambda: "p:0" in loop.promises)
        await loop.get("p:0").created()
        committed = await loop._store.transact([PromiseCancel("p:0")])
        gate.set()
        await until(lambda: "made" in seen)
        loop._transport.ring(committed.doorbells)
        await until(lambda: "end new" in seen)
        await until_rows(loop, lambda found: found.promises["p:0.1"].state is State.CANCELED)
        gates[1].set()
        assert await promise == "went on"
        assert set((await states(loop)).values()) == {"canceled", "resolved"}

    world.play(main, poll=60)


# -- where it runs elsewhere, or nowhere


def test_what_runs_elsewhere(world: World) -> None:
    """A task that nobody has started, one that another EventLoop runs, one that is suspended: each ends at once."""
    store = MemoryStore(SystemClock()) if world.store == "memory:" else world.store

    async def main() -> None:
        async with (
            dasync.EventLoop(store, group="far", poll=60) as far,
            dasync.EventLoop(store, durability="process", poll=60) as here,
        ):
            never, there = here.invoke(waits.options(on="nobody")), here.invoke(waits.options(on="far"), "there")
            await until(lambda: "begin there" in seen)
            await asyncio.gather(never.cancel(), there.cancel("why"))
            assert (never.state, there.state) == (State.CANCELED, State.CANCELED)
            await until(lambda: "CancelledError in there" in seen)
            await until(lambda: far.snapshot().tasks == 0)

            suspended = here.invoke(waits.options(on="far", id="s"), "s")
            await until(lambda: "begin s" in seen)
            await until(lambda: "s:0" in far.awaiters)
            await far.drain(0)
            found = await until_rows(here, lambda found: found.tasks["s"].state is TaskState.SUSPENDED)
            await suspended.cancel()
            found = await rows(here)
            assert (found.promises["s"].state, found.tasks["s"].state) == (State.CANCELED, TaskState.FULFILLED)

    world.run(main())


def test_it_comes_back_to_who_asked(world: World) -> None:
    """A cancel reaches what runs here for another process's execution that it ends."""
    store = MemoryStore(SystemClock()) if world.store == "memory:" else world.store

    @dasync.function
    async def raw() -> None:
        seen.append("begin raw")
        try:
            await asyncio.Event().wait()
        finally:
            seen.append("end raw")

    @dasync.function
    async def there() -> None:
        await raw.options(on="here")()

    @dasync.function
    async def parent() -> str:
        child = there.options(on="far")()
        await until(lambda: "begin raw" in seen)
        await child.cancel()
        return child.state.value

    async def main() -> None:
        async with (
            dasync.EventLoop(store, group="far", poll=60),
            dasync.EventLoop(store, group="here", durability="process", poll=60) as here,
        ):
            assert await here.invoke(parent.options(id="p")) == "canceled"
            await until(lambda: "end raw" in seen)
            await until(lambda: here.snapshot().tasks == 0)

    world.run(main())


def test_what_a_replay_does_not_come_to_ends_with_it(world: World) -> None:
    """When a replay fails before it invokes what an earlier run had invoked, that is canceled first, not forgotten."""
    store = MemoryStore(SystemClock()) if world.store == "memory:" else world.store
    runs: list[int] = []

    @dasync.function
    async def moody() -> None:
        runs.append(1)
        if len(runs) > 1:
            raise ValueError("today not")
        below = waits.options(on="nobody")()
        dasync.promise()
        await below

    async def main() -> None:
        async with dasync.EventLoop(store, durability="process") as first:
            first.invoke(moody.options(id="m"))
            await until(lambda: "m:0" in first.awaiters)
            await first.get("m:1").created()
            await first.drain(0)
        async with dasync.EventLoop(store, durability="process") as second:
            handle = second.get("m")
            assert (await rows(second)).tasks["m"].state is TaskState.SUSPENDED
            committed = await second._store.transact([TaskHalt("m"), TaskContinue("m")])
            second._transport.ring(committed.doorbells)
            with pytest.raises(ValueError, match="today not"):
                await handle
            assert (await states(second)) == {"m": "rejected", "m:0": "canceled", "m:1": "pending"}

    world.run(main())
