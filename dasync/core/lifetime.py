"""A promise's record from its birth to its settlement: one record to the next, at the time that is given.

A part of `machine.py`, which decides when; here stands only what the record is then. Nothing here looks at other rows.
"""

from __future__ import annotations

from dasync.core import guards
from dasync.core import protocol as p
from dasync.core.model import PromiseRecord, State


def as_of(record: PromiseRecord, now: int, turn: int = 0) -> PromiseRecord:
    """The promise as anyone sees it at `now`: past its deadline it shows the deadline's verdict."""
    if not guards.is_due(record, now):
        return record
    return settled(record, State.RESOLVED if record.timer else State.TIMEDOUT, record.timeout_at or 0, None, turn)


def born(now: int, command: p.PromiseCreate, creator: str | None, latest: int | None, turn: int) -> PromiseRecord:
    deadline = command.timeout_at
    if latest is not None and not command.timer:
        deadline = latest if deadline is None else min(deadline, latest)
    invoked_at = now if command.invoked_at is None else min(now, command.invoked_at)
    late = deadline is not None and now >= deadline  # then it is born settled, at its deadline
    done = command.state is not State.PENDING and not late
    record = PromiseRecord(
        command.id, command.function, command.version, command.param, command.target, creator, command.timer, deadline,
        command.tags, invoked_at, command.born_after,
        *((command.state, now, command.value, turn) if done else (State.PENDING, None, None, None)),
    )  # fmt: skip
    return as_of(record._replace(created_at=min(invoked_at, deadline or 0)), now, turn) if late else record


def settled(record: PromiseRecord, state: State, at: int, value: bytes | None, turn: int) -> PromiseRecord:
    return PromiseRecord(*record[:11], state, at, value, turn)
