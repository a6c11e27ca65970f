"""Time, randomness, outside decisions and changes of code: `sleep`, `now`, `random`, `uuid4`, `promise`, `patched`.

Inside an execution each is recorded or derived from what is recorded, so that a replay sees the same; outside one
they are ordinary. Nondeterminism enters durable code through this file and through promises, or not at all.
"""

from __future__ import annotations

import random as _random
from datetime import UTC, datetime
from typing import TypeVar, overload
from uuid import UUID

from dasync.core import ids, protocol
from dasync.errors import NoEventLoop
from dasync.runtime import branch
from dasync.runtime.function import Seconds, caller, here, host, seconds
from dasync.runtime.promise import Promise
from dasync.system import stream

T = TypeVar("T")


def sleep(delay: Seconds) -> Promise[None]:
    """A promise that resolves after `delay` (seconds or a timedelta), counted once: a crash does not start it anew.

    Example:
        >>> import dasync
        >>> @dasync.function
        ... async def nap() -> str:
        ...     await dasync.sleep(0.01)
        ...     return "rested"
        >>> dasync.run(nap)
        'rested'
    """
    delay_s, at = seconds(delay, "a sleep"), here()
    return host().timer(delay_s) if at is None else caller(at).timer(at, delay_s)


def now() -> datetime:
    """The time as an aware UTC datetime, to the millisecond. Inside an execution it is recorded.

    Example:
        >>> import dasync
        >>> @dasync.function
        ... async def stamp() -> bool:
        ...     return dasync.now().tzinfo is not None
        >>> dasync.run(stamp)
        True
    """
    at = here()
    now_ms = host().now_ms() if at is None else caller(at).now_ms(at)
    return datetime.fromtimestamp(now_ms / 1000, UTC)


def random() -> _random.Random:
    """A fresh `random.Random`, the same one again in a replay. Its draws are not recorded, its seed is.

    Example:
        >>> import dasync
        >>> @dasync.function
        ... async def dice() -> bool:
        ...     return 1 <= dasync.random().randint(1, 6) <= 6
        >>> dasync.run(dice)
        True
    """
    at = here()
    return stream(host().seed() if at is None else caller(at).seed(at))


def uuid4() -> UUID:
    """A random UUID (version 4), the same one again in a replay.

    Example:
        >>> import dasync
        >>> @dasync.function
        ... async def name() -> int:
        ...     return dasync.uuid4().version or 0
        >>> dasync.run(name)
        4
    """
    return UUID(int=random().getrandbits(128), version=4)


@overload
def promise(type: type[T], *, id: str | None = None, timeout: Seconds | None = None) -> Promise[T]: ...
@overload
def promise(type: object = None, *, id: str | None = None, timeout: Seconds | None = None) -> Promise[object]: ...
def promise(type: object = None, *, id: str | None = None, timeout: Seconds | None = None) -> Promise[object]:
    """A promise that somebody outside settles: from Python, or by `dasync resolve ID VALUE`.

    `type` says what its value is, to whoever awaits it: one that does not fit is a `DecodeError` there.
    `id` names it (a root id; default: its place inside an execution, a fresh id
    outside); `timeout` is in seconds.

    Example:
        >>> import asyncio, dasync
        >>> @dasync.function
        ... async def approval() -> str:
        ...     try:
        ...         return await dasync.promise(str, timeout=0.01)
        ...     except dasync.PromiseTimedOut:
        ...         return "nobody came"
        >>> dasync.run(approval)
        'nobody came'
    """
    annotation = object if type is None else type
    name = None if id is None else ids.check_root(id)
    timeout_s, at = None if timeout is None else seconds(timeout, "timeout"), here()
    if at is None:
        return host().external(annotation, name, timeout_s)
    return caller(at).external(at, annotation, name, timeout_s)


def patched(name: str) -> bool:
    """Whether code that has changed runs in its new form: the way to change it under running executions.

    True, and recorded, for an execution that comes here for the first time; False in one that an earlier run, without
    this call, has taken past this place already, so that it comes to what is recorded. The answer to one name stays
    the same for an execution as long as it lives. Outside executions it is True.

    Take the old form away when no execution is left that began with it, and the call itself when none is left that
    has recorded it: one that has looks for it in every replay.

    Example:
        >>> import dasync
        >>> @dasync.function
        ... async def charge(cents: int, currency: str = "EUR") -> str:
        ...     return f"{cents} {currency}"
        >>> @dasync.function
        ... async def checkout(cents: int) -> str:
        ...     if dasync.patched("say the currency"):
        ...         return await charge(cents, "USD")
        ...     return await charge(cents)
        >>> async def main() -> str:
        ...     return await checkout(5)
        >>> dasync.run(main)
        '5 USD'
    """
    if not isinstance(name, str):
        raise TypeError(f"the name of a patch is a str, not {name!r}")
    if not 1 <= len(name) <= protocol.MAX_NAME_CHARS or not name.isprintable():
        raise ValueError(f"the name of a patch is 1 to {protocol.MAX_NAME_CHARS} printable characters, not {name!r}")
    try:
        at = here()
    except NoEventLoop:
        if branch.inside.get():  # an execution's, at no place of it
            raise
        at = None
    return at is None or caller(at).patched(at, name)
