"""The record of a run as its clients had it: what each asked of the store, what it heard, and when.

An operation is one command of one batch. Times are ticks of whatever scheduler ran it, so that one record can be read
again anywhere; what is written of it holds nothing of a wall clock, an address or the order of a hash. This file judges
nothing: `linear.py` does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from enum import Enum
from hashlib import sha256
from typing import NamedTuple

from dasync.core import protocol as p
from dasync.core.model import State

SHOWN_BYTES = 96  # of one value, where it is written out
SHOWN_IDS = 4  # of many, in a line
Plain = None | bool | int | str | list["Plain"] | dict[str, "Plain"]
"""What JSON can hold, floats left out."""


class Operation(NamedTuple):
    """One command that somebody asked for, with what was heard of it."""

    number: int
    """Its place in the order in which operations were asked for; of a batch, in the order of its commands."""
    process: str
    """Who asked: a simulated process or a client, by a name that is the same in every run, as `worker-1`."""
    command: p.Command
    begin: int
    """The tick at which it was asked for."""
    end: int | None
    """The tick at which the answer was heard; None: never. It may have taken effect at any later time, or never."""
    reply: p.Reply | None
    """What was heard; None if nothing was."""
    earliest_ms: int
    """The clock that the store reads for this process showed at least this while the command could take effect."""
    latest_ms: int | None = None
    """And at most this; the same where the reading is known; None: nobody can tell."""
    batch: int | None = None
    """What was asked for in one transaction has one number; None: it was alone."""
    until: int | None = None
    """Of one that was never heard: the tick after which it cannot take effect, as its process was dead by then."""


class Mark(NamedTuple):
    """Something that befell a process or the world between them: a kill, a stop, a partition."""

    tick: int
    process: str
    """Empty: all of them."""
    text: str


_KINDS: dict[type, str] = {
    p.PromiseGet: "promise.get", p.PromiseCreate: "promise.create", p.PromiseSettle: "promise.settle",
    p.PromiseCancel: "dasync.cancel", p.PromiseAgain: "dasync.again",
    p.RegisterCallback: "promise.register_callback", p.RegisterListener: "promise.register_listener",
    p.TaskGet: "task.get", p.TaskCreate: "task.create", p.TaskAcquire: "dasync.acquire", p.TaskFence: "task.fence",
    p.TaskSuspend: "task.suspend", p.TaskFulfill: "task.fulfill", p.TaskRelease: "task.release",
    p.TaskHalt: "task.halt", p.TaskContinue: "task.continue", p.ProcessJoin: "dasync.join",
    p.ProcessHeartbeat: "dasync.heartbeat", p.ProcessLeave: "dasync.leave", p.Receive: "dasync.receive",
    p.Tick: "dasync.tick",
}  # fmt: skip
_SETTLES = {State.RESOLVED: "resolve", State.REJECTED: "reject", State.CANCELED: "settle as canceled"}


def line(operation: Operation) -> str:
    """The operation in one short line: `create foo:1 -> 201`."""
    return f"{asked(operation.command)} -> {heard(operation.reply)}"


def asked(command: p.Command | p.PromiseAgain) -> str:
    """What a command asks for, in a few words."""
    match command:
        case p.PromiseCreate():
            waiters = [("callback", command.awaiter), ("listener", command.listener)]
            named = [f"-and-{what} {command.id} for {who}" for what, who in waiters if who is not None]
            born = "" if command.state is State.PENDING else f" as {command.state.value}"
            return f"create{named[0]}" if named else f"create {command.id}{born}"
        case p.PromiseSettle():
            return f"{_SETTLES[command.state]} {command.id}"
        case p.RegisterCallback():
            return f"callback {command.awaited} for {command.awaiter}"
        case p.RegisterListener():
            return f"listen {command.promise} for {command.process}"
        case p.TaskCreate():
            return f"task.create {command.action.id} for {command.process}"
        case p.TaskAcquire():
            return f"acquire for {command.process}"
        case p.TaskFence():
            return f"fence {_claim(command.claim)}: {asked(command.action)}"
        case p.TaskSuspend():
            return f"suspend {_claim(command.claim)} on {_listed(command.awaited)}"
        case p.TaskFulfill():
            return f"fulfill {_claim(command.claim)}: {_SETTLES[command.state]}"
        case p.TaskRelease():
            return f"release {_claim(command.claim)}"
        case p.ProcessJoin() | p.ProcessHeartbeat() | p.ProcessLeave() | p.Receive():
            return f"{_KINDS[type(command)].removeprefix('dasync.')} {command.process}"
        case p.Tick():
            return "tick"
        case _:
            kind = _KINDS[type(command)].removeprefix("promise.").removeprefix("dasync.")
            return f"{kind} {command.id}"


def heard(reply: p.Reply | None) -> str:
    """What an answer says, in a few words."""
    if reply is None:
        return "?"
    said = [str(int(reply.status))]
    if reply.promise is not None and reply.promise.state is not State.PENDING:
        said.append(reply.promise.state.value)
    if reply.acquired:
        said.append(_listed([f"{one.task.id}@{one.task.version}" for one in reply.acquired]))
    if reply.settled:
        said.append(_listed([f"{one.id} {one.state.value}" for one in reply.settled]))
    if reply.poisoned:
        said.append(f"poisoned {_listed([one.id for one in reply.poisoned])}")
    return " ".join(said)


def as_json(operation: Operation) -> dict[str, Plain]:
    """The operation as JSON holds it: the same bytes for the same run, in any process."""
    said: dict[str, Plain] = {
        "number": operation.number, "process": operation.process, "line": line(operation),
        "begin": operation.begin, "end": operation.end, "earliest_ms": operation.earliest_ms,
        "latest_ms": operation.latest_ms, "batch": operation.batch, "until": operation.until,
        "request": plain(operation.command), "response": plain(operation.reply),
    }  # fmt: skip
    return {key: value for key, value in said.items() if value is not None or key in ("end", "response")}


def plain(value: object) -> Plain:
    """A command, a reply or a part of one as JSON holds it. What stands at its default is left out."""
    if isinstance(value, Enum):
        return plain(value.value)
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, bytes):
        return text_of(value)
    if is_dataclass(value) and not isinstance(value, type):
        said: dict[str, Plain] = {"kind": _KINDS[type(value)]}
        for field in fields(value):
            held = getattr(value, field.name)
            if field.default is MISSING or held != field.default:
                said[field.name] = plain(held)
        return said
    if isinstance(value, Mapping):
        return {str(key): plain(value[key]) for key in sorted(value)}
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return {name: plain(held) for name, held in value._asdict().items() if held not in (None, "", (), b"")}
    if isinstance(value, frozenset | set):
        return [plain(one) for one in sorted(value)]
    if isinstance(value, Sequence):
        return [plain(one) for one in value]
    raise TypeError(f"{type(value).__name__} is no part of a command or a reply")


def text_of(value: bytes) -> str:
    """Bytes as a person reads them; long ones are cut, and told apart by a digest of the whole."""
    shown = repr(value[:SHOWN_BYTES])[1:]
    if len(value) <= SHOWN_BYTES:
        return shown
    return f"{shown}... {len(value)} bytes, sha256 {sha256(value).hexdigest()[:12]}"


def _claim(claim: p.Claim) -> str:
    return f"{claim.id}@{claim.version}"


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN_IDS} more" if len(names) > SHOWN_IDS else ""
    return ", ".join(names[:SHOWN_IDS]) + more
