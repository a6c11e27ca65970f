"""The simulated worlds: what is handed in instead of the edges of the real one. Everything between them is real.

Two of them are here. In one, many processes live on one disk and one network, by a seed: `cluster.py` has time and
processes, `simloop.py` the asyncio loop of each, `simdisk.py` and `network.py` the edges, `fate.py` what befalls it,
`watch.py`, `reckoning.py` and `linear.py` what must hold, `world.py` all of it together; `simulation.py` is what
`dasync sim` runs, with the programs of `programs.py`. In the other a single process is cut short at every transition
and resumed in another order: `clock.py`, `outside.py`, `crash.py`, `leaves.py`, `life.py`, `trial.py`.

`history.py` is the record of what clients asked and heard; `linear.py` finds whether it can be told as one operation
after the other (`parts.py` divides it by promise, `model.py` and `known.py` say what may be heard of one), `report.py`
shows it as a page. What users have of it is named below: `seeds.py` runs a test of theirs in many worlds (`points.py`
kills at every point), `travel.py` stops in one (`frames.py` finds their code), `plugin.py` has both for pytest; a name
is loaded when it is first used. Nothing in the other rooms knows this one.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dasync.testing.cluster import Deadlock as Deadlock
    from dasync.testing.cluster import Spins as Spins
    from dasync.testing.faults import Fault as Fault
    from dasync.testing.history import Operation as Operation
    from dasync.testing.seeds import Broken as Broken
    from dasync.testing.seeds import Tried as Tried
    from dasync.testing.seeds import simulate as simulate
    from dasync.testing.simloop import Unsimulated as Unsimulated
    from dasync.testing.travel import debug as debug
    from dasync.testing.watch import Violation as Violation
    from dasync.testing.world import World as World

_ROOMS = {
    "cluster": "Deadlock Spins",
    "faults": "Fault",
    "history": "Operation",
    "seeds": "Broken Tried simulate",
    "simloop": "Unsimulated",
    "travel": "debug",
    "watch": "Violation",
    "world": "World",
}
_HOME = {name: room for room, names in _ROOMS.items() for name in names.split()}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'dasync.testing' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"dasync.testing.{_HOME[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
