"""The simulation finds what is planted: `mutants.py` has the bugs, `mutants.md` what a whole run of it came to.

By default every patch applies, and a few mutants are found by a seed that is known. The campaign finds all of them,
each from its known seed on; how many seeds it takes from 0 on is what the table says, and the command that makes it.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager

import mutants
import pytest
from mutants import MUTANTS, Mutant, Patch, Stale

from dasync.core import authority, invariants, machine
from dasync.core import protocol as p
from dasync.testing import linear
from dasync.testing.simulation import OK

QUICK = ("fence: version", "settle overwrites", "version not raised", "timers time out")
FAMOUS = ("callback of a create that failed", "callback of a create that failed, stored")
NEAR = 3  # seeds from the known one on: a change elsewhere may shift what a seed does
WITHOUT_AT_LEAST = 10


def test_there_are_mutants_enough() -> None:
    """The famous one in two places, and at least 25 others; ten of them are not left to production's own checks."""
    assert len(MUTANTS) >= 27
    assert set(FAMOUS) <= set(MUTANTS)
    assert sum(mutant.without for mutant in MUTANTS.values()) >= WITHOUT_AT_LEAST


@pytest.mark.parametrize("name", MUTANTS)
def test_every_patch_applies(name: str) -> None:
    """Each is planted, and gone afterwards."""
    before = _functions()
    with mutants.planted(MUTANTS[name]):
        assert _functions() != before or not _of_these(MUTANTS[name])
    assert _functions() == before


@pytest.mark.parametrize(
    "patch",
    [Patch("dasync.core.machine:_holds", "no such text", ""), Patch("dasync.core.machine:_holds", "claim", "")],
)
def test_a_patch_that_no_longer_applies_fails(patch: Patch) -> None:
    """Text that is not there, or there more than once, is no place."""
    with pytest.raises(Stale), mutants.planted(Mutant("stale", (patch,))):
        raise AssertionError("it was planted")


def test_a_name_that_was_imported_is_mutated_too() -> None:
    """A table holds the function itself, and so does a module that imported it."""
    before = authority.AUTHORITY["authority_claim_holds"]
    patch = Patch("dasync.core.authority:_authority_claim", "if held and process is not None:", "if False:")
    with mutants.planted(Mutant("in a table", (patch,))):
        assert authority.AUTHORITY["authority_claim_holds"] is not before
        assert invariants.AUTHORITY["authority_claim_holds"] is authority.AUTHORITY["authority_claim_holds"]
    assert authority.AUTHORITY["authority_claim_holds"] is before


@pytest.mark.parametrize("name", QUICK)
def test_a_mutant_is_found(name: str) -> None:
    """By its known seed, which finds nothing where nothing is wrong."""
    mutant, seed = MUTANTS[name], mutants.known()[name].seed or 0
    assert mutants.run(mutant, seed).status != OK
    assert mutants.run(mutant._replace(patches=()), seed).status == OK


@pytest.mark.parametrize("name", FAMOUS)
def test_the_famous_bug_is_a_history_of_three_requests(name: str) -> None:
    """Create; create and call back, which is refused; call back, which is answered as if it had been there already."""
    result = mutants.run(MUTANTS[name], mutants.known()[name].seed or 0)
    assert "linearizability" in mutants.checkers(result)
    create, create_and_call_back, call_back = mutants.minimal(result.history)
    assert isinstance(create.command, p.PromiseCreate)
    assert isinstance(create_and_call_back.command, p.PromiseCreate)
    assert isinstance(call_back.command, p.RegisterCallback)
    assert create_and_call_back.command.awaiter == call_back.command.awaiter
    statuses = [one.reply.status if one.reply else 0 for one in (create, create_and_call_back, call_back)]
    assert statuses == [201, 409, 200]
    due = call_back._replace(reply=call_back.reply._replace(status=p.Status.CREATED))  # type: ignore[union-attr]
    verdicts = {one.promise: one for one in linear.check([create, create_and_call_back, due])}
    assert verdicts[create.command.id].ok


@pytest.mark.campaign
def test_all_mutants_are_found() -> None:
    """Each from its known seed on; those that are marked so without production's own checks as well."""
    with _pool() as pool:
        found = dict(zip(MUTANTS, pool.map(_near, MUTANTS), strict=True))
    assert {name: said for name, said in found.items() if said} == {}


def _near(name: str) -> str:
    """What is wrong; nothing: it is found."""
    mutant, known = MUTANTS[name], mutants.known()[name]
    for bare in (False, True)[: 1 + mutant.without]:
        start = (known.without if bare else known.seed) or 0
        near = range(start, start + NEAR)
        seeds = dict.fromkeys([*near, *range(mutants.SEEDS)])  # where what a seed does has shifted
        if mutants.first(mutant, seeds, bare=bare) is None:
            return f"survives {len(seeds)} seeds" + " without production's checks" * bare
    return ""


@contextmanager
def _pool() -> Iterator[ProcessPoolExecutor]:
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield pool


def _functions() -> dict[str, object]:
    return {name: value for name, value in vars(machine).items() if callable(value)}


def _of_these(mutant: Mutant) -> bool:
    return any(patch.where.startswith("dasync.core.machine:") for patch in mutant.patches)
