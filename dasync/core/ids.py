"""Where ids come from: a child's id is its parent's id and its place, so a replay makes the same ids.

    order-42             a root
    order-42:0           its first invocation
    order-42:0.2         the third invocation of that child
    order-42:~1.0        the first invocation of the root's second asyncio task (its branch 1)
    order-42:0.~1.~0.3   branches nest
    order-42:0.!1        what keeps the first failure of that child, whose second attempt invokes below it
    order-42:0.%0        the first timer that the code of that child has set by asyncio's means
    order-42:0.^         what keeps the place at which that child was canceled
    order-42:0.^0        what keeps the places at which some of its asyncio tasks were, by a timer say
    order-42:@7          what keeps the arguments with which the root has started over for the seventh time
    order-42:@7.0        the first invocation of that run

A root holds no colon; everything after the first colon is the place. This file never looks at a clock or
draws randomness: fresh ids are made from bytes that are handed in.
"""

from __future__ import annotations

from hashlib import sha256

MAX_ROOT_CHARS = 512
MARK_BYTES = 8
MAX_ID_CHARS = 2048  # bounds how deep a call tree can nest; an id is a key in every table
_SEPARATOR = ":"
_STEP = "."
_BRANCH = "~"
_ATTEMPT = "!"
_CUT = "^"
_ALARM = "%"
_RUN = "@"


def check_root(id: str) -> str:
    """Give back `id` if it can name a root, else raise `TypeError` or `ValueError` saying why not."""
    if not isinstance(id, str):
        raise TypeError(f"a promise id is a str, not {type(id).__name__}: {id!r}")
    if _SEPARATOR in id:
        raise ValueError(
            f"id {id!r} holds a colon: it separates a root from its children (order-42:0.1); use another character"
        )
    if not 1 <= len(id) <= MAX_ROOT_CHARS:
        raise ValueError(f"an id has 1 to {MAX_ROOT_CHARS} characters, this one has {len(id)}: {id[:40]!r}")
    if not id.isprintable():
        raise ValueError(f"id {id!r} holds characters that cannot be printed; use letters, digits, '-', '_', '.'")
    return id


def check(id: str) -> str:
    """Give back `id` if it can name any promise, root or child."""
    root, colon, place = id.partition(_SEPARATOR)
    check_root(root)
    if len(id) > MAX_ID_CHARS:
        raise ValueError(
            f"the call tree below {root!r} is nested too deeply: an id of {len(id)} characters (limit {MAX_ID_CHARS}); "
            "is it a recursion without end?"
        )
    if colon and not (place and place.isprintable() and _SEPARATOR not in place):
        raise ValueError(f"{id!r} is not the id of a child; children are written like order-42:0.1")
    return id


def fresh_root(name: str, noise: bytes) -> str:
    """A root id for an invocation that was given none: readable, and as unique as `noise` is."""
    readable = "".join(c if c.isalnum() or c in "_-." else "-" for c in name)[:64]
    return f"{readable or 'promise'}-{noise.hex()}"


def places(id: str) -> str:
    """The prefix under which the execution of promise `id` names its children."""
    return id + (_STEP if _SEPARATOR in id else _SEPARATOR)


def branch(prefix: str, number: int) -> str:
    """The prefix of the branch that was created as the `number`-th below `prefix`."""
    return f"{prefix}{_BRANCH}{number}{_STEP}"


def alarm(prefix: str, number: int) -> str:
    """The `number`-th timer that was set by asyncio's means in the branch of that prefix."""
    return f"{prefix}{_ALARM}{number}"


def retry(id: str, failures: int) -> str:
    """What keeps the last of that many failures of promise `id`; the next attempt's places begin with it."""
    return f"{places(id)}{_ATTEMPT}{failures}"


def cut(id: str, number: int | None = None) -> str:
    """What keeps the place at which the execution of promise `id` was canceled; with a number, some of its tasks."""
    return f"{places(id)}{_CUT}{'' if number is None else number}"


def run(id: str, number: int) -> str:
    """What keeps the arguments with which promise `id` has started over that often; that run's places begin with it."""
    return f"{places(id)}{_RUN}{number}"


def is_retry(id: str) -> bool:
    """Whether it keeps a failed attempt of the promise above it."""
    return _last_step(id).startswith(_ATTEMPT)


def number_of_run(id: str) -> int:
    """How often the promise above has started over, by the id of what keeps its arguments; 0: it keeps none."""
    mark, number = _last_step(id)[:1], _last_step(id)[1:]
    return int(number) if mark == _RUN and number.isdecimal() and number[0] != "0" else 0


def root_of(id: str) -> str:
    """The root above `id`; a root is its own."""
    return id.partition(_SEPARATOR)[0]


def parent_of(id: str) -> str | None:
    """The promise whose execution invoked `id`; None for a root."""
    root, colon, place = id.partition(_SEPARATOR)
    if not colon:
        return None
    steps = place.split(_STEP)[:-1]
    while steps and steps[-1].startswith((_BRANCH, _ATTEMPT, _RUN)):
        steps.pop()
    return f"{root}{_SEPARATOR}{_STEP.join(steps)}" if steps else root


def told(id: str) -> str:
    """Where it stands in the task tree, in words; its tasks are asyncio's."""
    root, colon, place = id.partition(_SEPARATOR)
    if not colon:
        return f"the root {root!r}"
    parent = parent_of(id) or root
    above = parent.partition(_SEPARATOR)[2]
    *inner, last = place.removeprefix(above + _STEP if above else "").split(_STEP)
    words, within = _told_step(last, ""), "in"
    for step in reversed(inner):
        words += f" {_told_step(step, within)}"
        within = "of"
    return f"{words} of {parent!r}"


def _told_step(step: str, within: str) -> str:
    kind, number = step[:1], step.lstrip(_BRANCH + _ATTEMPT)
    if kind == _CUT or not number.isdecimal():
        return "the cancel" if kind == _CUT else repr(step)
    if kind == _BRANCH:
        return f"{within} the {_ordinal(int(number) + 1)} task"
    if kind == _ATTEMPT:
        return f"after the {_ordinal(int(number))} failure" if within else f"the {_ordinal(int(number))} failed attempt"
    return f"the {_ordinal(int(number) + 1)} invocation"


def _ordinal(number: int) -> str:
    ending = {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{'th' if number % 100 in (11, 12, 13) else ending}"


def subtree(id: str) -> tuple[str, str]:
    """Bounds of the ids below `id`: each descendant d has `low < d < high`, and nothing else has."""
    prefix = places(id)
    return prefix, prefix[:-1] + chr(ord(prefix[-1]) + 1)


def mark(id: str) -> bytes:
    """Eight bytes for an id, never zeros: what a process leaves behind of what it ran, however it ends."""
    return sha256(id.encode()).digest()[: MARK_BYTES - 1] + b"\1"


def _last_step(id: str) -> str:
    return id.partition(_SEPARATOR)[2].rpartition(_STEP)[2]
