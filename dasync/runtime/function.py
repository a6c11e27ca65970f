"""`@dasync.function` and the registry: names and versions to functions, and back.

A `Function` is a plain `async def` that can be invoked durably. It checks its arguments at the call and hands the
invocation to the running execution or, outside one, to the EventLoop of the running asyncio loop. It runs nothing.
"""

from __future__ import annotations

import asyncio
import inspect
import sys
import typing
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from types import CellType, SimpleNamespace
from typing import Generic, ParamSpec, Protocol, TypeVar, cast, overload

from dasync.core import codec, failure, ids, protocol
from dasync.errors import FunctionNotFound, NoEventLoop
from dasync.runtime import branch
from dasync.runtime.branch import Branch
from dasync.runtime.promise import Promise

P = ParamSpec("P")
R = TypeVar("R")
E = TypeVar("E", bound=type[BaseException])
Seconds = float | timedelta
MAX_TAGS = 64  # on one promise; each with at most MAX_NAME_CHARS characters of key and value


def seconds(value: Seconds, what: str = "a time") -> float:
    """`value` in seconds; a timedelta or a number that is not negative."""
    amount = value.total_seconds() if isinstance(value, timedelta) else value
    if isinstance(amount, bool) or not isinstance(amount, int | float):
        raise TypeError(f"{what} is a number of seconds or a timedelta, not {value!r}")
    if not 0 <= amount <= protocol.MAX_TIME_MS / 1000:
        raise ValueError(f"{what} is 0 or more seconds (within ten thousand years), not {value!r}")
    return amount


@dataclass(frozen=True, slots=True)
class Options:
    """How an invocation differs from what its function declares."""

    id: str | None = None
    on: str | None = None
    timeout_s: float | None = None
    version: int | None = None
    tags: Mapping[str, str] | None = None


class Host(Protocol):
    """An EventLoop, as the place where invocations from outside executions go. None of these suspends."""

    def invoke_function(
        self, function: Function[..., R], args: tuple[object, ...], kwargs: dict[str, object]
    ) -> Promise[R]:
        """Start a root."""

    def external(self, annotation: object, id: str | None, timeout_s: float | None) -> Promise[object]:
        """A root promise that somebody outside settles."""

    def timer(self, seconds: float) -> Promise[None]:
        """A root promise that resolves by itself."""

    def now_ms(self) -> int:
        """The time on the EventLoop's clock."""

    def seed(self) -> bytes:
        """Where a random stream starts."""


class Caller(Protocol):
    """An execution, as the place where invocations made inside it go. None of these suspends."""

    def invoke(
        self, at: Branch, function: Function[..., R], args: tuple[object, ...], kwargs: dict[str, object]
    ) -> Promise[R]:
        """Start a child."""

    def external(self, at: Branch, annotation: object, id: str | None, timeout_s: float | None) -> Promise[object]:
        """A child that somebody outside settles."""

    def timer(self, at: Branch, seconds: float) -> Promise[None]:
        """A child that resolves by itself."""

    def now_ms(self, at: Branch) -> int:
        """The time, as the first run saw it."""

    def seed(self, at: Branch) -> bytes:
        """Where the next random stream of that branch starts."""


class Function(Generic[P, R]):
    """A function that can be invoked durably: calling it gives a `Promise`. Made by `function` and `remote`."""

    def __init__(
        self, fn: Callable[..., object] | None, *, name: str, version: int, options: Options, declared: bool = False
    ) -> None:
        self.name = name
        self.version = version
        self.fn = cast("Callable[P, Coroutine[object, object, R]]", fn)
        """The coroutine function as written, for unit tests."""
        self.declared = declared
        """Declared here, implemented elsewhere: its body never runs in this process."""
        self.configured = options
        self._shape: codec.CallShape | None = None
        self._result: object = None
        self._signature = None if fn is None else inspect.signature(fn)
        self.__doc__ = fn.__doc__ if fn is not None else None
        self.__name__ = name
        self.__qualname__ = fn.__qualname__ if fn is not None else name
        self.__module__ = fn.__module__ if fn is not None else __name__
        self._plain = _positional_only_count(self._signature)

    def __repr__(self) -> str:
        return f"<dasync function {self.name!r} version {self.version}>"

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Promise[R]:
        """Invoke: the function starts, the caller never suspends. Raises `TypeError` for wrong arguments."""
        at = here()
        if at is None:
            return host().invoke_function(self, args, kwargs)
        return caller(at).invoke(at, self, args, kwargs)

    def options(
        self,
        *,
        id: str | None = None,
        on: str | None = None,
        timeout: Seconds | None = None,
        version: int | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> Function[P, R]:
        """A copy that invokes with these options; what is not given stays as it is.

        `id` names a root promise: invoking it again with the same function, version and arguments gives the
        same promise. `on` is a group or `group/process`, `timeout` is in seconds, `tags` are found by `search`.

        Example:
            >>> import dasync
            >>> @dasync.function
            ... async def greet(name: str) -> str:
            ...     return f"hello {name}"
            >>> async def main() -> str:
            ...     first = greet.options(id="greeting-1")("world")
            ...     again = greet.options(id="greeting-1")("world")
            ...     assert first.id == again.id == "greeting-1"
            ...     return await again
            >>> dasync.run(main)
            'hello world'
        """
        was = self.configured
        configured = Options(
            id=was.id if id is None else ids.check_root(id),
            on=was.on if on is None else protocol.check_target(on),
            timeout_s=was.timeout_s if timeout is None else seconds(timeout, "timeout"),
            version=was.version if version is None else version,
            tags=was.tags if tags is None else _check_tags(tags),
        )
        copy = object.__new__(type(self))
        copy.__dict__.update(self.__dict__)
        copy.configured = configured
        copy.version = configured.version if configured.version is not None else self.version
        return copy

    def bind(self, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        """Raise the `TypeError` that calling the function so would raise."""
        if self._signature is None or (not kwargs and self._plain is not None and len(args) in self._plain):
            return
        try:
            self._signature.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{self.name}(): {error}") from None

    @property
    def shape(self) -> codec.CallShape:
        """How its calls are encoded. Annotations are read at the first use, when all that they name exists."""
        if self._shape is None:
            hints, parameters = _hints(self.fn), self._signature.parameters.values() if self._signature else ()
            variable = {p.kind: hints.get(p.name, object) for p in parameters}
            self._shape = codec.CallShape(
                tuple(
                    (p.name, hints.get(p.name, object))
                    for p in parameters
                    if p.kind not in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
                ),
                variable.get(inspect.Parameter.VAR_POSITIONAL, object),
                variable.get(inspect.Parameter.VAR_KEYWORD, object),
            )
            self._result = hints.get("return", object)
        return self._shape

    @property
    def result(self) -> object:
        """The annotation of what it returns."""
        _ = self.shape
        return self._result


def here() -> Branch | None:
    """The branch from which an invocation is made now; None outside executions. Raises `NoEventLoop`."""
    try:
        at = branch.current()
    except RuntimeError:
        raise NoEventLoop(
            "a dasync function was invoked outside asyncio: invoke it in a coroutine, under dasync.run(main) or"
            " `async with dasync.EventLoop(...)`; its body as written is f.fn"
        ) from None
    if at is None and branch.inside.get():
        raise NoEventLoop(
            "a dasync function was invoked from a bare callback inside an execution (call_soon, a done callback):"
            " such a call has no place in the program; invoke it in the function or in an asyncio task made there"
        )
    return at


def caller(at: Branch) -> Caller:
    """The execution that a branch belongs to."""
    return cast(Caller, at.owner)


_hosts: dict[asyncio.AbstractEventLoop, list[Host]] = {}


def host() -> Host:
    """The EventLoop that is open on the running asyncio loop. Raises `NoEventLoop`."""
    open_here = _hosts.get(asyncio.get_running_loop(), [])
    if not open_here:
        raise NoEventLoop(
            "no dasync EventLoop is open on this asyncio loop: use `async with dasync.EventLoop(\"orders.db\"):`"
            " around the call, or dasync.run(main)"
        )
    if len(open_here) > 1:
        raise NoEventLoop(f"{len(open_here)} EventLoops are open here: say which one, with loop.invoke(f, ...)")
    return open_here[0]


def open_host(host: Host) -> None:
    """Invocations outside executions go to `host` from now on."""
    _hosts.setdefault(asyncio.get_running_loop(), []).append(host)


def close_host(host: Host) -> None:
    """Undo `open_host`."""
    for loop, open_there in list(_hosts.items()):
        if host in open_there:
            open_there.remove(host)
            if not open_there:
                del _hosts[loop]


def invoke(f: Function[P, R], *args: P.args, **kwargs: P.kwargs) -> Promise[R]:
    """`f(*args, **kwargs)`, spelled out."""
    if not isinstance(f, Function):
        raise TypeError(f"invoke takes a durable function, made by @dasync.function, not {f!r}")
    return f(*args, **kwargs)


# -- the registry ------------------------------------------------------------------------------------------

_functions: dict[tuple[str, int], Function[..., object]] = {}
_conflicts: dict[tuple[str, int], str] = {}
_errors: dict[str, type[BaseException]] = {}


def registered() -> Mapping[tuple[str, int], Function[..., object]]:
    """Every function of this process that has a body, by name and version. Raises ValueError for a conflict."""
    for conflict in _conflicts.values():
        raise ValueError(conflict)
    return _functions


def lookup(name: str, version: int) -> Function[..., object]:
    """The function of that name and version. Raises `FunctionNotFound`."""
    found = _functions.get((name, version))
    if found is None:
        versions = sorted(v for n, v in _functions if n == name)
        known = f"versions here: {versions}" if versions else "no function of that name is imported here"
        raise FunctionNotFound(f"function {name!r} version {version} is not registered in this process ({known})")
    return found


def _register(made: Function[..., object]) -> None:
    key = (made.name, made.version)
    there = _functions.get(key)
    if there is not None and _origin(there) != _origin(made):
        _conflicts[key] = (
            f"two functions are registered as {made.name!r} version {made.version}: {_where(there)} and {_where(made)};"
            " give one of them another name="
        )
    else:
        _conflicts.pop(key, None)
    _functions[key] = made


def _origin(function: Function[..., object]) -> tuple[str, str]:
    """What makes a redefinition the same function: a reload and a second import of __main__ keep it."""
    return (_file(function), function.__qualname__)


def _file(function: Function[..., object]) -> str:
    code = getattr(function.fn, "__code__", None)
    return code.co_filename if code is not None else function.__module__


def _where(function: Function[..., object]) -> str:
    return f"{function.__qualname__} in {_file(function)}"


def error(cls: E) -> E:
    """Let an exception class keep its type across processes. Use it as a decorator.

    Example:
        >>> import dasync
        >>> @dasync.error
        ... class OutOfStock(Exception):
        ...     pass
    """
    if not (isinstance(cls, type) and issubclass(cls, BaseException)):
        raise TypeError(f"@dasync.error takes an exception class, not {cls!r}")
    if failure.is_signal(cls):
        raise TypeError(
            f"@dasync.error: {cls.__qualname__} ends or redirects the code that meets it (as KeyboardInterrupt,"
            " CancelledError and StopIteration do); what awaits a promise gets errors only: derive it from Exception"
        )
    _errors[failure.error_name(cls)] = cls
    return cls


def error_classes() -> Mapping[str, type[BaseException]]:
    """The classes that errors may come back as: the registered ones, and those of modules with functions."""
    classes: dict[str, type[BaseException]] = {}
    for module in {function.__module__ for function in _functions.values()}:
        for thing in vars(sys.modules.get(module, object)).values():
            if isinstance(thing, type) and issubclass(thing, BaseException):
                classes[failure.error_name(thing)] = thing
    return classes | _errors


# -- declaring ---------------------------------------------------------------------------------------------


@overload
def function(fn: Callable[P, Coroutine[object, object, R]], /) -> Function[P, R]: ...
@overload
def function(
    *, name: str | None = None, version: int = 1, on: str | None = None, timeout: Seconds | None = None
) -> Callable[[Callable[P, Coroutine[object, object, R]]], Function[P, R]]: ...
def function(
    fn: Callable[P, Coroutine[object, object, R]] | None = None,
    /,
    *,
    name: str | None = None,
    version: int = 1,
    on: str | None = None,
    timeout: Seconds | None = None,
) -> Function[P, R] | Callable[[Callable[P, Coroutine[object, object, R]]], Function[P, R]]:
    """Make an `async def` durable: `f(x)` invokes it and gives a promise.

    `name` (default: the function's own) and `version` identify it in the store; `on` names the group that runs it
    (default: this process); `timeout` is in seconds (default: none).

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

    def make(fn: Callable[P, Coroutine[object, object, R]]) -> Function[P, R]:
        if not inspect.iscoroutinefunction(fn):
            raise TypeError(f"@dasync.function takes an async def, not {fn!r}")
        made: Function[P, R] = _declare(fn, name or fn.__name__, version, on, timeout, declared=False)
        _register(cast("Function[..., object]", made))
        return made

    return make if fn is None else make(fn)


@overload
def remote(
    name: str, /, *, on: str, version: int = 1, timeout: Seconds | None = None
) -> Function[..., typing.Any]: ...  # the untyped fallback: nothing is known of what it takes and gives
@overload
def remote(
    *, on: str, name: str | None = None, version: int = 1, timeout: Seconds | None = None
) -> Callable[[Callable[P, Coroutine[object, object, R]]], Function[P, R]]: ...
def remote(
    fn_name: str | None = None,
    /,
    *,
    on: str,
    name: str | None = None,
    version: int = 1,
    timeout: Seconds | None = None,
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
    if fn_name is not None:
        return _declare(None, fn_name, version, on, timeout, declared=True)

    def make(fn: Callable[P, Coroutine[object, object, R]]) -> Function[P, R]:
        return _declare(fn, name or fn.__name__, version, on, timeout, declared=True)

    return make


def _declare(
    fn: Callable[P, Coroutine[object, object, R]] | None,
    name: str,
    version: int,
    on: str | None,
    timeout: Seconds | None,
    *,
    declared: bool,
) -> Function[P, R]:
    if not 1 <= len(name) <= protocol.MAX_NAME_CHARS or not name.isprintable():
        raise ValueError(f"a function's name is 1 to {protocol.MAX_NAME_CHARS} printable characters, not {name!r}")
    if isinstance(version, bool) or not isinstance(version, int) or not 0 <= version < 2**31:
        raise ValueError(f"{name}: version is an int from 0 to {2**31 - 1}, not {version!r}")
    configured = Options(
        on=None if on is None else protocol.check_target(on),
        timeout_s=None if timeout is None else seconds(timeout, f"{name}: timeout"),
    )
    return Function(fn, name=name, version=version, options=replace(configured), declared=declared)


def _check_tags(tags: Mapping[str, str]) -> dict[str, str]:
    if len(tags) > MAX_TAGS:
        raise ValueError(f"a promise has at most {MAX_TAGS} tags, not {len(tags)}")
    for key, value in tags.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise TypeError(f"tags map str to str; {key!r}: {value!r} does not")
        if len(key) > protocol.MAX_NAME_CHARS or len(value) > protocol.MAX_NAME_CHARS:
            raise ValueError(f"tag {key[:40]!r}: at most {protocol.MAX_NAME_CHARS} characters of key and of value")
    return dict(tags)


def _positional_only_count(signature: inspect.Signature | None) -> range | None:
    """How many positional arguments fit without looking further; None: look."""
    if signature is None:
        return None
    parameters = list(signature.parameters.values())
    if any(p.kind is not inspect.Parameter.POSITIONAL_OR_KEYWORD for p in parameters):
        return None
    needed = sum(p.default is inspect.Parameter.empty for p in parameters)
    return range(needed, len(parameters) + 1)


def _hints(fn: Callable[..., object] | None) -> dict[str, object]:
    """Its annotations, evaluated; one that names what does not exist is an error with the function's name.

    In a function that is local to another one, names of that other one are known only where the body uses them too;
    an annotation with others stays a string: it declares nothing, and the error for a value that needed it says so.
    """
    if fn is None:
        return {}
    if "<locals>" not in fn.__qualname__:
        try:
            return typing.get_type_hints(fn, include_extras=True)
        except NameError as error:
            raise TypeError(f"{fn.__qualname__}: cannot read its annotations: {error}") from error
    hints: dict[str, object] = {}
    cells = getattr(fn, "__closure__", None) or ()
    names = getattr(getattr(fn, "__code__", None), "co_freevars", ())
    local = {name: cell.cell_contents for name, cell in zip(names, cells, strict=True) if _is_full(cell)}
    for name, hint in getattr(fn, "__annotations__", {}).items():
        one = SimpleNamespace(__annotations__={name: hint})
        try:
            hints |= typing.get_type_hints(one, getattr(fn, "__globals__", {}), local, include_extras=True)
        except NameError:
            hints[name] = hint
    return hints


def _is_full(cell: CellType) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:  # what it will hold is not made yet
        return False
