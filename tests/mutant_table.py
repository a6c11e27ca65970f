"""The bugs that `mutants.py` plants: where, what stands there, what is put in its place. Nothing is run here.

Each takes one guard away, and says which.
"""

from __future__ import annotations

from typing import NamedTuple


class Patch(NamedTuple):
    """One change of the source of `module:name`."""

    where: str
    old: str
    """Stands there exactly once."""
    new: str


class Mutant(NamedTuple):
    """One bug."""

    what: str
    """What is wrong."""
    patches: tuple[Patch, ...]
    scenario: str = "swarm"
    without: bool = False
    """Whether it is also to be found with production's own checks switched off."""
    shows_history: bool = False
    """Whether it is a matter of few requests, which the command prints."""


LAW, STORE, ROWS = "dasync.core.machine", "dasync.stores.sqlite", "dasync.stores.rows"
WORKER, GUARDS, LIFETIME = "dasync.worker", "dasync.core.guards", "dasync.core.lifetime"
NEWS = "dasync.core.presence"


def _one(what: str, where: str, old: str, new: str, scenario: str = "swarm", **more: bool | int) -> Mutant:
    return Mutant(what, (Patch(where, old, new),), scenario, **more)  # type: ignore[arg-type]  # as the fields are


_MISTAKEN = (
    "record.state is State.PENDING and command.awaiter is not None and (task := view.task(command.awaiter)) is not None"
    " and task.state is not TaskState.FULFILLED and command.awaiter != command.id"
    " and CallbackRecord(command.id, command.awaiter) not in view.callbacks(command.id)"
)

MUTANTS: dict[str, Mutant] = {
    # the famous one, in the law and in the store
    "callback of a create that failed": _one(
        "create-and-wait for what exists stores the callback although it answers with a conflict (in the law)",
        f"{LAW}:_create",
        "return found._replace(reply=found.reply._replace(status=Status.CONFLICT, reason=reason))",
        f"record = found.reply.promise; stored = (Move(None, CallbackRecord(command.id, command.awaiter)),)"
        f" if {_MISTAKEN} else ()\n"
        "        return found._replace(moves=found.moves + stored,"
        " reply=found.reply._replace(status=Status.CONFLICT, reason=reason))",
        without=True, shows_history=True,
    ),
    "callback of a create that failed, stored": _one(
        "the same in the store: the rows of a batch hold the callback of a command that the law refused",
        f"{ROWS}:run_batch",
        "        replies.append(transition.reply._replace(settled",
        "        if type(command) is p.PromiseCreate and transition.reply.status is p.Status.CONFLICT:\n"
        "            record, view = transition.reply.promise, working\n"
        f"            if record is not None and {_MISTAKEN}:\n"
        "                waits = (None, CallbackRecord(command.id, command.awaiter))\n"
        "                working.apply(transition._replace(moves=(waits,)))\n"
        "        replies.append(transition.reply._replace(settled",
        without=True, shows_history=True,
    ),
    # the fence
    "fence: off": _one(
        "whoever names an acquired task may write under it", f"{LAW}:_holds",
        " or task.version != claim.version or task.process != claim.process", "", without=True,
    ),
    "fence: version": _one(
        "a claim of long ago holds", f"{LAW}:_holds", "task.version != claim.version or ", "", without=True,
    ),
    "fence: process": _one(
        "a claim of the right version holds for anybody", f"{LAW}:_holds",
        " or task.process != claim.process", "", without=True,
    ),
    "fence: own deadline": _one(
        "a task writes on when its own deadline has passed", f"{LAW}:_fence",
        "if own is None or guards.is_due(own, now):", "if own is None:",
    ),
    "version not raised": _one(
        "an acquire gives the version that the last one gave", f"{LAW}:_claimed",
        "version = task.version + 1", "version = task.version or 1", without=True,
    ),
    "task taken from a live process": _one(
        "task.create takes what another process runs", f"{LAW}:_task_create",
        "task.state is not TaskState.PENDING or not guards",
        "task.state not in (TaskState.PENDING, TaskState.ACQUIRED) or not guards", without=True,
    ),
    "continue what is not halted": _one(
        "task.continue sends a task again that runs", f"{LAW}:_continue",
        "if task.state is not TaskState.HALTED:", "if task.state is TaskState.FULFILLED:", without=True,
    ),
    "halt what is fulfilled": _one(
        "task.halt takes a task back that has ended", f"{LAW}:_halt",
        "if task.state is TaskState.FULFILLED:", "if False:", without=True,
    ),
    "halted is acquired": _one(
        "a halted task is handed out as if it were pending", "dasync.stores.sqlite_rows:SqliteRows._pending",
        "WHERE state = 'pending' AND", "WHERE state IN ('pending', 'halted') AND", without=True,
    ),
    "overdue is acquired": _one(
        "a task is handed out when its deadline has passed", f"{LAW}:_acquire",
        "if promise is not None and not guards.is_due(promise, now):", "if promise is not None:",
    ),
    "acquire beyond its limit": _one(
        "an acquire takes one task more than it asked for", "dasync.core.dispatch:_dealt",
        "if len(taken) == command.limit:", "if len(taken) > command.limit:", without=True,
    ),
    # settling
    "settle overwrites": _one(
        "a settled promise is settled again", f"{LAW}:_settle",
        "if record is None or record.state is not State.PENDING:", "if record is None:", without=True,
    ),
    "create replaces": _one(
        "a create of what exists makes it anew", f"{LAW}:_create",
        "if view.promise(command.id) is not None:",
        "if guards.waits(command) and view.promise(command.id) is not None:",
        without=True,
    ),
    "callback never fires": _one(
        "whoever awaits a promise is not resumed by its settlement", f"{LAW}:_settlement",
        "_resume(None if callback.awaiter in ending else view.task(callback.awaiter))", "_resume(None)",
    ),
    "callback fires twice": _one(
        "a callback is not consumed by what fires it", f"{LAW}:_settlement",
        "        moves.append(Move(callback, None))\n", "", without=True,
    ),
    "listener never fires": _one(
        "a process that listens is not told", f"{LAW}:_settlement",
        "for listener in view.listeners(before.id)}", "for listener in ()}", without=True,
    ),
    "task outlives its promise": _one(
        "a promise is settled and its task goes on", f"{LAW}:_settlement",
        "if before.target is not None and (task := view.task(before.id)) is not None:", "if False:", without=True,
    ),
    "deadline a millisecond late": _one(
        "a promise is pending at its deadline",
        f"{GUARDS}:is_due", "now >= record.timeout_at", "now > record.timeout_at",
        without=True,
    ),
    "deadline a millisecond early": _one(
        "a promise times out a millisecond before its deadline", f"{GUARDS}:is_due",
        "now >= record.timeout_at", "now + 1 >= record.timeout_at", without=True,
    ),
    "timers time out": _one(
        "the verdict over a timer is that of any other promise", f"{LIFETIME}:as_of",
        "State.RESOLVED if record.timer else State.TIMEDOUT", "State.TIMEDOUT", without=True,
    ),
    "cancel skips children": _one(
        "what a canceled execution has made goes on", f"{LAW}:_cancel",
        "ending = [*reversed(guards.made_below(record.id, view)), record]", "ending = [record]",
    ),
    "cancel takes what others settle": _one(
        "a cancel ends promises below it that somebody outside settles", f"{GUARDS}:made_below",
        "if record.creator is None or not (record.function or record.timer):",
        "if record.creator is None:",
    ),
    "children are not waited for": _one(
        "an execution ends as canceled or failed while its children run",
        "dasync.runtime.execution:Execution._cleaned_up",
        "        await _cancel_children([c for c in self.children.values() if c.local or c.target is not None])\n", "",
    ),
    # waiting
    "suspended for ever": _one(
        "a task is suspended although what it awaits is settled", f"{LAW}:_suspend",
        "if task.resumed or any(guards.is_over(record, now) for record in awaited.values() if record is not None):",
        "if False:",
    ),
    "suspend registers nothing": _one(
        "a suspended task has no callback", f"{LAW}:_suspend", "for id in awaited]", "for id in ()]", without=True,
    ),
    "repeated suspend is refused": _one(
        "a command that is repeated, for its answer was lost, is refused", f"{GUARDS}:repeats",
        "return task is not None and", "return False and task is not None and",
    ),
    "news is thrown away": Mutant(
        "what was settled while other news was acknowledged is forgotten",
        (
            Patch(f"{NEWS}:receive", "for listener in news if listener.promise in known)", "for listener in news)"),
            Patch(f"{NEWS}:receive", "if listener.promise not in known]", "if not known]"),
        ),
        "lazy",
    ),
    "nobody polls": _one(
        "a doorbell that is lost is the only sign", f"{WORKER}:Worker._poll",
        "self._polled = True", "self._polled = False", "lazy",
    ),
    "nobody ticks": _one(
        "deadlines that no process tracks never come", f"{WORKER}:Worker._tick",
        "while self._next_due is not None and", "while False and self._next_due is not None and",
    ),
    # leases
    "lease a third too short": _one(
        "a process is given up before its lease is over", "dasync.runtime.neighbours:Neighbours._silent_at",
        "process.lease_ms / 1000", "process.lease_ms / 4000", without=True,
    ),
    "lease is not looked at": _one(
        "a process that was stopped for longer than its lease goes on at once", "dasync.runtime.lease:Steps.send",
        "if lease.now() >= lease.ends and holder.signal is None:", "if False:", "faults",
    ),
    "lease from the answer on": _one(
        "a lease counts from when the answer came, not from when it was asked for",
        "dasync.runtime.lease:Lease.renewed",
        "asked_at + self._length_s", "self.now() + 2 * self._length_s", "faults",
    ),
    "heartbeat without a fence": _one(
        "a process that is gone may renew its lease", "dasync.core.presence:heartbeat",
        "return Transition(guards.lease_lost(command.process))", "return Transition(Reply(Status.OK))", "faults",
        without=True,
    ),
    "who has spoken is buried": _one(
        "a process is given up although it has renewed its lease meanwhile", f"{LAW}:_leave",
        "or command.renewed_at not in (None, process.renewed_at)", "", "faults",
    ),
    "the dead keep their tasks": _one(
        "nobody buries the dead", "dasync.runtime.neighbours:Neighbours.bury",
        "gone = [one for one in self._others if one.id in dead or self._silent_at(one) <= now]", "gone = []", "faults",
    ),
    "who leaves keeps its tasks": _one(
        "a process goes and its tasks stay its own", f"{LAW}:_leave",
        "for task in view.held(process.id):", "for task in ():", without=True,
    ),
    "rejoined with old tasks": _one(
        "a process that has lost its lease goes on with what it ran", f"{WORKER}:Worker._start_over",
        "    for held in tasks:\n        held.lost(reason)\n", "", "faults",
    ),
    "orphans stay": _one(
        "a task whose acquire was never heard of stays acquired", f"{WORKER}:Worker._reconcile",
        "self._journal.ask(TaskRelease(Claim(id, version, self.process)), keep=True)", "pass", "faults",
    ),
    # the store
    "batch half applied": _one(
        "a batch is written in two transactions", "dasync.stores.sqlite_rows:SqliteRows.write",
        'self._insert("tasks", [_task_row(r) for r in c.tasks_born])',
        'self._connection.execute("COMMIT"); self._connection.execute("BEGIN IMMEDIATE")\n'
        '    self._insert("tasks", [_task_row(r) for r in c.tasks_born])',
        "faults",
    ),
    "stale rows": _one(
        "what a connection knows is not forgotten when others write", "dasync.stores.hot:Hot.begin",
        "if version != self.version or len", "if len", without=True,
    ),
    "power: nothing is synced": _one(
        'commits at "power" are not synced', f"{STORE}:_SYNCHRONOUS", '"power": "FULL"', '"power": "NORMAL"', "faults",
    ),
    "power: outcomes are not synced": _one(
        "what an execution came to need not survive a power loss", f"{ROWS}:_PASSING",
        "p.TaskAcquire,", "p.TaskAcquire, p.TaskFulfill, p.TaskFence,", "faults",
    ),
    "turns by a process's own clock": _one(
        "the number of a commit is not above those of other processes", f"{STORE}:SqliteStore._next_turn",
        "self._turn = max(self._turn, lock.number)", "pass", "faults",
    ),
    # the runtime
    "outage loses writes": _one(
        "what was to be written is dropped when the store is away", "dasync.runtime.journal:Journal._transact",
        "batch, commands = [e for e, _ in waiting], [c for _, c in waiting]", "batch, commands = [], []", "faults",
    ),
    "nobody hears with what he writes": _one(
        "a process takes what it knows of, while what was settled before is on its way",
        "dasync.runtime.hearing:Hearing.is_wanted", "self.queued or self._runs()", "self.queued",
    ),
    "a doorbell tells half": _one(
        "a doorbell comes with the latest news and not with all of it", f"{ROWS}:_news",
        "working.news(process)[:MAX_NEWS + 1]", "working.news(process)[-1:]",
    ),
    "the runner is not told": _one(
        "who runs an execution is not told of what others settle below it", f"{LAW}:_settlement",
        "told.setdefault(task.process, None)", "pass", without=True,
    ),
    "turns are ignored in replay": _one(
        "a replay takes outcomes in the order of their ids", "dasync.runtime.turns:Turns._expect",
        "(record.turn or 0, record.settled_at or 0, record.id, take)", "(1, 0, record.id, take)",
    ),
    "shared outcomes are not recorded": _one(
        "when an execution took what it shares with others is not written", "dasync.runtime.shared:Shared._take",
        "self.unwritten.append((id, self._taker.turn, self._taker.is_cut(), self._group))", "pass",
    ),
    "failed attempts are forgotten": _one(
        "a replay begins to count attempts anew", "dasync.runtime.attempts:attempts",
        "while ids.retry(run.at, failures + 1) in run.held.history:", "while False:",
    ),
    "slots: one too many": _one(
        "one more runs of a function than may", "dasync.runtime.slots:Limit.room",
        "return most - len(self.holders) - self.reserved", "return most + 1 - len(self.holders) - self.reserved",
    ),
    "batched: outcomes exchanged": _one(
        "items of a batch get each other's outcomes", "dasync.runtime.batches:Batch._run",
        "zip(items, outcomes, strict=True)", "zip(reversed(items), outcomes, strict=True)",
    ),
    "batched: joins a closed batch": _one(
        "an item joins a batch that was handed over already", "dasync.runtime.batches:Batch._close",
        "del self._batches.open[self._key]", "pass",
    ),
}  # fmt: skip
