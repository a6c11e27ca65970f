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
    await deliver(sku=1)  # E: a declared function is checked too
    both: list[str] = await dasync.all(tax(1), tax(2))  # E: values of another type
    await dasync.all([tax(1)])  # E: promises, not a list of them
    await dasync.race(1, 2)  # E: no promises
    first: str = await dasync.race(tax(1), checksum(b""))  # E: one of the two types
    tax.options(timeout="soon")(1)  # E: seconds or a timedelta
    tax.options(retry=3)(1)  # E: a Retry
    tax.options(priority=3)(1)  # E: no such option
    approval = dasync.promise(bool)
    answer: int = (await approval) + "x"  # E: not a number and a text
    await approval.reject("no")  # E: an exception
    await approval.cancel(7)  # E: a text
    await dasync.sleep("1")  # E: seconds or a timedelta
    dasync.invoke(tax, "x")  # E: arguments are checked here too
    dasync.invoke(len, [])  # E: no durable function
    dasync.Retry.exponential(attempts="many")  # E: a number
    task: asyncio.Task[str] = asyncio.create_task(tax(1))  # E: another result
    print(forgotten, wrong, number, both, first, answer, task)


dasync.error(int)  # E: no exception class
dasync.remote("collect")  # E: on= is missing
dasync.function(retry="often")  # E: a Retry
dasync.EventLoop(durability="paper")  # E: power or process
dasync.run(42)  # E: no coroutine function
