"""The event loop: promises and awaiters; invoke, await, return.

That is the whole model, and here is its durable form. `invoke_function` makes a promise and lets the function
start; `await_` lets somebody wait; `return_` settles a promise and resumes who waits. The loop is a guest of the
running asyncio loop. What is durable goes through the journal to the store; who works on what is `worker.py`'s.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from collections import ChainMap
from collections.abc import Callable, Coroutine, Mapping, Sequence
from types import MappingProxyType, TracebackType
from typing import NamedTuple, TypeVar, cast
from weakref import WeakValueDictionary

from dasync.core import failure, ids
from dasync.core.model import PromiseRecord, State
from dasync.core.protocol import Acquired, Claim, PromiseCreate, TaskRelease
from dasync.errors import FunctionNotFound, NoEventLoop, StoreUnavailable
from dasync.ports import Clock, Entropy, Found, Store, Transport
from dasync.runtime import branch, function
from dasync.runtime.awaiters import Awaiters
from dasync.runtime.execution import SLEEP, Execution
from dasync.runtime.function import Function
from dasync.runtime.held import Deadline, Held
from dasync.runtime.journal import Journal
from dasync.runtime.promise import UNREAD, Promise
from dasync.runtime.root import Listening, Root
from dasync.stores.memory import MemoryStore
from dasync.stores.sqlite import Durability, SqliteStore
from dasync.system import SystemClock, SystemEntropy
from dasync.transports.local import LocalTransport, NoTransport
from dasync.worker import Terms, Worker

R = TypeVar("R")
FRESH_ID_BYTES = 8
SEED_BYTES = 16
MAX_SEARCH = 1_000
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
_log = logging.getLogger("dasync")


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


class EventLoop:
    """Durable promises on one store, inside the running asyncio loop. Open it with `async with`.

    `store` is a path, `sqlite:///path`, `memory:` or a `Store`. `group` is what this process works for, `process`
    its name. `functions` limits what it runs (default: all that are registered). `lease` and `poll` are in seconds,
    `max_payload` in bytes; `concurrency` counts tasks that run, not those that only wait. `durability` is "power"
    or "process": what an acknowledged write survives. `clock` and `entropy` replace the system's.

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
        max_payload: int = 2 * 2**20,
        poll: float = 0.25,
        clock: Clock | None = None,
        entropy: Entropy | None = None,
    ) -> None:
        if lease <= 0 or poll <= 0 or concurrency < 1 or max_payload < 1:
            raise ValueError("lease, poll, concurrency and max_payload are positive")
        self.clock: Clock = clock or SystemClock()
        self.entropy: Entropy = entropy or SystemEntropy()
        self.max_payload = max_payload
        self.group = group
        self.python = PYTHON
        self._store = _open_store(store, self.clock, durability)
        self._functions = functions
        transport: Transport = NoTransport() if self._store.path is None else LocalTransport(self._store.path)
        self._transport = transport
        self.journal = Journal(
            self._store, self.clock, ring=transport.ring, unavailable=self._unavailable, broken=self._broken
        )
        name = process or f"{group}-{self.entropy.bytes(3).hex()}"
        self._terms = Terms(group, name, round(lease * 1000), concurrency, poll, PYTHON)
        self._worker = Worker(
            self, self._terms, store=self._store, transport=transport, clock=self.clock, entropy=self.entropy,
            journal=self.journal,
        )  # fmt: skip
        self._tracked: dict[str, Promise[object]] = {}
        self._settled: WeakValueDictionary[str, Promise[object]] = WeakValueDictionary()
        self._twins: dict[str, list[Promise[object]]] = {}
        self._awaiters = Awaiters()
        self._asyncio: asyncio.AbstractEventLoop | None = None
        self._error: BaseException | None = None

    def __repr__(self) -> str:
        state = "open" if self._asyncio is not None else "closed"
        return f"<EventLoop {self.process or self._terms.name} {state}, {len(self._tracked)} promises pending>"

    # -- the three handlers

    def invoke_function(
        self, function: Function[..., R], args: tuple[object, ...], kwargs: dict[str, object]
    ) -> Promise[R]:
        """Invoke: a root promise comes into being and its function starts. Never suspends the caller."""
        self._check_open()
        options = function.configured
        if function.declared and options.on is None:
            raise FunctionNotFound(f"{function.name!r} is only declared here: say where it runs, with on=")
        function.bind(args, kwargs)
        param, _, _ = function.shape.encode(args, kwargs, self.max_payload)
        create = PromiseCreate(
            options.id or self._fresh_id(function.name),
            function.name,
            function.version,
            param,
            options.on or self.group,
            timeout_at=self._deadline(options.timeout_s),
            tags=json.dumps(options.tags, sort_keys=True) if options.tags else "",
            seed=self.entropy.bytes(SEED_BYTES),
        )
        return cast("Promise[R]", self._begin_root(create, function.result, local=options.on is None))

    def await_(self, promise: Promise[object]) -> asyncio.Future[None]:
        """Await: the caller is suspended on the future that this gives, until the promise returns."""
        waiter = self._awaiters.add(promise, self._check_open())
        if self._error is not None and waiter.held is None:
            waiter.set_exception(self._error)
        return waiter

    def return_(
        self, promise: Promise[object], state: State, raw: bytes | None, value: object = UNREAD
    ) -> None:
        """Return: the promise is settled, durably; whoever awaits it is resumed."""
        if promise.done():
            return
        self._tracked.pop(promise.id, None)
        if ":" not in promise.id:
            self._settled[promise.id] = promise
        for handle in (promise, *self._twins.pop(promise.id, ())):
            handle.settle(state, raw, value)
        self._resume(promise)

    # -- what else promises and executions need

    def leave(self, promise: Promise[object], waiter: asyncio.Future[None]) -> None:
        self._awaiters.remove(promise.id, waiter)

    def is_awaited(self, promise: Promise[object]) -> bool:
        return promise.id in self._awaiters

    def refuse(self, promise: Promise[object], error: Exception) -> None:
        if self._tracked.get(promise.id) is promise:
            del self._tracked[promise.id]
        promise.refuse(error)
        self._resume(promise)  # another handle of the same id finds itself pending still and waits on

    def track(self, promise: Promise[object]) -> None:
        self._tracked[promise.id] = promise

    def listen(self, promise: Promise[object]) -> None:
        self.journal.write(Listening(self, promise))

    def urge(self) -> None:
        self.journal.urge()

    def read_error(self, data: bytes) -> BaseException:
        return failure.decode_error(data, function.error_classes())

    def call_at(self, at_ms: int, due: Deadline) -> None:
        self._worker.call_at(at_ms, due)

    def _resume(self, promise: Promise[object]) -> None:
        for future in self._awaiters.pop(promise.id):
            if not future.done():
                future.set_result(None)

    # -- roots made here, outside executions

    def external(self, annotation: object, id: str | None, timeout_s: float | None) -> Promise[object]:
        self._check_open()
        create = PromiseCreate(id or self._fresh_id("promise"), timeout_at=self._deadline(timeout_s))
        return self._begin_root(create, annotation, local=False)

    def timer(self, seconds: float) -> Promise[None]:
        self._check_open()
        create = PromiseCreate(self._fresh_id("sleep"), SLEEP, timer=True, timeout_at=self._deadline(seconds))
        return cast("Promise[None]", self._begin_root(create, object, local=False))

    def now_ms(self) -> int:
        return self.clock.now_ms()

    def seed(self) -> bytes:
        return self.entropy.bytes(SEED_BYTES)

    def _begin_root(self, create: PromiseCreate, annotation: object, *, local: bool) -> Promise[object]:
        promise = self._handle(create.id, annotation)
        self.journal.write(Root(self, promise, create, local=local))
        return promise

    def _handle(self, id: str, annotation: object) -> Promise[object]:
        """A handle to the promise of that id; it may be the second one of this process."""
        promise: Promise[object] = Promise(id, self, annotation)
        if self._tracked.setdefault(id, promise) is not promise:
            self._twins.setdefault(id, []).append(promise)
        return promise

    def _fresh_id(self, name: str) -> str:
        return ids.fresh_root(name, self.entropy.bytes(FRESH_ID_BYTES))

    def _deadline(self, timeout_s: float | None) -> int | None:
        return None if timeout_s is None else self.clock.now_ms() + round(timeout_s * 1000)

    # -- open and close

    @property
    def process(self) -> str:
        """This process's name in the store; another one after a lost lease."""
        return self._worker.process

    async def __aenter__(self) -> EventLoop:
        if self._asyncio is not None:
            raise RuntimeError("this EventLoop is open already; make another one")
        function.registered()  # a conflict of names is said before anything is touched
        await self._store.open()
        self._asyncio = asyncio.get_running_loop()
        branch.install(self._asyncio)
        self.journal.start()
        try:
            await self._worker.join()
        except BaseException:
            await self._close()
            raise
        function.open_host(self)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        function.close_host(self)
        try:
            if self._error is None:
                await self._worker.drain(0)
                await self._worker.leave()
        finally:
            await self._close()

    async def _close(self) -> None:
        self._worker.stop()
        await self.journal.close()
        await self._transport.close()
        await self._store.close()
        if self._asyncio is not None:
            branch.uninstall(self._asyncio)
            self._asyncio = None
        closed = NoEventLoop("the EventLoop was closed; the promise is in the store: await it from another one")
        for future in self._awaiters.outside():
            if not future.done():
                future.set_exception(closed)

    def _check_open(self) -> asyncio.AbstractEventLoop:
        if self._asyncio is None:
            raise NoEventLoop("this EventLoop is not open: use `async with dasync.EventLoop(...) as loop:`")
        return self._asyncio

    def _unavailable(self, error: StoreUnavailable) -> None:
        """The store is away: executions wait for it, everybody else is told."""
        for future in self._awaiters.outside():
            if not future.done():
                future.set_exception(error)

    def _broken(self, error: BaseException) -> None:
        """Nothing can be written any more: end what runs, tell who waits."""
        _log.critical("dasync stops writing: %s", error)
        self._error = error
        for held in list(self._worker.held.values()):
            held.lost(str(error))
        for future in self._awaiters.outside():
            if not future.done():
                future.set_exception(error)

    # -- what the worker asks for

    def reserve(self) -> bool:
        return self._worker.reserve()

    def unreserve(self) -> None:
        self._worker.unreserve()

    def functions(self) -> tuple[tuple[str, int], ...]:
        if self._functions is not None:
            return tuple((f.name, f.version) for f in self._functions)
        return tuple(function.registered())

    def run(self, acquired: Acquired) -> None:
        """Run a task that the worker has acquired."""
        made = function.lookup(acquired.promise.function, acquired.promise.version)
        promise = self._tracked.get(acquired.promise.id)
        if promise is None:
            promise = self._handle(acquired.promise.id, made.result)
        promise.mark_stored()
        if acquired.promise.timeout_at is not None:
            self.call_at(acquired.promise.timeout_at, Deadline(self, promise))
        self.begin(acquired, promise)

    def begin(self, acquired: Acquired, promise: Promise[object]) -> None:
        """Let the execution of a held task start, or go on from what it has recorded."""
        promise = self._tracked.get(promise.id, promise)
        made = function.lookup(acquired.promise.function, acquired.promise.version)
        held = Held(self, acquired, promise)
        self._worker.hold(held)
        promise.watcher = held
        args, kwargs = made.shape.decode(acquired.promise.param)
        Execution(held, held.id, made, None).start(args, kwargs)

    def give_back(self, acquired: Acquired) -> None:
        task = acquired.task
        self.journal.ask(TaskRelease(Claim(task.id, task.version, self.process)), keep=True)

    def holds(self, id: str) -> bool:
        return id in self._worker.held

    def waiting(self, held: Held, waits: bool) -> None:
        self._worker.waiting(held, waits)

    def let_go(self, held: Held) -> None:
        self._worker.let_go(held)
        if not held.promise.done() and not held.promise.refused and self._error is None:
            self.listen(held.promise)  # another process may settle it now

    def news(self, record: PromiseRecord) -> None:
        promise = self._tracked.get(record.id)
        if promise is not None:
            self.return_(promise, record.state, record.value)

    def awaited_by(self, held: Held) -> list[str]:
        return self._awaiters.awaited_by(held)

    def rejoined(self) -> None:
        for promise in list(self._tracked.values()):
            self.listen(promise)

    # -- for programs

    @property
    def promises(self) -> Mapping[str, Promise[object]]:
        """The promises that this process tracks: the pending ones, and settled roots while somebody holds them."""
        return MappingProxyType(ChainMap(self._tracked, cast("dict[str, Promise[object]]", self._settled)))

    @property
    def awaiters(self) -> Mapping[str, tuple[str, ...]]:
        """Who waits in this process: promise ids to ids of executions (outside them, names of asyncio tasks)."""
        return self._awaiters.view

    def invoke(self, f: Function[..., R], *args: object, **kwargs: object) -> Promise[R]:
        """Invoke `f` here: what calling it does, for a program with several EventLoops."""
        at = function.here()
        if at is not None:
            return function.caller(at).invoke(at, f, args, kwargs)
        return self.invoke_function(f, args, kwargs)

    def get(self, id: str, type: object = None) -> Promise[object]:
        """A handle to a promise made anywhere; awaiting it raises `PromiseNotFound` if there is none.

        `type` says what its value is; by default its function's annotation does, where that is known here.
        """
        self._check_open()
        there = self._tracked.get(ids.check(id)) or self._settled.get(id)
        if there is not None and type is None:
            return there
        promise = self._handle(id, object if type is None else type)

        def annotate(record: PromiseRecord) -> None:
            made = function.registered().get((record.function, record.version))
            if type is None and made is not None:
                promise.expect(made.result)

        self.journal.write(Listening(self, promise, annotate))
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
        self._check_open()
        found = await self._store.search(
            state=state, function=function, id_prefix=id_prefix, tags=tags, limit=limit + 1, cursor=cursor or ""
        )
        more = len(found) > limit
        return Page(tuple(found[:limit]), found[limit - 1].promise.id if more else None)

    def snapshot(self) -> Snapshot:
        """What this EventLoop is doing now, frozen: for pages and metrics."""
        held = self._worker.held
        return Snapshot(
            self.process, self.group, len(self._tracked), len(self._awaiters), len(held),
            sum(one.blocked > 0 for one in held.values()), self.journal.batches, self.journal.commands,
        )  # fmt: skip

    async def drain(self, timeout: float = 30.0) -> None:
        """Acquire nothing more, let what runs finish for `timeout` seconds, hand the rest to other workers at once."""
        self._check_open()
        await self._worker.drain(timeout)


def run(main: Callable[[], Coroutine[object, object, R]] | Function[[], R], *, store: str | Store = "memory:") -> R:
    """Run `main` on an asyncio loop of its own, with an EventLoop on `store` open around it.

    `main` is a coroutine function or a dasync function without parameters; gives what it returns.

    Example:
        >>> import dasync
        >>> async def main() -> int:
        ...     return 42
        >>> dasync.run(main)
        42
    """

    async def hosted() -> R:
        async with EventLoop(store):
            return await main()

    return asyncio.run(hosted())


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
