"""Values to bytes and back: exact, canonical, refused with a path, and nothing hostile gets in."""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import importlib
import json
import os
import random
import re
import struct
import subprocess
import sys
import threading
import typing
from collections import OrderedDict, deque, namedtuple
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from pathlib import Path
from time import thread_time
from typing import Annotated, Any, Generic, Literal, NamedTuple, NewType, NotRequired, Optional, TypedDict, TypeVar
from uuid import UUID
from zoneinfo import ZoneInfo

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dasync.core import wire
from dasync.core.codec import CallShape, decode, encode, encode_result
from dasync.core.shape import shape_of
from dasync.errors import DecodeError, PayloadTooLarge, UnserializableValue

T = TypeVar("T")
ROOT = Path(__file__).parent.parent


# Same in type, value and order, NaN and fold included.
def same(a: object, b: object) -> bool:
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a.items(), b.items(), strict=True))
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, (set, frozenset)):
        return sorted(map(encode, a)) == sorted(map(encode, b)) and {type(x) for x in a} == {type(x) for x in b}
    if isinstance(a, (datetime, time)):
        return (repr(a), a.fold, a.tzinfo) == (repr(b), b.fold, b.tzinfo)
    if isinstance(a, (float, Decimal)):
        return repr(a) == repr(b)
    return a == b


zones = st.one_of(
    st.none(),
    st.sampled_from([UTC, ZoneInfo("Europe/Berlin"), ZoneInfo("Asia/Kathmandu")]),
    st.timedeltas(timedelta(hours=-23), timedelta(hours=23)).map(timezone),
)
hashable_leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-(2**300), 2**300),
    st.sampled_from([2**63 - 1, 2**63, 2**64 - 1, 2**64, -(2**63), -(2**63) - 1, -(2**64)]),
    st.floats(),
    st.text(),
    st.binary(),
    st.datetimes(timezones=zones, allow_imaginary=True),
    st.dates(),
    st.times(timezones=zones),
    st.timedeltas(),
    st.decimals(allow_nan=False),
    st.uuids(),
)
leaves = hashable_leaves | st.sampled_from([Decimal("sNaN"), Decimal("-NaN123"), Decimal("1E+999999")])
hashables = st.recursive(
    hashable_leaves, lambda inner: st.tuples(inner, inner) | st.frozensets(inner, max_size=3), max_leaves=5
)
values = st.recursive(
    leaves | hashables,
    lambda inner: st.one_of(
        st.lists(inner, max_size=5),
        st.lists(inner, max_size=5).map(tuple),
        st.dictionaries(hashables, inner, max_size=4),
        st.sets(hashables, max_size=4),
    ),
    max_leaves=20,
)


@settings(max_examples=100, deadline=None)
@given(values)
def test_plain_values_come_back_exactly(value: object) -> None:
    data = encode(value)
    assert same(decode(data), value)
    assert encode(decode(data)) == data
    assert encode_result(value, object, None)[0] == data


@settings(max_examples=80, deadline=None)
@given(st.lists(values, max_size=3), st.dictionaries(st.text(max_size=5), values, max_size=3))
def test_calls_come_back_exactly_and_the_copy_is_what_decodes(args: list[object], kwargs: dict[str, object]) -> None:
    shape = CallShape((("a", object), ("b", int)))
    data, copy, named = shape.encode(tuple(args), kwargs, None)
    again, named_again = shape.decode(data)
    assert same(copy, tuple(args))
    assert same(again, copy)
    assert same(named_again, named)
    assert same(named, dict(sorted(kwargs.items())))
    assert shape.encode(tuple(args), dict(reversed(kwargs.items())), None)[0] == data


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200) | values.map(encode).flatmap(lambda d: st.binary(max_size=3).map(lambda x: d[:-2] + x)))
def test_any_bytes_decode_or_raise_decode_error(data: bytes) -> None:
    for annotation in (object, Node, dict[str, Color], Color | Circle | Square):
        try:
            value = decode(data, annotation)
        except DecodeError:
            continue
        if annotation is object:
            assert decode(encode(value)) is not None or value is None
    with contextlib.suppress(DecodeError):
        CallShape(()).decode(data)


def test_a_naive_zone_key_and_fold_are_kept() -> None:
    moment = datetime(2024, 10, 27, 2, 30, fold=1, tzinfo=ZoneInfo("Europe/Berlin"))
    back = decode(encode(moment))
    assert isinstance(back, datetime)
    assert (back.tzinfo, back.fold, back.utcoffset()) == (ZoneInfo("Europe/Berlin"), 1, timedelta(hours=1))
    assert decode(encode(datetime(2024, 1, 1, tzinfo=UTC))).tzinfo is UTC  # type: ignore[attr-defined]

    class Odd(tzinfo):
        def utcoffset(self, when: datetime | None) -> timedelta:
            return timedelta(hours=5)

        def dst(self, when: datetime | None) -> None:
            return None

    assert decode(encode(datetime(2024, 1, 1, tzinfo=Odd()))) == datetime(
        2024, 1, 1, tzinfo=timezone(timedelta(hours=5))
    )


def test_sets_have_the_same_bytes_under_any_hash_seed() -> None:
    program = (
        "from dasync.core.codec import encode, CallShape\n"
        "v = {'x%d' % i for i in range(50)} | {None, 1, 2.5, ('t', 'u'), frozenset({'p', 'q', b'r'})}\n"
        "print(encode([v, {frozenset(v): 1}]).hex(), CallShape(()).encode((v,), {}, None)[0].hex())"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(outputs) == 1


# -- what annotations declare


class Color(enum.Enum):
    RED = "red"
    BLUE = 2
    PAIR = (1, "x")
    NOTHING = None


class Level(enum.IntEnum):
    LOW = 1


class Word(enum.StrEnum):
    A = "a"


class Bits(enum.Flag):
    A = 1
    B = 2


@dataclasses.dataclass
class Circle:
    size: int


@dataclasses.dataclass
class Square:
    size: int


@dataclasses.dataclass(frozen=True, slots=True)
class Point(Generic[T]):
    x: T
    y: T


@dataclasses.dataclass
class Node:
    name: str
    kids: list[Node] = dataclasses.field(default_factory=list)
    next: Node | None = None


@dataclasses.dataclass(kw_only=True)
class Order:
    id: UUID
    at: datetime
    price: Decimal
    weight: float = 1.0
    color: Color = Color.RED
    lines: tuple[Point[int], ...] = ()
    by_name: Mapping[str, Circle | Square] = dataclasses.field(default_factory=dict)
    colors: frozenset[Color] = frozenset()
    anything: object = None
    total: int = dataclasses.field(init=False, default=0)
    maybe: Optional[Circle] = None  # noqa: UP045  # both spellings are in use


class Row(NamedTuple):
    id: int
    color: Color = Color.RED


class Movie(TypedDict):
    name: str
    color: Color
    year: NotRequired[int]


class Plain(TypedDict):
    name: str


UserId = NewType("UserId", int)
Untyped = namedtuple("Untyped", "a b")

ORDER = Order(
    id=UUID(int=7),
    at=datetime(2024, 1, 1, tzinfo=UTC),
    price=Decimal("1.50"),
    weight=1,
    lines=(Point(1, 2), Point(3, 4)),
    by_name={"c": Circle(1), "s": Square(1)},
    colors=frozenset(Color) - {Color.NOTHING},
    anything={"k": (1, [2])},
    maybe=Circle(5),
)
ORDER.total = 9

ANNOTATED: list[tuple[object, object]] = [
    (ORDER, Order),
    (Node("a", [Node("b", [Node("c")])], Node("d")), Node),
    (Color.RED, Color),
    (Color.PAIR, Color),
    (Color.NOTHING, Color),
    (Level.LOW, Level),
    (Word.A, Word),
    (Bits.A | Bits.B, Bits),
    (Row(1, Color.BLUE), Row),
    (Untyped(1, "x"), Untyped),
    ({"name": "m", "color": Color.RED}, Movie),
    ({"name": "m", "color": Color.RED, "year": 1}, Movie),
    ({"name": "m"}, Plain),
    (None, Circle | None),
    (Circle(1), Circle | None),
    (Circle(1), Circle | Square),
    (Square(1), Circle | Square | None),
    (None, Circle | Square | None),
    ([Square(1)], list[Circle] | list[Square]),
    (3, Circle | int),
    ("red", Color | str),
    (Color.RED, Color | str),
    (Color.BLUE, Color | Circle),
    (Point(Color.RED, Color.RED), Point[Color]),
    (Point("a", 1), Point),
    (Point([1], [2]), Point[list[int]]),
    (UserId(3), UserId),
    ([Circle(1)], NewType("Circles", list[Circle])),
    ("a", Literal["a", "b"]),
    (Color.RED, Literal[Color.RED, "x"]),
    (Circle(2), Annotated[Circle, "note", ["unhashable"]]),
    ({Word.A: [Level.LOW]}, dict[Word, list[Level]]),
    ({Color.RED, Color.BLUE}, set[Color]),
    ((1, Circle(1), "x"), tuple[int, Circle, str]),
    ((), tuple[()]),
    ((Color.RED,), Sequence[Color]),
    ([Color.RED], Iterable[Color]),
    ([[1], {"a": None}], Any),
    ({"a": [1, "x", None]}, dict[str, list[int | str | None]]),
    (1.5, "an annotation that was never resolved"),
    ([1], Path | list[int]),
    ({"p": Row(1)}, dict[str, Row | None]),
]


def label(value: object) -> str:
    """A test's name: the same in each of the processes that share the tests out, whatever the order of their sets."""
    if isinstance(value, set):
        value = sorted(value, key=repr)
    return re.sub(" at 0x[0-9a-f]+", "", repr(value))[:40]


@pytest.mark.parametrize(("value", "annotation"), ANNOTATED, ids=label)
def test_declared_classes_come_back_as_they_were(value: object, annotation: object) -> None:
    data, copy = encode_result(value, annotation, None)
    assert copy == value
    assert type(copy) is type(value)
    assert encode(copy, annotation) == data == encode(value, annotation)
    assert decode(data, annotation) == value
    shape = CallShape((("p", annotation),), annotation, annotation)
    call, args, kwargs = shape.encode((value, value), {"k": value, "p": value}, None)
    assert shape.decode(call) == (args, kwargs) == ((value, value), {"k": value, "p": value})


def test_what_is_nested_keeps_its_exact_types() -> None:
    back = decode(encode(ORDER, Order), Order)
    assert isinstance(back, Order)
    assert type(back.weight) is int
    assert type(back.lines) is tuple
    assert type(back.by_name["s"]) is Square
    assert type(back.colors) is frozenset
    assert back.total == 9
    assert type(decode(encode([Word.A], list[Word]), list[Word])[0]) is Word  # type: ignore[index]


def test_the_function_never_gets_the_caller_s_own_object() -> None:
    node = Node("a")
    _, (copy,), _ = CallShape((("n", Node),)).encode((node,), {}, None)
    assert copy == node
    assert copy is not node


def test_type_aliases_are_seen_through() -> None:
    if sys.version_info < (3, 12):
        pytest.skip("the type statement is of 3.12")
    space: dict[str, Any] = {"Color": Color}
    exec(
        "type Json = dict[str, Json] | list[Json] | str | int | None\n"
        "type Colors[T] = dict[T, Color]\n"
        "type Tree = Color | list[Tree]",
        space,
    )
    for value, annotation in (
        ({"a": [1, None, {"b": "x"}]}, space["Json"]),
        ({"a": Color.RED}, space["Colors"][str]),
        ([Color.RED, [Color.BLUE]], space["Tree"]),
    ):
        assert decode(encode(value, annotation), annotation) == value


def test_attrs_classes_come_back_too() -> None:
    attrs = pytest.importorskip("attrs")
    made = attrs.make_class("Made", {"_x": attrs.field(type=Color), "y": attrs.field(type=int, default=1)})
    assert decode(encode(made(Color.RED), made), made) == made(Color.RED)


@dataclasses.dataclass
class Item:
    lock: object
    count: int = 0


@dataclasses.dataclass
class Cart:
    items: list[Item]
    owner: str = ""


@dataclasses.dataclass
class Derived(Circle):
    extra: int = 0


@dataclasses.dataclass
class Box(Generic[T]):
    inside: T


@dataclasses.dataclass
class Needy:
    x: int
    y: dataclasses.InitVar[int]

    def __post_init__(self, y: int) -> None:
        pass


class MyStr(str):
    __slots__ = ()


class MyInt(int):
    pass


REFUSED: list[tuple[object, object, str]] = [
    (Cart([Item(1), Item(2), Item(3), Item(threading.Lock())]), Cart, "value.items[3].lock is a _thread.lock"),
    ({"a": [0, {"b": object()}]}, object, "value['a'][1]['b'] is a object"),
    ([{1: (2, bytearray(b"x"))}], object, "value[0][1][1] is a bytearray"),
    ([memoryview(b"x")], object, "value[0] is a memoryview"),
    ([msgpack.ExtType(5, b"")], object, "value[0] is a msgpack.ext.ExtType"),
    (msgpack.Timestamp(1), object, "value is a msgpack.ext.Timestamp"),
    (Circle(1), object, "annotate the parameter, or the result, with its class"),
    ([Circle(1)], list, "value[0] is a test_codec.Circle"),
    ([Circle(1)], list[Any], "annotate the parameter, or the result, with its class"),
    (Color.RED, object, "annotate the parameter, or the result, with its class"),
    (Level.LOW, object, "annotate the parameter, or the result, with its class"),
    (Row(1), object, "annotate the parameter, or the result, with its class"),
    (MyStr("x"), object, "a subclass of str"),
    (MyStr("x"), str, "a subclass of str"),
    (MyInt(1), int, "a subclass of int"),
    (OrderedDict(a=1), dict, "a subclass of dict"),
    (deque([1]), deque[int], "value is a collections.deque"),
    (1j, object, "value is a complex"),
    (Path("x"), Path, "which cannot be stored"),
    (lambda: None, object, "value is a function"),
    ("a\ud800", object, "lone surrogate"),
    ({"a\ud800": 1}, object, "value.keys()[0] is a str with a lone surrogate"),
    (Derived(1), Circle, "expected Circle, found Derived"),
    ([Derived(1)], list[Circle], "value[0] is a test_codec.Derived"),
    (Square(1), Circle, "expected Circle, found Square"),
    ("red", Color, "expected Color, found str"),
    (Level.LOW, Color, "expected Color, found Level"),
    (Item(1, count="5"), Item, "value.count is a str"),  # type: ignore[arg-type]
    (Item(1, count=5.0), Item, "value.count is a float"),  # type: ignore[arg-type]
    (Cart(items=()), Cart, "value.items is a tuple"),  # type: ignore[arg-type]
    (Cart(items=[], owner=b"x"), Cart, "value.owner is a bytes"),  # type: ignore[arg-type]
    (Box([1, "x"]), Box[list[int]], "value.inside[1] is a str"),
    ((Circle(1), 2), tuple[Circle], "value is a tuple"),
    ((Circle(1), Square(1)), tuple[Circle, Circle], "value[1] is a test_codec.Square"),
    ({"name": "m", "color": "red"}, Movie, "value['color'] is a str"),
    ({"name": "m", "color": Color.RED, "more": 1}, Movie, "value is a dict"),
    ({"color": Color.RED}, Movie, "value is a dict"),
    (Row("x"), Row, "value.id is a str"),  # type: ignore[arg-type]
    (Circle(1), Square | Node | None, "expected"),
    ({Circle(1).size: Circle}, dict[int, Circle], "value[1] is a type"),
    ({frozenset({Path("x")})}, object, "value{...}{...}"),
]


@pytest.mark.parametrize(("value", "annotation", "text"), REFUSED, ids=label)
def test_what_cannot_come_back_is_refused_with_its_path(value: object, annotation: object, text: str) -> None:
    with pytest.raises(UnserializableValue) as caught:
        encode(value, annotation)
    assert text in str(caught.value)
    assert caught.value.__cause__ is not None
    with pytest.raises(UnserializableValue):
        encode_result(value, annotation, None)
    with pytest.raises(UnserializableValue) as caught:
        CallShape((("p", annotation),)).encode((value,), {}, None)
    assert text.replace("value", "args[0]", 1) in str(caught.value)
    with pytest.raises(UnserializableValue) as caught:
        CallShape((("p", annotation),)).encode((), {"p": value}, None)
    assert text.replace("value", "kwargs['p']", 1) in str(caught.value)


def test_an_annotation_that_cannot_be_used_refuses_when_used() -> None:
    class Odd:
        def __init__(self) -> None:
            self.x = 1

    with pytest.raises(UnserializableValue, match="y"):
        encode(Needy(1, 2), Needy)
    assert encode(None, Odd) == b"\xc0"


def test_a_class_whose_own_check_fails_on_the_way_back_is_refused_at_the_call() -> None:
    @dataclasses.dataclass
    class Once:
        x: int
        made = 0

        def __post_init__(self) -> None:
            type(self).made += 1
            if self.made > 1:
                raise RuntimeError("only once")

    with pytest.raises(UnserializableValue, match="only once"):
        encode(Once(1), Once)


def test_deep_and_circular_values_are_refused_on_both_sides() -> None:
    deepest: object = 1
    for _ in range(wire.DEPTH_MAX):
        deepest = [deepest]
    assert decode(encode(deepest)) == deepest
    for wrap in (lambda x: [x], lambda x: (x,), lambda x: {1: x}):
        with pytest.raises(UnserializableValue, match="nested deeper than 100"):
            encode(wrap(deepest))
    for depth in (101, 500, 200_000):
        with pytest.raises(DecodeError):
            decode(b"\x91" * depth + b"\x01")
    circle: list[object] = []
    circle.append({"me": circle})
    with pytest.raises(UnserializableValue, match=r"args\[0\] is nested deeper .* or contains itself"):
        CallShape(()).encode((circle,), {}, None)
    far: object = frozenset()
    for _ in range(wire.SETS_MAX):
        far = frozenset((far,))
    with pytest.raises(UnserializableValue, match="sets nested"):
        encode({far})


def test_a_chain_of_objects_comes_back_as_deep_as_plain_values_may_be() -> None:
    chain = Node("end")
    for _ in range(wire.DEPTH_MAX - 2):
        chain = Node("n", [], chain)
    assert decode(encode(chain, Node), Node) == chain
    with pytest.raises(UnserializableValue, match="nested deeper"):
        encode(Node("n", [], Node("n", [], chain)), Node)


def test_limits_name_path_size_and_remedy() -> None:
    shape = CallShape((("a", str), ("b", Node)))
    assert len(encode("x" * 98, limit=100)) == 100
    with pytest.raises(
        PayloadTooLarge, match=r"value: 102 bytes when encoded, more than the limit of 101; .*max_payload"
    ):
        encode("x" * 100, limit=101)
    with pytest.raises(PayloadTooLarge, match="result: 102 bytes"):
        encode_result("x" * 100, str, 101)
    with pytest.raises(PayloadTooLarge, match=r"the call's arguments: 104 bytes.*, 102 of them in args\[1\]"):
        CallShape(()).encode((1, "x" * 100), {}, 100)
    with pytest.raises(PayloadTooLarge, match=r"of them in kwargs\['b'\]"):
        shape.encode(("x",), {"b": Node("x" * 200)}, 100)
    assert shape.encode(("x" * 50,), {}, 1000)[1] == ("x" * 50,)


# -- hostile bytes

MARK = b"\xc7\x00\x01"
HOSTILE: dict[str, bytes] = {
    "nothing": b"",
    "truncated list": b"\x92\x01",
    "truncated str": b"\xa5abc",
    "trailing": b"\x01\x01",
    "reserved byte": b"\xc1",
    "huge array": b"\xdd\xff\xff\xff\xff",
    "huge array, some data": b"\xdd\x00\x4c\x4b\x40" * 1000 + b"\0" * 100_000,
    "huge map": b"\xdf\xff\xff\xff\xff",
    "huge str": b"\xdb\xff\xff\xff\xff",
    "huge bin": b"\xc6\xff\xff\xff\xffx",
    "huge ext": b"\xc9\xff\xff\xff\xff\x02",
    "unknown ext": b"\xd4\x63\x00",
    "negative ext": b"\xd4\xfe\x00",
    "lone surrogate": b"\xa3\xed\xa0\x80",
    "not utf-8": b"\xa1\xff",
    "duplicate keys": b"\x82\xa1a\x01\xa1a\x02",
    "duplicate keys of other types": b"\x82\x01\x01\xc3\x02",
    "list as key": b"\x81\x90\x01",
    "dict as key": b"\x81\x80\x01",
    "deep": b"\x91" * 200_000 + b"\x01",
    "deep maps": b"\x81\x01" * 150 + b"\x01",
    "bomb of lists": b"\xdd\x00\x4c\x4b\x40" + b"\x90" * 5_000_000,
    "bomb of maps": b"\xdd\x00\x4c\x4b\x40" + b"\x80" * 5_000_000,
    "bomb of sets": b"\xdd\x00\x1e\x84\x80" + b"\xd4\x03\x90" * 2_000_000,
    "bare mark": MARK,
    "mark in the middle": b"\x92\x01" + MARK,
    "two marks": b"\x93" + MARK + MARK + b"\x01",
    "mark as value": b"\x81\x01" + MARK,
    "mark as key": b"\x81" + MARK + b"\x01",
    "mark with bytes": b"\x91\xd4\x01\x00",
    "mark with bytes and a mark": b"\x92" + MARK + b"\xd4\x01\x00",
    "set of no list": b"\xd4\x02\x01",
    "set with a duplicate": b"\xc7\x03\x02\x92\x01\x01",
    "set of lists": b"\xd5\x02\x91\x90",
    "set, trailing": b"\xd5\x02\x90\x01",
    "naught of a time": b"\xc7\x00\x05",
    "time, other text": b"\xc7\x03\x05a|b",
    "zone that is a path": msgpack.packb(msgpack.ExtType(5, b"2024-01-01T00:00:00|0|../../etc/passwd")),
    "zone that is a folder": msgpack.packb(msgpack.ExtType(5, b"2024-01-01T00:00:00|0|Europe")),
    "zone unknown": msgpack.packb(msgpack.ExtType(5, b"2024-01-01T00:00:00|0|Mars/Olympus")),
    "fold": msgpack.packb(msgpack.ExtType(5, b"2024-01-01T00:00:00|7|")),
    "date": msgpack.packb(msgpack.ExtType(6, b"2024-02-30")),
    "delta, short": msgpack.packb(msgpack.ExtType(8, b"123")),
    "delta, too far": msgpack.packb(msgpack.ExtType(8, b"\x7f\xff\xff\xff" * 3)),
    "decimal": msgpack.packb(msgpack.ExtType(9, b"one")),
    "uuid": msgpack.packb(msgpack.ExtType(10, b"123")),
    "signaling NaN as key": b"\x81\xc7\x04\x09sNaN\x01",
    "signaling NaN in a set": b"\xc7\x08\x02\x91\xc7\x04\x09sNaN",
    "timestamp beyond years": b"\xc7\x0c\xff\x00\x00\x00\x00\x7f\xff\xff\xff\xff\xff\xff\xff",
}


def nested_sets(depth: int) -> bytes:
    data = b"\x90"
    for _ in range(depth):
        data = b"\x91" + msgpack.packb(msgpack.ExtType(3, data))
    return data


@pytest.mark.parametrize("data", [*HOSTILE.values(), nested_sets(500)], ids=[*HOSTILE, "deep sets"])
def test_hostile_bytes_raise_decode_error(data: bytes) -> None:
    with pytest.raises(DecodeError):
        decode(data)
    with pytest.raises(DecodeError):
        CallShape(()).decode(data)
    with pytest.raises(DecodeError):
        decode(data, Order)


def array(unit: bytes, size: int) -> bytes:
    return b"\xdd" + struct.pack(">I", size // len(unit)) + unit * (size // len(unit))


def ext(code: int, body: bytes) -> bytes:
    return b"\xc9" + struct.pack(">IB", len(body), code) + body


PRIME = 2**61 - 1  # Python's hash of a number is its remainder
COSTLY: dict[str, Callable[[int], bytes]] = {
    "lists": lambda size: array(b"\x90", size),
    "lists of one": lambda size: array(b"\x91\x01", size),
    "tuples of one": lambda size: array(b"\x92" + MARK + b"\x01", size),
    "dicts": lambda size: array(b"\x80", size),
    "dicts of one": lambda size: array(b"\x81\x01\x01", size),
    "sets": lambda size: array(b"\xd4\x02\x90", size),
    "decimals": lambda size: array(b"\xd4\x09\x31", size),
    "ints": lambda size: array(b"\xcd\x7f\x7f", size),
    "texts": lambda size: array(b"\xa2ab", size),
    "one key": lambda size: b"\xdf" + struct.pack(">I", size // 2) + b"\0\0" * (size // 2),
    "set of one": lambda size: ext(2, b"\xdd" + struct.pack(">I", size) + b"\0" * size),
    "an int": lambda size: ext(4, b"\x7f" * size),
    "a decimal": lambda size: ext(9, b"9" * size),
    "a date": lambda size: ext(6, b"2" * size),
    "a zone": lambda size: ext(5, b"2024-01-01T00:00:00|0|" + b"A" * size),
    "deep": lambda size: b"\x91" * size + b"\x01",
    "deep maps": lambda size: b"\x81\x01" * (size // 2) + b"\x01",
    "huge lengths": lambda size: b"\xdd\x00\x4c\x4b\x40" * (size // 5),
    "huge maps": lambda size: b"\xdf\x00\x4c\x4b\x40\x01" * (size // 6),
    "noise": lambda size: random.Random(1).randbytes(size),
    "keys with one hash": lambda size: b"\xdf" + struct.pack(">I", size // 19) + b"".join(
        b"\xd8\x04" + (PRIME * (i + 1)).to_bytes(16, "big") + b"\0" for i in range(size // 19)
    ),
    "elements with one hash": lambda size: ext(2, b"\xdd" + struct.pack(">I", size // 18) + b"".join(
        b"\xd8\x04" + (PRIME * (i + 1)).to_bytes(16, "big") for i in range(size // 18)
    )),
    "keys of tuples with one hash": lambda size: b"\xdf" + struct.pack(">I", size // 23) + b"".join(
        b"\x92" + MARK + b"\xd8\x04" + (PRIME * (i + 1)).to_bytes(16, "big") + b"\0" for i in range(size // 23)
    ),
}  # fmt: skip


def costs(size: int, names: Iterable[str]) -> Iterator[tuple[str, float, float, str]]:
    """Decode what `COSTLY` makes: its name, seconds of this thread, and the most MB that this process ever held."""
    for name in names:
        data, told = COSTLY[name](size), ""
        began = thread_time()
        try:
            decode(data)
        except DecodeError as error:
            told = str(error)
        took = thread_time() - began
        held = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
        yield name, took, int(held.split()[1]) / 1000, told


# A process of its own tells what memory it took, and nothing in it is slower for being watched.
def measured(size: int, names: Iterable[str]) -> list[tuple[str, float, float, str]]:
    program = f"import json, test_codec as t; print(json.dumps([*t.costs(1, ['ints']), *t.costs({size}, {[*names]})]))"
    path = os.pathsep.join((str(ROOT), str(ROOT / "tests")))
    done = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": path}, capture_output=True, check=True
    )
    return [tuple(row) for row in json.loads(done.stdout)]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="tells the memory of a process")
def test_what_bytes_cost_is_bounded() -> None:
    """The most that `max_payload` lets through by default takes less than 160 MB and 10 s, whatever is in it; and 5 MB
    of empty lists, which would be 370 MB of them, take no more."""
    (_, _, before, _), *rows = measured(2 * 2**20, COSTLY)
    assert [row for row in rows if row[1] > 10] == []  # the slowest took 1.5 s; without the limits it was minutes
    assert [row for row in rows if row[2] > before + 160] == []
    (_, _, before, _), *rows = measured(5_000_000, ["lists", "dicts of one", "sets", "decimals"])
    assert [row for row in rows if row[2] > before + 160] == []
    assert {row[3] for row in rows} == {"more than 1000000 containers in one payload"}


def test_keys_with_one_hash_are_refused_on_both_sides() -> None:
    few = {PRIME * i: None for i in range(64)}
    many = {PRIME * i: None for i in range(1000)}
    apart = {i * 2**40: None for i in range(10_000)}
    for good in (few, set(few), apart, set(apart)):
        assert decode(encode(good)) == good
    for bad in (many, set(many), {Decimal(key): None for key in many}, {(key,) for key in many}):
        with pytest.raises(UnserializableValue, match="more than 64 keys of a map, or elements of a set, with"):
            encode(bad)


@pytest.mark.parametrize("data", [None, 5, "text", [1]])
def test_what_is_no_bytes_raises_decode_error(data: object) -> None:
    with pytest.raises(DecodeError):
        decode(data)  # type: ignore[arg-type]


CALLS = [
    1,
    "x",
    None,
    {"args": [1]},
    {"args": 1, "kwargs": {}},
    {"args": [], "kwargs": []},
    {"args": [], "kwargs": {1: 1}},
]


@pytest.mark.parametrize("form", [*CALLS, (1, 2), {"args": (), "kwargs": {}}, {"args": [], "kwargs": {}, "more": 1}])
def test_only_a_call_decodes_as_a_call(form: object) -> None:
    with pytest.raises(DecodeError):
        CallShape(()).decode(encode(form))


MISFITS: list[tuple[object, object]] = [
    ({"size": "1"}, Circle),
    ({"size": 1, "more": 2}, Circle),
    ({}, Circle),
    ([1], Circle),
    ({"Triangle": {"size": 1}}, Circle | Square),
    ("green", Color),
    (True, Level),
    ([1], Row),
    ((1, "red", 3), Row),
    ({"name": 1, "color": "red"}, Movie),
    (((1, 2),), tuple[Circle, ...]),
    ("c", Literal[Color.RED]),
    ({"name": "x", "kids": [{"name": 1}]}, Node),
    ([{"size": 1}], dict[str, Circle]),
]


@pytest.mark.parametrize(("plain", "annotation"), MISFITS)
def test_what_does_not_fit_the_annotation_raises_decode_error(plain: object, annotation: object) -> None:
    with pytest.raises(DecodeError, match="does not fit its annotation"):
        decode(encode(plain), annotation)


def test_a_payload_names_no_class() -> None:
    for plain in (
        {"__class__": "os:system", "args": ["true"]},
        {"Circle": {"size": 1}},
        {"_type": "Circle", "size": 1},
    ):
        assert decode(encode(plain)) == plain


def test_values_written_before_a_union_grew_are_still_read() -> None:
    assert decode(encode(Circle(1), Circle), Circle | Square) == Circle(1)
    assert decode(encode(Circle(1), Circle | None), Circle | Square | None) == Circle(1)


def test_a_large_payload_within_the_limits_passes() -> None:
    value = [{"id": i, "pair": (i, str(i))} for i in range(20_000)]
    assert decode(encode(value)) == value
    noise = bytes(range(256)) * 30_000
    assert decode(encode([noise, (1,)])) == [noise, (1,)]


def test_a_foreign_timestamp_is_a_datetime() -> None:
    assert decode(msgpack.packb(msgpack.Timestamp(0))) == datetime(1970, 1, 1, tzinfo=UTC)


# -- the hot path


def test_primitives_are_given_back_as_they_are_without_decoding() -> None:
    args = (1, "x", None, 2.5, b"y", True)
    data, copy, kwargs = CallShape((("a", int),)).encode(args, {}, None)
    assert copy is args
    assert kwargs == {}
    assert data == msgpack.packb(list(args))
    assert CallShape(()).encode((2**70,), {}, None)[1] == (2**70,)
    for wrong in ("\ud800", 2**64 + 5):  # the shared packer is clean after an error
        with contextlib.suppress(UnserializableValue):
            CallShape(()).encode((wrong,), {}, None)
        assert CallShape(()).encode((1,), {}, None)[0] == b"\x91\x01"


def test_a_declared_class_is_checked_even_for_a_primitive() -> None:
    with pytest.raises(UnserializableValue, match=r"args\[0\] is a str"):
        CallShape((("c", Color),)).encode(("red",), {}, None)
    assert CallShape((("c", Circle | None),)).encode((None,), {}, None)[1] == (None,)


def test_shapes_are_plain_where_no_walk_is_needed() -> None:
    plain = (
        int,
        str,
        None,
        object,
        Any,
        list[int],
        dict[str, list[float]],
        int | str | None,
        Plain,
        Literal["a"],
        tuple[int, ...],
    )
    assert all(shape_of(annotation).plain for annotation in plain)
    assert not any(shape_of(annotation).plain for annotation in (Circle, list[Circle], Color, Color | None, Movie))


def test_shapes_may_be_made_by_many_threads_at_once() -> None:
    classes = [dataclasses.make_dataclass(f"C{i}", [("x", int), ("y", list[Node])]) for i in range(20)]
    wrong: list[BaseException] = []

    def work() -> None:
        try:
            for cls in classes:
                assert decode(encode(cls(1, [Node("a")]), cls), cls) == cls(1, [Node("a")])
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


# -- pydantic, where it is


def pydantic_models() -> Any:
    pydantic = pytest.importorskip("pydantic")

    class Inner(pydantic.BaseModel):
        color: Color
        when: datetime

    class Outer(pydantic.BaseModel):
        inner: Inner
        many: list[Inner] = pydantic.Field(default_factory=list)
        pair: tuple[int, float] = (1, 2.0)
        alias: int = pydantic.Field(default=1, alias="Alias")
        exact: Decimal | str = "1"

    class Wider(Inner):
        more: int = 1

    namespace = {"Inner": Inner, "datetime": datetime, "Color": Color}
    Inner.model_rebuild(_types_namespace=namespace)
    Outer.model_rebuild(_types_namespace=namespace)
    return Inner, Outer, Wider


def test_pydantic_models_come_back_as_they_were() -> None:
    inner_class, outer_class, wider_class = pydantic_models()
    inner = inner_class(color=Color.RED, when=datetime(2024, 1, 1, tzinfo=UTC))
    outer = outer_class(inner=inner, many=[inner], pair=(1, float("nan")), Alias=5, exact=Decimal("1.0"))
    back = decode(encode(outer, outer_class), outer_class)
    assert repr(back) == repr(outer)
    assert decode(encode([inner, None], list[inner_class | None]), list[inner_class | None]) == [inner, None]
    assert decode(encode(Box(inner), Box[inner_class]), Box[inner_class]) == Box(inner)
    with pytest.raises(UnserializableValue, match="annotate the parameter, or the result, with its class"):
        encode(inner)
    with pytest.raises(UnserializableValue, match="expected"):
        encode(wider_class(color=Color.RED, when=inner.when), inner_class)
    wide = outer_class(inner=inner)
    wide.inner = wider_class(color=Color.RED, when=inner.when)
    with pytest.raises(UnserializableValue):
        encode(wide, outer_class)
    with pytest.raises(DecodeError):
        decode(encode({"color": "red"}), inner_class)


def test_pydantic_is_never_imported_by_the_codec() -> None:
    program = "import sys, dasync.core.failure; sys.exit('pydantic' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True)


@pytest.mark.parametrize("name", ["wire", "hints", "form", "shape", "codec", "failure"])
def test_the_codec_s_rooms_know_no_clock_and_no_disk(name: str) -> None:
    module = importlib.import_module(f"dasync.core.{name}")
    taken = {value.__name__ for value in vars(module).values() if isinstance(value, type(typing))}
    assert taken.isdisjoint({"time", "random", "os", "sqlite3", "asyncio", "pickle"})
