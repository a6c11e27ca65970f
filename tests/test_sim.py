"""`dasync sim`: worlds that go the same way for the same seed, hold, and reach what they are there for."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from dasync.testing import faults
from dasync.testing.faults import Fault
from dasync.testing.policies import Fifo, Priorities, Scripted
from dasync.testing.simulation import GOALS, Result, shrink, simulate
from dasync.testing.watch import Violation
from dasync.testing.world import World

ROOT = Path(__file__).parent.parent


def sim(*options: object, hash_seed: int = 0, python: str = sys.executable) -> subprocess.CompletedProcess[str]:
    """`dasync sim`, in a process of its own."""
    command = [python, "-m", "dasync", "sim", *map(str, options)]
    env = {**os.environ, "PYTHONHASHSEED": str(hash_seed), "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=env)


def told(*options: object, **how: Any) -> Any:
    """Its JSON."""
    done = sim(*options, "--json", **how)
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return json.loads(done.stdout)


# -- the same seed


def test_the_same_seeds_print_the_same_bytes(tmp_path: Path) -> None:
    """In two processes, under two hash seeds, however they are dealt out."""
    once = sim("--seeds", 12, "--jobs", 1, "--json", hash_seed=1)
    again = sim("--seeds", 12, "--jobs", 2, "--json", hash_seed=2)
    assert once.returncode == 0, once.stdout[-3000:]
    assert once.stdout == again.stdout
    one = [sim("--seed", 7, "--json", hash_seed=seed).stdout for seed in (1, 2)]
    assert one[0] == one[1] != ""


@pytest.mark.campaign
def test_a_hundred_seeds_are_the_same_to_the_byte() -> None:
    """TaskGroup aborts, `asyncio.wait` and anyio's cancellation among them."""
    once, again = (sim("--seeds", 100, "--json", hash_seed=seed) for seed in (11, 12))
    assert once.returncode == 0, once.stdout[-3000:]
    assert once.stdout == again.stdout


def test_a_world_depends_on_nothing_that_ran_before_it() -> None:
    """The fifth of five in one process goes as it does alone."""
    alone = simulate(4).digest
    assert [simulate(seed).digest for seed in (0, 1, 2, 3, 4)][-1] == alone


def test_different_seeds_go_different_ways() -> None:
    """As many ways as seeds, of the same program without a fault."""
    assert len({simulate(seed, "default").digest for seed in range(12)}) == 12


def test_other_policies_go_other_ways() -> None:
    """Each of them decides; all of them come to an end."""
    digests = set()
    for policy in (Fifo(), Priorities(b"x"), Scripted([1, 0, 2, 0, 1])):

        def with_policy(world: World, policy: Any = policy) -> None:
            world.cluster.policy = policy

        result = simulate(1, "default", prepare=with_policy)
        assert result.status == 0, result
        digests.add(result.digest)
    assert len(digests) == 3


# -- what holds

FOUND = {  # by the code of their time; the programs have changed since, so a seed is not the same world any more
    8: "a replay took first what its first run had not heard of; 11 too",
    35: "slots stood still: nobody was told that a function had room again",
    58: "a cancel of anyio's is repeated in each round of the loop while the disk is slow; 74 too",
    190: "acquires that nobody had heard of: their orders were tried one by one; 1554, 1883 too",
    1064: "a suspend that another process repeats was taken for one under a stolen claim",
    1095: "a connection was used after it had been closed",
    1442: "in the simulation callbacks of one execution overtook each other, which asyncio rules out; 1062, 1945 too",
    1920: "who could not bury a silent process tried again a hundred times a second",
}


@pytest.mark.campaign
@pytest.mark.parametrize("seed", FOUND)
def test_what_was_found_once_holds(seed: int) -> None:
    """Each seed that has shown something."""
    result = simulate(seed)
    assert result.violations == []
    assert result.crash == ""


def test_fifty_seeds_of_swarm_hold() -> None:
    """Nothing is wrong, whatever befalls them."""
    found = told("--seeds", 50)
    assert found["failed"] == 0
    assert found["distinct"] == 50


@pytest.mark.parametrize("scenario", ["default", "faults", "lazy"])
def test_the_other_scenarios_hold(scenario: str) -> None:
    """Without faults, with all of them, without a single doorbell."""
    assert told("--seeds", 8, "--scenario", scenario)["failed"] == 0


@pytest.mark.campaign
def test_a_thousand_seeds_of_swarm_hold_and_reach_every_goal() -> None:
    """What is never reached is not tried."""
    found = told("--seeds", 1000, "--seed", 1000)
    assert found["failed"] == 0
    assert found["missed"] == []
    assert all(found["reached"][goal] for goal in GOALS)


# -- when something is wrong


def spoiled(seed: int, plan: list[Fault] | None = None) -> Result:
    """A world in which two deaths are one too many."""

    def spoil(world: World) -> None:
        def died(process: Any) -> None:
            if sum(mark.text == "killed" for mark in world.marks) == 2 and not world.violations:
                world.watch.wrong("claim", f"{process.name} died as well")

        world.cluster.on_death.append(died)

    return simulate(seed, plan=plan, prepare=spoil)


def test_a_plan_that_fails_is_made_shorter() -> None:
    """To those faults without which it does not fail."""
    plan = [Fault(at, kind, who, 0.5, 0.5) for at, kind, who in (
        (2, "slow", ""), (5, "kill", "default-1"), (6, "loss", ""), (9, "kill", "far-1"), (12, "doubles", ""),
    )]  # fmt: skip
    failed = spoiled(3, plan)
    assert [one.checker for one in failed.violations] == ["claim"]
    best = shrink(failed, lambda less: spoiled(3, less))
    assert [fault.kind for fault in best.plan] == ["kill", "kill"]
    assert best.again.startswith("dasync sim --seed 3 --scenario swarm --plan '5:kill:default-1")


def test_a_plan_can_be_printed_and_read() -> None:
    """Every fault."""
    a_kill, a_jump = Fault(3, "kill", "default-1", 0.25), Fault(9, "clock", "far-2", 20, -3600)
    for fault in (a_kill, a_jump, Fault(0, "loss", "", 1, 0.5)):
        assert faults.parse(str(fault)) == fault
    done = sim("--seed", 1, "--plan", "3:kil:default-1:0")
    assert done.returncode == 1
    assert "'kil' is no kind of fault" in done.stderr


@pytest.mark.parametrize(("checker", "status"), [("claim", 1), ("liveness", 4)])
def test_exit_statuses_tell_what_was_wrong(checker: str, status: int) -> None:
    """A violation and a standstill; a simulation that fails itself."""
    assert Result(1, "swarm", violations=[Violation(checker, "so it is")]).status == status
    assert Result(1, "swarm", crash="ValueError").status == 3


# -- the command


def test_one_seed_prints_who_asked_what_and_what_it_heard(tmp_path: Path) -> None:
    """Requests with their statuses; with a page."""
    page = tmp_path / "dst.html"
    done = sim("--seed", 5, "--html", page)
    assert done.returncode == 0, done.stderr
    assert re.search(r"fulfill x-\d@\d+: resolve -> 200 resolved", done.stdout)
    assert "everything held" in done.stdout
    assert page.read_text("utf-8").startswith("<!")
    traced = sim("--seed", 5, "--trace").stdout
    assert "starts, life 1" in traced
    assert sim("--seed", 5, "--ticks", 300).stdout != done.stdout


@pytest.mark.parametrize("jobs", [1, pytest.param(2, marks=pytest.mark.campaign)])
def test_a_night_ends_in_time_and_has_seeds_of_its_own(jobs: int) -> None:
    """One that is over before it began tries a seed, or what is dealt out at once; they may find something, any day."""
    found = json.loads(sim("--nightly", 1e-9, "--jobs", jobs, "--json").stdout)
    assert 1 <= found["seeds"] <= 40
    days, rest = divmod(found["first"], 1_000_000)
    assert rest == 0
    assert abs(days - time.time() / 86_400) < 2


@pytest.mark.parametrize("hours", ["0", "-1", "inf", "all"])
def test_a_night_has_a_length(hours: str) -> None:
    done = sim(f"--nightly={hours}")
    assert done.returncode == 2
    assert f"a number of hours above 0 is needed, not '{hours}'" in done.stderr


def test_a_single_seed_as_json() -> None:
    """The log along with the rest."""
    found = told("--seed", 5)
    assert found["operations"] == len(found["log"])
    assert found["status"] == 0
