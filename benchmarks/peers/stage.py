"""What every adapter shares: the plan of a run, the bodies of the steps, the place of death, and the call from outside.

An adapter is run by the peer's own interpreter, `python -m benchmarks.peers.NAME ACTION STORE PLAN`, so this file needs
nothing but the standard library, and knows no peer:

- `ways` tells which ways of writing the program the adapter has, and whether it needs a server that outlives it;
- `first` runs the program until the plan kills the process; `resume` goes on with it, from the store alone;
- `serve`, where an adapter has it, prints a line once it serves, and serves until it is ended.

The outcome of `first` and `resume` goes to a file of the store's folder, as peers print what they like.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

OUTCOME, LEDGER = "outcome.json", "ledger.txt"
BEGUN, GIVEN = "begun", "given"


@dataclass
class Plan:
    """How this process's part of a run goes."""

    way: str
    """Which of the adapter's ways of writing the program."""
    delays_s: dict[str, float]
    """How long the body of each step takes."""
    given: int = 0
    """Die once the program was given the results of so many steps; 0: live."""
    in_body: bool = False
    """Die in the body of the next step then, whose result is lost, and not at once."""


@dataclass
class Stage:
    """Where this process's part is played."""

    plan: Plan
    store: Path
    seen: set[str] = field(default_factory=set)

    def write(self, what: str, step: str) -> None:
        """A line of the ledger; it is in the file when this returns."""
        with (self.store / LEDGER).open("a", encoding="utf-8") as file:
            file.write(f"{what} {step}\n")

    def die(self) -> None:
        """End this process as `kill -9` does."""
        os.kill(os.getpid(), signal.SIGKILL)


_stages: list[Stage] = []  # one, once `main` has read the plan: the steps are functions of a module and take no plan


async def work(name: str, i: int) -> str:
    """The body of a durable step: what it does in the world, how long that takes, and what comes of it."""
    stage, step = _stages[0], f"{name}{i}"
    stage.write(BEGUN, step)
    await asyncio.sleep(stage.plan.delays_s[step])
    if stage.plan.in_body and len(stage.seen) >= stage.plan.given > 0:
        stage.die()
    return step


def give(name: str, i: int, value: str) -> str:
    """The program is given what its step came to."""
    stage, step = _stages[0], f"{name}{i}"
    stage.write(GIVEN, step)
    stage.seen.add(step)  # each once, however often a peer goes through the program in one process
    if 0 < stage.plan.given + stage.plan.in_body <= len(stage.seen):
        stage.die()
    return value


Part = Callable[[Path, Plan], object]


def main(first: Part, resume: Part, *, ways: tuple[str, ...], serve: Callable[[Path], None] | None = None) -> None:
    """What an adapter does when it is run."""
    action, *rest = sys.argv[1:]
    if action == "ways":
        print(json.dumps({"ways": ways, "serves": serve is not None}))
        return
    store = Path(rest[0])
    if action == "serve" and serve is not None:
        serve(store)
        return
    plan = Plan(**json.loads(rest[1]))
    _stages.append(Stage(plan, store))
    try:
        outcome = {"value": {"first": first, "resume": resume}[action](store, plan)}
    except Exception as error:
        traceback.print_exc()
        outcome = {"error": f"{type(error).__name__}: {error}"}
    (store / OUTCOME).write_text(json.dumps(outcome), "utf-8")
    sys.stderr.flush()
    os._exit(0)  # what counts is known: how a peer's threads and pools end is not compared
