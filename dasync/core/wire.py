"""Plain values to msgpack and back, exactly: what `loads` gives has the types that `dumps` was given.

Plain are None, bool, int of any size, float, str, bytes, list, tuple, dict, set, frozenset, datetime, date, time,
timedelta, Decimal and UUID, nested in each other. A tuple is an array behind a mark; the others are extension
types. Equal values have equal bytes, whatever the order in which a set iterates.

It refuses everything else, subclasses too, and every byte string that it would not have written in kind: it
builds nothing but the types above, and what it builds is bounded by the constants below.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from datetime import date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from functools import partial
from itertools import chain
from struct import Struct
from typing import cast
from uuid import UUID
from zoneinfo import ZoneInfo

from msgpack import ExtType, Packer, Timestamp, Unpacker, unpackb  # type: ignore[import-untyped]  # it has none

from dasync.errors import DecodeError

DEPTH_MAX = 100  # containers in containers: classes take 5 Python frames per level, of the 1000 that there are
CONTAINERS_MAX = 1_000_000  # in one payload; an empty list is 1 byte there and 64 in memory, a dict counts twice
ALIKE_MAX = 64  # keys of a dict, elements of a set, with the same hash: n of them cost n * n comparisons
ALIKE_FROM = 256  # as many may all be alike
SETS_MAX = 8  # sets in sets: each level holds a copy of its bytes
REASON_MAX = 500  # characters of another error's text: a validator may say as much as the value has
SCREEN_MIN_BYTES = 4096  # from here on lengths are checked before memory is taken for them

PRIMITIVES = frozenset((type(None), bool, int, float, str, bytes))  # immutable, the same object after a round trip

_TUPLE, _SET, _FROZENSET, _INT, _DATETIME, _DATE, _TIME, _TIMEDELTA, _DECIMAL, _UUID = range(1, 11)
_MARK = ExtType(_TUPLE, b"")
_MARK_BYTES = b"\xc7\x00\x01"
_CONTAINERS = frozenset((list, tuple, dict, set, frozenset))
_SALTED = frozenset((str, bytes, type(None), bool))  # or few
_WORD = 2**64  # of the ints below, 17 at most have the same hash
_FOREIGN = frozenset((bytearray, memoryview, ExtType, Timestamp))  # msgpack writes them, they come back as others
_HEADERS = bytes((*range(0x80, 0xA0), *range(0xC7, 0xCA), *range(0xD4, 0xD9), *range(0xDC, 0xE0)))
_FOREIGN_HEADERS = bytes((*range(0xC4, 0xCA), *range(0xD4, 0xD9)))
_DELTA = Struct(">iii")

# One packer for flat primitives: it never calls back into Python, so no thread and no finalizer can come between.
pack_primitives: Callable[[object], bytes] = Packer().pack


def dumps(value: object) -> bytes:
    """Raise TypeError, ValueError or OverflowError for what is not plain."""
    data: bytes = Packer(default=_default, strict_types=True, buf_size=256).pack(value)
    suspect = data.replace(_MARK_BYTES, b"")
    if len(suspect.translate(None, _FOREIGN_HEADERS)) != len(suspect):
        survey(value)
    return data


def loads(data: bytes) -> object:
    """Raise DecodeError, and nothing else, for what `dumps` would not have written in kind."""
    try:
        if len(data) > DEPTH_MAX or _MARK_BYTES in data:
            return _load(data, 0, None)
        value: object = unpackb(
            data, strict_map_key=False, timestamp=3, object_pairs_hook=_dict, ext_hook=_EXT_HOOKS[0]
        )
        return value
    except DecodeError:
        raise
    except Exception as error:  # whatever hostile bytes provoke, in msgpack or in a constructor
        raise DecodeError(f"the stored bytes are not a value of dasync's: {reason(error)}") from error


def reason(error: Exception) -> str:
    """What an error says, on one line, for another's text: some of msgpack's say nothing, some of cattrs' cannot."""
    try:
        told = " ".join(str(error).split())
    except Exception:
        told = ""
    return f"{told:.{REASON_MAX}}" or type(error).__name__


def survey(value: object) -> None:
    """Raise for a value nested deeper than DEPTH_MAX, or with a type in it that msgpack would take for another."""
    level = [value]
    for _ in range(DEPTH_MAX + 1):
        kinds = set(map(type, level))
        if foreign := kinds & _FOREIGN:
            raise TypeError(f"{foreign.pop().__name__} is not a plain type")
        if kinds.isdisjoint(_CONTAINERS):
            return
        level = list(chain.from_iterable(map(_items, level)))
    raise ValueError(f"nested deeper than {DEPTH_MAX} levels")


def _items(value: object) -> Iterable[object]:
    if type(value) is dict:
        return chain(value, value.values())
    return value if isinstance(value, (list, tuple, set, frozenset)) else ()


def _load(data: bytes, depth: int, built: list[int] | None) -> object:
    headers = 0
    if len(data) > DEPTH_MAX:  # shorter ones can neither nest too deep nor hold too much
        headers = len(data) - len(data.translate(None, _HEADERS))  # at least the number of containers
        if len(data) > SCREEN_MIN_BYTES:
            _screen(data)
    value: object
    if built is None and headers <= CONTAINERS_MAX // 2 and _MARK_BYTES not in data:
        value = unpackb(data, strict_map_key=False, timestamp=3, object_pairs_hook=_dict, ext_hook=_EXT_HOOKS[depth])
    else:
        builder = _Builder(depth, built or [0])
        value = unpackb(
            data,
            strict_map_key=False,
            timestamp=3,
            list_hook=builder.array,
            object_pairs_hook=builder.map,
            ext_hook=builder.ext,
        )
        if builder.marks:
            raise DecodeError("a tuple's mark stands where no tuple begins")
    if headers > DEPTH_MAX and depth == 0:
        survey(value)
    return value


def _screen(data: bytes) -> None:
    """Go through the whole without building it: msgpack takes memory for a length before it finds it a lie."""
    unpacker = Unpacker(max_buffer_size=len(data))
    unpacker.feed(data)
    unpacker.skip()


class _Builder:
    """Builds one payload that holds tuples, or that may hold too much; `marks` counts tuples begun, not ended."""

    __slots__ = ("built", "depth", "marks")

    def __init__(self, depth: int, built: list[int]) -> None:
        self.depth = depth
        self.built = built
        self.marks = 0

    def array(self, items: list[object]) -> object:
        self.count()
        if items and items[0] is _MARK:
            self.marks -= 1
            return tuple(items[1:])
        return items

    def map(self, pairs: list[tuple[object, object]]) -> dict[object, object]:
        self.count()
        self.count()
        return _dict(pairs)

    def ext(self, code: int, data: bytes) -> object:
        if code != _TUPLE:
            self.count()
            return _ext(self.depth, self.built, code, data)
        if data:
            raise DecodeError("a tuple's mark holds bytes")
        self.marks += 1
        return _MARK

    def count(self) -> None:
        self.built[0] += 1
        if self.built[0] > CONTAINERS_MAX:
            raise DecodeError(f"more than {CONTAINERS_MAX} containers in one payload")


def _dict(pairs: list[tuple[object, object]]) -> dict[object, object]:
    if len(pairs) > ALIKE_FROM:
        _tell_apart([key for key, _ in pairs])
    result = dict(pairs)
    if len(result) != len(pairs):
        raise DecodeError("a map with duplicate keys")
    return result


def _tell_apart(keys: list[object]) -> None:
    """Python salts the hashes of text and bytes alone: of numbers, anybody can make many with one hash."""
    kinds = set(map(type, keys))
    if kinds <= _SALTED:
        return
    if kinds == {int}:
        numbers = cast("list[int]", keys)
        if min(numbers) > -_WORD and max(numbers) < _WORD:
            return
    hashes = list(map(hash, keys))
    if len(set(hashes)) < len(keys) and Counter(hashes).most_common(1)[0][1] > ALIKE_MAX:
        raise DecodeError(f"more than {ALIKE_MAX} keys of a map, or elements of a set, with the same hash")


def _ext(depth: int, built: list[int] | None, code: int, data: bytes) -> object:
    if code in (_SET, _FROZENSET):
        if depth >= SETS_MAX:
            raise DecodeError(f"sets nested deeper than {SETS_MAX} levels")
        items = _load(data, depth + 1, built)
        if type(items) is not list:
            raise DecodeError("a set without elements' list")
        if len(items) > ALIKE_FROM:
            _tell_apart(items)
        result = set(items) if code == _SET else frozenset(items)
        if len(result) != len(items):
            raise DecodeError("a set with duplicate elements")
        return result
    if code not in _FROM_EXT:
        raise DecodeError(f"unknown extension type {code}")
    return _FROM_EXT[code](data)


_EXT_HOOKS = tuple(partial(_ext, depth, None) for depth in range(SETS_MAX + 1))


def _default(value: object) -> object:
    """What msgpack cannot write by itself; ints come here when 64 bits do not hold them."""
    to_ext = _TO_EXT.get(type(value))
    if to_ext is None:
        raise TypeError(f"{type(value).__qualname__} is not a plain type")
    return to_ext(value)


def _from_set(code: int, value: Iterable[object]) -> ExtType:
    items = sorted(map(dumps, value))
    return ExtType(code, Packer().pack_array_header(len(items)) + b"".join(items))


def _from_moment(code: int, value: datetime | time) -> ExtType:
    """As `2024-02-29T12:00:00|fold|zone`, the zone a key, an offset or nothing."""
    local, zone = value.replace(tzinfo=None, fold=0).isoformat(), value.tzinfo
    if type(zone) is ZoneInfo and zone.key:
        place = zone.key
    else:
        place = value.replace(fold=value.fold).isoformat()[len(local) :]
        if zone is not None and not place:
            raise TypeError("its tzinfo gives no offset")
    return ExtType(code, f"{local}|{value.fold}|{place}".encode())


def _to_moment(kind: type[datetime] | type[time], data: bytes) -> datetime | time:
    local, fold, place = data.decode().split("|")
    zone: tzinfo | None = None
    if place[:1] in ("+", "-"):
        away = time.fromisoformat(place[1:])  # not by datetime's own parser, which drops +00:00:00.000001
        offset = timedelta(0, away.second, away.microsecond, 0, away.minute, away.hour)
        zone = timezone(offset if place[0] == "+" else -offset)
    elif place:
        zone = ZoneInfo(place)
    moment = kind.fromisoformat(local)
    if moment.tzinfo is not None:
        raise DecodeError("a local time with an offset of its own")
    return moment.replace(fold=int(fold), tzinfo=zone)


_TO_EXT: dict[type, Callable[..., object]] = {
    tuple: lambda value: [_MARK, *value],
    set: partial(_from_set, _SET),
    frozenset: partial(_from_set, _FROZENSET),
    int: lambda value: ExtType(_INT, value.to_bytes(value.bit_length() // 8 + 1, "big", signed=True)),
    datetime: partial(_from_moment, _DATETIME),
    date: lambda value: ExtType(_DATE, value.isoformat().encode()),
    time: partial(_from_moment, _TIME),
    timedelta: lambda value: ExtType(_TIMEDELTA, _DELTA.pack(value.days, value.seconds, value.microseconds)),
    Decimal: lambda value: ExtType(_DECIMAL, str(value).encode()),
    UUID: lambda value: ExtType(_UUID, value.bytes),
}
_FROM_EXT: dict[int, Callable[[bytes], object]] = {
    _INT: lambda data: int.from_bytes(data, "big", signed=True),
    _DATETIME: partial(_to_moment, datetime),
    _DATE: lambda data: date.fromisoformat(data.decode()),
    _TIME: partial(_to_moment, time),
    _TIMEDELTA: lambda data: timedelta(*_DELTA.unpack(data)),
    _DECIMAL: lambda data: Decimal(data.decode()),
    _UUID: lambda data: UUID(bytes=data),
}
