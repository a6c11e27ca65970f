"""The checkers that run all along: what took effect in the store, and which bodies run, looked at from outside.

They know nothing of `core/machine.py`. A promise that was seen settled is never seen otherwise; what was written under
a claim was written under the latest one; no body of a live lease runs twice at a time. What is wrong is put into words,
with the tick at which it was seen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from dasync.core import ids
from dasync.core import protocol as p
from dasync.core.model import PromiseRecord, State, TaskRecord, TaskState
from dasync.errors import InvariantViolated, StoreUnavailable
from dasync.ports import Committed
from dasync.runtime import branch
from dasync.testing.cluster import Cluster, Process
from dasync.testing.history import Operation, asked, heard
from dasync.testing.simdisk import Recorder

_QUIET = (p.ProcessHeartbeat, p.Tick, p.TaskAcquire)  # what processes do when nothing is to be done
_BELOW = "SELECT id, creator, function, timer FROM promises WHERE state = 'pending' AND id > ? AND id < ? ORDER BY id"


class Violation(NamedTuple):
    """One thing that must never be."""

    checker: str
    """Which checker has seen it: `settlement`, `claim`, `lease`, `invariant`, `linearizability`, `outcome`, ..."""
    text: str
    tick: int = 0


class Token:
    """One batch that was asked for."""

    __slots__ = ("begin", "commands", "earliest_ms", "end", "life", "now_ms", "process", "replies", "until")

    def __init__(self, process: Process, commands: Sequence[p.Command], begin: int) -> None:
        self.process = process
        self.life = process.life
        self.commands = tuple(commands)
        self.begin = begin
        self.earliest_ms = process.now_ms()
        self.now_ms: int | None = None
        """Of its process, as it took effect."""
        self.end: int | None = None
        self.until: int | None = None
        self.replies: list[p.Reply] | None = None
        """What was heard."""


class Watch(Recorder):
    """Looks at every batch, and keeps it."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.violations: list[Violation] = []
        self.batches: list[Token] = []
        self.reached: dict[str, int] = {}
        self._settled: dict[str, PromiseRecord] = {}
        self._claims: dict[str, tuple[int, str]] = {}
        self._runs: dict[str, list[Body]] = {}
        self.turn = 0
        """The latest commit that has settled anything, as its number says; a power loss may set numbers back."""
        self.look: Callable[[str, Sequence[object]], list[Any]] = lambda sql, values: []
        """Rows as they are at this moment."""
        self.committed: Callable[[], None] = lambda: None
        """Called when a batch took effect that is no heartbeat."""
        self.targeted: Callable[[str], None] = lambda _: None
        """Called with the target of each promise that is told of."""
        cluster.on_death.append(self._died)

    def reach(self, goal: str) -> None:
        """Something has happened that should happen in some runs."""
        self.reached[goal] = self.reached.get(goal, 0) + 1

    def wrong(self, checker: str, text: str) -> None:
        """Something must not be."""
        self.cluster.say("", f"VIOLATION {checker}: {text}")
        self.violations.append(Violation(checker, text, self.cluster.ticks))

    # -- what was asked, took effect, was heard

    def asked(self, process: Process, commands: Sequence[p.Command]) -> Token:
        token = Token(process, commands, self.cluster.ticks)
        self.batches.append(token)
        if not all(map(_is_quiet, commands)):
            self.cluster.stir()
        return token

    def took_effect(self, token: Any, committed: Any) -> None:
        token.now_ms = token.process.now_ms()
        for command, reply in zip(token.commands, committed.replies, strict=True):
            self._looked_at(command, reply)
            self.cluster.say(token.process.name, _said(command, reply))
        self._canceled(token.commands, committed.replies)
        if not all(map(_is_quiet, token.commands)):
            self.committed()

    def close(self) -> None:
        """Nobody looks any more."""
        self.batches.clear()
        self._runs.clear()
        self.forget()

    def forget(self) -> None:
        """Commits are lost: what was seen of them counts no more."""
        self._settled.clear()
        self._claims.clear()

    def heard(self, token: Any, committed: Committed | None, error: BaseException | None) -> None:
        token.end = self.cluster.ticks if committed is not None else None
        token.replies = None if committed is None else committed.replies
        if error is not None and token.now_ms is not None:
            self.reach("what took effect was not heard of")
        if isinstance(error, InvariantViolated):
            self.wrong("invariant", str(error))
        elif isinstance(error, Exception) and not isinstance(error, StoreUnavailable):
            self.wrong("store", f"{type(error).__name__}: {error}")

    def _died(self, process: Process) -> None:
        for token in reversed(self.batches):
            if token.process is process and token.end is None and token.until is None and token.life == process.life:
                token.until = self.cluster.ticks
                if token.now_ms is not None:
                    self.reach("a process died before it heard what had taken effect")
        for runs in self._runs.values():
            runs[:] = [run for run in runs if run.process is not process]

    def history(self) -> list[Operation]:
        """What clients asked and heard."""
        made: list[Operation] = []
        for batch, token in enumerate(self.batches):
            for at, command in enumerate(token.commands):
                reply = None if token.replies is None else token.replies[at]
                now = token.now_ms
                made.append(
                    Operation(
                        len(made), token.process.name, command, token.begin, token.end, reply,
                        token.earliest_ms if now is None else now, now, batch, token.until,
                    )
                )  # fmt: skip
        return made

    # -- what must hold of each

    def _looked_at(self, command: p.Command, reply: p.Reply) -> None:
        records = [reply.promise, *reply.settled, *(one.promise for one in reply.acquired)]
        records += [record for one in reply.acquired for record in one.preload]
        for record in records:
            if record is not None:
                self._saw(record)
        born = reply.promise if reply.status is p.Status.CREATED else None
        if born is not None and born.turn is not None and born.turn < self.turn:
            self.wrong("turn", f"{born.id} was settled by commit {born.turn}, after {self.turn}")
        self.turn = max([self.turn, *(record.turn or 0 for record in records if record is not None)])
        if reply.promise is not None and reply.promise.target is not None:
            self.targeted(reply.promise.target)
        claim = getattr(command, "claim", None)
        if isinstance(claim, p.Claim) and not isinstance(command, p.PromiseGet):  # which anybody may do
            self._claimed(command, claim, reply)
        elif isinstance(command, p.ProcessHeartbeat) and reply.status is not p.Status.OK:
            self.reach("a lease was lost")
        elif isinstance(command, p.ProcessLeave) and reply.status is p.Status.OK and command.renewed_at is not None:
            self.reach("a silent process was taken for gone")
        for one in reply.acquired:
            self._takes(one.task)
        if isinstance(command, p.TaskAcquire) and len(reply.acquired) > command.limit:
            self.wrong("claim", f"{len(reply.acquired)} tasks were acquired, and {command.limit} were asked for")
        if isinstance(command, p.TaskCreate) and reply.task is not None and reply.status is p.Status.CREATED:
            self._takes(reply.task)

    def _canceled(self, commands: Sequence[p.Command], replies: Sequence[p.Reply]) -> None:
        """A cancel ends all that is below it in the same commit, but for what stands alone or is settled outside."""
        actions = [command.action if isinstance(command, p.TaskFence) else command for command in commands]
        born = {action.id for action in actions if isinstance(action, p.PromiseCreate)}
        for action, reply in zip(actions, replies, strict=True):
            if not isinstance(action, p.PromiseCancel) or reply.promise is None:
                continue
            if reply.promise.state is not State.CANCELED or reply.promise.value != action.value:
                continue
            spared: tuple[str, ...] = ()
            for id, creator, function, timer in self.look(_BELOW, ids.subtree(action.id)):
                if creator is None or not (function or timer):
                    spared += (ids.places(id),)
                elif not id.startswith(spared) and id not in born:
                    self.wrong("cancel", f"{action.id} was canceled and {id}, which it made, goes on")

    def _saw(self, record: PromiseRecord) -> None:
        before = self._settled.get(record.id)
        if before is None:
            if record.state is not State.PENDING:
                self._settled[record.id] = record
        elif _outcome(before) != _outcome(record) and before.created_at == record.created_at:
            self.wrong("settlement", f"{record.id} was {_shown(before)} and is {_shown(record)}")

    def _takes(self, task: TaskRecord) -> None:
        version, _ = self._claims.get(task.id, (0, ""))
        if task.state is TaskState.ACQUIRED:
            if task.version <= version:
                self.wrong("claim", f"{task.id} was acquired with version {task.version} after {version}")
            if version:
                self.reach("a task was acquired again")
            self._claims[task.id] = task.version, task.process or ""

    def _claimed(self, command: p.Command, claim: p.Claim, reply: p.Reply) -> None:
        latest = self._claims.get(claim.id)
        current = latest == (claim.version, claim.process)
        if isinstance(command, p.TaskSuspend) and latest is not None:
            current = latest[0] == claim.version  # repeated, it changes nothing, and nobody holds the task by then
        if reply.status in (p.Status.OK, p.Status.CREATED) and not current and not isinstance(command, p.TaskFulfill):
            self.wrong("claim", f"{_said(command, reply)}: accepted, and the task is {latest}'s")
        elif not current:
            self.reach("a zombie was refused")
        if reply.status is p.Status.RUN_AGAIN:
            self.reach("a callback raced a settlement")
        elif isinstance(command, p.TaskSuspend) and reply.status is p.Status.OK:
            self.reach("an execution was suspended")

    # -- bodies

    def begins(self) -> Body:
        """A body begins to run; who asks is its execution's code."""
        place = branch.current()
        in_thread = branch.body()
        at = in_thread.branch if in_thread is not None else place
        assert at is not None, "a body of a simulated program runs inside an execution"
        owner: Any = at.owner
        process = self.cluster.current
        assert process is not None
        body = Body(owner.id, process, owner, threaded=in_thread is not None)
        most = owner.function.concurrency
        if most is not None and sum(one.is_live and one.beside(body) for one in self._bodies()) >= most:
            self.wrong("slots", f"{owner.id} began in {process.name}, beside {most} of {owner.function.name} already")
        self._alone(body, "began")
        self._runs[owner.id].append(body)
        return body

    def ends(self, body: Body) -> None:
        """It runs no more."""
        if body.is_late:
            self.wrong("lease", f"{body.id} went on in {body.process.name} although its lease was over")
        runs = self._runs.get(body.id, [])
        if body in runs:
            runs.remove(body)
            if body.is_live:
                self._alone(body, "ended")

    def _alone(self, body: Body, what: str) -> None:
        """No other process runs it as well, and may do so; and none has taken its task since."""
        if body.is_live and self._claims.get(body.claim.id, (0, ""))[0] > body.claim.version:
            self.wrong("lease", f"{body.id} {what} in {body.process.name} under a claim that is over")
        for other in self._runs.setdefault(body.id, []):
            if other.is_live and not other.threaded:
                where = f"{body.process.name} while {other.process.name} ran it with a lease that is not over"
                self.wrong("lease", f"{body.id} {what} in {where}")


    def _bodies(self) -> list[Body]:
        return [body for runs in self._runs.values() for body in runs]


class Body:
    """A body that runs, of that execution."""

    def __init__(self, id: str, process: Process, owner: Any, *, threaded: bool) -> None:
        self.id = id
        self.process = process
        self.threaded = threaded
        self._function = owner.function.name
        self._held = owner.held
        self.claim: p.Claim = owner.held.claim
        self._life = process.life

    @property
    def is_live(self) -> bool:
        """Whether its process may go on with it."""
        process = self.process
        lives = process.up and process.life == self._life and not process.stopped
        return bool(lives and self._held.signal is None and process.monotonic() < self._held.lease.ends)

    @property
    def is_late(self) -> bool:
        """Whether it goes on although its process may not, which a thread cannot help."""
        held = self._held
        return bool(held.signal is None and self.process.monotonic() >= held.lease.ends and not self.threaded)

    def beside(self, other: Body) -> bool:
        """Whether both are of one function, and in one process."""
        return self.process is other.process and self._function == other._function


def _is_quiet(command: p.Command) -> bool:
    return isinstance(command, _QUIET) or (isinstance(command, p.Receive) and not command.acknowledged)


def _said(command: p.Command, reply: p.Reply) -> str:
    return f"{asked(command)} -> {heard(reply)}"


def _outcome(record: PromiseRecord) -> tuple[object, ...]:
    return record.state, record.value, record.settled_at


def _shown(record: PromiseRecord) -> str:
    return f"{record.state.value} {record.value!r:.60} at {record.settled_at}"
