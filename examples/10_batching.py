"""Transparent batching: each sign-up inserts one user and awaits it; one transaction inserts many.

Run it with `python examples/10_batching.py`. Nobody collects anything: what begins within 10 ms, in whichever
execution, is one call of the handler. Each user is a promise of its own, with its own number, or its own error.
"""

import asyncio
import sqlite3

import dasync

db = sqlite3.connect(":memory:", check_same_thread=False)
db.execute("CREATE TABLE users (id INTEGER PRIMARY KEY, name TEXT UNIQUE)")
# A user whose promise was not settled when the process ended is handed over again: inserting it twice changes nothing.
INSERT = "INSERT INTO users (name) VALUES (?) ON CONFLICT (name) DO UPDATE SET name = name RETURNING id"
transactions: list[int] = []


@dasync.batched(max_size=1000, max_wait=0.01)
def insert_user(names: list[str]) -> list[int | Exception]:
    transactions.append(len(names))
    with db:
        return [db.execute(INSERT, [name]).fetchone()[0] if name else ValueError("no name") for name in names]


@dasync.function
async def sign_up(name: str) -> str:
    return f"{name} is user {await insert_user(name)}"


async def main() -> None:
    async with dasync.EventLoop():
        names = [f"user-{number}" for number in range(500)]
        said = await asyncio.gather(*map(sign_up, [*names, ""]), return_exceptions=True)
    print(said[0], repr(said[-1]), sep="\n")
    print(f"{len(said)} sign-ups, {len(transactions)} transaction{'s' * (len(transactions) > 1)}")


if __name__ == "__main__":
    asyncio.run(main())
