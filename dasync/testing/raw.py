"""What clients of `dasync sim` send raw: commands of the protocol which no EventLoop would send in such an order, about
a few promises and tasks that they share.

They create, wait, settle, claim, fence, suspend and cancel at random, under claims of their own, of each other and of
long ago. What each may be answered is `model.py`'s to say; nothing is judged here. In the end they settle what is left,
so that whoever waits for it can go on.
"""

from __future__ import annotations

import asyncio
from random import Random

from dasync.core import protocol as p
from dasync.core.model import State
from dasync.errors import StoreUnavailable
from dasync.loop import EventLoop

ASKS = 24
EPOCH = 12  # asks of one client, after which it goes on to others
SPREAD_S = 3.0  # within which they are sent
BREAK_S = 0.2  # until a client that was refused by an outage asks again
LATER_MS = 800  # the deadline of what has one, at most
GROUP, FUNCTION = "clients", "raw"
"""Where and what its tasks are: nobody has that function, so none but these clients take them."""
VALUES = (b"\x01", b"\x02")


class Raw:
    """What one client sends, in all of its lives. `claims`: what any of them has ever held."""

    def __init__(self, draws: Random, claims: list[p.Claim]) -> None:
        self._draws = draws
        self._claims = claims
        self._asked = 0
        self._eve: tuple[int, str] | None = None  # a millisecond before the deadline of what
        self._named: dict[str, None] = {}  # the tasks that are settled in the end

    async def ask(self, loop: EventLoop) -> None:
        """Send what is left to send, from a process of `GROUP`."""
        draws = self._draws
        while self._asked < ASKS:
            await asyncio.sleep(draws.uniform(0, 3 * SPREAD_S / ASKS))
            commands = [self._command(loop) for _ in range(draws.choice((1, 1, 2)))]
            self._asked += len(commands)
            if (eve := self._eve) is not None and draws.random() < 0.5:
                self._eve, id = None, eve[1]
                await asyncio.sleep(max(0, eve[0] - loop._runner.clock.now_ms()) / 1000)
                commands = [p.PromiseGet(id)]
            for asked in [loop._journal.ask(command) for command in commands]:
                try:
                    self._heard(await asked)
                except StoreUnavailable:
                    await asyncio.sleep(BREAK_S)
        left = list(self._named)
        while left:
            try:
                await loop._journal.ask(p.PromiseSettle(left[-1], State.RESOLVED))
            except StoreUnavailable:
                await asyncio.sleep(BREAK_S)
            else:
                left.pop()

    def _heard(self, reply: p.Reply) -> None:
        tasks = [one.task for one in reply.acquired] + ([] if reply.task is None else [reply.task])
        for task in tasks:
            if task.process is not None and (claim := p.Claim(task.id, task.version, task.process)) not in self._claims:
                self._claims.append(claim)

    # -- what it asks for

    def _command(self, loop: EventLoop) -> p.Command:
        """Any command."""
        draws = self._draws
        mine = [claim for claim in self._claims[-8:] if claim.id in (self._task(0), self._task(1))]
        if mine and draws.random() < 0.3:
            return self._claimed(draws.choice(mine), loop.process)
        made = (
            self._create, self._create, self._create_and_wait, self._create_and_wait, self._create_and_wait,
            self._call_back, self._call_back, self._call_back, self._take, self._take, self._other, self._other,
        )  # fmt: skip
        return draws.choice(made)(loop)

    def _plain(self) -> str:
        return f"raw-{self._asked // EPOCH}-{self._draws.randrange(2)}"

    def _task(self, number: int) -> str:
        id = f"raw-task-{self._asked // EPOCH}-{number}"
        self._named[id] = None
        return id

    def _any_task(self) -> str:
        return self._task(self._draws.randrange(2))

    def _later(self, id: str, loop: EventLoop) -> int | None:
        """A deadline, now and then."""
        if self._draws.random() < 0.6:
            return None
        at = loop._runner.clock.now_ms() + self._draws.randrange(LATER_MS)
        self._eve = at - 1, id
        return at

    def _create(self, loop: EventLoop) -> p.Command:
        if self._draws.random() < 0.6:
            id = self._plain()
            return p.PromiseCreate(id, timeout_at=self._later(id, loop))
        return self._work(self._any_task(), loop)

    def _work(self, id: str, loop: EventLoop) -> p.PromiseCreate:
        return p.PromiseCreate(id, FUNCTION, target=GROUP, timeout_at=self._later(id, loop))

    def _create_and_wait(self, loop: EventLoop) -> p.Command:
        if self._draws.random() < 0.7:
            return p.PromiseCreate(self._plain(), awaiter=self._any_task())
        return p.PromiseCreate(self._plain(), listener=loop.process)

    def _call_back(self, loop: EventLoop) -> p.Command:
        if self._draws.random() < 0.8:
            return p.RegisterCallback(self._plain(), self._any_task())
        return p.RegisterListener(self._plain(), loop.process)

    def _take(self, loop: EventLoop) -> p.Command:
        if self._draws.random() < 0.5:
            return p.TaskCreate(loop.process, self._work(self._any_task(), loop))
        return p.TaskAcquire(loop.process, (GROUP,), ((FUNCTION, 1),), self._draws.randrange(1, 3))

    def _other(self, loop: EventLoop) -> p.Command:
        draws, states = self._draws, (State.RESOLVED, State.REJECTED, State.CANCELED)
        return draws.choice((
            p.PromiseGet(self._plain()),
            p.PromiseGet(self._any_task()),
            p.TaskGet(self._any_task()),
            p.PromiseSettle(self._plain(), draws.choice(states), draws.choice(VALUES)),
            p.PromiseSettle(self._plain(), draws.choice(states), draws.choice(VALUES)),
            p.PromiseCancel(self._any_task(), draws.choice(VALUES)),
            p.PromiseCancel(self._any_task(), draws.choice(VALUES)),
            p.TaskHalt(self._any_task(), "for a while"),
            p.TaskContinue(self._any_task()),
            p.Tick(),
        ))  # fmt: skip

    def _claimed(self, claim: p.Claim, process: str) -> p.Command:
        """Under a claim: what is current, what was, or none that ever was."""
        draws = self._draws
        if (wrong := draws.random()) < 0.2:
            bent = draws.choice((-1, 1))
            claim = claim._replace(process=process) if wrong < 0.1 else claim._replace(version=claim.version + bent)
        child, plain = f"{claim.id}:{draws.randrange(3)}", self._plain()
        return draws.choice((
            p.TaskSuspend(claim, (plain,)),
            p.TaskSuspend(claim, (plain,)),
            p.TaskRelease(claim),
            p.TaskFulfill(claim, State.RESOLVED, draws.choice(VALUES)),
            p.TaskFence(claim, p.PromiseCreate(child, "child")),
            p.TaskFence(claim, p.PromiseCreate(f"{child}.0", "grandchild")),
            p.TaskFence(claim, p.PromiseCreate(child)),
            p.TaskFence(claim, p.PromiseCreate(f"{claim.id}:3")),
            p.TaskFence(claim, p.PromiseSettle(child, State.RESOLVED, draws.choice(VALUES))),
            p.TaskFence(claim, p.PromiseSettle(plain, State.RESOLVED, draws.choice(VALUES))),
            p.TaskFence(claim, p.PromiseCancel(child)),
            p.RegisterCallback(child, claim.id),
        ))  # fmt: skip
