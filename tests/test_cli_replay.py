"""`dasync export` and `dasync replay`: recorded executions on the code as it is; nothing is done or written."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from shell import TIMEOUT_S, environment, fails, python

from dasync.cli import exports, main
from dasync.cli.replay import Replayed, Summary

PROGRAM = '''
import asyncio, os, sys
from pathlib import Path
import dasync

def touch(what: str) -> None:
    with open(os.environ["LEDGER"], "a") as ledger:
        ledger.write(what + "\\n")

@dasync.function
async def charge(cents: int) -> int:
    touch("charge")
    return cents

@dasync.function
async def ship(item: str) -> str:
    touch("ship")
    return f"shipped {item}"

@dasync.function
async def stuck() -> None:
    touch("stuck")
    await asyncio.Event().wait()

@dasync.function(retry=dasync.Retry.constant(0, attempts=3))
async def flaky(limit: int) -> int:
    touch("flaky")
    dasync.now()
    with open(os.environ["LEDGER"]) as ledger:
        if ledger.read().count("flaky") % 2:
            raise OSError("once")
    return limit

@dasync.function
async def part(items: list[str]) -> list[str]:
    done = [await ship(item) for item in items]
    if "open" in items:
        await dasync.promise(bool)
    return done

@dasync.function
async def order(items: list[str]) -> str:
    at = dasync.now()
    paid = await charge(100 * len(items))
    first, second = await asyncio.gather(part(items), part(items[:1]))
    code = dasync.random().randint(1, 1_000_000)
    await ship(f"{code}")
    return f"{paid} {first} {second} {at:%Y} {code}"

@dasync.function
async def waits() -> None:
    await charge(1)
    stuck()
    await dasync.promise(bool)

@dasync.function
async def fails(cents: int) -> None:
    raise ValueError(f"{await charge(cents)} is too much")

@dasync.function
async def tries() -> int:
    return await flaky(7)

@dasync.function
def in_a_thread() -> int:
    paid = charge(5).wait() + charge(6).wait()
    dasync.promise(bool).wait()
    return paid

@dasync.function
async def undoes() -> None:
    try:
        await charge(9)
        await dasync.promise(bool)
    finally:
        await ship("back")

@dasync.function
async def races() -> object:
    first = await dasync.race(charge(3), dasync.sleep(3600))
    await ship(str(first))
    return first

@dasync.function
async def lets_go() -> str:
    async def pays() -> int:
        return await charge(2)

    loose = ship.options(detached=True)("loose")
    await asyncio.create_task(pays())
    return await loose

@dasync.function
async def asks() -> str:
    if await dasync.promise(bool, id="may-i"):
        await charge(4)
    await dasync.promise(bool, id="may-i-now")
    return "asked"

@dasync.function
async def sends() -> list[str]:
    return await part.options(on="default")(["cup", "open"])

@dasync.function
async def rests() -> None:
    await charge(8)
    await asyncio.sleep(3600)

async def main() -> None:
    async with dasync.EventLoop(sys.argv[1], durability="process") as loop:
        made = {f.name: f.options(id=f.name)() for f in (
            waits, tries, in_a_thread, undoes, races, lets_go, asks, sends, rests)}
        order.options(id="order")(["tea", "cup"])
        order.options(id="half")(["tea", "open"])
        failing = fails.options(id="fails")(1000)
        flaky.options(id="leaf")(1)
        for id in ("may-i", "waits:2", "in_a_thread:2", "undoes:1", "may-i-now", "half:2.2", "sends:0.2"):
            while id not in loop.awaiters:
                await asyncio.sleep(0.001)
            await loop.promises[id].created()
            if id == "may-i":
                await loop.promises[id].resolve(True)
        ended = [made["tries"], made["races"], made["lets_go"], failing]
        await dasync.all_settled(loop.get("order"), loop.get("leaf"), *ended)
        await loop.get("rests:0")
        await made["undoes"].cancel("no more")
        failing.exception()

if __name__ == "__main__":
    asyncio.run(main())
'''


class Shop:
    """A store in which the program was stopped half-way, and copies of the program to replay on."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = str(folder / "shop.db")
        self.ledger = folder / "ledger"
        self.count = 0
        program = folder / "program.py"
        program.write_text(PROGRAM)
        python(str(program), self.store, env=environment(LEDGER=str(self.ledger)))
        self.effects = self.ledger.read_text()

    def changed(self, *changes: tuple[str, str]) -> str:
        """The program with some of its text replaced, as a file of its own."""
        text = PROGRAM
        for before, after in changes:
            assert text.count(before) == 1, before
            text = text.replace(before, after)
        self.count += 1
        path = self.folder / f"replayed_{self.count}.py"
        path.write_text(text)
        return str(path)

    def rows(self) -> list[str]:
        connection = sqlite3.connect(self.store)
        try:
            return list(connection.iterdump())
        finally:
            connection.close()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    return Shop(tmp_path_factory.mktemp("replay"))


@pytest.fixture
def shop(made: Shop, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shop]:
    """Whatever is replayed: no leaf runs, and not a row of the store is written."""
    monkeypatch.setenv("LEDGER", str(made.ledger))
    monkeypatch.delenv("DASYNC_APP", raising=False)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = made.rows()
    yield made
    assert made.ledger.read_text() == made.effects
    assert made.rows() == before


def replayed(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, Replayed]]:
    """Status and what `replay --json` says of each execution."""
    capsys.readouterr()
    for name in [name for name in sys.modules if name.startswith("replayed_")]:
        del sys.modules[name]
    status = main(("replay", "--json", *arguments))
    said: Summary = json.loads(capsys.readouterr().out)
    found = said["executions"]
    assert [said["ok"], said["diverged"], said["cannot"]] == [
        sum(one["status"] == status for one in found) for status in ("ok", "diverged", "cannot")
    ]
    return status, {one["id"]: one for one in found}


def ids(*names: str) -> list[str]:
    return [part for name in names for part in ("--id", name)]


WHOLE = {
    "order": "in step with its history to its end: resolved",
    "half": "in step with its history; now it waits for 'half:2.2'",
    "waits": "in step with its history; now it waits for 'waits:2'",
    "fails": "in step with its history to its end: rejected with ValueError: 1000 is too much",
    "tries": "in step with its history to its end: resolved",
    "in_a_thread": "in step with its history; now it waits for 'in_a_thread:2'",
    "undoes": "in step with its history to its end: canceled",
    "races": "in step with its history to its end: resolved",
    "lets_go": "in step with its history to its end: resolved",
    "asks": "in step with its history; now it waits for 'may-i-now'",
    "sends": "in step with its history; now it waits for 'sends:0'",
    "sends:0": "in step with its history; now it waits for 'sends:0.2'",
    "leaf": "it has invoked nothing that is on record, so it is not run",
}


def test_unchanged_code_is_in_step(shop: Shop, capsys: pytest.CaptureFixture[str]) -> None:
    """Finished, failed, canceled or waiting; nested, in threads, with races, attempts and what stands beside it."""
    status, found = replayed(capsys, shop.changed(), "--store", shop.store, *ids(*WHOLE))
    assert {id: one["detail"] for id, one in found.items()} == WHOLE
    assert {one["status"] for one in found.values()} == {"ok"}
    assert {one["report"] for one in found.values()} == {None}
    assert status == 0


Change = tuple[str, tuple[tuple[str, str], ...], str, str, str]
CHANGES: dict[str, Change] = {  # the execution, what is changed, and the status, a part of the detail and of the report
    "other arguments": (
        "order", (("charge(100 * len(items))", "charge(200 * len(items))"),), "diverged", "diverged at 'order:1'",
        "args[0]: 200 -> 400",
    ),
    "another function": (
        "half", (("paid = await charge(100 * len(items))", "paid = await ship('x')"),), "diverged",
        "diverged at 'half:1'", "function: 'charge' -> 'ship'",
    ),
    "one less, in a child that goes on": (
        "half", (("await ship(item) for item in items]", "await ship(item) for item in items[:1]]"),), "diverged",
        "diverged at 'half:2.1'", "the 2nd invocation of 'half:2'",
    ),
    "one less, at the end": (
        "order", (("    await ship(f\"{code}\")\n", ""),), "diverged", "it ended and did not come to 'order:4'",
        "async def order(items",
    ),
    "one less, in a child that runs elsewhere": (
        "sends:0", (("await ship(item) for item in items]", "await ship(item) for item in items[1:]]"),), "diverged",
        "diverged at 'sends:0.0'", "args[0]: 'cup' -> 'open'",
    ),
    "one less, in a thread": (
        "in_a_thread", (("charge(5).wait() + charge(6).wait()", "charge(6).wait()"),), "diverged",
        "diverged at 'in_a_thread:0'", "args[0]: 5 -> 6",
    ),
    "one more, where the history ends": (
        "rests", (("    await asyncio.sleep(3600)", "    await ship('next')"),), "ok",
        "now it invokes 'ship' (version 1) as 'rests:1', which is not on record, at ", "",
    ),
    "a failure before its time": (
        "half", (("    at = dasync.now()\n", "    at = dasync.now()\n    raise KeyError('new')\n"),), "diverged",
        "it was rejected with KeyError: 'new' and did not come to 'half:1'",
        "recorded  'charge' (version 1) with [200]",
    ),
    "a new step in another task": (
        "waits", (("    await charge(1)\n", "    await asyncio.create_task(soon())\n    await charge(1)\n"),
        ("def touch(", "async def soon() -> None:\n    await ship('new')\n\ndef touch(")),
        "diverged", "did not come to 'waits:0'",
        "it invokes 'ship' (version 1) as 'waits:~0.0', which is not on record",
    ),
    "another result": (
        "order", (("{at:%Y} {code}", "{at:%Y}-{code}"),), "diverged", "another outcome than is recorded",
        "outcome.resolved: ",
    ),
    "another error": (
        "fails", (("ValueError(f", "TypeError(f"),), "diverged", "another outcome",
        "outcome.rejected: 'ValueError: 1000",
    ),
    "more where it ended": (
        "tries", (("    return await flaky(7)", "    await flaky(7)\n    return await flaky(8)"),), "diverged",
        "another outcome", "it invokes 'flaky' (version 1) as 'tries:1', which is not on record",
    ),
    "arguments that do not fit": (
        "order", (("async def order(items: list[str])", "async def order(items: Basket)"),
        ("def touch(", "from dataclasses import dataclass\n\n@dataclass\nclass Basket:\n    size: int\n\ndef touch(")),
        "diverged", "its arguments do not fit", "'order' cannot run",
    ),
    "a batch, which invokes nothing": (
        "order", (("@dasync.function\nasync def order(items: list[str]) -> str:\n",
        "@dasync.batched\nasync def order(items: list[str]) -> list[str]:\n    touch('a handler')\n"),), "diverged",
        "it ended and did not come to 'order:1'", "",
    ),
    "a new version alone": (
        "order", (("@dasync.function\nasync def order", "@dasync.function(version=2)\nasync def order"),), "cannot",
        "'order' version 1 is not registered", "",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("id", "changes", "status", "detail", "report"), CHANGES.values(), ids=CHANGES)
def test_changed_code_is_judged(
    shop: Shop, capsys: pytest.CaptureFixture[str], id: str, changes: tuple[tuple[str, str], ...], status: str,
    detail: str, report: str,
) -> None:  # fmt: skip
    """What a replay would come to is told, and where; what is new comes after the history and does no harm."""
    exit_status, found = replayed(capsys, shop.changed(*changes), "--store", shop.store, "--id", id)
    one = found[id]
    assert (one["status"], exit_status) == (status, status != "ok")
    assert detail in one["detail"]
    assert report in (one["report"] or "")
    assert bool(one["report"]) is (status == "diverged")
    assert "dasync resume" not in (one["report"] or "")  # nothing is halted by it


def test_what_is_not_recorded_is_waited_for_in_vain(shop: Shop, capsys: pytest.CaptureFixture[str]) -> None:
    """A raw await really runs; after the time for it the replay cannot be judged."""
    app = shop.changed()
    status, found = replayed(capsys, app, "--store", shop.store, "--id", "rests", "--timeout", "0.05")
    assert (status, found["rests"]["status"]) == (1, "cannot")
    assert "longer than 0.05 s for something that is not recorded" in found["rests"]["detail"]
    status, found = replayed(capsys, app, "--store", shop.store, *ids("rests", "tries"), "--timeout", "0.05")
    assert (status, found["tries"]["status"]) == (0, "ok")


def test_a_folder_of_exports_is_replayed(
    shop: Shop, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An export holds what a replay needs; the program may come from the environment."""
    for id in ("order", "half", "in_a_thread", "undoes"):
        assert main(("export", id, "--store", shop.store)) == 0
        (tmp_path / f"{id}.json").write_text(capsys.readouterr().out)
    monkeypatch.setenv("DASYNC_APP", shop.changed())
    status, found = replayed(capsys, str(tmp_path))
    assert (status, found.keys()) == (0, {"order", "half", "in_a_thread", "undoes"})
    assert {id: one["detail"] for id, one in found.items()} == {id: WHOLE[id] for id in found}
    assert replayed(capsys, str(tmp_path / "half.json"))[1].keys() == {"half"}


def test_no_time_passes(shop: Shop, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is recorded as pending stays so, though its deadline was long ago."""
    assert main(("export", "half", "--store", shop.store)) == 0
    said = json.loads(capsys.readouterr().out)
    (one,) = (one for one in said["promises"] if one["id"] == "half:2.2")
    one["timeout_at"] = one["created_at"] + 1
    (tmp_path / "half.json").write_text(json.dumps(said))
    found = replayed(capsys, shop.changed(), str(tmp_path))[1]
    assert found["half"]["detail"] == WHOLE["half"]


def test_what_stands_beside_an_execution_can_come_along(
    shop: Shop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What it awaits by an id of its own is not below it: without that the replay cannot go past it."""
    app, path = shop.changed(), tmp_path / "asks.json"
    for others, status, detail in (
        ((), "cannot", "it awaits 'may-i', which has its own history"),
        (("may-i",), "ok", WHOLE["asks"]),
    ):
        assert main(("export", "asks", *others, "--store", shop.store)) == 0
        path.write_text(capsys.readouterr().out)
        found = replayed(capsys, app, str(path))[1]["asks"]
        assert (found["status"], found["detail"][: len(detail)]) == (status, detail)


def test_an_export_keeps_every_field(shop: Shop, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The way there and back gives the same rows; what is stored as bytes can be read beside them."""
    assert main(("export", "half", "--store", shop.store)) == 0
    said = json.loads(capsys.readouterr().out)
    assert set(said) == set(exports.Exported.__annotations__)
    assert [one["id"] for one in said["promises"]][:3] == ["half", "half:0", "half:1"]
    assert said["promises"][0]["param"]["readable"] == {"args": [["tea", "open"]], "kwargs": {}}
    assert said["promises"][2]["value"]["readable"] == 200
    path = tmp_path / "half.json"
    path.write_text(json.dumps(said))
    found = exports.read(path)
    again = exports.exported(found, 0)
    assert (again["promises"], again["tasks"]) == (said["promises"], said["tasks"])
    connection = sqlite3.connect(shop.store)
    stored = connection.execute("SELECT * FROM promises WHERE id LIKE 'half%' ORDER BY id").fetchall()
    connection.close()
    assert [tuple(record) for _, record in sorted(found.promises.items())] == [row[:-1] for row in stored]


BAD_FILES = {
    "no JSON": ("{", "is not JSON"),
    "nested too deeply": ("[" * 100_000, "is not JSON"),
    "another thing": ('{"a": 1}', "is no history"),
    "a newer format": ('{"format": "dasync-history", "version": 2}', "this dasync knows 1"),
    "a missing part": ('{"format": "dasync-history", "version": 1, "id": "x"}', "is damaged: KeyError: 'promises'"),
    "no rows": (
        '{"format": "dasync-history", "version": 1, "id": "x", "promises": [], "tasks": []}',
        "the rows of 'x' are missing",
    ),
    "a row of another kind": (
        '{"format": "dasync-history", "version": 1, "id": "x", "promises": [1], "tasks": []}', "is damaged: TypeError",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("text", "told"), BAD_FILES.values(), ids=BAD_FILES)
def test_a_file_that_is_no_export_is_an_error(
    shop: Shop, tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, told: str
) -> None:
    """In one line, with what to give instead."""
    path = tmp_path / "x.json"
    path.write_text(text)
    status, error = fails(capsys, "replay", shop.changed(), str(path))
    assert status == 1
    assert told in error


@pytest.mark.parametrize("field", ["version", "timer", "state", "param", "turn"])
def test_a_damaged_field_is_an_error(
    shop: Shop, tmp_path: Path, capsys: pytest.CaptureFixture[str], field: str
) -> None:
    """Whatever the types of a row do not allow is refused before anything is replayed."""
    assert main(("export", "half", "--store", shop.store)) == 0
    said = json.loads(capsys.readouterr().out)
    path, app = tmp_path / "half.json", shop.changed()
    for bad in ("x", [1], {"base64": "?"}, 1.5):
        path.write_text(json.dumps({**said, "promises": [{**said["promises"][0], field: bad}]}))
        sys.modules.pop(Path(app).stem, None)
        status, error = fails(capsys, "replay", app, str(path))
        assert status == 1
        assert "is damaged" in error


def test_wrong_usage_is_told(shop: Shop, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No program, no execution, both kinds of it, an empty folder: status 2. What is not there: status 1."""
    app, store = shop.changed(), ("--store", shop.store)
    assert fails(capsys, "replay", "x.json")[0] == 2
    assert fails(capsys, "replay", app)[0] == 2
    assert fails(capsys, "replay", app, "x.json", "--id", "order")[0] == 2
    assert fails(capsys, "replay", app, str(tmp_path))[0] == 2
    assert fails(capsys, "replay", app, "none.json")[0] == 1
    assert fails(capsys, "replay", app, "--id", "none", *store)[0] == 1
    assert "runs as a part of another execution; name that: order" in fails(capsys, "export", "order:2", *store)[1]
    assert "has no code of its own" in fails(capsys, "export", "may-i", *store)[1]
    assert fails(capsys, "export", "none", *store)[0] == 1


def test_people_read_a_line_for_each(shop: Shop) -> None:
    """One line for each execution, below it the report where it diverged, then a count; what the code prints is not
    in between."""
    app = shop.changed(("    paid = await charge(100", "    print('hello')\n    paid = await charge(300"))
    environ = environment(LEDGER=str(shop.ledger))
    command = ("-m", "dasync", "replay", app, "--store", shop.store, *ids("half", "waits"))
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, timeout=TIMEOUT_S, env=environ)
    assert (done.returncode, done.stderr) == (1, "hello\n")
    first, *report, second, count = done.stdout.splitlines()
    assert first.startswith("diverged  half  order: replay of 'half' diverged at 'half:1': ")
    assert all(line.startswith("  ") for line in report)
    assert second == f"ok        waits  waits: {WHOLE['waits']}"
    assert count == "1 in step, 1 diverged, 0 could not be replayed"
