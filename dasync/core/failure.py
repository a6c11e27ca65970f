"""Errors to bytes and back: type, args, attributes, notes, cause, group members, and the traceback as text.

A builtin error, one of dasync's own and one whose class is in the registry come back as what they were; every other
comes back as a `RemoteError` that tells its name, text and traceback. No `__init__`, `__new__` or `__setattr__` of a
user's class is called: args and attributes are put back as they were.

It refuses to look a class up anywhere else than in builtins, dasync.errors and the registry. Signals
(KeyboardInterrupt, CancelledError, dasync's own) become RemoteErrors, whoever registered them. What cannot be stored
is left out: an arg is replaced by its repr, an attribute dropped. What is too large is cut: the traceback first, then
the texts, then causes and members.
"""

from __future__ import annotations

import builtins
from collections.abc import Mapping
from dataclasses import dataclass
from traceback import StackSummary, TracebackException
from types import MemberDescriptorType
from typing import Final, TypeVar

from dasync import errors
from dasync.core.codec import decode, encode
from dasync.errors import DecodeError, PayloadTooLarge, RemoteError, UnserializableValue

CHAIN_MAX = 10  # errors in a chain of causes, and groups in groups
MEMBERS_MAX = 100  # of all groups in one error, and causes with them
TRACEBACK_MAX = 16_384  # characters
FRAMES_MAX = 64  # of one traceback, the innermost
NAME_MAX = 200  # characters of a class's name
_HOUSE = errors.__file__.removesuffix("errors.py")  # where dasync's own frames come from
REMOTE: Final = "Remote traceback:\n"  # how the note begins that a decoded error carries

Registry = Mapping[str, type[BaseException]]
T = TypeVar("T")

# State that C code keeps outside args and __dict__.
_C_STATE: dict[type[BaseException], tuple[str, ...]] = {
    OSError: ("filename", "filename2"),
    ImportError: ("name", "path"),
    NameError: ("name",),
    AttributeError: ("name",),
}
_FIELDS = {"type", "message", "args", "state", "notes", "suppress", "cause", "members", "traceback"}
# What ends or redirects the code that meets it: an error that somebody stored must not do that to its awaiter.
_SIGNALS = {
    *(f"builtins:{name}" for name in ("KeyboardInterrupt", "SystemExit", "GeneratorExit", "StopIteration")),
    *(f"dasync.errors:{name}" for name in ("Suspended", "LeaseLost", "InvariantViolated")),
    "asyncio.exceptions:CancelledError",
}
_ARGS = vars(BaseException)["args"]
_put = BaseException.__setattr__  # not the class's own: that of a frozen dataclass refuses
_OWN: Registry = {
    f"{cls.__module__}:{cls.__qualname__}": cls
    for module in (builtins, errors)
    for cls in vars(module).values()
    if isinstance(cls, type) and issubclass(cls, (Exception, BaseExceptionGroup))
    if not issubclass(cls, StopIteration)
}


def error_name(cls: type[BaseException]) -> str:
    """The name under which an error's class is stored and registered: `module:qualname`."""
    return f"{cls.__module__}:{cls.__qualname__}"


def is_signal(cls: type[BaseException]) -> bool:
    """Whether it is a signal, which comes back as a `RemoteError` even where its class is registered."""
    return not _SIGNALS.isdisjoint(f"{kind.__module__}:{kind.__qualname__}" for kind in cls.__mro__)


def encode_error(error: BaseException, limit: int | None) -> bytes:
    """`error` in at most `limit` bytes; `PayloadTooLarge` only where its bare name does not fit."""
    text = _traceback_text(error)
    room = TRACEBACK_MAX if limit is None else min(limit, TRACEBACK_MAX)
    plans = (
        _Plan(traceback=TRACEBACK_MAX, text=None),
        _Plan(traceback=room // 4, text=None),
        _Plan(traceback=room // 8, text=room // 16),
        _Plan(traceback=room // 8, text=room // 8, deep=False),
        _Plan(traceback=0, text=room // 32, deep=False, args=False),
    )
    for plan in plans:
        try:
            record = _record(error, plan, _Budget(MEMBERS_MAX, set()), 0)
            return encode({**record, "traceback": _cut(text, plan.traceback)}, path="error", limit=limit)
        except (PayloadTooLarge, UnserializableValue):
            continue
    return encode({"type": _name(error), "message": ""}, path="error", limit=limit)


def decode_error(data: bytes, registry: Registry) -> BaseException:
    """The error that `data` holds, its traceback in a note. Raises `DecodeError` for anything else."""
    record = decode(data)
    error = _error(record, registry, 0)
    traceback = _field(record, "traceback", str, "")
    if traceback:
        _add_note(error, REMOTE + traceback)
    return error


def alike(one: bytes, other: bytes) -> bool:
    """Whether two stored errors are the same but for their tracebacks, which differ from run to run."""
    records = [decode(data) for data in (one, other)]
    first, second = ({**record, "traceback": ""} if isinstance(record, dict) else record for record in records)
    return first == second


@dataclass(frozen=True, slots=True)
class _Plan:
    """How much of an error is kept: characters of its traceback and of each text, causes and members, args."""

    traceback: int
    text: int | None
    deep: bool = True
    args: bool = True


@dataclass(slots=True)
class _Budget:
    """What is left for a whole tree of errors, and those that are in it already: a chain may be a circle."""

    errors: int
    seen: set[int]


def _record(error: BaseException, plan: _Plan, budget: _Budget, depth: int) -> dict[str, object]:
    budget.errors -= 1
    budget.seen.add(id(error))
    record: dict[str, object] = {"type": _name(error), "message": _cut(_text(error), plan.text)}
    args = _args(error)
    kept: list[dict[str, object]] = []
    if isinstance(error, BaseExceptionGroup):
        args = (error.message,)
        members = [e for e in error.exceptions if id(e) not in budget.seen] if plan.deep and depth < CHAIN_MAX else []
        kept = [_record(e, plan, budget, depth + 1) for e in members if budget.errors > 0]
        record["members"] = kept
    notes = [_cut(_clean(str(note)), plan.text) for note in _notes(error) if not str(note).startswith(REMOTE)]
    if isinstance(error, BaseExceptionGroup) and len(kept) < len(error.exceptions):
        notes.append(f"{len(error.exceptions) - len(kept)} more errors of this group were left out")
    if plan.args:
        record["args"] = [_plain(arg, plan.text) for arg in args]
        if state := _state(error, plan.text):
            record["state"] = state
        if notes:
            record["notes"] = notes
    if error.__suppress_context__:
        record["suppress"] = True
    cause = error.__cause__
    if cause is not None and plan.deep and depth < CHAIN_MAX and budget.errors > 0 and id(cause) not in budget.seen:
        record["cause"] = _record(cause, plan, budget, depth + 1)
    return record


def _args(error: BaseException) -> tuple[object, ...]:
    args: tuple[object, ...] = _ARGS.__get__(error)  # a class may mean something else by the name
    if isinstance(error, UnicodeError):  # its position must stay what it is, so not by the repr of its text
        args = tuple(arg.encode("utf-8", "replace").decode() if isinstance(arg, str) else arg for arg in args)
    return args


def _state(error: BaseException, room: int | None) -> dict[str, object]:
    """The attributes that can be stored."""
    found = {name: value for name, value in vars(error).items() if not name.startswith("__")}
    of_c = _kept_in_c(type(error))
    for name in sorted(of_c | _slots(type(error))):  # the same bytes whatever the hash seed
        value: object = getattr(error, name, None)
        if value is not None:
            found[name] = str(value) if name in of_c and hasattr(value, "__fspath__") else value
    cut = {name: _cut(value, room) if type(value) is str else value for name, value in found.items()}
    return {name: value for name, value in cut.items() if _fits(name, None) and _fits(value, room)}


def _kept_in_c(cls: type) -> set[str]:
    return {name for kind, names in _C_STATE.items() if issubclass(cls, kind) for name in names}


def _slots(cls: type) -> set[str]:
    """The attributes of user-defined classes that are kept in slots."""
    own = (kind for kind in cls.__mro__ if kind.__module__ != "builtins")
    return {name for kind in own for name, slot in vars(kind).items() if isinstance(slot, MemberDescriptorType)}


def _plain(arg: object, room: int | None) -> object:
    cut = _cut(arg, room) if type(arg) is str else arg
    return cut if _fits(cut, room) else _cut(_clean(_repr(arg)), room)


def _fits(value: object, room: int | None) -> bool:
    try:
        encode(value, limit=None if room is None else 4 * room + 8)  # UTF-8 takes up to 4 bytes a character
    except (UnserializableValue, PayloadTooLarge):
        return False
    return True


def _error(record: object, registry: Registry, depth: int) -> BaseException:
    if not isinstance(record, dict) or not record.keys() <= _FIELDS or depth > CHAIN_MAX:
        raise DecodeError("the stored bytes are not an error")
    name, message = _field(record, "type", str, None), _field(record, "message", str, "")
    args = tuple(_field(record, "args", list, [message]))
    members = [_error(member, registry, depth + 1) for member in _field(record, "members", list, [])]
    state = _field(record, "state", dict, {})
    error: BaseException | None = None
    cls = _class_of(name, registry)
    if cls is not None:
        error = _rebuilt(cls, (*args[:1], members) if issubclass(cls, BaseExceptionGroup) else args, state)
    if error is None:
        error = RemoteError(name, message, _field(record, "traceback", str, ""))
    for note in _field(record, "notes", list, []):
        if not isinstance(note, str):
            raise DecodeError("the stored error has a note that is no text")
        _add_note(error, note)
    if "cause" in record:
        _put(error, "__cause__", _error(record["cause"], registry, depth + 1))
    _put(error, "__suppress_context__", _field(record, "suppress", bool, False))
    return error


def _rebuilt(cls: type[BaseException], args: tuple[object, ...], state: dict[object, object]) -> BaseException | None:
    """An instance made by the builtin that `cls` descends from; None where what was stored does not suffice."""
    base: type[BaseException] = next(kind for kind in cls.__mro__ if kind.__module__ == "builtins")
    try:
        error = base.__new__(cls, *args)
        base.__init__(error, *args)
    except Exception:  # args replaced by their repr, or not written by dasync
        return None
    if not isinstance(error, BaseExceptionGroup):
        _ARGS.__set__(error, args)
    kept_apart = _kept_in_c(cls) | _slots(cls)
    for name, value in state.items():
        if not isinstance(name, str) or name.startswith("__"):
            raise DecodeError("the stored error has an attribute that errors do not have")
        if name in kept_apart:
            _put(error, name, value)
        else:
            vars(error)[name] = value
    try:
        str(error)
    except Exception:  # it needs an attribute that could not be stored
        return None
    return error


def _class_of(name: str, registry: Registry) -> type[BaseException] | None:
    """By its name; a module run as a program is `__main__` there and has its own name elsewhere."""
    found = _OWN.get(name) or registry.get(name)
    if found is not None:
        return None if is_signal(found) else found
    module, _, qualname = name.partition(":")
    alike = {
        cls
        for known, cls in registry.items()
        if known.partition(":")[2] == qualname and (module == "__main__" or known.startswith("__main__:"))
        if not is_signal(cls)
    }
    return alike.pop() if len(alike) == 1 else None


def _field(record: object, name: str, kind: type[T], default: T | None) -> T:
    value = record.get(name, default) if isinstance(record, dict) else None
    if not isinstance(value, kind):
        raise DecodeError(f"the stored error has no valid {name!r}")
    return value


def _traceback_text(error: BaseException) -> str:
    """The traceback as Python prints it, after those of the processes that the error came through.

    Empty where nobody raised it: an error that was given by hand comes from nowhere.
    """
    earlier = [str(note)[len(REMOTE) :] for note in _notes(error) if str(note).startswith(REMOTE)]
    try:
        local = TracebackException.from_exception(error, limit=-FRAMES_MAX)
        local.__notes__ = []
        if not (local.stack or local.__cause__ or local.__context__ or local.exceptions):
            return _clean("\n".join(earlier))
        theirs = [frame for frame in local.stack if not frame.filename.startswith(_HOUSE)]
        if theirs:  # where their code went wrong; how dasync called it says nothing to them
            local.stack = StackSummary.from_list(theirs)
        elif earlier and not (local.__cause__ or local.__context__ or local.exceptions):
            return _clean("\n".join(earlier))
        text = "".join(local.format())
    except Exception as failure:  # a user's __str__ or __repr__, a source that cannot be read
        text = f"<the traceback could not be formatted: {type(failure).__name__}>"
    return _clean("\n".join((*earlier, text)))


def _notes(error: BaseException) -> list[object]:
    notes = getattr(error, "__notes__", None)
    return list(notes) if isinstance(notes, (list, tuple)) else []


def _add_note(error: BaseException, note: str) -> None:
    vars(error).setdefault("__notes__", []).append(note)  # `add_note` goes through the class's own __setattr__


def _name(error: BaseException) -> str:
    return _clean(error_name(type(error)))[:NAME_MAX]


def _text(error: BaseException) -> str:
    try:
        return _clean(str(error))
    except Exception:  # a user's __str__
        return "<its text could not be made>"


def _repr(value: object) -> str:
    try:
        return repr(value)
    except Exception:  # a user's __repr__
        return f"<{type(value).__qualname__}>"


def _clean(text: str) -> str:
    """Without lone surrogates, which file names bring along."""
    return text.encode("utf-8", "backslashreplace").decode()


def _cut(text: str, room: int | None) -> str:
    """At most `room` characters, from both ends: the outermost call and the innermost error."""
    if room is None or len(text) <= room:
        return text
    half = max(room - 5, 0) // 2
    return f"{text[:half]} ... {text[len(text) - half :]}" if half else ""
