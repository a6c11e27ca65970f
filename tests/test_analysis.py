"""What is a hazard and what is none: each kind once as it is and once as something that only looks like it."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from textwrap import indent

import pytest

import dasync
from dasync.analysis import rules
from dasync.analysis.hazards import Checked, Finder, Finding
from dasync.analysis.names import Program
from dasync.analysis.source import Source
from dasync.errors import DasyncError

ROOT = Path(__file__).parent.parent
LEAF = "import asyncio, dasync\n\n@dasync.function\nasync def leaf(x: object = None) -> object: ...\n\n"


def look(files: Mapping[str, str]) -> Checked:
    """Look through a program of these files."""
    program = Program([Source(PurePath("/app", name), text.encode(), name) for name, text in files.items()])
    finder = Finder(program)
    for module in program.modules.values():
        finder.look(module)
    return finder.checked()


def found(text: str) -> list[Finding]:
    """What is found in one file."""
    return look({"shop.py": text})["findings"]


def codes(text: str) -> list[str]:
    """The codes of what is found in one file."""
    return [one["code"] for one in found(text)]


def root(body: str, *, imports: str = "", parameters: str = "", kind: str = "async def", invoke: str = "") -> str:
    """A program with a leaf, and a function with that body that invokes it."""
    invoke = invoke or ("await leaf(1)" if kind == "async def" else "leaf(1).wait()")
    lines = indent(f"{invoke}\n{body}", "    ")
    return f"{LEAF}{imports}\n\n@dasync.function\n{kind} root({parameters}):\n{lines}\n"


# -- hazards -----------------------------------------------------------------------------------------------

CALLS = [
    ("clock", "import time", "time.time()"),
    ("clock", "import time", "time.monotonic_ns()"),
    ("clock", "import time as t", "t.perf_counter()"),
    ("clock", "from time import time as t", "t()"),
    ("clock", "import time", "time.localtime()"),
    ("clock", "import datetime", "datetime.datetime.now(datetime.UTC)"),
    ("clock", "from datetime import datetime as dt", "dt.utcnow()"),
    ("clock", "from datetime import date", "date.today().isoformat()"),
    ("clock", "", "asyncio.get_running_loop().time()"),
    ("clock", "import time\nclock = time.monotonic", "clock()"),
    ("clock", "try:\n    import time\nfinally: ...", "time.time()"),
    ("random", "import random", "random.random()"),
    ("random", "from random import choice as pick", "pick([1, 2])"),
    ("random", "import random", "random.Random()"),
    ("random", "import numpy as np", "np.random.rand(3)"),
    ("random", "import numpy as np", "np.random.default_rng()"),
    ("random", "import secrets", "secrets.token_hex(8)"),
    ("random", "from os import urandom", "urandom(8)"),
    ("random", "import random", "random.SystemRandom()"),
    ("uuid", "import uuid", "uuid.uuid4()"),
    ("uuid", "from uuid import uuid1 as fresh", "str(fresh())"),
    ("as-completed", "", "asyncio.as_completed([leaf(1), leaf(2)])"),
]
BLOCKING = [
    ("import time", "time.sleep(1)"),
    ("from time import sleep as nap", "nap(1)"),
    ("import requests", "requests.get('http://x')"),
    ("import requests", "requests.Session().post('http://x')"),
    ("import requests\nsession = requests.Session()", "session.get('http://x')"),
    ("import httpx", "httpx.get('http://x')"),
    ("from urllib.request import urlopen", "urlopen('http://x')"),
    ("import urllib.request", "urllib.request.urlopen('http://x')"),
    ("import subprocess", "subprocess.run(['true'])"),
    ("import os", "os.system('true')"),
    ("", "open('x')"),
    ("from pathlib import Path", "Path('x').read_text()"),
    ("", "input()"),
    ("import sqlite3", "sqlite3.connect('x')"),
]
SETS = [
    ("", "for x in {'a', 'b'}:\n    await leaf(x)"),
    ("", "for x in set(['a', 'b']):\n    leaf(x)"),
    ("", "for x in frozenset('ab') | {'c'}:\n    await asyncio.sleep(1)"),
    ("", "names = {'a', 'b'}\nfor x in names:\n    await leaf(x)"),
    ("", "names = {'a', 'b'}\nfor n, x in enumerate(list(names)):\n    await leaf(x)"),
    ("names: set[str]", "for x in names:\n    await leaf(x)"),
    ("names: frozenset[str] | None", "for x in names or ():\n    pass\nfor x in names:\n    await leaf(x)"),
    ("", "names = {'a'}\nnames |= {'b'}\nfor x in names:\n    await leaf(x)"),
    ("", "names = {'a'}\nnames = names | {'b'}\nfor x in names:\n    await leaf(x)"),
    ("", "def tell(x):\n    leaf(x)\nfor x in {'a', 'b'}:\n    tell(x)"),
    ("names: dict[str, int]", "for x in names.keys() - {'a'}:\n    await leaf(x)"),
    ("names: set[str]", "await dasync.all(*[leaf(x) for x in names])"),
    ("names: set[str]", "promises = {x: leaf(x) for x in names.difference({'a'})}\nawait promises['b']"),
    ("", "await asyncio.gather(*{leaf(x) for x in 'ab'})"),
    ("", "promises = {leaf(x) for x in 'ab'}\nawait dasync.all(*promises)"),
    ("", "for promise in {leaf(x) for x in 'ab'}:\n    await promise"),
    ("names: set[str]", "while names:\n    await leaf(names.pop())"),
    ("", "done, _ = await asyncio.wait([asyncio.create_task(leaf(1))])\nfor task in done:\n    await leaf(await task)"),
]
EXCEPTS = [
    "try:\n    await leaf()\nexcept:\n    pass",
    "try:\n    await leaf()\nexcept BaseException:\n    print('oh')",
    "try:\n    async with asyncio.timeout(1):\n        await leaf()\nexcept (ValueError, BaseException):\n    print()",
    "try:\n    await leaf()\nexcept BaseException as error:\n    raise ValueError('no') from error",
    "try:\n    await leaf()\nexcept dasync.Suspended:\n    pass",
    "try:\n    await leaf()\nexcept* BaseException:\n    pass",
    "import contextlib\nwith contextlib.suppress(BaseException):\n    await leaf()",
    "while True:\n    try:\n        await leaf()\n    finally:\n        return 1",
]


@pytest.mark.parametrize(("code", "imports", "call"), CALLS, ids=lambda value: value.replace("\n", ";"))
def test_what_the_system_gives_is_a_hazard_where_something_is_invoked(code: str, imports: str, call: str) -> None:
    """In an async def and in a thread; not in a leaf, and not where the name has another meaning."""
    assert codes(root(f"return {call}", imports=imports)) == [code]
    assert codes(root(f"return {call}", imports=imports, kind="def")) == [code]
    alone = root(f"return {call}", imports=imports, invoke="pass")
    assert codes(alone) == (["as-completed"] if "leaf" in call else [])
    name = re.split(r"\W", imports.rpartition("\n")[2])[-1] if " as " in imports else re.split(r"\W", call)[0]
    assert codes(root(f"return {call}", imports=imports, parameters=name)) == []


@pytest.mark.parametrize(("imports", "call"), BLOCKING, ids=lambda value: value.replace("\n", ";"))
def test_a_call_that_blocks_is_a_hazard_on_the_loop(imports: str, call: str) -> None:
    """In an async def that invokes; not in a leaf, not in a plain def, which runs in a thread, nor handed to one."""
    assert codes(root(f"return {call}", imports=imports)) == ["blocking"]
    assert codes(root(f"return {call}", imports=imports, kind="def")) == []
    assert codes(root(f"return {call}", imports=imports, invoke="pass")) == []
    assert codes(root(f"return await asyncio.to_thread(lambda: {call})", imports=imports)) == []
    function, _, arguments = call.rpartition("(")
    assert codes(root(f"return await asyncio.to_thread({function}, {arguments}", imports=imports)) == []


@pytest.mark.parametrize(("parameters", "body"), SETS, ids=lambda value: value.replace("\n", ";"))
def test_a_set_is_a_hazard_where_its_order_is_that_of_invocations(parameters: str, body: str) -> None:
    """Whatever the set is: written, made, named, declared, or a set of promises."""
    assert codes(root(body, parameters=parameters)) == ["set-order"]
    assert codes(root(body.replace("leaf", "dasync.sleep"), parameters=parameters)) == ["set-order"]


@pytest.mark.parametrize("body", EXCEPTS, ids=lambda value: value.replace("\n", ";"))
def test_what_swallows_signals_is_a_hazard_around_an_await(body: str) -> None:
    """An `except`, a `suppress` or a `return` that lets no signal through; the same with `raise` is none."""
    assert codes(root(body)) == ["bare-except"]
    assert codes(root(body).replace("await leaf(", "print(").replace("async with", "with")) == []


def test_what_swallows_signals_in_a_thread_is_a_hazard_around_a_wait() -> None:
    """What a function that runs in a thread awaits is a wait."""
    assert codes(root("p = leaf()\ntry:\n    p.wait()\nexcept:\n    pass", kind="def")) == ["bare-except"]
    assert codes(root("p = leaf()\ntry:\n    p.done()\nexcept:\n    pass", kind="def")) == []


NONE = {  # name: imports, body
    "asyncio's sleep": ("", "await asyncio.sleep(1)\nasync with asyncio.timeout(1):\n    await leaf()"),
    "the durable forms": ("", "return dasync.now(), dasync.random().random(), dasync.uuid4()"),
    "a time that is given": ("import time", "return time.localtime(1), time.strftime('%Y', time.gmtime(0))"),
    "a seed": ("import random", "return random.Random(7).random()"),
    "a seed for numpy": ("import numpy", "return numpy.random.default_rng(7).random()"),
    "a uuid by its name": ("import uuid", "return uuid.uuid5(uuid.NAMESPACE_DNS, 'x')"),
    "compare_digest": ("import secrets", "return secrets.compare_digest('a', 'b')"),
    "an attribute of that name": ("import time", "return leaf.time.time(), leaf().uuid4()"),
    "a variable that hides the module": ("import time", "time = leaf\nreturn time.time()"),
    "a loop variable that does": ("import time", "for time in [leaf]:\n    time.time()"),
    "two meanings": ("from time import time as now\nif leaf:\n    from shop import now", "return now()"),
    "an open of one's own": ("def open(x): ...", "return open(1)"),
    "another function's": ("import time\n@dasync.function\nasync def at(): return time.time()", "return await at()"),
    "a mention": ("import time", "return {'clock': time.time}"),
    "a function that is only defined": ("import time", "def never(): return time.time()"),
    "a loop over a set that invokes nothing": ("", "for x in {'a', 'b'}:\n    print(x)"),
    "a set that is spread over what invokes nothing": ("", "print(*{'a', 'b'})"),
    "a sorted set": ("", "for x in sorted({'a', 'b'}):\n    await leaf(x)"),
    "a list sorted in place": ("", "xs = list({'a', 'b'})\nxs.sort()\nfor x in xs:\n    await leaf(x)"),
    "a set of numbers": ("", "for x in {1, 2}:\n    await leaf(x)\nfor x in set(range(3)):\n    await leaf(x)"),
    "a set declared to be of numbers": ("", "xs: set[int] = set()\nfor x in xs:\n    await leaf(x)"),
    "a set of one's own": ("def set(x): ...", "for x in set('ab'):\n    await leaf(x)"),
    "a dict": ("", "for x in {'a': 1}:\n    await leaf(x)"),
    "a list that is popped": ("", "xs = [1]\nawait leaf(xs.pop())"),
    "a set at times": ("", "xs = {'a'}\nxs = sorted(xs)\nfor x in xs:\n    await leaf(x)"),
    "a set that is awaited as one": ("", "await asyncio.wait({asyncio.create_task(leaf(x)) for x in 'ab'})"),
    "except Exception": ("", "try:\n    await leaf()\nexcept Exception:\n    pass"),
    "except CancelledError": ("", "try:\n    await leaf()\nexcept asyncio.CancelledError:\n    pass"),
    "an except that raises": ("", "try:\n    await leaf()\nexcept:\n    print()\n    raise"),
    "at times": ("", "try:\n    await leaf()\nexcept BaseException as e:\n    if e.args:\n        raise e"),
    "an except around no await": ("", "try:\n    int('x')\nexcept:\n    pass"),
    "a finally": ("", "try:\n    await leaf()\nfinally:\n    print()"),
    "suppress(Exception)": ("from contextlib import suppress", "with suppress(Exception):\n    await leaf()"),
    "a suppress around no await": ("import contextlib", "with contextlib.suppress(BaseException):\n    int('x')"),
    "a log's time": ("import logging, time\nlog = logging.getLogger()", "log.info('%s', time.time())"),
    "a log's id": ("import uuid", "leaf.logger.info(f'request {uuid.uuid4()}')"),
    "a duration that is printed": (
        "import time",
        "began = time.monotonic()\nawait leaf()\nspent = round(time.monotonic() - began, 1)\nprint(f'{spent:.1f} s')",
    ),
    "a time that is printed by way of itself": ("import time", "at = time.time()\nat = round(at)\nprint(at)"),
    "a decorator that may run it elsewhere": (
        "import time, shop\n@shop.in_a_thread\ndef nap(): time.sleep(1)", "return nap()",
    ),
    "a helper in a thread": ("import time\ndef nap(): time.sleep(1)", "return await asyncio.to_thread(nap)"),
}  # fmt: skip


@pytest.mark.parametrize("name", NONE)
def test_what_only_looks_like_a_hazard_is_none(name: str) -> None:
    """Nothing is said of what stands a replay, or of what cannot be known."""
    imports, body = NONE[name]
    assert codes(root(body, imports=imports)) == []


def test_what_is_no_durable_function_or_runs_elsewhere_has_no_hazards() -> None:
    """A plain function, one that is only declared here, the handler of a batch; and to name a function's attributes
    invokes nothing."""
    text = root("return time.time()", imports="import time")
    assert codes(text) == ["clock"]
    assert codes(text.replace("@dasync.function\nasync def root", "async def root")) == []
    assert codes(text.replace("@dasync.function\nasync def root", "@dasync.remote(on='x')\nasync def root")) == []
    assert codes(text.replace("@dasync.function\nasync def root", "@dasync.batched()\nasync def root")) == []
    beside = "return time.time(), leaf.name, leaf.version, leaf.fn"
    assert codes(root(beside, imports="import time", invoke="pass")) == []


STEERS = [
    "began = time.time()\nprint(began)\nreturn began",
    "began = time.time()\nprint(leaf(began))",
    "print(await leaf(time.time()))",
    "if time.time() > 7:\n    print()",
    "at = time.time()\nlog = [at]\nprint(log)",
    "global at\nat = time.time()\nprint(at)",
]


@pytest.mark.parametrize("body", STEERS, ids=lambda value: value.replace("\n", ";"))
def test_a_time_that_is_not_only_logged_is_a_hazard(body: str) -> None:
    """One that is also returned, compared, kept or passed on."""
    assert codes(root(body, imports="import time")) == ["clock"]


HIDDEN = {  # name: imports, body, code
    "a class's attribute is no name in its functions": (
        "import time", "class Box:\n    time = 1\n    @dasync.function\n    def f(): return leaf(time.time())", "clock",
    ),
    "a class's function": ("import time\nclass Box:\n    def now(): return time.time()", "return Box.now()", "clock"),
    "a list that is changed in place": ("import random", "xs = [1]\nrandom.shuffle(xs)\nreturn xs", "random"),
    "what with gives": ("import requests", "with requests.Session() as s:\n    return s.get('x')", "blocking"),
    "a body that is called past its promise": (
        "import time\n@dasync.function\nasync def at(): return time.time()", "return await at.fn()", "clock",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", HIDDEN)
def test_a_hazard_that_hides_is_found(name: str) -> None:
    """Behind a scope, a method, a context manager."""
    imports, body, code = HIDDEN[name]
    assert codes(root(body, imports=imports)) == [code]


# -- functions ---------------------------------------------------------------------------------------------

SPELLINGS = [
    ("import dasync", "@dasync.function", "dasync.sleep(1)"),
    ("import dasync as d", "@d.function(version=2)", "d.sleep(1)"),
    ("from dasync import function, sleep", "@function", "sleep(1)"),
    ("from dasync import function as f, sleep as s", "@f(on='x')", "s(1)"),
    (
        "from dasync.runtime.declare import function\nfrom dasync.runtime.decisions import sleep",
        "@function",
        "sleep(1)",
    ),
]


@pytest.mark.parametrize(("imports", "decorator", "invoke"), SPELLINGS)
def test_a_function_is_known_by_any_spelling(imports: str, decorator: str, invoke: str) -> None:
    """However dasync is imported; the same without a decorator is no function."""
    text = f"{imports}\nimport time\n{{}}\nasync def root():\n    await {invoke}\n    return time.time()\n"
    assert codes(text.format(decorator)) == ["clock"]
    assert codes(text.format("")) == []


INVOKES = [
    "await leaf(1)",
    "leaf(1)",
    "await leaf.options(id='x')(1)",
    "elsewhere = leaf.options(on='x')\nawait elsewhere(1)",
    "await dasync.invoke(leaf, 1)",
    "await loop.invoke(leaf, 1)",
    "await dasync.all(*[leaf(x) for x in 'ab'])",
    "await dasync.promise(str)",
    "dasync.now()",
    "await root()",
    "for f in (leaf, print):\n    f(1)",
    "await ship('x')",
    "await slow('x')",
    "await charge(1)",
    "await insert(1)",
    "await helper()",
    "async def inner():\n    await leaf(1)\nawait inner()",
    "async with anyio.create_task_group() as group:\n    group.start_soon(helper)",
]


@pytest.mark.parametrize("invoke", INVOKES, ids=lambda value: value.replace("\n", ";"))
def test_whatever_invokes_makes_a_function_one_that_invokes(invoke: str) -> None:
    """A call, a configured copy, an operation of dasync's, a function that is elsewhere, a helper that does it."""
    imports = (
        "import time, anyio\nfrom other import loop\nship = dasync.remote('ship', on='x')\nslow = ship.options()\n"
        "def _charge(x): ...\ncharge = dasync.function(_charge)\n"
        "@dasync.batched(max_size=5)\nasync def insert(rows): ...\nasync def helper():\n    await leaf(1)\n"
    )
    assert codes(root("return time.time()", imports=imports, invoke=invoke)) == ["clock"]


def test_helpers_belong_to_the_function_that_calls_them() -> None:
    """However far down, once each, under the first function that comes to it; those of a leaf are nobody's."""
    helpers = (
        "import time\ndef one(): return two()\ndef two(): return three(), one()\ndef three(): return time.time()\n"
        "def four(): return time.time()\n@dasync.function\nasync def alone(): return four()\n"
    )
    text = (
        root("return one()", imports=helpers) + "\n@dasync.function\nasync def more():\n    await leaf()\n    three()\n"
    )
    (only,) = found(text)
    assert (only["function"], only["source"]) == ("root", "def three(): return time.time()")


def test_a_helper_of_a_function_in_a_thread_may_block() -> None:
    """The same helper, called on the asyncio loop as well, may not."""
    helper = "import time\ndef wait(): time.sleep(time.time())\n"
    text = root("wait()", imports=helper, kind="def")
    assert codes(text) == ["clock"]
    more = "\n@dasync.function\nasync def more():\n    await leaf()\n    wait()\n"
    assert codes(text + more) == ["blocking", "clock"]


def test_a_function_made_by_calling_the_decorator_is_checked() -> None:
    """`f = dasync.function(g)`: the body is that of `g`."""
    body = "import time\nasync def slow():\n    await leaf()\n    return time.time()\n"
    assert codes(f"{LEAF}{body}") == []
    assert codes(f"{LEAF}{body}quick = dasync.function(slow)\n") == ["clock"]
    assert codes(f"{LEAF}{body}quick = dasync.function(on='x')(slow)\n") == ["clock"]


CHARGE = LEAF.replace("leaf", "charge")
FILES = {
    "absolute": ("from billing import charge", {"billing.py": CHARGE}),
    "a module": ("import billing\ncharge = billing.charge", {"billing.py": CHARGE}),
    "in a package": ("from pay.billing import charge", {"pay/__init__.py": "", "pay/billing.py": CHARGE}),
    "in a folder": ("import pay.billing as b\ncharge = b.charge", {"pay/billing.py": CHARGE}),
    "by way of a package": (
        "from pay import charge",
        {"pay/__init__.py": "from .billing import charge as charge", "pay/billing.py": CHARGE},
    ),
    "a submodule": (
        "import pay.billing\ncharge = pay.billing.charge", {"pay/__init__.py": "", "pay/billing.py": CHARGE},
    ),
    "a helper": ("from tools import charge", {"tools.py": f"{LEAF}\nasync def charge(): return await leaf(1)"}),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_functions_and_helpers_of_other_files_are_known(name: str) -> None:
    """However they are imported; without those files nothing is known of them, and nothing said."""
    imports, others = FILES[name]
    root = "@dasync.function\nasync def root():\n    await charge()\n    return time.time()"
    shop = f"{imports}\nimport dasync, time\n{root}\n"
    assert [(one["path"], one["code"]) for one in look({"shop.py": shop, **others})["findings"]] == [
        ("shop.py", "clock")
    ]
    assert codes(shop) == []


def test_a_module_of_a_package_hides_none_that_is_imported_absolutely() -> None:
    """`import time` in a package that has a `time.py` is Python's own; beside a script it is that file."""
    files = {"pay/shop.py": root("return time.time()", imports="import time"), "pay/time.py": "def time(): ..."}
    assert [one["code"] for one in look({"pay/__init__.py": "", **files})["findings"]] == ["clock"]
    assert look(files)["findings"] == []


# -- what is said ------------------------------------------------------------------------------------------


def test_a_finding_says_where_why_and_what_to_use() -> None:
    """Path, line, column in characters, code, function, the line itself, the reason, the durable form."""
    (only,) = found(root("return 'ü', time.time()", imports="import time"))
    assert only == {
        "path": "shop.py", "line": 11, "column": 17, "code": "clock", "function": "root",
        "source": "return 'ü', time.time()", "why": "time.time() tells another time in a replay", "use": "dasync.now()",
    }  # fmt: skip


@pytest.mark.parametrize(
    "body",
    [
        "return time.time()  # dasync: ok",
        "return time.time()  #dasync:ok, for the report",
        "return time.time(\n)  # dasync: ok",
        "try:\n    await leaf()\nexcept:  # dasync: ok\n    pass",
        "for x in {'a'}:  # dasync: ok\n    await leaf(x)",
    ],
)
def test_a_line_is_excused_by_a_comment(body: str) -> None:
    """Where the hazard begins or ends; another line's comment, or another word, excuses nothing."""
    text = root(body, imports="import time")
    checked = look({"shop.py": text})
    assert (checked["findings"], checked["excused"], checked["functions"]) == ([], 1, 1)
    assert len(codes(text.replace("ok", "okay"))) == 1
    assert len(codes(root("try:\n    await leaf()\nexcept:\n    pass  # dasync: ok"))) == 1
    assert len(codes(f"# dasync: ok\n{re.sub('#.*', '', text)}# dasync: ok")) == 1


def test_each_rule_catches_something_here() -> None:
    """No rule about calls is without a call above that it catches, and the durable forms that they name are there."""
    said = [root(f"return {call}", imports=imports) for _, imports, call in CALLS]
    said += [root(f"return {call}", imports=imports) for imports, call in BLOCKING]
    caught = {(one["code"], one["use"]) for text in said for one in found(text)}
    assert caught == {(rule.code, rule.use) for rule in rules.RULES}
    coming = {"as_completed"}  # in the contract, and not there yet
    named = {name for rule in rules.RULES for name in re.findall(r"dasync\.(\w+)", rule.use)}
    assert named - coming <= set(dasync.__all__)


@pytest.mark.parametrize(
    ("data", "where"),
    [
        (b"def f(:\n", "shop.py:1:7: invalid syntax"),
        (b"x = 1\n\xff\n", "shop.py:1:1: "),
        (b"# coding: klingon\n", "shop.py:1:1: unknown encoding"),
        (b"x = 1\x00\n", "shop.py:1:1: "),
        (b"(" * 1000, "shop.py:1:"),
        (b"-" * 100_000 + b"1", "shop.py:1:1: "),
    ],
    ids=["syntax", "bytes", "encoding", "null", "parentheses", "nesting"],
)
def test_what_is_no_python_is_told_with_its_place(data: bytes, where: str) -> None:
    """One line that names file, line and column."""
    with pytest.raises(DasyncError) as raised:
        Source(PurePath("shop.py"), data)
    assert str(raised.value).startswith(where)
    assert "\n" not in str(raised.value)


def test_what_is_nested_too_deeply_to_be_looked_through_is_told_so() -> None:
    """Python may read more than can be followed."""
    with pytest.raises(DasyncError, match=r"shop\.py:1:1: .*nest|recursion"):
        codes(root(f"return x{'.a' * 1500}"))


@pytest.mark.parametrize("data", [b"\xef\xbb\xbfx = 1\r\n", b"# coding: latin-1\nx = '\xfc'\n", b"x = '\\d'\n", b""])
def test_odd_python_is_read(data: bytes) -> None:
    """A byte order mark, another encoding, other line ends, an escape that the compiler warns of, nothing at all."""
    assert isinstance(Source(PurePath("shop.py"), data).tree, ast.Module)


def _files(folder: str) -> Sequence[Path]:
    return sorted((ROOT / folder).glob("*.py"))


@pytest.mark.parametrize("path", _files("examples"), ids=lambda path: path.name)
def test_the_examples_are_free_of_hazards(path: Path) -> None:
    """No example has one, or needs an excuse."""
    checked = look({path.name: path.read_text()})
    assert (checked["findings"], checked["excused"]) == ([], 0)
    assert checked["functions"] or path.name == "03_two_processes.py"


def test_the_demo_has_one_excuse() -> None:
    """Its ledger, which is to tell each run of a body."""
    checked = look({str(path.relative_to(ROOT)): path.read_text() for path in _files("dasync/demo")})
    assert (checked["findings"], checked["excused"], checked["functions"]) == ([], 1, 1)
