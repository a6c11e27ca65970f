"""The whole model: invoke a function and get a promise; await the promise and get its value.

While `outer` waits, the event loop tracks two things: promises, and awaiters (who waits for which promise).
Run it with `python examples/01_model.py`.
"""

import asyncio

import dasync

outer_waits, looked = asyncio.Event(), asyncio.Event()


@dasync.function
async def inner() -> int:
    outer_waits.set()
    await looked.wait()
    return 42


@dasync.function
async def outer() -> int:
    promise = inner()  # invoke: inner starts, outer goes on
    value = await promise  # await: outer waits, until inner returns
    return 2 * value


async def main() -> None:
    async with dasync.EventLoop("memory:") as loop:
        promise = outer.options(id="outer")()
        await outer_waits.wait()
        print("promises:", {id: p.state.value for id, p in loop.promises.items()})
        print("awaiters:", dict(loop.awaiters))
        looked.set()
        print(await promise)


if __name__ == "__main__":
    asyncio.run(main())
