"""Rows in memory: for tests, for trying things out, and as the other side of every differential run.

Nothing survives the process and no other process can see it. It keeps the indexes that a database would keep,
as dictionaries, and decides nothing.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby

from dasync.core import ids
from dasync.core.invariants import Snapshot
from dasync.core.model import (
    CallbackRecord,
    ListenerRecord,
    ProcessRecord,
    PromiseRecord,
    State,
    TaskRecord,
    TaskState,
)
from dasync.ports import Around, Backlog, Clock, Found, Search
from dasync.stores.rows import Changes, Named, Rows, RowStore, T, around, oldest


class MemoryRows:
    """The tables as dictionaries."""

    def __init__(self) -> None:
        self._promises: dict[str, PromiseRecord] = {}
        self._tasks: dict[str, TaskRecord] = {}
        self._callbacks: dict[str, dict[str, CallbackRecord]] = defaultdict(dict)
        self._listeners: dict[str, dict[str, ListenerRecord]] = defaultdict(dict)
        self._processes: dict[str, ProcessRecord] = {}
        # Indexes.
        self._children: dict[str, dict[str, None]] = defaultdict(dict)
        self._pending: dict[str, dict[tuple[str, int], dict[str, None]]] = defaultdict(lambda: defaultdict(dict))
        self._held: dict[str, dict[str, None]] = defaultdict(dict)
        self._deadlines: dict[str, int] = {}
        self._hearing: dict[str, dict[str, None]] = defaultdict(dict)
        self._news: dict[str, dict[str, None]] = defaultdict(dict)

    def prefetch(self, named: Named) -> None:
        """Everything is at hand."""

    def promise(self, id: str) -> PromiseRecord | None:
        return self._promises.get(id)

    def task(self, id: str) -> TaskRecord | None:
        return self._tasks.get(id)

    def process(self, id: str) -> ProcessRecord | None:
        return self._processes.get(id)

    def callbacks(self, awaited: str) -> Sequence[CallbackRecord]:
        return sorted(self._callbacks[awaited].values()) if awaited in self._callbacks else ()

    def listeners(self, promise: str) -> Sequence[ListenerRecord]:
        return sorted(self._listeners[promise].values()) if promise in self._listeners else ()

    def children(self, creator: str) -> Sequence[PromiseRecord]:
        if creator not in self._children:
            return ()
        low, high = ids.subtree(creator)
        return [self._promises[id] for id in sorted(self._children[creator]) if low < id < high]

    def below(self, id: str) -> Sequence[PromiseRecord]:
        low, high = ids.subtree(id)
        found = [record for record in self._promises.values() if low < record.id < high]
        return sorted((record for record in found if record.state is State.PENDING), key=lambda record: record.id)

    def under(self, id: str) -> Sequence[PromiseRecord]:
        low, high = ids.subtree(id)
        return sorted((record for record in self._promises.values() if low < record.id < high), key=lambda r: r.id)

    def held(self, process: str) -> Sequence[TaskRecord]:
        return [self._tasks[id] for id in sorted(self._held[process])] if process in self._held else ()

    def holding(self, process: str) -> tuple[int, int]:
        held = self._held.get(process, {})
        return len(held), sum(self._tasks[id].version for id in held)

    def listening(self, process: str) -> Sequence[ListenerRecord]:
        if process not in self._hearing:
            return ()
        return [self._listeners[promise][process] for promise in sorted(self._hearing[process])]

    def news(self, process: str) -> Sequence[ListenerRecord]:
        return [self._listeners[promise][process] for promise in sorted(self._news.get(process, ()))]

    def kinds(self, targets: tuple[str, ...]) -> Sequence[tuple[str, int]]:
        pending = (self._pending[target] for target in targets if target in self._pending)
        return sorted({kind for kinds in pending for kind, ids in kinds.items() if ids})

    def acquirable(
        self, targets: tuple[str, ...], functions: tuple[tuple[str, int], ...], limit: int
    ) -> Sequence[TaskRecord]:
        pending = (self._pending[target].get(kind, ()) for target in targets for kind in functions)
        return oldest((self._tasks[id] for ids in pending for id in ids), functions, limit)

    def due(self, now: int, limit: int) -> Sequence[PromiseRecord]:
        late = sorted((at, id) for id, at in self._deadlines.items() if at <= now)
        return [self._promises[id] for _, id in late[:limit]]

    def latest_turn(self, id: str) -> int:
        return max((record.turn or 0 for record in self.under(id)), default=0)

    def processes(self) -> list[ProcessRecord]:
        return [self._processes[id] for id in sorted(self._processes)]

    def write(self, changes: Changes) -> None:
        for promise in changes.promises_born + changes.promises_moved:
            self._promises[promise.id] = promise
            if promise.creator is not None:
                self._children[promise.creator][promise.id] = None
            if promise.state is State.PENDING and promise.timeout_at is not None:
                self._deadlines[promise.id] = promise.timeout_at
            else:
                self._deadlines.pop(promise.id, None)
        for task in changes.tasks_born + changes.tasks_moved:
            self._write_task(task)
        for promise in changes.promises_gone:
            del self._promises[promise.id]
            self._deadlines.pop(promise.id, None)
            if promise.creator is not None:
                del self._children[promise.creator][promise.id]
        for task in changes.tasks_gone:
            self._forget_task(self._tasks.pop(task.id))
            self._children.pop(task.id, None)
        for callback in changes.callbacks_born:
            self._callbacks[callback.awaited][callback.awaiter] = callback
        for callback in changes.callbacks_gone:
            del self._callbacks[callback.awaited][callback.awaiter]
        for listener in changes.listeners_kept:
            self._listeners[listener.promise][listener.process] = listener
            self._hearing[listener.process][listener.promise] = None
            if listener.fired:
                self._news[listener.process][listener.promise] = None
        for listener in changes.listeners_gone:
            del self._listeners[listener.promise][listener.process]
            del self._hearing[listener.process][listener.promise]
            self._news[listener.process].pop(listener.promise, None)
        for process in changes.processes_kept:
            self._processes[process.id] = process
        for process in changes.processes_gone:
            del self._processes[process.id]

    def _write_task(self, task: TaskRecord) -> None:
        old = self._tasks.get(task.id)
        if old is not None:
            self._forget_task(old)
        self._tasks[task.id] = task
        if task.state is TaskState.PENDING:
            self._pending[task.target][task.function, task.function_version][task.id] = None
        if task.process is not None:
            self._held[task.process][task.id] = None

    def _forget_task(self, task: TaskRecord) -> None:
        self._pending[task.target][task.function, task.function_version].pop(task.id, None)
        if task.process is not None:
            self._held[task.process].pop(task.id, None)

    def search(self, search: Search) -> list[Found]:
        def wanted(promise: PromiseRecord) -> bool:
            held = json.loads(promise.tags) if promise.tags else {}
            task = self._tasks.get(promise.id)
            return (
                promise.id > search.cursor
                and promise.id.startswith(search.id_prefix)
                and (search.state is None or promise.state is search.state)
                and (search.function is None or promise.function == search.function)
                and not (search.roots and ":" in promise.id)
                and (search.task_state is None or (task is not None and task.state is search.task_state))
                and all(held.get(key) == value for key, value in (search.tags or {}).items())
            )

        found = [self._promises[id] for id in sorted(self._promises) if wanted(self._promises[id])]
        return [Found(promise, self._tasks.get(promise.id)) for promise in found[: search.limit]]

    def subtree(self, id: str) -> Snapshot:
        low, high = ids.subtree(id)
        return self._snapshot(lambda key: key == id or low < key < high)

    def snapshot(self) -> Snapshot:
        return self._snapshot(lambda key: True)

    def _snapshot(self, wanted: Callable[[str], bool]) -> Snapshot:
        return Snapshot(
            {id: promise for id, promise in self._promises.items() if wanted(id)},
            {id: task for id, task in self._tasks.items() if wanted(id)},
            frozenset(
                one
                for waiting in self._callbacks.values()
                for one in waiting.values()
                if wanted(one.awaited) or wanted(one.awaiter)
            ),
            frozenset(one for id, hearing in self._listeners.items() if wanted(id) for one in hearing.values()),
            dict(self._processes),
        )

    def next_due(self) -> int | None:
        return min(self._deadlines.values(), default=None)

    def waiting_targets(self) -> list[str]:
        return sorted(target for target, kinds in self._pending.items() if any(kinds.values()))

    def backlog(self) -> list[Backlog]:
        def kind(task: TaskRecord) -> tuple[str, str, str, int, str, bool]:
            return task.state, task.target, task.function, task.function_version, task.process or "", task.version > 0

        unfinished = sorted((task for task in self._tasks.values() if task.state is not TaskState.FULFILLED), key=kind)
        found = []
        for (*_, begun), alike in groupby(unfinished, kind):
            kept = sorted(alike, key=lambda task: (task.created_at, task.id))
            one = kept[0]
            named = (one.state, one.target, one.function, one.function_version, one.process, begun)
            found.append(Backlog(*named, len(kept), one.created_at, one.id, one.reason))
        return found


class MemoryStore(RowStore):
    """A store that lives and dies with this process."""

    path = None

    def __init__(self, clock: Clock) -> None:
        super().__init__(clock)
        self._rows: Rows = MemoryRows()

    def load(self, promises: Mapping[str, PromiseRecord], tasks: Mapping[str, TaskRecord]) -> None:
        """Take over rows that another store keeps, as they are."""
        self._rows.write(Changes(list(promises.values()), [], list(tasks.values()), *[[] for _ in range(9)]))
        self._turn = max([self._turn, *(record.turn or 0 for record in promises.values())])

    async def open(self) -> None:
        """Nothing to connect to."""

    async def close(self) -> None:
        """Nothing to let go of."""

    async def around(
        self, targets: tuple[str, ...], functions: tuple[tuple[str, int], ...], *, anyway: bool = False
    ) -> Around | None:
        """Nobody else can write."""
        return around(self._rows, targets, functions, changed=False, anyway=True) if anyway else None

    async def _work(self, work: Callable[[Rows], T], *, lasting: bool) -> T:
        return work(self._rows)

    async def _look(self, work: Callable[[Rows], T]) -> T:
        return work(self._rows)
