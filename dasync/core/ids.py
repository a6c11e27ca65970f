"""Where ids come from: a child's id is its parent's id and its place, so a replay makes the same ids.

    order-42             a root
    order-42:0           its first invocation
    order-42:0.2         the third invocation of that child
    order-42:~1.0        the first invocation of the root's second asyncio task (its branch 1)
    order-42:0.~1.~0.3   branches nest
    order-42:0.!1        what keeps the first failure of that child, whose second attempt invokes below it
    order-42:0.^         what keeps the place at which that child was canceled

A root holds no colon; everything after the first colon is the place. This file never looks at a clock or
draws randomness: fresh ids are made from bytes that are handed in.
"""

from __future__ import annotations

MAX_ROOT_CHARS = 512
MAX_ID_CHARS = 2048  # bounds how deep a call tree can nest; an id is a key in every table
_SEPARATOR = ":"
_STEP = "."
_BRANCH = "~"
_ATTEMPT = "!"
_CUT = "^"


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


def retry(id: str, failures: int) -> str:
    """What keeps the last of that many failures of promise `id`; the next attempt's places begin with it."""
    return f"{places(id)}{_ATTEMPT}{failures}"


def cut(id: str) -> str:
    """What keeps the place at which the execution of promise `id` was canceled."""
    return f"{places(id)}{_CUT}"


def is_retry(id: str) -> bool:
    """Whether it keeps a failed attempt of the promise above it."""
    return id.rpartition(_STEP if _STEP in id.partition(_SEPARATOR)[2] else _SEPARATOR)[2].startswith(_ATTEMPT)


def root_of(id: str) -> str:
    """The root above `id`; a root is its own."""
    return id.partition(_SEPARATOR)[0]


def parent_of(id: str) -> str | None:
    """The promise whose execution invoked `id`; None for a root."""
    root, colon, place = id.partition(_SEPARATOR)
    if not colon:
        return None
    steps = place.split(_STEP)[:-1]
    while steps and steps[-1].startswith((_BRANCH, _ATTEMPT)):
        steps.pop()
    return f"{root}{_SEPARATOR}{_STEP.join(steps)}" if steps else root


def subtree(id: str) -> tuple[str, str]:
    """Bounds of the ids below `id`: each descendant d has `low < d < high`, and nothing else has."""
    prefix = places(id)
    return prefix, prefix[:-1] + chr(ord(prefix[-1]) + 1)
