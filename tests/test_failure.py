"""Errors to bytes and back: what they were where their class is known, a description where it is not."""

from __future__ import annotations

import asyncio
import builtins
import dataclasses
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dasync
from dasync import errors
from dasync.core.codec import decode, encode
from dasync.core.failure import REMOTE, decode_error, encode_error, error_name
from dasync.errors import DasyncError, DecodeError, PayloadTooLarge, PromiseTimedOut, RemoteError

Registry = dict[str, type[BaseException]]


class OutOfStock(Exception):
    """With an `__init__` that does not take its own args."""

    def __init__(self, code: int, *, hint: str = "") -> None:
        super().__init__(f"code {code}")
        self.code = code
        self.hint = hint


class Strange(Exception):
    """Whose text needs an attribute."""

    def __init__(self, part: object) -> None:
        self.part = part

    def __str__(self) -> str:
        return f"strange {self.part}"


class FileTrouble(OSError):
    def __init__(self, path: str) -> None:
        super().__init__(2, "no such thing", path)
        self.place = path


class Mute(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__


class Herd(ExceptionGroup[Exception]):
    pass


@dataclasses.dataclass
class Declared(Exception):
    code: int
    why: str = "because"


@dataclasses.dataclass(frozen=True)
class Frozen(Exception):
    code: int


class Slotted(Exception):
    __slots__ = ("code",)

    def __init__(self, code: int) -> None:
        super().__init__("slotted")
        self.code = code


class Guarded(Exception):
    """That lets nobody set its attributes."""

    def __setattr__(self, name: str, value: object) -> None:
        raise RuntimeError("no")


class Own(DasyncError):
    pass


class Both(ValueError, KeyError):
    pass


class Counted(ExceptionGroup[Exception]):
    """With a `__new__` that does not take its own args."""

    def __new__(cls, errors: list[Exception], code: int) -> Counted:
        made = super().__new__(cls, "counted", errors)
        made.code = code
        return made

    code: int


CLASSES = (OutOfStock, Strange, FileTrouble, Herd, Declared, Frozen, Slotted, Guarded, Own, Both, Counted)
REGISTRY: Registry = {error_name(cls): cls for cls in CLASSES}


def raised(error: BaseException) -> BaseException:
    try:
        raise error
    except BaseException as caught:
        return caught


def again(error: BaseException, limit: int | None = None, registry: Registry = REGISTRY) -> Any:
    data = encode_error(error, limit)
    assert limit is None or len(data) <= limit
    return decode_error(data, registry)


def bare(error: BaseException) -> list[str]:
    return [note for note in getattr(error, "__notes__", []) if not note.startswith(REMOTE)]


def undecodable() -> UnicodeDecodeError:
    with pytest.raises(UnicodeDecodeError) as caught:
        b"\xff".decode()
    return caught.value


KNOWN = [
    ValueError("x", 1, None),
    ValueError(),
    KeyError("k"),
    KeyError(("a", frozenset({1}))),
    OSError(2, "No such file", "/tmp/x"),
    FileNotFoundError(2, "No such file", "a", None, "b"),
    OSError("just text"),
    ConnectionResetError(104, "reset"),
    undecodable(),
    UnicodeEncodeError("ascii", "x", 0, 1, "why"),
    ImportError("no", name="mod", path="/x"),
    NameError("n", name="n"),
    AttributeError("a", name="b"),
    SyntaxError("bad", ("f.py", 1, 2, "text", 1, 3)),
    TimeoutError("late"),
    TimeoutError(),
    StopAsyncIteration("x"),
    UserWarning("w"),
    DasyncError("own"),
    PromiseTimedOut("order-1"),
    errors.PromiseNotFound("x"),
    RemoteError("a:B", "text", "traceback"),
    errors.UnserializableValue("path"),
    OutOfStock(5, hint="later"),
    Strange([1]),
    FileTrouble("/data"),
    Declared(5),
    Frozen(5),
    Slotted(5),
    Guarded("a", {1, 2}),
    Own("x"),
    Both("x"),
    BlockingIOError(11, "again", 5),
    KeyError({frozenset({1}): {2.5}}),
]


@pytest.mark.parametrize("error", KNOWN, ids=repr)
def test_known_errors_come_back_as_they_were(error: BaseException) -> None:
    back = again(raised(error))
    assert type(back) is type(error)
    assert back.args == error.args
    assert str(back) == str(error)
    assert {k: v for k, v in vars(back).items() if k != "__notes__"} == vars(error)
    for name in ("errno", "strerror", "filename", "filename2", "name", "path", "reason", "lineno", "code"):
        assert getattr(back, name, None) == getattr(error, name, None)


def test_every_builtin_error_of_one_argument_keeps_its_type() -> None:
    kinds = [k for k in vars(builtins).values() if isinstance(k, type) and issubclass(k, Exception)]
    for kind in kinds:
        if issubclass(kind, (UnicodeError, BaseExceptionGroup, StopIteration)) and kind is not UnicodeError:
            continue
        assert type(again(kind("x"))) is kind
    assert type(again(StopIteration(1))) is RemoteError


def test_notes_and_causes_are_put_on_errors_that_refuse_attributes() -> None:
    error = Frozen(1)
    vars(error)["__notes__"] = ["note"]
    BaseException.__setattr__(error, "__cause__", Guarded("x"))
    back = again(error)
    assert (type(back), bare(back), type(back.__cause__)) == (Frozen, ["note"], Guarded)
    assert back.__suppress_context__ is True


def test_a_text_that_cannot_be_stored_keeps_its_positions() -> None:
    with pytest.raises(UnicodeEncodeError) as caught:
        "ab\ud800c".encode()
    back = again(caught.value)
    assert (type(back), back.object, back.start, back.end) == (UnicodeEncodeError, "ab?c", 2, 3)
    with pytest.raises(FileNotFoundError) as missing:
        os.stat(Path("/no/such/file"))
    assert again(missing.value).filename == "/no/such/file"
    assert str(again(missing.value)) == str(missing.value)


def test_causes_notes_and_suppression_come_back() -> None:
    cause = raised(KeyError("inner"))
    cause.__cause__ = OutOfStock(1)
    error = ValueError("outer")
    error.add_note("first")
    error.add_note("second")
    error.__cause__ = cause
    back = again(raised(error))
    assert bare(back) == ["first", "second"]
    assert back.__notes__[:2] == ["first", "second"]
    assert repr(back.__cause__) == "KeyError('inner')"
    assert back.__cause__.__cause__.code == 1
    assert back.__cause__.__cause__.__cause__ is None
    assert back.__suppress_context__ is True
    assert not hasattr(back.__cause__, "__notes__")
    plain = ValueError("x")
    assert again(plain).__suppress_context__ is False
    plain.__suppress_context__ = True
    assert again(plain).__suppress_context__ is True


def test_a_chain_of_causes_is_bounded_and_may_be_a_circle() -> None:
    first = error = ValueError(0)
    for i in range(1, 50):
        error.__cause__ = ValueError(i)
        error = error.__cause__
    back, length = again(first), 0
    while back is not None:
        assert back.args == (length,)
        back, length = back.__cause__, length + 1
    assert length == 11
    error.__cause__ = first
    again(first)
    loop = ValueError("loop")
    loop.__cause__ = loop
    assert again(loop).__cause__ is None


def test_groups_come_back_with_their_members() -> None:
    inner = ExceptionGroup("inner", [KeyError("k"), OutOfStock(3)])
    error = BaseExceptionGroup("outer", [inner, KeyboardInterrupt("stop"), ValueError("v")])
    error.exceptions[2].add_note("n")
    back = again(raised(error))
    assert isinstance(back, BaseExceptionGroup)
    assert back.message == "outer"
    assert [type(e) for e in back.exceptions] == [ExceptionGroup, RemoteError, ValueError]
    assert back.exceptions[0].exceptions[1].code == 3
    assert bare(back.exceptions[2]) == ["n"]
    assert type(again(Herd("h", [ValueError(1)]))) is Herd
    assert again(Herd("h", [ValueError(1)])).args[0] == "h"
    counted = again(Counted([ValueError(1)], 5))
    assert (type(counted), counted.message, counted.code) == (Counted, "counted", 5)
    many = again(ExceptionGroup("many", [ValueError(i) for i in range(5000)]))
    assert len(many.exceptions) == 99
    assert any("4901 more errors" in note for note in bare(many))
    deep: Exception = ValueError("bottom")
    for _ in range(100):
        deep = ExceptionGroup("deep", [deep])
    again(deep)


def test_the_traceback_comes_along_as_text() -> None:
    def guilty() -> None:
        raise ValueError("here")

    with pytest.raises(ValueError, match="here") as caught:
        guilty()
    caught.value.add_note("mine")
    back = again(caught.value)
    assert back.__notes__[0] == "mine"
    assert back.__notes__[1].startswith(REMOTE)
    assert "in guilty" in back.__notes__[1]
    assert len(back.__notes__) == 2
    twice = again(raised(again(raised(back))))
    assert len(twice.__notes__) == 2
    assert bare(twice) == ["mine"]
    assert twice.__notes__[1].count("in guilty") == 1
    assert twice.__notes__[1].count("in raised") == 2


def test_an_error_that_nobody_raised_has_no_traceback() -> None:
    """Not an empty one either; what it came through before, and what caused it, is kept."""
    assert not hasattr(again(ValueError("given by hand")), "__notes__")
    came = again(raised(ValueError("here")))
    assert again(came).__notes__ == came.__notes__
    caused = ValueError("given by hand")
    caused.__cause__ = raised(KeyError("why"))
    assert "in raised" in again(caused).__notes__[0]


def test_an_error_of_an_unknown_class_is_a_remote_error() -> None:
    class Unknown(Exception):
        pass

    error = Unknown("text")
    error.__cause__ = KeyError(1)
    error.add_note("note")
    back = again(raised(error))
    assert type(back) is RemoteError
    assert back.type == error_name(Unknown)
    assert back.type.endswith(":test_an_error_of_an_unknown_class_is_a_remote_error.<locals>.Unknown")
    assert back.message == "text"
    assert "in raised" in back.traceback
    assert repr(back.__cause__) == "KeyError(1)"
    assert bare(back) == ["note"]
    assert type(again(OutOfStock(1), registry={})) is RemoteError
    twice = again(back)
    assert (type(twice), twice.type, twice.message) == (RemoteError, back.type, "text")


@pytest.mark.parametrize(
    "signal",
    [
        KeyboardInterrupt("x"),
        SystemExit(3),
        GeneratorExit(),
        asyncio.CancelledError("c"),
        errors.Suspended(),
        errors.LeaseLost(),
        errors.InvariantViolated("bug"),
    ],
    ids=repr,
)
def test_signals_become_remote_errors(signal: BaseException) -> None:
    back = again(signal)
    assert type(back) is RemoteError
    assert back.type == error_name(type(signal))
    assert back.message == str(signal)


@pytest.mark.parametrize(
    "kind",
    [KeyboardInterrupt, SystemExit, GeneratorExit, StopIteration, asyncio.CancelledError, errors.Suspended,
     errors.LeaseLost, errors.InvariantViolated],
)  # fmt: skip
def test_a_signal_comes_back_as_no_signal_even_if_it_is_registered(kind: type[BaseException]) -> None:
    """A module that says `from asyncio import CancelledError` must not let a stored one cancel who awaits it."""

    class Mine(kind):  # type: ignore[valid-type,misc]  # a parameter
        pass

    for cls in (kind, Mine):
        name = error_name(cls)
        data = encode({"type": name, "message": "m"})
        assert type(decode_error(data, {name: cls})) is RemoteError
        here = encode({"type": f"__main__:{cls.__qualname__}", "message": "m"})
        assert type(decode_error(here, {name: cls})) is RemoteError
        with pytest.raises(TypeError, match="ends or redirects the code that meets it"):
            dasync.error(cls)


def test_what_is_kept_of_an_error_has_the_same_bytes_under_any_hash_seed() -> None:
    """All but texts: how Python prints a set depends on the seed."""
    program = """
from dasync.core.codec import decode, encode
from dasync.core.failure import encode_error
class Odd(OSError):
    __slots__ = ("one", "two", "three", "four")
names = {"x%d" % i for i in range(50)}
error = Odd(2, "no", "a", None, "b")
error.one, error.two, error.three, error.four, error.more = names, frozenset(names), {"k": names}, [names], (names,)
error.__cause__ = ExceptionGroup("g", [ValueError(names), KeyError(frozenset(names), {"a": [names]})])
error.add_note("n")
record = decode(encode_error(error, None))
for one in (record, record["cause"], *record["cause"]["members"]):
    assert one.pop("message")
assert record.pop("traceback")
print(encode(record).hex())
"""
    outputs = {
        subprocess.run(
            [sys.executable, "-c", program], env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1


def test_what_cannot_be_stored_is_described_or_left_out() -> None:
    lock = threading.Lock()
    error = ValueError(1, lock, "\udcff")
    error.lock, error.fine = lock, {"a": (1,)}  # type: ignore[attr-defined]
    back = again(error)
    assert type(back) is ValueError
    assert back.args == (1, repr(lock), r"'\udcff'")
    assert not hasattr(back, "lock")
    assert back.fine == {"a": (1,)}
    assert again(OSError(2, "x", "\udcff")).errno == 2
    strange = again(Strange(lock))
    assert type(strange) is RemoteError
    assert strange.message == f"strange {lock}"
    mute = again(raised(Mute(Mute())), registry={error_name(Mute): Mute})
    assert type(mute) is RemoteError
    assert mute.message == "<its text could not be made>"


def test_a_main_module_s_class_is_found_by_its_qualified_name() -> None:
    data = encode({"type": "__main__:OutOfStock", "message": "m", "args": ["m"], "state": {"code": 1}})
    assert type(decode_error(data, REGISTRY)) is OutOfStock
    assert type(decode_error(data, {**REGISTRY, "other:OutOfStock": Strange})) is RemoteError
    assert type(decode_error(data, {**REGISTRY, "__main__:OutOfStock": Strange})) is RemoteError  # its text fails
    there = encode({"type": "orders:OutOfStock", "message": "m"})
    assert type(decode_error(there, {"__main__:OutOfStock": OutOfStock})) is OutOfStock
    assert type(decode_error(there, REGISTRY)) is RemoteError


@pytest.mark.parametrize("limit", [200, 300, 500, 1000, 5000, 50_000])
def test_an_error_stays_within_the_limit(limit: int) -> None:
    big = ExceptionGroup("g" * 3000, [ValueError("é" * 3000), OutOfStock(1)])
    for error in (
        ValueError("x" * 100_000),
        KeyError(b"x" * 100_000),
        RemoteError("t:T", "m" * 9000, "t" * 90_000),
        big,
    ):
        error.add_note("n" * 10_000)
        error.__cause__ = raised(KeyError("c" * 5000))
        back = again(raised(error), limit)
        assert type(back) is type(error) or type(back) is RemoteError
        str(back)
    kept = again(raised(ValueError("short")), limit)
    assert type(kept) is ValueError
    assert kept.args == ("short",)
    if limit >= 5000:
        long = again(raised(ValueError("x" * 100_000)), limit)
        assert long.args[0].startswith("xxx")
    with pytest.raises(PayloadTooLarge):
        encode_error(ValueError("x"), 5)


def test_the_innermost_frame_survives_the_cut() -> None:
    def down(n: int) -> None:
        if n == 0:
            raise ValueError("bottom")
        down(n - 1)

    with pytest.raises(ValueError, match="bottom") as caught:
        down(300)
    back = again(caught.value, 2000)
    assert back.args == ("bottom",)
    assert back.__notes__[-1].endswith("ValueError: bottom\n")


GARBAGE: list[object] = [
    None,
    [],
    {},
    {"type": 1},
    {"message": "x"},
    {"type": "a:b", "message": 1},
    {"type": "builtins:ValueError", "args": {}},
    {"type": "builtins:ValueError", "args": (1,)},
    {"type": "builtins:ValueError", "notes": [1]},
    {"type": "builtins:ValueError", "notes": "x"},
    {"type": "builtins:ValueError", "state": {"__class__": 1}},
    {"type": "builtins:ValueError", "state": {1: 1}},
    {"type": "builtins:ValueError", "suppress": 1},
    {"type": "builtins:ValueError", "cause": None},
    {"type": "builtins:ValueError", "cause": {"type": 5}},
    {"type": "builtins:ValueError", "members": [1]},
    {"type": "builtins:ValueError", "traceback": b"x"},
    {"type": "builtins:ValueError", "more": 1},
]


@pytest.mark.parametrize("garbage", GARBAGE, ids=repr)
def test_garbage_raises_decode_error(garbage: object) -> None:
    with pytest.raises(DecodeError):
        decode_error(encode(garbage), REGISTRY)


def test_hostile_bytes_raise_decode_error() -> None:
    deep: dict[str, object] = {"type": "builtins:ValueError"}
    for _ in range(50):
        deep = {"type": "builtins:ValueError", "cause": deep}
    for data in (b"", b"\xc1", b"\x91" * 10_000, encode(deep)):
        with pytest.raises(DecodeError):
            decode_error(data, REGISTRY)


@settings(max_examples=80, deadline=None)
@given(st.binary(max_size=50), st.recursive(st.integers() | st.text(), lambda s: st.lists(s), max_leaves=5))
def test_any_bytes_are_an_error_or_refused(data: bytes, args: object) -> None:
    with pytest.raises(DecodeError):
        decode_error(data, REGISTRY)
    for name in ("OSError", "UnicodeDecodeError", "ExceptionGroup", "SyntaxError", "ImportError", "KeyError"):
        record = {"type": f"builtins:{name}", "args": args if isinstance(args, list) else [args]}
        assert isinstance(decode_error(encode(record), REGISTRY), Exception)


def test_a_payload_makes_nothing_that_is_not_registered() -> None:
    for name in (
        "os:system",
        "builtins:eval",
        "builtins:type",
        "builtins:object",
        "builtins:BaseException",
        "builtins:SystemExit",
        "dasync.errors:Suspended",
        "asyncio.exceptions:CancelledError",
        "subprocess:CalledProcessError",
        "ValueError",
        "",
    ):
        back = decode_error(encode({"type": name, "message": "m", "args": ["true"]}), REGISTRY)
        assert type(back) is RemoteError
        assert back.type == name  # type: ignore[attr-defined]
    program = (
        "import sys\nfrom dasync.core.codec import encode\nfrom dasync.core.failure import decode_error\n"
        "decode_error(encode({'type': 'wave:Error', 'message': ''}), {})\nsys.exit('wave' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_the_least_that_another_language_may_write_is_enough() -> None:
    back = decode_error(encode({"type": "builtins:ValueError", "message": "m"}), {})
    assert repr(back) == "ValueError('m')"
    assert not hasattr(back, "__notes__")


def test_no_constructor_of_a_user_s_class_is_called() -> None:
    made: list[str] = []

    class Loud(Exception):
        def __new__(cls, *args: object) -> Loud:
            made.append("new")
            return super().__new__(cls, *args)

        def __init__(self, *args: object) -> None:
            made.append("init")
            super().__init__(*args)

    data = encode_error(Loud("x", 1), None)
    made.clear()
    back = decode_error(data, {error_name(Loud): Loud})
    assert (type(back), back.args, made) == (Loud, ("x", 1), [])


def test_the_record_is_plain_and_canonical() -> None:
    error = OutOfStock(1)
    assert encode_error(error, None) == encode_error(error, None)
    record = decode(encode_error(error, None))
    assert isinstance(record, dict)
    assert list(record)[:3] == ["type", "message", "args"]
    assert record["state"] == {"code": 1, "hint": ""}


# -- any error


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.binary() | st.floats(allow_nan=False),
    lambda inner: st.lists(inner, max_size=3) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
names = st.from_regex(r"[a-z]{1,8}", fullmatch=True)
singles = st.builds(
    lambda cls, args, state, notes: (cls, args, state, notes),
    st.sampled_from([ValueError, KeyError, RuntimeError, DasyncError, Own, Both, Guarded, Slotted, Strange]),
    st.lists(plain, max_size=3).map(tuple),
    st.dictionaries(names, plain, max_size=3),
    st.lists(st.text(), max_size=2),
)
trees = st.recursive(
    st.tuples(singles, st.none(), st.just(())),
    lambda inner: st.tuples(singles, st.none() | inner, st.lists(inner, max_size=3).map(tuple)),
    max_leaves=6,
)


def built(tree: Any) -> Exception:
    (cls, args, state, notes), cause, members = tree
    made: Exception = ExceptionGroup("group", list(map(built, members))) if members else cls.__new__(cls, *args)
    if not members:
        BaseException.__setattr__(made, "args", args)
    vars(made).update({"part": 1, **state})
    for note in notes:
        vars(made).setdefault("__notes__", []).append(note)
    if cause is not None:
        BaseException.__setattr__(made, "__cause__", built(cause))
    return made


def described(error: BaseException) -> object:
    members = error.exceptions if isinstance(error, BaseExceptionGroup) else ()
    args = error.args[:1] if members else error.args
    state = {name: value for name, value in vars(error).items() if name != "__notes__"}
    cause = error.__cause__ and described(error.__cause__)
    return type(error), args, state, bare(error), error.__suppress_context__, cause, tuple(map(described, members))


@settings(max_examples=80, deadline=None)
@given(trees)
def test_any_tree_of_errors_comes_back_as_it_was(tree: Any) -> None:
    error = built(tree)
    data = encode_error(error, None)
    back = decode_error(data, REGISTRY)
    assert described(back) == described(error)
    assert encode_error(error, None) == data
