"""What shapes are made of: the way down to plain values and up again for one annotation, and its checks.

`shape` says which annotation has which; this file knows no annotation. What stands as a dict's key or in a set must
be hashable when lowered too: there dicts, lists and tuples are written as tuples behind their kind's name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sized

from cattrs.fns import identity

Kinds = frozenset[type] | None  # exact types; None is any
_HOLDERS = frozenset((dict, list, tuple, set))  # lowered ones, or what is in them, may be unhashable


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

    # As keys and in sets. Asked when values come, not when shapes are built: by then every shape is complete.

    @property
    def lower_key(self) -> Callable[[object], object]:
        return self._lower_key if self._may_be_unhashable() else self.lower

    @property
    def lift_key(self) -> Callable[..., object]:
        return self._lift_key if self._may_be_unhashable() else self.lift

    def _may_be_unhashable(self) -> bool:
        return not self.plain and (self.kinds is None or not self.kinds.isdisjoint(_HOLDERS))

    def _lower_key(self, value: object) -> object:
        return _freeze(self.lower(value))

    def _lift_key(self, frozen: object) -> object:
        return self.lift(_thaw(frozen))


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


def guarded(shape: Shape, lower: Callable[..., object], lift: Callable[..., object]) -> Shape:
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


def collection(element: Shape, shape: Shape) -> Shape:
    """Lists, tuples and sets whose elements have one shape."""

    def lower(value: Iterable[object]) -> object:
        if type(value) in (set, frozenset):
            return _all_of(value, element.lower_key)
        return type(value)(map(element.lower, value))  # type: ignore[call-arg]  # the guard let only builtins through

    def lift(plain: Iterable[object]) -> object:
        if type(element) is Leaf:
            check_all(element, plain)
            return plain
        if type(plain) in (set, frozenset):
            return _all_of(plain, element.lift_key)
        return type(plain)(map(element.lift, plain))  # type: ignore[call-arg]  # likewise

    return guarded(shape, identity if element.plain else lower, lift)


def mapping(key: Shape, item: Shape, shape: Shape) -> Shape:
    """Dicts whose keys have one shape and whose values have another."""

    def lower(value: dict[object, object]) -> object:
        down = key.lower_key
        return _complete({down(name): item.lower(part) for name, part in value.items()}, value)

    def lift(plain: dict[object, object]) -> object:
        if type(key) is Leaf and type(item) is Leaf:
            check_all(key, plain)
            check_all(item, plain.values())
            return plain
        up = key.lift_key
        return _complete({up(name): item.lift(part) for name, part in plain.items()}, plain)

    return guarded(shape, identity if key.plain and item.plain else lower, lift)


def check_all(element: Shape, plain: Iterable[object]) -> None:
    if element.kinds is not None and not element.kinds.issuperset(map(type, plain)):
        for part in plain:
            element.check(part)


def joined(kinds: Iterable[Kinds]) -> Kinds:
    together: frozenset[type] = frozenset()
    for some in kinds:
        if some is None:
            return None
        together |= some
    return together


def _all_of(found: Iterable[object], way: Callable[[object], object]) -> object:
    elements: set[object] | frozenset[object] = found  # type: ignore[assignment]  # one of the two
    return _complete(type(elements)(map(way, elements)), elements)


def _complete(made: Sized, found: Sized) -> object:
    """Objects that are told apart by identity alone look alike when lowered: none of them may be lost."""
    if len(made) != len(found):
        raise ValueError("two of its keys or elements are the same when stored")
    return made


def _freeze(plain: object) -> object:
    kind = type(plain)
    if kind is dict:
        pairs = ((_freeze(key), _freeze(part)) for key, part in plain.items())  # type: ignore[attr-defined]  # a dict
        return ("dict", *pairs)
    if kind is set:
        return ("set", frozenset(map(_freeze, plain)))  # type: ignore[call-overload]  # a set
    if kind in (list, tuple):
        return (kind.__name__, *map(_freeze, plain))  # type: ignore[call-overload]  # one of the two
    return plain


def _thaw(frozen: object) -> object:
    if type(frozen) is not tuple:
        return frozen
    kind, *parts = frozen
    if kind == "dict":
        return {_thaw(key): _thaw(part) for key, part in parts}
    if kind == "set" and len(parts) == 1 and type(parts[0]) is frozenset:
        return set(map(_thaw, parts[0]))
    if kind == "list":
        return list(map(_thaw, parts))
    if kind == "tuple":
        return tuple(map(_thaw, parts))
    raise ValueError("a key or an element of a set that is not one")


def _names(kinds: frozenset[type]) -> str:
    return " or ".join(sorted(kind.__qualname__ for kind in kinds))
