"""The page of a history: it stands by itself, shows payloads as text, and works in a real browser."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from clocks import T0

from dasync.core import protocol as p
from dasync.core.model import PromiseRecord, State
from dasync.core.protocol import Reply, Status
from dasync.testing.history import Mark, Operation
from dasync.testing.linear import Ruling, Verdict, check
from dasync.testing.report import page

CHROMIUM = shutil.which("chromium")
EVIL = "</script><img src=x onerror=pwn()><!--"
EVIL_PROCESS = '"><svg onload=pwn()>'
RECORD = PromiseRecord("x", "", 1, b"", None, None, False, None, "", T0, 0, State.PENDING, None, None, None)


def history(promises: int, steps: int) -> list[Operation]:
    """Three clients, promises with evil ids, a stale read of the second promise at its end, one answer never heard."""
    said: list[Operation] = []
    ids = [f"x{number}{EVIL}" for number in range(promises)]

    def say(command: p.Command, reply: Reply | None) -> None:
        number = len(said)
        end = None if reply is None else 3 * number + 4
        process = EVIL_PROCESS if number % 3 == 0 else f"client-{number % 3}"
        said.append(Operation(number, process, command, 3 * number, end, reply, T0, T0))

    for id in ids:
        born = RECORD._replace(id=id, param=EVIL.encode())
        say(p.PromiseCreate(id, param=EVIL.encode()), Reply(Status.CREATED, born))
    done = RECORD._replace(id=ids[1], param=EVIL.encode(), state=State.RESOLVED, settled_at=T0, value=b"v", turn=1)
    say(p.PromiseSettle(ids[1], State.RESOLVED, b"v"), Reply(Status.OK, done))
    for number in range(steps):
        id = ids[number % promises]
        say(p.PromiseGet(id), Reply(Status.OK, done if id == ids[1] else RECORD._replace(id=id, param=EVIL.encode())))
    say(p.PromiseSettle(ids[0], State.RESOLVED, b"w"), None)
    say(p.PromiseGet(ids[1]), Reply(Status.OK, RECORD._replace(id=ids[1], param=EVIL.encode())))
    return said


MARKS = [Mark(5, EVIL_PROCESS, f"kill {EVIL}"), Mark(9, "", "partition"), Mark(20, "nobody", "restart")]


def rendered(promises: int = 3, steps: int = 9) -> str:
    operations = history(promises, steps)
    return page(operations, check(operations), MARKS, f"seed 7 {EVIL}")


class Elements(HTMLParser):
    """What an HTML parser finds."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def test_the_page_stands_by_itself() -> None:
    """Nothing is asked of anywhere, nothing runs but one script, and the policy says so."""
    found = Elements(rendered())
    attributes = [(name, value) for _, held in found.tags for name, value in held.items()]
    assert not [name for name, _ in attributes if name in ("src", "href", "action", "style") or name.startswith("on")]
    assert [held.get("type") for tag, held in found.tags if tag == "script"] == ["application/json", None]
    assert not {tag for tag, _ in found.tags} & {"img", "link", "iframe", "object", "base", "form"}
    policy = next(held["content"] or "" for tag, held in found.tags if tag == "meta" and "http-equiv" in held)
    assert re.fullmatch(
        r"default-src 'none'; style-src 'sha256-[\w+/=]+'; script-src 'sha256-[\w+/=]+'; base-uri 'none'", policy
    )
    assert [(tag, held) for tag, held in found.tags if tag == "svg"] == [("svg", {"id": "bars"})]


def test_payloads_are_data() -> None:
    """Ids, names and values come out as they went in, and none of their markup does."""
    text = rendered()
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert data is not None
    assert not re.search(r"[<>&]", data[1])
    held = json.loads(data[1])
    assert EVIL_PROCESS in held["processes"]
    assert held["operations"][0]["line"] == f"create x0{EVIL} -> 201"
    assert held["marks"][0]["text"] == f"kill {EVIL}"
    assert EVIL not in text


def test_the_same_history_is_the_same_page() -> None:
    """Byte for byte, in another process with other hashes: what was found, in which order, how it is shown."""
    program = (
        "import asyncio, random, sys; from histories import LIES, Blur, spoiled, told\n"
        "from dasync.testing.linear import check; from dasync.testing.report import page\n"
        "_, said = spoiled(random.Random(7), asyncio.run(told(7, 60, Blur(25, 300, 0.2))), LIES['state'])\n"
        "sys.stdout.write(page(said, check(said), [], 'seed 7'))"
    )

    def run(seed: str) -> str:
        paths = os.pathsep.join([str(Path(__file__).parent.parent), str(Path(__file__).parent)])
        env = os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": paths}
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=env)
        return done.stdout

    first = run("1")
    assert "1 violation" in first
    assert first == run("2")


def test_what_is_very_large_is_cut() -> None:
    """One response cannot fill the page."""
    many = tuple(RECORD._replace(id=f"x{number}", state=State.RESOLVED, settled_at=T0, turn=1) for number in range(999))
    told = [Operation(0, "w", p.Receive("w"), 0, 1, Reply(Status.OK, settled=many), T0, T0)]
    assert len(page(told, [], [], "large")) < 40_000


def test_what_is_undecided_is_said() -> None:
    """Neither of the other two."""
    told = history(2, 1)
    verdicts = [Verdict(f"x0{EVIL}", Ruling.UNDECIDED, (), None, "given up", 9)]
    assert "1 promises: 0 linearizable, 0 violation, 1 undecided" in page(told, verdicts, [], "undecided")


# -- in a browser ------------------------------------------------------------------------------------------------


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Any]:
    """Opens a page; what it asks for, what it complains of and what it says is kept."""
    api = pytest.importorskip("playwright.sync_api")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])

        def open_page(text: str) -> SimpleNamespace:
            (tmp_path / "dst.html").write_text(text, "utf-8")
            tab = browser.new_page(viewport={"width": 1200, "height": 800})
            asked: list[str] = []
            complaints: list[str] = []
            tab.on("request", lambda request: asked.append(request.url))
            tab.on("console", lambda message: complaints.append(message.text))
            tab.on("pageerror", lambda error: complaints.append(str(error)))
            tab.on("dialog", lambda dialog: (complaints.append(dialog.message), dialog.dismiss()))
            tab.goto((tmp_path / "dst.html").as_uri())
            return SimpleNamespace(tab=tab, asked=asked, complaints=complaints)

        yield open_page
        browser.close()


chromium = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")


@pytest.mark.system
@chromium
def test_it_works_in_a_browser(opened: Any) -> None:
    """The button jumps to the first error, the filter shows one promise, a bar shows what was said."""
    told = history(40, 200)
    seen = opened(page(told, check(told), MARKS, f"seed 7 {EVIL}"))
    tab, last = seen.tab, len(told) - 1
    bars = tab.locator("#bars .bar")
    assert bars.count() == len(told)
    assert tab.locator("#bars .bar.wrong").count() == 1
    assert tab.locator("#bars .bar.open").count() == 1
    assert not _in_view(tab, last)

    tab.click("#jump")
    assert _in_view(tab, last)
    assert tab.locator("#bars .bar.found").get_attribute("data-number") == str(last)
    assert tab.locator("#why").inner_text().startswith("violation: x1</script>")
    assert "state resolved is due, not pending" in tab.locator("#why").inner_text()
    assert tab.locator("#line").inner_text() == f"get x1{EVIL} -> 200"
    lines = tab.locator("#order li").all_inner_texts()
    assert lines[:2] == [f"create x1{EVIL} -> 201", f"resolve x1{EVIL} -> 200 resolved"]
    assert lines[-1] == f"get x1{EVIL} -> 200"
    assert tab.locator("#order li.wrong").count() == 1
    assert bars.count() == len(lines), "one promise is shown"

    tab.select_option("#promise", label=f"x0{EVIL}")
    assert tab.locator("#why").inner_text() == "linearizable"
    assert tab.locator("#bars .bar.told").count() == bars.count() - 1
    tab.locator("#bars .bar").first.hover()
    assert f'"id": "x0{EVIL}"' in tab.locator("#request").inner_text()
    assert '"status": 201' in tab.locator("#response").inner_text()
    tab.locator("#order li button").nth(2).click()
    assert tab.locator("#bars .bar.found").get_attribute("data-number") == "81"
    tab.select_option("#promise", label="all")
    assert bars.count() == len(told)
    assert tab.locator("#bars .mark").count() == 1 + 4 + 1, "its own lane, all four lanes, a lane of its own"

    assert seen.complaints == []
    assert [url for url in seen.asked if not url.endswith("dst.html")] == []


@pytest.mark.system
@chromium
def test_five_thousand_operations(opened: Any) -> None:
    """They are all drawn, and the first error is found among them."""
    told = history(100, 4_900 - 3)
    seen = opened(page(told, check(told), MARKS, "many"))
    assert seen.tab.locator("#bars .bar").count() == len(told) == 5_000
    seen.tab.click("#jump")
    assert _in_view(seen.tab, len(told) - 1)
    assert seen.complaints == []


@pytest.mark.system
@chromium
def test_without_an_error_there_is_nothing_to_jump_to(opened: Any) -> None:
    """The button is off."""
    told = history(3, 9)[:-1]
    tab = opened(page(told, check(told), [], "well")).tab
    assert tab.locator("#jump").is_disabled()


def _in_view(tab: Any, number: int) -> bool:
    box = tab.locator(f'[data-number="{number}"] rect').bounding_box()
    shown = tab.locator("#scroll").bounding_box()
    return bool(
        box
        and shown["x"] <= box["x"] <= shown["x"] + shown["width"]
        and shown["y"] <= box["y"] <= shown["y"] + shown["height"]
    )
