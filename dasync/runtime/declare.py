"""`@dasync.function` and `dasync.remote`: what may be a durable function, and with which options.

It refuses what could not be found again by its name, and what has no one value to give.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Coroutine
from typing import Literal, ParamSpec, Protocol, TypeVar, overload

from dasync.core import protocol
from dasync.runtime.function import Function, Options, Seconds, check_retry, seconds
from dasync.runtime.policy import Retry
from dasync.runtime.promise import Promise
from dasync.runtime.registry import register

P = ParamSpec("P")
R = TypeVar("R")
_Async = Callable[P, Coroutine[object, object, R]]
_Linking = Callable[P, Coroutine[object, object, Promise[R]]]


class _Decorator(Protocol):
    """`@function(...)`: a function that gives a promise is linked to it."""

    @overload
    def __call__(self, fn: _Linking[P, R], /) -> Function[P, R]: ...
    @overload
    def __call__(self, fn: _Async[P, R], /) -> Function[P, R]: ...
    @overload
    def __call__(self, fn: Callable[P, Promise[R]], /) -> Function[P, R]: ...
    @overload
    def __call__(self, fn: Callable[P, R], /) -> Function[P, R]: ...


class _PlainDecorator(Protocol):
    """`@function(process=True)`: for functions that are not `async def`, which is refused."""

    def __call__(self, fn: Callable[P, R], /) -> Function[P, R]: ...


@overload
def function(fn: _Linking[P, R], /) -> Function[P, R]: ...
@overload
def function(fn: _Async[P, R], /) -> Function[P, R]: ...
@overload
def function(fn: Callable[P, Promise[R]], /) -> Function[P, R]: ...
@overload
def function(fn: Callable[P, R], /) -> Function[P, R]: ...
@overload
def function(
    *,
    name: str | None = None,
    version: int = 1,
    on: str | None = None,
    timeout: Seconds | None = None,
    retry: Retry | None = None,
    concurrency: int | None = None,
    process: Literal[False] = False,
) -> _Decorator: ...
@overload
def function(
    *,
    name: str | None = None,
    version: int = 1,
    on: str | None = None,
    timeout: Seconds | None = None,
    retry: Retry | None = None,
    concurrency: int | None = None,
    process: bool,
) -> _PlainDecorator: ...
def function(
    fn: Callable[..., object] | None = None,
    /,
    *,
    name: str | None = None,
    version: int = 1,
    on: str | None = None,
    timeout: Seconds | None = None,
    retry: Retry | None = None,
    concurrency: int | None = None,
    process: bool = False,
) -> object:
    """Make a function durable: `f(x)` invokes it and gives a promise.

    An `async def` runs on the asyncio loop, any other function in a worker thread, where it may block. `name`
    (default: the function's own) and `version` identify it in the store; `on` names the group that runs it (default:
    this process); `timeout` is in seconds (default: none); `retry` says when it is run again after an exception
    (default: as the EventLoop says, which is never).

    `concurrency` is how many of its executions run at a time in one process, counting all its versions that have one
    (default: as many as there are). Who waits for promises while nothing of it runs is not counted; before it takes an
    outcome, it is again.

    With `process=True` a plain `def` runs in a process of a pool, for what computes: it is imported there, gets its
    arguments and gives its result as anywhere, and may invoke nothing. Canceled, or at its deadline, its process is
    killed. One that ends its process is run again, and halted as poisoned when that goes on.

    Example:
        >>> import dasync
        >>> @dasync.function
        ... async def inner() -> int:
        ...     return 42
        >>> @dasync.function(timeout=60)
        ... async def outer() -> int:
        ...     return 2 * await inner()
        >>> dasync.run(outer)
        84
        >>> @dasync.function(concurrency=2)  # no more than two of them call the service at a time
        ... async def ask(page: int) -> str: ...
        >>> @dasync.function(process=True)
        ... def primes(below: int) -> list[int]:
        ...     return [n for n in range(2, below) if all(n % d for d in range(2, n))]
    """

    def make(fn: Callable[..., object]) -> Function[..., object]:
        check_function(fn)
        if process:
            _check_process(fn)
        check_identity(name or fn.__name__, version)
        made: Function[..., object] = Function(
            fn, name=name or fn.__name__, version=version, options=declared(on, timeout, retry),
            concurrency=_check_concurrency(fn, concurrency), process=process,
        )  # fmt: skip
        register(made)
        return made

    return make if fn is None else make(fn)


@overload
def remote(
    name: str, /, *, on: str, version: int = 1, timeout: Seconds | None = None, retry: Retry | None = None
) -> Function[..., typing.Any]: ...  # the untyped fallback: nothing is known of what it takes and gives
@overload
def remote(
    *,
    on: str,
    name: str | None = None,
    version: int = 1,
    timeout: Seconds | None = None,
    retry: Retry | None = None,
) -> _Decorator: ...
def remote(
    fn_name: str | None = None,
    /,
    *,
    on: str,
    name: str | None = None,
    version: int = 1,
    timeout: Seconds | None = None,
    retry: Retry | None = None,
) -> object:
    """Declare a function that is implemented elsewhere: `on` names the group whose workers run it.

    As a decorator it is typed and checks arguments; the body never runs. `remote("ship", on="warehouse")` is the
    untyped form.

    Example:
        >>> import dasync
        >>> @dasync.remote(on="warehouse")
        ... async def ship(sku: str) -> str: ...
        >>> untyped = dasync.remote("ship", on="warehouse")
    """
    options = declared(on, timeout, retry)
    if fn_name is not None:
        check_identity(fn_name, version)
        return Function(None, name=fn_name, version=version, options=options, declared=True)

    def make(fn: Callable[..., object]) -> Function[..., object]:
        check_function(fn)
        check_identity(name or fn.__name__, version)
        return Function(fn, name=name or fn.__name__, version=version, options=options, declared=True)

    return make


def check_function(fn: object, decorator: str = "@dasync.function") -> None:
    """Only what a worker can find again by its name can be run again after a crash."""
    if isinstance(fn, staticmethod | classmethod):
        kind = type(fn).__name__
        raise TypeError(f"{decorator} takes a function, not a {kind}: write @staticmethod, above {decorator}")
    if not inspect.isfunction(fn):
        raise TypeError(f"{decorator} takes a function, `def` or `async def`, not {fn!r}")
    if fn.__name__ == "<lambda>":
        raise TypeError("a lambda has no name under which it could be found after a crash: use def or async def")
    if inspect.isgeneratorfunction(fn) or inspect.isasyncgenfunction(fn):
        raise TypeError(f"{fn.__qualname__} yields, and a promise has one value: return a list instead")
    _check_no_method(fn)
    _check_defaults(fn)


def _check_no_method(fn: Callable[..., object]) -> None:
    """What a method is called on is not stored: whoever runs it again would have no object to run it on."""
    scope, _, name = fn.__qualname__.rpartition(".")
    first = next(iter(inspect.signature(fn).parameters), "")
    if scope and not scope.endswith("<locals>") and first in ("self", "cls"):
        raise TypeError(
            f"{fn.__qualname__} is a method, and a worker that runs it would have no {first!r}: make {name!r} a"
            f" function of the module, or a @staticmethod, and give it what it needs of {first!r} as arguments"
        )


def _check_defaults(fn: Callable[..., object]) -> None:
    """A default is made once and shared by every run, so one that changes makes a replay see something else."""
    for name, parameter in inspect.signature(fn).parameters.items():
        if isinstance(parameter.default, list | dict | set | bytearray):
            kind = type(parameter.default).__name__
            raise TypeError(
                f"{fn.__qualname__}(): every run would share the {kind} that is the default of {name!r}: use None, and"
                " make it inside"
            )


def declared(on: str | None, timeout: Seconds | None, retry: Retry | None) -> Options:
    """What a decorator says of every invocation."""
    return Options(
        on=None if on is None else protocol.check_target(on),
        timeout_s=None if timeout is None else seconds(timeout, "timeout"),
        retry=None if retry is None else check_retry(retry),
    )


def _check_process(fn: Callable[..., object]) -> None:
    """A process of the pool finds a function by its module, and calls it there without an asyncio loop."""
    if inspect.iscoroutinefunction(fn):
        raise TypeError(
            f"{fn.__qualname__} is `async def`, which runs on the asyncio loop: process=True is for a plain `def` that"
            " computes; move that part into one"
        )
    if "<locals>" in fn.__qualname__:
        raise TypeError(
            f"{fn.__qualname__} is made inside a function, where a process of the pool cannot find it: define it at the"
            " top of a module"
        )


def _check_concurrency(fn: Callable[..., object], concurrency: int | None) -> int | None:
    """So many at a time, or as many as there are."""
    if concurrency is not None and (isinstance(concurrency, bool) or not isinstance(concurrency, int)):
        raise TypeError(f"{fn.__qualname__}: concurrency is a number of executions, not {concurrency!r}")
    if concurrency is not None and concurrency < 1:
        raise ValueError(f"{fn.__qualname__}: concurrency is 1 or more executions at a time, not {concurrency!r}")
    return concurrency


def check_identity(name: str, version: int) -> None:
    """By these a function is found in the store."""
    if not 1 <= len(name) <= protocol.MAX_NAME_CHARS or not name.isprintable():
        raise ValueError(f"a function's name is 1 to {protocol.MAX_NAME_CHARS} printable characters, not {name!r}")
    if isinstance(version, bool) or not isinstance(version, int) or not 0 <= version < 2**31:
        raise ValueError(f"{name}: version is an int from 0 to {2**31 - 1}, not {version!r}")
