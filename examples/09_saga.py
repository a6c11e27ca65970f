"""A saga: each step has an undo, and when one fails the undos run in reverse, even if the program dies among them.

    python examples/09_saga.py trip.db crash     # the car is not to be had; dies in the middle of the compensation
    python examples/09_saga.py trip.db           # goes on with the undo that is left

`with` and `try` are all it takes: an `AsyncExitStack` of durable undos is replayed like any other code.
"""

import os
import sys
from contextlib import AsyncExitStack

import dasync


@dasync.function
async def book(what: str) -> str:
    if what == "car":
        raise LookupError("no car is left")
    print(f"booked: {what}", flush=True)
    return f"{what}-1"


@dasync.function
async def cancel(booking: str) -> None:
    if booking == "flight-1" and "crash" in sys.argv:
        os._exit(1)  # no cleanup, no goodbye: as kill -9 does it
    print(f"undone: {booking}", flush=True)


@dasync.function
async def trip(*parts: str) -> list[str]:
    async with AsyncExitStack() as undo:
        bookings = []
        for part in parts:
            bookings.append(await book(part))
            undo.push_async_callback(cancel, bookings[-1])
        undo.pop_all()  # all is booked: nothing is to be undone
        return bookings


async def main() -> None:
    try:
        print("the trip is booked:", await trip.options(id="trip")("flight", "hotel", "car"))
    except LookupError as error:
        print("no trip:", error)


if __name__ == "__main__":
    dasync.run(main, store=sys.argv[1] if sys.argv[1:] else "memory:")
