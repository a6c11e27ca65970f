"""The journal, which collects commands into batches: in which order it tells of them, and that its end comes."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from dasync.core.protocol import Command, PromiseCreate, PromiseGet
from dasync.ports import Committed
from dasync.runtime.journal import Journal, Question
from dasync.stores.memory import MemoryStore
from dasync.system import SystemClock

PATIENCE_S = 10


@contextmanager
def alarm() -> Iterator[None]:
    """End what spins: asyncio's own timeouts are of no use against a step that never ends."""

    def rung(*_: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, rung)
    signal.setitimer(signal.ITIMER_REAL, PATIENCE_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_a_close_writes_what_was_left_for_the_next_batch() -> None:
    """The writer sleeps, something waits for company, and the end comes before that does."""

    async def main() -> bool:
        clock = SystemClock()
        journal = Journal(MemoryStore(clock), clock, ring=lambda bells: None, unavailable=print, broken=print)
        journal.start()
        await journal.ask(PromiseGet("x"))
        await asyncio.sleep(0)  # it sleeps again
        late = Question(PromiseCreate("x"), asyncio.get_running_loop().create_future(), keep=False, then=None)
        journal.write_behind(late)
        await journal.close()
        return late.reply.done() and late.reply.result().promise is not None

    with alarm():
        assert asyncio.run(main())


def test_news_waits_for_the_replies_of_a_batch_that_is_under_way() -> None:
    """What was settled here may have come first: its reply is told before."""

    async def main() -> list[str]:
        clock, told, goes_on = SystemClock(), list[str](), asyncio.Event()
        store = MemoryStore(clock)
        transact = store.transact

        async def slowly(commands: Sequence[Command]) -> Committed:
            committed = await transact(commands)
            await goes_on.wait()
            return committed

        store.transact = slowly  # type: ignore[method-assign]
        journal = Journal(store, clock, ring=lambda bells: None, unavailable=print, broken=print)
        journal.start()
        journal.after(lambda: told.append("nothing is under way"))
        asked = journal.ask(PromiseGet("x"), then=lambda reply: told.append("reply"))
        await asyncio.sleep(0.01)
        journal.after(lambda: told.append("news"))
        goes_on.set()
        await asked
        await journal.close()
        return told

    assert asyncio.run(main()) == ["nothing is under way", "reply", "news"]
