"""What annotations say by themselves: what stands under an alias, which fields a class declares, a tuple's places.

It reads annotations only; what they mean for a value is `shape`'s business. It refuses to guess: a name that does not
resolve declares nothing.
"""

from __future__ import annotations

import types
import typing
from typing import get_args, get_origin, get_type_hints

Places = tuple[tuple[object, ...], tuple[object, ...], tuple[object, ...]]
_UNBOUND = (None, type(None))  # what a TypeVar says that has no bound


def peel(annotation: object) -> object:
    """What stands under Annotated, NewType, Final, Required, ReadOnly, type aliases and type variables."""
    while True:
        origin = get_origin(annotation)
        if origin in _WRAPPERS:
            annotation = get_args(annotation)[0]
        elif hasattr(annotation, "__supertype__"):
            annotation = annotation.__supertype__
        elif isinstance(annotation, typing.TypeVar):
            annotation = _bound(annotation)
        elif type(origin).__name__ == "TypeAliasType":
            annotation = origin.__value__[get_args(annotation)]  # type: ignore[union-attr]  # an alias has it
        elif type(annotation).__name__ == "TypeAliasType":
            annotation = annotation.__value__  # type: ignore[attr-defined]  # likewise
        else:
            return annotation


def is_union(annotation: object) -> bool:
    return get_origin(annotation) in (typing.Union, types.UnionType)


def hints_of(annotation: object) -> dict[str, object]:
    """The annotations of a class's fields, its type parameters filled in."""
    cls = get_origin(annotation) or annotation
    of_model = getattr(cls, "model_fields", None)
    if isinstance(of_model, dict):  # pydantic has resolved them, names local to a function too
        return {name: field.annotation for name, field in of_model.items()}
    try:
        hints = get_type_hints(cls)
    except Exception:  # names that do not resolve any more: the fields are then undeclared
        return {}
    given = dict(zip(getattr(cls, "__parameters__", ()), get_args(annotation), strict=False))
    return {name: _filled(hint, given) for name, hint in hints.items()}


def required_keys(cls: type) -> set[str]:
    """The keys that a TypedDict must have.

    Under `from __future__ import annotations` Python itself takes NotRequired for required, so marks are read again.
    """
    marks = {name: _marks(hint) for name, hint in get_type_hints(cls, include_extras=True).items()}
    by_python: frozenset[str] = cls.__required_keys__  # type: ignore[attr-defined]  # every TypedDict has it
    required = {name for name in by_python if typing.NotRequired not in marks[name]}
    return required | {name for name in marks if typing.Required in marks[name]}


def places(arguments: tuple[object, ...]) -> Places:
    """What a tuple's arguments say: its first elements, the one that repeats after them, if any, its last elements."""
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        return (), arguments[:1], ()
    before: list[object] = []
    middle: tuple[object, ...] = ()
    after: list[object] = []
    for argument in arguments:
        given, repeated, last = places(_unpacked(argument)) if _is_unpacked(argument) else ((argument,), (), ())
        (after if middle else before).extend(given)
        middle = middle or repeated
        (after if middle else before).extend(last)
    return tuple(before), middle, tuple(after)


def at_place(found: Places, index: int, length: int) -> object:
    """The annotation of one element of a tuple that has `length` of them; `object` where there is none."""
    before, middle, after = found
    if index < len(before):
        return before[index]
    if index >= length - len(after):
        return after[index - length]
    return middle[0] if middle else object


_WRAPPERS = frozenset(
    getattr(typing, name)
    for name in ("Annotated", "Final", "Required", "NotRequired", "ReadOnly")
    if hasattr(typing, name)  # ReadOnly is of 3.13
)


def _bound(variable: typing.TypeVar) -> object:
    if variable.__constraints__:
        return typing.Union[variable.__constraints__]  # noqa: UP007  # there is no other spelling for a tuple of them
    return object if variable.__bound__ in _UNBOUND else variable.__bound__


def _marks(hint: object) -> set[object]:
    """The wrappers around a TypedDict's field, in whichever order they stand."""
    found: set[object] = set()
    while (origin := get_origin(hint)) in _WRAPPERS:
        found.add(origin)
        hint = get_args(hint)[0]
    return found


def _is_unpacked(argument: object) -> bool:
    return get_origin(argument) is typing.Unpack or bool(getattr(argument, "__unpacked__", False))


def _unpacked(argument: object) -> tuple[object, ...]:
    """The arguments of the tuple that is unpacked in another one's; of a TypeVarTuple nothing is known."""
    inner = get_args(argument)[0] if get_origin(argument) is typing.Unpack else argument
    return get_args(inner) if get_origin(inner) is tuple else (object, Ellipsis)


def _filled(hint: object, given: dict[object, object]) -> object:
    if hint in given:
        return given[hint]
    parameters = getattr(hint, "__parameters__", ())
    if not given or not parameters or isinstance(hint, type):
        return hint
    return hint[tuple(given.get(parameter, object) for parameter in parameters)]  # type: ignore[index]  # a generic
