"""Who serves what: the processes of a store that live, and the command that starts one where nobody does.

What runs in a process it cannot tell, only for which group it is there. It reads records and asks no store.
"""

from __future__ import annotations

import shlex
from collections.abc import Collection, Iterable, Sequence

from dasync.core.model import ProcessRecord


def live(
    processes: Iterable[ProcessRecord], dead: Collection[str], now_ms: int, host: str
) -> list[ProcessRecord]:
    """Those that are not among the `dead`, as the kernel tells of this machine, `host`; elsewhere those that seem to
    renew their lease, as near as the wall clocks of two machines can tell."""
    return [
        one for one in processes
        if one.id not in dead and (one.host == host or one.renewed_at + one.lease_ms > now_ms)
    ]  # fmt: skip


def is_served(target: str, live: Sequence[ProcessRecord]) -> bool:
    """Whether anybody is there for a target, `group` or `group/process`."""
    return any(target in (one.group, f"{one.group}/{one.name}") for one in live)


def worker_for(target: str) -> str:
    """The command that starts a worker for it."""
    group, _, name = target.partition("/")
    process = f" --process {shlex.quote(name)}" if name else ""
    return f"dasync worker APP --group {shlex.quote(group)}{process}"
