"""The registry: names and versions to the functions of this process, and back; which exception classes travel.

It runs nothing. What is not in here is never looked up by a name that a payload holds.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import TypeVar

from dasync.core import failure
from dasync.errors import FunctionNotFound
from dasync.runtime.function import OWN_TAGS, Function
from dasync.runtime.policy import Retry

E = TypeVar("E", bound=type[BaseException])
R = TypeVar("R")
RETRY_TAG = f"{OWN_TAGS}retry"  # the policy that an invocation brings along to whoever runs it

_functions: dict[tuple[str, int], Function[..., object]] = {}
_conflicts: dict[tuple[str, int], str] = {}
_errors: dict[str, type[BaseException]] = {}
_runs: dict[tuple[str, int], object] = {}  # of its module when each was registered: a reload makes another spec


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


def register(made: Function[..., object]) -> None:
    key = (made.name, made.version)
    there = _functions.get(key)
    run = getattr(made.fn, "__globals__", {}).get("__spec__")
    if there is not None and (_origin(there) != _origin(made) or (run is _runs[key] and _hides(made, there))):
        _conflicts[key] = (
            f"two functions are registered as {made.name!r} version {made.version}: {_where(there)} and {_where(made)};"
            " give one of them another name="
        )
    else:
        _conflicts.pop(key, None)
    _functions[key], _runs[key] = made, run


def _hides(made: Function[..., object], there: Function[..., object]) -> bool:
    """Whether the one is written further down in the same run of the same file, where Python would keep both."""
    codes = [getattr(one.fn, "__code__", None) for one in (made, there)]
    if codes[0] is None or codes[1] is None or "<locals>" in codes[0].co_qualname:  # that is made anew by each call
        return False
    if codes[0].co_qualname != codes[1].co_qualname or codes[0].co_firstlineno == codes[1].co_firstlineno:
        return False
    return "__file__" in made.fn.__globals__ and made.fn.__globals__ is there.fn.__globals__


def _origin(function: Function[..., object]) -> tuple[str, str]:
    """What makes a redefinition the same function: a reload and a second import of __main__ keep it."""
    return (_file(function), function.__qualname__)


def _file(function: Function[..., object]) -> str:
    code = getattr(function.fn, "__code__", None)
    if code is None or "__file__" not in function.fn.__globals__:  # typed in: a notebook has a file for each cell
        return function.__module__
    return str(code.co_filename)


def _where(function: Function[..., object]) -> str:
    code = getattr(function.fn, "__code__", None)
    return f"{function.__qualname__} in {_file(function)}{'' if code is None else f':{code.co_firstlineno}'}"


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


def tags_of(function: Function[..., R]) -> str:
    """The tags of an invocation as they are stored, with the policy where it is not the function's own."""
    options, known = function.configured, _functions.get((function.name, function.version))
    tags = dict(options.tags or {})
    if options.retry is not None and (known is None or options.retry != known.configured.retry):
        tags[RETRY_TAG] = options.retry.text()
    return json.dumps(tags, sort_keys=True) if tags else ""


def policy_of(tags: str, function: Function[..., object]) -> Retry | None:
    """The policy under which an invocation with these tags runs; None: nothing was said."""
    brought = json.loads(tags).get(RETRY_TAG) if tags else None
    return function.configured.retry if brought is None else Retry.parse(brought)
