"""The simulated network: doorbells between processes, late, lost, doubled, out of order, or cut off; and who is dead.

As on one machine, the kernel tells who is dead, but only of processes of the same host; what the dead were running is
still to be read then.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from dasync.core.ids import MARK_BYTES
from dasync.core.model import ProcessRecord
from dasync.ports import Bell, Box
from dasync.testing.cluster import Cluster, Process
from dasync.testing.simdisk import Disk

BOX_BYTES = 512
QUICK_S, LATE_S = (0.00002, 0.0005), (0.01, 3.0)


NEVER = -1  # no process has that many lives


class Network:
    """All the bells there are."""

    def __init__(self, cluster: Cluster, disk: Disk) -> None:
        self.cluster = cluster
        self.loss = self.doubles = self.delays = 0.0
        """How often a letter is lost, comes twice, comes late."""
        self.cut: set[frozenset[str]] = set()
        """Pairs of hosts between which nothing comes through."""
        self._disk = disk
        self._draws = cluster.draws("network")
        self._bells: dict[str, tuple[Process, int, Callable[[Bell], None]]] = {}
        self._boxes: dict[str, Box] = {}
        self._lives: dict[str, tuple[Process, int]] = {}

    def enter(self, id: str, process: Process, on_ring: Callable[[Bell], None], box: Box) -> None:
        """A process has a bell, of that address."""
        self._bells[id] = (process, process.life, on_ring)
        self._lives[id] = (process, process.life)
        self._boxes[id] = box

    def leave(self, id: str) -> None:
        """It has none any more."""
        self._bells.pop(id, None)
        self._lives.pop(id, None)

    def give_up(self, id: str) -> None:
        """It has none any more, and all on its host can see that."""
        self._bells.pop(id, None)
        process, _ = self._lives[id]
        self._lives[id] = (process, NEVER)

    def is_dead(self, id: str, host: str) -> bool:
        """Whether that process certainly lives no more, seen from that host."""
        process, life = self._lives.get(id, (None, 0))
        return process is not None and process.host == host and not (process.up and process.life == life)

    def ran(self, id: str) -> bytes:
        """What it was running."""
        return bytes(self._boxes.get(id, b""))  # type: ignore[arg-type]  # a bytearray

    def send(self, sender: Process, address: str, bell: Bell) -> None:
        """A letter, maybe."""
        if address not in self._bells:
            return
        process = self._bells[address][0]
        draws, disk = self._draws, self._disk
        if frozenset((sender.host, process.host)) in self.cut and sender.host != process.host:
            disk.reach("a doorbell was cut off")
            return
        if draws.random() < self.loss:
            disk.reach("a doorbell was lost")
            return
        copies = 2 if draws.random() < self.doubles else 1
        if copies == 2:
            disk.reach("a doorbell rang twice")
        for _ in range(copies):
            late = draws.random() < self.delays
            self.cluster.at(draws.uniform(*(LATE_S if late else QUICK_S)), lambda: self._arrive(address, bell))

    def _arrive(self, address: str, bell: Bell) -> None:
        found = self._bells.get(address)
        if found is not None and found[0].up and found[0].life == found[1]:
            found[0].call(found[2], bell)


class SimTransport:
    """The doorbell of one process."""

    def __init__(self, network: Network, process: Process) -> None:
        self.box: Box = bytearray(BOX_BYTES)
        self._network = network
        self._process = process
        self._id = ""
        self._on_ring: Callable[[Bell], None] = lambda _: None

    @property
    def host(self) -> str:
        return self._process.host

    async def open(self, process: str, on_ring: Callable[[Bell], None]) -> str:
        self.box = bytearray(BOX_BYTES)
        self._id, self._on_ring = process, on_ring
        self._network.enter(process, self._process, on_ring, self.box)
        return process

    def ring(self, doorbells: Mapping[str, Bell]) -> None:
        for address, bell in doorbells.items():
            if address == self._id:
                self._on_ring(Bell(bell.ring))
            else:
                self._network.send(self._process, address, bell)

    def dead(self, processes: Sequence[ProcessRecord]) -> list[str]:
        return [one.id for one in processes if one.host == self.host and self._network.is_dead(one.id, self.host)]

    def ran(self, process: ProcessRecord) -> tuple[bytes, ...]:
        if process.host != self.host:
            return ()
        said = self._network.ran(process.id)
        marks = (said[at : at + MARK_BYTES] for at in range(0, len(said), MARK_BYTES))
        return tuple(sorted({mark for mark in marks if any(mark)}))

    def bury(self, process: str) -> None:
        self._network.leave(process)

    def tidy(self, processes: Sequence[ProcessRecord]) -> None:
        """Nothing lies about."""

    async def close(self, *, left: bool) -> None:
        if self._id:
            (self._network.leave if left else self._network.give_up)(self._id)
        self._id = ""
