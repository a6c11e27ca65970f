"""`@dasync.batched`: a function of one item, whose code is a handler of many.

To whoever invokes it, and to the store, it is a function of one item as any other. Where items meet, and what becomes
of what the handler gives, is `batches.py`. It refuses a handler that is not one of a list.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Coroutine, Sequence
from types import NoneType
from typing import Protocol, TypeVar, get_args, get_origin, overload

from dasync.core import codec
from dasync.core.hints import is_union, peel
from dasync.runtime.declare import check_function, check_identity, declared
from dasync.runtime.function import Function, Options, Seconds, hints_of, seconds
from dasync.runtime.policy import Retry
from dasync.runtime.registry import register

T = TypeVar("T")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)
G = TypeVar("G")
_Async = Callable[[list[T]], Coroutine[object, object, G]]
_Plain = Callable[[list[T]], G]
_Each = Sequence[R | Exception]  # of lists: `list` would have the type of its items to the letter
_ITEM = inspect.Signature([inspect.Parameter("item", inspect.Parameter.POSITIONAL_ONLY)])


class Batched(Function[[T], R_co]):
    """A function of one item, whose code is a handler of many. Made by `batched`."""

    fn: Callable[[list[T]], typing.Any]  # type: ignore[assignment]  # it takes many where an invocation takes one
    """The handler as written, for unit tests."""

    def __init__(
        self,
        fn: Callable[..., object],
        *,
        name: str,
        version: int,
        options: Options,
        max_size: int,
        max_wait_s: float,
    ) -> None:
        super().__init__(fn, name=name, version=version, options=options)
        self.max_size = max_size
        self.max_wait_s = max_wait_s
        self.direct = False
        self._signature, self._plain = _ITEM, range(1, 2)

    @property
    def shape(self) -> codec.CallShape:
        """How its calls are encoded: by what the handler's list holds."""
        if self._shape is None:
            item, self._result = sides(self.fn)
            self._shape = codec.CallShape((("item", item),))
        return self._shape


class _Decorator(Protocol):
    """`@batched(...)`."""

    @overload
    def __call__(self, fn: _Async[T, None], /) -> Batched[T, None]: ...
    @overload
    def __call__(self, fn: _Async[T, _Each[R]], /) -> Batched[T, R]: ...
    @overload
    def __call__(self, fn: _Async[T, _Each[R] | None], /) -> Batched[T, R | None]: ...
    @overload
    def __call__(self, fn: _Plain[T, None], /) -> Batched[T, None]: ...
    @overload
    def __call__(self, fn: _Plain[T, _Each[R]], /) -> Batched[T, R]: ...
    @overload
    def __call__(self, fn: _Plain[T, _Each[R] | None], /) -> Batched[T, R | None]: ...


@overload
def batched(fn: _Async[T, None], /) -> Batched[T, None]: ...
@overload
def batched(fn: _Async[T, _Each[R]], /) -> Batched[T, R]: ...
@overload
def batched(fn: _Async[T, _Each[R] | None], /) -> Batched[T, R | None]: ...
@overload
def batched(fn: _Plain[T, None], /) -> Batched[T, None]: ...
@overload
def batched(fn: _Plain[T, _Each[R]], /) -> Batched[T, R]: ...
@overload
def batched(fn: _Plain[T, _Each[R] | None], /) -> Batched[T, R | None]: ...
@overload
def batched(
    *,
    max_size: int = 1000,
    max_wait: Seconds = 0.01,
    name: str | None = None,
    version: int = 1,
    on: str | None = None,
    timeout: Seconds | None = None,
    retry: Retry | None = None,
) -> _Decorator: ...
def batched(
    fn: Callable[..., object] | None = None,
    /,
    *,
    max_size: int = 1000,
    max_wait: Seconds = 0.01,
    name: str | None = None,
    version: int = 1,
    on: str | None = None,
    timeout: Seconds | None = None,
    retry: Retry | None = None,
) -> object:
    """Make a durable function of one item from a handler of many: `f(item)` invokes it and gives a promise.

    Items that begin in this process within `max_wait` seconds of the first one, in whichever executions, are handed to
    one call of the handler, at most `max_size` of them; with so many it is called at once. A handler that returns a
    list gives each item an outcome of its own, in their order: a value or, to reject that one alone, an exception. None
    is the value of all, and what it raises their error. Each item is retried, times out, is canceled and is recorded by
    itself; one that was not recorded when its process ended is handed over again.

    A handler is annotated as `list[Item]` to `list[Result]`, `list[Result | Exception]` or None. It may be a plain
    `def`, which runs in a thread, and invokes nothing durable. It is canceled when each of its items is. Roots and
    `on=` invocations that wait for their batch count as running, so no more of them meet than `EventLoop(concurrency=)`
    lets run. `name`, `version`, `on`, `timeout` and `retry` are as for `dasync.function`, for each item.

    Raises `TypeError` for a handler that does not take one list, `ValueError` for a `max_size` below 1.

    Example:
        >>> import dasync
        >>> @dasync.batched(max_size=100, max_wait=0.01)
        ... async def squares(numbers: list[int]) -> list[int]:
        ...     print(f"{len(numbers)} in one go")
        ...     return [number * number for number in numbers]
        >>> async def main() -> list[int]:
        ...     return await dasync.all(*[squares(number) for number in range(5)])
        >>> dasync.run(main)
        5 in one go
        [0, 1, 4, 9, 16]
    """
    if isinstance(max_size, bool) or not isinstance(max_size, int) or max_size < 1:
        raise ValueError(f"max_size is the number of items that a handler takes at once, 1 or more, not {max_size!r}")
    max_wait_s, options = seconds(max_wait, "max_wait"), declared(on, timeout, retry)

    def make(fn: Callable[..., object]) -> Batched[typing.Any, typing.Any]:
        _check_handler(fn)
        check_identity(name or fn.__name__, version)
        made: Batched[typing.Any, typing.Any] = Batched(
            fn, name=name or fn.__name__, version=version, options=options, max_size=max_size, max_wait_s=max_wait_s
        )
        register(made)
        return made

    return make if fn is None else make(fn)


def sides(handler: Callable[..., object]) -> tuple[object, object]:
    """What the annotations of a handler say of one item and of its result. Raises `TypeError` for other than lists."""
    hints, (parameter,) = hints_of(handler), inspect.signature(handler).parameters
    what = f"{handler.__qualname__}() is the handler of a batch"
    takes, gives = peel(hints.get(parameter, list)), peel(hints.get("return", object))
    item = _element(takes)
    if item is None:
        raise TypeError(f"{what}: {parameter!r} is list[...], of what one invocation takes, not {takes!r:.200}")
    members = get_args(gives) if is_union(gives) else (gives,)
    lists = [peel(member) for member in members if member is not NoneType]
    if not lists or gives is object:
        return item, gives
    each = _element(lists[0]) if len(lists) == 1 else None
    if each is None:
        raise TypeError(f"{what}: it returns list[...], of what each item gives, or None, not {gives!r:.200}")
    parts = [part for part in (get_args(each) if is_union(each) else (each,)) if not _is_error(part)]
    parts += [NoneType] * (len(lists) < len(members))
    return item, typing.Union[tuple(parts)] if parts else object  # noqa: UP007  # there is no other spelling for them


def _element(annotation: object) -> object:
    """What a list of that annotation holds; None: it is no list. One that could not be read declares nothing."""
    if isinstance(annotation, str):
        return annotation
    if (get_origin(annotation) or annotation) is not list:
        return None
    return (*get_args(annotation), object)[0]


def _is_error(annotation: object) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseException)


def _check_handler(fn: Callable[..., object]) -> None:
    check_function(fn, "@dasync.batched")
    parameters = list(inspect.signature(fn).parameters.values())
    if len(parameters) != 1 or parameters[0].kind not in (
        inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD,
    ):  # fmt: skip
        raise TypeError(
            f"{fn.__qualname__}() is the handler of a batch: it takes the list of items and nothing else; what else it"
            " needs is a part of each item"
        )
    try:
        sides(fn)
    except TypeError as error:
        if not isinstance(error.__cause__, NameError):  # what they name comes later: they are read at the first use
            raise
