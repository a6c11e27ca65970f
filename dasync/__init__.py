"""dasync: async/await that does not stop at the edge of the process.

Invoke a function, get a promise; await the promise, get its value. Promises are rows in a store, so any process can
await and settle them, and an execution that was interrupted goes on from what its promises recorded.

This file only names what is public; each name is imported when it is first used, so `import dasync` stays cheap.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dasync.core.model import State as State
    from dasync.errors import DasyncError as DasyncError
    from dasync.errors import DecodeError as DecodeError
    from dasync.errors import FunctionNotFound as FunctionNotFound
    from dasync.errors import InvariantViolated as InvariantViolated
    from dasync.errors import LeaseLost as LeaseLost
    from dasync.errors import NoEventLoop as NoEventLoop
    from dasync.errors import NonDeterminismError as NonDeterminismError
    from dasync.errors import PayloadTooLarge as PayloadTooLarge
    from dasync.errors import Poisoned as Poisoned
    from dasync.errors import PromiseCanceled as PromiseCanceled
    from dasync.errors import PromiseConflict as PromiseConflict
    from dasync.errors import PromiseNotFound as PromiseNotFound
    from dasync.errors import PromiseTimedOut as PromiseTimedOut
    from dasync.errors import RemoteError as RemoteError
    from dasync.errors import StoreCorrupt as StoreCorrupt
    from dasync.errors import StoreError as StoreError
    from dasync.errors import StoreUnavailable as StoreUnavailable
    from dasync.errors import StoreVersion as StoreVersion
    from dasync.errors import Suspended as Suspended
    from dasync.errors import Terminal as Terminal
    from dasync.errors import UnserializableValue as UnserializableValue
    from dasync.loop import EventLoop as EventLoop
    from dasync.loop import run as run
    from dasync.runtime.batched import batched as batched
    from dasync.runtime.clocks import loop_factory as loop_factory
    from dasync.runtime.clocks import timeout as timeout
    from dasync.runtime.combinators import all as all
    from dasync.runtime.combinators import all_settled as all_settled
    from dasync.runtime.combinators import any as any
    from dasync.runtime.combinators import as_completed as as_completed
    from dasync.runtime.combinators import race as race
    from dasync.runtime.combinators import wait as wait
    from dasync.runtime.decisions import now as now
    from dasync.runtime.decisions import patched as patched
    from dasync.runtime.decisions import promise as promise
    from dasync.runtime.decisions import random as random
    from dasync.runtime.decisions import sleep as sleep
    from dasync.runtime.decisions import uuid4 as uuid4
    from dasync.runtime.declare import function as function
    from dasync.runtime.declare import remote as remote
    from dasync.runtime.function import Function as Function
    from dasync.runtime.function import invoke as invoke
    from dasync.runtime.policy import Retry as Retry
    from dasync.runtime.promise import Promise as Promise
    from dasync.runtime.registry import error as error

_ROOMS = {
    "dasync.core.model": "State",
    "dasync.errors": (
        "DasyncError DecodeError FunctionNotFound InvariantViolated LeaseLost NoEventLoop NonDeterminismError"
        " PayloadTooLarge Poisoned PromiseCanceled PromiseConflict PromiseNotFound PromiseTimedOut RemoteError"
        " StoreCorrupt StoreError StoreUnavailable StoreVersion Suspended Terminal UnserializableValue"
    ),
    "dasync.loop": "EventLoop run",
    "dasync.runtime.batched": "batched",
    "dasync.runtime.clocks": "loop_factory timeout",
    "dasync.runtime.combinators": "all all_settled any as_completed race wait",
    "dasync.runtime.decisions": "now patched promise random sleep uuid4",
    "dasync.runtime.declare": "function remote",
    "dasync.runtime.function": "Function invoke",
    "dasync.runtime.policy": "Retry",
    "dasync.runtime.promise": "Promise",
    "dasync.runtime.registry": "error",
}
_HOME = {name: room for room, names in _ROOMS.items() for name in names.split()}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'dasync' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_HOME[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
