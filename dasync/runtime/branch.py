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
from typing import Protocol, TypedDict, TypeVar, Unpack

from dasync.core import ids

T = TypeVar("T")
_AnyCoroutine = Coroutine[object, object, T] | Generator[object, None, T]


class TaskOptions(TypedDict, total=False):
    """What asyncio gives a task factory along."""

    name: str | None
    context: Context | None
    eager_start: bool


class Owner(Protocol):
    """The execution that a branch belongs to."""

    id: str

    def adopt(self, task: asyncio.Task[object]) -> None:
        """A task was created inside the execution."""


class Branch:
    """A place from which invocations are made."""

    __slots__ = ("_branches", "_calls", "_draws", "owner", "prefix")

    def __init__(self, owner: Owner, prefix: str) -> None:
        self.owner = owner
        self.prefix = prefix
        self._calls = 0
        self._branches = 0
        self._draws = 0

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

    def next_draw(self) -> str:
        """The name of the next random stream opened here: it hangs on the invocation before it, not on other draws."""
        name = f"{self.prefix}{self._calls}r{self._draws}"
        self._draws += 1
        return name


class BranchTask(asyncio.Task[T]):
    """An asyncio task that knows its branch. Made by `task`."""

    __slots__ = ("branch",)
    branch: Branch


def task(
    coro: _AnyCoroutine[T], branch: Branch, loop: asyncio.AbstractEventLoop, **options: Unpack[TaskOptions]
) -> BranchTask[T]:
    """A task of that branch, scheduled on `loop`."""
    made: BranchTask[T] = BranchTask.__new__(BranchTask)
    made.branch = branch  # before __init__: an eager task takes its first step in there
    made.__init__(coro, loop=loop, **options)  # type: ignore[misc]  # made in two steps
    return made


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


# Set in the context in which a function runs that is not `async def`, and so in those of all that it starts.
thread: ContextVar[Threaded | None] = ContextVar("dasync_thread", default=None)


def body() -> Threaded | None:
    """What runs in this very thread: the body of a function that is not `async def`, or nothing of the kind."""
    found = thread.get()
    return found if found is not None and found.thread_id == get_ident() else None


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
    def create(loop: asyncio.AbstractEventLoop, coro: _AnyCoroutine[object], **options: object) -> asyncio.Task[object]:
        parent = asyncio.current_task(loop)
        if type(parent) is BranchTask:
            branch = parent.branch.next_branch()
            made = task(coro, branch, loop, **options)  # type: ignore[arg-type]  # asyncio's own options
            branch.owner.adopt(made)
            return made
        if callable(before):
            return before(loop, coro, **options)  # type: ignore[no-any-return]  # the host's factory
        return asyncio.Task(coro, loop=loop, **options)  # type: ignore[arg-type]  # asyncio's own options

    return create
