"""What is looked at when a world is over: what has not come to its end, the rows, and the history of what was heard."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from dasync.core.invariants import inspect
from dasync.core.model import TaskState
from dasync.stores.sqlite_rows import SqliteRows
from dasync.testing.clock import T0_MS
from dasync.testing.cluster import Cluster, Deadlock
from dasync.testing.simdisk import Disk
from dasync.testing.watch import Watch

PATIENCE_S = 3600.0
"""How long after everything is healed whatever is left may take, in seconds of the world beside its own timers."""
SHOWN = 20
# Of what ends by its deadline, or by the word of somebody outside, the children are told by whoever runs it, if anybody
# does; and timers are left to themselves.
_LEFT = """
    SELECT p.id, t.id FROM promises p JOIN promises t ON t.id = p.creator
    WHERE p.state = 'pending' AND p.function NOT IN ('', 'child', 'grandchild') AND NOT p.timer AND p.target IS NULL
    AND t.state IN ('resolved', 'rejected', 'canceled') ORDER BY p.id"""


class Reckoning:
    """That of one world."""

    def __init__(self, cluster: Cluster, disk: Disk, watch: Watch) -> None:
        self._cluster = cluster
        self._disk = disk
        self._watch = watch

    def settle(self) -> None:
        """Let everything that can come to its end do so; wrong is what does not."""
        ends, watch = self._cluster.time, self._watch
        while not watch.violations:
            pending, latest = self.pending()
            if not pending:
                return
            limit = max(ends, (latest - T0_MS) / 1000) + PATIENCE_S
            with suppress(Deadlock):
                if self._cluster.run(lambda: bool(watch.violations) or not self.pending()[0], limit_s=limit):
                    continue
            if pending := self.pending()[0]:
                what = "\n".join(f"  {line}" for line in pending[:SHOWN])
                watch.wrong("liveness", f"not settled though all is healed:\n{what}\n{self._cluster.who_waits()}")
                return

    def pending(self) -> tuple[list[str], int]:
        """Executions that have not come to their end and could, in words; and the latest deadline of any promise."""
        rows = self._rows("SELECT id, state, process, function FROM tasks WHERE state != 'fulfilled' ORDER BY id")
        on: dict[str, list[str]] = {}
        for awaiter, awaited in self._rows("SELECT awaiter, awaited FROM callbacks ORDER BY 1, 2") if rows else ():
            on.setdefault(awaiter, []).append(awaited)
        lines = []
        for id, state, process, function in rows:
            if state == TaskState.SUSPENDED.value and not self._can_go_on(id, on):
                continue  # it waits for somebody outside
            held = f" by {process}" if process else ""
            waiting = f", waits for {', '.join(on[id])}" if id in on else ""
            lines.append(f"{id} ({function}) is {state}{held}{waiting}")
        latest = self._rows("SELECT max(timeout_at) FROM promises WHERE state = 'pending'")[0][0] if lines else None
        return lines, latest or T0_MS

    def next_due(self) -> float | None:
        """When the next deadline in the store comes due, in seconds of the world."""
        due = self._rows("SELECT min(timeout_at) FROM promises WHERE state = 'pending' AND timeout_at IS NOT NULL")
        return None if due[0][0] is None else (due[0][0] - T0_MS) / 1000

    def look_at_rows(self) -> None:
        """Every invariant of the rows, and SQLite's own check."""
        with self._disk.reading() as connection:
            for broken in inspect(SqliteRows(connection).snapshot()):
                self._watch.wrong("invariant", broken)
            for id, parent in connection.execute(_LEFT):
                self._watch.wrong("left behind", f"{id} is pending, and {parent}, which made it, has ended")
            if (said := connection.execute("PRAGMA integrity_check").fetchone()[0]) != "ok":
                self._watch.wrong("integrity", said)

    def _can_go_on(self, id: str, on: dict[str, list[str]]) -> bool:
        """Whether what a suspended execution waits for will be settled by itself."""
        seen, todo = set[str](), [id]
        while todo:
            for awaited in on.get(todo.pop(), ()):
                if awaited in seen:
                    continue
                seen.add(awaited)
                sql = (
                    "SELECT p.state, p.timer, p.timeout_at, t.state FROM promises p LEFT JOIN tasks t ON t.id = p.id"
                    " WHERE p.id = ?"
                )
                rows = self._rows(sql, awaited)
                if not rows:
                    continue
                state, timer, timeout_at, task = rows[0]
                if state != "pending" or timer or timeout_at is not None or task in ("pending", "acquired"):
                    return True
                todo.append(awaited)
        return False

    def _rows(self, sql: str, *values: object) -> list[Any]:
        return self._disk.look(sql, values)
