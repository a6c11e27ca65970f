"""The event loop, as programs open it: a guest of the running asyncio loop.

The model itself, promises and awaiters, with its handlers invoke, await and return, is `runtime/handlers.py`. This
file puts a process together around it: the journal to its store, the runner of its tasks, the worker that acquires
them, the transport that wakes it. It decides nothing by itself.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack
from types import TracebackType
from typing import NamedTuple, TypeVar, overload

import anyio

from dasync.core import ids
from dasync.core.model import PromiseRecord, State
from dasync.core.protocol import MAX_CRASHES
from dasync.errors import NoEventLoop, StoreUnavailable
from dasync.ports import Clock, Entropy, Found, Search, Store, Transport
from dasync.runtime import branch, registry
from dasync.runtime import function as invocations
from dasync.runtime.clocks import loop_factory
from dasync.runtime.function import Function
from dasync.runtime.handlers import Handlers
from dasync.runtime.journal import Journal
from dasync.runtime.lease import Lease
from dasync.runtime.policy import Retry
from dasync.runtime.pool import Pool, check_guarded
from dasync.runtime.promise import Promise
from dasync.runtime.root import PYTHON, Listening, Roots
from dasync.runtime.runner import Runner
from dasync.runtime.watchdog import Watchdog
from dasync.stores.memory import MemoryStore
from dasync.stores.sqlite import Durability, SqliteStore
from dasync.system import SystemClock, SystemEntropy
from dasync.transports.local import LocalTransport, NoTransport
from dasync.worker import Terms, Worker

R = TypeVar("R")
NAME_BYTES = 3  # of a process that was given no name
NEVER = Retry.never()
MAX_SEARCH = 1_000


class Page(NamedTuple):
    """Part of a search, and where the next part begins."""

    found: tuple[Found, ...]
    cursor: str | None
    """Give it to the next search; None: this was the last part."""


class Snapshot(NamedTuple):
    """What one EventLoop is doing, at one moment."""

    process: str
    group: str
    promises: int
    """Pending promises that are tracked."""
    awaiters: int
    tasks: int
    """Tasks held."""
    waiting: int
    """Tasks held whose executions wait for something that is settled elsewhere."""
    batches: int
    """Transactions committed since it was opened."""
    commands: int
    """Commands in them."""
    wakeups: int
    """How often this process's doorbell has rung."""


class EventLoop:
    """Durable promises on one store, inside the running asyncio loop. Open it with `async with`.

    `store` is a path, `sqlite:///path`, `memory:` or a `Store`. `group` is what this process works for, `process`
    its name. `functions` limits what it runs (default: all that are registered). `lease` and `poll` are in seconds,
    `max_payload` in bytes; `concurrency` counts tasks that run, not those that only wait; with more than
    `max_resident` that only wait, the longest waiting are handed back to the store until they can go on. `durability`
    is "power" or "process": what an acknowledged write survives. `retry` is the policy of functions that have none of
    their own. A task whose code was running when its process ended without a word, `max_crashes` times in a row with
    nothing new on record, is halted as poisoned. `processes` is how many run functions with `process=True` (default: as
    many as there are CPUs). `clock`, `entropy` and `transport` replace the system's.

    Raises `StoreError` when the store cannot be opened, `ValueError` when two functions share a name.

    Example:
        >>> import asyncio, dasync
        >>> @dasync.function
        ... async def greet(name: str) -> str:
        ...     return f"hello {name}"
        >>> async def main() -> str:
        ...     async with dasync.EventLoop("memory:") as loop:
        ...         return await greet("world")
        >>> asyncio.run(main())
        'hello world'
    """

    def __init__(
        self,
        store: str | Store = "memory:",
        *,
        group: str = "default",
        process: str | None = None,
        functions: Sequence[Function[..., object]] | None = None,
        durability: Durability = "power",
        lease: float = 10.0,
        concurrency: int = 1000,
        max_resident: int = 10_000,
        max_payload: int = 2 * 2**20,
        poll: float = 0.25,
        max_crashes: int = MAX_CRASHES,
        processes: int | None = None,
        retry: Retry = NEVER,
        clock: Clock | None = None,
        entropy: Entropy | None = None,
        transport: Transport | None = None,
    ) -> None:
        counts = (concurrency, max_resident + 1, max_payload, max_crashes, 1 if processes is None else processes)
        if lease <= 0 or poll <= 0 or min(counts) < 1:
            raise ValueError(
                "lease, poll, concurrency, max_payload, max_crashes and processes are positive, max_resident is 0 or"
                " more"
            )
        invocations.check_retry(retry)
        self._real_time = clock is None
        self._watchdog: Watchdog | None = None
        clock, entropy = clock or SystemClock(), entropy or SystemEntropy()
        self.group = group
        """What this process works for."""
        self._store = _open_store(store, clock, durability)
        if transport is None:
            transport = NoTransport() if self._store.path is None else LocalTransport(self._store.path)
        self._transport = transport
        self._journal = Journal(
            self._store, clock, ring=transport.ring, unavailable=self._unavailable, broken=self._broken
        )
        self._handlers = Handlers(self._journal, lambda promise: Listening(self._runner, promise), max_payload)
        lent = self._lease = Lease(clock, lease)
        self._pool = Pool(max_crashes, max_payload)
        self._runner = Runner(
            self._handlers, self._journal, clock,
            lease=lent, functions=functions, max_payload=max_payload, retry=retry,
            pool=self._pool, processes=processes or os.cpu_count() or 1,
        )  # fmt: skip
        name = process or f"{group}-{entropy.bytes(NAME_BYTES).hex()}"
        self._terms = Terms(group, name, round(lease * 1000), concurrency, max_resident, poll, PYTHON, max_crashes)
        self._worker = Worker(
            self._runner, self._terms, store=self._store, transport=transport, clock=clock, entropy=entropy,
            journal=self._journal, lease=lent,
        )  # fmt: skip
        self._roots = self._runner.roots = Roots(self._runner, self._handlers, entropy, group)
        self._runner.worker = self._worker
        self._asyncio: asyncio.AbstractEventLoop | None = None
        self._opened = False

    def __repr__(self) -> str:
        state = "open" if self._asyncio is not None else "closed"
        return f"<EventLoop {self.process or self._terms.name} {state}, {len(self._handlers.pending)} promises pending>"

    # -- open and close

    @property
    def process(self) -> str:
        """This process's name in the store; another one after a lost lease."""
        return self._worker.process

    async def __aenter__(self) -> EventLoop:
        if self._opened:
            raise RuntimeError("this EventLoop is open already, or was: make another one")
        check_guarded()
        registry.registered()  # a conflict of names is said before anything is touched
        self._opened = True
        try:
            await self._store.open()
        except BaseException:
            self._opened = False
            raise
        self._asyncio = asyncio.get_running_loop()
        branch.install(self._asyncio)
        self._handlers.open()
        self._journal.start()
        try:
            await self._worker.join()
        except BaseException:
            self._journal.hurry()
            await _whole(self._close())
            raise
        invocations.open_host(self._roots)
        if self._real_time:
            self._watchdog = Watchdog(self._lease, self._terms.lease_ms / 1000)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        invocations.close_host(self._roots)
        self._journal.hurry()
        await _whole(self._leave())

    async def _leave(self) -> None:
        try:
            if self._handlers.error is None:
                await self._worker.drain(0)
                await self._worker.leave()
        finally:
            await self._close()

    async def _close(self) -> None:
        async with AsyncExitStack() as steps:  # each of them, whatever comes of those before it; the last one first
            steps.callback(self._closed)
            steps.push_async_callback(self._store.close)
            steps.push_async_callback(lambda: self._transport.close(left=self._worker.left))
            steps.callback(lambda: self._runner.give_up(StoreUnavailable("the EventLoop is closed")))
            steps.push_async_callback(self._journal.close)
            steps.callback(self._pool.close)
            steps.callback(self._worker.stop)
            if self._watchdog is not None:
                steps.callback(self._watchdog.stop)

    def _closed(self) -> None:
        if self._asyncio is not None:
            branch.uninstall(self._asyncio)
            self._asyncio = None
        self._handlers.close()

    def _unavailable(self, error: StoreUnavailable) -> None:
        self._handlers.fail_outside(error)

    def _broken(self, error: BaseException) -> None:
        self._runner.broken(error)

    # -- for programs

    @property
    def promises(self) -> Mapping[str, Promise[object]]:
        """The promises that this process tracks: the pending ones, and settled roots while somebody holds them."""
        return self._handlers.promises

    @property
    def awaiters(self) -> Mapping[str, tuple[str, ...]]:
        """Who waits in this process: promise ids to ids of executions (outside them, names of asyncio tasks)."""
        return self._handlers.awaiters.view

    def invoke(self, f: Function[..., R], *args: object, **kwargs: object) -> Promise[R]:
        """Invoke `f` here: what calling it does, for a program with several EventLoops.

        Inside an execution of another EventLoop it takes a function with an `id` and makes a root; without one, or in
        a thread, it raises `NoEventLoop`: a replay there could not tell that it has been invoked here.
        """
        at = invocations.here()
        if at is not None and not self._runner.owns(at):
            if f.configured.id is None or branch.thread.get() is not None:
                raise NoEventLoop(
                    f"{f.name!r} was invoked on {self!r} inside {at.owner.id!r}, an execution of another EventLoop:"
                    " give it an id, as loop.invoke(f.options(id=...), ...), in an `async def` function, so that a"
                    " replay finds it again"
                )
            at = None
        if at is not None:
            return invocations.caller(at).invoke(at, f, args, kwargs)
        return self._roots.invoke_function(f, args, kwargs)

    @overload
    def get(self, id: str, type: type[R]) -> Promise[R]: ...
    @overload
    def get(self, id: str, type: object = None) -> Promise[object]: ...
    def get(self, id: str, type: object = None) -> Promise[object]:
        """A handle to a promise made anywhere; awaiting it raises `PromiseNotFound` if there is none.

        `type` says what its value is; by default its function's annotation does, where that is known here.
        """
        self._handlers.check_open()
        there = self._handlers.known(ids.check(id))
        if there is not None and type is None:
            return there
        promise = self._handlers.handle(id, object if type is None else type)

        def annotate(record: PromiseRecord) -> None:
            made = registry.registered().get((record.function, record.version))
            if type is None and made is not None:
                promise.expect(made.result)

        self._handlers.begin(promise, Listening(self._runner, promise, annotate))
        return promise

    async def search(
        self,
        *,
        state: State | None = None,
        function: str | None = None,
        id_prefix: str = "",
        tags: Mapping[str, str] | None = None,
        limit: int = 100,
        cursor: str | None = None,
    ) -> Page:
        """Promises of the store in the order of their ids, at most `limit` (1 to 1000), from `cursor` on."""
        if not 1 <= limit <= MAX_SEARCH:
            raise ValueError(f"limit is 1 to {MAX_SEARCH}, not {limit}")
        self._handlers.check_open()
        search = Search(state, function, id_prefix, tags, limit=limit + 1, cursor=cursor or "")
        found = await self._store.search(search)
        more = len(found) > limit
        return Page(tuple(found[:limit]), found[limit - 1].promise.id if more else None)

    async def failed(self) -> BaseException:
        """Wait until this EventLoop can write nothing more (a damaged store, a bug of ours), and say why.

        A process that only serves others races this against its stop signal; else it would sit there for ever.
        """
        await self._handlers.ended.wait()
        return self._handlers.error or StoreUnavailable("the EventLoop has ended")

    def snapshot(self) -> Snapshot:
        """What this EventLoop is doing now, frozen: for pages and metrics."""
        held, journal = self._worker.capacity.held, self._journal
        return Snapshot(
            self.process, self.group, len(self._handlers.pending), len(self._handlers.awaiters), len(held),
            sum(one.blocked > 0 for one in held.values()), journal.batches, journal.commands,
            self._worker.wakeups,
        )  # fmt: skip

    async def drain(self, timeout: float = 30.0) -> None:
        """Acquire nothing more, let what runs finish for `timeout` seconds; end the rest, hand it to other workers."""
        self._handlers.check_open()
        await self._worker.drain(timeout)


def run(main: Callable[[], Coroutine[object, object, R]] | Function[[], R], *, store: str | Store = "memory:") -> R:
    """Run `main` on an asyncio loop of its own, with an EventLoop on `store` open around it.

    The asyncio loop has durable clocks: see `loop_factory`.

    `main` is a coroutine function or a dasync function without parameters; gives what it returns. What `store` names,
    `EventLoop` says: with "memory:" nothing outlives this call.

    Example:
        >>> import dasync
        >>> async def main() -> int:
        ...     return 42
        >>> dasync.run(main)
        42
    """

    given: object = main
    if isinstance(given, Coroutine):
        given.close()
        raise TypeError("dasync.run takes the function itself: write dasync.run(main), not dasync.run(main())")

    async def hosted() -> R:
        async with EventLoop(store):
            return await main()

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        return runner.run(hosted())


async def _whole(work: Coroutine[object, object, None]) -> None:
    """Let it come to its end, in a task of its own, whoever cancels this one meanwhile: by asyncio, or by anyio's
    scopes, which would cancel every await."""
    # No task factory is asked: who closes this EventLoop may be an execution of another one.
    task, canceled = asyncio.Task(work, loop=asyncio.get_running_loop()), None
    with anyio.CancelScope(shield=True):
        while not task.done():
            try:
                await asyncio.wait([task])
            except asyncio.CancelledError as error:
                canceled = error
    task.result()
    if canceled is not None:
        raise canceled


def _open_store(store: str | Store, clock: Clock, durability: Durability) -> Store:
    if not isinstance(store, str):
        return store
    if store == "memory:":
        return MemoryStore(clock)
    scheme, separator, rest = store.partition("://")
    if not separator:
        return SqliteStore(store, clock, durability)
    if scheme != "sqlite" or not rest.strip("/"):
        raise ValueError(f"store {store!r}: give a path, 'sqlite:///path', 'memory:' or a Store")
    return SqliteStore(rest.removeprefix("/") if not rest.startswith("//") else rest[1:], clock, durability)
