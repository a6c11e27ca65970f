"""Turns: in which order an execution takes the outcomes of what it has made, in its first run and in every replay.

The commits that settled them number them; those of one commit are one turn. A turn is taken in one go, the next one
when the code has come to rest: when nothing of it can go on but by another outcome, or by something outside. What is
born after a turn says so in its row; so a replay, which has the outcomes from the start, takes each at the place where
the first run took it. It waits there for what was made before, which something that is not recorded, as a thread or a
socket, may bring on later this time; not for ever, since a replay that comes to something else than is recorded says
so. Who is canceled, and what is written, is decided elsewhere.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Protocol

from dasync.core.model import PromiseRecord, State
from dasync.errors import InvariantViolated
from dasync.runtime.awaiters import Among, Waiter
from dasync.runtime.cancels import Cancels
from dasync.runtime.cut import Cut
from dasync.runtime.function import ALARM
from dasync.runtime.promise import UNREAD
from dasync.runtime.shared import FIRST, LATER, Shared
from dasync.system import call_later

REST_LOOKS = 12  # one in each round of the asyncio loop: whatever was delivered has been taken in by then
MAX_LOOKS = 1_000  # code that never comes to rest takes the next turn after that many
PAUSE_FIRST_S, PAUSE_CAP_S = 0.001, 0.05  # between looks at a thread that runs
MAX_PAUSES = 40  # of such looks: about two seconds
PATIENCE_S = 10.0  # how long a replay waits for what the first run has made, where something outside may bring it on

_GATHERING: type = asyncio.tasks._GatheringFuture  # type: ignore[attr-defined]  # what gather gives has no public class
_log = logging.getLogger("dasync")


class Outcome(Protocol):
    """A child of the execution, which is settled."""

    def taken(self, record: PromiseRecord, value: object) -> None:
        """Its turn has come."""


class Taker(Protocol):
    """The execution."""

    id: str
    turn: int
    """The last turn that it has taken."""
    cut: Cut | None
    cancels: Cancels | None
    shared: Shared | None

    def parts(self) -> Sequence[asyncio.Task[object]]:
        """The asyncio tasks that it consists of, its body's first."""

    def in_thread(self) -> bool | None:
        """Whether its body runs in a thread and does anything but wait there; None: it runs in no thread."""

    def is_over(self) -> bool:
        """Whether it is gone."""

    def awaits(self, id: str) -> bool:
        """Whether it awaits a promise of that id, which it has not made."""

    def may_go_on(self) -> bool:
        """Whether its function has room for it to run; if not, it is told when there is."""

    def awaits_only(self, outcome: Outcome) -> bool:
        """Whether that is all that can come to it, and all that its code waits for."""


class Turns:
    """The outcomes of one execution's children, until they are taken."""

    __slots__ = ("_coming", "_due", "_looking", "_looks", "_patience", "_plan", "_rest", "_seen", "_taker", "taking")

    def __init__(self, taker: Taker, recorded: Collection[PromiseRecord]) -> None:
        self._taker = taker
        self._plan = Plan(recorded)
        # A heap; those of one turn in the order in which they were due, then of their ids.
        self._coming: list[tuple[int, int, str, Callable[[], None]]] = []
        self._due: list[Callable[[], None]] = []
        self.taking = False
        """Whether a turn is being taken just now."""
        self._looking = False
        self._looks = 0
        self._rest = 0
        self._seen: list[asyncio.Future[object] | None] | None = None
        self._patience: asyncio.TimerHandle | None = None

    def come(self, outcome: Outcome, record: PromiseRecord, value: object) -> None:
        """A child was settled just now: by a commit after all that have been heard of."""
        if (record.turn or 0) <= self._taker.turn:
            raise InvariantViolated(f"{record.id} was settled at {record.turn}, and heard of after {self._taker.turn}")
        if self._looking or self.has_more() or self._plan.is_behind() or not self._taker.awaits_only(outcome):
            self._expect(outcome, record, value)
            return
        # Nothing can come before it or with it, and nothing goes on by itself: a look would find that it is time.
        self._taker.turn, self.taking = record.turn or 0, True
        outcome.taken(record, value)
        self.taking = False

    def recall(self, outcome: Outcome, record: PromiseRecord) -> None:
        """The code has come to a child that is on record; it is taken again in its turn, if it is settled."""
        self._plan.meet(record)
        if record.state is not State.PENDING:
            self._expect(outcome, record, UNREAD)

    def arrive(self, id: str, turn: int, take: Callable[[], None]) -> None:
        """A promise that the execution has not made, and awaits, was settled by that commit."""
        order, shared = LATER, self._taker.shared
        if shared is not None:
            turn, order = shared.place(id, turn, self._plan.born_after)  # what is on record was made without it
        heapq.heappush(self._coming, (turn, order, id, take))
        self.stir()

    def ring(self, sets_alarm: Callable[[], None]) -> None:
        """The code has come to a child on record that has a deadline. It is set when the code has come to all of them:
        those that are overdue would ring in the order in which it comes to them, and not in that of their times."""
        self._due.append(sets_alarm)
        self.stir()

    def stir(self) -> None:
        """Something has changed that may let the next turn be taken, or the cut come."""
        if not self._looking and (self._coming or self._due or self._awaits_cancel()) and not self._taker.is_over():
            self._looking, self._looks, self._seen = True, 0, None
            asyncio.get_running_loop().call_soon(self._look)

    def flush(self) -> None:
        """The execution is gone: whoever else waits hears of it all now."""
        self._impatient_no_more()
        while self._coming:
            self._take(self._coming[0][0])

    def moves(self) -> bool:
        """Whether the code has not come to rest since the last turn: what happens now follows from that."""
        return self._looking

    def has_more(self) -> bool:
        """Whether there is more to take."""
        return bool(self._coming or self._due)

    def missing(self) -> str | None:
        """The first child on record that the code has not come to."""
        return self._plan.missing()

    def is_behind(self) -> bool:
        """Whether there is something on record that the code has not come to, or has not taken."""
        shared = self._taker.shared
        return self._plan.is_behind() or self._has_recorded() or (shared is not None and shared.is_behind())

    def _expect(self, outcome: Outcome, record: PromiseRecord, value: object) -> None:
        take: Callable[[], None] = partial(outcome.taken, record, value)
        heapq.heappush(self._coming, (record.turn or 0, record.settled_at or 0, record.id, take))
        self.stir()

    def _has_recorded(self) -> bool:
        """Whether something comes next that an earlier run took."""
        return bool(self._coming) and self._coming[0][0] <= self._plan.last and self._coming[0][1] < LATER

    def _awaits_cancel(self) -> bool:
        cut, cancels = self._taker.cut, self._taker.cancels
        return (cut is not None and not cut.came) or (cancels is not None and cancels.waits())

    # -- looking whether it is time

    def _look(self) -> None:
        self._looking = False
        taker, cut, cancels, shared = self._taker, self._taker.cut, self._taker.cancels, self._taker.shared
        if taker.is_over():
            return
        # A thread that runs is canceled at its next wait, so its cancel need not wait for that.
        at_once = taker.in_thread() and cut is not None and not cut.recorded and not self.is_behind()
        if not at_once and not self._is_at_rest():
            self._look_again()
            return
        self._looks, self._seen = 0, None
        if shared is not None and shared.unknown:
            return  # what they are is heard in a moment
        if self._due and not self._has_recorded() and not (shared is not None and shared.is_behind()):
            while self._due:
                self._due.pop()()
        if cut is not None and not cut.came and self._may_cut(cut):
            self._impatient_no_more()
            cut.come()
            self.stir()
        elif cancels is not None and cancels.release(behind=self.is_behind() and bool(self._coming)):
            self.stir()
        elif self._coming:
            turn, order, *_ = self._coming[0]
            missing = None if shared is None else shared.missing(turn, order)
            if (cut is not None and cut.holds(turn)) or (missing is not None and taker.awaits(missing)):
                return
            if cancels is not None and cancels.holds(turn):
                if cancels.release(behind=False):
                    self.stir()
                elif self._patience is None:
                    self._patience = call_later(asyncio.get_running_loop(), PATIENCE_S, self._say_what_is_missing)
                return
            if (missing is None and self._may_take(turn, order)) or self._is_stuck():
                if taker.may_go_on():
                    self._go_on(turn)
            elif cancels is not None and cancels.release(behind=False):
                self.stir()
            elif self._patience is None:
                self._patience = call_later(asyncio.get_running_loop(), PATIENCE_S, self._go_on, turn)

    def _say_what_is_missing(self) -> None:
        _log.warning(
            "the replay of %s waits for a cancel that its first run had at this place: a timer of asyncio's begins anew"
            " on a loop that dasync did not make; dasync.timeout does not", self._taker.id,
        )  # fmt: skip

    def _go_on(self, turn: int) -> None:
        self._impatient_no_more()
        if not self._taker.is_over():
            self._take(turn)
            self.stir()

    def _may_take(self, turn: int, order: int) -> bool:
        """Whether all is made that was there when what comes next was taken."""
        if order < FIRST:
            return self._plan.allows(turn)
        return not self._plan.is_behind() if order == LATER else self._plan.has_made_before(turn)

    def _may_cut(self, cut: Cut) -> bool:
        shared = self._taker.shared
        if (not cut.recorded and self._has_recorded()) or (shared is not None and shared.is_behind(uncut=cut.recorded)):
            return False  # first to the end of what is on record
        return cut.may_come(self._is_stuck if self._plan.is_behind() else None)

    def _look_again(self) -> None:
        loop = asyncio.get_running_loop()
        self._looking = True
        self._looks += 1
        if self._taker.in_thread():
            call_later(loop, min(PAUSE_CAP_S, PAUSE_FIRST_S * self._looks), self._look)
        else:
            loop.call_soon(self._look)

    def _is_at_rest(self) -> bool:
        """Whether nothing of the code goes on by itself."""
        runs = self._taker.in_thread()
        if runs is not None:
            return not runs or self._looks >= MAX_PAUSES
        if self._seen is not None and self._rest < REST_LOOKS:
            self._rest += 1
            return False
        parts = self._taker.parts()
        waits = [part._fut_waiter for part in parts]  # type: ignore[attr-defined]  # asyncio's own, C and Python alike
        if len(waits) <= 1 and all(isinstance(one, Waiter | Among) and not one.done() for one in waits):
            return True
        if self._looks >= MAX_LOOKS:
            return True
        if any(one is None or one.done() for one in waits):
            self._seen = None
        elif waits == self._seen:
            return True
        else:
            self._seen, self._rest = waits, 0
        return False

    def _is_stuck(self) -> bool:
        """Whether it waits for nothing but outcomes, in each of its tasks."""
        runs = self._taker.in_thread()
        if runs is not None:
            return not runs
        parts = self._taker.parts()
        # A body that awaits no promise waits for the tasks that it has made, if it has made any.
        return all(_is_ours(part) for part in parts[1:] or parts)

    def _take(self, turn: int) -> None:
        # Timers that were due at different times rest in between, though one commit has settled them.
        due = self._coming[0][:2]
        if due[1] < FIRST:
            self._taker.turn = max(turn, self._taker.turn)
        elif self._taker.shared is not None:  # it is no turn of its own children
            self._taker.shared.next_group()
        self.taking = True
        while self._coming and self._coming[0][:2] == due:
            heapq.heappop(self._coming)[3]()
        self.taking = False

    def _impatient_no_more(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None


class Plan:
    """What an earlier run of an execution has made, and what it took when."""

    __slots__ = ("_births", "_members", "_met", "_next", "born_after", "last")

    def __init__(self, recorded: Collection[PromiseRecord]) -> None:
        # Not for the timers of asyncio's means: an attempt that failed is not run again, and its timers are not set.
        waited = [record for record in recorded if record.function != ALARM]
        self._births = sorted((record.born_after, record.id) for record in waited)
        self._members = Counter(record.turn for record in waited if record.turn is not None)
        self._met: set[str] = set()
        self._next = 0
        self.born_after = self._births[-1][0] if self._births else 0
        """The last turn after which anything was made that is on record."""
        self.last = max((record.turn or 0 for record in recorded), default=0)
        """The last turn that is on record."""

    def meet(self, record: PromiseRecord) -> None:
        """The code has come to that child."""
        if record.function == ALARM:
            return
        self._met.add(record.id)
        if record.turn is not None and record.turn <= self.last:  # what is later was pending then
            self._members[record.turn] -= 1
        while self.is_behind() and self._births[self._next][1] in self._met:
            self._met.discard(self._births[self._next][1])
            self._next += 1

    def is_behind(self) -> bool:
        """Whether there are children that the code has not come to."""
        return self._next < len(self._births)

    def allows(self, turn: int) -> bool:
        """Whether all is made that was there when that turn was taken, all of that turn among it."""
        born_after = self._births[self._next][0] if self.is_behind() else turn
        return born_after >= turn and not self._members.get(turn)

    def has_made_before(self, turn: int) -> bool:
        """Whether the code has come to all children that were made before that turn was taken."""
        return not self.is_behind() or self._births[self._next][0] >= turn

    def missing(self) -> str | None:
        """The first child that the code has not come to."""
        return self._births[self._next][1] if self.is_behind() else None


def _is_ours(task: asyncio.Task[object]) -> bool:
    waits = task._fut_waiter  # type: ignore[attr-defined]  # asyncio's own
    return isinstance(waits, Waiter | Among | asyncio.Task | _GATHERING)
