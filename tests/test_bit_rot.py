"""One bit of a store flips: no wrong value is ever returned, and nothing that is done is done again.

What `rot.py` reads from a store is right, or `StoreCorrupt`. A bit of the -wal is another matter: SQLite takes the
first damaged page for the end of what was written, so what is there then is all of an earlier commit.
"""

from __future__ import annotations

import asyncio
import os
import random
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
import rot

from dasync.core.invariants import inspect
from dasync.core.model import PromiseRecord
from dasync.errors import StoreCorrupt
from dasync.stores import sqlite

FLIPS, MANY = 12, 200  # the many twice, in the file and in the payloads, and half as many in the WAL
WRONG = ("gone", "wrong", "ran again")
LEAF = 10  # the first byte of a page with rows


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A store whose process was killed."""
    path = str(tmp_path_factory.mktemp("killed") / "s.db")
    rot.make(path)
    return path


@pytest.fixture(scope="module")
def store(killed: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The same, with nothing in the -wal."""
    path = str(tmp_path_factory.mktemp("sound") / "s.db")
    rot.copy(killed, path)
    rot.settle_down(path)
    return path


def expected(store: str, folder: Path) -> dict[str, PromiseRecord]:
    path = str(folder / "sound.db")
    rot.copy(store, path)
    sound = asyncio.run(rot.records(path))
    assert asyncio.run(rot.get_each(path, sound)) == {"right": len(sound)}
    assert set(asyncio.run(rot.go_on(path))) == {"right"}
    return sound


def anywhere(store: str, kind: str = "") -> list[int]:
    return list(range(os.path.getsize(store + kind)))


def in_payloads(store: str) -> list[int]:
    """Every byte of the file that a long result is made of."""
    data = Path(store).read_bytes()
    found = []
    for name in range(rot.LONG):
        value = rot.long_value(name)
        for at in range(0, len(value) - 64, 64):  # a result goes over several pages
            start = data.find(value[at : at + 64])
            found += range(start, start + 64) if start >= 0 else ()
    assert len(found) > rot.LONG * rot.LONG_BYTES // 2
    return found


def damage(store: str, path: str, byte: int, bit: int, kind: str = "") -> None:
    """`path` is a copy of the store with one bit flipped."""
    rot.remove(path)
    rot.copy(store, path)
    rot.flip(path + kind, byte, bit)


def flips(store: str, folder: Path, places: list[int], count: int) -> None:
    """Flip one bit, read everything, go on; so many times."""
    sound, rng, path = expected(store, folder), random.Random(f"{count} of {len(places)}"), str(folder / "x.db")
    told = stuck = 0
    for _ in range(count):
        byte, bit = rng.choice(places), rng.randrange(8)
        damage(store, path, byte, bit)
        found = asyncio.run(rot.get_each(path, sound))
        damage(store, path, byte, bit)
        found += asyncio.run(rot.go_on(path))
        assert not any(found[one] for one in WRONG), f"bit {bit} of byte {byte}: {found}"
        told += bool(found["told"])
        stuck += bool(found["stuck"])
    print(f"{count} flips: {told} told, {stuck} that left something waiting, none with a wrong value")
    assert told


def test_a_bit_of_the_file(store: str, tmp_path: Path) -> None:
    """Wherever it is: in a row, a key, an index, the pages' own data."""
    flips(store, tmp_path, anywhere(store), FLIPS)


def test_a_bit_of_a_payload(store: str, tmp_path: Path) -> None:
    flips(store, tmp_path, in_payloads(store), FLIPS)


@pytest.mark.campaign
def test_many_bits_of_the_file(store: str, tmp_path: Path) -> None:
    flips(store, tmp_path, anywhere(store), MANY)


@pytest.mark.campaign
def test_many_bits_of_payloads(store: str, tmp_path: Path) -> None:
    flips(store, tmp_path, in_payloads(store), MANY)


# -- the WAL -----------------------------------------------------------------------------------------------------

WAL_HEADER, FRAME = 32, 24 + 4096  # bytes


def wal_flips(killed: str, folder: Path, count: int) -> None:
    """What is there after a flip is what would be there, had the file ended before the page that it is in."""
    rng, places, gone = random.Random(count), len(anywhere(killed, "-wal")), 0
    path, cut = str(folder / "x.db"), str(folder / "cut.db")
    for _ in range(count):
        byte, bit = rng.randrange(places), rng.randrange(8)
        damage(killed, path, byte, bit, "-wal")
        rot.remove(cut)
        rot.copy(killed, cut)
        os.truncate(f"{cut}-wal", max(0, byte - (byte - WAL_HEADER) % FRAME))
        found, earlier = asyncio.run(rot.all_rows(path)), asyncio.run(rot.all_rows(cut))
        assert found == earlier, f"bit {bit} of byte {byte} of the -wal"
        assert inspect(found) == []
        gone += len(found.promises) < rot.COUNT
    print(f"{count} flips in the -wal: each an earlier commit, {gone} of them with fewer promises")
    assert gone


def test_a_bit_of_the_wal(killed: str, tmp_path: Path) -> None:
    """All of an earlier commit, which SQLite takes for the last one: no wrong value, and nothing half done."""
    wal_flips(killed, tmp_path, FLIPS)


@pytest.mark.campaign
def test_many_bits_of_the_wal(killed: str, tmp_path: Path) -> None:
    wal_flips(killed, tmp_path, MANY // 2)


# -- each guard alone ----------------------------------------------------------------------------------------------


def change(store: str, folder: Path, sql: str) -> str:
    """A copy of the store in which a row reads differently, as a flipped bit would have it."""
    path = str(folder / "x.db")
    rot.copy(store, path)
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        assert connection.execute(sql).rowcount == 1
    return path


@pytest.mark.parametrize("column", ["version = version + 1", "state = 'fulfilled'", "process = NULL", "seed = x'00'"])
def test_a_task_that_reads_differently(store: str, tmp_path: Path, column: str) -> None:
    """A claim is as much under a checksum as a promise."""
    path = change(store, tmp_path, f"UPDATE tasks SET {column} WHERE id = 'waits 3'")
    with pytest.raises(StoreCorrupt, match="task 'waits 3'"):
        asyncio.run(rot.get(path, "waits 3"))


def test_a_task_that_is_gone(store: str, tmp_path: Path) -> None:
    """A promise that runs somewhere has one."""
    path = change(store, tmp_path, "DELETE FROM tasks WHERE id = 'waits 3'")
    with pytest.raises(StoreCorrupt, match="task 'waits 3'"):
        asyncio.run(rot.get(path, "waits 3"))


def test_a_promise_that_is_gone(store: str, tmp_path: Path) -> None:
    """Its task tells that there was one, so it is not computed again."""
    found = asyncio.run(rot.go_on(change(store, tmp_path, "DELETE FROM promises WHERE id = 'root 3'")))
    assert found["told"]
    assert not any(found[one] for one in WRONG)


def shortened(store: str) -> list[int]:
    """Where a page of a tree says how many rows it has: the bytes of which one bit less hides some of them."""
    data = Path(store).read_bytes()
    return [page + 4 for page in range(4096, len(data), 4096) if data[page] == LEAF and data[page + 4] & 1]


def test_a_page_that_hides_rows(store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No row is damaged, and none that is left tells of those that are hidden: the pages themselves are checked."""
    path, sound, gone = str(tmp_path / "x.db"), expected(store, tmp_path), 0
    places = shortened(store)
    assert len(places) > 5
    for byte in places:
        damage(store, path, byte, 0)
        with pytest.raises(StoreCorrupt, match="is damaged"):
            asyncio.run(rot.get(path, "root 3"))
        monkeypatch.setattr(sqlite, "CHECKED_BYTES", 0)
        gone += asyncio.run(rot.get_each(path, sound))["gone"]
        monkeypatch.undo()
    assert gone, "without the check nothing is hidden: this test proves nothing"


def test_a_key_that_sorts_elsewhere(store: str, tmp_path: Path) -> None:
    """What is looked for by its key and is not found is not taken for new: a promise that is asked for, and the child
    of an execution that goes on."""
    children = [(f"waits {n}:{item}", f"{first}aits {n}:{item}") for n in (3, 7) for item in range(3) for first in "vx"]
    for id, other in (("root 7", "soot 7"), ("root 8", "poot 8"), *children):
        path = str(tmp_path / f"{other}.db")
        rot.copy(store, path)
        rot.rename_key(path, id, other)
        with pytest.raises(StoreCorrupt, match=f"promise '{other}'"):
            asyncio.run(rot.get(path, id))
        found = asyncio.run(rot.go_on(path))
        assert found["told"], other
        assert not any(found[one] for one in WRONG), other


@pytest.mark.parametrize("creator", ["'waits 2'", "'waits'", "NULL", "'xaits 3'"])
def test_a_child_that_names_another_creator(store: str, tmp_path: Path, creator: str) -> None:
    """It is not passed over when the execution goes on."""
    sql = f"UPDATE promises SET creator = {creator} WHERE id = 'waits 3:1'"
    found = asyncio.run(rot.go_on(change(store, tmp_path, sql)))
    assert found["told"]
    assert not any(found[one] for one in WRONG)
