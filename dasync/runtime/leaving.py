"""Tasks that this process hands back: their code ends here first, then they are the store's, for others to run.

In between, the store counts them as held, and heartbeats leave that as it is. Which tasks go and what each waits for
is the worker's to say. Code that does not end is not waited for: its successor may run beside it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable, Sequence
from functools import partial

from dasync.core.protocol import Claim, Status, TaskRelease, TaskSuspend
from dasync.errors import Suspended
from dasync.runtime.held import Held
from dasync.runtime.journal import Journal

CLEAN_UP_S = 5.0  # how long code that is handed back may clean up before others run it


class Leaving:
    """Those of one process."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._going: dict[Held, asyncio.Task[None]] = {}

    def part_with(self, held: Held, awaited: Sequence[str]) -> None:
        """End what runs of that task here; when it has ended, suspend it until one of `awaited` is settled, or release
        it where it waits for nothing."""
        parts = [part for execution in held.running.values() for part in execution.parts()]
        held.drop(Suspended(f"{held.id} is handed back"))
        going: Coroutine[object, object, None] = self._hand_back(held.claim, parts, tuple(awaited))
        # No task factory is asked: who closes this EventLoop may be an execution of another one.
        task = self._going[held] = asyncio.Task(going, loop=asyncio.get_running_loop())
        task.add_done_callback(partial(self._gone, held))

    async def gone(self) -> None:
        """Return once they are all with the store. Raises what came between, an outage say."""
        if self._going:
            done, _ = await asyncio.wait(self._going.values())
            for one in done:
                if not one.cancelled():
                    one.result()

    def claims(self) -> Iterable[Claim]:
        """Those under which the store has this process hold them still."""
        return [held.claim for held in self._going]

    async def _hand_back(self, claim: Claim, parts: Sequence[asyncio.Task[object]], awaited: tuple[str, ...]) -> None:
        if parts:
            await asyncio.wait(parts, timeout=CLEAN_UP_S)
        # What it waits for may be settled by now: then it has work to do, for whoever takes it.
        if not awaited or (await self._journal.ask(TaskSuspend(claim, awaited))).status is not Status.OK:
            await self._journal.ask(TaskRelease(claim))

    def _gone(self, held: Held, done: asyncio.Task[None]) -> None:
        del self._going[held]
        if not done.cancelled():
            done.exception()  # the journal has told of an outage; what the store has us hold is released by a heartbeat
