"""Branches: which asyncio task of an execution is running, and so which id the next invocation gets.

Each execution has a root branch; each asyncio task that is created inside it gets a branch of its own, numbered
by creation within the branch that creates it; each branch counts its own invocations. Ids follow the shape of the
program and not the order in which the clock reached it: that is what makes `gather(seq("a"), seq("b"))` replay.
The task factory is ours inside executions and the host's everywhere else. This file starts and settles nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Generator
from contextvars import Context, ContextVar
from threading import get_ident
from typing import Protocol, TypedDict, TypeVar, Unpack, cast
from zlib import crc32

from dasync.core import ids
from dasync.runtime.lease import Holder, Steps

T = TypeVar("T")
_AnyCoroutine = Coroutine[object, object, T] | Generator[object, None, T]


class TaskOptions(TypedDict, total=False):
    """What asyncio gives a task factory along."""

    name: str | None
    context: Context | None
    eager_start: bool


class Known(Protocol):
    """A promise of which it may not be known whether it is settled."""

    id: str

    def birth(self) -> asyncio.Future[None]:
        """Done once it is known."""


class Owner(Protocol):
    """The execution that a branch belongs to."""

    id: str

    @property
    def held(self) -> Holder:
        """The task that it is part of."""

    def adopt(self, task: BranchTask[object]) -> None:
        """A task was created inside the execution."""

    def cancel_part(self, task: BranchTask[object], message: object) -> bool:
        """One of its tasks is canceled from outside its code."""

    def withholds(self, id: str) -> bool:
        """Whether the promise of that id, which it has not made, is still to be taken in its turn."""

    def expects(self, promise: Known) -> None:
        """One of its tasks awaits such a promise, of which it is not known whether it is settled."""

    def share(self, id: str, turn: int, waiter: asyncio.Future[None]) -> None:
        """Such a promise is settled, by the commit of that number, and one of its tasks waits for it."""

    def take_back(self, task: BranchTask[object]) -> bool:
        """Whoever canceled it from outside does not want that any more; whether it had not come yet."""


class Branch:
    """A place from which invocations are made."""

    __slots__ = ("_alarms", "_branches", "_calls", "_draws", "owner", "prefix")

    def __init__(self, owner: Owner, prefix: str) -> None:
        self.owner = owner
        self.prefix = prefix
        self._calls = 0
        self._branches = 0
        self._draws = 0
        self._alarms = 0

    def next_call(self) -> str:
        """The id of the next invocation made here."""
        id = self.coming_call()
        self._calls += 1
        self._draws = 0
        return id

    def coming_call(self) -> str:
        """The id that the next invocation made here will have."""
        return f"{self.prefix}{self._calls}"

    def next_branch(self) -> Branch:
        """The branch of the next task created here."""
        branch = Branch(self.owner, ids.branch(self.prefix, self._branches))
        self._branches += 1
        return branch

    def next_alarm(self) -> str:
        """The id of the next timer that is set here by asyncio's means: it takes no place among the invocations."""
        id = ids.alarm(self.prefix, self._alarms)
        self._alarms += 1
        return id

    def next_draw(self) -> str:
        """The name of the next random stream opened here: it hangs on the invocation before it, not on other draws."""
        name = f"{self.prefix}{self._calls}r{self._draws}"
        self._draws += 1
        return name


class BranchTask(asyncio.Task[T]):
    """An asyncio task that knows its branch. Made by `task`.

    It hashes by its branch and not by its address, so that sets of tasks are gone through in the same order in every
    run: a TaskGroup cancels its tasks by such a set, `asyncio.wait` gives two.
    """

    __slots__ = ("_hash", "branch")
    _hash: int
    branch: Branch

    def __hash__(self) -> int:
        return self._hash

    def cancel(self, msg: object = None) -> bool:
        """Cancel it; when its own code does not say so, in its turn."""
        if self.done() or not _in_a_callback():
            return super().cancel(msg)
        return self.branch.owner.cancel_part(cast("BranchTask[object]", self), msg)

    def uncancel(self) -> int:
        """Take a cancel back, one that has not come yet first."""
        taken_back = self.branch.owner.take_back(cast("BranchTask[object]", self))
        return self.cancelling() if taken_back else super().uncancel()

    def cut(self, msg: object = None) -> bool:
        """Cancel it now."""
        return super().cancel(msg)


def task(
    coro: _AnyCoroutine[T], branch: Branch, loop: asyncio.AbstractEventLoop, **options: Unpack[TaskOptions]
) -> BranchTask[T]:
    """A task of that branch, scheduled on `loop`."""
    made: BranchTask[T] = BranchTask.__new__(BranchTask)
    made.branch = branch  # before __init__: an eager task takes its first step in there
    made._hash = crc32(branch.prefix.encode())
    made.__init__(Steps(coro, branch.owner.held), loop=loop, **options)  # type: ignore[misc]  # made in two steps
    return made


def _in_a_callback() -> bool:
    """Whether a callback of the asyncio loop runs: no task's code, and not the end of the whole loop."""
    try:
        return asyncio.current_task() is None
    except RuntimeError:
        return False


class Threaded(Protocol):
    """The body of a function that is not `async def`, in its thread."""

    branch: Branch
    thread_id: int

    @property
    def desk(self) -> object:
        """Where the invocations made in the thread go: the execution, by way of the asyncio loop's own thread."""

    def wait(self, awaited: Callable[[], Coroutine[object, object, T]], timeout_s: float | None) -> T:
        """Block the thread until what `awaited` makes has run on the asyncio loop."""


# Set in the context of every execution, and so in that of each callback which it schedules.
inside: ContextVar[bool] = ContextVar("dasync_inside", default=False)


# Set, to the name of its function, in the context in which the handler of a batch runs.
handler: ContextVar[str] = ContextVar("dasync_handler", default="")


# Set in the context in which a function runs that is not `async def`, and so in those of all that it starts.
thread: ContextVar[Threaded | None] = ContextVar("dasync_thread", default=None)


_confined: list[str] = []  # the function that this process of a pool runs, where nothing can be invoked


def confine(name: str) -> None:
    """From now on this process runs nothing but that function."""
    _confined[:] = [name]


def confined() -> str | None:
    """The function that this process runs, if it is one of a pool."""
    return _confined[0] if _confined else None


def body() -> Threaded | None:
    """What runs in this very thread: the body of a function that is not `async def`, or nothing of the kind."""
    found = thread.get()
    return found if found is not None and found.thread_id == get_ident() else None


def calling_thread() -> Branch | None:
    """The branch of the thread whose wish the asyncio loop carries out just now, if it does."""
    found = thread.get()
    return None if found is None or asyncio.current_task() is not None else found.branch


def withholds(id: str) -> bool:
    """Whether whoever runs now is an execution, and has not taken the promise of that id, which it has not made."""
    running = asyncio.current_task()
    return type(running) is BranchTask and running.branch.owner.withholds(id)


def current() -> Branch | None:
    """The branch of the running task; None outside executions. Raises RuntimeError where no loop runs."""
    running = asyncio.current_task()
    return running.branch if type(running) is BranchTask else None


_TaskFactory = Callable[..., "asyncio.Future[object]"]
_installed: dict[asyncio.AbstractEventLoop, tuple[int, object, object]] = {}


def install(loop: asyncio.AbstractEventLoop) -> None:
    """Let tasks created inside executions on `loop` have branches. Installs once, however often it is called."""
    if loop in _installed:
        users, factory, before = _installed[loop]
        _installed[loop] = (users + 1, factory, before)
        return
    before = loop.get_task_factory()
    factory = _chained(before)
    loop.set_task_factory(factory)  # type: ignore[arg-type]  # typeshed's protocol differs from version to version
    _installed[loop] = (1, factory, before)


def uninstall(loop: asyncio.AbstractEventLoop) -> None:
    """Undo one `install`; the last one gives the host its own factory back."""
    users, factory, before = _installed[loop]
    if users > 1:
        _installed[loop] = (users - 1, factory, before)
        return
    del _installed[loop]
    if loop.get_task_factory() is factory:  # else somebody chained theirs to ours, which is harmless when idle
        loop.set_task_factory(before)  # type: ignore[arg-type]  # what get_task_factory gave


def _chained(before: object) -> _TaskFactory:
    # What asyncio.create_eager_task_factory gives (Python 3.12): tasks begin at once on this host, ours as well.
    eager = getattr(before, "__qualname__", "").startswith("create_eager_task_factory")

    def create(loop: asyncio.AbstractEventLoop, coro: _AnyCoroutine[object], **options: object) -> asyncio.Task[object]:
        parent = asyncio.current_task(loop)
        if type(parent) is BranchTask:
            branch = parent.branch.next_branch()
            if eager:
                options.setdefault("eager_start", True)
            made = task(coro, branch, loop, **options)  # type: ignore[arg-type]  # asyncio's own options
            branch.owner.adopt(made)
            return made
        if callable(before):
            return before(loop, coro, **options)  # type: ignore[no-any-return]  # the host's factory
        return asyncio.Task(coro, loop=loop, **options)  # type: ignore[arg-type]  # asyncio's own options

    return create
