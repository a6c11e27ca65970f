"""Processes for tests: forked from a small parent that has imported everything, so that one starts in milliseconds.

    with Zygote("programs") as zygote:
        child = zygote.spawn("programs:run", path, 3)
        child.kill()            # or child.result()

A child runs one function and leaves what it returns; it ends by `os._exit`, or by the alarm when it hangs.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import TracebackType

HERE = Path(__file__).parent
PATIENCE_S = 20  # a child that lives longer hangs, and is killed


class Child:
    """A process that was forked."""

    def __init__(self, zygote: Zygote, pid: int, out: Path) -> None:
        self._zygote = zygote
        self._out = out
        self._status: int | None = None
        self.pid = pid

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send it a signal; a deadly one is also waited for."""
        os.kill(self.pid, number)
        if number == signal.SIGKILL:
            self.wait()

    def wait(self) -> int:
        """Its exit status, once it has ended: 0, what it exited with, or minus the signal that ended it."""
        if self._status is None:
            self._status = os.waitstatus_to_exitcode(int(self._zygote.ask("wait", self.pid)))
        return self._status

    def result(self) -> object:
        """What its function has returned."""
        status = self.wait()
        text = self._out.read_text() if self._out.exists() else "nothing"
        assert status == 0, f"process {self.pid} ended with {status}: {text}"
        return json.loads(text)


class Zygote:
    """The parent."""

    def __init__(self, *modules: str) -> None:
        self._modules = modules
        self._children: list[Child] = []
        self._folder = tempfile.TemporaryDirectory(prefix="dasync-zygote-")

    def __enter__(self) -> Zygote:
        program = f"import sys; sys.path[:0] = {[str(HERE), str(HERE.parent)]!r}; import zygote; zygote.serve()"
        self._process = subprocess.Popen(
            [sys.executable, "-c", program, *self._modules], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.reap()
        self._process.communicate()
        self._folder.cleanup()

    def spawn(self, target: str, *args: object) -> Child:
        """Run `module:function` with `args` in a process of its own."""
        out = Path(self._folder.name) / str(len(self._children))
        child = Child(self, int(self.ask("spawn", target, str(out), *args)), out)
        self._children.append(child)
        return child

    def reap(self) -> None:
        """End every child that still lives."""
        for child in self._children:
            if child._status is None:
                with contextlib.suppress(ProcessLookupError):
                    child.kill()

    def ask(self, *words: object) -> str:
        """One line there, one line back."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(words) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, "the zygote is gone"
        return answer


def serve() -> None:
    """The parent's side."""
    for module in sys.argv[1:]:
        import_module(module)
    for line in sys.stdin:
        word, *args = json.loads(line)
        if word == "wait":
            answer = os.waitpid(args[0], 0)[1]
        else:
            answer = os.fork()
            if answer == 0:
                _live(*args)
        print(answer, flush=True)


def _live(target: str, out: str, *args: object) -> None:
    """The child's life, to its end."""
    status = 1
    try:
        signal.alarm(PATIENCE_S)
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, 0)
        os.dup2(null, 1)
        module, _, name = target.partition(":")
        text = json.dumps(getattr(import_module(module), name)(*args))
        status = 0
    except BaseException:
        text = traceback.format_exc()
    with contextlib.suppress(BaseException):
        Path(out).write_text(text)
    os._exit(status)


def zygote_of(*modules: str) -> Iterator[Zygote]:
    """For a fixture: `yield from zygote_of("programs")`."""
    with Zygote(*modules) as zygote:
        yield zygote
