"""What an annotation says about a value: how to lower it to plain values (see `wire`) and to lift it again.

cattrs writes the code for dataclasses and attrs classes, generic ones too. TypedDicts, NamedTuples, enums, Literals,
containers, unions and pydantic models (where the program has them; it is never imported here) are done here, since
cattrs converts where dasync must refuse: a tuple for a list, a subclass for its base, "5" for an int.

It refuses to guess. A value is lowered only by the annotation that names its very class, and what is lifted is
checked to the last field; an annotation that is not understood declares nothing, so plain values pass and others do
not. Members of a union that look alike when lowered are told apart by a tag, `{"Circle": {...}}`.
"""

from __future__ import annotations

import types
import typing
from collections import abc
from collections.abc import Callable
from dataclasses import is_dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum, Flag
from threading import RLock
from typing import get_args, get_origin, get_type_hints
from uuid import UUID

from cattrs import Converter
from cattrs.fns import identity
from cattrs.gen import make_dict_structure_fn, make_dict_unstructure_fn

from dasync.core.wire import reason

Kinds = frozenset[type] | None  # exact types; None is any


class Shape:
    """The way down and up for the values of one annotation.

    takes: the types that a value may have; kinds: those that its lowered form may have. `lift` has a second parameter
    because cattrs calls it with one.
    """

    __slots__ = ("kinds", "lift", "lower", "takes")

    lower: Callable[[object], object]
    lift: Callable[..., object]

    def __init__(self, takes: Kinds, kinds: Kinds) -> None:
        self.takes = takes
        self.kinds = kinds
        # Until it is built, a shape that names itself (a tree of nodes) is reached through these.
        self.lower = lambda value: self.lower(value)
        self.lift = lambda plain, _=None: self.lift(plain)

    @property
    def plain(self) -> bool:
        """Whether values are their own lowered form, so that neither way needs a walk."""
        return self.lower is identity

    def accepts(self, value: object) -> bool:
        return self.takes is None or type(value) in self.takes

    def guard(self, value: object) -> None:
        if self.takes is not None and type(value) not in self.takes:
            raise TypeError(f"expected {_names(self.takes)}, found {type(value).__qualname__}")

    def check(self, plain: object) -> None:
        if self.kinds is not None and type(plain) not in self.kinds:
            raise ValueError(f"expected {_names(self.kinds)}, found {type(plain).__qualname__}")


class Leaf(Shape):
    """A shape whose values are known by their type alone."""

    __slots__ = ()

    def __init__(self, kinds: Kinds) -> None:
        super().__init__(kinds, kinds)
        self.lower = identity
        self.lift = self.lift_leaf

    def lift_leaf(self, plain: object, _: object = None) -> object:
        self.check(plain)
        return plain


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
_SHAPES: dict[object, Shape] = {annotation: Leaf(kinds) for annotation, kinds in _LEAVES.items()}
_building: dict[object, Shape] = {}  # under _LOCK: what is not to be seen by other threads yet


def _finish(annotation: object) -> Shape:
    nested = bool(_building)
    try:
        shape = _shape(annotation)
        if not nested:
            _SHAPES.update(_building)
    except Exception as error:  # names that do not resolve, classes that cattrs does not take
        if nested:
            raise
        shape = _SHAPES[annotation] = _broken(annotation, error)
    finally:
        if not nested:
            _building.clear()
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

    return _guarded(Shape(None, None), refuse, refuse)


def _alias(known: Shape, shape: Shape) -> Shape:
    """An alias may name itself in what it stands for, so `shape` may be in use already."""
    shape.takes, shape.kinds, shape.lower, shape.lift = known.takes, known.kinds, known.lower, known.lift
    return known


def _class(cls: type, annotation: object, shape: Shape) -> Shape:
    parameters: tuple[object, ...] = getattr(cls, "__parameters__", ())
    if get_origin(annotation) is None and parameters:
        annotation = cls[(object,) * len(parameters)]  # type: ignore[index]  # a bare generic
    shape.takes, shape.kinds = frozenset((cls,)), frozenset((dict,))
    # A frozen instance makes its init=False fields again by itself.
    frozen = is_dataclass(cls) and cls.__dataclass_params__.frozen  # type: ignore[attr-defined]  # as dataclasses do
    target = typing.cast("type[object]", annotation)
    lower = make_dict_unstructure_fn(target, _CONVERTER, _cattrs_include_init_false=not frozen)
    lift = make_dict_structure_fn(
        target,
        _CONVERTER,
        _cattrs_forbid_extra_keys=True,
        _cattrs_detailed_validation=False,
        _cattrs_include_init_false=not frozen,
    )
    return _guarded(shape, lower, lambda plain: lift(plain, cls))


def _typed_dict(cls: type, annotation: object, shape: Shape) -> Shape:
    """Not by cattrs: under `from __future__ import annotations` Python itself takes NotRequired for required."""
    shape.takes = shape.kinds = frozenset((dict,))
    fields = {name: _shape(hint) for name, hint in hints_of(annotation).items()}
    marks = {name: get_origin(hint) for name, hint in get_type_hints(cls, include_extras=True).items()}
    by_python: frozenset[str] = cls.__required_keys__  # type: ignore[attr-defined]  # every TypedDict has it
    required = {name for name in by_python if marks[name] is not typing.NotRequired}
    required |= {name for name in marks if marks[name] is typing.Required}

    def check(value: dict[str, object]) -> None:
        if not required <= value.keys() <= fields.keys():
            raise TypeError(f"its keys are not those of {cls.__qualname__}")

    def lower(value: dict[str, object]) -> object:
        check(value)
        return {name: fields[name].lower(part) for name, part in value.items()}

    def lift(plain: dict[str, object]) -> object:
        check(plain)
        return {name: fields[name].lift(part) for name, part in plain.items()}

    return _guarded(shape, identity if all(field.plain for field in fields.values()) else lower, lift)


def _named_tuple(cls: type, annotation: object, shape: Shape) -> Shape:
    shape.takes, shape.kinds = frozenset((cls,)), frozenset((tuple,))
    hints = hints_of(annotation)
    fields = [_shape(hints.get(name, object)) for name in cls._fields]  # type: ignore[attr-defined]  # checked before
    return _in_order(fields, cls._make, shape)  # type: ignore[attr-defined]  # likewise


def _in_order(elements: list[Shape], make: Callable[[list[object]], object], shape: Shape) -> Shape:
    """Tuples whose every place has a shape of its own."""

    def lower(value: tuple[object, ...]) -> object:
        return tuple([element.lower(part) for element, part in zip(elements, value, strict=True)])

    def lift(plain: tuple[object, ...]) -> object:
        return make([element.lift(part) for element, part in zip(elements, plain, strict=True)])

    as_it_is = make is tuple and all(element.plain for element in elements)
    return _guarded(shape, identity if as_it_is else lower, lift)


def _enum(cls: type[Enum], shape: Shape) -> Shape:
    values = [member.value for member in cls] + [0] * issubclass(cls, Flag)
    shape.takes, shape.kinds = frozenset((cls,)), frozenset(map(type, values))
    return _guarded(shape, lambda value: value.value, cls)


def _model(cls: type, shape: Shape) -> Shape:
    """A pydantic model, as the Python values of its own dump; enums within as their values."""
    shape.takes = frozenset((cls,))
    shape.kinds = None if getattr(cls, "__pydantic_root_model__", False) else frozenset((dict,))
    validate: Callable[[object], object] = cls.model_validate  # type: ignore[attr-defined]  # checked before
    dump: Callable[..., object] = cls.model_dump  # type: ignore[attr-defined]  # likewise

    def lower(value: object) -> object:
        plain = _without_enums(dump(value, round_trip=True, by_alias=True))
        again = validate(plain)
        # NaN is not equal to itself; what else is lost, a subclass's fields or an excluded one, shows in the text.
        if again != value and repr(again) != repr(value):
            raise TypeError("its dump does not validate to an equal model")
        return plain

    return _guarded(shape, lower, validate)


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
    back = {(type(plain), plain): value for value, plain in zip(values, lowered, strict=True)}
    shape.takes, shape.kinds = frozenset(map(type, values)), frozenset(map(type, lowered))

    def lower(value: object) -> object:
        return value.value if isinstance(value, Enum) else value

    def lift(plain: object) -> object:
        if (type(plain), plain) not in back:
            raise ValueError(f"expected one of {values!r:.200}")
        return back[type(plain), plain]

    return _guarded(shape, lower if lowered != list(values) or shape.takes != shape.kinds else identity, lift)


def _container(kinds: Kinds, origin: object, arguments: tuple[object, ...], shape: Shape) -> Shape:
    shape.takes = shape.kinds = kinds
    if origin is tuple and arguments and Ellipsis not in arguments:
        return _in_order([_shape(argument) for argument in arguments], tuple, shape)
    elements = [_shape(argument) for argument in arguments if argument is not Ellipsis]
    if not elements:
        return Leaf(kinds)
    if len(elements) == 2:
        return _mapping(elements[0], elements[1], shape)
    element = elements[0]

    def lower(value: abc.Iterable[object]) -> object:
        return type(value)(map(element.lower, value))  # type: ignore[call-arg]  # the guard let only builtins through

    def lift(plain: abc.Iterable[object]) -> object:
        if type(element) is not Leaf:
            return type(plain)(map(element.lift, plain))  # type: ignore[call-arg]  # likewise
        _check_all(element, plain)
        return plain

    return _guarded(shape, identity if element.plain else lower, lift)


def _mapping(key: Shape, item: Shape, shape: Shape) -> Shape:
    def lower(value: dict[object, object]) -> object:
        return {key.lower(name): item.lower(part) for name, part in value.items()}

    def lift(plain: dict[object, object]) -> object:
        if type(key) is Leaf and type(item) is Leaf:
            _check_all(key, plain)
            _check_all(item, plain.values())
            return plain
        return {key.lift(name): item.lift(part) for name, part in plain.items()}

    return _guarded(shape, identity if key.plain and item.plain else lower, lift)


def _union(arguments: tuple[object, ...], shape: Shape) -> Shape:
    members = {argument: _shape(argument) for argument in arguments}
    shapes = list(members.values())
    shape.takes, shape.kinds = _joined(s.takes for s in shapes), _joined(s.kinds for s in shapes)
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
    in_order = sorted(tags.items(), key=lambda item: item[1].takes is None)  # what takes anything comes last
    shape.kinds = _joined((shape.kinds, frozenset((dict,))))

    def lower(value: object) -> object:
        if optional and value is None:
            return None
        failure: Exception | None = None
        for tag, member in in_order:
            if member.accepts(value):
                try:
                    return {tag: member.lower(value)}
                except (TypeError, ValueError) as error:  # list[A] and list[B] both accept a list
                    failure = error
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

    return _guarded(shape, lower, lift)


def _guarded(shape: Shape, lower: Callable[..., object], lift: Callable[..., object]) -> Shape:
    """Complete a shape: values are checked on the way down, lowered ones on the way up."""

    def lower_checked(value: object) -> object:
        shape.guard(value)
        return lower(value)

    def lift_checked(plain: object, _: object = None) -> object:
        shape.check(plain)
        return lift(plain)

    shape.lower = identity if lower is identity else lower_checked
    shape.lift = lift_checked
    return shape


def _check_all(element: Shape, plain: abc.Iterable[object]) -> None:
    if element.kinds is not None and not element.kinds.issuperset(map(type, plain)):
        for part in plain:
            element.check(part)


def _joined(kinds: abc.Iterable[Kinds]) -> Kinds:
    joined: frozenset[type] = frozenset()
    for some in kinds:
        if some is None:
            return None
        joined |= some
    return joined


def peel(annotation: object) -> object:
    """What stands under Annotated, NewType, Final, Required and type aliases."""
    while True:
        origin = get_origin(annotation)
        if origin in (typing.Annotated, typing.Final, typing.Required, typing.NotRequired):
            annotation = get_args(annotation)[0]
        elif hasattr(annotation, "__supertype__"):
            annotation = annotation.__supertype__
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
    try:
        hints = get_type_hints(cls)
    except Exception:  # names that do not resolve any more: the fields are then undeclared
        return {}
    given = dict(zip(getattr(cls, "__parameters__", ()), get_args(annotation), strict=False))
    return {name: _filled(hint, given) for name, hint in hints.items()}


def _filled(hint: object, given: dict[object, object]) -> object:
    if hint in given:
        return given[hint]
    parameters = getattr(hint, "__parameters__", ())
    if not given or not parameters or isinstance(hint, type):
        return hint
    return hint[tuple(given.get(parameter, object) for parameter in parameters)]  # type: ignore[index]  # a generic


def _names(kinds: frozenset[type]) -> str:
    return " or ".join(sorted(kind.__qualname__ for kind in kinds))
