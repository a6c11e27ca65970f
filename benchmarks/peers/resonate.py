"""The program on Resonate: a durable function that gathers two coroutines of `ctx.run`.

Resonate numbers what a function runs by the order of the calls. Where sequences go on side by side, its examples give
each a function of its own, which numbers for itself, started with `ctx.run` before any is awaited: the way
`ctx.run(sequence)`. The way `gather` is the program without them.

The SDK needs a server, which no wheel brings; what it brings is a server in memory, for programs of one process
(`LocalConnection`). `serve` keeps one in a process that outlives the program's, and `Line` is a connector to it, as the
SDK lets one write them. So what is kept survives the program's death, and the program speaks to a server as it always
does. A lease lasts a second, not a minute, so that a dead process's task is handed on soon.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

from resonate.connections.local import LocalConnection
from resonate.context import Context
from resonate.resonate import Resonate

from benchmarks.peers import stage

GROUP = "default"
LEASE = timedelta(seconds=1)
SOCKET = "line.sock"


async def step(ctx: Context, name: str, i: int) -> str:
    return await stage.work(name, i)


async def sequence(ctx: Context, name: str) -> list[str]:
    return [stage.give(name, i, await ctx.run(step, name, i)) for i in range(2)]


async def gathers(ctx: Context) -> list[list[str]]:
    return list(await asyncio.gather(sequence(ctx, "a"), sequence(ctx, "b")))


async def runs_sequences(ctx: Context) -> list[list[str]]:
    futures = [ctx.run(sequence, name) for name in "ab"]
    return [await future for future in futures]


WAYS = {"gather": gathers, "ctx.run(sequence)": runs_sequences}


class Line:
    """A connector: requests go to the server as lines of JSON, answers and messages come back."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._open = asyncio.Event()
        self._answers: dict[int, asyncio.Future[str]] = {}
        self._receivers: list[Callable[[str], None]] = []

    def unicast(self) -> str:
        return f"local://uni@{GROUP}/{self._path.name}"

    def resolve_target(self, target: str) -> str:
        return f"local://any@{target}"

    def recv(self, callback: Callable[[str], None]) -> None:
        self._receivers.append(callback)

    async def start(self) -> None:
        reader, self._writer = await asyncio.open_unix_connection(str(self._path))
        self._reading = asyncio.create_task(self._read(reader))
        self._open.set()

    async def stop(self) -> None:
        self._reading.cancel()
        self._writer.close()

    async def send(self, req: str, headers: dict[str, str] | None = None) -> str:
        await self._open.wait()
        number = len(self._answers)
        self._answers[number] = asyncio.get_running_loop().create_future()
        self._writer.write(line_of(number, req))
        return await self._answers[number]

    async def _read(self, reader: asyncio.StreamReader) -> None:
        async for line in reader:
            number, text = json.loads(line)
            if number is not None:
                self._answers[number].set_result(text)
            else:
                for receive in self._receivers:
                    receive(text)


def line_of(number: int | None, text: str) -> bytes:
    """An answer to the request of that number, or a message to whoever listens."""
    return json.dumps([number, text]).encode() + b"\n"


async def keep(path: Path) -> None:
    server = LocalConnection(group=GROUP, tick_interval=0.1)
    connected: list[asyncio.StreamWriter] = []  # at most one: the program's first process, or its second
    waiting: list[str] = []  # messages that came while there was none

    def pass_on(message: str) -> None:
        if connected:
            connected[-1].write(line_of(None, message))
        else:
            waiting.append(message)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connected.append(writer)
        while waiting:
            pass_on(waiting.pop(0))
        try:
            async for line in reader:
                number, request = json.loads(line)
                writer.write(line_of(number, await server.send(request)))
        finally:
            connected.remove(writer)

    server.recv(pass_on)
    await server.start()
    async with await asyncio.start_unix_server(answer, str(path)):
        print("serves", flush=True)
        await asyncio.Event().wait()


def serve(store: Path) -> None:
    asyncio.run(keep(store / SOCKET))


async def run(store: Path, way: str) -> object:
    resonate = Resonate(network=Line(store / SOCKET), group=GROUP, ttl=LEASE)
    resonate.register(WAYS[way])
    handle = resonate.run("program", WAYS[way])
    return await handle.result()


def first(store: Path, plan: stage.Plan) -> object:
    return asyncio.run(run(store, plan.way))


if __name__ == "__main__":
    stage.main(first, first, ways=tuple(WAYS), serve=serve)
