"""Values to bytes and back by their annotations, with the path to whatever cannot be stored.

A function receives `decode(encode(x))`, its first run included; the helpers for the hot path, `CallShape` and
`encode_result`, give those copies along with the bytes. Plain values (see `wire`) travel as they are, whatever the
annotation says, as in Python. Classes travel only where an annotation declares them: `shape` lowers them to plain
values and lifts them again.

It refuses to write what it could not read back: every encoding but that of flat primitives is decoded at once. It
decides nothing about time-outs, versions or who may read.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Generator, ItemsView, Iterator, KeysView, Mapping, ValuesView
from enum import Enum
from operator import itemgetter
from pathlib import PurePath
from reprlib import Repr
from typing import ForwardRef, NoReturn, get_args, get_origin, is_typeddict

from dasync.core.form import Shape
from dasync.core.hints import at_place, hints_of, is_union, peel, places
from dasync.core.shape import shape_of
from dasync.core.wire import DEPTH_MAX, PRIMITIVES, dumps, loads, pack_primitives, reason
from dasync.errors import DecodeError, PayloadTooLarge, UnserializableValue

_REFUSED = (TypeError, ValueError, OverflowError)  # what packing primitives raises: 2**64, a lone surrogate
_KEYS = Repr()
_KEYS.maxstring = _KEYS.maxother = _KEYS.maxlong = 80
_REMEDY = "pass plain data, or what is needed to make it again"
_REMEDIES: dict[type, str] = {
    bytearray: "pass bytes(...)",
    memoryview: "pass bytes(...)",
    deque: "pass list(...)",
    range: "pass list(...)",
    Generator: "pass list(...)",
    KeysView: "pass list(...)",
    ValuesView: "pass list(...)",
    ItemsView: "pass list(...)",
    PurePath: "pass str(...)",
    type: "pass its name",
}
_BASES = frozenset((int, float, str, bytes, list, tuple, dict, set, frozenset))


def encode(value: object, annotation: object = object, *, path: str = "value", limit: int | None = None) -> bytes:
    """`value` as bytes that `decode` with the same annotation takes.

    Raises `UnserializableValue`, naming the path to the part that cannot be stored, and `PayloadTooLarge` above
    `limit` bytes.
    """
    return _encode(value, annotation, path, limit)[0]


def decode(data: bytes, annotation: object = object, *, strict: bool = False) -> object:
    """The value that `data` holds. Raises `DecodeError` for anything that is not one of the annotation's.

    Plain values are checked only when `strict`: what a person typed is; what code gives is not, as in Python.
    """
    return _lift(shape_of(annotation), loads(data), strict=strict)


def encode_result(value: object, annotation: object, limit: int | None) -> tuple[bytes, object]:
    """The bytes of a function's result, and the copy of it that its awaiters are to receive."""
    return _encode(value, annotation, "result", limit)


class CallShape:
    """How one function's arguments are written; made once per function from its resolved annotations.

    The form of a call is the list of its arguments, or, where it has keyword arguments, the map of `args` and
    `kwargs`, these sorted by name: the same call gives the same bytes.
    """

    __slots__ = ("_annotations", "_named", "_plain", "_positional", "_var_keyword", "_var_positional")

    def __init__(
        self, params: tuple[tuple[str, object], ...], var_positional: object = object, var_keyword: object = object
    ) -> None:
        self._annotations = (params, var_positional, var_keyword)
        self._positional = tuple(shape_of(annotation) for _, annotation in params)
        self._named = {name: shape for (name, _), shape in zip(params, self._positional, strict=True)}
        self._var_positional = shape_of(var_positional)
        self._var_keyword = shape_of(var_keyword)
        self._plain = all(shape.plain for shape in (*self._positional, self._var_positional, self._var_keyword))

    def __repr__(self) -> str:
        return f"CallShape{self._annotations!r}"

    def encode(
        self, args: tuple[object, ...], kwargs: dict[str, object], limit: int | None
    ) -> tuple[bytes, tuple[object, ...], dict[str, object]]:
        """The bytes of a call, and the arguments that the function is to receive. Raises as `encode` does."""
        if self._plain and not kwargs and PRIMITIVES.issuperset(map(type, args)):
            try:
                data = pack_primitives(args)
            except _REFUSED:
                pass
            else:
                if limit is None or len(data) <= limit:
                    return data, args, kwargs
        return self._encode(args, kwargs, limit)

    def decode(self, data: bytes) -> tuple[tuple[object, ...], dict[str, object]]:
        """The arguments of the call that `data` holds. Raises `DecodeError`."""
        form = loads(data)
        if type(form) is list:
            args, kwargs = form, {}
        elif type(form) is dict and form.keys() == {"args", "kwargs"}:
            args, kwargs = form["args"], form["kwargs"]
        else:
            raise DecodeError("the stored bytes are not the arguments of a call")
        if type(args) is not list or type(kwargs) is not dict or not all(type(name) is str for name in kwargs):
            raise DecodeError("the stored bytes are not the arguments of a call")
        if self._plain:
            return tuple(args), kwargs
        return (
            tuple(_lift(self._at(index), arg) for index, arg in enumerate(args)),
            {name: _lift(self._of(name), arg) for name, arg in kwargs.items()},
        )

    def _encode(
        self, args: tuple[object, ...], kwargs: dict[str, object], limit: int | None
    ) -> tuple[bytes, tuple[object, ...], dict[str, object]]:
        if len(kwargs) > 1:
            kwargs = dict(sorted(kwargs.items(), key=itemgetter(0)))
        try:
            if self._plain:
                lowered, named = list(args), kwargs
            else:
                lowered = [self._at(index).lower(arg) for index, arg in enumerate(args)]
                named = {name: self._of(name).lower(arg) for name, arg in kwargs.items()}
            data = dumps({"args": lowered, "kwargs": named} if kwargs else lowered)
            if limit is None or len(data) <= limit:
                if self._plain and PRIMITIVES.issuperset(map(type, (*args, *kwargs.values()))):
                    return data, args, kwargs
                return data, *self.decode(data)
        except Exception as error:
            for path, arg, annotation in self._arguments(args, kwargs):
                if failure := _failure(arg, annotation):
                    _refuse(arg, annotation, path, failure)
            _refuse(args, object, "args", error)
        raise _too_large("the call's arguments", data, limit, self._sizes(args, kwargs))

    def _at(self, index: int) -> Shape:
        return self._positional[index] if index < len(self._positional) else self._var_positional

    def _of(self, name: str) -> Shape:
        return self._named.get(name, self._var_keyword)

    def _arguments(
        self, args: tuple[object, ...], kwargs: Mapping[str, object]
    ) -> Iterator[tuple[str, object, object]]:
        params, rest, options = self._annotations
        named = dict(params)
        for index, arg in enumerate(args):
            yield f"args[{index}]", arg, params[index][1] if index < len(params) else rest
        for name, arg in kwargs.items():
            yield f"kwargs[{name!r}]", arg, named.get(name, options)

    def _sizes(self, args: tuple[object, ...], kwargs: Mapping[str, object]) -> str:
        sizes = ((len(encode(arg, annotation)), path) for path, arg, annotation in self._arguments(args, kwargs))
        size, path = max(sizes)
        return f", {size} of them in {path}"


def _encode(value: object, annotation: object, path: str, limit: int | None) -> tuple[bytes, object]:
    shape = shape_of(annotation)
    if shape.plain and type(value) in PRIMITIVES:
        try:
            data = pack_primitives(value)
        except _REFUSED:
            pass
        else:
            if limit is None or len(data) <= limit:
                return data, value
    try:
        data = dumps(shape.lower(value))
        if limit is None or len(data) <= limit:
            return data, _lift(shape, loads(data))
    except Exception as error:
        _refuse(value, annotation, path, error)
    raise _too_large(path, data, limit)


def _lift(shape: Shape, plain: object, *, strict: bool = False) -> object:
    if shape.plain and not strict:
        return plain
    try:
        return shape.lift(plain)
    except Exception as error:  # a class's own __post_init__ or validator runs here
        raise DecodeError(f"the stored value does not fit its annotation: {reason(error)}") from error


def _too_large(path: str, data: bytes, limit: int | None, detail: str = "") -> PayloadTooLarge:
    return PayloadTooLarge(
        f"{path}: {len(data)} bytes when encoded{detail}, more than the limit of {limit}; "
        "raise max_payload=, or pass a reference (a file name, a key) in its place"
    )


def _failure(value: object, annotation: object, strict: bool = False) -> Exception | None:
    """Why `value` cannot make the round trip, if it cannot. Inside a class even plain annotations are checked."""
    shape = shape_of(annotation)
    try:
        plain = loads(dumps(shape.lower(value)))
        if strict or not shape.plain:
            shape.lift(plain)
    except Exception as error:
        return error
    return None


def _refuse(value: object, annotation: object, path: str, failure: Exception) -> NoReturn:
    """Raise `UnserializableValue` for the innermost part that fails by itself. Slow; for the error's path only."""
    here, cause = path, failure
    strict = not shape_of(annotation).plain
    unread = annotation if isinstance(annotation, (str, ForwardRef)) else None
    for _ in range(DEPTH_MAX):
        for suffix, part, part_annotation in _parts(value, annotation):
            if why := _failure(part, part_annotation, strict):
                value, annotation, here, cause = part, unread or part_annotation, here + suffix, why
                break
        else:
            break
    else:  # a circle, or so deep that no one part is to blame
        raise UnserializableValue(f"{path} is nested deeper than {DEPTH_MAX} levels, or contains itself") from failure
    raise UnserializableValue(f"{here} {_diagnosis(value, annotation, cause)}") from cause


def _diagnosis(value: object, annotation: object, cause: Exception) -> str:
    """What the value is, why it cannot be stored, and what to do about it."""
    kind = type(value)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    if isinstance(value, Awaitable):
        return f"is a {name}, which is still to be awaited: did you forget `await`?"
    if isinstance(cause, UnicodeEncodeError):
        return "is a str with a lone surrogate, which is not text: pass bytes, or clean it first"
    plain_base = next((base for base in kind.__mro__[1:] if base in _BASES), None)
    if shape_of(annotation).plain:
        if not shape_of(kind).plain:
            return f"is a {name}, which no annotation declares: {_how_to_declare(kind, annotation)}"
        if plain_base is not None:
            return f"is a {name}, a subclass of {plain_base.__name__} that would come back as its base: convert it"
        if kind in PRIMITIVES:
            return f"is a {name}, which its annotation does not allow: {reason(cause)}"
    elif isinstance(value, Enum) and kind is peel(annotation):
        return f"is a {name}, whose value cannot be stored ({reason(cause)}): give its members plain values"
    remedy = next((say for base, say in _REMEDIES.items() if isinstance(value, base)), _REMEDY)
    return f"is a {name}, which cannot be stored ({reason(cause)}): {remedy}"


def _how_to_declare(kind: type, annotation: object) -> str:
    if isinstance(annotation, (str, ForwardRef)):
        text = annotation if isinstance(annotation, str) else annotation.__forward_arg__
        return (
            f"its annotation {text!r:.80} names what cannot be found from here; define {kind.__qualname__} at the top"
            " of the module, or import it there without `if TYPE_CHECKING`"
        )
    return "annotate the parameter, or the result, with its class"


def _parts(value: object, annotation: object) -> Iterator[tuple[str, object, object]]:
    """The parts of a value one level down, as (path from here, part, annotation). For messages only."""
    annotation = peel(annotation)
    if is_union(annotation):
        members = [member for member in get_args(annotation) if shape_of(member).accepts(value)]
        annotation = peel(members[0]) if members else object
    arguments = get_args(annotation)
    if isinstance(value, dict) and not is_typeddict(get_origin(annotation) or annotation):
        key_type, value_type = arguments if len(arguments) == 2 else (object, object)
        yield from ((f".keys()[{index}]", key, key_type) for index, key in enumerate(value))
        yield from ((f"[{_brief(key)}]", part, value_type) for key, part in value.items())
    elif isinstance(value, dict):
        hints = hints_of(annotation)
        yield from ((f"[{_brief(key)}]", part, hints.get(key, object)) for key, part in value.items())
    elif isinstance(value, (set, frozenset)):
        yield from (("{...}", part, arguments[0] if arguments else object) for part in value)
    elif isinstance(value, tuple) and hasattr(value, "_fields"):
        hints = hints_of(annotation)
        yield from ((f".{name}", getattr(value, name), hints.get(name, object)) for name in value._fields)
    elif isinstance(value, (list, tuple)):
        found = places(arguments if get_origin(annotation) is tuple else (*(arguments or (object,))[:1], Ellipsis))
        yield from ((f"[{i}]", part, at_place(found, i, len(value))) for i, part in enumerate(value))
    elif not shape_of(annotation).plain and not isinstance(value, Enum):
        hints = hints_of(annotation)
        yield from ((f".{name}", getattr(value, name), hints[name]) for name in hints if hasattr(value, name))


def _brief(key: object) -> str:
    """A key in a path; Python refuses to print an int of more than 4300 digits, and users' classes what they like."""
    try:
        return f"{_KEYS.repr(key):.80}"
    except Exception:
        return f"<{type(key).__qualname__}>"
