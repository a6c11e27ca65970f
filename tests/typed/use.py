"""The public surface as typed programs use it: mypy strict and pyright accept every line. It is not run."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from random import Random
from typing import assert_type
from uuid import UUID

import anyio

import dasync
from dasync import EventLoop, Function, Promise, Retry, State


@dataclass
class Order:
    id: str
    cents: int


@dasync.error
class OutOfStock(Exception):
    pass


@dasync.function
async def tax(cents: int, rate: float = 0.2) -> float:
    return cents * rate


@dasync.function(on="warehouse", timeout=60, retry=Retry.exponential(attempts=5), version=2, name="ship_it")
async def ship(sku: str) -> list[str]:
    return [sku]


@dasync.function
def checksum(data: bytes, *, seed: int = 0) -> int:
    return sum(data) + seed


@dasync.function(retry=Retry.constant(timedelta(seconds=1).total_seconds()))
def blocking(n: int) -> str:
    total = sum(one.wait(timeout=1) for one in [checksum(bytes(n)), checksum(b"")])
    assert_type(checksum(b"").wait(), int)
    return str(total)


@dasync.function(concurrency=2, process=True, on="crunch")
def crunch(n: int) -> list[int]:
    return list(range(n))


@dasync.function(concurrency=3)
async def careful(n: int) -> Promise[float]:
    return tax(sum(await crunch(n)))


@dasync.function
async def linked(order: Order) -> Promise[float]:
    return tax(order.cents)


@dasync.function
def linked_too(order: Order) -> Promise[float]:
    return tax(order.cents)


@dasync.batched(max_size=100, max_wait=timedelta(milliseconds=5), on="db", timeout=60, retry=Retry.never(), version=2)
async def insert(orders: list[Order]) -> list[int] | None:
    return [order.cents for order in orders]


@dasync.batched(name="refuse")
async def insert_some(orders: list[Order]) -> list[int | Exception]:
    return [order.cents or OutOfStock(order.id) for order in orders]


@dasync.batched
async def touch(ids: list[str]) -> None: ...


@dasync.batched
def sizes(texts: list[str]) -> list[int]:
    return [len(text) for text in texts]


@dasync.batched(max_wait=0)
def some_sizes(texts: list[str]) -> list[int | Exception] | None:
    return None


@dasync.batched()
def touch_too(ids: list[str]) -> None: ...


@dasync.remote(on="courier")
async def deliver(sku: str, days: int) -> bool:
    raise NotImplementedError  # or `...`, where mypy's empty-body is off


untyped = dasync.remote("collect", on="courier", timeout=timedelta(hours=1))


@dasync.function
async def checkout(order: Order) -> str:
    assert_type(tax(order.cents), Promise[float])
    assert_type(await tax(order.cents, rate=0.1), float)
    assert_type(await ship("tea"), list[str])
    assert_type(await checksum(b"x", seed=1), int)
    assert_type(await crunch(3), list[int])
    assert_type(await careful(3), float)
    assert_type(await linked(order), float)
    assert_type(await linked_too(order), float)
    assert_type(await deliver("tea", days=2), bool)
    await untyped("anything", goes=True)
    assert_type(insert(order), Promise[int | None])
    assert_type(await insert_some.options(id="i", retry=Retry.linear())(order), int)
    assert_type(await sizes("a"), int)
    assert_type(await some_sizes("a"), int | None)
    assert_type((touch("a"), touch_too("a")), tuple[Promise[None], Promise[None]])
    by_item: Function[[Order], int | None] = insert
    await insert.fn([order])
    assert_type(await dasync.all(*map(sizes, ["a", "b"])), list[int])

    assert_type(await dasync.all(tax(1), tax(2)), list[float])
    assert_type(await dasync.all_settled(tax(1), tax(2)), list[Promise[float]])
    assert_type(await dasync.race(tax(1), ship("x")), float | list[str])
    assert_type(await dasync.any(tax(1), tax(2), tax(3), tax(4), keep=True), float)
    assert_type(await dasync.wait([tax(1), tax(2)]), tuple[list[Promise[float]], list[Promise[float]]])
    done, pending = await dasync.wait(
        (tax(n) for n in range(9)), return_when=asyncio.FIRST_COMPLETED, timeout=timedelta(hours=1)
    )
    assert_type(done[0].result() + await pending[0], float)
    async for one in dasync.as_completed(tax(1), ship("x")):
        assert_type(await one, float | list[str])
    assert_type([promise.result() async for promise in dasync.as_completed(*done)], list[float])
    assert_type(dasync.patched("ask twice"), bool)
    assert_type(await asyncio.gather(tax(1), ship("x")), tuple[float, list[str]])
    async with asyncio.TaskGroup() as group:
        task = group.create_task(tax(1))
    assert_type(task.result(), float)
    async with anyio.create_task_group() as scope:
        scope.start_soon(ship, "x")
    assert_type(await asyncio.wait_for(tax(1), 1), float)

    approval = dasync.promise(bool, id=f"{order.id}-approval", timeout=timedelta(days=1))
    assert_type(approval, Promise[bool])
    await approval.resolve(True)
    await approval.reject(OutOfStock("none"))
    await approval.cancel()
    await approval.cancel(reason="too late")
    await approval.created()
    assert_type(approval.state, State)
    assert_type(approval.done(), bool)
    assert_type(approval.exception(), BaseException | None)
    assert_type(approval.result(), bool)

    await dasync.sleep(1)
    await dasync.sleep(timedelta(seconds=1))
    assert_type(dasync.now(), datetime)
    assert_type(dasync.random(), Random)
    assert_type(dasync.uuid4(), UUID)
    configured = tax.options(
        id="tax-1", on="desk/one", timeout=1.5, retry=Retry.linear(), detached=True, version=3, tags={"a": "b"}
    )
    assert_type(await configured(1), float)
    assert_type(await dasync.invoke(tax, 1, rate=2.0), float)
    assert_type(await tax.fn(1), float)
    if order.cents < 0:
        raise dasync.Terminal("negative")
    assert_type(await by_item(order), int | None)
    return order.id


@dasync.function
async def countdown(number: int, *, step: int = 1) -> str:
    if number > 0:
        assert_type(countdown.again(number - step, step=step), str)
        return countdown.again(number - step)
    return "done"


@dasync.function
def summed(number: int, sum: int = 0) -> int:
    return sum if number == 0 else summed.again(number - 1, sum + number)


async def main() -> int:
    functions: Sequence[Function[..., object]] = [checkout, ship]
    async with EventLoop(
        "orders.db", group="default", process="one", functions=functions, durability="process", lease=5, concurrency=10,
        max_resident=100, max_payload=1_000, poll=0.1, retry=Retry.never(),
    ) as loop:  # fmt: skip
        assert_type(await loop.invoke(checkout, Order("1", 100)), str)
        assert_type(loop.get("1", bool), Promise[bool])
        assert_type(loop.get("1"), Promise[object])
        page = await loop.search(state=State.PENDING, function="checkout", id_prefix="o", tags={"a": "b"}, limit=10)
        assert_type(page.cursor, str | None)
        assert_type(loop.snapshot().promises, int)
        await loop.drain(timeout=1)
    try:
        await checkout(Order("1", 100))
    except dasync.RemoteError as error:
        assert_type((error.type, error.message, error.traceback), tuple[str, str, str])
    return 0


assert_type(dasync.run(main, store="orders.db"), int)
