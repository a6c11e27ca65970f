"""The report of a divergence: what a replay came to where something else is recorded, for a person to act on.

Made of two descriptions of a call and the line that made it: a first line that says what, then where, in what they
differ, why that may be, and what can be done. Paths into arguments read as `args[0].items[3]`, whether `items` is a
field or a key. It is pure text: what is compared, and what follows from it, is decided where the replay runs.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from datetime import date, datetime, time
from itertools import takewhile
from typing import NamedTuple
from uuid import UUID

from dasync.core import ids
from dasync.core.codec import CallShape, decode
from dasync.core.model import PromiseRecord
from dasync.errors import DecodeError, NonDeterminismError

MAX_DIFFERENCES = 8  # that are told; a report is for a person
VALUE_CHARS = 80  # of one value in a difference
CALL_CHARS = 240  # of all arguments of a call
TO_DO = "to do"
EPOCH_S, EPOCH_MS = 1_000_000_000, 1_000_000_000_000  # numbers from these on look like times of this century
_CALL = CallShape(())


class Call(NamedTuple):
    """What an invocation is known by."""

    function: str
    version: int
    param: bytes
    target: str | None
    timer: bool

    def __str__(self) -> str:
        told = f"{self.function!r} (version {self.version})" if self.function else "a promise that is settled outside"
        return told + (f" on {self.target!r}" if self.target else "")


class Difference(NamedTuple):
    """One place in which two values differ."""

    path: str
    was: object
    now: object
    reordered: bool = False
    """They hold the same, in another order."""

    def __str__(self) -> str:
        order = ", in another order" if self.reordered else ""
        return f"{self.path}: {_short(self.was, VALUE_CHARS)} -> {_short(self.now, VALUE_CHARS)}{order}"


class _Nothing:
    """What stands where a value has no counterpart."""

    def __repr__(self) -> str:
        return "(nothing)"


_NOTHING = _Nothing()


def of(record: PromiseRecord) -> Call:
    """What is recorded."""
    return Call(record.function, record.version, record.param, record.target, record.timer)


def other_call(execution: str, id: str, was: Call, now: Call, at: str) -> NonDeterminismError:
    """The code came to another call, made `at` a source line, than is recorded as `id`."""
    found = _between(was, now)
    what = f"recorded was {was}, now it is {now}"
    if str(was) == str(now):
        what = f"{was} is recorded with other arguments"
    lines = [*_where(id, "source", at), ("recorded", _full(was)), ("now", _full(now)), *_found(found)]
    lines += _under("likely", _causes(was, now, found))
    return _error(execution, id, f"diverged at {id!r}: {what}", lines, expected=was, got=_full(now), found=found, at=at)


def never_made(execution: str, id: str, was: Call, at: str, ended: str = "it ended") -> NonDeterminismError:
    """The replay of a function, defined `at` a source line, has `ended` without coming to what is recorded as `id`."""
    cause = (
        "the code was changed and leaves it out, or it depends on something that is not recorded: a condition on time,"
        " chance, the environment, a file, a global"
    )
    lines = [*_where(id, "function", at), ("recorded", _full(was)), ("now", ended), ("likely", cause)]
    what = f"diverged: {ended} and did not come to {id!r}, recorded as {was}"
    return _error(execution, id, what, lines, expected=was, got=ended, found=[], at=at)


def other_outcome(execution: str, was: object, now: object, at: str) -> NonDeterminismError:
    """The replay of a function, defined `at` a source line, gave another outcome than is recorded."""
    found = list(differences(was, now, "outcome")) or [Difference("outcome", was, now)]
    cause = "the code that makes it of what is recorded was changed, or it depends on something that is not recorded"
    lines = [*_where(execution, "function", at), *_found(found), ("likely", cause)]
    return NonDeterminismError(
        _text(f"replay of {execution!r} diverged: it came to another outcome than is recorded", lines),
        execution=execution, id=execution, expected=_short(was, CALL_CHARS), got=_short(now, CALL_CHARS),
        differences=tuple(map(str, found)), at=at,
    )  # fmt: skip


def _error(
    execution: str,
    id: str,
    what: str,
    lines: list[tuple[str, str]],
    *,
    expected: Call,
    got: str,
    found: Sequence[Difference],
    at: str,
) -> NonDeterminismError:
    text = _text(f"replay of {execution!r} {what}", [*lines, *_remedies(execution, expected)])
    return NonDeterminismError(
        text, execution=execution, id=id, expected=_full(expected), got=got, differences=tuple(map(str, found)), at=at
    )


def without_remedies(report: str) -> str:
    """A report without what can be done about a task that is halted by it."""
    return report.partition(f"\n  {TO_DO}")[0]


# -- the text ----------------------------------------------------------------------------------------------


def _text(first: str, lines: Sequence[tuple[str, str]]) -> str:
    return "\n".join([first, *(f"  {name:<9} {text}" for name, text in lines if text)])


def _where(id: str, name: str, at: str) -> list[tuple[str, str]]:
    return [("place", ids.told(id)), (name, at)]


def _found(found: Sequence[Difference]) -> list[tuple[str, str]]:
    told, left = [str(one) for one in found[:MAX_DIFFERENCES]], len(found) - MAX_DIFFERENCES
    return _under("differs", told + ([f"and {left} more"] if left > 0 else []))


def _under(name: str, told: Sequence[str]) -> list[tuple[str, str]]:
    return list(zip([name, *[""] * (len(told) - 1)], told, strict=True)) if told else []


def _full(call: Call) -> str:
    """With its arguments."""
    if not call.function or call.timer or not call.param:
        return str(call)
    try:
        return f"{call} with {_short(decode(call.param), CALL_CHARS)}"
    except DecodeError:
        return f"{call} with arguments that cannot be read"


def _short(value: object, limit: int) -> str:
    try:
        text = repr(value)
    except ValueError:  # Python refuses to print an int of more than 4300 digits
        text = f"<{type(value).__qualname__}>"
    return text if len(text) <= limit else f"{text[: limit - 4]} ..."


def _remedies(execution: str, was: Call) -> list[tuple[str, str]]:
    id = shlex.quote(execution)
    ways = ["nothing was settled and no result is lost; correct the code, then let it go on: `dasync resume {id}`"]
    if was.function and not was.timer:
        ways.append(
            "where the code was changed on purpose, keep what was there for what has begun: behind"
            " `dasync.patched(\"name\")`, or as a former version of the function, `@dasync.function(version=...)`"
        )
    ways.append("or give it up: `dasync cancel {id}`")
    return _under(TO_DO, [way.format(id=id) for way in ways])


# -- in what two calls differ --------------------------------------------------------------------------------


def _between(was: Call, now: Call) -> list[Difference]:
    found = [
        Difference(name, one, other)
        for name, one, other in (
            ("function", was.function, now.function),
            ("version", was.version, now.version),
            ("target", was.target, now.target),
        )
        if one != other
    ]
    if was.param == now.param or was.function != now.function:
        return found
    try:
        (args, kwargs), (new_args, new_kwargs) = _CALL.decode(was.param), _CALL.decode(now.param)
    except DecodeError:
        return [*found, Difference("args", was.param, now.param)]
    found += differences(args, new_args, "args")
    found += differences(kwargs, new_kwargs, "kwargs")
    return found or [Difference("args", was.param, now.param)]


def differences(was: object, now: object, path: str) -> Iterator[Difference]:
    """Where two decoded values differ, path by path; a value of another type is another one."""
    if isinstance(was, dict) and isinstance(now, dict):
        yield from _of_dicts(was, now, path)
    elif isinstance(was, list | tuple) and type(was) is type(now) and isinstance(now, list | tuple):
        yield from _of_lists(was, now, path)
    elif type(was) is not type(now) or (was != now and (was == was or now == now)):  # a NaN is that NaN again
        yield Difference(path, was, now)


def _of_dicts(was: dict[object, object], now: dict[object, object], path: str) -> Iterator[Difference]:
    for key in [*was, *(key for key in now if key not in was)]:
        at = f"{path}.{key}" if isinstance(key, str) and key.isidentifier() else f"{path}[{_short(key, VALUE_CHARS)}]"
        if key in was and key in now:
            yield from differences(was[key], now[key], at)
        else:
            yield Difference(at, was.get(key, _NOTHING), now.get(key, _NOTHING))
    if list(was) != list(now) and was.keys() == now.keys():
        yield Difference(f"{path}.keys()", list(was), list(now), reordered=True)


def _of_lists(was: Sequence[object], now: Sequence[object], path: str) -> Iterator[Difference]:
    if len(was) == len(now) and sorted(map(repr, was)) == sorted(map(repr, now)):
        if list(map(repr, was)) != list(map(repr, now)):
            yield Difference(path, was, now, reordered=True)
        return
    if len(was) == len(now):
        for index, (one, other) in enumerate(zip(was, now, strict=True)):
            yield from differences(one, other, f"{path}[{index}]")
        return
    start = _common(was, now)
    end = _common(was[start:][::-1], now[start:][::-1])
    for index in range(start, max(len(was), len(now)) - end):
        one = was[index] if index < len(was) - end else _NOTHING
        yield Difference(f"{path}[{index}]", one, now[index] if index < len(now) - end else _NOTHING)


def _common(was: Sequence[object], now: Sequence[object]) -> int:
    """How many elements they begin with alike."""
    alike = (not any(differences(one, other, "")) for one, other in zip(was, now, strict=False))
    return sum(takewhile(bool, alike))


# -- why that may be ---------------------------------------------------------------------------------------


def _causes(was: Call, now: Call, found: Sequence[Difference]) -> list[str]:
    if was.function != now.function:
        return [
            "the code was changed under a running execution: an invocation was put in, taken out or moved",
            "or what is invoked next follows from something that is not recorded: time, chance, the order of a set,"
            " which of several threads or sockets was first",
        ]
    if was.version != now.version:
        return ["a deploy gave the function another version; what has begun goes on with the one that is recorded"]
    if was.target != now.target:
        return ["its on= was changed, or it follows from something that is not recorded, as the environment"]
    told = dict.fromkeys(_cause(one) for one in found)
    return [cause for cause in told if cause] or [
        "the code that makes the arguments was changed, or they follow from something that is not recorded: the"
        " environment, a file, a global, another process"
    ]


def _cause(one: Difference) -> str:
    """What such a difference usually comes from; empty: nobody knows."""
    pair = (one.was, one.now)
    if one.reordered:
        return "the order of a set, or of what came first: sort it before it is handed over"
    if all(isinstance(value, datetime | date | time) or _is_epoch(value) for value in pair):
        return "the time: take it from dasync.now(), which is recorded"
    if all(isinstance(value, UUID) or _is_uuid(value) for value in pair):
        return "a fresh uuid: take it from dasync.uuid4(), which a replay draws again"
    if all(isinstance(value, float) and 0 <= value < 1 for value in pair):
        return "a random number: draw it from dasync.random(), which a replay draws again"
    return ""


def _is_epoch(value: object) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return EPOCH_S <= value < 5 * EPOCH_S or EPOCH_MS <= value < 5 * EPOCH_MS


def _is_uuid(value: object) -> bool:
    try:
        return isinstance(value, str) and len(value) in (32, 36) and bool(UUID(value))
    except ValueError:
        return False
