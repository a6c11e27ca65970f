"""A function's attempts: run it, keep a failure, wait, run it again, as its retry policy says.

Each failure is durable, as a timer below the promise that holds the error, before the next attempt begins; a replay
counts on from what is kept. When to try again is `policy.py`, what a run is `execution.py`.
"""

from __future__ import annotations

from typing import Protocol

from dasync.core import failure, ids
from dasync.runtime.function import Function
from dasync.runtime.held import Held
from dasync.runtime.policy import is_final
from dasync.runtime.promise import Promise
from dasync.runtime.registry import policy_of
from dasync.system import stream

MAX_KEPT_ERROR_BYTES = 16_384  # of each failed attempt

Args = tuple[object, ...]
Kwargs = dict[str, object]


class Tried(Protocol):
    """An execution, as its attempts see it."""

    id: str
    at: str
    """What its places begin with: its id, or where it has started over what keeps its arguments."""
    held: Held
    function: Function[..., object]
    param: bytes
    tags: str
    invoked: bool

    async def call(self, args: Args, kwargs: Kwargs) -> object:
        """Run the function once."""

    def backoff(self, failures: int, error: bytes, delay_s: float) -> Promise[None]:
        """The timer that keeps a failed attempt until the next one."""

    async def begin_again(self, prefix: str) -> None:
        """What the last attempt has left behind ends; the next one invokes at places that begin with `prefix`."""

    def is_ending(self) -> bool:
        """Whether it ends in any case: canceled, or gone from here."""


async def attempts(run: Tried, args: Args, kwargs: Kwargs, failed: Exception | None) -> object:
    """The value of the first attempt that succeeds; raises the error of the last one. The first may have `failed`."""
    failures = 0
    while ids.retry(run.at, failures + 1) in run.held.history:  # what an earlier run has tried already
        failures += 1
        await _back_off(run, failures, b"", 0)
    while True:
        if failed is None:
            try:
                if failures:
                    args, kwargs = run.function.shape.decode(run.param)
                return await run.call(args, kwargs)
            except Exception as error:
                failed = error
        delay_s = _delay_s(run, failures + 1, failed)
        if delay_s is None:
            raise failed
        raw = failure.encode_error(failed, min(MAX_KEPT_ERROR_BYTES, run.held.host.max_payload))
        failed = None
        failures += 1
        await _back_off(run, failures, raw, delay_s)


async def _back_off(run: Tried, failures: int, error: bytes, delay_s: float) -> None:
    await run.begin_again(ids.places(ids.retry(run.at, failures)))
    await run.backoff(failures, error, delay_s)


def _delay_s(run: Tried, failures: int, error: Exception) -> float | None:
    """How long to wait after that failure; None: it is the last one."""
    said = policy_of(run.tags, run.function)
    policy = run.held.host.retry if said is None else said
    if is_final(error) or run.is_ending():
        return None
    draw = stream(run.held.random_seed(ids.retry(run.at, failures))).random()
    delay_s = policy.delay_s(failures, draw)
    if delay_s is not None and run.invoked:
        if said is not None:
            run.held.host.say_once(
                f"{run.function.name!r} failed after it had invoked other functions, so its retry policy does not"
                " apply: give the policy to those that may fail, or catch the error"
            )
        return None
    return delay_s
