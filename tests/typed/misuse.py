"""Misuse of the public surface: mypy strict and pyright refuse each marked line, and no other. It is not run."""

from __future__ import annotations

import asyncio

import dasync


@dasync.function
async def tax(cents: int, rate: float = 0.2) -> float:
    return cents * rate


@dasync.function
def checksum(data: bytes) -> int:
    return sum(data)


@dasync.function(process=True)
def square(x: int) -> int:
    return x * x


@dasync.function
async def laps(number: int) -> int:
    if number == 1:
        return laps.again("2")  # E: an argument of another type
    return laps.again()  # E: an argument is missing


@dasync.function
async def label(number: int) -> str:
    return laps.again(number)  # E: another result


@dasync.batched(max_size=10)
async def insert(rows: list[str]) -> list[int]:
    return [len(row) for row in rows]


@dasync.remote(on="courier")
async def deliver(sku: str) -> bool:
    raise NotImplementedError


@dasync.function
async def program() -> None:
    tax("100")  # E: an argument of another type
    tax()  # E: an argument is missing
    tax(1, 2.0, 3)  # E: one too many
    tax(1, speed=2)  # E: no such parameter
    forgotten: float = tax(1)  # E: await is missing
    wrong: str = await tax(1)  # E: another result
    number: str = checksum(b"").wait()  # E: another result, from a thread
    powers: str = await square(2)  # E: another result, from a process
    await deliver(sku=1)  # E: a declared function is checked too
    both: list[str] = await dasync.all(tax(1), tax(2))  # E: values of another type
    await dasync.all([tax(1)])  # E: promises, not a list of them
    await dasync.race(1, 2)  # E: no promises
    await dasync.wait(tax(1), tax(2))  # E: a list of promises, not each by itself
    await dasync.wait([tax(1)], return_when=1)  # E: one of asyncio's constants
    dasync.as_completed([tax(1)])  # E: promises, not a list of them
    for one in dasync.as_completed(tax(1)):  # E: async for
        print(one)
    dasync.patched(7)  # E: a name
    first: str = await dasync.race(tax(1), checksum(b""))  # E: one of the two types
    tax.options(timeout="soon")(1)  # E: seconds or a timedelta
    tax.options(retry=3)(1)  # E: a Retry
    tax.options(priority=3)(1)  # E: no such option
    await insert(["a", "b"])  # E: one item, not a list of them
    await insert(rows="a")  # E: by its place
    listed: list[int] = await insert("a")  # E: the result of one item
    await insert.fn("a")  # E: the handler takes the list
    approval = dasync.promise(bool)
    answer: int = (await approval) + "x"  # E: not a number and a text
    await approval.reject("no")  # E: an exception
    await approval.cancel(7)  # E: a text
    await dasync.sleep("1")  # E: seconds or a timedelta
    dasync.invoke(tax, "x")  # E: arguments are checked here too
    dasync.invoke(len, [])  # E: no durable function
    dasync.Retry.exponential(attempts="many")  # E: a number
    task: asyncio.Task[str] = asyncio.create_task(tax(1))  # E: another result
    print(forgotten, wrong, number, powers, both, first, answer, task, listed)


async def row_by_row(row: str) -> list[int]:
    return [len(row)]


async def with_table(rows: list[str], table: str) -> None: ...


async def counts(rows: list[str]) -> int:
    return len(rows)


dasync.batched(row_by_row)  # E: no handler of a list
dasync.batched(max_size=5)(with_table)  # E: one parameter too many
dasync.batched(max_wait=0)(counts)  # E: no list comes back
dasync.batched(max_size="many")  # E: a number


dasync.error(int)  # E: no exception class
dasync.remote("collect")  # E: on= is missing
dasync.function(retry="often")  # E: a Retry
dasync.function(concurrency="many")  # E: a number
dasync.function(process="yes")  # E: True or not
dasync.EventLoop(durability="paper")  # E: power or process
dasync.run(42)  # E: no coroutine function
