"""Where the programs of the matrix are put down, each by its name."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

import dasync
from dasync.testing.leaves import leaf
from dasync.testing.trial import Program

LONG_S = 7.313  # longer than a schedule without a pause; no multiple of it is a moment at which a leaf is settled
Body = Callable[[], Coroutine[Any, Any, Any]]
PROGRAMS: dict[str, Program] = {}
EXAMPLES: dict[str, Program] = {}


def program(leaves: str, *, into: dict[str, Program] = PROGRAMS, raw: str = "", **known: Any) -> Callable[[Body], Body]:
    """The function below is a program with those leaves; what else is `known` of it is as in `Program`."""

    def add(body: Body) -> Body:
        function = dasync.function(name=f"matrix.{body.__name__}")(body)
        into[body.__name__] = Program(function, tuple(leaves.split()), raw=tuple(raw.split()), **known)
        return body

    return add


class Seen:
    """What has come, in the order in which it came."""

    def __init__(self) -> None:
        self.all: list[object] = []

    async def one(self, name: str) -> str:
        """A leaf, and a line of it."""
        value = await leaf(name)
        self.all.append(value)
        return value

    async def sequence(self, *names: str) -> list[str]:
        """Leaves, one after the other."""
        return [await self.one(name) for name in names]

    def say(self, what: object) -> None:
        """A line of something else."""
        self.all.append(what)
