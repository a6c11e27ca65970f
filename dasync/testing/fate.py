"""What befalls a world: a plan of faults, each after its commit, and everything healed at the end.

A fault that lasts ends by itself, unless all is healed before. The processes that it may hit are the workers and, in
`dasync sim`, the clients; the process of a test's own coroutine is spared.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

from dasync.testing import faults as plans
from dasync.testing.cluster import Cluster
from dasync.testing.faults import Fault
from dasync.testing.network import Network
from dasync.testing.simdisk import Disk


class Victims(Protocol):
    """A world, as what befalls it sees it."""

    cluster: Cluster
    disk: Disk
    network: Network

    def mark(self, process: str, text: str) -> None:
        """Something befalls it."""

    def crash(self, name: str | None = None, *, restart_after: float | None = 0.0) -> None:
        """Kill a process, or all workers."""

    def stop(self, name: str, seconds: float) -> None:
        """Stop a process."""

    def terminate(self, name: str, *, restart_after: float | None = 0.0) -> None:
        """Tell a process to end."""

    def lose_power(self, seconds: float = 1.0) -> bool:
        """Everything dies at once."""

    def jump(self, name: str, seconds: float, for_s: float) -> None:
        """Its wall clock jumps."""


class Fate:
    """That of one world."""

    def __init__(self, world: Victims, plan: Sequence[Fault]) -> None:
        self.plan = sorted(plan)
        self.commits = 0
        """How many batches took effect that are no heartbeats."""
        self.is_healed = False
        self._world = world
        self._left = list(self.plan)

    def committed(self) -> None:
        """One more: it may be time for a fault."""
        self.commits += 1
        while self._left and self._left[0].after <= self.commits:
            self._world.cluster.at(0, partial(self.befall, self._left.pop(0)))

    def heal(self) -> None:
        """Network and disk work again; what was planned does not happen any more."""
        network, disk = self._world.network, self._world.disk
        self.is_healed, self._left = True, []
        network.cut.clear()
        network.loss = network.doubles = network.delays = 0.0
        disk.slow.clear()
        disk.full, disk.failing = False, 0.0

    def befall(self, fault: Fault) -> None:
        """Let it happen."""
        world = self._world
        if self.is_healed:
            return
        match fault.kind:
            case "kill":
                world.crash(fault.who, restart_after=fault.for_s)
            case "stop":
                world.stop(fault.who, fault.for_s)
            case "term":
                world.terminate(fault.who, restart_after=fault.for_s)
            case "power":
                world.lose_power(fault.for_s)
            case "clock":
                world.jump(fault.who, fault.much, fault.for_s)
            case "loss" | "doubles" | "delays" | "cut":
                self._network(fault)
            case "slow" | "full" | "fail":
                self._disk(fault)
            case _:
                raise ValueError(f"{fault.kind!r} is no kind of fault; those are {', '.join(plans.KINDS)}")

    def _network(self, fault: Fault) -> None:
        world, network, kind = self._world, self._world.network, fault.kind
        if kind == "cut":
            world.mark("", f"{fault.who} are cut off from each other for {fault.for_s:g} s")
            pair = frozenset(fault.who.split("/"))
            network.cut.add(pair)
            self._later(fault, lambda: network.cut.discard(pair))
        else:
            world.mark("", f"doorbells: {kind} {fault.much:g} for {fault.for_s:g} s")
            setattr(network, kind, fault.much)
            self._later(fault, lambda: setattr(network, kind, 0.0))

    def _disk(self, fault: Fault) -> None:
        world, disk = self._world, self._world.disk
        world.mark("", f"the disk: {fault.kind} for {fault.for_s:g} s")
        if fault.kind == "slow":
            disk.slow |= {process.host for process in world.cluster.processes.values()}
            disk.reach("the disk was slow")
            self._later(fault, disk.slow.clear)
        elif fault.kind == "full":
            disk.full = True
            self._later(fault, lambda: setattr(disk, "full", False))
        else:
            disk.failing = fault.much
            self._later(fault, lambda: setattr(disk, "failing", 0.0))

    def _later(self, fault: Fault, end: Callable[[], object]) -> None:
        cluster = self._world.cluster

        def over() -> None:
            cluster.stir()  # what was held up goes on now, at its next try
            end()

        cluster.at(fault.for_s, over)


def planned(
    faults: str | Sequence[Fault], cluster: Cluster, processes: Sequence[str], lease_s: float, commits: int
) -> list[Fault]:
    """The plan that `faults` names, or is, or that was printed so. Raises `ValueError` for a word that names none."""
    if not isinstance(faults, str):
        return sorted(faults)
    if ":" in faults:
        return sorted(plans.parse(fault) for fault in faults.split())
    draws, hosts = cluster.draws("faults"), sorted({process.host for process in cluster.processes.values()})
    if faults == "none" or not processes:
        return []
    if faults == "swarm":
        return _scaled(plans.swarm(draws, processes, hosts, lease_s), commits)
    kinds = list(plans.KINDS) if faults == "all" else faults.replace("+", " ").split()
    check_kinds(faults)
    return _scaled(plans.plan(draws, processes, hosts, lease_s, kinds, draws.randrange(1, 9)), commits)


def check_kinds(faults: str | Sequence[Fault]) -> None:
    """Raise `ValueError` for a word that names no faults."""
    __tracebackhide__ = True
    if not isinstance(faults, str) or ":" in faults or faults in ("none", "swarm", "all"):
        return
    if unknown := [kind for kind in faults.replace("+", " ").split() if kind not in plans.KINDS]:
        raise ValueError(
            f"faults is 'none', 'swarm', 'all', or some of {', '.join(plans.KINDS)}, not {', '.join(unknown)}"
        )


def _scaled(plan: list[Fault], commits: int) -> list[Fault]:
    """The plan for a program of so many commits."""
    return [fault._replace(after=fault.after * commits // (2 * plans.MEAN_COMMITS)) for fault in plan]
