"""`@dasync.function` and `dasync.remote`: what may be a durable function, and with which options.

It refuses what could not be found again by its name, and what has no one value to give.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Coroutine
from typing import ParamSpec, Protocol, TypeVar, overload

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
) -> _Decorator: ...
def function(
    fn: Callable[..., object] | None = None,
    /,
    *,
    name: str | None = None,
    version: int = 1,
    on: str | None = None,
    timeout: Seconds | None = None,
    retry: Retry | None = None,
) -> object:
    """Make a function durable: `f(x)` invokes it and gives a promise.

    An `async def` runs on the asyncio loop, any other function in a worker thread, where it may block. `name`
    (default: the function's own) and `version` identify it in the store; `on` names the group that runs it (default:
    this process); `timeout` is in seconds (default: none); `retry` says when it is run again after an exception
    (default: as the EventLoop says, which is never).

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
    """

    def make(fn: Callable[..., object]) -> Function[..., object]:
        _check_function(fn)
        made: Function[..., object] = _declare(fn, name or fn.__name__, version, _declared(on, timeout, retry))
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
    options = _declared(on, timeout, retry)
    if fn_name is not None:
        return _declare(None, fn_name, version, options, declared=True)

    def make(fn: Callable[..., object]) -> Function[..., object]:
        _check_function(fn)
        return _declare(fn, name or fn.__name__, version, options, declared=True)

    return make


def _check_function(fn: object) -> None:
    """Only what a worker can find again by its name can be run again after a crash."""
    if not inspect.isfunction(fn):
        raise TypeError(f"@dasync.function takes a function, `def` or `async def`, not {fn!r}")
    if fn.__name__ == "<lambda>":
        raise TypeError("a lambda has no name under which it could be found after a crash: use def or async def")
    if inspect.isgeneratorfunction(fn) or inspect.isasyncgenfunction(fn):
        raise TypeError(f"{fn.__qualname__} yields, and a promise has one value: return a list instead")
    _check_defaults(fn)


def _check_defaults(fn: Callable[..., object]) -> None:
    """A default is made once and shared by every run, so one that changes makes a replay see something else."""
    for name, parameter in inspect.signature(fn).parameters.items():
        if isinstance(parameter.default, list | dict | set | bytearray):
            kind = type(parameter.default).__name__
            raise TypeError(
                f"{fn.__qualname__}(): every run would share the {kind} that is the default of {name!r}: use None, and"
                " make it inside"
            )


def _declared(on: str | None, timeout: Seconds | None, retry: Retry | None) -> Options:
    return Options(
        on=None if on is None else protocol.check_target(on),
        timeout_s=None if timeout is None else seconds(timeout, "timeout"),
        retry=None if retry is None else check_retry(retry),
    )


def _declare(
    fn: Callable[..., object] | None, name: str, version: int, options: Options, *, declared: bool = False
) -> Function[..., object]:
    if not 1 <= len(name) <= protocol.MAX_NAME_CHARS or not name.isprintable():
        raise ValueError(f"a function's name is 1 to {protocol.MAX_NAME_CHARS} printable characters, not {name!r}")
    if isinstance(version, bool) or not isinstance(version, int) or not 0 <= version < 2**31:
        raise ValueError(f"{name}: version is an int from 0 to {2**31 - 1}, not {version!r}")
    return Function(fn, name=name, version=version, options=options, declared=declared)
