"""The demo's processes: workers and the coordinator, started as `python -m dasync worker`, killed, and always ended.

Whatever happens to the demo, short of its own SIGKILL, nobody that was started here outlives `Crew`'s block.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import anyio
from anyio.abc import ByteReceiveStream, Process

from dasync.demo import survey
from dasync.errors import DasyncError

HELD_AT_A_TIME = 8  # by one worker: more would leave the others without work at the end
START_S, DRAIN_S = 30.0, 10.0  # how long a process may take to be ready, and to leave


@dataclass(slots=True)
class Member:
    """A process of the crew."""

    name: str
    group: str
    process: Process
    expected_to_end: bool = False

    @property
    def pid(self) -> int:
        return self.process.pid


class Crew:
    """Processes on one store. Use it with `async with`; `folder` takes what they have to complain of."""

    def __init__(self, store: str, folder: Path, ledger: Path) -> None:
        self.members: dict[str, Member] = {}
        self._store = store
        self._folder = folder
        self._env = os.environ | {survey.LEDGER: str(ledger), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}

    async def __aenter__(self) -> Crew:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with anyio.CancelScope(shield=True):
            for member in self.members.values():
                await self._end(member, gently=kind is None)

    async def start(self, name: str, group: str) -> None:
        """Start a process and wait until it is ready."""
        command = [
            sys.executable, "-m", "dasync", "worker", survey.__name__, "--store", self._store, "--group", group,
            "--process", name, "--concurrency", str(HELD_AT_A_TIME), "--durability", "process", "--json",
        ]  # fmt: skip
        with self._complaints(name).open("ab") as complaints:
            process = await anyio.open_process(command, stdin=subprocess.DEVNULL, stderr=complaints, env=self._env)
        member = self.members[name] = Member(name, group, process)
        with anyio.move_on_after(START_S):
            line = await _line(process.stdout)
            if line and json.loads(line)["ready"]:
                return
        if not member.expected_to_end:
            raise DasyncError(f"{name} did not come up: {self._tail(name)}")

    async def kill(self, name: str) -> None:
        """End a process with SIGKILL: it is not asked and cannot clean up."""
        member = self.members[name]
        member.expected_to_end = True
        member.process.kill()
        await member.process.wait()
        await member.process.aclose()

    def check(self) -> None:
        """Raise `DasyncError` if anybody has ended who was not to."""
        for member in self.members.values():
            status = member.process.returncode
            if status is not None and not member.expected_to_end:
                raise DasyncError(f"{member.name} ended with status {status}: {self._tail(member.name)}")

    def called(self, pid: int) -> Member | None:
        """The member that is that process."""
        return next((member for member in self.members.values() if member.pid == pid), None)

    async def _end(self, member: Member, *, gently: bool) -> None:
        member.expected_to_end = True
        if member.process.returncode is None:
            if gently:
                member.process.terminate()
                with anyio.move_on_after(DRAIN_S):
                    await member.process.wait()
            if member.process.returncode is None:
                member.process.kill()
                await member.process.wait()
        await member.process.aclose()

    def _complaints(self, name: str) -> Path:
        return self._folder / f"{name}.stderr"

    def _tail(self, name: str) -> str:
        return self._complaints(name).read_text("utf-8", "replace")[-500:] or "it said nothing"


async def _line(stream: ByteReceiveStream | None) -> bytes:
    """The first line that comes; less, if the stream ends."""
    data = b""
    while stream is not None and b"\n" not in data:
        try:
            data += await stream.receive()
        except (anyio.EndOfStream, anyio.ClosedResourceError):
            break
    return data
