"""What an annotation says about a value: how to lower it to plain values (see `wire`) and to lift it again.

cattrs writes the code for dataclasses and attrs classes, generic ones too. TypedDicts, NamedTuples, enums, Literals,
containers, unions and pydantic models (where the program has them; it is never imported here) are done here, since
cattrs converts where dasync must refuse: a tuple for a list, a subclass for its base, "5" for an int.

It refuses to guess. A value is lowered only by the annotation that names its very class, and what is lifted is
checked to the last field; an annotation that is not understood declares nothing, so plain values pass and others do
not. Members of a union that look alike when lowered are told apart by a tag, `{"Circle": {...}}`.
"""

from __future__ import annotations

import typing
from collections import Counter, abc
from collections.abc import Callable
from contextlib import suppress
from dataclasses import is_dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum, Flag
from functools import partial
from threading import RLock
from typing import get_args, get_origin
from uuid import UUID

from cattrs import Converter
from cattrs.fns import identity
from cattrs.gen import make_dict_structure_fn, make_dict_unstructure_fn

from dasync.core.form import Kinds, Leaf, Shape, collection, guarded, joined, mapping
from dasync.core.hints import hints_of, is_union, peel, places, required_keys
from dasync.core.wire import reason


def shape_of(annotation: object) -> Shape:
    """The shape of an annotation; made once for each."""
    try:
        shape = _SHAPES.get(annotation)
    except TypeError:  # unhashable, as Annotated with a list in it
        with _LOCK:
            return _finish(annotation)
    if shape is None:
        with _LOCK:
            shape = _finish(annotation)
    return shape


class _Exact(Converter):
    """cattrs, with every field handled by the shape of its annotation."""

    def get_unstructure_hook(self, type: object, cache_result: bool = True) -> Callable[[object], object]:
        return _shape(type).lower

    def get_structure_hook(self, type: object, cache_result: bool = True) -> Callable[..., object]:
        return _shape(type).lift

    def unstructure(self, obj: object, unstructure_as: object = object) -> object:
        return shape_of(unstructure_as).lower(obj)

    def structure(self, obj: object, cl: object) -> object:  # type: ignore[override]  # no caller of ours wants T
        return shape_of(cl).lift(obj)


_LOCK = RLock()
_CONVERTER = _Exact(detailed_validation=False, forbid_extra_keys=True)
ANYTHING = Leaf(None)
_LEAVES: dict[object, Kinds] = {
    None: frozenset((type(None),)),
    type(None): frozenset((type(None),)),
    bool: frozenset((bool,)),
    int: frozenset((int, bool)),
    float: frozenset((float, int, bool)),
    date: frozenset((date, datetime)),
    **{kind: frozenset((kind,)) for kind in (str, bytes, datetime, time, timedelta, Decimal, UUID)},
}
_CONTAINERS: dict[object, Kinds] = {
    **{kind: frozenset((kind,)) for kind in (list, tuple, dict, set, frozenset)},
    abc.Sequence: frozenset((list, tuple)),
    abc.MutableSequence: frozenset((list,)),
    abc.Set: frozenset((set, frozenset)),
    abc.MutableSet: frozenset((set,)),
    abc.Mapping: frozenset((dict,)),
    abc.MutableMapping: frozenset((dict,)),
    **{kind: frozenset((list, tuple, set, frozenset)) for kind in (abc.Iterable, abc.Collection)},
}
_FROZEN = (("__dataclass_params__", "frozen"), ("__attrs_props__", "is_frozen"))  # where classes say that they are
_SHAPES: dict[object, Shape] = {annotation: Leaf(kinds) for annotation, kinds in _LEAVES.items()}
_building: dict[object, Shape] = {}  # under _LOCK: what is not to be seen by other threads yet
_unwritten: list[Callable[[], None]] = []  # likewise: the class whose code is being written, and those that wait


def _finish(annotation: object) -> Shape:
    nested = bool(_building)
    try:
        shape = _shape(annotation)
        if not nested:
            _SHAPES.update(_building)
    except Exception as error:  # names that do not resolve, classes that cattrs does not take
        if nested:
            raise
        shape = _broken(annotation, error)
        with suppress(TypeError):  # unhashable: it is broken again when it comes again
            _SHAPES[annotation] = shape
    finally:
        if not nested:
            _building.clear()
            _unwritten.clear()
    return shape


def _shape(annotation: object) -> Shape:
    try:
        shape = _SHAPES.get(annotation) or _building.get(annotation)
    except TypeError:
        return _build(annotation, Shape(None, None))
    if shape is None:
        shape = _building[annotation] = Shape(None, None)
        shape = _building[annotation] = _build(annotation, shape)
    return shape


def _build(annotation: object, shape: Shape) -> Shape:
    """Fill `shape` in, and give it or a better one back."""
    peeled = peel(annotation)
    if peeled is not annotation:
        return _alias(_shape(peeled), shape)
    origin = get_origin(annotation) or annotation
    arguments = get_args(annotation)
    if origin is typing.Literal:
        return _literal(arguments, shape)
    if is_union(annotation):
        return _union(arguments, shape)
    if origin in _CONTAINERS:
        return _container(_CONTAINERS[origin], origin, arguments, shape)
    if not isinstance(origin, type):
        return ANYTHING
    if issubclass(origin, Enum):
        return _enum(origin, shape)
    if issubclass(origin, tuple) and hasattr(origin, "_fields"):
        return _named_tuple(origin, annotation, shape)
    if hasattr(origin, "model_validate") and hasattr(origin, "model_dump"):
        return _model(origin, shape)
    if typing.is_typeddict(origin):
        return _typed_dict(origin, annotation, shape)
    if is_dataclass(origin) or hasattr(origin, "__attrs_attrs__"):
        return _class(origin, annotation, shape)
    return ANYTHING


def _broken(annotation: object, error: Exception) -> Shape:
    def refuse(_: object) -> object:
        raise TypeError(f"the annotation {annotation!r:.200} cannot be used: {reason(error)}") from error

    return guarded(Shape(None, None), refuse, refuse)


def _alias(known: Shape, shape: Shape) -> Shape:
    """An alias may name itself in what it stands for, so `shape` may be in use already."""
    shape.takes, shape.kinds, shape.lower, shape.lift = known.takes, known.kinds, known.lower, known.lift
    return known


def _class(cls: type, annotation: object, shape: Shape) -> Shape:
    parameters: tuple[object, ...] = getattr(cls, "__parameters__", ())
    if get_origin(annotation) is None and parameters:
        annotation = cls[tuple(map(_stand_in, parameters))]  # type: ignore[index]  # a bare generic
    shape.takes, shape.kinds = frozenset((cls,)), frozenset((dict,))
    for hint in hints_of(annotation).values():  # what is in it comes first, so that its code calls theirs directly
        _shape(hint)
    _unwritten.append(partial(_write, cls, annotation, shape))
    if len(_unwritten) == 1:  # cattrs gives up on a Pair in a Pair: it writes for one class at a time
        while _unwritten:
            _unwritten[0]()
            del _unwritten[0]
    return shape


def _write(cls: type, annotation: object, shape: Shape) -> None:
    """Let cattrs write the code of a class."""
    # A frozen instance makes its init=False fields again by itself.
    frozen = any(getattr(getattr(cls, name, None), kind, False) for name, kind in _FROZEN)
    target = typing.cast("type[object]", annotation)
    lower = make_dict_unstructure_fn(target, _CONVERTER, _cattrs_include_init_false=not frozen)
    lift = make_dict_structure_fn(
        target,
        _CONVERTER,
        _cattrs_forbid_extra_keys=True,
        _cattrs_detailed_validation=False,
        _cattrs_include_init_false=not frozen,
    )
    guarded(shape, lower, lambda plain: lift(plain, cls))


def _typed_dict(cls: type, annotation: object, shape: Shape) -> Shape:
    """Not by cattrs, which would take what Python takes for required (see `required_keys`)."""
    shape.takes = shape.kinds = frozenset((dict,))
    fields = {name: _shape(hint) for name, hint in hints_of(annotation).items()}
    required = required_keys(cls)

    def check(value: dict[str, object]) -> None:
        if not required <= value.keys() <= fields.keys():
            wrong = [f"lacks {name!r}" for name in sorted(required - value.keys())]
            wrong += [f"has {name!r:.80}, which is none of its keys" for name in value.keys() - fields.keys()]
            raise TypeError(f"as a {cls.__qualname__} it {wrong[0]}")

    def lower(value: dict[str, object]) -> object:
        check(value)
        return {name: fields[name].lower(part) for name, part in value.items()}

    def lift(plain: dict[str, object]) -> object:
        check(plain)
        return {name: fields[name].lift(part) for name, part in plain.items()}

    return guarded(shape, identity if all(field.plain for field in fields.values()) else lower, lift)


def _named_tuple(cls: type, annotation: object, shape: Shape) -> Shape:
    shape.takes, shape.kinds = frozenset((cls,)), frozenset((tuple,))
    hints = hints_of(annotation)
    fields = [_shape(hints.get(name, object)) for name in cls._fields]  # type: ignore[attr-defined]  # checked before
    return _in_order((tuple(fields), (), ()), cls._make, shape)  # type: ignore[attr-defined]  # likewise


def _in_order(
    elements: tuple[tuple[Shape, ...], ...], make: Callable[[list[object]], object], shape: Shape
) -> Shape:
    """Tuples whose places have shapes of their own; of the first ones, the one that repeats if any, the last ones."""
    before, middle, after = elements

    def spread(value: tuple[object, ...]) -> abc.Iterable[tuple[Shape, object]]:
        more = len(value) - len(before) - len(after)
        if more < 0 or (more and not middle):
            least = " or more" if middle else ""
            raise ValueError(f"expected {len(before) + len(after)}{least} elements, found {len(value)}")
        return zip((*before, *middle * more, *after), value, strict=True)

    def lower(value: tuple[object, ...]) -> object:
        return tuple([element.lower(part) for element, part in spread(value)])

    def lift(plain: tuple[object, ...]) -> object:
        return make([element.lift(part) for element, part in spread(plain)])

    as_it_is = make is tuple and all(element.plain for element in (*before, *middle, *after))
    return guarded(shape, identity if as_it_is else lower, lift)


def _enum(cls: type[Enum], shape: Shape) -> Shape:
    values = [member.value for member in cls] + [0] * issubclass(cls, Flag)
    shape.takes, shape.kinds = frozenset((cls,)), frozenset(map(type, values))
    return guarded(shape, lambda value: value.value, cls)


def _model(cls: type, shape: Shape) -> Shape:
    """A pydantic model, as the Python values of its own dump; enums within as their values, taken back if strict too.

    Private attributes are made anew, as whenever a model is validated.
    """
    shape.takes = frozenset((cls,))
    shape.kinds = None if getattr(cls, "__pydantic_root_model__", False) else frozenset((dict,))
    validate: Callable[..., object] = cls.model_validate  # type: ignore[attr-defined]  # checked before
    dump: Callable[..., object] = cls.model_dump  # type: ignore[attr-defined]  # likewise

    def lift(plain: object) -> object:
        return validate(plain, strict=False)

    def lower(value: object) -> object:
        plain = _without_enums(dump(value, round_trip=True, by_alias=True, warnings=False))
        if not _same(lift(plain), value):
            raise TypeError("its dump does not validate to an equal model")
        return plain

    return guarded(shape, lower, lift)


def _same(again: object, value: object) -> bool:
    """Equal, or not but for NaN, which is not equal to itself. What a subclass or an excluded field held is missed."""
    if type(again) is not type(value):
        return False
    if again == value:
        return True
    if isinstance(again, dict) and isinstance(value, dict):
        return again.keys() == value.keys() and all(_same(again[key], value[key]) for key in again)
    if isinstance(again, (list, tuple)) and isinstance(value, (list, tuple)):
        return len(again) == len(value) and all(map(_same, again, value))
    fields = getattr(type(value), "model_fields", None) or getattr(type(value), "__dataclass_fields__", None)
    if fields is None:
        return again != again and value != value
    extra = "__pydantic_extra__"
    return all(_same(getattr(again, name, None), getattr(value, name, None)) for name in (*fields, extra))


def _without_enums(value: object) -> object:
    if isinstance(value, Enum):
        return value.value
    if type(value) is dict:
        return {_without_enums(key): _without_enums(part) for key, part in value.items()}
    if type(value) in (list, tuple, set, frozenset):
        return type(value)(map(_without_enums, value))  # type: ignore[call-arg,call-overload]  # one of these four
    return value


def _literal(values: tuple[object, ...], shape: Shape) -> Shape:
    lowered = [value.value if isinstance(value, Enum) else value for value in values]
    if len({(type(plain), plain) for plain in lowered}) < len(values):  # Literal[2, Color.BLUE], where BLUE is 2
        lowered = [(type(v).__qualname__, v.name) if isinstance(v, Enum) else v for v in values]
    back = {(type(plain), plain): value for value, plain in zip(values, lowered, strict=True)}
    down = {value: plain for value, plain in zip(values, lowered, strict=True) if isinstance(value, Enum)}
    shape.takes, shape.kinds = frozenset(map(type, values)), frozenset(map(type, lowered))

    def lower(value: object) -> object:
        if not isinstance(value, Enum):
            return value
        if value not in down:
            raise TypeError(f"expected one of {values!r:.200}")
        return down[value]

    def lift(plain: object) -> object:
        if (type(plain), plain) not in back:
            raise ValueError(f"expected one of {values!r:.200}")
        return back[type(plain), plain]

    return guarded(shape, lower if lowered != list(values) or shape.takes != shape.kinds else identity, lift)


def _container(kinds: Kinds, origin: object, arguments: tuple[object, ...], shape: Shape) -> Shape:
    shape.takes = shape.kinds = kinds
    if not arguments:
        return Leaf(kinds)
    if origin is tuple:
        found = before, middle, after = places(arguments)
        if before or after or not middle:
            return _in_order(tuple(tuple(map(_shape, some)) for some in found), tuple, shape)
        arguments = middle
    if len(arguments) == 2:
        return mapping(_shape(arguments[0]), _shape(arguments[1]), shape)
    return collection(_shape(arguments[0]), shape)


def _union(arguments: tuple[object, ...], shape: Shape) -> Shape:
    members = {argument: _shape(argument) for argument in arguments}
    shapes = list(members.values())
    shape.takes, shape.kinds = joined(s.takes for s in shapes), joined(s.kinds for s in shapes)
    if all(type(s) is Leaf for s in shapes):
        return Leaf(shape.kinds)
    apart = shape.kinds is not None and sum(len(s.kinds or ()) for s in shapes) == len(shape.kinds)
    plain = all(s.plain for s in shapes)
    if not apart and not plain:
        return _tagged(members, shape)
    by_value = {kind: s for s in shapes for kind in s.takes or ()}
    # Plain members that look alike (list[int] | list[str]) are not told apart: there is nothing to make.
    by_kind = {kind: s for s in shapes for kind in s.kinds or ()} if apart else {}

    def lower(value: object) -> object:
        if type(value) not in by_value:
            shape.guard(value)
        return by_value[type(value)].lower(value)

    def lift(plain: object, _: object = None) -> object:
        member = by_kind.get(type(plain))
        if member is None:
            shape.check(plain)
            return plain
        return member.lift(plain)

    shape.lower, shape.lift = identity if plain else lower, lift
    return shape


def _tagged(members: dict[object, Shape], shape: Shape) -> Shape:
    """A union whose members would look alike: each value but None as a map of its member's name to it."""
    nothing = type(None)
    tags: dict[str, Shape] = {}
    for argument, member in members.items():
        if member is not _SHAPES[nothing]:
            name = argument.__qualname__ if isinstance(argument, type) and not get_args(argument) else str(argument)
            tags[f"{name}#{len(tags)}" if name in tags else name] = member
    optional = len(tags) < len(members)
    counted = Counter(kind for member in tags.values() for kind in member.takes or ())
    alike = {kind for kind, count in counted.items() if count > 1}  # Box[A] and Box[B] are both a Box
    in_order = sorted(tags.items(), key=lambda item: item[1].takes is None)  # what takes anything comes last
    shape.kinds = joined((shape.kinds, frozenset((dict,))))

    def lower(value: object) -> object:
        if optional and value is None:
            return None
        failure: Exception | None = None
        for tag, member in in_order:
            if member.accepts(value):
                try:
                    plain = member.lower(value)
                    if type(value) in alike:
                        member.lift(plain)
                    return {tag: plain}
                except (TypeError, ValueError) as error:
                    failure = failure or error
        raise failure or TypeError(f"found {type(value).__qualname__}")

    def lift(plain: object) -> object:
        if optional and plain is None:
            return None
        if type(plain) is dict and len(plain) == 1:
            [(tag, inner)] = plain.items()
            if tag in tags:
                return tags[tag].lift(inner)
        for member in tags.values():  # written when the annotation was not a union yet
            if member.kinds is not None and type(plain) in member.kinds:
                return member.lift(plain)
        raise ValueError(f"expected one of {', '.join(tags)} as the tag")

    return guarded(shape, lower, lift)


def _stand_in(parameter: object) -> object:
    peeled = peel(parameter)
    return object if peeled is parameter else peeled
