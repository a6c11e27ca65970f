"""`Function`: a plain function that can be invoked durably, and where its invocations go.

It checks its arguments at the call and hands the invocation to the running execution or, outside one, to the
EventLoop of the running asyncio loop. It runs nothing and is found by name elsewhere (`registry.py`).
"""

from __future__ import annotations

import asyncio
import inspect
import typing
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from datetime import timedelta
from types import CellType, SimpleNamespace
from typing import Generic, ParamSpec, Protocol, TypeVar, cast

from dasync.core import codec, ids, protocol
from dasync.errors import NoEventLoop
from dasync.runtime import branch
from dasync.runtime.branch import Branch
from dasync.runtime.policy import Retry
from dasync.runtime.promise import Promise

P = ParamSpec("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)
Seconds = float | timedelta
OWN_TAGS = "dasync."
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
    retry: Retry | None = None
    """None: as the EventLoop says."""
    detached: bool = False


# What the clock, or something outside, has decided is a child as well, under one of these names.
NOW, CUT, ALL, ANY, RACE = "dasync.now", "dasync.cut", "dasync.all", "dasync.any", "dasync.race"
SHARED = "dasync.shared"
WAIT, NEXT, PATCHED = "dasync.wait", "dasync.as_completed", "dasync.patched"
SLEEP, RETRY, ALARM = "dasync.sleep", "dasync.retry", "dasync.alarm"  # timers
DECISIONS = frozenset({NOW, CUT, SHARED, ALL, ANY, RACE, WAIT, NEXT, PATCHED})


class Alarm(Protocol):
    """A timer of an execution, as whoever has set it holds it."""

    def stop(self) -> None:
        """It is not needed any more."""


class Decision(Protocol):
    """What the clock decides once and a replay goes by."""

    @property
    def known(self) -> object:
        """What was decided in an earlier run; None: nothing yet."""

    def record(self, value: object) -> None:
        """It is decided now."""


class Host(Protocol):
    """An EventLoop, as the place where invocations from outside executions go. None of these suspends."""

    def invoke_function(
        self,
        function: Function[..., R],
        args: tuple[object, ...],
        kwargs: dict[str, object],
        *,
        id: str | None = None,
    ) -> Promise[R]:
        """Start a root, or under `id` a child that stands alone."""

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

    def decision(self, at: Branch, kind: str, among: int | None = None) -> Decision:
        """The next decision made there, among so many promises."""

    def patched(self, at: Branch, name: str) -> bool:
        """Whether it has come to that change of its code for the first time with the changed code."""

    def again(self, function: Function[..., object], args: tuple[object, ...], kwargs: dict[str, object]) -> object:
        """What this execution returns to start over with those arguments."""

    def cancel_child(self, promise: Promise[object]) -> None:
        """Cancel a promise, if it is a child of this execution."""

    def alarm(self, at: Branch, delay_s: float, ring: Callable[[], None]) -> Alarm:
        """Call `ring` after that time, in its turn."""


class Function(Generic[P, R_co]):
    """A function that can be invoked durably: calling it gives a `Promise`. Made by `function` and `remote`."""

    def __init__(
        self,
        fn: Callable[..., object] | None,
        *,
        name: str,
        version: int,
        options: Options,
        declared: bool = False,
        concurrency: int | None = None,
        process: bool = False,
    ) -> None:
        self.name = name
        self.version = version
        self.fn = cast("Callable[P, Coroutine[object, object, R_co]]", fn)
        """The function as written, for unit tests."""
        self.threaded = fn is not None and not inspect.iscoroutinefunction(fn)
        """It is no `async def`: it runs in a worker thread, or in a process of the pool."""
        self.direct = not self.threaded
        """It is awaited as it is, on the asyncio loop."""
        self.process = process
        """It runs in a process of the pool."""
        self.concurrency = concurrency
        """How many of its executions run at a time in one process; None: as many as there are."""
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

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Promise[R_co]:
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
        retry: Retry | None = None,
        detached: bool | None = None,
        version: int | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> Function[P, R_co]:
        """A copy that invokes with these options; what is not given stays as it is.

        `id` names a root promise: invoking it again with the same function, version and arguments gives the
        same promise. `on` is a group or `group/process`, `timeout` is in seconds, `tags` are found by `search`.
        A `detached` child runs as a task of its own: its parent neither waits for it nor ends it.

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
            retry=was.retry if retry is None else check_retry(retry),
            detached=was.detached if detached is None else detached,
        )
        return self.adopting(configured)

    def again(self, *args: P.args, **kwargs: P.kwargs) -> R_co:
        """Start over: `return f.again(...)` in `f` ends this run and begins the next one, with an empty history.

        The promise stays the same, with its id, deadline, tags and whoever awaits it; it gets the value of the run that
        returns one. What this run has made is waited for as at any end, and then removed from the store. What it has
        let go of (detached, or under an id) stays. A run that was canceled does not start over.

        Raises `TypeError` for wrong arguments and for another function than the one that runs, `RuntimeError` outside
        of a run of `f`.

        Example:
            >>> import dasync
            >>> @dasync.function
            ... async def halve(n: int) -> int:
            ...     return n // 2
            >>> @dasync.function
            ... async def steps(n: int, taken: int = 0) -> int:
            ...     if n <= 1:
            ...         return taken
            ...     return steps.again(await halve(n), taken + 1)
            >>> async def main() -> int:
            ...     return await steps(1_000_000)
            >>> dasync.run(main)
            19
        """
        try:
            at = here()
        except NoEventLoop:
            at = None
        if at is None:
            raise RuntimeError(
                f"{self.name}.again() was called outside of a run of {self.name!r}: in its body, `return"
                f" {self.name}.again(...)` starts it over; to invoke it, call it"
            )
        return cast("R_co", caller(at).again(cast("Function[..., object]", self), args, kwargs))

    def adopting(self, options: Options) -> Function[P, R_co]:
        """A copy that invokes with exactly these options."""
        copy = object.__new__(type(self))
        copy.__dict__.update(self.__dict__)
        copy.configured = options
        copy.version = options.version if options.version is not None else self.version
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
            hints, parameters = hints_of(self.fn), self._signature.parameters.values() if self._signature else ()
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
            if typing.get_origin(self._result) is Promise:  # it links: its result is that promise's
                (self._result,) = typing.get_args(self._result)
            elif self._result is Promise:
                self._result = object
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
        if (body := branch.body()) is not None:
            return body.branch
        if (confined := branch.confined()) is not None:
            raise NoEventLoop(
                f"{confined!r} runs in a process of the pool (process=True), where nothing durable can be invoked: let"
                " who invokes it invoke the rest too; or leave process=True out, and it runs in a thread, where it may"
            ) from None
        _check_no_handler()
        raise NoEventLoop(
            "a dasync function was invoked outside asyncio: invoke it in a coroutine, under dasync.run(main) or"
            " `async with dasync.EventLoop(...)`; its body as written is f.fn"
        ) from None
    if at is None:
        _check_no_handler()
    if at is None and branch.body() is not None:
        raise NoEventLoop(
            "a dasync function was invoked under asyncio.run in a function that is not `async def`: that asyncio loop"
            " of its own knows no promises; make the function `async def`, or invoke outside asyncio.run and wait()"
        )
    if at is None and branch.inside.get():
        raise NoEventLoop(
            "a dasync function was invoked from a bare callback inside an execution (call_soon, a done callback):"
            " such a call has no place in the program; invoke it in the function or in an asyncio task made there"
        )
    return at


def _check_no_handler() -> None:
    if name := branch.handler.get():
        raise NoEventLoop(
            f"the handler of {name!r} has invoked something durable: it runs for many executions at once and belongs to"
            f" none, so no replay would find that again; invoke it beside {name!r}, in the function that awaits that"
        )


def caller(at: Branch) -> Caller:
    """The execution that a branch belongs to, as it can be reached from this thread."""
    body = branch.body()
    return cast(Caller, at.owner if body is None else body.desk)


_hosts: dict[asyncio.AbstractEventLoop, list[Host]] = {}


def host() -> Host:
    """The EventLoop that is open on the running asyncio loop. Raises `NoEventLoop`."""
    open_here = _hosts.get(asyncio.get_running_loop(), [])
    if not open_here:
        raise NoEventLoop(
            "no dasync EventLoop is open on this asyncio loop: use `async with dasync.EventLoop(\"orders.db\"):`"
            " around the call, or dasync.run(main, store=\"orders.db\")"
        )
    if len(open_here) > 1:
        raise NoEventLoop(
            f"{len(open_here)} EventLoops are open here (dasync.run opens one): say which one, with loop.invoke(f, ...)"
        )
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


def check_retry(retry: Retry) -> Retry:
    if not isinstance(retry, Retry):
        raise TypeError(f"retry is a dasync.Retry, as Retry.exponential(attempts=5), not {retry!r}")
    return retry


def _check_tags(tags: Mapping[str, str]) -> dict[str, str]:
    if len(tags) > MAX_TAGS:
        raise ValueError(f"a promise has at most {MAX_TAGS} tags, not {len(tags)}")
    for key, value in tags.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise TypeError(f"tags map str to str; {key!r}: {value!r} does not")
        if key.startswith(OWN_TAGS):
            raise ValueError(f"tag {key!r}: those that begin with {OWN_TAGS!r} are dasync's own")
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


def hints_of(fn: Callable[..., object] | None) -> dict[str, object]:
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
