"""Drive one function until it is done or blocked.

An execution is one run of a promise's function, as an asyncio task on the host's loop, in a worker thread or in a
process of the pool. This file decides when it starts, what its end means, and in which order it and its children end;
where its code runs is `code.py`, what it invokes meanwhile `calls.py`, what is written of it `child.py`, when it is
tried again `attempts.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence

from dasync.core import codec, failure, ids
from dasync.core.model import State
from dasync.core.protocol import PromiseCancel, TaskFence
from dasync.errors import InvariantViolated, LeaseLost, Suspended
from dasync.runtime import branch
from dasync.runtime.again import Again, check_same, latest
from dasync.runtime.attempts import attempts
from dasync.runtime.branch import Branch
from dasync.runtime.child import Child, Fulfill
from dasync.runtime.code import Code, Invocation
from dasync.runtime.cut import Cut
from dasync.runtime.function import Function
from dasync.runtime.held import Held
from dasync.runtime.promise import Promise


class Execution(Code):
    """One run of one promise's function."""

    __slots__ = ("_abandoned", "_again", "_canceling", "_child", "_reason", "_started")

    def __init__(self, held: Held, id: str, invocation: Invocation, child: Child | None) -> None:
        super().__init__(held, id, invocation, held.timeout_at if child is None else child.timeout_at)
        self._child = child  # what it runs for; None: the task's own promise
        self._reason: bytes | None = None
        self._started = False
        self._canceling = False
        self._abandoned = False
        self._again: Again | None = None  # what `again` has given, in this attempt

    def start(self, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        """Begin to run, with the next turn of the asyncio loop."""
        self.held.running[self.id] = self
        if self.held.history:
            self.recall_cuts()
        here, loop = Branch(self, ids.places(self.at)), asyncio.get_running_loop()
        # A child's context is a copy of its parent's, a task's own one of the EventLoop's.
        context = self.held.host.context.copy() if self._child is None else None
        run: Coroutine[object, object, object] = self._run(args, kwargs)
        self._task = branch.task(run, here, loop, name=self.id, context=context)
        self.slot = self.held.host.slots.ask(self, kept=self._child is None)
        if self.slot is not None:
            self._task.add_done_callback(self.slot.leave)

    def run_child(
        self, child: Child, function: Function[..., object], args: tuple[object, ...], kwargs: dict[str, object]
    ) -> None:
        param = child.param
        if child.promise.id in self.held.runs:
            param, args, kwargs = latest(child, function)
        Execution(self.held, child.promise.id, Invocation(function, param, child.tags), child).start(args, kwargs)

    def again(self, function: Function[..., object], args: tuple[object, ...], kwargs: dict[str, object]) -> object:
        self.held.check()
        check_same(function, self.function)
        promise = self.held.promise if self._child is None else self._child.promise
        self._again = Again(self.held, promise, function, args, kwargs)
        return self._again

    def check(self) -> None:
        self.held.check()
        if self._abandoned:
            raise LeaseLost(f"promise {self.id!r} is settled")

    # -- from outside

    def cancel(self, reason: bytes | None) -> None:
        """End it as canceled: its code is interrupted at its next await and may clean up."""
        if self.cut is not None:
            return
        self.cut = Cut(self, reason)
        if self._started:
            self.turns.stir()
        elif self.id not in self.held.recorded:  # its code has never run and never will, so it cannot settle itself
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
        if self._turns is not None:
            self._turns.flush()
        if not self._started:
            self.held.running.pop(self.id, None)
        for task in self.parts():
            if task is not asyncio.current_task():
                task.cut()

    def overrule(self) -> None:
        """Its promise is settled already: stop running, and end what it made, which the store may not know of yet."""
        self.abandon()
        for child in list(self.children.values()):
            if child.local or child.target is not None:
                child.cancel(None)

    def _hand_on(self) -> None:
        """Its task is no more here: its cancel goes on elsewhere, and its children are as anybody's from now on."""
        if not (self.held.is_settled or self.held.promise.done()):
            if self.cut is not None and not (self.cut.came or self.cut.recorded):
                self.unwritten = self.cut.value()
            self.record_cut()
        for child in self.children.values():
            self.held.host.handlers.hand_on(child.promise, child, self.held)

    def is_over(self) -> bool:
        return self._abandoned or self.held.signal is not None

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
            self._task.cut()

    # -- the run

    async def _run(self, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        held = self.held
        if self.slot is not None:
            await self.slot.begin()
        self._started = True
        value: object = None
        raw: bytes | None
        try:
            if held.barrier is not None and not held.barrier.done():
                await asyncio.shield(held.barrier)
            if self.cut is not None:
                self.turns.stir()
            direct, failed = self.function.direct and not (held.history and ids.retry(self.at, 1) in held.history), None
            try:
                try:
                    if direct:
                        value = await self.function.fn(*args, **kwargs)  # a frame between would cost all who wait
                except Exception as error:
                    failed = error
                if failed is not None or not direct:  # not in the handler: the next error has another reason
                    value = await attempts(self, args, kwargs, failed)
            finally:
                if self.cut is not None and not self.cut.came:
                    self.cut.drop()
                    self.turns.stir()
            if self._again is not None and not isinstance(value, Again):
                raise RuntimeError(f"{self.function.name}.again() was called and not returned: say `return` before it")
            if isinstance(value, Promise):
                value = await self._linked(value)
            if not isinstance(value, Again):  # as it is now: what is left of the code may change it as it ends
                raw, value = codec.encode_result(value, self.function.result, held.host.max_payload)
            if self.children or self._tasks or self.failed:
                await self._finish()
            self.check_complete(self.function.fn)
            if isinstance(value, Again):
                await self._written(value)
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
        if isinstance(value, Again) and state is State.RESOLVED:
            invocation = Invocation(self.function, value.param, self.tags)
            Execution(held, self.id, invocation, self._child).start(value.args, value.kwargs)
        else:
            self._settle(state, raw, value)

    async def begin_again(self, prefix: str) -> None:
        """What the last attempt has left behind ends; the next one invokes at places that begin with `prefix`."""
        await _cancel([task for task in self._tasks or () if not task.done()])
        if self._task is not None:
            self._task.branch = Branch(self, prefix)
        self.forget_shared()
        self._again = None

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

    async def _written(self, again: Again) -> None:
        """This run is followed by another one, unless it is canceled: a cancel is for all that would come."""
        if self._turns is not None:
            self._turns.flush()
        if self.cut is None:
            await again.written(self.children.values())
        if self.cut is not None:  # one that has come meanwhile too
            self.cut.drop()
            self._canceling, self._reason = True, self.cut.reason
            raise asyncio.CancelledError

    async def _finish(self) -> None:
        """The body has returned: its tasks end, its children are waited for; a failure that nobody heard is raised."""
        await _cancel([task for task in self._tasks or () if not task.done()])
        while pending := [c for c in self.children.values() if (c.local or c.target) and not c.promise.done()]:
            # The await of these was cut short and nobody is left to hear them.
            cut = [c for c in pending if c.promise.heard and not self.held.host.handlers.is_awaited(c.promise)]
            if cut:
                self.record_cut()  # that they are canceled follows from where their awaits were cut short
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
        while task is not None and task.cancelling():
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
        below, history = ids.places(self.at), self.held.history
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
        if self._turns is not None:
            self._turns.flush()
        for child in list(self.children.values()):  # timers, and what somebody outside settles
            if child.timer:
                child.stop()
            else:
                held.host.handlers.hand_on(child.promise, child, self)
        held.runs.pop(self.id, None)
        if self._child is not None:
            self._child.settle(state, raw, value)
        else:
            held.host.journal.write(Fulfill(held, state, raw, value))


async def _cancel(tasks: Sequence[asyncio.Task[object]]) -> None:
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
