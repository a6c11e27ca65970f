"""Leaves: promises whose settlement a test decides, one by one or together.

A program under test calls `leaf("a")` and gets a promise of `"a"`; one whose name ends with `!` fails. Of which kind
it is, the life decides: settled by somebody outside, as a child or as a root that others know by its name, a local
child, or a child that runs elsewhere. The program is the same for each. When it happens is the schedule's to say.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from concurrent.futures import Future
from contextvars import ContextVar
from typing import cast

from dasync.core import codec, failure
from dasync.core.model import State
from dasync.core.protocol import Command, PromiseSettle, Reply
from dasync.runtime.decisions import promise
from dasync.runtime.declare import function
from dasync.runtime.promise import Promise

KINDS = ("external", "named", "local", "remote")
"""What a leaf may be."""
PLAIN = "plain"
"""What a leaf is where there is no dasync at all: a coroutine. What plain asyncio makes of a program is its measure."""
ELSEWHERE = "elsewhere"
"""The group of the processes that run remote leaves: the test itself."""
FUNCTION = "dasync.testing.leaf"
MAX_ERROR_BYTES = 10_000


class Stage:
    """The leaves of one life."""

    def __init__(self, kind: str) -> None:
        if kind not in (*KINDS, PLAIN):
            raise ValueError(f"a leaf is one of {', '.join(KINDS)}, not {kind!r}")
        self.kind = kind
        self.names: dict[str, str] = {}
        """Which promise is which leaf."""
        self.values: dict[str, object] = {}
        """What leaves resolve to, where that is not their name."""
        self.ran: list[str] = []
        """The local leaves whose body has begun."""
        self.raw: dict[str, Future[str]] = {}
        """What threads are blocked on."""
        self._gates: dict[str, asyncio.Event] = {}
        self._ended = False

    def end(self) -> None:
        """The life is over: no thread stays blocked."""
        self._ended = True
        for future in self.raw.values():
            future.cancel()

    @property
    def is_over(self) -> bool:
        """Whether plain asyncio is done with it, which waits for the clean-up of every task."""
        return self._ended and self.kind == PLAIN

    def block(self, name: str) -> str:
        """Block this thread until `raw` has an outcome for `name`."""
        future = self.raw.setdefault(name, Future())
        if self._ended:
            future.cancel()
        return future.result()

    def gate(self, name: str) -> asyncio.Event:
        """Set it, and that local leaf returns."""
        return self._gates.setdefault(name, asyncio.Event())

    def ids(self, name: str) -> list[str]:
        """The promises that this leaf has been so far."""
        return [id for id, its in self.names.items() if its == name]

    def settled(self, replies: Iterable[Reply]) -> list[str]:
        """The leaves that a batch with those replies finds settled with an outcome."""
        found = [reply.promise for reply in replies if reply.promise is not None]
        ended = [record.id for record in found if record.state in (State.RESOLVED, State.REJECTED)]
        return [self.names[id] for id in ended if id in self.names]


stage: ContextVar[Stage] = ContextVar("dasync_testing_stage")


def leaf(name: str) -> Promise[str]:
    """A promise of `name`, settled when the schedule says so; where that ends with `!`, it fails with `OSError`."""
    here = stage.get()
    made: Promise[str]
    if here.kind == PLAIN:
        here.ran.append(name)
        return cast("Promise[str]", _plain(here, name))
    if here.kind == "external":
        made = promise(str)
    elif here.kind == "named":
        made = promise(str, id=f"leaf {name}")
    elif here.kind == "local":
        made = _leaf(name)
    else:
        made = _leaf.options(on=ELSEWHERE)(name)
    here.names[made.id] = name
    return made


@function(name=FUNCTION)
async def _leaf(name: str) -> str:
    here = stage.get()
    here.ran.append(name)
    return await _plain(here, name)


async def _plain(here: Stage, name: str) -> str:
    if here.is_over:
        raise asyncio.CancelledError  # in a `finally` of what was left behind: nobody settles it any more
    await here.gate(name).wait()
    return _outcome(name)


def adopt(id: str, name: str, value: object = None) -> None:
    """The promise of that id, which the program makes by itself, is a leaf; it resolves to `value`, or to its name."""
    here = stage.get()
    here.names[id] = name
    if value is not None:
        here.values[name] = value


def blocked(name: str) -> str:
    """Called in a thread: block it until the schedule lets it go on. No promise, so nothing is recorded of it."""
    return stage.get().block(name)


def _outcome(name: str) -> str:
    if name.endswith("!"):
        raise OSError(name)
    return name


def settlement(id: str, name: str, values: Mapping[str, object]) -> Command:
    """What settles an external or a remote leaf."""
    try:
        return PromiseSettle(id, State.RESOLVED, codec.encode(values.get(name, _outcome(name))))
    except OSError as error:
        return PromiseSettle(id, State.REJECTED, failure.encode_error(error, MAX_ERROR_BYTES))
