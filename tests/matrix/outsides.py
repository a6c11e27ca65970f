"""The real world between promises: threads, sockets, an HTTP client, subprocesses. None of it is recorded."""

from __future__ import annotations

import asyncio
import socketserver
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx

from dasync.testing.leaves import blocked
from matrix.catalogue import Seen, program


class _Echo(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        for line in self.rfile:
            self.wfile.write(line.upper())


class _Hello(BaseHTTPRequestHandler):
    def do_GET(self) -> None:  # as http.server names it
        body = f"hello {self.path}".encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Nobody reads it."""


def _serve(server: socketserver.TCPServer) -> tuple[str, int]:
    threading.Thread(target=server.serve_forever, daemon=True).start()
    host, port = server.server_address[:2]
    return str(host), int(port)


@cache
def echo() -> tuple[str, int]:
    """Address of a server that gives each line back in capitals."""
    socketserver.ThreadingTCPServer.daemon_threads = True
    return _serve(socketserver.ThreadingTCPServer(("127.0.0.1", 0), _Echo))


@cache
def hello() -> tuple[str, int]:
    """Address of a server that greets over HTTP."""
    return _serve(ThreadingHTTPServer(("127.0.0.1", 0), _Hello))


async def _between(call: Callable[[str], Awaitable[object]]) -> Any:
    """Two sequences with something of the real world between their leaves."""

    async def sequence(first: str, second: str) -> list[object]:
        seen = Seen()
        await seen.one(first)
        seen.say(await call(first))
        await seen.one(second)
        return seen.all

    return await asyncio.gather(sequence("a", "b"), sequence("c", "d"))


def _shout(text: str) -> str:
    return text.upper()


@program("a b c d")
async def to_thread() -> Any:
    return await _between(lambda text: asyncio.to_thread(_shout, text))


@program("a b c d")
async def run_in_executor() -> Any:
    loop = asyncio.get_running_loop()
    with ThreadPoolExecutor(1) as pool:
        return await _between(lambda text: loop.run_in_executor(pool, _shout, text))


@program("a b c d")
async def open_connection() -> Any:
    async def ask(text: str) -> str:
        reader, writer = await asyncio.open_connection(*echo())
        writer.write(f"{text}\n".encode())
        await writer.drain()
        line = await reader.readline()
        writer.close()
        await writer.wait_closed()
        return line.decode()

    return await _between(ask)


@program("a b c d")
async def http_request() -> Any:
    host, port = hello()

    async def ask(text: str) -> str:
        async with httpx.AsyncClient(trust_env=False, verify=False) as client:
            return (await client.get(f"http://{host}:{port}/{text}")).text

    return await _between(ask)


@program("a b c d")
async def subprocess() -> Any:
    async def ask(text: str) -> str:
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec("tr", "a-z", "A-Z", stdin=pipe, stdout=pipe)
        out, _ = await process.communicate(text.encode())
        return f"{out.decode()} {process.returncode}"

    return await _between(ask)


@program("a b c d", raw="t u")
async def threads_between() -> Any:
    """Which thread is faster changes nothing."""

    async def sequence(first: str, thread: str, second: str) -> list[object]:
        seen = Seen()
        await seen.one(first)
        seen.say(await asyncio.to_thread(blocked, thread))
        await seen.one(second)
        return seen.all

    return await asyncio.gather(sequence("a", "t", "b"), sequence("c", "u", "d"))


@program("a x y", raw="t", steered=True, kinds=("external", "local", "remote"))
async def thread_races_a_promise() -> Any:
    """A thread's time decides what is invoked: a replay that comes out otherwise has to say so.

    Not with what others share: to ask for that leaves no trace until something follows from its outcome.
    """
    seen = Seen()
    thread = asyncio.create_task(asyncio.to_thread(blocked, "t"))
    promise = asyncio.create_task(seen.one("a"))
    done, _ = await asyncio.wait((thread, promise), return_when=asyncio.FIRST_COMPLETED)
    seen.say(sorted(task.result() for task in done))
    await seen.one("x" if thread in done else "y")
    await asyncio.wait((thread, promise))
    return seen.all


@program("a b", raw="t")
async def thread_beside_a_sequence() -> Any:
    """Nothing follows from the thread's time but a line."""
    seen = Seen()

    async def shouts() -> None:
        seen.say(await asyncio.to_thread(blocked, "t"))

    await asyncio.gather(seen.sequence("a", "b"), shouts())
    return seen.all


@program("a b c", raw="t", steered=True)
async def thread_steers_a_sequence() -> Any:
    """One sequence has a thread between its leaves, the other goes on meanwhile."""
    seen = Seen()

    async def slow() -> None:
        await seen.one("a")
        seen.say(await asyncio.to_thread(blocked, "t"))
        await seen.one("b")

    await asyncio.gather(slow(), seen.one("c"))
    return seen.all
