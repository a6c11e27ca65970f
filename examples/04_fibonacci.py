"""The same recursion in three ways: in this process, dispatched to a group, and half and half.

Only `on=` differs: where an invocation runs is a choice at the call, not of the function. Here this process serves
the group itself; start `dasync worker` processes on the same file and they share the work.
Run it with `python examples/04_fibonacci.py [STORE]`.
"""

import asyncio
import sys

import dasync


@dasync.function
async def local(n: int) -> int:
    return n if n < 2 else sum(await dasync.all(local(n - 1), local(n - 2)))


@dasync.function(on="sums")
async def remote(n: int) -> int:
    return n if n < 2 else sum(await dasync.all(remote(n - 1), remote(n - 2)))


@dasync.function
async def mixed(n: int) -> int:
    elsewhere = mixed.options(on="sums")
    return n if n < 2 else sum(await dasync.all(mixed(n - 1), elsewhere(n - 2)))


async def main() -> None:
    store = sys.argv[1] if sys.argv[1:] else "memory:"
    async with dasync.EventLoop(store, group="sums") as loop:
        for function in (local, remote, mixed):
            print(f"{function.name}(10) = {await function(10)}")
        print(f"{loop.snapshot().commands} commands in {loop.snapshot().batches} transactions")


if __name__ == "__main__":
    asyncio.run(main())
