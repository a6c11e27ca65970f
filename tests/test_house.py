"""The rules of the house: who may know whom, how big things get, and what may be asked of the system where.

Each rule is a function from a module's source to its faults, so that a tiny bad source shows that it catches.
Figures are counted as `house.py` counts them: lines by newlines, functions and classes by their span.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tokenize
from collections.abc import Callable, Iterator
from io import StringIO
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "dasync"
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)

# Rooms by floor. A room is a top module or a package; arrows go down only, and never between two rooms of one floor.
FLOORS: dict[str, int] = {
    "errors": 1,
    "core": 2, "analysis": 2,
    "ports": 3, "system": 3,
    "runtime": 4, "stores": 4, "transports": 4,
    "worker": 5,
    "loop": 6, "replay": 6,
    "server": 7, "testing": 7,
    "faces": 8,
    "": 9,  # dasync/__init__.py: names what is public, so it may name every room; no room knows it
}  # fmt: skip
FACES = frozenset({"cli", "demo", "render", "web", "__main__"})  # one room: they parse and print together

MAX_FILE_LINES = 500
MAX_FUNCTION_LINES = 60
MAX_CLASS_LINES, MAX_METHODS = 300, 20
MAX_PARAMETERS = 6
PURE = frozenset({"core", "analysis"})
PURE_REFUSES = frozenset({"time", "random", "os", "sqlite3", "asyncio"})


class Module:
    """One source file of the package, by its dotted name."""

    def __init__(self, name: str, source: str, *, is_package: bool = False) -> None:
        self.name = name
        self.source = source
        self.is_package = is_package
        self.tree = ast.parse(source)

    def functions(self) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
        return (node for node in ast.walk(self.tree) if isinstance(node, FUNCTIONS))

    def comments(self) -> Iterator[tokenize.TokenInfo]:
        tokens = tokenize.generate_tokens(StringIO(self.source).readline)
        return (token for token in tokens if token.type == tokenize.COMMENT)


def load(folder: Path) -> dict[str, Module]:
    found = {}
    for path in sorted(folder.rglob("*.py")):
        dotted = ".".join(path.relative_to(folder.parent).with_suffix("").parts)
        is_package = dotted.endswith(".__init__")
        name = dotted.removesuffix(".__init__")
        found[name] = Module(name, path.read_text("utf-8"), is_package=is_package)
    return found


HOUSE = load(PACKAGE)


def room_of(name: str) -> str:
    room = name.partition(".")[2].partition(".")[0]
    return "faces" if room in FACES else room


def imports(module: Module, modules: set[str]) -> Iterator[tuple[str, str]]:
    """What a module imports of the package, wherever it does: at the top, in functions, under TYPE_CHECKING."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, ast.unparse(node)) for alias in node.names if alias.name in modules)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = module.name.split(".") if module.is_package else module.name.split(".")[:-1]
                base = ".".join([*parts[: len(parts) - node.level + 1], *([node.module] if node.module else [])])
            for alias in node.names:
                dotted = f"{base}.{alias.name}"
                reached = dotted if dotted in modules else base
                if reached in modules:
                    yield reached, ast.unparse(node)


# -- rules: a module to its faults ---------------------------------------------------------------------------


def breaks_floors(module: Module, modules: set[str]) -> list[str]:
    mine = room_of(module.name)
    if mine not in FLOORS:
        return [f"{module.name}: no floor is set for the room {mine!r}"]
    return [
        f"{module.name} (floor {FLOORS[mine]}) may not know {target}: {text}"
        for target, text in imports(module, modules)
        if room_of(target) != mine and FLOORS.get(room_of(target), 99) >= FLOORS[mine]
    ]


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Groups of modules that reach each other."""
    reach = {name: set(targets) for name, targets in graph.items()}
    changed = True
    while changed:
        changed = False
        for targets in reach.values():
            further = set().union(*(reach.get(target, set()) for target in targets)) - targets
            if further:
                targets |= further
                changed = True
    return sorted({tuple(sorted(o for o in reach if o in reach[n] and n in reach[o])) for n in reach if n in reach[n]})


def is_too_long(module: Module) -> list[str]:
    lines = module.source.count("\n")
    return [f"{module.name}: {lines} lines"] if lines > MAX_FILE_LINES else []


def has_long_functions(module: Module) -> list[str]:
    spans = ((f, (f.end_lineno or f.lineno) - f.lineno + 1) for f in module.functions())
    return [f"{module.name}:{f.name}: {span} lines" for f, span in spans if span > MAX_FUNCTION_LINES]


def has_large_classes(module: Module) -> list[str]:
    faults = []
    for node in ast.walk(module.tree):
        if isinstance(node, ast.ClassDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            methods = sum(isinstance(item, FUNCTIONS) for item in node.body)
            if lines > MAX_CLASS_LINES and methods > MAX_METHODS:
                faults.append(f"{module.name}:{node.name}: {lines} lines and {methods} methods")
    return faults


def has_wide_functions(module: Module) -> list[str]:
    counted = ((f, len(f.args.posonlyargs) + len(f.args.args)) for f in module.functions())
    return [f"{module.name}:{f.name}: {count} positional" for f, count in counted if count > MAX_PARAMETERS]


def imports_inside_functions(module: Module) -> list[str]:
    if room_of(module.name) == "faces":
        return []  # heavy optional extras of the command line
    return [
        f"{module.name}:{function.name}: {ast.unparse(node)}"
        for function in module.functions()
        for node in ast.walk(function)
        if isinstance(node, (ast.Import, ast.ImportFrom))
    ]


def lets_the_world_in(module: Module) -> list[str]:
    if room_of(module.name) not in PURE:
        return []
    faults = []
    for node in ast.walk(module.tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and not node.level:
            names = [node.module or ""]
        faults += [f"{module.name}: {ast.unparse(node)}" for name in names if name.partition(".")[0] in PURE_REFUSES]
    return faults


def says_any_in_core(module: Module) -> list[str]:
    if room_of(module.name) != "core":
        return []
    return [
        f"{module.name}:{node.lineno}: Any"
        for node in ast.walk(module.tree)
        if (isinstance(node, ast.Name) and node.id == "Any")
        or (isinstance(node, ast.Attribute) and node.attr == "Any")
        or (isinstance(node, ast.alias) and node.name == "Any")
    ]


def ignores_without_reason(module: Module) -> list[str]:
    """An ignore names its code and tells why, in a comment after it or in the lines around it."""
    coded = re.compile(r"# type: ignore\[[\w,-]+\]|# noqa: [A-Z]+\d+(, ?[A-Z]+\d+)*")
    faults = []
    for token in module.comments():
        text = token.string
        if not re.search(r"type: *ignore|noqa", text):
            continue
        found = coded.search(text)
        explained = found is not None and re.search(r"#\s*\w+.*\w", text[found.end() :])
        if not explained:
            faults.append(f"{module.name}:{token.start[0]}: {text}")
    return faults


def does_not_say_what_it_is_for(module: Module) -> list[str]:
    return [] if ast.get_docstring(module.tree) else [f"{module.name} opens without a docstring"]


def leaves_work_undone(module: Module) -> list[str]:
    return [
        f"{module.name}:{token.start[0]}: {token.string}"
        for token in module.comments()
        if re.search(r"\b(TODO|FIXME|XXX|HACK)\b", token.string)
    ]


def asks_the_system(module: Module) -> list[str]:
    """Time and randomness come from system.py. `random.Random` and `uuid.UUID` are types, not sources."""
    if module.name == "dasync.system":
        return []
    alias_of: dict[str, str] = {}
    faults: list[tuple[int, str]] = []
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            alias_of |= {alias.asname or alias.name: alias.name for alias in node.names}
            faults += [(node.lineno, alias.name) for alias in node.names if alias.name in ("time", "secrets")]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            alias_of |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    called = {node.func for node in ast.walk(module.tree) if isinstance(node, ast.Call)}
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            dotted = f"{alias_of.get(node.value.id, '?')}.{node.attr}"
        elif isinstance(node, ast.Name):
            dotted = alias_of.get(node.id, "?")
        else:
            continue
        if _SOURCES.match(dotted):
            faults.append((node.lineno, dotted))
        if dotted == "random.Random" and node in called:
            faults.append((node.lineno, "random.Random()"))
    return [f"{module.name}:{line}: {what}" for line, what in sorted(set(faults))]


_SOURCES = re.compile(
    r"(time|secrets)\.\w+$|random\.(?!Random$)\w+$|uuid\.uuid\d$|os\.(urandom|getrandom)$"
    r"|(datetime\.)?(datetime|date)\.(now|utcnow|today)$"
)

Rule = Callable[[Module], list[str]]
RULES: dict[Rule, tuple[str, str]] = {  # each with a name and a source that it must catch
    is_too_long: ("dasync.loop", '"""Long."""\n' + "x = 1\n" * MAX_FILE_LINES),
    has_long_functions: ("dasync.loop", "def f():\n" + "    x = 1\n" * MAX_FUNCTION_LINES),
    has_large_classes: (
        "dasync.loop", "class C:\n" + "".join(f"    def m{i}(self):\n" + "        x = 1\n" * 15 for i in range(21)),
    ),
    has_wide_functions: ("dasync.loop", "def f(a, b, /, c, d, e, f, g): ..."),
    imports_inside_functions: ("dasync.loop", "def f():\n    import json"),
    lets_the_world_in: ("dasync.core.machine", "from os.path import join"),
    says_any_in_core: ("dasync.core.machine", "import typing\nx: typing.Any = 1"),
    ignores_without_reason: ("dasync.loop", "x = 1  # type: ignore[misc]"),
    does_not_say_what_it_is_for: ("dasync.loop", "x = 1"),
    leaves_work_undone: ("dasync.loop", "x = 1  # TODO: y"),
    asks_the_system: ("dasync.loop", "from datetime import datetime\nx = datetime.now()"),
}  # fmt: skip
by_name = pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)


@by_name
def test_the_house_keeps_the_rule(rule: Rule) -> None:
    """No module of the package breaks the rule."""
    assert [fault for module in HOUSE.values() for fault in rule(module)] == []


@by_name
def test_the_rule_catches_a_fault(rule: Rule) -> None:
    """A small source that breaks the rule is caught: the rule is not blind."""
    assert rule(Module(*RULES[rule]))


def test_arrows_go_down_only() -> None:
    """No module imports one of its own floor in another room, nor one of a higher floor, however it does it."""
    names = set(HOUSE)
    assert [fault for module in HOUSE.values() for fault in breaks_floors(module, names)] == []


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("dasync.core.machine", "from dasync import ports"),
        ("dasync.runtime.journal", "def f():\n    import dasync.stores.rows"),
        ("dasync.stores.rows", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from dasync.loop import run"),
        ("dasync.ports", "from dasync.system import SystemClock"),
        ("dasync.runtime.journal", "from ..worker import Worker"),
        ("dasync.worker", "import dasync"),
        ("dasync.cellar", "x = 1"),
    ],
)
def test_an_arrow_that_goes_up_is_caught(name: str, source: str) -> None:
    """An import upwards or sideways is caught at the top, in a function and under TYPE_CHECKING; so is a new room."""
    assert breaks_floors(Module(name, source), set(HOUSE))


def test_there_are_no_circles() -> None:
    """No module reaches itself through its imports, at the top, in functions or under TYPE_CHECKING."""
    names = set(HOUSE)
    graph = {name: {target for target, _ in imports(module, names)} for name, module in HOUSE.items()}
    assert all(graph[name] - {name} == graph[name] for name in graph)
    assert circles(graph) == []


def test_a_circle_is_found() -> None:
    """Two modules that reach each other through a third are a circle; a chain is none."""
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [("a", "b", "c")]
    assert circles({"a": {"b"}, "b": {"c"}, "c": set()}) == []


@pytest.mark.parametrize(
    "source",
    [
        "import time",
        "import random\nrandom.random()",
        "import random as r\nr.Random(1)",
        "from random import randrange\nrandrange(3)",
        "import uuid\nuuid.uuid4()",
        "from uuid import uuid4\nuuid4()",
        "import os\nos.urandom(8)",
        "from os import urandom\nurandom(8)",
        "import secrets",
        "from datetime import date\ndate.today()",
    ],
)
def test_every_way_to_ask_the_system_is_caught(source: str) -> None:
    """Time and randomness taken past the Clock and the Entropy are caught, under any name."""
    assert asks_the_system(Module("dasync.worker", source))


@pytest.mark.parametrize("comment", ["# noqa", "# type: ignore", "# type: ignore  # why", "# noqa: E501"])
def test_every_bare_ignore_is_caught(comment: str) -> None:
    """An ignore without a code, or without a reason, is caught."""
    assert ignores_without_reason(Module("dasync.loop", f"x = 1  {comment}"))


def test_importing_dasync_imports_nothing_heavy() -> None:
    """`import dasync` names what is public and loads none of it: each name comes when it is first used."""
    done = _python(
        "import sys; before = set(sys.modules); import dasync; print(*sorted(set(sys.modules) - before));"
        "assert dasync.__all__ and dir(dasync)"
    )
    loaded = {name.partition(".")[0] for name in done.split()}
    assert not loaded & {"asyncio", "aiosqlite", "anyio", "cattrs", "msgpack", "rich", "sqlite3", "concurrent", "ssl"}
    assert [name for name in done.split() if name.startswith("dasync")] == ["dasync"]


def test_every_public_name_exists_and_is_documented() -> None:
    """Each name in `dasync.__all__` can be had and has a docstring; others are an AttributeError."""
    done = _python(
        "import dasync\n"
        "print([n for n in dasync.__all__ if not (getattr(dasync, n).__doc__ or '').strip()])\n"
        "try: dasync.nothing\n"
        "except AttributeError as error: print(error)"
    )
    assert done.splitlines() == ["[]", "module 'dasync' has no attribute 'nothing'"]


def _python(program: str) -> str:
    command = [sys.executable, "-c", program]
    return subprocess.run(command, capture_output=True, text=True, check=True, cwd=PACKAGE.parent).stdout
