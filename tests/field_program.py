"""The killing field's program: the durable functions that run on it, one for each shape and the leaves below them.

Each gives an `Out`: what the model expects, and the claim under which it was computed. Leaves write down their begin,
their awaits and their end; so do the bodies above them. What they come to and in which order they are drawn is known to
`field_model.py`. Bit `i` of `far` sends the i-th child to the workers' group; the others run within their parent.
"""

from __future__ import annotations

import asyncio
import time
from datetime import timedelta

from field_ledger import Item, Out, Run, attempt, run, runs

import dasync

WORKERS = "field"
LONG_S = 4.0  # what is to be cut short takes as long as that if nobody does
AT_A_TIME = 2
PROCESSES = 1  # of the pool, for each EventLoop
LIMITS = {"limited_leaf": AT_A_TIME, "pooled_leaf": PROCESSES}  # how many of which function run at a time in a process
SPAWN_S = 2.0  # how long a process of the pool takes to start, on a machine that has nothing else to do
UNLUCKY = dasync.Retry.constant(0.02, attempts=5)

Leaf = dasync.Function[..., Out]


def placed(function: Leaf, far: int, index: int) -> Leaf:
    """The function, to be run by the workers where bit `index` of `far` says so."""
    return function.options(on=WORKERS) if far >> index & 1 else function


# -- leaves


@dasync.function
async def leaf(number: int, seconds: float) -> Out:
    with run("leaf") as mine:
        for _ in range(2):
            await asyncio.sleep(seconds / 2)
            mine.after()
        return mine.out(3 * number + 1)


@dasync.function
async def busy_leaf(number: int, seconds: float) -> Out:
    """Does long things between two awaits, as code should not: what is stopped there ends what it was at."""
    with run("leaf") as mine:
        for _ in range(8):
            await asyncio.sleep(0.1)
            mine.after()
            time.sleep(seconds)  # noqa: ASYNC251  # the point
            mine.write("did")
        return mine.out(3 * number + 1)


@dasync.function
def threaded_leaf(number: int, seconds: float) -> Out:
    with run("leaf") as mine:
        dasync.sleep(seconds).wait()
        mine.after()
        return mine.out(3 * number + 1)


@dasync.function(retry=UNLUCKY)
async def flaky_leaf(number: int, failures: int) -> Out:
    """Fails in its first runs, crashed ones among them."""
    with run("leaf") as mine:
        await asyncio.sleep(0.005)
        mine.after()
        if attempt(mine.promise) <= failures:
            raise OSError("not yet")
        return mine.out(3 * number + 1)


@dasync.function(retry=dasync.Retry.constant(0.02, attempts=3))
async def hopeless_leaf(number: int) -> Out:
    with run("leaf") as mine:
        await asyncio.sleep(0.005)
        mine.after()
        raise ValueError(f"hopeless {number}")


@dasync.function(concurrency=AT_A_TIME)
async def limited_leaf(number: int, seconds: float) -> Out:
    """Only so many of it run at a time in a process."""
    with run("leaf") as mine:
        await asyncio.sleep(seconds)
        mine.after()
        return mine.out(3 * number + 1)


@dasync.function(process=True)
def pooled_leaf(number: int, seconds: float) -> Out:
    """Runs in a process of the pool, which is ended when nobody wants it. Whoever awaits it says under which claim."""
    time.sleep(seconds)
    return Out(3 * number + 1, "")


@dasync.batched(max_size=6, max_wait=0.02, retry=UNLUCKY)
async def batched_leaf(items: list[Item]) -> list[Out | Exception]:
    """Some of them fail, each by itself."""
    with runs(items) as mine:
        for _ in range(2):
            await asyncio.sleep(max(item.seconds for item in items) / 2)
            for one in mine:
                one.after()
        return list(map(given, mine, items))


@dasync.batched(max_size=6, max_wait=0.02, retry=UNLUCKY)
def batched_in_a_thread(items: list[Item]) -> list[Out | Exception]:
    with runs(items) as mine:
        time.sleep(max(item.seconds for item in items))
        for one in mine:
            one.after()
        return list(map(given, mine, items))


def given(mine: Run, item: Item) -> Out | Exception:
    """What the handler of a batch gives for one of its items."""
    failed = attempt(mine.promise) <= item.failures
    mine.write("error" if failed else "end")
    return OSError("not yet") if failed else mine.out(3 * item.number + 1)


# -- shapes


@dasync.function
async def chain(number: int, hops: int, far: int, seconds: float) -> Out:
    with run("body") as mine:
        for hop in range(hops):
            number = (await placed(leaf, far, hop)(number, seconds)).value
            mine.after()
        return mine.out(number)


@dasync.function
async def toils(number: int, far: int) -> Out:
    with run("body") as mine:
        outs = await asyncio.gather(*(placed(busy_leaf, far, i)(number + i, 0.02) for i in range(3)))
        return mine.out([out.value for out in outs])


@dasync.function
async def fan_out(number: int, width: int, far: int, how: str) -> Out:
    with run("body") as mine:
        promises = [placed(leaf, far, i)(number + i, 0.01 * (i + 1)) for i in range(width)]
        if how == "all":
            outs = await dasync.all(*promises)
        elif how == "gather":
            outs = await asyncio.gather(*promises)
        elif how == "group":
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(promise) for promise in promises]
            outs = [task.result() for task in tasks]
        else:
            outs = [promise.result() async for promise in dasync.as_completed(*promises)]
        mine.after()
        return mine.out(sorted(out.value for out in outs))


@dasync.function
async def sequences(number: int, far: int) -> Out:
    """Two chains side by side in one execution."""

    async def sequence(at: int) -> int:
        first = await placed(leaf, far, at)(number + at, 0.02)
        return int((await placed(leaf, far, at + 1)(first.value, 0.01)).value)

    with run("body") as mine:
        return mine.out(list(await asyncio.gather(sequence(0), sequence(2))))


@dasync.function
async def race(number: int, far: int) -> Out:
    with run("body") as mine:
        promises = [placed(leaf, far, 0)(number, 0.05), placed(leaf, far, 1)(number + 1, LONG_S)]
        winner = await dasync.race(*promises)
        mine.after()
        return mine.out(winner.value)


@dasync.function
async def timers(number: int, seconds: float, far: int) -> Out:
    with run("body") as mine:
        begun = dasync.now()
        await dasync.sleep(seconds)
        mine.after()
        first = await placed(leaf, far, 0)(number, 0.01)
        await asyncio.sleep(0.05)
        mine.after()
        passed = dasync.now() - begun
        return mine.out([first.value, passed >= timedelta(seconds=seconds - 0.002)])


@dasync.function
async def retries(number: int, failures: int, far: int) -> Out:
    with run("body") as mine:
        first = await placed(flaky_leaf, far, 0)(number, failures)
        mine.after()
        try:
            await placed(hopeless_leaf, far, 1)(number)
        except ValueError as error:
            return mine.out([first.value, str(error)])
        return mine.out("it had hope")


@dasync.function
async def tree(number: int, depth: int, far: int) -> Out:
    """Executions below executions, in other processes."""
    with run("body") as mine:
        if depth == 0:
            return mine.out((await leaf(number, 0.02)).value)
        below = [placed(tree, far, i)(2 * number + i, depth - 1, far) for i in range(2)]
        return mine.out(sum(out.value for out in await asyncio.gather(*below)))


@dasync.function
async def canceled(number: int, far: int) -> Out:
    """Somebody outside cancels it on its way."""
    with run("body") as mine:
        for hop in range(5):
            number = (await placed(leaf, far, hop)(number, 0.3)).value
            mine.after()
        return mine.out(number)


@dasync.function
async def cancels(number: int, far: int) -> Out:
    """Its child runs, and it cancels that."""
    with run("body") as mine:
        child = placed(leaf, far, 0)(number, LONG_S)
        await placed(leaf, far, 1)(number, 0.1)
        mine.after()
        await child.cancel("enough")
        mine.after()
        try:
            return mine.out((await child).value)
        except dasync.PromiseCanceled:
            return mine.out("canceled")


@dasync.function
async def gated(number: int, gate: str, far: int) -> Out:
    """Somebody outside settles what it waits for."""
    with run("body") as mine:
        before = await placed(leaf, far, 0)(number, 0.01)
        given = await dasync.promise(int, id=gate)
        mine.after()
        after = await placed(leaf, far, 1)(given, 0.01)
        return mine.out([before.value, after.value])


@dasync.function
async def limits(number: int, far: int) -> Out:
    """What takes too long is given up."""
    with run("body") as mine:
        heard: list[str] = []
        try:
            async with dasync.timeout(0.2):
                await placed(leaf, far, 0)(number, LONG_S)
        except TimeoutError:
            heard.append("timeout")
        mine.after()
        try:
            await placed(leaf, far, 1).options(timeout=0.2)(number, LONG_S)
        except dasync.PromiseTimedOut:
            heard.append("timed out")
        mine.after()
        try:
            async with asyncio.timeout(0.2):
                await placed(leaf, far, 2)(number, LONG_S)
        except TimeoutError:
            heard.append("asyncio")
        return mine.out(heard)


@dasync.function
async def starts_over(number: int, rounds: int, far: int) -> Out:
    with run("body") as mine:
        number = (await placed(leaf, far, rounds)(number, 0.02)).value
        mine.after()
        return starts_over.again(number, rounds - 1, far) if rounds else mine.out(number)  # type: ignore[return-value]


@dasync.function
def threaded(number: int, far: int) -> Out:
    with run("body") as mine:
        first = placed(leaf, far, 0)(number, 0.02).wait()
        mine.after()
        second = placed(threaded_leaf, far, 1)(first.value, 0.1).wait()
        return mine.out(second.value)


@dasync.function
async def shares(number: int, common: str, far: int) -> Out:
    """Two of them await one promise of an id of its own."""
    with run("body") as mine:
        own = placed(leaf, far, 0)(number, 0.05)
        shared = await leaf.options(id=common, on=WORKERS)(len(common), 0.2)
        mine.after()
        return mine.out([(await own).value, shared.value])


@dasync.function
async def detaches(number: int, far: int) -> Out:
    """Leaves one behind that goes on by itself."""
    with run("body") as mine:
        left = leaf.options(detached=True, on=WORKERS)(number, 0.2)
        first = await placed(leaf, far, 0)(number, 0.01)
        mine.after()
        await left.created()
        return mine.out(first.value)


@dasync.function
async def batches(number: int, failures: list[int], threads: bool, far: int) -> Out:
    """Items that meet those of other executions, here and at the workers."""
    with run("body") as mine:
        insert = batched_in_a_thread if threads else batched_leaf
        items = [Item(number + i, 0.02, failed) for i, failed in enumerate(failures)]
        outs = await asyncio.gather(*(placed(insert, far, i)(item) for i, item in enumerate(items)))
        mine.after()
        last = await placed(insert, far, len(items))(Item(sum(out.value for out in outs), 0.01, 0))
        return mine.out(last.value)


@dasync.function
async def narrow(number: int, width: int, far: int) -> Out:
    """More than may run at a time."""
    with run("body") as mine:
        outs = await asyncio.gather(*(placed(limited_leaf, far, i)(number + i, 0.01) for i in range(width)))
        return mine.out([out.value for out in outs])


@dasync.function
async def computes(number: int, far: int) -> Out:
    with run("body") as mine:
        first = await placed(pooled_leaf, far, 0)(number, 0.05)
        mine.after()
        return mine.out(first.value)
