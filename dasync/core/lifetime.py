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
    bounds = (command.timeout_at, None if command.timer else latest)
    deadline = min((at for at in bounds if at is not None), default=None)
    invoked_at = now if command.invoked_at is None else min(now, command.invoked_at)
    record = PromiseRecord(
        command.id, command.function, command.version, command.param, command.target, creator,
        command.timer, deadline, command.tags, invoked_at, command.born_after, State.PENDING, None, None, None,
    )  # fmt: skip
    if guards.is_due(record, now):  # born settled, at its deadline
        return as_of(record._replace(created_at=min(invoked_at, deadline or 0)), now, turn)
    return record if command.state is State.PENDING else settled(record, command.state, now, command.value, turn)


def settled(record: PromiseRecord, state: State, at: int, value: bytes | None, turn: int) -> PromiseRecord:
    return PromiseRecord(*record[:11], state, at, value, turn)
