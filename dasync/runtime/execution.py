"""Drive one function until it is done or blocked.

An execution is one run of a promise's function, as an asyncio task on the host's loop or in a worker thread. This
file decides when it starts, what its end means, and in which order it and its children end; what it invokes meanwhile
is `calls.py`, what is written of it `child.py`, when it is tried again `attempts.py`.
"""

from __future__ import annotations

import asyncio
from typing import NamedTuple

from dasync.core import codec, failure, ids
from dasync.core.model import State
from dasync.core.protocol import PromiseCancel, TaskFence
from dasync.errors import InvariantViolated, LeaseLost, Suspended
from dasync.runtime import branch
from dasync.runtime.attempts import attempts
from dasync.runtime.branch import Branch, BranchTask
from dasync.runtime.calls import Calls
from dasync.runtime.child import Child, Fulfill
from dasync.runtime.cut import CUT, Cut
from dasync.runtime.function import Function
from dasync.runtime.held import Held
from dasync.runtime.promise import Promise
from dasync.runtime.threads import Body


class Invocation(NamedTuple):
    """What is run: a function, the encoded arguments, and what the invocation brought along."""

    function: Function[..., object]
    param: bytes
    tags: str


class Execution(Calls):
    """One run of one promise's function."""

    __slots__ = (
        "_abandoned", "_body", "_canceling", "_child", "_reason", "_started", "_task", "_tasks", "function", "param",
        "tags",
    )  # fmt: skip

    def __init__(self, held: Held, id: str, invocation: Invocation, child: Child | None) -> None:
        super().__init__(held, id, held.timeout_at if child is None else child.timeout_at)
        self._child = child  # what it runs for; None: the task's own promise
        self.function, self.param, self.tags = invocation
        self._tasks: set[asyncio.Task[object]] | None = None
        self._task: BranchTask[None] | None = None
        self._body: Body | None = None
        self._reason: bytes | None = None
        self._started = False
        self._canceling = False
        self._abandoned = False

    def start(self, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        """Begin to run, with the next turn of the asyncio loop."""
        self.held.running[self.id] = self
        if (recorded := self.held.history.get(ids.cut(self.id))) is not None:
            self.cut = Cut(self, None, self._decision(recorded.id, CUT).known)
        here, loop = Branch(self, ids.places(self.id)), asyncio.get_running_loop()
        # A child's context is a copy of its parent's, a task's own one of the EventLoop's.
        context = self.held.host.context.copy() if self._child is None else None
        self._task = branch.task(self._run(args, kwargs), here, loop, name=self.id, context=context)

    def run_child(
        self, child: Child, function: Function[..., object], args: tuple[object, ...], kwargs: dict[str, object]
    ) -> None:
        invocation = Invocation(function, child.param, child.tags)
        Execution(self.held, child.promise.id, invocation, child).start(args, kwargs)

    def adopt(self, task: asyncio.Task[object]) -> None:
        if self._tasks is None:
            self._tasks = set()
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def check(self) -> None:
        self.held.check()
        if self._abandoned:
            raise LeaseLost(f"promise {self.id!r} is settled")

    def tasks(self) -> list[asyncio.Task[object]]:
        return [task for task in (self._task, *(self._tasks or ())) if task is not None and not task.done()]

    # -- from outside

    def cancel(self, reason: bytes | None) -> None:
        """End it as canceled: its code is interrupted at its next await and may clean up."""
        if self.cut is not None:
            return
        self.cut = Cut(self, reason)
        if self._started:
            self.cut.approach()
        elif not self.is_behind():  # its code has never run and never will, so it cannot settle itself
            self.interrupt()
            self.held.running.pop(self.id, None)
            self._settle(State.CANCELED, reason, None)

    def abandon(self) -> None:
        """Stop running; settle nothing."""
        self._abandoned = True
        if self.held.signal is not None:
            self._hand_on()
        if self.cut is not None:
            self.cut.drop()
        if not self._started:
            self.held.running.pop(self.id, None)
        for task in self.tasks():
            if task is not asyncio.current_task():
                task.cancel()

    def overrule(self) -> None:
        """Its promise is settled already: stop running, and end what it made, which the store may not know of yet."""
        self.abandon()
        for child in list(self.children.values()):
            if child.local or child.target is not None:
                child.cancel(None)

    def _hand_on(self) -> None:
        """Its task is no more here: its cancel goes on elsewhere, and its children are as anybody's from now on."""
        if not self.held.promise.done():
            if self.cut is not None and not (self.cut.came or self.cut.recorded):
                self.unwritten = self.cut.value()
            self.record_cut()
        for child in self.children.values():
            self.held.host.handlers.hand_on(child.promise, child, self.held)

    # -- as its cut sees it

    def is_still(self) -> bool:
        """Whether it can only go on when a promise settles that it waits for, and nothing is on its way to it."""
        if self._body is not None:
            return True  # a thread looks by itself whether it is canceled, when it waits
        tasks = self.tasks()
        return len(tasks) == 1 and not self.on_the_way and self.held.host.handlers.waits(tasks[0], self.children) == 1

    def is_stuck(self) -> bool:
        """Whether each of its asyncio tasks waits for a promise that it has made."""
        tasks, waits = self.tasks(), self.held.host.handlers.waits
        # A body that awaits no promise waits for the tasks that it has made, if it has made any.
        return all(waits(task, self.children) for task in (tasks[1:] or tasks))

    def is_behind(self) -> bool:
        """Whether there is something on record of it that it has not come to."""
        below = ids.places(self.id)
        return any(id.startswith(below) for id in self.held.history)

    def undelivered(self) -> list[str]:
        """Ids of its pending children."""
        return list(self.children)

    def interrupt(self) -> None:
        """Raise CancelledError in its code, at its next await."""
        cut = self.cut
        if cut is None or self._abandoned:
            return
        self._canceling, self._reason = True, cut.reason
        if self._started and not cut.recorded:
            self.unwritten = cut.value()
        if self._body is not None:
            self._body.interrupt()
        elif self._task is not None:
            self._task.cancel()

    # -- the run

    async def _run(self, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        held = self.held
        self._started = True
        value: object = None
        raw: bytes | None
        try:
            if held.barrier is not None and not held.barrier.done():
                await asyncio.shield(held.barrier)
            if self.cut is not None:
                self.cut.approach()
            direct, failed = not self.function.threaded and ids.retry(self.id, 1) not in held.history, None
            try:
                try:
                    if direct:
                        value = await self.function.fn(*args, **kwargs)  # a frame between would cost all who wait
                except Exception as error:
                    failed = error
                if failed is not None or not direct:  # not in the handler: the next error has another reason
                    value = await attempts(self, args, kwargs, failed)
            finally:
                if self.cut is not None:
                    self.cut.let_go()
            if isinstance(value, Promise):
                value = await self._linked(value)
            if self.children or self._tasks or self.failed:
                await self._finish()
            raw, value = codec.encode_result(value, self.function.result, held.host.max_payload)
            state = State.RESOLVED
        except (Suspended, LeaseLost):
            return
        except InvariantViolated as error:  # another EventLoop's, awaited in here: nothing is settled by it
            held.lost(str(error))
            return
        except asyncio.CancelledError:
            if not await self._interrupted():
                return
            state, raw = State.CANCELED, self._reason
        except (KeyboardInterrupt, SystemExit, GeneratorExit):
            raise  # the end of the whole program settles nothing
        except BaseException as error:  # one that is no Exception as well, or its awaiters would wait for ever
            if not await self._cleaned_up():
                return
            state, raw = State.REJECTED, failure.encode_error(error, held.host.max_payload)
        finally:
            self._task = None
            held.running.pop(self.id, None)
        self._settle(state, raw, value)

    async def call(self, args: tuple[object, ...], kwargs: dict[str, object]) -> object:
        """Run the function once."""
        if not self.function.threaded:
            return await self.function.fn(*args, **kwargs)
        at = self._task.branch if self._task is not None else Branch(self, ids.places(self.id))
        self._body = Body(self, self, at, self.held.host.seats)
        try:
            return await self._body.run(self.function.fn, args, kwargs)
        finally:
            self._body = None

    async def begin_again(self, prefix: str) -> None:
        """What the last attempt has left behind ends; the next one invokes at places that begin with `prefix`."""
        await _cancel([task for task in self._tasks or () if not task.done()])
        if self._task is not None:
            self._task.branch = Branch(self, prefix)

    def is_ending(self) -> bool:
        """Whether it ends in any case: canceled, or gone from here."""
        return self._abandoned or self._canceling or self.held.signal is not None

    async def _linked(self, promise: Promise[object]) -> object:
        """The value of the promise that the function gave back: its own settles as that one does."""
        if promise.id == self.id:
            raise ValueError(f"{self.id!r} gave back its own promise: it would wait for itself for ever")
        await promise.settlement()
        if promise.state is State.CANCELED:
            self._canceling, self._reason = True, promise.raw
            promise.heard = True
            raise asyncio.CancelledError
        return promise.result()

    async def _finish(self) -> None:
        """The body has returned: its tasks end, its children are waited for; a failure that nobody heard is raised."""
        await _cancel([task for task in self._tasks or () if not task.done()])
        while pending := [c for c in self.children.values() if (c.local or c.target) and not c.promise.done()]:
            # The await of these was cut short and nobody is left to hear them.
            cut = [c for c in pending if c.promise.heard and not self.held.host.handlers.is_awaited(c.promise)]
            await _cancel_children(cut)
            for child in pending:
                await child.promise.settlement()
        for promise in sorted(self.failed or (), key=lambda promise: _natural(promise.id)):
            if not promise.heard:
                promise.result()

    async def _interrupted(self) -> bool:
        """A CancelledError has come out of the body: whether it is an outcome."""
        task = asyncio.current_task()
        asked = task is not None and task.cancelling() > 0
        if self._abandoned or self.held.signal is not None:
            return False
        if asked and not self._canceling:
            # Somebody ends this asyncio loop's tasks, as asyncio.run does at its end: that settles nothing.
            self.held.drop(Suspended(f"{self.id} was interrupted"))
            return False
        if task is not None:
            while task.cancelling():
                task.uncancel()
        return await self._cleaned_up()

    async def _cleaned_up(self) -> bool:
        """The body has failed: its tasks and its pending children end first. False: the task is gone meanwhile."""
        if any(child.local or child.target is not None for child in self.children.values()):
            self.record_cut()
        try:
            await _cancel([task for task in self._tasks or () if not task.done()])
            await _cancel_children([c for c in self.children.values() if c.local or c.target is not None])
        except asyncio.CancelledError:
            # A cancel may come while it ends: it ends all the same. Or somebody ends this asyncio loop's tasks.
            return await self._interrupted()
        return self.held.signal is None and not self._abandoned

    def _forsake(self) -> None:
        """It ends early: what an earlier run of it has made and this one has not come to ends first."""
        below, history = ids.places(self.id), self.held.history
        for id in sorted(id for id in history if id.startswith(below)):
            record = history.pop(id)
            if record.state is State.PENDING and (record.function or record.timer):
                self.held.host.journal.ask(TaskFence(self.held.claim, PromiseCancel(id)), keep=True)

    def _settle(self, state: State, raw: bytes | None, value: object) -> None:
        held = self.held
        if self._abandoned or held.signal is not None or held.diverged is not None:
            return
        if state is not State.RESOLVED and held.history:
            self._forsake()
        for child in self.children.values():  # timers, and what somebody outside settles
            held.host.handlers.hand_on(child.promise, child, self)
        if self._child is not None:
            self._child.settle(state, raw, value)
        else:
            held.host.journal.write(Fulfill(held, state, raw, value))


async def _cancel(tasks: list[asyncio.Task[object]]) -> None:
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks)


async def _cancel_children(children: list[Child]) -> None:
    for child in children:
        child.cancel(None)
    for child in children:
        await child.promise.settlement()


def _natural(id: str) -> list[tuple[int, str]]:
    """Ids in the order of their places: `:10` after `:9`."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in id.replace(":", ".").split(".")]
