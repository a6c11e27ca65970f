"""Random programs of the matrix's constructs, cut short and resumed: each comes to what an undisturbed run could have.

`DASYNC_PROGRAMS=100000 pytest tests/test_grown.py -k long -m campaign` tries more, and others each time.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from io import StringIO
from typing import Any

import grown
import pytest
from grown import Grown, Tree, Writer, trees
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from dasync.system import stream
from dasync.testing import trial
from dasync.testing.leaves import KINDS
from dasync.testing.schedule import drawn
from dasync.testing.trial import Trial

PROGRAMS, MANY_PROGRAMS, PARTS = 24, 500, 4
CASES = 4  # of each program: a pass over one schedule is not broken off, so it is more
OF_MANY = 7  # of these, where there are many programs
CALM = settings(
    deadline=None, database=None, print_blob=False, suppress_health_check=list(HealthCheck),
    report_multiple_bugs=False, phases=(Phase.generate, Phase.shrink),
)  # fmt: skip


def try_all(made: Grown, number: int, most: int | None = None) -> int:
    """Try cases of one program, so many at most; raises with the program and the first case that is wrong."""
    tried, draws = Trial(made.program), stream(str(number).encode())
    for kind in KINDS if most is None else draws.sample(KINDS, 2):
        schedule = drawn(draws, made.program.leaves, clocked=made.program.clocked)
        assert not (wrong := tried.check_first_run(kind, schedule)), f"{wrong}\n\n{made.code}"
    cases = list(tried.draw(CASES, str(number).encode()))
    for case in cases if most is None else draws.sample(cases, min(most, len(cases))):
        if (fault := tried.check(case)) is not None:
            raise AssertionError(f"{fault}\n\n{made.told(case)}")
    return len(tried.cases)


def try_many(programs: int, number: int | None, most: int | None = None) -> int:
    """Grow so many programs and try each; gives the number of cases."""
    cases = 0

    @settings(CALM, max_examples=programs)
    @given(trees(), st.integers(0, 2**16))
    def holds(tree: Tree, schedules: int) -> None:
        nonlocal cases
        cases += try_all(Grown(tree), schedules, most)

    (holds if number is None else seed(number)(holds))()
    return cases


def test_grown_programs_resume(record_property: Callable[[str, Any], None]) -> None:
    """24 of them."""
    record_property("cases", ["grown programs", try_many(PROGRAMS, 0)])


@pytest.mark.campaign
@pytest.mark.parametrize("part", range(1, PARTS + 1))
def test_many_grown_programs_resume(part: int, record_property: Callable[[str, Any], None]) -> None:
    """500 more, four times."""
    record_property("cases", [f"grown programs, part {part}", try_many(MANY_PROGRAMS, part, OF_MANY)])


@pytest.mark.campaign
@pytest.mark.skipif("DASYNC_PROGRAMS" not in os.environ, reason="DASYNC_PROGRAMS says how many to grow")
def test_a_long_run_of_grown_programs() -> None:
    """As many as the environment says, others in every run."""
    try_many(int(os.environ["DASYNC_PROGRAMS"]), None)


@pytest.mark.campaign  # the smallest program is found in a minute
def test_what_goes_wrong_is_shown_as_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """A failure holds a program that is as small as can be, and running what it says shows the same fault."""

    def hasty_leaf(writer: Writer) -> Iterator[str]:
        yield "late = asyncio.get_running_loop().time() > 0.5"  # a clock that is not recorded
        yield f"seen.append([await leaf({writer.leaf()!r}), late])"

    monkeypatch.setattr(trial, "MAX_READINGS", 2)  # to be quick: none of them is right
    monkeypatch.setitem(grown.KINDS, "leaf", hasty_leaf)
    with pytest.raises(AssertionError) as caught:
        try_many(50, 0)
    fault, _, script = str(caught.value).partition("\n\n")
    assert script.count("await leaf(") == 1, script
    with redirect_stdout(StringIO()) as out:
        exec(compile(script, "<grown>", "exec"), {})
    assert out.getvalue() == f"{fault}\n"
