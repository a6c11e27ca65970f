"""The journal: commands wait here for the next batch, and learn here how they ended.

One batch is under way at a time; what comes meanwhile forms the next one, so a hundred concurrent executions cost
one commit. Order is kept. A command that nobody waits for is written behind: with the next batch, or after a short
while. When the store is unavailable, commands that can be dropped fail and the others wait until it is back.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Mapping
from typing import Protocol

from dasync.core.protocol import Command, Reply
from dasync.errors import InvariantViolated, StoreError, StoreUnavailable
from dasync.ports import Bell, Clock, Store
from dasync.system import call_later

MAX_BATCH = 1_000  # commands in one transaction: bounds how long others wait for the store
WRITE_BEHIND_S = 0.05  # how long a record that nobody waits for may stay unwritten
RETRY_FIRST_S, RETRY_CAP_S = 0.05, 1.0  # between attempts while the store is unavailable
_CANCELED = (
    "all tasks of the asyncio loop were canceled, the EventLoop's own among them: leave its `async with` before that"
    " loop ends"
)
_log = logging.getLogger("dasync.journal")


class Entry(Protocol):
    """Something to write, and what becomes of it."""

    def command(self) -> Command:
        """What to say; asked once, when the batch is put together."""

    def replied(self, reply: Reply) -> None:
        """It is durable, or was refused."""

    def failed(self, error: BaseException, *, final: bool) -> bool:
        """The store did not take it. True: forget it; False: try again. After a final one there is no trying again."""


class Companion(Entry, Protocol):
    """Something that goes along with every batch, as its last."""

    def is_wanted(self) -> bool:
        """Whether it does now."""


class Question:
    """An entry whose reply somebody awaits."""

    __slots__ = ("_command", "_keep", "_then", "reply")

    def __init__(
        self, command: Command, reply: asyncio.Future[Reply], *, keep: bool, then: Callable[[Reply], None] | None
    ) -> None:
        self._command = command
        self._keep = keep
        self._then = then
        self.reply = reply

    def command(self) -> Command:
        return self._command

    def replied(self, reply: Reply) -> None:
        if self._then is not None:
            self._then(reply)
        if not self.reply.done():
            self.reply.set_result(reply)

    def failed(self, error: BaseException, *, final: bool) -> bool:
        if self._keep and not final:
            return False
        if not self.reply.done():
            self.reply.set_exception(error)
            self.reply.exception()  # an asker that was canceled meanwhile will not look
        return True


class Journal:
    """The one way of this process to its store."""

    def __init__(
        self,
        store: Store,
        clock: Clock,
        *,
        ring: Callable[[Mapping[str, Bell]], None],
        unavailable: Callable[[StoreUnavailable], None],
        broken: Callable[[BaseException], None],
    ) -> None:
        self._store = store
        self._clock = clock
        self._ring = ring
        self._unavailable = unavailable
        self._broken = broken
        self._queue: deque[Entry] = deque()
        self._wake: asyncio.Future[None] | None = None
        self._behind: asyncio.TimerHandle | None = None
        self._urgent = False
        self._error: BaseException | None = None
        self._task: asyncio.Task[None] | None = None
        self._closing = False
        self._quiet = asyncio.Event()  # nothing is being written
        self._under_way: list[Entry] = []
        self._later: list[Callable[[], None]] = []
        self.companion: Companion | None = None
        """What goes along with every batch."""
        self.batches = 0
        self.commands = 0

    def start(self) -> None:
        """Begin to write."""
        self._task = asyncio.create_task(self._run(), name="dasync-journal")

    def hurry(self) -> None:
        """No outage is waited out any more: it is about to be closed."""
        self._closing = True

    async def close(self) -> None:
        """Write what is queued, once, then stop."""
        self._closing = True
        if self._task is not None:
            while (self._queue or self._under_way) and self._error is None:
                self.urge()
                await self._quiet.wait()
            self._task.cancel()
            await asyncio.wait([self._task])
            self._task = None
        self._error = self._error or StoreUnavailable("the EventLoop is closed")
        self._fail_all(self._error)

    def write(self, entry: Entry) -> None:
        """Queue `entry` and write it without delay."""
        self._queue.append(entry)
        self.urge()

    def write_behind(self, entry: Entry) -> None:
        """Queue `entry`; it goes with the next batch, or after a short while."""
        self._queue.append(entry)
        if self._error is not None:
            self.urge()
        elif self._behind is None and not self._urgent:
            self._behind = call_later(asyncio.get_running_loop(), WRITE_BEHIND_S, self.urge)

    def ask(
        self, command: Command, *, keep: bool = False, then: Callable[[Reply], None] | None = None
    ) -> asyncio.Future[Reply]:
        """Write `command`; the future gives its reply or a `StoreError`. With `keep` it outlasts an outage.

        `then` is called with the reply before anything else happens, as whoever awaits the future is not.
        """
        question = Question(command, asyncio.get_running_loop().create_future(), keep=keep, then=then)
        self.write(question)
        return question.reply

    def after(self, then: Callable[[], None]) -> None:
        """Call `then` when no batch is under way: now, or as soon as the replies of this one are in."""
        if self._under_way:
            self._later.append(then)
        else:
            then()

    def urge(self) -> None:
        """Write what is queued without delay."""
        if self._error is not None:
            self._fail_all(self._error)
            return
        self._urgent = True
        if self._behind is not None:
            self._behind.cancel()
            self._behind = None
        if self._wake is not None and not self._wake.done():
            self._quiet.clear()  # from now on, not from when it begins: who waits for the end of it asks before that
            self._wake.set_result(None)

    # -- the writer

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while True:
                if not self._queue or not self._urgent:
                    self._wake = loop.create_future()
                    self._quiet.set()
                    await self._wake
                self._wake = None
                self._urgent = False
                while self._queue:
                    # Not by a name here: while nothing is to be written, that would keep what the last batch settled.
                    await self._commit(self._next())
        except (Exception, InvariantViolated, asyncio.CancelledError) as cause:
            # Nothing more is written: it is closed, or canceled by who ends all of this asyncio loop; the store is
            # damaged, or we are. Whoever asks from now on is told at once.
            error: BaseException = cause
            if isinstance(cause, asyncio.CancelledError):
                error = StoreUnavailable("the EventLoop is closed" if self._closing else _CANCELED)
            elif not isinstance(cause, StoreError | InvariantViolated):
                error = InvariantViolated(f"the journal failed: {cause!r}. A bug in dasync: please report it.")
                error.__cause__ = cause
            self._error = error
            self._fail_all(error)
            self._quiet.set()
            if not (self._closing and isinstance(cause, asyncio.CancelledError)):
                self._broken(error)

    def _next(self) -> list[Entry]:
        batch = [self._queue.popleft() for _ in range(min(len(self._queue), MAX_BATCH))]
        if self.companion is not None and self.companion.is_wanted() and self.companion not in batch:
            batch.append(self.companion)
        return batch

    async def _commit(self, batch: list[Entry]) -> None:
        self._under_way = batch
        await self._transact(batch)
        self._under_way = []
        later, self._later = self._later, []
        for then in later:
            then()

    async def _transact(self, batch: list[Entry]) -> None:
        commands = [entry.command() for entry in batch]
        pause = RETRY_FIRST_S
        while batch:
            try:
                committed = await self._store.transact(commands)
            except StoreUnavailable as error:
                _log.warning("%s; %d commands wait", error, len(batch))
                self._unavailable(error)
                pairs = zip(batch, commands, strict=True)
                waiting = [(e, c) for e, c in pairs if not e.failed(error, final=self._closing)]
                batch, commands = [e for e, _ in waiting], [c for _, c in waiting]
                self._under_way, behind, self._queue = batch, self._queue, deque()
                kept = [entry for entry in behind if not entry.failed(error, final=self._closing)]
                self._queue.extendleft(reversed(kept))  # before what their failure has brought up
                if batch:
                    await self._clock.sleep(pause)
                    pause = min(2 * pause, RETRY_CAP_S)
                continue
            self.batches += 1
            self.commands += len(commands)
            if committed.doorbells:
                self._ring(committed.doorbells)
            for entry, reply in zip(batch, committed.replies, strict=True):
                entry.replied(reply)
            return

    def _fail_all(self, error: BaseException) -> None:
        batch, self._under_way = self._under_way, []
        for entry in batch:
            entry.failed(error, final=True)
        while self._queue:
            self._queue.popleft().failed(error, final=True)
