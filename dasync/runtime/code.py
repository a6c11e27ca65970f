"""The code of an execution: where its function is called, of which asyncio tasks it consists, when it may run.

An `async def` runs on the asyncio loop, a plain `def` in a thread (`threads.py`) or in a process of the pool
(`pool.py`), an item of a batched function with others (`batches.py`), and one whose function has a limit only with a
slot (`slots.py`). When it starts, and what its end means,
is decided one file further (`execution.py`).
"""

from __future__ import annotations

from typing import NamedTuple

from dasync.core import ids
from dasync.errors import LeaseLost
from dasync.runtime.awaiters import Waiter
from dasync.runtime.batched import Batched
from dasync.runtime.branch import Branch, BranchTask
from dasync.runtime.calls import Calls
from dasync.runtime.child import Child
from dasync.runtime.function import Function
from dasync.runtime.held import Held
from dasync.runtime.pool import Crashed
from dasync.runtime.slots import Slot
from dasync.runtime.threads import Body
from dasync.runtime.turns import Outcome


class Invocation(NamedTuple):
    """What is run: a function, the encoded arguments, and what the invocation brought along."""

    function: Function[..., object]
    param: bytes
    tags: str


class Code(Calls):
    """That of one execution."""

    __slots__ = ("_body", "_task", "_tasks", "function", "param", "slot", "tags")

    def __init__(self, held: Held, id: str, invocation: Invocation, timeout_at: int | None) -> None:
        super().__init__(held, id, timeout_at)
        self.function, self.param, self.tags = invocation
        self.slot: Slot | None = None
        """Where its function has a limit, from its start."""
        self._tasks: set[BranchTask[object]] | None = None
        self._task: BranchTask[object] | None = None
        self._body: Body | None = None

    def adopt(self, task: BranchTask[object]) -> None:
        if self._tasks is None:
            self._tasks = set()
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def parts(self) -> list[BranchTask[object]]:
        return [task for task in (self._task, *(self._tasks or ())) if task is not None and not task.done()]

    def awaits_only(self, outcome: Outcome) -> bool:
        if len(self.children) > 1 or type(outcome) is not Child or self._tasks or self._body or self.slot:
            return False
        if self._task is None or self.cut is not None or self.cancels is not None or self.shared is not None:
            return False
        waiter = self._task._fut_waiter  # type: ignore[attr-defined]  # asyncio's own, C and Python alike
        return type(waiter) is Waiter and not waiter.done()

    def in_thread(self) -> bool | None:
        return None if self._body is None else not self._body.rests()

    def thread_id(self) -> int | None:
        return None if self._body is None else self._body.thread_id

    def may_go_on(self) -> bool:
        return self.slot is None or self.slot.may_go_on()

    def go_on(self) -> None:
        self.turns.stir()

    async def call(self, args: tuple[object, ...], kwargs: dict[str, object]) -> object:
        """Run the function once."""
        if self.function.direct:
            return await self.function.fn(*args, **kwargs)
        if isinstance(self.function, Batched):
            return await self.held.host.batches.join(self.function, args[0], self.held)
        return await (self._in_process() if self.function.process else self._in_a_thread(args, kwargs))

    async def _in_a_thread(self, args: tuple[object, ...], kwargs: dict[str, object]) -> object:
        at = self._task.branch if self._task is not None else Branch(self, ids.places(self.at))
        self._body = Body(self, self, at, self.held.host.seats)
        try:
            return await self._body.run(self.function.fn, args, kwargs)
        finally:
            self._body = None

    async def _in_process(self) -> object:
        try:
            return await self.held.host.pool.run(self.function, self.id, self.param)
        except Crashed as crashed:
            self.held.poison(self.id, self.function.name, crashed)
            raise LeaseLost(f"{self.held.id} is halted") from None
