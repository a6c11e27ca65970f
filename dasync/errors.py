"""Every exception of dasync, split by whose fault it is.

- `DasyncError` and its children: what a program may meet and may catch.
- `Suspended` and `LeaseLost`: control signals. They derive from BaseException so that an
  `except Exception` in user code cannot swallow them and go on as if nothing had happened.
- `InvariantViolated`: a bug of dasync's own. The process stops writing at once.

This file decides nothing and imports nothing.
"""

from __future__ import annotations


class DasyncError(Exception):
    """The root of everything that dasync raises for a program to catch."""


class NonDeterminismError(DasyncError):
    """A replay came to something else than is recorded, or ended without coming to it.

    Raised at the invocation inside the execution, and to whoever awaits that. The promise stays pending and its task
    is halted: nothing is settled by a run that has diverged. Its text is a report: a line that says what, then the
    details and what to do; `execution` is what was replayed, `id` where it diverged, `expected` and `got` say what is
    recorded there and what came, `differences` in what they differ, and `at` is the source line of the call.
    """

    def __init__(
        self,
        report: str = "",
        *,
        execution: str = "",
        id: str = "",
        expected: str = "",
        got: str = "",
        differences: tuple[str, ...] = (),
        at: str = "",
    ) -> None:
        super().__init__(report)
        self.execution = execution
        self.id = id
        self.expected = expected
        self.got = got
        self.differences = differences
        self.at = at


class Poisoned(DasyncError):
    """A function's code was running when its process ended without a word, too often in a row: its task is halted.

    Raised to whoever invokes it again. The promise stays pending; `dasync resume ID` sends the task again.
    """


class PromiseConflict(DasyncError):
    """The id is in use for another invocation, or the promise is settled with another outcome.

    Raised by `await` and `created()`, not by the invocation itself.
    """


class PromiseCanceled(DasyncError):
    """The awaited promise was canceled. It is not `asyncio.CancelledError`: the awaiting task goes on."""


class PromiseTimedOut(DasyncError, TimeoutError):
    """The awaited promise reached its deadline before it was settled."""


class PromiseNotFound(DasyncError, LookupError):
    """The store holds no promise of that id."""


class FunctionNotFound(DasyncError, LookupError):
    """No function of that name and version is registered in this process."""


class RemoteError(DasyncError):
    """An error of a class that this process does not know, by its description.

    `type` is the qualified name of the class, `message` its text, `traceback` the remote traceback. A class keeps its
    type where it is a builtin, decorated with `@dasync.error`, or in a module of a durable function, and that module
    is imported here. Signals (KeyboardInterrupt, CancelledError) never do.
    """

    def __init__(self, type: str, message: str, traceback: str = "") -> None:
        super().__init__(type, message, traceback)
        self.type = type
        self.message = message
        self.traceback = traceback

    def __str__(self) -> str:
        return f"{self.type}: {self.message}"


class Terminal(DasyncError):
    """Raised by a durable function: it has failed for good, whatever its retry policy says.

    Subclasses (and groups that hold one) end the attempts as well.
    """


class UnserializableValue(DasyncError, TypeError):
    """A value cannot be stored. The text names the path to it, as in `args[0].items[3].lock`, and what to do.

    Raised at the call, before anything is written; a result that cannot be stored rejects its promise.
    """


class DecodeError(DasyncError, ValueError):
    """Stored bytes are not a value that dasync wrote, or do not fit the declared type.

    Raised where the value is wanted: by `await` for a result, at the start for arguments (that task is halted). What
    is stored stays as it is: code that declares the former type reads it again.
    """


class PayloadTooLarge(DasyncError, ValueError):
    """An encoded value is larger than `max_payload` bytes."""


class NoEventLoop(DasyncError, RuntimeError):
    """A function was invoked where no EventLoop is open, or where it is not clear on which one."""


class StoreError(DasyncError):
    """The root of what a store raises."""


class StoreUnavailable(StoreError):
    """The store cannot be reached or written now: a missing folder, a full disk, a read-only file.

    Nothing acknowledged is lost, and the same call may succeed later.
    """


class StoreCorrupt(StoreError):
    """The file is not a dasync store, or a row fails its checksum. dasync leaves it as it is."""


class StoreVersion(StoreError):
    """The store was written by a newer dasync. It is left as it is."""


class Suspended(BaseException):
    """The execution is being handed back to the store; it will be resumed from its promises.

    Raised inside an execution at its next durable operation. User code must not catch it.
    """


class LeaseLost(BaseException):
    """This process no longer holds the execution's task; another one may be running it.

    Raised inside an execution at its next durable operation. User code must not catch it.
    """


class InvariantViolated(BaseException):
    """A rule that dasync itself guarantees does not hold: a bug in dasync, please report it.

    The process that meets it writes nothing more.
    """
