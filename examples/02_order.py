"""An order outlives its process and waits for the world. Three commands show it:

    python examples/02_order.py orders.db crash     # sends the text message, then dies
    dasync resolve order-1-fulfilled --text "the warehouse" --store orders.db    # settled while nobody runs
    python examples/02_order.py orders.db           # goes on from there: no second text message

Fulfillment is a promise that somebody outside settles. For order-3 nobody does, so its deadline comes.
"""
import os
import sys

import dasync


@dasync.function
async def validate(order: str, cents: int) -> None:
    if cents <= 0:
        raise ValueError(f"{order} has no price")

@dasync.function
async def calculate_tax(cents: int) -> int:
    return cents // 5

@dasync.function
async def generate_invoice(order: str, cents: int) -> str:
    return f"invoice for {order}: {cents / 100:.2f}"

@dasync.function
async def send_order_confirmed_sms(order: str) -> None:
    print(f"sms: {order} is confirmed", flush=True)

@dasync.function
async def wait_for_fulfillment(order: str, patience: float) -> str:
    fulfilled = dasync.promise(str, id=f"{order}-fulfilled", timeout=patience)
    await fulfilled.created()
    if "crash" in sys.argv:
        os._exit(1)  # no cleanup, no goodbye: as kill -9 does it
    return await fulfilled

@dasync.function
async def notify(text: str) -> None:
    print(f"mail: {text}", flush=True)

@dasync.function
async def process_order(order: str, cents: int, patience: float = 60) -> None:
    try:
        await validate(order, cents)
        invoice = await generate_invoice(order, cents + await calculate_tax(cents))
        await send_order_confirmed_sms(order)
        by = await wait_for_fulfillment(order, patience)
        await notify(f"{invoice}, shipped by {by}")
    except (ValueError, dasync.PromiseTimedOut) as error:
        await notify(f"sorry, {error}")  # the error response

async def shop() -> None:
    for order, cents, patience in (("order-1", 100, 60), ("order-2", 0, 60), ("order-3", 100, 0.2)):
        await process_order.options(id=order)(order, cents, patience)

if __name__ == "__main__":
    dasync.run(shop, store=sys.argv[1] if sys.argv[1:] else "orders.db")
