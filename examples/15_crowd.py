"""A crowd that waits: of five hundred executions before a closed door ten stay resident, the store keeps the others.

Run it with `python examples/15_crowd.py`: one gives up; when the door is opened, the others go on.
"""

import asyncio

import dasync

CROWD, RESIDENT = 500, 10


@dasync.function
async def guest(number: int) -> None:
    await dasync.promise(id="door")


async def main() -> None:
    async with dasync.EventLoop("memory:", max_resident=RESIDENT) as loop:
        door = dasync.promise(id="door")
        guests = [guest.options(id=f"guest-{number}")(number) for number in range(CROWD)]
        await guests[-1].created()
        while loop.snapshot().tasks > RESIDENT:
            await dasync.sleep(0.01)
        print(f"{CROWD} wait, {loop.snapshot().tasks} of them resident")
        await guests[0].cancel("went home")
        await door.resolve()
        settled = await dasync.all_settled(*guests)
        print(f"{sum(one.state is dasync.State.RESOLVED for one in settled)} are in, {guests[0].exception()}")


if __name__ == "__main__":
    asyncio.run(main())
