"""What one connection keeps between its transactions: the rows of tasks that run here, so that they are not read again.

It is good for as long as no other connection writes, which SQLite tells (`PRAGMA data_version`). No SQL is here, and
nothing is decided.
"""

from __future__ import annotations

from collections.abc import Mapping

from dasync.core.model import ProcessRecord, PromiseRecord, TaskRecord, TaskState
from dasync.stores.rows import Changes

HOT_TASKS = 10_000  # more than run at a time; beyond it everything is forgotten and read again


class Hot:
    """Rows that every write under a claim asks for, kept from one transaction to the next while nobody else writes.

    Without it each batch would read the claim's task, its promise and its process anew: a third of its cost.
    `data_version`, asked under the write lock, tells whether another connection has committed since.
    """

    def __init__(self) -> None:
        self.version = -1
        self.promises: dict[str, PromiseRecord] = {}
        self.tasks: dict[str, TaskRecord] = {}
        self.processes: dict[str, ProcessRecord] = {}

    def clear(self) -> None:
        """Know nothing."""
        self.version = -1
        self.promises.clear()
        self.tasks.clear()
        self.processes.clear()

    def begin(self, version: int) -> None:
        """A transaction begins, at that `data_version`."""
        if version != self.version or len(self.tasks) > HOT_TASKS:
            self.clear()
            self.version = version

    def wrote(self, changes: Changes, read: Mapping[str, PromiseRecord | None]) -> None:
        """A transaction is about to commit, which has read these promises."""
        for task in (*changes.tasks_born, *changes.tasks_moved):
            if task.state is TaskState.ACQUIRED:
                self.tasks[task.id] = task
                if (known := read.get(task.id)) is not None:
                    self.promises[task.id] = known
            else:
                self.tasks.pop(task.id, None)
                self.promises.pop(task.id, None)
        for promise in changes.promises_born:
            if promise.id in self.tasks:
                self.promises[promise.id] = promise
        for promise in changes.promises_moved:
            self.promises.pop(promise.id, None)
        for gone in changes.promises_gone:
            self.tasks.pop(gone.id, None)
            self.promises.pop(gone.id, None)
        for process in changes.processes_kept:
            self.processes[process.id] = process
        for process in changes.processes_gone:
            self.processes.pop(process.id, None)
