"""dasync for pytest: `@pytest.mark.dasync(seeds=200, faults="swarm")` on `async def test_x(world)`, in many worlds.

A marked test is a plain function for pytest, and so for whatever plugin runs coroutines: it is called once, with its
fixtures, and tries itself. pytest loads this file in every project that has dasync installed: until a marked test runs,
nothing of the simulation is imported. A project with a `world` of its own keeps it, in tests without the marker.
"""

from __future__ import annotations

import functools
import inspect
import shlex
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NoReturn

import pytest

from dasync import testing

MARKER = "dasync"
ARGUMENT = "world"
MISPLACED = f"@pytest.mark.{MARKER} goes on an `async def test({ARGUMENT})`, and this is none"
RAN = "dasync"
"""The property of a report that tells how many seeds, points and worlds were tried."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options of the command line."""
    group = parser.getgroup("dasync", "simulated worlds")
    group.addoption("--dasync-seed", type=int, metavar="N", help="run marked tests with this seed only")
    group.addoption("--dasync-seeds", type=int, metavar="N", help="run marked tests with so many seeds")
    group.addoption("--dasync-faults", metavar="PLAN", help="these faults in place of a test's own, as a failure names")
    group.addoption("--dasync-crash", metavar="POINT", help="a crash at this point, as a failure names it")
    group.addoption("--dasync-trace", action="store_true", help="print what happens in each world")
    group.addoption(
        "--dasync-pdb", metavar="AT", help="stop in pdb at an operation, by its number, or at the 'violation'"
    )


def pytest_configure(config: pytest.Config) -> None:
    """The marker is known."""
    config.addinivalue_line(
        "markers",
        f"{MARKER}(seeds=50, processes=3, faults='none', exhaustive=False, ...): run `async def test({ARGUMENT})` in a"
        " simulated world for each seed",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_pycollect_makeitem(collector: pytest.Collector, name: str, obj: object) -> Any:
    """A marked coroutine function becomes a plain one before anybody who runs coroutines sees it."""
    if not (inspect.iscoroutinefunction(obj) and isinstance(collector, pytest.Module | pytest.Class)):
        return None
    own = [mark for mark in getattr(obj, "pytestmark", []) if mark.name == MARKER]
    if not (own or collector.get_closest_marker(MARKER)) or not collector.istestfunction(obj, name):
        return None
    made = _in_worlds(obj)
    setattr(collector.obj, name, made)
    return collector.ihook.pytest_pycollect_makeitem(collector=collector, name=name, obj=made)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> None:
    """The marker on what cannot be run so; and past pytest-asyncio, which would complain of a module's own mark."""
    function = getattr(item, "function", None)
    if hasattr(function, "in_worlds"):
        if isinstance(item, pytest.Function) and item.get_closest_marker("asyncio") is not None:
            names, funcargs = inspect.signature(item.obj).parameters, item.funcargs
            vars(item)["runtest"] = lambda: item.obj(**{name: funcargs[name] for name in names})
    elif any(mark.name == MARKER for mark in getattr(function, "pytestmark", ())):
        pytest.fail(MISPLACED, pytrace=False)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """How many worlds were tried; with -v of each test."""
    found = {
        report.nodeid: value
        for reports in terminalreporter.stats.values()
        for report in reports
        if getattr(report, "when", "") == "call"
        for key, value in report.user_properties
        if key == RAN
    }
    if not found:
        return
    worlds = sum(tried[2] for tried in found.values())
    if config.get_verbosity() > 0:
        terminalreporter.section("simulated worlds")
        for nodeid, tried in found.items():
            terminalreporter.line(f"{nodeid}: {_told(*tried)}")
    terminalreporter.line(f"dasync: {worlds} simulated worlds in {len(found)} tests")


@pytest.fixture(name=ARGUMENT)
def _world(request: pytest.FixtureRequest) -> NoReturn:
    """The simulated world of a test that is marked `@pytest.mark.dasync`; a fixture cannot have it."""
    if request.node.get_closest_marker(MARKER) is None:
        what = f"{ARGUMENT!r} is what a test is called with that is marked with @pytest.mark.{MARKER}; this one is not"
    elif hasattr(request.node.function, "in_worlds"):
        what = f"no fixture can have {ARGUMENT!r}, for each seed has its own: let the test hand it on"
    else:
        what = MISPLACED
    pytest.fail(what, pytrace=False)


def _in_worlds(test: Callable[..., Any]) -> Callable[..., None]:
    """A plain function with the fixtures of that test, which tries it."""
    parameters = inspect.signature(test).parameters
    request = inspect.Parameter("request", inspect.Parameter.KEYWORD_ONLY)
    others = [one for one in parameters.values() if one.name not in (ARGUMENT, "request")]

    @functools.wraps(test)
    def in_worlds(*args: Any, request: pytest.FixtureRequest, **kwargs: Any) -> None:
        __tracebackhide__ = True
        if "request" in parameters:
            kwargs["request"] = request

        @functools.wraps(test)
        async def tried(world: testing.World) -> None:
            await test(*args, **kwargs, **({ARGUMENT: world} if ARGUMENT in parameters else {}))

        _try(tried, request)

    found: Any = in_worlds
    found.in_worlds = True
    found.__signature__ = inspect.Signature([*others, request])
    found.pytestmark = [mark for mark in getattr(test, "pytestmark", []) if not _is_anyios(mark)]
    return in_worlds


def _is_anyios(mark: pytest.Mark) -> bool:
    """Whether it is what anyio's plugin puts on coroutine functions that it is to run."""
    return mark.name == "anyio" or (mark.name == "usefixtures" and mark.args == ("anyio_backend",))


def _try(test: Callable[[testing.World], Any], request: pytest.FixtureRequest) -> None:
    __tracebackhide__ = True
    config, node = request.config, request.node
    arguments = _arguments(node, config)
    at = config.getoption("--dasync-pdb")
    if at is not None:
        with _outside(config):
            seed = config.getoption("--dasync-seed") or 0
            arguments = {name: value for name, value in arguments.items() if name not in ("seeds", "exhaustive")}
            testing.debug(test, seed, int(at) if at.isdecimal() else at, **arguments)
        return

    given = config.getoption("--dasync-faults")

    def replay(seed: int, faults: str | None, crash: str | None) -> str:
        said = {"--dasync-seed": str(seed), "--dasync-faults": faults or given, "--dasync-crash": crash}
        return shlex.join(["pytest", node.nodeid, *(part for pair in said.items() if pair[1] for part in pair if part)])

    def tell(line: str) -> None:
        config.get_terminal_writer().line(line)

    with ExitStack() as stack:
        if config.getoption("--dasync-trace"):
            stack.enter_context(_outside(config))
            arguments["tell"] = tell
        tried = testing.simulate(test, replay=replay, **arguments)
    node.user_properties.append((RAN, tuple(tried)))


def _arguments(node: pytest.Item, config: pytest.Config) -> dict[str, Any]:
    """Those of the markers, the closest first, and of the command line before them."""
    found: dict[str, Any] = {}
    for mark in node.iter_markers(MARKER):
        if mark.args:
            pytest.fail(f"@pytest.mark.{MARKER} takes its arguments by name, as seeds=200", pytrace=False)
        found = {**mark.kwargs, **found}
    seed, seeds = config.getoption("--dasync-seed"), config.getoption("--dasync-seeds")
    if seed is not None or seeds is not None:
        found["seeds"] = [seed] if seed is not None else seeds
    for name in ("faults", "crash"):
        given = config.getoption(f"--dasync-{name}")
        if given is not None:
            found[name] = given
    if "crash" in found:
        found.pop("exhaustive", None)
    return found


@contextmanager
def _outside(config: pytest.Config) -> Iterator[None]:
    """What is printed meanwhile is not captured, and what is typed is read."""
    capture = config.pluginmanager.getplugin("capturemanager")
    if capture is None:
        yield
        return
    capture.suspend_global_capture(in_=True)
    try:
        yield
    finally:
        capture.resume_global_capture()


def _told(seeds: int, points: int, worlds: int) -> str:
    """How many of what, in words."""
    found = f"{seeds} seed{'s' if seeds != 1 else ''}"
    return found + (f", a crash at {points} points each in its turn" if points else "") + f", {worlds} worlds"
