"""Places: where something came to an execution that its own record does not tell of, for a replay to find it there.

Cancels, of all of it (`cut.py`) or of one of its tasks (`cancels.py`), and the outcomes of promises that others have
made (`shared.py`). Each comes in its turn (`turns.py`); where that was is written when something durable follows, and
nothing starts before it is. What the execution makes itself is not known here.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Sequence

from dasync.core import ids
from dasync.runtime.branch import BranchTask, Known
from dasync.runtime.cancels import Cancels
from dasync.runtime.child import Decision
from dasync.runtime.cut import Cut
from dasync.runtime.function import CUT, SHARED
from dasync.runtime.held import Held
from dasync.runtime.shared import Shared
from dasync.runtime.turns import Outcome, Turns


class Places(ABC):
    """Those of one execution."""

    __slots__ = ("_places", "_turns", "at", "cancels", "cut", "held", "id", "made", "shared", "turn", "unwritten")

    def __init__(self, held: Held, id: str) -> None:
        self.held = held
        self.id = id
        self.at = held.runs[id].id if id in held.runs else id
        """What its places begin with: its id, or where it has started over what keeps its arguments."""
        self.made = 0
        """How many places for invocations its code has taken."""
        self.turn = 0
        """The last turn that it has taken."""
        self._turns: Turns | None = None  # made when it is needed: who waits for the first time has none
        self.cut: Cut | None = None
        """The cancel of this execution, once it is asked for."""
        self.cancels: Cancels | None = None
        """Cancels of its asyncio tasks that came from outside its code, once there are any."""
        self.shared: Shared | None = None
        """What it awaits and has not made, once there is any."""
        self.unwritten: object = None
        """The place of the cut, while nothing has followed from it."""
        self._places = 0  # how many rows keep those of the others

    @property
    def turns(self) -> Turns:
        """Where its children's outcomes wait for their turns."""
        if self._turns is None:
            self._turns = Turns(self, self.held.recorded.pop(self.id, ()))
        return self._turns

    @abstractmethod
    def parts(self) -> Sequence[asyncio.Task[object]]:
        """The asyncio tasks that it consists of, its body's first."""

    @abstractmethod
    def in_thread(self) -> bool | None:
        """Whether its body runs in a thread and does anything but wait there; None: it runs in no thread."""

    @abstractmethod
    def _decision(self, id: str, kind: str, param: bytes = b"") -> Decision:
        """The entry of something that was decided."""

    @abstractmethod
    def thread_id(self) -> int | None:
        """The thread that its body runs in; None: it runs on the asyncio loop."""

    @abstractmethod
    def is_over(self) -> bool:
        """Whether it is gone."""

    @abstractmethod
    def interrupt(self) -> None:
        """Raise CancelledError in its code."""

    @abstractmethod
    def may_go_on(self) -> bool:
        """Whether its function has room for it to run; if not, it is told when there is."""

    @abstractmethod
    def awaits_only(self, outcome: Outcome) -> bool:
        """Whether that is all that can come to it, and all that its code waits for."""

    @abstractmethod
    def is_ending(self) -> bool:
        """Whether it ends in any case: canceled, or gone from here."""

    def record_cut(self) -> None:
        """Something follows from the cut now: write where it was."""
        if self.unwritten is not None:
            value, self.unwritten = self.unwritten, None
            self._decision(ids.cut(self.at), CUT).record(value)
        if self.shared is not None and self.shared.unwritten:
            taken, self.shared.unwritten = self.shared.unwritten, []
            self._next_place(SHARED).record(taken)
        if self.cancels is not None and self.cancels.unwritten:
            places, self.cancels.unwritten = self.cancels.unwritten, []
            self._next_place(CUT).record(places)

    def _next_place(self, kind: str) -> Decision:
        self._places += 1
        return self._decision(ids.cut(self.at, self._places - 1), kind)

    def recall_cuts(self) -> None:
        """Where an earlier run was cut, this one will be."""
        history, rows = self.held.history, {CUT: list[object](), SHARED: list[object]()}
        if (recorded := history.get(ids.cut(self.at))) is not None:
            self.cut = Cut(self, None, self._decision(recorded.id, CUT).known)
        while (recorded := history.get(ids.cut(self.at, self._places))) is not None:
            rows[recorded.function].append(self._next_place(recorded.function).known)
        if rows[CUT]:
            self.cancels = Cancels(self, rows[CUT])
        if rows[SHARED]:
            self.shared = Shared(self, rows[SHARED])

    def cancel_part(self, task: BranchTask[object], message: object) -> bool:
        if self.is_ending() or (self._turns is not None and self._turns.taking):
            return task.cut(message)  # it ends, or this follows from what it takes just now
        if self.cancels is None:
            self.cancels = Cancels(self, ())
        follows = self._turns is not None and self._turns.moves()
        came = self.cancels.ask(task, message, behind=self.is_behind() and not follows)
        if self._turns is not None or self.cancels.waits():
            self.turns.stir()
        return came

    def takes_more(self) -> bool:
        """Whether an outcome that is settled already is still to be taken, or may be."""
        unknown = self.shared is not None and bool(self.shared.unknown)
        return unknown or (self._turns is not None and self._turns.has_more())

    def forget_shared(self) -> None:
        """The code starts again: what its last attempt had taken of others is not looked for."""
        if self.shared is not None:
            self.shared.forget()

    def withholds(self, id: str) -> bool:
        return self.shared is None or self.shared.withholds(id)

    def share(self, id: str, turn: int, waiter: asyncio.Future[None]) -> None:
        if self.is_over():
            waiter.set_result(None)
        elif (take := self._sharing().arrive(id, waiter)) is not None:
            self.turns.arrive(id, turn, take)

    def expects(self, promise: Known) -> None:
        if self.held.claim.version > 1:  # a first run has nothing to find again, and need not wait
            self._sharing().unknown.add(promise.id)
            promise.birth().add_done_callback(lambda _: self._known(promise.id))

    def _sharing(self) -> Shared:
        if self.shared is None:
            self.shared = Shared(self, ())
        return self.shared

    def _known(self, id: str) -> None:
        self._sharing().unknown.discard(id)
        self.turns.stir()

    def awaits(self, id: str) -> bool:
        return self.held.host.handlers.waits(self.id, id)

    def is_cut(self) -> bool:
        return self.cut is not None and self.cut.came

    def take_back(self, task: BranchTask[object]) -> bool:
        return self.cancels is not None and self.cancels.take_back(task)

    def is_behind(self) -> bool:
        """Whether there is something on record that it has not come to."""
        if self._turns is None and self.shared is None:
            return self.id in self.held.recorded
        return self.turns.is_behind()

