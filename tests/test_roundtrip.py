"""Annotations and values drawn together: whatever is declared comes back as it was, in canonical bytes."""

from __future__ import annotations

import dataclasses
import enum
import itertools
import os
import subprocess
import sys
import typing
from collections.abc import Collection, Iterable, Mapping, Sequence
from collections.abc import Set as AnySet
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import (
    Annotated,
    Any,
    Generic,
    Literal,
    NamedTuple,
    NewType,
    NotRequired,
    Optional,
    TypedDict,
    TypeVar,
    Union,
)
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_codec import Color, Level, Node, Word, zones

import dasync
from dasync.core.codec import CallShape, decode, encode, encode_result
from dasync.errors import UnserializableValue

K = TypeVar("K")
V = TypeVar("V")
ROOT = Path(__file__).parent.parent


@dataclasses.dataclass(frozen=True)
class Pair(Generic[K, V]):
    left: K
    right: V


@dataclasses.dataclass(frozen=True)
class Key:
    number: int
    word: str | None = None
    _hidden: bool = False


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Twin:
    """With fields of `Key`, to be mistaken for it."""

    number: int
    word: str | None = None


class Bits(enum.Flag):
    A = 1
    B = 2


class Shade(enum.Enum):
    """With the values of `Color`."""

    RED = "red"
    BLUE = 2


class Case(NamedTuple):
    """An annotation, the values that it may have, and whether they may be keys too."""

    annotation: Any
    values: st.SearchStrategy[Any]
    hashable: bool = True


Number = NewType("Number", int)
KeyOf = NewType("KeyOf", Key)
keys = st.builds(Key, st.integers(), st.none() | st.text(max_size=3), st.booleans())
twins = st.builds(lambda number, word: Twin(number=number, word=word), st.integers(), st.none() | st.text(max_size=3))
nodes = st.recursive(
    st.builds(Node, st.text(max_size=3)),
    lambda inner: st.builds(Node, st.text(max_size=3), st.lists(inner, max_size=2), st.none() | inner),
    max_leaves=4,
)
LEAVES = [
    Case(None, st.none()),
    Case(bool, st.booleans()),
    Case(int, st.integers() | st.integers(-(2**200), 2**200)),
    Case(float, st.floats(allow_nan=False)),
    Case(str, st.text(max_size=5)),
    Case(bytes, st.binary(max_size=5)),
    Case(datetime, st.datetimes(timezones=zones, allow_imaginary=True)),
    Case(date, st.dates()),
    Case(time, st.times(timezones=zones)),
    Case(timedelta, st.timedeltas()),
    Case(Decimal, st.decimals(allow_nan=False)),
    Case(UUID, st.uuids()),
    Case(Color, st.sampled_from(Color)),
    Case(Shade, st.sampled_from(Shade)),
    Case(Level, st.sampled_from(Level)),
    Case(Word, st.sampled_from(Word)),
    Case(Bits, st.sampled_from([Bits(0), Bits.A, Bits.A | Bits.B])),
    Case(Literal["a", 1, Color.RED, Shade.BLUE, 2], st.sampled_from(["a", 1, Color.RED, Shade.BLUE, 2])),
    Case(Number, st.integers()),
    Case(Key, keys),
    Case(Twin, twins),
    Case(KeyOf, keys),
    Case(Node, nodes, hashable=False),
    Case(Any, st.none() | st.integers() | st.text(max_size=3)),
]
_names = itertools.count()


def lists(one: Case) -> Case:
    return Case(list[one.annotation], st.lists(one.values, max_size=3), hashable=False)


def sequences(one: Case) -> Case:
    many = st.lists(one.values, max_size=3)
    return Case(Sequence[one.annotation], many | many.map(tuple), hashable=False)


def many(one: Case) -> Case:
    return Case(tuple[one.annotation, ...], st.lists(one.values, max_size=3).map(tuple), one.hashable)


def maybe(one: Case) -> Case:
    return Case(Optional[one.annotation], st.none() | one.values, one.hashable)  # noqa: UP045  # both are in use


def noted(one: Case) -> Case:
    return Case(Annotated[one.annotation, "a note"], one.values, one.hashable)


def in_place(one: Case, two: Case) -> Case:
    return Case(
        tuple[one.annotation, two.annotation], st.tuples(one.values, two.values), one.hashable and two.hashable
    )


def unpacked(one: Case, two: Case) -> Case:
    values = st.tuples(one.values, st.lists(two.values, max_size=2)).map(lambda parts: (parts[0], *parts[1]))
    return Case(tuple[(one.annotation, *tuple[two.annotation, ...])], values, one.hashable and two.hashable)


def either(one: Case, two: Case) -> Case:
    together = Union[one.annotation, two.annotation]  # noqa: UP007  # None is among them, which has no |
    return Case(together, one.values | two.values, one.hashable and two.hashable)


def pairs(one: Case, two: Case) -> Case:
    return Case(
        Pair[one.annotation, two.annotation],
        st.builds(Pair, one.values, two.values),
        one.hashable and two.hashable,
    )


def sets(one: Case) -> Case:
    return Case(set[one.annotation], st.sets(one.values, max_size=4), hashable=False)


def frozen_sets(one: Case) -> Case:
    return Case(frozenset[one.annotation], st.frozensets(one.values, max_size=4))


def any_sets(one: Case) -> Case:
    both = st.sets(one.values, max_size=3) | st.frozensets(one.values, max_size=3)
    return Case(AnySet[one.annotation], both, hashable=False)


def dicts(one: Case, two: Case) -> Case:
    return Case(
        dict[one.annotation, two.annotation], st.dictionaries(one.values, two.values, max_size=3), hashable=False
    )


def mappings(one: Case, two: Case) -> Case:
    return Case(
        Mapping[one.annotation, two.annotation], st.dictionaries(one.values, two.values, max_size=3), hashable=False
    )


def typed_dicts(one: Case, two: Case) -> Case:
    made = TypedDict(f"Typed{next(_names)}", {"one": one.annotation, "two": NotRequired[two.annotation]})  # noqa: UP013  # made anew
    return Case(made, st.fixed_dictionaries({"one": one.values}, optional={"two": two.values}), hashable=False)


def named_tuples(one: Case, two: Case) -> Case:
    made = NamedTuple(f"Named{next(_names)}", [("one", one.annotation), ("two", two.annotation)])  # noqa: UP014  # likewise
    return Case(made, st.builds(made, one.values, two.values), one.hashable and two.hashable)


def classes(one: Case, two: Case, frozen: bool, slots: bool) -> Case:
    made = dataclasses.make_dataclass(
        f"Made{next(_names)}", [("one", one.annotation), ("two", two.annotation)], frozen=frozen, slots=slots
    )
    return Case(made, st.builds(made, one.values, two.values), frozen and one.hashable and two.hashable)


def larger(inner: st.SearchStrategy[Case]) -> st.SearchStrategy[Case]:
    keyed = inner.filter(lambda one: one.hashable)
    return st.one_of(
        *(st.builds(make, inner) for make in (lists, sequences, many, maybe, noted)),
        *(st.builds(make, inner, inner) for make in (in_place, unpacked, either, pairs, typed_dicts, named_tuples)),
        *(st.builds(make, keyed) for make in (sets, frozen_sets, any_sets)),
        *(st.builds(make, keyed, inner) for make in (dicts, mappings)),
        st.builds(classes, inner, inner, st.booleans(), st.booleans()),
    )


cases = st.recursive(st.sampled_from(LEAVES), larger, max_leaves=6)


# What a value is, to the last type; texts, as -0.0 is equal to 0 and a datetime to one with another fold.
def described(value: Any) -> object:
    kind = type(value)
    if isinstance(value, enum.Enum):
        return kind, value.name
    if isinstance(value, dict):
        return kind, [(described(key), described(part)) for key, part in value.items()]
    if isinstance(value, (set, frozenset)):
        return kind, sorted(repr(described(part)) for part in value)
    if isinstance(value, (list, tuple)):
        return kind, [described(part) for part in value]
    if dataclasses.is_dataclass(value):
        return kind, [described(getattr(value, field.name)) for field in dataclasses.fields(value)]
    if isinstance(value, (datetime, time)):
        return kind, repr(value), value.fold, value.tzinfo
    return kind, repr(value)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_whatever_is_declared_comes_back_as_it_was(data: st.DataObject) -> None:
    one = data.draw(cases)
    value = data.draw(one.values)
    raw, copy = encode_result(value, one.annotation, None)
    assert described(copy) == described(value)
    assert raw == encode(value, one.annotation) == encode(copy, one.annotation)
    assert described(decode(raw, one.annotation)) == described(value)
    shape = CallShape((("a", one.annotation),), one.annotation, one.annotation)
    call, args, kwargs = shape.encode((value, value), {"k": value, "a": value}, None)
    assert described(shape.decode(call)) == described((args, kwargs)) == described(
        ((value, value), {"a": value, "k": value})
    )
    # One that joined later is told apart from it, and what was written before is still read.
    wider = Union[one.annotation, Twin]  # noqa: UP007  # likewise
    assert described(decode(encode(value, wider), wider)) == described(value)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_what_declares_something_else_is_refused_or_equal(data: st.DataObject) -> None:
    """A value under another's annotation: either it is refused, or it comes back as it was; never as something else."""
    one, other = data.draw(cases), data.draw(cases)
    value = data.draw(one.values)
    try:
        raw, copy = encode_result(value, other.annotation, None)
    except UnserializableValue:
        pass
    else:
        assert described(copy) == described(value)
        assert raw == encode(copy, other.annotation)


# -- canonical bytes

SEEDED = """
from __future__ import annotations
import dataclasses, enum
from typing import *
from dasync.core.codec import CallShape, encode

class Color(enum.StrEnum):
    RED = "red"
    BLUE = "blue"

@dataclasses.dataclass(frozen=True)
class Key:
    name: str
    tags: frozenset[str] = frozenset()

@dataclasses.dataclass
class Deep:
    names: set[str]
    keys: frozenset[Key]
    by_color: dict[Color, set[str]]
    either: set[Color | str]
    anything: object = None

class Typed(TypedDict):
    names: set[str]

class Row(NamedTuple):
    names: frozenset[str | bytes | None]

names = {"n%d" % i for i in range(50)}
some = frozenset({Key(n, frozenset(names - {n})) for n in names})
mixed = {*names, *Color}
deep = Deep(names, some, {Color.RED: names, Color.BLUE: set()}, mixed, {"a": (names, [frozenset(names)])})
print(encode(deep, Deep).hex())
print(encode({"names": names}, Typed).hex(), encode(Row(frozenset({*names, None, b"x"})), Row).hex())
print(encode({k: names for k in sorted(some, key=lambda k: k.name)}, dict[Key, set[str]]).hex())
print(encode([deep, names], list[Deep | set[str]]).hex())
shape = CallShape((("d", Deep), ("n", set[str])), frozenset[Key], object)
print(shape.encode((deep, names, some), {"z": names, "y": {frozenset(names)}}, None)[0].hex())
"""


def test_bytes_are_the_same_under_any_hash_seed() -> None:
    """Sets in fields, in keys, in sets, of classes, in unions, in calls: two processes write the same bytes."""
    outputs = {
        subprocess.run(
            [sys.executable, "-c", SEEDED],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1


# -- by hand: what the strategies above do not draw


@dataclasses.dataclass(eq=False)
class Alike:
    """Told apart by identity alone."""

    number: int


def test_what_identity_alone_tells_apart_is_not_merged() -> None:
    with pytest.raises(UnserializableValue, match="two of its keys or elements are the same when stored"):
        encode({Alike(1), Alike(1)}, set[Alike])
    with pytest.raises(UnserializableValue, match="two of its keys or elements"):
        encode([{Alike(1): "a", Alike(1): "b"}], list[dict[Alike, str]])
    back = decode(encode({Alike(1), Alike(2)}, set[Alike]), set[Alike])
    assert sorted(one.number for one in back) == [1, 2]  # type: ignore[attr-defined]  # a set of them


def test_members_of_a_union_of_one_generic_class_are_told_apart() -> None:
    for value in (Pair(1, "a"), Pair("a", 1), [Pair("a", "b")]):
        annotation = Pair[int, str] | Pair[str, int] | list[Pair[int, int]] | list[Pair[str, str]]
        assert decode(encode(value, annotation), annotation) == value
    with pytest.raises(UnserializableValue, match=r"value\.left is a bytes"):
        encode(Pair(b"", 1), Pair[int, int] | Pair[str, int])


T = TypeVar("T", bound=Key)
C = TypeVar("C", Key, Twin)


@dataclasses.dataclass
class Bound(Generic[T]):
    one: T


def test_a_type_variable_stands_for_its_bound() -> None:
    assert decode(encode(Key(1), T), T) == Key(1)
    assert decode(encode([Twin(number=1)], list[C]), list[C]) == [Twin(number=1)]
    assert decode(encode(Bound(Key(1)), Bound), Bound) == Bound(Key(1))
    with pytest.raises(UnserializableValue, match="no annotation declares"):
        encode(Key(1), K)


def test_a_shape_that_is_not_the_tuple_s_is_said_so() -> None:
    for value, annotation, told in (
        ((Key(1),), tuple[Key, int], "expected 2 elements, found 1"),
        ((), tuple[(Key, *tuple[Key, ...])], "expected 1 or more elements, found 0"),
        ((Key(1), Key(2), "x"), tuple[(Key, *tuple[Key, ...])], r"value\[2\] is a str"),
        ({}, TypedDict("Other", {"two": Color}), "as a Other it lacks 'two'"),
    ):
        with pytest.raises(UnserializableValue, match=told):
            encode(value, annotation)


def test_what_can_be_passed_in_its_place_is_told() -> None:
    for value, told in (
        (bytearray(b"x"), r"pass bytes\(...\)"),
        (range(3), r"pass list\(...\)"),
        ((i for i in ()), r"pass list\(...\)"),
        ({}.keys(), r"pass list\(...\)"),
        (Path("x"), r"pass str\(...\)"),
        (int, "pass its name"),
        (1j, "pass plain data"),
    ):
        with pytest.raises(UnserializableValue, match=rf"value\['k'\]\[0\] is a .*{told}"):
            encode({"k": [value]})
    with pytest.raises(UnserializableValue, match=r"value\[<int>\] is a object"):
        encode({10**5000: object()})


def test_an_annotation_whose_names_are_not_found_is_named() -> None:
    with pytest.raises(UnserializableValue, match=r"its annotation 'list\[Key\]' names what cannot be found from here"):
        encode([Key(1)], "list[Key]")


def test_a_local_function_s_annotations_are_read_one_by_one() -> None:
    """What its body uses is known, of what is not the error says so; the others' classes are declared all the same."""

    @dataclasses.dataclass
    class Local:
        number: int

    @dasync.function
    async def uses(a: Local, key: Key) -> Local:
        return Local(key.number)

    @dasync.function
    async def blind(a: list[Local], key: Key) -> None: ...

    data, args, _ = uses.shape.encode((Local(1), Key(2)), {}, None)
    assert uses.shape.decode(data) == (args, {}) == ((Local(1), Key(2)), {})
    assert uses.result is Local
    assert blind.shape.encode(([1], Key(2)), {}, None)[1] == ([1], Key(2))
    with pytest.raises(UnserializableValue, match=r"args\[0\]\[0\] is .*: its annotation 'list\[Local\]' names"):
        blind.shape.encode(([Local(1)], Key(2)), {}, None)


def test_the_syntax_of_newer_pythons_is_understood() -> None:
    if sys.version_info < (3, 12):
        pytest.skip("type parameters are of 3.12")
    space: dict[str, Any] = {"Key": Key, "Color": Color, "dataclass": dataclasses.dataclass, "TypedDict": TypedDict}
    program = (
        "@dataclass(frozen=True)\n"
        "class Box[T: Key]:\n    inside: T\n    more: tuple[T, ...] = ()\n"
        "class Typed[T](TypedDict):\n    one: T\n"
        "type Many[T] = dict[T, list[Box[T]]]\n"
        "type Deep = Key | tuple[Deep, ...]\n"
        "type Either[A, B] = A | B | None\n"
    )
    exec(compile(program, "newer", "exec", dont_inherit=True), space)
    boxes, deep = space["Box"], space["Deep"]
    box = boxes(Key(1), (Key(2),))
    for value, annotation in (
        (box, boxes),
        (box, boxes[Key]),
        ({"one": {Color.RED: box}}, space["Typed"][dict[Color, boxes[Key]]]),
        ({Key(1): [box]}, space["Many"][Key]),
        ({(Key(1), (Key(2), ())), Key(3)}, set[deep]),
        (Color.RED, space["Either"][Color, str]),
    ):
        assert described(decode(encode(value, annotation), annotation)) == described(value)
    if sys.version_info >= (3, 13):
        space |= {"ReadOnly": typing.ReadOnly, "NotRequired": NotRequired}
        program = "class Fixed(TypedDict):\n    one: ReadOnly[NotRequired[Key]]"
        exec(compile(program, "newer", "exec", dont_inherit=True), space)
        assert decode(encode({}, space["Fixed"]), space["Fixed"]) == {}
        assert decode(encode({"one": Key(1)}, space["Fixed"]), space["Fixed"]) == {"one": Key(1)}


def test_enums_are_declared_by_their_members_values() -> None:
    class Odd(enum.Enum):
        THING = object()

    with pytest.raises(UnserializableValue, match=r"whose value cannot be stored .*: give its members plain values"):
        encode(Odd.THING, Odd)
    both = Literal[2, Color.BLUE]
    for value in (2, Color.BLUE):
        assert described(decode(encode(value, both), both)) == described(value)
    with pytest.raises(UnserializableValue, match="expected one of"):
        encode(Color.RED, both)


def test_iterables_keep_their_own_type() -> None:
    for value in ([Color.RED], (Color.RED,), {Color.RED}, frozenset({Color.RED})):
        for annotation in (Iterable[Color], Collection[Color]):
            assert described(decode(encode(value, annotation), annotation)) == described(value)


def test_attrs_classes_frozen_and_generic() -> None:
    attrs = pytest.importorskip("attrs")

    @attrs.frozen
    class Cold:
        number: int = attrs.field(converter=int)
        twice: int = attrs.field(init=False)

        def __attrs_post_init__(self) -> None:
            object.__setattr__(self, "twice", 2 * self.number)

    assert decode(encode({Cold("4")}, set[Cold]), set[Cold]) == {Cold(4)}


def test_pydantic_models_with_validators_generics_and_strictness() -> None:
    pydantic = pytest.importorskip("pydantic")

    class Upper(pydantic.BaseModel):
        model_config = pydantic.ConfigDict(frozen=True)
        name: str
        _seen: int = pydantic.PrivateAttr(0)

        @pydantic.field_validator("name")
        @classmethod
        def upper(cls, name: str) -> str:
            return name.upper()

    class Strict(pydantic.BaseModel):
        model_config = pydantic.ConfigDict(strict=True)
        color: Color
        keys: dict[Color, tuple[int, ...]]
        nan: float = float("nan")

    class Box(pydantic.BaseModel, Generic[K]):
        inside: K

    class Plus(pydantic.BaseModel):
        number: int

        @pydantic.field_validator("number")
        @classmethod
        def more(cls, number: int) -> int:
            return number + 1

    class Base(pydantic.BaseModel):
        number: int

    class Derived(Base):
        more: int

    class Hiding(pydantic.BaseModel):
        base: Base = pydantic.Field(repr=False)
        nan: float = float("nan")

    for value, annotation in (
        (Upper(name="x"), Upper),
        ({Upper(name="x")}, set[Upper]),
        ({Upper(name="x"): [Upper(name="y")]}, dict[Upper, list[Upper]]),
        (Box[Key](inside=Key(1)), Box[Key]),
        (Box[list[Upper]](inside=[Upper(name="x")]), Box[list[Upper]]),
        (Box[int](inside=1), Box[int] | Box[str]),
    ):
        assert decode(encode(value, annotation), annotation) == value
    strict = Strict(color=Color.RED, keys={Color.BLUE: (1, 2)})
    assert repr(decode(encode(strict, Strict), Strict)) == repr(strict)
    with pytest.raises(UnserializableValue, match="does not validate to an equal model"):
        encode(Plus(number=1), Plus)
    with pytest.raises(UnserializableValue, match=r"value\.base"):
        encode(Hiding(base=Derived(number=1, more=2)), Hiding)
    with pytest.raises(UnserializableValue, match=r"value\.number is a str"):  # and no warning of pydantic's
        encode(Base.model_construct(number="x"), Base)
