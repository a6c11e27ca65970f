"""The pytest plugin, in projects of its own: what a marked test is, what a failure says, who else is not disturbed."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from dasync import testing

pytest_plugins = ("pytester",)
ROOT = Path(__file__).parent.parent
PLUGIN = ("-p", "no:dasync", "-p", "dasync.testing.plugin", "-p", "no:cacheprovider", "-p", "no:randomly")
APP = '''
    import asyncio, pytest, dasync

    @dasync.function
    async def double(number: int) -> int:
        await asyncio.sleep(0.01)
        return 2 * number

    effects = []

    @dasync.function
    async def careless() -> None:
        await asyncio.sleep(0.01)
        effects.append(1)
        for number in range(4):
            await double(number)
'''


assert all(getattr(testing, name) for name in testing.__all__)  # or a project's run would load it, and unload it


@pytest.fixture
def project(pytester: pytest.Pytester) -> pytest.Pytester:
    pytester.makeini(
        "[pytest]\nasyncio_default_fixture_loop_scope = function\nfilterwarnings = error\naddopts = --strict-markers"
    )
    return pytester


def run(project: pytest.Pytester, test: str, *options: str) -> pytest.RunResult:
    path = project.makepyfile(test_app=APP + test)
    return project.runpytest_inprocess(*PLUGIN, *options, str(path))


GOOD = '''
    calls = []

    @pytest.fixture
    def number():
        return 21

    @pytest.mark.dasync(seeds=4, processes=2, faults="swarm")
    async def test_one(world, number, request):
        calls.append(world.seed)
        assert request.node.name == "test_one"
        assert world.workers == ["default-1", "default-2"]
        assert await world.invoke(double, number) == 42

    def test_each_seed_has_run_once_after_one_without_faults():
        assert calls == [0, 0, 1, 2, 3]

    class TestAll:
        pytestmark = pytest.mark.dasync(seeds=[5, 7])

        @pytest.mark.parametrize("factor", [1, 2])
        async def test_two(self, factor, world):
            assert world.seed in (0, 5, 7)  # the first world has no faults
            assert await world.invoke(double, factor) == 2 * factor

        @pytest.mark.dasync(exhaustive=True, seeds=1)
        async def test_three(self, world):
            assert await world.invoke(double, 1) == 2

        def test_four(self):
            pass
'''


@pytest.mark.parametrize(
    ("options", "head"),
    [
        ((), ""),
        pytest.param(("--asyncio-mode=auto", "-v"), "anyio", marks=pytest.mark.campaign),
        pytest.param(("-o", "anyio_mode=auto"), "asyncio", marks=pytest.mark.campaign),
    ],
    ids=["alone", "asyncio auto", "anyio auto"],
)
def test_a_marked_test_runs_once_for_each_seed(project: pytest.Pytester, options: tuple[str, ...], head: str) -> None:
    """Beside pytest-asyncio and anyio in either mode, in classes, with fixtures and parameters; how many is told."""
    source = GOOD.replace("    @pytest.mark.dasync", f"    @pytest.mark.{head}\n    @pytest.mark.dasync", 1)
    result = run(project, source if head else GOOD, *options)
    result.assert_outcomes(passed=6)
    told = re.search(r"dasync: (\d+) simulated worlds in 4 tests", result.stdout.str())
    assert told is not None
    if "-v" in options:
        told_of_each = ["*::test_one: 4 seeds, 5 worlds", "*test_three: 1 seed, a crash at * points each *"]
        result.stdout.fnmatch_lines(told_of_each)


BAD = '''
    @pytest.mark.dasync(seeds=100, faults="kill")
    async def test_found(world):
        effects.clear()
        await world.invoke(careless)
        assert len(effects) == 1, "twice"

    @pytest.mark.dasync(exhaustive=True)
    async def test_every_point(world):
        effects.clear()
        await world.invoke(careless)
        assert len(effects) == 1, "twice"

    @pytest.mark.dasync(seeds=1)
    async def test_violation(world):
        world.watch.wrong("claim", "made up")

    @pytest.mark.dasync(seeds=1)
    async def test_deadlock(world):
        await dasync.promise(int, id="nobody")

    @pytest.mark.dasync(sedes=4)
    async def test_unknown(world):
        pass

    @pytest.mark.dasync(faults="swam")
    async def test_misspelled(world):
        pass

    @pytest.mark.dasync(4)
    async def test_positional(world):
        pass

    @pytest.mark.dasync
    def test_plain():
        pass

    @pytest.fixture
    def of_mine(world):
        return world

    @pytest.mark.dasync
    async def test_fixture(of_mine):
        pass

    def test_unmarked(world):
        pass
'''


def test_a_failure_says_all_that_it_takes(project: pytest.Pytester) -> None:
    """The assertion in the user's frame, the seed, few faults, the replay, the trace; and each of them comes again."""
    result = run(project, BAD)
    result.assert_outcomes(failed=8, errors=2)
    result.stdout.fnmatch_lines(
        [
            ">       assert len(effects) == 1, \"twice\"",
            "E       AssertionError: twice",
            "E       dasync: in a simulated world, seed *",
            "E       faults   *:kill:default-*(of * that were planned)",
            "E       replay   pytest test_app.py::test_found --dasync-seed * --dasync-faults *",
            "E       trace    what befell the world, and the last of * lines*",
            "E *default-?    killed",
            "E       faults   none, and a crash of whoever writes at *",
            "E       replay   pytest test_app.py::test_every_point --dasync-seed 0 --dasync-crash *",
            "E   dasync.testing.seeds.Broken: claim: made up",
            "E   dasync.testing.cluster.Deadlock: nothing is left to wait for*",
            "*test_deadlock at *test_app.py:*, waits for nobody",
            "E   TypeError: sedes: no such option; those are seeds, exhaustive, processes, groups, faults, *",
            "E   ValueError: faults is 'none', 'swarm', 'all', or some of kill, *, not swam",
            "@pytest.mark.dasync takes its arguments by name, as seeds=200",
            "@pytest.mark.dasync goes on an `async def test(world)`, and this is none",
        ]
    )
    result.stdout.fnmatch_lines(["no fixture can have 'world', for each seed has its own: let the test hand it on"])
    result.stdout.fnmatch_lines(["'world' is what a test is called with that is marked *; this one is not"])
    assert "cluster.py" not in result.stdout.str().replace("dasync.testing.cluster", "")
    replay = re.search(r"replay   pytest (test_app.py::test_found .*)", result.stdout.str())
    assert replay is not None
    again = in_process_of_its_own(project, "--dasync-trace", *shlex.split(replay[1]))
    assert "1 failed in" in again
    said = [again.index(one) for one in (", hash ", "starts, life 1", " killed", "replay   pytest test_app.py")]
    assert said == sorted(said)
    assert replay[1] in again


def in_process_of_its_own(project: pytest.Pytester, *options: str, stdin: str = "") -> str:
    command = [sys.executable, "-m", "pytest", *PLUGIN, *options]
    return subprocess.run(
        command, input=stdin, capture_output=True, text=True, timeout=120, cwd=project.path
    ).stdout  # fmt: skip


@pytest.mark.campaign
def test_the_command_line_chooses_seeds_and_stops_in_pdb(project: pytest.Pytester) -> None:
    """`--dasync-seeds` for how many, `--dasync-seed` for one, `--dasync-pdb` for a look at it."""
    source = '''
    @pytest.mark.dasync(seeds=100)
    async def test_seeds(world):
        number = await world.invoke(double, world.seed)
        print("seed", world.seed)
        assert number < 4
    '''
    run(project, source, "--dasync-seeds=2").assert_outcomes(passed=1)
    few = run(project, source, "--dasync-seed=1", "-s")
    few.assert_outcomes(passed=1)
    few.stdout.fnmatch_lines(["*seed 1*", "dasync: 2 simulated worlds in 1 tests"])
    options = ("--dasync-seed=3", "--dasync-pdb=violation", "test_app.py")
    said = in_process_of_its_own(project, *options, stdin="p 'it is', number\nq\n")
    assert "-> assert number < 4" in said
    assert "('it is', 6)" in said


@pytest.mark.campaign
def test_a_world_of_ones_own_stays(project: pytest.Pytester) -> None:
    """A project that has a fixture of that name keeps it in its own tests; marked tests have the simulated one."""
    project.makeconftest("import pytest\n@pytest.fixture\ndef world():\n    return 'mine'\n")
    source = '''
    def test_mine(world):
        assert world == "mine"

    @pytest.mark.dasync(seeds=1)
    async def test_simulated(world):
        assert await world.invoke(double, 2) == 4

    @pytest.mark.asyncio
    async def test_other(world):
        assert world == "mine"
    '''
    run(project, source).assert_outcomes(passed=3)


def test_who_does_not_use_it_hardly_notices_it() -> None:
    """pytest loads the plugin by its entry point everywhere: it brings along two names and no library."""
    entry = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["pytest11"]
    assert entry == {"dasync": "dasync.testing.plugin"}
    program = (
        "import sys, pytest; before = set(sys.modules); import dasync.testing.plugin;"
        "print(*sorted(one for one in set(sys.modules) - before if one.split('.')[0] not in sys.stdlib_module_names))"
    )
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert said.stdout.split() == ["dasync", "dasync.testing", "dasync.testing.plugin"]
