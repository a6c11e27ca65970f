"""Recorded executions against the code that is here now: whether a replay would come to what is recorded.

It is the real runtime on a copy of the rows in memory, in a world where nothing new ever starts and no time passes:
what is recorded as settled gives its outcome, what is recorded as pending stays so, and an invocation that is not on
record is where the history ends. No function runs but those that have invoked something on record, and of these only
what a process that takes the execution over would run. It writes to no store; what such a function does itself, beside
its invocations, it really does.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Mapping
from contextvars import copy_context
from itertools import chain
from typing import Literal, NamedTuple, cast

from dasync.core import codec, divergence, failure, ids
from dasync.core.divergence import Call
from dasync.core.model import PromiseRecord, State, TaskRecord, TaskState
from dasync.core.protocol import Acquired, ProcessJoin, PromiseCreate, PromiseGet, TaskAcquire
from dasync.errors import DecodeError, FunctionNotFound, NonDeterminismError, PromiseConflict, RemoteError, Suspended
from dasync.ports import Clock
from dasync.runtime import branch, source
from dasync.runtime.batched import Batched
from dasync.runtime.batches import Batches
from dasync.runtime.child import Child
from dasync.runtime.code import Invocation
from dasync.runtime.execution import Execution
from dasync.runtime.function import ALARM, CUT, NOW, RETRY, SHARED, Function
from dasync.runtime.handlers import Handlers
from dasync.runtime.held import Deadline, Held
from dasync.runtime.journal import Journal
from dasync.runtime.lease import Lease
from dasync.runtime.policy import Retry
from dasync.runtime.pool import Pool
from dasync.runtime.promise import Promise
from dasync.runtime.registry import error_classes, lookup
from dasync.runtime.root import PYTHON, Listening, Roots, Starter, conflict, stands_for
from dasync.runtime.slots import Slots
from dasync.runtime.threads import Seats
from dasync.stores.memory import MemoryStore
from dasync.system import SystemEntropy

Find = Callable[[str], Awaitable[PromiseRecord | None]]
PROCESS, GROUP, NAME = "replay", "replay", "replay"
LEASE_MS = 1_000
MAX_PAYLOAD_BYTES = 2**30  # that was for the first run to decide
QUIET_TURNS = 100  # of the asyncio loop in which nothing goes on: whatever was to be taken or written is, long before
LOOK_S = 0.001  # between looks at code that waits for what is not recorded
CLEAN_UP_S = 1.0  # how long code that is left may clean up
_AS_LEAVES_DO = frozenset({RETRY, NOW, CUT, SHARED, ALARM})  # children that a function has which invokes nothing


class History(NamedTuple):
    """What is recorded of one execution: its promise, its task, all below them, and other roots that it awaits."""

    id: str
    promises: Mapping[str, PromiseRecord]
    tasks: Mapping[str, TaskRecord]


class Verdict(NamedTuple):
    """How the replay of one execution ended."""

    id: str
    function: str
    version: int
    status: Literal["ok", "diverged", "cannot"]
    detail: str
    report: str
    """Of a divergence, else empty."""


class Stood(Exception):
    """The replay cannot be judged: it waits for something that its history does not hold."""


async def replay(history: History, find: Find, timeout_s: float) -> Verdict:
    """Replay one execution. `find` gives what is recorded of another one, by its id."""
    record, task = history.promises[history.id], history.tasks[history.id]

    def verdict(status: Literal["ok", "diverged", "cannot"], detail: str, report: str = "") -> Verdict:
        if task.python not in ("", PYTHON):
            detail += f" (it began under Python {task.python}, whose asyncio makes other tasks; this is {PYTHON})"
        return Verdict(record.id, record.function, record.version, status, detail, report)

    try:
        function = lookup(record.function, record.version)
        args, kwargs = function.shape.decode(record.param)
    except FunctionNotFound as error:
        return verdict("cannot", str(error))
    except DecodeError as error:
        return verdict("diverged", "its arguments do not fit the function", f"{record.id!r} cannot run: {error}")
    if record.id not in coordinators(history):
        return verdict("ok", "it has invoked nothing that is on record, so it is not run")
    stage = Stage(history, find)
    try:
        return verdict("ok", await stage.play(function, args, kwargs, timeout_s))
    except NonDeterminismError as error:
        return verdict("diverged", str(error).partition("\n")[0], divergence.without_remedies(str(error)))
    except Stood as error:
        return verdict("cannot", str(error))


def coordinators(history: History) -> frozenset[str]:
    """Those whose functions have invoked something on record: only their code may run again."""
    made = (record.id for record in history.promises.values() if record.function not in _AS_LEAVES_DO)
    return frozenset(parent for id in made if (parent := ids.parent_of(id)) is not None)


class Stage:
    """What an execution finds around it: the host of a task whose world stands still."""

    def __init__(self, history: History, find: Find) -> None:
        self.clock: Clock = StoppedClock(history)
        self.lease = Lease(self.clock, math.inf)  # nobody else is there to take anything over
        self.max_payload = MAX_PAYLOAD_BYTES
        self.context = copy_context()
        self.context.run(branch.inside.set, True)
        self.retry = Retry.never()
        self.seats = Seats()
        self.batches = Batches(self.clock, self.lease, self.seats, self.context)
        self.slots = Slots(1, lambda: None)
        self.pool = Pool(1, MAX_PAYLOAD_BYTES)  # no leaf runs
        self.process = PROCESS
        self.find = find
        self.coordinators = coordinators(history)
        self.executions: list[Rehearsal] = []
        self.new: list[tuple[Child, str]] = []
        """Invocations that are not on record, and their source lines."""
        self.unknown: list[str] = []
        """Other executions of which nothing is recorded here."""
        self.searches: set[asyncio.Task[None]] = set()
        self._broken: BaseException | None = None
        self._history = history
        self._record = history.promises[history.id]
        self._store = MemoryStore(self.clock)
        self.journal = Journal(
            self._store, self.clock, ring=lambda bells: None, unavailable=self._breaks, broken=self._breaks
        )
        self.handlers = Handlers(self.journal, lambda promise: Listening(self, promise), self.max_payload)
        self.roots = Others(self)

    async def play(
        self, function: Function[..., object], args: tuple[object, ...], kwargs: dict[str, object], timeout_s: float
    ) -> str:
        """Run it to the end of its history; says how that was. Raises `NonDeterminismError` or `Stood`."""
        loop = asyncio.get_running_loop()
        branch.install(loop)
        self.handlers.open()
        self.journal.start()
        held: Held | None = None
        try:
            acquired = await self._acquired()
            promise = self.handlers.handle(self._record.id, function.result)
            promise.heard = True
            held = Held(self, acquired, promise)
            promise.watchers += (held,)
            invocation = Invocation(function, self._record.param, self._record.tags)
            Rehearsal(held, held.id, invocation, None).start(args, kwargs)
            await self._come_to_rest(held, timeout_s)
            return await self._judged(held)
        finally:
            if held is not None:
                await self._leave(held)
            await self.journal.close()
            branch.uninstall(loop)
            self.handlers.close()

    async def _acquired(self) -> Acquired:
        """The task, as a process gets it that takes it over; what is settled of it is to be settled again."""
        id = self._record.id
        open_again = self._record._replace(state=State.PENDING, settled_at=None, value=None, turn=None)
        was = self._history.tasks[id]
        begun = max(1, was.version)  # a replay is told what is recorded of it
        task = was._replace(state=TaskState.PENDING, version=begun, process=None, resumed=False, reason="")
        self._store.load({**self._history.promises, id: open_again}, {**self._history.tasks, id: task})
        group, _, name = task.target.partition("/")
        join = ProcessJoin(PROCESS, name or NAME, group, "", "", LEASE_MS)
        acquire = TaskAcquire(PROCESS, (task.target,), ((task.function, task.function_version),), 1, PYTHON)
        return (await self._store.transact([join, acquire])).replies[1].acquired[0]

    async def _come_to_rest(self, held: Held, timeout_s: float) -> None:
        """Return when it has ended, or only waits for what never comes here."""
        quiet = 0
        try:
            async with asyncio.timeout(timeout_s):
                while held.signal is None and self._broken is None and quiet < QUIET_TURNS:
                    await asyncio.sleep(0 if quiet else LOOK_S)
                    quiet = quiet + 1 if self._waits_for(held) and not self._expects(held) else 0
        except TimeoutError:
            if not self._waits_for(held):
                raise Stood(
                    f"it waits longer than {timeout_s:g} s for something that is not recorded: a thread, a socket,"
                    " asyncio.sleep"
                ) from None
        if self._broken is not None:
            raise self._broken

    def _waits_for(self, held: Held) -> list[str]:
        return self.handlers.awaiters.awaited_by([held]).get(held, [])

    def _expects(self, held: Held) -> bool:
        """Whether an outcome is still to be taken: that is looked up, or its turn comes when the code has rested."""
        running = [execution for execution in self.executions if held.running.get(execution.id) is execution]
        children = chain.from_iterable(execution.children.values() for execution in running)
        return bool(self.searches) or any(self._is_settled(child) for child in children)

    def _is_settled(self, child: Child) -> bool:
        recorded = self._history.promises.get(child.promise.id)
        return child.state is not State.PENDING or (recorded is not None and recorded.state is not State.PENDING)

    async def _leave(self, held: Held) -> None:
        """Stop running; nothing is settled by it."""
        parts = list(chain.from_iterable(execution.parts() for execution in held.running.values()))
        held.drop(Suspended(f"the replay of {held.id!r} is over"))
        if parts:
            await asyncio.wait(parts, timeout=CLEAN_UP_S)

    # -- the judgement

    async def _judged(self, held: Held) -> str:
        if held.diverged is not None:
            raise held.diverged
        was = self._record
        if held.is_settled:
            now = (await self._store.transact([PromiseGet(was.id)])).replies[0].promise or was
            self._check_all_made(f"it was {_told(now)}")
            if was.state in (State.RESOLVED, State.REJECTED) and not _alike(was, now):
                raise divergence.other_outcome(was.id, _outcome(was), _outcome(now), self._defined())
            if was.state is State.PENDING or _alike(was, now):
                return f"in step with its history to its end: {_told(now)}"
            return f"in step with its history, before it was ended from outside ({was.state.value})"
        awaited = self._waits_for(held)
        goes_on, ended = self._goes_on(awaited), was.state in (State.RESOLVED, State.REJECTED)
        strange = [id for id in self.unknown if id in awaited]
        if strange and (ended or any(execution.missing() for execution in self.executions)):
            raise Stood(f"it awaits {strange[0]!r}, which has its own history, and that is not here")
        self._check_all_made(goes_on)
        if ended:
            raise divergence.other_outcome(was.id, _outcome(was), goes_on, self._defined())
        return f"in step with its history; now {goes_on}"

    def _goes_on(self, awaited: list[str]) -> str:
        if not self.new:
            return f"it waits for {', '.join(map(repr, awaited[:3]))}"
        child, at = self.new[0]
        call = Call(child.function, child.version, child.param, child.target, child.timer)
        return f"it invokes {call} as {child.promise.id!r}, which is not on record" + (f", at {at}" if at else "")

    def _check_all_made(self, ended: str) -> None:
        for execution in self.executions:
            if (missing := execution.missing()) is not None:
                raise divergence.never_made(
                    self._record.id, missing, divergence.of(self._history.promises[missing]),
                    source.defining(execution.function.fn), ended,
                )  # fmt: skip

    def _defined(self) -> str:
        return source.defining(self.executions[0].function.fn)

    def _breaks(self, error: BaseException) -> None:
        self._broken = error

    # -- for executions

    def call_at(self, at_ms: int, due: Deadline) -> None:
        """No time passes."""

    def waiting(self, held: Held, waits: bool) -> None:
        """There is room enough."""

    def let_go(self, held: Held) -> None:
        """There is no other process."""

    def say_once(self, text: str) -> None:
        """A worker says it, when it is for real."""


class StoppedClock:
    """Stands where the history was written last, before the deadline of whatever is pending there."""

    def __init__(self, history: History) -> None:
        records = history.promises.values()
        last = max(max(record.created_at, record.settled_at or 0) for record in records)
        open_ = (r for r in records if r.state is State.PENDING or r.id == history.id)
        self._now_ms = min([last, *(r.timeout_at - 1 for r in open_ if r.timeout_at is not None)])

    def now_ms(self) -> int:
        return self._now_ms

    def monotonic(self) -> float:
        return 0.0

    async def sleep(self, seconds: float) -> None:
        """Never over."""
        await asyncio.get_running_loop().create_future()


class Rehearsal(Execution):
    """An execution that goes on with what is on record and starts nothing else."""

    __slots__ = ()

    async def call(self, args: tuple[object, ...], kwargs: dict[str, object]) -> object:
        if isinstance(self.function, Batched):
            return None  # as a handler invokes nothing, what is on record of it is missing in any case
        return await super().call(args, kwargs)

    def start(self, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        self._stage.executions.append(self)
        super().start(args, kwargs)

    @property
    def _stage(self) -> Stage:
        return cast(Stage, self.held.host)

    def begin(
        self,
        child: Child,
        function: Function[..., object] | None = None,
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> None:
        if child.promise.id in self.held.history:
            super().begin(child, function, args, kwargs)
            return
        self._stage.new.append((child, source.calling(self.thread_id())))
        self.children[child.promise.id] = child
        child.promise.watchers = (child,)
        child.promise.mark_stored()
        self.held.host.handlers.track(child.promise)

    def run_child(
        self, child: Child, function: Function[..., object], args: tuple[object, ...], kwargs: dict[str, object]
    ) -> None:
        if child.promise.id in self._stage.coordinators:
            invocation = Invocation(function, child.param, child.tags)
            Rehearsal(self.held, child.promise.id, invocation, child).start(args, kwargs)


class Others(Roots):
    """Executions of their own that are invoked under an id, or detached: only what is recorded of them is there."""

    def __init__(self, stage: Stage) -> None:
        super().__init__(cast(Starter, stage), stage.handlers, SystemEntropy(), GROUP)  # it starts nothing
        self._stage = stage

    def _begin(self, create: PromiseCreate, annotation: object, *, local: bool) -> Promise[object]:
        promise = self._stage.handlers.handle(create.id, annotation, by_hand=not create.function)
        # Not by create_task: in an execution that makes a branch, and those after it would have other numbers.
        search = asyncio.Task(self._look_up(promise, create), loop=asyncio.get_running_loop())
        self._stage.searches.add(search)
        search.add_done_callback(self._stage.searches.discard)
        return promise

    async def _look_up(self, promise: Promise[object], create: PromiseCreate) -> None:
        record = await self._stage.find(create.id)
        promise.mark_stored()
        if record is None:
            self._stage.unknown.append(create.id)
        elif not stands_for(create, record):
            self._stage.handlers.refuse(promise, PromiseConflict(conflict(record, create)))
        elif record.state is not State.PENDING:
            self._stage.handlers.return_(promise, record)


def _alike(was: PromiseRecord, now: PromiseRecord) -> bool:
    if was.state is State.REJECTED and now.state is State.REJECTED:
        return failure.alike(was.value or b"", now.value or b"")
    return (was.state, was.value) == (now.state, now.value)


def _outcome(record: PromiseRecord) -> object:
    """What is compared, part by part, where two outcomes differ."""
    if record.state is State.RESOLVED and record.value is not None:
        return {record.state.value: codec.decode(record.value)}
    if record.state is State.REJECTED:
        return {record.state.value: _error(record)}
    return record.state.value


def _told(record: PromiseRecord) -> str:
    return f"rejected with {_error(record)}" if record.state is State.REJECTED else record.state.value


def _error(record: PromiseRecord) -> str:
    error = failure.decode_error(record.value or b"", error_classes())
    return str(error) if isinstance(error, RemoteError) else f"{type(error).__name__}: {error}"
